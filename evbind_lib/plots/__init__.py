"""Figures of the data, of a search, of a cross-validation and of several models by plotly, for notebooks, widgets and pages.

Every function returns a figure and shows nothing; where there is too little to plot, the figure says so in a
sentence. Imports `estimate`, `metrics`, `objectives` and `reports`; `notebook` and `widgets` import it.
"""

from evbind_lib.plots.comparison import (
    criteria_side_by_side,
    folds_side_by_side,
    precision_recall_side_by_side,
    thresholds,
)
from evbind_lib.plots.course import timeline
from evbind_lib.plots.data import class_balance, fold_balance, lengths
from evbind_lib.plots.pareto import pareto
from evbind_lib.plots.search import (
    contour,
    distribution,
    importances,
    intermediate_values,
    optimisation_history,
    parallel_coordinates,
    slices,
)
from evbind_lib.plots.validation import confusion_matrix, fold_scores, learning_curves, precision_recall, roc

__all__ = [
    "class_balance",
    "confusion_matrix",
    "contour",
    "criteria_side_by_side",
    "distribution",
    "fold_balance",
    "fold_scores",
    "folds_side_by_side",
    "importances",
    "intermediate_values",
    "learning_curves",
    "lengths",
    "optimisation_history",
    "parallel_coordinates",
    "pareto",
    "precision_recall",
    "precision_recall_side_by_side",
    "roc",
    "slices",
    "thresholds",
    "timeline",
]
