"""Processes that begin at once: forked from one that has loaded the libraries, which takes each that does it itself seconds."""

from __future__ import annotations

import atexit
import contextlib
import functools
import multiprocessing
import os
import runpy
import sys
import threading
import time
from collections.abc import Callable, Sequence
from multiprocessing import forkserver
from multiprocessing.connection import Connection
from multiprocessing.context import ForkServerContext
from multiprocessing.process import BaseProcess
from pathlib import Path
from types import SimpleNamespace
from typing import Any, TextIO

import numpy as np
from jupyter_client.provisioning import local_provisioner

_CONTEXT = multiprocessing.get_context("forkserver")
_CONTEXT.set_forkserver_preload(["tests.preloaded"])


@functools.cache
def context() -> ForkServerContext:
    """What makes processes. The one that they are forked from begins in the project's folder, where it finds `tests`."""
    if multiprocessing.parent_process() is None:
        with contextlib.chdir(Path(__file__).parent.parent):
            forkserver.ensure_running()
    return _CONTEXT


def start(function: Callable[..., Any], *words: Any) -> BaseProcess:
    """Call a function of a test's module in a process of its own, which has the environment and the folder of this one."""
    process = context().Process(target=in_place, args=(dict(os.environ), os.getcwd(), function, *words), daemon=True)
    process.start()
    return process


def in_place(environment: dict[str, str], folder: str, function: Callable[..., Any], *words: Any) -> None:
    """Call a function in an environment and a folder: what was forked begins in those of the process it was forked from."""
    multiprocessing.current_process().daemon = False  # it ends with the tests, and may start others
    # From the process that it was forked from itself: only the first one knows that this runs, and another would load all again.
    forkserver._forkserver.ensure_running = lambda: None  # type: ignore[attr-defined]
    os.environ.clear()
    os.environ.update(environment)
    os.chdir(folder)
    np.random.seed()
    function(*words)


def for_workers(begin_worker: Callable[..., Any]) -> dict[str, Any]:
    """What takes the place of names of `evbind_lib.hpo.workers`, so that workers of a search are forked as well."""
    forking = {**vars(multiprocessing), "get_context": lambda method: context()}
    begin = functools.partial(in_place, dict(os.environ), os.getcwd(), begin_worker)
    return {"multiprocessing": SimpleNamespace(**forking), "_begin": begin}


def begin(function: Callable[..., Any], *words: Any) -> Forked:
    """As `start`, in a group of processes of its own; give what `subprocess.Popen` would, with a pipe for stderr."""
    receive, send = context().Pipe(duplex=False)
    process = start(_in_a_group, send, function, *words)
    send.close()
    return Forked(process, stderr=open(os.dup(receive.fileno()), encoding="utf-8"))


def _in_a_group(stderr: Connection, function: Callable[..., Any], *words: Any) -> None:
    os.setpgid(0, 0)
    os.dup2(stderr.fileno(), 2)
    stderr.close()
    local_provisioner.launch_kernel = launch_kernel
    try:
        sys.exit(function(*words))
    finally:
        _end()


def exit_codes(*processes: BaseProcess) -> list[int | None]:
    """Wait for processes to end."""
    for process in processes:
        process.join(300)
    return [process.exitcode for process in processes]


def begin_worker(*words: Any) -> None:
    """Set up a worker of a search as the library does."""
    from evbind_lib.hpo.workers import _begin

    _begin(*words)


class Forked:
    """A forked process with what is asked of the `subprocess.Popen` that it would be otherwise, by Jupyter of a kernel."""

    stdin = stdout = None

    def __init__(self, process: BaseProcess, stderr: TextIO | None = None) -> None:
        self.process, self.pid, self.stderr = process, process.pid or 0, stderr
        self.kill, self.terminate = process.kill, process.terminate
        while process.is_alive() and os.getpgid(self.pid) != self.pid:  # it is about to make a group of its own
            time.sleep(0.01)

    def poll(self) -> int | None:
        return self.process.exitcode

    def wait(self, timeout: float | None = None) -> int | None:
        self.process.join(timeout)
        return self.process.exitcode

    def send_signal(self, number: int) -> None:
        os.kill(self.pid, number)


def launch_kernel(command: Sequence[str], env: dict[str, str] | None = None, **options: Any) -> Forked:
    """In place of `jupyter_client.launcher.launch_kernel`."""
    environment = {**(os.environ if env is None else env), "JPY_PARENT_PID": str(os.getpid())}
    folder, module = options.get("cwd") or os.getcwd(), command.index("-m") + 1
    words = (environment, folder, run_kernel, command[module:])
    (process := context().Process(target=in_place, args=words, daemon=True)).start()
    return Forked(process)


def run_kernel(command: Sequence[str]) -> None:
    """Run a module to the end that it has in an interpreter: threads are waited for, and what was registered is called."""
    os.setsid()
    sys.argv[1:] = command[1:]
    sys.path.insert(0, str(Path.cwd()))
    try:
        runpy.run_module(command[0], run_name="__main__", alter_sys=True)
    finally:
        _end()


def _end() -> None:
    """Do what an interpreter does at its end, and a forked process leaves out."""
    threading._shutdown()  # type: ignore[attr-defined]
    atexit._run_exitfuncs()
