"""Figures of a search: Optuna's own plots with the titles, names and units a reader needs.

Of several objectives they show the first, which decides the best trial; `plots.pareto` shows two of them. Imports `objectives`
and its neighbours `axes` and `style`; `plots` gives its functions on.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Callable, Sequence
from typing import Any

import optuna
import plotly.graph_objects as go
from optuna.trial import FrozenTrial, TrialState
from plotly.colors import sample_colorscale

from evbind_lib.hpo.objectives import best_trial, is_feasible
from evbind_lib.plots.axes import (
    arrange,
    complete_trials,
    is_minimised,
    metric_name,
    name_axis,
    objective_label,
    parameter_names,
    quietly,
    readable,
    score_of,
    short_name,
    target,
    trials_in,
)
from evbind_lib.plots.style import BLUE, GREEN, GREY, ORANGE, SKY, VERMILION, sentence, styled

WITHIN, OUTSIDE = "within the bounds", "outside the bounds"
SCALE = "Cividis"  # even in lightness, and made for colour-blind readers


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
        A pruned trial is drawn, open, where it stood when it was stopped: a score of fewer folds. One outside
        ``hpo.constraints`` is drawn open too, and never counts as the best.
    """
    title = "Score of each trial"
    if not complete_trials(study):
        return sentence(title, "No trial is complete yet.")
    figure = quietly(
        lambda: optuna.visualization.plot_optimization_history(study, target=target(study), target_name="score")
    )
    figure.data = [trace for trace in figure.data if trace.x is not None and len(trace.x)]
    if target(study) is not None:  # Optuna cannot tell which way is better
        numbers, values = _best_so_far(study)
        figure.add_scatter(x=numbers, y=values, mode="lines")
    for trace in figure.data:
        if trace.mode == "lines":
            trace.update(name="best so far", line={"color": ORANGE, "width": 2, "shape": "hv"})
        elif "Infeasible" in (trace.name or ""):
            trace.update(name=OUTSIDE, marker={"color": BLUE, "size": 8, "symbol": "circle-open"})
        else:
            trace.update(name="complete", marker={"color": BLUE, "size": 8})
    pruned = [trial for trial in trials_in(study, TrialState.PRUNED) if trial.intermediate_values]
    if pruned:
        values = [trial.intermediate_values[max(trial.intermediate_values)] for trial in pruned]
        marker = {"color": GREY, "size": 8, "symbol": "x-thin-open", "line": {"width": 2, "color": GREY}}
        numbers = [trial.number for trial in pruned]
        figure.add_scatter(x=numbers, y=values, mode="markers", name="pruned (fewer folds)", marker=marker)
    for trace in figure.data:
        trace.meta = list(trace.x)  # points of the line lie over those of trials
    n_trials = len(study.get_trials(deepcopy=False))
    figure.update_xaxes(tickformat="d", dtick=1 if n_trials <= 15 else None)
    return styled(figure, title, x="trial", y=objective_label(study, metric))


