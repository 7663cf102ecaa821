"""Figures of a search and of a cross-validation by plotly, for notebooks, widgets and pages.

Those of a search are Optuna's own plots with the titles, names and units a reader needs. Every function
returns a figure and shows nothing; where there is too little to plot, the figure says so in a sentence.
Imports `metrics`; `notebook` and `widgets` import it.
"""

from __future__ import annotations

import itertools
import math
import warnings
from collections.abc import Callable, Sequence
from datetime import datetime
from typing import TYPE_CHECKING, Any

import numpy as np
import optuna
import pandas as pd
import plotly.graph_objects as go
from optuna.distributions import CategoricalDistribution, IntDistribution
from optuna.study import StudyDirection
from optuna.trial import FrozenTrial, TrialState
from plotly.colors import sample_colorscale
from plotly.subplots import make_subplots
from sklearn import metrics as sklearn_metrics

from evbind_lib.metrics import METRICS, THRESHOLD

if TYPE_CHECKING:
    from evbind_lib.training import CrossValidation, FoldReport

# Okabe and Ito's colours without the yellow, which is lost on white; told apart by colour-blind readers.
BLUE, ORANGE, GREEN, VERMILION, PURPLE, SKY, GREY = PALETTE = (
    "#0072B2",
    "#E69F00",
    "#009E73",
    "#D55E00",
    "#CC79A7",
    "#56B4E9",
    "#767676",
)
SCALE = "Cividis"  # even in lightness, and made for colour-blind readers
HEIGHT = 420  # pixels
MOST_POINTS = 1000  # of a curve; more cannot be seen and makes notebooks heavy

_SHORT = {"per_device_train_batch_size": "batch_size", "num_train_epochs": "epochs"}
_STATE_COLOURS = {"COMPLETE": BLUE, "PRUNED": ORANGE, "FAIL": VERMILION, "RUNNING": GREEN, "WAITING": GREY}


def optimisation_history(study: optuna.Study, metric: str | None = None) -> go.Figure:
    """Score of each trial and the best so far, in the order of the trials.

    Parameters
    ----------
    study : optuna.Study
    metric : str, optional
        Name on the axis; by default the study's own metric.

    Returns
    -------
    plotly.graph_objects.Figure
        A pruned trial is drawn, open, where it stood when it was stopped: a score of fewer folds.
    """
    title = "Score of each trial"
    if not _complete(study):
        return _sentence(title, "No trial is complete yet.")
    figure = _quietly(lambda: optuna.visualization.plot_optimization_history(study, target_name="score"))
    figure.data = [trace for trace in figure.data if trace.x is not None and len(trace.x)]
    for trace in figure.data:
        if trace.mode == "lines":
            trace.update(name="best so far", line={"color": ORANGE, "width": 2, "shape": "hv"})
        else:
            trace.update(name="complete", marker={"color": BLUE, "size": 8})
    pruned = [trial for trial in _trials(study, TrialState.PRUNED) if trial.intermediate_values]
    if pruned:
        values = [trial.intermediate_values[max(trial.intermediate_values)] for trial in pruned]
        marker = {"color": GREY, "size": 8, "symbol": "x-thin-open", "line": {"width": 2, "color": GREY}}
        numbers = [trial.number for trial in pruned]
        figure.add_scatter(x=numbers, y=values, mode="markers", name="pruned (fewer folds)", marker=marker)
    figure.update_xaxes(tickformat="d")
    return _styled(figure, title, x="trial", y=_score(study, metric))


