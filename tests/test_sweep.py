"""One notebook over several parameter sets: some at a time, resumed, a failing one among them."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import nbformat
import pandas as pd
import pytest
from nbformat.v4 import new_code_cell, new_markdown_cell, new_notebook

from evbind_lib.cli import main
from evbind_lib.errors import ParamsError
from evbind_lib.params import project_folder
from evbind_lib.sweep import check_sweep, read_sweep

CELLS = [
    'trainer: str = "default"  # file of params/trainer/\noverrides: list = []  # Hydra overrides',
    "seed = int(next((word[14:] for word in overrides if word.startswith('training.seed=')), 42))",
    "assert seed != 3, 'an unlucky one'",
    "from IPython.display import display\n"
    "display({'text/plain': '', 'application/vnd.evbind.result+json': {'lines': [f'seed {seed}']}}, raw=True)",
]


@pytest.fixture
def sweep_file(workspace: Path) -> Path:
    made = new_notebook(metadata={"kernelspec": {"name": "python3", "display_name": "Python 3", "language": "python"}})
    made.cells = [new_markdown_cell("# Quick"), *(new_code_cell(source) for source in CELLS)]
    made.cells[1].metadata["tags"] = ["parameters"]
    nbformat.write(made, workspace / "quick.ipynb")
    file = workspace / "seeds.yaml"
    file.write_text(f"notebook: {workspace / 'quick.ipynb'}\njobs: 2\ngrid: {{training.seed: [1, 2, 3]}}\n")
    return file


@pytest.mark.slow
def test_a_sweep_ends_with_a_table_and_goes_on_where_it_stopped(sweep_file: Path, workspace: Path, capsys: Any) -> None:
    assert main(["sweep", str(sweep_file)]) == 1
    told = capsys.readouterr()
    lines = told.out.splitlines()
    assert lines[0].split() == ["parameters", "status", "seconds", "said"]
    assert [line.split()[1] for line in lines[1:]] == ["finished", "finished", "failed"]
    assert "seed 1" in lines[1] and "an unlucky one" in lines[3]
    assert "3/3  " in told.err
    outcomes = pd.read_csv(workspace / "runs" / "sweeps" / "seeds" / "outcomes.csv")
    assert outcomes["parameters"].tolist() == ["training.seed=1", "training.seed=2", "training.seed=3"]

    kept = sorted(file.name for file in (workspace / "runs" / "sweeps" / "seeds").glob("quick_*.ipynb"))
    assert len(kept) == 3  # the failed one up to where it came

    mended = nbformat.read(workspace / "quick.ipynb", as_version=4)
    mended.cells[3].source = "assert seed"
    nbformat.write(mended, workspace / "quick.ipynb")
    assert main(["sweep", str(sweep_file)]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert ["done before" in line for line in lines[1:]] == [True, True, False]
    assert "seed 3" in lines[3]


def test_sets_and_grid_are_combined(workspace: Path) -> None:
    (workspace / "both.yaml").write_text(
        "notebook: train\nsets:\n  - [trainer=default]\n  - model=tiny data.pos_neg_ratio=1\ngrid: {training.seed: [1, 2]}\n"
    )
    sweep = read_sweep("both.yaml")
    assert sweep.sets == (
        ("trainer=default", "training.seed=1"),
        ("trainer=default", "training.seed=2"),
        ("model=tiny", "data.pos_neg_ratio=1", "training.seed=1"),
        ("model=tiny", "data.pos_neg_ratio=1", "training.seed=2"),
    )
    assert len({sweep.file(words) for words in sweep.sets}) == 4


@pytest.mark.parametrize(
    "file", sorted((project_folder() / "params" / "sweeps").glob("*.yaml")), ids=lambda file: file.stem
)
def test_the_sweeps_that_ship_can_be_used(file: Path) -> None:
    check_sweep(read_sweep(str(file)))


@pytest.mark.parametrize(
    ("text", "sentence"),
    [
        ("sets: []", "it names no notebook"),
        ("notebook: train\nset: []", "set is not a key of a sweep; did you mean 'sets'?"),
        ("notebook: train\nsets: [trainer]", "the set 'trainer' is not a list of KEY=VALUE"),
        ("notebook: train\ngrid: {training.seed: 3}", "grid needs a list of values"),
        ("notebook: train\njobs: 0", "jobs=0 must be a whole number from 1 on"),
        ("notebook: [", "line 1: not valid YAML"),
        ("notebook: train\nsets: [trainer=defalt]", "set trainer=defalt: trainer=defalt: there is no file"),
    ],
)
def test_mistakes(workspace: Path, text: str, sentence: str) -> None:
    (workspace / "wrong.yaml").write_text(text)
    with pytest.raises(ParamsError) as refused:
        check_sweep(read_sweep("wrong.yaml"))
    assert sentence in str(refused.value)
    assert list(workspace.iterdir()) == [workspace / "wrong.yaml"]
