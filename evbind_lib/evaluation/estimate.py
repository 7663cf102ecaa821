"""Estimates from out-of-fold predictions: intervals, paired comparisons, thresholds, scores by criterion, errors.

Pairs of one post are alike, so posts are resampled, not pairs (cluster bootstrap: Field and Welsh, J. R. Stat. Soc. B 69,
2007; percentile intervals: Efron and Tibshirani 1993, chapter 13).
"""

from __future__ import annotations

import warnings
from collections.abc import Callable, Mapping
from dataclasses import dataclass

import numpy as np
import pandas as pd
import sklearn

from evbind_lib.errors import DataError, ParamsError, did_you_mean
from evbind_lib.training.metrics import METRICS, THRESHOLD, Metric, compute_metrics
from evbind_lib.training.result import CrossValidation

KEYS = ["fold", "post_id", "sentence_id", "criterion_id"]
MOST_COPIES = 200  # resamples of a metric that takes no weights: each copies rows and calls it on them


@dataclass(frozen=True)
class Interval:
    """A value with the bounds of its bootstrap interval."""

    value: float
    low: float
    high: float

    def __str__(self) -> str:
        return f"{self.value:.3f} ({self.low:.3f} to {self.high:.3f})"


def interval(predictions: pd.DataFrame, metric: str, *, n_resamples: int = 1000, seed: int = 0) -> Interval:
    """Metric of all out-of-fold predictions, 95 %: how it would vary over other posts, not over other trainings."""
    return _percentiles(*_pooled(predictions, metric, n_resamples, seed))


def difference(first: pd.DataFrame, second: pd.DataFrame, metric: str) -> Interval:
    """Metric of the second minus that of the first on the same pairs, 95 %; each resample holds the same posts for both.

    Where the interval holds 0, the two cannot be distinguished on these posts. Other pairs are a `DataError`.
    """
    _check_same_pairs(first, second)
    (value, draws), (other, others) = _pooled(first, metric), _pooled(second, metric)
    return _percentiles(other - value, others - draws)


def compare(
    results: Mapping[str, CrossValidation | pd.DataFrame], metric: str, *, reference: str | None = None
) -> pd.DataFrame:
    """Compare results on the same pairs by one metric, with intervals.

    Parameters
    ----------
    results : mapping of str to CrossValidation or pandas.DataFrame
        By names of your own; a table holds out-of-fold predictions: fold, post_id, sentence_id, criterion_id, label,
        probability.
    metric : str
        A name of `METRICS`.
    reference : str, optional
        The result that the others are compared with; the first when not given.

    Returns
    -------
    pandas.DataFrame
        A row per result, in units of the metric: ``mean_of_folds`` (NaN for a table); ``pooled`` over all predictions, its 95 %
        interval ``low``, ``high``; ``difference`` of the pooled value to the reference with ``difference_low`` and
        ``difference_high`` (NaN for the reference itself); ``pairs`` and ``evidence``, the counts that this rests on. Where
        the interval of a difference holds 0, the two cannot be distinguished on these posts.

    Raises
    ------
    ParamsError
        For an unknown metric or reference.
    DataError
        When two results are not of the same pairs, or a table lacks a column.

    Notes
    -----
    Percentiles of 1,000 resamples of posts (200 for a metric that takes no weights), the same for all results (Field and
    Welsh 2007; Efron and Tibshirani 1993). They describe other posts; the noise of training again is not in them.

    Examples
    --------
    >>> import numpy as np, pandas as pd, evbind_lib as ev
    >>> random = np.random.default_rng(0)
    >>> ids = pd.DataFrame({"fold": 0, "post_id": random.integers(0, 50, 300).astype(str),
    ...                     "sentence_id": [str(n) for n in range(300)], "criterion_id": "SLEEP_ISSUES"})
    >>> ids["label"] = random.integers(0, 2, 300)
    >>> guess = ids.assign(probability=random.random(300))
    >>> model = ids.assign(probability=0.2 + 0.4 * ids["label"] + 0.2 * random.random(300))
    >>> table = ev.compare({"guess": guess, "model": model}, "macro_f1")
    >>> bool(table.loc["model", "difference_low"] > 0)
    True
    """
    reference = next(iter(results), None) if reference is None else reference
    if reference is None or reference not in results:
        near = did_you_mean(str(reference), results)
        raise ParamsError(f"reference={reference}: there is no result of that name{near}")
    tables = {name: one.predictions if isinstance(one, CrossValidation) else one for name, one in results.items()}
    for name, table in tables.items():
        if missing := {*KEYS, "label", "probability"} - set(table):
            raise DataError(
                f"results[{name!r}]: predictions need a column {min(missing)}{did_you_mean(min(missing), map(str, table))}"
            )
    pooled = {name: _pooled(table, metric) for name, table in tables.items()}
    rows = {}
    for name, result in results.items():
        found, gain = _percentiles(*pooled[name]), Interval(np.nan, np.nan, np.nan)
        if name != reference:
            _check_same_pairs(tables[reference], tables[name])
            (value, draws), (other, others) = pooled[reference], pooled[name]
            gain = _percentiles(other - value, others - draws)
        rows[name] = {
            "mean_of_folds": result.score(metric, "mean") if isinstance(result, CrossValidation) else np.nan,
            **{"pooled": found.value, "low": found.low, "high": found.high},
            **{"difference": gain.value, "difference_low": gain.low, "difference_high": gain.high},
            **{"pairs": len(tables[name]), "evidence": int(tables[name]["label"].sum())},
        }
    return pd.DataFrame.from_dict(rows, orient="index").rename_axis("result")


