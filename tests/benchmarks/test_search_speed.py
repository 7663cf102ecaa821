"""Speed of the search engine, as ratios within one run: `make bench`.

Two workers against one, and what a trial costs beside its training when the study is young and when it is old.
"""

from __future__ import annotations

import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import optuna
import pandas as pd
import pytest

from evbind_lib.config.compose import compose
from evbind_lib.config.schema import Params
from evbind_lib.data.corpus import Corpus
from evbind_lib.data.folds import Fold, make_folds
from evbind_lib.hpo.objective import Objective, report_folds, suggest
from evbind_lib.hpo.search import run_search
from evbind_lib.hpo.study import finished_trials
from evbind_lib.tracking.runs import TrackedSearch
from evbind_lib.tracking.store import open_tracker
from evbind_lib.training.metrics import compute_metrics
from evbind_lib.training.result import EpochResult, FoldResult, prediction_table


def trials_per_minute(params: Params, corpus: Corpus) -> float:
    """From the start of the first trial to the end of the last: processes that start are paid once, whatever the number."""
    result = run_search(Objective(corpus, make_folds(corpus, params), params), params)
    trials = finished_trials(result.study)
    first = min(trial.datetime_start for trial in trials if trial.datetime_start)
    last = max(trial.datetime_complete for trial in trials if trial.datetime_complete)
    return 60 * len(trials) / (last - first).total_seconds()


def test_two_workers_against_one(benchmark: Any, workspace: Path, corpus: Corpus) -> None:
    common = [
        *("hpo.trials.n_trials=12", "hpo.pruner.type=none", "hpo.sampler.type=random", "hpo.trials.trial_timeout=600"),
        "hpo.fixed={num_train_epochs: 3, per_device_train_batch_size: 16}",
    ]
    speed: dict[int, float] = {}

    def both() -> None:
        for workers in (1, 2):
            words = [f"hpo.trials.n_jobs={workers}", f"hpo.study.study_name=workers-{workers}"]
            speed[workers] = trials_per_minute(compose([*common, *words], hpo="quick"), corpus)

    benchmark.pedantic(both, rounds=1)
    benchmark.extra_info["trials per minute"] = {number: round(value, 1) for number, value in speed.items()}
    benchmark.extra_info["two over one"] = round(speed[2] / speed[1], 2)
    assert speed[2] > 1.5 * speed[1]


class WithoutTraining:
    """An objective that takes no time: folds whose predictions are drawn at random around the labels."""

    def __init__(self, params: Params, folds: Sequence[Fold], n_pairs: int) -> None:
        self.params, self.folds = params, folds
        self.random = np.random.default_rng(0)
        names = {"post_id": [f"s_{number // 8}" for number in range(n_pairs)], "criterion_id": "A"}
        label = (self.random.random(n_pairs) < 0.25).astype(np.int8)
        names |= {"sentence_id": [str(number) for number in range(n_pairs)], "weight": 1.0}
        self.pairs = pd.DataFrame({**names, "label": label})

    def __call__(self, trial: optuna.Trial) -> float:
        suggest(trial, self.params)
        callback, scores = report_folds(trial, "macro_f1"), []
        for fold in self.folds:
            callback.on_fold_begin(fold, self.params)
            logits = 2 * self.pairs["label"] - 1 + self.random.normal(size=len(self.pairs))
            table = prediction_table(fold.index, self.pairs, logits.to_numpy())
            metrics = compute_metrics(table["label"].to_numpy(), table["probability"].to_numpy())
            epochs = tuple(EpochResult(fold.index, epoch, 0.5, metrics, 0.0) for epoch in (1, 2, 3))
            for epoch in epochs:
                callback.on_epoch_end(epoch)
            callback.on_fold_end(FoldResult(fold.index, metrics, epochs, table, 0.0, 1000, len(table), "fp32", 100.0))
            scores.append(metrics["macro_f1"])
        return float(np.mean(scores))


@pytest.mark.parametrize("pruner", ["median", "racing"])
def test_cost_of_a_trial_when_the_study_is_old(benchmark: Any, workspace: Path, corpus: Corpus, pruner: str) -> None:
    """With MLflow on, and no time for training: Optuna, claims, cached folds and runs; trials 980 to 1,000 over 10 to 30."""
    words = ["hpo.trials.n_trials=1000", f"hpo.pruner.type={pruner}", "hpo.pruner.n_startup_trials=1000000"]
    params = compose(words, hpo="default")
    tracker = open_tracker(params.tracking)
    assert tracker is not None
    ends: list[float] = []

    def search() -> optuna.Study:
        with TrackedSearch(tracker, params.flat(), {}) as tracked:
            objective = WithoutTraining(params, make_folds(corpus, params), 400)
            return run_search(
                objective, params, callbacks=[tracked, lambda study, trial: ends.append(time.perf_counter())]
            ).study

    study = benchmark.pedantic(search, rounds=1)
    seconds = np.diff(ends)
    young, old = float(np.median(seconds[10:30])), float(np.median(seconds[-20:]))
    benchmark.extra_info["seconds of trial 10 to 30"] = round(young, 3)
    benchmark.extra_info["seconds of trial 980 to 1000"] = round(old, 3)
    benchmark.extra_info["old over young"] = round(old / young, 2)
    assert len(finished_trials(study)) == 1000
