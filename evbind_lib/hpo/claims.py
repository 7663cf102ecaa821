"""Who runs which trial: processes on any hosts claim exactly as many as the study is to hold; ``worker`` names whose it is."""

import contextlib
import copy
import threading
import time
from collections.abc import Iterator
from typing import Any

import optuna
from optuna.trial import FrozenTrial, TrialState, create_trial

from evbind_lib.config.processes import is_dead, is_here, lock_between_processes, this_process
from evbind_lib.config.schema import Params, SamplerParams
from evbind_lib.hpo.samplers import build_sampler
from evbind_lib.hpo.study import FORMAT, TrialRecord, address_of, code_version, is_finished, own_trials, storage_of

DEATHS_ALLOWED = 5  # parameters that took their process with them this often are not tried again
TOO_DEADLY = "ExecutionError: its process died {} times, most often for lack of memory; exclude such parameters."


def alone_with(study: optuna.Study) -> contextlib.AbstractContextManager[Any]:
    """Lock of a study between the processes of this machine: SQLite locks no row that was read, so two would take one trial."""
    return lock_between_processes(address_of(study))


def claim_trial(study: optuna.Study, n_trials: int, sampler: SamplerParams | None = None) -> optuna.Trial | None:
    """Take the next trial of a study, one that waits or a new one; None where others have all that remain of ``n_trials``."""
    number = None
    while number is None:  # or another worker was faster
        with alone_with(study):
            close_dead(study)
            trials = own_trials(study)
            if sum(is_finished(trial) or trial.state == TrialState.RUNNING for trial in trials) >= n_trials:
                return None
            number = _take(study, next((trial.number for trial in trials if trial.state == TrialState.WAITING), None))
    study = copy.copy(study)
    if sampler is not None:
        # Of the trial's own, seeded by its number: workers that start at the same moment draw different trials, and a search
        # that is resumed draws those that it would have drawn anyway (optuna issue 3255).
        study.sampler = build_sampler(sampler, n_earlier_trials=number)
    trial = optuna.Trial(study, _id_of(study, number))
    before = [other for other in own_trials(study) if other.number < number]
    if sum(is_finished(other) or not other.state.is_finished() for other in before) < n_trials:
        return trial
    TrialRecord(surplus=True).write(trial)  # workers of other hosts took trials at the same moment
    study.tell(trial, state=TrialState.FAIL)
    return None


def _take(study: optuna.Study, number: int | None) -> int | None:
    """Number of the waiting trial, or of a new one, that is now this process's; None where another was faster."""
    storage, study_id = _place_of(study)
    record = TrialRecord(format=FORMAT, worker=this_process())
    if number is None:
        running = create_trial(state=TrialState.RUNNING, user_attrs=record.values())
        return int(storage.get_trial_number_from_id(storage.create_new_trial(study_id, template_trial=running)))
    if _heartbeat_interval(study) is not None:
        storage.record_heartbeat(_id_of(study, number))  # of one that was stopped the last is old
    taken = mark(study, number, record, TrialState.RUNNING)
    # Written again: of several that wrote at once this one took it.
    return number if taken and mark(study, number, record) else None


def mark(study: optuna.Study, number: int, record: TrialRecord, state: TrialState | None = None) -> bool:
    """Write a record and then a state; False where another process was faster."""
    storage, trial_id = storage_of(study), _id_of(study, number)
    try:
        for name, value in record.values().items():
            storage.set_trial_user_attr(trial_id, name, value)
        return state is None or bool(storage.set_trial_state_values(trial_id, state=state))
    except (optuna.exceptions.UpdateFinishedTrialError, RuntimeError):
        return False


def _place_of(study: optuna.Study) -> tuple[Any, int]:
    """Storage of a study and its number there."""
    return (storage := storage_of(study)), int(storage.get_study_id_from_name(study.study_name))


def _id_of(study: optuna.Study, number: int) -> int:
    storage, study_id = _place_of(study)
    return int(storage.get_trial_id_from_study_id_trial_number(study_id, number))


