"""One trial after the other: suggest parameters, cross-validate them, report fold by fold, tell Optuna how it ended.

What is recorded and shown is the business of listeners, so that a trial knows neither MLflow nor a screen; the same loop runs
in the process that started the search and in its workers. Imports the rooms below it; `workers` and `search` import it.
"""

from __future__ import annotations

import time
import traceback
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import optuna
from optuna.trial import FrozenTrial, TrialState

from evbind_lib.config.compose import Params
from evbind_lib.errors import TrainingError
from evbind_lib.hpo.claims import claim_trial, queue_again, signs_of_life
from evbind_lib.hpo.objectives import constraint_values, objective_values
from evbind_lib.hpo.racing.pruner import RacingPruner
from evbind_lib.hpo.samplers import reports_each_fold_alone
from evbind_lib.hpo.space import merge, suggest
from evbind_lib.training.cache import FoldCache, parameter_key
from evbind_lib.training.crossval import CrossValidator
from evbind_lib.training.metrics import aggregate
from evbind_lib.training.result import Callback, EpochResult, FoldResult


class SearchStopped(Exception):  # noqa: N818 - not an error: somebody asked for it
    """Ends the search after this fold; the trial is queued again with its parameters."""


class SearchListener:
    """Told about the course of a search; does nothing by itself."""

    # Set by a listener, for example by a button: the search is to end after the current folds.
    wants_stop = False

    def on_study(self, study: optuna.Study, n_earlier_trials: int) -> None:
        """The study is open; trials follow."""

    def on_trial_start(self, trial: optuna.Trial, suggested: Mapping[str, Any]) -> Callback | None:
        """A trial begins in this process; an observer returned here is told about its folds."""
        return None

    def on_trial_end(self, study: optuna.Study, trial: FrozenTrial) -> None:
        """A trial, of this process or of one of its workers, is complete, pruned or failed."""

    def on_running(self, study: optuna.Study, running: Sequence[FrozenTrial]) -> None:
        """Workers are at these trials; told now and then."""

    def on_stopping(self) -> None:
        """Somebody asked the search to stop; it does so after the current folds."""

    def for_workers(self) -> SearchListener | None:
        """What goes along to each worker process, to be told of the trials there; it must be picklable."""
        return None


class ReportFolds(Callback):
    """Report the aggregate of the folds so far to Optuna after each fold, and stop the trial when its pruner says so.

    A single fold's score bounces with the fold's difficulty; the running aggregate at the same fold is like with like,
    since folds and their order are the same in every trial (the recipe of optuna PR 5112). Wilcoxon's test pairs the folds
    itself and is given each by itself.
    """

    def __init__(
        self, trial: optuna.Trial, *, metric: str, aggregation: str, n_folds: int, each_fold_alone: bool = False
    ) -> None:
        self.trial = trial
        self.metric = metric
        self.aggregation = aggregation
        self.n_folds = n_folds
        self.each_fold_alone = each_fold_alone
        racing = isinstance(trial.study.pruner, RacingPruner) and len(trial.study.directions) == 1
        self.stops_within_folds = racing and trial.study.pruner.epochs
        self.reports: list[FoldResult] = []

    def on_epoch_end(self, report: EpochResult) -> None:
        """Raise `optuna.TrialPruned` where a racing pruner looks within folds, and the trial can hardly end better.

        Nothing is reported then: what Optuna knows of the trial is what its whole folds gave.
        """
        study = self.trial.study
        if not self.stops_within_folds or report.share is None or report.share >= 1:
            return
        key, score = self.trial.user_attrs["parameter_key"], report.metrics[self.metric]
        chance = study.pruner.chance_within_a_fold(study, key, report.fold, score, report.share)
        if chance < study.pruner.futility:
            self.trial.set_user_attr("stopped_within_fold", {"fold": report.fold + 1, "epoch": report.epoch})
            raise optuna.TrialPruned

    def on_fold_end(self, report: FoldResult) -> None:
        """Report, and raise `optuna.TrialPruned` where the pruner stops the trial; after the last fold it never does."""
        self.reports.append(report)
        if len(self.trial.study.directions) > 1:
            return  # Optuna prunes by one objective only
        values = [done.metrics[self.metric] for done in self.reports]
        shown = values[-1] if self.each_fold_alone else aggregate(values, self.aggregation)
        self.trial.report(shown, step=len(values) - 1)
        if len(values) < self.n_folds and self.trial.should_prune():
            raise optuna.TrialPruned


