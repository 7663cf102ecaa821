"""A search in MLflow, Study > Trial > Fold: written while it runs, and by the same calls at its ends or by `sync`."""

# ruff: noqa: D102 - what calls a hook is documented where it is declared, in SearchCallback
from __future__ import annotations

import contextlib
import hashlib
import itertools
import time
from collections.abc import Iterable, Mapping, Sequence
from statistics import fmean, stdev
from typing import Any

import optuna
from mlflow import entities
from optuna.trial import FrozenTrial, TrialState

from evbind_lib.config.processes import is_dead, lock_between_processes, this_process
from evbind_lib.hpo.finalists import finalist_name
from evbind_lib.hpo.objective import SearchCallback, SearchStopped
from evbind_lib.hpo.study import StudyRecord, TrialRecord, best_trial, count_trials, improvements, states, study_uid
from evbind_lib.tracking.executions import EXECUTION
from evbind_lib.tracking.page import run_address
from evbind_lib.tracking.runs import DATA, Run, TrainingRun, idle_since, state_of
from evbind_lib.tracking.store import PROCESS, Store, Values, evbind_tags
from evbind_lib.training.cache import FoldCache, trial_name
from evbind_lib.training.result import Callback, FoldResult

MAY_STILL_WRITE = 60  # seconds after its trial that another process has to end its run


def _numbered(study_run: Run, level: str, number: int, run_id: str = "") -> TrainingRun:
    """Run of a ``trial`` or a ``finalist``, with its id or to be made; such names sort as numbers do."""
    name = f"trial {number:03d}" if level == "trial" else f"finalist trial {number:03d}"
    return TrainingRun.below(study_run, level, name, run_id, **{level: str(number)})


class TrackedTrials(SearchCallback):
    """Writes the trials of one process below the study's run."""

    def __init__(self, store: Store, study_run: Any = None) -> None:
        self.store, self.study_run = store, study_run  # which a search has when it begins
        self.trial_runs: dict[int, TrainingRun] = {}  # those that are open

    def on_trial_begin(self, trial: optuna.Trial) -> None:
        number = trial.number
        run = self.trial_runs[number] = _numbered(self.study_run, "trial", number)

        def begin() -> None:
            for known in self.study_run.children("trial", trial=str(number)) if TrialRecord.read(trial).seconds else ():
                run.run_id, run.resumed, run.idle = known.info.run_id, True, idle_since(known)  # it was stopped
                run.log(tags={PROCESS: this_process()})
                self.store.client.update_run(run.run_id, status="RUNNING")
            run.start()
            # So that a view of the study can lead to it; a slow server may answer when the trial has ended.
            with contextlib.suppress(optuna.exceptions.UpdateFinishedTrialError):
                TrialRecord(mlflow_run={"experiment": run.experiment, "run": run.run_id}).write(trial)

        self.store.may_wait()
        self.store.live(begin)

    def fold_callbacks(self, trial: optuna.Trial) -> Sequence[Callback]:
        run = self.trial_runs.get(trial.number)
        if run is None:
            return ()
        run.write(parameters=trial.params)  # known by now
        return (run,)

    def on_trial_end(self, study: optuna.Study, trial: FrozenTrial) -> None:
        """End the trial's run, where this process opened it."""
        if run := self.trial_runs.pop(trial.number, None):
            self.store.live(run.end_trial, trial, tuple(run.results))


