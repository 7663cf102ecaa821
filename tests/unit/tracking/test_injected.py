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
