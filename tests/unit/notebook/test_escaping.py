"""Ids, sentences and names are data: whatever they hold, no page runs it."""

from __future__ import annotations

import os
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import optuna
import pandas as pd
import pytest
from nbformat.v4 import new_code_cell, new_markdown_cell, new_notebook, new_output
from plotly.io import to_html

from evbind_lib.config.compose import compose
from evbind_lib.data.corpus import Corpus
from evbind_lib.notebook import monitor, overview, show, widgets
from evbind_lib.plots.validation import thresholds
from evbind_lib.tracking.page import RUN_VARIABLE, export_html
from evbind_lib.training.result import prediction_table

EVIL = "<img src=x onerror=alert(1)>"
FIGURE = "application/vnd.plotly.v1+json"


@pytest.fixture
def corpus() -> Corpus:
    rows = [(f"{post}{EVIL}", f"{name}{EVIL}") for post in range(8) for name in "AB"]
    pairs = pd.DataFrame(rows, columns=["post_id", "criterion_id"]).assign(
        criterion=lambda table: table["criterion_id"]
    )
    pairs["sentence"] = [f"It rained {number} times. {EVIL}" for number in range(len(pairs))]
    return Corpus.from_pairs(pairs.assign(label=[1, 0] * 8), sensitive=False)


def test_no_table_line_or_page_runs_what_ids_sentences_or_names_hold(
    corpus: Corpus, workspace: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    shown: list[Any] = []
    monkeypatch.setenv(RUN_VARIABLE, "")
    monkeypatch.delenv("EVBIND_WIDGETS", raising=False)
    for module in (widgets, monitor, show):
        monkeypatch.setattr(
            module, "display", lambda what, **_: shown.append(what) or SimpleNamespace(update=shown.append)
        )
    params = compose([f"hpo.study.study_name='{EVIL}'"])
    predictions = prediction_table(0, corpus.pairs.assign(weight=1.0), np.linspace(-2, 2, len(corpus.pairs)))
    widgets.browse_pairs(corpus)
    widgets.browse_errors(predictions, corpus)
    for table in (
        show.parameter_table(params),
        show.criteria_table({EVIL: predictions}, "recall"),
        overview.overlap(corpus),
    ):
        show.show(table)
    model = SimpleNamespace(criteria=corpus.criteria, predict_proba=lambda pairs: np.full((len(pairs), 2), 0.5))
    widgets.show_scores(model, [EVIL])  # type: ignore[arg-type]
    study = optuna.create_study(study_name=EVIL)
    study.set_metric_names([EVIL])
    study.add_trial(optuna.trial.create_trial(value=0.5))
    monitor.SearchProgress(compose()).on_search_begin(study, n_earlier_trials=1)
    pages = [each["text/html"] if isinstance(each, dict) else each._repr_html_() for each in shown]
    pages += [monitor.trial_details(study, 0, params.tracking), to_html(thresholds(predictions, 0.5))]
    assert len(pages) == 9 and RUN_VARIABLE in os.environ
    assert [page for page in pages if "<img src=x" in page] == []
    assert sum("&lt;img src=x" in page for page in pages) >= 6

    outputs = [new_output("stream", text=EVIL), new_output("error", ename=EVIL, evalue=EVIL, traceback=[EVIL])]
    outputs += [new_output("display_data", {"text/plain": EVIL}), new_output("display_data", {"text/html": pages[0]})]
    figure = {"data": [], "layout": {"title": {"text": f"</script>{EVIL}"}}}
    outputs += [new_output("display_data", {FIGURE: figure})]
    notebook = new_notebook(cells=[new_markdown_cell("A title"), new_code_cell(f"x = '{EVIL}'", outputs=outputs)])
    assert "<img src=x" not in export_html(notebook, workspace / f"{EVIL}.html").read_text(encoding="utf-8")
