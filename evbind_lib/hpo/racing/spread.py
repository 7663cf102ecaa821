"""What a fold's score is, and how it would vary: with other posts, and from one training to another.

Knows nothing of Optuna. Imports `estimate` and `metrics`; `races` and `racing` import it.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import lru_cache

import numpy as np
import pandas as pd

from evbind_lib.evaluation.estimate import resampled
from evbind_lib.training.metrics import log_losses

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
    course : tuple of (share, value)
        Metric after each epoch, with the share of the fold's training that was done; empty where it was not kept.
    """

    value: float
    noise: np.ndarray
    losses: np.ndarray | None
    pairs: tuple[int, int, int]
    course: tuple[tuple[float, float], ...] = ()


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
