"""What a notebook calls: start, search or train with progress and tracking; and what it shows, from `display`.

Imports the rooms below it; only notebooks import it.
"""

from __future__ import annotations

import contextlib
import logging
import os
import time
import warnings
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import optuna
import pandas as pd
from optuna.trial import FrozenTrial

from evbind_lib.data import Corpus
from evbind_lib.display import (
    Progress,
    compare_intervals,
    compare_means,
    comparison_summary,
    data_summary,
    near,
    record,
    scoring_summary,
    search_lines,
    search_result,
    show,
    show_best,
    show_differences,
    show_parameters,
    show_search_space,
    training_lines,
    training_result,
)
from evbind_lib.errors import ParamsError
from evbind_lib.execution import EXECUTION
from evbind_lib.folds import Fold, folds_fingerprint
from evbind_lib.models import check_model, choose_precision
from evbind_lib.outcome import Outcome, write_outcome
from evbind_lib.params import Params, compose
from evbind_lib.search import SearchListener, SearchResult, check_search, run_search
from evbind_lib.studies import count_trials
from evbind_lib.tracking import StudyRun, Tracker, open_tracker
from evbind_lib.training import (
    CrossValidation,
    CrossValidator,
    EpochReport,
    FoldReport,
    Observer,
    training_arguments,
)
from evbind_lib.widgets import SearchMonitor, has_front_end

__all__ = [
    "compare_intervals",
    "compare_means",
    "comparison_summary",
    "cross_validate",
    "data_summary",
    "near",
    "record",
    "scoring_summary",
    "search",
    "search_lines",
    "search_result",
    "show",
    "show_best",
    "show_differences",
    "show_parameters",
    "show_search_space",
    "start",
    "training_lines",
    "training_result",
]


def start(name: str | None = None, *, overrides: Sequence[str] = (), **choices: str) -> Params:
    """Compose and validate the parameters of this notebook, track its execution, and keep its outputs free of log lines.

    Parameters
    ----------
    name : str, optional
        Of the notebook, for the run in MLflow where neither the front end nor papermill's engine ``evbind`` tells it.
    overrides : sequence of str
        Hydra overrides, applied last.
    **choices : str
        A file of ``params/`` by name for each group: ``hpo="quick"``.

    Returns
    -------
    Params

    Raises
    ------
    ParamsError
        With the one sentence that the cell then shows.
    TrackingError
        When the MLflow store cannot be used.
    """
    warnings.filterwarnings("ignore")  # what a researcher can act on comes as an error of ours
    for logger in ("transformers", "accelerate", "mlflow", "alembic", "optuna", "torch"):
        logging.getLogger(logger).setLevel(logging.ERROR)
    os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")
    pd.set_option("display.max_colwidth", None)
    given = {**choices, "overrides": list(overrides)}
    try:
        params = compose(choices, overrides)
    except ParamsError:
        with contextlib.suppress(ParamsError):  # the first one is told; the execution is tracked as failed with it
            EXECUTION.begin(compose().tracking, name, given)
        raise
    EXECUTION.begin(params.tracking, name, {**given, **params.flat()})
    return params


class _FoldProgress(Observer):
    def __init__(self, tell: Callable[[str], None], n_folds: int) -> None:
        self.tell = tell
        self.n_folds = n_folds

    def on_epoch(self, report: EpochReport) -> None:
        self.tell(f"fold {report.fold + 1} of {self.n_folds}, epoch {report.epoch}")


class SearchProgress(SearchListener):
    """Progress bar of a search, with the best value so far."""

    def __init__(self, params: Params) -> None:
        self.params = params
        self.bar = Progress("Trials", params.hpo.trials.n_trials)
        self.best = ""
        self.done = 0
        self.started = time.perf_counter()

    def on_study(self, study: optuna.Study, n_earlier_trials: int) -> None:
        """Show where the study stands."""
        self._count(study)
        resumed = (
            f"study {study.study_name} resumed, {n_earlier_trials} trials were done before; "
            if n_earlier_trials
            else ""
        )
        self.bar.update(self.done, resumed + self.best)

    def on_trial_start(self, number: int, suggested: Mapping[str, Any]) -> Observer:
        """Follow the trial's folds."""
        return _FoldProgress(
            lambda text: self.bar.update(self.done, f"trial {number}, {text}{self.best and '; ' + self.best}"),
            self.params.training.n_folds,
        )

    def on_trial_end(self, study: optuna.Study, trial: FrozenTrial) -> None:
        """Show the best value so far."""
        self._count(study)
        self.bar.update(self.done, self.best)

    def close(self) -> None:
        """Take the bar away."""
        self.bar.close()

    def _count(self, study: optuna.Study) -> None:
        self.done = count_trials(study)["total"]
        complete = study.get_trials(deepcopy=False, states=(optuna.trial.TrialState.COMPLETE,))
        if complete:
            best = study.best_trial
            self.best = f"best {self.params.hpo.metric.name} {best.value:.4f} (trial {best.number})"


