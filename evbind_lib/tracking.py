"""MLflow: Study run > Trial runs > Fold runs, and Training run > Fold runs.

Only `MlflowClient` with explicit run and parent ids is used: the fluent interface keeps a global active
run, which makes orphans as soon as two things run at once. Ids and numbers are logged, never text of posts.
Once a study or a training has its run, a write that fails is told once as a warning and the training goes
on: hours of training are worth more than their record. Imports `errors` and `params`; `notebook` imports
it.
"""

from __future__ import annotations

import contextlib
import functools
import getpass
import hashlib
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
from typing import TYPE_CHECKING, Any, Protocol

import pandas as pd

from evbind_lib.errors import TrackingError
from evbind_lib.params import TrackingParams, project_folder, resolve_sqlite, workspace

# MLflow would report its use to its makers, and print an address for every run that ends on a server.
os.environ.setdefault("MLFLOW_DISABLE_TELEMETRY", "true")
os.environ.setdefault("MLFLOW_SUPPRESS_PRINTING_URL_TO_STDOUT", "true")

import mlflow
from mlflow.entities import Metric, Param, Run, RunTag
from mlflow.exceptions import MlflowException

if TYPE_CHECKING:
    from evbind_lib.training import EpochReport, FoldReport, Observer
else:
    Observer = object  # training takes seconds to import, and only the names of its methods matter here

SEARCH_EXPERIMENT = "search"
TRAINING_EXPERIMENT = "training"
PARENT = "mlflow.parentRunId"
# Without it MLflow 3 takes an experiment for one of language-model traces.
EXPERIMENT_TAGS = {"mlflow.experimentKind": "custom_model_development"}
PACKAGES = ("torch", "transformers", "optuna", "mlflow", "scikit-learn", "pandas", "numpy")
LONGEST_VALUE = 500  # MLflow's own limit is 6000; the table of runs is unreadable long before
DATA_FILES = ("data.posts", "data.annotations", "data.criteria", "data.pairs")
TEXT_COLUMNS = ("sentence", "text", "post", "criterion")
SHOW_AFTER = (
    5.0  # seconds; epochs that take longer are to be seen while they come, quick ones are written per fold
)

_logger = logging.getLogger(__name__)


class Tracker(Protocol):
    """Where runs are recorded: MLflow, or nowhere."""

    problem: str | None  # why a write failed in the course of things; None while all went well

    def study(
        self, name: str, storage: str, *, parameters: Mapping[str, Any], tags: Mapping[str, str]
    ) -> StudyRun:
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


