"""Views of a search in a front end: a monitor while it runs, and the trial behind a point of its figures."""

from __future__ import annotations

import contextlib
import html
import time
from collections.abc import Sequence
from typing import Any

import ipywidgets
import optuna
import plotly.graph_objects as go
from IPython.display import display
from optuna.trial import FrozenTrial

from evbind_lib.config.schema import Params, TrackingParams
from evbind_lib.data.folds import Fold
from evbind_lib.hpo.objective import SearchCallback
from evbind_lib.hpo.study import TrialRecord, best_trial, count_trials, finished_trials, metric_name
from evbind_lib.notebook.front_end import has_front_end, show
from evbind_lib.plots.search import history
from evbind_lib.plots.style import sentence
from evbind_lib.training.result import Callback, FoldResult

LAST_TRIALS = 8
CLICK = "<i>Click a point to see its trial.</i>"


class SearchMonitor(SearchCallback):
    """Live view of a search: progress, best value, time left, trials, and a button that ends it.

    The button ends the search after the current fold and loses nothing: its trial is done again, with the same parameters,
    when the search goes on.
    """

    def __init__(self, params: Params) -> None:
        self.tracking = params.tracking
        self.wants_stop = False
        self.study: optuna.Study | None = None
        self.n_earlier = 0
        self.started = time.monotonic()
        layout = {"width": "98%"}
        self.head = ipywidgets.HTML()
        self.trials = ipywidgets.IntProgress(max=params.hpo.trials.n_trials, description="trials", layout=layout)
        self.folds = ipywidgets.IntProgress(max=params.training.n_folds, description="folds", layout=layout)
        self.now = ipywidgets.HTML()
        self.button = ipywidgets.Button(
            description="Stop after this fold", button_style="warning", icon="stop", layout={"width": "14em"}
        )
        self.button.on_click(self._press)
        self.figure = go.FigureWidget(sentence("Score of each trial", "No trial is complete yet."))
        self.table = ipywidgets.HTML()
        bars = ipywidgets.VBox([self.trials, self.folds, self.now, self.button], layout={"width": "45%"})
        self.view = ipywidgets.VBox([self.head, ipywidgets.HBox([bars, ipywidgets.VBox([self.table])]), self.figure])
        hear_while_busy(self.button)

    def _press(self, _: Any) -> None:
        self.wants_stop = True
        self.on_stop_request()

    def on_search_begin(self, study: optuna.Study, n_earlier_trials: int) -> None:
        """Show where the study stands."""
        self.study, self.n_earlier = study, n_earlier_trials
        self.started = time.monotonic()
        self._refresh(study)
        display(self.view)

    def fold_callbacks(self, trial: optuna.Trial) -> Sequence[Callback]:
        """Follow the trial's folds."""
        return [_WatchedFolds(self, trial)]

    def on_trial_end(self, study: optuna.Study, trial: FrozenTrial) -> None:
        """Show the trial among the others."""
        self._refresh(study)

    def on_running(self, study: optuna.Study, running: Sequence[FrozenTrial]) -> None:
        """Show how far the trials of the workers are."""
        done = [len(trial.intermediate_values) for trial in running]
        self.folds.value = sum(done)
        at = ", ".join(
            f"<b>trial {trial.number}</b> after fold {number}" for trial, number in zip(running, done, strict=True)
        )
        if at != self.now.value:
            self.now.value = at

    def on_stop_request(self) -> None:
        """Show that the search ends after the current folds."""
        self.button.description = "Stopping"
        self.button.disabled = True

    def close(self) -> None:
        """Show that nothing runs any more, and let a click on a point show its trial."""
        self.button.disabled = True
        self.button.description = "Stopped" if self.wants_stop else "Done"
        self.button.button_style = ""
        self.now.value = ""
        if self.study is None:
            return
        self._refresh(self.study)
        if count_trials(self.study)["complete"]:
            details = ipywidgets.HTML(CLICK)
            _on_click(self.figure, self.study, details, self.tracking)
            self.view.children = (*self.view.children[:-1], details, self.figure)

    def _refresh(self, study: optuna.Study) -> None:
        counts = count_trials(study)
        self.trials.value = counts["total"]
        trial, best = best_trial(study), ""
        if trial is not None:
            best = f" · best {metric_name(study)} <b>{trial.value:.4f}</b> (trial {trial.number})"
            drawn = history(study)
            with self.figure.batch_update():
                self.figure.data = []
                self.figure.update_layout(drawn.layout, overwrite=True)
                self.figure.layout.annotations = drawn.layout.annotations  # the sentence that no trial is there yet
                self.figure.add_traces(drawn.data)
        states = f"{counts['complete']} complete, {counts['pruned']} pruned, {counts['failed']} failed"
        left = ""
        if counts["total"] < self.trials.max and not self.wants_stop:
            left = f" · {self._time_left(counts['total'])}"
        name = html.escape(study.study_name)
        self.head.value = f"Study <b>{name}</b>: {counts['total']} of {self.trials.max} trials ({states}){best}{left}"
        self.table.value = _last_trials(study)

    def _time_left(self, total: int) -> str:
        done = total - self.n_earlier
        if not done:
            return "time left: known after the first trial"
        seconds = (time.monotonic() - self.started) / done * (self.trials.max - total)
        return f"about {_duration(seconds)} left"


