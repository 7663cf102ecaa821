"""Papermill's engine ``evbind``: runs any notebook as papermill does, tracks it in MLflow and passes its progress on.

Papermill finds it by its entry point, so ``papermill --engine evbind`` works for a user's own notebooks too; it loads this module
whenever papermill itself is imported, hence the rest of the library is imported late.
"""

from __future__ import annotations

import os
import signal
import sys
import threading
from pathlib import Path
from typing import TYPE_CHECKING, Any

import nbformat

from evbind_lib.config.paths import write_whole
from evbind_lib.tracking.page import PROGRESS, RUN_VARIABLE

if TYPE_CHECKING:
    from evbind_lib.tracking.executions import NotebookRun


class EvbindEngine:
    """Papermill's own engine, with each execution as a run in MLflow.

    It takes one option more: ``save_to``, the file to keep the notebook in instead of papermill's output. It is no subclass of
    papermill's `Engine`, since papermill looks this class up while it is imported, so before the imports below are done.
    """

    @classmethod
    def execute_notebook(  # noqa: D102 - papermill's own docstring holds
        cls,
        nb: nbformat.NotebookNode,
        kernel_name: str,
        input_path: str | None = None,
        output_path: str | None = None,
        save_to: str | None = None,
        log_output: bool = False,
        **options: Any,
    ) -> nbformat.NotebookNode:
        run = open_run(nb, input_path)
        shown = options.pop("progress_bar", True), options.pop("autosave_cell_every", 30)
        course = Course(nb, save_to or output_path, log_output, *shown)
        course.run = run
        options["startup_timeout"] = options.pop("start_timeout", 60)
        options["timeout"] = options.pop("execution_timeout", None)
        # The kernel would warn on the terminal that its sockets on this machine are not encrypted, and report how a cell was
        # interrupted that the engine ended.
        options["extra_arguments"] = ["--IPKernelApp.log_level=50"]
        environment = {name: value for name, value in os.environ.items() if name != "MLFLOW_RUN_ID"}
        environment[RUN_VARIABLE] = run.run_id if run else ""
        try:
            course.notebook_start()
            client = Client(course, kernel_name=kernel_name, log=logger, log_output=log_output, **options)
            client.execute(env=environment)
        except BaseException as caught:
            course.error = f"{type(caught).__name__}: {caught}"
            raise
        finally:
            try:
                course.notebook_complete()
            finally:
                if run:
                    # A kernel that died was killed, by the user or for lack of memory, as one that was interrupted.
                    killed = course.error.startswith(("KeyboardInterrupt", "DeadKernelError"))
                    status = "KILLED" if killed else "FAILED" if course.error else "FINISHED"
                    run.set_status(status, course.error, course.nb)
        return course.nb

    @staticmethod
    def nb_kernel_name(nb: nbformat.NotebookNode, name: str | None = None) -> Any:  # noqa: D102 - papermill's
        return nb_kernel_name(nb, name)

    @staticmethod
    def nb_language(nb: nbformat.NotebookNode, language: str | None = None) -> Any:  # noqa: D102 - papermill's
        return nb_language(nb, language)


from papermill.clientwrap import PapermillNotebookClient  # noqa: E402 - see EvbindEngine
from papermill.engines import NotebookExecutionManager  # noqa: E402
from papermill.log import logger  # noqa: E402
from papermill.utils import nb_kernel_name, nb_language  # noqa: E402


class Course(NotebookExecutionManager):
    """Follows an execution: saves the notebook whole, counts its cells in the run, keeps the error it stopped at."""

    run: NotebookRun | None = None
    error = ""

    def save(self, **kwargs: Any) -> None:
        """Save so that a full disk or a kill leaves the notebook saved before, not a part."""
        if self.output_path and "://" not in self.output_path:
            write_whole(Path(self.output_path), nbformat.writes(self.nb))
            self.last_save_time = self.now()
        else:
            super().save(**kwargs)

    def cell_exception(self, cell: Any, cell_index: int | None = None, **kwargs: Any) -> None:
        """Keep the kind and message of the error."""
        super().cell_exception(cell, cell_index, **kwargs)
        self.error = f"{kwargs['exception'].ename}: {kwargs['exception'].evalue}"

    def cell_complete(self, cell: Any, cell_index: int | None = None, **kwargs: Any) -> None:
        """Count the cell."""
        if self.run and cell.cell_type == "code":
            self.run.count_cell()
        super().cell_complete(cell, cell_index, **kwargs)


class Client(PapermillNotebookClient):
    """Notebook client that writes progress to standard error: every change on a terminal, finished steps in a file."""

    steps: tuple[int, int] | None = None
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
        """Handle one message of the kernel; progress is for who waits, not for the notebook."""
        data = msg["content"].get("data", {})
        if msg["msg_type"] in {"display_data", "update_display_data"} and PROGRESS in data:
            steps, terminal = (data[PROGRESS]["done"], data[PROGRESS]["total"]), sys.stderr.isatty()
            if terminal or steps != self.steps:
                sys.stderr.write(f"\r\x1b[2K{data['text/plain']}" if terminal else f"{data['text/plain']}\n")
                sys.stderr.flush()
            self.steps = steps
            return None
        if msg["msg_type"] == "update_display_data" and not data.get("text/plain", "-"):
            return None  # the line that is taken away
        return super().process_message(msg, cell, cell_index)


def open_run(notebook: nbformat.NotebookNode, input_path: str | None) -> NotebookRun | None:
    """Open the run of an execution, in the store that the notebook's own parameters name."""
    from evbind_lib.config.compose import GROUPS, compose
    from evbind_lib.errors import ParamsError
    from evbind_lib.tracking.executions import NotebookRun
    from evbind_lib.tracking.store import open_tracker

    given = dict(notebook.metadata.get("papermill", {}).get("parameters", {}))
    choices = {name: value for name, value in given.items() if name in GROUPS and isinstance(value, str)}
    overrides = given.get("overrides", [])
    try:
        tracking = compose(overrides if isinstance(overrides, list) else [], **choices).tracking
    except ParamsError:  # the notebook will say so
        tracking = compose().tracking
    store, name = open_tracker(tracking), Path(input_path or "notebook").stem
    return NotebookRun.open(store, name, parameters=given, way="papermill") if store else None
