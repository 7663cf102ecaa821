"""MLflow: executions of notebooks; Study run > Trial runs > Fold runs; Training run > Fold runs.

Only `MlflowClient` with explicit run and parent ids is used: the fluent interface keeps a global active
run, which makes orphans as soon as two things run at once. Ids and numbers are logged, never text of posts.
Once a study or a training has its run, a write that fails is told once as a warning and the training goes
on: hours of training are worth more than their record. Imports `errors`, `params` and `pages`;
`engine`, `execution` and `notebook` import it.
"""

from __future__ import annotations

import hashlib
import os
from collections.abc import Mapping
from typing import Any, Protocol

from evbind_lib.config.compose import TrackingParams
from evbind_lib.config.processes import lock_between_processes, this_process

# MLflow would report its use to its makers, and print an address for every run that ends on a server.
os.environ.setdefault("MLFLOW_DISABLE_TELEMETRY", "true")
os.environ.setdefault("MLFLOW_SUPPRESS_PRINTING_URL_TO_STDOUT", "true")

from mlflow.exceptions import MlflowException

from evbind_lib.tracking.executions import RUN_VARIABLE, NotebookRun
from evbind_lib.tracking.runs import Nothing, Run, StudyRun, TrainingRun, TrialRun
from evbind_lib.tracking.store import (
    NOTEBOOK_EXPERIMENT,
    PROCESS,
    SEARCH_EXPERIMENT,
    TRAINING_EXPERIMENT,
    Store,
    circumstances,
    git_commit,
    package_versions,
)

__all__ = [
    "RUN_VARIABLE",
    "MlflowTracker",
    "NotebookRun",
    "Run",
    "StudyRun",
    "Tracker",
    "TrainingRun",
    "TrialRun",
    "git_commit",
    "open_tracker",
    "package_versions",
]


class Tracker(Protocol):
    """Where runs are recorded: MLflow, or nowhere."""

    problem: str | None  # why a write failed in the course of things; None while all went well

    def notebook(self, name: str, *, parameters: Mapping[str, Any], way: str) -> NotebookRun:
        """Open the run of a notebook's execution."""

    def running_notebook(self, run_id: str) -> NotebookRun | None:
        """Find the run of an execution that another process opened."""

    def study(self, name: str, identity: str, *, parameters: Mapping[str, Any], tags: Mapping[str, str]) -> StudyRun:
        """Open the run of a study, a new one or the one it has already."""

    def training(self, name: str, *, parameters: Mapping[str, Any], tags: Mapping[str, str]) -> TrainingRun:
        """Open the run of a single cross-validation."""


def open_tracker(tracking: TrackingParams) -> Tracker:
    """Tracker for the parameters; with ``tracking=none`` one that records nothing.

    Parameters
    ----------
    tracking : TrackingParams

    Returns
    -------
    Tracker

    Raises
    ------
    TrackingError
        When the store cannot be reached or written.
    """
    return MlflowTracker(tracking) if tracking.enabled else MemorylessTracker()


class MlflowTracker(Store):
    """Opens runs in an MLflow store."""

    def notebook(self, name: str, *, parameters: Mapping[str, Any], way: str) -> NotebookRun:
        """Open the run of a notebook's execution, after closing runs that killed processes left open.

        Parameters
        ----------
        name : str
            Of the notebook, without ``.ipynb``.
        parameters : mapping of str to plain value
        way : str
            How it was started: ``jupyter`` or ``papermill``.
        """
        own = {**circumstances(), "evbind.level": "notebook", "evbind.notebook": name, "evbind.way": way}
        experiment = self.experiments[NOTEBOOK_EXPERIMENT]
        try:
            self.close_dead()
            run = NotebookRun(self, self.start(experiment, name, None, own), experiment, {"evbind.notebook": name})
            run.describe(parameters, own)
        except (MlflowException, OSError) as error:
            raise self.unusable(error) from None
        return run

    def running_notebook(self, run_id: str) -> NotebookRun | None:
        """The run of an execution that another process opened and will close; None where this store has no such run."""
        try:
            name = self.client.get_run(run_id).data.tags.get("evbind.notebook", "notebook")
        except MlflowException:
            return None
        return NotebookRun(self, run_id, self.experiments[NOTEBOOK_EXPERIMENT], {"evbind.notebook": name})

    def study(self, name: str, identity: str, *, parameters: Mapping[str, Any], tags: Mapping[str, str]) -> StudyRun:
        """Open the run of a study: the one that the study of this identity has already, or a new one."""
        key = hashlib.sha256(f"{identity}#{name}".encode()).hexdigest()[:16]  # names may hold quotes
        experiment = self.experiments[SEARCH_EXPERIMENT]
        inherited = {"evbind.study": name, "evbind.study_key": key}
        own = {**tags, **circumstances(), **inherited, "evbind.level": "study"}
        try:
            # Searches that join a study at the same moment must not make two runs of it: on one machine the lock keeps
            # them apart, across machines the oldest run is the study's.
            with lock_between_processes(f"{self.uri} {key}"):
                if not self.find(experiment, {"evbind.study_key": key, "evbind.level": "study"}):
                    self.start(experiment, name, None, own)
                first, *others = self.find(experiment, {"evbind.study_key": key, "evbind.level": "study"})
            run_id = str(first.info.run_id)
            for other in others:
                if other.data.tags[PROCESS] == this_process():
                    self.client.delete_run(other.info.run_id)
            self.client.update_run(run_id, status="RUNNING")
            run = StudyRun(self, run_id, experiment, inherited)
            run.describe(parameters, own)
        except (MlflowException, OSError) as error:
            raise self.unusable(error) from None
        return run

    def training(self, name: str, *, parameters: Mapping[str, Any], tags: Mapping[str, str]) -> TrainingRun:
        """Open the run of a single cross-validation."""
        experiment = self.experiments[TRAINING_EXPERIMENT]
        own = {**tags, **circumstances(), "evbind.level": "training", "evbind.training": name}
        try:
            run_id = self.start(experiment, name, None, own)
            run = TrainingRun(self, run_id, experiment, {"evbind.training": name})
            run.describe(parameters, own)
        except (MlflowException, OSError) as error:
            raise self.unusable(error) from None
        return run


class MemorylessTracker:
    """Records nothing, with ``tracking=none``."""

    problem: str | None = None

    def notebook(self, name: str, *, parameters: Mapping[str, Any], way: str) -> Any:
        """Give something that takes every call of a `NotebookRun`."""
        return Nothing()

    def running_notebook(self, run_id: str) -> None:
        """Find nothing."""

    def study(self, name: str, identity: str, *, parameters: Mapping[str, Any], tags: Mapping[str, str]) -> Any:
        """Give something that takes every call of a `StudyRun`."""
        return Nothing()

    def training(self, name: str, *, parameters: Mapping[str, Any], tags: Mapping[str, str]) -> Any:
        """Give something that takes every call of a `TrainingRun`."""
        return Nothing()
