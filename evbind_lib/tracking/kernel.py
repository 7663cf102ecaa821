"""The execution of a notebook that this kernel is in: its run in MLflow, its cells, what they showed.

Where papermill's engine ``evbind`` started the kernel, the engine owns the run and this room only adds to it. In Jupyter,
and under papermill without that engine, the kernel owns the run: it watches its own cells. Imports the rooms below it;
`notebook` imports it.
"""

from __future__ import annotations

import atexit
import functools
import itertools
import os
import sys
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import nbformat
from IPython import get_ipython
from nbformat.v4 import new_code_cell, new_notebook, output_from_msg

from evbind_lib.config.compose import TrackingParams, project_folder
from evbind_lib.errors import ParamsError, did_you_mean
from evbind_lib.tracking.page import PROGRESS, assigned_names, heading_above
from evbind_lib.tracking.tracker import RUN_VARIABLE, NotebookRun, Run, open_tracker


class Execution:
    """What this kernel runs, as passes through a notebook; each pass is one run in MLflow.

    A pass begins when the cell with `begin` is run. It begins anew when that cell is run once more directly after a cell
    above it (so by Run All, or by running the parameters again), and goes on when cells are run again in any other way.
    """

    def __init__(self) -> None:
        self.run: NotebookRun | None = None
        self.shell: Any = None
        self.document = Document(None)
        self.above: set[str] = set()  # sources of cells run before the first pass began
        self.current: Any = None
        self.previous: Any = None
        self.started = time.monotonic()
        self.failed_at = 0
        self.owned = True

    def begin(self, tracking: TrackingParams, name: str | None, parameters: Mapping[str, Any]) -> None:
        """Begin a pass, or go on with the one that this is.

        Parameters
        ----------
        tracking : TrackingParams
        name : str, optional
            Of the notebook, where the front end does not tell it.
        parameters : mapping of str to plain value
            What the parameters cell says, and what it comes to.

        Raises
        ------
        TrackingError
            When the MLflow store cannot be used.
        """
        shell = get_ipython()
        if shell is None or not hasattr(shell, "kernel"):  # a script or a terminal: no notebook
            return
        if self.run is None:
            self.above = set(shell.user_ns.get("In", [])[1:-1])
        if self.run is None or self._came_from_above():
            self._open(tracking, name, parameters)
        elif self.run is not None:
            self.run.describe(parameters, {})
        if self.shell is None:
            self._watch(shell)

    def _came_from_above(self) -> bool:
        if self.previous is None:
            return False
        previous, current = (self.document.place(cell.cell_id) for cell in (self.previous, self.current))
        if previous is None or current is None:
            return self.previous.raw_cell in self.above
        return previous < current

    def _open(self, tracking: TrackingParams, name: str | None, parameters: Mapping[str, Any]) -> None:
        if self.run is not None:
            self._end("the notebook was run again from above")
        tracker = open_tracker(tracking)
        given = os.environ.get(RUN_VARIABLE)
        self.run = tracker.running_notebook(given) if given else None
        self.owned = self.run is None
        if self.run is not None:
            self.run.describe(parameters, {})
        else:
            file = notebook_file(name)
            self.document = Document(file)
            way = "jupyter" if os.environ.get("JPY_SESSION_NAME") else "kernel"
            self.run = tracker.notebook(file.stem if file else name or "notebook", parameters=parameters, way=way)

    def _watch(self, shell: Any) -> None:
        self.shell = shell
        shell.events.register("pre_run_cell", self._before_cell)
        shell.events.register("post_run_cell", self._after_cell)
        for source in (shell.display_pub, shell.displayhook):
            if hasattr(source, "register_hook"):
                source.register_hook(self._output)
        for stream in (sys.stdout, sys.stderr):
            if hasattr(stream, "register_hook") and hasattr(stream, "pub_thread"):
                # Hooks are kept by thread, and streams are sent from one of their own.
                stream.pub_thread.schedule(functools.partial(stream.register_hook, self._output))
        atexit.register(self._end, "the kernel was shut down")

    def _before_cell(self, info: Any) -> None:
        if info.store_history and not info.silent:
            self.previous, self.current = self.current, info
            self.started = time.monotonic()
            self.document.begin_cell(info.cell_id, info.raw_cell)

    def _output(self, message: dict[str, Any]) -> dict[str, Any]:
        if self.owned:
            self.document.add(message)
        return message

    def _after_cell(self, result: Any) -> None:
        info = result.info
        if self.run is None or not info.store_history or info.silent:
            return
        self.current = info
        if not self.owned:
            return
        for stream in (sys.stdout, sys.stderr):
            stream.flush()
        number, heading = self.document.end_cell(info.cell_id, info.raw_cell, result.execution_count)
        error = result.error_before_exec or result.error_in_exec
        self.run.cell(number, heading, time.monotonic() - self.started, failed=error is not None)
        if error is not None:
            self.failed_at = number
            self.document.add_error(error)
            status = "KILLED" if isinstance(error, KeyboardInterrupt) else "FAILED"
            self.run.set_status(status, f"{type(error).__name__}: {error}")
            self.run.keep(self.document.notebook)
        elif self.document.is_last(number):
            self.run.set_status("FINISHED")
            self.run.keep(self.document.notebook)
        elif self.run.status in {"FAILED", "KILLED"} and number >= self.failed_at:  # mended, and on it goes
            self.run.set_status("RUNNING")

    def _end(self, why: str) -> None:
        if self.run is not None and self.owned and self.run.status == "RUNNING":
            if self.document.file is None:  # nobody knows how many cells there are
                self.run.set_status("FINISHED")
            else:
                self.run.set_status("KILLED", f"{why} before its last cell")
            self.run.keep(self.document.notebook)

    def link(self, run: Run, kind: str, name: str) -> None:
        """Name the study or training run that this execution made."""
        if self.run is not None and hasattr(run, "run_id"):
            self.run.link(run, kind, name)