class TrackedSearch(SearchListener):
    """Write a search to MLflow while it runs: Study > Trial > Fold."""

    def __init__(self, tracker: Tracker, params: Params, tags: Mapping[str, str]) -> None:
        self.tracker = tracker
        self.params = params
        self.tags = tags
        self.study: optuna.Study | None = None
        self.study_run: StudyRun | None = None
        self.trial_run: Any = None
        self.best: int | None = None

    def on_study(self, study: optuna.Study, n_earlier_trials: int) -> None:
        """Open the Study run, or the one that the study has already."""
        self.study = study
        self.study_run = self.tracker.study(
            study.study_name, study.user_attrs["uid"], parameters=self.params.flat(), tags=self.tags
        )
        self.study_run.close_stale()
        EXECUTION.link(self.study_run, "study", study.study_name)

    def on_trial_start(self, number: int, suggested: Mapping[str, Any]) -> Observer | None:
        """Open the Trial run; it follows the folds."""
        assert self.study_run is not None
        self.trial_run = self.study_run.trial(number, suggested)
        if self.study is not None and hasattr(self.trial_run, "run_id"):
            # So that a view of the study can lead to the run.
            trial_id = self.study.get_trials(deepcopy=False)[number]._trial_id
            run = {"experiment": self.trial_run.experiment, "run": self.trial_run.run_id}
            self.study._storage.set_trial_user_attr(trial_id, "mlflow_run", run)
        observer: Observer | None = self.trial_run
        return observer

    def on_trial_end(self, study: optuna.Study, trial: FrozenTrial) -> None:
        """Close the Trial run and mark the best."""
        assert self.study_run is not None
        state = {"COMPLETE": "COMPLETE", "PRUNED": "PRUNED"}.get(trial.state.name, "FAILED")
        attributes = trial.user_attrs
        if attributes.get("interrupted"):
            state = "KILLED"
        self.trial_run.finish(
            state,
            value=trial.value,
            metrics=attributes.get("pooled", {}),
            error=attributes.get("error"),
            seconds=attributes.get("seconds", 0.0),
        )
        if state == "COMPLETE" and study.best_trial.number != self.best:
            self.best = study.best_trial.number
            self.study_run.mark_best(self.best)


def search(params: Params, corpus: Corpus, folds: Sequence[Fold]) -> tuple[SearchResult, Outcome]:
    """Search with progress and tracking, write what a search leaves behind, and close its runs.

    Parameters
    ----------
    params : Params
    corpus : Corpus
    folds : sequence of Fold

    Returns
    -------
    SearchResult
    Outcome

    Raises
    ------
    EvbindError
        Before anything is written when something cannot be used.
    """
    check_model(params.model)
    check_search(params)
    tracked = TrackedSearch(open_tracker(params.tracking), params, run_tags(params, corpus, folds))
    status = "FAILED"
    watcher = SearchMonitor(params) if has_front_end() else SearchProgress(params)
    try:
        result = run_search(params, corpus, folds, [watcher, tracked])
        outcome = write_outcome(result, params)
        assert tracked.study_run is not None
        tracked.study_run.mark_best(result.best.number)
        tracked.study_run.summary(
            counts=count_trials(result.study),
            best_parameters=result.best.params,
            best_value=float(result.best.value or 0.0),
            importances=outcome.importances,
            files=outcome.files(),
        )
        status = "FINISHED"
    except KeyboardInterrupt:
        status = "KILLED"
        raise
    finally:
        if tracked.study_run is not None:
            tracked.study_run.finish(status)
        watcher.close()
    return result, outcome


def cross_validate(params: Params, corpus: Corpus, folds: Sequence[Fold]) -> CrossValidation:
    """Cross-validate one parameter set with progress and tracking.

    Parameters
    ----------
    params : Params
    corpus : Corpus
    folds : sequence of Fold

    Returns
    -------
    CrossValidation

    Raises
    ------
    EvbindError
        Before anything is written when something cannot be used.
    """
    check_model(params.model)
    training_arguments(params, output_dir="unused")
    tracker = open_tracker(params.tracking)
    bar = Progress("Folds", len(folds))
    name = _training_name(params)
    run = tracker.training(name, parameters=params.flat(), tags=run_tags(params, corpus, folds))
    EXECUTION.link(run, "training", name)
    status, error = "FAILED", None
    result = None
    try:
        result = CrossValidator(corpus, folds).run(params, [run, _BarOfFolds(bar, len(folds))])
        status = "FINISHED"
    except KeyboardInterrupt:
        status = "KILLED"
        raise
    except Exception as caught:
        error = f"{type(caught).__name__}: {caught}"
        raise
    finally:
        metrics = result.pooled() if result is not None else {}
        bar.close()
        run.finish(status, metrics=metrics, error=error, seconds=result.seconds if result is not None else 0.0)
    return result


class _BarOfFolds(_FoldProgress):
    def __init__(self, bar: Progress, n_folds: int) -> None:
        super().__init__(lambda text: bar.update(self.done, text), n_folds)
        self.bar = bar
        self.done = 0

    def on_fold(self, report: FoldReport) -> None:
        self.done += 1
        self.bar.update(self.done, f"macro_f1 {report.metrics['macro_f1']:.4f} in fold {report.fold + 1}")


def _training_name(params: Params) -> str:
    provenance = params.training.provenance
    return f"train {params.model.name} {'hpo_best' if provenance else 'default'}"


def run_tags(params: Params, corpus: Corpus, folds: Sequence[Fold]) -> dict[str, str]:
    """Tags of a study or training run: what the numbers were measured on and with."""
    return {
        "evbind.data_fingerprint": corpus.fingerprint,
        "evbind.folds_fingerprint": folds_fingerprint(folds),
        "evbind.seed": str(params.training.seed),
        "evbind.precision": choose_precision(params.model.precision),
    }
