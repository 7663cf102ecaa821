"""The execution of a notebook that this kernel is in: a run in MLflow with its page, whichever way it was started.

Where papermill's engine ``evbind`` started the kernel, the engine owns the run; elsewhere the kernel does, and watches its cells.
"""

from __future__ import annotations

import atexit
import contextlib
import functools
import itertools
import json
import os
import re
import sys
import warnings
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from IPython import get_ipython

from evbind_lib.config.paths import project_folder
from evbind_lib.config.schema import GROUPS, TrackingParams
from evbind_lib.errors import ParamsError, did_you_mean
from evbind_lib.tracking import page

if TYPE_CHECKING:
    from evbind_lib.tracking.runs import NotebookRun, Run


class Execution:
    """What this kernel runs: passes through a notebook, each a run in MLflow, begun by the cell with `begin` or those above."""

    def __init__(self) -> None:
        self.tracking: TrackingParams | None = None  # where it records, from `begin` on
        self.run: NotebookRun | None = None
        self.document: Document | None = None  # where the kernel owns the run
        self._outer = os.environ.get(page.OUTER_VARIABLE)

    def begin(self, tracking: TrackingParams, name: str | None, parameters: dict[str, Any]) -> None:
        """Begin a pass of the notebook, or go on with the one that this is; `TrackingError` where MLflow cannot be used."""
        self.tracking = tracking
        shell = get_ipython()
        if shell is None or not hasattr(shell, "kernel"):  # a script or a terminal: no notebook
            return
        if self.run is not None and not (self.document and self.document.is_from_above()):
            self.run.describe(parameters)
            return
        self.end("the notebook was run again from above")
        self.run = self._open(shell, tracking, name, parameters) if tracking.enabled else None
        if self.run is not None:  # for what this notebook starts
            os.environ[page.OUTER_VARIABLE] = self.run.run_id

    def _open(self, shell: Any, tracking: TrackingParams, name: str | None, parameters: dict[str, Any]) -> NotebookRun:
        """Open the run of a pass, or join the one that papermill's engine opened for it."""
        from evbind_lib.tracking.runs import NotebookRun
        from evbind_lib.tracking.store import Store

        store, given = Store(tracking), page.given_by_launcher(page.RUN_VARIABLE)
        if given and (joined := NotebookRun.join(store, given, parameters)):
            return joined
        file = notebook_file(name)
        name, way = file.stem if file else name or "notebook", "jupyter" if page.front_end_file() else "kernel"
        run = NotebookRun.begin(store, name, parameters, way=way, outer=self._outer)
        document, request = Document(file, shell.history_manager.input_hist_raw[1:-1]), shell.get_parent()
        document.begin_cell(request["metadata"].get("cellId"), request["content"]["code"], request["header"]["msg_id"])
        document.before = document.cell
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
        atexit.register(self.end, "the kernel was shut down")

    def _before_cell(self, info: Any) -> None:
        if self.run and self.document and info.store_history:
            with self.run.store.going_on():  # a hook that raised would be shown in the user's cell
                self.run.begin_cell()
                self.document.begin_cell(info.cell_id, info.raw_cell, get_ipython().get_parent()["header"]["msg_id"])

    def _output(self, message: dict[str, Any]) -> dict[str, Any]:
        if self.run and self.document:
            with self.run.store.going_on():
                self.document.add(message)
        return message

    def _after_cell(self, result: Any) -> None:
        """Write where the execution stands: FINISHED with the last cell, failed until what failed is put right."""
        run, document, error = self.run, self.document, result.error_before_exec or result.error_in_exec
        if not (run and document and result.info.store_history):
            return
        sys.stdout.flush()
        sys.stderr.flush()
        with run.store.going_on():
            cell, leaves = document.cell, isinstance(error, SystemExit) and not error.code
            cell.execution_count = result.execution_count
            run.count_cell()
            if error is not None and not leaves and "raises-exception" not in cell.metadata.get("tags", []):
                kind, text, document.failed = type(error).__name__, str(error), cell
                cell.outputs.append(document.v4.new_output("error", ename=kind, evalue=text, traceback=[text]))
                run.finish(document.notebook, f"{kind}: {text}")
            elif document.failed is None or document.place_of(cell) >= document.place_of(document.failed):
                document.failed, kept = None, run.status == "FINISHED" and cell.id != document.last
                if leaves or (document.is_at_end() and not kept):
                    run.finish(document.notebook)
                elif run.status in ("FAILED", "KILLED"):
                    run.end(status="RUNNING")

    def end(self, why: str) -> None:
        """Leave the run, and end it where it goes on; where no file is saved, nobody knows how many cells there are."""
        run, document = self.run, self.document
        if run and document and (run.status == "RUNNING" or (run.status == "FINISHED" and run.n_cells > run.n_kept)):
            with run.store.going_on():
                run.begin_cell()  # what passed since the last one is idle time
                document.read()
                cut_off = "" if document.is_at_end() or document.last is None else f"{why} before its last cell"
                run.finish(document.notebook, cut_off, status="KILLED" if cut_off else "FINISHED")
        self.run = None

    def link(self, run: Run, kind: str, name: str) -> None:
        """Name the ``study`` or ``training`` run that this execution made, and this execution there."""
        if self.run is not None:
            note = f"{kind.capitalize()}: [{name}](#/experiments/{run.experiment}/runs/{run.run_id})"
            self.run.write(tags={f"evbind.{kind}_run": run.run_id, "mlflow.note.content": note})
            run.write(tags={"evbind.notebook_run": self.run.run_id})


