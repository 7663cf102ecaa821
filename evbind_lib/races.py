"""The statistics of a race: whether a trial is worse than the best so far, or can hardly end better, by the folds it has done.

Folds and validation posts are the same in every trial, so trials are compared pair by pair. What is old: dropping what is
surely inferior while it is evaluated (Hoeffding races, Maron and Moore, NIPS 1993; F-race, Birattari et al., GECCO 2002;
CVST, Krueger, Panel and Braun, JMLR 16, 2015), a bootstrap of out-of-sample predictions to do so (BBCD-CV, Tsamardinos,
Greasidou and Borboudakis, Machine Learning 107, 2018), and giving up what can hardly win any more (stochastic
curtailment: Lan, Simon and Halperin, Sequential Analysis 1, 1982). What is added: the noise of training anew, and that the
best was chosen on these very folds. Knows nothing of Optuna. Imports `estimate` and `metrics`; `racing` imports it.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from functools import lru_cache
from typing import Any

import numpy as np
import pandas as pd

from evbind_lib.estimate import resampled
from evbind_lib.metrics import AGGREGATIONS, log_losses

CLEARLY_BELOW = 2.5  # standard errors of a difference that a complete trial may lie below the best and still contend
MOST_CONTENDERS = 100  # the luckiest of more would hardly be luckier, and drawing them takes time
SMOOTHING = 0.25  # of the drawn noise of training, in its standard deviations (Efron and Tibshirani 1993, chapter 16)
FEWEST_PEERS = 5  # complete trials that the spread is estimated from, where there are as many


@dataclass(frozen=True)
class FoldScore:
    """Metric of one trial in one fold, and how it would have varied over other posts.

    Attributes
    ----------
    value : float
    noise : ndarray of float, shape (n_resamples,)
        Replicates of the metric over posts drawn anew, minus their mean; the same posts for every trial of a fold.
    losses : ndarray of float, shape (n_posts,), or None
        Mean log loss of each post, where the metric is log loss.
    pairs : tuple
        Number of pairs, posts and evidence; what differs in it cannot be compared.
    """

    value: float
    noise: np.ndarray
    losses: np.ndarray | None
    pairs: tuple[int, int, int]


@dataclass(frozen=True)
class Verdict:
    """What was found about a trial after a fold.

    Attributes
    ----------
    stop : bool
    rule : str
        ``worse`` or ``futile`` where the trial is stopped, else ``go on``, or why there was nothing to judge.
    difference : float
        Running aggregate minus that of the best trial over the same folds; in the metric's own sign.
    p_value : float
        Of the test against being worse than the best.
    level : float
        What the p-value is held against: ``p``, divided by one more than the number of looks.
    chance : float
        Predicted chance that the trial would end better than the best by more than the margin.
    n_contenders : int
        Complete trials that the best was chosen from: those not clearly below it.
    """

    stop: bool
    rule: str
    difference: float = float("nan")
    p_value: float = float("nan")
    level: float = float("nan")
    chance: float = float("nan")
    n_contenders: int = 0


def score_fold(predictions: pd.DataFrame, metric: str, *, fold: int, n_resamples: int) -> FoldScore:
    """Measure a fold, and draw its posts anew; the fold's number is the seed, so that all trials meet the same draws.

    Parameters
    ----------
    predictions : pandas.DataFrame
        Of one fold; columns post_id, label and probability.
    metric : str
    fold : int
    n_resamples : int

    Returns
    -------
    FoldScore
    """
    posts = np.unique(predictions["post_id"].to_numpy(dtype=str), return_inverse=True)[1]
    n_posts = int(posts.max()) + 1
    value, *draws = resampled(predictions, metric, _weights(n_posts, n_resamples, fold))
    noise = np.asarray(draws)
    known = np.isfinite(noise)
    center = noise[known].mean() if known.any() else np.nan
    # A resample of n posts varies by (n - 1) / n of what n new posts would.
    noise = np.where(known, noise - center, 0.0) * np.sqrt(n_posts / max(n_posts - 1, 1))
    losses = None
    label, probability = predictions["label"].to_numpy(), predictions["probability"].to_numpy()
    if metric == "log_loss":
        losses = np.bincount(posts, weights=log_losses(label, probability)) / np.bincount(posts)
    return FoldScore(float(value), noise, losses, (len(posts), n_posts, int(label.sum())))


@lru_cache(maxsize=16)
def _weights(n_posts: int, n_resamples: int, fold: int) -> np.ndarray:
    """Times each post is drawn; the first row is the posts as they are."""
    drawn = np.random.default_rng(fold).multinomial(n_posts, np.full(n_posts, 1 / n_posts), size=n_resamples)
    return np.vstack([np.ones((1, n_posts), dtype=drawn.dtype), drawn])


def residual_mean_square(scores: np.ndarray) -> tuple[float, float]:
    """Variance of a fold's score about what trial and fold explain, and its degrees of freedom.

    Half the variance over folds of the difference of two trials, on average over pairs of trials: posts and training both.
    The degrees are those of a chi-square that varies as much as the estimate does, by the residuals' excess kurtosis k: the
    variance of a mean square of n is (2 / degrees + k / n) times its square, and failed trainings make long tails.

    Parameters
    ----------
    scores : ndarray of float, shape (n_trials, n_folds)

    Returns
    -------
    tuple of float and float
    """
    left = scores - scores.mean(axis=1, keepdims=True) - scores.mean(axis=0, keepdims=True) + scores.mean()
    nominal = (scores.shape[0] - 1) * (scores.shape[1] - 1)
    squares = left**2
    excess = (squares**2).mean() / (squares.mean() ** 2 or 1.0) - 3
    return float(squares.sum() / nominal), float(2 / (2 / nominal + max(0.0, excess) / squares.size))


def training_shape(scores: np.ndarray) -> np.ndarray:
    """Pooled noise of the folds' scores, with mean 0 and variance 1: trainings that fail are not normal, they are far below.

    Distances to each trial's median over folds, since a mean would hand part of a failure to the other folds.

    Parameters
    ----------
    scores : ndarray of float, shape (n_trials, n_folds)

    Returns
    -------
    ndarray of float, shape (n_trials * n_folds,)
    """
    apart = scores - scores.mean(axis=0)
    left = (apart - np.median(apart, axis=1, keepdims=True)).ravel()
    left = left - left.mean()
    return np.asarray(left / (left.std() or 1.0))


def peers_of(scores: np.ndarray) -> np.ndarray:
    """Indices of the better half: what the spread is estimated from, since bad trials tell little of the noise of good ones.

    Better by the median over folds. By the mean, a trial with one failed training would hardly ever be among them, and the
    spread would be that of lucky trials.

    Parameters
    ----------
    scores : ndarray of float, shape (n_trials, n_folds)

    Returns
    -------
    ndarray of int
    """
    middle = np.median(scores - scores.mean(axis=0), axis=1)
    return np.argsort(-middle, kind="stable")[: max(FEWEST_PEERS, -(-len(middle) // 2))]


def post_mean_square(noise: np.ndarray) -> float:
    """Part of `residual_mean_square` that the choice of posts explains: what trials share in a resample cancels out.

    Parameters
    ----------
    noise : ndarray of float, shape (n_trials, n_folds, n_resamples)

    Returns
    -------
    float
    """
    apart = noise - noise.mean(axis=0)
    return float((apart**2).mean(axis=(1, 2)).sum() / (len(noise) - 1))


def null_differences(
    candidate: np.ndarray,
    contenders: np.ndarray,
    profile: np.ndarray,
    training_sd: np.ndarray,
    shape: np.ndarray,
    aggregation: str,
) -> np.ndarray:
    """Running difference to the best where all are truly equal, and the best is the luckiest of the contenders.

    Equal contenders are the least favourable case: the more of them could have been the best, the luckier the one is that was.

    Parameters
    ----------
    candidate : ndarray of float, shape (n_done, n_resamples)
        Noise of the candidate in the folds done.
    contenders : ndarray of float, shape (n_contenders, n_folds, n_resamples)
    profile : ndarray of float, shape (n_folds,)
        What all of them would score but for noise.
    training_sd : ndarray of float, shape (n_resamples,)
        Standard deviation of a fold's score from one training to another.
    shape : ndarray of float, shape (n,)
        Noise of training to draw from, as `training_shape` gives it.
    aggregation : str

    Returns
    -------
    ndarray of float, shape (n_resamples,)
    """
    together: Any = AGGREGATIONS[aggregation]
    random = np.random.default_rng(0)
    n_done, n_resamples = candidate.shape

    def trained(size: tuple[int, ...]) -> np.ndarray:
        smooth = random.choice(shape, size) + SMOOTHING * random.standard_normal(size)
        return np.asarray(training_sd * smooth / np.sqrt(1 + SMOOTHING**2))

    others = profile[:, None] + contenders + trained(contenders.shape)
    best = others[np.argmax(together(others, axis=1), axis=0), :, np.arange(n_resamples)]
    own = profile[:n_done, None] + candidate + trained(candidate.shape)
    return np.asarray(together(own, axis=0) - together(best[:, :n_done], axis=1))


def predicted_finals(
    candidate: np.ndarray, peers: np.ndarray, mean_square: float, freedom: float, aggregation: str, n_draws: int
) -> np.ndarray:
    """Draws of the final score of a trial: its folds done, and predictions of the others from those of its peers.

    A fold is predicted as the peers' mean in it plus the candidate's mean distance to them so far, with the error of both
    and, as the mean square is itself estimated, Student's tails. Nothing is supposed about the candidate beforehand; as most
    trials are worse than the best, a chance told after few folds is rather too high than too low, which stops fewer.

    Parameters
    ----------
    candidate : ndarray of float, shape (n_done,)
    peers : ndarray of float, shape (n_peers, n_folds)
    mean_square : float
    freedom : float
        As `residual_mean_square` gives them.
    aggregation : str
    n_draws : int

    Returns
    -------
    ndarray of float, shape (n_draws,)
    """
    random = np.random.default_rng(1)
    n_done, n_left = len(candidate), peers.shape[1] - len(candidate)
    fold_means = peers.mean(axis=0)
    spread = np.sqrt(mean_square * (1 + 1 / len(peers)) * freedom / random.chisquare(freedom, n_draws))
    distance = (candidate - fold_means[:n_done]).mean() + spread / np.sqrt(n_done) * random.standard_normal(n_draws)
    ahead = fold_means[n_done:, None] + distance + spread * random.standard_normal((n_left, n_draws))
    finals = np.vstack([np.repeat(candidate[:, None], n_draws, axis=1), ahead])
    return np.asarray(AGGREGATIONS[aggregation](finals, axis=0))


def signed_rank(candidate: Sequence[FoldScore], best: Sequence[FoldScore]) -> float:
    """One-sided p-value of Wilcoxon's signed-rank test on the posts' log losses: that the candidate's are not larger."""
    from scipy.stats import wilcoxon  # type: ignore[import-untyped]

    pairs = zip(candidate, best, strict=False)  # the best has more folds
    differences = np.concatenate([np.asarray(own.losses) - np.asarray(other.losses) for own, other in pairs])
    return float(wilcoxon(differences, alternative="greater", zero_method="zsplit").pvalue)


