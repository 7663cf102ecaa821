"""The MLflow store: its experiments, one way to create, write and find runs, and what a value looks like in it.

Only `MlflowClient` with explicit run and parent ids is used: MLflow's functions keep a global active run, which makes orphans as
soon as two things run at once. Numbers, names and ids of runs are written, never text of posts.
"""

from __future__ import annotations

import contextlib
import functools
import logging
import math
import os
import platform
import re
import sqlite3
import subprocess
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from importlib import metadata
from pathlib import Path
from typing import Any

import psutil

from evbind_lib.config.paths import project_folder, resolve_sqlite, without_password, workspace
from evbind_lib.config.processes import is_dead, lock_between_processes, this_process
from evbind_lib.config.schema import TrackingParams
from evbind_lib.errors import TrackingError

# MLflow would report its use to its makers, and print an address for every run that ends on a server.
os.environ.setdefault("MLFLOW_DISABLE_TELEMETRY", "true")
os.environ.setdefault("MLFLOW_SUPPRESS_PRINTING_URL_TO_STDOUT", "true")

import mlflow
from mlflow.entities import Metric, Param, Run, RunTag
from mlflow.exceptions import MlflowException

EXPERIMENTS = ("notebooks", "search", "training")
PROCESS = "evbind.process"  # host, process and its start: whose run it is, and whether it can still be running
# Without it MLflow 3 takes an experiment for one of language-model traces.
EXPERIMENT_TAGS = {"mlflow.experimentKind": "custom_model_development"}
PACKAGES = ("torch", "transformers", "optuna", "mlflow", "scikit-learn", "pandas", "numpy")
HEARTBEATS = ("folds", "cells")  # metrics that are written while a run goes on
LONGEST_VALUE = 500  # MLflow's own limit is 6000; the table of runs is unreadable long before
DATA_FILES = ("data.posts", "data.annotations", "data.criteria", "data.pairs")
Values = Mapping[str, Any]
Numbers = Mapping[str, float] | Sequence[Metric]
NONE: Values = {}


def open_tracker(tracking: TrackingParams) -> Store | None:
    """Open the MLflow store that the parameters name, None with ``tracking=none``; `TrackingError` where it cannot be used."""
    return Store(tracking) if tracking.enabled else None


def or_go_on(method: Callable[..., Any]) -> Callable[..., Any]:
    """Turn a write that fails into a warning; the method, of a store or of a run, then returns None."""

    @functools.wraps(method)
    def careful(self: Any, *args: Any, **kwargs: Any) -> Any:
        try:
            return method(self, *args, **kwargs)
        except (MlflowException, OSError) as error:
            getattr(self, "store", self).note_problem(error)
            return None

    return careful


