"""Figures of a study: its trials, their parameters and the course of the search.

Each takes any study of one objective; of several: `SearchError`.
"""

import itertools
import math
from collections.abc import Collection, Iterable
from datetime import datetime, timedelta
from typing import Any

import optuna
import plotly.graph_objects as go
from optuna.distributions import BaseDistribution, FloatDistribution, IntDistribution
from optuna.trial import TrialState
from plotly.colors import sample_colorscale
from plotly.subplots import make_subplots

from evbind_lib.errors import SearchError
from evbind_lib.hpo.results import FEWEST_FOR_IMPORTANCE, parameter_importances
from evbind_lib.hpo.study import StudyRecord, TrialRecord, best_trial, complete_trials, is_minimised, metric_name
from evbind_lib.plots.style import BLUE, GREEN, GREY, INK, ORANGE, SCALE, SKY, VERMILION, sentence, styled, whole_steps

SHORT = {"per_device_train_batch_size": "batch_size", "num_train_epochs": "epochs"}
STATES = {  # name, colour, line and marker
    TrialState.COMPLETE: ("complete", SKY, "solid", "circle"),
    TrialState.PRUNED: ("pruned", ORANGE, "dot", "x"),
    TrialState.FAIL: ("failed", GREY, "dash", "square"),
    TrialState.RUNNING: ("running", GREEN, "solid", "diamond"),
}
FEWER = "pruned (fewer folds)"
CROSS = {"symbol": "x-thin", "size": 8, "line": {"width": 2, "color": GREY}}
FEWEST_FOR_CONTOUR = 20  # places; between fewer, what is interpolated is mostly made up
UNUSED = -0.13  # height of a trial on the upright axis of a parameter that it does not have


def history(study: optuna.Study) -> go.Figure:
    """Score of each trial and the best so far; of a pruned one its last or, where trials report another metric, the lowest."""
    title, every, scores = "Score of each trial", study.get_trials(deepcopy=False), _scores(study)
    if not scores:
        return sentence(title, "No trial is complete yet.")
    values = list(scores.values())
    best = list(itertools.accumulate(values, min if is_minimised(study) else max))
    figure = go.Figure()
    line = {"color": ORANGE, "width": 2, "shape": "hv"}
    _add(figure, [*scores, every[-1].number], [*best, best[-1]], name="best so far", mode="lines", line=line)
    _add(figure, scores, values, name="complete", mode="markers", marker={"color": BLUE, "size": 8})
    if stopped := _last_reported(study):
        last = list(stopped.values())
        y, name = (last, FEWER) if _stopped(study) else ([min(values)] * len(stopped), "pruned (no score)")
        _add(figure, stopped, y, values=last, name=name, mode="markers", marker=CROSS)
    figure.update_xaxes(dtick=whole_steps(len(every)))
    return styled(figure, title, _counted(study, scores, stopped), x="trial", y=_score_label(study))


def importances(study: optuna.Study) -> go.Figure:
    """How far each parameter lifts a trial into the best tenth, by PED-ANOVA (Watanabe et al., IJCAI 2023), with its spread."""
    title, scores = "What lifts a trial into the best tenth", _scores(study)
    found = parameter_importances(study, n_resamples=100)[::-1]
    if found.empty:
        few = f"Too few trials to say: {len(scores)} complete, and {FEWEST_FOR_IMPORTANCE} are needed."
        return sentence(title, few if len(scores) < FEWEST_FOR_IMPORTANCE else "The trials have no parameters.")
    value, names = found["importance"], [_short(name, found.index) for name in found.index]
    # A resample repeats trials, which sharpens what it finds: the estimate may lie outside of all but few of them.
    spread = {"array": (found["high"] - value).clip(0), "arrayminus": (value - found["low"]).clip(0), "color": GREY}
    hover = "%{x:.2f}, resampled %{customdata[0]:.2f} to %{customdata[1]:.2f}<extra></extra>"
    bars = go.Bar(x=value, y=names, error_x=spread, customdata=found[["low", "high"]], marker_color=BLUE)
    figure = go.Figure(bars.update(orientation="h", hovertemplate=hover))
    figure.update_layout(xaxis_range=[0, 1.02], yaxis_ticksuffix="  ")
    x = f"importance for the best tenth by {metric_name(study)} (together 1)"
    caption = f"{_counted(study, scores)}; PED-ANOVA; lines: nine tenths of 100 resamples of the trials"
    return styled(figure, title, caption, x=x, height=170 + 34 * len(found))


