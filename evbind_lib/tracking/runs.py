"""Runs in MLflow: of a notebook's execution, of a search (Study > Trial > Fold), of a cross-validation (Training > Fold).

Once a run is open, a write that fails is warned of once and the work goes on: hours of training are worth more than their record.
Every run has one writer: a study's the process that searches, a trial's the process that trains it.
"""

# ruff: noqa: D102 - what calls a hook is documented where it is declared: in Callback and SearchCallback
from __future__ import annotations

import hashlib
import math
import statistics
import tempfile
import time
from collections.abc import Callable, Mapping, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Self

import nbformat
import optuna
from mlflow import entities
from mlflow.exceptions import MlflowException
from optuna.trial import FrozenTrial

from evbind_lib.config.masking import masked, masked_notebook
from evbind_lib.config.processes import lock_between_processes
from evbind_lib.config.schema import Params
from evbind_lib.data.folds import Fold
from evbind_lib.hpo.objective import SearchCallback, SearchStopped
from evbind_lib.hpo.study import TrialRecord, best_trial, count_trials, study_uid
from evbind_lib.tracking.page import export_html
from evbind_lib.tracking.store import LEVELS, NONE, Store, Values, circumstances, evbind_tags, legal
from evbind_lib.training.result import Callback, CrossValidation, EpochResult, FoldResult

# Of a trial's record, worth a tag.
FACTS = ("reused_from", "retry_of", "enqueued", "micro_batch", "folds_from_before", "code")
SIZES = ("seconds", "n_training", "n_validation", "peak_memory_mb", "micro_batch")  # of a fold's result, worth a metric
CUT_OFF = ("FAILED", "KILLED")
Error = BaseException | str | None
OnOpen = Callable[["Run", str, str], None]  # is given a run, its kind and its name


