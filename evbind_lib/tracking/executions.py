"""Runs in MLflow that follow the execution of a notebook, whichever way it was started.

Imports its neighbours `runs` and `store`, and `pages`; `engine` and `execution` use it through `tracking`.
"""

from __future__ import annotations

import contextlib
import tempfile
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import nbformat
import pandas as pd
from mlflow.entities import Metric
from mlflow.exceptions import MlflowException

from evbind_lib.tracking.page import export_html
from evbind_lib.tracking.runs import SHOW_AFTER, Run, error_tags, keeps_going, run_link
from evbind_lib.tracking.store import Store, points

# Tells a kernel the run that papermill's engine ``evbind`` has opened for it.
RUN_VARIABLE = "EVBIND_NOTEBOOK_RUN"


class NotebookRun(Run):
    """Run of one pass through a notebook."""

    def __init__(self, tracker: Store, run_id: str, experiment: str, inherited: Mapping[str, str]) -> None:
        super().__init__(tracker, run_id, experiment, inherited)
        self.name = inherited.get("evbind.notebook", "notebook")
        self.status = "RUNNING"
        self._cells: list[dict[str, Any]] = []
        self._unwritten: list[Metric] = []
        self._written_at = self._started_at = time.monotonic()
        self._has_error = False

    @keeps_going()
    def cell(self, number: int, heading: str, seconds: float, *, failed: bool = False) -> None:
        """Log how long a cell took; those of quick cells go together.

        Parameters
        ----------
        number : int
            Of the cell in the notebook, from 1.
        heading : str
            What the notebook says above it.
        seconds : float
        failed : bool
        """
        self._cells.append(
            {"cell": number, "heading": heading, "seconds": round(seconds, 3), "status": "failed" if failed else "ok"}
        )
        self._unwritten += points({"cell_seconds": seconds}, number)
        if time.monotonic() - self._written_at > SHOW_AFTER:
            self._write_cells()

    def _write_cells(self) -> None:
        self.tracker.write(self.run_id, metrics=self._unwritten)
        self._unwritten = []
        self._written_at = time.monotonic()

    @keeps_going()
    def link(self, run: Run, kind: str, name: str) -> None:
        """Name the study or training run that this execution made, and this execution there.

        Parameters
        ----------
        run : Run
        kind : str
            ``study`` or ``training``.
        name : str
        """
        note = f"{kind.capitalize()}: {run_link(name, run.experiment, run.run_id)}"
        self.tracker.write(self.run_id, tags={f"evbind.{kind}_run": run.run_id, "mlflow.note.content": note})
        self.tracker.write(run.run_id, tags={"evbind.notebook_run": self.run_id})

    @keeps_going()
    def set_status(self, status: str, error: str | None = None) -> None:
        """Say how the execution stands: RUNNING, FINISHED, FAILED or KILLED, with the error it stopped at."""
        self.status = status
        self._write_cells()
        if self._has_error and not error:
            for tag in error_tags("it went on"):
                with contextlib.suppress(MlflowException):
                    self.tracker.client.delete_tag(self.run_id, tag)
        self._has_error = bool(error)
        numbers = {"seconds": time.monotonic() - self._started_at, "cells": len(self._cells)}
        self.tracker.write(self.run_id, metrics=numbers, tags=error_tags(error))
        if status == "RUNNING":
            self.tracker.client.update_run(self.run_id, status="RUNNING")
        else:
            self.close(status)

    @keeps_going()
    def keep(self, document: nbformat.NotebookNode) -> None:
        """Keep the executed notebook, its page and the time of each cell as artifacts.

        Parameters
        ----------
        document : NotebookNode
            With the outputs of this execution.
        """
        with tempfile.TemporaryDirectory() as folder:
            file = Path(folder) / f"{self.name}.ipynb"
            nbformat.write(document, file)
            export_html(document, file.with_suffix(".html"))
            pd.DataFrame(self._cells, columns=["cell", "heading", "seconds", "status"]).to_csv(
                Path(folder) / "cells.csv", index=False
            )
            self.tracker.client.log_artifacts(self.run_id, folder)
