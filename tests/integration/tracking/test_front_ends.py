"""Executions as front ends really send them: their ids of cells, files of older formats, cells that no file has (yet)."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

import nbformat
import papermill
import pytest
from jupyter_client.blocking import BlockingKernelClient
from jupyter_client.launcher import launch_kernel
from jupyter_client.provisioning import local_provisioner
from nbformat.v4 import new_code_cell, new_notebook

from evbind_lib.config.compose import compose
from evbind_lib.tracking.page import FILE_VARIABLE, OUTER_VARIABLE
from evbind_lib.tracking.runs import NotebookRun
from evbind_lib.tracking.store import Store
from tests.integration.tracking.test_executions import (
    PARAMETERS,
    START,
    executions,
    kept,
    kernel_of,
    run_source,
    write_notebook,
)

P, S, A, B = "overrides = []", START.replace("trainer=trainer", ""), "print('a')", "print('b')"
FAILS = "raise KeyboardInterrupt"
EMPTY: list[str] = []
LAB, CODE = "cell-{}", "vscode-notebook-cell:/x.ipynb#W{}sZmlsZQ%3D%3D"  # what front ends call a cell


class Kernel(NamedTuple):
    """A kernel in which one notebook after another is played, and the folder of its workspace."""

    talk: BlockingKernelClient
    folder: Path

    def silently(self, code: str) -> None:
        self.talk.execute(f"import os\nfrom evbind_lib.tracking.executions import EXECUTION\n{code}", silent=True)


@pytest.fixture(scope="module")
def kernel(tmp_path_factory: pytest.TempPathFactory, mlflow_database: Path) -> Iterator[Kernel]:
    folder = tmp_path_factory.mktemp("played")
    shutil.copy(mlflow_database, folder)
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("EVBIND_WORKSPACE", str(folder))
        patch.delenv("MLFLOW_TRACKING_URI", raising=False)  # which mlflow.set_tracking_uri of another test sets
        with kernel_of(folder / "none.ipynb") as (_, talk):
            assert run_source(talk, STATE, None)[0] == "ok"  # what the user set, for one of the tests
            yield Kernel(talk, folder)


def save(file: Path, sources: list[str], minor: int = 5) -> None:
    """Save a notebook with ids as JupyterLab gives them; before nbformat 4.5 there are none."""
    cells = [new_code_cell(source, id=LAB.format(number)) for number, source in enumerate(sources)]
    made = new_notebook(cells=cells)
    for cell in made.cells if minor < 5 else ():
        del cell["id"]
    made.nbformat_minor = minor
    file.write_text("{" if sources == ["{"] else json.dumps(made))


Step = tuple[str, str] | list[str]  # a cell that runs, by id and source, or what is saved
ROWS: dict[str, tuple[str, list[str], list[Step], str, list[str]]] = {
    "VS Code": (CODE, [P, S, A, A], [(0, P), (1, S), (2, A), (3, A)], "FINISHED", [P, S, A, A]),
    "VS Code, a cell edited, saved, and run again": (
        *(CODE, [P, S, A], [(0, P), (1, S), (2, A), [P, S, B], (2, B)], "FINISHED", [P, S, B]),
    ),
    "VS Code, never saved": (CODE, EMPTY, [(0, P), (1, S), (2, A)], "FINISHED", [P, S, A]),
    "a file of nbformat 4.4": (*("4.4", [P, S, A], [(0, P), (1, S), (9, B), (2, A)], "FINISHED", [P, S, B, A]),),
    "a scratch cell that the file lacks": (
        *(LAB, [P, S, A, B], [(0, P), (1, S), (9, "1 + 1"), (2, A), (3, B)], "FINISHED", [P, S, "1 + 1", A, B]),
    ),
    "a copied cell that is not saved yet": (
        *(LAB, [P, S, A, B], [(0, P), (1, S), (2, A), (9, A), (3, B)], "FINISHED", [P, S, A, A, B]),
    ),
    "typed in before the first save": (LAB, EMPTY, [(0, P), (1, S), (2, A), (3, B)], "FINISHED", [P, S, A, B]),
    "saved while it is typed in": (
        *(LAB, EMPTY, [(0, P), (1, S), [P, S], (2, A), [P, S, A, B], (3, B)], "FINISHED", [P, S, A, B]),
    ),
    "an empty cell at the end": (LAB, [P, S, A, " "], [(0, P), (1, S), (2, A)], "FINISHED", [P, S, A, " "]),
    "interrupted and run again after the end": (
        *(LAB, [P, S, A, B], [(0, P), (1, S), (2, A), (3, B), (2, FAILS), (2, A)], "FINISHED", [P, S, A, B]),
    ),
    "left before its last cell": (LAB, [P, S, A, B], [(0, P), (1, S), (2, A)], "KILLED", [P, S, A, B]),
    "a cell that failed, and one above it run again": (
        *(LAB, [P, S, A, B], [(0, P), (1, S), (2, A), (3, "1 / 0"), (2, A)], "FAILED", [P, S, A, "1 / 0"]),
    ),
    "a file that cannot be read": (LAB, ["{"], [(0, P), (1, S), (2, A)], "FINISHED", [P, S, A]),
}


@pytest.mark.slow
@pytest.mark.parametrize("row", ROWS)
def test_what_ran_is_kept_and_the_state_is_that_at_the_end(
    kernel: Kernel, monkeypatch: pytest.MonkeyPatch, row: str
) -> None:
    ids, saved, steps, status, sources = ROWS[row]
    file, said = kernel.folder / "mine.ipynb", []
    save(file, saved, 4 if ids == "4.4" else 5)
    kernel.silently(f"os.environ['JPY_SESSION_NAME'] = {str(file)!r}\nget_ipython().history_manager.reset()")
    for step in steps:
        if isinstance(step, list):
            save(file, step)
        else:
            said += run_source(kernel.talk, step[1], LAB.format(step[0]) if ids == "4.4" else ids.format(step[0]))[1]
    kernel.silently("EXECUTION.end('the kernel was shut down')")
    kernel.talk.execute_interactive("pass", silent=True)
    monkeypatch.setenv("EVBIND_WORKSPACE", str(kernel.folder))
    run = executions()[-1]
    assert "callback" not in "".join(said) and "MLflow" not in "".join(said)
    assert (run.info.status, run.data.metrics["cells"]) == (status, sum(isinstance(step, tuple) for step in steps) - 1)
    document = nbformat.read(kept(run, "mine.ipynb"), as_version=4)
    nbformat.validate(document)
    assert [cell.source for cell in document.cells] == sources
    shown = {"print('a')": "a\n", "print('b')": "b\n"}
    for cell in document.cells:
        if cell.source in shown and (status == "FINISHED" or cell.source == A):
            assert [output.text for output in cell.outputs] == [shown[cell.source]]


ASKS = "from evbind_lib.notebook.front_end import has_front_end\nprint(has_front_end())"
CALLS = "import papermill\npapermill.execute_notebook('child.ipynb', 'out.ipynb', engine_name='nbclient', progress_bar=False)"


@pytest.mark.slow
@pytest.mark.usefixtures("mlflow_tables")
def test_what_a_notebook_starts_is_a_run_below_its_own_and_has_no_front_end(
    workspace: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """By plain papermill, whose kernel gets all variables of the front end's; a forked one would not show what it was given."""
    monkeypatch.setattr(local_provisioner, "launch_kernel", launch_kernel)
    write_notebook(workspace / "child.ipynb", PARAMETERS, START, ASKS)
    save(driver := workspace / "driver.ipynb", ["overrides, trainer = [], None", START, ASKS, CALLS])
    with kernel_of(driver) as (_, talk):
        for number, cell in enumerate(nbformat.read(driver, as_version=4).cells):
            assert run_source(talk, cell.source, LAB.format(number))[0] == "ok"
    of_driver, of_child = executions()
    assert (of_child.info.run_name, of_child.info.status) == ("own", "FINISHED")
    assert of_child.data.tags["mlflow.parentRunId"] == of_driver.info.run_id
    cells = nbformat.read(kept(of_driver, "driver.ipynb"), as_version=4).cells
    assert len(cells) == 4 and cells[2].outputs[0].text == "True\n"
    assert "False" in (workspace / "out.ipynb").read_text()