def importances(study: optuna.Study) -> go.Figure:
    """Share of the score's variation that each searched parameter explains.

    Parameters
    ----------
    study : optuna.Study

    Returns
    -------
    plotly.graph_objects.Figure
        By Optuna's PED-ANOVA (Watanabe et al., IJCAI 2023), as in a search's summary; the same study gives
        the same bars.
    """
    title = "Importance of the parameters"
    if not _ranking(study):
        return _sentence(title, "Importances need two complete trials with different parameters and scores.")
    figure = _quietly(lambda: optuna.visualization.plot_param_importances(study, target_name="score"))
    figure.update_traces(marker={"color": BLUE}, showlegend=False)
    for bar in figure.data:
        bar.y = [_short(name, bar.y) for name in bar.y]
        bar.text = [f"{share:.0%}" if share >= 0.01 else "<1%" for share in bar.x]
        bar.hovertemplate = "%{y}: %{x:.1%}<extra></extra>"
    figure.update_xaxes(range=[0, 1.1 * max(max(bar.x) for bar in figure.data)], tickformat=".0%")
    figure.update_yaxes(automargin=True, ticksuffix="  ")
    rows = max(len(bar.y) for bar in figure.data)
    return _styled(figure, title, x="share of the score's variation", y="", height=150 + 34 * rows)


def parallel_coordinates(study: optuna.Study, metric: str | None = None) -> go.Figure:
    """Each complete trial as a line through its score and its parameters; the best one stands out.

    Parameters
    ----------
    study : optuna.Study
    metric : str, optional
        Name of the score; by default the study's own metric.

    Returns
    -------
    plotly.graph_objects.Figure
        Parameters searched on a log scale are drawn on one; ``None`` marks one that a trial did not have.
    """
    title = "Parameters and score of each trial"
    names = _parameters(study)
    if len(_complete(study)) < 2 or not names:
        return _sentence(title, "Parallel coordinates need two complete trials.")
    figure = _quietly(lambda: optuna.visualization.plot_parallel_coordinate(study, target_name="score"))
    labels = [metric or _metric_name(study), *(_short(name, names) for name in names)]
    lines = [trace for trace in figure.data if trace.mode == "lines"]
    minimised = study.direction == StudyDirection.MINIMIZE
    best = (min if minimised else max)(lines, key=lambda line: line.y[0])
    for line in lines:
        colour = sample_colorscale(SCALE, 1 - line.y[0] if minimised else line.y[0])[0]
        line.update(line={"color": colour, "width": 1.8}, opacity=0.75)
        line.customdata = [[label, cell[1]] for label, cell in zip(labels, line.customdata, strict=True)]
    best.update(line={"color": VERMILION, "width": 4}, opacity=1.0)
    others = [trace for trace in figure.data if trace is not best]
    figure.data = others  # plotly draws in this order, so the best goes last
    figure.add_trace(best)
    for trace in figure.data:
        if trace.mode == "markers":
            bar = {"title": {"text": "", "side": "right"}, "thickness": 12, "x": 1.01}
            trace.marker.update(colorscale=SCALE, reversescale=minimised, colorbar=bar)
    figure.update_xaxes(
        ticktext=[label.replace("_", "_<br>") for label in labels], side="bottom", automargin=True
    )
    figure.update_layout(annotations=[_readable(annotation) for annotation in figure.layout.annotations])
    styled = _styled(figure, f"{title} (best in red)", x=None, y=None, height=460)
    return styled.update_yaxes(visible=False).update_layout(margin={"l": 70, "b": 70})


def slices(study: optuna.Study, metric: str | None = None, *, columns: int = 4) -> go.Figure:
    """Score against each parameter by itself; the colour is the trial's number, later ones lighter.

    Parameters
    ----------
    study : optuna.Study
    metric : str, optional
        Name on the axis; by default the study's own metric.
    columns : int
        Panels side by side.

    Returns
    -------
    plotly.graph_objects.Figure
    """
    title = "Score against each parameter"
    names = _parameters(study)
    if not _complete(study) or not names:
        return _sentence(title, "No trial with a searched parameter is complete yet.")
    figure = _quietly(lambda: optuna.visualization.plot_slice(study, target_name="score"))
    numbers = [trial.number for trial in _complete(study)]  # one scale for all panels
    # Optuna names a choice by its repr, which puts quotes around words.
    for trace in figure.data:
        if trace.x is not None and len(trace.x) and isinstance(trace.x[0], str):
            trace.x = [label.strip("'") for label in trace.x]
        trace.marker.update(colorscale=SCALE, cmin=numbers[0], cmax=numbers[-1], size=8)
        if trace.marker.colorbar:
            trace.marker.colorbar.update(
                title={"text": "trial", "side": "right"}, x=1.0, xpad=10, thickness=12, tickformat="d"
            )
    columns = min(columns, len(names))
    rows = math.ceil(len(names) / columns)
    _arrange(figure, names, rows, columns)
    for position, name in enumerate(names):
        suffix = "" if position == 0 else str(position + 1)
        _name_axis(figure.layout[f"xaxis{suffix}"], study, name, names)
        if position % columns == 0:
            figure.layout[f"yaxis{suffix}"].update(
                title_text=metric or _metric_name(study), showticklabels=True
            )
    return _styled(figure, title, x=None, y=None, height=130 + 240 * rows).update_layout(width=None)


