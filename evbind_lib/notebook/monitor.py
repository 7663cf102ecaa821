"""What shows how far work is: a line or, in a front end, a monitor of the search; and the trial behind a point of its figures."""

# ruff: noqa: D102 - what calls a hook is documented where it is declared: in Callback and SearchCallback
import contextlib
import html
from collections.abc import Sequence
from datetime import timedelta
from statistics import mean
from typing import Any
from uuid import uuid4

import ipywidgets
import optuna
from IPython.display import DisplayHandle, display, update_display
from optuna.trial import FrozenTrial

from evbind_lib.config.schema import Params, TrackingParams
from evbind_lib.hpo.objective import SearchCallback
from evbind_lib.hpo.results import folds_line, short
from evbind_lib.hpo.study import TrialRecord, best_trial, count_trials, finished_trials, metric_name, states
from evbind_lib.notebook.front_end import has_front_end, show_figure
from evbind_lib.plots.search import history
from evbind_lib.tracking.page import PROGRESS, RUN_VARIABLE, given_by_launcher, run_address
from evbind_lib.training.result import Callback, EpochResult, FoldResult


class Progress(Callback):
    """One line about the folds, updated in place while a front end or papermill's engine ``evbind`` watches; it does not stay."""

    title = "Folds"

    def __init__(self, total: int, n_folds: int) -> None:
        self.total, self.done, self.n_folds = total, 0, n_folds
        self.before = self.best = self.left = self.shown = ""
        self.display_id = uuid4().hex  # of the line

    def update(self, text: str = "") -> None:
        """Show what is going on, between the steps that are done and the best value so far."""
        text = "; ".join(part for part in (text, self.best, self.left) if part)
        count, filled = f"{self.done}/{self.total}", round(20 * min(self.done / max(self.total, 1), 1.0))
        line = f"{self.title} [{'#' * filled:.<20}] {count}  {text}"
        if line == self.shown or not (has_front_end() or given_by_launcher(RUN_VARIABLE) is not None):
            return
        bar = f'<progress value="{self.done}" max="{self.total}" style="width:14em"></progress>'
        bundle: dict[str, Any] = {"text/plain": line, "text/html": f"{bar} {self.title} {count} · {html.escape(text)}"}
        bundle[PROGRESS] = {"done": self.done, "total": self.total}
        display(bundle, raw=True, display_id=self.display_id, update=bool(self.shown))
        self.shown = line

    def on_epoch_end(self, epoch: EpochResult) -> None:
        self.update(f"{self.before}fold {epoch.fold + 1} of {self.n_folds}, epoch {epoch.epoch}")

    def on_fold_end(self, result: FoldResult) -> None:
        self.done += 1
        read = f", read from {result.origin or 'the cache'}" if result.cached else ""
        self.update(f"macro_f1 {result.metrics['macro_f1']:.4f} in fold {result.fold + 1}{read}")

    def close(self) -> None:
        """Take the line away."""
        if self.shown:
            update_display({"text/plain": "", "text/html": ""}, raw=True, display_id=self.display_id)


class SearchProgress(Progress, SearchCallback):
    """The line of a search, about its trials, with the best value so far and the time left."""

    title = "Trials"

    def __init__(self, params: Params) -> None:
        super().__init__(params.hpo.trials.n_trials, params.training.n_folds)
        self.params = params

    def on_search_begin(self, study: optuna.Study, n_earlier_trials: int) -> None:
        earlier = f"study {study.study_name} resumed, done before: {n_earlier_trials}"
        self.count(study, earlier if n_earlier_trials else "")

    def fold_callbacks(self, trial: optuna.Trial) -> Sequence[Callback]:
        self.before = f"trial {trial.number}, "
        return [self]

    def on_fold_end(self, result: FoldResult) -> None:
        pass  # trials are counted

    def on_running(self, study: optuna.Study, running: Sequence[FrozenTrial]) -> None:
        self.update(", ".join(f"trial {each.number} after fold {len(each.intermediate_values)}" for each in running))

    def on_stop_request(self) -> None:
        self.update("stopping after the current fold, once more to stop at once")

    def on_trial_end(self, study: optuna.Study, trial: FrozenTrial) -> None:
        self.count(study, f"trial {_ended(trial, metric_name(study))}")

    def on_finalist_begin(self, trial: FrozenTrial) -> None:
        self.total += 1
        self.update(f"trial {trial.number} again, with fresh seeds")

    def on_finalist_end(self, trial: FrozenTrial, values: Sequence[float], error: BaseException | None) -> None:
        self.done += 1

    def count(self, study: optuna.Study, text: str = "") -> None:
        """Show where the study stands."""
        self.done = count_trials(study)["total"]
        if (best := best_trial(study)) is not None:
            self.best = f"best {metric_name(study)} {best.value:.4f} (trial {best.number})"
        seconds = [taken for trial in finished_trials(study) if (taken := TrialRecord.read(trial).seconds)]
        left = self.total - self.done
        known = f"about {timedelta(seconds=round(left * mean(seconds or [0]) / self.params.hpo.trials.n_jobs))} left"
        self.left = "" if left <= 0 else known if seconds else "time left: known after the first trial"
        self.update(text)