class _WatchedFolds(Callback):
    """Shows the folds of one trial in the monitor."""

    def __init__(self, monitor: SearchMonitor, trial: optuna.Trial) -> None:
        self.monitor, self.trial = monitor, trial

    def on_fold_begin(self, fold: Fold, params: Params) -> None:
        values = ", ".join(f"{name} {_short(value)}" for name, value in self.trial.params.items())
        self.monitor.now.value = f"<b>trial {self.trial.number}</b>: {html.escape(values)}"
        self.monitor.folds.max = params.training.n_folds
        self.monitor.folds.value = fold.index
        self.monitor.folds.description = f"fold {fold.index + 1}"

    def on_fold_end(self, result: FoldResult) -> None:
        self.monitor.folds.value = result.fold + 1


def hear_while_busy(button: ipywidgets.Button) -> None:
    """Let a click reach the kernel while a cell runs.

    JupyterLab, from 4.4, hands widgets' messages to a subshell, a thread of their own. ipykernel 7.4 sends them instead to the
    thread that wrote to the widget last, here the one that is busy with the search, and offers no way to say otherwise; without
    its note of that thread it does as the front end asks.
    """
    with contextlib.suppress(AttributeError):
        del button.comm._reply_subshell_id


def show_trials(figure: go.Figure, study: optuna.Study, tracking: TrackingParams | None = None) -> None:
    """Show a figure of a search whose points show their trial when clicked; without a front end just the figure."""
    if not has_front_end() or not any(trace.meta for trace in figure.data):
        show(figure)
        return
    details = ipywidgets.HTML(CLICK)
    shown = go.FigureWidget(figure)
    _on_click(shown, study, details, tracking)
    display(ipywidgets.VBox([details, shown]))


def _on_click(
    figure: go.FigureWidget, study: optuna.Study, details: ipywidgets.HTML, tracking: TrackingParams | None
) -> None:
    def show_details(trace: Any, points: Any, _: Any) -> None:
        if trace.meta and points.point_inds:
            details.value = trial_details(study, int(trace.meta[points.point_inds[0]]), tracking)

    for trace in figure.data:
        trace.on_click(show_details)


def trial_details(study: optuna.Study, number: int, tracking: TrackingParams | None = None) -> str:
    """Parameters, folds and MLflow run of a trial, as HTML."""
    trial = study.trials[number]
    attributes = TrialRecord.read(trial)
    value = f", {metric_name(study)} {trial.value:.4f}" if trial.value is not None else ""
    rows = "".join(
        f"<tr><td>{html.escape(name)}</td><td>{_short(value)}</td></tr>" for name, value in trial.params.items()
    )
    folds = ", ".join(f"{score:.4f}" for score in attributes.fold_scores or []) or "none finished"
    failed = f"<p>{html.escape(attributes.error)}</p>" if attributes.error else ""
    return (
        f"<b>Trial {number}</b>: {trial.state.name.lower()}{value}, {_duration(attributes.seconds or 0)}"
        f"<p>folds: {folds}</p>{failed}<table>{rows}</table>{_mlflow_link(attributes.mlflow_run, tracking)}"
    )


def _mlflow_link(run: dict[str, str] | None, tracking: TrackingParams | None) -> str:
    if not run or tracking is None:
        return ""
    served = tracking.uri.startswith(("http://", "https://"))
    address = html.escape(tracking.uri if served else "http://127.0.0.1:5000")
    link = f'<a href="{address}/#/experiments/{run["experiment"]}/runs/{run["run"]}">its run in MLflow</a>'
    command = f"mlflow ui --backend-store-uri {html.escape(tracking.uri)}"
    return f"<p>{link}{'' if served else f' (while <code>{command}</code> runs)'}</p>"


def _last_trials(study: optuna.Study) -> str:
    rows = ""
    for trial in reversed(finished_trials(study)[-LAST_TRIALS:]):
        value = f"{trial.value:.4f}" if trial.value is not None else "-"
        rows += f"<tr><td>{trial.number}</td><td>{trial.state.name.lower()}</td><td>{value}</td></tr>"
    head = "<tr><th>trial&nbsp;</th><th>state&nbsp;</th><th>score</th></tr>"
    return f"<table>{head}{rows}</table>" if rows else ""


def _duration(seconds: float) -> str:
    if seconds < 90:
        return f"{seconds:.0f} s"
    return f"{seconds / 60:.0f} min" if seconds < 5400 else f"{seconds / 3600:.1f} h"


def _short(value: Any) -> str:
    return f"{value:.4g}" if isinstance(value, float) else html.escape(str(value))
