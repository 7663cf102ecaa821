"""MLflow is a view: what a search could not write while it ran is written at its end, its next start, or by `evbind sync`."""

from __future__ import annotations

import contextlib
import itertools
import json
import shutil
import socket
import threading
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
import optuna
import pandas as pd
import pytest
from mlflow import MlflowClient

from evbind_lib import cli
from evbind_lib.config.compose import compose
from evbind_lib.config.processes import this_process
from evbind_lib.config.schema import Params, TrackingParams
from evbind_lib.data.folds import Fold
from evbind_lib.errors import SearchError, TrackingError
from evbind_lib.hpo.objective import report_folds, suggest
from evbind_lib.hpo.results import summary_numbers
from evbind_lib.hpo.search import run_search
from evbind_lib.hpo.study import open_storage
from evbind_lib.notebook import session
from evbind_lib.tracking import store as store_module
from evbind_lib.tracking.runs import Run, TrainingRun
from evbind_lib.tracking.searches import TrackedSearch, TrackedTrials
from evbind_lib.tracking.store import PROCESS, TRIAL_WAITS, Store
from evbind_lib.training.metrics import compute_metrics
from evbind_lib.training.result import EpochResult, FoldResult, prediction_table
from tests import forks
from tests.conftest import BRIEF
from tests.storages import free_port, mlflow_server

N_FOLDS, N_TRIALS = 3, 5
CHANGING = ("evbind.process", "mlflow.parentRunId", "evbind.study_key", "mlflow.runName")
FILES = ("hpo_best.yaml", "optuna_study_summary.txt", "optuna_trials.csv")
OWN = ("tracking.uri", "hpo.study.study_name")
Event = Callable[[int, int], None]  # called with trial and fold when a fold begins


def fold_result(fold: int, right: float, seconds: float = 0.5) -> FoldResult:
    """A fold of two epochs of which so large a fraction of pairs is decided rightly."""
    labels = np.arange(20) % 2
    decided = np.where(np.arange(20) < round(right * 20), labels, 1 - labels)
    ids = {"post_id": [f"s_{number}" for number in range(20)], "sentence_id": "0", "criterion_id": "A"}
    table = prediction_table(fold, pd.DataFrame({**ids, "label": labels, "weight": 1.0}), 4.0 * decided - 2)
    metrics = compute_metrics(labels, table["probability"].to_numpy())
    epochs = EpochResult(fold, 1, 0.9, None, 0.2), EpochResult(fold, 2, 0.4, metrics, 0.3)
    return FoldResult(fold, metrics, epochs, table, seconds, 40, 20, "fp32", 100.0, seed=42, sensitive=False)


def objective_with(event: Event, params: Params) -> Callable[[optuna.Trial], float]:
    """Trials that end in every way: complete, pruned, failed in the middle of a fold, cut off; the third is the best."""

    def objective(trial: optuna.Trial) -> float:
        suggest(trial, params)
        report = report_folds(trial, "macro_f1")
        scores = []
        for fold in range(N_FOLDS):
            report.on_fold_begin(Fold(fold, (), ()), params)
            event(trial.number, fold)
            result = fold_result(fold, [0.6, 0.5, 0.7, 0.9, 0.8][trial.number % 5])
            for epoch in result.epochs[: 1 if trial.number == 2 and fold == 1 else 2]:
                report.on_epoch_end(epoch)
            if trial.number == 1 and fold == 1:
                raise optuna.TrialPruned
            if trial.number == 2 and fold == 1:
                raise ValueError("no number")
            report.on_fold_end(result)
            scores.append(result.metrics["macro_f1"])
        return float(np.mean(scores))

    return objective


def search(params: Params, store: Store, event: Event = lambda trial, fold: None) -> None:
    """Search as `ev.search` does after `start`."""
    with TrackedSearch(store, params.flat(), {"evbind.seed": "42"}) as tracked:
        result = run_search(objective_with(event, params), params, callbacks=[tracked])
        tracked.summary(numbers=summary_numbers(result), texts=dict.fromkeys(FILES, ""))


