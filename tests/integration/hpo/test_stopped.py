"""A trial that was stopped waits under its number: nothing of it is trained, counted or written to MLflow twice."""

from __future__ import annotations

import contextlib
import functools
import shutil
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import optuna
import pandas as pd
import pytest
from optuna.trial import FrozenTrial, TrialState

from evbind_lib.config.schema import Params
from evbind_lib.data.corpus import Corpus
from evbind_lib.data.folds import Fold, make_folds
from evbind_lib.errors import SearchError
from evbind_lib.hpo import workers
from evbind_lib.hpo.claims import claim_trial, close_dead, mark
from evbind_lib.hpo.objective import Objective, SearchCallback
from evbind_lib.hpo.results import SearchResult, folds_spent, trials_table
from evbind_lib.hpo.search import run_search
from evbind_lib.hpo.study import TrialRecord, open_storage, open_study
from evbind_lib.notebook import session
from evbind_lib.notebook.monitor import SearchMonitor
from evbind_lib.tracking.searches import TrackedSearch
from evbind_lib.tracking.store import Store
from evbind_lib.training.result import Callback, FoldResult
from tests import forks

N_FOLDS, N_TRIALS = 3, 2
TIMES = ("seconds", "memory")  # in names of metrics: no two trainings take the same


class Trainings(SearchCallback, Callback):
    """Notes the folds that are trained, and not read, in a file, whichever process trains them."""

    def __init__(self, file: Path) -> None:
        self.file, self.n_steps = file, 0

    def for_workers(self) -> SearchCallback:
        return self

    def fold_callbacks(self, trial: optuna.Trial) -> Sequence[Callback]:
        self.number = trial.number
        return (self,)

    def on_step(self) -> None:
        self.n_steps += 1

    def on_fold_end(self, result: FoldResult) -> None:
        if self.n_steps:
            with self.file.open("a") as stream:
                stream.write(f"{self.number} {result.fold}\n")
        self.n_steps = 0


class PressAfter(SearchCallback, Callback):
    """Presses the monitor's button when a trial of this process has so many folds."""

    def __init__(self, monitor: SearchMonitor, trial: int, n_folds: int) -> None:
        self.monitor, self.trial, self.n_folds = monitor, trial, n_folds

    def fold_callbacks(self, trial: optuna.Trial) -> Sequence[Callback]:
        return (self,) if trial.number == self.trial else ()

    def on_fold_end(self, result: FoldResult) -> None:
        if result.fold + 1 == self.n_folds:
            self.monitor.button.click()


class PressWhenBothTrain(SearchCallback):
    """Presses it while two workers are at their first folds, which end when they know."""

    def __init__(self, monitor: SearchMonitor) -> None:
        self.monitor = monitor

    def on_running(self, study: optuna.Study, running: Sequence[FrozenTrial]) -> None:
        if len([name for name in study.user_attrs if name.startswith("training ")]) == 2:
            self.monitor.button.click()

    def for_workers(self) -> SearchCallback:
        return WaitForStop()


class WaitForStop(SearchCallback, Callback):
    def fold_callbacks(self, trial: optuna.Trial) -> Sequence[Callback]:
        self.study, self.number = trial.study, trial.number
        return (self,)

    def on_fold_begin(self, fold: Fold, params: Params) -> None:
        self.study.set_user_attr(f"training {self.number}", True)

    def on_fold_end(self, result: FoldResult) -> None:
        while not any(name.startswith("stop ") for name in self.study.user_attrs):
            time.sleep(0.05)


Search = Callable[..., optuna.Study]


@pytest.fixture
def search(brief: Callable[..., Params], corpus: Corpus, workspace: Path) -> Search:
    """Search as `ev.search` does in a front end, with what presses the button."""

    def run(name: str, *overrides: str, press: Callable[[SearchMonitor], SearchCallback] | None = None) -> optuna.Study:
        params = params_of(brief, name, *overrides)
        monitor, objective = SearchMonitor(params), Objective(corpus, make_folds(corpus, params), params)
        pressing = [press(monitor)] if press else []
        tracking = TrackedSearch(Store(params.tracking), params.flat(), {})
        with contextlib.suppress(SearchError), tracking:  # stopped before any trial was complete
            callbacks = [tracking, monitor, Trainings(workspace / f"{name}.txt"), *pressing]
            run_search(objective, params, callbacks=callbacks)
        return optuna.load_study(study_name=name, storage=open_storage(params.hpo.study.storage))

    return run