@dataclass(eq=False)
class Run:
    """A run in MLflow, with the tags that its children inherit."""

    store: Store
    run_id: str
    experiment: str
    name: str
    inherited: dict[str, Any]

    status: str = "RUNNING"
    fold_run: Run | None = None  # of the fold that is trained now, which ends with this run

    @classmethod
    def open(
        cls, store: Store, place: str, name: str, *, parameters: Values, tags: Values = NONE, **known_by: str
    ) -> Self:
        """Open a run at the top of an experiment, or that ``known_by`` these tags; raises `TrackingError`."""
        experiment, level = store.experiments[place], LEVELS[place]
        inherited, known = evbind_tags(**{level: name}, **known_by), evbind_tags(level=level, **known_by)
        # Two searches that begin at once must not make two runs of a study.
        with store.must_work(), lock_between_processes(store.uri):
            found = [str(run.info.run_id) for run in store.find(experiment, known)] if known_by else []
            run_id = found[0] if found else store.start(experiment, name, {**inherited, **known})
            store.client.update_run(run_id, status="RUNNING")
        run = cls(store, run_id, experiment, name, inherited)
        run.describe(parameters, {**circumstances(), **tags, **evbind_tags(error="" if found else None)})
        store.end_abandoned()
        return run

    @classmethod
    def below(cls, parent: Run, level: str, name: str, **tags: str) -> Self:
        """Open a child run."""
        store, experiment, inherited = parent.store, parent.experiment, {**parent.inherited, **evbind_tags(**tags)}
        own = {**inherited, **evbind_tags(level=level), "mlflow.parentRunId": parent.run_id}
        return cls(store, store.start(experiment, name, own), experiment, name, inherited)

    def children(self, level: str, **tags: str) -> list[entities.Run]:
        """Find the child runs of a level, such as ``trial``, with these tags."""
        wanted = {**evbind_tags(level=level, **tags), "mlflow.parentRunId": self.run_id}
        return self.store.find(self.experiment, wanted)

    def describe(self, parameters: Values, tags: Values = NONE) -> None:
        """Log tags and parameters, which the artifact ``params.json`` always has as they are now; raises `TrackingError`."""
        with self.store.must_work():
            # MLflow lets no parameter be changed: where a run goes on with other ones, a tag has those that are not as logged.
            logged = self.store.client.get_run(self.run_id).data.params
            whole = {name: masked(value, name) for name, value in parameters.items()}
            now = {legal(name): str(value) for name, value in whole.items() if value is not None}
            new = {name: value for name, value in now.items() if name not in logged}
            changed = [f"{name}={value}" for name, value in now.items() if logged.get(name, value) != value]
            self.log(parameters=new, tags={**tags, **evbind_tags(changed=", ".join(changed) if logged else None)})
            self.store.client.log_dict(self.run_id, whole, "params.json")

    def log(self, metrics: Values = NONE, *, step: int = 0, parameters: Values = NONE, tags: Values = NONE) -> None:
        """Log everything in as few requests as MLflow's limits allow; metrics that are None or not finite are left out."""
        now = int(time.time() * 1000)
        finite = {name: value for name, value in metrics.items() if value is not None and math.isfinite(value)}
        numbers = [entities.Metric(legal(name), float(value), now, step) for name, value in finite.items()]
        texts = [entities.Param(legal(name), str(masked(value, name))) for name, value in parameters.items()]
        marks = [entities.RunTag(legal(name), masked(str(value))) for name, value in tags.items()]
        self.store.client.log_batch(self.run_id, numbers, texts, marks)

    def write(self, metrics: Values = NONE, **given: Any) -> None:
        """Log as `log` does; where it fails, work goes on."""
        with self.store.going_on():
            self.log(metrics, **given)

    def end(self, error: Error = None, metrics: Values = NONE, *, status: str = "", tags: Values = NONE) -> None:
        """End the run as work does that stopped at this error, or with another status; an error before that is taken back."""
        if self.fold_run:
            self.fold_run.end(error, status=status)
        with self.store.going_on():
            text = f"{type(error).__name__}: {error}" if isinstance(error, BaseException) else error or ""
            line = text.strip().partition("\n")[0][:300]
            # A kernel that died was killed, if only for lack of memory.
            killed, failed_before = text.startswith(("KeyboardInterrupt", "DeadKernelError")), self.status in CUT_OFF
            self.status = status or ("KILLED" if killed else "FAILED" if text else "FINISHED")
            self.log(metrics, tags={**tags, **evbind_tags(error=line if line or failed_before else None)})
            self.store.client.set_terminated(self.run_id, self.status)


@dataclass(eq=False)
class NotebookRun(Run):
    """Run of one pass through a notebook."""

    n_cells: int = 0
    began: float = field(default_factory=time.monotonic)

    @classmethod
    def join(cls, store: Store, run_id: str, parameters: Values) -> Self | None:
        """Add to the run that another process opened and will end; None where this store has no such run."""
        try:
            info = store.client.get_run(run_id).info
        except MlflowException:
            return None
        run = cls(store, run_id, info.experiment_id, info.run_name, {})
        run.describe(parameters)
        return run

    def count_cell(self) -> None:
        """Count a cell that has ended, which is a heartbeat too."""
        self.n_cells += 1
        self.write({"cells": self.n_cells}, step=self.n_cells)

    def finish(self, notebook: nbformat.NotebookNode, error: str = "", *, status: str = "") -> None:
        """End the run as the execution did, with the notebook and its page."""
        with self.store.going_on():
            self.end(error, {"seconds": time.monotonic() - self.began}, status=status)
            with tempfile.TemporaryDirectory() as folder:
                file = Path(folder) / f"{self.name}.ipynb"
                notebook = masked_notebook(notebook)
                nbformat.write(notebook, file)
                export_html(notebook, file.with_suffix(".html"))
                self.store.client.log_artifacts(self.run_id, folder)


