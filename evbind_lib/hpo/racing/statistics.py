"""Whether a trial is worse than the best, or unlikely to end better, by the same posts of the folds that it has done."""

# As F-race (Birattari et al., GECCO 2002) and CVST (Krueger, Panel, Braun, JMLR 16, 2015), with the noise of training added.

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import pandas as pd

from evbind_lib.evaluation.estimate import bootstrap
from evbind_lib.training.metrics import AGGREGATIONS

Array = np.ndarray
FEWEST_PEERS = 5  # complete trials that the spread is estimated from, where there are as many
CLEARLY_BELOW = 2.5  # standard errors of a difference that a complete trial may lie below the best and still contend
MOST_CONTENDERS = 100  # the luckiest of more would hardly be luckier, and drawing them takes time
SMOOTHING = 0.25  # of the drawn noise of training, in its standard deviations (Efron and Tibshirani 1993, chapter 16)


@dataclass(frozen=True)
class FoldScore:
    """Metric of a trial in a fold, and bootstrap replicates of it over posts, minus their mean, (n_resamples,)."""

    value: float
    noise: Array


@dataclass(frozen=True)
class Verdict:
    """What was found about a trial after a fold."""

    rule: str  # worse or futile, where it is stopped, else go on, or why nothing was judged
    p_value: float = float("nan")  # of the test against being worse, held against the level
    level: float = float("nan")
    chance: float = float("nan")  # predicted, of ending better by the margin

    @property
    def stop(self) -> bool:
        """Whether the trial is stopped."""
        return self.rule in ("worse", "futile")


def score_fold(predictions: pd.DataFrame, metric: str, *, fold: int, n_resamples: int) -> FoldScore:
    """Score a fold and bootstrap its posts; the fold's number is the seed, so that all trials meet the same draws."""
    scores = bootstrap(predictions, metric, n_resamples=n_resamples, seed=fold)
    noise, n_posts = scores[1:], predictions["post_id"].nunique()
    known = np.isfinite(noise)
    noise = np.where(known, noise - noise[known].sum() / max(known.sum(), 1), 0.0)
    # A resample of n posts varies by (n - 1) / n of what n new posts would.
    return FoldScore(float(scores[0]), noise * np.sqrt(n_posts / max(n_posts - 1, 1)))


def residual_mean_square(scores: Array) -> tuple[float, float]:
    """Variance of a fold's score about what trial and fold explain, and its degrees of freedom; scores (n_trials, n_folds)."""
    # Half the variance over folds of the difference of two trials, on average over pairs of trials: posts and training both.
    left = scores - scores.mean(axis=1, keepdims=True) - scores.mean(axis=0) + scores.mean()
    nominal, squares = (scores.shape[0] - 1) * (scores.shape[1] - 1), left**2
    # The degrees are those of a chi-square that varies as much as the estimate does: the variance of a mean square of n is
    # (2 / degrees + kurtosis / n) times its square, and failed trainings make long tails.
    excess = (squares**2).mean() / (squares.mean() ** 2 or 1.0) - 3
    return float(squares.sum() / nominal), float(2 / (2 / nominal + max(0.0, excess) / squares.size))


def post_mean_square(noise: Array) -> float:
    """Part of `residual_mean_square` that the choice of posts explains; noise (n_trials, n_folds, n_resamples)."""
    apart = noise - noise.mean(axis=0)  # what trials share in a resample cancels out
    return float((apart**2).mean(axis=(1, 2)).sum() / (len(noise) - 1))


def training_shape(scores: Array) -> Array:
    """Pooled noise of the folds' scores, with mean 0 and variance 1: a failed training is far below, not normal."""
    apart = scores - scores.mean(axis=0)
    # Distances to the median over folds: a trial's mean would hand part of a failure to its other folds.
    left = (apart - np.median(apart, axis=1, keepdims=True)).ravel()
    return np.asarray((left - left.mean()) / (left.std() or 1.0))


