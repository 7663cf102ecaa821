"""Stored notebooks are clean, and a changed result in the library is found when they are run against what is stored."""

from __future__ import annotations

import base64
import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

import nbformat
import numpy as np
import pytest

from evbind_lib.notebook.run import notebooks
from evbind_lib.tracking.page import PLOTLY, WIDGET
from tests.nbval_plugin import settle

PROJECT = Path(__file__).resolve().parents[2]
MACHINE = re.compile(r"(/(home|root|tmp|work|Users|opt|usr)/|[A-Z]:\\)")
TIME = re.compile(r"\b20\d\d-\d\d-\d\d\b|\b\d\d:\d\d:\d\d\b")
ADDRESS = re.compile(r" at 0x[0-9a-f]+")
DEBRIS = re.compile(r"(\d+%\|)|(\[[#.]{5,}\])|it/s|WARNING|Warning:|INFO ")


@pytest.fixture(params=notebooks().values(), ids=lambda file: file.stem)
def stored(request: pytest.FixtureRequest) -> nbformat.NotebookNode:
    return nbformat.read(request.param, as_version=4)


def test_outputs_hold_nothing_of_a_machine_or_a_moment(stored: nbformat.NotebookNode) -> None:
    assert all(not cell.get("outputs") or cell.cell_type == "code" for cell in stored.cells)
    outputs = [output for cell in stored.cells for output in cell.get("outputs", [])]
    assert outputs
    for output in outputs:
        assert output.output_type in {"execute_result", "display_data", "stream"}
        assert output.get("name") != "stderr"
        data = output.get("data", {})
        assert WIDGET not in data
        if PLOTLY in data:
            assert "image/png" in data  # for pages without JavaScript
        text = "\n".join([output.get("text", ""), data.get("text/plain", ""), data.get("text/html", "")])
        for pattern in (MACHINE, TIME, DEBRIS, ADDRESS):
            assert not pattern.search(text), pattern.search(text)


def test_cells_are_short_and_each_has_been_run_in_order(stored: nbformat.NotebookNode) -> None:
    code = [cell for cell in stored.cells if cell.cell_type == "code"]
    assert [cell.execution_count for cell in code] == sorted(cell.execution_count for cell in code)
    assert max(len(cell.source.splitlines()) for cell in code) <= 12
    assert len({cell.id for cell in stored.cells}) == len(stored.cells)


def test_what_is_not_compared_says_why_and_is_the_lesser_part(stored: nbformat.NotebookNode) -> None:
    code = [cell for cell in stored.cells if cell.cell_type == "code"]
    exempt = [cell for cell in code if "nbval-ignore-output" in cell.metadata.get("tags", [])]
    tolerant = [cell for cell in code if "within" in cell.metadata]
    assert all(len(cell.metadata.get("reason", "")) > 30 for cell in exempt + tolerant)
    assert all(0 < cell.metadata["within"] <= 0.06 for cell in tolerant)
    compared = [cell for cell in code if cell not in exempt and cell.outputs]
    assert len(compared) >= 3 and len(compared) > len(exempt)
    assert all("plots." in cell.source or "widgets." in cell.source for cell in exempt)


def test_numbers_near_enough_count_as_equal_and_nothing_else_does() -> None:
    stored = "trial 4  macro_f1 0.8012\n33 of 50 folds"
    assert settle("trial 4  macro_f1 0.8016\n33 of 50 folds", stored, 0.01) == stored
    for other in ("trial 5  macro_f1 0.8012\n33 of 50 folds", "trial 4  macro_f1 0.8212\n33 of 50 folds", "0.8012"):
        assert settle(other, stored, 0.01) == other  # counts, words and what is too far apart stay for nbval to see


def test_numbers_of_results_and_figures_are_settled_as_well() -> None:
    def array(*values: float) -> dict[str, str]:
        return {"dtype": "f8", "bdata": base64.b64encode(np.array(values)).decode()}

    stored = {"n": 4, "value": 0.8012, "lines": ["F1 0.80"], "y": array(0.5, np.nan), "gone": 1}
    fresh = {"n": 4, "value": 0.8016, "lines": ["F1 0.81"], "y": array(0.504, np.nan)}
    assert settle(fresh, stored, 0.01) == {name: stored[name] for name in fresh}
    assert settle({"y": array(0.52, np.nan)}, stored, 0.01) == {"y": array(0.52, np.nan)}
    assert settle({"y": array(0.5)}, stored, 0.01) == {"y": array(0.5)}
    assert settle({"n": 5}, stored, 0.01) == {"n": 5}  # a count is no score


MUTATIONS = {
    # file, what is there, what is put there, notebook that must notice
    "focal loss": ("training/losses.py", "(gamma * log_rest)", "((gamma + 0.2) * log_rest)", "03_hpo_search"),
    "fold seed": ("data/folds.py", "random_state=data.seed)", "random_state=data.seed + 1)", "01_explore_data"),
    "metric": ("training/metrics.py", "(f1 + f1_of_others) / 2", "0.4 * f1 + 0.6 * f1_of_others", "04_compare"),
}


@pytest.mark.full
@pytest.mark.slow
@pytest.mark.parametrize("name", MUTATIONS)
def test_a_changed_result_in_the_library_is_caught(name: str, tmp_path: Path) -> None:
    file, before, after, notebook = MUTATIONS[name]
    copy = tmp_path / "checkout"
    for part in ("evbind_lib", "params", "notebooks", "tests"):
        shutil.copytree(PROJECT / part, copy / part, ignore=shutil.ignore_patterns("__pycache__", "hpo_best.yaml.*"))
    shutil.copy(PROJECT / "pyproject.toml", copy)
    source = copy / "evbind_lib" / file
    text = source.read_text(encoding="utf-8")
    assert text.count(before) == 1
    source.write_text(text.replace(before, after), encoding="utf-8")
    done = subprocess.run(
        [sys.executable, "-m", "pytest", "-x", f"notebooks/{notebook}.ipynb"],
        capture_output=True,
        text=True,
        cwd=copy,
        env={**os.environ, "PYTHONPATH": str(copy)},
        timeout=300,
    )
    assert done.returncode == 1, done.stdout[-2000:]
    assert "Cell outputs differ" in done.stdout, done.stdout[-2000:]  # it ran, and said something else


def test_the_words_of_nbval_are_found_from_whichever_folder_pytest_is_started(pytestconfig: pytest.Config) -> None:
    file = Path(pytestconfig.option.nbval_sanitize_with)  # which nbval opens for each notebook
    assert file.is_absolute() and file.is_file()
