"""The racing pruner: its statistics against hand-computed values and scikit-learn, and its decisions on kept predictions."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import numpy as np
import optuna
import pandas as pd
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from optuna.trial import FrozenTrial, TrialState
from scipy.stats import linregress, wilcoxon
from scipy.stats import t as student
from sklearn import metrics as scores

from evbind_lib.evaluation.estimate import resampled
from evbind_lib.hpo.objective import ReportFolds
from evbind_lib.hpo.racing.pruner import RacingPruner
from evbind_lib.hpo.racing.races import chance_within_a_fold, judge, null_differences, predicted_finals, predicted_fold
from evbind_lib.hpo.racing.spread import (
    FoldScore,
    peers_of,
    post_mean_square,
    residual_mean_square,
    score_fold,
    training_shape,
)
from evbind_lib.training.cache import FoldCache
from evbind_lib.training.metrics import compute_metrics
from evbind_lib.training.result import EpochResult, FoldResult

N_FOLDS = 5


def made_fold(fold: int, skill: float, seed: int, n_posts: int = 30, n_pairs: int = 6) -> pd.DataFrame:
    """Predictions of a made-up model for the pairs of a fold, which are the same for every model."""
    pairs, own = np.random.default_rng([7, fold]), np.random.default_rng([seed, fold])
    n = n_posts * n_pairs
    label = (pairs.random(n) < 0.3).astype(np.int8)
    hard = pairs.standard_normal(n)
    score = skill * (2 * label - 1) + hard + 0.3 * own.standard_normal(n)
    return pd.DataFrame(
        {
            "fold": np.int8(fold),
            "post_id": [f"p{fold}_{number // n_pairs}" for number in range(n)],
            "sentence_id": [f"s{fold}_{number}" for number in range(n)],
            "criterion_id": "C1",
            "label": label,
            "probability": (1 / (1 + np.exp(-score))).astype(np.float32),
        }
    )


def made_trial(skill: float, seed: int, metric: str = "macro_f1", n_folds: int = N_FOLDS) -> list[FoldScore]:
    return [score_fold(made_fold(fold, skill, seed), metric, fold=fold, n_resamples=300) for fold in range(n_folds)]


@pytest.mark.parametrize(
    "metric", ["macro_f1", "pos_f1", "accuracy", "precision", "recall", "roc_auc", "pr_auc", "log_loss"]
)
def test_a_resample_is_scikit_learns_metric_with_weights(metric: str) -> None:
    table = made_fold(0, 0.7, seed=1)
    table["probability"] = table["probability"].round(1).clip(0.05, 0.95)  # ranks are shared
    posts = np.unique(table["post_id"], return_inverse=True)[1]
    weights = np.random.default_rng(3).multinomial(30, np.full(30, 1 / 30), size=20)
    label, probability = table["label"].to_numpy(), table["probability"].to_numpy()
    called = (probability >= 0.5).astype(int)
    by_sklearn = {
        "accuracy": lambda w: scores.accuracy_score(label, called, sample_weight=w),
        "macro_f1": lambda w: scores.f1_score(label, called, average="macro", sample_weight=w),
        "pos_f1": lambda w: scores.f1_score(label, called, sample_weight=w),
        "precision": lambda w: scores.precision_score(label, called, sample_weight=w),
        "recall": lambda w: scores.recall_score(label, called, sample_weight=w),
        "roc_auc": lambda w: scores.roc_auc_score(label, probability, sample_weight=w),
        "pr_auc": lambda w: scores.average_precision_score(label, probability, sample_weight=w),
        "log_loss": lambda w: scores.log_loss(label, probability, sample_weight=w),
    }[metric]
    expected = [by_sklearn(row[posts]) for row in weights]
    assert resampled(table, metric, weights) == pytest.approx(expected, abs=1e-6)
    ones = np.ones((1, 30), dtype=int)
    assert resampled(table, metric, ones)[0] == pytest.approx(compute_metrics(label, probability)[metric])


@settings(max_examples=60, deadline=None)
@given(
    st.lists(
        st.tuples(st.integers(0, 3), st.integers(0, 1), st.sampled_from([0.1, 0.3, 0.5, 0.7])), min_size=4, max_size=30
    ),
    st.integers(0, 1000),
)
def test_ranked_metrics_equal_scikit_learns_on_any_pairs(rows: list[tuple[int, int, float]], seed: int) -> None:
    table = pd.DataFrame(rows, columns=["post_id", "label", "probability"])
    posts = np.unique(table["post_id"].astype(str), return_inverse=True)[1]
    weights = np.random.default_rng(seed).integers(0, 3, size=(3, posts.max() + 1))
    label, probability = table["label"].to_numpy(), table["probability"].to_numpy()
    scorers = {"roc_auc": scores.roc_auc_score, "pr_auc": scores.average_precision_score}
    for metric, scorer in scorers.items():
        found = resampled(table, metric, weights)
        for value, row in zip(found, weights, strict=True):
            times = row[posts]
            if len(np.unique(label[times > 0])) < 2:
                assert np.isnan(value)
            else:
                assert value == pytest.approx(scorer(label, probability, sample_weight=times))


def test_many_pairs_are_resampled_in_parts(monkeypatch: pytest.MonkeyPatch) -> None:
    table, weights = made_fold(0, 1.0, seed=1), np.random.default_rng(0).integers(0, 3, size=(50, 30))
    whole = resampled(table, "pr_auc", weights)
    monkeypatch.setattr("evbind_lib.evaluation.estimate.MOST_CELLS", 1000)
    assert resampled(table, "pr_auc", weights) == pytest.approx(whole, abs=1e-12)


def test_noise_of_posts_has_the_variance_of_a_mean() -> None:
    # One pair a post: accuracy is a mean of independent outcomes, its variance is that of a sample divided by n.
    table = made_fold(0, 0.5, seed=2, n_posts=60, n_pairs=1)
    right = (table["probability"] >= 0.5) == (table["label"] == 1)
    score = score_fold(table, "accuracy", fold=0, n_resamples=20_000)
    assert score.value == pytest.approx(right.mean())
    assert score.noise.mean() == pytest.approx(0, abs=1e-12)
    assert score.noise.var() == pytest.approx(right.astype(float).var(ddof=1) / 60, rel=0.04)
    assert score.pairs == (60, 60, table["label"].sum())


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


def test_what_trials_share_in_a_resample_is_no_spread() -> None:
    random = np.random.default_rng(0)
    shared, own = random.normal(size=(1, 5, 4000)), random.normal(size=(8, 5, 4000))
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
    alone = null_differences(noise[0, :2], noise[1:2], profile, none, shape, "mean")
    assert alone == pytest.approx(noise[0, :2].mean(axis=0) - noise[1, :2].mean(axis=0))
    chosen = null_differences(noise[0, :2], noise[1:], profile, none, shape, "mean")
    # The mean of the largest of 20 normal numbers is 1.867; of means over five folds, 1.867 / sqrt(5).
    assert chosen.mean() == pytest.approx(-1.867 / np.sqrt(5), abs=0.05)
    trained = null_differences(noise[0, :2], noise[1:2], profile, none + 2, random.normal(size=500), "mean")
    assert trained.var() == pytest.approx(1 + 2**2, rel=0.15)  # (1 + 4) / 2 for each of the two


def test_a_final_score_is_predicted_as_students_t() -> None:
    peers = np.array([[0.5, 0.6, 0.7, 0.6], [0.6, 0.7, 0.8, 0.7]])
    finals = predicted_finals(np.array([0.65, 0.75]), peers, 0.01, 3, "mean", 200_000)
    # Distances to the peers' means are 0.1 and 0.1, so 0.85 and 0.75 are expected ahead.
    assert np.median(finals) == pytest.approx((0.65 + 0.75 + 0.85 + 0.75) / 4, abs=0.002)
    scale = np.sqrt(0.01 * 1.5 * (1 / 2 + 1 / 2) * (2 / 4) ** 2)
    for share in (0.1, 0.25, 0.9):
        assert np.quantile(finals, share) == pytest.approx(0.75 + scale * student(3).ppf(share), abs=0.004)
    assert predicted_finals(np.array([0.2, 0.9]), peers, 1e-12, 3, "min", 100) == pytest.approx(0.2)


def turned(folds: Sequence[FoldScore]) -> list[FoldScore]:
    return [FoldScore(-fold.value, -fold.noise, fold.losses, fold.pairs) for fold in folds]


@pytest.mark.parametrize("aggregation", ["mean", "median", "min", "max"])
def test_minimizing_the_negative_is_maximizing(aggregation: str) -> None:
    complete = [made_trial(1.0 + 0.1 * number, seed=number) for number in range(6)]
    candidate = made_trial(0.9, seed=99)[:2]
    up = judge(candidate, complete, aggregation=aggregation)
    opposite = {"min": "max", "max": "min"}.get(aggregation, aggregation)
    down = judge(turned(candidate), [turned(folds) for folds in complete], aggregation=opposite, direction="minimize")
    assert (up.p_value, up.chance, up.stop) == (down.p_value, down.chance, down.stop)
    assert up.difference == -down.difference


@settings(max_examples=25, deadline=None)
@given(st.permutations(range(6)), st.floats(-0.3, 0.3), st.floats(0, 0.1))
def test_verdicts_do_not_depend_on_order_or_level_and_fall_with_the_score(
    order: list[int], shift: float, less: float
) -> None:
    complete = [made_trial(1.0 + 0.1 * number, seed=number) for number in range(6)]
    candidate = made_trial(0.9, seed=99)[:2]
    plain = judge(candidate, complete)

    def moved(folds: Sequence[FoldScore], by: float) -> list[FoldScore]:
        return [FoldScore(fold.value + by, fold.noise, None, fold.pairs) for fold in folds]

    along = judge(moved(candidate, shift), [moved(folds, shift) for folds in complete])
    assert along.p_value == pytest.approx(plain.p_value, abs=0.01)
    assert along.chance == pytest.approx(plain.chance, abs=0.01)
    # The draws of training belong to places, so another order draws others.
    mixed = judge(candidate, [complete[number] for number in order])
    assert mixed.p_value == pytest.approx(plain.p_value, abs=0.08) and mixed.chance == pytest.approx(
        plain.chance, abs=0.01
    )
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
            return [FoldScore(float(v), row[1:], None, (1, 1, 1)) for v, row in zip(values, noise, strict=True)]

        complete, candidate = [trial() for _ in range(10)], trial()
        stopped += any(judge(candidate[:done], complete, p=p, futility=None).stop for done in range(1, N_FOLDS))
    assert stopped / n_searches <= p + 3 * np.sqrt(p * (1 - p) / n_searches)


def test_trials_that_all_call_nothing_evidence_do_not_make_a_first_try_look_hopeless() -> None:
    # The complete trials never vary; this one does, as its posts show.
    still = [[FoldScore(0.43, np.zeros(300), None, (1, 1, 1)) for _ in range(N_FOLDS)] for _ in range(5)]
    lively = FoldScore(0.42, 0.05 * np.random.default_rng(0).standard_normal(300), None, (1, 1, 1))
    assert judge([lively], still).rule == "go on"
    assert judge([FoldScore(0.42, np.zeros(300), None, (1, 1, 1))], still).stop


def test_log_loss_is_tested_by_signed_ranks() -> None:
    complete = [made_trial(1.0, seed=number, metric="log_loss") for number in range(4)]
    candidate = made_trial(0.9, seed=99, metric="log_loss")[:2]
    found = judge(candidate, complete, direction="minimize", ranks=True)
    best = min(complete, key=lambda folds: np.mean([fold.value for fold in folds]))

    def post_means(seed_folds: list[FoldScore]) -> np.ndarray:
        return np.concatenate([fold.losses for fold in seed_folds if fold.losses is not None])

    by_hand = wilcoxon(post_means(candidate), post_means(best[:2]), alternative="greater", zero_method="zsplit").pvalue
    assert found.p_value == pytest.approx(min(1, by_hand * found.n_contenders))
    assert found.difference > 0  # a loss above the best one's, in its own sign
    table = made_fold(0, 0.9, 99)
    label, probability = table["label"].to_numpy(), table["probability"].to_numpy()
    assert candidate[0].value == pytest.approx(scores.log_loss(label, probability), rel=1e-5)


def with_course(folds: list[FoldScore], half: float) -> list[FoldScore]:
    """A trial that was at some part of its final score after half of each fold's training."""
    return [replace(fold, course=((0.5, half * fold.value), (1.0, fold.value))) for fold in folds]


