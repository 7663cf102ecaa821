"""Runs in MLflow that follow a study, its trials and their folds, or a single cross-validation.

A write that fails in the course of things is told once as a warning and the training goes on: hours of training
are worth more than their record. Imports its neighbour `store` and `reports`.
"""

from __future__ import annotations

import functools
import math
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import pandas as pd
from mlflow.entities import Metric
from mlflow.entities import Run as StoredRun
from mlflow.exceptions import MlflowException

from evbind_lib.config.processes import is_dead, this_process
from evbind_lib.tracking.store import PROCESS, Store, legal, package_versions, plain, points, shown
from evbind_lib.training.result import Callback, EpochResult, FoldResult

TEXT_COLUMNS = ("sentence", "text", "post", "criterion")
SHOW_AFTER = 5.0  # seconds; epochs that take longer are to be seen while they come, quick ones are written per fold


def keeps_going(
    instead: Callable[[], Any] = lambda: None,
) -> Callable[[Callable[..., Any]], Callable[..., Any]]:
    """Turn a write that fails into a warning and what the method gives instead."""

    def decorate(method: Callable[..., Any]) -> Callable[..., Any]:
        @functools.wraps(method)
        def careful(self: Run, *args: Any, **kwargs: Any) -> Any:
            try:
                return method(self, *args, **kwargs)
            except (MlflowException, OSError) as error:
                self.tracker.lose(error)
                return instead()

        return careful

    return decorate


class Run:
    """A run in MLflow, with what its children inherit."""

    def __init__(self, tracker: Store, run_id: str, experiment: str, inherited: Mapping[str, str]) -> None:
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
        now = {legal(name): shown(name, value) for name, value in parameters.items() if value is not None}
        new = {name: value for name, value in now.items() if name not in logged.params}
        stale = {name for name in now if f"evbind.now.{name}" in logged.tags}  # changed once, and perhaps back again
        changed = stale | {name for name, value in now.items() if logged.params.get(name, value) != value}
        current = {f"evbind.now.{name}": now[name] for name in changed}
        self.tracker.write(self.run_id, parameters=new, tags={**tags, **current})
        kept = {name: plain(name, value) for name, value in parameters.items()}
        self.tracker.client.log_dict(self.run_id, kept, "params.json")
        self.tracker.client.log_dict(self.run_id, package_versions(), "packages.json")

    def close(self, status: str) -> None:
        """End the run as FINISHED, FAILED or KILLED."""
        self.tracker.client.set_terminated(self.run_id, status)


class FoldRuns(Run, Callback):
    """A run whose folds are child runs; an observer of the training."""

    def __init__(self, tracker: Store, run_id: str, experiment: str, inherited: Mapping[str, str]) -> None:
        super().__init__(tracker, run_id, experiment, inherited)
        self.fold_run: str | None = None
        self.is_open = True
        self._unwritten: list[Metric] = []
        self._written_at = time.monotonic()
        self._values: dict[str, list[float]] = {}

    @keeps_going()
    def on_fold_begin(self, fold: int) -> None:
        """Open the fold's run."""
        self.fold_run = None  # where it cannot be opened, nothing may go to the fold before
        self._unwritten = []
        self._written_at = time.monotonic()
        tags = {**self.inherited, "evbind.level": "fold", "evbind.fold": str(fold + 1)}
        # The number comes first: MLflow's page cuts long names at this depth of the tree.
        self.fold_run = self.tracker.start(self.experiment, f"fold {fold + 1} of {self.name()}", self.run_id, tags)

    @keeps_going()
    def on_epoch_end(self, report: EpochResult) -> None:
        """Log the epoch's loss and validation metrics, by epoch; those of quick epochs go together."""
        numbers = {"training_loss": report.training_loss, **report.metrics, "epoch_seconds": report.seconds}
        self._unwritten += points(numbers, report.epoch)
        if time.monotonic() - self._written_at > SHOW_AFTER:
            self._write_epochs()

    def _write_epochs(self, others: Sequence[Metric] = ()) -> None:
        if self.fold_run is not None:
            self.tracker.write(self.fold_run, metrics=[*self._unwritten, *others])
        self._unwritten = []
        self._written_at = time.monotonic()

    @keeps_going()
    def on_fold_end(self, report: FoldResult) -> None:
        """Log sizes and durations, close the fold's run, and log its metrics and their mean so far here."""
        facts = {
            "seconds": report.seconds,
            "n_training": report.n_training,
            "n_validation": report.n_validation,
            "peak_memory_mb": report.peak_memory_mb,
            **({"micro_batch": report.micro_batch} if report.micro_batch else {}),
        }
        for name, value in report.metrics.items():
            self._values.setdefault(name, []).append(value)
        by_fold = {f"fold/{name}": value for name, value in report.metrics.items()}
        by_fold |= {name: sum(values) / len(values) for name, values in self._values.items()}
        by_fold |= {"fold/seconds": report.seconds, "folds": report.fold + 1}
        self._write_epochs(points(facts, 0))
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
            # A fold that the end of a trial cuts off; a pruner that looks within folds does so, and all is well.
            self.tracker.client.set_terminated(self.fold_run, status)
            self.fold_run = None
        self.tracker.write(self.run_id, metrics=metrics, tags=tags)
        self.close(status)


