"""Samplers and pruners of Optuna by the names used in ``params/hpo/``; their options go to Optuna's constructors as they are."""

from __future__ import annotations

import inspect
import warnings
from collections.abc import Callable, Mapping
from typing import Any

import optuna
from optuna.pruners import BasePruner
from optuna.samplers import BaseSampler
from pydantic import ValidationError

from evbind_lib.config.schema import PrunerParams, SamplerParams
from evbind_lib.errors import ParamsError, did_you_mean


class PatientPruner(optuna.pruners.PatientPruner):
    """Optuna's, with what it wraps under a public name."""

    def __init__(self, wrapped: BasePruner | None, patience: int, min_delta: float = 0.0) -> None:
        super().__init__(wrapped, patience, min_delta)
        self.wrapped = wrapped


SAMPLERS: dict[str, Callable[..., BaseSampler]] = {
    "tpe": optuna.samplers.TPESampler,
    "random": optuna.samplers.RandomSampler,
    "gp": optuna.samplers.GPSampler,
    "cmaes": optuna.samplers.CmaEsSampler,
    "qmc": optuna.samplers.QMCSampler,
    "nsgaii": optuna.samplers.NSGAIISampler,
}
PRUNERS: dict[str, Callable[..., BasePruner]] = {  # and racing, which is imported where it is asked for
    "median": optuna.pruners.MedianPruner,
    "percentile": optuna.pruners.PercentilePruner,
    "hyperband": optuna.pruners.HyperbandPruner,
    "successive_halving": optuna.pruners.SuccessiveHalvingPruner,
    "wilcoxon": optuna.pruners.WilcoxonPruner,
    "patient": PatientPruner,
    "threshold": optuna.pruners.ThresholdPruner,
    "none": optuna.pruners.NopPruner,
}
USUAL = {"n_startup_trials", "n_warmup_steps", "interval_steps"}  # options that a pruner without them ignores


def build_sampler(sampler: SamplerParams, *, n_earlier_trials: int) -> BaseSampler:
    """Sampler of a study that has so many trials; one that knows no ``n_startup_trials`` or ``seed`` ignores it.

    The number of trials shifts the seed: a sampler made again with the same seed would draw the same start-up trials again
    (optuna issue 3255). ``qmc`` keeps it, since the study holds how far its sequence has come; only what it draws
    independently, its first trial and conditional parameters, is shifted.
    """
    key, kind = "hpo.sampler", sampler.type
    shifted = None if sampler.seed is None else (sampler.seed + n_earlier_trials) % 2**32
    shared: dict[str, Any] = {"n_startup_trials": sampler.n_startup_trials, "seed": shifted}
    if kind != "tpe":  # quiet by itself, and setting it is deprecated
        shared |= {"warn_independent_sampling": False, "warn_asynchronous_seeding": False}
    if kind == "qmc":
        shared |= {"seed": sampler.seed, "independent_sampler": optuna.samplers.RandomSampler(seed=shifted)}
    return _build(key, kind, _find(key, kind, SAMPLERS), shared, sampler.model_extra or {})


def build_pruner(pruner: PrunerParams, *, n_folds: int | None = None) -> BasePruner:
    """Pruner of a study whose steps are folds, counted from 0; ``hyperband`` takes their number for its ``max_resource``."""
    return _pruner("hpo.pruner", pruner, n_folds)


def _pruner(key: str, pruner: PrunerParams, n_folds: int | None) -> BasePruner:
    from evbind_lib.hpo.racing.pruner import RacingPruner

    shared: dict[str, Any] = pruner.model_dump(include=USUAL)
    options = dict(pruner.model_extra or {})
    if pruner.type == "hyperband" and n_folds is not None:
        shared["max_resource"] = n_folds
    if pruner.type == "patient":
        # Without the key a median pruner with the same usual options; with null the trial's own scores alone decide.
        wrapped = options.pop("wrapped", {"type": "median", **shared})
        shared["wrapped"] = None if wrapped is None else _wrapped(f"{key}.wrapped", wrapped, n_folds)
    maker = _find(key, pruner.type, {**PRUNERS, "racing": RacingPruner})
    return _build(key, pruner.type, maker, shared, options)


def _wrapped(key: str, options: Any, n_folds: int | None) -> BasePruner:
    try:
        return _pruner(key, PrunerParams.model_validate(options), n_folds)
    except ValidationError as error:
        first = error.errors()[0]
        place = ".".join([key, *map(str, first["loc"])])
        raise ParamsError(f"{place}={first['input']}: {first['msg']}; write for example {{type: median}}.") from None


def wants_single_folds(pruner: BasePruner) -> bool:
    """Whether the pruner pairs single folds of trials (``wilcoxon``, also inside ``patient``), not their running aggregates."""
    if isinstance(pruner, PatientPruner) and pruner.wrapped is not None:
        return wants_single_folds(pruner.wrapped)
    return isinstance(pruner, optuna.pruners.WilcoxonPruner)


def _find(key: str, kind: str, known: Mapping[str, Callable[..., Any]]) -> Callable[..., Any]:
    if kind not in known:
        raise ParamsError(f"{key}.type={kind}: there is none of that name{did_you_mean(kind, known)}")
    return known[kind]


def _build(
    key: str, kind: str, maker: Callable[..., Any], shared: Mapping[str, Any], options: Mapping[str, Any]
) -> Any:
    """Call a constructor with the options, and with those that all share where it knows them."""
    known = inspect.signature(maker).parameters
    for name in options:
        if name not in known:
            raise ParamsError(f"{key}.{name} is not an option of {kind}{did_you_mean(name, {**known, **shared})}")
    try:
        with warnings.catch_warnings():
            # That Optuna calls an option experimental is no news worth repeating in every run.
            warnings.simplefilter("ignore", optuna.exceptions.ExperimentalWarning)
            return maker(**{name: value for name, value in shared.items() if name in known} | dict(options))
    except (TypeError, ValueError) as error:
        reason = str(error).splitlines()[0].rstrip(".")
        raise ParamsError(f"{key}.type={kind}: {reason}; change its options under {key}.") from None
