"""What fold scores say once they were chosen by: the corrected score of a search's best, and comparisons that hold.

Numbers only, no predictions: a score of each trial in each fold. `tests/benchmarks/selection.py` simulates all of it with known
truth, beside the methods that were not taken.
"""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from itertools import zip_longest

import numpy as np
from numpy.typing import ArrayLike
from scipy import stats

from evbind_lib.config.schema import Params
from evbind_lib.data.corpus import Corpus
from evbind_lib.data.folds import Fold, folds_fingerprint
from evbind_lib.errors import ParamsError, SearchError

FEWEST_TRIALS = 3  # with all folds; the noise of a fold's score is estimated from them
# Of the noise of a mean over folds; the whole of it lowers the error further, and the value by up to 0.015.
SMOOTHING = 0.5
N_DRAWS = 1000  # of that noise; ten times as many move the fourth decimal


@dataclass(frozen=True)
class CorrectedScore:
    """Score of a search's best trial corrected for selection, the bounds of its interval, and the method's name."""

    value: float
    low: float
    high: float
    method: str


def corrected_score(fold_scores: Iterable[Iterable[float]], *, greater_is_better: bool = True) -> CorrectedScore:
    """Score of the best of many trials, corrected for having been chosen on the folds it is scored on.

    It estimates the expected score, on new posts like these, of one more training with the set this search would choose. Each
    fold is scored by what the other folds alone would choose. That choice is smoothed: a trial weighs by how often it would be
    first there if their scores were blurred by half their noise (after Bernau, Augustin and Boulesteix 2013, Biometrics 69:693),
    which lowers the error. A fold that a stopped trial lacks is filled in: the mean of complete trials, plus the trial's mean
    distance to it over the other folds that it has. The interval is the corrected resampled t (`corrected_t`) over the folds,
    each scored by the one trial that the others would choose.

    Scores are (n_trials, n_folds), the same folds in every trial; NaN, infinite or left out at the end where a trial lacks one.
    The value is never better than the best mean over all folds; the interval is one of 95 %. With fewer than 2 folds, fewer
    than 3 trials with all, or folds that score alike, it is not defined: a `SearchError` with the reason alone as its message.
    """
    sign = 1 if greater_is_better else -1
    scores = sign * np.array(list(zip_longest(*fold_scores, fillvalue=np.nan)), dtype=float).T
    scores = np.where(np.isfinite(scores), scores, np.nan)
    if scores.size and scores.shape[1] < 2:
        raise SearchError("it needs at least 2 folds.")
    complete = scores[np.isfinite(scores).all(axis=1)] if scores.size else scores
    if len(complete) < FEWEST_TRIALS:
        raise SearchError(f"it needs at least {FEWEST_TRIALS} trials with all folds, and there are {len(complete)}.")
    smoothed, single = _scores_of_the_choice(scores, complete)
    if np.ptp(single) == 0:  # as where every trial calls all pairs one class
        raise SearchError("what would be chosen scores the same in every fold, so nothing tells how far off it may be.")
    value = min(float(smoothed.mean()), float(complete.mean(axis=1).max()))
    # The smoothed scores vary less over folds than their mean errs: what they share does not show there.
    mean, *bounds, _ = corrected_t(single)
    low, high = sorted(sign * (value + bound - mean) for bound in bounds)
    return CorrectedScore(sign * value, low, high, "chosen on the other folds, smoothed; corrected resampled t")


