"""What the README tells people to type composes, and what it shows is there."""

from __future__ import annotations

import re
import shlex
from pathlib import Path
from typing import Any

import optuna
import pytest

from evbind_lib.config.compose import split_arguments
from evbind_lib.config.paths import resolve_sqlite, write_whole
from evbind_lib.hpo.samplers import build_pruner, build_sampler
from evbind_lib.hpo.space import check_space
from evbind_lib.notebook.run import composed, find_notebook
from evbind_lib.training.metrics import METRICS
from tests.conftest import BRIEF

PROJECT = Path(__file__).resolve().parents[2]
NOTEBOOKS = ("02_train.ipynb", "03_hpo_search.ipynb")
README = (PROJECT / "README.md").read_text(encoding="utf-8")


def commands() -> list[str]:
    blocks = re.findall(r"^```\w*\n(.*?)^```", README, flags=re.DOTALL | re.MULTILINE)
    lines = [line for block in blocks for line in block.splitlines()]
    lines += re.findall(r"`(evbind [^`]+)`", README)
    found = [re.sub(r"\s+#.*", "", line) for line in lines if line.startswith("evbind ")]
    return [line for line in found if "…" not in line and "..." not in line and "NAME" not in line]


@pytest.mark.parametrize("command", dict.fromkeys(commands()))
def test_a_command_composes(command: str, workspace: Path) -> None:
    _, name, *words = shlex.split(command)
    best = (PROJECT / "tests" / "stored" / "hpo_best.yaml").read_text(encoding="utf-8")
    write_whole(workspace / "params" / "trainer" / "hpo_best.yaml", best)
    for word in words:  # what a search, or the reader, has written by then
        if word.startswith(("experiment=", "trainer=mine")):
            write_whole(workspace / "params" / f"{word.replace('=', '/')}.yaml", best)
    notebook = find_notebook("score" if name == "finalize" else name)
    options = [index for index, word in enumerate(words) if word.startswith("--")]
    given = words[: options[0]] if options else words
    choices, overrides = split_arguments([word for word in given if "=" in word])  # the others are folders and files
    params = composed(notebook, choices, overrides)
    if "/" in params.model.name:  # of a hub that tests do not reach
        params = params.with_values({"model.name": "tiny"})
    for source in params.hpo.enqueue:
        if source.startswith("study:"):  # one that was searched before
            study = optuna.create_study(
                storage=resolve_sqlite(params.hpo.study.storage), study_name=source.removeprefix("study:")
            )
            study.add_trial(optuna.trial.create_trial(value=0.5))
    check_space(params)
    build_sampler(params.hpo.sampler, n_earlier_trials=0)
    build_pruner(params.hpo.pruner, n_folds=params.training.n_folds)


def test_there_are_commands_to_check() -> None:
    assert len(set(commands())) > 20


def test_every_picture_and_file_it_links_is_there() -> None:
    linked = [target for target in re.findall(r"\]\(([^)#]+)\)", README) if "://" not in target]
    assert linked and [target for target in linked if not (PROJECT / target).is_file()] == []
    named = [word for word in re.findall(r"`((?:params|tests|notebooks|evbind_lib)/[\w./-]+)`", README)]
    missing = [
        word
        for word in named
        if not (PROJECT / word).exists() and not word.startswith(("params/experiment", "params/trainer/hpo_best"))
    ]
    assert missing == []


def test_its_scores_are_those_of_the_stored_notebooks() -> None:
    guess, search = ((PROJECT / "notebooks" / name).read_text(encoding="utf-8") for name in NOTEBOOKS)
    (best,) = re.findall(r"^Best: trial \d+, macro_f1 ([\d.]+)", README, flags=re.MULTILINE)
    (of_guess,) = re.findall(r"macro_f1 +([\d.]+ ± [\d.]+) \(mean", guess)[:1]
    assert f"macro_f1 {best} (mean of 5 folds)" in search
    guessed, found = re.findall(r"^evbind train.*macro_f1 ([\d.]+ ± [\d.]+)", README, flags=re.MULTILINE)
    assert guessed == " ± ".join(f"{float(each):.3f}" for each in of_guess.split(" ± "))
    assert found.split()[0] == f"{float(best):.3f}"


def test_the_lines_of_extend_run(workspace: Path) -> None:
    blocks = re.findall(r"^```python\n(.*?)^```", README, flags=re.DOTALL | re.MULTILINE)
    code = "\n".join(blocks)
    for shown, brief in (
        (
            'overrides=["hpo.trials.n_trials=20"]',
            f'overrides={[*BRIEF, "hpo.trials.n_trials=2"]}, hpo="quick", tracking="none"',
        ),
        ("n_trials=20)", "n_trials=1)"),
    ):
        assert shown in code
        code = code.replace(shown, brief)
    names: dict[str, Any] = {}
    try:
        exec(compile(code, "README.md", "exec"), names)
        assert "kappa" in names["cv"].folds[0].metrics
        assert names["result"].n_earlier_trials == 0 and len(names["result"].study.trials) == 2
        assert len(names["scores"]) == 2 and all(0 < score < 1 for score in names["scores"])
        assert [trial.params["learning_rate"] for trial in names["grid"].trials[:2]] == [1e-3, 1e-3]
    finally:
        METRICS.pop("kappa", None)
