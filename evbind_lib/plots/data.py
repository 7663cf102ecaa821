"""Figures of the data before any training: classes, folds, lengths.

Imports nothing of the library but its look; `plots` gives its functions on.
"""

from __future__ import annotations

import numpy as np
import pandas as pd
import plotly.graph_objects as go
from plotly.subplots import make_subplots

from evbind_lib.plots.style import BLUE, ORANGE, SKY, VERMILION, styled


def class_balance(support: pd.DataFrame) -> go.Figure:
    """Evidence and explicit negatives of each criterion.

    Parameters
    ----------
    support : pandas.DataFrame
        As `evbind_lib.data.corpus.Corpus.support` gives it.

    Returns
    -------
    plotly.graph_objects.Figure
        A criterion with little evidence cannot be scored well, whatever the model.
    """
    ordered = support.sort_values("evidence", kind="stable")
    figure = go.Figure()
    for column, colour in (("evidence", BLUE), ("explicit negatives", ORANGE)):
        figure.add_bar(
            y=ordered.index.tolist(),
            x=ordered[column].tolist(),
            name=column,
            orientation="h",
            marker_color=colour,
            text=ordered[column].tolist(),
            textposition="inside",
            insidetextanchor="middle",
        )
    figure.update_layout(barmode="stack", legend={"traceorder": "normal"})
    figure.update_yaxes(automargin=True)
    height = 140 + 28 * len(ordered)
    return styled(figure, "Annotated pairs of each criterion", x="pairs", y=None, height=height)


def fold_balance(balance: pd.DataFrame) -> go.Figure:
    """Annotated pairs and share of evidence in the validation part of each fold.

    Parameters
    ----------
    balance : pandas.DataFrame
        As `evbind_lib.data.folds.balance` gives it.

    Returns
    -------
    plotly.graph_objects.Figure
    """
    folds = [str(fold) for fold in balance.index]
    figure = make_subplots(rows=1, cols=2, horizontal_spacing=0.14)
    counts = {"evidence": balance["evidence"], "no evidence": balance["annotated pairs"] - balance["evidence"]}
    for (name, values), colour in zip(counts.items(), (BLUE, ORANGE), strict=True):
        figure.add_bar(x=folds, y=values.tolist(), name=name, marker_color=colour, row=1, col=1)
    share = balance["share of evidence"].tolist()
    figure.add_scatter(
        x=folds, y=share, mode="markers", marker={"size": 11, "color": VERMILION}, name="share", row=1, col=2
    )
    figure.add_hline(y=float(np.mean(share)), line={"dash": "dot", "color": "#767676"}, row=1, col=2)
    figure.update_layout(barmode="stack")
    figure.update_yaxes(title_text="annotated pairs", col=1)
    figure.update_yaxes(title_text="share of evidence", range=[0, 1], col=2)
    return styled(figure, "Validation part of each fold", x="fold", y=None, height=360)


def lengths(table: pd.DataFrame, max_length: int) -> go.Figure:
    """Distribution of lengths: words of the sentence, and word pieces of the pair with the cut of ``max_length``.

    Parameters
    ----------
    table : pandas.DataFrame
        As `evbind_lib.notebook.overview.pair_lengths` gives it.
    max_length : int
        Word pieces that a pair may have.

    Returns
    -------
    plotly.graph_objects.Figure
    """
    figure = make_subplots(rows=1, cols=2, horizontal_spacing=0.12)
    for column, (name, colour) in enumerate({"words": SKY, "pieces": BLUE}.items(), start=1):
        counts = table[name].value_counts().sort_index()
        figure.add_bar(
            x=counts.index.tolist(),
            y=counts.tolist(),
            marker_color=colour,
            showlegend=False,
            name=name,
            row=1,
            col=column,
        )
    longest = int(table["pieces"].max())
    if max_length <= 1.5 * longest:
        figure.add_vline(x=max_length, line={"dash": "dot", "color": VERMILION}, row=1, col=2)
    share = table["truncated"].mean()
    figure.update_xaxes(title_text="words of the sentence", col=1)
    figure.update_xaxes(title_text=f"word pieces of the pair (cut at {max_length}: {share:.1%})", col=2)
    return styled(figure, "Lengths of labelled pairs", x=None, y="pairs", height=360)