@contextlib.contextmanager
def heartbeat(trial: optuna.Trial) -> Iterator[None]:
    """Let other hosts see, while the trial runs, that its process lives; where the storage has heartbeats."""
    interval, done, trial_id = _heartbeat_interval(trial.study), threading.Event(), _id_of(trial.study, trial.number)

    def beat() -> None:
        while not done.is_set():
            with contextlib.suppress(Exception):  # a database that does not answer now may answer the next time
                trial.storage.record_heartbeat(trial_id)
            done.wait(interval)

    if interval is not None:
        threading.Thread(target=beat, daemon=True).start()
    try:
        yield
    finally:
        done.set()


def _heartbeat_interval(study: optuna.Study) -> int | None:
    storage = storage_of(study)
    return storage.get_heartbeat_interval() if hasattr(storage, "get_heartbeat_interval") else None


def _without_heartbeat(study: optuna.Study) -> set[int]:
    storage, study_id = _place_of(study)
    # Private: Optuna's public fail_stale_trials closes trials of this host too, and before they can be marked as interrupted.
    stale = [] if _heartbeat_interval(study) is None else storage._get_stale_trial_ids(study_id)
    return {storage.get_trial_number_from_id(trial_id) for trial_id in stale}


def close_dead(study: optuna.Study, *, counts_as_death: bool = True, left_by: str = "") -> list[int]:
    """Close trials whose process is gone, or is the one that left them, and queue their parameters again; their numbers."""
    silent, closed = _without_heartbeat(study), []
    for trial in study.get_trials(deepcopy=False, states=(TrialState.RUNNING,)):
        worker = TrialRecord.read(trial).worker  # None for a trial of a script, which is left alone
        gone = worker and (worker == left_by or is_dead(worker) or (trial.number in silent and not is_here(worker)))
        if gone and interrupt(study, trial, counts_as_death=counts_as_death):
            closed.append(trial.number)
    return closed


def interrupt(study: optuna.Study, trial: FrozenTrial, error: str | None = None, counts_as_death: bool = True) -> bool:
    """Close a trial that did not end, failed with ``error`` or to be done again; False where another process closed it before."""
    deaths = (TrialRecord.read(trial).deaths or 0) + counts_as_death
    if error is None and deaths >= DEATHS_ALLOWED:
        error = TOO_DEADLY.format(deaths)
    closed = mark(study, trial.number, TrialRecord(error=error, interrupted=not error or None), TrialState.FAIL)
    if closed and error is None:
        queue_again(study, trial, deaths=deaths)
    return closed


def close_outdated(study: optuna.Study, params: Params) -> None:
    """Close stopped trials that drew from another space, or were trained by other code, and queue their parameters again."""
    space = {name: entry.to_optuna() for name, entry in params.hpo.search_space.items()}
    always = {name for name, entry in params.hpo.search_space.items() if not entry.when}
    for trial in study.get_trials(deepcopy=False, states=(TrialState.WAITING,)):
        record, drawn = TrialRecord.read(trial), trial.distributions
        same = always <= drawn.keys() and drawn.items() <= space.items() and record.code in (None, code_version())
        if record.resolved and not same:
            interrupt(study, trial, counts_as_death=False)


def queue_again(study: optuna.Study, trial: FrozenTrial, *, deaths: int = 0) -> None:
    """Queue the parameters of a trial that was cut off; any new trial is as good as one that had drawn none."""
    params = {**trial.system_attrs.get("fixed_params", {}), **trial.params}  # what it was to begin with, what it drew
    if params:
        study.enqueue_trial(params, user_attrs=TrialRecord(retry_of=trial.number, deaths=deaths).values())


def requeue_lost(study: optuna.Study) -> None:
    """Queue again what was closed as cut off by a process that died before it could queue it."""
    trials = study.get_trials(deepcopy=False)
    retried = {TrialRecord.read(trial).retry_of for trial in trials}
    for trial in trials:
        recent = trial.datetime_complete is not None and time.time() - trial.datetime_complete.timestamp() < 5
        if TrialRecord.read(trial).interrupted and trial.number not in retried and not recent:
            queue_again(study, trial)