def test_a_folds_end_is_predicted_by_regression_on_the_same_share_of_training() -> None:
    random = np.random.default_rng(5)
    complete = [with_course(made_trial(skill, seed), 1.0) for seed, skill in enumerate((0.4, 0.8, 1.2))]
    then = np.array([fold.value for folds in complete for fold in folds]) + 0.05 * random.standard_normal(15)
    scattered = iter(then)
    complete = [[replace(f, course=((0.5, next(scattered)), (1.0, f.value))) for f in folds] for folds in complete]
    end = np.array([fold.value for folds in complete for fold in folds])
    draws = predicted_fold(0.6, 0.5, complete, 40_000)
    assert draws is not None
    line = linregress(then, end)
    left = end - line.intercept - line.slope * then
    error = np.sqrt((left**2).sum() / 13 * (1 + 1 / 15 + (0.6 - then.mean()) ** 2 / ((then - then.mean()) ** 2).sum()))
    expected = line.intercept + line.slope * 0.6 + error * student(13).ppf([0.1, 0.5, 0.9])
    assert np.quantile(draws, [0.1, 0.5, 0.9]) == pytest.approx(expected, abs=error / 20)


def test_within_a_fold_the_hopeless_are_told_from_the_hopeful_and_nothing_is_told_without_courses() -> None:
    complete = [with_course(made_trial(0.6 + 0.2 * number, seed=number), 0.8) for number in range(5)]
    best = max(np.mean([fold.value for fold in folds]) for folds in complete)
    assert (
        chance_within_a_fold([], 0.5 * best, 0.5, complete) < 0.1 < chance_within_a_fold([], 0.85 * best, 0.5, complete)
    )
    assert chance_within_a_fold(made_trial(1.6, seed=9)[:2], 0.8, 0.5, complete) > 0.5
    assert chance_within_a_fold([], 0.1, 0.5, [made_trial(0.8, seed=number) for number in range(5)]) == 1.0
    upside_down = [
        [replace(f, value=-f.value, course=tuple((s, -v) for s, v in f.course)) for f in t] for t in complete
    ]
    for score in (0.6, 0.8):
        turned = chance_within_a_fold([], -score * best, 0.5, upside_down, direction="minimize")
        assert turned == pytest.approx(chance_within_a_fold([], score * best, 0.5, complete), abs=0.05)


