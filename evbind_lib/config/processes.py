"""Which process does what: a name for this one, whether another still lives, locks between those of one machine."""

import hashlib
import os
import socket
import tempfile
from pathlib import Path

import filelock
import psutil


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


def lock_between_processes(address: str) -> filelock.FileLock:
    """Lock of a database or the like that one process of this machine holds at a time; `filelock.Timeout` after 2 minutes."""
    digest = hashlib.sha256(address.encode()).hexdigest()[:16]
    return filelock.FileLock(Path(tempfile.gettempdir()) / f"evbind_{digest}.lock", timeout=120, mode=0o666)
