"""Executions of notebooks, each a run in MLflow with its page, whichever way it was started.

Where papermill's engine ``evbind`` started the kernel, the engine owns the run and the kernel only adds to it. In Jupyter, and
under papermill without that engine, the kernel owns the run: it watches its own cells.
"""

from __future__ import annotations

import ast
import atexit
import functools
import itertools
import os
import sys
import tempfile
import time
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import nbformat
from IPython import get_ipython
from mlflow.exceptions import MlflowException
from nbformat.v4 import new_code_cell, new_notebook, new_output, output_from_msg

from evbind_lib.config.paths import project_folder
from evbind_lib.config.schema import TrackingParams
from evbind_lib.errors import ParamsError, did_you_mean
from evbind_lib.tracking.page import PROGRESS, RUN_VARIABLE, export_html
from evbind_lib.tracking.runs import SHOW_AFTER, Run, error_tags, status_after
from evbind_lib.tracking.store import Store, Values, circumstances, open_tracker, or_go_on


@dataclass(eq=False)
class NotebookRun(Run):
    """Run of one pass through a notebook."""

    status: str = "RUNNING"
    n_cells: int = 0
    _started_at: float = field(default_factory=time.monotonic)
    _written_at: float = field(default_factory=time.monotonic)

    @classmethod
    def open(cls, store: Store, name: str, *, parameters: Values, way: str) -> NotebookRun:
        """Open the run of an execution that was started by ``jupyter``, ``papermill`` (its engine) or a bare ``kernel``."""
        tags = {**circumstances(), "evbind.level": "notebook", "evbind.notebook": name, "evbind.way": way}
        store.end_abandoned()
        with store.must_work():
            experiment, inherited = store.experiments["notebooks"], {"evbind.notebook": name}
            run = cls(store, store.start(experiment, name, None, tags), experiment, inherited)
        run.describe(parameters)
        return run

    @classmethod
    def join(cls, store: Store, run_id: str, parameters: Values) -> NotebookRun | None:
        """Add to the run that another process opened and will end; None where this store has no such run."""
        try:
            found = store.client.get_run(run_id)
        except MlflowException:
            return None
        run = cls(store, run_id, found.info.experiment_id, {"evbind.notebook": found.info.run_name})
        run.describe(parameters)
        return run

    @or_go_on
    def count_cell(self) -> None:
        """Count a cell that has ended; the count is written now and then, as a heartbeat."""
        self.n_cells += 1
        if time.monotonic() - self._written_at > SHOW_AFTER:
            self._written_at = time.monotonic()
            self.store.write(self.run_id, {"cells": self.n_cells}, step=self.n_cells)

    @or_go_on
    def link(self, run: Run, kind: str, name: str) -> None:
        """Name the ``study`` or ``training`` run that this execution made, and this execution there."""
        note = f"{kind.capitalize()}: [{name}](#/experiments/{run.experiment}/runs/{run.run_id})"
        self.store.write(self.run_id, tags={f"evbind.{kind}_run": run.run_id, "mlflow.note.content": note})
        self.store.write(run.run_id, tags={"evbind.notebook_run": self.run_id})

    @or_go_on
    def set_status(self, status: str, error: str | None = None, notebook: nbformat.NotebookNode | None = None) -> None:
        """Write how the execution stands, with the error it stopped at; where it ended, store the notebook and its page."""
        goes_on = self.status in {"FAILED", "KILLED"} and not error
        self.status = status
        tags = dict.fromkeys(error_tags("the one it went on from"), "") if goes_on else error_tags(error)
        numbers = {"seconds": time.monotonic() - self._started_at, "cells": self.n_cells}
        self.store.write(self.run_id, numbers, step=self.n_cells, tags=tags)
        if notebook is None:
            self.store.client.update_run(self.run_id, status=status)
            return
        self.store.client.set_terminated(self.run_id, status)
        with tempfile.TemporaryDirectory() as folder:
            file = Path(folder) / f"{self.inherited['evbind.notebook']}.ipynb"
            nbformat.write(notebook, file)
            export_html(notebook, file.with_suffix(".html"))
            self.store.client.log_artifacts(self.run_id, folder)


