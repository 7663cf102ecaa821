"""Metrics agree with hand-made counts and with scikit-learn; odd input is refused; one's own is a metric like the others."""

from __future__ import annotations

import math
from collections.abc import Iterator

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from sklearn import metrics as scores

from evbind_lib.errors import ParamsError
from evbind_lib.training.metrics import METRICS, Metric, aggregate, compute_metrics
from evbind_lib.training.probabilities import log_losses, probabilities_of

PREDICTIONS = st.lists(
    st.tuples(st.integers(0, 1), st.floats(0, 1, allow_nan=False, width=32)), min_size=1, max_size=40
)
RANKING = ("roc_auc", "pr_auc")


def test_metrics_by_hand() -> None:
    # 2 true positives, 1 false positive, 1 false negative, 2 true negatives.
    found = compute_metrics(np.array([1, 1, 1, 0, 0, 0]), np.array([0.9, 0.5, 0.2, 0.8, 0.3, 0.1]))
    two_thirds = pytest.approx(2 / 3)
    assert found["precision"] == found["recall"] == found["pos_f1"] == found["macro_f1"] == two_thirds
    assert found["accuracy"] == two_thirds
    assert found["roc_auc"] == pytest.approx(6 / 9)  # of 9 (evidence, none) pairs, 3 are ranked wrongly
    assert found["pr_auc"] == pytest.approx((1 / 1 + 2 / 3 + 3 / 5) / 3)
    truth = [0.9, 0.5, 0.2, 1 - 0.8, 1 - 0.3, 1 - 0.1]  # what was given to the true answers
    assert found["log_loss"] == pytest.approx(-sum(map(math.log, truth)) / 6)


def test_one_half_is_called_evidence_and_less_is_not() -> None:
    assert compute_metrics(np.array([1]), np.array([0.5]))["recall"] == 1
    assert compute_metrics(np.array([1]), np.array([np.nextafter(0.5, 0)]))["recall"] == 0
    below = probabilities_of(np.array([-1e-9], dtype=np.float32))
    assert compute_metrics(np.array([1]), below)["recall"] == 0  # a logit below 0 never rounds up to evidence


@given(PREDICTIONS)
def test_every_metric_is_scikit_learns(rows: list[tuple[int, float]]) -> None:
    labels, probabilities = np.array([row[0] for row in rows]), np.array([row[1] for row in rows])
    called = [int(probability >= 0.5) for probability in probabilities]
    found = compute_metrics(labels, probabilities)
    precision, recall, f1, _ = scores.precision_recall_fscore_support(labels, called, labels=[0, 1], zero_division=0)
    assert found["accuracy"] == pytest.approx(np.mean(labels == called))
    assert (found["precision"], found["recall"], found["pos_f1"]) == pytest.approx((precision[1], recall[1], f1[1]))
    assert found["macro_f1"] == pytest.approx((f1[0] + f1[1]) / 2)
    assert found["log_loss"] == pytest.approx(scores.log_loss(labels, probabilities, labels=[0, 1]), rel=1e-6, abs=1e-7)
    assert found["specificity"] == pytest.approx(recall[0])
    assert found["balanced_accuracy"] == pytest.approx(recall[np.unique(labels)].mean())
    assert found["matthews"] == pytest.approx(scores.matthews_corrcoef(labels, called))
    assert found["brier"] == pytest.approx(np.mean((labels - probabilities) ** 2))
    if len(set(labels)) == 2:
        assert found["roc_auc"] == pytest.approx(scores.roc_auc_score(labels, probabilities))
        assert found["pr_auc"] == pytest.approx(scores.average_precision_score(labels, probabilities))
    else:
        assert all(math.isnan(found[name]) for name in RANKING)


@given(PREDICTIONS)
def test_metrics_that_rank_depend_on_the_order_alone(rows: list[tuple[int, float]]) -> None:
    labels, probabilities = np.array([row[0] for row in rows]), np.array([row[1] for row in rows])
    ranks = np.unique(probabilities, return_inverse=True)[1] / (2 * len(rows))  # all below one half
    before, after = compute_metrics(labels, probabilities), compute_metrics(labels, ranks)
    for name in RANKING:
        assert before[name] == pytest.approx(after[name], nan_ok=True)


@pytest.fixture
def kappa() -> Iterator[None]:
    METRICS["kappa"] = Metric(scores.cohen_kappa_score, on="decisions")
    yield
    del METRICS["kappa"]


def test_a_metric_of_ones_own_is_computed_with_the_others(kappa: None) -> None:
    labels, probabilities = np.array([1, 1, 0, 0, 1]), np.array([0.9, 0.4, 0.2, 0.6, 0.8])
    expected = scores.cohen_kappa_score(labels, [1, 0, 0, 1, 1])
    assert compute_metrics(labels, probabilities)["kappa"] == pytest.approx(expected)
    assert list(METRICS.additions()) == ["kappa"]


def test_every_metric_is_described_and_an_unknown_one_is_refused_with_the_nearest() -> None:
    assert list(compute_metrics(np.array([0, 1]), np.array([0.1, 0.9]))) == list(METRICS)
    assert all(metric.description for metric in METRICS.values())
    assert [name for name, metric in METRICS.items() if not metric.greater_is_better] == ["log_loss", "brier"]
    with pytest.raises(ParamsError, match=r"hpo\.metric\.name=macro_fi.*'macro_f1'"):
        METRICS["macro_fi"]


def test_sure_and_wrong_costs_a_finite_loss() -> None:
    assert log_losses(np.array([1, 0]), np.array([0.0, 1.0])) == pytest.approx([36.0436533] * 2)
    assert log_losses(np.array([0]), np.array([0])) == pytest.approx([0.0], abs=1e-15)
    assert math.isfinite(compute_metrics(np.array([1]), np.array([0.0]))["log_loss"])  # of one class too


def test_input_that_cannot_be_scored_is_refused() -> None:
    nan = float("nan")
    for labels, probabilities in (
        ([0, 1], [0.5]),
        ([[0], [1]], [[0.5], [0.5]]),
        ([], []),
        ([0, 2], [0.5, 0.5]),
        ([0, 1], [0.5, nan]),
        ([0, 1], [0.5, 1.5]),
    ):
        with pytest.raises(ValueError, match="must be"):
            compute_metrics(np.array(labels), np.array(probabilities))


def test_aggregation() -> None:
    values = [0.1, 0.2, 0.6, 0.3]
    assert [aggregate(values, how) for how in ("mean", "median", "min", "max")] == pytest.approx([0.3, 0.25, 0.1, 0.6])
    assert math.isnan(aggregate([0.1, float("nan")], "mean"))
    for wrong, how in ((values, "meen"), ([], "mean")):
        with pytest.raises(ValueError, match="cannot aggregate"):
            aggregate(wrong, how)
