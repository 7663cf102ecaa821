"""The search space: what a trial draws, with which known parameter sets a study begins, what changed since it began."""

import contextlib
import itertools
import warnings
from collections.abc import Iterator, Mapping
from graphlib import CycleError, TopologicalSorter
from typing import Any

import optuna
from optuna.distributions import BaseDistribution, CategoricalDistribution, FloatDistribution
from optuna.trial import FrozenTrial

import evbind_lib.hpo.study as studies
from evbind_lib.config.compose import with_trainer
from evbind_lib.config.encoders import TINY, encoder_default
from evbind_lib.config.schema import DataParams, Params, dotted_name
from evbind_lib.errors import ModelError, ParamsError, SearchError
from evbind_lib.hpo.study import TrialRecord

# The evaluation protocol: trials that differ in one of these cannot be compared. Ratio and strategy are of training pairs alone.
PROTOCOL = {f"training.{name}" for name in ("n_folds", "seed", "seeds", "holdout", "validation", "fresh")}
PROTOCOL |= {f"data.{name}" for name in {*DataParams.model_fields} - {"pos_neg_ratio", "negative_strategy"}}


def check_space(params: Params) -> None:
    """Refuse conditions that form a cycle, the evaluation protocol, what training does not know, a missing file to enqueue."""
    from evbind_lib.training.fold import check_values, losses_of  # late: it loads torch

    parents_first(params)
    for name, entry in params.hpo.search_space.items():
        dotted = dotted_name(name)
        if dotted in PROTOCOL:
            reason = "belongs to the evaluation protocol, which is the same in every trial"
            raise ParamsError(f"hpo.search_space.{name} {reason}; take it out and set {dotted} itself.")
        try:
            with studies.quiet_optuna():
                optuna.create_study().ask({name: entry.to_optuna()})
        except (ValueError, ArithmeticError) as error:
            problem = f"hpo.search_space.{name}: no value can be drawn ({str(error) or type(error).__name__})"
            raise ParamsError(f"{problem}; give it a range and a step of common size.") from None
        for loss, value in itertools.product(losses_of(params, dotted), entry.examples):
            try:
                check_values(put_in(params, {"training.loss_function": loss, dotted: value}))
            except (ParamsError, ModelError) as error:
                raise type(error)(f"hpo.search_space.{name}: {error}") from None
        _check_conditions(params, name)
    for source in params.hpo.enqueue:
        if source.startswith("study:"):
            _best_of(source, studies.existing_storage(params.hpo.study.storage))
        else:
            with_trainer(params, source)


def _check_conditions(params: Params, name: str) -> None:
    """Refuse a ``when`` that holds in no trial: on what is neither searched nor set, or on a value that none draws."""
    space = params.hpo.search_space
    for other, wanted in space[name].when.items():
        dotted, values = dotted_name(other), wanted if isinstance(wanted, list) else [wanted]
        parents = {each: entry.to_optuna() for each, entry in space.items() if dotted_name(each) == dotted}
        # Choices may be narrowed by a word: what hangs on others lies idle. A range without a step draws no number twice.
        drawn = any(
            isinstance(kind, CategoricalDistribution) or (kind.step and _is_within(kind, each, value))
            for each, kind in parents.items()
            for value in values
        )
        if not drawn and (parents or params.value_of(dotted) is None):
            problem = "no trial draws that" if parents else "it is neither searched nor set"
            raise ParamsError(
                f"hpo.search_space.{name}.when.{other}={wanted}: {problem}; correct it, or take {name} out."
            )


def put_in(params: Params, values: Mapping[str, Any]) -> Params:
    """Parameters with searched values, by dotted names; another encoder is given no longer pairs than it has positions for."""
    length, name = params.model.max_length, values.get("model.name", TINY)
    fitting = {} if name == TINY else {"model.max_length": min(length, int(encoder_default(name, "max_length")))}
    return params.with_values({**fitting, **values})


def parents_first(params: Params) -> list[str]:
    """Names of the search space, each after those that its ``when`` depends on."""
    space = params.hpo.search_space
    names = {dotted_name(name): name for name in space}
    whens = {name: map(dotted_name, entry.when) for name, entry in space.items()}
    parents = {name: [names[other] for other in when if other in names] for name, when in whens.items()}
    try:
        return list(TopologicalSorter(parents).static_order())
    except CycleError as error:
        cycle = ", ".join(error.args[1][1:])
        raise ParamsError(f"hpo.search_space: the `when` of {cycle} form a cycle; take one of them out.") from None


def draw(trial: optuna.Trial, params: Params) -> dict[str, Any]:
    """Draw a value for every searched parameter whose ``when`` holds, by its name in the search space."""
    drawn: dict[str, Any] = {}
    for name, entry in _open_to(drawn, params):
        # What Optuna warns of or refuses is an enqueued value.
        with warnings.catch_warnings(action="ignore"), contextlib.suppress(ValueError):
            drawn[name] = _suggest(trial, name, entry)
        if name not in drawn or not _is_within(entry, name, drawn[name]):
            problem = f"was enqueued: {name}={drawn.get(name, 'its value')} is outside hpo.search_space.{name}"
            raise ParamsError(f"Trial {trial.number} {problem}; enqueue another, the search goes on without it.")
    return drawn