class Execution:
    """What this kernel runs, as passes through a notebook; each pass is one run in MLflow.

    A pass begins when the cell with `begin` is run. The next one begins when it is run once more directly after a cell above it
    (so by Run All, or by running the parameters again); cells run again in any other way belong to the same pass.
    """

    def __init__(self) -> None:
        self.begun = False  # whether this process has called `begin`
        self.run: NotebookRun | None = None
        self.document: Document | None = None  # where the kernel owns the run
        self._current = self._previous = -1  # place of the cell that runs, and of the one run before
        self._failed_at = 0
        self._watches = False

    def begin(self, tracking: TrackingParams, name: str | None, parameters: Values) -> None:
        """Begin a pass of the notebook, or go on with the one that this is; `TrackingError` where MLflow cannot be used."""
        self.begun = True
        shell = get_ipython()
        if shell is None or not hasattr(shell, "kernel"):  # a script or a terminal: no notebook
            return
        if self.run is not None and not 0 <= self._previous < self._current:
            self.run.describe(parameters)
            return
        self._end("the notebook was run again from above")
        self.run = None
        store, given = open_tracker(tracking), os.environ.get(RUN_VARIABLE)
        if store and given:
            self.run = NotebookRun.join(store, given, parameters)
        if store and self.run is None:
            self._own(store, shell, name, parameters)

    def _own(self, store: Store, shell: Any, name: str | None, parameters: Values) -> None:
        """Open the run of a pass that this kernel owns."""
        file = notebook_file(name)
        name = file.stem if file else name or "notebook"
        way = "jupyter" if os.environ.get("JPY_SESSION_NAME") else "kernel"
        self.run = NotebookRun.open(store, name, parameters=parameters, way=way)
        # Where the file is not known, the notebook is made of the cells that are run.
        known = self.document.notebook.cells if self.document else map(new_code_cell, shell.user_ns["In"][1:-1])
        notebook = nbformat.read(file, as_version=4) if file else new_notebook(cells=list(known))
        self.document = Document(notebook, whole=file is not None)
        running = shell.get_parent()
        cell_id = running.get("metadata", {}).get("cellId")
        self._current = self.document.begin_cell(cell_id, running["content"]["code"])
        if self._watches:
            return
        self._watches = True
        shell.events.register("pre_run_cell", self._before_cell)
        shell.events.register("post_run_cell", self._after_cell)
        shell.display_pub.register_hook(self._output)
        shell.displayhook.register_hook(self._output)
        streams: list[Any] = [stream for stream in (sys.stdout, sys.stderr) if hasattr(stream, "pub_thread")]
        for stream in streams:  # hooks are kept by thread, and streams are sent from one of their own
            stream.pub_thread.schedule(functools.partial(stream.register_hook, self._output))
        atexit.register(self._end, "the kernel was shut down")

    def _before_cell(self, info: Any) -> None:
        if self.document and info.store_history and not info.silent:
            self._previous, self._current = self._current, self.document.begin_cell(info.cell_id, info.raw_cell)

    def _output(self, message: dict[str, Any]) -> dict[str, Any]:
        if self.document:
            self.document.add(message)
        return message

    def _after_cell(self, result: Any) -> None:
        if not self.run or not self.document or not result.info.store_history or result.info.silent:
            return
        for stream in (sys.stdout, sys.stderr):
            stream.flush()
        self.document.cell.execution_count = result.execution_count
        self.run.count_cell()
        error = result.error_before_exec or result.error_in_exec
        if error is not None:
            self._failed_at = self._current
            shown = {"ename": type(error).__name__, "evalue": str(error), "traceback": [str(error)]}
            self.document.cell.outputs.append(new_output("error", **shown))
            self.run.set_status(status_after(error), f"{shown['ename']}: {error}", self.document.notebook)
        elif self.document.is_at_end():
            self.run.set_status("FINISHED", notebook=self.document.notebook)
        elif self.run.status in {"FAILED", "KILLED"} and self._current >= self._failed_at:  # put right, and on it goes
            self.run.set_status("RUNNING")

    def _end(self, why: str) -> None:
        if self.run and self.document and self.run.status == "RUNNING":
            # Where the file is not known, nobody knows how many cells there are.
            ended = ("KILLED", f"{why} before its last cell") if self.document.whole else ("FINISHED", None)
            self.run.set_status(*ended, self.document.notebook)

    def link(self, run: Run, kind: str, name: str) -> None:
        """Name the ``study`` or ``training`` run that this execution made."""
        if self.run is not None:
            self.run.link(run, kind, name)


