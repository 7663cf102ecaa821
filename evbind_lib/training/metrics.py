"""Metrics of evidence binding, in a registry that takes further ones; their aggregation over folds."""

import warnings
from collections.abc import Callable, Sequence
from dataclasses import KW_ONLY, dataclass
from typing import Literal

import numpy as np
from numpy.typing import ArrayLike
from sklearn import metrics as scores

from evbind_lib.config.registry import Registry
from evbind_lib.training.probabilities import THRESHOLD, log_losses

AGGREGATIONS: dict[str, Callable[..., float]] = {"mean": np.mean, "median": np.median, "min": np.min, "max": np.max}


@dataclass(frozen=True)
class Metric:
    """A score of predictions, to be registered in `METRICS`.

    Parameters
    ----------
    function
        ``function(labels, values)`` -> float, as scikit-learn's metrics are; ``labels`` is an int array (n,) of 0 and 1.
    on
        What ``values`` are: P(evidence), float64 (n,), or 1 from a probability of 0.5 on and else 0, int (n,).
    greater_is_better, description
        Decides the direction of a search on it; one phrase for tables and captions.

    Examples
    --------
    >>> from sklearn.metrics import cohen_kappa_score
    >>> import evbind_lib as ev
    >>> ev.METRICS["kappa"] = ev.Metric(cohen_kappa_score, on="decisions", description="agreement beyond chance")
    >>> round(ev.METRICS["kappa"]([0, 1, 1, 0], [0.2, 0.9, 0.4, 0.1]), 2)
    0.5
    >>> del ev.METRICS["kappa"]
    """

    function: Callable[..., float]
    _: KW_ONLY
    on: Literal["probabilities", "decisions"] = "probabilities"
    greater_is_better: bool = True
    description: str = ""

    def __call__(self, labels: np.ndarray, probabilities: np.ndarray) -> float:
        """Score of probabilities of evidence (n,)."""
        values = np.asarray(probabilities)
        if self.on == "decisions":
            values = (values >= THRESHOLD).astype(int)
        with warnings.catch_warnings():
            warnings.filterwarnings("ignore", module="sklearn")  # ranks of one class only are NaN, F1 of nothing is 0
            return float(self.function(labels, values))


def scores_of_counts(tp: ArrayLike, fp: ArrayLike, fn: ArrayLike, tn: ArrayLike) -> dict[str, np.ndarray]:
    """The metrics of decisions, by name, of the cells of a confusion matrix; 0 where there is nothing to count."""
    tp, fp, fn, tn = (np.maximum(cell, 0.0) for cell in (tp, fp, fn, tn))  # differences of weights may miss 0

    def fraction(part: np.ndarray, whole: np.ndarray) -> np.ndarray:
        return np.divide(part, whole, out=np.zeros(np.shape(whole)), where=whole > 0)

    recall, specificity = fraction(tp, tp + fn), fraction(tn, tn + fp)
    f1, f1_of_others = fraction(2 * tp, 2 * tp + fp + fn), fraction(2 * tn, 2 * tn + fn + fp)
    scores = {"accuracy": fraction(tp + tn, tp + fp + fn + tn), "macro_f1": (f1 + f1_of_others) / 2, "pos_f1": f1}
    scores |= {"precision": fraction(tp, tp + fp), "recall": recall, "specificity": specificity}
    scores["balanced_accuracy"] = fraction(recall + specificity, 1.0 * (tp + fn > 0) + (tn + fp > 0))
    scores["matthews"] = fraction(tp * tn - fp * fn, np.sqrt((tp + fp) * (tp + fn) * (tn + fp) * (tn + fn)))
    return scores


def scores_of_decisions(label: np.ndarray, called: np.ndarray, count: Callable = np.sum) -> dict[str, np.ndarray]:
    """Cells of the confusion matrix and the metrics of decisions; ``count`` makes a number of an array (n,) of bool."""
    evidence = label == 1
    masks = {"tp": evidence & called, "fp": ~evidence & called, "fn": evidence & ~called, "tn": ~evidence & ~called}
    counts = {name: count(mask) for name, mask in masks.items()}
    return counts | scores_of_counts(**counts)


