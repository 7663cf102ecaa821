"""A parameter that papermill put in is checked against the parameters cell above it."""

from __future__ import annotations

from pathlib import Path
from types import SimpleNamespace
from typing import Any

import nbformat
import pytest
from nbformat.v4 import new_code_cell, new_notebook
from papermill.iorw import load_notebook_node
from papermill.parameterize import parameterize_notebook

from evbind_lib.errors import ParamsError
from evbind_lib.tracking import engine, executions, page

OWN, WRONG, RIGHT = "trainer: str = 'default'", "# Parameters\ntrainr = 'mine'\n", "# Parameters\ntrainer = 'mine'\n"
WITHOUT_COMMENT = "trainer = 'mine'"


def run_cells(monkeypatch: pytest.MonkeyPatch, *cells: str) -> None:
    """Check in a kernel that ran these cells, whose history has no line feed at their end."""
    ran = ["", *(cell.rstrip("\n") for cell in cells), "start()"]
    shell = SimpleNamespace(history_manager=SimpleNamespace(input_hist_raw=ran), user_ns={})
    monkeypatch.setattr(executions, "get_ipython", lambda: shell)
    monkeypatch.setattr(page, "get_ipython", lambda: shell)
    executions.check_injected()


def test_an_injected_name_that_the_notebook_lacks_is_refused_with_the_nearest(monkeypatch: pytest.MonkeyPatch) -> None:
    run_cells(monkeypatch, OWN, RIGHT)
    with pytest.raises(ParamsError, match=r"trainr.*'trainer'"):
        run_cells(monkeypatch, OWN, WRONG)


@pytest.mark.parametrize(
    "cells",
    [
        ("trainer = = 'default'", RIGHT),  # a cell that could not be read is no parameters cell
        ("n = 3", "# Parameters\noverrides = []"),
        ("n = 3", "# Parameters\nlimit: int = 4"),
        (OWN, "# Parameters\nPAPERMILL_INPUT_PATH = 'a'\ntrainer = 'mine'\n"),
        (OWN, WRONG, "x", OWN, RIGHT),
        (OWN, WRONG, "x", OWN, WITHOUT_COMMENT),
        (OWN, WRONG, "x", OWN, "x"),  # taken out
    ],
)
def test_own_cells_that_begin_so_inject_paths_and_what_was_put_right_are_taken(
    monkeypatch: pytest.MonkeyPatch, cells: tuple[str, ...]
) -> None:
    run_cells(monkeypatch, *cells)


@pytest.mark.parametrize(
    ("own", "given"),
    [
        ("tracking: str = 'none'\noverrides: list = []", {}),
        ("overrides: list = ['tracking=none']", {"trainer": "default"}),
        ("overrides: list = ['tracking.enabled=false', 'training.n_flods=3']", {}),
        ("tracking = 'none'\ndata = 'a table of its own'\noverrides = other", {"limit": 3}),
        ("tracking = 'local'", {"tracking": "none"}),
        ("x = (", {"tracking": "none", "overrides": 3}),
    ],
)
def test_the_engine_records_nothing_where_the_notebooks_own_cell_or_who_calls_says_so(
    workspace: Path, tmp_path: Path, own: str, given: dict[str, Any]
) -> None:
    kernel = {"kernelspec": {"name": "python3", "language": "python", "display_name": "python3"}}
    cells = [new_code_cell("tracking = 'local'"), new_code_cell(own, metadata={"tags": ["parameters"]})]
    nbformat.write(new_notebook(metadata=kernel, cells=cells), file := tmp_path / "own.ipynb")
    made = parameterize_notebook(load_notebook_node(str(file)), given)
    assert engine.open_run(made, "own.ipynb") is None and not list(workspace.iterdir())


def test_where_the_file_is_known_papermills_tag_decides(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    own, above = "# Parameters\nlimit = 4", "n = 3"
    made = new_notebook(cells=[new_code_cell(source, metadata={"tags": []}) for source in (above, own, "start()")])
    made.cells[1].metadata["tags"] = ["parameters"]
    file = tmp_path / "mine.ipynb"
    monkeypatch.setenv(page.FILE_VARIABLE, str(file))
    nbformat.write(made, file)
    run_cells(monkeypatch, above, own)
    given = {"limits": 5, "PAPERMILL_INPUT_PATH": "a"}  # the latter as --inject-paths has it
    made = parameterize_notebook(load_notebook_node(str(file)), given, kernel_name="python3", language="python")
    nbformat.write(made, file)
    injected = made.cells[2].source
    with pytest.raises(ParamsError, match="limits"):
        run_cells(monkeypatch, above, own, injected)
    run_cells(monkeypatch, above, own, injected, "start()", above, own, injected.replace("limits", "limit"))