def tree(store: Store, name: str) -> list[tuple[Any, ...]]:
    """All runs of a study: name, status, parameters, tags, every point of every metric, and files, of trials what is in them."""
    found = []
    for run in store.find(store.experiments["search"], {"evbind.study": name}):
        tags = {key: value for key, value in run.data.tags.items() if key not in CHANGING}
        parent = run.data.tags.get("mlflow.parentRunId")
        tags["parent"] = store.client.get_run(parent).info.run_name if parent else ""
        points = {
            (metric, point.step, round(point.value, 9))
            for metric in run.data.metrics
            for point in store.client.get_metric_history(run.info.run_id, metric)
            if metric not in ("seconds",) or tags["evbind.level"] == "fold"
        }
        files = {file.path: "" for file in store.client.list_artifacts(run.info.run_id)}
        for file in files if tags["evbind.level"] == "trial" else ():
            files[file] = content(Path(store.client.download_artifacts(run.info.run_id, file)))
        params = {key: value for key, value in run.data.params.items() if key not in OWN}
        tags = {key: value.replace(name, "study") for key, value in tags.items()}
        found.append((run.info.run_name.replace(name, "study"), run.info.status, params, tags, points, files))
    return sorted(found, key=lambda each: each[0])


def content(file: Path) -> str:
    return file.read_text() if file.suffix == ".json" else pd.read_parquet(file).to_csv(index=False)


def words_of(name: str) -> list[str]:
    more = ["hpo.pruner.type=none", "hpo.sampler.seed=1", f"hpo.study.study_name={name}"]
    return [f"hpo.trials.n_trials={N_TRIALS}", f"training.n_folds={N_FOLDS}", *more]


def assert_equal(whole: list[tuple[Any, ...]], other: list[tuple[Any, ...]]) -> None:
    assert [each[0] for each in whole] == [each[0] for each in other]
    for one, two in zip(whole, other, strict=True):
        for before, after in zip(one, two, strict=True):
            assert before == after


@pytest.mark.slow
@pytest.mark.usefixtures("mlflow_tables")
def test_a_study_whose_server_was_lost_has_the_runs_of_one_whose_was_not_after_evbind_sync(
    brief: Callable[..., Params], workspace: Path, caplog: pytest.LogCaptureFixture, capsys: Any
) -> None:
    port = free_port()
    with contextlib.ExitStack() as running:
        address = running.enter_context(mlflow_server(workspace, port))
        search(brief(*words_of("whole")), Store(TrackingParams(uri=address, artifacts="")))
        lost = Store(TrackingParams(uri=address, artifacts=""))
        search(brief(*words_of("lost")), lost, lambda trial, fold: running.close() if (trial, fold) == (1, 1) else None)
    assert len([record for record in caplog.records if record.name == "evbind_lib"]) == 2
    with mlflow_server(workspace, port):
        command = ["sync", *BRIEF, *words_of("lost"), "hpo=quick", f"tracking.uri={address}"]
        assert cli.main(command) == 0 and "4 of 5 trials" in capsys.readouterr().out
        whole, synced = tree(lost, "whole"), tree(lost, "lost")
        assert_equal(whole, synced)
        files = {name: files for name, *_, files in synced if name.startswith("trial")}
        assert all(files.keys() == {"params.json", "predictions.parquet"} for files in files.values())
        rows = {name: files["predictions.parquet"].count("\n") - 1 for name, files in files.items()}
        assert [*rows.values()] == [60, 20, 20, 60, 60], "of the folds that were validated"
        assert json.loads(files["trial 000"]["params.json"])["training.n_folds"] == N_FOLDS
        assert cli.main(command) == 0 and "0 of 5 trials" in capsys.readouterr().out
        assert tree(lost, "lost") == synced, "a study in step is left as it is"


@pytest.mark.usefixtures("mlflow_tables")
def test_a_study_without_a_complete_trial_is_written_as_one_that_failed(brief: Callable[..., Params]) -> None:
    def objective(trial: optuna.Trial) -> float:
        raise ValueError("no number")

    params = brief("hpo.study.study_name=nothing", "hpo.trials.n_trials=2")
    with pytest.raises(SearchError, match="none of its 2 trials"):
        run_search(objective, params)
    assert "2 of 2 trials" in session.sync(params) and "0 of 2 trials" in session.sync(params)
    runs = tree(Store(params.tracking), "nothing")
    assert [(name, status) for name, status, *_ in runs] == [
        ("study", "FAILED"),
        ("trial 000", "FAILED"),
        ("trial 001", "FAILED"),
    ]