class TrackedSearch(TrackedTrials, contextlib.AbstractContextManager["TrackedSearch"]):
    """Writes a search to MLflow while it runs; as a context it ends the study's run as the work in it ended."""

    def __init__(self, store: Store, parameters: Values, tags: Values) -> None:
        super().__init__(store)
        self.parameters, self.tags = parameters, tags
        self.summarised: tuple[Mapping[str, float], Mapping[str, str]] | None = None

    def on_search_begin(self, study: optuna.Study, n_earlier_trials: int) -> None:
        """Open the study's run, or the one that it has already, and write what it lacks of earlier trials."""
        name, key, self.study = study.study_name, study_key(study), study
        run = Run.open(self.store, "search", name, parameters=self.parameters, tags=self.tags, study_key=key)
        self.study_run, self.end_metrics = run, self.store.log_system_metrics(run.run_id)
        StudyRecord(mlflow=run_address(self.store.shown_uri, run.experiment, run.run_id)).write(study)
        EXECUTION.link(run, "study", name)
        if study.get_trials(deepcopy=False):
            with self.store.going_on():
                sync_trials(self.study_run, study)

    def on_trial_end(self, study: optuna.Study, trial: FrozenTrial) -> None:
        super().on_trial_end(study, trial)
        if TrialRecord.read(trial).interrupted:
            self.store.live(self.store.end_abandoned)  # of a worker that died
        if (best := best_trial(study)) and best.number == trial.number:
            self.store.live(self._mark_best, best.number)

    def _mark_best(self, number: int) -> None:
        find = self.study_run.children
        mark_best(self.study_run, self.study, [*find("trial", best="true"), *find("trial", trial=str(number))])

    def on_finalist_begin(self, trial: FrozenTrial) -> None:
        run = self.trial_runs[trial.number] = _numbered(self.study_run, "finalist", trial.number)
        self.store.may_wait()
        self.store.live(run.start)

    def on_finalist_end(self, trial: FrozenTrial, values: Sequence[float], error: BaseException | None) -> None:
        if run := self.trial_runs.pop(trial.number, None):
            status = "KILLED" if isinstance(error, SearchStopped) else ""
            self.store.live(run.end, error, _finalist_numbers(values), status=status)

    def for_workers(self) -> TrackedTrials:
        return TrackedTrials(self.store, self.study_run)

    def summary(self, *, numbers: Mapping[str, float], texts: Mapping[str, str]) -> None:
        """Have the child run 'Study Summary' written at the end, with these files as artifacts."""
        self.summarised = numbers, texts

    def __exit__(self, kind: object, error: BaseException | None, trace: object) -> None:
        if self.study_run is None:
            return
        ended = "" if error is None else f"{type(error).__name__}: {error}"
        self.end_metrics()
        with self.store.at_end():
            for run in self.trial_runs.values():  # cut off
                if run.run_id:
                    run.end(status="KILLED")
            self.study_run.end(ended)
            sync_trials(self.study_run, self.study)
            if self.summarised:
                write_summary(self.study_run, self.study, *self.summarised)


def study_key(study: optuna.Study) -> str:
    """By what the run of a study is found again; names may hold quotes."""
    return hashlib.sha256(f"{study_uid(study)}#{study.study_name}".encode()).hexdigest()[:16]


def sync_trials(study_run: Run, study: optuna.Study) -> int:
    """Write what ended trials and finalists lack in MLflow, from Optuna's storage and the finished folds; how many trials."""
    cache = FoldCache(study_uid(study))
    with lock_between_processes(f"sync {study_key(study)}"):  # two searches that end at once must not both write a run
        # Of several of a trial the first.
        known = {int(run.data.tags["evbind.trial"]): run for run in reversed(study_run.children("trial"))}
        behind = [trial for trial in study.get_trials(deepcopy=False) if _is_behind(known.get(trial.number), trial)]
        for trial in behind:
            _write_trial(study_run, trial, known.get(trial.number), cache)
        mark_best(study_run, study, study_run.children("trial") if behind else known.values())
        _sync_finalists(study_run, study, cache)
    return len(behind)


def _is_behind(run: entities.Run | None, trial: FrozenTrial) -> bool:
    """Whether a trial that ended or was stopped has no run, or one that lacks its end, and nobody is about to write that."""
    record, has_run = TrialRecord.read(trial), trial.datetime_start is not None and trial.state != TrialState.RUNNING
    if not has_run or record.worker is None or (record.surplus and record.seconds is None):
        return False
    if run is not None and run.info.status != "RUNNING" and run.data.tags.get("evbind.state") == state_of(trial):
        return False
    recent = trial.datetime_complete is None or time.time() - trial.datetime_complete.timestamp() < MAY_STILL_WRITE
    # Whoever ends its own trial writes the seconds first; one without was closed by another process.
    return not recent or record.seconds is None or record.worker == this_process() or is_dead(record.worker)


def _write_trial(study_run: Run, trial: FrozenTrial, known: entities.Run | None, cache: FoldCache) -> None:
    """Write the run of an ended trial with the same calls as while it was trained, from what is on disk."""
    number = trial.number
    run = _numbered(study_run, "trial", number, known.info.run_id if known else "")
    run.start(began=trial.datetime_start.timestamp())  # of a trial that began
    steps = sorted(trial.intermediate_values) or range(len(TrialRecord.read(trial).fold_scores or ()))
    folds = _cached_folds(cache, (trial_name(number, fold) for fold in steps))
    run.catch_up(folds, trial.datetime_complete.timestamp() if trial.datetime_complete else time.time())
    run.end_trial(trial, folds)


def _cached_folds(cache: FoldCache, names: Iterable[str]) -> list[FoldResult]:
    """Folds of these names, up to the first that is not there."""
    return [result for result in itertools.takewhile(bool, map(cache.load, names)) if result]


def _finalist_numbers(values: Sequence[float]) -> dict[str, float]:
    return {"objective": fmean(values), "objective_std": stdev(values)} if values else {}