class Store:
    """An MLflow store; SQLite's database is created here, once and without a log line.

    A relative SQLite file and a relative folder for artifacts lie in the workspace. To another process a store travels as its
    parameters, and is opened there.
    """

    def __init__(self, tracking: TrackingParams) -> None:
        self.tracking = tracking
        self.uri = resolve_sqlite(tracking.uri)
        self.shown_uri = without_password(tracking.uri)
        self.served = self.uri.startswith(("http://", "https://"))
        self.problem: str | None = None  # why a write failed while work went on; None while all went well
        if self.uri.startswith("file:") or "://" not in self.uri:
            raise TrackingError(
                f"tracking.uri={self.shown_uri}: MLflow no longer keeps runs in folders; "
                "use tracking.uri=sqlite:///mlflow.db."
            )
        if self.served:
            # MLflow would try a server that is not there for minutes.
            os.environ.setdefault("MLFLOW_HTTP_REQUEST_MAX_RETRIES", "1")
            os.environ.setdefault("MLFLOW_HTTP_REQUEST_TIMEOUT", "20")
        for name in ("mlflow", "alembic"):
            logging.getLogger(name).setLevel(logging.ERROR)
        with self.must_work():
            if self.uri.startswith("sqlite:///"):
                file = Path(self.uri.removeprefix("sqlite:///").partition("?")[0])
                file.parent.mkdir(parents=True, exist_ok=True)
                # Where the file cannot be written, MLflow would try for a minute.
                with contextlib.closing(sqlite3.connect(file, timeout=10, isolation_level=None)) as connection:
                    connection.executescript("BEGIN IMMEDIATE; ROLLBACK")
            # Of processes that make one database at the same time, MLflow lets all but one fail.
            with lock_between_processes(self.uri):
                self.client = mlflow.MlflowClient(tracking_uri=self.uri)
                self.experiments = {name: self._experiment(name) for name in EXPERIMENTS}

    def __reduce__(self) -> tuple[type[Store], tuple[TrackingParams]]:
        return Store, (self.tracking,)

    @contextlib.contextmanager
    def must_work(self) -> Iterator[None]:
        """Raise whatever fails inside as the `TrackingError` that says what to do."""
        try:
            yield
        except TrackingError:
            raise
        except Exception as error:
            raise TrackingError(
                f"tracking.uri={self.shown_uri}: the MLflow store cannot be used ({_reason(error)}); set another "
                "tracking.uri, or tracking=none to go without."
            ) from None

    def note_problem(self, error: BaseException) -> None:
        """Keep why a write failed while work went on, and warn the first time."""
        if self.problem is None:
            self.problem = f"{self.shown_uri} could not be written ({_reason(error)}), so its runs have gaps"
            logging.getLogger("evbind_lib").warning("MLflow: %s", self.problem)

    def _experiment(self, name: str) -> str:
        found = self.client.get_experiment_by_name(name)
        if found is None:
            # A server keeps files where it likes; for a database MLflow would take the current folder.
            location = None if self.served else (workspace() / self.tracking.artifacts / name).as_uri()
            try:
                return str(self.client.create_experiment(name, artifact_location=location, tags=EXPERIMENT_TAGS))
            except MlflowException:  # another process was faster
                found = self.client.get_experiment_by_name(name)
                if found is None:
                    raise
        if found.lifecycle_stage != "active":
            raise TrackingError(
                f"tracking.uri={self.shown_uri}: the experiment '{name}' was deleted there; take it back "
                f"with `mlflow experiments restore -x {found.experiment_id}`, or remove it by `mlflow gc`."
            )
        return str(found.experiment_id)

    def start(self, experiment: str, name: str, parent: str | None, tags: Mapping[str, str]) -> str:
        """Create a run below its parent and return its id."""
        source = {"mlflow.source.name": "evbind", "mlflow.source.type": "LOCAL", PROCESS: this_process()}
        above = {"mlflow.parentRunId": parent} if parent else {}
        every = {"mlflow.user": psutil.Process().username(), **source, **above, **tags}
        return str(self.client.create_run(experiment, tags=every, run_name=name).info.run_id)

    def write(
        self, run_id: str, metrics: Numbers = (), *, step: int = 0, parameters: Values = NONE, tags: Values = NONE
    ) -> None:
        """Log everything given in one request, or in as few as MLflow's limits allow."""
        given = points(metrics, step) if isinstance(metrics, Mapping) else metrics
        numbers = [point for point in given if math.isfinite(point.value)]
        texts = [Param(legal(name), shown(name, value)) for name, value in parameters.items()]
        marks = [RunTag(legal(name), str(value)[:5000]) for name, value in tags.items()]
        while numbers or texts or marks:
            self.client.log_batch(run_id, metrics=numbers[:800], params=texts[:100], tags=marks[:100])
            numbers, texts, marks = numbers[800:], texts[100:], marks[100:]

    @or_go_on
    def end_abandoned(self) -> int:
        """End as KILLED what killed processes of this machine left RUNNING, at its last heartbeat; return how many runs."""
        running = [run for experiment in self.experiments.values() for run in self.find(experiment, {}, "RUNNING")]
        dead = [run for run in running if PROCESS in run.data.tags and is_dead(run.data.tags[PROCESS])]
        for run in dead:
            run_id = run.info.run_id
            beats = [beat.timestamp for name in HEARTBEATS for beat in self.client.get_metric_history(run_id, name)]
            self.write(run_id, tags={"evbind.state": "KILLED"})
            self.client.set_terminated(run_id, "KILLED", end_time=max([run.info.start_time, *beats]))
        return len(dead)

    def find(self, experiment: str, tags: Mapping[str, str], status: str | None = None) -> list[Run]:
        """Find the runs with all of these tags, oldest first."""
        clauses = [f"tags.`{name}` = '{value}'" for name, value in tags.items()]
        clauses += [f"attributes.status = '{status}'"] if status else []
        order = ["attributes.start_time ASC"]
        return list(self.client.search_runs([experiment], " and ".join(clauses), max_results=50_000, order_by=order))


def git_commit() -> str:
    """Commit of the checkout, ``-dirty`` where tracked files differ from it; ``unknown`` outside of git."""
    describe = ["git", "-C", str(project_folder()), "describe", "--always", "--dirty", "--abbrev=40", "--exclude=*"]
    try:
        done = subprocess.run(describe, capture_output=True, text=True, timeout=10, check=True)
    except (OSError, subprocess.SubprocessError):
        return "unknown"
    return done.stdout.strip()


def circumstances() -> dict[str, str]:
    """Tags that say with what a run was made: process, commit, Python, platform, versions of packages."""
    commit = git_commit()
    tags = {
        PROCESS: this_process(),
        "evbind.git_commit": commit,
        "mlflow.source.git.commit": commit.removesuffix("-dirty"),
        "evbind.python": platform.python_version(),
        "evbind.platform": f"{platform.system()} {platform.machine()}",
    }
    for name in PACKAGES:
        with contextlib.suppress(metadata.PackageNotFoundError):
            tags[f"evbind.version.{name}"] = metadata.version(name)
    return tags


def shown(name: str, value: Any) -> str:
    """A value as a parameter or tag: plain, and cut where it is too long to read."""
    text = str(plain(name, value))
    return text if len(text) <= LONGEST_VALUE else text[: LONGEST_VALUE - 1] + "…"


def plain(name: str, value: Any) -> Any:
    """Value as it may be stored: data files by their name, addresses without password."""
    if isinstance(value, str):
        return Path(value).name if name in DATA_FILES else without_password(value)
    return value


def legal(name: str) -> str:
    """Name with what MLflow refuses in names made an underscore."""
    return re.sub(r"[^\w\-. :/]", "_", name)[:250]


def points(metrics: Mapping[str, float], step: int) -> list[Metric]:
    """Metrics as MLflow wants them, all of this moment."""
    now = int(time.time() * 1000)
    return [Metric(legal(name), float(value), now, step) for name, value in metrics.items()]


def _reason(error: BaseException) -> str:
    lines = str(error).strip().splitlines() or [type(error).__name__]
    return without_password(lines[0].rstrip("."))[:200]