class Document:
    """The notebook as its file is saved, with the cells that ran in this kernel, in the file or not, and what they showed."""

    def __init__(self, file: Path | None, sources: Iterable[str]) -> None:
        import nbformat  # late: it loads a second of schemas

        self.nbformat, self.v4, self.file, self.saved = nbformat, nbformat.v4, file, 0
        self.notebook = self.v4.new_notebook()
        self.last: str | None = None  # id of the last cell in the file
        # Cells that ran, by request and by the front end's id: VS Code's are not those of the file.
        self.known: dict[str, Any] = {}
        self.updatable: dict[str, Any] = {}  # outputs by display id
        self.cell: Any = None  # that runs
        self.before = self.failed = self.cell  # that ran before it, that failed last
        self.read()
        for number, source in enumerate(sources):  # what ran before there was an execution
            if self.last is None:
                self.begin_cell(None, source, str(number))
            else:
                self.cell = self._find((), source, -1) or self.cell

    def place_of(self, cell: Any) -> int:
        """Place of a cell in the notebook, -1 of one that is none of it."""
        return next((place for place, each in enumerate(self.notebook.cells) if cell and each.id == cell.id), -1)

    def is_from_above(self) -> bool:
        """Whether the cell before the one that runs stands above it."""
        return self.place_of(self.before) < self.place_of(self.cell)

    def is_at_end(self) -> bool:
        """Whether the last cell in the file has run."""
        return self.last in [cell.id for cell in self.known.values()]

    def read(self) -> None:
        """Read the file where it was saved since, and put the cells that ran here into it."""
        with contextlib.suppress(Exception), warnings.catch_warnings(action="ignore"):  # none, or no notebook
            if self.file is None or (saved := self.file.stat().st_mtime_ns) == self.saved:
                return
            read = self.v4.upgrade(self.nbformat.read(self.file, as_version=4))  # gives cells of older files an id
            for cell in (code := [cell for cell in read.cells if cell.cell_type == "code"]):
                cell.outputs, cell.execution_count = [], None
            ran = sorted({cell.id: cell for cell in self.known.values()}.values(), key=self.place_of)
            self.last = next((cell.id for cell in reversed(code) if cell.source.strip()), None)
            self.saved, self.notebook, behind, ids = saved, read, -1, [cell.id for cell in ran]
            for cell in ran:
                there = self._find([cell.id], cell.source, behind, ids)
                behind = self.place_of(there) if there else behind + 1
                read.cells[behind : behind + bool(there)] = [cell]
                cell.update({name: there[name] for name in ("id", "metadata")} if there else {})

    def _find(self, ids: Sequence[str | None], source: str, behind: int, others: Sequence[str] = ()) -> Any:
        """Find the cell with one of these ids, else the next behind a place that has this source, but no other's id."""
        cells = self.notebook.cells
        turned = [cell for cell in cells[behind + 1 :] + cells[: behind + 1] if cell.cell_type == "code"]
        same = [cell for cell in turned if cell.source.strip() == source.strip() and cell.id not in others]
        return next(iter([cell for cell in turned if cell.id in ids] + same), None)

    def begin_cell(self, cell_id: str | None, source: str, request: str) -> None:
        """Take the outputs of this request as those of this cell; one that the file lacks stands behind the one before."""
        self.read()
        known, behind = self.known, self.place_of(self.cell)
        ids = [cell_id, known[cell_id].id if cell_id in known else None]
        self.before = self.cell
        self.cell = self._find(ids, source, behind, [cell.id for cell in known.values()] if cell_id else ())
        if self.cell is None:
            legal = {"id": cell_id} if re.fullmatch(r"[a-zA-Z0-9_-]{1,64}", cell_id or "") else {}
            self.cell = self.v4.new_code_cell(**legal)
            self.notebook.cells.insert(behind + 1 if self.before else len(self.notebook.cells), self.cell)
        self.cell.source, self.cell.outputs = source, []
        known.update({key: self.cell for key in (cell_id, request) if key})

    def add(self, message: dict[str, Any]) -> None:
        """Put what the kernel sends to the front end into the cell whose request it answers."""
        kind, content, data = message["msg_type"], message["content"], message["content"].get("data", ())
        display_id, cell = content.get("transient", {}).get("display_id"), message["parent_header"].get("msg_id")
        if kind == "update_display_data" and display_id in self.updatable:
            self.updatable[display_id].data = data
        elif cell in self.known and kind in {"stream", "display_data", "execute_result"} and page.PROGRESS not in data:
            self.known[cell].outputs.append(self.v4.output_from_msg(message))
            self.updatable[display_id] = self.known[cell].outputs[-1]


