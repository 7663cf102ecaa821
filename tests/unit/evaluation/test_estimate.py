"""Intervals, comparisons, thresholds and baselines against scikit-learn and hand-computed values."""

from __future__ import annotations

import numpy as np
import pandas as pd
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from sklearn.dummy import DummyClassifier
from sklearn.metrics import brier_score_loss, cohen_kappa_score

from evbind_lib.config.compose import compose
from evbind_lib.data.corpus import Corpus
from evbind_lib.data.folds import make_folds
from evbind_lib.data.negatives import fold_pairs
from evbind_lib.errors import DataError, ParamsError
from evbind_lib.evaluation.baselines import cross_validate_baseline, majority_class, words
from evbind_lib.evaluation.estimate import (
    at_threshold,
    best_threshold,
    by_criterion,
    compare,
    confident_errors,
    difference,
    interval,
    post_weights,
    resampled,
)
from evbind_lib.training.metrics import METRICS, Metric, compute_metrics


def made_predictions(n_posts: int = 40, n_pairs: int = 6, skill: float = 1.5, seed: int = 0) -> pd.DataFrame:
    """Out-of-fold predictions of a made-up model; a larger skill tells evidence better."""
    random = np.random.default_rng(seed)
    n = n_posts * n_pairs
    label = (np.random.default_rng(99).random(n) < 0.3).astype(np.int8)  # the same for every seed
    score = random.normal(size=n) + skill * label - skill / 2
    return pd.DataFrame(
        {
            "fold": np.arange(n) % 5,
            "post_id": [f"p{number // n_pairs}" for number in range(n)],
            "sentence_id": [f"s{number}" for number in range(n)],
            "criterion_id": [f"C{number % 3}" for number in range(n)],
            "label": label,
            "probability": 1 / (1 + np.exp(-score)),
        }
    )


def by_hand(table: pd.DataFrame, metric: str, times: np.ndarray) -> float:
    """Metric of a resample whose posts are copied as often as they were drawn."""
    posts = np.unique(table["post_id"])
    drawn = pd.concat([table[table["post_id"] == post] for post, n in zip(posts, times, strict=True) for _ in range(n)])
    return METRICS[metric](drawn["label"].to_numpy(), drawn["probability"].to_numpy())


@pytest.mark.parametrize("metric", METRICS)
def test_an_interval_holds_the_metric_and_its_resamples_are_scikit_learns(metric: str) -> None:
    table = made_predictions()
    found = interval(table, metric, n_resamples=200)
    assert found.value == METRICS[metric](table["label"].to_numpy(), table["probability"].to_numpy())
    assert found.low < found.value < found.high
    weights = post_weights(table, 3, seed=0)
    expected = [by_hand(table, metric, times) for times in weights]
    assert resampled(table, metric, weights) == pytest.approx(expected, abs=1e-12)
    whole = resampled(table, metric, np.ones((1, 40), dtype=int))
    assert whole[0] == pytest.approx(found.value, abs=1e-12)


def test_a_metric_of_ones_own_is_resampled_with_and_without_weights() -> None:
    table = made_predictions()
    METRICS["kappa"] = Metric(cohen_kappa_score, on="decisions")
    METRICS["brier"] = Metric(lambda labels, values: brier_score_loss(labels, values), greater_is_better=False)
    METRICS["accuracy"], built_in = Metric(cohen_kappa_score, on="decisions"), METRICS["accuracy"]
    try:
        weights = post_weights(table, 5, seed=1)
        for name in ("kappa", "brier", "accuracy"):
            expected = [by_hand(table, name, times) for times in weights]
            assert resampled(table, name, weights) == pytest.approx(expected, abs=1e-12)
        assert interval(table, "kappa").low < interval(table, "kappa").value
        # Two hundred copies of the rows are enough for one that takes no weights.
        assert interval(table, "brier") == interval(table, "brier", n_resamples=200)
        assert interval(table, "kappa") != interval(table, "kappa", n_resamples=200)
    finally:
        METRICS["accuracy"] = built_in
        del METRICS["kappa"], METRICS["brier"]
    with pytest.raises(ParamsError, match="'macro_f1'"):
        interval(table, "macro_f")


def test_a_resample_of_one_class_has_no_rank() -> None:
    table = made_predictions(n_posts=2, n_pairs=3).assign(label=[1, 1, 1, 0, 0, 0])
    weights = np.array([[2, 0], [0, 2], [1, 1]])
    for metric in ("roc_auc", "pr_auc"):
        assert np.isnan(resampled(table, metric, weights)).tolist() == [True, True, False]


def test_a_95_percent_interval_holds_the_truth_95_times_in_100() -> None:
    truth = compute_metrics(*made_predictions(20_000).pipe(lambda t: (t["label"], t["probability"])))["recall"]
    held = 0
    for seed in range(200):
        found = interval(made_predictions(80, seed=seed + 1), "recall", n_resamples=300, seed=seed)
        held += found.low <= truth <= found.high
    assert 0.89 <= held / 200 <= 0.99  # four standard errors around 0.95, and a little for few posts


def test_a_difference_is_paired_and_distinguishes_better_from_alike() -> None:
    weak, strong = made_predictions(skill=1.0), made_predictions(skill=2.5)
    gain = difference(weak, strong, "macro_f1")
    assert gain.low > 0
    loss = difference(strong, weak, "macro_f1")
    assert (loss.value, loss.low, loss.high) == pytest.approx((-gain.value, -gain.high, -gain.low))
    shuffled = strong.sample(frac=1, random_state=1)
    same = difference(strong, shuffled, "pos_f1")
    assert (same.value, same.low, same.high) == (0, 0, 0)
    with pytest.raises(DataError, match="same pairs"):
        difference(weak, strong.iloc[:-1], "macro_f1")