class _KeepFolds(Callback):
    """Keep each fold as soon as it is done, before a pruner looks at it or a kill can lose it."""

    def __init__(self, kept: FoldCache, key: str, known: Mapping[int, FoldResult]) -> None:
        self.kept, self.key, self.known = kept, key, known

    def on_fold_end(self, report: FoldResult) -> None:
        if report.fold not in self.known:
            self.kept.keep(self.key, report)


class _TimeLimit(Callback):
    """End a trial that takes longer than it may."""

    def __init__(self, seconds: float) -> None:
        self.seconds = seconds
        self.started = time.monotonic()

    def on_step(self) -> None:
        if time.monotonic() - self.started > self.seconds:
            raise TrainingError(too_slow(self.seconds))


def too_slow(seconds: float) -> str:
    """What is said of a trial that took longer than ``hpo.trials.trial_timeout``."""
    return (
        f"the trial took longer than hpo.trials.trial_timeout={seconds:g} seconds; raise it, or narrow what makes trials slow, "
        "such as num_train_epochs."
    )


class _AskForStop(Callback):
    """End the trial before its next fold where the search is to stop; by then everybody knows of the fold before."""

    def __init__(self, asked: Callable[[], bool]) -> None:
        self.asked = asked

    def on_fold_begin(self, fold: int) -> None:
        if self.asked():
            raise SearchStopped


@dataclass
class Objective:
    """What a trial is: suggest, merge, cross-validate, aggregate.

    Parameters
    ----------
    params : Params
    validator : CrossValidator
        Shared by all trials, so that pairs are drawn and tokenised once.
    listeners : sequence of SearchListener
    asked_to_stop : callable
        Asked before each fold; true where the search is to end.
    """

    params: Params
    validator: CrossValidator
    listeners: Sequence[SearchListener] = field(default_factory=tuple)
    asked_to_stop: Callable[[], bool] = lambda: False

    def __call__(self, trial: optuna.Trial) -> float | Sequence[float]:
        """Run one trial.

        Parameters
        ----------
        trial : optuna.Trial

        Returns
        -------
        float or sequence of float
            The metric, aggregated over folds; one value for each where there are several.

        Raises
        ------
        optuna.TrialPruned
            When the pruner stops the trial.
        SearchStopped
            When the search is to end.
        Exception
            Whatever the trial failed with; its type and message are kept in the trial as ``error``.
        """
        started = time.perf_counter()
        hpo = self.params.hpo
        metric = hpo.metric.names[0]
        suggested = suggest(trial, self.params)
        own = [listener.on_trial_start(trial, suggested) for listener in self.listeners]
        report = ReportFolds(
            trial,
            metric=metric,
            aggregation=hpo.metric.fold_aggregation,
            n_folds=len(self.validator.folds),
            each_fold_alone=reports_each_fold_alone(hpo.pruner),
        )
        watched = [observer for observer in own if observer is not None]
        try:
            merged = merge(self.params, suggested)
            trial.set_user_attr("resolved", {key: merged.model_dump()[key] for key in ("data", "model", "training")})
            kept, key, known = self._known_folds(trial, merged)
            limit = [_TimeLimit(hpo.trials.trial_timeout)] if hpo.trials.trial_timeout else []
            observers = [_AskForStop(self.asked_to_stop), *limit, _KeepFolds(kept, key, known), *watched, report]
            result = self.validator.run(merged, observers, known)
            trial.set_user_attr("pooled", result.pooled())
            by_fold = [done.metrics for done in result.folds]
            for name, excess in constraint_values(self.params, by_fold, result.seconds).items():
                trial.set_constraint(name, excess)
            values = objective_values(self.params, by_fold, result.seconds)
            if not np.isfinite(values).all():  # Optuna would fail the trial without a word
                raise TrainingError(f"{' and '.join(hpo.metric.names)} of these folds is no number: {values}.")
            return values
        except optuna.TrialPruned:
            raise
        except SearchStopped:
            trial.set_user_attr("interrupted", True)
            raise
        except Exception as error:
            trial.set_user_attr("error", f"{type(error).__name__}: {error}")
            trial.set_user_attr("traceback", _places(error))
            raise
        finally:
            trial.set_user_attr("fold_scores", [done.metrics[metric] for done in report.reports])
            trial.set_user_attr("fold_seconds", [round(done.seconds, 3) for done in report.reports])
            trial.set_user_attr("seconds", round(time.perf_counter() - started, 3))
            smaller = [done.micro_batch for done in report.reports if done.micro_batch]
            if smaller:
                trial.set_user_attr("micro_batch", min(smaller))

    def _known_folds(self, trial: optuna.Trial, merged: Params) -> tuple[FoldCache, str, dict[int, FoldResult]]:
        """Folds that were trained before with the same parameters, by this trial when it was cut off or by another one."""
        kept, key = FoldCache(trial.study.study_name), parameter_key(merged, trial.study.user_attrs["identity"])
        trial.set_user_attr("parameter_key", key)
        known: dict[int, FoldResult] = {}
        for fold in self.validator.folds:
            report = kept.load(key, fold.index)
            if report is None:
                break
            known[fold.index] = report
        if known:
            trial.set_user_attr("folds_from_before", len(known))
            complete = trial.study.get_trials(deepcopy=False, states=(TrialState.COMPLETE,))
            same = [other.number for other in complete if other.user_attrs.get("parameter_key") == key]
            if same:
                trial.set_user_attr("reused_from", same[0])
        return kept, key, known