@pytest.mark.usefixtures("mlflow_tables")
def test_the_engine_hands_on_no_notebook_of_a_front_end(workspace: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    names = ["JPY_SESSION_NAME", FILE_VARIABLE]
    write_notebook(workspace / "outer.ipynb", "x = 1")
    write_notebook(workspace / "inner.ipynb", "x = 1", f"import os\nprint([os.environ.get(name) for name in {names}])")
    papermill.execute_notebook("outer.ipynb", "out.ipynb", engine_name="evbind", progress_bar=False)
    monkeypatch.setenv(OUTER_VARIABLE, executions()[0].info.run_id)
    monkeypatch.setenv("JPY_SESSION_NAME", "outer.ipynb")
    done = papermill.execute_notebook("inner.ipynb", "out2.ipynb", engine_name="evbind", progress_bar=False)
    assert done.cells[2].outputs[0].text == f"{[None, str(workspace / 'out2.ipynb')]}\n"
    outer, inner = executions()
    assert inner.data.tags["mlflow.parentRunId"] == outer.info.run_id


@pytest.mark.usefixtures("mlflow_tables")
def test_time_between_cells_is_no_time_of_the_execution(workspace: Path) -> None:
    run = NotebookRun.begin(Store(compose().tracking), "mine", {}, way="jupyter", outer="0" * 32)  # of another store
    time.sleep(0.2)
    run.count_cell()
    time.sleep(1)
    run.begin_cell()
    run.count_cell()
    run.finish(new_notebook())
    (stored,) = executions()
    took = (stored.info.end_time - stored.info.start_time) / 1000
    assert 0.2 <= stored.data.metrics["seconds"] < 0.9 and 0.15 < took < 0.9
    assert "mlflow.parentRunId" not in stored.data.tags


def test_a_variable_is_believed_from_who_started_the_kernel_and_not_from_further_up() -> None:
    ask = "from evbind_lib.tracking.page import given_by_launcher\nprint(given_by_launcher('NAME'))"
    start = "import os, subprocess, sys\nfor value in ('handed on', 'given'):\n    environment = {**os.environ, 'NAME': value}"
    start += f"\n    subprocess.run([sys.executable, '-c', {ask!r}], env=environment, check=True)"
    environment = {name: value for name, value in os.environ.items() if name != "JPY_PARENT_PID"}
    command = [sys.executable, "-c", start]
    done = subprocess.run(command, env={**environment, "NAME": "handed on"}, capture_output=True, text=True, check=True)
    assert done.stdout.split() == ["None", "given"]


STATE = """
def state():
    import logging, warnings, pandas
    levels = {name: logging.getLogger(name).level for name in ("", "mlflow", "optuna", "transformers", "own")}
    mine = [entry for entry in warnings.filters if entry[2] is FutureWarning]  # libraries add some for their own
    return mine, *levels.items(), pandas.get_option("display.max_colwidth"), pandas.get_option("display.precision")
import logging, warnings, mlflow, optuna, pandas
warnings.simplefilter("once", FutureWarning)
logging.getLogger("mlflow").setLevel(logging.DEBUG)
logging.getLogger("optuna").setLevel(logging.DEBUG)
pandas.set_option("display.precision", 3)
before = state()
"""


@pytest.mark.slow
def test_a_tracked_start_leaves_filters_levels_and_options_of_the_user_as_they_were(kernel: Kernel) -> None:
    run_source(kernel.talk, P, None)
    assert run_source(kernel.talk, S, None)[0] == "ok"
    _, said = run_source(
        kernel.talk, "now = state()\nprint([(old, new) for old, new in zip(before, now) if old != new])", None
    )
    assert "".join(said) == "[]\n"
    _, said = run_source(kernel.talk, "warnings.warn('seen', stacklevel=1)", None)
    assert "UserWarning: seen" in "".join(said)
