"""A parameter that papermill put in is checked against the parameters cell above it."""

from __future__ import annotations

from types import SimpleNamespace

import pytest

from evbind_lib.errors import ParamsError
from evbind_lib.tracking import executions


def run_cells(monkeypatch: pytest.MonkeyPatch, *cells: str) -> None:
    shell = SimpleNamespace(user_ns={"In": ["", *cells, "start()"]})
    monkeypatch.setattr(executions, "get_ipython", lambda: shell)


def test_an_injected_name_that_the_notebook_lacks_is_refused_with_the_nearest(monkeypatch: pytest.MonkeyPatch) -> None:
    run_cells(monkeypatch, "trainer: str = 'default'", "# Parameters\ntrainer = 'mine'\n")
    executions.check_injected()
    run_cells(monkeypatch, "trainer: str = 'default'", "# Parameters\ntrainr = 'mine'\n")
    with pytest.raises(ParamsError, match=r"trainr.*'trainer'"):
        executions.check_injected()


def test_a_cell_that_could_not_be_read_is_no_parameters_cell(monkeypatch: pytest.MonkeyPatch) -> None:
    run_cells(monkeypatch, "trainer = = 'default'", "# Parameters\ntrainer = 'mine'\n")
    executions.check_injected()


def test_own_cells_that_begin_so_inject_paths_and_a_name_that_was_put_right_are_taken(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    run_cells(monkeypatch, "n = 3", "# Parameters\noverrides = []")
    executions.check_injected()
    run_cells(monkeypatch, "n = 3", "# Parameters\nlimit: int = 4")
    executions.check_injected()
    run_cells(monkeypatch, "trainer: str = 'default'", "# Parameters\nPAPERMILL_INPUT_PATH = 'a'\ntrainer = 'mine'\n")
    executions.check_injected()
    run_cells(
        monkeypatch, "trainer = 'a'", "# Parameters\ntrainr = 'b'", "x", "trainer = 'a'", "# Parameters\ntrainer = 'b'"
    )
    executions.check_injected()
