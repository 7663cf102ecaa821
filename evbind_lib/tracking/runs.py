"""Runs in MLflow that follow a search (Study > Trial > Fold) or a single cross-validation (Training > Fold).

Once a study or a training has its run, a write that fails is warned of once and the work goes on: hours of training are worth
more than their record. Every run has one writer: a study's the process that searches, a trial's the process that trains it.
"""

from __future__ import annotations

import hashlib
import math
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

import optuna
from mlflow.entities import Metric
from mlflow.entities import Run as StoredRun
from optuna.trial import FrozenTrial, TrialState

from evbind_lib.config.processes import lock_between_processes
from evbind_lib.config.schema import Params
from evbind_lib.data.folds import Fold
from evbind_lib.hpo.objective import SearchCallback
from evbind_lib.hpo.study import TrialRecord, best_trial, count_trials, study_uid
from evbind_lib.tracking.store import NONE, Numbers, Store, Values, circumstances, legal, or_go_on, plain, points, shown
from evbind_lib.training.result import Callback, CrossValidation, EpochResult, FoldResult

SHOW_AFTER = 5.0  # seconds; epochs that take longer are to be seen while they come, quick ones are written per fold
FACTS = ("reused_from", "retry_of", "enqueued", "micro_batch", "folds_from_before")  # of a trial's record, worth a tag


@dataclass(eq=False)
class Run:
    """A run in MLflow, with the tags that its children inherit."""

    store: Store
    run_id: str
    experiment: str
    inherited: dict[str, str]

    def describe(self, parameters: Values, tags: Values = NONE) -> None:
        """Log parameters and circumstances, or raise `TrackingError`.

        MLflow lets no parameter be changed, so on a resumed run only new ones are logged, and what a changed one is now
        becomes a tag ``evbind.now.<name>``. The artifact ``params.json`` has all as they are now.
        """
        with self.store.must_work():
            logged = self.store.client.get_run(self.run_id).data
            now = {legal(name): shown(name, value) for name, value in parameters.items() if value is not None}
            new = {name: value for name, value in now.items() if name not in logged.params}
            # What a changed parameter is now, also where it was changed back.
            later = {
                f"evbind.now.{name}": value for name, value in now.items() if logged.params.get(name, value) != value
            }
            later |= {tag: now[name] for name in now if (tag := f"evbind.now.{name}") in logged.tags}
            self.store.write(self.run_id, parameters=new, tags={**tags, **later})
            whole = {name: plain(name, value) for name, value in parameters.items()}
            self.store.client.log_dict(self.run_id, whole, "params.json")

    @or_go_on
    def end(self, status: str, metrics: Numbers = (), *, tags: Values = NONE) -> None:
        """End the run as FINISHED, FAILED or KILLED."""
        self.store.write(self.run_id, metrics, tags=tags)
        self.store.client.set_terminated(self.run_id, status)


