"""When a search ends before its last trial: nothing better for long, Optuna's terminator, or a grid that is done.

Imports `grid`, `objectives`, `params`, `strategies` and `studies`; `search` asks it after each trial.
"""

from __future__ import annotations

import warnings

import numpy as np
import optuna
from optuna.trial import FrozenTrial

from evbind_lib.config.compose import Params
from evbind_lib.hpo.grid import GridSampler
from evbind_lib.hpo.objectives import best_trial, complete_trials, dominates, is_feasible, losses
from evbind_lib.hpo.samplers import build_sampler
from evbind_lib.hpo.study import finished_trials


def should_stop(study: optuna.Study, params: Params) -> str | None:
    """Whether the search should start no further trial, by ``hpo.stop`` and the grid.

    Parameters
    ----------
    study : optuna.Study
    params : Params

    Returns
    -------
    str or None
        The reason, as a sentence; None to go on.
    """
    rules = params.hpo.stop
    if rules.no_improvement is not None and (since := trials_since_improvement(study, params)) >= rules.no_improvement:
        last = "The last trial" if since == 1 else f"The last {since} trials"
        return f"{last} brought nothing better (hpo.stop.no_improvement={rules.no_improvement})."
    if rules.terminator and _terminates(study, params):
        return "What is left to gain is below the noise between folds (hpo.stop.terminator=true)."
    if params.hpo.sampler.type == "grid":
        grid = build_sampler(params.hpo.sampler, n_earlier_trials=0, params=params)
        if isinstance(grid, GridSampler) and grid.is_exhausted(study):
            return f"All {len(grid.points)} points of the grid have been tried."
    return None


def trials_since_improvement(study: optuna.Study, params: Params | None = None) -> int:
    """Number of finished trials after the last one that was better than all before it, in the order of their ends.

    Parameters
    ----------
    study : optuna.Study
    params : Params, optional
        As in `evbind_lib.hpo.objectives.is_feasible`.

    Returns
    -------
    int
        With several objectives a trial is better when none before it is as good in all of them. One outside the bounds, a
        pruned and a failed one never is.
    """
    ended = sorted(finished_trials(study), key=lambda trial: (trial.datetime_complete is None, trial.datetime_complete))
    counted = {trial.number for trial in complete_trials(study) if is_feasible(trial, params)}
    best: list[tuple[float, ...]] = []
    since = 0
    for trial in ended:
        since += 1
        if trial.number in counted:
            loss = losses(study, trial)
            if not any(dominates(other, loss) or other == loss for other in best):
                best = [other for other in best if not dominates(loss, other)] + [loss]
                since = 0
    return since


def _terminates(study: optuna.Study, params: Params) -> bool:
    """Ask Optuna's terminator (Makarova et al., AutoML 2022), with the spread of the best trial's folds as the noise."""
    best, trials = best_trial(study, params), complete_trials(study)
    if best is None or len(trials) < params.hpo.stop.min_trials:
        return False
    from optuna.terminator import RegretBoundEvaluator

    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # experimental, and on its way to OptunaHub
        evaluator = RegretBoundEvaluator(min_n_trials=params.hpo.stop.min_trials, seed=params.hpo.sampler.seed)
        try:
            left = evaluator.evaluate(trials=trials, study_direction=study.direction)
        except ValueError:  # no parameter that all trials have
            return False
    return left < fold_noise(best)


def fold_noise(trial: FrozenTrial) -> float:
    """Standard error of a trial's mean over folds, corrected for folds that share training data.

    Parameters
    ----------
    trial : FrozenTrial
        Its ``fold_scores`` are at least two.

    Returns
    -------
    float
        By ``var * (1/k + 1/(k-1))`` for k folds, as Optuna's terminator takes it (Nadeau and Bengio, Machine Learning 52,
        2003).
    """
    scores = np.asarray(trial.user_attrs["fold_scores"], dtype=float)
    k = len(scores)
    return float(np.sqrt(scores.var() * (1 / k + 1 / (k - 1))))