def check_injected() -> None:
    """Refuse a parameter that papermill put in although the notebook has none of that name; papermill itself only warns."""
    shell, evbinds = get_ipython(), {"overrides", *GROUPS}
    pairs = list(itertools.pairwise(shell.history_manager.input_hist_raw[:-1] if shell is not None else ()))
    put_in: tuple[Any, Any] = (None, None)
    if file := notebook_file(None):
        with contextlib.suppress(Exception):  # no such cells, or no notebook; nbformat would load a second of schemas
            cells = json.loads(file.read_bytes())["cells"]
            tagged = {tag: "".join(cell["source"]) for cell in cells for tag in cell["metadata"].get("tags", ())}
            put_in = tagged["parameters"].rstrip("\n"), tagged["injected-parameters"].rstrip("\n")
    else:  # plain papermill hands no tags to the kernel
        put_in = next((pair for pair in reversed(pairs) if pair[1].startswith("# Parameters\n")), put_in)
    if [pair for pair in pairs if pair[0] == put_in[0]][-1:] != [put_in]:
        return  # never run, or run again with something else
    try:
        known, given = map(page.assigned, put_in)
    except page.UNREADABLE:  # a cell that failed before stands in the history too
        return
    if ": " in put_in[1] or (evbinds & {*given} and not evbinds & {*known}):
        return  # a parameters cell that begins with this comment
    for name in given if known else []:
        if name not in known and not name.startswith("PAPERMILL_"):  # as --inject-paths has them
            raise ParamsError(f"{name} is not a parameter of this notebook{did_you_mean(name, known)}")


def notebook_file(name: str | None) -> Path | None:
    """File of the notebook that this kernel runs, as what started it names it, else a project's notebook by its name."""
    named = page.front_end_file() or page.given_by_launcher(page.FILE_VARIABLE)
    places = [Path(named), Path.cwd() / Path(named).name] if named else []
    places += [project_folder() / "notebooks" / f"{name}.ipynb"] if name else []
    return next((place for place in places if place.suffix == ".ipynb" and place.is_file()), None)


EXECUTION = Execution()  # a kernel is in one
