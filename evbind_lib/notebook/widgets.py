"""Views of data and predictions: a browser of pairs, a threshold to move, errors to read, sentences to score.

Imports its neighbour `front_end`, `overview`, `estimate`, `scoring` and `plots`; `widgets` gives its functions on.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import ipywidgets
import pandas as pd
import plotly.graph_objects as go
from IPython.display import display

from evbind_lib import plots
from evbind_lib.data.corpus import Corpus
from evbind_lib.errors import EvbindError
from evbind_lib.evaluation.estimate import confident_errors
from evbind_lib.evaluation.final import Scorer
from evbind_lib.notebook.front_end import has_front_end, show
from evbind_lib.notebook.overview import browse

EVERY = "every criterion"
MOST_ROWS = 25
WIDE = {"description_width": "7em"}


def browse_pairs(corpus: Corpus, *, sensitive: bool) -> None:
    """Labelled pairs by criterion, label, length and words in them; without a front end the first ten.

    Parameters
    ----------
    corpus : Corpus
    sensitive : bool
        Show ids and lengths only. Words can still be searched for: that is done here and shown nowhere.
    """
    if not has_front_end():
        display(_table(browse(corpus, sensitive=sensitive).head(10)))
        return
    longest = int(browse(corpus, sensitive=True)["words"].max())
    criterion = ipywidgets.Dropdown(options=[EVERY, *corpus.criteria], description="criterion", style=WIDE)
    label = ipywidgets.ToggleButtons(options=["both", "evidence", "no evidence"], description="label", style=WIDE)
    words = ipywidgets.IntRangeSlider(
        value=(0, longest), min=0, max=longest, description="words", style=WIDE, continuous_update=False
    )
    text = ipywidgets.Text(description="contains", placeholder="a word or part of one", style=WIDE)

    def view(criterion: str, label: str, words: tuple[int, int], text: str) -> None:
        chosen = None if criterion == EVERY else criterion
        wanted = {"evidence": 1, "no evidence": 0}.get(label)
        found = browse(corpus, criterion=chosen, label=wanted, words=words, text=text, sensitive=sensitive)
        shown = f", the first {MOST_ROWS} below" if len(found) > MOST_ROWS else ""
        display(ipywidgets.HTML(f"<b>{len(found)} pairs</b>, {int(found['label'].sum())} of them evidence{shown}"))
        display(_table(found.head(MOST_ROWS)))

    controls = {"criterion": criterion, "label": label, "words": words, "text": text}
    output = ipywidgets.interactive_output(view, controls)
    display(ipywidgets.VBox([*controls.values(), output]))


def try_thresholds(predictions: pd.DataFrame, threshold: float = 0.5) -> None:
    """Precision, recall, F1 and confusion matrix of out-of-fold predictions at a threshold to move.

    Parameters
    ----------
    predictions : pandas.DataFrame
        Out-of-fold predictions.
    threshold : float
        Where it begins, and what is shown without a front end.
    """
    if not has_front_end():
        show(plots.thresholds(predictions, threshold))
        return
    figure = go.FigureWidget(plots.thresholds(predictions, threshold))
    slider = ipywidgets.FloatSlider(
        value=threshold,
        min=0.01,
        max=0.99,
        step=0.01,
        description="threshold",
        style=WIDE,
        layout={"width": "60%"},
    )

    def move(change: Any) -> None:
        fresh = plots.thresholds(predictions, change["new"])
        with figure.batch_update():
            figure.layout.title.text = fresh.layout.title.text
            figure.layout.shapes = fresh.layout.shapes
            figure.data[-1].update(z=fresh.data[-1].z, text=fresh.data[-1].text)

    slider.observe(move, names="value")
    display(ipywidgets.VBox([slider, figure]))


def browse_errors(predictions: pd.DataFrame, corpus: Corpus, *, sensitive: bool, threshold: float = 0.5) -> None:
    """Wrong decisions, the surest first, by kind and criterion; without a front end the first ten.

    Parameters
    ----------
    predictions : pandas.DataFrame
        Out-of-fold predictions.
    corpus : Corpus
        Its sentences are shown beside the ids.
    sensitive : bool
        Show ids only.
    threshold : float
    """
    errors = confident_errors(predictions, threshold, most=len(predictions))
    if not sensitive:
        known = pd.concat([corpus.pairs, corpus.sentences])[["post_id", "sentence_id", "sentence"]]
        known = known.drop_duplicates(["post_id", "sentence_id"])
        errors = errors.merge(known, on=["post_id", "sentence_id"], how="left")
    errors = errors.assign(probability=errors["probability"].map("{:.2f}".format))
    if not has_front_end():
        display(_table(errors.head(10)))
        return
    kind = ipywidgets.ToggleButtons(
        options=["both", "missed", "false alarm"], description="kind", style=WIDE, value="both"
    )
    criterion = ipywidgets.Dropdown(options=[EVERY, *corpus.criteria], description="criterion", style=WIDE)

    def view(kind: str, criterion: str) -> None:
        chosen = errors[
            ((kind == "both") | (errors["kind"] == kind))
            & ((criterion == EVERY) | (errors["criterion_id"] == criterion))
        ]
        display(ipywidgets.HTML(f"<b>{len(chosen)} errors</b>, the surest first"))
        display(_table(chosen.head(MOST_ROWS)))

    output = ipywidgets.interactive_output(view, {"kind": kind, "criterion": criterion})
    display(ipywidgets.VBox([kind, criterion, output]))


def score_sentences(scorer: Scorer, examples: Sequence[str]) -> None:
    """Probability of evidence for each criterion, of sentences to type or paste; without a front end of the examples.

    Parameters
    ----------
    scorer : Scorer
    examples : sequence of str
        What the box holds at first.
    """
    if not has_front_end():
        display(_scores(scorer, examples))
        return
    box = ipywidgets.Textarea(
        value="\n".join(examples),
        placeholder="one sentence in each line",
        layout={"width": "95%", "height": "7em"},
    )
    button = ipywidgets.Button(description="Score", button_style="primary", icon="calculator")
    output = ipywidgets.Output()

    def score(_: Any) -> None:
        lines = [line for line in box.value.splitlines() if line.strip()]
        output.clear_output(wait=True)
        with output:
            try:
                display(_scores(scorer, lines) if lines else ipywidgets.HTML("Type a sentence first."))
            except EvbindError as error:
                display(ipywidgets.HTML(str(error)))

    button.on_click(score)
    display(ipywidgets.VBox([box, button, output]))
    score(None)


class _Bars:
    """Table of probabilities with a bar in each cell; plain where no page is shown, which a styled table by itself is not."""

    def __init__(self, table: pd.DataFrame) -> None:
        self.data = table

    def _repr_html_(self) -> str:
        bars = self.data.style.format("{:.2f}").bar(color="#56B4E9", vmin=0, vmax=1, width=90)
        return str(bars.set_uuid("scores").to_html())

    def __repr__(self) -> str:
        return str(self.data.round(2).to_string())


def _scores(scorer: Scorer, sentences: Sequence[str]) -> _Bars:
    table = scorer.score(sentences).T.rename_axis("criterion")
    table.columns = [f"{number}. {_cut(sentence)}" for number, sentence in enumerate(sentences, start=1)]
    return _Bars(table)


def _cut(sentence: str, longest: int = 40) -> str:
    return sentence if len(sentence) <= longest else sentence[: longest - 1].rstrip() + "…"


def _table(table: pd.DataFrame) -> pd.DataFrame:
    return table.set_axis(range(1, len(table) + 1), axis=0)