def contour(study: optuna.Study, metric: str | None = None) -> go.Figure:
    """Score over the two most important parameters that trials have together.

    Parameters
    ----------
    study : optuna.Study
    metric : str, optional
        Name of the score; by default the study's own metric.

    Returns
    -------
    plotly.graph_objects.Figure
        Dots are trials; between them the colours are only interpolated.
    """
    pair = _contour_pair(study)
    if pair is None:
        return _sentence("Score over two parameters", "A contour needs trials that differ in two parameters.")
    plain = _metric_name(study) if metric is None else metric
    figure = _quietly(lambda: optuna.visualization.plot_contour(study, params=list(pair), target_name=plain))
    figure.data = [trace for trace in figure.data if trace.x is not None and len(trace.x)]
    minimised = study.direction == StudyDirection.MINIMIZE
    for trace in figure.data:
        if trace.type == "contour":
            bar = {"title": {"text": _score(study, metric), "side": "right"}, "thickness": 14}
            trace.update(colorscale=SCALE, reversescale=minimised, line={"width": 0.5}, colorbar=bar)
        else:
            trace.update(marker={"color": "white", "size": 9, "line": {"color": "black", "width": 1.5}})
    x, y = sorted(pair)
    title = f"Score over {_short(x, pair)} and {_short(y, pair)}"
    _name_axis(figure.layout.xaxis, study, x, pair)
    _name_axis(figure.layout.yaxis, study, y, pair)
    return _styled(figure, title, x=None, y=None)


def intermediate_values(study: optuna.Study, metric: str | None = None) -> go.Figure:
    """How each trial's score stood after each fold, which is what a pruner sees.

    Parameters
    ----------
    study : optuna.Study
        Its trials report the folds so far drawn together, at step 0 after the first fold.
    metric : str, optional
        Name on the axis; by default the study's own metric.

    Returns
    -------
    plotly.graph_objects.Figure
    """
    title = "Score after each fold"
    if not any(trial.intermediate_values for trial in study.get_trials(deepcopy=False)):
        return _sentence(title, "No trial has finished a fold yet.")
    figure = _quietly(lambda: optuna.visualization.plot_intermediate_values(study))
    states = {trial.number: trial.state for trial in study.get_trials(deepcopy=False)}
    best = study.best_trial.number if _complete(study) else None
    looks: dict[str, dict[str, Any]] = {
        "complete": {"line": {"color": SKY, "width": 1.5}, "marker": {"size": 5}},
        "pruned": {
            "line": {"color": ORANGE, "width": 1.5, "dash": "dot"},
            "marker": {"size": 7, "symbol": "x"},
        },
        "running": {"line": {"color": GREEN, "width": 1.5}, "marker": {"size": 5}},
        "best": {"line": {"color": BLUE, "width": 4}, "marker": {"size": 8}},
    }
    shown: set[str] = set()
    for trace in figure.data:
        number = int(trace.name.removeprefix("Trial"))
        kind = "best" if number == best else states[number].name.lower()
        trace.update(x=[step + 1 for step in trace.x], mode="lines+markers", **looks[kind])
        trace.update(name=f"best (trial {number})" if kind == "best" else kind, legendgroup=kind)
        trace.update(
            showlegend=kind not in shown,
            hovertemplate=f"trial {number}, fold %{{x}}: %{{y:.4f}}<extra></extra>",
        )
        shown.add(kind)
    figure.data = sorted(figure.data, key=lambda trace: trace.legendgroup == "best")
    figure.update_layout(showlegend=True)
    figure.update_xaxes(dtick=1)
    return _styled(figure, title, x="folds done", y=_score(study, metric, "folds done"))


