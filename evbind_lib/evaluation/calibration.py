"""Probabilities one can act on: logits to the fraction of evidence among all pairs, and thresholds for a stated aim.

Platt scaling of out-of-fold logits (Platt 1999, "Probabilistic outputs for support vector machines"). Negatives are sampled, so
each counts ``weight`` times (eligible / drawn): King and Zeng 2001, "Logistic regression in rare events data", Political Analysis
9:137. A table of predictions has the columns fold, criterion_id, label, logit and weight; a judged one probability and group too.
"""

import re
from dataclasses import dataclass

import numpy as np
import pandas as pd
from scipy.special import entr, expit, logit

from evbind_lib.data.corpus import Corpus
from evbind_lib.errors import DataError, ParamsError
from evbind_lib.training.metrics import scores_of_counts
from evbind_lib.training.probabilities import THRESHOLD, log_losses

AIMS = ("f1", "macro_f1", "recall>=R", "precision>=P")
N_BINS = 10
SCORES = ["precision", "recall", "f1", "macro_f1", "flagged"]


@dataclass(frozen=True)
class Calibration:
    """Map of logits (n,) to probabilities of evidence (n,): ``expit(slope * logit + intercept)``; the order of pairs stays."""

    slope: float
    intercept: float

    def __call__(self, logits: np.ndarray) -> np.ndarray:
        """Probabilities of evidence, float64, in the shape of the logits."""
        return np.asarray(expit(self.slope * np.asarray(logits, dtype=np.float64) + self.intercept))


def fit_calibration(predictions: pd.DataFrame) -> Calibration:
    """The map of greatest likelihood, each pair counted ``weight`` times, with Platt's targets in place of 1 and 0.

    These stand for one more pair of each class, as scikit-learn's ``method="sigmoid"`` has them: the map is finite where logits
    separate the classes, or only one occurs. A negative slope becomes 0 (the fraction of evidence for every pair): the likelihood
    is concave, so that is its greatest value where no slope may be negative.
    """
    labels, logits, weights = (predictions[name].to_numpy(np.float64) for name in ("label", "logit", "weight"))
    positive, negative = weights @ labels, weights @ (1 - labels)
    target = np.where(labels == 1, (positive + 1) / (positive + 2), 1 / (negative + 2))
    if np.ptp(logits) > 0:
        from sklearn.linear_model import LogisticRegression  # half a second, which who asks a model need not wait

        centre, scale = logits.mean(), logits.std()  # the solver wants numbers around 0 and 1
        scaled, answers = np.tile((logits - centre) / scale, 2), np.repeat([1, 0], len(logits))
        parts = np.concatenate([weights * target, weights * (1 - target)])  # each pair is one of both classes, in part
        model = LogisticRegression(C=np.inf, solver="newton-cholesky", tol=1e-8)
        model.fit(scaled[:, None], answers, sample_weight=parts)
        slope = float(model.coef_[0, 0] / scale)
        if slope > 0:
            return Calibration(slope, float(model.intercept_[0] - slope * centre))
    return Calibration(0.0, float(logit(np.average(target, weights=weights))))


def _fit_on_others(predictions: pd.DataFrame) -> dict[int, Calibration]:
    """For each fold the map of all others."""
    if predictions["fold"].nunique() < 2:
        raise DataError("Calibration is judged on folds it has not seen; give predictions of two folds or more.")
    return {fold: fit_calibration(predictions[predictions["fold"] != fold]) for fold in predictions["fold"].unique()}


def cross_fitted(predictions: pd.DataFrame) -> np.ndarray:
    """Calibrated probabilities (n,), those of each fold by the map of the other folds: what one map is worth on new posts."""
    probabilities, logits = np.empty(len(predictions)), predictions["logit"].to_numpy()
    for fold, calibration in _fit_on_others(predictions).items():
        inside = (predictions["fold"] == fold).to_numpy()
        probabilities[inside] = calibration(logits[inside])
    return probabilities


