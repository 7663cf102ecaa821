"""The execution of a notebook that this kernel is in: a run in MLflow with its page, whichever way it was started.

Where papermill's engine ``evbind`` started the kernel, the engine owns the run; elsewhere the kernel does, and watches its cells.
"""

from __future__ import annotations

import ast
import atexit
import functools
import itertools
import os
import sys
from collections.abc import Iterable
from pathlib import Path
from typing import TYPE_CHECKING, Any

from IPython import get_ipython

from evbind_lib.config.paths import project_folder
from evbind_lib.config.schema import GROUPS, TrackingParams
from evbind_lib.errors import ParamsError, did_you_mean
from evbind_lib.tracking.page import PROGRESS, RUN_VARIABLE

if TYPE_CHECKING:
    from evbind_lib.tracking.runs import NotebookRun, Run


class Execution:
    """What this kernel runs: passes through a notebook, each a run in MLflow, begun by the cell with `begin` or those above."""

    def __init__(self) -> None:
        self.begun = False  # whether this process has called `begin`
        self.tracking: TrackingParams | None = None  # where it records, from `begin` on
        self.run: NotebookRun | None = None
        self.document: Document | None = None  # where the kernel owns the run
        self._current = self._previous = -1  # place of the cell that runs, and of the one run before

    def begin(self, tracking: TrackingParams, name: str | None, parameters: dict[str, Any]) -> None:
        """Begin a pass of the notebook, or go on with the one that this is; `TrackingError` where MLflow cannot be used."""
        self.begun, self.tracking = True, tracking
        shell = get_ipython()
        if shell is None or not hasattr(shell, "kernel"):  # a script or a terminal: no notebook
            return
        if self.run is not None and not 0 <= self._previous < self._current:
            self.run.describe(parameters)
            return
        self._end("the notebook was run again from above")
        self.run = self._open(shell, tracking, name, parameters) if tracking.enabled else None

    def _open(self, shell: Any, tracking: TrackingParams, name: str | None, parameters: dict[str, Any]) -> NotebookRun:
        """Open the run of a pass, or join the one that papermill's engine opened for it."""
        from evbind_lib.tracking.runs import NotebookRun
        from evbind_lib.tracking.store import Store

        store, given = Store(tracking), os.environ.get(RUN_VARIABLE)
        if given and (joined := NotebookRun.join(store, given, parameters)):
            return joined
        file = notebook_file(name)
        name = file.stem if file else name or "notebook"
        tags = {"evbind.way": "jupyter" if os.environ.get("JPY_SESSION_NAME") else "kernel"}
        run = NotebookRun.open(store, "notebooks", name, parameters=parameters, tags=tags)
        document, running = Document(file, shell.user_ns["In"][1:-1]), shell.get_parent()
        self._current = document.begin_cell(running["metadata"].get("cellId"), running["content"]["code"])
        if self.document is None:
            self._watch(shell)
        self.document = document
        return run

    def _watch(self, shell: Any) -> None:
        """Follow the cells of this kernel and what they show, from when there is a document."""
        shell.events.register("pre_run_cell", self._before_cell)
        shell.events.register("post_run_cell", self._after_cell)
        shell.display_pub.register_hook(self._output)
        shell.displayhook.register_hook(self._output)
        streams: list[Any] = [stream for stream in (sys.stdout, sys.stderr) if hasattr(stream, "pub_thread")]
        for stream in streams:  # hooks are kept by thread, and streams are sent from one of their own
            stream.pub_thread.schedule(functools.partial(stream.register_hook, self._output))
        atexit.register(self._end, "the kernel was shut down")

    def _before_cell(self, info: Any) -> None:
        if self.document and info.store_history:
            self._previous, self._current = self._current, self.document.begin_cell(info.cell_id, info.raw_cell)

    def _output(self, message: dict[str, Any]) -> dict[str, Any]:
        if self.document:
            self.document.add(message)
        return message

    def _after_cell(self, result: Any) -> None:
        if not self.run or not self.document or not result.info.store_history:
            return
        sys.stdout.flush()
        sys.stderr.flush()
        self.document.cell.execution_count = result.execution_count
        self.run.count_cell()
        error = result.error_before_exec or result.error_in_exec
        if isinstance(error, SystemExit) and not error.code:
            self.run.finish(self.document.notebook)
        elif error is not None and "raises-exception" not in self.document.cell.metadata.get("tags", []):
            kind, text = type(error).__name__, str(error)
            shown = self.document.v4.new_output("error", ename=kind, evalue=text, traceback=[text])
            self.document.cell.outputs.append(shown)
            self.run.finish(self.document.notebook, f"{kind}: {text}")
        elif self.document.at_end:
            self.run.finish(self.document.notebook)
        elif not self.document.whole and self.run.status != "RUNNING":  # what failed was meant to, or is put right
            self.run.end(status="RUNNING")

    def _end(self, why: str) -> None:
        """Leave the run, and end it where it goes on; where the file is not known, nobody knows how many cells there are."""
        if self.run and self.document and self.run.status == "RUNNING":
            cut_off = f"{why} before its last cell" if self.document.whole else ""
            self.run.finish(self.document.notebook, cut_off, status="KILLED" if cut_off else "FINISHED")
        self.run = None

    def link(self, run: Run, kind: str, name: str) -> None:
        """Name the ``study`` or ``training`` run that this execution made, and this execution there."""
        if self.run is not None:
            note = f"{kind.capitalize()}: [{name}](#/experiments/{run.experiment}/runs/{run.run_id})"
            self.run.write(tags={f"evbind.{kind}_run": run.run_id, "mlflow.note.content": note})
            run.write(tags={"evbind.notebook_run": self.run.run_id})


