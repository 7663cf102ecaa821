"""Honest estimates from out-of-fold predictions: intervals, paired comparisons, thresholds, scores by criterion, errors.

Pairs of one post are alike, so posts are drawn anew, not pairs (cluster bootstrap: Field and Welsh, J. R. Stat. Soc. B 69,
2007; percentile intervals: Efron and Tibshirani 1993, chapter 13). Imports `metrics` and `reports`-shaped tables; `plots`
and everything above may import it.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
import pandas as pd

from evbind_lib.training.metrics import METRICS, THRESHOLD, compute_metrics, log_losses

KEYS = ["fold", "post_id", "sentence_id", "criterion_id"]
MOST_CELLS = 4_000_000  # of an array of resamples by pairs


@dataclass(frozen=True)
class Interval:
    """A value with the bounds that its bootstrap gives."""

    value: float
    low: float
    high: float

    def __str__(self) -> str:
        return f"{self.value:.3f} ({self.low:.3f} to {self.high:.3f})"


def interval(
    predictions: pd.DataFrame, metric: str, *, level: float = 0.95, n_resamples: int = 1000, seed: int = 0
) -> Interval:
    """Metric of all out-of-fold predictions with a bootstrap interval over posts.

    It tells how the score would vary over other posts, not over other trainings.

    Parameters
    ----------
    predictions : pandas.DataFrame
        Columns post_id, label and probability.
    metric : str
        A name of `evbind_lib.training.metrics.METRICS`.
    level : float
        Share of resamples inside, between 0 and 1.
    n_resamples : int
    seed : int

    Returns
    -------
    Interval
    """
    value = compute_metrics(predictions["label"].to_numpy(), predictions["probability"].to_numpy())[metric]
    draws = resampled(predictions, metric, post_weights(predictions, n_resamples, seed))
    return _percentiles(value, draws, level)


def difference(
    first: pd.DataFrame,
    second: pd.DataFrame,
    metric: str,
    *,
    level: float = 0.95,
    n_resamples: int = 1000,
    seed: int = 0,
) -> Interval:
    """How much better the second is than the first on the same pairs; each resample draws the same posts for both.

    Parameters
    ----------
    first, second : pandas.DataFrame
        Out-of-fold predictions of the same pairs.
    metric : str
    level : float
    n_resamples : int
    seed : int

    Returns
    -------
    Interval
        Of second minus first; where it holds 0, the two cannot be told apart on these posts.

    Raises
    ------
    ValueError
        When the two are not of the same pairs.
    """
    first, second = (table.sort_values(KEYS, ignore_index=True) for table in (first, second))
    if not first[[*KEYS, "label"]].equals(second[[*KEYS, "label"]].astype(first[[*KEYS, "label"]].dtypes.to_dict())):
        raise ValueError("the two predictions are not of the same pairs")
    weights = post_weights(first, n_resamples, seed)
    values = [
        compute_metrics(table["label"].to_numpy(), table["probability"].to_numpy())[metric] for table in (first, second)
    ]
    draws = resampled(second, metric, weights) - resampled(first, metric, weights)
    return _percentiles(values[1] - values[0], draws, level)


def _percentiles(value: float, draws: np.ndarray, level: float) -> Interval:
    low, high = np.nanquantile(draws, [(1 - level) / 2, (1 + level) / 2])
    return Interval(float(value), float(low), float(high))


def post_weights(predictions: pd.DataFrame, n_resamples: int, seed: int) -> np.ndarray:
    """How often each post is drawn in each resample; shape (n_resamples, n_posts), posts by their sorted ids."""
    n_posts = predictions["post_id"].nunique()
    return np.random.default_rng(seed).multinomial(n_posts, np.full(n_posts, 1 / n_posts), size=n_resamples)


def resampled(predictions: pd.DataFrame, metric: str, weights: np.ndarray) -> np.ndarray:
    """Metric of each resample of posts.

    Parameters
    ----------
    predictions : pandas.DataFrame
        Columns post_id, label and probability.
    metric : str
        A name of `evbind_lib.training.metrics.METRICS`.
    weights : ndarray, shape (n_resamples, n_posts)
        How often each post is drawn, in the order of the sorted ids; a row of ones gives the metric itself.

    Returns
    -------
    ndarray of float, shape (n_resamples,)
        NaN where a metric that ranks meets one class only.
    """
    posts = np.unique(predictions["post_id"].to_numpy(dtype=str), return_inverse=True)[1]
    label, probability = predictions["label"].to_numpy(), predictions["probability"].to_numpy()
    if metric in RANKED:
        return _ranked(label, probability, posts, weights, RANKED[metric])
    if metric == "log_loss":
        loss = np.bincount(posts, weights=log_losses(label, probability), minlength=weights.shape[1])
        return (weights @ loss) / (weights @ np.bincount(posts, minlength=weights.shape[1]))
    called = probability >= THRESHOLD
    cells = {
        "tp": (label == 1) & called,
        "fp": (label == 0) & called,
        "fn": (label == 1) & ~called,
        "tn": (label == 0) & ~called,
    }
    counts = {
        name: weights @ np.bincount(posts, weights=inside, minlength=weights.shape[1]) for name, inside in cells.items()
    }
    return np.asarray(_FROM_COUNTS[metric](**counts), dtype=float)


def _ranked(
    label: np.ndarray, probability: np.ndarray, posts: np.ndarray, weights: np.ndarray, score: Callable[..., np.ndarray]
) -> np.ndarray:
    """Weighted scores of a ranking for all resamples: pairs are sorted once, equal probabilities share a rank."""
    order = np.argsort(-probability, kind="stable")
    ranked, evidence, posts = probability[order], label[order] == 1, posts[order]
    first_of_rank = np.flatnonzero(np.r_[True, ranked[1:] != ranked[:-1]])
    values = np.empty(len(weights))
    rows = max(1, MOST_CELLS // len(posts))  # of resamples at a time, so that many pairs do not fill the memory
    for start in range(0, len(weights), rows):
        times = weights[start : start + rows][:, posts].astype(float)
        positives = np.add.reduceat(times * evidence, first_of_rank, axis=1)
        negatives = np.add.reduceat(times * ~evidence, first_of_rank, axis=1)
        values[start : start + rows] = score(positives, negatives)
    return values


def _roc_auc(positives: np.ndarray, negatives: np.ndarray) -> np.ndarray:
    all_positives, all_negatives = positives.sum(axis=1), negatives.sum(axis=1)
    above = np.cumsum(positives, axis=1) - positives / 2
    area, whole = (above * negatives).sum(axis=1), all_positives * all_negatives
    return np.divide(area, whole, out=np.full(len(whole), np.nan), where=whole > 0)


def _average_precision(positives: np.ndarray, negatives: np.ndarray) -> np.ndarray:
    found = np.cumsum(positives, axis=1)
    precision = _share(found, found + np.cumsum(negatives, axis=1))
    area, whole = (precision * positives).sum(axis=1), found[:, -1]
    known = (whole > 0) & (negatives.sum(axis=1) > 0)
    return np.divide(area, whole, out=np.full(len(whole), np.nan), where=known)


RANKED: dict[str, Callable[..., np.ndarray]] = {"roc_auc": _roc_auc, "pr_auc": _average_precision}


def _share(part: np.ndarray, whole: np.ndarray) -> np.ndarray:
    return np.divide(part, whole, out=np.zeros(np.shape(whole)), where=whole > 0)


def _f1(tp: np.ndarray, fp: np.ndarray, fn: np.ndarray) -> np.ndarray:
    return _share(2 * tp, 2 * tp + fp + fn)


_FROM_COUNTS: dict[str, Callable[..., np.ndarray]] = {
    "accuracy": lambda tp, fp, fn, tn: _share(tp + tn, tp + fp + fn + tn),
    "macro_f1": lambda tp, fp, fn, tn: (_f1(tp, fp, fn) + _f1(tn, fn, fp)) / 2,
    "pos_f1": lambda tp, fp, fn, tn: _f1(tp, fp, fn),
    "precision": lambda tp, fp, fn, tn: _share(tp, tp + fp),
    "recall": lambda tp, fp, fn, tn: _share(tp, tp + fn),
}


def by_criterion(predictions: pd.DataFrame) -> pd.DataFrame:
    """Scores of each criterion by itself, with the evidence they rest on.

    Parameters
    ----------
    predictions : pandas.DataFrame
        Columns criterion_id, label and probability.

    Returns
    -------
    pandas.DataFrame
        One row per criterion, most evidence first: pairs, evidence, and precision, recall, pos_f1 and pr_auc.
    """
    rows = {}
    for criterion, part in predictions.groupby("criterion_id", sort=True):
        label = part["label"].to_numpy()
        values = compute_metrics(label, part["probability"].to_numpy())
        chosen = {name: values[name] for name in ("precision", "recall", "pos_f1", "pr_auc")}
        rows[criterion] = {"pairs": len(part), "evidence": int(label.sum()), **chosen}
    table = pd.DataFrame.from_dict(rows, orient="index").rename_axis("criterion")
    return table.sort_values("evidence", ascending=False, kind="stable")


def at_threshold(predictions: pd.DataFrame, threshold: float) -> dict[str, float]:
    """Decisions at a threshold of one's own: counts, precision, recall and F1 of evidence.

    Parameters
    ----------
    predictions : pandas.DataFrame
        Columns label and probability.
    threshold : float
        From this probability on a pair is called evidence.

    Returns
    -------
    dict of str to float
        ``tp``, ``fp``, ``fn``, ``tn``, ``precision``, ``recall``, ``pos_f1``.
    """
    label = predictions["label"].to_numpy() == 1
    called = predictions["probability"].to_numpy() >= threshold
    tp, fp = int((label & called).sum()), int((~label & called).sum())
    fn, tn = int((label & ~called).sum()), int((~label & ~called).sum())
    return {
        "tp": tp,
        "fp": fp,
        "fn": fn,
        "tn": tn,
        "precision": tp / (tp + fp) if tp + fp else 0.0,
        "recall": tp / (tp + fn) if tp + fn else 0.0,
        "pos_f1": 2 * tp / (2 * tp + fp + fn) if tp + fp + fn else 0.0,
    }


def best_threshold(predictions: pd.DataFrame) -> float:
    """Threshold with the highest F1 of evidence, on a grid of hundredths; the lowest of equals.

    It is chosen on the predictions it is judged by, so its F1 is a little flattered.
    """
    grid = np.round(np.arange(0.01, 1.0, 0.01), 2)
    return float(max(grid, key=lambda threshold: at_threshold(predictions, threshold)["pos_f1"]))


def confident_errors(predictions: pd.DataFrame, threshold: float = THRESHOLD, most: int = 20) -> pd.DataFrame:
    """Wrong decisions, the surest first.

    Parameters
    ----------
    predictions : pandas.DataFrame
        Out-of-fold predictions.
    threshold : float
    most : int
        Rows at most.

    Returns
    -------
    pandas.DataFrame
        Columns kind (``missed`` or ``false alarm``), post_id, sentence_id, criterion_id, probability.
    """
    called = predictions["probability"] >= threshold
    wrong = predictions[called != (predictions["label"] == 1)]
    sure = (wrong["probability"] - threshold).abs()
    kind = np.where(wrong["label"] == 1, "missed", "false alarm")
    table = wrong.assign(kind=kind, sure=sure).sort_values(["sure", "sentence_id"], ascending=[False, True])
    columns = ["kind", "post_id", "sentence_id", "criterion_id", "probability"]
    return table[columns].head(most).reset_index(drop=True)


def comparison_table(results: dict[str, pd.DataFrame], metrics: tuple[str, ...] = tuple(METRICS)) -> pd.DataFrame:
    """Metrics of several sets of out-of-fold predictions, pooled; one row each."""
    rows = {
        name: compute_metrics(table["label"].to_numpy(), table["probability"].to_numpy())
        for name, table in results.items()
    }
    return pd.DataFrame.from_dict(rows, orient="index")[list(metrics)]
