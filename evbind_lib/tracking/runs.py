"""Runs in MLflow: of a notebook's execution, of a trial of a search or a cross-validation with its folds.

MLflow is a view: work waits two seconds a trial for it at most, goes on where a write fails, and writes what is missing at its
end, from Optuna's storage and the finished folds. Every run has one writer: a study's the process that searches, a trial's the
process that trains it.
"""

# ruff: noqa: D102 - what calls a hook is documented where it is declared: in Callback and SearchCallback
from __future__ import annotations

import contextlib
import json
import math
import tempfile
import time
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Self

import pandas as pd
from mlflow import entities
from mlflow.exceptions import MlflowException
from optuna.trial import FrozenTrial

from evbind_lib.config.masking import masked, masked_notebook
from evbind_lib.config.processes import lock_between_processes
from evbind_lib.config.schema import Params, flatten, without_files
from evbind_lib.data.folds import Fold
from evbind_lib.hpo.study import TrialRecord
from evbind_lib.tracking.page import export_html
from evbind_lib.tracking.store import LEVELS, NONE, Store, Values, circumstances, evbind_tags, legal
from evbind_lib.training.result import Callback, CrossValidation, FoldResult

# Of a trial's record, worth a tag.
FACTS = ("reused_from", "retry_of", "enqueued", "micro_batch", "folds_from_before", "code")
SIZES = ("seconds", "n_training", "n_validation", "peak_memory_mb", "micro_batch")  # of a fold's result, worth a metric
CUT_OFF = ("FAILED", "KILLED")
DATA = "evbind.data_fingerprint"  # tag of what was trained on
Error = BaseException | str | None


@dataclass(eq=False)
class Run:
    """A run in MLflow, with the tags that its children inherit; what writes raises, but for what says otherwise."""

    store: Store
    run_id: str
    experiment: str
    name: str
    inherited: dict[str, Any]
    status: str = "RUNNING"
    idle: float = 0.0  # seconds that do not count for its duration

    @classmethod
    def open(
        cls, store: Store, place: str, name: str, parameters: Values, tags: Values = NONE, **known_by: str
    ) -> Self:
        """Open a run at the top of an experiment, or that ``known_by`` these tags; raises `TrackingError`."""
        experiment, level = store.experiments[place], LEVELS[place]
        inherited, known = evbind_tags(**{level: name}, **known_by), evbind_tags(level=level, **known_by)
        inherited |= {name: value for name, value in tags.items() if name == DATA}
        with store.going_on():
            store.end_abandoned()
        # Two searches that begin at once must not make two runs of a study.
        with store.must_work(), lock_between_processes(store.uri):
            found = store.find(experiment, known) if known_by else []
            run_id = found[0].info.run_id if found else store.start(experiment, name, {**inherited, **known})
            run = cls(store, run_id, experiment, name, inherited, idle=idle_since(found[0]) if found else 0.0)
            store.client.update_run(run_id, status="RUNNING")
            run.log_data()
        failed = found and "evbind.error" in found[0].data.tags
        run.describe(parameters, {**circumstances(), **tags, **evbind_tags(error="" if failed else None)})
        return run

    @classmethod
    def below(cls, parent: Run, level: str, name: str, run_id: str = "", **tags: str) -> Self:
        """Child of a run, such as a ``trial``, with its id or to be made by `start`."""
        own = {**evbind_tags(level=level, **tags), "mlflow.parentRunId": parent.run_id}
        return cls(parent.store, run_id, parent.experiment, name, {**parent.inherited, **own})

    def start(self, *, began: float | None = None) -> None:
        """Make the run of a child, unless it is there."""
        if not self.run_id:
            self.run_id = self.store.start(self.experiment, self.name, self.inherited, began)
            if self.inherited["evbind.level"] == "trial":
                self.log_data()

    def log_data(self) -> None:
        """Log the data as an input of this run, as MLflow calls it, by their fingerprint alone."""
        if DATA in self.inherited:
            data = entities.Dataset("corpus", digest=self.inherited[DATA][:36], source_type="evbind", source="{}")
            self.store.client.log_inputs(self.run_id, datasets=[entities.DatasetInput(data)])

    def children(self, level: str, **tags: str) -> list[entities.Run]:
        """Find the child runs of a level, such as ``trial``, with these tags."""
        return self.store.find(self.experiment, {**evbind_tags(level=level, **tags), "mlflow.parentRunId": self.run_id})

    def describe(self, parameters: Values, tags: Values = NONE) -> None:
        """Log tags and parameters, which the artifact ``params.json`` always has as they are now; raises `TrackingError`."""
        with self.store.must_work():
            # MLflow lets no parameter be changed: where a run goes on with other ones, a tag has those that are not as logged.
            known = self.store.client.get_run(self.run_id).data
            whole = {name: masked(value, name) for name, value in parameters.items()}
            now = {legal(name): str(value) for name, value in whole.items() if value is not None}
            new = {name: value for name, value in now.items() if name not in known.params}
            changed = [f"{name}={value}" for name, value in now.items() if known.params.get(name, value) != value]
            said = ", ".join(changed) if changed or "evbind.changed" in known.tags else None
            self.log(parameters=new, tags={**tags, **evbind_tags(changed=said)})
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
        """Log as `log` does, while work goes on."""
        self.store.live(self.log, metrics, **given)

    def end(
        self,
        error: Error = None,
        metrics: Values = NONE,
        *,
        status: str = "",
        tags: Values = NONE,
        ended: float | None = None,
    ) -> None:
        """End the run as work does that stopped at this error, or with another status; an error before that is taken back."""
        text = f"{type(error).__name__}: {error}" if isinstance(error, BaseException) else error or ""
        line = text.strip().partition("\n")[0][:300]
        # A kernel that died was killed, if only for lack of memory.
        killed, failed_before = text.startswith(("KeyboardInterrupt", "DeadKernelError")), self.status in CUT_OFF
        self.status = status or ("KILLED" if killed else "FAILED" if text else "FINISHED")
        self.log(metrics, tags={**tags, **evbind_tags(error=line if line or failed_before else None)})
        # MLflow shows the time from start to end as the duration of a run.
        end = time.time() - self.idle if ended is None else ended
        self.store.client.set_terminated(self.run_id, self.status, end_time=int(end * 1000))


