"""Comparisons, thresholds and baselines against scikit-learn and hand-computed values."""

from __future__ import annotations

from collections.abc import Iterator

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
    bootstrap,
    by_criterion,
    compare,
    confident_errors,
    resampled,
)
from evbind_lib.training.metrics import METRICS, Metric, compute_metrics


def made_predictions(n_posts: int = 40, n_pairs: int = 6, skill: float = 1.5, seed: int = 0) -> pd.DataFrame:
    """Out-of-fold predictions of a made-up model; a larger skill tells evidence better."""
    random, number = np.random.default_rng(seed), np.arange(n_posts * n_pairs)
    label = (np.random.default_rng(99).random(len(number)) < 0.3).astype(np.int8)  # the same for every seed
    score = random.normal(size=len(number)) + skill * label - skill / 2
    names = {"post_id": number // n_pairs, "sentence_id": number, "criterion_id": number % 3}
    table = pd.DataFrame({name: values.astype(str) for name, values in names.items()})
    return table.assign(fold=number % 5, label=label, probability=1 / (1 + np.exp(-score)))


def metrics_of(table: pd.DataFrame) -> dict[str, float]:
    return compute_metrics(table["label"].to_numpy(), table["probability"].to_numpy())


@pytest.fixture
def own_metrics() -> Iterator[None]:
    """Metrics of one's own: one with weights, one without, one in place of a built-in one."""
    before = dict(METRICS)
    METRICS["kappa"] = METRICS["accuracy"] = Metric(cohen_kappa_score, on="decisions")
    METRICS["brier"] = Metric(lambda labels, values: brier_score_loss(labels, values), greater_is_better=False)
    yield
    METRICS.clear()
    METRICS.update(before)


def check_resamples(metric: str) -> None:
    """Resamples are those of a table whose posts are copied as often as they were drawn; the first is the table itself."""
    table, weights = made_predictions(), np.random.default_rng(1).integers(0, 3, size=(3, 40))
    posts = np.unique(table["post_id"])
    expected = []
    for times in weights:
        copies = [table[table["post_id"] == post] for post, n in zip(posts, times, strict=True) for _ in range(n)]
        expected.append(metrics_of(pd.concat(copies))[metric])
    assert resampled(table, metric, weights) == pytest.approx(expected, abs=1e-12)
    scores = bootstrap(table, metric, n_resamples=100)
    assert scores.shape == (101,) and scores[0] == pytest.approx(metrics_of(table)[metric], abs=1e-12)
    assert scores[1:].min() < scores[0] < scores[1:].max()


@pytest.mark.parametrize("metric", METRICS)
def test_resamples_of_posts_are_scored_as_by_scikit_learn(metric: str) -> None:
    check_resamples(metric)


@pytest.mark.parametrize("metric", ["kappa", "brier", "accuracy"])
def test_a_metric_of_ones_own_is_resampled_with_and_without_weights(metric: str, own_metrics: None) -> None:
    check_resamples(metric)


@settings(max_examples=60, deadline=None)
@given(
    st.lists(
        st.tuples(st.integers(0, 3), st.integers(0, 1), st.sampled_from([0.1, 0.3, 0.5, 0.7])), min_size=4, max_size=30
    ),
    st.integers(0, 1000),
)
def test_ranks_hold_ties_posts_left_out_and_one_class_as_scikit_learns_do(
    rows: list[tuple[int, int, float]], seed: int
) -> None:
    table = pd.DataFrame(rows, columns=["post_id", "label", "probability"])
    weights = np.random.default_rng(seed).integers(0, 3, size=(5, table["post_id"].nunique()))
    for metric in ("roc_auc", "pr_auc"):
        found = resampled(table, metric, weights)
        with pytest.MonkeyPatch.context() as patch:
            patch.setitem(METRICS, metric, Metric(METRICS[metric].function))  # as if it were the user's
            assert found == pytest.approx(resampled(table, metric, weights), nan_ok=True)
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr("evbind_lib.evaluation.estimate.MOST_CELLS", 50)  # many pairs go in parts
            assert resampled(table, metric, weights) == pytest.approx(found, nan_ok=True)


def test_a_95_percent_interval_holds_the_truth_95_times_in_100() -> None:
    truth, held = metrics_of(made_predictions(20_000))["recall"], 0
    for seed in range(200):
        found = compare({"model": made_predictions(80, seed=seed + 1)}, "recall").loc["model"]
        held += found["low"] <= truth <= found["high"]
    assert 0.89 <= held / 200 <= 0.99  # four standard errors around 0.95, and a little for few posts


def test_a_difference_is_paired_and_distinguishes_better_from_alike() -> None:
    weak, strong = made_predictions(skill=1.0), made_predictions(skill=2.5)
    results, ends = (
        {"weak": weak, "strong": strong, "again": strong.sample(frac=1, random_state=1)},
        ["", "_low", "_high"],
    )
    columns = [f"difference{end}" for end in ends]
    gain = compare(results, "macro_f1").loc["strong", columns]
    assert gain["difference_low"] > 0
    turned = compare(results, "macro_f1", reference="strong")
    loss = turned.loc["weak", columns]
    assert loss.tolist() == pytest.approx([-gain["difference"], -gain["difference_high"], -gain["difference_low"]])
    assert turned.loc["again", columns].tolist() == [0, 0, 0]
    assert turned.loc["strong", columns].isna().all()


def test_results_are_compared_with_the_reference_on_the_same_pairs(corpus: Corpus) -> None:
    params = compose()
    folds = make_folds(corpus, params)
    results = {each.__name__: cross_validate_baseline(each, corpus, folds, params) for each in (majority_class, words)}
    table, predictions = results["words"].predictions, results["majority_class"].predictions
    found = compare({**results, "table": table}, "macro_f1")
    assert found.index.tolist() == ["majority_class", "words", "table"]
    assert found.loc["words", "mean_of_folds"] == results["words"].score("macro_f1", "mean")
    assert np.isnan(found.loc["table", "mean_of_folds"])
    assert found.loc["words", "low"] < found.loc["words", "pooled"] < found.loc["words", "high"]
    assert found.loc["words", "pooled"] == pytest.approx(metrics_of(table)["macro_f1"])
    assert found.loc["words", ["pairs", "evidence"]].tolist() == [len(table), table["label"].sum()]
    with pytest.raises(ParamsError, match="did you mean 'words'"):
        compare(results, "macro_f1", reference="word")
    with pytest.raises(ParamsError, match="'macro_f1'"):
        compare(results, "macro_f")
    with pytest.raises(ParamsError):
        compare({}, "macro_f1")
    with pytest.raises(DataError, match=r"data\.eval_neg_ratio"):
        compare({"all": predictions, "part": table.iloc[1:]}, "macro_f1")
    with pytest.raises(DataError, match=r"'mine'.*probability.*did you mean 'probabilities'"):
        compare({"mine": table.rename(columns={"probability": "probabilities"})}, "macro_f1")


@settings(max_examples=50, deadline=None)
@given(st.floats(0.01, 0.99), st.integers(0, 5))
def test_decisions_at_a_threshold_count_every_pair_once(threshold: float, seed: int) -> None:
    table, names = made_predictions(seed=seed), ("precision", "recall", "pos_f1")
    found, at_half, by_sklearn = at_threshold(table, threshold), at_threshold(table, 0.5), metrics_of(table)
    assert found["tp"] + found["fp"] + found["fn"] + found["tn"] == len(table)
    assert found["tp"] + found["fn"] == table["label"].sum()
    assert [at_half[name] for name in names] == pytest.approx([by_sklearn[name] for name in names])
    assert at_threshold(table, best_threshold(table))["pos_f1"] >= found["pos_f1"] - 0.02  # the grid's hundredths
    assert [at_threshold(table, 1.1)[name] for name in names] == [0, 0, 0]  # nothing is called evidence


def test_scores_by_criterion_rest_on_its_own_pairs() -> None:
    table = made_predictions()
    scores = by_criterion(table)
    assert scores["pairs"].sum() == len(table) and scores["evidence"].is_monotonic_decreasing
    assert scores.loc["1", "pr_auc"] == metrics_of(table[table["criterion_id"] == "1"])["pr_auc"]


def test_the_surest_errors_come_first() -> None:
    table = made_predictions()
    errors = confident_errors(table, 0.5, most=1000)
    wrong = (table["probability"] >= 0.5) != (table["label"] == 1)
    assert len(errors) == wrong.sum() and (errors["probability"] - 0.5).abs().is_monotonic_decreasing
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
        assert (result.n_training, result.n_validation, result.precision) == (len(training), len(validation), "fp64")
    by_words = cross_validate_baseline(words, corpus, folds, params)
    # Words alone are not enough, or the sample would be too easy.
    assert majority.score("macro_f1") + 0.1 < by_words.score("macro_f1") < 0.68
    sure = cross_validate_baseline(lambda training, pairs: pairs["label"].to_numpy(float), corpus, folds, params)
    assert sure.score("macro_f1") == 1.0 and np.isfinite(sure.predictions["logit"]).all()
