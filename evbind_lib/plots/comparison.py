"""Figures that set several models side by side, and one that shows what a threshold does.

Imports `estimate`, `metrics` and `reports`; `plots` gives its functions on.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np
import pandas as pd
import plotly.graph_objects as go
from plotly.subplots import make_subplots
from sklearn import metrics as sklearn_metrics

from evbind_lib.evaluation.estimate import at_threshold
from evbind_lib.plots.style import BLUE, GREEN, ORANGE, PALETTE, VERMILION, styled
from evbind_lib.training.result import CrossValidation

SHOWN = ("macro_f1", "pos_f1", "roc_auc", "pr_auc")
GRID = np.round(np.arange(0.0, 1.005, 0.01), 2)


def folds_side_by_side(results: Mapping[str, CrossValidation], metrics: Sequence[str] = SHOWN) -> go.Figure:
    """Score of each fold and their mean, for several models.

    Parameters
    ----------
    results : mapping of str to CrossValidation
        On the same folds.
    metrics : sequence of str

    Returns
    -------
    plotly.graph_objects.Figure
        A model is better where its dots lie higher fold by fold, not only on average.
    """
    figure = go.Figure()
    n = len(results)
    for position, (name, result) in enumerate(results.items()):
        shift = (position - (n - 1) / 2) * 0.8 / n
        colour = PALETTE[position % len(PALETTE)]
        dots_x, dots_y, means, hover = [], [], [], []
        for place, metric in enumerate(metrics):
            values = [report.metrics[metric] for report in result.folds]
            spread = np.linspace(-0.25, 0.25, len(values)) * 0.8 / n
            dots_x += (place + shift + spread).tolist()
            dots_y += values
            hover += [f"{metric}, fold {report.fold + 1}" for report in result.folds]
            means.append(float(np.mean(values)))
        look = {"color": colour, "size": 8, "symbol": position}
        hovering = "%{customdata}: %{y:.4f}"
        figure.add_scatter(
            x=dots_x, y=dots_y, customdata=hover, hovertemplate=hovering, mode="markers", name=name, marker=look
        )
        bar = {"symbol": "line-ew-open", "size": 90 / n, "color": colour, "line": {"width": 3, "color": colour}}
        places = [place + shift for place in range(len(metrics))]
        figure.add_scatter(
            x=places,
            y=means,
            mode="markers",
            marker=bar,
            showlegend=False,
            name=f"{name}, mean",
            hovertemplate="mean: %{y:.4f}",
        )
    figure.update_xaxes(tickvals=list(range(len(metrics))), ticktext=list(metrics), showgrid=False)
    figure.update_layout(legend={"orientation": "h", "y": -0.18})
    return styled(figure, "Scores of the folds: a dot each, a bar at the mean", x=None, y="score (0 to 1)", height=460)


def precision_recall_side_by_side(predictions: Mapping[str, pd.DataFrame]) -> go.Figure:
    """Precision against recall of several models, over all out-of-fold predictions.

    Parameters
    ----------
    predictions : mapping of str to pandas.DataFrame
        Columns label and probability.

    Returns
    -------
    plotly.graph_objects.Figure
    """
    figure = go.Figure()
    for position, (name, table) in enumerate(predictions.items()):
        label, probability = table["label"].to_numpy(), table["probability"].to_numpy()
        precision, recall, _ = sklearn_metrics.precision_recall_curve(label, probability, drop_intermediate=True)
        score = float(sklearn_metrics.average_precision_score(label, probability))
        line = {"color": PALETTE[position % len(PALETTE)], "shape": "hv", "width": 2.5}
        figure.add_scatter(x=recall, y=precision, mode="lines", name=f"{name} ({score:.3f})", line=line)
    figure.update_xaxes(range=[0, 1.01])
    figure.update_yaxes(range=[0, 1.03])
    title = "Precision and recall (average precision in brackets)"
    return styled(
        figure, title, x="recall: share of evidence found", y="precision: share of calls that are right", height=460
    )


def criteria_side_by_side(tables: Mapping[str, pd.DataFrame], score: str = "pos_f1") -> go.Figure:
    """One score of each criterion, for several models.

    Parameters
    ----------
    tables : mapping of str to pandas.DataFrame
        As `evbind_lib.evaluation.estimate.by_criterion` gives them.
    score : str
        One of their columns.

    Returns
    -------
    plotly.graph_objects.Figure
        Criteria with the most evidence on top; few pieces of evidence make a score jump. A model that scores zero
        throughout is left out, and the others keep the colours that they have in the other figures.
    """
    figure = go.Figure()
    first = next(iter(tables.values()))
    order = first.index[::-1].tolist()
    labels = [f"{name} ({first.loc[name, 'evidence']})" for name in order]
    for position, (name, table) in enumerate(tables.items()):
        if not table[score].any():
            continue
        look = {"size": 11, "color": PALETTE[position % len(PALETTE)], "symbol": position}
        figure.add_scatter(
            x=table.loc[order, score].tolist(),
            y=labels,
            mode="markers",
            name=name,
            marker=look,
            hovertemplate="%{y}: %{x:.3f}",
        )
    figure.update_yaxes(automargin=True)
    figure.update_xaxes(range=[-0.02, 1.02])
    figure.update_layout(legend={"orientation": "h", "y": -0.22})
    height = 200 + 26 * len(order)
    return styled(figure, f"{score} of each criterion (pieces of evidence in brackets)", x=score, y=None, height=height)


def thresholds(predictions: pd.DataFrame, threshold: float = 0.5) -> go.Figure:
    """Precision, recall and F1 over all thresholds, and the decisions at one of them.

    Parameters
    ----------
    predictions : pandas.DataFrame
        Columns label and probability.
    threshold : float
        The one that is marked, and whose confusion matrix is shown.

    Returns
    -------
    plotly.graph_objects.Figure
        Left the curves, right the counts: rows are the truth.
    """
    figure = make_subplots(rows=1, cols=2, column_widths=[0.66, 0.34], horizontal_spacing=0.14)
    points = [at_threshold(predictions, float(value)) for value in GRID]
    lines = {"precision": BLUE, "recall": ORANGE, "pos_f1": GREEN}
    for (name, colour), dash in zip(lines.items(), ("solid", "dash", "dot"), strict=True):
        values = [point[name] for point in points]
        line = {"color": colour, "width": 2.5, "dash": dash}
        figure.add_scatter(x=GRID, y=values, mode="lines", name=name, line=line, row=1, col=1)
    figure.add_vline(x=threshold, line={"color": VERMILION, "width": 2}, row=1, col=1)
    now = at_threshold(predictions, threshold)
    counts = [[now["tn"], now["fp"]], [now["fn"], now["tp"]]]
    figure.add_heatmap(
        z=[[value / max(sum(row), 1) for value in row] for row in counts],
        x=["not called", "called"],
        y=["no evidence", "evidence"],
        text=counts,
        texttemplate="%{text}",
        textfont={"size": 16},
        colorscale="Blues",
        zmin=0,
        zmax=1.3,  # so that the dark end stays light enough for black numbers
        showscale=False,
        hovertemplate="%{y}, %{x}: %{text}<extra></extra>",
        row=1,
        col=2,
    )
    figure.update_xaxes(title_text="threshold on the probability of evidence", range=[0, 1], row=1, col=1)
    figure.update_yaxes(title_text="score (0 to 1)", range=[0, 1.02], row=1, col=1)
    figure.update_xaxes(title_text="decision (number of pairs)", row=1, col=2)
    figure.update_yaxes(autorange="reversed", row=1, col=2)
    figure.update_layout(legend={"orientation": "h", "y": -0.25})
    shown = f"precision {now['precision']:.3f}, recall {now['recall']:.3f}, F1 {now['pos_f1']:.3f}"
    figure = styled(figure, f"At threshold {threshold:.2f}: {shown}", x=None, y=None)
    figure.update_traces(selector={"type": "heatmap"}, textfont_color="#222222")
    return figure
