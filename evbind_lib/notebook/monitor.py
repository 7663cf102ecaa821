"""Views of a search: a monitor while it runs, and each trial behind the points of its figures.

Imports its neighbour `front_end`, `search`, `studies` and `plots`; `widgets` gives its names on.
"""

from __future__ import annotations

import contextlib
import html
import time
from collections.abc import Mapping, Sequence
from typing import Any

import ipywidgets
import optuna
import plotly.graph_objects as go
from IPython.display import display
from optuna.trial import FrozenTrial

from evbind_lib import plots
from evbind_lib.config.compose import Params
from evbind_lib.hpo.objectives import best_trial
from evbind_lib.hpo.search import SearchListener
from evbind_lib.hpo.study import count_trials, finished_trials
from evbind_lib.notebook.front_end import has_front_end, show
from evbind_lib.plots.style import sentence
from evbind_lib.training.result import Callback, EpochResult, FoldResult

LAST_TRIALS = 8


class SearchMonitor(SearchListener):
    """Live view of a search in a front end: progress, best value, time left, trials, and a button that ends it.

    The button ends the search after the current fold and keeps everything: its trial is done anew, with the same
    parameters, when the search goes on. It can be pressed while the search runs since JupyterLab, from 4.4, hands widgets'
    messages to a thread of their own.

    Parameters
    ----------
    params : Params
    """

    def __init__(self, params: Params) -> None:
        self.params = params
        self.n_folds = params.training.n_folds
        self.wants_stop = False
        self.study: optuna.Study | None = None
        self.n_earlier = 0
        self.started = time.monotonic()
        layout = {"width": "98%"}
        self.head = ipywidgets.HTML("<b>The study is being opened.</b>")
        self.trials = ipywidgets.IntProgress(max=params.hpo.trials.n_trials, description="trials", layout=layout)
        self.folds = ipywidgets.IntProgress(max=self.n_folds, description="folds", layout=layout)
        self.now = ipywidgets.HTML()
        self.button = ipywidgets.Button(
            description="Stop after this fold", button_style="warning", icon="stop", layout={"width": "14em"}
        )
        self.button.on_click(self._press)
        self.figure = go.FigureWidget(sentence("Score of each trial", "No trial is complete yet."))
        self.table = ipywidgets.HTML()
        bars = ipywidgets.VBox([self.trials, self.folds, self.now, self.button], layout={"width": "45%"})
        self.view = ipywidgets.VBox([self.head, ipywidgets.HBox([bars, ipywidgets.VBox([self.table])]), self.figure])
        display(self.view)
        # ipykernel 7.4 hands a widget's message to the thread that last wrote to it, which here is busy with the search;
        # without that note it goes to the thread that the front end asked for.
        with contextlib.suppress(AttributeError):
            del self.button.comm._reply_subshell_id

    def _press(self, _: Any) -> None:
        self.wants_stop = True
        self.button.description = "Stopping"
        self.button.disabled = True

    def on_study(self, study: optuna.Study, n_earlier_trials: int) -> None:
        """Show where the study stands."""
        self.study, self.n_earlier = study, n_earlier_trials
        self.started = time.monotonic()
        self._refresh()

    def on_trial_start(self, trial: optuna.Trial, suggested: Mapping[str, Any]) -> Callback:
        """Follow the trial's folds."""
        number = trial.number
        self.folds.value = 0
        self.folds.bar_style = ""
        values = ", ".join(f"{name} {_short(value)}" for name, value in suggested.items())
        self.now.value = f"<b>trial {number}</b>: {html.escape(values)}"
        return _WatchedFolds(self)

    def on_trial_end(self, study: optuna.Study, trial: FrozenTrial) -> None:
        """Show the trial among the others."""
        self._refresh()

    def on_running(self, study: optuna.Study, running: Sequence[FrozenTrial]) -> None:
        """Show how far the trials of the workers are."""
        done = [len(trial.intermediate_values) for trial in running]
        self.folds.max = max(1, self.n_folds * len(running))
        self.folds.value = sum(done)
        at = ", ".join(
            f"<b>trial {trial.number}</b> after fold {number}" for trial, number in zip(running, done, strict=True)
        )
        if at != self.now.value:
            self.now.value = at

    def on_stopping(self) -> None:
        """Show that the search ends after the current folds."""
        self.button.description = "Stopping"
        self.button.disabled = True

    def close(self) -> None:
        """Show that nothing runs any more, and let a click on a point show its trial."""
        self.button.disabled = True
        self.button.description = "Stopped" if self.wants_stop else "Done"
        self.button.button_style = ""
        self.now.value = ""
        if self.study is not None:
            self._refresh()
        if self.study is not None and count_trials(self.study)["complete"]:
            details = ipywidgets.HTML(CLICK)
            _on_click(self.figure, self.study, details, self.params)
            self.view.children = (*self.view.children[:-1], details, self.figure)

    def _refresh(self) -> None:
        assert self.study is not None
        counts = count_trials(self.study)
        self.trials.value = counts["total"]
        best = ""
        if counts["complete"]:
            trial = best_trial(self.study, self.params)
            if trial is not None:
                best = f" · best {self.params.hpo.metric.first} <b>{trial.values[0]:.4f}</b> (trial {trial.number})"
            fresh = plots.optimisation_history(self.study)
            with self.figure.batch_update():
                self.figure.data = []
                self.figure.update_layout(fresh.layout, overwrite=True)
                self.figure.layout.annotations = fresh.layout.annotations  # the sentence that no trial is there yet
                self.figure.add_traces(fresh.data)
        states = f"{counts['complete']} complete, {counts['pruned']} pruned, {counts['failed']} failed"
        name = html.escape(self.study.study_name)
        goes_on = counts["total"] < self.trials.max and not self.wants_stop
        left = f" · {self._time_left(counts['total'])}" if goes_on else ""
        self.head.value = f"Study <b>{name}</b>: {counts['total']} of {self.trials.max} trials ({states}){best}{left}"
        self.table.value = _last_trials(self.study)

    def _time_left(self, total: int) -> str:
        done = total - self.n_earlier
        if not done:
            return "time left: known after the first trial"
        seconds = (time.monotonic() - self.started) / done * (self.trials.max - total)
        return f"about {_duration(seconds)} left"