def params_of(brief: Callable[..., Params], name: str, *overrides: str) -> Params:
    words = ["hpo.pruner.type=none", "hpo.sampler.type=random", "hpo.sampler.seed=1", f"hpo.study.study_name={name}"]
    return brief(*words, f"hpo.trials.n_trials={N_TRIALS}", f"training.n_folds={N_FOLDS}", *overrides)


def runs_of(store: Store, name: str, *levels: str) -> list[tuple[Any, ...]]:
    """Runs of trials and folds, but for times and what depends on the order in which trials end."""
    found = []
    for run in store.find(store.experiments["search"], {"evbind.study": name}):
        tags = {
            key: run.data.tags.get(f"evbind.{key}") for key in ("level", "trial", "fold", "seed", "state", "cached")
        }
        tags |= {key: run.data.tags.get(f"evbind.{key}") for key in ("error", "retry_of", "folds_from_before", "code")}
        points = {
            (metric, point.step, round(point.value, 9))
            for metric in run.data.metrics
            for point in store.client.get_metric_history(run.info.run_id, metric)
            if not any(time in metric for time in TIMES)
        }
        files = {file.path for file in store.client.list_artifacts(run.info.run_id)}
        rows = [
            len(pd.read_parquet(store.client.download_artifacts(run.info.run_id, file)))
            for file in files
            if file.endswith(".parquet")
        ]
        name_of_run = run.info.run_name.removesuffix(" (best)")
        if tags["level"] in (levels or ("trial", "fold")):
            found.append((name_of_run, run.info.status, tags, run.data.params, points, files, rows))
    return sorted(found, key=lambda each: each[0])


def states(study: optuna.Study) -> list[str]:
    """As optuna-dashboard and every other reader of the study sees its trials."""
    return [str(state) for state in study.trials_dataframe()["state"]]


ALL_ONCE = sorted(f"{trial} {fold}" for trial in range(N_TRIALS) for fold in range(N_FOLDS))


@pytest.mark.usefixtures("mlflow_tables")
def test_a_trial_stopped_twice_goes_on_under_its_number_and_trains_counts_and_writes_each_fold_once(
    search: Search, brief: Callable[..., Params], workspace: Path
) -> None:
    shutil.copy(workspace / "mlflow.db", workspace / "other.db")
    params, other = params_of(brief, "stopped"), params_of(brief, "stopped", "tracking.uri=sqlite:///other.db")
    store, trained = Store(params.tracking), workspace / "stopped.txt"
    whole = search("whole")
    for n_folds in (1, 2):
        study = search("stopped", press=functools.partial(PressAfter, trial=1, n_folds=n_folds))
        assert states(study) == ["COMPLETE", "WAITING"]
        assert trained.read_text().split("\n")[:-1] == ALL_ONCE[: N_FOLDS + n_folds]
        assert folds_spent(study, N_FOLDS) == (N_FOLDS + n_folds, 0, N_FOLDS)
        assert {run.info.status for run in store.find(store.experiments["search"], {})} == {"FINISHED", "KILLED"}
        (stopped,) = [run for run in runs_of(store, "stopped", "trial") if run[1] == "KILLED"]
        assert ("folds", n_folds, n_folds) in stopped[4]
        if n_folds == 1:
            assert "2 of 2 trials" in session.sync(other) and "0 of 2 trials" in session.sync(other)
            assert runs_of(Store(other.tracking), "stopped") == runs_of(store, "stopped")
    study = search("stopped")
    assert states(study) == ["COMPLETE"] * N_TRIALS
    assert sorted(trained.read_text().split("\n")[:-1]) == ALL_ONCE
    assert folds_spent(study, N_FOLDS) == (N_FOLDS * N_TRIALS, 0, N_FOLDS * N_TRIALS)
    assert "folds_read" not in trials_table(study)
    for trial, alike in zip(study.trials, whole.trials, strict=True):
        assert (trial.params, trial.value) == (alike.params, alike.value)
        assert trial.intermediate_values == alike.intermediate_values
        assert trial.user_attrs.keys() == alike.user_attrs.keys()
    assert runs_of(store, "stopped") == runs_of(store, "whole")
    assert "1 of 2 trials" in session.sync(other)
    assert runs_of(Store(other.tracking), "stopped") == runs_of(store, "whole"), "a store that missed how it went on"