def parallel_coordinates(study: optuna.Study) -> go.Figure:
    """Each trial as a line through its score and parameters, the best on top, stopped ones dotted; below an axis: without it."""
    title, scores, stopped = "Parameters and score of each trial", _scores(study), _stopped(study)
    searched = _searched(study)
    if len(scores) < 2 or not searched:
        return sentence(title, "Parallel coordinates need two complete trials.")
    shown = {**stopped, **scores}
    low, high = min(scores.values()), max(scores.values())
    reached = FloatDistribution(min(shown.values()), max(shown.values()))
    axes = [_Axis(metric_name(study), reached, shown), *searched.values()]
    best = (min if is_minimised(study) else max)(scores, key=scores.__getitem__)
    figure, scale = go.Figure(), SCALE[::-1] if is_minimised(study) else SCALE
    for number in sorted(shown, key=lambda number: (number in scores, number == best)):  # the best over the others
        (shade,) = sample_colorscale(scale, [(min(max(shown[number], low), high) - low) / (high - low or 1)])
        line = {"color": VERMILION, "width": 4} if number == best else {"color": shade, "width": 1.8}
        if number in stopped:
            line = {"color": GREY, "width": 1, "dash": "dot"}
        y = [axis.height(axis.places.get(number)) for axis in axes]
        used = [f"{axis.label} {_written(axis.values[number])}" for axis in axes if number in axis.values]
        hover = "<br>".join([FEWER] * (number in stopped) + used)
        _add(figure, [number] * len(y), y, x=list(range(len(y))), mode="lines", line=line, hover=hover)
    bar = {"cmin": low, "cmax": high, "colorscale": scale, "colorbar": {"thickness": 12, "x": 1.01}}
    figure.add_scatter(x=[None], y=[None], mode="markers", marker={"color": [low], **bar})
    # Labels stand on a light ground of their own, in a dark template too, so that lines do not hide them.
    look = {"font": {"size": 11, "color": INK}, "bgcolor": "rgba(255,255,255,0.8)", "borderpad": 0}
    for x, axis in enumerate(axes):
        marks = axis.ticks() | ({None: "not used"} if len(axis.values) < len(shown) else {})
        for place, text in marks.items():
            figure.add_annotation(x=x, y=axis.height(place), text=text, xanchor="right", showarrow=False, **look)
    names = [axis.label.replace("_", "_<br>") for axis in axes]
    figure.update_xaxes(tickvals=list(range(len(axes))), ticktext=names, gridcolor=GREY, zeroline=False)
    figure.update_xaxes(range=[-0.05, len(axes) - 0.95])
    figure.update_layout(showlegend=False, yaxis={"visible": False, "range": [UNUSED - 0.06, 1.04]})
    caption = f"{_counted(study, scores, stopped)} (dotted)" if stopped else _counted(study, scores)
    return styled(figure, title, f"{caption}; the best, trial {best} with {scores[best]:.4f}, in red", height=480)