def test_results_are_compared_with_the_reference_on_the_same_pairs(corpus: Corpus) -> None:
    params = compose()
    folds = make_folds(corpus, params)
    results = {
        "majority": cross_validate_baseline(majority_class, corpus, folds, params),
        "words": cross_validate_baseline(words, corpus, folds, params),
    }
    table = compare({**results, "words again": results["words"].predictions}, "macro_f1")
    assert table.index.tolist() == ["majority", "words", "words again"]
    assert table.loc["words", "mean_of_folds"] == results["words"].score("macro_f1", "mean")
    assert np.isnan(table.loc["words again", "mean_of_folds"])
    assert table.loc["majority", ["difference", "difference_low", "difference_high"]].isna().all()
    first, second = (result.predictions for result in results.values())
    pooled, gain = interval(second, "macro_f1"), difference(first, second, "macro_f1")
    found = table.loc["words", ["pooled", "low", "high", "difference", "difference_low", "difference_high"]].tolist()
    assert found == [pooled.value, pooled.low, pooled.high, gain.value, gain.low, gain.high]
    assert table.loc["words", "pairs"] == len(second) and table.loc["words", "evidence"] == second["label"].sum()
    assert (compare(results, "macro_f1", reference="words").loc["majority", "difference"]) == -gain.value
    with pytest.raises(ParamsError, match="did you mean 'words'"):
        compare(results, "macro_f1", reference="word")
    with pytest.raises(ParamsError):
        compare({}, "macro_f1")
    with pytest.raises(DataError, match=r"data\.eval_neg_ratio"):
        compare({"all": first, "part": second.iloc[1:]}, "macro_f1")
    with pytest.raises(DataError, match=r"'mine'.*probability; did you mean 'probabilities'"):
        compare({"mine": first.rename(columns={"probability": "probabilities"})}, "macro_f1")


@settings(max_examples=50, deadline=None)
@given(st.floats(0.01, 0.99), st.integers(0, 5))
def test_decisions_at_a_threshold_count_every_pair_once(threshold: float, seed: int) -> None:
    table = made_predictions(seed=seed)
    found = at_threshold(table, threshold)
    assert found["tp"] + found["fp"] + found["fn"] + found["tn"] == len(table)
    assert found["tp"] + found["fn"] == table["label"].sum()
    at_half = at_threshold(table, 0.5)
    by_sklearn = compute_metrics(table["label"].to_numpy(), table["probability"].to_numpy())
    assert {name: at_half[name] for name in ("precision", "recall", "pos_f1")} == pytest.approx(
        {name: by_sklearn[name] for name in ("precision", "recall", "pos_f1")}
    )
    assert at_threshold(table, best_threshold(table))["pos_f1"] >= found["pos_f1"] - 0.02  # the grid's hundredths


def test_where_nothing_is_called_evidence_the_scores_are_zero() -> None:
    found = at_threshold(made_predictions(), 1.1)
    assert (found["precision"], found["recall"], found["pos_f1"]) == (0.0, 0.0, 0.0)


def test_scores_by_criterion_rest_on_its_own_pairs() -> None:
    table = made_predictions()
    scores = by_criterion(table)
    assert scores["pairs"].sum() == len(table) and scores["evidence"].is_monotonic_decreasing
    part = table[table["criterion_id"] == "C1"]
    expected = compute_metrics(part["label"].to_numpy(), part["probability"].to_numpy())
    assert scores.loc["C1", "pr_auc"] == expected["pr_auc"]


def test_the_surest_errors_come_first() -> None:
    table = made_predictions()
    errors = confident_errors(table, 0.5, most=1000)
    wrong = (table["probability"] >= 0.5) != (table["label"] == 1)
    assert len(errors) == wrong.sum()
    assert (errors["probability"] - 0.5).abs().is_monotonic_decreasing
    missed = set(errors.loc[errors["kind"] == "missed", "sentence_id"])
    assert missed == set(table[wrong & (table["label"] == 1)]["sentence_id"])
    assert len(confident_errors(table, 0.5, most=3)) == 3


def test_baselines_use_the_pairs_of_the_folds(corpus: Corpus) -> None:
    params = compose(["training.n_folds=3"])
    folds = make_folds(corpus, params)
    majority = cross_validate_baseline(majority_class, corpus, folds, params)
    for fold, result in zip(folds, majority.folds, strict=True):
        training, validation = fold_pairs(corpus, fold, params)
        dummy = DummyClassifier(strategy="prior").fit(training[["label"]], training["label"])
        expected = compute_metrics(validation["label"].to_numpy(), dummy.predict_proba(validation[["label"]])[:, 1])
        assert result.metrics == pytest.approx(expected)
        assert result.predictions["sentence_id"].tolist() == validation["sentence_id"].tolist()
        assert np.isfinite(result.predictions["logit"]).all() and result.precision == "fp64"
    by_words = cross_validate_baseline(words, corpus, folds, params)
    assert by_words.score("macro_f1") > majority.score("macro_f1") + 0.1
    assert by_words.score("macro_f1") < 0.68  # words alone are not enough, or the sample would be too easy


def test_a_baseline_that_is_sure_has_a_finite_logit(corpus: Corpus) -> None:
    params = compose(["training.n_folds=2"])
    folds = make_folds(corpus, params)
    sure = cross_validate_baseline(lambda training, pairs: pairs["label"].to_numpy(float), corpus, folds, params)
    assert sure.score("macro_f1") == 1.0 and np.isfinite(sure.predictions["logit"]).all()
