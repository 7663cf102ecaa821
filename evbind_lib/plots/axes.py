"""Axes of Optuna's plots: an objective, a parameter's name, scale and ticks, and many panels in a grid.

Imports `objectives`; `plots.search` and `plots.pareto` import it.
"""

from __future__ import annotations

import math
import warnings
from collections.abc import Callable, Sequence
from typing import Any

import optuna
import plotly.graph_objects as go
from optuna.distributions import CategoricalDistribution, IntDistribution
from optuna.study import StudyDirection
from optuna.trial import FrozenTrial, TrialState

from evbind_lib.hpo.objectives import names_of

_SHORT = {"per_device_train_batch_size": "batch_size", "num_train_epochs": "epochs"}


def complete_trials(study: optuna.Study) -> list[FrozenTrial]:
    """Complete trials with a finite score, which are those that Optuna plots."""
    return [trial for trial in trials_in(study, TrialState.COMPLETE) if math.isfinite(score_of(trial))]


def score_of(trial: FrozenTrial) -> float:
    """Score of a complete trial; of several objectives the first, which decides the best trial."""
    return float(trial.values[0])


def target(study: optuna.Study) -> Callable[[FrozenTrial], float] | None:
    """What Optuna's functions plot of a study: nothing needs to be said of one objective, the first of several is named."""
    return score_of if len(study.directions) > 1 else None


def is_minimised(study: optuna.Study) -> bool:
    """Whether a lower score is better."""
    return bool(study.directions[0] == StudyDirection.MINIMIZE)


def metric_name(study: optuna.Study) -> str:
    """Name of the score."""
    return names_of(study)[0]


def objective_label(study: optuna.Study, name: str | None = None, of: str = "folds") -> str:
    """Name of an objective for an axis, by default of the score: ``macro_f1, mean of folds``."""
    if name == "seconds":
        return "training time of a trial (seconds)"
    aggregation = study.user_attrs.get("identity", {}).get("fold_aggregation")
    shown = name or metric_name(study)
    return f"{shown}, {aggregation} of {of}" if aggregation else shown


def trials_in(study: optuna.Study, state: TrialState) -> list[FrozenTrial]:
    """Trials in one state, not copied."""
    return study.get_trials(deepcopy=False, states=(state,))


def parameter_names(study: optuna.Study) -> list[str]:
    """Names of the searched parameters in Optuna's order of them."""
    return sorted({name for trial in complete_trials(study) for name in trial.params})


def short_name(name: str, names: Sequence[str]) -> str:
    """Last part of a parameter's name where that tells it from the others, shorter still for the longest."""
    last = name.rpartition(".")[2]
    alone = sum(other.rpartition(".")[2] == last for other in names) == 1
    return _SHORT.get(last, last) if alone else name


def name_axis(axis: Any, study: optuna.Study, name: str, names: Sequence[str]) -> None:
    """Give the axis of a parameter its name, its scale and ticks that can be read."""
    trials = [trial for trial in complete_trials(study) if name in trial.params]
    kind = trials[0].distributions[name]
    title = short_name(name, names)
    if isinstance(kind, CategoricalDistribution):
        if axis.categoryarray:  # Optuna names a choice by its repr, which puts quotes around words
            axis.update(categoryarray=[label.strip("'") for label in axis.categoryarray])
            axis.update(range=[-0.5, len(axis.categoryarray) - 0.5])
    elif kind.log:
        values = [float(trial.params[name]) for trial in trials]
        ticks = log_ticks(min(values), max(values))
        axis.update(
            tickvals=ticks,
            ticktext=[f"{tick:.0e}".replace("e-0", "e-").replace("e+0", "e") for tick in ticks],
        )
        title += " (log scale)"
    elif isinstance(kind, IntDistribution) and kind.high - kind.low <= 10:
        axis.update(dtick=1)
    axis.update(title_text=title)


def log_ticks(low: float, high: float) -> list[float]:
    """Powers of ten between two values, with multiples of them where there are few."""
    powers = range(math.floor(math.log10(low)), math.ceil(math.log10(high)) + 1)
    span = high / low
    factors = (1,) if span > 100 else (1, 3) if span > 8 else (1, 2, 5)
    ticks = [factor * 10.0**power for power in powers for factor in factors]
    return [tick for tick in ticks if 0.7 * low <= tick <= 1.4 * high]


def arrange(figure: go.Figure, names: list[str], rows: int, columns: int) -> None:
    """Put Optuna's single row of panels into a grid; a search has too many parameters for one row."""
    gap_x, gap_y = 0.035, 0.36 / rows if rows > 1 else 0.0
    width, height = (1 - gap_x * (columns - 1)) / columns, (1 - gap_y * (rows - 1)) / rows
    for position in range(len(names)):
        row, column = divmod(position, columns)
        suffix = "" if position == 0 else str(position + 1)
        left, top = column * (width + gap_x), 1 - row * (height + gap_y)
        figure.layout[f"xaxis{suffix}"].update(domain=[left, min(left + width, 1.0)])
        figure.layout[f"yaxis{suffix}"].update(domain=[max(top - height, 0.0), top], title_text="")


def readable(annotation: Any) -> Any:
    """Tick label of a parallel axis that lines cannot hide."""
    return annotation.update(bgcolor="rgba(255,255,255,0.8)", font={"size": 11, "color": "#222222"}, borderpad=0)


def quietly(plot: Callable[[], go.Figure]) -> go.Figure:
    """Draw with Optuna without its remarks on trials it leaves out."""
    verbosity = optuna.logging.get_verbosity()
    optuna.logging.set_verbosity(optuna.logging.ERROR)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            return plot()
    finally:
        optuna.logging.set_verbosity(verbosity)
