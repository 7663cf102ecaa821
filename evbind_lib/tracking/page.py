"""An executed notebook as a page of HTML, the result it recorded, and the words between a kernel and whoever runs it."""

import ast
import contextlib
import copy
import os
from pathlib import Path
from typing import Any

import psutil
from IPython import get_ipython

from evbind_lib.config.paths import write_whole

RESULT = "application/vnd.evbind.result+json"  # output of this type carries what a notebook recorded
PROGRESS = "application/vnd.evbind.progress+json"  # output of this type carries one line of progress as text/plain
PLOTLY = "application/vnd.plotly.v1+json"
WIDGET = "application/vnd.jupyter.widget-view+json"
# What papermill's engine `evbind` gives to a kernel: the run that it opened, empty with tracking=none, and the notebook's file.
RUN_VARIABLE, FILE_VARIABLE = "EVBIND_NOTEBOOK_RUN", "EVBIND_NOTEBOOK_FILE"
OUTER_VARIABLE = "EVBIND_OUTER_RUN"  # run of the notebook that an execution was started in
# What Python raises for a cell that it cannot parse.
UNREADABLE = (ValueError, SyntaxError, RecursionError, MemoryError)


def given_by_launcher(name: str) -> str | None:
    """Value of an environment variable that is meant for this kernel: not one that its launcher was given itself."""
    value = os.environ.get(name)
    with contextlib.suppress(psutil.Error, ValueError):
        launcher = psutil.Process(int(os.environ.get("JPY_PARENT_PID", os.getppid())))
        return None if launcher.environ().get(name) == value else value
    return value


def front_end_file() -> str | None:
    """Notebook that JupyterLab or VS Code, which started this kernel, names in it; None where neither did."""
    shell = get_ipython()
    return given_by_launcher("JPY_SESSION_NAME") or (shell.user_ns.get("__vsc_ipynb_file__") if shell else None)


def assigned(*sources: str) -> dict[str, Any]:
    """Names and values that code assigns, read without running it; of what is no literal the value is None."""
    # papermill.inspect_notebook counts equal signs line by line: it loses `overrides = ["training.n_folds=3"]`.
    values: dict[str, Any] = {}
    for node in (node for source in sources for node in ast.walk(ast.parse(source))):
        match node:
            case ast.Assign([ast.Name(name), *_], value) | ast.AnnAssign(ast.Name(name), _, value):
                values[name] = None
                with contextlib.suppress(ValueError, TypeError):
                    values[name] = ast.literal_eval(value or "None")
            case ast.Name(name, ast.Store()):
                values.setdefault(name)
    return values


def tagged(notebook: Any, *tags: str) -> list[str]:
    """Code of the cells with one of these tags, in their order."""
    code = (each for each in notebook.cells if each.cell_type == "code")
    return [each.source for each in code if {*tags} & {*each.metadata.get("tags", ())}]


def run_address(uri: str, experiment: str, run: str) -> str:
    """Where a browser finds a run: on its server or, of a store without one, on what ``mlflow ui`` starts."""
    server = uri.rstrip("/") if uri.startswith(("http://", "https://")) else "http://127.0.0.1:5000"
    return f"{server}/#/experiments/{experiment}/runs/{run}"


def recorded_result(notebook: Any) -> dict[str, Any]:
    """Read what a notebook recorded in its outputs; empty when nothing."""
    outputs = (output.get("data", {}) for cell in notebook["cells"] for output in cell.get("outputs", []))
    return dict(next((data[RESULT] for data in outputs if RESULT in data), {}))


def export_html(notebook: Any, file: Path) -> Path:
    """Write an executed notebook as one HTML page whose figures, which nbconvert does not know, work without a network."""
    from nbconvert import HTMLExporter
    from plotly.io import to_html

    page = copy.deepcopy(notebook)
    outputs = [output["data"] for cell in page["cells"] for output in cell.get("outputs", []) if "data" in output]
    for data in outputs:
        data.pop(WIDGET, None)  # a page has no kernel to bring it to life; the static figure beside it stays
    for number, data in enumerate([data for data in outputs if PLOTLY in data]):
        data["text/html"] = to_html(data[PLOTLY], full_html=False, include_plotlyjs=number == 0, validate=False)
    exporter = HTMLExporter(embed_images=True)
    exporter.require_js_url = exporter.mathjax_url = exporter.mermaid_js_url = ""
    body, _ = exporter.from_notebook_node(page, resources={"metadata": {"name": file.stem}})
    write_whole(file, body)
    return file