class Document:
    """The notebook as this kernel knows it: the file as it was saved, with the outputs that cells showed here.

    Parameters
    ----------
    file : pathlib.Path, optional
        Where it is not known, the document is made of the cells that are run.
    """

    def __init__(self, file: Path | None) -> None:
        self.file = file
        self.notebook = nbformat.read(file, as_version=4) if file else new_notebook()
        for cell in self.notebook.cells:
            if cell.cell_type == "code":
                cell.outputs, cell.execution_count = [], None
        self.open: nbformat.NotebookNode | None = None
        self.shown: dict[str, nbformat.NotebookNode] = {}
        self.early: list[dict[str, Any]] = []

    def begin_cell(self, cell_id: str | None, source: str) -> None:
        """Take the outputs that come now as those of this cell."""
        self.open = self.notebook.cells[self._find(cell_id, source)]
        self.open.outputs = []

    def end_cell(self, cell_id: str | None, source: str, execution_count: int | None) -> tuple[int, str]:
        """Close the cell; give its number in the notebook, from 1, and the heading above it."""
        index = self._find(cell_id, source)
        cell = self.notebook.cells[index]
        cell.execution_count = execution_count
        if self.open is None:  # the first cell began before anybody watched
            self.open = cell
        for message in self.early:
            self.add(message)
        self.early = []
        return index + 1, heading_above(self.notebook, index)

    def place(self, cell_id: str | None) -> int | None:
        """Index of a cell in the file; None where it is not there."""
        ids = [cell.get("id") for cell in self.notebook.cells] if self.file else []
        return ids.index(cell_id) if cell_id in ids else None

    def _find(self, cell_id: str | None, source: str) -> int:
        cells = self.notebook.cells
        for index, cell in enumerate(cells):
            if cell.cell_type == "code" and (cell.id == cell_id or (not cell_id and cell.source == source)):
                cell.source = source
                return index
        cells.append(new_code_cell(source, **({"id": cell_id} if cell_id else {})))
        return len(cells) - 1

    def add(self, message: dict[str, Any]) -> None:
        """Add what the kernel sends to the front end to the open cell."""
        kind = message["header"]["msg_type"] if "header" in message else message.get("msg_type")
        content = message["content"]
        if kind == "update_display_data":
            output = self.shown.get(content.get("transient", {}).get("display_id", ""))
            if output is not None:
                output.data = nbformat.from_dict(content["data"])
        elif self.open is None:
            self.early.append(message)
        elif kind == "stream":
            self.open.outputs.append(output_from_msg({"header": {"msg_type": kind}, "content": content}))
        elif kind in {"display_data", "execute_result"} and PROGRESS not in content["data"]:
            output = output_from_msg({"header": {"msg_type": kind}, "content": content})
            self.open.outputs.append(output)
            display_id = content.get("transient", {}).get("display_id")
            if display_id:
                self.shown[display_id] = output

    def add_error(self, error: BaseException) -> None:
        """Add an exception to the open cell."""
        if self.open is not None:
            content = {"ename": type(error).__name__, "evalue": str(error), "traceback": [f"{error}"]}
            self.open.outputs.append(output_from_msg({"header": {"msg_type": "error"}, "content": content}))

    def is_last(self, number: int) -> bool:
        """Whether a cell is the last one with code; never where the file is not known."""
        code = [index for index, cell in enumerate(self.notebook.cells, start=1) if cell.cell_type == "code"]
        return self.file is not None and number == code[-1]


def check_injected() -> None:
    """Refuse a parameter that papermill put in although the notebook has none of that name; papermill itself only warns.

    Raises
    ------
    ParamsError
        With the nearest name.
    """
    shell = get_ipython()
    cells = list(shell.user_ns.get("In", []))[:-1] if shell is not None else []
    for above, cell in itertools.pairwise(cells):
        if cell.startswith("# Parameters\n"):
            known = assigned_names(above)
            for name in assigned_names(cell):
                if known and name not in known:
                    raise ParamsError(f"{name} is not a parameter of this notebook{did_you_mean(name, known)}")


def notebook_file(name: str | None) -> Path | None:
    """File of the notebook that this kernel runs, as the front end tells it, else a project's notebook by its name."""
    shell = get_ipython()
    told = os.environ.get("JPY_SESSION_NAME") or (shell.user_ns.get("__vsc_ipynb_file__") if shell else None)
    places = [Path(told), Path.cwd() / Path(told).name] if told else []
    places += [project_folder() / "notebooks" / f"{name}.ipynb"] if name else []
    return next((place for place in places if place.suffix == ".ipynb" and place.is_file()), None)


EXECUTION = Execution()  # a kernel is in one
