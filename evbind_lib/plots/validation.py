"""Figures of validated predictions: scores of folds and criteria, learning curves, curves over thresholds, confusion matrix.

``results`` of each is one result or a mapping of names to results, which it sets side by side, each in the same colour in every
figure. A result is a `CrossValidation`, a `FoldResult` or, where epochs are not needed, a table of predictions with the columns
label (1 is evidence), probability and, for figures of folds or criteria, fold or criterion_id.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np
import pandas as pd
import plotly.graph_objects as go
from plotly.subplots import make_subplots
from sklearn import metrics as sklearn_metrics

from evbind_lib.evaluation.estimate import at_threshold, by_criterion
from evbind_lib.plots.style import BLUE, GREEN, GREY, INK, ORANGE, VERMILION, marker, sentence, styled, whole_steps
from evbind_lib.training.metrics import METRICS, THRESHOLD, compute_metrics
from evbind_lib.training.result import CrossValidation, FoldResult

MOST_POINTS = 1000  # of a curve; more cannot be seen and makes notebooks heavy
MAIN = ("macro_f1", "pos_f1", "roc_auc", "pr_auc")
Trained = CrossValidation | FoldResult
Result = Trained | pd.DataFrame


def fold_scores(results: Result | Mapping[str, Result], metrics: Sequence[str] = ()) -> go.Figure:
    """Score of each fold and their mean, for each metric.

    How far the dots lie apart is how far a single split could mislead. Of two models one is better where its dots lie higher fold
    by fold, not only on average.

    Parameters
    ----------
    results : CrossValidation, FoldResult, pandas.DataFrame, or a mapping of names to them
    metrics : sequence of str
        Names of `METRICS`; by default those where higher is better, of several results the four main ones.
    """
    models, one = _named(results, _fold_metrics)
    every = [name for name in METRICS if METRICS[name].greater_is_better and name in next(iter(models.values()))]
    chosen = list(metrics or (every if one else MAIN))
    width, figure = 0.8 / len(models), go.Figure()
    for position, (model, folds) in enumerate(models.items()):
        centre = np.arange(len(chosen)) + width * (position - (len(models) - 1) / 2)
        offsets = width * np.linspace(-0.4, 0.4, len(folds) + 2)[1:-1]
        for number, (fold, scores) in enumerate(folds[chosen].iterrows()):
            look = _look(one, model, position, fold, number)
            figure.add_scatter(x=centre + offsets[number], y=scores, text=f"fold {fold + 1}", **look)
        bar = {**marker(position), "symbol": "line-ew-open", "size": 60 * width}
        figure.add_scatter(x=centre, y=folds[chosen].mean(), text="mean", name=f"{model}, mean", marker=bar)
        
    figure.update_traces(mode="markers", hovertemplate="%{text}: %{y:.4f}")
    figure.update_xaxes(tickvals=list(range(len(chosen))), ticktext=chosen, showgrid=False, zeroline=False)
    figure.update_layout(legend={} if one else {"orientation": "h", "y": -0.2})
    caption = f"{max(map(len, models.values()))} folds, a dot each; a bar at their mean"
    return styled(figure, "Scores of the folds", caption, x="metric", y="score")