def _best_so_far(study: optuna.Study) -> tuple[list[int], list[float]]:
    trials = [trial for trial in complete_trials(study) if is_feasible(trial)]
    better = min if is_minimised(study) else max
    return [trial.number for trial in trials], list(itertools.accumulate(map(score_of, trials), better))


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
        return sentence(title, "Importances need two complete trials with different parameters and scores.")
    figure = quietly(
        lambda: optuna.visualization.plot_param_importances(study, target=_loss(study), target_name="score")
    )
    figure.update_traces(marker={"color": BLUE}, showlegend=False)
    for bar in figure.data:
        bar.y = [short_name(name, bar.y) for name in bar.y]
        bar.text = [f"{share:.0%}" if share >= 0.01 else "<1%" for share in bar.x]
        bar.hovertemplate = "%{y}: %{x:.1%}<extra></extra>"
    figure.update_xaxes(range=[0, 1.1 * max(max(bar.x) for bar in figure.data)], tickformat=".0%")
    figure.update_yaxes(automargin=True, ticksuffix="  ")
    rows = max(len(bar.y) for bar in figure.data)
    return styled(figure, title, x="share of the score's variation", y="", height=150 + 34 * rows)


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
    names = parameter_names(study)
    if len(complete_trials(study)) < 2 or not names:
        return sentence(title, "Parallel coordinates need two complete trials.")
    figure = quietly(
        lambda: optuna.visualization.plot_parallel_coordinate(study, target=target(study), target_name="score")
    )
    labels = [metric or metric_name(study), *(short_name(name, names) for name in names)]
    lines = [trace for trace in figure.data if trace.mode == "lines" and trace.customdata is not None]
    for trace in figure.data:  # where there are bounds, Optuna explains solid and dotted lines
        trace.update(name={"Feasible": WITHIN, "Infeasible": OUTSIDE}.get(trace.name, trace.name))
    minimised = is_minimised(study)
    for line in lines:
        colour = sample_colorscale(SCALE, 1 - line.y[0] if minimised else line.y[0])[0]
        line.update(line={"color": colour, "width": 1.8}, opacity=0.75)
        line.customdata = [[label, cell[1]] for label, cell in zip(labels, line.customdata, strict=True)]
    # Optuna draws trials in an order of its own; by score both can be put in one.
    scored = sorted(complete_trials(study), key=score_of)
    for line, trial in zip(sorted(lines, key=lambda line: float(line.y[0])), scored, strict=True):
        line.meta = [trial.number] * len(line.x)
    found = best_trial(study)
    for best in [line for line in lines if found is not None and line.meta[0] == found.number]:
        best.update(line={"color": VERMILION, "width": 4}, opacity=1.0)
        figure.data = [trace for trace in figure.data if trace is not best]
        figure.add_trace(best)  # plotly draws in this order, so the best goes last
    for trace in figure.data:
        if trace.mode == "markers":
            bar = {"title": {"text": "", "side": "right"}, "thickness": 12, "x": 1.01}
            trace.marker.update(colorscale=SCALE, reversescale=minimised, colorbar=bar)
    figure.update_xaxes(ticktext=[label.replace("_", "_<br>") for label in labels], side="bottom", automargin=True)
    figure.update_layout(annotations=[readable(annotation) for annotation in figure.layout.annotations])
    page = styled(figure, f"{title} (best in red)", x=None, y=None, height=460)
    return page.update_yaxes(visible=False).update_layout(margin={"l": 70, "b": 70})


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
    names = parameter_names(study)
    if not complete_trials(study) or not names:
        return sentence(title, "No trial with a searched parameter is complete yet.")
    figure = quietly(lambda: optuna.visualization.plot_slice(study, target=target(study), target_name="score"))
    numbers = [trial.number for trial in complete_trials(study)]  # one scale for all panels
    # Optuna names a choice by its repr, which puts quotes around words.
    for trace in figure.data:
        if trace.x is not None and len(trace.x) and isinstance(trace.x[0], str):
            trace.x = [label.strip("'") for label in trace.x]
        if isinstance(trace.marker.color, str):  # one colour for all that are outside the bounds
            trace.meta = [_trial_of(study, score) for score in trace.y]
            trace.update(name=OUTSIDE, marker={"color": GREY, "size": 8, "symbol": "circle-open"})
            continue
        trace.meta = list(trace.marker.color)  # Optuna colours by the trial's number
        trace.marker.update(colorscale=SCALE, cmin=numbers[0], cmax=numbers[-1], size=8)
        if trace.marker.colorbar:
            trace.marker.colorbar.update(
                title={"text": "trial", "side": "right"}, x=1.0, xpad=10, thickness=12, tickformat="d"
            )
    columns = min(columns, len(names))
    rows = math.ceil(len(names) / columns)
    arrange(figure, names, rows, columns)
    for position, name in enumerate(names):
        suffix = "" if position == 0 else str(position + 1)
        name_axis(figure.layout[f"xaxis{suffix}"], study, name, names)
        if position % columns == 0:
            figure.layout[f"yaxis{suffix}"].update(title_text=metric or metric_name(study), showticklabels=True)
    return styled(figure, title, x=None, y=None, height=130 + 240 * rows).update_layout(width=None)


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
        return sentence("Score over two parameters", "A contour needs trials that differ in two parameters.")
    plain = metric_name(study) if metric is None else metric
    figure = quietly(
        lambda: optuna.visualization.plot_contour(study, params=list(pair), target=target(study), target_name=plain)
    )
    figure.data = [trace for trace in figure.data if trace.x is not None and len(trace.x)]
    minimised = is_minimised(study)
    for trace in figure.data:
        if trace.type == "contour":
            bar = {"title": {"text": objective_label(study, metric), "side": "right"}, "thickness": 14}
            trace.update(colorscale=SCALE, reversescale=minimised, line={"width": 0.5}, colorbar=bar)
        else:
            trace.meta = [_trial_with(study, pair, *point) for point in zip(trace.x, trace.y, strict=True)]
            outside = "Infeasible" in (trace.name or "")
            look = {"color": "lightgrey", "symbol": "x"} if outside else {"color": "white"}
            trace.update(name=OUTSIDE if outside else "trial", showlegend=False)
            trace.update(marker={**look, "size": 9, "line": {"color": "black", "width": 1.5}})
    x, y = sorted(pair)
    title = f"Score over {short_name(x, pair)} and {short_name(y, pair)}"
    name_axis(figure.layout.xaxis, study, x, pair)
    name_axis(figure.layout.yaxis, study, y, pair)
    return styled(figure, title, x=None, y=None)


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
        none = (
            "No trial has finished a fold yet."
            if target(study) is None
            else "Of several objectives no folds are reported."
        )
        return sentence(title, none)
    figure = quietly(lambda: optuna.visualization.plot_intermediate_values(study))
    states = {trial.number: trial.state for trial in study.get_trials(deepcopy=False)}
    found = best_trial(study)
    best = found.number if found is not None else None
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
        trace.meta = [number] * len(trace.x)
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
    return styled(figure, title, x="folds done", y=objective_label(study, metric, "folds done"))


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
    if len(complete_trials(study)) < 2:
        return sentence(title, "A distribution needs two complete trials.")
    figure = quietly(lambda: optuna.visualization.plot_edf(study, target=target(study), target_name="score"))
    figure.update_traces(line={"color": BLUE, "width": 2.5, "shape": "hv"}, showlegend=False)
    figure.update_yaxes(range=[0, 1.03], tickformat=".0%")
    return styled(figure, title, x=objective_label(study, metric), y="share of trials at or below")