@pytest.mark.usefixtures("mlflow_tables")
def test_what_a_server_makes_when_nobody_waits_for_it_any_more_is_no_second_study_or_trial(
    brief: Callable[..., Params], capsys: Any
) -> None:
    """A server that hung answers later: makes the runs that a search asked for, gave up and was started again for."""
    name, params = "late", brief(*words_of("late"), "hpo.trials.n_trials=2")
    search(params, store := Store(params.tracking))
    whole, made = tree(store, name), store.find(store.experiments["search"], {"evbind.study": name})
    host = this_process().rsplit(" ", 2)[0]

    def late(**others: str) -> None:
        for run in made:
            given = {key: run.data.tags[key] for key in run.data.tags if key.startswith("evbind.")}
            parent = {key: run.data.tags[key] for key in ("mlflow.parentRunId",) if key in run.data.tags}
            store.start(run.info.experiment_id, run.info.run_name, {**given, **parent, **others}, began=1.0)

    late()  # asked for by a process that lives, of which nobody knows what it will do
    assert "0 of 2 trials" in session.sync(params)
    late(**{PROCESS: f"{host} 999999999 0.0"})
    assert "0 of 2 trials" in session.sync(params)
    runs = store.find(store.experiments["search"], {"evbind.study": name})
    for run in runs[len(made) :]:
        assert run.data.tags[PROCESS] == this_process() and run.info.status == "RUNNING"
        store.client.delete_run(run.info.run_id)
    assert_equal(whole, tree(store, name))


@contextlib.contextmanager
def silent_server() -> Iterator[str]:
    """Host and port of a server that takes connections and never answers."""
    with socket.create_server(("127.0.0.1", 0)) as listening:
        yield f"127.0.0.1:{listening.getsockname()[1]}"


def test_a_database_that_does_not_answer_is_refused_within_fifteen_seconds() -> None:
    pytest.importorskip("psycopg")
    with silent_server() as place, ThreadPoolExecutor() as both:
        address, began = f"postgresql://ada:pass-word-1@{place}/runs", time.monotonic()
        store = both.submit(Store, TrackingParams(uri=address, artifacts="s3://files"))
        storage = both.submit(open_storage, address)
        for refused, opened in ((TrackingError, store), (SearchError, storage)):
            assert isinstance(error := opened.exception(), refused) and f"ada:***@{place}" in str(error)
        assert time.monotonic() - began < 15


