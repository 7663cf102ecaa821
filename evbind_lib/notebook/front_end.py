"""Whether a front end is there to use a widget, which is dead in a stored notebook, and how a figure is shown in either case."""

import base64
import contextlib
import json
import os
from typing import Any

import plotly.graph_objects as go
from IPython import get_ipython
from IPython.display import DisplayHandle, display

from evbind_lib.tracking.page import PLOTLY, front_end_file


def has_front_end() -> bool:
    """Whether JupyterLab or VS Code started this kernel, as they say in it, unless ``EVBIND_WIDGETS=1`` or ``0`` decides."""
    chosen, shell = os.environ.get("EVBIND_WIDGETS"), get_ipython()
    if chosen in {"0", "1"}:
        return chosen == "1"
    return hasattr(shell, "kernel") and front_end_file() is not None


def show_figure(figure: go.Figure, place: DisplayHandle | None = None) -> DisplayHandle:
    """Display a figure, or put it in the place of an earlier one: a plain output, which saved files and pages keep."""
    bundle, chosen = {PLOTLY: json.loads(figure.to_json())}, list[Any]()
    if os.environ.get("PLOTLY_RENDERER"):  # the user's own choice, but for a window, which no file keeps
        from plotly.io import renderers  # late: it loads half a second of schemas

        chosen = [each for name in renderers.default.split("+") if hasattr(each := renderers[name], "to_mimebundle")]
    if chosen:
        bundle = {kind: data for each in chosen for kind, data in each.to_mimebundle(figure.to_dict()).items()}
    elif (static := os.environ.get("EVBIND_STATIC_FIGURES")) is None:
        # Which nbconvert's and JupyterLab's exports know.
        bundle["text/html"] = figure.to_html(full_html=False, include_plotlyjs="cdn")
    elif static == "1":  # a picture needs no script, but kaleido, Chrome or Chromium, and a second of time
        with contextlib.suppress(Exception):  # a browser that is missing costs a picture, and not the run
            bundle["image/png"] = base64.b64encode(figure.to_image(format="png", width=900, scale=1)).decode()
    if place is None:
        return display(bundle, raw=True, display_id=True)
    # Emptied first: plotly's extension of JupyterLab (of plotly 7.1) does not draw a figure again where one is drawn.
    place.update({"text/plain": ""}, raw=True)
    place.update(bundle, raw=True)
    return place
