"""Samplers and pruners of Optuna by the names used in ``params/hpo/``, their options checked before anything runs.

Imports `errors`, `grid`, `params`, `schema` and `space`, and `racing` where it is asked for; `studies` and `search`
import it.
"""

from __future__ import annotations

import functools
import inspect
import itertools
import re
import warnings
from collections.abc import Callable, Mapping
from typing import Any

import optuna
from pydantic import TypeAdapter, ValidationError

from evbind_lib.config.compose import Params
from evbind_lib.config.schema import PrunerParams, SamplerParams
from evbind_lib.config.sentences import problem
from evbind_lib.errors import ParamsError, did_you_mean
from evbind_lib.hpo.grid import GridSampler
from evbind_lib.hpo.space import grid_points

SAMPLERS: dict[str, Callable[..., optuna.samplers.BaseSampler]] = {
    "tpe": optuna.samplers.TPESampler,
    "random": optuna.samplers.RandomSampler,
    "gp": optuna.samplers.GPSampler,
    "cmaes": optuna.samplers.CmaEsSampler,
    "qmc": optuna.samplers.QMCSampler,
    "grid": GridSampler,
    "nsgaii": optuna.samplers.NSGAIISampler,
}
PRUNERS: dict[str, Callable[..., optuna.pruners.BasePruner]] = {
    "median": optuna.pruners.MedianPruner,
    "percentile": optuna.pruners.PercentilePruner,
    "hyperband": optuna.pruners.HyperbandPruner,
    "successive_halving": optuna.pruners.SuccessiveHalvingPruner,
    "wilcoxon": optuna.pruners.WilcoxonPruner,
    "patient": optuna.pruners.PatientPruner,
    "threshold": optuna.pruners.ThresholdPruner,
    "none": optuna.pruners.NopPruner,
}
RACING = "racing"
# These learn nothing from a second objective or from constraints.
ONE_OBJECTIVE_ONLY = ("cmaes",)
MOST_POINTS = 100_000  # of a grid

# Options that Optuna itself has given up, or that say what is done below.
_WITHHELD = {
    *("consider_prior", "prior_weight", "consider_magic_clip", "consider_endpoints", "sigma0", "x0"),
    *("restart_strategy", "inc_popsize", "warn_independent_sampling", "warn_asynchronous_seeding"),
}


def build_sampler(
    sampler: SamplerParams, *, n_earlier_trials: int, params: Params | None = None
) -> optuna.samplers.BaseSampler:
    """Sampler of a study.

    Parameters
    ----------
    sampler : SamplerParams
        ``type`` and its options; ``n_startup_trials`` and ``seed`` are ignored by samplers that have none.
    n_earlier_trials : int
        Trials the study has already. They shift the seed: a sampler made anew with the same seed would draw the same
        start-up trials again (optuna issue 3255).
    params : Params, optional
        Its search space; ``grid`` needs it.

    Returns
    -------
    optuna.samplers.BaseSampler

    Raises
    ------
    ParamsError
        For an unknown type or option.

    Notes
    -----
    Two samplers keep the seed as it is, since the study knows how far they have come: ``qmc`` goes on in its sequence
    (only what it draws independently, that is its first trial and conditional parameters, is shifted), and ``grid`` goes on
    with the points that no trial has. The order of a grid is the seed's, the same for all workers.
    """
    key, options = "hpo.sampler", dict(sampler.model_extra or {})
    shifted = None if sampler.seed is None else (sampler.seed + n_earlier_trials) % 2**32
    if sampler.type == "grid":
        points = _checked(key, "grid", {"points": int}, options).get("points", 5)
        if points < 1:
            raise ParamsError(f"{key}.points={points}: must be greater than or equal to 1.")
        return _grid(points, sampler.seed, params.model_dump_json() if params else None)
    shared: dict[str, Any] = {"n_startup_trials": sampler.n_startup_trials, "seed": shifted}
    quiet: dict[str, Any] = {"warn_independent_sampling": False, "warn_asynchronous_seeding": False}
    if sampler.type == "qmc":
        quiet["independent_sampler"] = optuna.samplers.RandomSampler(seed=shifted)
        shared["seed"] = sampler.seed
    if sampler.type == "tpe":
        # It is quiet by default, and setting that is deprecated; groups are a matter of the multivariate kind alone.
        quiet = {"multivariate": True} if options.get("group") and "multivariate" not in options else {}
    maker = _find(key, sampler.type, SAMPLERS)
    return _build(key, sampler.type, maker, shared, options, quiet)


@functools.lru_cache(maxsize=4)  # a worker asks for the sampler before each trial
def _grid(points: int, seed: int | None, params: str | None) -> optuna.samplers.BaseSampler:
    if params is None:
        return GridSampler([{}])
    found = list(itertools.islice(grid_points(Params.model_validate_json(params), points), MOST_POINTS + 1))
    if len(found) > MOST_POINTS:
        raise ParamsError(
            f"hpo.sampler.type=grid: the grid has more than {MOST_POINTS} points; lower hpo.sampler.points, or set "
            "parameters with hpo.fixed."
        )
    return GridSampler(found, seed=seed)


def build_pruner(pruner: PrunerParams, *, n_folds: int | None = None) -> optuna.pruners.BasePruner:
    """Pruner of a study; its steps are folds, counted from 0.

    Parameters
    ----------
    pruner : PrunerParams
        ``type`` and its options; the three usual ones are ignored by pruners that have none.
    n_folds : int, optional
        Steps of a whole trial, which ``hyperband`` takes for its ``max_resource`` where that is not given. Its
        ``min_resource`` is best left at 1: with five folds more would leave a single bracket.

    Returns
    -------
    optuna.pruners.BasePruner

    Raises
    ------
    ParamsError
        For an unknown type or option.
    """
    return _pruner("hpo.pruner", pruner, n_folds)


