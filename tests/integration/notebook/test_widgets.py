"""Views in a front end: the monitor follows and stops a search, points tell their trials, controls change what is shown."""

from __future__ import annotations

import threading
from collections.abc import Callable
from pathlib import Path
from typing import Any

import ipywidgets
import pytest
from tests.test_estimate import made_predictions

from evbind_lib import plots
from evbind_lib.config.compose import Params, compose
from evbind_lib.data.corpus import Corpus, load_corpus
from evbind_lib.data.folds import make_folds
from evbind_lib.evaluation.estimate import at_threshold, confident_errors
from evbind_lib.hpo.search import SearchListener, SearchResult, run_search
from evbind_lib.hpo.study import count_trials
from evbind_lib.notebook.monitor import trial_details
from evbind_lib.notebook.widgets import (
    SearchMonitor,
    browse_errors,
    browse_pairs,
    has_front_end,
    score_sentences,
    show_trials,
    try_thresholds,
    views,
)
from evbind_lib.notebook.widgets import search as search_views
from evbind_lib.training.result import Callback, EpochResult


@pytest.fixture(scope="module")
def corpus() -> Corpus:
    return load_corpus(compose().data)


@pytest.fixture
def shown(monkeypatch: pytest.MonkeyPatch) -> list[Any]:
    """What is displayed, as in a front end."""
    displayed: list[Any] = []
    monkeypatch.setenv("EVBIND_WIDGETS", "1")
    for module in (views, search_views):
        monkeypatch.setattr(module, "display", displayed.append)
    return displayed


def test_only_a_front_end_gets_widgets(monkeypatch: pytest.MonkeyPatch, corpus: Corpus) -> None:
    displayed: list[Any] = []
    monkeypatch.setattr(views, "display", displayed.append)
    assert not has_front_end()
    browse_pairs(corpus, sensitive=False)
    (table,) = displayed
    assert len(table) == 10 and "sentence" in table
    monkeypatch.setenv("EVBIND_WIDGETS", "1")
    assert has_front_end()
    browse_pairs(corpus, sensitive=False)
    assert isinstance(displayed[-1], ipywidgets.Widget)


class _PressDuring(SearchListener, Callback):
    """Presses the button while a certain fold is trained, as another thread does in a front end."""

    def __init__(self, monitor: SearchMonitor, trial: int, fold: int) -> None:
        self.monitor, self.trial, self.fold = monitor, trial, fold

    def on_trial_start(self, trial: Any, suggested: Any) -> Callback | None:
        return self if trial.number == self.trial else None

    def on_epoch_end(self, report: EpochResult) -> None:
        if report.fold == self.fold:
            pressing = threading.Thread(target=self.monitor.button.click)
            pressing.start()
            pressing.join()


def searched(params: Params, corpus: Corpus, *listeners: SearchListener) -> SearchResult:
    folds = make_folds(corpus, n_folds=2, seed=42)
    return run_search(params, corpus, folds, listeners)


def test_the_button_ends_the_search_after_the_fold_and_keeps_everything(
    brief: Callable[..., Params], corpus: Corpus, shown: list[Any]
) -> None:
    params = brief()
    monitor = SearchMonitor(params)
    assert shown == [monitor.view]
    result = searched(params, corpus, monitor, _PressDuring(monitor, trial=1, fold=0))
    monitor.close()
    assert count_trials(result.study)["total"] == 1
    cut_off, waiting = result.study.trials[1:]
    assert cut_off.user_attrs["interrupted"] and len(cut_off.user_attrs["fold_scores"]) == 1
    assert waiting.state.name == "WAITING" and monitor.button.description == "Stopped"
    assert "1 of 3 trials (1 complete, 0 pruned, 0 failed)" in monitor.head.value and "left" not in monitor.head.value

    again = SearchMonitor(params)
    result = searched(params, corpus, again)
    again.close()
    assert count_trials(result.study)["total"] == 3
    assert result.study.trials[2].params == cut_off.params  # done anew with its own parameters
    assert again.trials.value == 3 and again.button.description == "Done"
    assert again.table.value.count("<tr>") == 4