@dataclass(eq=False)
class FoldRuns(Run, Callback):
    """A run whose folds are child runs, named after its label and written while the folds are trained."""

    label: str
    results: list[FoldResult] = field(default_factory=list)
    _fold_run: str | None = None
    _unwritten: list[Metric] = field(default_factory=list)
    _written_at: float = 0.0

    @or_go_on
    def on_fold_begin(self, fold: Fold, params: Params) -> None:
        """Open the fold's run."""
        self._fold_run, self._unwritten = None, []  # where it cannot be opened, nothing may go to the fold before
        self._written_at = time.monotonic()
        number = fold.index + 1
        tags = {**self.inherited, "evbind.level": "fold", "evbind.fold": str(number)}
        # The number comes first: MLflow's page cuts long names at this depth of the tree.
        self._fold_run = self.store.start(self.experiment, f"fold {number} of {self.label}", self.run_id, tags)

    @or_go_on
    def on_epoch_end(self, epoch: EpochResult) -> None:
        """Log the epoch's loss and, where it was validated, its metrics, by epoch; quick epochs go together."""
        numbers = {"training_loss": epoch.training_loss, **(epoch.metrics or {}), "epoch_seconds": epoch.seconds}
        self._unwritten += points(numbers, epoch.epoch)
        if time.monotonic() - self._written_at > SHOW_AFTER:
            self._write_fold()

    @or_go_on
    def on_fold_end(self, result: FoldResult) -> None:
        """Log sizes and durations, close the fold's run, and log its metrics and their mean so far here."""
        self.results.append(result)
        facts = ("seconds", "n_training", "n_validation", "peak_memory_mb", "micro_batch")
        self._unwritten += points({name: getattr(result, name) or math.nan for name in facts}, 0)
        self._write_fold("FINISHED", {"evbind.cached": "true"} if result.cached else NONE)
        n_folds = len(self.results)
        here = {f"fold/{name}": value for name, value in result.metrics.items()}
        here |= {name: sum(done.metrics[name] for done in self.results) / n_folds for name in result.metrics}
        here |= {"fold/seconds": result.seconds, "folds": n_folds}
        self.store.write(self.run_id, here, step=result.fold + 1)

    def _write_fold(self, status: str | None = None, tags: Values = NONE) -> None:
        if self._fold_run is not None:
            self.store.write(self._fold_run, self._unwritten, tags=tags)
            if status:
                self.store.client.set_terminated(self._fold_run, status)
                self._fold_run = None
        self._unwritten, self._written_at = [], time.monotonic()

    @or_go_on
    def end(self, status: str, metrics: Numbers = (), *, tags: Values = NONE) -> None:
        """End this run, and a fold that it cuts off."""
        self._write_fold(status)
        super().end(status, metrics, tags=tags)


class TrainingRun(FoldRuns):
    """Run of a single cross-validation: its callback, and a context that ends the run as the work in it ended."""

    @classmethod
    def open(cls, store: Store, name: str, *, parameters: Values, tags: Values) -> TrainingRun:
        """Open the run; raises `TrackingError` where the store cannot be used."""
        inherited, experiment = {"evbind.training": name}, store.experiments["training"]
        own = {**tags, **circumstances(), **inherited, "evbind.level": "training"}
        with store.must_work():
            run = cls(store, store.start(experiment, name, None, own), experiment, inherited, name)
        run.describe(parameters)
        return run

    def __enter__(self) -> TrainingRun:
        return self

    def __exit__(self, kind: object, error: BaseException | None, trace: object) -> None:
        pooled = CrossValidation(tuple(self.results)).pooled() if error is None and self.results else {}
        numbers = {f"pooled/{name}": value for name, value in pooled.items()}
        numbers["seconds"] = sum(result.seconds for result in self.results)
        self.end(status_after(error), numbers, tags=error_tags(error))


class TrialRun(FoldRuns):
    """Run of one trial."""

    @or_go_on
    def log_parameters(self, trial: optuna.Trial | FrozenTrial) -> None:
        """Log the parameters drawn so far; MLflow takes one twice where it is the same."""
        self.store.write(self.run_id, parameters=trial.params)

    @or_go_on
    def finish(self, trial: FrozenTrial) -> None:
        """End the run as the trial ended; a pruned trial ends FINISHED, with its state as a tag and in its name."""
        record = TrialRecord.read(trial)
        state = "KILLED" if record.interrupted else trial.state.name.replace("FAIL", "FAILED")
        numbers = {f"pooled/{name}": number for name, number in (record.pooled or {}).items()}
        numbers["seconds"] = record.seconds or math.nan
        if state == "COMPLETE":
            numbers["objective"] = trial.values[
                0
            ]  # that of a pruned trial is of fewer folds: it would sort among these
        facts = {f"evbind.{name}": getattr(record, name) for name in FACTS if getattr(record, name) is not None}
        self.log_parameters(trial)
        status = state if state in {"FAILED", "KILLED"} else "FINISHED"
        self.end(status, numbers, tags={"evbind.state": state, **facts, **error_tags(record.error)})
        if state == "PRUNED":
            self.store.client.update_run(self.run_id, name=f"{self.label} (pruned)")


