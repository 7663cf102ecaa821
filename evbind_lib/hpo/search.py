"""The search: open the study, run its trials here or in workers, find the best; callbacks track and show it."""

import contextlib
import copy
import functools
import math
import signal
import threading
import time
import traceback
import warnings
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import optuna
from optuna.trial import FrozenTrial, TrialState

import evbind_lib.hpo.study as studies
from evbind_lib.config.masking import masked
from evbind_lib.config.processes import this_process
from evbind_lib.config.schema import Params, SamplerParams, dotted_name
from evbind_lib.errors import ParamsError, SearchError, TrainingError
from evbind_lib.hpo.claims import alone_with, claim_trial, close_dead, close_outdated, heartbeat, mark, requeue_lost
from evbind_lib.hpo.finalists import train_finalists
from evbind_lib.hpo.objective import (
    RUNNING,
    Objective,
    RunningTrial,
    SearchCallback,
    SearchStopped,
    StopRequest,
    study_identity,
)
from evbind_lib.hpo.pace import workers_at_once
from evbind_lib.hpo.results import SearchResult
from evbind_lib.hpo.samplers import build_pruner, build_sampler
from evbind_lib.hpo.space import check_space, enqueue, note_changed_space
from evbind_lib.hpo.study import TrialRecord
from evbind_lib.hpo.workers import check_workers, order_bytes, run_workers, uses_workers

SAME_FAILURES = 3  # trials in a row that fail at one place before their first fold is done: the next would too
ObjectiveFunction = Callable[[optuna.Trial], float]
OptunaCallback = Callable[[optuna.Study, FrozenTrial], Any]


def check_search(params: Params, loss: Any = None) -> None:
    """Refuse what cannot be searched before anything is trained or written: the one list, for shell, papermill and notebook."""
    from evbind_lib.training.fold import check  # late: it loads torch

    check(params, loss)
    if len(params.training.seeds) > 1:
        problem = f"training.seeds={params.training.seeds}: a search trains each of its trials once"
        raise ParamsError(f"{problem}; leave it out, and train the best again with evbind train trainer=hpo_best.")
    check_space(params)
    if params.data.negatives == "annotated":
        _refuse_sampling(params)
    at_once = params.hpo.sampler.model_copy(update={"n_startup_trials": 1})
    sampler = build_sampler(at_once, n_earlier_trials=0)
    pruner = build_pruner(params.hpo.pruner, n_folds=params.training.n_folds)
    try:  # some of their options are looked at when they are used
        with studies.quiet_optuna(), warnings.catch_warnings(action="ignore"):
            tried = optuna.create_study(sampler=sampler, pruner=pruner)
            for _ in range(2):  # the first is drawn at random
                trial = tried.ask({name: entry.to_optuna() for name, entry in params.hpo.search_space.items()})
                trial.report(0.5, step=0)
                trial.should_prune()
                tried.tell(trial, 0.5)
    except (ValueError, TypeError, LookupError, ArithmeticError, AssertionError, MemoryError) as error:
        used = f"hpo.sampler.type={params.hpo.sampler.type}, hpo.pruner.type={params.hpo.pruner.type}"
        raise ParamsError(f"{used}: they cannot be used ({str(error).rstrip('.')}); change their options.") from None
    check_workers(params)
    studies.check_storage(params.hpo.study.storage)


def run_search(
    objective: ObjectiveFunction,
    params: Params,
    *,
    study: str | optuna.Study | None = None,
    callbacks: Sequence[SearchCallback | OptunaCallback] = (),
) -> SearchResult:
    """Search until the study holds ``hpo.trials.n_trials`` finished trials, or another of its ends is reached."""
    started = time.perf_counter()
    check_search(params, objective.loss if isinstance(objective, Objective) else objective)
    if isinstance(objective, Objective) and not objective.corpus.samples_negatives(objective.params.data):
        _refuse_sampling(objective.params)
    if params.hpo.finalists and not isinstance(objective, Objective):
        problem = "only the trials of an ev.Objective can be trained again, since its folds and parameters are known"
        raise ParamsError(f"hpo.finalists={params.hpo.finalists}: {problem}; use one with score=, or leave it out.")
    if isinstance(study, optuna.Study) and len(study.directions) > 1:
        raise SearchError(f"Study {study.study_name} has several objectives; call study.optimize(objective) instead.")
    called = [each if isinstance(each, SearchCallback) else _Called(each) for each in callbacks]
    if uses_workers(params):
        order_bytes(study, objective)  # refused before the study is made
    sampler = None if isinstance(study, optuna.Study) else params.hpo.sampler
    deadline = time.time() + (params.hpo.trials.timeout or math.inf)
    loop = functools.partial(run_trials, objective=objective, params=params, deadline=deadline, sampler=sampler)
    with studies.quiet_optuna():
        opened = studies.open_study(params, study_identity(objective, params), study)
        if opened is not study:
            opened.pruner = build_pruner(params.hpo.pruner, n_folds=params.training.n_folds)
            opened.sampler = build_sampler(params.hpo.sampler, n_earlier_trials=0)
        with alone_with(opened):
            close_dead(opened, counts_as_death=False, left_by=this_process())
            requeue_lost(opened)
        n_earlier = len(studies.finished_trials(opened))
        notes = note_changed_space(opened, params) + _note_others(opened)
        close_outdated(opened, params)
        if not opened.get_trials(deepcopy=False):
            notes += enqueue(opened, params)
        for each in called:
            each.on_search_begin(opened, n_earlier)
        with _interruptible(called) as asked_to_stop, studies.recording_end(opened):
            if not uses_workers(params):
                loop(opened, asked_to_stop, callbacks=called)
            elif not _is_over(opened, params):
                sent = [each for each in (each.for_workers() for each in called) if each is not None]
                n_workers, fewer = workers_at_once(objective, params)
                notes += fewer
                fitting = params.with_values({"hpo.trials.n_jobs": n_workers})
                run_workers(opened, functools.partial(loop, callbacks=sent), fitting, called, asked_to_stop)
            finalists: list[str] = []
            if params.hpo.finalists and isinstance(objective, Objective) and _is_over(opened, params):
                finalists = train_finalists(
                    opened, objective, params, called, lambda: asked_to_stop() or time.time() > deadline
                )
            stopped = asked_to_stop()
            notes += [*_why_ended(opened, params, stopped=stopped, late=time.time() > deadline), *finalists]
            if (best := studies.best_trial(opened)) is None:
                raise SearchError(_without_a_best(opened, notes))
    return SearchResult(opened, best, params, n_earlier, time.perf_counter() - started, tuple(notes), stopped)