def _scores_of_the_choice(scores: np.ndarray, complete: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Score of each fold by the trials that the other folds would choose, and by the one they do choose, each (n_folds,)."""
    level = complete.mean(axis=0)
    apart = complete - level
    apart = apart - apart.mean(axis=1, keepdims=True)
    noise = np.sqrt((apart**2).sum() / (len(complete) - 1) / (len(level) - 1))
    blur = SMOOTHING * noise * np.random.default_rng(0).standard_normal((N_DRAWS, len(scores)))
    found = []
    for fold in range(len(level)):
        others = np.delete(scores - level, fold, axis=1)
        n_others = np.isfinite(others).sum(axis=1)
        distance = np.nansum(others, axis=1) / np.maximum(n_others, 1)
        distance[n_others == 0] = -np.inf  # without another fold it cannot be chosen
        chosen = (distance + blur / np.sqrt(np.maximum(n_others, 1))).argmax(axis=1)
        known = np.where(np.isfinite(scores[:, fold]), scores[:, fold], level[fold] + distance)
        found.append((known[chosen].mean(), known[distance.argmax()]))
    smoothed, single = np.array(found).T
    return smoothed, single


def selected_on(
    corpus: Corpus, folds: Sequence[Fold], metric: str, sets: Mapping[str, Params]
) -> dict[str, CorrectedScore | None]:
    """Which sets a search chose on these very folds by their provenance, and their corrected score by the metric, if any."""
    found: dict[str, CorrectedScore | None] = {}
    here = {"data_fingerprint": corpus.fingerprint, "folds": len(folds), "folds_fingerprint": folds_fingerprint(folds)}
    for name, params in sets.items():
        chosen = params.training.provenance
        # What a file does not say (older ones have no fingerprint of the folds) is taken to be the same: rather no verdict.
        if chosen and all((chosen.get(key) or value) == value for key, value in here.items()):
            corrected = chosen.get("corrected_score") if chosen.get("metric") == metric else None
            found[name] = CorrectedScore(**corrected) if corrected else None
    return found


def _spread_of_mean(differences: ArrayLike) -> tuple[float, float, int]:
    """Mean over folds, its standard error corrected for the training posts that folds share, and degrees of freedom."""
    values = np.asarray(differences, dtype=float)
    n = len(values)
    return float(values.mean()), float(values.std(ddof=1) * np.sqrt(1 / n + 1 / (n - 1))), n - 1


def corrected_t(differences: ArrayLike) -> tuple[float, float, float, float]:
    """Mean, 95 % interval (low, high) and two-sided p of paired differences over all K folds of a cross-validation, against 0.

    The corrected resampled t test (Nadeau and Bengio 2003, Machine Learning 52:239): validation is 1 / (K - 1) of training.
    """
    mean, error, freedom = _spread_of_mean(differences)
    half = float(stats.t.ppf(0.975, freedom)) * error
    if error == 0:
        return mean, mean, mean, float(mean == 0)
    return mean, mean - half, mean + half, float(2 * stats.t.sf(abs(mean) / error, freedom))


def probability_of_practical_difference(differences: ArrayLike, rope: float) -> tuple[float, float, float]:
    """Probabilities that the true difference lies below -rope, within, and above it; they add up to 1.

    The correlated Bayesian t test, with correlation 1 / K (Benavoli, Corani, Demsar and Zaffalon 2017, JMLR 18:77).
    """
    if not rope >= 0:
        raise ParamsError(f"rope={rope}: it must be 0 or more, in units of the metric.")
    mean, error, freedom = _spread_of_mean(differences)
    if error == 0:
        return float(mean < -rope), float(abs(mean) <= rope), float(mean > rope)
    worse = float(stats.t.cdf((-rope - mean) / error, freedom))
    better = float(stats.t.sf((rope - mean) / error, freedom))
    return worse, max(0.0, 1 - worse - better), better


def holm(p_values: ArrayLike) -> np.ndarray:
    """P-values adjusted for their number, step-down (Holm 1979, Scand. J. Stat. 6:65); NaN stays and does not count."""
    given = np.asarray(p_values, dtype=float)
    adjusted = np.full(given.shape, np.nan)
    order = np.argsort(given)[: np.isfinite(given).sum()]
    adjusted[order] = np.minimum(1, np.maximum.accumulate(given[order] * np.arange(len(order), 0, -1)))
    return adjusted
