"""The search: open the study, run its trials here or in workers, find the best.

Imports the rooms below it; `tracking`, `plots` and `notebook` import it. What is recorded and shown is the business of
listeners, so that the search itself knows neither MLflow nor a screen.
"""

from __future__ import annotations

import math
import signal
import threading
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from types import FrameType
from typing import Any

import optuna
from optuna.trial import FrozenTrial, TrialState

from evbind_lib.config.compose import Params, with_trainer
from evbind_lib.data.corpus import Corpus
from evbind_lib.data.folds import Fold
from evbind_lib.errors import SearchError
from evbind_lib.hpo.claims import close_dead, requeue_lost
from evbind_lib.hpo.objective import Objective, SearchListener, SearchStopped, run_trials
from evbind_lib.hpo.objectives import best_trial, check_objectives, effective_pruner, why_no_best
from evbind_lib.hpo.samplers import build_pruner, build_sampler
from evbind_lib.hpo.space import check_space, enqueued_values, searched_values
from evbind_lib.hpo.stopping import should_stop
from evbind_lib.hpo.storage import alone_with, check_storage
from evbind_lib.hpo.study import finished_trials, open_study, study_identity
from evbind_lib.hpo.workers import Order, check_workers, run_workers, visible_gpus
from evbind_lib.training.arguments import training_arguments
from evbind_lib.training.crossval import CrossValidator

__all__ = ["SearchListener", "SearchResult", "SearchStopped", "check_search", "run_search"]


@dataclass(frozen=True)
class SearchResult:
    """What a search found.

    Attributes
    ----------
    study : optuna.Study
    best : FrozenTrial
        The complete trial with the best value.
    best_params : Params
        All parameters of that trial.
    n_earlier_trials : int
        Finished trials that the study had before this search.
    seconds : float
        Wall time of this search.
    notes : tuple of str
        What a person should know: why the search ended before its total, what changed since it began.
    stopped : bool
        Whether somebody asked it to stop.
    """

    study: optuna.Study
    best: FrozenTrial
    best_params: Params
    n_earlier_trials: int
    seconds: float
    notes: tuple[str, ...] = ()
    stopped: bool = False


def check_search(params: Params) -> None:
    """Refuse what cannot be searched before anything is trained or written.

    Raises
    ------
    ParamsError
        For an unknown sampler, pruner or option, a circle of ``when``, more workers than there can be, a searched
        parameter that would change the yardstick, or training arguments that transformers refuses.
    SearchError
        For a storage that cannot be reached or written.
    """
    build_sampler(params.hpo.sampler, n_earlier_trials=0, params=params)
    build_pruner(effective_pruner(params), n_folds=params.training.n_folds)
    check_space(params)
    check_objectives(params)
    check_workers(params)
    training_arguments(params, output_dir="unused")
    check_storage(params.hpo.study.storage)


class _Interruption:
    """Ctrl-C while a search runs: the first one lets the current folds end, the second one ends everything at once."""

    def __init__(self, tell: Callable[[], None]) -> None:
        self.tell = tell
        self.asked = False
        self._before: Any = None

    def __enter__(self) -> _Interruption:
        if threading.current_thread() is threading.main_thread():
            self._before = signal.signal(signal.SIGINT, self._handle)
        return self

    def __exit__(self, *_: object) -> None:
        if self._before is not None:
            signal.signal(signal.SIGINT, self._before)

    def _handle(self, number: int, frame: FrameType | None) -> None:
        if self.asked:
            raise KeyboardInterrupt
        self.asked = True
        self.tell()


def run_search(
    params: Params, corpus: Corpus, folds: Sequence[Fold], listeners: Sequence[SearchListener] = ()
) -> SearchResult:
    """Search until the study holds ``hpo.trials.n_trials`` finished trials, or another of its ends is reached.

    A trial that raises is FAILED and the study goes on; one that a pruner stops is PRUNED. With several workers, a limit on
    a trial's time, or a cluster, trials run in processes of their own. Any number of such searches may work on one study.

    Parameters
    ----------
    params : Params
    corpus : Corpus
    folds : sequence of Fold
    listeners : sequence of SearchListener

    Returns
    -------
    SearchResult

    Raises
    ------
    ParamsError, SearchError
        Before any training when something cannot be used; `SearchError` at the end when no trial was completed.
    """
    started = time.perf_counter()
    check_search(params)
    identity = study_identity(params, corpus, folds)
    study = open_study(params, identity)
    with alone_with(study._storage):
        close_dead(study, blamed=False)
        requeue_lost(study)
    n_earlier = len(finished_trials(study))
    notes = _note_changed_space(study, params)
    if not study.get_trials(deepcopy=False):
        notes += _enqueue(study, params)
    for listener in listeners:
        listener.on_study(study, n_earlier)

    trials = params.hpo.trials
    deadline = time.time() + (trials.timeout or math.inf)

    def tell_stopping() -> None:
        for listener in listeners:
            listener.on_stopping()

    with _Interruption(tell_stopping) as interruption:

        def asked_to_stop() -> bool:
            return interruption.asked or any(listener.wants_stop for listener in listeners)

        if trials.n_jobs == 1 and trials.trial_timeout is None and params.cluster.executor == "local":
            objective = Objective(params, CrossValidator(corpus, folds), listeners, asked_to_stop)
            run_trials(study, objective, lambda study: _is_enough(study, params, deadline))
        elif len(finished_trials(study)) < trials.n_trials and not _is_enough(study, params, deadline):
            order = _order(params, corpus, folds, study, listeners, deadline)
            run_workers(order, study, n_workers=trials.n_jobs, listeners=listeners, asked_to_stop=asked_to_stop)
        stopped = asked_to_stop()
        notes += _why_ended(study, params, stopped=stopped, late=time.time() > deadline)
    best = best_trial(study, params)
    if best is None:
        raise SearchError(_without_a_best(study, notes))
    # What the trial was really trained with: parameters that are not searched may have changed since.
    best_params = Params.model_validate({**params.model_dump(), **best.user_attrs["resolved"]})
    return SearchResult(study, best, best_params, n_earlier, time.perf_counter() - started, tuple(notes), stopped)


