"""Speed of the search engine, as ratios within one run: `make bench`.

Two workers against one, and what a trial costs beside its training when the study is young and when it is old.
"""

from __future__ import annotations

import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest

from evbind_lib.config.compose import Params, compose
from evbind_lib.data.corpus import load_corpus
from evbind_lib.data.folds import make_folds
from evbind_lib.hpo.objective import Objective, run_trials
from evbind_lib.hpo.search import run_search
from evbind_lib.hpo.study import finished_trials, open_study, study_identity
from evbind_lib.tracking.searches import TrackedSearch
from evbind_lib.tracking.tracker import open_tracker
from evbind_lib.training.cache import FoldCache
from evbind_lib.training.metrics import compute_metrics
from evbind_lib.training.result import Callback, CrossValidation, EpochResult, FoldResult


def trials_per_minute(params: Params) -> float:
    """From the start of the first trial to the end of the last: processes that start are paid once, whatever the number."""
    corpus = load_corpus(params.data)
    result = run_search(params, corpus, make_folds(corpus, n_folds=5, seed=42))
    trials = finished_trials(result.study)
    first = min(trial.datetime_start for trial in trials if trial.datetime_start)
    last = max(trial.datetime_complete for trial in trials if trial.datetime_complete)
    return 60 * len(trials) / (last - first).total_seconds()


def test_two_workers_against_one(benchmark: Any, workspace: Path) -> None:
    common = [
        *("hpo.trials.n_trials=12", "hpo.pruner.type=none", "hpo.sampler.type=random", "tracking=none"),
        "hpo.fixed={num_train_epochs: 3, per_device_train_batch_size: 16}",
    ]
    speed: dict[int, float] = {}

    def both() -> None:
        for workers in (1, 2):
            words = [
                f"hpo.trials.n_jobs={workers}",
                f"hpo.study.study_name=workers-{workers}",
                "hpo.trials.trial_timeout=600",
            ]
            speed[workers] = trials_per_minute(compose({"hpo": "quick"}, [*common, *words]))

    benchmark.pedantic(both, rounds=1)
    benchmark.extra_info["trials per minute"] = {number: round(value, 1) for number, value in speed.items()}
    benchmark.extra_info["two over one"] = round(speed[2] / speed[1], 2)
    assert speed[2] > 1.5 * speed[1]


class WithoutTraining:
    """A cross-validation that takes no time: predictions drawn at random around the labels."""

    def __init__(self, n_folds: int, n_pairs: int) -> None:
        self.folds = tuple(type("Fold", (), {"index": index})() for index in range(n_folds))
        rng = np.random.default_rng(0)
        self.ids = pd.DataFrame(
            {
                "post_id": [f"s_{number // 8}" for number in range(n_pairs)],
                "sentence_id": [str(number) for number in range(n_pairs)],
                "criterion_id": "A",
                "label": (rng.random(n_pairs) < 0.25).astype(np.int8),
            }
        )
        self.rng = rng

    def run(
        self, params: Params, observers: Sequence[Callback] = (), finished: Mapping[int, FoldResult] | None = None
    ) -> CrossValidation:
        reports = []
        for fold in self.folds:
            for observer in observers:
                observer.on_fold_begin(fold.index)
            noise = self.rng.random(len(self.ids))
            table = self.ids.assign(
                fold=np.int8(fold.index), probability=(0.3 * self.ids["label"] + 0.7 * noise).astype("f4")
            )
            metrics = compute_metrics(table["label"].to_numpy(), table["probability"].to_numpy())
            epochs = tuple(EpochResult(fold.index, epoch, 0.5, metrics, 0.0) for epoch in (1, 2, 3))
            for epoch in epochs:
                for observer in observers:
                    observer.on_epoch_end(epoch)
            report = FoldResult(fold.index, metrics, epochs, table, 0.0, 1000, len(table), 100.0)
            for observer in observers:
                observer.on_fold_end(report)
            reports.append(report)
        return CrossValidation(tuple(reports), "fp32")


@pytest.mark.parametrize("pruner", ["median", "racing"])
def test_cost_of_a_trial_when_the_study_is_old(benchmark: Any, workspace: Path, pruner: str) -> None:
    """With MLflow on, and no time for training: Optuna, claims, kept folds and runs; trials 990 to 1,000 over 10 to 20."""
    words = ["hpo.trials.n_trials=1000", f"hpo.pruner.type={pruner}", "hpo.pruner.n_startup_trials=1000000"]
    params = compose({"hpo": "default"}, words)
    corpus = load_corpus(params.data)
    folds = make_folds(corpus, n_folds=5, seed=42)
    study = open_study(params, study_identity(params, corpus, folds))
    tracked = TrackedSearch(open_tracker(params.tracking), params, {})
    tracked.on_study(study, 0)
    ends: list[float] = []

    def search() -> None:
        validator: Any = WithoutTraining(5, 400)
        objective = Objective(params, validator, [tracked])
        run_trials(study, objective, lambda study: ends.append(time.perf_counter()) or False)

    benchmark.pedantic(search, rounds=1)
    seconds = np.diff(ends)
    young, old = float(np.median(seconds[10:30])), float(np.median(seconds[-20:]))
    benchmark.extra_info["seconds of trial 10 to 30"] = round(young, 3)
    benchmark.extra_info["seconds of trial 980 to 1000"] = round(old, 3)
    benchmark.extra_info["old over young"] = round(old / young, 2)
    assert len(finished_trials(study)) == 1000 and FoldCache(study.study_name).folder.is_dir()
