"""The statistics of a race: whether a trial is worse than the best so far, or can hardly end better, by the folds it has done.

Folds and validation posts are the same in every trial, so trials are compared pair by pair. What is old: dropping what is
surely inferior while it is evaluated (Hoeffding races, Maron and Moore, NIPS 1993; F-race, Birattari et al., GECCO 2002;
CVST, Krueger, Panel and Braun, JMLR 16, 2015), a bootstrap of out-of-sample predictions to do so (BBCD-CV, Tsamardinos,
Greasidou and Borboudakis, Machine Learning 107, 2018), and giving up what can hardly win any more (stochastic
curtailment: Lan, Simon and Halperin, Sequential Analysis 1, 1982). What is added: the noise of training anew, and that the
best was chosen on these very folds. Knows nothing of Optuna. Imports `metrics` and `spread`; `racing` imports it.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from evbind_lib.hpo.racing.spread import FoldScore, peers_of, post_mean_square, residual_mean_square, training_shape
from evbind_lib.training.metrics import AGGREGATIONS

CLEARLY_BELOW = 2.5  # standard errors of a difference that a complete trial may lie below the best and still contend
MOST_CONTENDERS = 100  # the luckiest of more would hardly be luckier, and drawing them takes time
SMOOTHING = 0.25  # of the drawn noise of training, in its standard deviations (Efron and Tibshirani 1993, chapter 16)
NOTHING = 1e-9  # a difference of scores that is but rounding
FEWEST_COURSES = 8  # degrees of freedom of the prediction of a fold's end


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
    candidate : ndarray of float, shape (n_done,) or (n_done, n_draws)
        A fold whose score is itself a prediction comes as draws.
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
    own = np.broadcast_to(candidate.reshape(n_done, -1), (n_done, n_draws))
    spread = np.sqrt(mean_square * (1 + 1 / len(peers)) * freedom / random.chisquare(freedom, n_draws))
    distance = (own - fold_means[:n_done, None]).mean(axis=0) + spread / np.sqrt(n_done) * random.standard_normal(
        n_draws
    )
    ahead = fold_means[n_done:, None] + distance + spread * random.standard_normal((n_left, n_draws))
    finals = np.vstack([own, ahead])
    return np.asarray(AGGREGATIONS[aggregation](finals, axis=0))


def predicted_fold(
    score: float, share: float, complete: Sequence[Sequence[FoldScore]], n_draws: int
) -> np.ndarray | None:
    """Draws of a fold's score at the end of its training, from its score after a share of it.

    By a regression of the final scores of all complete trials' folds on what they were after the same share of their own
    training (between two epochs: on the line between them), with the error of a new observation: Student's t.

    Parameters
    ----------
    score : float
    share : float
    complete : sequence of sequences of FoldScore
    n_draws : int

    Returns
    -------
    ndarray of float, shape (n_draws,), or None
        None where nothing can be told: too few courses are known, or they are so much alike that they say nothing of this one.
    """
    known = [fold for folds in complete for fold in folds if fold.course]
    courses = [np.array(fold.course) for fold in known]
    then = np.array([np.interp(share, course[:, 0], course[:, 1]) for course in courses])
    end = np.array([fold.value for fold in known])
    freedom = len(known) - 2
    if freedom < FEWEST_COURSES or not (np.isfinite(then).all() and np.isfinite(end).all() and np.isfinite(score)):
        return None
    about, away = then - then.mean(), score - then.mean()
    alike = bool(np.ptp(then) < NOTHING)
    if alike and abs(away) > NOTHING:
        return None  # where all stood at one score, nobody knows what another one leads to
    squares = float((about**2).sum())
    slope = 0.0 if alike else float((about * end).sum()) / squares
    left = end - end.mean() - slope * about
    leverage = 1 / len(known) + (0.0 if alike else away**2 / squares)
    error = np.sqrt((left**2).sum() / freedom * (1 + leverage))
    if alike and error < NOTHING:
        return None  # complete trials that call everything alike; this one may yet learn
    draws = np.random.default_rng(3).standard_t(freedom, n_draws)
    return np.asarray(end.mean() + slope * away + error * draws)


def chance_within_a_fold(
    done: Sequence[FoldScore],
    score: float,
    share: float,
    complete: Sequence[Sequence[FoldScore]],
    *,
    aggregation: str = "mean",
    direction: str = "maximize",
    margin: float = 0.0,
    n_draws: int = 1000,
) -> float:
    """Predicted chance that a trial ends better than the best by more than the margin, asked within a fold's training.

    The fold's end is predicted by `predicted_fold`, the trial's by `predicted_finals`. Only this chance is asked for then: the
    test against being worse pairs predictions of trained models, and what half-trained ones predict tells of the schedule
    of their training as much as of the parameters.

    Parameters
    ----------
    done : sequence of FoldScore
        Folds before this one; may be empty.
    score : float
        Metric in this fold so far.
    share : float
        Of this fold's training that is done.
    complete : sequence of sequences of FoldScore
    aggregation, direction, margin
        As in `judge`.
    n_draws : int

    Returns
    -------
    float
        1 where nothing can be told.
    """
    sign, aggregation = _as_if_maximized(aggregation, direction)
    ending = predicted_fold(score, share, complete, n_draws)
    scores = sign * np.array([[fold.value for fold in folds] for folds in complete])
    own = sign * np.array([fold.value for fold in done])
    if ending is None or not (np.isfinite(scores).all() and np.isfinite(own).all()):
        return 1.0
    peers = scores[peers_of(scores)]
    mean_square, freedom = residual_mean_square(peers)
    candidate = np.vstack([np.repeat(own[:, None], n_draws, axis=1), sign * ending])
    ahead = predicted_finals(candidate, peers, mean_square, freedom, aggregation, n_draws)
    finals: Any = AGGREGATIONS[aggregation]
    return float((ahead > finals(scores, axis=1).max() + margin).mean())


def signed_rank(candidate: Sequence[FoldScore], best: Sequence[FoldScore]) -> float:
    """One-sided p-value of Wilcoxon's signed-rank test on the posts' log losses: that the candidate's are not larger."""
    from scipy.stats import wilcoxon  # type: ignore[import-untyped]

    pairs = zip(candidate, best, strict=False)  # the best has more folds
    differences = np.concatenate([np.asarray(own.losses) - np.asarray(other.losses) for own, other in pairs])
    return float(wilcoxon(differences, alternative="greater", zero_method="zsplit").pvalue)


def _as_if_maximized(aggregation: str, direction: str) -> tuple[float, str]:
    """Sign of the scores, and aggregation, that make a direction one of maximizing: what is small and good is turned over."""
    if direction == "maximize":
        return 1.0, aggregation
    return -1.0, {"min": "max", "max": "min"}.get(aggregation, aggregation)


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
        As in `evbind_lib.hpo.racing.pruner.RacingPruner`.
    n_looks : int, optional
        Times the trial is judged in all; by default after every fold but the last.
    ranks : bool
        Test by `signed_rank`, not by the bootstrap.

    Returns
    -------
    Verdict
    """
    sign, aggregation = _as_if_maximized(aggregation, direction)
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