def test_the_store_is_that_of_mlflows_variable_unless_the_parameters_name_one(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("MLFLOW_TRACKING_URI", raising=False)
    assert compose().tracking.uri == "sqlite:///mlflow.db"
    monkeypatch.setenv("MLFLOW_TRACKING_URI", "http://server:5000")
    assert compose().tracking.uri == "http://server:5000"
    assert compose(["tracking.uri=sqlite:///own.db"]).tracking.uri == "sqlite:///own.db"


@pytest.mark.usefixtures("mlflow_tables")
def test_an_address_for_files_is_no_folder(workspace: Path) -> None:
    store = Store(compose(["tracking.artifacts=s3://bucket/evbind/"]).tracking)
    place = store.client.get_experiment(store.experiments["search"]).artifact_location
    assert place == "s3://bucket/evbind/search" and not (workspace / "s3:").exists()


@pytest.mark.usefixtures("mlflow_tables")
def test_a_server_that_does_not_answer_costs_two_seconds_of_the_first_trial_and_nothing_of_the_others(
    brief: Callable[..., Params], monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setenv("MLFLOW_HTTP_REQUEST_TIMEOUT", "4")
    store, begun = Store(brief().tracking), list[float]()
    search(brief(*words_of("whole")), store)
    known = store.client
    with silent_server() as place:
        silent = MlflowClient(tracking_uri=f"http://{place}")

        def event(trial: int, fold: int) -> None:
            store.client = silent if (trial, fold) < (4, 2) else known
            begun.extend([time.monotonic()] if fold == 0 else [])

        search(brief(*words_of("lost")), store, event)
    took = [later - earlier for earlier, later in itertools.pairwise(begun)]
    assert TRIAL_WAITS - 0.5 < took[0] < TRIAL_WAITS + 1.5, took
    assert sum(took[1:]) < TRIAL_WAITS + 3.5, took
    assert_equal(tree(store, "whole"), tree(store, "lost"))
    assert len([record for record in caplog.records if record.name == "evbind_lib"]) == 1


@pytest.mark.usefixtures("mlflow_tables")
def test_a_trial_that_ends_before_the_server_has_answered_is_no_gap(
    workspace: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr(store_module, "TRIAL_WAITS", 0.0)
    store, study, answers = Store(TrackingParams()), optuna.create_study(), threading.Event()
    tracked, trial = TrackedTrials(store, Run.open(store, "search", "slow", {})), study.ask()
    store.live(answers.wait)
    tracked.on_trial_begin(trial)
    study.tell(trial, 0.5)
    tracked.on_trial_end(study, study.trials[0])
    answers.set()
    with store.at_end():
        assert not caplog.records
    (run,) = store.find(store.experiments["search"], {"evbind.trial": "0"})
    assert run.info.status == "FINISHED" and run.data.metrics["objective"] == 0.5


@pytest.mark.usefixtures("mlflow_tables")
def test_a_training_writes_at_its_end_what_it_could_not_before(brief: Callable[..., Params]) -> None:
    params = brief("training.n_folds=3")
    store = Store(params.tracking)
    known = store.client
    with TrainingRun.open(store, "training", "train", parameters={}) as run:
        for fold in range(N_FOLDS):
            run.on_fold_begin(Fold(fold, (), ()), params)
            for epoch in fold_result(fold, 0.6).epochs:
                run.on_epoch_end(epoch)
                store.client = None if fold else known
            run.on_fold_end(fold_result(fold, 0.6))
        store.client = known
    folds = run.children("fold")
    assert sorted((each.info.run_name, each.info.status) for each in folds) == [
        (f"fold {number} of train", "FINISHED") for number in (1, 2, 3)
    ]
    assert {len(store.client.get_metric_history(each.info.run_id, "training_loss")) for each in folds} == {2}
    points = store.client.get_metric_history(run.run_id, "folds")
    assert [(point.step, point.value) for point in points] == [(1, 1), (2, 2), (3, 3)]


@pytest.mark.usefixtures("mlflow_tables")
def test_a_copied_workspace_writes_into_its_own_place_whatever_its_name(
    workspace: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    params = compose()
    store = Store(params.tracking)
    first = store.start(store.experiments["search"], "first", {})
    store.client.log_text(first, "one", "file.txt")
    before = sorted(workspace.rglob("*"))
    copy = workspace.parent / "50 % of #2, really?"
    shutil.copytree(workspace, copy)
    monkeypatch.setenv("EVBIND_WORKSPACE", str(copy))
    store = Store(params.tracking)
    second = store.start(store.experiments["search"], "second", {})
    store.client.log_text(second, "two", "file.txt")
    assert sorted(workspace.rglob("*")) == before and {*workspace.parent.iterdir()} == {workspace, copy}
    texts = [Path(store.client.download_artifacts(run, "file.txt")) for run in (first, second)]
    assert [text.read_text() for text in texts] == ["one", "two"] and len(list(copy.rglob("file.txt"))) == 2
    monkeypatch.setenv("HOME", str(workspace.parent))
    open_storage("sqlite:///~/own.db")
    assert (workspace.parent / "own.db").is_file() and not (copy / "~").exists()


@pytest.mark.usefixtures("mlflow_tables")
def test_a_run_that_the_end_of_its_process_ends_is_ended(workspace: Path) -> None:
    code = """
import atexit
import nbformat
import evbind_lib as ev
from evbind_lib.tracking.runs import NotebookRun
from evbind_lib.tracking.store import Store
run = NotebookRun.open(Store(ev.compose().tracking), "notebooks", "own", parameters={})
run.count_cell()
atexit.register(run.finish, nbformat.v4.new_notebook(), "the kernel was shut down", status="KILLED")
"""
    assert forks.begin(exec, code, {}).wait(100) == 0
    store = Store(compose().tracking)
    (run,) = store.find(store.experiments["notebooks"], {"evbind.notebook": "own"})
    assert (run.info.status, run.data.tags["evbind.error"]) == ("KILLED", "the kernel was shut down")
