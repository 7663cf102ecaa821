"""The MLflow store: its experiments, one way to create and find runs, and what tags and values look like in it.

Only `MlflowClient` with explicit ids is used: MLflow's global active run makes orphans as soon as two things run at once.
"""

from __future__ import annotations

import contextlib
import functools
import glob
import logging
import os
import platform
import re
import shutil
import sqlite3
import subprocess
import tempfile
import time
from collections.abc import Callable, Iterator, Mapping
from concurrent.futures import Future, ThreadPoolExecutor, wait
from importlib import metadata
from pathlib import Path
from typing import Any

import psutil
import sqlalchemy

from evbind_lib.config.masking import masked
from evbind_lib.config.paths import in_address, project_folder, resolve_sqlite, sqlite_file, workspace
from evbind_lib.config.processes import is_dead, lock_between_processes, this_process
from evbind_lib.config.schema import TrackingParams
from evbind_lib.errors import TrackingError

# MLflow would report its use to its makers, print an address for every run that ends on a server, and try a server that is not
# there, or does not answer, for minutes.
os.environ.setdefault("MLFLOW_DISABLE_TELEMETRY", "true")
os.environ.setdefault("MLFLOW_SUPPRESS_PRINTING_URL_TO_STDOUT", "true")
os.environ.setdefault("MLFLOW_HTTP_REQUEST_MAX_RETRIES", "0")
os.environ.setdefault("MLFLOW_HTTP_REQUEST_TIMEOUT", "10")
os.environ.setdefault("PGCONNECT_TIMEOUT", "5")

import mlflow
from mlflow.entities import Run
from mlflow.exceptions import MlflowException
from mlflow.store.artifact.artifact_repository_registry import get_artifact_repository
from mlflow.store.db.db_types import DATABASE_ENGINES
from mlflow.system_metrics import system_metrics_monitor

PROCESS = "evbind.process"  # host, process and its start: whose run it is, and whether it can still be running
# Without it MLflow 3 takes an experiment for one of language-model traces.
EXPERIMENT_TAGS = {"mlflow.experimentKind": "custom_model_development"}
LEVELS = {"notebooks": "notebook", "search": "study", "training": "training"}  # of the runs at the top of an experiment
PACKAGES = ("torch", "transformers", "optuna", "mlflow", "scikit-learn", "pandas", "numpy")
TRIAL_WAITS = 2.0  # seconds that a trial waits for what is written while it runs, in all
SAME = [f"evbind.{name}" for name in ("study_key", "level", "trial", "finalist", "fold", "seed")]  # name a study's run
HEARTBEATS = ("folds", "cells", "best_value")  # metrics that are logged while a run goes on
MOST_RUNS = 50_000  # of one answer of MLflow's
# Columns of its database that hold where files are, by table.
PLACES = {"experiments": "artifact_location", "runs": "artifact_uri", "logged_models": "artifact_location"}
Values = Mapping[str, Any]
NONE: Values = {}