@dataclass(eq=False)
class TrainingRun(Run, Callback, AbstractContextManager["TrainingRun"]):
    """A run whose folds are child runs, of a trial or, as a context that ends as the work in it ended, of a cross-validation."""

    results: list[FoldResult] = field(default_factory=list)

    def on_fold_begin(self, fold: Fold, params: Params) -> None:
        with self.store.going_on():
            number, seed = str(fold.index + 1), str(params.training.seed)
            place = f"fold {number}, seed {seed}" if len(params.training.seeds) > 1 else f"fold {number}"
            # The number comes first: MLflow's page cuts long names at this depth of the tree.
            self.fold_run = Run.below(self, "fold", f"{place} of {self.name}", fold=number, seed=seed)

    def on_epoch_end(self, epoch: EpochResult) -> None:
        numbers = {"training_loss": epoch.training_loss, **(epoch.metrics or {}), "epoch_seconds": epoch.seconds}
        if self.fold_run:
            self.fold_run.write(numbers, step=epoch.epoch)

    def on_fold_end(self, result: FoldResult) -> None:
        """Close the fold's run with its sizes, and log its metrics and their mean so far here."""
        self.results.append(result)
        if self.fold_run:
            tags = evbind_tags(cached="true" if result.cached else None)
            self.fold_run.end(None, {name: getattr(result, name) for name in SIZES}, tags=tags)
            self.fold_run = None
        n_folds = len(self.results)
        here = {name: sum(done.metrics[name] for done in self.results) / n_folds for name in result.metrics}
        here |= {f"fold/{name}": value for name, value in {**result.metrics, "seconds": result.seconds}.items()}
        self.write({**here, "folds": n_folds}, step=n_folds)

    def __exit__(self, kind: object, error: BaseException | None, trace: object) -> None:
        pooled = CrossValidation(tuple(self.results)).pooled() if error is None and self.results else {}
        numbers = {f"pooled/{name}": value for name, value in pooled.items()}
        self.end(error, {**numbers, "seconds": sum(result.seconds for result in self.results)})


class TrackedTrials(SearchCallback):
    """Writes the trials of one process below the study's run."""

    def __init__(self, store: Store, study_run: Any = None) -> None:
        self.store, self.study_run = store, study_run  # which a search has when it begins
        self.trial_runs: dict[int, TrainingRun] = {}  # those that are open

    def on_trial_begin(self, trial: optuna.Trial) -> None:
        name = f"trial {trial.number:03d}"  # so that names sort as numbers do
        with self.store.going_on():
            run = TrainingRun.below(self.study_run, "trial", name, trial=str(trial.number))
            self.trial_runs[trial.number] = run
            # So that a view of the study can lead to it.
            TrialRecord(mlflow_run={"experiment": run.experiment, "run": run.run_id}).write(trial)

    def fold_callbacks(self, trial: optuna.Trial) -> Sequence[Callback]:
        run = self.trial_runs.get(trial.number)
        if run is None:
            return ()
        run.write(parameters=trial.params)  # known by now
        return (run,)

    def on_trial_end(self, study: optuna.Study, trial: FrozenTrial) -> None:
        """End the trial's run, where this process opened it; that of a pruned trial as FINISHED, with a tag and a name for it."""
        run, record = self.trial_runs.pop(trial.number, None), TrialRecord.read(trial)
        if run is None:
            return
        with self.store.going_on():
            state = "KILLED" if record.interrupted else trial.state.name.replace("FAIL", "FAILED")
            run.write(parameters=trial.params)
            tags = evbind_tags(state=state, **{name: getattr(record, name) for name in FACTS})
            numbers: dict[str, Any] = {f"pooled/{name}": number for name, number in (record.pooled or {}).items()}
            # The value of a pruned trial is of fewer folds: it would sort among the others.
            numbers |= {"seconds": record.seconds, "objective": trial.value if state == "COMPLETE" else None}
            run.end(record.error, numbers, status=state if state in CUT_OFF else "FINISHED", tags=tags)
            if state == "PRUNED":
                self.store.client.update_run(run.run_id, name=f"{run.name} (pruned)")