class _WatchedFolds(Callback):
    def __init__(self, monitor: SearchMonitor) -> None:
        self.monitor = monitor

    def on_epoch_end(self, report: EpochResult) -> None:
        self.monitor.folds.description = f"fold {report.fold + 1}"

    def on_fold_end(self, report: FoldResult) -> None:
        self.monitor.folds.value = report.fold + 1


CLICK = "<i>Click a point to see its trial.</i>"


def show_trials(figure: go.Figure, study: optuna.Study, params: Params) -> None:
    """Figure of a search whose points tell their trial when clicked; without a front end just the figure.

    Parameters
    ----------
    figure : plotly.graph_objects.Figure
        Of `evbind_lib.plots`; its traces name their trials in ``meta``.
    study : optuna.Study
    params : Params
    """
    if not has_front_end() or not any(trace.meta for trace in figure.data):
        show(figure)
        return
    details = ipywidgets.HTML(CLICK)
    shown = go.FigureWidget(figure)
    _on_click(shown, study, details, params)
    display(ipywidgets.VBox([details, shown]))


def _on_click(figure: go.FigureWidget, study: optuna.Study, details: ipywidgets.HTML, params: Params) -> None:
    def tell(trace: Any, points: Any, _: Any) -> None:
        if trace.meta and points.point_inds:
            details.value = trial_details(study, int(trace.meta[points.point_inds[0]]), params)

    for trace in figure.data:
        trace.on_click(tell)


def trial_details(study: optuna.Study, number: int, params: Params) -> str:
    """Parameters, folds and MLflow run of a trial, as HTML.

    Parameters
    ----------
    study : optuna.Study
    number : int
    params : Params

    Returns
    -------
    str
    """
    trial = study.trials[number]
    named = zip(params.hpo.metric.names, trial.values or [], strict=False)
    value = "".join(f", {name} {number:.4f}" for name, number in named)
    rows = "".join(
        f"<tr><td>{html.escape(name)}</td><td>{_short(value)}</td></tr>" for name, value in trial.params.items()
    )
    scores = trial.user_attrs.get("fold_scores", [])
    folds = ", ".join(f"{score:.4f}" for score in scores) or "none finished"
    error = trial.user_attrs.get("error")
    failed = f"<p>{html.escape(error)}</p>" if error else ""
    return (
        f"<b>Trial {number}</b>: {trial.state.name.lower()}{value}, {_duration(trial.user_attrs.get('seconds', 0))}"
        f"<p>folds: {folds}</p>{failed}<table>{rows}</table>{_mlflow_link(trial, params)}"
    )


def _mlflow_link(trial: FrozenTrial, params: Params) -> str:
    run, uri = trial.user_attrs.get("mlflow_run"), params.tracking.uri
    if not run:
        return ""
    served = uri.startswith(("http://", "https://"))
    address = uri if served else "http://127.0.0.1:5000"
    link = f'<a href="{html.escape(address)}/#/experiments/{run["experiment"]}/runs/{run["run"]}">its run in MLflow</a>'
    hint = "" if served else f" (while <code>mlflow ui --backend-store-uri {html.escape(uri)}</code> runs)"
    return f"<p>{link}{hint}</p>"


def _last_trials(study: optuna.Study) -> str:
    rows = ""
    for trial in reversed(finished_trials(study)[-LAST_TRIALS:]):
        value = f"{trial.values[0]:.4f}" if trial.values else "-"
        rows += f"<tr><td>{trial.number}</td><td>{trial.state.name.lower()}</td><td>{value}</td></tr>"
    head = "<tr><th>trial&nbsp;</th><th>state&nbsp;</th><th>score</th></tr>"
    return f"<table>{head}{rows}</table>" if rows else ""


def _duration(seconds: float) -> str:
    if seconds < 90:
        return f"{seconds:.0f} s"
    return f"{seconds / 60:.0f} min" if seconds < 5400 else f"{seconds / 3600:.1f} h"


def _short(value: Any) -> str:
    return f"{value:.4g}" if isinstance(value, float) else html.escape(str(value))
