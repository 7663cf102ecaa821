"""Metrics of evidence binding by scikit-learn, and their aggregation over folds.

Imports nothing of the library; `training` and everything above may import it.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

import numpy as np
from sklearn import metrics as sklearn_metrics

THRESHOLD = 0.5

# What each metric tells, for tables and captions.
METRICS = {
    "accuracy": "share of pairs decided rightly; high by itself where evidence is rare",
    "macro_f1": "mean of the F1 of evidence and the F1 of no evidence",
    "pos_f1": "F1 of evidence: harmonic mean of precision and recall",
    "precision": "share of pairs called evidence that are",
    "recall": "share of evidence that is found",
    "roc_auc": "chance that evidence is ranked above no evidence; no threshold",
    "pr_auc": "average precision over all recalls; no threshold",
}

AGGREGATIONS: dict[str, Callable[..., float]] = {"mean": np.mean, "median": np.median, "min": np.min, "max": np.max}


def compute_metrics(labels: np.ndarray, probabilities: np.ndarray) -> dict[str, float]:
    """All metrics of one set of predictions.

    Parameters
    ----------
    labels : ndarray of int, shape (n,)
        1 is evidence, 0 is not.
    probabilities : ndarray of float, shape (n,)
        P(evidence); from 0.5 on a pair is called evidence.

    Returns
    -------
    dict of str to float
        By the names of `METRICS`. ``roc_auc`` and ``pr_auc`` are NaN where only one class occurs.

    Raises
    ------
    ValueError
        When the two differ in length or are empty.
    """
    labels, probabilities = np.asarray(labels), np.asarray(probabilities)
    if labels.shape != probabilities.shape or labels.size == 0:
        raise ValueError(f"labels {labels.shape} and probabilities {probabilities.shape} must be alike and not empty")
    called = (probabilities >= THRESHOLD).astype(int)
    both = 0 < labels.sum() < len(labels)
    return {
        "accuracy": float(sklearn_metrics.accuracy_score(labels, called)),
        "macro_f1": float(sklearn_metrics.f1_score(labels, called, average="macro", labels=[0, 1], zero_division=0)),
        "pos_f1": float(sklearn_metrics.f1_score(labels, called, zero_division=0)),
        "precision": float(sklearn_metrics.precision_score(labels, called, zero_division=0)),
        "recall": float(sklearn_metrics.recall_score(labels, called, zero_division=0)),
        "roc_auc": float(sklearn_metrics.roc_auc_score(labels, probabilities)) if both else float("nan"),
        "pr_auc": float(sklearn_metrics.average_precision_score(labels, probabilities)) if both else float("nan"),
    }


def aggregate(values: Sequence[float], how: str) -> float:
    """Draw per-fold values together.

    Parameters
    ----------
    values : sequence of float
    how : str
        ``mean``, ``median``, ``min`` or ``max``.

    Returns
    -------
    float
    """
    return float(AGGREGATIONS[how](values))
