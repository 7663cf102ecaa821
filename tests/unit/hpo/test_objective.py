"""`suggest` and `report_folds` in plain studies of Optuna's, with folds made up; what runs beside a trial of a search."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import cloudpickle
import numpy as np
import optuna
import pandas as pd
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from optuna.trial import TrialState

from evbind_lib.config.compose import compose
from evbind_lib.config.schema import Params
from evbind_lib.data.corpus import Corpus
from evbind_lib.data.folds import Fold
from evbind_lib.errors import ParamsError, SearchError, TrainingError
from evbind_lib.hpo import objective as module
from evbind_lib.hpo.objective import (
    RUNNING,
    Objective,
    RunningTrial,
    SearchCallback,
    SearchStopped,
    report_folds,
    running_trial,
    study_identity,
    suggest,
)
from evbind_lib.hpo.study import StudyRecord, TrialRecord, study_uid
from evbind_lib.training.cache import FoldCache, trial_name
from evbind_lib.training.metrics import compute_metrics
from evbind_lib.training.result import Callback, EpochResult, FoldResult, prediction_table

PARAMS = compose(["training.n_folds=3"])


def fold_result(
    fold: int, right: float, *, n: int = 8, cached: bool = False, micro_batch: int | None = None
) -> FoldResult:
    """A fold of which so large a fraction of pairs is decided rightly."""
    labels = np.arange(n) % 2
    decided = np.where(np.arange(n) < round(right * n), labels, 1 - labels)
    ids = {"post_id": [f"s_{number}" for number in range(n)], "sentence_id": ["0"] * n, "criterion_id": ["A"] * n}
    table = prediction_table(fold, pd.DataFrame({**ids, "label": labels, "weight": 1.0}), 4.0 * decided - 2)
    metrics = compute_metrics(labels, table["probability"].to_numpy())
    return FoldResult(fold, metrics, (), table, 1.0, 1, n, "fp32", 1.0, micro_batch, cached)


def run(callback: Callback, *results: FoldResult, params: Params = PARAMS) -> None:
    for result in results:
        callback.on_fold_begin(Fold(result.fold, (), ()), params)
        callback.on_fold_end(result)


def study_of(pruner: optuna.pruners.BasePruner | None = None, direction: str = "maximize") -> optuna.Study:
    return optuna.create_study(direction=direction, pruner=pruner or optuna.pruners.NopPruner())


def test_the_running_aggregate_is_reported_and_the_last_fold_never_prunes(workspace: Path) -> None:
    study = study_of(optuna.pruners.ThresholdPruner(lower=0.5))
    trial = study.ask()
    # The second fold alone is below the threshold, the mean is not; the last one would bring it there.
    run(report_folds(trial, "accuracy"), fold_result(0, 0.875), fold_result(1, 0.25), fold_result(2, 0.0))
    assert study.trials[0].intermediate_values == pytest.approx({0: 0.875, 1: 0.5625, 2: 0.375})
    other = study.ask()
    with pytest.raises(optuna.TrialPruned):
        run(report_folds(other, "accuracy"), fold_result(0, 0.375))
    record = TrialRecord.read(study.trials[0])
    assert (record.metric, record.fold_aggregation, record.fold_scores) == ("accuracy", "mean", [0.875, 0.25, 0.0])
    assert record.fold_seconds == [1.0, 1.0, 1.0] and record.micro_batch is None
    assert TrialRecord.read(study.trials[1]).fold_scores == [0.375]


def all_alike(fold: int) -> FoldResult:
    """A fold in which every pair is called evidence."""
    result = fold_result(fold, 0.5)
    table = result.predictions.assign(probability=0.9, logit=2.2)
    return replace(result, predictions=table)


def test_a_trial_that_tells_nothing_apart_in_two_folds_is_stopped_with_its_reason(workspace: Path) -> None:
    pruner = optuna.pruners.MedianPruner(n_startup_trials=99)
    with pytest.raises(optuna.TrialPruned, match="its first two folds call every pair the same"):
        run(report_folds(study_of(pruner).ask(), "macro_f1"), all_alike(0), all_alike(1))
    # One fold may be luck; the last one is worth nothing to leave out; ranks, and searches without a pruner, want every fold.
    run(report_folds(study_of(pruner).ask(), "macro_f1"), all_alike(0), fold_result(1, 0.75), all_alike(2))
    run(report_folds(study_of(pruner).ask(), "roc_auc"), all_alike(0), all_alike(1), all_alike(2))
    run(report_folds(study_of().ask(), "macro_f1"), all_alike(0), all_alike(1), all_alike(2))
    of_two = PARAMS.with_values({"training.n_folds": 2})
    run(report_folds(study_of(pruner).ask(), "macro_f1"), all_alike(0), all_alike(1), params=of_two)


def test_other_aggregations_and_lower_metrics(workspace: Path) -> None:
    trial = study_of().ask()
    run(report_folds(trial, "accuracy", aggregation="min"), fold_result(0, 0.5), fold_result(1, 0.75))
    assert trial.study.trials[0].intermediate_values == {0: 0.5, 1: 0.5}
    lower = study_of(direction="minimize").ask()
    run(report_folds(lower, "log_loss"), fold_result(0, 0.5))
    with pytest.raises(ValueError, match="middle"):
        report_folds(trial, "accuracy", aggregation="middle")


def test_wilcoxon_is_given_single_folds(workspace: Path) -> None:
    trial = study_of(optuna.pruners.WilcoxonPruner()).ask()
    run(report_folds(trial, "accuracy"), fold_result(0, 0.75), fold_result(1, 0.25))
    assert trial.study.trials[0].intermediate_values == {0: 0.75, 1: 0.25}


def test_a_metric_against_the_studys_direction_and_an_unknown_one_are_refused(workspace: Path) -> None:
    with pytest.raises(ParamsError, match=r"log_loss.*maximized"):
        report_folds(study_of().ask(), "log_loss")
    with pytest.raises(ParamsError, match=r"macro_f1.*minimized"):
        report_folds(study_of(direction="minimize").ask(), "macro_f1")
    with pytest.raises(ParamsError, match="did you mean 'macro_f1'"):
        report_folds(study_of().ask(), "macrof1")


def test_several_objectives_are_recorded_and_not_pruned(workspace: Path) -> None:
    study = optuna.create_study(directions=["maximize", "minimize"])
    trial = study.ask()
    run(report_folds(trial, "log_loss"), fold_result(0, 0.0), fold_result(1, 0.5))
    assert len(TrialRecord.read(study.trials[0]).fold_scores or []) == 2 and not study.trials[0].intermediate_values


def test_each_fold_is_stored_under_the_study_and_the_trial(workspace: Path) -> None:
    trial = study_of().ask()
    result = fold_result(1, 0.75)
    run(report_folds(trial, "accuracy"), result)
    stored = FoldCache(study_uid(trial.study)).load(trial_name(0, 1))
    assert stored is not None
    pd.testing.assert_frame_equal(stored.predictions, result.predictions)


def test_other_validation_pairs_than_the_first_trial_had_are_refused(workspace: Path) -> None:
    study = study_of()
    run(report_folds(study.ask(), "accuracy"), fold_result(0, 0.75), fold_result(1, 0.75))
    run(report_folds(study.ask(), "accuracy"), fold_result(0, 0.5))
    assert set(StudyRecord.read(study).pairs or {}) == {"0", "1"}
    with pytest.raises(SearchError, match=r"fold 2.*study="):
        run(report_folds(study.ask(), "accuracy"), fold_result(0, 0.5), fold_result(1, 0.5, n=10))


def test_folds_that_were_trained_before_are_counted(workspace: Path) -> None:
    study = study_of()
    first = study.ask()
    TrialRecord(parameter_key="k").write(first)
    study.tell(first, 0.5)
    again = study.ask()
    TrialRecord(parameter_key="k").write(again)
    folds = [fold_result(0, 0.5, cached=True), fold_result(1, 0.5, cached=True), fold_result(2, 0.5, micro_batch=4)]
    run(report_folds(again, "accuracy"), *folds)
    record = TrialRecord.read(study.trials[1])
    assert (record.folds_from_before, record.reused_from, record.micro_batch) == (2, 0, 4)
    fresh = study.ask()
    run(report_folds(fresh, "accuracy"), fold_result(0, 0.5))
    record = TrialRecord.read(study.trials[2])
    assert (record.folds_from_before, record.reused_from) == (None, None)


class Heard(SearchCallback, Callback):
    def __init__(self) -> None:
        self.calls: list[str] = []

    def fold_callbacks(self, trial: optuna.Trial) -> list[Callback]:
        self.calls.append("asked")
        return [self]

    def on_fold_begin(self, fold: Fold, params: Params) -> None:
        self.calls.append(f"begin {fold.index}")

    def on_step(self) -> None:
        self.calls.append("step")

    def on_epoch_end(self, epoch: EpochResult) -> None:
        self.calls.append("epoch")

    def on_fold_end(self, result: FoldResult) -> None:
        self.calls.append(f"end {result.fold}")


@contextlib.contextmanager
def at_work(trial: optuna.Trial, *callbacks: SearchCallback, **others: Any) -> Iterator[None]:
    token = RUNNING.set(RunningTrial(trial, FoldCache("scope"), callbacks, **others))
    try:
        yield
    finally:
        RUNNING.reset(token)


def test_what_follows_the_running_trial_is_called_for_its_folds_alone(workspace: Path) -> None:
    study, heard = study_of(), Heard()
    trial, another = study.ask(), study.ask()
    assert running_trial() is None
    with at_work(trial, heard):
        assert running_trial() is not None
        callback = report_folds(trial, "accuracy")
        run(callback, fold_result(0, 0.5))
        callback.on_step()
        callback.on_epoch_end(EpochResult(0, 1, 0.1, None, 1.0))
        run(report_folds(another, "accuracy"), fold_result(0, 0.5))
    assert running_trial() is None
    assert heard.calls == ["asked", "begin 0", "end 0", "step", "epoch"]


def test_a_request_to_stop_and_the_time_limit_end_a_trial(workspace: Path) -> None:
    trial = study_of().ask()
    with at_work(trial, asked_to_stop=lambda: True):
        callback = report_folds(trial, "accuracy")
        callback.on_step()
        with pytest.raises(SearchStopped):
            run(callback, fold_result(0, 0.5))
    with (
        at_work(trial, time_limit=60.0, began=-1e9),
        pytest.raises(TrainingError, match="trial_timeout=60"),
    ):
        report_folds(trial, "accuracy").on_step()


@settings(max_examples=30, deadline=None)
@given(st.integers(0, 10_000))
def test_conditional_parameters_are_suggested_only_where_their_condition_holds(seed: int) -> None:
    params = compose()
    study = optuna.create_study(sampler=optuna.samplers.RandomSampler(seed=seed))
    tried = suggest(study.ask(), params)
    drawn = study.trials[0].params
    always = set(params.hpo.search_space) - {"focal_gamma", "focal_alpha"}
    assert set(drawn) == always | ({"focal_gamma", "focal_alpha"} if drawn["loss_function"] == "focal" else set())
    assert tried.training.args["learning_rate"] == drawn["learning_rate"]
    assert tried.training.loss_function == drawn["loss_function"]
    resolved = TrialRecord.read(study.trials[0]).resolved
    assert resolved == {key: tried.model_dump()[key] for key in ("data", "model", "training")}


def test_an_objective_travels(corpus: Corpus, folds: list[Fold]) -> None:
    def score(result: Any) -> float:
        return 1.0

    sent = cloudpickle.loads(cloudpickle.dumps(Objective(corpus, folds, PARAMS, score=score)))
    identity = study_identity(sent, PARAMS)
    assert identity == study_identity(Objective(corpus, folds, PARAMS, score=score), PARAMS)
    assert identity != study_identity(Objective(corpus, folds, PARAMS), PARAMS)


def test_an_objective_returns_its_metric_or_the_users_score(
    workspace: Path, corpus: Corpus, folds: list[Fold], monkeypatch: pytest.MonkeyPatch
) -> None:
    from evbind_lib.training import crossval
    from evbind_lib.training.result import CrossValidation

    done = CrossValidation((fold_result(0, 0.75), fold_result(1, 0.25)))
    monkeypatch.setattr(crossval, "cross_validate", lambda *arguments, **others: done)
    params = compose(["hpo.metric.name=accuracy", "hpo.metric.fold_aggregation=min"])
    study = study_of()
    study.optimize(Objective(corpus, folds, params), n_trials=1)
    study.optimize(Objective(corpus, folds, params, score=lambda result: result.score("accuracy", "max")), n_trials=1)
    assert [trial.value for trial in study.trials] == [0.25, 0.75]
    assert TrialRecord.read(study.trials[0]).pooled == done.pooled()
    assert study.trials[0].state == TrialState.COMPLETE and module.running_trial() is None
