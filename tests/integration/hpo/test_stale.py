"""No stale number: a study that was deleted trains again, other code trains again, and what is read instead is counted apart."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

from evbind_lib.config.schema import Params
from evbind_lib.data.corpus import Corpus
from evbind_lib.data.folds import Fold
from evbind_lib.hpo.objective import Objective
from evbind_lib.hpo.results import SearchResult, folds_spent, summary_text, trials_table
from evbind_lib.hpo.search import run_search
from evbind_lib.notebook.show import search_summary
from tests.conftest import BRIEF, PROJECT


def search(corpus: Corpus, folds: list[Fold], params: Params) -> SearchResult:
    return run_search(Objective(corpus, folds, params), params)


def test_a_study_that_was_deleted_is_trained_again_unless_reuse_is_asked_for(
    brief: Callable[..., Params], corpus: Corpus, folds: list[Fold], workspace: Path
) -> None:
    params = brief("hpo.trials.n_trials=1")
    first = search(corpus, folds, params)
    (workspace / "optuna.db").unlink()
    again = search(corpus, folds, params)
    assert folds_spent(again.study, 2) == (2, 0, 2) and again.best_value == first.best_value
    assert "folds_read" not in trials_table(again.study)

    (workspace / "optuna.db").unlink()
    reused = search(corpus, folds, brief("hpo.trials.n_trials=1", "hpo.reuse=true"))
    assert folds_spent(reused.study, 2) == (0, 2, 2) and reused.best_value == first.best_value
    assert trials_table(reused.study)["folds_read"].tolist() == [2]
    line = "0 of 2 folds trained (0%), 2 read that other trials had trained"
    found, lines = search_summary(reused)
    assert line in lines and line in summary_text(reused)
    assert found["folds"] == {"trained": 0, "read": 2, "whole": 2}


SCRIPT = """
import json, sys
from pathlib import Path
import evbind_lib as ev
from evbind_lib.hpo.results import folds_spent, summary_text
from evbind_lib.hpo.search import run_search

def search(n_trials, *overrides):
    params = ev.compose([*json.loads(sys.argv[1]), f"hpo.trials.n_trials={n_trials}", *overrides], hpo="quick")
    corpus = ev.load_corpus(params)
    return params, run_search(ev.Objective(corpus, ev.make_folds(corpus, params), params), params)

params, resumed = search(2)
Path("optuna.db").unlink()
_, anew = search(1, "hpo.reuse=true")
print(json.dumps({
    "file": ev.__file__, "notes": resumed.notes, "summary": summary_text(resumed), "value": anew.best_value,
    "spent": [folds_spent(resumed.study, 2), folds_spent(anew.study, 2)],
}))
"""


def test_an_edited_loss_reports_no_score_of_the_old_code(
    brief: Callable[..., Params], corpus: Corpus, folds: list[Fold], workspace: Path, tmp_path: Path
) -> None:
    old = search(corpus, folds, brief("hpo.trials.n_trials=1"))
    edited = tmp_path / "edited"
    for folder in ("evbind_lib", "params"):
        shutil.copytree(PROJECT / folder, edited / folder, ignore=shutil.ignore_patterns("__pycache__"))
    losses = edited / "evbind_lib" / "training" / "losses.py"
    code = losses.read_text(encoding="utf-8")
    for head, rest in (("losses = ", "functional.cross_entropy"), ("return ", "-alpha_t")):
        assert head + rest in code
        code = code.replace(head + rest, f"{head}0.0 * {rest}")
    losses.write_text(code, encoding="utf-8")
    environment = {**os.environ, "PYTHONPATH": str(edited), "EVBIND_WORKSPACE": str(workspace)}
    done = subprocess.run(
        [sys.executable, "-W", "ignore", "-c", SCRIPT, json.dumps(BRIEF)],
        capture_output=True,
        text=True,
        timeout=200,
        env=environment,
    )
    assert done.returncode == 0, done.stderr
    said = json.loads(done.stdout.splitlines()[-1])
    assert said["file"].startswith(str(edited))
    assert any("code" in note for note in said["notes"]) and ": trials 0\n" in said["summary"]
    assert said["value"] != old.best_value
    assert said["spent"] == [[4, 0, 4], [2, 0, 2]], "nothing of the old code is read, also where reuse is asked for"
