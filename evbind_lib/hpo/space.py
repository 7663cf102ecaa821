"""The search space: what Optuna is asked to draw for a trial, and with which values of known parameter sets it can begin."""

from __future__ import annotations

import contextlib
from collections.abc import Mapping
from typing import Any

import numpy as np
import optuna
from optuna.distributions import BaseDistribution, CategoricalDistribution, IntDistribution

from evbind_lib.config.compose import with_trainer
from evbind_lib.config.schema import Distribution, Params, dotted_name
from evbind_lib.errors import ParamsError

# The evaluation protocol: trials that differ in one of these cannot be compared.
PROTOCOL = {
    *(
        "training.n_folds",
        "training.seed",
        "data.eval_neg_ratio",
        "data.group_by",
        "data.special_case",
        "data.sensitive",
    ),
    *("data.format", "data.posts", "data.annotations", "data.criteria", "data.pairs"),
}


def check_space(params: Params) -> None:
    """Refuse conditions that form a cycle, the evaluation protocol, what training does not know, a missing file to enqueue."""
    from evbind_lib.training.trainer import choose_loss, training_arguments  # late: it loads torch

    space = params.hpo.search_space
    parents_first(space)
    for name, entry in space.items():
        dotted = dotted_name(name)
        if dotted in PROTOCOL:
            raise ParamsError(
                f"hpo.search_space.{name} belongs to the evaluation protocol, so its trials could not be compared; take it out "
                f"and set {dotted} itself."
            )
        for value in entry.choices or (entry.low, entry.last):
            tried = params.with_values({dotted: value})
            try:
                choose_loss(tried, np.array([0, 1]))
                training_arguments(tried, output_dir="unused")
            except ParamsError as error:
                raise ParamsError(f"hpo.search_space.{name}: {error}") from None
    for source in params.hpo.enqueue:
        if not source.startswith("study:"):
            with_trainer(params, source)


def draw(trial: optuna.Trial, params: Params) -> dict[str, Any]:
    """Draw a value for every searched parameter whose ``when`` holds, by its name in the search space."""
    space = params.hpo.search_space
    drawn: dict[str, Any] = {}
    for name in parents_first(space):
        if _holds(name, drawn, params):
            drawn[name] = _suggest(trial, name, space[name].to_optuna())
    return drawn


def _suggest(trial: optuna.Trial, name: str, distribution: BaseDistribution) -> Any:
    if isinstance(distribution, CategoricalDistribution):
        return trial.suggest_categorical(name, distribution.choices)
    suggest = trial.suggest_int if isinstance(distribution, IntDistribution) else trial.suggest_float
    return suggest(name, distribution.low, distribution.high, step=distribution.step, log=distribution.log)


def _holds(name: str, chosen: Mapping[str, Any], params: Params) -> bool:
    """Whether the conditions of a parameter hold; one on a searched parameter that is not chosen does not."""
    searched = {dotted_name(other): other for other in params.hpo.search_space}
    for condition, wanted in params.hpo.search_space[name].when.items():
        other = searched.get(dotted_name(condition))
        if other is not None and other not in chosen:
            return False
        actual = params.value_of(dotted_name(condition)) if other is None else chosen[other]
        if actual not in (wanted if isinstance(wanted, list) else [wanted]):
            return False
    return True


def parents_first(space: Mapping[str, Distribution]) -> list[str]:
    """Names in an order in which each comes after those that its ``when`` depends on."""
    names = {dotted_name(name): name for name in space}
    parents = {name: {names.get(dotted_name(other)) for other in entry.when} - {None} for name, entry in space.items()}
    ordered: list[str] = []
    while waiting := [name for name in space if name not in ordered]:
        ready = [name for name in waiting if parents[name] <= set(ordered)]
        if not ready:
            raise ParamsError(
                f"hpo.search_space: the `when` of {', '.join(waiting)} form a cycle; take one of them out."
            )
        ordered += ready
    return ordered


def searched_values(params: Params) -> dict[str, Any]:
    """Values that the searched parameters have where they are configured, by their names; None for one that is not set."""
    return {name: params.value_of(dotted_name(name)) for name in params.hpo.search_space}


def enqueued_values(params: Params, values: Mapping[str, Any]) -> tuple[dict[str, Any], list[str]]:
    """What of a known parameter set a trial can begin with, and a sentence for each value that the sampler must draw instead.

    ``values`` go by names of any search space, or dotted: of `searched_values`, or the ``params`` of another study's trial.
    """
    given: dict[str, Any] = {}
    for name, value in values.items():
        with contextlib.suppress(ValueError):  # another study may have searched what is no parameter here
            given[dotted_name(name)] = value
    chosen: dict[str, Any] = {}
    notes: list[str] = []
    for name in parents_first(params.hpo.search_space):
        if not _holds(name, chosen, params):
            continue
        value = given.get(dotted_name(name))
        try:
            chosen[name] = _as_drawn(params.hpo.search_space[name].to_optuna(), value)
        except ValueError:
            problem = f"{name} has no value" if value is None else f"{name}={value} is outside hpo.search_space.{name}"
            notes.append(f"{problem}, so the sampler draws it.")
    return chosen, notes


def _as_drawn(distribution: BaseDistribution, value: Any) -> Any:
    """The value with the type that a drawn one has, 3 epochs and not 3.0; `ValueError` where it cannot be drawn."""
    # The trial is made for Optuna's own check of a value against its distribution.
    optuna.trial.create_trial(value=0.0, params={"x": value}, distributions={"x": distribution})
    drawn = distribution.to_external_repr(distribution.to_internal_repr(value))
    if isinstance(drawn, bool) != isinstance(value, bool):
        raise ValueError
    return drawn
