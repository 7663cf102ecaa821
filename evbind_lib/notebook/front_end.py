"""Whether a front end is there to use a widget, which is dead in a stored notebook, and how a figure is shown in either case."""

import base64
import json
import os
from typing import Any

import plotly.graph_objects as go
from IPython import get_ipython
from IPython.display import display

from evbind_lib.tracking.page import PLOTLY


def has_front_end() -> bool:
    """Whether JupyterLab or VS Code started this kernel, as they say in it, unless ``EVBIND_WIDGETS=1`` or ``0`` decides."""
    chosen, shell = os.environ.get("EVBIND_WIDGETS"), get_ipython()
    if chosen in {"0", "1"}:
        return chosen == "1"
    return hasattr(shell, "kernel") and ("JPY_SESSION_NAME" in os.environ or "__vsc_ipynb_file__" in shell.user_ns)


def show_figure(figure: go.Figure) -> None:
    """Display a figure, with ``EVBIND_STATIC_FIGURES=1`` with a picture too, for pages without JavaScript."""
    bundle: dict[str, Any] = {PLOTLY: json.loads(figure.to_json())}
    if os.environ.get("EVBIND_STATIC_FIGURES") == "1":  # needs kaleido, Chrome or Chromium, and a second of time
        bundle["image/png"] = base64.b64encode(figure.to_image(format="png", width=900, scale=1)).decode()
    display(bundle, raw=True)