class MlflowTracker:
    """Records in an MLflow store; SQLite's database is created here, once and without a log line.

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
            self.client = mlflow.MlflowClient(tracking_uri=self.uri)
            self.experiments = {
                name: self._experiment(name) for name in (SEARCH_EXPERIMENT, TRAINING_EXPERIMENT)
            }
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
                return str(
                    self.client.create_experiment(name, artifact_location=location, tags=EXPERIMENT_TAGS)
                )
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

    def study(
        self, name: str, storage: str, *, parameters: Mapping[str, Any], tags: Mapping[str, str]
    ) -> StudyRun:
        """Open the run of a study: the one it has already, or a new one."""
        # A digest: names may hold quotes, and addresses of storages passwords.
        key = hashlib.sha256(f"{resolve_sqlite(storage)}#{name}".encode()).hexdigest()[:16]
        experiment = self.experiments[SEARCH_EXPERIMENT]
        inherited = {"evbind.study": name, "evbind.study_key": key}
        own = {**tags, **_circumstances(), **inherited, "evbind.level": "study"}
        try:
            found = self.find(experiment, {"evbind.study_key": key, "evbind.level": "study"})
            if found:
                run_id = str(found[0].info.run_id)
                self.client.update_run(run_id, status="RUNNING")
            else:
                run_id = self.start(experiment, name, None, own)
            run = StudyRun(self, run_id, experiment, inherited)
            run.describe(parameters, own)
        except (MlflowException, OSError) as error:
            raise self.unusable(error) from None
        return run

    def training(self, name: str, *, parameters: Mapping[str, Any], tags: Mapping[str, str]) -> TrainingRun:
        """Open the run of a single cross-validation."""
        experiment = self.experiments[TRAINING_EXPERIMENT]
        own = {**tags, **_circumstances(), "evbind.level": "training", "evbind.training": name}
        try:
            run_id = self.start(experiment, name, None, own)
            run = TrainingRun(self, run_id, experiment, {"evbind.training": name})
            run.describe(parameters, own)
        except (MlflowException, OSError) as error:
            raise self.unusable(error) from None
        return run

    def start(self, experiment: str, name: str, parent: str | None, tags: Mapping[str, str]) -> str:
        """Create a run below its parent and return its id."""
        every = {
            "mlflow.user": _user(),
            "mlflow.source.name": "evbind",
            "mlflow.source.type": "LOCAL",
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
        points = _points(metrics, step) if isinstance(metrics, Mapping) else metrics
        numbers = [point for point in points if math.isfinite(point.value)]
        texts: list[Param | RunTag] = []
        texts += [Param(_legal(name), _shown(name, value)) for name, value in (parameters or {}).items()]
        texts += [RunTag(_legal(name), str(value)[:5000]) for name, value in (tags or {}).items()]
        while numbers or texts:
            part = texts[:100]
            self.client.log_batch(
                run_id,
                metrics=numbers[:900],
                params=[text for text in part if isinstance(text, Param)],
                tags=[text for text in part if isinstance(text, RunTag)],
            )
            numbers, texts = numbers[900:], texts[100:]

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


def _keeps_going(
    instead: Callable[[], Any] = lambda: None,
) -> Callable[[Callable[..., Any]], Callable[..., Any]]:
    """Turn a write that fails into a warning and what the method gives instead."""

    def decorate(method: Callable[..., Any]) -> Callable[..., Any]:
        @functools.wraps(method)
        def careful(self: _Run, *args: Any, **kwargs: Any) -> Any:
            try:
                return method(self, *args, **kwargs)
            except (MlflowException, OSError) as error:
                self.tracker.lose(error)
                return instead()

        return careful

    return decorate


class _Run:
    """A run in MLflow, with what its children inherit."""

    def __init__(
        self, tracker: MlflowTracker, run_id: str, experiment: str, inherited: Mapping[str, str]
    ) -> None:
        self.tracker = tracker
        self.run_id = run_id
        self.experiment = experiment
        self.inherited = dict(inherited)

    def describe(self, parameters: Mapping[str, Any], tags: Mapping[str, str]) -> None:
        """Log parameters and circumstances.

        MLflow lets no parameter be changed, so on a resumed run only new ones are logged, and what a changed
        one is now becomes a tag ``evbind.now.<name>``. The artifact ``params.json`` has all as they are now.
        """
        logged = self.tracker.client.get_run(self.run_id).data
        now = {_legal(name): _shown(name, value) for name, value in parameters.items() if value is not None}
        new = {name: value for name, value in now.items() if name not in logged.params}
        stale = {
            name for name in now if f"evbind.now.{name}" in logged.tags
        }  # changed once, and perhaps back again
        changed = stale | {name for name, value in now.items() if logged.params.get(name, value) != value}
        current = {f"evbind.now.{name}": now[name] for name in changed}
        self.tracker.write(self.run_id, parameters=new, tags={**tags, **current})
        plain = {name: _plain(name, value) for name, value in parameters.items()}
        self.tracker.client.log_dict(self.run_id, plain, "params.json")
        self.tracker.client.log_dict(self.run_id, package_versions(), "packages.json")

    def close(self, status: str) -> None:
        """End the run as FINISHED, FAILED or KILLED."""
        self.tracker.client.set_terminated(self.run_id, status)


class FoldRuns(_Run, Observer):
    """A run whose folds are child runs; an observer of the training."""

    def __init__(
        self, tracker: MlflowTracker, run_id: str, experiment: str, inherited: Mapping[str, str]
    ) -> None:
        super().__init__(tracker, run_id, experiment, inherited)
        self.fold_run: str | None = None
        self.is_open = True
        self._unwritten: list[Metric] = []
        self._written_at = time.monotonic()
        self._values: dict[str, list[float]] = {}

    @_keeps_going()
    def on_fold_start(self, fold: int) -> None:
        """Open the fold's run."""
        self.fold_run = None  # where it cannot be opened, nothing may go to the fold before
        self._unwritten = []
        self._written_at = time.monotonic()
        tags = {**self.inherited, "evbind.level": "fold", "evbind.fold": str(fold + 1)}
        # The number comes first: MLflow's page cuts long names at this depth of the tree.
        self.fold_run = self.tracker.start(
            self.experiment, f"fold {fold + 1} of {self.name()}", self.run_id, tags
        )

    @_keeps_going()
    def on_epoch(self, report: EpochReport) -> None:
        """Log the epoch's loss and validation metrics, by epoch; those of quick epochs go together."""
        numbers = {"training_loss": report.training_loss, **report.metrics, "epoch_seconds": report.seconds}
        self._unwritten += _points(numbers, report.epoch)
        if time.monotonic() - self._written_at > SHOW_AFTER:
            self._write_epochs()

    def _write_epochs(self, others: Sequence[Metric] = ()) -> None:
        if self.fold_run is not None:
            self.tracker.write(self.fold_run, metrics=[*self._unwritten, *others])
        self._unwritten = []
        self._written_at = time.monotonic()

    @_keeps_going()
    def on_fold(self, report: FoldReport) -> None:
        """Log sizes and durations, close the fold's run, and log its metrics and their mean so far here."""
        facts = {
            "seconds": report.seconds,
            "n_training": report.n_training,
            "n_validation": report.n_validation,
            "peak_memory_mb": report.peak_memory_mb,
        }
        for name, value in report.metrics.items():
            self._values.setdefault(name, []).append(value)
        by_fold = {f"fold/{name}": value for name, value in report.metrics.items()}
        by_fold |= {name: sum(values) / len(values) for name, values in self._values.items()}
        by_fold |= {"fold/seconds": report.seconds, "folds": report.fold + 1}
        self._write_epochs(_points(facts, 0))
        if self.fold_run is not None:
            self.tracker.client.set_terminated(self.fold_run, "FINISHED")
            self.fold_run = None
        self.tracker.write(self.run_id, metrics=by_fold, step=report.fold + 1)

    def name(self) -> str:
        """Say what the folds' names end with."""
        raise NotImplementedError

    def end(self, status: str, *, tags: Mapping[str, Any], metrics: Mapping[str, float]) -> None:
        """Close an open fold and this run."""
        self.is_open = False
        if self.fold_run is not None:
            self._write_epochs()
            self.tracker.client.set_terminated(self.fold_run, "KILLED" if status == "KILLED" else "FAILED")
            self.fold_run = None
        self.tracker.write(self.run_id, metrics=metrics, tags=tags)
        self.close(status)