def timeline(study: optuna.Study) -> go.Figure:
    """When each trial ran and how it ended.

    Parameters
    ----------
    study : optuna.Study

    Returns
    -------
    plotly.graph_objects.Figure
        Time counts from the start of the first trial.
    """
    title = "When each trial ran"
    starts = [
        trial.datetime_start for trial in study.get_trials(deepcopy=False) if trial.datetime_start is not None
    ]
    if not starts:
        return _sentence(title, "No trial has been started yet.")
    figure = _quietly(lambda: optuna.visualization.plot_timeline(study))
    ends = [
        (datetime.fromisoformat(base) - min(starts)).total_seconds() + length / 1000
        for bar in figure.data
        for base, length in zip(bar.base, bar.x, strict=True)
    ]
    unit, seconds = next(
        item
        for item in (("hours", 3600), ("minutes", 60), ("seconds", 1))
        if max(ends) > item[1] * 2 or item[1] == 1
    )
    for bar in figure.data:
        begin = [(datetime.fromisoformat(base) - min(starts)).total_seconds() / seconds for base in bar.base]
        lengths = [length / 1000 / seconds for length in bar.x]
        # Optuna's own text lists every attribute of a trial, names of machines and folders among them.
        text = [f"trial {number}: {length:.1f} {unit}" for number, length in zip(bar.y, lengths, strict=True)]
        bar.update(base=begin, x=lengths, text=text, marker={"color": _STATE_COLOURS.get(bar.name, GREY)})
        bar.update(name="failed" if bar.name == "FAIL" else bar.name.lower())
    rows = len(study.get_trials(deepcopy=False))
    figure.update_yaxes(tickformat="d", autorange="reversed", ticksuffix=" ")
    figure.update_xaxes(type="linear")
    figure.update_layout(barmode="overlay")
    height = min(900, max(HEIGHT - 80, 140 + 16 * rows))
    return _styled(figure, title, x=f"{unit} since the first trial began", y="trial", height=height)


def distribution(study: optuna.Study, metric: str | None = None) -> go.Figure:
    """Share of complete trials with at most a given score.

    Parameters
    ----------
    study : optuna.Study
    metric : str, optional
        Name on the axis; by default the study's own metric.

    Returns
    -------
    plotly.graph_objects.Figure
        The further right the curve rises, the more of the searched space is good.
    """
    title = "Distribution of the scores"
    if len(_complete(study)) < 2:
        return _sentence(title, "A distribution needs two complete trials.")
    figure = _quietly(lambda: optuna.visualization.plot_edf(study, target_name="score"))
    figure.update_traces(line={"color": BLUE, "width": 2.5, "shape": "hv"}, showlegend=False)
    figure.update_yaxes(range=[0, 1.03], tickformat=".0%")
    return _styled(figure, title, x=_score(study, metric), y="share of trials at or below")


