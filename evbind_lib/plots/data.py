"""Figures of the data before any training: classes, folds, lengths."""

import pandas as pd
import plotly.graph_objects as go
from plotly.subplots import make_subplots

from evbind_lib.plots.style import BLUE, GREY, ORANGE, SKY, VERMILION, styled


def class_balance(support: pd.DataFrame) -> go.Figure:
    """Evidence and annotated negatives of each criterion, from `Corpus.support`; with little evidence none can be scored well."""
    ordered = support.sort_values("evidence", kind="stable")
    figure = go.Figure()
    look = {"orientation": "h", "textposition": "inside", "insidetextanchor": "middle"}
    for column, shade in (("evidence", BLUE), ("explicit negatives", ORANGE)):
        counts = ordered[column].tolist()
        figure.add_bar(x=counts, y=ordered.index.tolist(), text=counts, name=column, marker_color=shade, **look)
    figure.update_layout(barmode="stack", legend_traceorder="normal", yaxis_ticksuffix="  ")
    caption = f"{ordered['evidence'].sum():,} pairs with evidence, {ordered['explicit negatives'].sum():,} without"
    return styled(figure, "Annotated pairs of each criterion", caption, x="pairs", height=170 + 28 * len(ordered))


def fold_balance(balance: pd.DataFrame) -> go.Figure:
    """Annotated pairs and fraction of evidence by fold, from `evbind_lib.data.folds.balance`; dotted is that of all folds."""
    folds, pairs, evidence = list(map(str, balance.index)), balance["annotated pairs"], balance["evidence"]
    figure = make_subplots(cols=2, horizontal_spacing=0.14)
    for name, counts, shade in (("evidence", evidence, BLUE), ("no evidence", pairs - evidence, ORANGE)):
        figure.add_bar(x=folds, y=counts.tolist(), name=name, marker_color=shade, row=1, col=1)
    look = {"mode": "markers", "marker": {"size": 11, "color": VERMILION}, "showlegend": False}
    figure.add_scatter(x=folds, y=(evidence / pairs.clip(lower=1)).tolist(), **look, row=1, col=2)
    figure.add_hline(y=float(evidence.sum() / max(pairs.sum(), 1)), line={"dash": "dot", "color": GREY}, row=1, col=2)
    fraction = {"title_text": "fraction of evidence", "range": [0, 1]}
    figure.update_layout(barmode="stack", yaxis_title_text="annotated pairs", yaxis2=fraction)
    caption = f"{len(folds)} folds, {pairs.sum():,} annotated pairs"
    return styled(figure, "Validation part of each fold", caption, x="fold", height=380)


def lengths(table: pd.DataFrame, max_length: int) -> go.Figure:
    """Lengths, from `evbind_lib.notebook.overview.pair_lengths`; pairs beyond ``max_length``, the dotted line, are cut."""
    figure = make_subplots(cols=2, horizontal_spacing=0.12)
    for column, (name, shade) in enumerate({"words": SKY, "tokens": BLUE}.items(), start=1):
        counts = table[name].value_counts().sort_index()
        figure.add_bar(x=counts.index, y=counts, name=name, marker_color=shade, showlegend=False, row=1, col=column)
    if max_length <= 1.5 * table["tokens"].max():
        figure.add_vline(x=max_length, line={"dash": "dot", "color": VERMILION}, row=1, col=2)
    figure.update_layout(xaxis_title_text="words of the sentence", xaxis2_title_text="tokens of the pair")
    caption = f"{len(table):,} pairs, {table['truncated'].mean():.1%} of them cut at {max_length} tokens"
    return styled(figure, "Lengths of labelled pairs", caption, y="pairs", height=380)
