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
from multiprocessing.context import ForkServerContext
from multiprocessing.process import BaseProcess
from pathlib import Path
from typing import Any

import numpy as np

_CONTEXT = multiprocessing.get_context("forkserver")
_CONTEXT.set_forkserver_preload(["tests.preloaded"])


@functools.cache
def context() -> ForkServerContext:
    """What makes processes. The one that they are forked from begins in the project's folder, where it finds `tests`."""
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
    os.environ.clear()
    os.environ.update(environment)
    os.chdir(folder)
    np.random.seed()
    function(*words)


def exit_codes(*processes: BaseProcess) -> list[int | None]:
    """Wait for processes to end."""
    for process in processes:
        process.join(300)
    return [process.exitcode for process in processes]


def begin_worker(*words: Any) -> None:
    """Set up a worker of a search as the library does."""
    from evbind_lib.hpo.workers import _begin

    _begin(*words)


class Kernel:
    """A forked kernel with what Jupyter asks of the `subprocess.Popen` that it has otherwise."""

    stdin = stdout = stderr = None

    def __init__(self, process: BaseProcess) -> None:
        self.process, self.pid = process, process.pid
        self.kill, self.terminate = process.kill, process.terminate

    def poll(self) -> int | None:
        return self.process.exitcode

    def wait(self) -> int | None:
        self.process.join()
        return self.process.exitcode

    def send_signal(self, number: int) -> None:
        os.kill(self.process.pid or 0, number)


def launch_kernel(command: Sequence[str], env: dict[str, str] | None = None, **options: Any) -> Kernel:
    """In place of `jupyter_client.launcher.launch_kernel`."""
    environment = {**(os.environ if env is None else env), "JPY_PARENT_PID": str(os.getpid())}
    folder, module = options.get("cwd") or os.getcwd(), command.index("-m") + 1
    words = (environment, folder, run_kernel, command[module:])
    (process := context().Process(target=in_place, args=words, daemon=True)).start()
    while process.is_alive() and os.getpgid(process.pid or 0) != process.pid:
        time.sleep(0.01)
    return Kernel(process)


def run_kernel(command: Sequence[str]) -> None:
    """Run a module to the end that it has in an interpreter: threads are waited for, and what was registered is called."""
    os.setsid()
    sys.argv[1:] = command[1:]
    sys.path.insert(0, str(Path.cwd()))
    try:
        runpy.run_module(command[0], run_name="__main__", alter_sys=True)
    finally:
        threading._shutdown()  # type: ignore[attr-defined]
        atexit._run_exitfuncs()