def judge(
    candidate: Sequence[FoldScore],
    complete: Sequence[Sequence[FoldScore]],
    *,
    aggregation: str = "mean",
    direction: str = "maximize",
    p: float = 0.05,
    futility: float | None = 0.1,
    margin: float = 0.0,
    n_looks: int | None = None,
    ranks: bool = False,
) -> Verdict:
    """Compare the folds of a trial with the complete trials of its study.

    Parameters
    ----------
    candidate : sequence of FoldScore
        Of the folds done, in order; fewer than there are.
    complete : sequence of sequences of FoldScore
        Of all folds, of at least two trials.
    aggregation, direction : str
        Of the study.
    p, futility, margin
        As in `evbind_lib.racing.RacingPruner`.
    n_looks : int, optional
        Times the trial is judged in all; by default after every fold but the last.
    ranks : bool
        Test by `signed_rank`, not by the bootstrap.

    Returns
    -------
    Verdict
    """
    sign = 1.0 if direction == "maximize" else -1.0
    if sign < 0:  # what is small is good: turned over, so that below all is as if maximized
        aggregation = {"min": "max", "max": "min"}.get(aggregation, aggregation)
    together: Any = AGGREGATIONS[aggregation]
    own, n_done = sign * np.array([fold.value for fold in candidate]), len(candidate)
    scores = sign * np.array([[fold.value for fold in folds] for folds in complete])
    if not (np.isfinite(own).all() and np.isfinite(scores).all()):
        return Verdict(False, "a score is not a number")
    finals = together(scores, axis=1)
    best, peers, n_folds = int(np.argmax(finals)), peers_of(scores), scores.shape[1]
    mean_square, freedom = residual_mean_square(scores[peers])
    difference = float(together(own) - together(scores[best, :n_done]))

    own_noise = sign * np.array([fold.noise for fold in candidate])

    def noise_of(trials: Iterable[int]) -> np.ndarray:
        return sign * np.array([[fold.noise for fold in complete[index]] for index in trials])

    near = np.flatnonzero(finals[best] - finals <= CLEARLY_BELOW * np.sqrt(2 * mean_square / n_folds))
    n_near, near = len(near), near[np.argsort(-finals[near], kind="stable")][:MOST_CONTENDERS]
    # A share for each look, and one in reserve for what the noise of training is not: as it was drawn.
    level = p / (1 + (n_folds - 1 if n_looks is None else n_looks))
    if ranks:
        p_value = min(1.0, signed_rank(candidate, complete[best]) * n_near) if difference < 0 else 1.0
    else:
        # Drawn, not fixed: few trials tell little about the spread.
        drawn = mean_square * freedom / np.random.default_rng(2).chisquare(freedom, own_noise.shape[1])
        training_sd = np.sqrt(np.maximum(drawn - post_mean_square(noise_of(peers[:MOST_CONTENDERS])), 0))
        shape = training_shape(scores[peers])
        null = null_differences(own_noise, noise_of(near), scores[near].mean(axis=0), training_sd, shape, aggregation)
        p_value = float((1 + (null <= difference).sum()) / (1 + len(null)))

    # Where the complete trials all call everything alike, nothing varies; posts still would for this one.
    posts_alone = ((own_noise - noise_of([best])[0, :n_done]) ** 2).mean() / 2
    spread = max(mean_square, float(posts_alone))
    ahead = predicted_finals(own, scores[peers], spread, freedom, aggregation, own_noise.shape[1])
    chance = float((ahead > finals[best] + margin).mean())
    rule = "go on"
    if p_value <= level:
        rule = "worse"
    elif futility is not None and chance < futility:
        rule = "futile"
    return Verdict(rule != "go on", rule, sign * difference, p_value, level, chance, n_near)