class TrialRun(FoldRuns):
    """Run of one trial."""

    def name(self) -> str:
        """Give the trial's own name."""
        return _trial_name(self.inherited["evbind.trial"])

    @_keeps_going()
    def finish(
        self,
        state: str,
        *,
        value: float | None = None,
        metrics: Mapping[str, float] | None = None,
        error: str | None = None,
        seconds: float = 0.0,
    ) -> None:
        """End the trial.

        Parameters
        ----------
        state : str
            ``COMPLETE``, ``PRUNED``, ``FAILED`` or ``KILLED``; a pruned trial ends FINISHED, with its
            state as a tag and in its name.
        value : float, optional
            The objective.
        metrics : mapping of str to float, optional
            Of the pooled out-of-fold predictions.
        error : str, optional
            Type and message of what the trial failed with; the first line is kept.
        seconds : float
        """
        numbers = {f"pooled/{name}": number for name, number in (metrics or {}).items()}
        if value is not None and state == "COMPLETE":
            numbers["objective"] = (
                value  # that of a pruned trial is of fewer folds: it would sort among the others
            )
        status = {"COMPLETE": "FINISHED", "PRUNED": "FINISHED"}.get(state, state)
        self.end(
            status,
            tags={"evbind.state": state, **_error_tags(error)},
            metrics={**numbers, "seconds": seconds},
        )
        if state == "PRUNED":
            self.tracker.client.update_run(self.run_id, name=f"{self.name()} (pruned)")


class TrainingRun(FoldRuns):
    """Run of a single cross-validation."""

    def name(self) -> str:
        """Say what the folds' names end with."""
        return self.inherited["evbind.training"]

    @_keeps_going()
    def finish(
        self,
        status: str,
        *,
        metrics: Mapping[str, float] | None = None,
        error: str | None = None,
        seconds: float = 0.0,
    ) -> None:
        """End the run as FINISHED, FAILED or KILLED, with metrics of the pooled out-of-fold predictions."""
        numbers = {f"pooled/{name}": number for name, number in (metrics or {}).items()}
        self.end(status, tags=_error_tags(error), metrics={**numbers, "seconds": seconds})

    @_keeps_going()
    def log_table(self, name: str, table: pd.DataFrame) -> None:
        """Keep a table as ``<name>.csv`` with the run; columns that hold text are left out."""
        kept = table.drop(columns=[column for column in TEXT_COLUMNS if column in table.columns])
        named = any(label is not None for label in kept.index.names)
        self.tracker.client.log_text(self.run_id, kept.to_csv(index=named), f"{_legal(name)}.csv")


