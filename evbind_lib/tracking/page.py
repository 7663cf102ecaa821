"""What is read from an executed notebook and written from it: headings, its recorded result, its HTML page.

Imports nothing of the library; `tracking` and every room above may import it.
"""

from __future__ import annotations

import ast
import copy
from pathlib import Path
from typing import Any

# Output of this type carries what a notebook recorded with `evbind_lib.notebook.session.record`.
RESULT = "application/vnd.evbind.result+json"
# Output of this type carries one line of progress as text/plain.
PROGRESS = "application/vnd.evbind.progress+json"
PLOTLY = "application/vnd.plotly.v1+json"
WIDGET = "application/vnd.jupyter.widget-view+json"


def recorded_result(notebook: Any) -> dict[str, Any]:
    """What a notebook recorded with `evbind_lib.notebook.session.record`; empty when nothing.

    Parameters
    ----------
    notebook : NotebookNode

    Returns
    -------
    dict
    """
    for cell in notebook["cells"]:
        for output in cell.get("outputs", []):
            if RESULT in output.get("data", {}):
                return dict(output["data"][RESULT])
    return {}


def heading_above(notebook: Any, index: int) -> str:
    """Nearest heading above a cell, without its signs.

    Parameters
    ----------
    notebook : NotebookNode
    index : int
        Of the cell, from 0.

    Returns
    -------
    str
        Empty where there is none.
    """
    for cell in reversed(notebook["cells"][:index]):
        if cell["cell_type"] == "markdown":
            for line in reversed("".join(cell["source"]).splitlines()):
                if line.startswith("#"):
                    return line.lstrip("# ").strip()
    return ""


def assigned_names(source: str) -> list[str]:
    """Names that a parameters cell gives values to, read without running it."""
    try:
        body = ast.parse(source).body
    except SyntaxError:
        return []
    targets = [
        node.target if isinstance(node, ast.AnnAssign) else node.targets[0]
        for node in body
        if isinstance(node, ast.AnnAssign | ast.Assign)
    ]
    return [target.id for target in targets if isinstance(target, ast.Name)]


def export_html(notebook: Any, file: Path) -> Path:
    """Write an executed notebook as one HTML page whose figures work without a network.

    nbconvert knows no plotly figure, so each becomes a division of its own and plotly.js is put in once.

    Parameters
    ----------
    notebook : NotebookNode
    file : pathlib.Path

    Returns
    -------
    pathlib.Path
        The file.
    """
    import plotly.graph_objects as go
    from nbconvert import HTMLExporter
    from plotly.offline import get_plotlyjs

    page = copy.deepcopy(notebook)
    outputs = [output["data"] for cell in page["cells"] for output in cell.get("outputs", []) if "data" in output]
    for data in outputs:
        data.pop(WIDGET, None)  # a page has no kernel to bring it to life; the static figure beside it stays
    for number, data in enumerate([data for data in outputs if PLOTLY in data]):
        content = data.pop(PLOTLY)
        data.pop("image/png", None)
        figure = go.Figure(data=content["data"], layout=content["layout"])
        script = f"<script>{get_plotlyjs()}</script>" if number == 0 else ""
        data["text/html"] = script + figure.to_html(full_html=False, include_plotlyjs=False)
    exporter = HTMLExporter(embed_images=True)
    exporter.require_js_url = exporter.mathjax_url = exporter.mermaid_js_url = ""
    body, _ = exporter.from_notebook_node(page, resources={"metadata": {"name": file.stem}})
    file.write_text(body, encoding="utf-8")
    return file