def slices(study: optuna.Study) -> go.Figure:
    """Score against each parameter by itself, coloured by the trial's number: later ones gather where scores should be good."""
    title, scores, stopped, axes = "Score against each parameter", _scores(study), _stopped(study), _searched(study)
    if not axes or not scores:
        return sentence(title, "No trial with a searched parameter is complete yet.")
    columns, rows = min(4, len(axes)), math.ceil(len(axes) / 4)
    figure = make_subplots(rows, columns, shared_yaxes=True, horizontal_spacing=0.035, vertical_spacing=0.36 / rows)
    for position, axis in enumerate(axes.values()):
        panel = {"row": position // columns + 1, "col": position % columns + 1}
        for name, of in ((FEWER, stopped), ("complete", scores)):
            numbers = [number for number in of if number in axis.values]
            marker = CROSS if of is stopped else {"color": numbers, "coloraxis": "coloraxis", "size": 8}
            named = of is stopped and position == 0  # the colour of the others is the trial's
            look = {"name": name, "legendgroup": name, "showlegend": named, "mode": "markers", "marker": marker}
            x, y = [axis.places[number] for number in numbers], [of[number] for number in numbers]
            if numbers:
                _add(figure, numbers, y, x=x, **look, **panel)
        figure.update_xaxes(axis.layout(), **panel)
    figure.update_yaxes(title_text=metric_name(study), col=1)
    last = max(scores)
    bar = {"title": {"text": "trial", "side": "right"}, "tickvals": list(range(0, last + 1, 1 + last // 10))}
    colours = {"colorscale": SCALE, "cmin": 0, "cmax": max(last, 1), "colorbar": {"thickness": 12, **bar}}
    legend = {"orientation": "h", "x": 1, "xanchor": "right", "y": 1, "yanchor": "bottom"}
    figure.update_layout(coloraxis=colours, showlegend=bool(stopped), legend=legend)
    return styled(figure, title, _counted(study, scores, stopped), height=150 + 240 * rows)


def contour(study: optuna.Study) -> go.Figure:
    """Score over the two most important parameters that trials have together, interpolated where there are enough of them.

    Where there are too few trials to say what is important, over the first two.
    """
    scores, axes = _scores(study), _searched(study)
    ranked = [axes[name] for name in [*parameter_importances(study).index] or axes if name in axes]
    for across, up in itertools.combinations(ranked, 2):
        both = [number for number in scores if number in across.places and number in up.places]
        x, y, z = ([of[number] for number in both] for of in (across.places, up.places, scores))
        if len(both) > 2 and len(set(x)) > 1 and len(set(y)) > 1:
            break
    else:
        return sentence("Score over two parameters", "A contour needs three trials that differ in two parameters.")
    bar = {"title": {"text": _score_label(study), "side": "right"}, "thickness": 14}
    scale, figure = SCALE[::-1] if is_minimised(study) else SCALE, go.Figure()
    dots = {"color": z, "colorscale": scale, "colorbar": bar, "size": 13, "line": {"color": GREY, "width": 1}}
    caption = _counted(study, both)
    if len({*zip(x, y, strict=True)}) >= FEWEST_FOR_CONTOUR:
        look = {"colorscale": scale, "contours_coloring": "heatmap", "connectgaps": True, "hoverinfo": "skip"}
        figure.add_contour(x=x, y=y, z=z, line={"width": 0.5, "smoothing": 0}, colorbar=bar, **look)
        dots = {"color": "white", "size": 9, "line": {"color": "black", "width": 1.5}}
        caption += "; colours between the dots are interpolated"
    _add(figure, both, y, x=x, values=z, mode="markers", marker=dots, cliponaxis=False)
    figure.update_layout(xaxis=across.layout(), yaxis=up.layout())
    return styled(figure, f"Score over {across.label} and {up.label}", caption)


def intermediate_values(study: optuna.Study) -> go.Figure:
    """What each trial reported after each fold, which is what a pruner sees; of a study without folds, after each step."""
    trials = [trial for trial in study.get_trials(deepcopy=False) if trial.intermediate_values]
    if not trials:
        return sentence("Scores that trials reported", "No trial has reported a score yet.")
    metric, aggregation = _reported(study)
    best, figure, shown = getattr(best_trial(study), "number", None), go.Figure(), set()
    for trial in sorted(trials, key=lambda trial: trial.number == best):  # the best over the others
        name, shade, dash, symbol = STATES.get(trial.state, ("waiting to go on", GREEN, "dot", "diamond-open"))
        if trial.number == best:
            name, shade = f"best (trial {best})", VERMILION
        line = {"color": shade, "dash": dash, "width": 4 if trial.number == best else 1.5}
        look = {"mode": "lines+markers", "name": name, "legendgroup": name, "showlegend": name not in shown}
        steps, y = zip(*sorted(trial.intermediate_values.items()), strict=True)
        x = [step + bool(aggregation) for step in steps]  # folds count from 0
        _add(figure, [trial.number] * len(y), y, x=x, line=line, marker={"size": 6, "symbol": symbol}, **look)
        shown.add(name)
    figure.update_xaxes(dtick=whole_steps(max(trial.last_step for trial in trials)))
    single = (StudyRecord.read(study).pruner or {}).get("type") == "wilcoxon"  # that pruner wants single folds
    folds = f"{metric} of the fold" if single else f"{metric}, {aggregation} of folds done"
    axes: dict[str, Any] = {"x": "folds done", "y": folds} if aggregation else {"x": "step", "y": metric}
    return styled(figure, "Scores that trials reported", _counted(study, trials), **axes)


def timeline(study: optuna.Study) -> go.Figure:
    """When each trial ran and how it ended; one that is running, perhaps a dead process's, is as long as the longest at most."""
    trials = [each for each in study.get_trials(deepcopy=False) if each.datetime_start and each.state in STATES]
    if not trials:
        return sentence("When each trial ran", "No trial has been started yet.")
    longest = max((trial.duration for trial in trials if trial.duration is not None), default=timedelta.max)
    figure, now = go.Figure(), datetime.now()
    for state, (name, shade, _, _) in STATES.items():
        having = [trial for trial in trials if trial.state == state]
        numbers, base = [trial.number for trial in having], [trial.datetime_start for trial in having]
        lasted = [min((trial.datetime_complete or now) - trial.datetime_start, longest) for trial in having]
        x = [time / timedelta(milliseconds=1) for time in lasted]
        look = {"name": name, "marker_color": shade, "orientation": "h", "hovertemplate": "trial %{y}: %{base} to %{x}"}
        if having:
            figure.add_bar(base=base, x=x, y=numbers, **look)
    figure.update_yaxes(dtick=whole_steps(len(trials)), autorange="reversed", ticksuffix=" ")
    figure.update_layout(barmode="overlay", showlegend=True, xaxis={"type": "date", "hoverformat": "%d %b %H:%M:%S"})
    height = min(900, max(360, 160 + 16 * len(trials)))
    return styled(figure, "When each trial ran", _counted(study, trials), x="time", y="trial", height=height)


def distribution(study: optuna.Study) -> go.Figure:
    """Fraction of complete trials with at most a given score; last scores of stopped trials, which it leaves out, as crosses."""
    title, scores, stopped = "Distribution of the scores", _scores(study), _stopped(study)
    if len(scores) < 2:
        return sentence(title, "A distribution needs two complete trials.")
    numbers = sorted(scores, key=scores.__getitem__)
    numbers = [numbers[0], *numbers]  # the curve rises from 0
    x, y = [scores[number] for number in numbers], [count / len(scores) for count in range(len(numbers))]
    figure, line = go.Figure(), {"color": BLUE, "width": 2.5, "shape": "hv"}
    hover = "%{y:.0%} of the complete trials have %{x:.4f} or less"
    _add(figure, numbers, y, x=x, mode="lines", name="complete", line=line, hover=hover)
    if stopped:
        places, values = [0.02] * len(stopped), list(stopped.values())
        _add(figure, stopped, places, x=values, values=values, mode="markers", name=FEWER, marker=CROSS)
    figure.update_yaxes(range=[0, 1.03], tickformat=".0%")
    y_title = "fraction of complete trials at or below"
    return styled(figure, title, _counted(study, scores, stopped), x=_score_label(study), y=y_title)


def _scores(study: optuna.Study) -> dict[int, float]:
    """Finite scores of complete trials, in their order, by the trial's number."""
    if len(study.directions) > 1:
        raise SearchError("The study has several objectives: draw it by optuna.visualization, with target=.")
    return {trial.number: trial.value for trial in complete_trials(study) if math.isfinite(trial.value)}


def _last_reported(study: optuna.Study) -> dict[int, float]:
    """What stopped trials reported last, by the trial's number."""
    pruned = [trial for trial in study.get_trials(deepcopy=False) if trial.state == TrialState.PRUNED]
    last = {trial.number: trial.intermediate_values[trial.last_step] for trial in pruned if trial.intermediate_values}
    return {number: value for number, value in last.items() if math.isfinite(value)}


def _stopped(study: optuna.Study) -> dict[int, float]:
    """Scores of stopped trials over the folds they have, by number; none where trials report another metric than their score."""
    return _last_reported(study) if _reported(study)[0] == metric_name(study) else {}


def _counted(study: optuna.Study, shown: Collection[Any], stopped: Collection[int] = ()) -> str:
    """How many of how many trials a figure shows: ``10 of 12 trials, 6 of them pruned``."""
    every = len(study.get_trials(deepcopy=False))
    text = f"{len(shown) + len(stopped)} of {every} trial{'s' * (every != 1)}"
    return f"{text}, {len(stopped)} of them pruned" if stopped else text


def _add(figure: go.Figure, trials: Iterable[int], y: Iterable[float], **look: Any) -> None:
    """Draw points, over their trials' numbers unless x is given, that name the trial where the mouse is."""
    data = list(zip(trials, look.pop("values", y), strict=True))  # what the mouse shows unless ``hover`` says else
    hover = f"trial %{{customdata[0]}}: {look.pop('hover', '%{customdata[1]:.4f}')}<extra></extra>"
    figure.add_scatter(**{"x": [*trials], **look}, y=y, customdata=data, hovertemplate=hover)


def _reported(study: optuna.Study) -> tuple[str, str | None]:
    """Metric that the trials reported, and how the folds were aggregated where it is one of folds."""
    for record in map(TrialRecord.read, study.get_trials(deepcopy=False)):
        if record.metric:
            return record.metric, record.fold_aggregation
    return metric_name(study), (StudyRecord.read(study).identity or {}).get("fold_aggregation")


def _score_label(study: optuna.Study) -> str:
    """Name of the score, with how the folds make it where it is a metric: ``macro_f1, mean of folds``."""
    (metric, aggregation), name = _reported(study), metric_name(study)
    return f"{name}, {aggregation} of folds" if aggregation and metric == name else name


def _short(name: str, names: Iterable[str]) -> str:
    """Last part of a parameter's name where no other name ends alike, shorter still for the longest."""
    last = name.rpartition(".")[2]
    alone = sum(other.rpartition(".")[2] == last for other in names) == 1
    return SHORT.get(last, last) if alone else name


def _written(value: Any) -> str:
    return f"{value:.5g}" if isinstance(value, float) else str(value)


class _Axis:
    """A score or a searched parameter; values and places (of a choice, its position) by the numbers of trials that have it."""

    def __init__(self, label: str, kind: BaseDistribution, values: dict[int, Any]) -> None:
        self.label, self.kind, self.values = label, kind, values
        self.log, self.choices = getattr(kind, "log", False), getattr(kind, "choices", ())
        self.places = {number: kind.to_internal_repr(value) for number, value in values.items()}
        reached = range(len(self.choices)) or self.places.values()
        self.low, self.high = min(reached), max(reached)

    def ticks(self) -> dict[float, str]:
        """Places to mark, and their texts: choices, powers of ten with few multiples, or steps of 1, 2 or 5."""
        low, high, span = self.low, self.high, self.high - self.low or 1
        if self.choices:
            return dict(enumerate(map(str, self.choices)))
        if self.log and high > 4 * low:
            powers = range(math.floor(math.log10(low)), math.ceil(math.log10(high)) + 1)
            factors = (1,) if high / low > 100 else (1, 3) if high / low > 20 else (1, 2, 5)
            ticks = [float(f"{factor}e{power}") for power in powers for factor in factors]
        else:
            power = 10.0 ** math.floor(math.log10(span / 4))
            step = power * next(factor for factor in (1, 2, 5, 10) if span <= 5 * power * factor)
            step = max(1, step) if isinstance(self.kind, IntDistribution) else step
            ticks = [count * step for count in range(math.ceil(low / step), math.floor(high / step) + 1)]
        return {tick: _written(tick) for tick in ticks if low <= tick <= high} or {low: _written(low)}

    def height(self, place: float | None) -> float:
        """Where a place, or that of a trial without one, stands on an upright axis from 0 to 1."""
        scaled = math.log10 if self.log else float
        low, high = scaled(self.low), scaled(self.high)
        return UNUSED if place is None else (scaled(place) - low) / (high - low or 1)

    def layout(self) -> dict[str, Any]:
        """Name, scale and ticks, as plotly's properties of an axis."""
        ticks = self.ticks()
        look = {"title_text": self.label, "tickvals": list(ticks), "ticktext": list(ticks.values())}
        if self.choices:
            look["range"] = [-0.5, len(ticks) - 0.5]
        return look | {"title_text": f"{self.label} (log scale)", "type": "log"} if self.log else look


def _searched(study: optuna.Study) -> dict[str, _Axis]:
    """The searched parameters in the order in which trials drew them, each with its latest distribution."""
    shown, stopped = _scores(study), _stopped(study)
    trials = [trial for trial in study.get_trials(deepcopy=False) if trial.number in shown or trial.number in stopped]
    kinds = {name: kind for trial in trials for name, kind in trial.distributions.items()}
    values = {name: {trial.number: trial.params[name] for trial in trials if name in trial.params} for name in kinds}
    return {name: _Axis(_short(name, kinds), kind, values[name]) for name, kind in kinds.items()}