class Store:
    """An MLflow store, or `TrackingError`; addresses may be relative to the workspace; to another process its parameters go."""

    has_gaps = False  # whether a write failed while work went on
    _last: Future[None] | None = None  # what was written last
    _waited = 0.0  # seconds that the trial has waited for it so far

    def __init__(self, tracking: TrackingParams) -> None:
        self.tracking, self.uri = tracking, resolve_sqlite(tracking.uri)
        self.shown_uri = masked(tracking.uri)
        self.served = self.uri.startswith(("http://", "https://"))
        with self.must_work("artifacts"):
            if not self.served:
                _check_place(tracking.artifacts)
        # Of processes that make one database at the same time, MLflow lets all but one fail.
        with self.must_work(), lock_between_processes(self.uri), _without_news_of_the_database():
            if file := sqlite_file(self.uri):
                _make_whole(file)
                if self.uri != tracking.uri:  # it lies in the workspace
                    _follow_workspace(file, tracking.artifacts)
            elif re.split(r"[+:]", self.uri)[0] in DATABASE_ENGINES:
                _check_database(self.uri)
            self.experiments = {name: self._experiment(name) for name in LEVELS}

    @functools.cached_property
    def client(self) -> mlflow.MlflowClient:
        """MLflow's client, made by the first that writes: in a worker the store may be lost by then."""
        return _client_of(self.uri)

    @functools.cached_property
    def _writer(self) -> ThreadPoolExecutor:
        return ThreadPoolExecutor(1, "mlflow")

    def __getstate__(self) -> dict[str, Any]:
        return {name: getattr(self, name) for name in ("tracking", "uri", "shown_uri", "served", "experiments")}

    @contextlib.contextmanager
    def must_work(self, key: str = "uri") -> Iterator[None]:
        """Raise whatever fails inside as the `TrackingError` that says what to do."""
        try:
            yield
        except Exception as error:
            place = f"tracking.{key}={masked(getattr(self.tracking, key))}"
            problem = f"{place}: the MLflow store cannot be used ({_reason(error)})"
            raise TrackingError(f"{problem}; set another tracking.{key}, or tracking=none to go without.") from None

    def may_wait(self) -> None:
        """Begin a trial, which may wait for this store as long as any other, but not for what the one before did not."""
        self._waited = 0.0 if self._last is None or self._last.done() else TRIAL_WAITS

    def live(self, write: Callable[..., Any], *args: Any, **given: Any) -> None:
        """Write while work goes on: in order, in another thread, waited for as long as a trial may; after a failure no more."""

        def attempt() -> None:
            if not self.has_gaps:
                with self.going_on("nothing more is written before the end"):
                    write(*args, **given)

        began = time.monotonic()
        self._last = self._writer.submit(attempt)
        with contextlib.suppress(TimeoutError):
            self._last.result(max(0.0, TRIAL_WAITS - self._waited))
        self._waited += time.monotonic() - began

    def log_system_metrics(self, run_id: str) -> Callable[[], None]:
        """Log what the machine does to a run, as MLflow does where it is asked; what ends that."""
        if not self.tracking.system_metrics:
            return lambda: None
        logging.getLogger(system_metrics_monitor.__name__).setLevel(logging.WARNING)  # no line in a cell
        monitor = system_metrics_monitor.SystemMetricsMonitor(run_id, resume_logging=True, tracking_uri=self.uri)
        monitor.start()
        return monitor.finish

    @contextlib.contextmanager
    def at_end(self) -> Iterator[None]:
        """Write what remains at the end, after all that waits, also where something could not be written before."""
        wait([self._last] if self._last else [])
        self.has_gaps = False
        with self.going_on("`evbind sync` writes what is missing of a study"):
            yield

    @contextlib.contextmanager
    def going_on(self, then: str = "its runs have gaps") -> Iterator[None]:
        """Warn where a write inside fails, and go on: MLflow is a view."""
        try:
            with _without_news_of_the_database():
                yield
        except Exception as error:
            self.has_gaps = True
            message = "MLflow: %s could not be written (%s); %s"
            logging.getLogger("evbind_lib").warning(message, self.shown_uri, _reason(error), then)

    def _experiment(self, name: str) -> str:
        found = self.client.get_experiment_by_name(name)
        if found is None:
            # A server keeps files where it likes; for a database MLflow would take the current folder.
            location = None if self.served else _location(self.tracking.artifacts, name)
            try:
                return str(self.client.create_experiment(name, artifact_location=location, tags=EXPERIMENT_TAGS))
            except MlflowException:  # another machine was faster; those of this one wait for the lock
                found = self.client.get_experiment_by_name(name)
                if found is None:
                    raise
        if found.lifecycle_stage != "active":
            restore = f"mlflow experiments restore -x {found.experiment_id}"
            raise MlflowException(f"the experiment '{name}' was deleted there; take it back with `{restore}`")
        return str(found.experiment_id)

    def start(self, experiment: str, name: str, tags: Values, began: float | None = None) -> str:
        """Create a run, below that of its tag ``mlflow.parentRunId``, now or as begun then, and return its id."""
        source = {"mlflow.source.name": "evbind", "mlflow.source.type": "LOCAL", PROCESS: this_process()}
        every = {"mlflow.user": psutil.Process().username(), **source, **tags}
        start = began and int(began * 1000)
        return str(self.client.create_run(experiment, start_time=start, tags=every, run_name=name).info.run_id)

    def end_abandoned(self) -> None:
        """End as KILLED what killed processes of this machine left RUNNING, at its last heartbeat; an empty double goes."""
        every, history = list(self.experiments.values()), self.client.get_metric_history
        for run in self.client.search_runs(every, "attributes.status = 'RUNNING'", max_results=MOST_RUNS):
            tags = run.data.tags
            if PROCESS not in tags or not is_dead(tags[PROCESS]):
                continue
            own = {name: tags[name] for name in SAME if name in tags}
            is_empty = not (run.data.params or run.data.metrics)
            if is_empty and SAME[0] in own and len(self.find(run.info.experiment_id, own)) > 1:
                self.client.delete_run(run.info.run_id)
                continue
            heartbeats = [beat for name in HEARTBEATS for beat in history(run.info.run_id, name)]
            last = max([run.info.start_time, *(beat.timestamp for beat in heartbeats)])
            self.client.set_terminated(run.info.run_id, "KILLED", end_time=last)

    def find(self, experiment: str, tags: Values) -> list[Run]:
        """Find the runs with all of these tags, oldest first, but last what a server that hung made when nobody waited for it."""
        wanted = " and ".join(f"tags.`{name}` = '{value}'" for name, value in tags.items())
        found = self.client.search_runs([experiment], wanted, max_results=MOST_RUNS, order_by=["start_time ASC"])
        return sorted(found, key=lambda run: not (run.data.params or run.data.metrics))


