"""A notebook's parameters cell, read without running it."""

from __future__ import annotations

from pathlib import Path

import nbformat
import pytest

from evbind_lib.errors import ParamsError
from evbind_lib.notebook.run import (
    _new_file,
    composed,
    default_parameters,
    find_notebook,
    papermill_parameters,
)


def notebook(folder: Path, source: str) -> Path:
    cell = nbformat.v4.new_code_cell(source, metadata={"tags": ["parameters"]})
    nbformat.write(nbformat.v4.new_notebook(cells=[cell]), folder / "mine.ipynb")
    return folder / "mine.ipynb"


def test_a_parameters_cell_as_people_edit_it(tmp_path: Path) -> None:
    # papermill.inspect_notebook loses the first overrides, for their two equal signs, and cuts the second.
    for overrides in ('["hpo.trials.n_trials=30"]  # more', '[\n    "hpo.trials.n_trials=30",\n]'):
        file = notebook(
            tmp_path, f'# mine\ndata: str = "pairs"\nhpo = None\nlimit = 2 * 3\noverrides: list = {overrides}'
        )
        values = {"data": "pairs", "hpo": None, "limit": None, "overrides": ["hpo.trials.n_trials=30"]}
        assert default_parameters(file) == values
        params = composed(file, {}, ["hpo=quick"])
        assert params.data.format == "pairs" and params.hpo.trials.n_trials == 10
        # Without one of the command, those of the cell stand, as they do by Run All.
        assert composed(file, {}, []).hpo.trials.n_trials == 30 and papermill_parameters(file, {}, []) == {}
        chosen = papermill_parameters(file, {"data": "sample", "model": "tiny"}, ["training.n_folds=3"])
        assert chosen == {"data": "sample", "overrides": ["model=tiny", "training.n_folds=3"]}


def test_a_notebooks_own_parameters_are_told_from_overrides(tmp_path: Path) -> None:
    file = notebook(tmp_path, 'data = "sample"\naim: str = "f1"\ntrainers: list = []\noverrides: list = []')
    words = ["aim=recall>=0.9", "training.n_folds=3", "trainers=[one, two]", "aims=f1"]
    own = {"aim": "recall>=0.9", "trainers": ["one", "two"]}
    assert papermill_parameters(file, {}, words) == {**own, "overrides": ["training.n_folds=3", "aims=f1"]}


def test_what_is_no_notebook_or_has_no_overrides_is_refused(tmp_path: Path) -> None:
    (tmp_path / "text.ipynb").write_text("no notebook")
    for file in (tmp_path / "text.ipynb", notebook(tmp_path, "data = ("), notebook(tmp_path, "data = 'sample'")):
        with pytest.raises(ParamsError, match=file.name):
            papermill_parameters(file, {}, [])


def test_notebooks_are_found_by_name_number_and_path(monkeypatch: pytest.MonkeyPatch) -> None:
    file = find_notebook("hpo_search")
    assert file == find_notebook("03_hpo_search") == find_notebook(str(file))
    monkeypatch.chdir(file.parent)
    assert find_notebook(f"./{file.name}").samefile(file)
    with pytest.raises(ParamsError, match="'hpo_search'"):
        find_notebook("hpo_serch")


def test_notebooks_that_start_in_one_second_are_numbered(tmp_path: Path) -> None:
    names = [_new_file(tmp_path / "runs" / "x.ipynb").name for _ in range(4)]
    assert names == ["x.ipynb", "x_2.ipynb", "x_3.ipynb", "x_4.ipynb"]