def test_courses_that_are_all_alike_do_not_make_a_fold_look_hopeless() -> None:
    # Trials that call nothing evidence, from the first epoch to the last, say nothing of one that has not learned yet, or has.
    still = [[FoldScore(0.43, np.zeros(300), None, (1, 1, 1), ((0.5, 0.43), (1.0, 0.43)))] * N_FOLDS for _ in range(3)]
    assert chance_within_a_fold([], 0.43, 0.5, still) == chance_within_a_fold([], 0.7, 0.5, still) == 1.0
    # Nor do they where all stood at one score, this one does not, and their ends differ.
    late = [[replace(fold, value=value) for fold in still[0]] for value in (0.5, 0.6, 0.7)]
    assert chance_within_a_fold([], 0.6, 0.5, late) == 1.0
    assert chance_within_a_fold([], 0.43, 0.5, late) < 0.5


# The pruner in a study: predictions are kept as a search keeps them, and trials are told to Optuna.


class MadeStudy:
    """An in-memory study whose trials have kept predictions."""

    def __init__(self, metric: str = "macro_f1", direction: str = "maximize") -> None:
        self.study = optuna.create_study(direction=direction, study_name=f"made {metric} {direction}")
        identity = {"metric": metric, "fold_aggregation": "mean", "n_folds": N_FOLDS, "direction": direction}
        self.study.set_user_attr("identity", identity)
        self.kept, self.metric = FoldCache(self.study.study_name), metric

    def course(self, table: pd.DataFrame, fold: int) -> tuple[EpochResult, ...]:
        """Half of the fold's training brings four fifths of its score."""
        score = compute_metrics(table["label"].to_numpy(), table["probability"].to_numpy())[self.metric]
        return tuple(
            EpochResult(fold, epoch, 1.0, {self.metric: part * score}, 1.0, epoch / 2)
            for epoch, part in ((1, 0.8), (2, 1.0))
        )

    def add(self, skill: float, seed: int, done: int = N_FOLDS, *, keep: bool = True) -> FrozenTrial:
        """Report folds of a made-up trial, complete it where all are done, and give it as a pruner would see it."""
        trial = self.study.ask()
        trial.set_user_attr("parameter_key", f"key{seed}")
        for fold in range(done):
            table = made_fold(fold, skill, seed)
            if keep:
                self.kept.keep(
                    f"key{seed}", FoldResult(fold, {}, self.course(table, fold), table, 1.0, 1, len(table), 0.0)
                )
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


