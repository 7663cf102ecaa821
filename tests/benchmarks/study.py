"""What a study costs around and beside its training: the second half of `make bench`.

    python -m tests.benchmarks.study [--quick] [--old] [--write]

- a command: its help against a bare interpreter; the first search, and how much of it is inside folds
- thirty random trials with racing and two workers, against the usual script of `speed.py` training the same parameters
- where there is a GPU: trials of DeBERTa-v3-base's shape by 1, 2, 4 and 8 workers on it, and by `cluster.gpu_share=auto`
- with --old (seven minutes): a trial without any training, MLflow on, in an old study (980 to 1,000) and a young one (10 to 30)
"""

from __future__ import annotations

import argparse
import datetime
import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import optuna
import pandas as pd
from optuna.trial import TrialState

from evbind_lib.config.compose import compose
from evbind_lib.config.schema import Params
from evbind_lib.data.corpus import load_corpus
from evbind_lib.data.folds import Fold, make_folds
from evbind_lib.data.negatives import fold_pairs
from evbind_lib.hpo.objective import report_folds, suggest
from evbind_lib.hpo.search import run_search
from evbind_lib.hpo.study import TrialRecord
from evbind_lib.tracking.searches import TrackedSearch
from evbind_lib.tracking.store import Store
from evbind_lib.training.metrics import compute_metrics
from evbind_lib.training.result import EpochResult, FoldResult, prediction_table
from tests.benchmarks import speed

COMMAND = [sys.executable, "-m", "evbind_lib.cli"]


def seconds_of(command: Sequence[str]) -> float:
    started = time.perf_counter()
    subprocess.run(command, check=True, capture_output=True)
    return time.perf_counter() - started


def help_rows() -> list[str]:
    own, bare = (
        min(seconds_of(command) for _ in range(10))
        for command in ([*COMMAND, "--help"], [sys.executable, "-c", "pass"])
    )
    return [f"| `evbind --help` | {own:.2f} s, {own / bare:.1f} times a bare interpreter |"]


def searched(*words: str) -> tuple[float, list[optuna.trial.FrozenTrial]]:
    """Seconds and trials of a search by the command, in a workspace of its own."""
    with tempfile.TemporaryDirectory() as place:
        os.environ["EVBIND_WORKSPACE"] = place
        seconds = seconds_of([*COMMAND, "hpo_search", "hpo=quick", *words])
        storage = f"sqlite:///{place}/optuna.db"
        (name,) = optuna.get_all_study_names(storage)
        study = optuna.load_study(study_name=name, storage=storage)
        return seconds, study.trials


def first_search_rows() -> list[str]:
    seconds, trials = searched()
    inside = sum(sum(TrialRecord.read(trial).fold_seconds or ()) for trial in trials)
    return [
        f"| `evbind hpo_search hpo=quick` | {seconds:.0f} s, of which {inside:.0f} s ({inside / seconds:.0%}) in folds |"
    ]


def thirty_trials_rows() -> list[str]:
    """The script's time is its seconds per step, measured here, times the steps of these trials without any pruning."""
    with tempfile.TemporaryDirectory() as place:
        setup = speed.SETUPS["tiny"]
        speed.make_model(setup, Path(place))
        one = speed.measured("tiny", "usual", Path(place), setup, quick=False)
    words = ["hpo.trials.n_trials=30", "hpo.trials.n_jobs=2", "hpo.sampler.type=random", "hpo.pruner.type=racing"]
    seconds, trials = searched(*words)
    params = compose([], hpo="quick")
    corpus = load_corpus(params)
    pairs = np.array([len(fold_pairs(corpus, fold, params)[0]) for fold in make_folds(corpus, params)])
    steps = sum(
        trial.params["num_train_epochs"] * int(np.ceil(pairs / trial.params["per_device_train_batch_size"]).sum())
        for trial in trials
    )
    usual, best = (
        steps * one["seconds"] / one["steps"],
        max(trial.value for trial in trials if trial.state == TrialState.COMPLETE),
    )
    folds = sum(len(TrialRecord.read(trial).fold_seconds or ()) for trial in trials)
    ratio = f"{seconds / usual:.2f} of the usual script's {usual:.0f} s ({steps:,} steps)"
    return [f"| 30 random trials, racing, two workers | {seconds:.0f} s for {folds} folds, {ratio}; best {best:.3f} |"]


