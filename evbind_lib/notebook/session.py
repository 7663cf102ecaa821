"""What a notebook calls: start, search or train with progress and tracking; and what it shows, from `display`.

Imports the rooms below it; only notebooks import it.
"""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import optuna
import pandas as pd
from optuna.trial import FrozenTrial

from evbind_lib.config.compose import Params, compose
from evbind_lib.config.processes import quieten
from evbind_lib.data.corpus import Corpus
from evbind_lib.data.folds import Fold, folds_fingerprint
from evbind_lib.errors import ParamsError
from evbind_lib.hpo.objectives import best_trial
from evbind_lib.hpo.results import Outcome, write_outcome
from evbind_lib.hpo.search import SearchListener, SearchResult, check_search, run_search
from evbind_lib.hpo.study import count_trials
from evbind_lib.notebook.front_end import has_front_end
from evbind_lib.notebook.monitor import SearchMonitor
from evbind_lib.notebook.show import (
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
from evbind_lib.tracking.kernel import EXECUTION, check_injected
from evbind_lib.tracking.searches import TrackedSearch
from evbind_lib.tracking.tracker import open_tracker
from evbind_lib.training.crossval import (
    Callback,
    CrossValidation,
    CrossValidator,
    EpochResult,
    FoldResult,
    training_arguments,
)
from evbind_lib.training.model import check_model, choose_precision

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
    quieten()
    pd.set_option("display.max_colwidth", None)
    given = {**choices, "overrides": list(overrides)}
    try:
        check_injected()
        params = compose(choices, overrides)
    except ParamsError:
        with contextlib.suppress(ParamsError):  # the first one is told; the execution is tracked as failed with it
            EXECUTION.begin(compose().tracking, name, given)
        raise
    EXECUTION.begin(params.tracking, name, {**given, **params.flat()})
    return params


class _FoldProgress(Callback):
    def __init__(self, tell: Callable[[str], None], n_folds: int) -> None:
        self.tell = tell
        self.n_folds = n_folds

    def on_epoch_end(self, report: EpochResult) -> None:
        self.tell(f"fold {report.fold + 1} of {self.n_folds}, epoch {report.epoch}")


class SearchProgress(SearchListener):
    """Progress bar of a search, with the best value so far."""

    def __init__(self, params: Params) -> None:
        self.params = params
        self.bar = Progress("Trials", params.hpo.trials.n_trials)
        self.best = ""
        self.running = ""
        self.done = 0

    def on_study(self, study: optuna.Study, n_earlier_trials: int) -> None:
        """Show where the study stands."""
        self._count(study)
        resumed = f"study {study.study_name} resumed, done before: {n_earlier_trials}; " if n_earlier_trials else ""
        self.bar.update(self.done, resumed + self.best)

    def on_trial_start(self, trial: optuna.Trial, suggested: Mapping[str, Any]) -> Callback:
        """Follow the trial's folds."""
        number = trial.number
        return _FoldProgress(
            lambda text: self.bar.update(self.done, f"trial {number}, {text}{self.best and '; ' + self.best}"),
            self.params.training.n_folds,
        )

    def on_running(self, study: optuna.Study, running: Sequence[FrozenTrial]) -> None:
        """Show how far the trials of the workers are."""
        folds = ", ".join(f"trial {trial.number} after fold {len(trial.intermediate_values)}" for trial in running)
        if folds != self.running:
            self.running = folds
            self.bar.update(self.done, f"{folds}{self.best and '; ' + self.best}")

    def on_stopping(self) -> None:
        """Say that the search ends after the current folds."""
        self.bar.update(
            self.done, f"stopping after the current fold, once more to stop at once{self.best and '; ' + self.best}"
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
        best = best_trial(study, self.params)
        if best is not None:
            self.best = f"best {self.params.hpo.metric.first} {best.values[0]:.4f} (trial {best.number})"


class _LinkedSearch(TrackedSearch):
    """A tracked search whose run and that of this notebook's execution name each other."""

    def on_study(self, study: optuna.Study, n_earlier_trials: int) -> None:
        super().on_study(study, n_earlier_trials)
        EXECUTION.link(self.open_study(), "study", study.study_name)


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
    tracked = _LinkedSearch(open_tracker(params.tracking), params, run_tags(params, corpus, folds))
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
            best_value=float(result.best.values[0]),
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

    def on_fold_end(self, report: FoldResult) -> None:
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