def test_with_epochs_a_trial_is_stopped_within_its_fold_by_the_futility_rule_alone(made: MadeStudy) -> None:
    def begun(epochs: bool) -> tuple[optuna.Trial, ReportFolds]:
        made.study.pruner = RacingPruner(epochs=epochs)
        trial = made.study.ask()
        trial.set_user_attr("parameter_key", f"key{trial.number}")
        return trial, ReportFolds(trial, metric="macro_f1", aggregation="mean", n_folds=N_FOLDS)

    hopeless, hopeful = (EpochResult(0, 1, 1.0, {"macro_f1": score}, 1.0, 0.5) for score in (0.2, 0.75))
    trial, report = begun(epochs=True)
    report.on_epoch_end(hopeful)
    report.on_epoch_end(replace(hopeless, share=1.0))  # the fold's own look follows at once
    report.on_epoch_end(replace(hopeless, share=None))
    with pytest.raises(optuna.TrialPruned):
        report.on_epoch_end(hopeless)
    assert trial.user_attrs["stopped_within_fold"] == {"fold": 1, "epoch": 1}
    begun(epochs=False)[1].on_epoch_end(hopeless)
    with pytest.raises(ValueError, match="futility must not be null"):
        RacingPruner(epochs=True, futility=None)


def test_after_the_last_fold_nothing_is_stopped(made: MadeStudy) -> None:
    verdict = RacingPruner().judge(made.study, made.add(0.0, seed=50))
    assert (verdict.stop, verdict.rule) == (False, "last fold")
    assert RacingPruner().judge(made.study, made.add(0.0, seed=51, done=0)).rule == "no folds to compare"