def run_trials(
    study: optuna.Study,
    asked_to_stop: StopRequest,
    *,
    objective: ObjectiveFunction,
    params: Params,
    callbacks: Sequence[SearchCallback],
    deadline: float,
    sampler: SamplerParams | None,
) -> None:
    """Run trials in this process until the study holds its total, another of its ends is reached, or somebody asks to stop."""
    stop = threading.Event()
    while not (asked_to_stop() or stop.is_set() or time.time() > deadline or studies.should_stop(study, params)):
        trial = claim_trial(study, params.hpo.trials.n_trials, sampler)
        if trial is None:
            return
        trial.study.stop = stop.set  # Optuna's own needs its own loop
        cache, limit = studies.fold_cache(study, read_all=params.hpo.reuse), params.hpo.trials.trial_timeout
        run_trial(study, objective, RunningTrial(trial, cache, callbacks, asked_to_stop, limit))


def run_trial(study: optuna.Study, objective: ObjectiveFunction, running: RunningTrial) -> None:
    """Run a claimed trial, findable as the one that runs here, write how it ended, tell it to Optuna, and call the callbacks."""
    trial, record, state, value = running.trial, TrialRecord(), TrialState.WAITING, None
    ending: BaseException | None = None
    token = RUNNING.set(running)
    try:
        with heartbeat(trial):
            for callback in running.search_callbacks:
                callback.on_trial_begin(trial)
            value, state = _finite(objective(trial)), TrialState.COMPLETE
    except optuna.TrialPruned as pruned:
        state, record.error = TrialState.PRUNED, str(pruned) or None
    except (SearchStopped, KeyboardInterrupt) as stop:
        # It waits: it did not FAIL, and from the folds of one that is PRUNED samplers and pruners would learn.
        ending = stop if isinstance(stop, KeyboardInterrupt) else None
    except Exception as error:
        if (ending := studies.lost_ground(study, error)) is None:
            state = TrialState.FAIL
            record.error = masked(f"{type(error).__name__}: {error}")
            # Files and lines without values: those could hold text of posts.
            frames = traceback.extract_tb(error.__traceback__)
            record.traceback = [f"{Path(frame.filename).name}:{frame.lineno} {frame.name}" for frame in frames]
            if isinstance(error, ParamsError | SearchError):  # the next trial would meet it too; any other is let go
                record.surplus, ending = True, error
    finally:
        RUNNING.reset(token)
    record.seconds = round((TrialRecord.read(trial).seconds or 0.0) + time.monotonic() - running.began, 3)
    try:
        record.write(trial)
        if state.is_finished():
            trial.study.tell(trial, value, state)
        ended = study.get_trials(deepcopy=False)[trial.number]
    except optuna.exceptions.UpdateFinishedTrialError:
        return  # another host took this process for dead, and queued the trial again
    except Exception as error:  # the next search closes the trial and queues it again
        raise ending or studies.lost_ground(study, error) or error from None
    try:
        for callback in running.search_callbacks:
            callback.on_trial_end(study, ended)
    finally:
        if state == TrialState.WAITING:
            mark(study, trial.number, TrialRecord(), state)  # from here on it may be another process's
    if ending := ending or (_same_failures(study) if state == TrialState.FAIL else None):
        raise ending from None


