"""Papermill's engine ``evbind``: tracks any notebook and passes its progress on. Papermill loads it always: imports come late."""

from __future__ import annotations

import contextlib
import os
import signal
import sys
import threading
from pathlib import Path
from typing import TYPE_CHECKING, Any

import nbformat

from evbind_lib.config.masking import masked_notebook
from evbind_lib.config.paths import write_whole
from evbind_lib.tracking.page import FILE_VARIABLE, OUTER_VARIABLE, PROGRESS, RUN_VARIABLE

if TYPE_CHECKING:
    from evbind_lib.tracking.runs import NotebookRun

# The engine is this module: papermill looks it up while it is imported below, before a subclass of its own could be made.
EvbindEngine = sys.modules[__name__]

from papermill.clientwrap import PapermillNotebookClient  # noqa: E402
from papermill.engines import NotebookExecutionManager  # noqa: E402
from papermill.iorw import LocalHandler, papermill_io, write_ipynb  # noqa: E402
from papermill.log import logger  # noqa: E402
from papermill.utils import nb_language  # noqa: E402, F401 - of the engine


def nb_kernel_name(nb: nbformat.NotebookNode, name: str | None = None) -> str:
    """Kernel of a notebook: Python's where its metadata name none."""
    return name or nb.metadata.get("kernelspec", {}).get("name") or "python3"


# MLFLOW_RUN_ID would let the notebook's own use of mlflow write into a run of whoever started it (mlflow issue 15713); the
# other is the name of the notebook that calls papermill in a front end.
NOT_HANDED_ON = ("MLFLOW_RUN_ID", "JPY_SESSION_NAME")
WANTED = {("SystemExit", ""), ("SystemExit", "0")}  # ends of a notebook that are no failure, by name and value


def execute_notebook(
    nb: nbformat.NotebookNode,
    kernel_name: str,
    input_path: str | None = None,
    output_path: str | None = None,
    save_to: str | None = None,
    **options: Any,
) -> nbformat.NotebookNode:
    """Execute as papermill's own engine does; ``save_to`` is the file to keep the notebook in instead of papermill's output."""
    shown = options.pop("progress_bar", True), options.pop("autosave_cell_every", 30)
    course = _Course(nb, save_to or output_path, options.get("log_output", False), *shown)
    course.run = run = open_run(nb, input_path)
    options["startup_timeout"] = options.pop("start_timeout", 60)
    options["timeout"] = options.pop("execution_timeout", None)
    options.setdefault("iopub_timeout", 120)  # nbclient's 4 seconds for outputs to arrive are few on a busy machine
    # Otherwise the kernel warns on the terminal, of sockets without encryption and of cells that the engine interrupted.
    # And to look for garbage takes a fifth of the time of imports.
    quick = "__import__('gc').set_threshold(20_000, 50, 50)"
    options["extra_arguments"] = ["--IPKernelApp.log_level=50", f'--IPKernelApp.exec_lines=["{quick}"]']
    try:
        course.notebook_start()
        client = _Client(course, kernel_name=kernel_name, log=logger, **options)
        environment = {name: value for name, value in os.environ.items() if name not in NOT_HANDED_ON}
        file, run_id = plain_file(course.output_path or ""), run.run_id if run else ""
        own = {RUN_VARIABLE: run_id, OUTER_VARIABLE: run_id, FILE_VARIABLE: str(file.absolute()) if file else ""}
        client.execute(env={**environment, **own})
    except BaseException as error:
        course.error = f"{type(error).__name__}: {error}"
        raise
    finally:
        try:
            # On a full disk what a cell failed with tells more: it may be a file of its own that could not be written.
            with contextlib.suppress(*[OSError] if course.error else []):
                course.notebook_complete()
        finally:
            if run:
                run.finish(course.nb, course.error)
    # All is saved; papermill itself would end as if nobody had stopped it.
    if course.interrupts and (course.error or not save_to):
        raise KeyboardInterrupt if save_to else SystemExit(130)
    return masked_notebook(course.nb)  # papermill writes it once more


def open_run(notebook: nbformat.NotebookNode, input_path: str | None) -> NotebookRun | None:
    """Open the run of an execution, in the store that its parameters name: of its own cell, and put in below it."""
    from evbind_lib.config.compose import tracking_of
    from evbind_lib.tracking.page import UNREADABLE, assigned, tagged
    from evbind_lib.tracking.runs import NotebookRun
    from evbind_lib.tracking.store import Store

    given, values = dict(notebook.metadata.get("papermill", {}).get("parameters", {})), dict[str, Any]()
    with contextlib.suppress(*UNREADABLE):  # the notebook will say so, or is of another language
        values = assigned(*tagged(notebook, "parameters", "injected-parameters"))
    if not (tracking := tracking_of({**values, **given})).enabled:
        return None
    name, outer = Path(input_path or "notebook").stem, os.environ.get(OUTER_VARIABLE)
    return NotebookRun.begin(Store(tracking), name, given, way="papermill", outer=outer)


