"""Intervals, comparisons, thresholds and baselines against scikit-learn and hand-computed values."""

from __future__ import annotations

import numpy as np
import pandas as pd
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from sklearn.dummy import DummyClassifier

from evbind_lib.config.compose import compose
from evbind_lib.data.corpus import load_corpus
from evbind_lib.data.folds import make_folds
from evbind_lib.data.negatives import training_pairs, validation_pairs
from evbind_lib.evaluation.baselines import cross_validate_baseline, majority_class, words
from evbind_lib.evaluation.estimate import (
    at_threshold,
    best_threshold,
    by_criterion,
    confident_errors,
    difference,
    interval,
)
from evbind_lib.training.metrics import METRICS, compute_metrics


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


@pytest.mark.parametrize("metric", METRICS)
def test_an_interval_holds_the_metric_and_its_resamples_are_scikit_learns(metric: str) -> None:
    table = made_predictions()
    found = interval(table, metric, n_resamples=200)
    expected = compute_metrics(table["label"].to_numpy(), table["probability"].to_numpy())[metric]
    assert found.value == expected
    assert found.low < found.value < found.high
    # The first resample, drawn by hand and measured by scikit-learn.
    posts = np.unique(table["post_id"])
    times = np.random.default_rng(0).multinomial(len(posts), np.full(len(posts), 1 / len(posts)), size=1)[0]
    drawn = pd.concat([table[table["post_id"] == post] for post, n in zip(posts, times, strict=True) for _ in range(n)])
    by_hand = compute_metrics(drawn["label"].to_numpy(), drawn["probability"].to_numpy())[metric]
    one = interval(table, metric, n_resamples=1)
    assert one.low == pytest.approx(by_hand, abs=1e-12) and one.high == pytest.approx(by_hand, abs=1e-12)


def test_a_95_percent_interval_holds_the_truth_95_times_in_100() -> None:
    truth = compute_metrics(*made_predictions(20_000).pipe(lambda t: (t["label"], t["probability"])))["recall"]
    held = 0
    for seed in range(200):
        found = interval(made_predictions(80, seed=seed + 1), "recall", n_resamples=300, seed=seed)
        held += found.low <= truth <= found.high
    assert 0.89 <= held / 200 <= 0.99  # four standard errors around 0.95, and a little for few posts


def test_a_difference_is_paired_and_tells_better_from_alike() -> None:
    weak, strong = made_predictions(skill=1.0), made_predictions(skill=2.5)
    gain = difference(weak, strong, "macro_f1")
    assert gain.low > 0
    loss = difference(strong, weak, "macro_f1")
    assert (loss.value, loss.low, loss.high) == pytest.approx((-gain.value, -gain.high, -gain.low))
    shuffled = strong.sample(frac=1, random_state=1)
    assert difference(strong, shuffled, "pos_f1") == difference(strong, strong, "pos_f1")
    same = difference(strong, strong, "pos_f1")
    assert (same.value, same.low, same.high) == (0, 0, 0)
    with pytest.raises(ValueError, match="not of the same pairs"):
        difference(weak, strong.iloc[:-1], "macro_f1")


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
    assert set(errors.loc[errors["kind"] == "missed", "sentence_id"]) == set(
        table[wrong & (table["label"] == 1)]["sentence_id"]
    )
    assert len(confident_errors(table, 0.5, most=3)) == 3


def test_baselines_use_the_pairs_of_the_folds() -> None:
    params = compose()
    corpus = load_corpus(params.data)
    folds = make_folds(corpus, n_folds=3, seed=42)
    majority = cross_validate_baseline(majority_class, params, corpus, folds)
    for fold, report in zip(folds, majority.folds, strict=True):
        training = training_pairs(corpus, fold.training_groups, data=params.data, seed=42)
        validation = validation_pairs(corpus, fold.validation_groups, data=params.data, seed=42)
        dummy = DummyClassifier(strategy="prior").fit(training[["label"]], training["label"])
        expected = compute_metrics(validation["label"].to_numpy(), dummy.predict_proba(validation[["label"]])[:, 1])
        assert report.metrics == pytest.approx(expected)
        assert report.predictions["sentence_id"].tolist() == validation["sentence_id"].tolist()
    by_words = cross_validate_baseline(words, params, corpus, folds)
    assert by_words.score("macro_f1", "mean") > majority.score("macro_f1", "mean") + 0.1
    assert by_words.score("macro_f1", "mean") < 0.68  # words alone do not tell, or the sample would be too easy
