"""Views of data and predictions, without a front end as they begin: pairs, a threshold to move, errors, sentences to score."""

from __future__ import annotations

import hashlib
import html
import textwrap
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Any

import ipywidgets
import pandas as pd
from IPython.display import display

from evbind_lib.config.paths import workspace, write_whole
from evbind_lib.data.corpus import Corpus
from evbind_lib.errors import EvbindError
from evbind_lib.evaluation.estimate import confident_errors
from evbind_lib.notebook.front_end import has_front_end, show_figure
from evbind_lib.notebook.show import show
from evbind_lib.plots.validation import thresholds

if TYPE_CHECKING:
    from evbind_lib.evaluation.model import EvidenceModel

EVERY = "every criterion"
MOST_ROWS = 25


def browse_pairs(corpus: Corpus) -> None:
    """Show labelled pairs by criterion, label, length and words, of a sensitive corpus without ids and texts; or just ten."""
    texts = corpus.pairs["sentence"]
    shown = ["criterion_id", "label", "words"]
    shown = shown if corpus.sensitive else ["post_id", "sentence_id", *shown, "sentence"]
    pairs = corpus.pairs.assign(words=texts.str.count(r"\S+"))[shown]
    longest = int(pairs["words"].max())

    def view(criterion: str, label: str, words: tuple[int, int], text: str) -> None:
        wanted = pairs["criterion_id"].eq(criterion) | (criterion == EVERY)
        wanted &= pairs["label"].eq(int(label == "evidence")) | (label == "both")
        wanted &= pairs["words"].between(*words) & texts.str.contains(text, case=False, regex=False)
        found = pairs[wanted]
        below = f", the first {MOST_ROWS} below" if len(found) > MOST_ROWS else ""
        display(ipywidgets.HTML(f"<b>{len(found)} pairs</b>, {found['label'].sum()} of them evidence{below}"))
        _show_table(found, MOST_ROWS)

    words = ipywidgets.IntRangeSlider(value=(0, longest), min=0, max=longest, continuous_update=False)
    labels = ["both", "evidence", "no evidence"]
    _browse(pairs, view, criterion=[EVERY, *corpus.criteria], label=labels, words=words, text="")


def browse_errors(predictions: pd.DataFrame, corpus: Corpus, *, threshold: float = 0.5) -> None:
    """Show wrong decisions, the surest first, by kind and criterion, of a sensitive corpus without ids and texts; or just ten."""
    errors = confident_errors(predictions, threshold, most=len(predictions))
    if corpus.sensitive:
        content = predictions.to_csv(index=False).encode()
        file = f"runs/predictions_{hashlib.sha256(content).hexdigest()[:8]}.csv"  # equal ones have the same name again
        write_whole(workspace() / file, content)
        errors = errors.drop(columns=["post_id", "sentence_id"]).rename(columns={"row": (row := f"row of {file}")})
        errors[row] += 2  # as editors count the lines, of which the first is the header
        if has_front_end():
            _open_rows(predictions)
    else:
        known = pd.concat([corpus.pairs, corpus.sentences])[["post_id", "sentence_id", "sentence"]]
        errors = errors.drop(columns="row").merge(known.drop_duplicates(["post_id", "sentence_id"]), how="left")
    errors["probability"] = errors["probability"].map("{:.2f}".format)

    def view(kind: str, criterion: str) -> None:
        wanted = errors["kind"].eq(kind) | (kind == "both")
        wanted &= errors["criterion_id"].eq(criterion) | (criterion == EVERY)
        display(ipywidgets.HTML(f"<b>{wanted.sum()} errors</b>, the surest first"))
        _show_table(errors[wanted], MOST_ROWS)

    _browse(errors, view, kind=["both", "missed", "false alarm"], criterion=[EVERY, *corpus.criteria])


def _open_rows(predictions: pd.DataFrame) -> None:
    """Show a box for a row's number; the ids in it go to the front end alone, and into no output that is stored."""
    ids = ["", *("post {}, sentence {}".format(*row) for row in predictions[["post_id", "sentence_id"]].to_numpy())]
    number, found = ipywidgets.BoundedIntText(min=1, max=len(ids), description="open row"), ipywidgets.HTML()
    ipywidgets.dlink((number, "value"), (found, "value"), lambda row: html.escape(ids[row - 1]))
    display(ipywidgets.HBox([number, found]))


def try_thresholds(predictions: pd.DataFrame, threshold: float = 0.5) -> None:
    """Show what a threshold does, as `plots.thresholds` of such predictions does, with a slider in a front end."""
    looks = {"description": "threshold", "layout": {"width": "60%"}, "continuous_update": False}
    slider = ipywidgets.FloatSlider(threshold, min=0.01, max=0.99, step=0.01, **looks)
    if has_front_end():
        display(slider)
    place = show_figure(thresholds(predictions, threshold))
    slider.observe(lambda change: show_figure(thresholds(predictions, change["new"]), place), names="value")


def show_scores(model: EvidenceModel, examples: Sequence[str]) -> None:
    """Show the probability of evidence for each criterion, of sentences to type or paste; at first of the examples."""
    if not has_front_end():
        _show_probabilities(model, examples)
        return
    layout = {"width": "95%", "height": "7em"}
    box = ipywidgets.Textarea("\n".join(examples), placeholder="one sentence in each line", layout=layout)
    button = ipywidgets.Button(description="Score", button_style="primary", icon="calculator")
    output = ipywidgets.Output()

    @output.capture(clear_output=True, wait=True)
    def score(_: Any) -> None:
        lines = [line for line in box.value.splitlines() if line.strip()] or [""]  # which is refused
        try:
            _show_probabilities(model, lines)
        except EvbindError as error:
            display(ipywidgets.HTML(html.escape(str(error))))

    button.on_click(score)
    display(ipywidgets.VBox([box, button, output]))
    score(None)


def _show_probabilities(model: EvidenceModel, sentences: Sequence[str]) -> None:
    """Show a table with a bar in each cell; plain text where no page is shown, which pandas' styled table is not."""
    from evbind_lib.evaluation.scoring import score_sentences

    heads = [f"{number}. {textwrap.shorten(text, 40, placeholder='…')}" for number, text in enumerate(sentences, 1)]
    table = score_sentences(model, sentences).T.rename_axis("criterion").set_axis(heads, axis=1)
    bars = table.style.format("{:.2f}").bar(color="#56B4E9", vmin=0, vmax=1, width=90).set_uuid("scores")
    # Ids and sentences; unlike a DataFrame, a styled table is not escaped.
    bars = bars.format_index(escape="html", axis=0).format_index(escape="html", axis=1)
    display({"text/plain": table.round(2).to_string(), "text/html": bars.to_html()}, raw=True)


def _browse(table: pd.DataFrame, view: Callable[..., None], **controls: Any) -> None:
    """Show controls, named as the view's arguments are, above the output of the view; without a front end ten rows."""
    if has_front_end():
        display(ipywidgets.interactive(view, **controls))
    else:
        _show_table(table, 10)


def _show_table(table: pd.DataFrame, most: int) -> None:
    """Show the first rows, counted from 1, sentences whole."""
    show(table.head(most).set_axis(range(1, min(most, len(table)) + 1), axis=0))
