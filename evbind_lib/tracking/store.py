"""An MLflow store: experiments, one way to create, write and find runs, and what a value looks like in it.

Imports `errors`, `params` and its neighbour `views`; its neighbours `runs` and `tracking` import it.
"""

from __future__ import annotations

import contextlib
import getpass
import logging
import math
import os
import platform
import re
import sqlite3
import subprocess
import time
from collections.abc import Iterator, Mapping, Sequence
from importlib import metadata
from pathlib import Path
from typing import Any

import mlflow
from mlflow.entities import Metric, Param, Run, RunTag
from mlflow.exceptions import MlflowException

from evbind_lib.config.compose import TrackingParams, project_folder, resolve_sqlite, workspace
from evbind_lib.config.processes import is_dead, lock_between_processes, this_process
from evbind_lib.errors import TrackingError
from evbind_lib.tracking import views

SEARCH_EXPERIMENT = "search"
TRAINING_EXPERIMENT = "training"
NOTEBOOK_EXPERIMENT = "notebooks"
EXPERIMENTS = {
    NOTEBOOK_EXPERIMENT: views.NOTEBOOKS,
    SEARCH_EXPERIMENT: views.SEARCH,
    TRAINING_EXPERIMENT: views.TRAINING,
}
PARENT = "mlflow.parentRunId"
PROCESS = "evbind.process"  # host, process and its start: whose run it is, and whether it can still be running
# Without it MLflow 3 takes an experiment for one of language-model traces.
EXPERIMENT_TAGS = {"mlflow.experimentKind": "custom_model_development"}
PACKAGES = ("torch", "transformers", "optuna", "mlflow", "scikit-learn", "pandas", "numpy")
SIGNS_OF_LIFE = ("folds", "cell_seconds")
LONGEST_VALUE = 500  # MLflow's own limit is 6000; the table of runs is unreadable long before
DATA_FILES = ("data.posts", "data.annotations", "data.criteria", "data.pairs")

_logger = logging.getLogger(__name__)


class Store:
    """An MLflow store; SQLite's database is created here, once and without a log line.

    Parameters
    ----------
    tracking : TrackingParams
        A relative SQLite file and a relative folder for artifacts lie in the workspace.
    """

    def __init__(self, tracking: TrackingParams) -> None:
        self.uri = resolve_sqlite(tracking.uri)
        self.artifacts = workspace() / tracking.artifacts
        self.shown_uri = _without_password(tracking.uri)
        self.served = self.uri.startswith(("http://", "https://"))
        self.problem: str | None = None
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
        try:
            if self.uri.startswith("sqlite:///"):
                _check_sqlite(Path(self.uri.removeprefix("sqlite:///").partition("?")[0]))
            # Of processes that make one database at the same time, MLflow lets all but one fail.
            with lock_between_processes(self.uri):
                self.client = mlflow.MlflowClient(tracking_uri=self.uri)
                self.experiments = {name: self._experiment(name) for name in EXPERIMENTS}
        except TrackingError:
            raise
        except Exception as error:
            raise self.unusable(error) from None

    def unusable(self, error: BaseException) -> TrackingError:
        """Error to raise where the store cannot be used."""
        return TrackingError(
            f"tracking.uri={self.shown_uri}: the MLflow store cannot be used ({_reason(error)}); set another "
            "tracking.uri, or tracking=none to go without."
        )

    def lose(self, error: BaseException) -> None:
        """Keep why a write failed in the course of things, and tell the first time."""
        if self.problem is None:
            self.problem = f"{self.shown_uri} could not be written ({_reason(error)}), so its runs have gaps"
            _logger.warning("MLflow: %s", self.problem)

    def _experiment(self, name: str) -> str:
        found = self.client.get_experiment_by_name(name)
        if found is None:
            # A server keeps files where it likes; for a database MLflow would take the current folder.
            location = None if self.served else (self.artifacts / name).as_uri()
            try:
                made = str(self.client.create_experiment(name, artifact_location=location, tags=EXPERIMENT_TAGS))
                for tag, value in views.view_tags(made, EXPERIMENTS[name]).items():
                    self.client.set_experiment_tag(made, tag, value)
                return made
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
        every = {
            "mlflow.user": _user(),
            "mlflow.source.name": "evbind",
            "mlflow.source.type": "LOCAL",
            PROCESS: this_process(),
            **tags,
        }
        if parent:
            every[PARENT] = parent
        return str(self.client.create_run(experiment, tags=every, run_name=name).info.run_id)

    def write(
        self,
        run_id: str,
        *,
        metrics: Mapping[str, float] | Sequence[Metric] = (),
        step: int = 0,
        parameters: Mapping[str, Any] | None = None,
        tags: Mapping[str, Any] | None = None,
    ) -> None:
        """Log everything given in one request, or in as few as MLflow's limits allow."""
        given = points(metrics, step) if isinstance(metrics, Mapping) else metrics
        numbers = [point for point in given if math.isfinite(point.value)]
        texts: list[Param | RunTag] = []
        texts += [Param(legal(name), shown(name, value)) for name, value in (parameters or {}).items()]
        texts += [RunTag(legal(name), str(value)[:5000]) for name, value in (tags or {}).items()]
        while numbers or texts:
            part = texts[:100]
            self.client.log_batch(
                run_id,
                metrics=numbers[:900],
                params=[text for text in part if isinstance(text, Param)],
                tags=[text for text in part if isinstance(text, RunTag)],
            )
            numbers, texts = numbers[900:], texts[100:]

    def close_dead(self) -> int:
        """Mark runs that a killed process on this machine left RUNNING as KILLED, and return how many."""
        dead = []
        for experiment in self.experiments.values():
            for run in self.find(experiment, {}, status="RUNNING"):
                if PROCESS in run.data.tags and is_dead(run.data.tags[PROCESS]):
                    dead.append(run)
        for run in dead:
            self.close_as_killed(run)
        return len(dead)

    def close_as_killed(self, run: Run) -> None:
        """End a run whose process is gone, at its last sign of life, so that it does not seem to have taken days."""
        signs = [sign for metric in SIGNS_OF_LIFE for sign in self.client.get_metric_history(run.info.run_id, metric)]
        end = max([run.info.start_time, *(sign.timestamp for sign in signs)])
        self.write(run.info.run_id, tags={"evbind.state": "KILLED"})
        self.client.set_terminated(run.info.run_id, "KILLED", end_time=end)

    def find(self, experiment: str, tags: Mapping[str, str], *, status: str | None = None) -> list[Run]:
        """Find the runs with all of these tags, oldest first."""
        clauses = [f"tags.`{name}` = '{value}'" for name, value in tags.items()]
        clauses += [f"attributes.status = '{status}'"] if status else []
        found: list[Run] = []
        token = None
        while True:
            page = self.client.search_runs(
                [experiment], " and ".join(clauses), order_by=["attributes.start_time ASC"], page_token=token
            )
            found += page
            token = page.token
            if not token:
                return found


