"""Speed, as ratios within one run: `make bench`. Nothing here is part of `make test`.

What was seen is kept in `results/` with date and hardware.
"""

from __future__ import annotations

import contextlib
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest

from evbind_lib.config.compose import compose
from evbind_lib.data.corpus import load_corpus
from evbind_lib.data.folds import make_folds
from evbind_lib.hpo.objective import Objective
from evbind_lib.hpo.search import run_search
from evbind_lib.hpo.study import finished_trials
from evbind_lib.tracking.runs import TrackedSearch
from evbind_lib.tracking.store import open_tracker

COMMAND = [sys.executable, "-m", "evbind_lib.cli"]


def seconds_of(command: list[str]) -> float:
    started = time.perf_counter()
    subprocess.run(command, check=True, capture_output=True)
    return time.perf_counter() - started


def test_help_answers_at_once(benchmark: Any) -> None:
    benchmark.pedantic(seconds_of, args=([*COMMAND, "--help"],), rounds=10, warmup_rounds=1)
    bare = min(seconds_of([sys.executable, "-c", "pass"]) for _ in range(10))
    benchmark.extra_info["times a bare interpreter"] = round(benchmark.stats.stats.min / bare, 1)
    assert benchmark.stats.stats.median < 0.5


def test_quick_search(benchmark: Any, workspace: Path) -> None:
    benchmark.pedantic(seconds_of, args=([*COMMAND, "hpo_search", "hpo=quick"],), rounds=1)
    import optuna

    study = optuna.load_study(study_name="deberta-v3-hpo", storage=f"sqlite:///{workspace}/optuna.db")
    folds = sum(sum(trial.user_attrs["fold_seconds"]) for trial in study.trials)
    benchmark.extra_info["share in folds"] = round(folds / benchmark.stats.stats.min, 2)
    assert benchmark.stats.stats.min < 180


@pytest.mark.parametrize("tracking", ["mlflow", "none"])
def test_share_of_study_time_outside_of_folds(benchmark: Any, workspace: Path, tracking: str) -> None:
    """Optuna, MLflow and the kit's own work, with the time in folds as the base."""
    words = ["training.args.num_train_epochs=1", "hpo.trials.n_trials=8", "hpo.pruner.type=none"]
    params = compose(words, hpo="quick", tracking=tracking)
    corpus = load_corpus(params)
    objective = Objective(corpus, make_folds(corpus, params), params)

    def search() -> float:
        tracker = open_tracker(params.tracking)
        with contextlib.ExitStack() as stack:
            tracked = [stack.enter_context(TrackedSearch(tracker, params.flat(), {}))] if tracker else []
            result = run_search(objective, params, callbacks=tracked)
        return sum(sum(trial.user_attrs["fold_seconds"]) for trial in finished_trials(result.study))

    in_folds = benchmark.pedantic(search, rounds=1)
    whole = benchmark.stats.stats.min
    benchmark.extra_info["outside over inside"] = round((whole - in_folds) / in_folds, 3)
    assert whole < 1.5 * in_folds
