"""Samplers and pruners of Optuna by the names used in ``params/hpo/``; their options go to Optuna's constructors as they are."""

import inspect
import warnings
from collections.abc import Callable, Mapping
from typing import Any

import optuna
from optuna import pruners, samplers
from optuna.pruners import BasePruner
from optuna.samplers import BaseSampler

from evbind_lib.config.schema import PrunerParams, SamplerParams
from evbind_lib.errors import ParamsError, did_you_mean, shown
from evbind_lib.hpo.racing.pruner import RacingPruner

SAMPLERS: dict[str, Callable[..., BaseSampler]] = {
    "tpe": samplers.TPESampler,
    "random": samplers.RandomSampler,
    "gp": samplers.GPSampler,
    "cmaes": samplers.CmaEsSampler,
    "qmc": samplers.QMCSampler,
    "nsgaii": samplers.NSGAIISampler,
}
PRUNERS: dict[str, Callable[..., BasePruner]] = {
    "median": pruners.MedianPruner,
    "percentile": pruners.PercentilePruner,
    "hyperband": pruners.HyperbandPruner,
    "successive_halving": pruners.SuccessiveHalvingPruner,
    "wilcoxon": pruners.WilcoxonPruner,
    "patient": pruners.PatientPruner,
    "threshold": pruners.ThresholdPruner,
    "racing": RacingPruner,
    "none": pruners.NopPruner,
}
# Types of options that YAML can give, as Optuna writes them, and the largest number: of more candidates memory holds none.
KINDS: dict[str, Any] = {"bool": bool, "int": int, "float": int | float, "str": str, "str | int": str | int}
MOST = 1_000_000


def build_sampler(sampler: SamplerParams, *, n_earlier_trials: int) -> BaseSampler:
    """Sampler of a study that has so many trials; one that knows no ``n_startup_trials`` or ``seed`` ignores it."""
    # A sampler made again with the same seed would draw the same start-up trials again (optuna issue 3255).
    shifted = None if sampler.seed is None else (sampler.seed + n_earlier_trials) % 2**32
    shared: dict[str, Any] = {"n_startup_trials": sampler.n_startup_trials, "seed": shifted}
    if sampler.type != "tpe":  # quiet by itself, and setting it is deprecated
        shared |= {"warn_independent_sampling": False, "warn_asynchronous_seeding": False}
    if sampler.type == "qmc":  # the study holds how far its sequence has come
        shared |= {"seed": sampler.seed, "independent_sampler": samplers.RandomSampler(seed=shifted)}
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
    kinds = {name: inspect.formatannotation(each.annotation).strip("'") for name, each in fitting.items()}
    choosable = {name: KINDS[bare] for name in kinds if (bare := kinds[name].removesuffix(" | None")) in KINDS}
    for name, value in options.items():
        if name not in choosable:
            raise ParamsError(f"{key}.{name} is not an option of {given.type}{did_you_mean(name, choosable)}")
        kind, least = choosable[name], 1e-6 if name == "sigma0" else -MOST  # from 0 CMA-ES would never move
        is_one = isinstance(value, kind) and isinstance(value, bool) == (kind is bool)
        if not (value is None or (is_one and (isinstance(value, str) or least <= value <= MOST))):
            problem = f"must be {kinds[name]}" + ("" if kind is bool else f" from {least:,} to {MOST:,}")
            raise ParamsError(f"{key}.{name}={shown(value)}: {problem}; change it or leave it out.")
    try:
        with warnings.catch_warnings():
            # That Optuna calls an option experimental is no news worth repeating in every run.
            warnings.simplefilter("ignore", optuna.exceptions.ExperimentalWarning)
            return maker(**{name: value for name, value in shared.items() if name in fitting} | options)
    except (TypeError, ValueError) as error:
        reason = str(error).splitlines()[0].rstrip(".")
        raise ParamsError(f"{key}.type={given.type}: {reason}; change its options under {key}.") from None
