"""The racing pruner: its statistics against hand-computed values and scikit-learn, its decisions on cached predictions."""

from __future__ import annotations

import functools
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from uuid import uuid4

import numpy as np
import optuna
import pandas as pd
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from optuna.trial import FrozenTrial, TrialState
from scipy.stats import t as student

from evbind_lib.config.compose import compose
from evbind_lib.data.folds import Fold
from evbind_lib.hpo.objective import report_folds
from evbind_lib.hpo.racing.pruner import RacingPruner
from evbind_lib.hpo.racing.statistics import (
    FoldScore,
    judge,
    null_differences,
    peers_of,
    post_mean_square,
    predicted_finals,
    residual_mean_square,
    score_fold,
    training_shape,
)
from evbind_lib.hpo.study import StudyRecord, TrialRecord
from evbind_lib.training.cache import FoldCache, trial_name
from evbind_lib.training.metrics import METRICS, compute_metrics
from evbind_lib.training.result import FoldResult, prediction_table

N_FOLDS = 5


def made_fold(fold: int, skill: float, seed: int, n_posts: int = 30, n_pairs: int = 6) -> pd.DataFrame:
    """Predictions of a made-up model for the pairs of a fold, which are the same for every model."""
    shared, own = np.random.default_rng([7, fold]), np.random.default_rng([seed, fold])
    number = np.arange(n_posts * n_pairs)
    label, hard = (shared.random(len(number)) < 0.3).astype(np.int8), shared.standard_normal(len(number))
    pairs = pd.DataFrame({"post_id": number // n_pairs, "sentence_id": number, "criterion_id": "C1"}).astype(str)
    logits = skill * (2 * label - 1) + hard + 0.3 * own.standard_normal(len(number))
    return prediction_table(fold, pairs.assign(label=label, weight=1.0), logits)


@functools.cache
def made_result(fold: int, skill: float, seed: int) -> FoldResult:
    table = made_fold(fold, skill, seed)
    metrics = compute_metrics(table["label"].to_numpy(), table["probability"].to_numpy())
    return FoldResult(fold, metrics, (), table, 1.0, n_training=1, n_validation=180, precision="fp32", peak_memory_mb=0)


@functools.cache
def made_trial(skill: float, seed: int, metric: str = "macro_f1") -> list[FoldScore]:
    return [score_fold(made_fold(fold, skill, seed), metric, fold=fold, n_resamples=300) for fold in range(N_FOLDS)]


def test_noise_of_posts_has_the_variance_of_a_mean() -> None:
    # One pair a post: accuracy is a mean of independent outcomes, its variance is that of a sample divided by n.
    table = made_fold(0, 0.5, seed=2, n_posts=60, n_pairs=1)
    right = (table["probability"] >= 0.5) == (table["label"] == 1)
    score = score_fold(table, "accuracy", fold=0, n_resamples=20_000)
    assert score.value == pytest.approx(right.mean())
    assert score.noise.mean() == pytest.approx(0, abs=1e-12)
    assert score.noise.var() == pytest.approx(right.astype(float).var(ddof=1) / 60, rel=0.04)


def test_where_a_resample_has_no_score_it_has_no_noise() -> None:
    table = made_fold(0, 1.0, seed=1, n_posts=2).assign(label=[1] * 6 + [0] * 6)
    score = score_fold(table, "roc_auc", fold=0, n_resamples=100)
    assert np.isfinite(score.value) and score.noise == pytest.approx(0, abs=1e-12)  # both posts once, or one class
    assert np.isnan(score_fold(table.assign(label=1), "roc_auc", fold=0, n_resamples=100).value)


def test_spread_is_what_trial_and_fold_do_not_explain() -> None:
    additive = np.array([[0.1], [0.3], [0.2]]) + np.array([0.5, 0.1, 0.4, 0.2])
    assert residual_mean_square(additive) == (pytest.approx(0, abs=1e-30), pytest.approx(6))
    by_hand = np.array([[1.0, 0.0], [0.0, 1.0]])  # residuals of 1/2 each, one degree of freedom
    assert residual_mean_square(by_hand) == (pytest.approx(1.0), pytest.approx(1))
    # Degrees of freedom are fewer where one fold of one trial is far off: here almost all of the variance is that fold's.
    failed = np.zeros((6, 5))
    failed[2, 3] = 1.0
    left = failed - failed.mean(axis=1, keepdims=True) - failed.mean(axis=0) + failed.mean()
    excess = (left**4).mean() / (left**2).mean() ** 2 - 3
    assert residual_mean_square(failed)[1] == pytest.approx(2 / (2 / 20 + excess / 30)) and excess > 10
    # Half the variance of a difference, on average over pairs of trials.
    random = np.random.default_rng(0).normal(size=(6, 5))
    pairs = [(random[i] - random[j]).var(ddof=1) / 2 for i in range(6) for j in range(i)]
    assert residual_mean_square(random)[0] == pytest.approx(np.mean(pairs))
    # What trials share in a resample is no spread.
    draw = np.random.default_rng(0)
    shared, own = draw.normal(size=(1, 5, 4000)), draw.normal(size=(8, 5, 4000))
    assert post_mean_square(np.repeat(shared, 8, axis=0)) == pytest.approx(0, abs=1e-20)
    assert post_mean_square(3 * shared + 2 * own) == pytest.approx(4, rel=0.02)


def test_the_shape_of_training_noise_keeps_a_failure_and_peers_do_not_drop_it() -> None:
    values = 0.7 + 0.01 * np.random.default_rng(0).standard_normal((10, 5))
    values[3] += 0.05
    values[3, 2] = 0.1  # a good trial, failed in one fold
    values[5:] -= 0.2
    assert 3 in peers_of(values) and len(peers_of(values)) == 5
    shape = training_shape(values[peers_of(values)])
    assert (shape.mean(), shape.std()) == pytest.approx((0, 1), abs=1e-12)
    assert shape.min() < -3 and shape.max() < 1.5


def test_without_contenders_the_null_is_the_paired_noise_and_with_them_the_best_is_lucky() -> None:
    random = np.random.default_rng(0)
    noise, none = random.normal(size=(21, 5, 2000)), np.zeros(2000)
    profile, shape = np.zeros(5), np.zeros(1)
    alone = null_differences(noise[0, :2], noise[1:2], profile, (none, none), shape, "mean")
    assert alone == pytest.approx(noise[0, :2].mean(axis=0) - noise[1, :2].mean(axis=0))
    chosen = null_differences(noise[0, :2], noise[1:], profile, (none, none), shape, "mean")
    # The mean of the largest of 20 normal numbers is 1.867; of means over five folds, 1.867 / sqrt(5).
    assert chosen.mean() == pytest.approx(-1.867 / np.sqrt(5), abs=0.05)
    two, shape = none + 2, random.normal(size=500)
    trained = null_differences(noise[0, :2], noise[1:2], profile, (two, two), shape, "mean")
    assert trained.var() == pytest.approx(1 + 2**2, rel=0.15)  # (1 + 4) / 2 for each of the two
    apart = null_differences(noise[0, :2], noise[1:2], profile, (2 * two, two), shape, "mean")
    assert apart.var() == pytest.approx(
        (1 + 4**2) / 2 + (1 + 2**2) / 2, rel=0.15
    )  # the candidate scatters twice as much


def test_a_final_score_is_predicted_as_students_t() -> None:
    peers = np.array([[0.5, 0.6, 0.7, 0.6], [0.6, 0.7, 0.8, 0.7]])
    finals = predicted_finals(np.array([0.65, 0.75]), peers, 0.01, 3, "mean", 200_000)
    # Distances to the peers' means are 0.1 and 0.1, so 0.85 and 0.75 are expected ahead.
    assert np.median(finals) == pytest.approx((0.65 + 0.75 + 0.85 + 0.75) / 4, abs=0.002)
    scale = np.sqrt(0.01 * 1.5 * (1 / 2 + 1 / 2) * (2 / 4) ** 2)
    for level in (0.1, 0.25, 0.9):
        assert np.quantile(finals, level) == pytest.approx(0.75 + scale * student(3).ppf(level), abs=0.004)
    assert predicted_finals(np.array([0.2, 0.9]), peers, 1e-12, 3, "min", 100) == pytest.approx(0.2)


def test_minimizing_the_negative_is_maximizing() -> None:
    def turned(folds: Sequence[FoldScore]) -> list[FoldScore]:
        return [FoldScore(-fold.value, -fold.noise) for fold in folds]

    complete = [made_trial(1.0 + 0.1 * number, seed=number) for number in range(6)]
    candidate = made_trial(0.9, seed=99)[:2]
    for aggregation, opposite in (("mean", "mean"), ("median", "median"), ("min", "max"), ("max", "min")):
        up = judge(candidate, complete, aggregation=aggregation)
        others = [turned(folds) for folds in complete]
        assert judge(turned(candidate), others, aggregation=opposite, greater_is_better=False) == up


@settings(max_examples=25, deadline=None)
@given(st.permutations(range(6)), st.floats(-0.3, 0.3), st.floats(0, 0.1))
def test_verdicts_do_not_depend_on_order_or_level_and_fall_with_the_score(
    order: list[int], shift: float, less: float
) -> None:
    complete = [made_trial(1.0 + 0.1 * number, seed=number) for number in range(6)]
    candidate = made_trial(0.9, seed=99)[:2]
    plain = judge(candidate, complete)

    def moved(folds: Sequence[FoldScore], by: float) -> list[FoldScore]:
        return [replace(fold, value=fold.value + by) for fold in folds]

    along = judge(moved(candidate, shift), [moved(folds, shift) for folds in complete])
    assert (along.p_value, along.chance) == pytest.approx((plain.p_value, plain.chance), abs=0.01)
    # The draws of training belong to places, so another order draws others.
    mixed = judge(candidate, [complete[number] for number in order])
    assert mixed.p_value == pytest.approx(plain.p_value, abs=0.08)
    assert mixed.chance == pytest.approx(plain.chance, abs=0.01)
    worse = judge(moved(candidate, -less), complete)
    assert worse.p_value <= plain.p_value and worse.chance <= plain.chance
    assert judge(candidate, complete, margin=less).chance <= plain.chance


def test_equal_trials_are_stopped_no_more_often_than_stated() -> None:
    # Normal scores made directly: shared and own noise of posts, noise of training; the best of ten is the luckiest.
    stopped, n_searches, p = 0, 150, 0.1
    for seed in range(n_searches):
        random = np.random.default_rng(seed)
        shared = random.standard_normal((N_FOLDS, 301))

        def trial() -> list[FoldScore]:
            noise = shared + 0.5 * random.standard_normal(shared.shape)  # noqa: B023
            values = noise[:, 0] + random.standard_normal(N_FOLDS)  # noqa: B023
            return [FoldScore(float(value), row[1:]) for value, row in zip(values, noise, strict=True)]

        complete, candidate = [trial() for _ in range(10)], trial()
        stopped += any(judge(candidate[:done], complete, p=p, futility=None).stop for done in range(1, N_FOLDS))
    assert stopped / n_searches <= p + 3 * np.sqrt(p * (1 - p) / n_searches)


def test_a_trial_whose_own_folds_scatter_more_is_judged_by_its_own_scatter() -> None:
    # Sets differ in noise, and a training may fail: 0.2 below on average is much for steady folds and little for these.
    random = np.random.default_rng(0)
    complete = [
        [FoldScore(0.8 + 0.01 * random.standard_normal(), np.zeros(300)) for _ in range(N_FOLDS)] for _ in range(8)
    ]
    steady, failed = ([FoldScore(value, np.zeros(300)) for value in values] for values in ([0.6, 0.6], [0.4, 0.8]))
    assert judge(steady, complete, futility=None).rule == "worse"
    assert judge(failed, complete, futility=None).rule == "go on"
    assert judge(failed[:1], complete, futility=None).rule == "worse"  # one fold says nothing about its scatter


def test_trials_that_all_call_nothing_evidence_do_not_make_a_first_try_look_hopeless() -> None:
    # The complete trials never vary; this one does, as its posts show.
    still = [[FoldScore(0.43, np.zeros(300))] * N_FOLDS for _ in range(5)]
    lively = FoldScore(0.42, 0.05 * np.random.default_rng(0).standard_normal(300))
    assert judge([lively], still).rule == "go on"
    assert judge([FoldScore(0.42, np.zeros(300))], still).stop


# The pruner in a study: predictions are saved and trials told as `report_folds` and a search do it.


class MadeStudy:
    """An in-memory study whose trials have cached predictions."""

    def __init__(self, metric: str = "macro_f1") -> None:
        direction, uid = "maximize" if METRICS[metric].greater_is_better else "minimize", uuid4().hex
        self.study, self.metric, self.cache = optuna.create_study(direction=direction), metric, FoldCache(uid)
        StudyRecord(uid=uid).write(self.study)

    def add(
        self, skill: float, seed: int, done: int = N_FOLDS, *, save: bool = True, key: str | None = None
    ) -> FrozenTrial:
        """Report folds of a made-up trial, complete it where all are done, and give it as a pruner would see it."""
        trial = self.study.ask()
        TrialRecord(metric=self.metric, fold_aggregation="mean", parameter_key=key).write(trial)
        for fold in range(done):
            if save:
                self.cache.save(trial_name(trial.number, fold), made_result(fold, skill, seed))
            trial.report(skill, fold)
        if done == N_FOLDS:
            self.study.tell(trial, skill)
        return self.study.get_trials()[trial.number]


@pytest.fixture
def made(workspace: Path) -> MadeStudy:
    found = MadeStudy()
    for number in range(6):
        found.add(1.3 + 0.02 * number, seed=number)
    return found


def test_a_clearly_worse_trial_is_stopped_after_its_first_fold_and_a_good_one_never(made: MadeStudy) -> None:
    pruner = RacingPruner(futility=None)
    bad = made.add(0.1, seed=50, done=1)
    verdict = pruner.judge(made.study, bad)
    assert verdict.stop and verdict.rule == "worse" and verdict.p_value <= verdict.level == 0.05 / 5
    assert pruner.prune(made.study, bad) is True
    for done in range(1, N_FOLDS):
        assert not RacingPruner().prune(made.study, made.add(1.6, seed=60 + done, done=done))


def test_in_a_plain_study_trials_are_raced_by_the_metric_of_report_folds_whatever_the_objective_returns(
    workspace: Path,
) -> None:
    params = compose([f"training.n_folds={N_FOLDS}"])

    def objective(trial: optuna.Trial) -> float:
        skill, report = trial.suggest_float("skill", 0, 3), report_folds(trial, "pr_auc")
        for fold in range(N_FOLDS):
            report.on_fold_begin(Fold(fold, (), ()), params)
            report.on_fold_end(made_result(fold, skill, seed=trial.number))
        return -skill  # the better the metric, the worse this value

    study = optuna.create_study(direction="maximize", pruner=RacingPruner(futility=None))
    for skill in (1.3, 1.35, 1.4, 0.1, 1.5, 0.1):
        study.enqueue_trial({"skill": skill})
    study.optimize(objective, n_trials=6)
    states = [trial.state for trial in study.trials]
    assert states == [*[TrialState.COMPLETE] * 3, TrialState.PRUNED, TrialState.COMPLETE, TrialState.PRUNED]
    assert [len(trial.intermediate_values) for trial in study.trials] == [5, 5, 5, 1, 5, 1]


def test_start_up_and_warm_up_are_waited_for_and_after_the_last_fold_nothing_is_stopped(made: MadeStudy) -> None:
    bad = made.add(0.1, seed=50, done=1)
    assert RacingPruner(n_startup_trials=6).prune(made.study, bad)
    assert RacingPruner(n_startup_trials=7).judge(made.study, bad).rule == "start-up"
    assert RacingPruner(n_warmup_steps=1).judge(made.study, bad).rule == "warm-up"
    second = RacingPruner(n_warmup_steps=1).judge(made.study, made.add(0.1, seed=51, done=2))
    assert second.stop and second.level == pytest.approx(0.05 / 4)
    assert RacingPruner().judge(made.study, made.add(0.0, seed=50)).rule == "last fold"
    assert RacingPruner().judge(made.study, made.add(0.0, seed=51, done=0)).rule == "no folds to compare"


def test_two_complete_trials_are_the_least(workspace: Path) -> None:
    made, pruner = MadeStudy("accuracy"), RacingPruner(n_startup_trials=0)
    made.add(1.3, seed=0)
    bad = made.add(0.0, seed=50, done=1)
    assert pruner.judge(made.study, bad).rule == "start-up"
    made.add(1.3, seed=1)
    assert pruner.judge(made.study, bad).rule != "start-up"


def test_trials_without_predictions_or_with_fewer_folds_are_passed_over(made: MadeStudy) -> None:
    pruner = RacingPruner()
    bad = made.add(0.1, seed=50, done=1)
    before = pruner.judge(made.study, bad)
    made.add(9.0, seed=70, save=False)
    made.study.add_trial(optuna.trial.create_trial(value=9.0, state=TrialState.COMPLETE))
    made.study.tell(made.add(9.0, seed=71, done=2).number, 9.0)
    assert pruner.judge(made.study, bad) == before
    unknown = made.add(0.1, seed=73, done=1, save=False)
    assert pruner.judge(made.study, unknown).rule == "no predictions"
    made.cache.save(trial_name(unknown.number, 0), made_result(0, 0.1, 73))
    assert pruner.prune(made.study, unknown)
    assert pruner.judge(optuna.create_study(), bad).rule == "no folds to compare"


def test_a_repeated_parameter_set_is_one_contender_and_no_rival_of_itself(made: MadeStudy) -> None:
    made.add(1.4, seed=6, key="same")
    bad = made.add(0.1, seed=50, done=1)
    before = RacingPruner().judge(made.study, bad)
    made.add(1.4, seed=6, key="same")
    assert RacingPruner().judge(made.study, bad) == before
    again = made.add(1.4, seed=6, done=1, key="same")
    assert RacingPruner(n_startup_trials=7).judge(made.study, again).rule == "start-up"


def test_a_loss_is_raced_downwards(workspace: Path) -> None:
    made, pruner = MadeStudy("log_loss"), RacingPruner()
    for number in range(5):
        made.add(1.3, seed=number)
    bad, good = made.add(0.1, seed=50, done=1), made.add(1.8, seed=51, done=1)
    assert pruner.prune(made.study, bad) and not pruner.prune(made.study, good)


def test_a_stated_margin_stops_what_could_win_by_less(made: MadeStudy) -> None:
    alike = made.add(1.42, seed=50, done=3)
    free, strict = RacingPruner(futility=0.05), RacingPruner(futility=0.05, margin=0.2)
    assert not free.prune(made.study, alike)
    assert strict.judge(made.study, alike).rule == "futile"
    assert not RacingPruner(futility=None, margin=0.2).prune(made.study, alike)


def test_a_p_that_no_trial_can_fall_below_is_said_once(made: MadeStudy, caplog: pytest.LogCaptureFixture) -> None:
    bad = made.add(0.0, seed=50, done=1)
    small = RacingPruner(
        p=0.004, futility=None
    )  # over four looks and one in reserve 0.0008, and 1,000 resamples give 1 / 1001
    assert [small.judge(made.study, bad).rule for _ in range(2)] == ["go on", "go on"]
    (said,) = [record.getMessage() for record in caplog.records]
    assert "p=0.004" in said and "n_resamples to 1250" in said
    assert RacingPruner(p=0.004, futility=None, n_resamples=1250).judge(made.study, bad).rule == "worse"
    assert len(caplog.records) == 1


def test_finished_folds_are_read_once(made: MadeStudy, monkeypatch: pytest.MonkeyPatch) -> None:
    read, stored = [], FoldCache.stored
    monkeypatch.setattr(FoldCache, "stored", lambda self, name: read.append(name) or stored(self, name))
    bad = made.add(0.1, seed=50, done=1)
    assert RacingPruner().judge(made.study, bad) == RacingPruner().judge(made.study, bad)
    assert len(read) == 6 * N_FOLDS + 1


def test_a_value_out_of_range_is_refused() -> None:
    wrong = {"p": (0.0, 1.0), "futility": (-0.1, 1.5), "margin": (-1.0, float("nan")), "n_resamples": (10,)}
    for name, values in {**wrong, "n_startup_trials": (-1,), "n_warmup_steps": (-1,)}.items():
        for value in values:
            with pytest.raises(ValueError, match=name):
                RacingPruner(**{name: value})