def _is_enough(study: optuna.Study, params: Params, deadline: float) -> bool:
    return time.time() > deadline or should_stop(study, params) is not None


def _order(
    params: Params,
    corpus: Corpus,
    folds: Sequence[Fold],
    study: optuna.Study,
    listeners: Sequence[SearchListener],
    deadline: float,
) -> Order:
    import torch

    local = params.cluster.executor == "local"
    gone_along = [listener.for_workers() for listener in listeners]
    return Order(
        params=params,
        corpus=corpus,
        folds=tuple(folds),
        study_name=study.study_name,
        listeners=tuple(listener for listener in gone_along if listener is not None),
        deadline=deadline,
        threads=max(1, torch.get_num_threads() // (params.hpo.trials.n_jobs if local else 1)),
        gpus=visible_gpus() if local else (),
    )


def _enqueue(study: optuna.Study, params: Params) -> list[str]:
    """Begin with the parameter sets that ``hpo.enqueue`` names; what of them is not searched, or out of range, is noted."""
    notes = []
    for source in params.hpo.enqueue:
        if source.startswith("study:"):
            values = _best_of_study(study, source.removeprefix("study:"))
        else:
            values = searched_values(with_trainer(params, source))
        fixed, remarks = enqueued_values(params, values)
        notes += [f"hpo.enqueue, {source}: {remark}" for remark in remarks]
        if fixed:
            study.enqueue_trial(fixed, user_attrs={"enqueued": source}, skip_if_exists=True)
    return notes


def _best_of_study(study: optuna.Study, name: str) -> dict[str, Any]:
    try:
        best = best_trial(optuna.load_study(study_name=name, storage=study._storage))
    except KeyError:
        best = None
    if best is None:
        raise SearchError(
            f"hpo.enqueue: the storage has no study {name} with a complete trial; name one that it has, or leave it out."
        )
    return dict(best.params)


def _note_changed_space(study: optuna.Study, params: Params) -> list[str]:
    """Say what of the search space is other than when the study was last searched; choices cannot change in Optuna."""
    now = {name: entry.model_dump(mode="json") for name, entry in params.hpo.search_space.items()}
    before = study.user_attrs.get("search_space")
    if before == now:
        return []
    study.set_user_attr("search_space", now)
    if before is None:
        return []
    changed = sorted(name for name in {*before, *now} if before.get(name) != now.get(name))
    for name in changed:
        old, new = before.get(name, {}), now.get(name, {})
        if old and new and (old["type"], old.get("choices")) != (new["type"], new.get("choices")):
            study.set_user_attr("search_space", before)
            raise SearchError(
                f"hpo.search_space.{name}: study {study.study_name} was searched with other choices or another type, which "
                "Optuna cannot mix; set another hpo.study.study_name, and begin at this one's best with "
                f"hpo.enqueue=['study:{study.study_name}']."
            )
    return [f"The search space changed since the study began: {', '.join(changed)}; earlier trials count as before."]


def _why_ended(study: optuna.Study, params: Params, *, stopped: bool, late: bool) -> list[str]:
    n_done, n_trials = len(finished_trials(study)), params.hpo.trials.n_trials
    if n_done >= n_trials:
        return []
    reason = should_stop(study, params)
    running = len(study.get_trials(deepcopy=False, states=(TrialState.RUNNING,)))
    if stopped:
        return [
            f"Stopped on request after {n_done} of {n_trials} trials; the same command goes on, with the folds that are done."
        ]
    if reason is not None:
        return [reason]
    if late:
        return [f"hpo.trials.timeout is over after {n_done} of {n_trials} trials; the same command goes on."]
    return [f"{n_done} of {n_trials} trials are done; other processes are at work on {running}."] if running else []


def _without_a_best(study: optuna.Study, notes: Sequence[str]) -> str:
    finished = finished_trials(study)
    failed = [trial for trial in finished if trial.state == TrialState.FAIL]
    if outside := why_no_best(study):
        return f"Study {study.study_name}: {outside}; widen the bounds, or search further with a larger hpo.trials.n_trials."
    if not finished and notes:
        return f"Study {study.study_name}: {notes[-1]}"
    reason = f"; trial {failed[0].number} failed with {failed[0].user_attrs.get('error')}" if failed else ""
    return (
        f"Study {study.study_name}: none of its {len(finished)} trials was completed{reason}; mend the cause "
        "and start a study with another hpo.study.study_name."
    )