def calibrated(predictions: pd.DataFrame, corpus: Corpus) -> pd.DataFrame:
    """Predictions with the ``probability`` of `cross_fitted` and, for intervals, the ``group`` of each post."""
    return predictions.assign(probability=cross_fitted(predictions), group=corpus.groups_of(predictions))


def calibration_scores(judged: pd.DataFrame) -> pd.DataFrame:
    """Rows ``ece, brier, log_loss``: the value for these probabilities with a 95 % interval (low, high), and the base rate's.

    ``ece`` is the expected calibration error over the bins of `reliability`; the base rate is what a model would score that gives
    the fraction of evidence to every pair. Groups are resampled, the map is not fitted again.
    """
    weight, evidence, expected, brier, log_loss = np.moveaxis(_resampled(judged), -1, 0)
    total = weight.sum(axis=1)
    rate = float(evidence[0].sum() / total[0])
    gaps = (evidence - expected) / total[:, None]
    scores = {"brier": brier.sum(axis=1) / total, "log_loss": log_loss.sum(axis=1) / total}
    scores = {"ece": np.abs(gaps).sum(axis=1), **scores}
    rows = {name: [values[0], *_percentiles(values[1:])] for name, values in scores.items()}
    # Resampling adds noise, which adds to an error that cannot be below 0: the percentiles, too high, are mirrored at the value,
    # and an error that noise alone would reach may be none.
    (value, low, high), noise = rows["ece"], _percentiles(np.abs(gaps[1:] - gaps[0]).sum(axis=1))[1]
    rows["ece"] = [value, 2 * value - high if value > noise else 0.0, max(2 * value - low, value)]
    table = pd.DataFrame.from_dict(rows, orient="index", columns=["value", "low", "high"]).rename_axis("score")
    return table.assign(base_rate=pd.Series({"brier": rate * (1 - rate), "log_loss": entr(rate) + entr(1 - rate)}))


def reliability(judged: pd.DataFrame) -> pd.DataFrame:
    """A row per bin, from low to high probability: predicted mean, observed fraction of evidence, its 95 % interval, pairs.

    Ten bins hold alike many pairs as the weights count them; equal probabilities share one, so there can be fewer.
    """
    weight, evidence, expected = np.moveaxis(_resampled(judged), -1, 0)[:3]
    with np.errstate(invalid="ignore"):  # a bin that a resample leaves empty
        observed = evidence / weight
    low, high = _percentiles(observed[1:])
    columns = {"predicted": expected[0] / weight[0], "observed": observed[0], "low": low, "high": high}
    return pd.DataFrame({**columns, "pairs": weight[0]})


def _percentiles(values: np.ndarray) -> np.ndarray:
    return np.asarray(np.nanquantile(values, [0.025, 0.975], axis=0))


def _resampled(judged: pd.DataFrame) -> np.ndarray:
    """Sums of weight, evidence, probability, Brier and log loss in each bin: of all, then of 1,000 resamples of the groups."""
    label, probability, weight = (judged[name].to_numpy(np.float64) for name in ("label", "probability", "weight"))
    edges = np.quantile(probability, np.arange(1, N_BINS) / N_BINS, weights=weight, method="inverted_cdf")
    bins = np.unique(np.searchsorted(edges, probability), return_inverse=True)[1]
    names, members = np.unique(judged["group"].to_numpy(dtype=str), return_inverse=True)
    shape, cells = (len(names), bins.max() + 1), members * (bins.max() + 1) + bins
    values = [np.ones_like(label), label, probability, (probability - label) ** 2, log_losses(label, probability)]
    sums = [np.bincount(cells, weight * each, minlength=shape[0] * shape[1]).reshape(shape) for each in values]
    drawn = np.random.default_rng(0).multinomial(len(names), np.full(len(names), 1 / len(names)), size=1000)
    return np.tensordot(np.vstack([np.ones_like(drawn[:1]), drawn]), np.stack(sums, axis=-1), axes=1)