def _suggest(trial: optuna.Trial, name: str, entry: Any) -> Any:
    if isinstance(entry, CategoricalDistribution):
        return trial.suggest_categorical(name, entry.choices)
    suggest = trial.suggest_float if isinstance(entry, FloatDistribution) else trial.suggest_int
    return suggest(name, entry.low, entry.high, step=entry.step, log=entry.log)


def _open_to(chosen: Mapping[str, Any], params: Params) -> Iterator[tuple[str, Any]]:
    """Parameters whose ``when`` holds for what was chosen until then; one on a parameter that was not chosen does not."""
    space, configured = params.hpo.search_space, params.flat()
    for name in parents_first(params):
        values = configured | {dotted_name(other): chosen.get(other, object()) for other in space}
        wanted = {dotted_name(other): value for other, value in space[name].when.items()}
        if all(values.get(key) in (value if isinstance(value, list) else [value]) for key, value in wanted.items()):
            yield name, space[name].to_optuna()


def searched_values(params: Params) -> dict[str, Any]:
    """Values that the searched parameters have where they are configured, by their names; None for one that is not set."""
    return {name: params.value_of(dotted_name(name)) for name in params.hpo.search_space}


def enqueued_values(params: Params, values: Mapping[str, Any]) -> tuple[dict[str, Any], list[str]]:
    """What of values, by names of any search space, a trial can begin with, and notes on what the sampler draws instead."""
    given: dict[str, Any] = {}
    chosen: dict[str, Any] = {}
    notes: list[str] = []
    for name, value in values.items():
        with contextlib.suppress(ValueError):  # another study may have searched what is no parameter here
            given[dotted_name(name)] = value
    for name, entry in _open_to(chosen, params):
        value = given.get(dotted_name(name))
        if _is_within(entry, name, value):
            chosen[name] = entry.to_external_repr(entry.to_internal_repr(value))  # as it is drawn: 3 epochs and not 3.0
        else:
            problem = f"{name} has no value" if value is None else f"{name}={value} is outside hpo.search_space.{name}"
            notes.append(f"{problem}, so the sampler draws it.")
    return chosen, notes


def _is_within(entry: BaseDistribution, name: str, value: Any) -> bool:
    """Whether a value can be drawn; the trial is made for Optuna's own check of it."""
    try:
        optuna.trial.create_trial(value=0.0, params={name: value}, distributions={name: entry})
    except ValueError:
        return False
    return True


def enqueue(study: optuna.Study, params: Params) -> list[str]:
    """Begin with the parameter sets of ``hpo.enqueue``; what of them is not searched, or out of range, is noted."""
    notes = []
    for source in params.hpo.enqueue:
        if source.startswith("study:"):
            values = _best_of(source, studies.storage_of(study)).params
        else:
            values = searched_values(with_trainer(params, source))
        fixed, remarks = enqueued_values(params, values)
        notes += [f"hpo.enqueue, {source}: {remark}" for remark in remarks]
        if fixed:
            study.enqueue_trial(fixed, user_attrs=TrialRecord(enqueued=source).values(), skip_if_exists=True)
    return notes


def _best_of(source: str, storage: optuna.storages.BaseStorage | None) -> FrozenTrial:
    """Best trial of the study that ``study:NAME`` names."""
    name = source.removeprefix("study:")
    known = storage is not None and name in optuna.get_all_study_names(storage)
    best = studies.best_trial(optuna.load_study(study_name=name, storage=storage)) if known else None
    if best is None:
        raise SearchError(f"hpo.enqueue={source}: no such study has a complete trial; name one that has.")
    return best


def note_changed_space(study: optuna.Study, params: Params) -> list[str]:
    """A note where trials of the study were drawn from another space than this; choices cannot change in Optuna."""
    now = {name: entry.to_optuna() for name, entry in params.hpo.search_space.items()}
    tried = [each for trial in study.get_trials(deepcopy=False) for each in trial.distributions.items()]
    for name, distribution in tried:
        try:
            optuna.distributions.check_distribution_compatibility(distribution, now.get(name, distribution))
        except ValueError:
            reason = f"was searched with other choices or another type of hpo.search_space.{name}"
            begin = f"hpo.enqueue=['study:{study.study_name}'] begins a new one at its best"
            raise studies.refusal(study.study_name, f"{reason} ({begin})") from None
    added = {name for name in now.keys() - dict(tried) if not params.hpo.search_space[name].when}
    changed = ", ".join(sorted(added | {name for name, each in tried if each != now.get(name)}))
    note = f"The search space changed since the study began: {changed}; earlier trials count as before."
    return [note] if tried and changed else []