@dataclass(eq=False)
class NotebookRun(Run):
    """Run of one pass through a notebook."""

    n_cells: int = 0
    n_kept: int = 0  # of these when it finished
    began: float = field(default_factory=time.monotonic)
    cell_ended: float = field(default_factory=time.monotonic)

    @classmethod
    def begin(cls, store: Store, name: str, parameters: Values, *, way: str, outer: str | None) -> Self:
        """Open the run of a pass, below that of the notebook that started it where this store has one."""
        tags = {"evbind.way": way}
        with contextlib.suppress(MlflowException):
            tags |= {"mlflow.parentRunId": store.client.get_run(outer).info.run_id} if outer else {}
        return cls.open(store, "notebooks", name, parameters=parameters, tags=tags)

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

    def begin_cell(self) -> None:
        """Take the time since the last cell ended as idle."""
        self.idle += time.monotonic() - self.cell_ended
        self.cell_ended = time.monotonic()

    def count_cell(self) -> None:
        """Count a cell that has ended, which is a heartbeat too."""
        self.n_cells, self.cell_ended = self.n_cells + 1, time.monotonic()
        self.write({"cells": self.n_cells}, step=self.n_cells)

    def finish(self, notebook: Any, error: str = "", *, status: str = "") -> None:
        """End the run as the execution did, with the notebook and its page."""
        import nbformat  # late: it loads seconds of schemas, which kernels and workers can do without

        self.n_kept = self.n_cells
        with self.store.at_end():
            self.log({"cells": self.n_cells} if self.n_cells else NONE, step=self.n_cells)
            self.end(error, {"seconds": time.monotonic() - self.began - self.idle}, status=status)
            with tempfile.TemporaryDirectory() as folder:
                file = Path(folder) / f"{self.name}.ipynb"
                notebook = masked_notebook(notebook)
                nbformat.write(notebook, file)
                export_html(notebook, file.with_suffix(".html"))
                self.store.client.log_artifacts(self.run_id, folder)