def _sync_finalists(study_run: Run, study: optuna.Study, cache: FoldCache) -> None:
    """Write what finalists that were trained to their end lack."""
    # Of one that was stopped, or trained by other code before, the last run.
    known = {run.data.tags["evbind.finalist"]: run for run in study_run.children("finalist")}
    for number, entry in (StudyRecord.read(study).finalists or {}).items():
        there, numbers = known.get(number), _finalist_numbers(entry["values"])
        before = there.data.metrics.get("objective") if there else None
        is_whole = there and there.info.status == ("FINISHED" if numbers else "FAILED")
        if "ended" not in entry or (is_whole and before == numbers.get("objective")):
            continue
        run = _numbered(study_run, "finalist", int(number), there.info.run_id if there and before is None else "")
        folds = _cached_folds(cache, (finalist_name(int(number), place) for place in itertools.count()))
        run.start(began=entry["ended"] - sum(result.seconds for result in folds if not result.cached))
        run.several_seeds = True
        run.log(parameters=study.get_trials(deepcopy=False)[int(number)].params)
        run.catch_up(folds, entry["ended"])
        run.end(f"TrainingError: {entry['error']}" if "error" in entry else None, numbers, ended=entry["ended"])


def mark_best(study_run: Run, study: optuna.Study, runs: Iterable[entities.Run]) -> None:
    """Mark the best trial's run, by tag and in its name, and those that were the best before it as that; log their values."""
    better = improvements(study)
    if not better:
        return
    client, best = study_run.store.client, better[-1].number
    known = {(point.step, point.value) for point in client.get_metric_history(study_run.run_id, "best_value")}
    for trial in better:
        if (trial.number, trial.values[0]) not in known:
            study_run.log({"best_value": trial.values[0]}, step=trial.number)
    numbers = {str(trial.number) for trial in better}
    for run in runs:
        number, is_best = run.data.tags["evbind.trial"], run.data.tags["evbind.trial"] == str(best)
        if number in numbers and run.data.tags.get("evbind.best") != str(is_best).lower():
            client.set_tag(run.info.run_id, "evbind.best", str(is_best).lower())
            name = run.info.run_name.removesuffix(" (best)")
            client.update_run(run.info.run_id, name=f"{name} (best)" if is_best else name)
    study_run.log({"best_value": better[-1].values[0]}, step=best, tags=evbind_tags(best_trial=best))


def write_summary(study_run: Run, study: optuna.Study, numbers: Values, texts: Mapping[str, str]) -> None:
    """Write the child run 'Study Summary' or, where the study went on, the one it has, with texts as files."""
    best, counts, there = best_trial(study), count_trials(study), study_run.children("summary")
    if best is None:
        return
    summary = Run.below(study_run, "summary", "Study Summary", there[0].info.run_id if there else "")
    summary.start()
    counted = {f"trials_{name}": count for name, count in counts.items()}
    note = f"{counts['total']} trials: {states(counts)}. Best value {best.value:.4f}, trial {best.number}."
    # Tags, not parameters: the study may go on and find a better one, and parameters cannot change.
    tags = {"mlflow.note.content": note, **{f"best.{name}": value for name, value in best.params.items()}}
    for owner in (study_run, summary):
        owner.log({"best_value": best.value, **counted, **numbers}, step=counts["total"], tags=tags)
    for name, text in texts.items():
        study_run.store.client.log_text(summary.run_id, text, name)
    summary.end()


def sync(store: Store, study: optuna.Study, *, parameters: Values, tags: Values, numbers: Values, texts: Values) -> int:
    """Bring the runs of a study in step with Optuna's storage and the finished folds, of how many trials; `TrackingError`."""
    name, key = study.study_name, study_key(study)
    with store.must_work():
        store.end_abandoned()
        known = store.find(store.experiments["search"], evbind_tags(level="study", study_key=key))
        if known:
            info, inherited = known[0].info, evbind_tags(study=name, study_key=key)
            inherited |= {tag: value for tag, value in tags.items() if tag == DATA}
            run = Run(store, info.run_id, info.experiment_id, name, inherited, info.status, idle_since(known[0]))
        else:
            run = Run.open(store, "search", name, parameters=parameters, tags=tags, study_key=key)
        n_written = sync_trials(run, study)
        ended, process = StudyRecord.read(study).ended, known[0].data.tags.get(PROCESS, "") if known else ""
        if not ended and process and not is_dead(process):  # a search that goes on
            return n_written
        write_summary(run, study, numbers, texts)
        if ended or not known:
            run.end("" if ended == "FINISHED" else ended)
    return n_written
