"""The search space: what Optuna is asked to draw for a trial, and the parameters that come of it.

Imports `distributions`, `errors`, `params` and `schema`; `strategies` and `search` import it.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Iterator, Mapping
from typing import Any

import numpy as np
import optuna
from optuna.distributions import BaseDistribution, CategoricalDistribution, FloatDistribution, IntDistribution

from evbind_lib.config.compose import Params, with_trainer
from evbind_lib.config.distributions import Categorical, IntRange, LogInt, Range, SearchSpaceEntry
from evbind_lib.config.schema import dotted_name
from evbind_lib.errors import ParamsError

# A trial that changed one of these would be measured with another yardstick than its neighbours.
YARDSTICK = (
    "training.n_folds",
    "training.seed",
    "data.eval_neg_ratio",
    "data.group_by",
    "data.format",
    "data.special_case",
)


def check_space(params: Params) -> None:
    """Refuse a search space that cannot be drawn from.

    Raises
    ------
    ParamsError
        For conditions that go in a circle, a searched parameter that would change the yardstick, or a trainer file to begin
        with that there is not.
    """
    _parents_first(params.hpo.search_space)
    for source in params.hpo.enqueue:
        if not source.startswith("study:"):
            with_trainer(params, source)
    for name in params.hpo.search_space:
        if dotted_name(name) in YARDSTICK:
            raise ParamsError(
                f"hpo.search_space.{name} would change what the score is measured on, so trials could not be compared; "
                f"take it out and set {dotted_name(name)} itself."
            )


def distribution(entry: SearchSpaceEntry) -> BaseDistribution:
    """Optuna's distribution of a searched parameter.

    Parameters
    ----------
    entry : SearchSpaceEntry

    Returns
    -------
    optuna.distributions.BaseDistribution
        Of a range with a step the high end is the last step, so that Optuna need not warn that it moves it there.
    """
    if isinstance(entry, Categorical):
        return CategoricalDistribution(entry.choices)
    step = getattr(entry, "step", None)
    if isinstance(entry, IntRange | LogInt):
        return IntDistribution(entry.low, int(entry.last), log=entry.log, step=step or 1)
    return FloatDistribution(entry.low, entry.last, log=entry.log, step=step)


def suggest(trial: optuna.Trial, params: Params) -> dict[str, Any]:
    """Draw a value for every searched parameter whose ``when`` holds.

    Parameters
    ----------
    trial : optuna.Trial
    params : Params
        Its search space, and the values of parameters that are not searched but named in a ``when``.

    Returns
    -------
    dict of str to value
        By the names of the search space.
    """
    space = params.hpo.search_space
    suggested: dict[str, Any] = {}
    for name in _parents_first(space):
        if _active(name, suggested, params):
            suggested[name] = _draw(trial, name, distribution(space[name]))
    return suggested


def _draw(trial: optuna.Trial, name: str, kind: BaseDistribution) -> Any:
    if isinstance(kind, CategoricalDistribution):
        return trial.suggest_categorical(name, kind.choices)
    draw = trial.suggest_int if isinstance(kind, IntDistribution) else trial.suggest_float
    return draw(name, kind.low, kind.high, step=kind.step, log=kind.log)


def _active(name: str, chosen: Mapping[str, Any], params: Params) -> bool:
    """Whether the conditions of a parameter hold; one on a searched parameter that is not chosen does not."""
    space = params.hpo.search_space
    if not space[name].when:
        return True
    names = _by_dotted_name(space)
    for other, wanted in space[name].when.items():
        searched = names.get(dotted_name(other))
        if searched is not None and searched not in chosen:
            return False
        actual = params.value_of(dotted_name(other)) if searched is None else chosen[searched]
        if actual not in wanted if isinstance(wanted, list) else actual != wanted:
            return False
    return True


def _by_dotted_name(space: Mapping[str, SearchSpaceEntry]) -> dict[str, str]:
    """Names as the search space writes them, by their full ones: ``when`` may use either."""
    return {dotted_name(name): name for name in space}


def _parents_first(space: Mapping[str, SearchSpaceEntry]) -> list[str]:
    names = _by_dotted_name(space)
    parents = {name: {names.get(dotted_name(other)) for other in entry.when} - {None} for name, entry in space.items()}
    ordered: list[str] = []
    waiting = list(space)
    while waiting:
        ready = [name for name in waiting if parents[name] <= set(ordered)]
        if not ready:
            raise ParamsError(
                f"hpo.search_space: the `when` of {', '.join(waiting)} go in a circle; take one of them out."
            )
        ordered += ready
        waiting = [name for name in waiting if name not in ready]
    return ordered


def merge(params: Params, suggested: Mapping[str, Any]) -> Params:
    """Parameters of a trial: the configured ones with the suggested values put in."""
    return params.with_values({dotted_name(name): value for name, value in suggested.items()})


def searched_values(params: Params) -> dict[str, Any]:
    """Values that the searched parameters have where they are configured, by the names of the search space.

    Parameters
    ----------
    params : Params

    Returns
    -------
    dict of str to value
        ``None`` for a training argument that is not set.
    """
    return {name: params.value_of(dotted_name(name)) for name in params.hpo.search_space}


def enqueued_values(params: Params, values: Mapping[str, Any]) -> tuple[dict[str, Any], list[str]]:
    """What of a known parameter set a trial can be made to start with.

    Parameters
    ----------
    params : Params
        Its search space decides.
    values : mapping of str to value
        By the names of a search space or dotted: of `searched_values`, or the ``params`` of a trial of an earlier study.

    Returns
    -------
    dict of str to value
        For ``study.enqueue_trial``: searched names whose condition holds and whose value can be drawn. What is missing the
        sampler draws.
    list of str
        One sentence for each searched name that the sampler must draw although its condition holds.
    """
    space = params.hpo.search_space
    given = {_dotted(name): value for name, value in values.items()}
    chosen: dict[str, Any] = {}
    notes: list[str] = []
    for name in _parents_first(space):
        value = given.get(dotted_name(name))
        if not _active(name, chosen, params):
            continue
        if dotted_name(name) not in given or (value is None and not _takes(space[name], None)):
            notes.append(f"{name} has no value in the enqueued set, so the sampler draws it.")
        elif _takes(space[name], value):
            chosen[name] = _as_drawn(space[name], value)
        else:
            notes.append(f"{name}={value} of the enqueued set is not in {_span(space[name])}, so the sampler draws it.")
    return chosen, notes


def _dotted(name: str) -> str:
    try:
        return dotted_name(name)
    except ValueError:  # of a study with other parameters
        return name


def _takes(entry: SearchSpaceEntry, value: Any) -> bool:
    if isinstance(entry, Categorical):
        return any(_same(value, choice) for choice in entry.choices)
    if isinstance(value, bool) or not isinstance(value, int | float) or not entry.low <= value <= entry.last:
        return False
    if isinstance(entry, IntRange | LogInt) and value != int(value):
        return False
    step = getattr(entry, "step", None)
    steps = (value - entry.low) / step if step else 0.0
    return math.isclose(steps, round(steps), rel_tol=0, abs_tol=1e-8)  # as near as Optuna asks for


def _same(value: Any, choice: Any) -> bool:
    return value == choice and isinstance(value, bool) == isinstance(choice, bool)


def _as_drawn(entry: SearchSpaceEntry, value: Any) -> Any:
    """Give the value the type that a drawn one has: 3 epochs, not 3.0."""
    if isinstance(entry, Categorical):
        return next(choice for choice in entry.choices if _same(value, choice))
    return int(value) if isinstance(entry, IntRange | LogInt) else float(value)


def _span(entry: SearchSpaceEntry) -> str:
    if isinstance(entry, Categorical):
        return f"its choices {', '.join(map(str, entry.choices))}"
    step = getattr(entry, "step", None)
    return f"its range {entry.low:g} to {entry.high:g}" + (f" in steps of {step:g}" if step else "")


def grid_values(entry: SearchSpaceEntry, points: int) -> list[Any]:
    """Values of one parameter in a grid.

    Parameters
    ----------
    entry : SearchSpaceEntry
    points : int
        How many values of a range that is not whole numbers or steps, both ends among them.

    Returns
    -------
    list
        All choices, all whole numbers, all steps; ``points`` values of any other range, at equal distances on its scale.
    """
    if isinstance(entry, Categorical):
        return list(entry.choices)
    step = getattr(entry, "step", None)
    if isinstance(entry, IntRange):
        return list(range(entry.low, entry.high + 1, step or 1))
    if step is not None:
        number = round((entry.last - entry.low) / step) + 1
        return [min(entry.low + index * step, entry.last) for index in range(number)]
    spaced = _spaced(entry, points)
    return list(dict.fromkeys(round(value) for value in spaced)) if isinstance(entry, LogInt) else spaced


def _spaced(entry: Range, points: int) -> list[float]:
    if points == 1 or entry.low == entry.high:
        return [float(entry.low)]
    between = np.geomspace if entry.log else np.linspace
    # Rounding must not carry a value past an end.
    return [float(value) for value in np.clip(between(entry.low, entry.high, points), entry.low, entry.high)]


def grid_points(params: Params, points: int) -> Iterator[dict[str, Any]]:
    """Every parameter set of the grid, a conditional parameter only in those where its condition holds.

    Parameters
    ----------
    params : Params
    points : int
        As in `grid_values`.

    Yields
    ------
    dict of str to value
        No two are alike.
    """
    space = params.hpo.search_space
    names = _parents_first(space)
    values = {name: grid_values(space[name], points) for name in names}

    def further(done: int, chosen: dict[str, Any]) -> Iterator[dict[str, Any]]:
        if done == len(names):
            yield chosen
            return
        name = names[done]
        if not _active(name, chosen, params):
            yield from further(done + 1, chosen)
            return
        yield from itertools.chain.from_iterable(further(done + 1, {**chosen, name: value}) for value in values[name])

    yield from further(0, {})