class StudyRun(_Run):
    """Run of a study; its trials and its summary are child runs."""

    def __init__(
        self, tracker: MlflowTracker, run_id: str, experiment: str, inherited: Mapping[str, str]
    ) -> None:
        super().__init__(tracker, run_id, experiment, inherited)
        self._trials: list[TrialRun] = []
        self._best: int | None = None

    def _find(self, level: str, **tags: str) -> list[Run]:
        wanted = {f"evbind.{name}": value for name, value in tags.items()}
        key = self.inherited["evbind.study_key"]
        return self.tracker.find(self.experiment, {"evbind.study_key": key, "evbind.level": level, **wanted})

    @_keeps_going(lambda: _Nothing())
    def trial(self, number: int, parameters: Mapping[str, Any]) -> TrialRun:
        """Open the run of a trial.

        Parameters
        ----------
        number : int
        parameters : mapping of str to value
            As suggested.

        Returns
        -------
        TrialRun
        """
        inherited = {**self.inherited, "evbind.trial": str(number)}
        run_id = self.tracker.start(
            self.experiment, f"trial {number:03d}", self.run_id, {**inherited, "evbind.level": "trial"}
        )
        self.tracker.write(run_id, parameters=parameters)
        run = TrialRun(self.tracker, run_id, self.experiment, inherited)
        self._trials.append(run)
        return run

    @_keeps_going(lambda: 0)
    def close_stale(self) -> int:
        """Mark runs below this one that a killed process left RUNNING as KILLED, and return how many.

        They end when they last gave a sign of life, so that no trial seems to have taken days.
        """
        alive = {self.run_id}
        for trial in self._trials:
            alive |= {trial.run_id, trial.fold_run or ""} if trial.is_open else set()
        key = {"evbind.study_key": self.inherited["evbind.study_key"]}
        running = self.tracker.find(self.experiment, key, status="RUNNING")
        stale = [run for run in running if run.info.run_id not in alive]
        for run in stale:
            signs = self.tracker.client.get_metric_history(run.info.run_id, "folds")
            end = max([run.info.start_time, *(sign.timestamp for sign in signs)])
            self.tracker.write(run.info.run_id, tags={"evbind.state": "KILLED"})
            self.tracker.client.set_terminated(run.info.run_id, "KILLED", end_time=end)
        return len(stale)

    @_keeps_going()
    def mark_best(self, number: int) -> None:
        """Mark one trial's run as the best, by tag and in its name, and take the mark from the one before."""
        for run in self._find("trial", best="true"):
            earlier = run.data.tags["evbind.trial"]
            if earlier != str(number):
                self.tracker.client.set_tag(run.info.run_id, "evbind.best", "false")
                self.tracker.client.update_run(run.info.run_id, name=_trial_name(earlier))
        for run in self._find("trial", trial=str(number))[-1:]:
            self.tracker.client.set_tag(run.info.run_id, "evbind.best", "true")
            self.tracker.client.update_run(run.info.run_id, name=f"{_trial_name(number)} (best)")
            best = {"best_value": run.data.metrics.get("objective", math.nan)}
            self.tracker.write(self.run_id, metrics=best, step=number, tags={"evbind.best_trial": number})
        self._best = number

    @_keeps_going()
    def summary(
        self,
        *,
        counts: Mapping[str, int],
        best_parameters: Mapping[str, Any],
        best_value: float,
        importances: Mapping[str, float],
        files: Mapping[str, Path],
    ) -> None:
        """Write the child run 'Study Summary', the one that is there already when the study went on.

        Parameters
        ----------
        counts : mapping of str to int
            Trials in total, complete, pruned and failed.
        best_parameters : mapping of str to value
        best_value : float
        importances : mapping of str to float
        files : mapping of str to pathlib.Path
            Logged as artifacts.
        """
        there = self._find("summary")
        if there:
            run_id = str(there[0].info.run_id)
        else:
            tags = {**self.inherited, "evbind.level": "summary"}
            run_id = self.tracker.start(self.experiment, "Study Summary", self.run_id, tags)
        numbers: dict[str, float] = {f"trials_{name}": count for name, count in counts.items()}
        numbers["best_value"] = best_value
        shares = {f"importance/{name}": share for name, share in importances.items()}
        text = self._note(counts, best_parameters, best_value, importances)
        note = {"mlflow.note.content": text}
        # Tags, not parameters: the study may go on and find a better one, and parameters cannot change.
        best = {f"best.{name}": value for name, value in best_parameters.items()}
        step = int(counts["total"])  # shows how a resumed study went on
        self.tracker.write(self.run_id, metrics=numbers, step=step, tags=note)
        self.tracker.write(run_id, metrics={**numbers, **shares}, step=step, tags={**best, **note})
        for file in files.values():
            self.tracker.client.log_artifact(run_id, str(file))
        self.tracker.client.set_terminated(run_id, "FINISHED")

    def _note(
        self,
        counts: Mapping[str, int],
        best_parameters: Mapping[str, Any],
        best_value: float,
        importances: Mapping[str, float],
    ) -> str:
        """Write what MLflow's page says about the run, in Markdown."""
        states = ", ".join(f"{count} {name}" for name, count in counts.items() if name != "total")
        which = "" if self._best is None else f", trial {self._best}"
        lines = [f"{counts.get('total', 0)} trials: {states}. Best value {best_value:.4f}{which}.", ""]
        lines += ["| parameter | best | importance |", "| --- | --- | --- |"]
        for name, value in best_parameters.items():
            share = f"{importances[name]:.2f}" if name in importances else ""
            lines.append(f"| {name} | {f'{value:.4g}' if isinstance(value, float) else value} | {share} |")
        return "\n".join(lines)

    @_keeps_going()
    def finish(self, status: str) -> None:
        """End the study's run as FINISHED, FAILED or KILLED, and trials that were cut off as KILLED."""
        for trial in self._trials:
            if trial.is_open:
                trial.finish("KILLED")
        self.close(status)


