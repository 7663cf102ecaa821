"""Views in a front end: the monitor follows and stops a search, a list shows its trials, controls change what is shown."""

from __future__ import annotations

import csv
import json
import re
import threading
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import ipywidgets
import numpy as np
import optuna
import pandas as pd
import plotly
import plotly.graph_objects as go
import pytest
from jupyter_client.manager import start_new_kernel
from nbconvert import HTMLExporter
from nbformat.v4 import new_code_cell, new_notebook, new_output

from evbind_lib.config.schema import Params
from evbind_lib.data.corpus import Corpus
from evbind_lib.data.folds import Fold
from evbind_lib.evaluation.estimate import at_threshold, confident_errors
from evbind_lib.hpo.objective import Objective, SearchCallback
from evbind_lib.hpo.results import SearchResult
from evbind_lib.hpo.search import run_search
from evbind_lib.hpo.study import TrialRecord, count_trials
from evbind_lib.notebook import front_end, widgets
from evbind_lib.notebook import monitor as monitors
from evbind_lib.notebook import show as shows
from evbind_lib.notebook.front_end import has_front_end
from evbind_lib.notebook.monitor import SearchMonitor, trial_details
from evbind_lib.plots.search import history
from evbind_lib.tracking.page import PLOTLY
from evbind_lib.training.result import Callback, EpochResult


class Place:
    """Where a figure is displayed: keeps what it shows in turn."""

    def __init__(self, bundle: dict[str, Any], raw: bool, display_id: bool) -> None:
        self.titles: list[str] = []
        self.update(bundle)

    def update(self, bundle: dict[str, Any], raw: bool = True) -> None:
        if bundle != {"text/plain": ""}:  # between two figures
            self.figure = bundle[PLOTLY]
            self.titles.append(self.figure["layout"]["title"]["text"])


@pytest.fixture
def places(monkeypatch: pytest.MonkeyPatch) -> list[Place]:
    """Figures that are displayed."""
    found: list[Place] = []

    def display(*given: Any, **options: Any) -> Place:
        found.append(Place(*given, **options))
        return found[-1]

    monkeypatch.setattr(front_end, "display", display)
    return found


@pytest.fixture
def shown(monkeypatch: pytest.MonkeyPatch, places: list[Place]) -> list[Any]:
    """What is displayed beside figures, as in a front end."""
    displayed: list[Any] = []
    monkeypatch.setenv("EVBIND_WIDGETS", "1")
    for module in (widgets, monitors, shows):
        monkeypatch.setattr(module, "display", lambda what, **_: displayed.append(what))
    return displayed


def test_only_a_front_end_gets_widgets(monkeypatch: pytest.MonkeyPatch, corpus: Corpus) -> None:
    displayed: list[Any] = []
    for module in (widgets, shows):
        monkeypatch.setattr(module, "display", displayed.append)
    assert not has_front_end()
    widgets.browse_pairs(corpus)
    (table,) = displayed
    assert len(table) == 10 and "sentence" in table
    monkeypatch.setenv("EVBIND_WIDGETS", "1")
    assert has_front_end()
    widgets.browse_pairs(corpus)
    assert isinstance(displayed[-1], ipywidgets.Widget)


class _PressDuring(SearchCallback, Callback):
    """Presses the button while a certain fold is trained, as another thread does in a front end."""

    def __init__(self, monitor: SearchMonitor, trial: int, fold: int) -> None:
        self.monitor, self.trial, self.fold = monitor, trial, fold

    def fold_callbacks(self, trial: optuna.Trial) -> Sequence[Callback]:
        return [self] if trial.number == self.trial else []

    def on_epoch_end(self, epoch: EpochResult) -> None:
        if epoch.fold == self.fold:
            pressing = threading.Thread(target=self.monitor.button.click)
            pressing.start()
            pressing.join()


Search = Callable[..., SearchResult]


@pytest.fixture
def searched(corpus: Corpus, folds: list[Fold]) -> Search:
    return lambda params, *callbacks: run_search(Objective(corpus, folds, params), params, callbacks=callbacks)


def test_the_button_ends_the_search_after_the_fold_and_loses_nothing(
    brief: Callable[..., Params], searched: Search, shown: list[Any], places: list[Place]
) -> None:
    params = brief()
    monitor = SearchMonitor(params)
    assert shown == []  # what is refused before the study is open shows no monitor
    result = searched(params, monitor, _PressDuring(monitor, trial=1, fold=0))
    assert shown == [monitor.view] and len(places) == 1
    monitor.close()
    assert count_trials(result.study)["total"] == 1
    (waiting,) = result.study.trials[1:]
    assert waiting.state.name == "WAITING" and len(TrialRecord.read(waiting).fold_scores or ()) == 1
    assert monitor.button.description == "Stopped"
    assert "1 of 3 trials (1 complete, 0 pruned, 0 failed)" in monitor.head.value and "left" not in monitor.head.value

    again = SearchMonitor(params)
    result = searched(params, again)
    again.close()
    assert count_trials(result.study)["total"] == 3
    assert result.study.trials[1].params == waiting.params  # it went on with its own parameters
    assert again.trials.value == 3 and again.button.description == "Done"
    assert again.now.value == ""  # nothing is said to run
    plain = json.loads(history(result.study).to_json())
    assert len(places) == 2 and places[-1].figure == plain  # the finished study, in one place


