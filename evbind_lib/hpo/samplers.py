"""Samplers and pruners of Optuna by the names used in ``params/hpo/``; their options go to Optuna's constructors as they are."""

import inspect
import warnings
from collections.abc import Callable, Mapping
from typing import Any

import optuna
from optuna.pruners import BasePruner
from optuna.samplers import BaseSampler

from evbind_lib.config.schema import PrunerParams, SamplerParams
from evbind_lib.errors import ParamsError, did_you_mean
from evbind_lib.hpo.racing.pruner import RacingPruner

SAMPLERS: dict[str, Callable[..., BaseSampler]] = {
    "tpe": optuna.samplers.TPESampler,
    "random": optuna.samplers.RandomSampler,
    "gp": optuna.samplers.GPSampler,
    "cmaes": optuna.samplers.CmaEsSampler,
    "qmc": optuna.samplers.QMCSampler,
    "nsgaii": optuna.samplers.NSGAIISampler,
}
PRUNERS: dict[str, Callable[..., BasePruner]] = {
    "median": optuna.pruners.MedianPruner,
    "percentile": optuna.pruners.PercentilePruner,
    "hyperband": optuna.pruners.HyperbandPruner,
    "successive_halving": optuna.pruners.SuccessiveHalvingPruner,
    "wilcoxon": optuna.pruners.WilcoxonPruner,
    "patient": optuna.pruners.PatientPruner,
    "threshold": optuna.pruners.ThresholdPruner,
    "racing": RacingPruner,
    "none": optuna.pruners.NopPruner,
}


def build_sampler(sampler: SamplerParams, *, n_earlier_trials: int) -> BaseSampler:
    """Sampler of a study that has so many trials; one that knows no ``n_startup_trials`` or ``seed`` ignores it."""
    # A sampler made again with the same seed would draw the same start-up trials again (optuna issue 3255).
    shifted = None if sampler.seed is None else (sampler.seed + n_earlier_trials) % 2**32
    shared: dict[str, Any] = {"n_startup_trials": sampler.n_startup_trials, "seed": shifted}
    if sampler.type != "tpe":  # quiet by itself, and setting it is deprecated
        shared |= {"warn_independent_sampling": False, "warn_asynchronous_seeding": False}
    if sampler.type == "qmc":  # the study holds how far its sequence has come
        shared |= {"seed": sampler.seed, "independent_sampler": optuna.samplers.RandomSampler(seed=shifted)}
    return _build("hpo.sampler", sampler, SAMPLERS, shared)


def build_pruner(pruner: PrunerParams, *, n_folds: int) -> BasePruner:
    """Pruner of a study whose steps are folds, counted from 0; ``patient`` wraps a median pruner."""
    shared: dict[str, Any] = pruner.model_dump(include={"n_startup_trials", "n_warmup_steps", "interval_steps"})
    if pruner.type == "hyperband":
        shared["max_resource"] = n_folds
    if pruner.type == "patient":
        shared["wrapped_pruner"] = PRUNERS["median"](**shared)
    return _build("hpo.pruner", pruner, PRUNERS, shared)


def _build(key: str, given: SamplerParams | PrunerParams, known: Mapping[str, Any], shared: Mapping[str, Any]) -> Any:
    """Call the constructor of that name with the options given, and with those that all share where it knows them."""
    if given.type not in known:
        raise ParamsError(f"{key}.type={given.type}: there is none of that name{did_you_mean(given.type, known)}")
    maker, options = known[given.type], given.model_extra or {}
    fitting = inspect.signature(maker).parameters
    choosable = [name for name in fitting if name != "wrapped_pruner"]  # which `patient` is given here
    for name in options:
        if name not in choosable:
            raise ParamsError(f"{key}.{name} is not an option of {given.type}{did_you_mean(name, choosable)}")
    try:
        with warnings.catch_warnings():
            # That Optuna calls an option experimental is no news worth repeating in every run.
            warnings.simplefilter("ignore", optuna.exceptions.ExperimentalWarning)
            return maker(**{name: value for name, value in shared.items() if name in fitting} | options)
    except (TypeError, ValueError) as error:
        reason = str(error).splitlines()[0].rstrip(".")
        raise ParamsError(f"{key}.type={given.type}: {reason}; change its options under {key}.") from None