class MemorylessTracker:
    """Records nothing, with ``tracking=none``."""

    problem: str | None = None

    def study(
        self, name: str, storage: str, *, parameters: Mapping[str, Any], tags: Mapping[str, str]
    ) -> Any:
        """Give something that takes every call of a `StudyRun`."""
        return _Nothing()

    def training(self, name: str, *, parameters: Mapping[str, Any], tags: Mapping[str, str]) -> Any:
        """Give something that takes every call of a `TrainingRun`."""
        return _Nothing()


class _Nothing:
    def __getattr__(self, name: str) -> Any:
        return lambda *args, **kwargs: _Nothing()


def git_commit() -> str:
    """Commit of the checkout, ``-dirty`` where tracked files differ from it; ``unknown`` outside of git."""
    git = ["git", "-C", str(project_folder())]
    try:
        commit = subprocess.run(
            [*git, "rev-parse", "HEAD"], capture_output=True, text=True, timeout=10, check=True
        )
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


def _circumstances() -> dict[str, str]:
    commit = git_commit()
    return {
        "evbind.git_commit": commit,
        "mlflow.source.git.commit": commit.removesuffix("-dirty"),
        "evbind.python": platform.python_version(),
        "evbind.platform": f"{platform.system()} {platform.machine()}",
        **{f"evbind.version.{name}": version for name, version in package_versions().items()},
    }


def _shown(name: str, value: Any) -> str:
    text = str(_plain(name, value))
    return text if len(text) <= LONGEST_VALUE else text[: LONGEST_VALUE - 1] + "…"


def _plain(name: str, value: Any) -> Any:
    """Value as it may be kept: data files by their name, addresses without password."""
    if isinstance(value, str):
        return Path(value).name if name in DATA_FILES else _without_password(value)
    return value


def _without_password(uri: str) -> str:
    return re.sub(r"(://[^:/@\s]*):[^@\s]*@", r"\1:***@", uri)


def _reason(error: BaseException) -> str:
    lines = str(error).strip().splitlines() or [type(error).__name__]
    return _without_password(lines[0].rstrip("."))[:200]


def _error_tags(error: str | None) -> dict[str, str]:
    line = error.strip().splitlines()[0][:300] if error and error.strip() else ""
    return {"evbind.error": line, "mlflow.note.content": line} if line else {}


def _legal(name: str) -> str:
    """Name with what MLflow refuses in names made an underscore."""
    return re.sub(r"[^\w\-. :/]", "_", name)[:250]


def _points(metrics: Mapping[str, float], step: int) -> list[Metric]:
    now = int(time.time() * 1000)
    return [Metric(_legal(name), float(value), now, step) for name, value in metrics.items()]


def _trial_name(number: int | str) -> str:
    return f"trial {int(number):03d}"


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