class Document:
    """The notebook as this kernel knows it, with the outputs that its cells showed here."""

    def __init__(self, file: Path | None, sources: Iterable[str]) -> None:
        import nbformat

        self.v4 = nbformat.v4
        self.whole = file is not None  # otherwise it is made of the cells that were run
        self.notebook = nbformat.read(file, as_version=4) if file else self.v4.new_notebook()
        self.updatable: dict[str, Any] = {}  # outputs by display id
        for source in [] if file else sources:
            self.begin_cell(None, source)
        for cell in self.notebook.cells:
            if cell.cell_type == "code":
                cell.outputs, cell.execution_count = [], None

    def begin_cell(self, cell_id: str | None, source: str) -> int:
        """Take the outputs that come now as those of this cell; return its place in the notebook."""
        cells = self.notebook.cells
        code = {place: cell for place, cell in enumerate(cells) if cell.cell_type == "code"}
        places = [place for place, cell in code.items() if cell_id and cell.get("id") == cell_id]
        places += [place for place, cell in code.items() if cell.source == source]
        if not places:
            places = [len(cells)]
            cells.append(self.v4.new_code_cell(source, **({"id": cell_id} if cell_id else {})))
        self.cell = cells[places[0]]
        self.cell.source, self.cell.outputs = source, []
        self.at_end = self.whole and places[0] >= max(code, default=0)
        return places[0]

    def add(self, message: dict[str, Any]) -> None:
        """Put what the kernel sends to the front end into the cell that runs."""
        kind, content = message["msg_type"], message["content"]
        display_id = content.get("transient", {}).get("display_id")
        if kind == "update_display_data" and display_id in self.updatable:
            self.updatable[display_id].data = content["data"]
        elif kind in {"stream", "display_data", "execute_result"} and PROGRESS not in content.get("data", ()):
            self.cell.outputs.append(self.v4.output_from_msg(message))
            self.updatable[display_id] = self.cell.outputs[-1]


def check_injected() -> None:
    """Refuse a parameter that papermill put in although the notebook has none of that name; papermill itself only warns."""
    shell, evbinds = get_ipython(), {"overrides", *GROUPS}
    cells = list(shell.user_ns.get("In", []))[:-1] if shell is not None else []
    injected = [pair for pair in itertools.pairwise(cells) if pair[1].startswith("# Parameters\n")]
    if not injected:
        return
    known, given = map(_assigned, injected[-1])  # of several, the one that holds now
    if ": " in injected[-1][1] or (evbinds & {*given} and not evbinds & {*known}):
        return  # a parameters cell that begins with this comment
    for name in given if known else []:
        if name not in known and not name.startswith("PAPERMILL_"):  # as --inject-paths has them
            raise ParamsError(f"{name} is not a parameter of this notebook{did_you_mean(name, known)}")


def _assigned(source: str) -> list[str]:
    try:
        nodes = ast.walk(ast.parse(source))
    except SyntaxError:  # a cell that failed before stands in the history too
        return []
    return [node.id for node in nodes if isinstance(node, ast.Name) and isinstance(node.ctx, ast.Store)]


def notebook_file(name: str | None) -> Path | None:
    """File of the notebook that this kernel runs, as the front end names it, else a project's notebook by its name."""
    shell = get_ipython()
    named = os.environ.get("JPY_SESSION_NAME") or (shell.user_ns.get("__vsc_ipynb_file__") if shell else None)
    places = [Path(named), Path.cwd() / Path(named).name] if named else []
    places += [project_folder() / "notebooks" / f"{name}.ipynb"] if name else []
    return next((place for place in places if place.suffix == ".ipynb" and place.is_file()), None)


EXECUTION = Execution()  # a kernel is in one