def test_start_up_and_warm_up_are_waited_for(made: MadeStudy) -> None:
    bad = made.add(0.1, seed=50, done=1)
    assert RacingPruner(n_startup_trials=6).prune(made.study, bad)
    assert RacingPruner(n_startup_trials=7).judge(made.study, bad).rule == "start-up"
    assert RacingPruner(n_warmup_steps=1).judge(made.study, bad).rule == "warm-up"
    second = RacingPruner(n_warmup_steps=1).judge(made.study, made.add(0.1, seed=51, done=2))
    assert second.stop and second.level == pytest.approx(0.05 / 4)


def test_two_complete_trials_are_the_least(workspace: Path) -> None:
    made, pruner = MadeStudy(), RacingPruner(n_startup_trials=0)
    made.add(1.3, seed=0)
    bad = made.add(0.0, seed=50, done=1)
    assert pruner.judge(made.study, bad).rule == "start-up"
    made.add(1.3, seed=1)
    assert pruner.judge(made.study, bad).rule != "start-up"


def test_trials_without_predictions_are_passed_over(made: MadeStudy) -> None:
    pruner = RacingPruner()
    bad = made.add(0.1, seed=50, done=1)
    before = pruner.judge(made.study, bad)
    made.add(9.0, seed=70, keep=False)
    made.study.add_trial(optuna.trial.create_trial(value=9.0, state=TrialState.COMPLETE))
    assert pruner.judge(made.study, bad) == before
    unknown = made.add(0.1, seed=71, done=1, keep=False)
    assert pruner.judge(made.study, unknown).rule == "no predictions"
    made.study.set_user_attr("identity", None)
    assert not pruner.prune(made.study, bad)


