"""Metrics of evidence binding by scikit-learn, and their aggregation over folds.

Imports nothing of the library; `training` and everything above may import it.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

import numpy as np
from sklearn import metrics as scores

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
    "log_loss": "mean of -log P(true answer), in nats; lower is better, 0.69 is a coin's",
}

# The others lie between 0 and 1, and higher is better.
LOWER_IS_BETTER = ("log_loss",)
SCORES = tuple(name for name in METRICS if name not in LOWER_IS_BETTER)

# What depends on the order of the probabilities alone.
THRESHOLD_FREE = ("roc_auc", "pr_auc")

AGGREGATIONS: dict[str, Callable[..., float]] = {
    "mean": np.mean,
    "median": np.median,
    "min": np.min,
    "max": np.max,
}


def log_losses(labels: np.ndarray, probabilities: np.ndarray) -> np.ndarray:
    """Log loss of each pair: ``-log P(true answer)``, in nats.

    Parameters
    ----------
    labels : ndarray of int, shape (n,)
    probabilities : ndarray of float, shape (n,)
        As in scikit-learn, 0 and 1 count as the nearest number that their precision knows: sure and wrong costs 16 nats in
        single precision, not infinity.

    Returns
    -------
    ndarray of float64, shape (n,)
    """
    probabilities = np.asarray(probabilities)
    single = probabilities.dtype == np.float32
    least = float(np.finfo(np.float32 if single else np.float64).eps)
    clipped = np.clip(probabilities.astype(float), least, 1 - least)
    return -np.log(np.where(np.asarray(labels) == 1, clipped, 1 - clipped))


def compute_metrics(labels: np.ndarray, probabilities: np.ndarray) -> dict[str, float]:
    """Compute all metrics of one set of predictions.

    Parameters
    ----------
    labels : ndarray of int, shape (n,)
        1 is evidence, 0 is not.
    probabilities : ndarray of float, shape (n,)
        P(evidence); from 0.5 on a pair is called evidence.

    Returns
    -------
    dict of str to float
        By the names of `METRICS`. ``roc_auc`` and ``pr_auc`` are NaN where only one class occurs; precision,
        recall and F1 are 0 where there is nothing to count; ``log_loss`` is always finite.

    Raises
    ------
    ValueError
        When the two are not one-dimensional, differ in length or are empty, or when a label is neither 0 nor
        1 or a probability is not a number from 0 to 1.
    """
    labels, probabilities = np.asarray(labels), np.asarray(probabilities)
    if labels.ndim != 1 or labels.shape != probabilities.shape or labels.size == 0:
        shapes = f"labels {labels.shape} and probabilities {probabilities.shape}"
        raise ValueError(f"{shapes} must be one-dimensional, alike and not empty")
    if not np.isin(labels, (0, 1)).all():
        raise ValueError("labels must be 0 or 1")
    if not ((probabilities >= 0) & (probabilities <= 1)).all():
        raise ValueError("probabilities must be numbers from 0 to 1")
    called = (probabilities >= THRESHOLD).astype(int)
    both = 0 < labels.sum() < len(labels)
    return {
        "accuracy": float(scores.accuracy_score(labels, called)),
        "macro_f1": float(scores.f1_score(labels, called, average="macro", labels=[0, 1], zero_division=0)),
        "pos_f1": float(scores.f1_score(labels, called, zero_division=0)),
        "precision": float(scores.precision_score(labels, called, zero_division=0)),
        "recall": float(scores.recall_score(labels, called, zero_division=0)),
        "roc_auc": float(scores.roc_auc_score(labels, probabilities)) if both else float("nan"),
        "pr_auc": float(scores.average_precision_score(labels, probabilities)) if both else float("nan"),
        "log_loss": float(log_losses(labels, probabilities).mean()),
    }


def aggregate(values: Sequence[float], how: str) -> float:
    """Draw per-fold values together; a NaN among them makes the result NaN.

    Parameters
    ----------
    values : sequence of float
    how : str
        ``mean``, ``median``, ``min`` or ``max``.

    Returns
    -------
    float

    Raises
    ------
    ValueError
        When there are no values or ``how`` is none of the four.
    """
    if how not in AGGREGATIONS or not len(values):
        known = ", ".join(AGGREGATIONS)
        raise ValueError(f"cannot aggregate {len(values)} values by {how!r}; known are {known}")
    return float(AGGREGATIONS[how](values))