def sharing_rows(shape: str = "base", workers: Sequence[int] = (1, 2, 4, 8), n_trials: int = 8) -> list[str]:
    """Random trials without a pruner, two folds of 200 steps each, by more and more workers at once; from the first's start."""
    with tempfile.TemporaryDirectory() as place:
        speed.make_model(speed.SETUPS[shape], Path(place))
        words = ["model=pretrained", f"model.name={place}", f"hpo.trials.n_trials={n_trials}", "training.n_folds=2"]
        words += ["hpo.sampler.type=random", "hpo.pruner.type=none", "training.args.max_steps=200"]
        rows, alone = [], 0.0
        for n_jobs, shared in [*((n, n) for n in workers), (max(workers), "auto")]:
            _, trials = searched(*words, f"hpo.trials.n_jobs={n_jobs}", f"cluster.gpu_share={shared}")
            began, ended = min(each.datetime_start for each in trials), max(each.datetime_complete for each in trials)
            seconds = (ended - began).total_seconds()
            alone = alone or seconds
            at_work = len({TrialRecord.read(trial).worker for trial in trials})
            took = f"{seconds:.0f} s, {seconds / alone:.2f} of one worker's, by {at_work} workers"
            rows.append(f"| {n_trials} trials, n_jobs={n_jobs}, gpu_share={shared} | {took} |")
    return rows


class WithoutTraining:
    """An objective that takes no time: folds whose predictions are drawn at random around the labels."""

    def __init__(self, params: Params, folds: Sequence[Fold], n_pairs: int) -> None:
        self.params, self.folds = params, folds
        self.random = np.random.default_rng(0)
        names = {"post_id": [f"s_{number // 8}" for number in range(n_pairs)], "criterion_id": "A"}
        label = (self.random.random(n_pairs) < 0.25).astype(np.int8)
        self.pairs = pd.DataFrame({**names, "sentence_id": [str(number) for number in range(n_pairs)], "label": label})

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


def old_study_rows() -> list[str]:
    with tempfile.TemporaryDirectory() as place:
        os.environ["EVBIND_WORKSPACE"] = place
        words = ["hpo.trials.n_trials=1000", "hpo.pruner.type=racing", "hpo.pruner.n_startup_trials=1000000"]
        params = compose(words, hpo="default")
        tracker = Store(params.tracking)
        ends: list[float] = []
        with TrackedSearch(tracker, params.flat(), {}) as tracked:
            objective = WithoutTraining(params, make_folds(load_corpus(params), params), 400)
            run_search(objective, params, callbacks=[tracked, lambda study, trial: ends.append(time.perf_counter())])
    seconds = np.diff(ends)
    young, old = float(np.median(seconds[10:30])), float(np.median(seconds[-20:]))
    return [f"| a trial without training, the 1,000th | {old:.3f} s, {old / young:.2f} times the 20th |"]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--quick", action="store_true", help="the command's help alone")
    parser.add_argument("--write", action="store_true", help="also to results/")
    parser.add_argument("--old", action="store_true", help="also a thousand trials without training")
    options = parser.parse_args()
    today = datetime.date.today().isoformat()
    lines = [f"\n# {today}, {speed.hardware()}: `make bench`, a study\n", "| what | seen |", "| --- | --- |"]
    print(*lines, sep="\n")
    whole = (
        [] if options.quick else [first_search_rows, thirty_trials_rows, *([sharing_rows] if speed.has_gpu() else [])]
    )
    for rows in [help_rows, *whole, *([old_study_rows] if options.old else [])]:
        lines += (found := rows())
        print(*found, sep="\n", flush=True)
    if options.write:
        (speed.RESULTS / f"{today}-study.md").write_text("\n".join(lines).lstrip() + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