def parse_aim(aim: str) -> tuple[str, float]:
    """Score that an aim is about, and the least that it must be; 0 where it is to be as great as possible."""
    bound = re.fullmatch(r"(recall|precision)\s*>=\s*(0?\.\d*[1-9]\d*|1(?:\.0*)?)", aim)
    if bound is None and aim not in AIMS[:2]:
        known = f"{', '.join(AIMS)}, with R and P above 0 and up to 1"
        raise ParamsError(f"aim={aim}: a threshold cannot be chosen for that; known are: {known}, as in recall>=0.9.")
    return (bound[1], float(bound[2])) if bound else (aim, 0.0)


def choose_threshold(judged: pd.DataFrame, aim: str) -> float:
    """The threshold on probabilities that does best what the aim says; a pair is called evidence from it on.

    ``recall>=R`` gives the best precision among those of such a recall, ``precision>=P`` the best recall; where no threshold
    reaches P, the one that comes nearest. Where no pair is evidence, there is nothing to choose by: 0.5.
    """
    name, least = parse_aim(aim)
    ranked = judged[["probability", "label", "weight"]].sort_values("probability", ascending=False, kind="stable")
    value, label, weight = ranked.to_numpy(np.float64).T
    if not label.any():
        return THRESHOLD
    last = np.flatnonzero(np.diff(value, append=-1.0))  # equal probabilities are called alike
    scores = _scores((weight * label).cumsum()[last], weight.cumsum()[last], weight @ label, weight.sum())
    merit = scores[name]
    if least:
        other = scores["recall" if name == "precision" else "precision"]
        merit = np.where(merit >= least - 1e-12, other, merit - 2)  # those that miss the bound come after all others
    best = int(np.argmax(merit))
    return float(np.append(value[last], 0.0)[best : best + 2].mean())  # amid the last called and the first that is not


def _scores(found: np.ndarray, called: np.ndarray, evidence: float, total: float) -> dict[str, np.ndarray]:
    """Scores by the weights of evidence called, all called, all evidence and all pairs."""
    scores = scores_of_counts(found, called - found, evidence - found, total - evidence - called + found)
    return {**scores, "f1": scores["pos_f1"], "flagged": called / total}


def thresholds(predictions: pd.DataFrame, aim: str) -> pd.DataFrame:
    """Thresholds on calibrated probabilities for an aim, and what such a choice is worth on posts that it was not made on.

    Rows: ``all`` (one threshold for all criteria), the criteria (each its own), ``each`` (these together). Columns: threshold,
    chosen on all folds; precision, recall, f1, macro_f1 and flagged, the fraction of pairs called evidence, where map and
    threshold of each fold are chosen on the other folds.
    """
    predictions = predictions.reset_index(drop=True)
    final, others = fit_calibration(predictions), _fit_on_others(predictions)

    def chosen(rows: pd.DataFrame, calibration: Calibration) -> float:
        return choose_threshold(rows.assign(probability=calibration(rows["logit"].to_numpy())), aim)

    def judged(rows: pd.DataFrame) -> list[float]:
        label, weight = (rows[name].to_numpy(np.float64) for name in ("label", "weight"))
        now = called[rows.index].to_numpy()
        scores = _scores(weight @ (label * now), weight @ now, weight @ label, weight.sum())
        return [float(scores[name]) for name in SCORES]

    table, called = {}, pd.Series(False, index=predictions.index)
    for name, rows in [("all", predictions), *predictions.groupby("criterion_id")]:
        for fold, calibration in others.items():
            inside = rows[rows["fold"] == fold]
            threshold = chosen(rows.drop(inside.index), calibration)
            called[inside.index] = calibration(inside["logit"].to_numpy()) >= threshold
        table[name] = [chosen(rows, final), *judged(rows)]
    table["each"] = [np.nan, *judged(predictions)]
    return pd.DataFrame.from_dict(table, orient="index", columns=["threshold", *SCORES]).rename_axis("criterion")
