"""The search space: what Optuna is asked to draw for a trial, and with which values of known parameter sets it can begin."""

from __future__ import annotations

import contextlib
from collections.abc import Mapping
from graphlib import CycleError, TopologicalSorter
from typing import Any

import numpy as np
import optuna
from optuna.distributions import CategoricalDistribution, FloatDistribution

from evbind_lib.config.compose import with_trainer
from evbind_lib.config.schema import DataParams, Params, dotted_name
from evbind_lib.errors import ParamsError

# The evaluation protocol: trials that differ in one of these cannot be compared.
PROTOCOL = {"training.n_folds", "training.seed", *(f"data.{name}" for name in DataParams.model_fields)}
PROTOCOL -= {"data.pos_neg_ratio", "data.negative_strategy"}  # of training pairs alone
NOT_CHOSEN = object()


def check_space(params: Params) -> None:
    """Refuse conditions that form a cycle, the evaluation protocol, what training does not know, a missing file to enqueue."""
    from evbind_lib.training.trainer import choose_loss, training_arguments  # late: it loads torch

    parents_first(params)
    for name, entry in params.hpo.search_space.items():
        dotted = dotted_name(name)
        if dotted in PROTOCOL:
            reason = "belongs to the evaluation protocol, so its trials could not be compared"
            raise ParamsError(f"hpo.search_space.{name} {reason}; take it out and set {dotted} itself.")
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


def parents_first(params: Params) -> list[str]:
    """Names of the search space, each after those that its ``when`` depends on."""
    names = {dotted_name(name): name for name in params.hpo.search_space}
    parents = {
        name: [names[dotted] for dotted in map(dotted_name, entry.when) if dotted in names]
        for name, entry in params.hpo.search_space.items()
    }
    try:
        return list(TopologicalSorter(parents).static_order())
    except CycleError as error:
        cycle = ", ".join(error.args[1][1:])
        raise ParamsError(f"hpo.search_space: the `when` of {cycle} form a cycle; take one of them out.") from None


def draw(trial: optuna.Trial, params: Params) -> dict[str, Any]:
    """Draw a value for every searched parameter whose ``when`` holds, by its name in the search space."""
    drawn: dict[str, Any] = {}
    for name in parents_first(params):
        if not _holds(name, drawn, params):
            continue
        entry = params.hpo.search_space[name].to_optuna()
        if isinstance(entry, CategoricalDistribution):
            drawn[name] = trial.suggest_categorical(name, entry.choices)
        else:
            suggest = trial.suggest_float if isinstance(entry, FloatDistribution) else trial.suggest_int
            drawn[name] = suggest(name, entry.low, entry.high, step=entry.step, log=entry.log)
    return drawn


def _holds(name: str, chosen: Mapping[str, Any], params: Params) -> bool:
    """Whether the conditions of a parameter hold; one on a searched parameter that is not chosen does not."""
    searched = {dotted_name(other): chosen.get(other, NOT_CHOSEN) for other in params.hpo.search_space}
    when = {dotted_name(other): wanted for other, wanted in params.hpo.search_space[name].when.items()}
    return all(
        searched.get(other, params.value_of(other)) in (wanted if isinstance(wanted, list) else [wanted])
        for other, wanted in when.items()
    )


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
    for name in parents_first(params):
        if not _holds(name, chosen, params):
            continue
        value, entry = given.get(dotted_name(name)), params.hpo.search_space[name].to_optuna()
        try:
            # The trial is made for Optuna's own check of a value against its distribution.
            optuna.trial.create_trial(value=0.0, params={name: value}, distributions={name: entry})
            chosen[name] = entry.to_external_repr(entry.to_internal_repr(value))  # as it is drawn: 3 epochs and not 3.0
        except ValueError:
            problem = f"{name} has no value" if value is None else f"{name}={value} is outside hpo.search_space.{name}"
            notes.append(f"{problem}, so the sampler draws it.")
    return chosen, notes