def test_a_repeated_parameter_set_is_one_contender_and_no_rival_of_itself(made: MadeStudy) -> None:
    bad = made.add(0.1, seed=50, done=1)
    before = RacingPruner().judge(made.study, bad)
    made.add(1.4, seed=5)  # the key of one that is complete
    assert RacingPruner().judge(made.study, bad) == before
    again = made.add(1.4, seed=5, done=1)
    assert RacingPruner(n_startup_trials=6).judge(made.study, again).rule == "start-up"


def test_a_loss_is_raced_downwards(workspace: Path) -> None:
    made = MadeStudy("log_loss", "minimize")
    for number in range(5):
        made.add(1.3, seed=number)
    bad, good = made.add(0.1, seed=50, done=1), made.add(1.8, seed=51, done=1)
    for test in ("auto", "bootstrap", "signed_rank"):
        pruner = RacingPruner(test=test)  # type: ignore[arg-type]
        assert pruner.prune(made.study, bad) and not pruner.prune(made.study, good)


def test_a_stated_margin_stops_what_could_win_by_less(made: MadeStudy) -> None:
    alike = made.add(1.42, seed=50, done=3)
    free, strict = RacingPruner(futility=0.05), RacingPruner(futility=0.05, margin=0.2)
    assert not free.prune(made.study, alike)
    assert strict.judge(made.study, alike).rule == "futile"
    assert not RacingPruner(futility=None, margin=0.2).prune(made.study, alike)


def test_finished_folds_are_read_once(made: MadeStudy, monkeypatch: pytest.MonkeyPatch) -> None:
    pruner, bad = RacingPruner(), made.add(0.1, seed=50, done=1)
    first = pruner.judge(made.study, bad)
    monkeypatch.setattr(FoldCache, "load", lambda *_: None)
    assert pruner.judge(made.study, bad) == first


def test_what_is_kept_in_memory_is_bounded(made: MadeStudy, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("evbind_lib.hpo.racing.pruner.MOST_BYTES", 8 * 1000 * 10)
    pruner, bad = RacingPruner(), made.add(0.1, seed=50, done=1)
    assert pruner.judge(made.study, bad) == RacingPruner().judge(made.study, bad)
    assert len(pruner._scores) == 10


@pytest.mark.parametrize(
    "options",
    [
        {"p": 0.0},
        {"p": 1.0},
        {"futility": -0.1},
        {"futility": 1.5},
        {"margin": -1.0},
        {"margin": float("nan")},
        {"n_startup_trials": -1},
        {"n_warmup_steps": -1},
        {"n_resamples": 10},
        {"test": "t"},
    ],
)
def test_a_value_out_of_range_is_refused(options: dict[str, object]) -> None:
    with pytest.raises(ValueError, match=next(iter(options))):
        RacingPruner(**options)  # type: ignore[arg-type]
