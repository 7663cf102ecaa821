"""Whether a front end is there to use a widget, and how a figure is shown in either case.

A widget in a stored notebook is dead without its kernel, so only a front end gets one: JupyterLab and VS Code say in the kernel
that they are there; papermill, nbconvert and nbval do not. ``EVBIND_WIDGETS=1`` or ``0`` decides by hand.
"""

from __future__ import annotations

import base64
import json
import os
from typing import Any

import plotly.graph_objects as go
from IPython import get_ipython
from IPython.display import display

from evbind_lib.tracking.page import PLOTLY


def has_front_end() -> bool:
    """Whether a front end that shows widgets started this kernel."""
    chosen, shell = os.environ.get("EVBIND_WIDGETS"), get_ipython()
    if chosen in {"0", "1"}:
        return chosen == "1"
    return hasattr(shell, "kernel") and ("JPY_SESSION_NAME" in os.environ or "__vsc_ipynb_file__" in shell.user_ns)


def show(figure: go.Figure) -> None:
    """Display a figure; with ``EVBIND_STATIC_FIGURES=1`` with a picture too, for pages without JavaScript.

    The picture needs kaleido and Chrome or Chromium, and a second of time: stored notebooks have it, searches do not.
    """
    bundle: dict[str, Any] = {PLOTLY: json.loads(figure.to_json())}
    if os.environ.get("EVBIND_STATIC_FIGURES") == "1":
        bundle["image/png"] = base64.b64encode(figure.to_image(format="png", width=900, scale=1)).decode()
    display(bundle, raw=True)
