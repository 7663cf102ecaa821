"""The search: suggest parameters, cross-validate them, report fold by fold, keep the best.

Imports the rooms below it; `tracking`, `plots` and `notebook` import it. What is recorded and shown is the business of
listeners, so that the search itself knows neither MLflow nor a screen.
"""

from __future__ import annotations

import os
import socket
import time
import traceback
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import optuna
from optuna.trial import FrozenTrial, TrialState

from evbind_lib.data import Corpus
from evbind_lib.errors import ParamsError, SearchError
from evbind_lib.folds import Fold
from evbind_lib.metrics import aggregate
from evbind_lib.params import Params
from evbind_lib.schema import Categorical, IntRange, LogUniform, SearchSpaceEntry, dotted_name
from evbind_lib.strategies import build_pruner, build_sampler
from evbind_lib.studies import (
    check_storage,
    finished_trials,
    keep_predictions,
    open_study,
    retry_interrupted,
    study_identity,
)
from evbind_lib.training import CrossValidator, FoldReport, Observer, training_arguments

# A trial that changed one of these would be measured with another yardstick than its neighbours.
YARDSTICK = (
    "training.n_folds",
    "training.seed",
    "data.eval_neg_ratio",
    "data.group_by",
    "data.format",
    "data.special_case",
)


class SearchStopped(Exception):  # noqa: N818 - not an error: somebody asked for it
    """Raised by an observer to end the search after this fold; the trial is queued again with its parameters."""


