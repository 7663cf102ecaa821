"""Who runs which trial: workers of any number of processes and hosts claim trials of one study, exactly as many as it is to hold.

A trial belongs to the process named in its attribute ``worker``, which is written in the same step that makes it RUNNING,
so that it can always be told whether somebody is at work on it. Optuna's own ``ask`` counts nothing, and its heartbeat knows
of a dead process only minutes later. Imports `processes`, `storage` and `studies`; `trials`, `workers` and `search` import it.
"""

from __future__ import annotations

import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from datetime import datetime
from typing import Any

import optuna
from optuna.exceptions import UpdateFinishedTrialError
from optuna.storages._heartbeat import BaseHeartbeat, get_heartbeat_thread
from optuna.trial import FrozenTrial, TrialState

from evbind_lib.config.compose import Params
from evbind_lib.config.processes import is_dead, is_here, this_process
from evbind_lib.hpo.samplers import build_sampler
from evbind_lib.hpo.storage import alone_with
from evbind_lib.hpo.study import counts_as_finished

# A set of parameters that took its process with it this often is not tried again.
DEATHS_ALLOWED = 5


def claim_trial(study: optuna.Study, params: Params) -> optuna.Trial | None:
    """Take the next trial of a study, one that waits or a new one; None where others have all that remain.

    Each trial has a sampler of its own, seeded by its number: workers that start at the same moment draw different
    trials, and a search that was resumed draws those that it would have drawn anyway (optuna issue 3255).

    Parameters
    ----------
    study : optuna.Study
    params : Params
        ``hpo.trials.n_trials`` is what the study is to hold in all.

    Returns
    -------
    optuna.Trial or None
        RUNNING, and of this process.
    """
    n_trials = params.hpo.trials.n_trials
    while True:
        with alone_with(study._storage):
            close_dead(study)
            trials = study.get_trials(deepcopy=False)
            waiting = [trial for trial in trials if trial.state == TrialState.WAITING]
            taken = sum(counts_as_finished(trial) or trial.state == TrialState.RUNNING for trial in trials)
            if taken >= n_trials or (not waiting and taken + len(waiting) >= n_trials):
                return None
            trial_id = _take(study, waiting[0]) if waiting else _make(study)
        if trial_id is None:
            continue  # another worker was faster
        study._thread_local.cached_all_trials = None  # as Study.ask does: samplers are to see what others finished
        number = study._storage.get_trial_number_from_id(trial_id)
        study.sampler = build_sampler(params.hpo.sampler, n_earlier_trials=number, params=params)
        trial = optuna.Trial(study, trial_id)
        if _is_surplus(study, trial.number, n_trials):
            trial.set_user_attr("surplus", True)
            study.tell(trial, state=TrialState.FAIL)
            return None
        return trial


def _take(study: optuna.Study, waiting: FrozenTrial) -> int | None:
    storage, trial_id = study._storage, waiting._trial_id
    try:
        storage.set_trial_user_attr(trial_id, "worker", this_process())
        if not storage.set_trial_state_values(trial_id, state=TrialState.RUNNING):
            return None
        storage.set_trial_user_attr(trial_id, "worker", this_process())
    except (UpdateFinishedTrialError, RuntimeError):
        return None
    return trial_id


def _make(study: optuna.Study) -> int:
    template = FrozenTrial(
        number=-1,
        trial_id=-1,
        state=TrialState.RUNNING,
        value=None,
        datetime_start=datetime.now(),
        datetime_complete=None,
        params={},
        distributions={},
        user_attrs={"worker": this_process()},
        system_attrs={},
        intermediate_values={},
    )
    return int(study._storage.create_new_trial(study._study_id, template_trial=template))


def _is_surplus(study: optuna.Study, number: int, n_trials: int) -> bool:
    """Whether workers of other hosts made so many trials at the same moment that this one is beyond the total."""
    before = [trial for trial in study.get_trials(deepcopy=False) if trial.number < number]
    return sum(counts_as_finished(trial) or not trial.state.is_finished() for trial in before) >= n_trials


@contextmanager
def signs_of_life(trial: optuna.Trial) -> Iterator[None]:
    """Let other hosts see, while the trial runs, that its process lives; where the storage keeps heartbeats."""
    with get_heartbeat_thread(trial._trial_id, trial.study._storage):
        yield


def close_dead(study: optuna.Study, *, blamed: bool = True) -> list[int]:
    """Close trials whose process is gone, and queue their parameters again.

    Parameters
    ----------
    study : optuna.Study
    blamed : bool
        Whether the trials may be the reason: not where the whole search was killed.

    Returns
    -------
    list of int
        Numbers of the trials closed.
    """
    storage = study._storage
    silent: Sequence[int] = []
    if isinstance(storage, BaseHeartbeat) and storage.get_heartbeat_interval() is not None:
        silent = storage._get_stale_trial_ids(study._study_id)
    closed = []
    for trial in study.get_trials(deepcopy=False, states=(TrialState.RUNNING,)):
        worker = trial.user_attrs.get("worker")
        unheard = trial._trial_id in silent and not (isinstance(worker, str) and is_here(worker))
        dead = not isinstance(worker, str) or is_dead(worker)
        if (dead or unheard) and interrupt(study, trial, blamed=blamed):
            closed.append(trial.number)
    return closed


def interrupt(study: optuna.Study, trial: FrozenTrial, error: str | None = None, *, blamed: bool = True) -> bool:
    """Close a RUNNING trial that did not come to its end, and queue its parameters again.

    Parameters
    ----------
    study : optuna.Study
    trial : FrozenTrial
    error : str, optional
        Where it is not to be tried again: why it failed.
    blamed : bool
        Whether this counts as a death that the parameters may be the reason of.

    Returns
    -------
    bool
        False where it had been closed already.
    """
    storage, attributes = study._storage, trial.user_attrs
    deaths = int(attributes.get("deaths", 0)) + int(blamed)
    if error is None and deaths >= DEATHS_ALLOWED:
        error = (
            f"ExecutionError: its process died {deaths} times, most often for lack of memory; exclude such parameters, or lower "
            "training.args.per_device_train_batch_size."
        )
    try:
        if error is None:
            storage.set_trial_user_attr(trial._trial_id, "interrupted", True)
        else:
            storage.set_trial_user_attr(trial._trial_id, "error", error)
        if not storage.set_trial_state_values(trial._trial_id, state=TrialState.FAIL):
            return False
    except (UpdateFinishedTrialError, RuntimeError):  # another process closed it
        return False
    if error is None:
        queue_again(study, trial, deaths=deaths)
    return True


def queue_again(study: optuna.Study, trial: FrozenTrial, *, deaths: int = 0) -> None:
    """Queue the parameters of a trial that was cut off; its finished folds are kept and not trained again."""
    if not trial.params and "fixed_params" not in trial.system_attrs:
        return  # it had drawn nothing yet: any new trial is as good
    params = {**trial.system_attrs.get("fixed_params", {}), **trial.params}
    carried: dict[str, Any] = {"retry_of": trial.number, "deaths": deaths}
    study.enqueue_trial(params, user_attrs=carried)


def requeue_lost(study: optuna.Study) -> None:
    """Queue again what was closed as cut off by a process that died before it could queue it."""
    trials = study.get_trials(deepcopy=False)
    retried = {trial.user_attrs.get("retry_of") for trial in trials}
    for trial in trials:
        recent = trial.datetime_complete is not None and time.time() - trial.datetime_complete.timestamp() < 5
        if trial.user_attrs.get("interrupted") and trial.number not in retried and not recent:
            queue_again(study, trial)
