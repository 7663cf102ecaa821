"""Samplers and pruners of Optuna by the names used in ``params/hpo/``, their options checked before anything runs.

Imports `errors` and `params`; `search` imports it.
"""

from __future__ import annotations

import inspect
from typing import Any

import optuna

from evbind_lib.errors import ParamsError, did_you_mean
from evbind_lib.schema import PrunerParams, SamplerParams

SAMPLERS: dict[str, type[optuna.samplers.BaseSampler]] = {
    "tpe": optuna.samplers.TPESampler,
    "random": optuna.samplers.RandomSampler,
    "gp": optuna.samplers.GPSampler,
    "qmc": optuna.samplers.QMCSampler,
    "nsgaii": optuna.samplers.NSGAIISampler,
}
PRUNERS: dict[str, type[optuna.pruners.BasePruner]] = {
    "median": optuna.pruners.MedianPruner,
    "percentile": optuna.pruners.PercentilePruner,
    "hyperband": optuna.pruners.HyperbandPruner,
    "successive_halving": optuna.pruners.SuccessiveHalvingPruner,
    "threshold": optuna.pruners.ThresholdPruner,
    "none": optuna.pruners.NopPruner,
}


def build_sampler(sampler: SamplerParams, *, n_earlier_trials: int) -> optuna.samplers.BaseSampler:
    """Sampler of a study.

    Parameters
    ----------
    sampler : SamplerParams
        ``type`` and its options; ``n_startup_trials`` and ``seed`` are ignored by samplers that have none.
    n_earlier_trials : int
        Trials the study has already. They shift the seed: a sampler made anew with the same seed would draw the same
        start-up trials again (optuna issue 3255).

    Returns
    -------
    optuna.samplers.BaseSampler

    Raises
    ------
    ParamsError
        For an unknown type or option.
    """
    seed = None if sampler.seed is None else (sampler.seed + n_earlier_trials) % 2**32
    shared = {"n_startup_trials": sampler.n_startup_trials, "seed": seed}
    return _build("hpo.sampler", sampler.type, SAMPLERS, shared, sampler.model_extra or {})


def build_pruner(pruner: PrunerParams) -> optuna.pruners.BasePruner:
    """Pruner of a study; its steps are folds, counted from 0.

    Parameters
    ----------
    pruner : PrunerParams
        ``type`` and its options; the three usual ones are ignored by pruners that have none.

    Returns
    -------
    optuna.pruners.BasePruner

    Raises
    ------
    ParamsError
        For an unknown type or option.
    """
    shared = {
        "n_startup_trials": pruner.n_startup_trials,
        "n_warmup_steps": pruner.n_warmup_steps,
        "interval_steps": pruner.interval_steps,
    }
    return _build("hpo.pruner", pruner.type, PRUNERS, shared, pruner.model_extra or {})


def _build(key: str, kind: str, known: dict[str, Any], shared: dict[str, Any], options: dict[str, Any]) -> Any:
    if kind not in known:
        raise ParamsError(f"{key}.type={kind}: there is none of that name{did_you_mean(kind, known)}")
    maker = known[kind]
    accepted = {name for name, p in inspect.signature(maker.__init__).parameters.items() if p.kind not in (2, 4)}
    accepted.discard("self")
    for name in options:
        if name not in accepted:
            own = [*accepted, *shared]
            raise ParamsError(f"{key}.{name} is not an option of {kind}{did_you_mean(name, own)}")
    try:
        return maker(**{name: value for name, value in shared.items() if name in accepted}, **options)
    except (TypeError, ValueError) as error:
        raise ParamsError(f"{key}.type={kind}: {str(error).rstrip('.')}; change its options under {key}.") from None
