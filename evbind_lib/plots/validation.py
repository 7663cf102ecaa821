"""Figures of a cross-validation: scores of the folds, learning curves, curves of thresholds, confusion matrix.

Imports `metrics` and `reports`; `plots` gives its functions on.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
import pandas as pd
import plotly.graph_objects as go
from plotly.subplots import make_subplots
from sklearn import metrics as sklearn_metrics

from evbind_lib.plots.style import GREY, PALETTE, sentence, styled
from evbind_lib.training.metrics import SCORES, THRESHOLD
from evbind_lib.training.result import CrossValidation, FoldResult

MOST_POINTS = 1000  # of a curve; more cannot be seen and makes notebooks heavy


def fold_scores(result: CrossValidation, metrics: Sequence[str] = SCORES) -> go.Figure:
    """Score of each fold and their mean, for each metric.

    Parameters
    ----------
    result : CrossValidation
    metrics : sequence of str
        Names of `evbind_lib.training.metrics.METRICS`; by default those that lie between 0 and 1.

    Returns
    -------
    plotly.graph_objects.Figure
        How far the dots lie apart is how far a single split could mislead.
    """
    places = np.arange(len(metrics), dtype=float)
    figure = go.Figure()
    for position, report in enumerate(result.folds):
        shift = 0.07 * (position - (len(result.folds) - 1) / 2)
        values = [report.metrics[name] for name in metrics]
        look = {"color": PALETTE[position % len(PALETTE)], "size": 9, "symbol": position % 8}
        figure.add_scatter(x=places + shift, y=values, mode="markers", name=f"fold {report.fold + 1}", marker=look)
    means = [float(np.mean([report.metrics[name] for report in result.folds])) for name in metrics]
    bar = {"symbol": "line-ew-open", "size": 44, "color": "#444444", "line": {"width": 3, "color": "#444444"}}
    figure.add_scatter(x=places, y=means, mode="markers", name="mean", marker=bar)
    figure.update_traces(customdata=list(metrics), hovertemplate="%{customdata}: %{y:.4f}")
    figure.update_xaxes(tickvals=places, ticktext=list(metrics), showgrid=False, range=[-0.6, len(metrics) - 0.4])
    return styled(figure, f"Scores of {len(result.folds)} folds", x="metric", y="score (0 to 1)")


def learning_curves(folds: Sequence[FoldResult], metric: str = "macro_f1") -> go.Figure:
    """Training loss and validation metric after each epoch, one line per fold.

    Parameters
    ----------
    folds : sequence of FoldResult
    metric : str

    Returns
    -------
    plotly.graph_objects.Figure
        A metric that falls while the loss falls on is overfitting; one that still rises asks for more epochs.
    """
    figure = make_subplots(rows=1, cols=2, horizontal_spacing=0.12)
    for position, report in enumerate(folds):
        epochs = [epoch.epoch for epoch in report.epochs]
        losses = [epoch.training_loss for epoch in report.epochs]
        values = [epoch.metrics[metric] for epoch in report.epochs]
        for column, numbers in enumerate((losses, values), start=1):
            figure.add_scatter(
                x=epochs,
                y=numbers,
                mode="lines+markers",
                name=f"fold {report.fold + 1}",
                legendgroup=str(report.fold),
                showlegend=column == 1,
                line={"color": PALETTE[position % len(PALETTE)]},
                marker={"size": 6, "symbol": position % 8},
                row=1,
                col=column,
            )
    most = max((len(report.epochs) for report in folds), default=0)
    figure.update_xaxes(title_text="epoch", dtick=max(1, math.ceil(most / 10)))
    figure.update_yaxes(title_text="training loss (mean of the epoch)", col=1)
    figure.update_yaxes(title_text=f"validation {metric}", col=2)
    return styled(figure, "Learning curves", x=None, y=None)


def precision_recall(predictions: pd.DataFrame) -> go.Figure:
    """Precision against recall over all thresholds, by fold and for all out-of-fold predictions together.

    Parameters
    ----------
    predictions : pandas.DataFrame
        Columns fold, label (1 is evidence) and probability.

    Returns
    -------
    plotly.graph_objects.Figure
        Average precision in the legend; the dotted line is what chance would reach.
    """

    def curve(part: pd.DataFrame) -> tuple[np.ndarray, np.ndarray, float]:
        label, probability = part["label"].to_numpy(), part["probability"].to_numpy()
        precision, recall, _ = sklearn_metrics.precision_recall_curve(label, probability, drop_intermediate=True)
        return recall, precision, float(sklearn_metrics.average_precision_score(label, probability))

    share = float(predictions["label"].mean()) if len(predictions) else math.nan
    chance = {"x": [0, 1], "y": [share, share], "name": f"chance ({share:.3f})"}
    figure = _curves("Precision and recall", predictions, curve, chance, score="average precision", shape="hv")
    return styled(figure, None, x="recall: share of evidence found", y="precision: share of calls that are right")


def roc(predictions: pd.DataFrame) -> go.Figure:
    """Receiver operating characteristic, by fold and for all out-of-fold predictions together.

    Parameters
    ----------
    predictions : pandas.DataFrame
        Columns fold, label (1 is evidence) and probability.

    Returns
    -------
    plotly.graph_objects.Figure
        Area under the curve in the legend; the dotted line is chance.
    """

    def curve(part: pd.DataFrame) -> tuple[np.ndarray, np.ndarray, float]:
        label, probability = part["label"].to_numpy(), part["probability"].to_numpy()
        false_alarms, found, _ = sklearn_metrics.roc_curve(label, probability)
        return false_alarms, found, float(sklearn_metrics.roc_auc_score(label, probability))

    chance = {"x": [0, 1], "y": [0, 1], "name": "chance (0.500)"}
    figure = _curves("Receiver operating characteristic", predictions, curve, chance, score="AUC", shape="linear")
    return styled(figure, None, x="false positive rate: share of the others called", y="true positive rate (recall)")


def confusion_matrix(predictions: pd.DataFrame, threshold: float = THRESHOLD) -> go.Figure:
    """Draw the counts of right and wrong calls, and their share of each row.

    Parameters
    ----------
    predictions : pandas.DataFrame
        Columns label (1 is evidence) and probability.
    threshold : float
        From this probability on a pair is called evidence.

    Returns
    -------
    plotly.graph_objects.Figure
    """
    called = (predictions["probability"].to_numpy() >= threshold).astype(int)
    counts = sklearn_metrics.confusion_matrix(predictions["label"].to_numpy(), called, labels=[0, 1])
    totals = counts.sum(axis=1, keepdims=True)
    shares = np.divide(counts, totals, out=np.zeros(counts.shape), where=totals > 0)
    names = ["no evidence", "evidence"]
    text = [
        [f"{count:,}<br>{share:.1%} of row" for count, share in zip(*row, strict=True)]
        for row in zip(counts, shares, strict=True)
    ]
    figure = go.Figure(
        go.Heatmap(
            z=shares,
            x=names,
            y=names,
            text=text,
            customdata=counts,
            texttemplate="%{text}",
            textfont={"size": 17},
            hovertemplate="annotated %{y}, called %{x}: %{customdata}<extra></extra>",
            colorscale="Blues",
            zmin=0,
            zmax=1,
            xgap=3,
            ygap=3,
            colorbar={
                "title": {"text": "share of row", "side": "right"},
                "tickformat": ".0%",
                "thickness": 14,
            },
        )
    )
    figure.update_yaxes(autorange="reversed", showgrid=False)
    figure.update_xaxes(showgrid=False)
    return styled(figure, f"Confusion matrix at threshold {threshold:g}", x="called", y="annotated")


def _curves(
    title: str,
    predictions: pd.DataFrame,
    curve: Callable[[pd.DataFrame], tuple[np.ndarray, np.ndarray, float]],
    chance: dict[str, Any],
    *,
    score: str,
    shape: str,
) -> go.Figure:
    if predictions["label"].nunique() < 2:
        return sentence(title, "A curve needs pairs with and without evidence.")
    figure = go.Figure()
    for position, (fold, part) in enumerate(predictions.groupby("fold", sort=True)):
        if part["label"].nunique() == 2:
            x, y, value = curve(part)
            x, y = _thinned(x, y)
            line = {"color": PALETTE[position % 6], "width": 1.2, "shape": shape}
            figure.add_scatter(
                x=x, y=y, mode="lines", line=line, opacity=0.8, name=f"fold {int(str(fold)) + 1}: {value:.3f}"
            )
    x, y, value = curve(predictions)
    x, y = _thinned(x, y)
    line = {"color": "#222222", "width": 3.5, "shape": shape}
    figure.add_scatter(x=x, y=y, mode="lines", line=line, name=f"<b>all folds: {value:.3f}</b>")
    figure.add_scatter(mode="lines", line={"color": GREY, "dash": "dot", "width": 1.5}, hoverinfo="skip", **chance)
    figure.update_traces(hovertemplate="%{x:.3f}, %{y:.3f}", selector={"mode": "lines", "hoverinfo": None})
    figure.update_xaxes(range=[-0.01, 1.01])
    figure.update_yaxes(range=[-0.01, 1.03])
    return figure.update_layout(title_text=title, legend_title_text=score)


def _thinned(x: np.ndarray, y: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Points of a curve, no more than can be seen."""
    if len(x) <= MOST_POINTS:
        return x, y
    kept = np.unique(np.linspace(0, len(x) - 1, MOST_POINTS).round().astype(int))
    return x[kept], y[kept]
