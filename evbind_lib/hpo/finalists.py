"""Finalists: the best trials of a search, trained again on the same folds with seeds that did not choose them."""

import time
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, cast

import filelock
import numpy as np
import optuna
from optuna.trial import FrozenTrial, TrialState

import evbind_lib.hpo.study as studies
from evbind_lib.config.processes import lock_between_processes
from evbind_lib.config.schema import Params
from evbind_lib.errors import SearchError, TrainingError
from evbind_lib.hpo.objective import Objective, RunningTrial, SearchCallback, SearchStopped, StopRequest
from evbind_lib.hpo.study import StudyRecord
from evbind_lib.training.cache import trial_name
from evbind_lib.training.result import CrossValidation, FoldResult

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
    known = record.finalists or {}
    trials = [str(trial.number) for trial in best_trials(study, record.n_finalists or 0)]
    if not known.keys() >= {*trials}:
        return []
    found = [Finalist(int(number), tuple(known[number]["values"])) for number in trials if known[number]["values"]]
    return sorted(found, key=lambda each: each.mean, reverse=not studies.is_minimised(study))


def best_trials(study: optuna.Study, count: int) -> list[FrozenTrial]:
    """The best complete trials with parameters that differ, the earliest of equals."""
    return studies.distinct_trials(studies.ranked_trials(study))[:count]


def fresh_seeds(seed: int) -> list[int]:
    """Seeds of the finalists, the same for each, so that they meet the same luck."""
    return [int(each) for each in np.random.SeedSequence([seed, 1]).generate_state(N_SEEDS)]


def finalist_name(number: int, place: int) -> str:
    """Name of a fold of a finalist in the cache, by its place among those of all its seeds."""
    return f"finalist_{trial_name(number, place)}"


@dataclass
class _RunningFinalist(RunningTrial):
    """A trial that is trained again; its folds are stored in their order, where those who write runs find them."""

    n_folds: int = 0

    def on_fold_end(self, result: FoldResult) -> None:
        self.cache.save(finalist_name(self.trial.number, self.n_folds), result)
        self.n_folds += 1


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
    notes, cache = [], studies.fold_cache(study, read_all=params.hpo.reuse)
    try:  # where two searches end at once, the second reads what the first has trained
        with lock_between_processes(f"finalists {studies.study_uid(study)}"):
            StudyRecord(n_finalists=params.hpo.finalists).write(study)
            for trial in best_trials(study, params.hpo.finalists):
                known, number = StudyRecord.read(study).finalists or {}, str(trial.number)
                if known.get(number, {}).get("code") != studies.code_version():
                    # Callbacks read its number and parameters, which a trial that has ended holds as well.
                    followed = _RunningFinalist(cast(optuna.Trial, trial), cache, callbacks, asked_to_stop)
                    known[number] = {"code": studies.code_version(), **_train(study, trial, objective, followed)}
                    # An attribute of the study, since Optuna takes none of a trial that has ended.
                    StudyRecord(finalists=known).write(study)
                if problem := known[number].get("error"):
                    notes.append(f"Finalist trial {number} could not be trained with fresh seeds: {problem}")
    except SearchStopped:
        return ["Stopped before all finalists were trained; the same command goes on with them."]
    except filelock.Timeout:
        return ["hpo.finalists: another search is training them; the same command shows them when it is done."]
    return notes


def _train(study: optuna.Study, trial: FrozenTrial, objective: Objective, followed: RunningTrial) -> dict[str, Any]:
    """Values of a trial's parameters with each fresh seed, or why there are none; folds of a search that was killed are read."""
    seeds = {"training.seeds": fresh_seeds(objective.params.training.seed)}
    values: list[float] = []
    error: BaseException | None = None
    for callback in followed.search_callbacks:
        callback.on_finalist_begin(trial)
    try:
        tried = studies.resolved_params(study, trial, objective.params).with_values(seeds)
        result = objective.cross_validated(tried, followed.callbacks, followed.cache)
        single = (CrossValidation(folds, result.aggregation) for folds in result.by_seed().values())
        values = [objective.value_of(each) for each in single]
    except BaseException as raised:
        error = raised
        if not isinstance(raised, TrainingError | SearchError):
            raise
    finally:
        for callback in followed.search_callbacks:
            callback.on_finalist_end(trial, values, error)
    return {"values": values, "ended": time.time(), **({"error": str(error)} if error else {})}
