"""Figures of a search and of a cross-validation by plotly, for notebooks, widgets and pages.

Every function returns a figure and shows nothing; where there is too little to plot, the figure says so in a
sentence. Imports `metrics` and `reports`; `notebook` and `widgets` import it.
"""

from evbind_lib.plots.search import (
    contour,
    distribution,
    importances,
    intermediate_values,
    optimisation_history,
    parallel_coordinates,
    slices,
    timeline,
)
from evbind_lib.plots.validation import confusion_matrix, fold_scores, learning_curves, precision_recall, roc

__all__ = [
    "confusion_matrix",
    "contour",
    "distribution",
    "fold_scores",
    "importances",
    "intermediate_values",
    "learning_curves",
    "optimisation_history",
    "parallel_coordinates",
    "precision_recall",
    "roc",
    "slices",
    "timeline",
]