def _client_of(uri: str) -> mlflow.MlflowClient:
    # MLflow makes the folder of a file as it stands in an address, %25 for a %, but not where that names the driver as well.
    return mlflow.MlflowClient(tracking_uri=uri.replace("sqlite:", "sqlite+pysqlite:") if "%" in uri else uri)


@contextlib.contextmanager
def _without_news_of_the_database() -> Iterator[None]:
    """Keep from a notebook or terminal what MLflow logs of its database, tracebacks included; what fails is raised."""
    logger, nothing = logging.getLogger("mlflow.store.db.utils"), logging.Filter("nothing")
    logger.addFilter(nothing)
    try:
        yield
    finally:
        logger.removeFilter(nothing)


def _check_database(address: str) -> None:
    """Connect once to a database of a server, which MLflow itself would try ten times."""
    try:
        sqlalchemy.create_engine(address, poolclass=sqlalchemy.NullPool).connect().close()
    except sqlalchemy.exc.SQLAlchemyError as error:
        raise MlflowException(str(error.__cause__ or error).strip().splitlines()[0]) from None


def _location(artifacts: str, name: str) -> str:
    """Where an experiment keeps files: in a folder, of the workspace where it is relative, or below an address such as s3://."""
    return f"{artifacts.rstrip('/')}/{name}" if "://" in artifacts else (workspace() / artifacts / name).as_uri()


def _check_place(artifacts: str) -> None:
    """Raise where files cannot be kept, or MLflow has no access to their kind of place; a folder is made."""
    if not artifacts.strip() or artifacts.endswith("://"):
        raise MlflowException("it names no place")
    if "://" in artifacts:
        get_artifact_repository(artifacts)
    else:
        (workspace() / artifacts).mkdir(parents=True, exist_ok=True)


