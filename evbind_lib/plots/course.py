"""Figure of a search's course in time: when each trial ran and how it ended.

Imports its neighbours `axes` and `style`; `plots` gives its function on.
"""

from __future__ import annotations

from datetime import datetime

import optuna
import plotly.graph_objects as go

from evbind_lib.plots.axes import quietly
from evbind_lib.plots.style import BLUE, GREEN, GREY, HEIGHT, ORANGE, VERMILION, sentence, styled

_STATE_COLOURS = {"COMPLETE": BLUE, "PRUNED": ORANGE, "FAIL": VERMILION, "RUNNING": GREEN, "WAITING": GREY}


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
    starts = [trial.datetime_start for trial in study.get_trials(deepcopy=False) if trial.datetime_start is not None]
    if not starts:
        return sentence(title, "No trial has been started yet.")
    figure = quietly(lambda: optuna.visualization.plot_timeline(study))
    ends = [
        (datetime.fromisoformat(base) - min(starts)).total_seconds() + length / 1000
        for bar in figure.data
        for base, length in zip(bar.base, bar.x, strict=True)
    ]
    unit, seconds = next(
        item for item in (("hours", 3600), ("minutes", 60), ("seconds", 1)) if max(ends) > item[1] * 2 or item[1] == 1
    )
    for bar in figure.data:
        begin = [(datetime.fromisoformat(base) - min(starts)).total_seconds() / seconds for base in bar.base]
        lengths = [length / 1000 / seconds for length in bar.x]
        # Optuna's own text lists every attribute of a trial, names of machines and folders among them.
        text = [f"trial {number}: {length:.1f} {unit}" for number, length in zip(bar.y, lengths, strict=True)]
        bar.update(base=begin, x=lengths, text=text, marker={"color": _STATE_COLOURS.get(bar.name, GREY)})
        bar.meta = list(bar.y)
        bar.update(name="failed" if bar.name == "FAIL" else bar.name.lower())
    rows = len(study.get_trials(deepcopy=False))
    figure.update_yaxes(tickformat="d", autorange="reversed", ticksuffix=" ")
    figure.update_xaxes(type="linear")
    figure.update_layout(barmode="overlay")
    height = min(900, max(HEIGHT - 80, 140 + 16 * rows))
    return styled(figure, title, x=f"{unit} since the first trial began", y="trial", height=height)