def _check_same_pairs(first: pd.DataFrame, second: pd.DataFrame) -> None:
    """Refuse predictions that are not of the same labelled pairs, in whatever order."""
    columns = [*KEYS, "label"]
    one, other = (table[columns].sort_values(KEYS, ignore_index=True) for table in (first, second))
    if not one.equals(other.astype(one.dtypes.to_dict())):
        raise DataError(
            "These predictions are not of the same pairs; cross-validate both on the same corpus and folds, with the same "
            "data.eval_neg_ratio."
        )


def _pooled(predictions: pd.DataFrame, metric: str, n_resamples: int = 1000, seed: int = 0) -> tuple[float, np.ndarray]:
    """Metric of all predictions, and of each resample of their posts."""
    score = METRICS[metric]
    if not score.takes_weights:
        n_resamples = min(n_resamples, MOST_COPIES)
    value = score(predictions["label"].to_numpy(), predictions["probability"].to_numpy())
    return value, resampled(predictions, metric, post_weights(predictions, n_resamples, seed))


def _percentiles(value: float, draws: np.ndarray) -> Interval:
    low, high = np.nanquantile(draws, [0.025, 0.975])
    return Interval(float(value), float(low), float(high))


def post_weights(predictions: pd.DataFrame, n_resamples: int, seed: int) -> np.ndarray:
    """How often each post is drawn in each resample, (n_resamples, n_posts), posts in the order of their sorted ids."""
    n_posts = predictions["post_id"].nunique()
    return np.random.default_rng(seed).multinomial(n_posts, np.full(n_posts, 1 / n_posts), size=n_resamples)


def resampled(predictions: pd.DataFrame, metric: str, weights: np.ndarray) -> np.ndarray:
    """Metric of each resample of posts, (n_resamples,), NaN where it is not defined; weights as `post_weights` gives them.

    What counts decisions is computed for all resamples at once: racing asks for thousands after every fold.
    """
    posts = np.unique(predictions["post_id"].to_numpy(dtype=str), return_inverse=True)[1]
    label, probability = predictions["label"].to_numpy(), predictions["probability"].to_numpy()
    if metric in _FROM_COUNTS and metric not in METRICS.additions():
        called, n_posts = probability >= THRESHOLD, weights.shape[1]
        cells = [(label == 1) & called, (label == 0) & called, (label == 1) & ~called, (label == 0) & ~called]
        counts = (weights @ np.bincount(posts, weights=cell, minlength=n_posts) for cell in cells)
        return np.asarray(_FROM_COUNTS[metric](*counts), dtype=float)
    score = METRICS[metric]
    with warnings.catch_warnings(), sklearn.config_context(assume_finite=True, skip_parameter_validation=True):
        warnings.filterwarnings("ignore", module="sklearn")  # of resamples where a score is not defined
        return np.array([_of_resample(score, label, probability, times[posts]) for times in weights])


