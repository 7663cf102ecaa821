"""Whether a front end is there to use a widget, which is dead in a stored notebook."""

import os

from IPython import get_ipython


def has_front_end() -> bool:
    """Whether JupyterLab or VS Code started this kernel, as they say in it, unless ``EVBIND_WIDGETS=1`` or ``0`` decides."""
    chosen, shell = os.environ.get("EVBIND_WIDGETS"), get_ipython()
    if chosen in {"0", "1"}:
        return chosen == "1"
    return hasattr(shell, "kernel") and ("JPY_SESSION_NAME" in os.environ or "__vsc_ipynb_file__" in shell.user_ns)