def fold_scores(result: CrossValidation, metrics: Sequence[str] = tuple(METRICS)) -> go.Figure:
    """Score of each fold and their mean, for each metric.

    Parameters
    ----------
    result : CrossValidation
    metrics : sequence of str
        Names of `evbind_lib.metrics.METRICS`.

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
        figure.add_scatter(
            x=places + shift, y=values, mode="markers", name=f"fold {report.fold + 1}", marker=look
        )
    means = [float(np.mean([report.metrics[name] for report in result.folds])) for name in metrics]
    bar = {"symbol": "line-ew-open", "size": 44, "color": "#444444", "line": {"width": 3, "color": "#444444"}}
    figure.add_scatter(x=places, y=means, mode="markers", name="mean", marker=bar)
    figure.update_traces(customdata=list(metrics), hovertemplate="%{customdata}: %{y:.4f}")
    figure.update_xaxes(
        tickvals=places, ticktext=list(metrics), showgrid=False, range=[-0.6, len(metrics) - 0.4]
    )
    return _styled(figure, f"Scores of {len(result.folds)} folds", x="metric", y="score (0 to 1)")


def learning_curves(folds: Sequence[FoldReport], metric: str = "macro_f1") -> go.Figure:
    """Training loss and validation metric after each epoch, one line per fold.

    Parameters
    ----------
    folds : sequence of FoldReport
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
    return _styled(figure, "Learning curves", x=None, y=None)


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
        precision, recall, _ = sklearn_metrics.precision_recall_curve(
            label, probability, drop_intermediate=True
        )
        return recall, precision, float(sklearn_metrics.average_precision_score(label, probability))

    share = float(predictions["label"].mean()) if len(predictions) else math.nan
    chance = {"x": [0, 1], "y": [share, share], "name": f"chance ({share:.3f})"}
    figure = _curves(
        "Precision and recall", predictions, curve, chance, score="average precision", shape="hv"
    )
    return _styled(
        figure, None, x="recall: share of evidence found", y="precision: share of calls that are right"
    )


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
    figure = _curves(
        "Receiver operating characteristic", predictions, curve, chance, score="AUC", shape="linear"
    )
    return _styled(
        figure, None, x="false positive rate: share of the others called", y="true positive rate (recall)"
    )


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
    return _styled(figure, f"Confusion matrix at threshold {threshold:g}", x="called", y="annotated")


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
        return _sentence(title, "A curve needs pairs with and without evidence.")
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
    figure.add_scatter(
        mode="lines", line={"color": GREY, "dash": "dot", "width": 1.5}, hoverinfo="skip", **chance
    )
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


def _styled(
    figure: go.Figure, title: str | None, *, x: str | None, y: str | None, height: int | None = None
) -> go.Figure:
    """Give a figure the look that all have; None keeps a title, or the height, that is there."""
    figure.update_layout(
        template="plotly_white",
        colorway=list(PALETTE),
        font={"size": 13},
        height=height or figure.layout.height or HEIGHT,
        margin={"l": 75, "r": 25, "t": 60, "b": 60},
        hoverlabel={"namelength": -1},
    )
    figure.update_layout(
        title={"x": 0.01, "xanchor": "left", "y": None, "yanchor": None, "yref": None, "font": {"size": 17}}
    )
    if title is not None:
        figure.update_layout(title_text=title)
    if x is not None:
        figure.update_xaxes(title_text=x)
    if y is not None:
        figure.update_yaxes(title_text=y)
    return figure


def _sentence(title: str, sentence: str) -> go.Figure:
    """Figure that says why there is nothing to see."""
    figure = go.Figure()
    figure.add_annotation(
        text=sentence,
        x=0.5,
        y=0.5,
        xref="paper",
        yref="paper",
        showarrow=False,
        font={"size": 15, "color": GREY},
    )
    figure.update_xaxes(visible=False)
    figure.update_yaxes(visible=False)
    return _styled(figure, title, x=None, y=None, height=220)


def _quietly(plot: Callable[[], go.Figure]) -> go.Figure:
    """Draw with Optuna without its remarks on trials it leaves out."""
    verbosity = optuna.logging.get_verbosity()
    optuna.logging.set_verbosity(optuna.logging.ERROR)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            return plot()
    finally:
        optuna.logging.set_verbosity(verbosity)


def _trials(study: optuna.Study, state: TrialState) -> list[FrozenTrial]:
    return study.get_trials(deepcopy=False, states=(state,))


def _complete(study: optuna.Study) -> list[FrozenTrial]:
    """Complete trials with a finite score, which are those that Optuna plots."""
    trials = _trials(study, TrialState.COMPLETE)
    return [trial for trial in trials if trial.value is not None and math.isfinite(trial.value)]


def _parameters(study: optuna.Study) -> list[str]:
    """Names of the searched parameters in Optuna's order of them."""
    return sorted({name for trial in _complete(study) for name in trial.params})


def _ranking(study: optuna.Study) -> list[str]:
    """Parameters, the most important first; empty where importances cannot be told."""
    if len(_complete(study)) < 2 or not _parameters(study):
        return []
    try:
        return list(_quietly(lambda: optuna.importance.get_param_importances(study)))
    except (ValueError, RuntimeError):
        return []