def test_the_button_in_a_last_fold_ends_the_search_with_the_trial_complete(
    brief: Callable[..., Params], searched: Search, shown: list[Any]
) -> None:
    params = brief()
    monitor = SearchMonitor(params)
    result = searched(params, monitor, _PressDuring(monitor, trial=0, fold=1))
    assert [trial.state.name for trial in result.study.trials] == ["COMPLETE"]
    assert count_trials(result.study)["total"] == monitor.trials.value == 1


@pytest.mark.parametrize(
    ("n_done", "asked", "said"), [(3, True, "Done"), (3, False, "Done"), (2, True, "Stopped"), (2, False, "Ended")]
)
def test_the_monitor_says_how_the_search_ended_by_whatever_it_was_stopped(
    brief: Callable[..., Params], shown: list[Any], places: list[Place], n_done: int, asked: bool, said: str
) -> None:
    monitor, study = SearchMonitor(brief()), optuna.create_study(direction="maximize")
    for _ in range(n_done):
        study.add_trial(optuna.trial.create_trial(value=0.5))
    monitor.on_search_begin(study, 0)
    if n_done == 3:  # its best is trained again, which is no trial more
        monitor.on_finalist_begin(study.trials[0])
        monitor.on_finalist_end(study.trials[0], [0.5], None)
    if asked:
        monitor.on_stop_request()  # as Ctrl-C and the button of JupyterLab do
    monitor.close()
    assert monitor.button.description == said and monitor.button.disabled and "left" not in monitor.head.value


BUSY = """
import time
began = time.monotonic()
while not clicks and time.monotonic() - began < 10: time.sleep(0.05)
print("heard" if clicks else "not heard")
"""
BUTTON = """
import ipywidgets
from evbind_lib.notebook.monitor import hear_while_busy
clicks = []
button = ipywidgets.Button()
button.on_click(clicks.append)
hear_while_busy(button)
print(button.comm.comm_id)
"""


def test_a_click_is_heard_while_a_cell_runs() -> None:
    """As JupyterLab sends it, to a subshell: ipykernel 7.4 by itself hands it to the thread that is busy."""
    manager, client = start_new_kernel(kernel_name="python3", extra_arguments=["--IPKernelApp.log_level=50"])
    printed: list[str] = []

    def keep(message: dict[str, Any]) -> None:
        if message["msg_type"] in {"stream", "error"}:
            printed.append(message["content"].get("text") or message["content"]["evalue"])

    try:
        client.execute_interactive(BUTTON, output_hook=keep, timeout=60)
        client.control_channel.send(client.session.msg("create_subshell_request"))
        subshell = client.get_control_msg(timeout=20)["content"]["subshell_id"]
        click = {"method": "custom", "content": {"event": "click"}}
        message = client.session.msg("comm_msg", {"comm_id": printed[0].strip(), "data": click})
        message["header"]["subshell_id"] = subshell
        threading.Timer(0.5, client.shell_channel.send, [message]).start()
        client.execute_interactive(BUSY, output_hook=keep, timeout=60)
    finally:
        client.stop_channels()
        manager.shutdown_kernel(now=True)
    assert printed[1:] == ["heard\n"]


def test_after_a_search_its_trials_can_be_looked_at(
    brief: Callable[..., Params], searched: Search, shown: list[Any]
) -> None:
    params = brief()
    monitor = SearchMonitor(params)
    result = searched(params, monitor)
    monitor.close()
    chosen, details = monitor.view.children[-1].children
    number = result.best_trial.number
    assert chosen.value == number and len(chosen.options) == 3
    assert details.value == trial_details(result.study, number, params.tracking)
    assert f"<b>Trial {number}: complete, macro_f1 {result.best_value:.4f}" in details.value
    assert f"{TrialRecord.read(result.best_trial).fold_scores[0]:.4f}" in details.value
    assert "learning_rate" in details.value
    chosen.value = (number + 1) % 3
    assert f"<b>Trial {chosen.value}:" in details.value


def test_time_left_is_known_as_soon_as_a_study_is_resumed(
    brief: Callable[..., Params], searched: Search, shown: list[Any]
) -> None:
    heads: list[str] = []

    class Watch(SearchMonitor):
        def on_search_begin(self, study: optuna.Study, n_earlier_trials: int) -> None:
            super().on_search_begin(study, n_earlier_trials)
            heads.append(self.head.value)

    for total in (1, 2):
        params = brief(f"hpo.trials.n_trials={total}")
        searched(params, Watch(params))
    assert "known after the first trial" in heads[0]
    assert re.search(r"1 of 2 trials .* · about 0:\d\d:\d\d left", heads[1])