@dataclass(eq=False)
class TrainingRun(Run, Callback, contextlib.AbstractContextManager["TrainingRun"]):
    """A run whose folds are child runs, of a trial or, as a context that ends as the work in it ended, of a cross-validation."""

    results: list[FoldResult] = field(default_factory=list)
    several_seeds: bool = False
    resumed: bool = False

    def __enter__(self) -> Self:
        self.end_metrics = self.store.log_system_metrics(self.run_id)
        return self

    def on_fold_begin(self, fold: Fold, params: Params) -> None:
        self.several_seeds = len(params.training.seeds) > 1

    def on_fold_end(self, result: FoldResult) -> None:
        self.results.append(result)
        self.store.live(self.catch_up if self.resumed else self.write_fold, tuple(self.results), time.time())

    def write_fold(self, done: Sequence[FoldResult], ended: float) -> None:
        """Write the run of the last of these folds, whole, and log its metrics and their mean so far here."""
        result, n_folds, number = done[-1], len(done), str(done[-1].fold + 1)
        place = f"fold {number}, seed {result.seed}" if self.several_seeds else f"fold {number}"
        # The number comes first: MLflow's page cuts long names at this depth of the tree.
        run = Run.below(self, "fold", f"{place} of {self.name}", fold=number, seed=str(result.seed))
        run.start(began=ended - _trained_for(result))
        for epoch in result.epochs:
            numbers = {"training_loss": epoch.training_loss, **(epoch.metrics or {}), "epoch_seconds": epoch.seconds}
            run.log(numbers, step=epoch.epoch)
        tags = evbind_tags(cached="true" if result.cached else None)
        run.end(None, {name: getattr(result, name) for name in SIZES}, tags=tags, ended=ended)
        here = {name: sum(each.metrics[name] for each in done) / n_folds for name in result.metrics}
        here |= {f"fold/{name}": value for name, value in {**result.metrics, "seconds": result.seconds}.items()}
        self.log({**here, "folds": n_folds}, step=n_folds)

    def catch_up(self, folds: Sequence[FoldResult], ended: float) -> None:
        """Write what the run lacks of these folds, the last of which ended then; one that was written in part is made again."""
        written = int(self.store.client.get_run(self.run_id).data.metrics.get("folds", 0))
        whole = {(str(result.fold + 1), str(result.seed)) for result in folds[:written]}
        for run in self.children("fold") if written < len(folds) else ():
            if (run.data.tags["evbind.fold"], run.data.tags["evbind.seed"]) not in whole:
                self.store.client.delete_run(run.info.run_id)
        for count in range(written + 1, len(folds) + 1):
            self.write_fold(folds[:count], ended - sum(map(_trained_for, folds[count:])))

    def end_trial(self, trial: FrozenTrial, folds: Sequence[FoldResult]) -> None:
        """End the run as its trial ended, with its files; that of a pruned trial as FINISHED, with a tag and a name for it."""
        record, state = TrialRecord.read(trial), state_of(trial)
        self._log_files(record, folds)
        tags = evbind_tags(state=state, **{name: getattr(record, name) for name in FACTS})
        numbers: dict[str, Any] = {f"pooled/{name}": number for name, number in (record.pooled or {}).items()}
        # The value of a pruned trial is of fewer folds: it would sort among the others.
        numbers |= {"seconds": record.seconds, "objective": trial.value if state == "COMPLETE" else None}
        self.log(parameters=trial.params)
        if state == "PRUNED":
            self.store.client.update_run(self.run_id, name=f"{self.name} (pruned)")
        ended = trial.datetime_complete.timestamp() - self.idle if trial.datetime_complete else None
        self.end(record.error, numbers, status=state if state in CUT_OFF else "FINISHED", tags=tags, ended=ended)

    def _log_files(self, record: TrialRecord, folds: Sequence[FoldResult]) -> None:
        """Log a trial's parameters, without files of data, and its out-of-fold predictions where their ids may leave."""
        resolved = masked(without_files(flatten(record.resolved or {})))
        with tempfile.TemporaryDirectory() as folder:
            Path(folder, "params.json").write_text(json.dumps(resolved, indent=1), encoding="utf-8")
            if folds and not any(result.sensitive for result in folds):
                table = pd.concat([result.predictions for result in folds], ignore_index=True)
                table.to_parquet(Path(folder, "predictions.parquet"))
            self.store.client.log_artifacts(self.run_id, folder)

    def __exit__(self, kind: object, error: BaseException | None, trace: object) -> None:
        whole = CrossValidation(tuple(self.results))
        pooled = whole.pooled() if error is None and self.results else {}
        numbers = {f"pooled/{name}": value for name, value in pooled.items()}
        self.end_metrics()
        with self.store.at_end():
            self.catch_up(self.results, time.time())
            self.end(error, {**numbers, "seconds": whole.seconds})


def idle_since(run: entities.Run) -> float:
    """Seconds since a run ended, which do not count where it goes on."""
    return time.time() - run.info.end_time / 1000 if run.info.end_time else 0.0


def _trained_for(result: FoldResult) -> float:
    """Seconds that a fold took here."""
    return 0.0 if result.cached else result.seconds


def state_of(trial: FrozenTrial) -> str:
    """How a trial ended, in MLflow's words where it was cut off or stopped."""
    cut_off = TrialRecord.read(trial).interrupted or not trial.state.is_finished()
    return "KILLED" if cut_off else trial.state.name.replace("FAIL", "FAILED")
