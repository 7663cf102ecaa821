"""Papermill engine ``evbind``: runs any notebook as papermill does, tracks it in MLflow and passes its progress on.

Papermill finds it by its entry point, so ``papermill --engine evbind`` works for a user's own notebooks too. Modules of
the library are imported late: papermill loads this one, by its entry point, whenever it is imported itself.
"""

from __future__ import annotations

import os
import signal
import sys
import threading
import time
from pathlib import Path
from typing import Any

import nbformat


class _EngineToCome:
    """Stands for `EvbindEngine` where this module is imported first: papermill, imported below, then asks for it too early."""

    def __getattr__(self, name: str) -> Any:
        return getattr(globals()["EvbindEngine"], name)


def __getattr__(name: str) -> Any:
    if name == "EvbindEngine":
        return _EngineToCome()
    raise AttributeError(name)


from papermill.clientwrap import PapermillNotebookClient
from papermill.engines import NBClientEngine
from papermill.log import logger
from papermill.utils import merge_kwargs, remove_args

from evbind_lib.tracking.page import PROGRESS, heading_above


class EvbindClient(PapermillNotebookClient):
    """Notebook client that tells a run how long each cell took, and writes progress to standard error.

    On a terminal every change is shown, in a file finished steps only.
    """

    run: Any = None
    steps_told: tuple[int, int] | None = None
    interrupts = 0

    def execute(self, **kwargs: Any) -> Any:
        """Execute the notebook; Ctrl-C is for the cell that runs, which may have something to finish."""
        if threading.current_thread() is not threading.main_thread():
            return super().execute(**kwargs)
        before = signal.signal(signal.SIGINT, self._pass_on)
        try:
            return super().execute(**kwargs)
        finally:
            signal.signal(signal.SIGINT, before)

    def _pass_on(self, number: int, frame: Any) -> None:
        self.interrupts += 1
        kernel = getattr(getattr(self.km, "provisioner", None), "process", None)
        if kernel is None or self.interrupts > 2:
            raise KeyboardInterrupt
        kernel.send_signal(signal.SIGINT)

    def process_message(self, msg: Any, cell: Any, cell_index: int) -> Any:
        """Handle one message of the kernel."""
        data = msg["content"].get("data", {})
        if msg["msg_type"] in {"display_data", "update_display_data"} and PROGRESS in data:
            steps = (data[PROGRESS]["done"], data[PROGRESS]["total"])
            if sys.stderr.isatty() or steps != self.steps_told:
                write_progress(data["text/plain"])
            self.steps_told = steps
            return None  # for who waits, not for the notebook
        if msg["msg_type"] == "update_display_data" and not data.get("text/plain", "-"):
            return None  # the line that is taken away
        return super().process_message(msg, cell, cell_index)

    def execute_cell(self, cell: Any, cell_index: int, *args: Any, **kwargs: Any) -> Any:
        """Execute one cell and log its time."""
        started, failed = time.monotonic(), True
        try:
            executed = super().execute_cell(cell, cell_index, *args, **kwargs)
            failed = False
            return executed
        finally:
            if cell.cell_type == "code":
                heading = heading_above(self.nb, cell_index)
                self.run.cell(cell_index + 1, heading, time.monotonic() - started, failed=failed)