def _same_failures(study: optuna.Study) -> SearchError | None:
    """What ends a search whose last trials all failed at one place before their first fold was done; None for any other."""
    last = sorted(studies.finished_trials(study), key=lambda trial: trial.datetime_complete)[-SAME_FAILURES:]
    records = [TrialRecord.read(trial) for trial in last]
    places = {str((record.traceback, (record.error or "").partition(":")[0])) for record in records if record.error}
    if len(last) < SAME_FAILURES or len(places) > 1 or not all(each.error and not each.fold_scores for each in records):
        return None
    problem = f"{SAME_FAILURES} trials in a row failed before their first fold was done, the last with "
    problem += str(records[-1].error).rstrip(".")
    return SearchError(f"Study {study.study_name}: {problem}; fix the cause, and the same command goes on.")


def _is_over(study: optuna.Study, params: Params) -> bool:
    """Whether a search needs no further trial."""
    enough = len(studies.finished_trials(study)) >= params.hpo.trials.n_trials
    return enough or studies.should_stop(study, params) is not None


def _finite(value: Any) -> float:
    """What an objective returned, refused where Optuna would fail the trial without a word."""
    with contextlib.suppress(TypeError, ValueError):
        if math.isfinite(value):
            return float(value)
    raise TrainingError(f"the objective returned {value!r:.80}, which is no finite number.")


class _Called(SearchCallback):
    """Calls a function of the kind that Optuna's own loop takes."""

    def __init__(self, function: OptunaCallback) -> None:
        self.function = function

    def on_trial_end(self, study: optuna.Study, trial: FrozenTrial) -> None:
        handed = copy.copy(study)
        handed.stop = lambda: setattr(self, "wants_stop", True)  # Optuna's own needs its own loop
        if trial.state.is_finished():
            self.function(handed, trial)


@contextlib.contextmanager
def _interruptible(callbacks: Sequence[SearchCallback]) -> Iterator[StopRequest]:
    """Whether to stop. Of Ctrl-C the first one lets the current folds end, the second one ends everything at once."""
    asked = False

    def handle(number: int, frame: Any) -> None:
        nonlocal asked
        if asked:
            raise KeyboardInterrupt
        asked = True
        for callback in callbacks:
            callback.on_stop_request()

    main = threading.current_thread() is threading.main_thread()  # no other may set a handler
    before = signal.signal(signal.SIGINT, handle) if main else None
    try:
        yield lambda: asked or any(callback.wants_stop for callback in callbacks)
    finally:
        if before is not None:
            signal.signal(signal.SIGINT, before)


def _refuse_sampling(params: Params) -> None:
    """Refuse a search over how negatives are drawn where none are."""
    for name in params.hpo.search_space:
        if dotted_name(name) in ("data.pos_neg_ratio", "data.negative_strategy"):
            problem = f"hpo.search_space.{name}: the annotated negatives are used and none is drawn"
            raise ParamsError(f"{problem}; take it out, or set data.negatives=sampled.")


def _note_others(study: optuna.Study) -> list[str]:
    """Notes where trials of this study were trained by other code than this, or are of another program."""
    notes, own = [], {trial.number for trial in studies.own_trials(study)}
    if not studies.trials_by_code(study).keys() <= {studies.code_version()}:
        notes.append("The code that trains changed since the study began; its summary names the trials by code.")
    if foreign := [str(trial.number) for trial in study.get_trials(deepcopy=False) if trial.number not in own]:
        notes.append(f"Of another program, so never the best and not counted: trial {', '.join(foreign)}.")
    return notes


def _why_ended(study: optuna.Study, params: Params, *, stopped: bool, late: bool) -> list[str]:
    """Notes on an objective without folds, and on why the study does not hold its total."""
    notes, n_finished, n_trials = [], len(studies.finished_trials(study)), params.hpo.trials.n_trials
    if any(TrialRecord.read(trial).fold_scores is None for trial in studies.complete_trials(study)):
        notes.append("The objective does not use ev.report_folds: no fold of it is tracked, pruned or cut off.")
    if n_finished >= n_trials:
        return notes
    so_far = f"after {n_finished} of {n_trials} trials; the same command goes on"
    if stopped:
        return [*notes, f"Stopped on request {so_far}, with the folds that are done."]
    if late:
        return [*notes, f"hpo.trials.timeout is over {so_far}."]
    running = len(study.get_trials(deepcopy=False, states=(TrialState.RUNNING,)))
    others = f"other processes are at work on {running}" if running else "the study was stopped"
    return [*notes, studies.should_stop(study, params) or f"{n_finished} of {n_trials} trials are done; {others}."]


def _without_a_best(study: optuna.Study, notes: Sequence[str]) -> str:
    finished = studies.finished_trials(study)
    if not finished and notes:
        return f"Study {study.study_name}: {notes[-1]}"
    failed = next((trial for trial in finished if trial.state == TrialState.FAIL), None)
    reason = f"; trial {failed.number} failed with {TrialRecord.read(failed).error}" if failed else ""
    found = f"Study {study.study_name}: none of its {len(finished)} trials was completed{reason}"
    return f"{found}; fix the cause and set another hpo.study.study_name."