def _of_resample(score: Metric, label: np.ndarray, probability: np.ndarray, times: np.ndarray) -> float:
    """Metric of pairs that are each counted so many times."""
    rows = np.flatnonzero(times) if score.takes_weights else np.repeat(np.arange(len(times)), times)
    try:
        return score(label[rows], probability[rows], times[rows] if score.takes_weights else None)
    except ValueError:  # many scores are defined only where both classes occur
        return float("nan")


def _fraction(part: np.ndarray, whole: np.ndarray) -> np.ndarray:
    return np.divide(part, whole, out=np.zeros(np.shape(whole)), where=whole > 0)


def _f1(tp: np.ndarray, fp: np.ndarray, fn: np.ndarray) -> np.ndarray:
    return _fraction(2 * tp, 2 * tp + fp + fn)


_FROM_COUNTS: dict[str, Callable[..., np.ndarray]] = {
    "accuracy": lambda tp, fp, fn, tn: _fraction(tp + tn, tp + fp + fn + tn),
    "macro_f1": lambda tp, fp, fn, tn: (_f1(tp, fp, fn) + _f1(tn, fn, fp)) / 2,
    "pos_f1": lambda tp, fp, fn, tn: _f1(tp, fp, fn),
    "precision": lambda tp, fp, fn, tn: _fraction(tp, tp + fp),
    "recall": lambda tp, fp, fn, tn: _fraction(tp, tp + fn),
}


def by_criterion(predictions: pd.DataFrame) -> pd.DataFrame:
    """One row per criterion, most evidence first: pairs, evidence, precision, recall, pos_f1 and pr_auc."""
    rows = {}
    for criterion, part in predictions.groupby("criterion_id", sort=True):
        label = part["label"].to_numpy()
        values = compute_metrics(label, part["probability"].to_numpy())
        chosen = {name: values[name] for name in ("precision", "recall", "pos_f1", "pr_auc")}
        rows[criterion] = {"pairs": len(part), "evidence": int(label.sum()), **chosen}
    table = pd.DataFrame.from_dict(rows, orient="index").rename_axis("criterion")
    return table.sort_values("evidence", ascending=False, kind="stable")


def at_threshold(predictions: pd.DataFrame, threshold: float) -> dict[str, float]:
    """``tp, fp, fn, tn, precision, recall, pos_f1`` where a pair is called evidence from this probability on."""
    label, called = predictions["label"].to_numpy() == 1, predictions["probability"].to_numpy() >= threshold
    counts = {"tp": label & called, "fp": ~label & called, "fn": label & ~called, "tn": ~label & ~called}
    sums = {name: int(cell.sum()) for name, cell in counts.items()}
    scores = {name: _FROM_COUNTS[name](*np.array([*sums.values()])) for name in ("precision", "recall", "pos_f1")}
    return {**sums, **{name: float(score) for name, score in scores.items()}}


def best_threshold(predictions: pd.DataFrame) -> float:
    """Threshold with the highest F1 of evidence, in hundredths; optimistic, since chosen on what it is judged by."""
    grid = np.round(np.arange(0.01, 1.0, 0.01), 2)
    return float(max(grid, key=lambda threshold: at_threshold(predictions, threshold)["pos_f1"]))


def confident_errors(predictions: pd.DataFrame, threshold: float = THRESHOLD, most: int = 20) -> pd.DataFrame:
    """Wrong decisions, the surest first; ``kind`` is ``missed`` or ``false alarm``."""
    called = predictions["probability"] >= threshold
    wrong = predictions[called != (predictions["label"] == 1)]
    sure = (wrong["probability"] - threshold).abs()
    kind = np.where(wrong["label"] == 1, "missed", "false alarm")
    table = wrong.assign(kind=kind, sure=sure).sort_values(["sure", "sentence_id"], ascending=[False, True])
    columns = ["kind", "post_id", "sentence_id", "criterion_id", "probability"]
    return table[columns].head(most).reset_index(drop=True)