def test_a_figure_is_kept_by_nbconvert_needs_no_browser_and_is_made_by_the_renderer_that_the_user_chose(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    bundles: list[dict[str, Any]] = []
    monkeypatch.setattr(front_end, "display", lambda bundle, **options: bundles.append(bundle))
    figure = go.Figure(go.Scatter(x=[1], y=[2]))
    front_end.show_figure(figure)
    output = new_output("display_data", data=bundles[-1])
    body, _ = HTMLExporter().from_notebook_node(new_notebook(cells=[new_code_cell("show()", outputs=[output])]))
    assert body.count("Plotly.newPlot(") == 1

    monkeypatch.setenv("EVBIND_STATIC_FIGURES", "1")
    monkeypatch.setattr(go.Figure, "to_image", lambda *given, **options: 1 / 0)  # as where no Chrome is found
    front_end.show_figure(figure)
    assert list(bundles[-1]) == [PLOTLY]

    monkeypatch.setenv("PLOTLY_RENDERER", "json")
    monkeypatch.setattr(plotly.io.renderers, "default", "json")  # plotly reads the variable when it is imported
    front_end.show_figure(figure)
    assert "application/json" in bundles[-1] and PLOTLY not in bundles[-1]
    monkeypatch.setattr(plotly.io.renderers, "default", "browser")  # a window, of which no file keeps anything
    front_end.show_figure(figure)
    assert PLOTLY in bundles[-1]


def made_predictions() -> pd.DataFrame:
    random = np.random.default_rng(0)
    label = random.integers(0, 2, 240)
    ids = {
        f"{name}_id": [f"{name}{n // (4 if name == 'post' else 1)}" for n in range(240)]
        for name in ("post", "sentence")
    }
    return pd.DataFrame({"fold": 0, **ids, "criterion_id": "SLEEP_ISSUES", "label": label}).assign(
        weight=np.where(label, 1.0, 9.0), probability=1 / (1 + np.exp(-2 * (label - 0.5) - random.normal(size=240)))
    )


def test_controls_change_what_is_shown(corpus: Corpus, shown: list[Any], places: list[Place], workspace: Path) -> None:
    sensitive = replace(corpus, sensitive=True)
    widgets.browse_pairs(sensitive)
    criterion, label, _, text, _ = shown[-1].children
    criterion.value, label.value, text.value = "SLEEP_ISSUES", "evidence", "sleep"
    table = shown[-1]
    assert set(table["criterion_id"]) == {"SLEEP_ISSUES"} and set(table["label"]) == {1}
    assert not {"sentence", "post_id", "sentence_id"} & {*table}
    wanted = corpus.pairs.query("criterion_id == 'SLEEP_ISSUES' and label == 1")["sentence"]
    assert f"<b>{wanted.str.contains('sleep', case=False).sum()} pairs</b>" in shown[-2].value

    predictions = made_predictions()
    widgets.try_thresholds(predictions)
    shown[-1].value = 0.8
    counts = at_threshold(predictions, 0.8, predictions["weight"])
    (place,) = places
    assert [title[:17] for title in place.titles] == ["At threshold 0.50", "At threshold 0.80"]
    cells = [float(str(text).partition("<")[0]) for row in place.figure["data"][-1]["text"] for text in row]
    assert cells == [counts[name] for name in ("tn", "fp", "fn", "tp")]

    widgets.browse_errors(predictions, sensitive)
    assert len(shown[-2]) <= 25
    shown[-1].children[0].value = "missed"
    missed = confident_errors(predictions, most=1000).query("kind == 'missed'")
    table, (file,) = shown[-1], (workspace / "runs").glob("predictions_*.csv")
    assert list(table) == ["kind", f"row of runs/{file.name}", "criterion_id", "probability"]
    header, *lines = csv.reader(file.open())
    found = [lines[row - 2][header.index("sentence_id")] for row in table[f"row of runs/{file.name}"]]
    assert found == missed["sentence_id"].tolist()[:25]
    (box,) = (each for each in shown if isinstance(each, ipywidgets.HBox))
    number, ids = box.children
    assert ids.value == ""
    number.value = int(table.iloc[0, 1])
    post, sentence = missed[["post_id", "sentence_id"]].iloc[0]
    assert ids.value == f"post {post}, sentence {sentence}"


def test_sentences_are_scored_when_asked(brief: Callable[..., Params], corpus: Corpus, shown: list[Any]) -> None:
    from evbind_lib.evaluation.final import open_model

    widgets.show_scores(open_model(corpus, brief()), ["I cannot sleep."])
    box, button, _ = shown[0].children
    assert "1. I cannot sleep." in shown[-1]["text/plain"] and "linear-gradient" in shown[-1]["text/html"]
    box.value = "It rained.\n\nI am tired."
    button.click()
    assert "1. It rained.  2. I am tired." in shown[-1]["text/plain"]
    box.value = " "
    button.click()
    assert "is empty" in shown[-1].value