class TrialRun(FoldRuns):
    """Run of one trial."""

    def name(self) -> str:
        """Give the trial's own name."""
        return _trial_name(self.inherited["evbind.trial"])

    @keeps_going()
    def finish(
        self,
        state: str,
        *,
        value: float | None = None,
        metrics: Mapping[str, float] | None = None,
        error: str | None = None,
        seconds: float = 0.0,
        facts: Mapping[str, Any] | None = None,
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
        facts : mapping of str to plain value, optional
            Further tags, for example the trial that this one repeats.
        """
        numbers = {f"pooled/{name}": number for name, number in (metrics or {}).items()}
        if value is not None and state == "COMPLETE":
            numbers["objective"] = value  # that of a pruned trial is of fewer folds: it would sort among the others
        status = {"COMPLETE": "FINISHED", "PRUNED": "FINISHED"}.get(state, state)
        self.end(
            status,
            tags={"evbind.state": state, **(facts or {}), **error_tags(error)},
            metrics={**numbers, "seconds": seconds},
        )
        if state == "PRUNED":
            self.tracker.client.update_run(self.run_id, name=f"{self.name()} (pruned)")


class TrainingRun(FoldRuns):
    """Run of a single cross-validation."""

    def name(self) -> str:
        """Say what the folds' names end with."""
        return self.inherited["evbind.training"]

    @keeps_going()
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
        self.end(status, tags=error_tags(error), metrics={**numbers, "seconds": seconds})

    @keeps_going()
    def log_table(self, name: str, table: pd.DataFrame) -> None:
        """Keep a table as ``<name>.csv`` with the run; columns that hold text are left out."""
        kept = table.drop(columns=[column for column in TEXT_COLUMNS if column in table.columns])
        named = any(label is not None for label in kept.index.names)
        self.tracker.client.log_text(self.run_id, kept.to_csv(index=named), f"{legal(name)}.csv")


class StudyRun(Run):
    """Run of a study; its trials and its summary are child runs."""

    def __init__(self, tracker: Store, run_id: str, experiment: str, inherited: Mapping[str, str]) -> None:
        super().__init__(tracker, run_id, experiment, inherited)
        self._trials: list[TrialRun] = []
        self._best: int | None = None

    def _find(self, level: str, **tags: str) -> list[StoredRun]:
        wanted = {f"evbind.{name}": value for name, value in tags.items()}
        key = self.inherited["evbind.study_key"]
        return self.tracker.find(self.experiment, {"evbind.study_key": key, "evbind.level": level, **wanted})

    @keeps_going(lambda: Nothing())
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

    @keeps_going(lambda: 0)
    def close_stale(self) -> int:
        """Mark runs below this one that a killed process left RUNNING as KILLED, and return how many.

        They end when they last gave a sign of life, so that no trial seems to have taken days.
        """
        alive = {self.run_id}
        for trial in self._trials:
            alive |= {trial.run_id, trial.fold_run or ""} if trial.is_open else set()
        key = {"evbind.study_key": self.inherited["evbind.study_key"]}
        running = self.tracker.find(self.experiment, key, status="RUNNING")
        stale = [
            run
            for run in running
            if run.info.run_id not in alive and not is_at_work(run.data.tags.get(PROCESS, this_process()))
        ]
        for run in stale:
            self.tracker.close_as_killed(run)
        return len(stale)

    @keeps_going()
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

    @keeps_going()
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

    @keeps_going()
    def finish(self, status: str) -> None:
        """End the study's run as FINISHED, FAILED or KILLED, and trials that were cut off as KILLED."""
        for trial in self._trials:
            if trial.is_open:
                trial.finish("KILLED")
        self.close(status)


class Nothing:
    """Takes every call of a run and does nothing."""

    def __getattr__(self, name: str) -> Any:
        if name == "run_id":  # it is no run
            raise AttributeError(name)
        return lambda *args, **kwargs: Nothing()


def is_at_work(process: str) -> bool:
    """Whether another process, which may be of another host, can still be writing a run."""
    return process != this_process() and not is_dead(process)


def run_link(name: str, experiment: str, run_id: str) -> str:
    """A run as a link in MLflow's notes, which are Markdown."""
    return f"[{name}](#/experiments/{experiment}/runs/{run_id})"


def error_tags(error: str | None) -> dict[str, str]:
    """First line of an error as the tags that show it."""
    line = error.strip().splitlines()[0][:300] if error and error.strip() else ""
    return {"evbind.error": line, "mlflow.note.content": line} if line else {}


def _trial_name(number: int | str) -> str:
    return f"trial {int(number):03d}"