class TrackedSearch(TrackedTrials, AbstractContextManager["TrackedSearch"]):
    """Writes a search to MLflow while it runs; as a context it ends the study's run as the work in it ended."""

    def __init__(self, store: Store, parameters: Values, tags: Values, on_open: OnOpen | None = None) -> None:
        super().__init__(store)
        self.parameters, self.tags, self.on_open = parameters, tags, on_open

    def on_search_begin(self, study: optuna.Study, n_earlier_trials: int) -> None:
        """Open the study's run, or the one that it has already."""
        name, values, tags = study.study_name, self.parameters, self.tags
        key = hashlib.sha256(f"{study_uid(study)}#{name}".encode()).hexdigest()[:16]  # names may hold quotes
        self.study_run = Run.open(self.store, "search", name, parameters=values, tags=tags, study_key=key)
        if self.on_open:
            self.on_open(self.study_run, "study", name)

    def on_trial_end(self, study: optuna.Study, trial: FrozenTrial) -> None:
        super().on_trial_end(study, trial)
        if TrialRecord.read(trial).interrupted:
            self.store.end_abandoned()  # of a worker that died
        best = best_trial(study)
        if best is not None and best.number == trial.number:
            self._mark_best(best)

    def on_finalist_begin(self, trial: FrozenTrial) -> None:
        with self.store.going_on():
            run = TrainingRun.below(
                self.study_run, "finalist", f"finalist trial {trial.number:03d}", finalist=str(trial.number)
            )
            self.trial_runs[trial.number] = run

    def on_finalist_end(self, trial: FrozenTrial, values: Sequence[float], error: BaseException | None) -> None:
        if run := self.trial_runs.pop(trial.number, None):
            numbers = (
                {"objective": statistics.fmean(values), "objective_std": statistics.stdev(values)} if values else {}
            )
            run.end(error, numbers, status="KILLED" if isinstance(error, SearchStopped) else "")

    def for_workers(self) -> TrackedTrials:
        return TrackedTrials(self.store, self.study_run)

    def summary(self, study: optuna.Study, *, numbers: Mapping[str, float], files: Mapping[str, Path]) -> None:
        """Write the child run 'Study Summary' or, where the study went on, the one it has, with the files as artifacts."""
        run, best, counts = self.study_run, best_trial(study), count_trials(study)
        if best is None:
            return
        self._mark_best(best)
        with self.store.going_on():
            there = [Run(run.store, each.info.run_id, run.experiment, "", {}) for each in run.children("summary")]
            summary = there[0] if there else Run.below(run, "summary", "Study Summary")
            counted = {f"trials_{name}": count for name, count in counts.items()}
            states = ", ".join(f"{count} {name}" for name, count in counts.items() if name != "total")
            note = f"{counts['total']} trials: {states}. Best value {best.value:.4f}, trial {best.number}."
            # Tags, not parameters: the study may go on and find a better one, and parameters cannot change.
            tags = {"mlflow.note.content": note, **{f"best.{name}": value for name, value in best.params.items()}}
            for owner in (run, summary):
                owner.write({"best_value": best.value, **counted, **numbers}, step=counts["total"], tags=tags)
            for file in files.values():
                self.store.client.log_artifact(summary.run_id, str(file))
            summary.end()

    def _mark_best(self, best: FrozenTrial) -> None:
        """Mark the best trial's run, by tag and in its name, and take the mark from the one before."""
        find = self.study_run.children
        with self.store.going_on():
            before, now = find("trial", best="true"), find("trial", trial=str(best.number))[-1:]
            for run in [*before, *now]:
                name = run.info.run_name.removesuffix(" (best)")
                self.store.client.set_tag(run.info.run_id, "evbind.best", str(run in now).lower())
                self.store.client.update_run(run.info.run_id, name=f"{name} (best)" if run in now else name)
            best_now = evbind_tags(best_trial=best.number)
            self.study_run.write({"best_value": best.value}, step=best.number, tags=best_now)

    def __exit__(self, kind: object, error: BaseException | None, trace: object) -> None:
        for run in self.trial_runs.values():  # cut off
            run.end(status="KILLED")
        if self.study_run:
            self.study_run.end(error)