def test_the_button_in_a_last_fold_ends_the_search_with_the_trial_complete(
    brief: Callable[..., Params], corpus: Corpus, shown: list[Any]
) -> None:
    params = brief()
    monitor = SearchMonitor(params)
    result = searched(params, corpus, monitor, _PressDuring(monitor, trial=0, fold=1))
    assert [trial.state.name for trial in result.study.trials] == ["COMPLETE"]
    assert monitor.folds.value == 2


def test_a_clicked_point_tells_its_trial(brief: Callable[..., Params], corpus: Corpus, shown: list[Any]) -> None:
    params = brief()
    result = searched(params, corpus)
    number = result.best.number
    show_trials(plots.optimisation_history(result.study), result.study, params)
    details, figure = shown[-1].children
    assert "Click a point" in details.value
    trace = next(trace for trace in figure.data if trace.mode == "markers")
    index = list(trace.meta).index(number)

    class Points:
        point_inds = (index,)

    # The line of the best so far lies over the points of trials, and is what a click may meet.
    assert all(one.meta and one._click_callbacks for one in figure.data)
    for callback in trace._click_callbacks:
        callback(trace, Points(), None)
    assert details.value == trial_details(result.study, number, params)
    assert f"<b>Trial {number}</b>: complete, macro_f1 {result.best.value:.4f}" in details.value
    assert f"{result.best.user_attrs['fold_scores'][0]:.4f}" in details.value
    assert "learning_rate" in details.value
    show_trials(plots.importances(result.study), result.study, params)  # bars are parameters: nothing to click
    assert len(shown) == 1


def test_controls_change_what_is_shown(corpus: Corpus, shown: list[Any], workspace: Path) -> None:
    browse_pairs(corpus, sensitive=True)
    criterion, label, _, text, _ = shown[-1].children
    criterion.value, label.value, text.value = "SLEEP_ISSUES", "evidence", "sleep"
    table = shown[-1]
    assert set(table["criterion_id"]) == {"SLEEP_ISSUES"} and set(table["label"]) == {1}
    assert "sentence" not in table  # sensitive
    wanted = corpus.pairs.query("criterion_id == 'SLEEP_ISSUES' and label == 1")["sentence"]
    assert f"<b>{wanted.str.contains('sleep', case=False).sum()} pairs</b>" in shown[-2].value

    predictions = made_predictions()
    try_thresholds(predictions)
    slider, figure = shown[-1].children
    slider.value = 0.8
    counts = at_threshold(predictions, 0.8)
    assert figure.layout.title.text.startswith("At threshold 0.80")
    assert [list(row) for row in figure.data[-1].text] == [[counts["tn"], counts["fp"]], [counts["fn"], counts["tp"]]]

    browse_errors(predictions, corpus, sensitive=True)
    assert len(shown[-2]) <= 25
    shown[-1].children[0].value = "missed"
    missed = confident_errors(predictions, most=1000).query("kind == 'missed'")
    assert shown[-1]["sentence_id"].tolist() == missed["sentence_id"].tolist()[:25]


def test_sentences_are_scored_when_asked(brief: Callable[..., Params], corpus: Corpus, shown: list[Any]) -> None:
    from evbind_lib.evaluation.final import open_scorer

    score_sentences(open_scorer(brief(), corpus), ["I cannot sleep."])
    box, button, _ = shown[0].children
    assert list(shown[-1].data.columns) == ["1. I cannot sleep."]
    assert "linear-gradient" in shown[-1]._repr_html_() and repr(shown[-1]).startswith(" ")
    assert "object at" not in repr(shown[-1])
    box.value = "It rained.\n\nI am tired."
    button.click()
    assert list(shown[-1].data.columns) == ["1. It rained.", "2. I am tired."]
    box.value = " "
    button.click()
    assert shown[-1].value == "Type a sentence first."