def _places(error: Exception) -> list[str]:
    """Files and lines of a traceback, without values: those could hold text of posts."""
    return [
        f"{Path(frame.filename).name}:{frame.lineno} {frame.name}"
        for frame in traceback.extract_tb(error.__traceback__)
    ]


def run_trials(study: optuna.Study, objective: Objective, enough: Callable[[optuna.Study], bool]) -> None:
    """Claim trials and run them until the study holds its total, enough is reached, or somebody asks to stop.

    A trial that raises is FAILED with its error kept and the study goes on; one that a pruner stops is PRUNED.

    Parameters
    ----------
    study : optuna.Study
    objective : Objective
    enough : callable
        Asked before each trial; true where the search has reached its end for another reason.
    """
    while not objective.asked_to_stop() and not enough(study):
        trial = claim_trial(study, objective.params)
        if trial is None:
            return
        with signs_of_life(trial):
            run_one(study, trial, objective)


def _as_told(study: optuna.Study, trial: optuna.Trial) -> FrozenTrial:
    """The trial as the study has it; `Study.trials` would copy all of them, which takes a tenth of a second in an old study."""
    return study.get_trials(deepcopy=False)[trial.number]


def run_one(study: optuna.Study, trial: optuna.Trial, objective: Objective) -> None:
    """Run a claimed trial and tell Optuna and the listeners how it ended.

    Parameters
    ----------
    study : optuna.Study
    trial : optuna.Trial
    objective : Objective

    Raises
    ------
    KeyboardInterrupt
        After the trial is closed and queued again.
    """
    interrupted: BaseException | None = None
    try:
        value = objective(trial)
        study.tell(trial, value)
    except optuna.TrialPruned:
        study.tell(trial, state=TrialState.PRUNED)
    except SearchStopped:
        study.tell(trial, state=TrialState.FAIL)
        queue_again(study, _as_told(study, trial))
    except KeyboardInterrupt as error:
        trial.set_user_attr("interrupted", True)
        study.tell(trial, state=TrialState.FAIL)
        queue_again(study, _as_told(study, trial))
        interrupted = error
    except Exception as error:
        if "error" not in trial.user_attrs:  # before or after the training itself
            trial.set_user_attr("error", f"{type(error).__name__}: {error}")
        study.tell(trial, state=TrialState.FAIL)
    ended = _as_told(study, trial)
    for listener in objective.listeners:
        listener.on_trial_end(study, ended)
    if interrupted is not None:
        raise interrupted