def _pruner(key: str, pruner: PrunerParams, n_folds: int | None) -> optuna.pruners.BasePruner:
    shared: dict[str, Any] = pruner.model_dump(include={"n_startup_trials", "n_warmup_steps", "interval_steps"})
    options = dict(pruner.model_extra or {})
    further: dict[str, Any] = {}
    if pruner.type == RACING:
        from evbind_lib.hpo.racing.pruner import RacingPruner

        return _build(key, RACING, RacingPruner, shared, options, further)
    maker = _find(key, pruner.type, PRUNERS, RACING)
    if pruner.type == "hyperband" and n_folds is not None:
        shared["max_resource"] = n_folds
    if pruner.type == "patient":
        wrapped = wrapped_pruner(pruner, key)
        options.pop("wrapped", None)
        inside = None if wrapped is None else _pruner(f"{key}.wrapped", wrapped, n_folds)
        further["wrapped_pruner"] = inside
    return _build(key, pruner.type, maker, shared, options, further)


def wrapped_pruner(pruner: PrunerParams, key: str = "hpo.pruner") -> PrunerParams | None:
    """What a ``patient`` pruner waits for.

    Parameters
    ----------
    pruner : PrunerParams
    key : str
        Where it stands, for the error.

    Returns
    -------
    PrunerParams or None
        Of ``wrapped``; without that key a median pruner with the same three usual options. None for another pruner, and
        for ``wrapped: null``, which stops a trial that does not get better by itself.

    Raises
    ------
    ParamsError
        When ``wrapped`` is not a pruner's options.
    """
    options = pruner.model_extra or {}
    if pruner.type != "patient" or ("wrapped" in options and options["wrapped"] is None):
        return None
    if "wrapped" not in options:
        usual = pruner.model_dump(include={"n_startup_trials", "n_warmup_steps", "interval_steps"})
        return PrunerParams(type="median", **usual)
    try:
        return PrunerParams.model_validate(options["wrapped"])
    except ValidationError as error:
        first = error.errors()[0]
        place = ".".join([f"{key}.wrapped", *map(str, first["loc"])])
        value = f"={first['input']}" if not isinstance(first["input"], dict) else ""
        wish = "must be a pruner, for example {type: median}" if not first["loc"] else problem(first)
        raise ParamsError(f"{place}{value}: {wish}.") from None


def reports_each_fold_alone(pruner: PrunerParams) -> bool:
    """Whether the pruner compares single folds, and wants each fold's own score instead of the running aggregate.

    Parameters
    ----------
    pruner : PrunerParams

    Returns
    -------
    bool
        True for ``wilcoxon``, also inside ``patient``: it pairs a trial's folds with those of the best one.
    """
    inside = wrapped_pruner(pruner)
    return pruner.type == "wilcoxon" or (inside is not None and reports_each_fold_alone(inside))


def _find(key: str, kind: str, known: Mapping[str, Callable[..., Any]], *others: str) -> Callable[..., Any]:
    if kind not in known:
        raise ParamsError(f"{key}.type={kind}: there is none of that name{did_you_mean(kind, [*known, *others])}")
    return known[kind]


def _build(
    key: str,
    kind: str,
    maker: Callable[..., Any],
    shared: Mapping[str, Any],
    options: Mapping[str, Any],
    further: Mapping[str, Any],
) -> Any:
    """Make a sampler or pruner of checked options; of what all share, each takes what it knows."""
    types = _option_types(maker)
    parameters = inspect.signature(maker).parameters
    given = {name: value for name, value in {**shared, **further}.items() if name in parameters}
    own = _checked(key, kind, types, options, also=[*shared, *(["wrapped"] if kind == "patient" else [])])
    for name, parameter in parameters.items():
        if name in types and parameter.default is parameter.empty and name not in {**given, **own}:
            raise ParamsError(f"{key}.type={kind}: it needs {key}.{name}; set it.")
    try:
        with warnings.catch_warnings():
            # Of options that Optuna calls experimental a person need not be told in every run.
            warnings.simplefilter("ignore", optuna.exceptions.ExperimentalWarning)
            return maker(**{**given, **own})
    except (TypeError, ValueError) as error:
        reason = str(error).splitlines()[0].rstrip(".")
        raise ParamsError(f"{key}.type={kind}: {reason}; change its options under {key}.") from None


def _checked(
    key: str, kind: str, types: Mapping[str, Any], options: Mapping[str, Any], also: list[str] | None = None
) -> dict[str, Any]:
    checked: dict[str, Any] = {}
    for name, value in options.items():
        if name not in types:
            raise ParamsError(f"{key}.{name} is not an option of {kind}{did_you_mean(name, [*types, *(also or [])])}")
        try:
            checked[name] = TypeAdapter(types[name]).validate_python(value)
        except ValidationError as error:
            raise ParamsError(f"{key}.{name}={value}: {problem(error.errors()[0])}.") from None
    return checked


def _option_types(maker: Callable[..., Any]) -> dict[str, Any]:
    """Options that YAML can give, with their types: numbers, words and switches; no functions, no objects."""
    plain: dict[str, Any] = {"int": int, "float": float, "bool": bool, "str": str}
    types: dict[str, Any] = {}
    for name, parameter in inspect.signature(maker).parameters.items():
        written = parameter.annotation
        text = written if isinstance(written, str) else getattr(written, "__name__", str(written))
        if name in _WITHHELD or parameter.kind in (parameter.VAR_POSITIONAL, parameter.VAR_KEYWORD):
            continue
        if text.startswith("Literal["):
            types[name] = str
        elif "[" not in text and set(re.findall(r"\w+", text)) <= {*plain, "None"}:
            types[name] = eval(text, dict(plain))
    return types