# Not scikit-learn's, which is ten times slower: racing asks thousands of resamples.
def _log_loss(labels: np.ndarray, probabilities: np.ndarray) -> float:
    return float(log_losses(labels, probabilities).mean())


def _of_both_classes(function: Callable[..., float]) -> Callable[..., float]:
    """A metric that ranks; NaN where only one class occurs, whatever scikit-learn of the day does then."""
    return lambda labels, values: function(labels, values) if len(np.unique(labels)) == 2 else np.nan


def _decided(name: str) -> Callable[..., float]:
    """A metric of decisions; racing and thresholds ask it of counts of thousands of resamples, so there is one way for all."""
    return lambda labels, decisions: float(scores_of_decisions(np.asarray(labels), np.asarray(decisions) == 1)[name])


_roc_auc, _pr_auc = map(_of_both_classes, (scores.roc_auc_score, scores.average_precision_score))
# fmt: off
METRICS = Registry[Metric](
    "hpo.metric.name",
    "metric",
    accuracy=Metric(_decided("accuracy"), on="decisions", description="fraction decided rightly; high where evidence is rare"),
    macro_f1=Metric(_decided("macro_f1"), on="decisions", description="mean of the F1 of evidence and the F1 of no evidence"),
    pos_f1=Metric(_decided("pos_f1"), on="decisions", description="F1 of evidence: harmonic mean of precision and recall"),
    precision=Metric(_decided("precision"), on="decisions", description="fraction of pairs called evidence that are"),
    recall=Metric(_decided("recall"), on="decisions", description="fraction of evidence that is found"),
    specificity=Metric(_decided("specificity"), on="decisions", description="fraction of the others that are not called so"),
    balanced_accuracy=Metric(_decided("balanced_accuracy"), on="decisions", description="mean of recall and specificity"),
    matthews=Metric(_decided("matthews"), on="decisions", description="correlation of decisions and labels; 0 is chance"),
    roc_auc=Metric(_roc_auc, description="chance that evidence is ranked above no evidence; no threshold"),
    pr_auc=Metric(_pr_auc, description="average precision over all recalls; no threshold"),
    log_loss=Metric(_log_loss, greater_is_better=False, description="mean of -log P(true answer), nats; 0.69 is a coin's"),
    brier=Metric(scores.brier_score_loss, greater_is_better=False, description="mean squared error of P(evidence)"),
)
# fmt: on
METRICS.__doc__ = """Metrics by name: what ``hpo.metric.name`` chooses from and every result lists.

Add one with ``METRICS["NAME"] = Metric(function, ...)``: YAML, tables, plots and MLflow then know it.

Examples
--------
>>> import evbind_lib as ev
>>> ev.METRICS["pr_auc"].greater_is_better
True
"""


def compute_metrics(labels: np.ndarray, probabilities: np.ndarray) -> dict[str, float]:
    """Every metric of `METRICS` for labels (n,) and probabilities of evidence (n,); NaN or 0 where one is not defined."""
    labels, probabilities = np.asarray(labels), np.asarray(probabilities)
    alike = labels.ndim == 1 and labels.shape == probabilities.shape and labels.size > 0
    if not (alike and np.isin(labels, (0, 1)).all() and ((probabilities >= 0) & (probabilities <= 1)).all()):
        raise ValueError("labels must be 0 or 1 and probabilities from 0 to 1, of the same pairs and at least one")
    return {name: metric(labels, probabilities) for name, metric in METRICS.items()}


def aggregate(values: Sequence[float], how: str) -> float:
    """Mean, median, min or max of per-fold values; a NaN among them makes the result NaN."""
    if how not in AGGREGATIONS or not len(values):
        raise ValueError(f"cannot aggregate {len(values)} values by {how!r}; known are {', '.join(AGGREGATIONS)}")
    return float(AGGREGATIONS[how](values))