def _make_whole(file: Path) -> None:
    """Make MLflow's database where there is none, or one that a start which was cut off left without its last tables."""
    # MLflow makes its tables by dozens of migrations, each of its own: a process that is killed among them, or a full disk,
    # leaves a database that no later start can use. One made aside is copied by SQLite in a single transaction.
    file.touch()  # SQLite itself would let nobody else write to it, whatever the umask
    with contextlib.closing(sqlite3.connect(file, timeout=10, isolation_level=None)) as connection:
        connection.executescript("BEGIN IMMEDIATE; ROLLBACK")  # where this fails, MLflow would try for a minute
        tables = [name for (name,) in connection.execute("SELECT name FROM sqlite_schema WHERE type = 'table'")]
        filled = {name for name in tables if connection.execute(f'SELECT 1 FROM "{name}" LIMIT 1').fetchone()}
        if "experiments" in filled:  # MLflow writes its first row when everything else is done
            return
        if filled - {"alembic_version", "workspaces"}:
            raise MlflowException("it is the database of something else")
        for left in file.parent.glob(f".{glob.escape(file.name)}-*"):  # by a process that was killed here
            shutil.rmtree(left, ignore_errors=True)
        with tempfile.TemporaryDirectory(prefix=f".{file.name}-", dir=file.parent) as folder:
            made = Path(folder, "made.db")
            _client_of(f"sqlite:///{in_address(made)}").search_experiments(max_results=1)
            with contextlib.closing(sqlite3.connect(made)) as whole:
                whole.backup(connection)


def _follow_workspace(file: Path, artifacts: str) -> None:
    """Keep files of a workspace that was moved or copied in its new place: MLflow stores whole paths, and changes none."""
    with contextlib.closing(sqlite3.connect(file, timeout=10)) as connection, connection:
        for name in LEVELS:
            now = _location(artifacts, name)
            query = "SELECT experiment_id, artifact_location FROM experiments WHERE name = ? AND artifact_location != ?"
            for number, before in connection.execute(query, (name, now)).fetchall():
                if before.startswith("file:") and before.endswith(f"/{artifacts}/{name}"):
                    for table, column in PLACES.items():
                        update = f"UPDATE {table} SET {column} = replace({column}, ?, ?) WHERE experiment_id = ?"
                        connection.execute(update, (before, now, number))


def git_commit() -> str:
    """Commit of the checkout, ``-dirty`` where tracked files differ from it; ``unknown`` outside of git."""
    describe = ["git", "-C", str(project_folder()), "describe", "--always", "--dirty", "--abbrev=40", "--exclude=*"]
    try:
        return subprocess.check_output(describe, stderr=subprocess.DEVNULL, text=True, timeout=10).strip()
    except (OSError, subprocess.SubprocessError):
        return "unknown"


def circumstances() -> dict[str, Any]:
    """Tags that say with what a run was made: process, commit, Python, platform, versions of packages."""
    commit, system = git_commit(), f"{platform.system()} {platform.machine()}"
    own = evbind_tags(git_commit=commit, python=platform.python_version(), platform=system)
    versions = {f"evbind.version.{name}": metadata.version(name) for name in PACKAGES}
    return {PROCESS: this_process(), "mlflow.source.git.commit": commit.removesuffix("-dirty"), **own, **versions}


def evbind_tags(**values: Any) -> dict[str, Any]:
    """Tags of evbind's own; those that are None are left out."""
    return {f"evbind.{name}": value for name, value in values.items() if value is not None}


def legal(name: str) -> str:
    """Name with what MLflow refuses in names made an underscore."""
    return re.sub(r"[^\w\-. :/]", "_", name)[:250]


def _reason(error: BaseException) -> str:
    text = str(getattr(error, "strerror", None) or error).strip()  # without the path of a file
    lines = [line for line in text.splitlines() if "autoflush" not in line] or [type(error).__name__]
    return str(masked(lines[0].rstrip(".")))[:300]