class EvbindEngine(NBClientEngine):
    """Papermill's own engine, with each execution as a run in MLflow.

    It takes one option more, ``save_to``: the file to keep the notebook in instead of papermill's output.
    """

    @classmethod
    def execute_managed_notebook(  # noqa: D102 - papermill's own docstring holds
        cls,
        nb_man: Any,
        kernel_name: str,
        log_output: bool = False,
        stdout_file: Any = None,
        stderr_file: Any = None,
        start_timeout: int = 60,
        execution_timeout: int | None = None,
        save_to: str | None = None,
        **kwargs: Any,
    ) -> Any:
        from evbind_lib.tracking.tracker import RUN_VARIABLE

        nb_man.output_path = save_to or nb_man.output_path
        nb_man.save = lambda **_: save_whole(nb_man.nb, nb_man.output_path)
        run = open_run(nb_man.nb, kwargs.get("input_path"))
        status, error = "FAILED", None
        try:
            options = merge_kwargs(
                remove_args(["input_path", "timeout", "startup_timeout"], **kwargs),
                timeout=execution_timeout or kwargs.get("timeout"),
                startup_timeout=start_timeout,
                kernel_name=kernel_name,
                log=logger,
                log_output=log_output,
                stdout_file=stdout_file,
                stderr_file=stderr_file,
                # The kernel would warn on the terminal that its sockets on this machine are not encrypted, and tell how a
                # cell was interrupted that the engine ended.
                extra_arguments=["--IPKernelApp.log_level=50"],
            )
            client = EvbindClient(nb_man, **options)
            client.run = run
            environment = {name: value for name, value in os.environ.items() if name != "MLFLOW_RUN_ID"}
            executed = client.execute(env={**environment, RUN_VARIABLE: getattr(run, "run_id", "")})
            error = first_error(nb_man.nb)
            status = "FAILED" if error else "FINISHED"
            if error and error.startswith("KeyboardInterrupt"):
                status = "KILLED"
            return executed
        except BaseException as caught:
            # A kernel that died was killed, by a person or for lack of memory, as one that was interrupted.
            status = "KILLED" if type(caught).__name__ in {"KeyboardInterrupt", "DeadKernelError"} else "FAILED"
            error = f"{type(caught).__name__}: {caught}"
            raise
        finally:
            # Papermill's own marks call cells completed that never ran.
            nb_man.nb.metadata["evbind"] = {"status": status, "error": error}
            run.set_status(status, error)
            run.keep(nb_man.nb)


def open_run(notebook: nbformat.NotebookNode, input_path: Any) -> Any:
    """Open the run of an execution, in the store that the notebook's own parameters name."""
    from evbind_lib.config.compose import GROUPS, compose
    from evbind_lib.errors import ParamsError
    from evbind_lib.tracking.tracker import open_tracker

    given = dict(notebook.metadata.get("papermill", {}).get("parameters", {}))
    choices = {name: value for name, value in given.items() if name in GROUPS and isinstance(value, str)}
    overrides = given.get("overrides", [])
    try:
        tracking = compose(choices, overrides if isinstance(overrides, list) else []).tracking
    except ParamsError:  # the notebook will say so
        tracking = compose().tracking
    name = Path(input_path or "notebook").stem
    return open_tracker(tracking).notebook(name, parameters=given, way="papermill")


def first_error(notebook: nbformat.NotebookNode) -> str | None:
    """Kind and message of the error that papermill stopped at; None where it came to the end."""
    for cell in notebook.cells:
        if cell.metadata.papermill.get("exception"):
            errors = [output for output in cell.outputs if output.output_type == "error"]
            return f"{errors[-1].ename}: {errors[-1].evalue}" if errors else "a cell failed"
    return None


def save_whole(notebook: nbformat.NotebookNode, file: str | None) -> None:
    """Write a notebook so that a full disk or a kill leaves the one written before, not a part."""
    if file and "://" not in file:
        partial = Path(file).with_name(f".{Path(file).name}.{os.getpid()}")
        try:
            nbformat.write(notebook, partial)
            partial.replace(file)
        finally:
            partial.unlink(missing_ok=True)
    elif file:
        from papermill.iorw import write_ipynb

        write_ipynb(notebook, file)


def write_progress(line: str) -> None:
    """Write a line of progress: over the last one on a terminal, below it in a file."""
    if sys.stderr.isatty():
        sys.stderr.write(f"\r\x1b[2K{line}")
    else:
        sys.stderr.write(f"{line}\n")
    sys.stderr.flush()
