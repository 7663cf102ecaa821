"""Which process does what: a name for this one, whether another still lives, locks between those of one machine."""

import hashlib
import os
import socket
from contextlib import AbstractContextManager, nullcontext
from typing import Any

import filelock
import psutil

from evbind_lib.config.paths import resolve_sqlite, sqlite_file, workspace


def this_process() -> str:
    """Host, number and start of this process; numbers alone are given again after a while."""
    return f"{socket.gethostname()} {os.getpid()} {psutil.Process().create_time():.1f}"


def is_here(process: str) -> bool:
    """Whether a process, as `this_process` names it, is of this host."""
    return process.rsplit(" ", 2)[0] == socket.gethostname()


def is_dead(process: str) -> bool:
    """Whether a process of this host, as `this_process` names it, is gone; of another host nobody can know from here."""
    if not is_here(process):
        return False
    _, number, started = process.rsplit(" ", 2)
    try:
        found = psutil.Process(int(number))
        return f"{found.create_time():.1f}" != started or found.status() == psutil.STATUS_ZOMBIE
    except psutil.NoSuchProcess:
        return True


def lock_between_processes(address: str) -> AbstractContextManager[Any]:
    """Lock of a database that one process of this machine holds at a time; `filelock.Timeout` after 2 minutes."""
    # Beside the database, where all who share it find it whatever their TMPDIR and user; one of a server is in the workspace.
    url = resolve_sqlite(address)
    file = sqlite_file(url) or workspace() / f"evbind_{hashlib.sha256(url.encode()).hexdigest()[:16]}"
    file.parent.mkdir(parents=True, exist_ok=True)
    if not os.access(file.parent, os.W_OK):
        return nullcontext()  # nobody can write to a database there either: SQLite needs its journal beside it
    return filelock.FileLock(file.with_name(f"{file.name}.lock"), timeout=120)
