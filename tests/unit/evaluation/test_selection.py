"""Corrected scores and comparisons over folds: by hand, against scipy, and on simulated searches with known truth."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy import stats

from evbind_lib.errors import ParamsError, SearchError
from evbind_lib.evaluation.selection import (
    corrected_score,
    corrected_t,
    holm,
    probability_of_practical_difference,
)

FACTOR = np.sqrt(1 / 5 + 1 / 4)


def equal_sets(seed: int, n_trials: int = 30, stopped: bool = False) -> np.ndarray:
    """Scores of truly equal sets at 0.8 in 5 folds that differ; stopped: half of the trials end early, where they look bad."""
    random = np.random.default_rng(seed)
    scores = 0.8 + 0.06 * random.standard_normal(5) + 0.035 * random.standard_normal((n_trials, 5))
    for trial in scores[5:] if stopped else ():
        for done in range(1, 5):
            if (trial[:done] - scores[:5, :done].mean(axis=0)).mean() < -0.01:
                trial[done:] = np.nan
                break
    return scores


def test_one_clearly_best_trial_keeps_its_score_and_gets_the_corrected_interval() -> None:
    best = np.array([0.91, 0.85, 0.88, 0.93, 0.90])
    found = corrected_score([best, best - 0.3, best - 0.35, best - 0.4])
    half = stats.t.ppf(0.975, 4) * best.std(ddof=1) * FACTOR
    assert (found.value, found.low, found.high) == pytest.approx((best.mean(), best.mean() - half, best.mean() + half))


def test_folds_are_scored_by_the_trials_that_the_other_folds_choose() -> None:
    # Without noise about trials and folds but for one score: the first trial is best by its luck in the last fold alone.
    lucky, better, worse = [0.70, 0.60, 0.80, 0.99], [0.75, 0.65, 0.85, 0.75], [0.40, 0.30, 0.50, 0.40]
    chosen_by_hand = np.mean([0.70, 0.60, 0.80, 0.75])  # with the last fold the first is chosen, without it the second
    many = [worse] * 200  # so many alike that the noise is all but 0, and nothing is smoothed
    assert corrected_score([lucky, better, *many]).value == pytest.approx(chosen_by_hand, abs=0.01)


def test_a_fold_that_the_chosen_trial_lacks_is_filled_in_by_its_distance_to_the_complete_ones() -> None:
    # The complete best is lucky in the third fold; the stopped trial is 0.1 above all others in the two folds that it has.
    lucky, stopped, others = [0.4, 0.5, 1.2], [0.5, 0.6, np.nan], [[0.4, 0.5, 0.6]] * 200
    filled = (200 * 0.6 + 1.2) / 201 + 0.1
    # By folds 2 and 3, and by 1 and 3, the lucky one is chosen, which is worth 0.4 and 0.5; by 1 and 2 the stopped one.
    assert corrected_score([lucky, stopped, *others]).value == pytest.approx((0.4 + 0.5 + filled) / 3)
    # Never above the reported best, 0.6, which the stopped one would end above.
    assert corrected_score([[0.4, 0.5, 0.9], stopped, [0.4, 0.5, 0.9], [0.4, 0.5, 0.9]]).value == pytest.approx(0.6)


def test_equal_sets_are_scored_without_bias_and_the_interval_holds_the_truth() -> None:
    found = [(corrected_score(scores), scores) for scores in map(equal_sets, range(300))]
    naive = np.array([scores.mean(axis=1).max() for _, scores in found])
    folds = np.array([scores.mean() for _, scores in found])  # the folds' own luck is nobody's bias
    value = np.array([each.value for each, _ in found])
    assert (naive - folds).mean() > 0.03
    assert (value - folds).mean() == pytest.approx(0, abs=0.004)
    assert np.mean([each.low <= 0.8 <= each.high for each, _ in found]) >= 0.95


def test_stopped_trials_count_and_do_not_bias_it() -> None:
    searches = [equal_sets(seed, stopped=True) for seed in range(300)]
    folds = np.array([np.nanmean(equal_sets(seed)) for seed in range(300)])
    value = np.array([corrected_score(scores).value for scores in searches])
    assert np.isnan(searches).mean() > 0.2
    assert (value - folds).mean() == pytest.approx(0, abs=0.006)


@settings(max_examples=40, deadline=None)
@given(st.integers(0, 10**6), st.integers(3, 12), st.integers(2, 6), st.booleans())
def test_it_is_never_better_than_the_best_and_a_minimised_metric_is_the_mirror(
    seed: int, n_trials: int, n_folds: int, stopped: bool
) -> None:
    random = np.random.default_rng(seed)
    scores = random.random((n_trials, n_folds))
    if stopped:
        scores[3:, -1] = np.nan
    found, mirror = corrected_score(scores), corrected_score(-scores, greater_is_better=False)
    complete = scores[np.isfinite(scores).all(axis=1)]
    assert found.low <= found.value <= min(found.high, complete.mean(axis=1).max() + 1e-12)
    assert (mirror.value, mirror.low, mirror.high) == pytest.approx((-found.value, -found.high, -found.low))
    moved = corrected_score(2 * scores + 1)
    assert (moved.value, moved.low, moved.high) == pytest.approx(
        [2 * each + 1 for each in (found.value, found.low, found.high)]
    )


def test_the_same_scores_give_the_same_digits_and_ragged_lists_are_trials_with_nan() -> None:
    scores = equal_sets(1, n_trials=6)
    scores[4, 3:] = np.nan
    scores[5] = np.nan
    ragged = [*scores[:4].tolist(), scores[4, :3].tolist(), []]
    infinite = np.where(np.isfinite(scores), scores, np.inf)
    assert corrected_score(scores) == corrected_score(ragged) == corrected_score(infinite)


@pytest.mark.parametrize(
    ("scores", "reason"),
    [
        ([], "3 trials"),
        ([[], []], "3 trials"),
        ([[0.8, 0.7], [0.8, 0.6], [0.9]], "there are 2"),
        ([[0.8]] * 9, "2 folds"),
        ([[0.8, 0.8], [0.7, 0.7], [0.6, 0.7]], "the same in every fold"),
    ],
)
def test_where_it_is_not_defined_the_reason_is_said(scores: list[list[float]], reason: str) -> None:
    with pytest.raises(SearchError, match=reason):
        corrected_score(scores)


def test_corrected_t_is_scipys_paired_t_with_the_corrected_factor() -> None:
    first, second = np.array([0.81, 0.74, 0.79, 0.85, 0.77]), np.array([0.78, 0.73, 0.70, 0.84, 0.72])
    plain = stats.ttest_rel(first, second)
    corrected = plain.statistic / (FACTOR * np.sqrt(5))
    mean, low, high, p = corrected_t(first - second)
    assert mean == pytest.approx(0.038)
    assert p == pytest.approx(2 * stats.t.sf(corrected, 4))
    inner = plain.confidence_interval(0.95)
    assert (high - low) / (inner.high - inner.low) == pytest.approx(1.5)  # sqrt(5 (1/5 + 1/4)) = sqrt(2.25)


def test_corrected_t_by_hand() -> None:
    # Differences 1, 2, 3: mean 2, standard deviation 1, error sqrt(1/3 + 1/2); t with 2 degrees has a closed form.
    t = 2 / np.sqrt(5 / 6)
    assert corrected_t([1, 2, 3])[3] == pytest.approx(1 - t / np.sqrt(2 + t**2))
    assert corrected_t([0.1, 0.1]) == (0.1, 0.1, 0.1, 0.0)
    assert corrected_t([0, 0, 0])[3] == 1.0


def test_the_probability_of_a_practical_difference_is_that_of_the_correlated_t_test() -> None:
    differences, rope = np.array([0.03, 0.01, 0.09, 0.01, 0.05]), 0.01
    rho = 1 / 5  # as in Benavoli et al. 2017: scale sd * sqrt(1/n + rho / (1 - rho)), n - 1 degrees
    posterior = stats.t(4, 0.038, differences.std(ddof=1) * np.sqrt(1 / 5 + rho / (1 - rho)))
    expected = (posterior.cdf(-rope), posterior.cdf(rope) - posterior.cdf(-rope), posterior.sf(rope))
    assert probability_of_practical_difference(differences, rope) == pytest.approx(expected)
    worse, equal, better = probability_of_practical_difference(differences, 0)
    assert (equal, worse) == pytest.approx((0, corrected_t(differences)[3] / 2))
    assert worse + equal + better == pytest.approx(1)
    assert probability_of_practical_difference([0.02, 0.02], 0.01) == (0, 0, 1)
    assert probability_of_practical_difference([0.01, 0.01], 0.01) == (0, 1, 0)


def test_a_difference_without_practice_is_not_below_0() -> None:
    with pytest.raises(ParamsError, match="rope"):
        probability_of_practical_difference([0.1, 0.2], -0.1)


def test_holm_by_hand() -> None:
    # Sorted 0.01, 0.02, 0.03, 0.04 times 4, 3, 2, 1: 0.04, 0.06, 0.06, 0.04; the last is raised to those before it.
    assert holm([0.04, 0.01, 0.03, 0.02]) == pytest.approx([0.06, 0.04, 0.06, 0.06])
    assert holm([0.5, 0.9]) == pytest.approx([1, 1])
    assert holm([np.nan, 0.01, 0.04]) == pytest.approx(
        [np.nan, 0.02, 0.04], nan_ok=True
    )  # the reference's row has none
    assert holm([]).shape == (0,)


def test_equal_sets_are_told_apart_in_fewer_than_one_comparison_of_twenty() -> None:
    random = np.random.default_rng(0)
    p = [corrected_t(0.05 * random.standard_normal(5))[3] for _ in range(1500)]
    assert np.mean(np.array(p) < 0.05) < 0.05