def plain_file(path: str) -> Path | None:
    """File that papermill would write an output to; None for what is none: an address, a link, a pipe, a device."""
    handler = papermill_io.get_handler(path or None)
    if not isinstance(handler, LocalHandler):
        return None
    folder = handler.cwd(None)  # where papermill was started; with --cwd the engine runs in another folder
    handler.cwd(folder)
    file = Path(folder or "", path)
    return file if not file.is_symlink() and (file.is_file() or not file.exists()) else None


class _Course(NotebookExecutionManager):
    """Follows an execution: saves the notebook whole, counts its cells in the run, keeps the error it stopped at."""

    run: NotebookRun | None = None
    error, interrupts = "", 0
    put_off = False  # what the next cell's start or the end saves as well: a save masks and writes the whole notebook

    def save(self, **kwargs: Any) -> None:
        if self.put_off and not self.end_time:
            return
        # A full disk or a kill leaves the notebook that was saved before, not a part.
        if file := plain_file(self.output_path or ""):
            write_whole(file, nbformat.writes(masked_notebook(self.nb)))
        elif self.output_path:
            write_ipynb(masked_notebook(self.nb), self.output_path)
        self.last_save_time = self.now()

    def cell_exception(self, cell: Any, cell_index: int | None = None, **kwargs: Any) -> None:
        super().cell_exception(cell, cell_index, **kwargs)
        error = kwargs["exception"]
        if (error.ename, error.evalue) not in WANTED:
            kind = "KeyboardInterrupt" if self.interrupts else error.ename  # a search that was stopped has its own
            self.error = f"{kind}: {error.evalue}"

    def cell_start(self, cell: Any, cell_index: int | None = None, **kwargs: Any) -> None:
        self.put_off = cell.cell_type != "code"
        super().cell_start(cell, cell_index, **kwargs)

    def cell_complete(self, cell: Any, cell_index: int | None = None, **kwargs: Any) -> None:
        if self.run and cell.cell_type == "code":
            self.run.count_cell()
        # Papermill takes every output of this type for a failure.
        if "raises-exception" in cell.metadata.get("tags", []):
            for output in [each for each in cell.get("outputs", []) if each.output_type == "error"]:
                text = "\n".join(output.traceback)
                cell.outputs[cell.outputs.index(output)] = nbformat.v4.new_output("stream", name="stderr", text=text)
        self.put_off = True
        super().cell_complete(cell, cell_index, **kwargs)


class _Client(PapermillNotebookClient):
    """Notebook client that writes progress to standard error: every change on a terminal, finished steps in a file."""

    steps: tuple[int, int] | None = None
    runs = False  # whether the kernel is at a cell: while it starts or waits it takes no interrupt

    def execute(self, **kwargs: Any) -> Any:
        if threading.current_thread() is not threading.main_thread():
            return super().execute(**kwargs)
        # Ctrl-C is for the cell that runs, which may have something to finish.
        before = signal.signal(signal.SIGINT, self._pass_on)
        try:
            return super().execute(**kwargs)
        finally:
            signal.signal(signal.SIGINT, before)

    def _pass_on(self, number: int, frame: Any) -> None:
        self.nb_man.interrupts += 1
        kernel = getattr(getattr(self.km, "provisioner", None), "process", None)
        if kernel is None or not self.runs or self.nb_man.interrupts > 2:
            raise KeyboardInterrupt
        kernel.send_signal(signal.SIGINT)

    def process_message(self, msg: Any, cell: Any, cell_index: int) -> Any:
        data = msg["content"].get("data", {})
        if msg["msg_type"] == "status":
            self.runs = msg["content"]["execution_state"] == "busy"
        if msg["msg_type"] in {"display_data", "update_display_data"} and PROGRESS in data:
            steps, terminal = (data[PROGRESS]["done"], data[PROGRESS]["total"]), sys.stderr.isatty()
            if terminal or steps != self.steps:
                stays = not terminal or (steps[0] and steps != self.steps)  # the line of a finished step
                begins, ends = "\r\x1b[2K" * terminal, "\n" if stays else ""
                sys.stderr.write(f"{begins}{data['text/plain']}{ends}")
                sys.stderr.flush()
            self.steps = steps
            return None
        return super().process_message(msg, cell, cell_index)
