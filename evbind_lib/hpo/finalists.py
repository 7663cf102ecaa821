"""Finalists: the best trials of a search, trained again on the same folds with seeds that did not choose them."""

import functools
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, cast

import filelock
import numpy as np
import optuna
from optuna.trial import FrozenTrial, TrialState

import evbind_lib.hpo.study as studies
from evbind_lib.config.processes import lock_between_processes
from evbind_lib.config.schema import Params
from evbind_lib.errors import TrainingError
from evbind_lib.hpo.objective import Objective, RunningTrial, SearchCallback, SearchStopped, StopRequest
from evbind_lib.hpo.study import StudyRecord, TrialRecord
from evbind_lib.training.cache import FoldCache
from evbind_lib.training.result import CrossValidation

N_SEEDS = 2  # for each; three finalists are 12 % more folds then, after fifty trials that all had theirs


@dataclass(frozen=True)
class Finalist:
    """A trial that was trained again: its number, its value with each of the fresh seeds, their mean and standard deviation."""

    trial: int
    values: tuple[float, ...]

    @property
    def mean(self) -> float:
        """What is reported for it: the value that it was chosen by is not in it."""
        return float(np.mean(self.values))

    @property
    def std(self) -> float:
        """Between the seeds."""
        return float(np.std(self.values, ddof=1))


def finalists(study: optuna.Study) -> list[Finalist]:
    """Finalists by the mean of their fresh seeds, best first; none where a better trial has come since, not trained again yet."""
    record = StudyRecord.read(study)
    known, sign = record.finalists or {}, 1 if studies.is_minimised(study) else -1
    trials = [str(trial.number) for trial in best_trials(study, record.n_finalists or 0)]
    if not known.keys() >= {*trials}:
        return []
    found = [Finalist(int(number), tuple(known[number]["values"])) for number in trials if known[number]["values"]]
    return sorted(found, key=lambda each: sign * each.mean)


def best_trials(study: optuna.Study, count: int) -> list[FrozenTrial]:
    """The best complete trials with parameters that differ, the earliest of equals."""
    sign, apart = 1 if studies.is_minimised(study) else -1, dict[Any, FrozenTrial]()
    for trial in sorted(studies.complete_trials(study), key=lambda trial: sign * trial.values[0]):
        apart.setdefault(TrialRecord.read(trial).parameter_key or trial.number, trial)
    return [*apart.values()][:count]


def fresh_seeds(seed: int) -> list[int]:
    """Seeds of the finalists, the same for each, so that they meet the same luck."""
    return [int(each) for each in np.random.SeedSequence([seed, 1]).generate_state(N_SEEDS)]


def train_finalists(
    study: optuna.Study,
    objective: Objective,
    params: Params,
    callbacks: Sequence[SearchCallback],
    asked_to_stop: StopRequest,
) -> list[str]:
    """Train the best ``hpo.finalists`` trials again that were not yet by this code, here one after the other; notes on it."""
    running = study.get_trials(deepcopy=False, states=(TrialState.RUNNING,))
    if running:
        return [f"hpo.finalists: others are at work on {len(running)} trials; the last search to end trains them."]
    try:  # where two searches end at once, the second reads what the first has trained
        with lock_between_processes(f"finalists {studies.study_uid(study)}"):
            train = functools.partial(_train, study, objective, params, callbacks, asked_to_stop)
            return _train_missing(study, params.hpo.finalists, train)
    except filelock.Timeout:
        return ["hpo.finalists: another search is training them; the same command shows them when it is done."]


def _train_missing(study: optuna.Study, count: int, train: Callable[[FrozenTrial], list[float]]) -> list[str]:
    """Train those of the best that no search has trained with this code yet, and write each as soon as it is done; notes."""
    notes, write = [], functools.partial(_write, study)
    StudyRecord(n_finalists=count).write(study)
    for trial in best_trials(study, count):
        known = (StudyRecord.read(study).finalists or {}).get(str(trial.number), {})
        if known.get("code") != studies.code_version():
            try:
                write(trial, values=train(trial))
            except SearchStopped:
                return ["Stopped before all finalists were trained; the same command goes on with them."]
            except TrainingError as error:
                write(trial, values=[], error=str(error))
        if problem := StudyRecord.read(study).finalists[str(trial.number)].get("error"):  # type: ignore[index]
            notes.append(f"Finalist trial {trial.number} could not be trained with fresh seeds: {problem}")
    return notes


def _write(study: optuna.Study, trial: FrozenTrial, **result: Any) -> None:
    # An attribute of the study, since Optuna takes none of a trial that has ended.
    known = StudyRecord.read(study).finalists or {}
    StudyRecord(finalists={**known, str(trial.number): {"code": studies.code_version(), **result}}).write(study)


def _train(
    study: optuna.Study,
    objective: Objective,
    params: Params,
    callbacks: Sequence[SearchCallback],
    asked_to_stop: StopRequest,
    trial: FrozenTrial,
) -> list[float]:
    """Values of a trial's parameters with each fresh seed; folds of a search that was killed here are read."""
    from evbind_lib.training.crossval import cross_validate  # late: it loads torch

    tried = studies.resolved_params(trial, objective.params)
    if tried is None:
        raise TrainingError("the study does not hold all of its parameters.")
    tried = tried.with_values({"training.seeds": fresh_seeds(objective.params.training.seed)})
    cache = FoldCache(studies.study_uid(study), read_all=params.hpo.reuse)
    # Callbacks read its number and parameters, which a trial that has ended holds as well.
    followed = RunningTrial(cast(optuna.Trial, trial), cache, callbacks, asked_to_stop)
    values: list[float] = []
    error: BaseException | None = None
    for callback in callbacks:
        callback.on_finalist_begin(trial)
    try:
        result = cross_validate(
            objective.corpus,
            objective.folds,
            tried,
            loss=objective.loss,
            model_init=objective.model_init,
            callbacks=followed.callbacks,
            cache=cache,
        )
        single = (CrossValidation(folds, result.aggregation) for folds in result.by_seed().values())
        values = [objective.value_of(each) for each in single]
    except BaseException as raised:
        error = raised
        raise
    finally:
        for callback in callbacks:
            callback.on_finalist_end(trial, values, error)
    return values