@pytest.mark.usefixtures("mlflow_tables")
def test_trials_of_two_workers_that_were_stopped_go_on_under_their_numbers(
    search: Search, brief: Callable[..., Params], workspace: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name, value in forks.for_workers(forks.begin_worker).items():
        monkeypatch.setattr(workers, name, value)
    study = search("stopped", "hpo.trials.n_jobs=2", press=PressWhenBothTrain)
    assert states(study) == ["WAITING"] * 2 and folds_spent(study, N_FOLDS) == (2, 0, 0)
    drawn = [trial.params for trial in study.trials]
    study = search("stopped", "hpo.trials.n_jobs=2")
    assert states(study) == ["COMPLETE"] * N_TRIALS and [trial.params for trial in study.trials[:2]] == drawn
    assert sorted((workspace / "stopped.txt").read_text().split("\n")[:-1]) == ALL_ONCE
    assert folds_spent(study, N_FOLDS) == (N_FOLDS * N_TRIALS, 0, N_FOLDS * N_TRIALS)
    search("whole")
    store = Store(params_of(brief, "whole").tracking)
    assert runs_of(store, "stopped") == runs_of(store, "whole")


def test_a_stopped_trial_whose_space_was_changed_since_is_closed_and_its_parameters_are_tried_again(
    brief: Callable[..., Params], corpus: Corpus
) -> None:
    class Stop(SearchCallback, Callback):
        def fold_callbacks(self, trial: optuna.Trial) -> Sequence[Callback]:
            return (self,)

        def on_fold_end(self, result: FoldResult) -> None:
            self.wants_stop = True

    def run(*overrides: str, callbacks: Sequence[SearchCallback] = ()) -> SearchResult:
        params = brief("hpo.trials.n_trials=1", *overrides)
        return run_search(Objective(corpus, make_folds(corpus, params), params), params, callbacks=callbacks)

    with pytest.raises(SearchError, match="Stopped on request"):
        run(callbacks=[Stop()])
    result = run("hpo.fixed.learning_rate=1e-3")
    closed, again = result.study.trials
    assert closed.state == TrialState.FAIL and TrialRecord.read(closed).interrupted
    assert again.state == TrialState.COMPLETE and TrialRecord.read(again).retry_of == 0
    assert "learning_rate" in closed.params and "learning_rate" not in again.params
    assert folds_spent(result.study, 2) == (1 + 2, 0, 2)


def test_a_trial_that_was_put_back_is_claimed_once_as_it_was(brief: Callable[..., Params]) -> None:
    study = open_study(brief("hpo.trials.n_trials=1"), {"objective": "module.objective"})
    trial = claim_trial(study, 1)
    assert trial is not None
    rate = trial.suggest_float("learning_rate", 0.1, 0.2)
    trial.report(0.5, step=0)
    mark(study, 0, TrialRecord(), TrialState.WAITING)
    assert close_dead(study, left_by=TrialRecord.read(trial).worker) == []
    again = claim_trial(study, 1)
    assert again is not None and (again.number, again.suggest_float("learning_rate", 0.1, 0.2)) == (0, rate)
    assert claim_trial(study, 1) is None, "of the total none is left"
    study.tell(again, state=TrialState.FAIL)  # as another host does that takes its process for dead
    mark(study, 0, TrialRecord(), TrialState.WAITING)
    assert [each.state for each in study.trials] == [TrialState.FAIL]
