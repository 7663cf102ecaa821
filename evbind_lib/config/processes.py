"""Which process does what: a name for this one, whether another still lives, locks between those of one machine."""

import contextlib
import hashlib
import os
import socket
from collections.abc import Iterator
from pathlib import Path

import filelock
import psutil

from evbind_lib.config.paths import resolve_sqlite, sqlite_file, workspace


def this_process() -> str:
    """Host, boot and PID namespace, number, and start of this process; numbers alone are given again after a while."""
    return f"{_place()} {os.getpid()} {_start(os.getpid(), _place())}"


def is_here(process: str) -> bool:
    """Whether a process, as `this_process` names it, can be looked up from this one."""
    # The latter of an earlier version, or of a system without boot ids.
    return process.rsplit(" ", 2)[0] in (_place(), socket.gethostname())


def is_dead(process: str) -> bool:
    """Whether a process, as `this_process` names it, is gone; of what cannot be looked up from here nobody can know."""
    place, number, started = process.rsplit(" ", 2)
    if is_here(process):
        return _start(int(number), place) != started
    host, _, kernel = place.partition("/")
    # The same host, booted again since.
    return host == socket.gethostname() and kernel.partition(":")[0] != _place().partition("/")[2].partition(":")[0]


def _place() -> str:
    """Where numbers of processes mean the same: a host and, where the system has them, its boot and a PID namespace there."""
    try:
        boot = Path("/proc/sys/kernel/random/boot_id").read_text(encoding="ascii").strip()
        return f"{socket.gethostname()}/{boot}:{os.readlink('/proc/self/ns/pid').strip('pid:[]')}"
    except OSError:
        return socket.gethostname()


def _start(number: int, place: str) -> str:
    """When a process of this place began, in ticks since the boot where the place has one; empty where it is gone."""
    try:
        if "/" not in place:  # by the clock, which may be set in between
            found = psutil.Process(number)
            return "" if found.status() == psutil.STATUS_ZOMBIE else f"{found.create_time():.1f}"
        state, *others = Path(f"/proc/{number}/stat").read_bytes().rpartition(b")")[2].decode().split()
        return "" if state in "ZX" else others[18]
    except (psutil.NoSuchProcess, FileNotFoundError, ProcessLookupError):
        return ""


@contextlib.contextmanager
def lock_between_processes(address: str) -> Iterator[None]:
    """Lock of a database for one process of this machine, `filelock.Timeout` after 2 minutes; a failure leaves nothing behind."""
    # Beside the database, where all who share it find it whatever their TMPDIR and user; one of a server is in the workspace.
    url = resolve_sqlite(address)
    file = sqlite_file(url) or workspace() / f"evbind_{hashlib.sha256(url.encode()).hexdigest()[:16]}"
    made = [folder for folder in file.parents if not folder.exists()]
    lock = file.with_name(f"{file.name}.lock")
    try:
        file.parent.mkdir(parents=True, exist_ok=True)
        # Where nobody can write, nobody can to a database either: SQLite needs its journal beside it.
        with filelock.FileLock(lock, timeout=120) if os.access(file.parent, os.W_OK) else contextlib.nullcontext():
            was_there = file.exists()
            try:
                yield
            except BaseException:
                with contextlib.suppress(OSError):
                    lock.unlink()  # who waits for a lock that is gone makes it again
                    if not was_there and not file.stat().st_size:
                        file.unlink()
                raise
    except BaseException:
        for folder in made:
            with contextlib.suppress(OSError):  # something is in it
                folder.rmdir()
        raise
