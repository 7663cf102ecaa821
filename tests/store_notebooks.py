"""Run all notebooks in an empty workspace and store them with their outputs, without what differs from run to run.

``make notebooks`` runs ``python -m tests.store_notebooks [NAME ...]``; it needs Chrome or Chromium for the static
pictures, of which some are kept for the README.
"""

from __future__ import annotations

import base64
import os
import shutil
import sys
import tempfile
from collections.abc import Sequence
from pathlib import Path

import nbformat
import papermill

from evbind_lib.notebook.run import notebooks
from evbind_lib.tracking.page import PLOTLY

PROJECT = Path(__file__).resolve().parent.parent
BEST = PROJECT / "tests" / "stored" / "hpo_best.yaml"  # what the stored 04 and 05 are made with
PICTURES = PROJECT / "notebooks" / "pictures"
# Figures that the README shows, by notebook and the beginning of their title.
FOR_THE_README = {
    ("hpo_search", "Score of each trial"): "history.png",
    ("hpo_search", "Parameters and score"): "parallel.png",
    ("train", "Precision and recall"): "precision_recall.png",
}


def store(names: Sequence[str]) -> None:
    """Execute notebooks and write them back; the search first, since 04 and 05 use what it finds."""
    with tempfile.TemporaryDirectory() as folder:
        trainer = Path(folder) / "params" / "trainer" / BEST.name
        trainer.parent.mkdir(parents=True)
        shutil.copy(BEST, trainer)  # a search among the notebooks writes it anew
        os.environ.update(EVBIND_WORKSPACE=folder, EVBIND_STATIC_FIGURES="1")
        for name in sorted(names, key=lambda name: name != "hpo_search"):
            file = notebooks()[name]
            executed = papermill.execute_notebook(
                file, Path(folder) / file.name, engine_name="evbind", progress_bar=False, cwd=folder
            )
            if name == "hpo_search":
                shutil.copy(trainer, BEST)
            refuse_log_lines(executed, file.name)
            keep_pictures(name, executed)
            nbformat.write(normalised(executed), file)
            print(f"stored {file.relative_to(PROJECT)}: {file.stat().st_size / 1000:.0f} kB")


def refuse_log_lines(notebook: nbformat.NotebookNode, name: str) -> None:
    """Stop before anything is stored where a cell wrote to stderr: a warning of ours, or a log line of the browser."""
    for number, cell in enumerate(notebook.cells):
        told = [output.text for output in cell.get("outputs", []) if output.get("name") == "stderr"]
        if told:
            sys.exit(f"{name}, cell {number}: it wrote to stderr, so it is not stored; run this again: {told[0][:500]}")


def normalised(notebook: nbformat.NotebookNode) -> nbformat.NotebookNode:
    """Take out what differs from run to run or has no place in a stored notebook."""
    notebook.metadata = {
        "kernelspec": {"display_name": "Python 3", "language": "python", "name": "python3"},
        "language_info": {"name": "python"},
    }
    notebook.cells = [cell for cell in notebook.cells if "injected-parameters" not in cell.metadata.get("tags", [])]
    for cell in notebook.cells:
        kept = ("tags", "within", "reason")
        cell.metadata = {name: cell.metadata[name] for name in kept if cell.metadata.get(name)}
        if cell.cell_type == "code":
            for output in cell.outputs:
                output.pop("metadata", None)
                if output.output_type in {"display_data", "execute_result"}:
                    output.metadata = {}
    return notebook


def keep_pictures(name: str, notebook: nbformat.NotebookNode) -> None:
    """Write the figures that the README shows."""
    PICTURES.mkdir(exist_ok=True)
    for cell in notebook.cells:
        for output in cell.get("outputs", []):
            data = output.get("data", {})
            if PLOTLY in data:
                title = data[PLOTLY]["layout"]["title"]["text"]
                for (wanted, beginning), file in FOR_THE_README.items():
                    if wanted == name and title.startswith(beginning):
                        (PICTURES / file).write_bytes(base64.b64decode(data["image/png"]))


if __name__ == "__main__":
    store(sys.argv[1:] or list(notebooks()))