class SearchMonitor(SearchProgress):
    """The same in a front end: a bar, best value, time left, the history, and a button that ends it after the current fold."""

    def __init__(self, params: Params) -> None:
        super().__init__(params)
        self.trials = ipywidgets.IntProgress(max=self.total, description="trials", layout={"width": "45%"})
        self.head, self.now = ipywidgets.HTML(), ipywidgets.HTML()
        looks = {"button_style": "warning", "icon": "stop", "layout": {"width": "14em"}}
        self.button = ipywidgets.Button(description="Stop after this fold", **looks)
        self.button.on_click(lambda _: self.on_stop_request())
        self.place: DisplayHandle | None = None  # of the figure
        self.view = ipywidgets.VBox([self.head, self.trials, self.now, self.button])
        hear_while_busy(self.button)

    def update(self, text: str = "") -> None:
        self.now.value = html.escape(text)

    def on_search_begin(self, study: optuna.Study, n_earlier_trials: int) -> None:
        self.study = study
        display(self.view)
        super().on_search_begin(study, n_earlier_trials)

    def fold_callbacks(self, trial: optuna.Trial) -> Sequence[Callback]:
        drawn = ", ".join(f"{name} {short(value)}" for name, value in trial.params.items())
        self.before = f"trial {trial.number}: {drawn}; "
        self.update(self.before)
        return [self]

    def on_stop_request(self) -> None:
        self.wants_stop, self.button.description, self.button.disabled = True, "Stopping", True

    def close(self) -> None:
        """Show that nothing runs any more, and let the trials be looked at."""
        self.button.disabled, self.button.button_style, self.now.value = True, "", ""
        if self.place is None:  # what is refused before the study is open
            return
        self.count(self.study)
        how = "Stopped" if self.wants_stop else "Ended"  # before its total, by a limit of time or an error
        self.button.description = "Done" if self.done >= self.trials.max else how
        if (best := best_trial(self.study)) is not None:
            self.view.children = (*self.view.children[:4], trial_browser(self.study, best.number, self.params.tracking))

    def count(self, study: optuna.Study, text: str = "") -> None:
        super().count(study, text)
        self.trials.value = self.done
        counts, name = states(count_trials(study)), html.escape(study.study_name)
        where = f"Study <b>{name}</b>: {self.done} of {self.trials.max} trials ({counts})"
        best = self.best and f"<b>{html.escape(self.best)}</b>"
        parts = where, best, folds_line(study, self.n_folds), "" if self.button.disabled else self.left
        self.head.value = " · ".join(part for part in parts if part)
        self.place = show_figure(history(study), self.place)


def hear_while_busy(button: ipywidgets.Button) -> None:
    """Let a click reach the kernel while a cell runs; there is no public way."""
    # JupyterLab, from 4.4, hands widgets' messages to a subshell, a thread of their own, but ipykernel 7.4 to the thread that
    # wrote to the widget last, here the busy one, unless its note of that thread is gone.
    with contextlib.suppress(AttributeError):
        del button.comm._reply_subshell_id


def trial_browser(study: optuna.Study, number: int, tracking: TrackingParams) -> ipywidgets.VBox:
    """Choose a finished trial, at first the one of this number, and see what there is about it."""
    names = [(_ended(trial, metric_name(study)), trial.number) for trial in finished_trials(study)]
    chosen, details = ipywidgets.Dropdown(options=names, value=number, description="trial"), ipywidgets.HTML()
    ipywidgets.dlink((chosen, "value"), (details, "value"), lambda one: trial_details(study, one, tracking))
    return ipywidgets.VBox([chosen, details])


def trial_details(study: optuna.Study, number: int, tracking: TrackingParams) -> str:
    """Parameters, folds and MLflow run of a trial, as HTML."""
    trial = study.trials[number]
    record = TrialRecord.read(trial)
    head = html.escape(f"Trial {_ended(trial, metric_name(study))}")
    folds = ", ".join(f"{score:.4f}" for score in record.fold_scores or []) or "none finished"
    failed = f"<p>{html.escape(record.error)}</p>" if record.error else ""
    link = ""
    if run := record.mlflow_run:
        uri, address = html.escape(tracking.uri), html.escape(run_address(tracking.uri, run["experiment"], run["run"]))
        server = "" if uri.startswith("http") else f" (while <code>mlflow ui --backend-store-uri {uri}</code> runs)"
        link = f'<p><a href="{address}">its run in MLflow</a>{server}</p>'
    drawn = ((html.escape(name), html.escape(short(value))) for name, value in trial.params.items())
    rows = "".join(f"<tr><td>{name}</td><td>{value}</td></tr>" for name, value in drawn)
    return f"<b>{head}</b><p>folds: {folds}</p>{failed}<table>{rows}</table>{link}"


def _ended(trial: FrozenTrial, metric: str) -> str:
    """How a trial ended: number, state, value and time."""
    value = "" if trial.value is None else f", {metric} {trial.value:.4f}"
    took = timedelta(seconds=round(TrialRecord.read(trial).seconds or 0))
    state = trial.state.name.lower() if trial.state.is_finished() else "stopped"
    return f"{trial.number}: {state}{value}, {took}"