def _contour_pair(study: optuna.Study) -> tuple[str, str] | None:
    """Choose the two most important parameters that three trials or more have together and differ in."""
    trials = _complete(study)
    ranked = _ranking(study) or _parameters(study)
    for x, y in itertools.combinations(ranked, 2):
        both = [
            (trial.params[x], trial.params[y]) for trial in trials if x in trial.params and y in trial.params
        ]
        if len(both) > 2 and all(len(set(values)) > 1 for values in zip(*both, strict=True)):
            return x, y
    return None


def _metric_name(study: optuna.Study) -> str:
    names = study.metric_names
    return names[0] if names else "score"


def _score(study: optuna.Study, metric: str | None, of: str = "folds") -> str:
    """Name of the objective for an axis: ``macro_f1, mean of folds``."""
    aggregation = study.user_attrs.get("identity", {}).get("fold_aggregation")
    name = metric or _metric_name(study)
    return f"{name}, {aggregation} of {of}" if aggregation else name


def _short(name: str, names: Sequence[str]) -> str:
    """Last part of a parameter's name where that tells it from the others, shorter still for the longest."""
    last = name.rpartition(".")[2]
    alone = sum(other.rpartition(".")[2] == last for other in names) == 1
    return _SHORT.get(last, last) if alone else name


def _name_axis(axis: Any, study: optuna.Study, name: str, names: Sequence[str]) -> None:
    """Give the axis of a parameter its name, its scale and ticks that can be read."""
    trials = [trial for trial in _complete(study) if name in trial.params]
    kind = trials[0].distributions[name]
    title = _short(name, names)
    if isinstance(kind, CategoricalDistribution):
        if axis.categoryarray:  # Optuna names a choice by its repr, which puts quotes around words
            axis.update(categoryarray=[label.strip("'") for label in axis.categoryarray])
            axis.update(range=[-0.5, len(axis.categoryarray) - 0.5])
    elif kind.log:
        values = [float(trial.params[name]) for trial in trials]
        ticks = _log_ticks(min(values), max(values))
        axis.update(
            tickvals=ticks,
            ticktext=[f"{tick:.0e}".replace("e-0", "e-").replace("e+0", "e") for tick in ticks],
        )
        title += " (log scale)"
    elif isinstance(kind, IntDistribution) and kind.high - kind.low <= 10:
        axis.update(dtick=1)
    axis.update(title_text=title)


def _log_ticks(low: float, high: float) -> list[float]:
    """Powers of ten between two values, with multiples of them where there are few."""
    powers = range(math.floor(math.log10(low)), math.ceil(math.log10(high)) + 1)
    span = high / low
    factors = (1,) if span > 100 else (1, 3) if span > 8 else (1, 2, 5)
    ticks = [factor * 10.0**power for power in powers for factor in factors]
    return [tick for tick in ticks if 0.7 * low <= tick <= 1.4 * high]


def _readable(annotation: Any) -> Any:
    """Tick label of a parallel axis that lines cannot hide."""
    return annotation.update(
        bgcolor="rgba(255,255,255,0.8)", font={"size": 11, "color": "#222222"}, borderpad=0
    )


def _arrange(figure: go.Figure, names: list[str], rows: int, columns: int) -> None:
    """Put Optuna's single row of panels into a grid; a search has too many parameters for one row."""
    gap_x, gap_y = 0.035, 0.36 / rows if rows > 1 else 0.0
    width, height = (1 - gap_x * (columns - 1)) / columns, (1 - gap_y * (rows - 1)) / rows
    for position in range(len(names)):
        row, column = divmod(position, columns)
        suffix = "" if position == 0 else str(position + 1)
        left, top = column * (width + gap_x), 1 - row * (height + gap_y)
        figure.layout[f"xaxis{suffix}"].update(domain=[left, min(left + width, 1.0)])
        figure.layout[f"yaxis{suffix}"].update(domain=[max(top - height, 0.0), top], title_text="")
