"""Views to explore with, by ipywidgets; where no front end is attached, each is a static figure or table instead.

A widget in a stored notebook is dead without its kernel, so only a front end gets one: JupyterLab and VS Code tell the kernel
that they are there; papermill, nbconvert and nbval do not. ``EVBIND_WIDGETS=1`` or ``0`` decides by hand. Imports the rooms
below it; `notebook` imports it.
"""

from evbind_lib.widgets.front_end import has_front_end
from evbind_lib.widgets.search import SearchMonitor, show_trials
from evbind_lib.widgets.views import browse_errors, browse_pairs, score_sentences, try_thresholds

__all__ = [
    "SearchMonitor",
    "browse_errors",
    "browse_pairs",
    "has_front_end",
    "score_sentences",
    "show_trials",
    "try_thresholds",
]