def _trial_with(study: optuna.Study, names: Sequence[str], x: Any, y: Any) -> int:
    """Number of the trial at a point of a contour, whose axes are the parameters in the order of their names."""
    wanted = [str(x), str(y)]
    for trial in complete_trials(study):
        if [str(trial.params.get(name)) for name in sorted(names)] == wanted:
            return trial.number
    return -1


def _trial_of(study: optuna.Study, score: float) -> int:
    """Number of the first trial outside the bounds with a score."""
    return next(
        (trial.number for trial in complete_trials(study) if score_of(trial) == score and not is_feasible(trial)), -1
    )


def _ranking(study: optuna.Study) -> list[str]:
    """Parameters, the most important first; empty where importances cannot be told."""
    if len(complete_trials(study)) < 2 or not parameter_names(study):
        return []
    try:
        return list(quietly(lambda: optuna.importance.get_param_importances(study, target=_loss(study))))
    except (ValueError, RuntimeError):
        return []


def _contour_pair(study: optuna.Study) -> tuple[str, str] | None:
    """Choose the two most important parameters that three trials or more have together and differ in."""
    trials = complete_trials(study)
    ranked = _ranking(study) or parameter_names(study)
    for x, y in itertools.combinations(ranked, 2):
        both = [(trial.params[x], trial.params[y]) for trial in trials if x in trial.params and y in trial.params]
        if len(both) > 2 and all(len(set(values)) > 1 for values in zip(*both, strict=True)):
            return x, y
    return None


def _loss(study: optuna.Study) -> Callable[[FrozenTrial], float] | None:
    """As `target`, turned so that lower is better, which importances take for granted."""
    if target(study) is None or is_minimised(study):
        return target(study)
    return lambda trial: -score_of(trial)