def peers_of(scores: Array) -> Array:
    """Indices of the better half, which the spread is estimated from: bad trials do not have the noise of good ones."""
    # By the median over folds: by the mean, a trial with one failed training would hardly ever be among them.
    middle = np.median(scores - scores.mean(axis=0), axis=1)
    return np.argsort(-middle, kind="stable")[: max(FEWEST_PEERS, -(-len(middle) // 2))]


def null_differences(
    candidate: Array, contenders: Array, profile: Array, spreads: tuple[Array, Array], shape: Array, aggregation: str
) -> Array:
    """Draws of the running difference to the best where all are truly equal, and the best is the luckiest contender.

    Noise of posts: (n_done, n_resamples) and (n_contenders, n_folds, n_resamples); ``profile``: folds' scores without noise;
    ``spreads``: of trainings of the candidate and of the others, (n_resamples,) each.
    """
    combine: Any = AGGREGATIONS[aggregation]
    random, (n_done, n_resamples) = np.random.default_rng(0), candidate.shape

    def trained(noise: Array, spread: Array) -> Array:
        smooth = random.choice(shape, noise.shape) + SMOOTHING * random.standard_normal(noise.shape)
        return np.asarray(profile[: noise.shape[-2], None] + noise + spread * smooth / np.sqrt(1 + SMOOTHING**2))

    # The least favourable case: the more of them could have been the best, the luckier the one that was.
    others = trained(contenders, spreads[1])
    best = others[np.argmax(combine(others, axis=1), axis=0), :, np.arange(n_resamples)]
    return np.asarray(combine(trained(candidate, spreads[0]), axis=0) - combine(best[:, :n_done], axis=1))


def predicted_finals(
    candidate: Array, peers: Array, mean_square: float, freedom: float, aggregation: str, n_draws: int
) -> Array:
    """Draws of the final score of a trial, from its folds done (n_done,) and all folds of its peers (n_peers, n_folds)."""
    # A fold ahead is predicted as the peers' mean in it plus the candidate's mean distance to them so far, with the error of
    # both and, as the mean square is itself estimated, Student's tails. Nothing is assumed about the candidate beforehand: as
    # most trials are worse than the best, a chance stated after few folds is rather too high than too low, which stops fewer.
    random, fold_means = np.random.default_rng(1), peers.mean(axis=0)
    n_done, n_left = len(candidate), peers.shape[1] - len(candidate)
    own = np.repeat(candidate[:, None], n_draws, axis=1)
    spread = np.sqrt(mean_square * (1 + 1 / len(peers)) * freedom / random.chisquare(freedom, n_draws))
    distance = (candidate - fold_means[:n_done]).mean() + spread / np.sqrt(n_done) * random.standard_normal(n_draws)
    ahead = fold_means[n_done:, None] + distance + spread * random.standard_normal((n_left, n_draws))
    return np.asarray(AGGREGATIONS[aggregation](np.vstack([own, ahead]), axis=0))


def judge(
    candidate: Sequence[FoldScore],
    complete: Sequence[Sequence[FoldScore]],
    *,
    aggregation: str = "mean",
    greater_is_better: bool = True,
    p: float = 0.05,
    futility: float | None = 0.1,
    margin: float = 0.0,
    n_looks: int | None = None,
) -> Verdict:
    """Compare the folds that a trial has done, fewer than there are, with all folds of at least two complete trials."""
    # A metric to be minimised is turned over, and the aggregation with it.
    sign = 1.0 if greater_is_better else -1.0
    if not greater_is_better:
        aggregation = {"min": "max", "max": "min"}.get(aggregation, aggregation)
    combine: Any = AGGREGATIONS[aggregation]
    own = sign * np.array([fold.value for fold in candidate])
    own_noise = sign * np.array([fold.noise for fold in candidate])
    scores = sign * np.array([[fold.value for fold in folds] for folds in complete])
    noise = sign * np.array([[fold.noise for fold in folds] for folds in complete])
    if not (np.isfinite(own).all() and np.isfinite(scores).all()):
        return Verdict("a score is not a number")
    (n_done, n_resamples), n_folds = own_noise.shape, scores.shape[1]
    finals, peers = combine(scores, axis=1), peers_of(scores)
    best = int(np.argmax(finals))
    mean_square, freedom = residual_mean_square(scores[peers])
    difference = float(combine(own) - combine(scores[best, :n_done]))

    near = np.flatnonzero(finals[best] - finals <= CLEARLY_BELOW * np.sqrt(2 * mean_square / n_folds))
    near = near[np.argsort(-finals[near], kind="stable")][:MOST_CONTENDERS]
    # Sets differ in noise, and a training may fail: a trial whose own folds scatter more is judged by its own scatter.
    apart = own - scores[peers, :n_done].mean(axis=0)
    own_square = float(apart.var(ddof=1)) / (1 + 1 / len(peers)) if n_done > 1 else 0.0
    # The variance is drawn, not fixed: few trials say little about the spread.
    factor = freedom / np.random.default_rng(2).chisquare(freedom, n_resamples)
    of_posts = post_mean_square(noise[peers])
    squares = max(mean_square, own_square), mean_square
    spreads = tuple(np.sqrt(np.maximum(square * factor - of_posts, 0)) for square in squares)
    shape = training_shape(scores[peers])
    null = null_differences(own_noise, noise[near], scores[near].mean(axis=0), spreads, shape, aggregation)
    p_value = float((1 + (null <= difference).sum()) / (1 + len(null)))
    # An equal part for each look, and one in reserve for the noise of training being other than it was drawn.
    level = p / (1 + (n_folds - 1 if n_looks is None else n_looks))

    # Where all complete trials decide every pair alike, their scores do not vary; over posts this trial's still would.
    posts_alone = ((own_noise - noise[best, :n_done]) ** 2).mean() / 2
    final = predicted_finals(own, scores[peers], max(mean_square, posts_alone), freedom, aggregation, n_resamples)
    chance = float((final > finals[best] + margin).mean())
    futile = futility is not None and chance < futility
    rule = "worse" if p_value <= level else "futile" if futile else "go on"
    return Verdict(rule, p_value, level, chance)
