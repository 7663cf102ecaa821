"""An executed notebook as a page, and what it recorded."""

from __future__ import annotations

from pathlib import Path

import plotly.graph_objects as go
from nbformat.v4 import new_code_cell, new_markdown_cell, new_notebook, new_output

from evbind_lib.tracking.page import PLOTLY, RESULT, WIDGET, export_html, recorded_result


def test_figures_of_a_page_work_without_a_network(tmp_path: Path) -> None:
    figure = {
        PLOTLY: go.Figure(go.Scatter(y=[1, 2])).to_plotly_json(),
        "image/png": "",
        WIDGET: {"model_id": "model-7c1"},
    }
    outputs = [new_output("display_data", data=dict(figure)) for _ in range(2)]
    notebook = new_notebook(cells=[new_markdown_cell("# Two figures"), new_code_cell("1", outputs=outputs)])
    page = export_html(notebook, tmp_path / "page.html").read_text()
    assert "Two figures" in page and page.count("Plotly.newPlot(") >= 2
    assert page.count("* plotly.js v") == 1, "the library is in it, and once"
    assert not [line for line in page.splitlines() if "<script" in line and 'src="http' in line]
    assert "model-7c1" not in page, "no kernel brings a widget to life there"
    assert PLOTLY in notebook.cells[1].outputs[0].data, "the notebook stays as it is"


def test_a_recorded_result_is_read_back() -> None:
    data = {"text/plain": "0.8", RESULT: {"best": 0.8}}
    cells = [new_code_cell("1"), new_code_cell("2", outputs=[new_output("display_data", data=data)])]
    assert recorded_result(new_notebook(cells=cells)) == {"best": 0.8}
    assert recorded_result(new_notebook(cells=cells[:1])) == {}