class SearchListener:
    """Told about the course of a search; does nothing by itself."""

    def on_study(self, study: optuna.Study, n_earlier_trials: int) -> None:
        """The study is open; trials follow."""

    def on_trial_start(self, number: int, suggested: Mapping[str, Any]) -> Observer | None:
        """A trial begins; an observer returned here is told about its folds."""
        return None

    def on_trial_end(self, study: optuna.Study, trial: FrozenTrial) -> None:
        """A trial is complete, pruned or failed."""


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
    """

    study: optuna.Study
    best: FrozenTrial
    best_params: Params
    n_earlier_trials: int
    seconds: float


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
        entry = space[name]
        if all(_holds(other, wanted, suggested, params) for other, wanted in entry.when.items()):
            suggested[name] = _draw(trial, name, entry)
    return suggested


def _holds(other: str, wanted: Any, suggested: Mapping[str, Any], params: Params) -> bool:
    if other in params.hpo.search_space and other not in suggested:
        return False
    actual = suggested.get(other, params.value_of(dotted_name(other)))
    return actual in wanted if isinstance(wanted, list) else bool(actual == wanted)


def _parents_first(space: Mapping[str, SearchSpaceEntry]) -> list[str]:
    ordered: list[str] = []
    waiting = list(space)
    while waiting:
        ready = [name for name in waiting if all(o in ordered for o in space[name].when if o in space)]
        if not ready:
            raise ParamsError(
                f"hpo.search_space: the `when` of {', '.join(waiting)} go in a circle; take one of them out."
            )
        ordered += ready
        waiting = [name for name in waiting if name not in ready]
    return ordered


def _draw(trial: optuna.Trial, name: str, entry: SearchSpaceEntry) -> Any:
    if isinstance(entry, Categorical):
        return trial.suggest_categorical(name, entry.choices)
    if isinstance(entry, IntRange):
        return trial.suggest_int(name, entry.low, entry.high)
    return trial.suggest_float(name, entry.low, entry.high, log=isinstance(entry, LogUniform))


def merge(params: Params, suggested: Mapping[str, Any]) -> Params:
    """Parameters of a trial: the configured ones with the suggested values put in."""
    return params.with_values({dotted_name(name): value for name, value in suggested.items()})


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
    build_sampler(params.hpo.sampler, n_earlier_trials=0)
    build_pruner(params.hpo.pruner)
    _parents_first(params.hpo.search_space)
    for name in params.hpo.search_space:
        if dotted_name(name) in YARDSTICK:
            raise ParamsError(
                f"hpo.search_space.{name} would change what the score is measured on, so trials could not be compared; "
                f"take it out and set {dotted_name(name)} itself."
            )
    if params.hpo.trials.n_jobs > 1:
        raise ParamsError(
            f"hpo.trials.n_jobs={params.hpo.trials.n_jobs}: this version runs one worker; set hpo.trials.n_jobs=1."
        )
    training_arguments(params, output_dir="unused")
    check_storage(params.hpo.study.storage)


class ReportFolds(Observer):
    """Report the aggregate of the folds so far to Optuna after each fold, and stop the trial when its pruner says so.

    A single fold's score bounces with the fold's difficulty; the running aggregate at the same fold is like with like,
    since folds and their order are the same in every trial (the recipe of optuna PR 5112).
    """

    def __init__(self, trial: optuna.Trial, *, metric: str, aggregation: str, n_folds: int) -> None:
        self.trial = trial
        self.metric = metric
        self.aggregation = aggregation
        self.n_folds = n_folds
        self.reports: list[FoldReport] = []

    def on_fold(self, report: FoldReport) -> None:
        """Report, and raise `optuna.TrialPruned` where the pruner stops the trial; after the last fold it never does."""
        self.reports.append(report)
        values = [done.metrics[self.metric] for done in self.reports]
        self.trial.report(aggregate(values, self.aggregation), step=len(values) - 1)
        if len(values) < self.n_folds and self.trial.should_prune():
            raise optuna.TrialPruned


@dataclass
class Objective:
    """What Optuna calls for each trial: suggest, merge, cross-validate, aggregate.

    Parameters
    ----------
    params : Params
    validator : CrossValidator
        Shared by all trials, so that pairs are drawn and tokenised once.
    listeners : sequence of SearchListener
    """

    params: Params
    validator: CrossValidator
    listeners: Sequence[SearchListener] = field(default_factory=tuple)

    def __call__(self, trial: optuna.Trial) -> float:
        """Run one trial.

        Parameters
        ----------
        trial : optuna.Trial

        Returns
        -------
        float
            The metric, aggregated over folds.

        Raises
        ------
        optuna.TrialPruned
            When the pruner stops the trial.
        Exception
            Whatever the trial failed with; its type and message are kept in the trial as ``error``.
        """
        started = time.perf_counter()
        trial.set_user_attr("worker", {"host": socket.gethostname(), "pid": os.getpid()})
        metric = self.params.hpo.metric
        suggested = suggest(trial, self.params)
        own = [listener.on_trial_start(trial.number, suggested) for listener in self.listeners]
        report = ReportFolds(
            trial, metric=metric.name, aggregation=metric.fold_aggregation, n_folds=len(self.validator.folds)
        )
        observers = [*(observer for observer in own if observer is not None), report]
        try:
            merged = merge(self.params, suggested)
            trial.set_user_attr("resolved", {key: merged.model_dump()[key] for key in ("data", "model", "training")})
            result = self.validator.run(merged, observers)
            trial.set_user_attr("pooled", result.pooled())
            return result.score(metric.name, metric.fold_aggregation)
        except optuna.TrialPruned:
            raise
        except SearchStopped:
            trial.set_user_attr("interrupted", True)
            trial.study.enqueue_trial(trial.params, user_attrs={"retry_of": trial.number})
            trial.study.stop()
            raise
        except Exception as error:
            trial.set_user_attr("error", f"{type(error).__name__}: {error}")
            trial.set_user_attr("traceback", _places(error))
            raise
        finally:
            trial.set_user_attr("fold_scores", [done.metrics[metric.name] for done in report.reports])
            trial.set_user_attr("fold_seconds", [round(done.seconds, 3) for done in report.reports])
            trial.set_user_attr("seconds", round(time.perf_counter() - started, 3))
            keep_predictions(trial.study.study_name, trial.number, report.reports)


def _places(error: Exception) -> list[str]:
    """Files and lines of a traceback, without values: those could hold text of posts."""
    return [
        f"{Path(frame.filename).name}:{frame.lineno} {frame.name}"
        for frame in traceback.extract_tb(error.__traceback__)
    ]


def run_search(
    params: Params, corpus: Corpus, folds: Sequence[Fold], listeners: Sequence[SearchListener] = ()
) -> SearchResult:
    """Search until the study holds ``hpo.trials.n_trials`` finished trials, or the timeout.

    A trial that raises is FAILED and the study goes on; one that a pruner stops is PRUNED.

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
    study = open_study(params, study_identity(params, corpus, folds))
    retry_interrupted(study)
    n_earlier = len(finished_trials(study))
    for listener in listeners:
        listener.on_study(study, n_earlier)

    def tell(study: optuna.Study, trial: FrozenTrial) -> None:
        for listener in listeners:
            listener.on_trial_end(study, trial)

    remaining = params.hpo.trials.n_trials - n_earlier
    if remaining > 0:
        objective = Objective(params, CrossValidator(corpus, folds), listeners)
        study.optimize(
            objective,
            n_trials=remaining,
            timeout=params.hpo.trials.timeout,
            catch=(Exception,),
            callbacks=[tell],
        )
    complete = study.get_trials(deepcopy=False, states=(TrialState.COMPLETE,))
    if not complete:
        failed = [trial for trial in finished_trials(study) if trial.state == TrialState.FAIL]
        reason = f"; trial {failed[0].number} failed with {failed[0].user_attrs.get('error')}" if failed else ""
        raise SearchError(
            f"Study {study.study_name}: none of its {len(finished_trials(study))} trials was completed{reason}; mend the cause "
            "and start a study with another hpo.study.study_name."
        )
    best = study.best_trial
    # What the trial was really trained with: parameters that are not searched may have changed since.
    best_params = Params.model_validate({**params.model_dump(), **best.user_attrs["resolved"]})
    return SearchResult(study, best, best_params, n_earlier, time.perf_counter() - started)
