"""What a notebook calls: start, show parameters and figures, search or train with progress and tracking, record a result.

Imports the rooms below it; only notebooks import it.
"""

from __future__ import annotations

import base64
import json
import logging
import os
import time
import warnings
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import optuna
import pandas as pd
import plotly.graph_objects as go
from IPython.display import display
from optuna.trial import FrozenTrial

from evbind_lib.data import Corpus
from evbind_lib.engine import PROGRESS
from evbind_lib.folds import Fold, folds_fingerprint
from evbind_lib.models import check_model, choose_precision
from evbind_lib.outcome import Outcome, write_outcome
from evbind_lib.params import Params, compose, describe, workspace
from evbind_lib.runner import RESULT
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


def start(*, overrides: Sequence[str] = (), **choices: str) -> Params:
    """Compose and validate the parameters of this notebook, and keep its outputs free of log lines and warnings.

    Parameters
    ----------
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
    """
    warnings.filterwarnings("ignore")  # what a researcher can act on comes as an error of ours
    for name in ("transformers", "accelerate", "mlflow", "alembic", "optuna", "torch"):
        logging.getLogger(name).setLevel(logging.ERROR)
    os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")
    pd.set_option("display.max_colwidth", None)
    return compose(choices, overrides)


def show_parameters(params: Params) -> pd.DataFrame:
    """Resolved parameters as a table, the search space apart (`show_search_space`)."""
    table = pd.DataFrame(describe(params).items(), columns=["parameter", "value"]).set_index("parameter")
    return table.astype(str)


def show_search_space(params: Params) -> pd.DataFrame:
    """Search space as a table: name, type, range or choices, condition."""
    rows = []
    for name, entry in params.hpo.search_space.items():
        values = entry.model_dump()
        span = values["choices"] if "choices" in values else [values["low"], values["high"]]
        when = ", ".join(f"{other} is {wanted}" for other, wanted in entry.when.items())
        rows.append(
            {
                "name": name,
                "type": values["type"],
                "range": ", ".join(f"{v:g}" if isinstance(v, float) else str(v) for v in span),
                "only when": when,
            }
        )
    return pd.DataFrame(rows).set_index("name")


def show(figure: go.Figure) -> None:
    """Display a figure; with ``EVBIND_STATIC_FIGURES=1`` a static picture goes with it, for pages without JavaScript.

    The picture needs kaleido and Chrome or Chromium, and a second of time: stored notebooks have it, searches do not.
    """
    bundle: dict[str, Any] = {"application/vnd.plotly.v1+json": json.loads(figure.to_json())}
    if os.environ.get("EVBIND_STATIC_FIGURES") == "1":
        bundle["image/png"] = base64.b64encode(figure.to_image(format="png", width=900, scale=1)).decode()
    display(bundle, raw=True)


def record(result: Mapping[str, Any], lines: Sequence[str]) -> None:
    """Record a notebook's result in its own output: shown as text, and read back by the command line and by tests.

    Parameters
    ----------
    result : mapping of str to plain value
    lines : sequence of str
        What a person reads, here and on the command line.
    """
    display({"text/plain": "\n".join(lines), RESULT: {**result, "lines": list(lines)}}, raw=True)