class StudyRun(Run):
    """Run of a study; its trials and its summary are child runs."""

    @classmethod
    def open(cls, store: Store, name: str, uid: str, *, parameters: Values, tags: Values) -> StudyRun:
        """Open the run that the study of this name and uid has already, or a new one."""
        key = hashlib.sha256(f"{uid}#{name}".encode()).hexdigest()[:16]  # names may hold quotes
        inherited = {"evbind.study": name, "evbind.study_key": key}
        own = {**tags, **circumstances(), **inherited, "evbind.level": "study"}
        run = cls(store, "", store.experiments["search"], inherited)
        with store.must_work():
            # Searches that join a study at the same moment must not make two runs of it: on one machine the lock keeps
            # them apart, across machines the oldest run is the study's.
            with lock_between_processes(f"{store.uri} {key}"):
                if not run.find("study"):
                    store.start(run.experiment, name, None, own)
            run.run_id = str(run.find("study")[0].info.run_id)
            store.client.update_run(run.run_id, status="RUNNING")
        run.describe(parameters, own)
        return run

    def find(self, level: str, **tags: str) -> list[StoredRun]:
        """Find the study's runs of a level, ``study``, ``trial``, ``fold`` or ``summary``, with these tags."""
        wanted = {"evbind.study_key": self.inherited["evbind.study_key"], "evbind.level": level}
        return self.store.find(self.experiment, wanted | {f"evbind.{name}": value for name, value in tags.items()})

    @or_go_on
    def trial(self, number: int) -> TrialRun:
        """Open the run of a trial."""
        inherited, label = {**self.inherited, "evbind.trial": str(number)}, trial_label(number)
        run_id = self.store.start(self.experiment, label, self.run_id, {**inherited, "evbind.level": "trial"})
        return TrialRun(self.store, run_id, self.experiment, inherited, label)

    @or_go_on
    def mark_best(self, number: int) -> None:
        """Mark one trial's run as the best, by tag and in its name, and take the mark from the one before."""
        client = self.store.client
        for run in self.find("trial", best="true"):
            client.set_tag(run.info.run_id, "evbind.best", "false")
            client.update_run(run.info.run_id, name=trial_label(run.data.tags["evbind.trial"]))
        for run in self.find("trial", trial=str(number))[-1:]:
            client.set_tag(run.info.run_id, "evbind.best", "true")
            client.update_run(run.info.run_id, name=f"{trial_label(number)} (best)")
            best = {"best_value": run.data.metrics.get("objective", math.nan)}
            self.store.write(self.run_id, best, step=number, tags={"evbind.best_trial": number})

    @or_go_on
    def summary(self, study: optuna.Study, *, importances: Mapping[str, float], files: Mapping[str, Path]) -> None:
        """Mark the best trial, and write the child run 'Study Summary' or, where the study went on, the one it has."""
        best, counts = best_trial(study), count_trials(study)
        if best is None:
            return
        self.mark_best(best.number)
        tags = {**self.inherited, "evbind.level": "summary"}
        there = [str(run.info.run_id) for run in self.find("summary")]
        run_id = there[0] if there else self.store.start(self.experiment, "Study Summary", self.run_id, tags)
        numbers = {"best_value": best.values[0], **{f"trials_{name}": count for name, count in counts.items()}}
        weights = {f"importance/{name}": weight for name, weight in importances.items()}
        note = {"mlflow.note.content": _note(counts, best, importances)}
        # Tags, not parameters: the study may go on and find a better one, and parameters cannot change.
        parameters = {f"best.{name}": value for name, value in best.params.items()}
        step = counts["total"]  # shows how a resumed study went on
        self.store.write(self.run_id, numbers, step=step, tags=note)
        self.store.write(run_id, {**numbers, **weights}, step=step, tags={**parameters, **note})
        for file in files.values():
            self.store.client.log_artifact(run_id, str(file))
        self.store.client.set_terminated(run_id, "FINISHED")


OnOpen = Callable[[Run, str, str], None]


class TrackedTrials(SearchCallback):
    """Writes the trials of one process below the study's run."""

    def __init__(self, study_run: StudyRun | None) -> None:
        self.study_run = study_run
        self.trial_runs: dict[int, TrialRun] = {}  # those that are open

    def on_trial_begin(self, trial: optuna.Trial) -> None:
        """Open the trial's run, and name it in the trial, so that a view of the study can lead to it."""
        run = self.study_run.trial(trial.number) if self.study_run else None
        if run:
            self.trial_runs[trial.number] = run
            TrialRecord(mlflow_run={"experiment": run.experiment, "run": run.run_id}).write(trial)

    def fold_callbacks(self, trial: optuna.Trial) -> Sequence[Callback]:
        """Give the trial's run, which follows its folds; the parameters are known by now."""
        run = self.trial_runs.get(trial.number)
        if run:
            run.log_parameters(trial)
        return (run,) if run else ()

    def on_trial_end(self, study: optuna.Study, trial: FrozenTrial) -> None:
        """End the trial's run, where this process opened it."""
        run = self.trial_runs.pop(trial.number, None)
        if run:
            run.finish(trial)


