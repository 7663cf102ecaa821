"""Which process does what: a name for this one, whether another still lives, locks between those of one machine, and quiet.

Imports nothing of the library; `storage`, `claims`, `workers`, `tracking` and `notebook` import it.
"""

from __future__ import annotations

import hashlib
import logging
import os
import socket
import tempfile
import warnings
from pathlib import Path

import filelock
import psutil


def quieten() -> None:
    """Keep this process free of log lines and warnings: what a researcher can act on comes as an error of ours."""
    warnings.filterwarnings("ignore")
    for logger in ("transformers", "accelerate", "mlflow", "alembic", "optuna", "torch"):
        logging.getLogger(logger).setLevel(logging.ERROR)
    os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")


def this_process() -> str:
    """Host, number and start of this process; numbers alone are given again after a while."""
    return f"{socket.gethostname()} {os.getpid()} {psutil.Process().create_time():.1f}"


def is_here(process: str) -> bool:
    """Whether a process, as `this_process` names it, is of this host."""
    return process.rsplit(" ", 2)[0] == socket.gethostname()


def is_dead(process: str) -> bool:
    """Whether a process of this host, as `this_process` names it, is gone; of another host nobody can tell from here."""
    if not is_here(process):
        return False
    _, number, started = process.rsplit(" ", 2)
    try:
        found = psutil.Process(int(number))
        return f"{found.create_time():.1f}" != started or found.status() == psutil.STATUS_ZOMBIE
    except psutil.NoSuchProcess:
        return True


def lock_between_processes(address: str) -> filelock.FileLock:
    """Lock that one process of this machine holds at a time.

    Parameters
    ----------
    address : str
        Of what is locked, for example a database.

    Returns
    -------
    filelock.FileLock
        To be used with ``with``; `filelock.Timeout` after two minutes.
    """
    digest = hashlib.sha256(address.encode()).hexdigest()[:16]
    return filelock.FileLock(Path(tempfile.gettempdir()) / f"evbind_{digest}.lock", timeout=120, mode=0o666)
