"""A real JupyterLab in a real browser: figures are on the screen, in the saved file, and in the page of that execution."""

from __future__ import annotations

import json
import os
import shutil
import socket
import subprocess
import sys
import time
import urllib.request
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import nbformat
import pytest
import websocket
from nbformat.v4 import new_code_cell, new_notebook

from tests.conftest import BRIEF

BROWSER = shutil.which("chromium") or shutil.which("google-chrome")
CELLS = (
    f"overrides = {[*BRIEF, 'hpo.trials.n_trials=2']}",
    "import evbind_lib as ev\nfrom evbind_lib.notebook import widgets\nfrom evbind_lib.notebook.show import show\n"
    "params = ev.start('in_lab', overrides, hpo='quick')",
    "corpus = ev.load_corpus(params)\nfolds = ev.make_folds(corpus, params)\n"
    "result = ev.search(ev.Objective(corpus, folds, params), params)",
    "show(ev.plots.slices(result.study))",
    "widgets.try_thresholds(result.predictions())",
)
READY = "[...window.jupyterapp.shell.widgets('main')].some(each => each.sessionContext?.session?.kernel)"
TITLES = "[...document.querySelectorAll('.js-plotly-plot')].map(plot => plot.layout.title.text)"


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


class Page:
    """A page of the browser, driven by its debugging protocol."""

    def __init__(self, port: int) -> None:
        tabs = wait_for(lambda: json.load(urllib.request.urlopen(f"http://127.0.0.1:{port}/json")), 60)
        (address,) = [tab["webSocketDebuggerUrl"] for tab in tabs if tab["type"] == "page"]
        self.socket, self.sent = websocket.create_connection(address, timeout=180), 0

    def call(self, method: str, **params: Any) -> dict[str, Any]:
        self.sent += 1
        self.socket.send(json.dumps({"id": self.sent, "method": method, "params": params}))
        while (answer := json.loads(self.socket.recv())).get("id") != self.sent:
            pass
        return dict(answer.get("result", answer))

    def run(self, code: str) -> Any:
        answer = self.call("Runtime.evaluate", expression=code, awaitPromise=True, returnByValue=True)
        return answer.get("result", {}).get("value")


def wait_for(ask: Any, seconds: float) -> Any:
    """The first answer that is true, asked for again and again."""
    end = time.monotonic() + seconds
    while True:
        try:
            if answer := ask():
                return answer
        except OSError:
            pass
        assert time.monotonic() < end, "no answer in time"
        time.sleep(0.5)


@pytest.fixture
def page(workspace: Path, tmp_path: Path) -> Iterator[Page]:
    if BROWSER is None:
        pytest.skip("no Chromium or Chrome on this machine")
    cells = [new_code_cell(source) for source in CELLS]
    cells[0].metadata["tags"] = ["parameters"]
    kernel = {"kernelspec": {"name": "python3", "display_name": "Python 3"}}
    nbformat.write(new_notebook(cells=cells, metadata=kernel), tmp_path / "in_lab.ipynb")
    serving, debugging = free_port(), free_port()
    settings = [f"--port={serving}", f"--notebook-dir={tmp_path}", "--ServerApp.token=", "--ServerApp.password="]
    server = [sys.executable, "-m", "jupyterlab", "--no-browser", "--allow-root", "--expose-app-in-browser", *settings]
    browser = [BROWSER, "--headless=new", "--no-sandbox", "--disable-gpu", f"--remote-debugging-port={debugging}"]
    browser += [
        "--remote-allow-origins=*",
        "--window-size=1400,4000",
        f"--user-data-dir={tmp_path / 'browser'}",
        "about:blank",
    ]
    quiet: dict[str, Any] = {"stdout": subprocess.DEVNULL, "stderr": subprocess.DEVNULL}
    environment = {**os.environ, "JUPYTER_CONFIG_DIR": str(tmp_path / "config")}
    with subprocess.Popen(server, env=environment, **quiet) as lab, subprocess.Popen(browser, **quiet) as chrome:
        try:
            place = f"http://127.0.0.1:{serving}"
            wait_for(lambda: urllib.request.urlopen(f"{place}/api").status == 200, 60)
            opened = Page(debugging)
            opened.call("Page.enable")
            opened.call("Page.navigate", url=f"{place}/lab/tree/in_lab.ipynb?reset")
            wait_for(lambda: opened.run(READY), 60)
            yield opened
        finally:
            chrome.kill()
            lab.terminate()


@pytest.mark.slow
def test_figures_are_on_the_screen_in_the_saved_file_when_reopened_and_on_the_page(
    page: Page, tmp_path: Path, workspace: Path
) -> None:
    wanted = ["Score of each trial", "Score against each parameter"]
    page.run("window.jupyterapp.commands.execute('notebook:run-all-cells')")

    def on_screen() -> bool:
        titles = page.run(TITLES) or []
        return titles[:2] == wanted and len(titles) == 3 and titles[2].startswith("At threshold 0.50")

    wait_for(on_screen, 60)
    shown = page.run("[...document.querySelectorAll('.js-plotly-plot')].map(plot => plot.data.length)")
    assert shown[0] >= 2  # the live figure has become that of the finished study
    # The slider moves the counts in the one figure that stands below it.
    slider = "[...document.querySelectorAll('.jupyter-widgets .noUi-handle')].pop()"
    page.run(f"{slider}.focus()")
    for kind in ("keyDown", "keyUp"):
        page.call("Input.dispatchKeyEvent", type=kind, key="ArrowRight", code="ArrowRight", windowsVirtualKeyCode=39)
    wait_for(lambda: (page.run(TITLES) or [""])[-1].startswith("At threshold 0.51"), 20)

    page.run("window.jupyterapp.commands.execute('docmanager:save')")
    saved = nbformat.read(tmp_path / "in_lab.ipynb", as_version=4)
    figures = [output.data for cell in saved.cells for output in cell.get("outputs", []) if "data" in output]
    figures = [data["application/vnd.plotly.v1+json"] for data in figures if "application/vnd.plotly.v1+json" in data]
    titles = [figure["layout"]["title"]["text"] for figure in figures]
    assert titles[:2] == wanted and len(titles) == 3 and titles[2].startswith("At threshold 0.51")

    page.call("Page.reload")
    wait_for(
        lambda: len(page.run("[...document.querySelectorAll('.js-plotly-plot, .plot-img')].map(each => 1)") or []) >= 3,
        30,
    )
    assert "model not found" not in (page.run("document.body.innerText") or "").lower()

    def of_the_run() -> list[Path]:
        return [*workspace.glob("mlartifacts/**/in_lab.html"), *workspace.glob("runs/*in_lab*.html")]

    (html, *_) = wait_for(of_the_run, 30)
    assert html.read_text(encoding="utf-8").count("Plotly.newPlot(") == 3