class Document:
    """The notebook as this kernel knows it, with the outputs that cells showed here; whole where it was read from its file."""

    def __init__(self, notebook: nbformat.NotebookNode, *, whole: bool) -> None:
        self.notebook = notebook
        self.whole = whole
        self.cell = new_code_cell()  # the one that runs
        self._updatable: dict[str, nbformat.NotebookNode] = {}
        for cell in notebook.cells:
            if cell.cell_type == "code":
                cell.outputs, cell.execution_count = [], None

    def begin_cell(self, cell_id: str | None, source: str) -> int:
        """Take the outputs that come now as those of this cell; return its place in the notebook."""
        cells = self.notebook.cells
        code = [place for place, cell in enumerate(cells) if cell.cell_type == "code"]
        same = [place for place in code if cells[place].get("id") == cell_id]
        same += [place for place in code if cells[place].source == source]
        if not same:
            same = [len(cells)]
            cells.append(new_code_cell(source, **({"id": cell_id} if cell_id else {})))
        self.cell = cells[same[0]]
        self.cell.source, self.cell.outputs = source, []
        return same[0]

    def add(self, message: dict[str, Any]) -> None:
        """Add what the kernel sends to the front end to the cell that runs."""
        kind, content = message["msg_type"], message["content"]
        display_id = content.get("transient", {}).get("display_id")
        if kind == "update_display_data" and display_id in self._updatable:
            self._updatable[display_id].data = nbformat.from_dict(content["data"])
        elif kind in {"stream", "display_data", "execute_result"} and PROGRESS not in content.get("data", ()):
            output = output_from_msg(message)
            self.cell.outputs.append(output)
            if display_id:
                self._updatable[display_id] = output

    def is_at_end(self) -> bool:
        """Whether the last cell with code runs; never where the file is not known."""
        return self.whole and self.cell is [cell for cell in self.notebook.cells if cell.cell_type == "code"][-1]


def check_injected() -> None:
    """Refuse a parameter that papermill put in although the notebook has none of that name; papermill itself only warns."""
    shell = get_ipython()
    cells = list(shell.user_ns.get("In", []))[:-1] if shell is not None else []
    for above, cell in itertools.pairwise(cells):
        known = _assigned(above) if cell.startswith("# Parameters\n") else []
        for name in _assigned(cell) if known else []:
            if name not in known:
                raise ParamsError(f"{name} is not a parameter of this notebook{did_you_mean(name, known)}")


def _assigned(source: str) -> list[str]:
    nodes = ast.walk(ast.parse(source))
    return [node.id for node in nodes if isinstance(node, ast.Name) and isinstance(node.ctx, ast.Store)]


def notebook_file(name: str | None) -> Path | None:
    """File of the notebook that this kernel runs, as the front end names it, else a project's notebook by its name."""
    shell = get_ipython()
    named = os.environ.get("JPY_SESSION_NAME") or (shell.user_ns.get("__vsc_ipynb_file__") if shell else None)
    places = [Path(named), Path.cwd() / Path(named).name] if named else []
    places += [project_folder() / "notebooks" / f"{name}.ipynb"] if name else []
    return next((place for place in places if place.suffix == ".ipynb" and place.is_file()), None)


EXECUTION = Execution()  # a kernel is in one
