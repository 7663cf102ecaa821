"""Figures by plotly of a study, of validated predictions and of the data; each function returns one and shows nothing.

Where there is too little to plot, the figure says so. ``plotly.io.templates.default = "plotly_dark"`` makes them dark.

Examples
--------
>>> import optuna
>>> import evbind_lib as ev
>>> study = optuna.create_study(direction="maximize", sampler=optuna.samplers.RandomSampler(seed=0))
>>> study.optimize(lambda trial: trial.suggest_float("learning_rate", 1e-6, 1e-4, log=True), n_trials=5)
>>> figure = ev.plots.history(study)
>>> figure.layout.title.text
'Score of each trial'
"""

# fmt: off
# isort: off
from evbind_lib.plots.data import class_balance, fold_balance, lengths
from evbind_lib.plots.search import contour, distribution, history, importances
from evbind_lib.plots.search import intermediate_values, parallel_coordinates, slices, timeline
from evbind_lib.plots.validation import confusion_matrix, criteria, fold_scores, learning_curves
from evbind_lib.plots.validation import precision_recall, reliability, roc, thresholds

__all__ = [
    "class_balance", "confusion_matrix", "contour", "criteria", "distribution", "fold_balance", "fold_scores", "history",
    "importances", "intermediate_values", "learning_curves", "lengths", "parallel_coordinates", "precision_recall",
    "reliability", "roc", "slices", "thresholds", "timeline",
]
# fmt: on
# isort: on


def __dir__() -> list[str]:
    return __all__