def git_commit() -> str:
    """Commit of the checkout, ``-dirty`` where tracked files differ from it; ``unknown`` outside of git."""
    git = ["git", "-C", str(project_folder())]
    try:
        commit = subprocess.run([*git, "rev-parse", "HEAD"], capture_output=True, text=True, timeout=10, check=True)
        changed = subprocess.run([*git, "diff", "--quiet", "HEAD"], capture_output=True, timeout=10)
    except (OSError, subprocess.SubprocessError):
        return "unknown"
    return commit.stdout.strip() + ("-dirty" if changed.returncode else "")


def package_versions() -> dict[str, str]:
    """Versions of the packages that a result depends on."""
    return {name: version for name, version in _versions()}


def _versions() -> Iterator[tuple[str, str]]:
    for name in PACKAGES:
        with contextlib.suppress(metadata.PackageNotFoundError):
            yield name, metadata.version(name)


def circumstances() -> dict[str, str]:
    """Tags that say with what a run was made: commit, Python, platform, versions."""
    commit = git_commit()
    return {
        PROCESS: this_process(),
        "evbind.git_commit": commit,
        "mlflow.source.git.commit": commit.removesuffix("-dirty"),
        "evbind.python": platform.python_version(),
        "evbind.platform": f"{platform.system()} {platform.machine()}",
        **{f"evbind.version.{name}": version for name, version in package_versions().items()},
    }


def shown(name: str, value: Any) -> str:
    """A value as a parameter or tag: plain, and cut where it is too long to read."""
    text = str(plain(name, value))
    return text if len(text) <= LONGEST_VALUE else text[: LONGEST_VALUE - 1] + "…"


def plain(name: str, value: Any) -> Any:
    """Value as it may be kept: data files by their name, addresses without password."""
    if isinstance(value, str):
        return Path(value).name if name in DATA_FILES else _without_password(value)
    return value


def _without_password(uri: str) -> str:
    return re.sub(r"(://[^:/@\s]*):[^@\s]*@", r"\1:***@", uri)


def _reason(error: BaseException) -> str:
    lines = str(error).strip().splitlines() or [type(error).__name__]
    return _without_password(lines[0].rstrip("."))[:200]


def legal(name: str) -> str:
    """Name with what MLflow refuses in names made an underscore."""
    return re.sub(r"[^\w\-. :/]", "_", name)[:250]


def points(metrics: Mapping[str, float], step: int) -> list[Metric]:
    """Metrics as MLflow wants them, all of this moment."""
    now = int(time.time() * 1000)
    return [Metric(legal(name), float(value), now, step) for name, value in metrics.items()]


def _user() -> str:
    try:
        return getpass.getuser()
    except (OSError, KeyError, ImportError):
        return "unknown"


def _check_sqlite(file: Path) -> None:
    """Find out whether the file can be written; MLflow itself would try for a minute.

    Raises
    ------
    OSError, sqlite3.Error
        When it cannot.
    """
    file.parent.mkdir(parents=True, exist_ok=True)
    with contextlib.closing(sqlite3.connect(file, timeout=10, isolation_level=None)) as connection:
        connection.execute("BEGIN IMMEDIATE")
        connection.execute("ROLLBACK")