class TrackedSearch(TrackedTrials):
    """Writes a search to MLflow while it runs; as a context it ends the study's run as the work in it ended.

    ``parameters`` are logged in place of all of ``params``; ``on_open`` is called with the study's run, "study" and its name.
    """

    def __init__(
        self, store: Store, params: Params, tags: Values, *, parameters: Values = NONE, on_open: OnOpen | None = None
    ) -> None:
        super().__init__(None)
        self.store = store
        self.parameters = parameters or params.flat()
        self.tags = tags
        self.on_open = on_open
        self.best: int | None = None

    def on_search_begin(self, study: optuna.Study, n_earlier_trials: int) -> None:
        """Open the study's run, or the one that it has already."""
        name, described = study.study_name, {"parameters": self.parameters, "tags": self.tags}
        self.study_run = StudyRun.open(self.store, name, study_uid(study), **described)
        self.store.end_abandoned()
        if self.on_open:
            self.on_open(self.study_run, "study", name)

    def on_trial_end(self, study: optuna.Study, trial: FrozenTrial) -> None:
        """End the trial's run and mark the best."""
        super().on_trial_end(study, trial)
        if TrialRecord.read(trial).interrupted:
            self.store.end_abandoned()  # of a worker that died
        best = best_trial(study) if trial.state == TrialState.COMPLETE else None
        if self.study_run and best is not None and best.number != self.best:
            self.best = best.number
            self.study_run.mark_best(best.number)

    def for_workers(self) -> TrackedTrials | None:
        """Give what writes the trials in a worker, below the same run."""
        return TrackedTrials(self.study_run) if self.study_run else None

    def summary(self, study: optuna.Study, *, importances: Mapping[str, float], files: Mapping[str, Path]) -> None:
        """Write the child run 'Study Summary', with the files as artifacts."""
        if self.study_run:
            self.study_run.summary(study, importances=importances, files=files)

    def __enter__(self) -> TrackedSearch:
        return self

    def __exit__(self, kind: object, error: BaseException | None, trace: object) -> None:
        for run in self.trial_runs.values():  # cut off
            run.end("KILLED", tags={"evbind.state": "KILLED"})
        if self.study_run:
            self.study_run.end(status_after(error))


def status_after(error: BaseException | None) -> str:
    """Status of a run whose work ended with this error, or without one."""
    if error is None:
        return "FINISHED"
    return "KILLED" if isinstance(error, KeyboardInterrupt) else "FAILED"


def error_tags(error: BaseException | str | None) -> dict[str, str]:
    """First line of an error as the tags that show it."""
    text = f"{type(error).__name__}: {error}" if isinstance(error, BaseException) else error or ""
    line = text.strip().partition("\n")[0][:300]
    return {"evbind.error": line, "mlflow.note.content": line} if line else {}


def trial_label(number: int | str) -> str:
    """Name of a trial's run, so that names sort as numbers do."""
    return f"trial {int(number):03d}"


def _note(counts: Mapping[str, int], best: FrozenTrial, importances: Mapping[str, float]) -> str:
    """Write what MLflow's page says about a study, in Markdown."""
    states = ", ".join(f"{count} {name}" for name, count in counts.items() if name != "total")
    lines = [f"{counts['total']} trials: {states}. Best value {best.values[0]:.4f}, trial {best.number}.", ""]
    lines += ["| parameter | best | importance |", "| --- | --- | --- |"]
    for name, value in best.params.items():
        weight = f"{importances[name]:.2f}" if name in importances else ""
        lines.append(f"| {name} | {f'{value:.4g}' if isinstance(value, float) else value} | {weight} |")
    return "\n".join(lines)