class Progress:
    """One line that is updated in place: a notebook keeps only its last state, a terminal shows each.

    Parameters
    ----------
    title : str
    total : int
        Steps in all.
    """

    def __init__(self, title: str, total: int) -> None:
        self.title = title
        self.total = total
        self.handle = display(self._bundle(0, "starting"), raw=True, display_id=True)

    def update(self, done: int, text: str) -> None:
        """Show how many steps are done, and what is going on."""
        if self.handle is not None:  # None outside of IPython
            self.handle.update(self._bundle(done, text), raw=True)

    def _bundle(self, done: int, text: str) -> dict[str, Any]:
        filled = round(20 * min(done / self.total, 1.0)) if self.total else 20
        line = f"{self.title} [{'#' * filled}{'.' * (20 - filled)}] {done}/{self.total}  {text}"
        bar = f'<progress value="{done}" max="{self.total}" style="width:14em"></progress>'
        page = f"{bar} {self.title} {done}/{self.total} · {text}"
        return {"text/plain": line, "text/html": page, PROGRESS: {"done": done, "total": self.total}}


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
        self.study_run: StudyRun | None = None
        self.trial_run: Any = None
        self.best: int | None = None

    def on_study(self, study: optuna.Study, n_earlier_trials: int) -> None:
        """Open the Study run, or the one that the study has already."""
        self.study_run = self.tracker.study(
            study.study_name, study.user_attrs["uid"], parameters=self.params.flat(), tags=self.tags
        )
        self.study_run.close_stale()

    def on_trial_start(self, number: int, suggested: Mapping[str, Any]) -> Observer | None:
        """Open the Trial run; it follows the folds."""
        assert self.study_run is not None
        self.trial_run = self.study_run.trial(number, suggested)
        observer: Observer | None = self.trial_run
        return observer

    def on_trial_end(self, study: optuna.Study, trial: FrozenTrial) -> None:
        """Close the Trial run and mark the best."""
        assert self.study_run is not None
        state = {"COMPLETE": "COMPLETE", "PRUNED": "PRUNED"}.get(trial.state.name, "FAILED")
        attributes = trial.user_attrs
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
    try:
        result = run_search(params, corpus, folds, [SearchProgress(params), tracked])
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
    run = tracker.training(_training_name(params), parameters=params.flat(), tags=run_tags(params, corpus, folds))
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


def search_result(result: SearchResult) -> dict[str, Any]:
    """Plain values of a search that tests and the command line read back."""
    return {
        "study": result.study.study_name,
        "best_trial": result.best.number,
        "best_value": result.best.value,
        "best_params": result.best.params,
        "counts": count_trials(result.study),
        "went_on_from": result.n_earlier_trials,
    }


def training_result(result: CrossValidation) -> dict[str, Any]:
    """Plain values of a cross-validation that tests and the command line read back."""
    table = result.table()
    return {
        "n_folds": len(result.folds),
        "mean": table.loc["mean"].to_dict(),
        "pooled": table.loc["pooled"].to_dict(),
    }


def show_best(result: SearchResult) -> pd.DataFrame:
    """Parameters of the best trial and its score in each fold, as one column."""
    scores = {
        f"score in fold {number}": score for number, score in enumerate(result.best.user_attrs["fold_scores"], start=1)
    }
    rows = {**result.best.params, **scores}
    shown = {name: f"{value:.4g}" if isinstance(value, float) else str(value) for name, value in rows.items()}
    return pd.DataFrame({f"trial {result.best.number}": shown})


def near(path: Any) -> str:
    """Path as seen from the workspace, so that no stored output names a machine's folders."""
    return os.path.relpath(path, workspace())


def search_lines(result: SearchResult, outcome: Outcome, params: Params) -> list[str]:
    """What a person wants to know when a search ends."""
    counts, metric = count_trials(result.study), params.hpo.metric
    states = f"{counts['complete']} complete, {counts['pruned']} pruned, {counts['failed']} failed"
    resumed = f", resumed: {result.n_earlier_trials} of them are from earlier runs" if result.n_earlier_trials else ""
    lines = [
        f"Study {result.study.study_name}: {counts['total']} trials ({states}){resumed}",
        f"Best: trial {result.best.number}, {metric.name} {result.best.value:.4f} "
        f"({metric.fold_aggregation} of {params.training.n_folds} folds)",
        f"  {near(outcome.best_trainer)}   use it: evbind train trainer=hpo_best",
        f"  {near(outcome.summary)}",
        f"  {near(outcome.trials)}",
    ]
    if params.tracking.enabled:
        lines.append(f"  MLflow: mlflow ui --backend-store-uri {params.tracking.uri}")
    return lines


def training_lines(result: CrossValidation, params: Params) -> list[str]:
    """What a person wants to know when a cross-validation ends."""
    table = result.table()
    shown = ["macro_f1", "pos_f1", "roc_auc", "pr_auc"]
    lines = [
        f"{name:<9} {mean:.4f} ± {std:.4f} (mean and std of {len(result.folds)} folds)"
        for name, mean, std in zip(shown, table.loc["mean", shown], table.loc["std", shown], strict=True)
    ]
    if params.tracking.enabled:
        lines.append(f"MLflow: mlflow ui --backend-store-uri {params.tracking.uri}")
    return lines
