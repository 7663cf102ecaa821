"""What a search improves: one metric or several, the bounds it must keep, and which trial is the best.

Imports `errors`, `hpo`, `metrics`, `params` and `strategies`; `studies`, `search` and everything above may import it.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence

import optuna
from optuna.study import StudyDirection
from optuna.trial import FrozenTrial, TrialState

from evbind_lib.config.compose import Params
from evbind_lib.config.hpo import SECONDS, PrunerParams, natural_direction
from evbind_lib.errors import ParamsError
from evbind_lib.hpo.samplers import ONE_OBJECTIVE_ONLY
from evbind_lib.training.metrics import aggregate


def several(params: Params) -> bool:
    """Whether the search has more than one objective."""
    return len(params.hpo.metric.names) > 1


def metric_names(params: Params) -> list[str]:
    """Names of the objectives, in their order; the first decides the best trial."""
    return list(params.hpo.metric.names)


def directions(params: Params) -> list[str]:
    """Direction of each objective, ``maximize`` or ``minimize``, in their order."""
    return [natural_direction(name) for name in params.hpo.metric.names]


def effective_pruner(params: Params) -> PrunerParams:
    """Pruner that a study can have: Optuna prunes on one objective only, so with several there is none.

    Parameters
    ----------
    params : Params

    Returns
    -------
    PrunerParams
    """
    return PrunerParams(type="none") if several(params) else params.hpo.pruner


def check_objectives(params: Params) -> None:
    """Refuse a sampler that cannot do what is asked for.

    Raises
    ------
    ParamsError
        For several objectives or constraints with a sampler that knows neither. The others can do both: ``tpe``, ``gp`` and
        ``nsgaii`` learn from them; ``random``, ``qmc`` and ``grid`` learn from nothing, and the best trial respects them.
    """
    kind = params.hpo.sampler.type
    if kind not in ONE_OBJECTIVE_ONLY:
        return
    for asked, what in ((several(params), "several objectives"), (bool(params.hpo.constraints), "constraints")):
        if asked:
            raise ParamsError(
                f"hpo.sampler.type={kind}: it cannot search with {what}; set hpo.sampler.type to tpe, gp or nsgaii."
            )


def _value(params: Params, name: str, folds: Sequence[Mapping[str, float]], seconds: float) -> float:
    if name == SECONDS:
        return float(seconds)
    return aggregate([metrics[name] for metrics in folds], params.hpo.metric.fold_aggregation)


def objective_values(
    params: Params, folds: Sequence[Mapping[str, float]], seconds: float = math.nan
) -> float | list[float]:
    """What a trial returns to Optuna.

    Parameters
    ----------
    params : Params
    folds : sequence of mapping of str to float
        Metrics of each fold.
    seconds : float
        That the folds trained, also where they are known from before.

    Returns
    -------
    float or list of float
        One number for one objective, a list in their order for several; metrics drawn together over the folds.
    """
    values = [_value(params, name, folds, seconds) for name in params.hpo.metric.names]
    return values if several(params) else values[0]


def constraint_values(
    params: Params, folds: Sequence[Mapping[str, float]], seconds: float = math.nan
) -> dict[str, float]:
    """How far a trial is outside each bound, for ``trial.set_constraint``.

    Parameters
    ----------
    params : Params
    folds : sequence of mapping of str to float
        Metrics of each fold; they are drawn together as the objective is.
    seconds : float
        That the folds trained.

    Returns
    -------
    dict of str to float
        By ``METRIC.low`` and ``METRIC.high``; 0 or less keeps the bound, as Optuna has it.
    """
    found: dict[str, float] = {}
    for name, bounds in params.hpo.constraints.items():
        value = _value(params, name, folds, seconds)
        if bounds.low is not None:
            found[f"{name}.low"] = bounds.low - value
        if bounds.high is not None:
            found[f"{name}.high"] = value - bounds.high
    return found


def is_feasible(trial: FrozenTrial, params: Params | None = None) -> bool:
    """Whether a trial keeps every bound.

    Parameters
    ----------
    trial : FrozenTrial
    params : Params, optional
        With them only the metrics count that they bound today: bounds may be dropped when a search goes on.

    Returns
    -------
    bool
    """
    bounds = trial.constraints
    if params is not None:
        bounds = {key: value for key, value in bounds.items() if key.rpartition(".")[0] in params.hpo.constraints}
    return all(value <= 0 for value in bounds.values())


def complete_trials(study: optuna.Study) -> list[FrozenTrial]:
    """Complete trials that count, by number; one that ran beyond ``n_trials`` does not.

    Parameters
    ----------
    study : optuna.Study

    Returns
    -------
    list of FrozenTrial
    """
    trials = study.get_trials(deepcopy=False, states=(TrialState.COMPLETE,))
    return [trial for trial in trials if not trial.user_attrs.get("surplus")]


def losses(study: optuna.Study, trial: FrozenTrial) -> tuple[float, ...]:
    """Objectives of a complete trial turned so that lower is better."""
    signs = [-1.0 if direction == StudyDirection.MAXIMIZE else 1.0 for direction in study.directions]
    return tuple(sign * value for sign, value in zip(signs, trial.values, strict=True))


def dominates(one: Sequence[float], other: Sequence[float]) -> bool:
    """Whether the losses of one trial are nowhere higher than those of another, and somewhere lower."""
    return all(a <= b for a, b in zip(one, other, strict=True)) and any(a < b for a, b in zip(one, other, strict=True))


def pareto_front(study: optuna.Study, params: Params | None = None) -> list[FrozenTrial]:
    """Complete trials within the bounds that no other one is better than in every objective.

    Parameters
    ----------
    study : optuna.Study
    params : Params, optional
        As in `is_feasible`.

    Returns
    -------
    list of FrozenTrial
        The best in the first objective first. Of one objective the front is its best trials, most often one.
    """
    feasible = [trial for trial in complete_trials(study) if is_feasible(trial, params)]
    ranked = sorted(((losses(study, trial), trial.number, trial) for trial in feasible), key=lambda row: row[:2])
    front: list[tuple[tuple[float, ...], FrozenTrial]] = []
    for loss, _, trial in ranked:  # whoever dominates a trial comes before it, and so does one of the front that does
        if not any(dominates(better, loss) for better, _ in front):
            front.append((loss, trial))
    return [trial for _, trial in front]


def best_trial(study: optuna.Study, params: Params | None = None) -> FrozenTrial | None:
    """The trial to go on with: of those within the bounds the best in the first objective.

    Parameters
    ----------
    study : optuna.Study
    params : Params, optional
        As in `is_feasible`.

    Returns
    -------
    FrozenTrial or None
        The earliest of equals; of several objectives always one of the Pareto front. None where no complete trial is
        within the bounds.
    """
    feasible = (trial for trial in complete_trials(study) if is_feasible(trial, params))
    return min(feasible, key=lambda trial: (losses(study, trial), trial.number), default=None)


def why_no_best(study: optuna.Study) -> str:
    """Say how near the complete trials come to the bounds that none of them keeps.

    Parameters
    ----------
    study : optuna.Study
        `best_trial` found none in it.

    Returns
    -------
    str
        The middle of a sentence; empty where no trial is complete.
    """
    trials = complete_trials(study)
    if not trials:
        return ""
    nearest = min(trials, key=lambda trial: (max(trial.constraints.values()), trial.number))
    missed = ", ".join(f"{name} by {value:.4g}" for name, value in nearest.constraints.items() if value > 0)
    return (
        f"none of its {len(trials)} complete trials keeps hpo.constraints (trial {nearest.number} comes nearest, missing "
        f"{missed})"
    )


def names_of(study: optuna.Study) -> list[str]:
    """Names of the study's objectives, as its trials' values are ordered."""
    return list(study.metric_names or ["score", *(f"objective {n}" for n in range(2, len(study.directions) + 1))])
