"""Views of data and predictions: pairs to browse, a threshold to move, errors to read, sentences to score."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import TYPE_CHECKING, Any

import ipywidgets
import pandas as pd
import plotly.graph_objects as go
from IPython.display import display

from evbind_lib.data.corpus import Corpus
from evbind_lib.errors import EvbindError
from evbind_lib.evaluation.estimate import confident_errors
from evbind_lib.notebook.front_end import has_front_end, show
from evbind_lib.notebook.overview import browse
from evbind_lib.plots.validation import thresholds

if TYPE_CHECKING:
    from evbind_lib.evaluation.final import EvidenceModel

EVERY = "every criterion"
MOST_ROWS = 25
WIDE = {"description_width": "7em"}


def browse_pairs(corpus: Corpus) -> None:
    """Show labelled pairs by criterion, label, length and words in them; without a front end the first ten."""
    if not has_front_end():
        _show_table(browse(corpus).head(10))
        return
    longest = int(browse(corpus)["words"].max())

    def view(criterion: str, label: str, words: tuple[int, int], text: str) -> None:
        found = browse(
            corpus,
            criterion=None if criterion == EVERY else criterion,
            label={"evidence": 1, "no evidence": 0}.get(label),
            words=words,
            text=text,
        )
        shown = f", the first {MOST_ROWS} below" if len(found) > MOST_ROWS else ""
        display(ipywidgets.HTML(f"<b>{len(found)} pairs</b>, {int(found['label'].sum())} of them evidence{shown}"))
        _show_table(found.head(MOST_ROWS))

    words = ipywidgets.IntRangeSlider(value=(0, longest), min=0, max=longest, style=WIDE, continuous_update=False)
    _interact(
        view,
        criterion=ipywidgets.Dropdown(options=[EVERY, *corpus.criteria], style=WIDE),
        label=ipywidgets.ToggleButtons(options=["both", "evidence", "no evidence"], style=WIDE),
        words=words,
        text=ipywidgets.Text(placeholder="a word or part of one", style=WIDE),
    )


def try_thresholds(predictions: pd.DataFrame, threshold: float = 0.5) -> None:
    """Show precision, recall, F1 and confusion matrix of out-of-fold predictions, with a slider in a front end."""
    figure = thresholds(predictions, threshold)
    if not has_front_end():
        show(figure)
        return
    shown = go.FigureWidget(figure)
    slider = ipywidgets.FloatSlider(
        value=threshold, min=0.01, max=0.99, step=0.01, description="threshold", style=WIDE, layout={"width": "60%"}
    )

    def move(change: Mapping[str, Any]) -> None:
        moved = thresholds(predictions, change["new"])
        with shown.batch_update():
            shown.layout.title.text = moved.layout.title.text
            shown.layout.shapes = moved.layout.shapes
            shown.data[-1].update(z=moved.data[-1].z, text=moved.data[-1].text)

    slider.observe(move, names="value")
    display(ipywidgets.VBox([slider, shown]))


def browse_errors(predictions: pd.DataFrame, corpus: Corpus, *, threshold: float = 0.5) -> None:
    """Show wrong decisions, the surest first, by kind and criterion; without a front end the first ten.

    Sentences are shown beside the ids unless the corpus is sensitive.
    """
    errors = confident_errors(predictions, threshold, most=len(predictions))
    if not corpus.sensitive:
        known = pd.concat([corpus.pairs, corpus.sentences])[["post_id", "sentence_id", "sentence"]]
        known = known.drop_duplicates(["post_id", "sentence_id"])
        errors = errors.merge(known, on=["post_id", "sentence_id"], how="left")
    errors = errors.assign(probability=errors["probability"].map("{:.2f}".format))
    if not has_front_end():
        _show_table(errors.head(10))
        return

    def view(kind: str, criterion: str) -> None:
        wanted = errors["kind"].isin(["missed", "false alarm"] if kind == "both" else [kind])
        if criterion != EVERY:
            wanted &= errors["criterion_id"] == criterion
        display(ipywidgets.HTML(f"<b>{wanted.sum()} errors</b>, the surest first"))
        _show_table(errors[wanted].head(MOST_ROWS))

    _interact(
        view,
        kind=ipywidgets.ToggleButtons(options=["both", "missed", "false alarm"], style=WIDE),
        criterion=ipywidgets.Dropdown(options=[EVERY, *corpus.criteria], style=WIDE),
    )


def show_scores(model: EvidenceModel, examples: Sequence[str]) -> None:
    """Show the probability of evidence for each criterion, of sentences to type or paste; without a front end of the examples."""
    if not has_front_end():
        display(_scores(model, examples))
        return
    layout = {"width": "95%", "height": "7em"}
    box = ipywidgets.Textarea(value="\n".join(examples), placeholder="one sentence in each line", layout=layout)
    button = ipywidgets.Button(description="Score", button_style="primary", icon="calculator")
    output = ipywidgets.Output()

    def score(_: Any) -> None:
        lines = [line for line in box.value.splitlines() if line.strip()]
        output.clear_output(wait=True)
        with output:
            try:
                display(_scores(model, lines) if lines else ipywidgets.HTML("Type a sentence first."))
            except EvbindError as error:
                display(ipywidgets.HTML(str(error)))

    button.on_click(score)
    display(ipywidgets.VBox([box, button, output]))
    score(None)


class _Bars:
    """Table of probabilities with a bar in each cell; plain text where no page is shown, which pandas' styled table is not."""

    def __init__(self, table: pd.DataFrame) -> None:
        self.data = table

    def _repr_html_(self) -> str:
        bars = self.data.style.format("{:.2f}").bar(color="#56B4E9", vmin=0, vmax=1, width=90)
        return str(bars.set_uuid("scores").to_html())

    def __repr__(self) -> str:
        return str(self.data.round(2).to_string())


def _scores(model: EvidenceModel, sentences: Sequence[str]) -> _Bars:
    from evbind_lib.evaluation.final import score_sentences

    table = score_sentences(model, sentences).T.rename_axis("criterion")
    table.columns = [f"{number}. {_cut(sentence)}" for number, sentence in enumerate(sentences, start=1)]
    return _Bars(table)


def _cut(sentence: str, longest: int = 40) -> str:
    return sentence if len(sentence) <= longest else sentence[: longest - 1].rstrip() + "…"


def _interact(view: Callable[..., None], **controls: ipywidgets.Widget) -> None:
    """Show controls, named as the view's arguments are, above the output of the view."""
    for name, control in controls.items():
        control.description = name
    display(ipywidgets.VBox([*controls.values(), ipywidgets.interactive_output(view, controls)]))


def _show_table(table: pd.DataFrame) -> None:
    """Show rows counted from 1, sentences whole."""
    with pd.option_context("display.max_colwidth", None):
        display(table.set_axis(range(1, len(table) + 1), axis=0))
