"""Runs in a real MLflow: the tree, going on with a study, no post text, and stores that cannot be used."""

from __future__ import annotations

import dataclasses
import json
import math
import os
import re
import signal
import socket
import sqlite3
import subprocess
import sys
import time
import urllib.error
import urllib.request
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pandas as pd
import pytest
from mlflow import MlflowClient
from mlflow.entities import Run

from evbind_lib import tracking
from evbind_lib.config.compose import TrackingParams
from evbind_lib.errors import TrackingError
from evbind_lib.tracking.tracker import MlflowTracker, StudyRun, git_commit, open_tracker, package_versions
from evbind_lib.training.crossval import EpochResult, FoldResult

SENTENCE = "I have not slept for weeks and nothing tastes of anything"
STORAGE = "sqlite:////somewhere/optuna.db"
PARAMETERS = {"training.n_folds": 2, "hpo.trials.n_trials": 10, "data.posts": "/home/ada/study/posts.csv"}
TAGS = {"evbind.data_fingerprint": "d1", "evbind.folds_fingerprint": "f1", "evbind.seed": "42"}
PROJECT = Path(tracking.__file__).parents[2]


@pytest.fixture(scope="module")
def store(tmp_path_factory: pytest.TempPathFactory) -> TrackingParams:
    """A database that the module's tests share: creating one takes seconds."""
    folder = tmp_path_factory.mktemp("mlflow")
    return TrackingParams(uri=f"sqlite:///{folder / 'mlflow.db'}", artifacts=str(folder / "files"))


@pytest.fixture(scope="module")
def tracker(store: TrackingParams) -> MlflowTracker:
    opened = open_tracker(store)
    assert isinstance(opened, MlflowTracker)
    return opened


@pytest.fixture
def study(tracker: MlflowTracker, request: pytest.FixtureRequest) -> StudyRun:
    """A study of the test's own name."""
    return tracker.study(request.node.name, STORAGE, parameters=PARAMETERS, tags=TAGS)


def run_fold(run: Any, fold: int, score: float, n_epochs: int = 2) -> None:
    """Tell a run about a fold of a training."""
    run.on_fold_begin(fold)
    epochs = []
    for epoch in range(1, n_epochs + 1):
        metrics = {"macro_f1": score * epoch / n_epochs, "roc_auc": math.nan}
        epochs.append(EpochResult(fold, epoch, 1 / epoch, metrics, seconds=0.5))
        run.on_epoch_end(epochs[-1])
    predictions = pd.DataFrame({"fold": [fold], "label": [1], "probability": [0.5]})
    run.on_fold_end(FoldResult(fold, epochs[-1].metrics, tuple(epochs), predictions, 1.5, 300, 80, 512.0))


def run_trial(study: StudyRun, number: int, scores: tuple[float, ...], state: str = "COMPLETE") -> None:
    trial = study.trial(number, {"learning_rate": 0.001, "loss_function": "focal"})
    for fold, score in enumerate(scores):
        run_fold(trial, fold, score)
    trial.finish(state, value=sum(scores) / len(scores), metrics={"macro_f1": 0.5}, seconds=3.0)


def summarise(study: StudyRun, files: dict[str, Path], total: int = 3) -> None:
    study.summary(
        counts={"total": total, "complete": total - 1, "pruned": 1, "failed": 0},
        best_parameters={"learning_rate": 0.001 * total, "loss_function": "focal"},
        best_value=0.25 * total,
        importances={"learning_rate": 0.7, "loss_function": 0.3},
        files=files,
    )


def runs_of(tracker: MlflowTracker, name: str, **tags: str) -> list[Run]:
    wanted = {"evbind.study": name, **{f"evbind.{key}": value for key, value in tags.items()}}
    return tracker.find(tracker.experiments["search"], wanted)


def the_run(tracker: MlflowTracker, name: str, **tags: str) -> Run:
    (only,) = runs_of(tracker, name, **tags)
    return only


def test_a_study_is_a_tree_of_trials_and_folds(tracker: MlflowTracker, study: StudyRun, tmp_path: Path) -> None:
    name = "test_a_study_is_a_tree_of_trials_and_folds"
    run_trial(study, 0, (0.6, 0.8))
    run_trial(study, 1, (0.4,), state="PRUNED")
    summarise(study, {})
    study.finish("FINISHED")

    parent = the_run(tracker, name, level="study")
    trials = runs_of(tracker, name, level="trial")
    folds = runs_of(tracker, name, level="fold")
    summary = the_run(tracker, name, level="summary")
    assert {run.data.tags["mlflow.parentRunId"] for run in [*trials, summary]} == {parent.info.run_id}
    assert [run.data.tags["mlflow.parentRunId"] for run in folds] == [trials[i].info.run_id for i in (0, 0, 1)]
    assert {run.info.status for run in [parent, *trials, *folds, summary]} == {"FINISHED"}
    assert [run.info.run_name for run in trials] == ["trial 000", "trial 001 (pruned)"]
    assert [run.info.run_name for run in folds] == [
        "fold 1 of trial 000",
        "fold 2 of trial 000",
        "fold 1 of trial 001",
    ]
    assert summary.info.run_name == "Study Summary"
    assert [(run.data.tags["evbind.trial"], run.data.tags["evbind.fold"]) for run in folds] == [
        ("0", "1"),
        ("0", "2"),
        ("1", "1"),
    ]
    assert parent.data.tags["evbind.data_fingerprint"] == "d1"
    assert parent.data.tags["evbind.git_commit"] == git_commit()


def test_a_trial_holds_fold_values_their_mean_and_its_objective(tracker: MlflowTracker, study: StudyRun) -> None:
    name = "test_a_trial_holds_fold_values_their_mean_and_its_objective"
    run_trial(study, 7, (0.6, 0.8))
    run_trial(study, 8, (0.4,), state="PRUNED")
    trial, pruned = runs_of(tracker, name, level="trial")
    by_fold = tracker.client.get_metric_history(trial.info.run_id, "fold/macro_f1")
    mean = tracker.client.get_metric_history(trial.info.run_id, "macro_f1")
    assert [(point.step, point.value) for point in by_fold] == [(1, 0.6), (2, 0.8)]
    assert [(point.step, point.value) for point in mean] == [(1, 0.6), (2, pytest.approx(0.7))]
    assert trial.data.metrics["objective"] == pytest.approx(0.7)
    assert trial.data.metrics["pooled/macro_f1"] == 0.5
    assert trial.data.metrics["seconds"] == 3.0
    assert trial.data.params == {"learning_rate": "0.001", "loss_function": "focal"}
    assert trial.data.tags["evbind.state"] == "COMPLETE"
    assert pruned.data.tags["evbind.state"] == "PRUNED"
    assert "objective" not in pruned.data.metrics, "a score of fewer folds must not sort among the others"


def test_a_fold_holds_its_epochs_sizes_and_no_undefined_metric(tracker: MlflowTracker, study: StudyRun) -> None:
    name = "test_a_fold_holds_its_epochs_sizes_and_no_undefined_metric"
    run_trial(study, 0, (0.6,))
    fold = the_run(tracker, name, level="fold")
    losses = tracker.client.get_metric_history(fold.info.run_id, "training_loss")
    assert [(point.step, point.value) for point in losses] == [(1, 1.0), (2, 0.5)]
    assert fold.data.metrics["macro_f1"] == 0.6
    assert "roc_auc" not in fold.data.metrics
    sizes = {key: fold.data.metrics[key] for key in ("n_training", "n_validation", "peak_memory_mb", "seconds")}
    assert sizes == {"n_training": 300, "n_validation": 80, "peak_memory_mb": 512, "seconds": 1.5}


def test_more_epochs_than_one_request_holds(tracker: MlflowTracker, study: StudyRun) -> None:
    trial = study.trial(0, {f"parameter_{number}": number for number in range(120)})
    run_fold(trial, 0, 0.6, n_epochs=400)
    fold = the_run(tracker, "test_more_epochs_than_one_request_holds", level="fold")
    assert len(tracker.client.get_metric_history(fold.info.run_id, "training_loss")) == 400
    assert len(the_run(tracker, "test_more_epochs_than_one_request_holds", level="trial").data.params) == 120


def test_slow_epochs_are_written_while_the_fold_goes_on(
    tracker: MlflowTracker, study: StudyRun, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(tracking.runs, "SHOW_AFTER", 0.0)
    trial = study.trial(0, {})
    trial.on_fold_begin(0)
    trial.on_epoch_end(EpochResult(0, 1, 0.9, {"macro_f1": 0.4}, seconds=60.0))
    fold = the_run(tracker, "test_slow_epochs_are_written_while_the_fold_goes_on", level="fold")
    assert fold.data.metrics["macro_f1"] == 0.4 and fold.info.status == "RUNNING"


def test_a_resumed_study_goes_on_in_its_run_and_doubles_nothing(store: TrackingParams, tmp_path: Path) -> None:
    name, file = "resumed", tmp_path / "optuna_trials.csv"
    for session, n_trials in enumerate((10, 30, 10)):
        tracker = open_tracker(store)
        assert isinstance(tracker, MlflowTracker)
        now = {**PARAMETERS, "hpo.trials.n_trials": n_trials, f"new.in.session.{session}": session}
        study = tracker.study(name, STORAGE, parameters=now, tags=TAGS)
        study.close_stale()
        parent = the_run(tracker, name, level="study")
        assert parent.info.status == "RUNNING"
        run_trial(study, session, (0.5,))
        file.write_text(f"session {session}\n")
        summarise(study, {"trials": file}, total=session + 2)
        study.finish("FINISHED")
    parent = the_run(tracker, name, level="study")
    summary = the_run(tracker, name, level="summary")
    assert parent.info.status == "FINISHED"
    assert len(runs_of(tracker, name, level="trial")) == 3
    assert parent.data.params["hpo.trials.n_trials"] == "10"
    assert parent.data.tags["evbind.now.hpo.trials.n_trials"] == "10", "changed to 30, and back"
    assert parent.data.params["new.in.session.2"] == "2"
    assert summary.data.metrics["trials_total"] == parent.data.metrics["trials_total"] == 4
    assert summary.data.metrics["importance/learning_rate"] == 0.7
    assert summary.data.tags["best.learning_rate"] == "0.004"
    assert "4 trials: 3 complete, 1 pruned" in parent.data.tags["mlflow.note.content"]
    stored = Path(tracker.client.download_artifacts(summary.info.run_id, file.name))
    assert stored.read_text() == "session 2\n"


def test_a_changed_parameter_is_shown_as_it_is_now(tracker: MlflowTracker, study: StudyRun) -> None:
    name = "test_a_changed_parameter_is_shown_as_it_is_now"
    tracker.study(name, STORAGE, parameters={**PARAMETERS, "hpo.trials.n_trials": 30}, tags=TAGS)
    parent = the_run(tracker, name, level="study")
    assert parent.data.tags["evbind.now.hpo.trials.n_trials"] == "30"
    stored = Path(tracker.client.download_artifacts(parent.info.run_id, "params.json"))
    assert json.loads(stored.read_text())["hpo.trials.n_trials"] == 30


def test_a_study_of_the_same_name_in_another_storage_is_another(tracker: MlflowTracker, study: StudyRun) -> None:
    name = "test_a_study_of_the_same_name_in_another_storage_is_another"
    other = tracker.study(name, "sqlite:////elsewhere/optuna.db", parameters=PARAMETERS, tags=TAGS)
    run_trial(study, 0, (0.5,))
    run_trial(other, 0, (0.6,))
    other.mark_best(0)
    parents = {run.info.run_id for run in runs_of(tracker, name, level="study")}
    marks = [run.data.tags.get("evbind.best") for run in runs_of(tracker, name, level="trial")]
    assert len(parents) == 2 and marks == [None, "true"]


def test_a_study_may_have_any_name(tracker: MlflowTracker) -> None:
    name = 'Ada\'s "first" 100% <study> ünd'
    for _ in range(2):
        study = tracker.study(name, STORAGE, parameters=PARAMETERS, tags=TAGS)
        assert study.close_stale() == 0
    found = [run for run in tracker.find(tracker.experiments["search"], {"evbind.level": "study"})]
    assert [run.info.run_name for run in found].count(name) == 1


def test_the_mark_of_the_best_trial_moves(tracker: MlflowTracker, study: StudyRun) -> None:
    name = "test_the_mark_of_the_best_trial_moves"
    for number, score in enumerate((0.5, 0.7, 0.6)):
        run_trial(study, number, (score,))
    for number in (0, 1, 1):
        study.mark_best(number)
    trials = runs_of(tracker, name, level="trial")
    assert [run.data.tags.get("evbind.best") for run in trials] == ["false", "true", None]
    assert [run.info.run_name for run in trials] == ["trial 000", "trial 001 (best)", "trial 002"]
    parent = the_run(tracker, name, level="study")
    assert parent.data.tags["evbind.best_trial"] == "1" and parent.data.metrics["best_value"] == 0.7


def test_a_failed_trial_says_why_and_closes_its_fold(tracker: MlflowTracker, study: StudyRun) -> None:
    name = "test_a_failed_trial_says_why_and_closes_its_fold"
    trial = study.trial(0, {})
    run_fold(trial, 0, 0.5)
    trial.on_fold_begin(1)
    trial.finish("FAILED", error=f"ValueError: the loss is nan\n{SENTENCE}", seconds=1.0)
    run = the_run(tracker, name, level="trial")
    folds = [fold.info.status for fold in runs_of(tracker, name, level="fold")]
    assert run.info.status == "FAILED" and folds == ["FINISHED", "FAILED"]
    assert run.data.tags["evbind.error"] == "ValueError: the loss is nan"


def test_a_trial_that_is_stopped_within_a_fold_has_no_failed_fold(tracker: MlflowTracker, study: StudyRun) -> None:
    trial = study.trial(0, {})
    trial.on_fold_begin(0)
    trial.finish("PRUNED")
    runs = runs_of(tracker, study.inherited["evbind.study"], trial="0")
    assert {run.data.tags["evbind.level"]: run.info.status for run in runs} == {"trial": "FINISHED", "fold": "FINISHED"}


def test_an_interrupted_search_leaves_nothing_running(tracker: MlflowTracker, study: StudyRun) -> None:
    study.trial(0, {}).on_fold_begin(0)
    study.finish("KILLED")
    runs = runs_of(tracker, "test_an_interrupted_search_leaves_nothing_running")
    assert [run.info.status for run in runs] == ["KILLED"] * 3


def test_runs_of_a_killed_process_are_closed_and_its_study_goes_on(
    store: TrackingParams, tracker: MlflowTracker
) -> None:
    code = (
        "import os, signal, sys\n"
        "from evbind_lib.config.compose import TrackingParams\n"
        "from evbind_lib.tracking.tracker import open_tracker\n"
        "tracker = open_tracker(TrackingParams(uri=sys.argv[1], artifacts=sys.argv[2]))\n"
        "study = tracker.study('killed', sys.argv[3], parameters={}, tags={})\n"
        "study.trial(0, {}).on_fold_begin(0)\n"
        "os.kill(os.getpid(), signal.SIGKILL)\n"
    )
    command = [sys.executable, "-c", code, store.uri, store.artifacts, STORAGE]
    done = subprocess.run(command, cwd=PROJECT, capture_output=True, timeout=120)
    assert done.returncode == -signal.SIGKILL
    assert [run.info.status for run in runs_of(tracker, "killed")] == ["RUNNING"] * 3

    study = tracker.study("killed", STORAGE, parameters={}, tags={})
    assert study.close_stale() == 2
    levels = {run.data.tags["evbind.level"]: run for run in runs_of(tracker, "killed")}
    assert {level: run.info.status for level, run in levels.items()} == {
        "study": "RUNNING",
        "trial": "KILLED",
        "fold": "KILLED",
    }
    assert levels["trial"].info.end_time == levels["trial"].info.start_time, "no sign of life after its start"
    run_trial(study, 1, (0.5,))
    assert study.close_stale() == 0


def test_what_a_living_search_is_at_is_not_stale(tracker: MlflowTracker, study: StudyRun) -> None:
    trial = study.trial(0, {})
    trial.on_fold_begin(0)
    assert study.close_stale() == 0
    trial.finish("COMPLETE")


def test_a_training_holds_folds_and_tables_without_text(tracker: MlflowTracker, tmp_path: Path) -> None:
    training = tracker.training("train tiny", parameters=PARAMETERS, tags=TAGS)
    for fold, score in enumerate((0.6, 0.8)):
        run_fold(training, fold, score)
    table = pd.DataFrame({"post_id": ["p1"], "sentence": [SENTENCE], "probability": [0.25]})
    training.log_table("mistakes", table)
    training.finish("FINISHED", metrics={"macro_f1": 0.72}, seconds=4.0)
    experiment = tracker.experiments["training"]
    parent = tracker.find(experiment, {"evbind.level": "training"})[-1]
    folds = tracker.find(experiment, {"mlflow.parentRunId": parent.info.run_id})
    assert [run.info.run_name for run in folds] == ["fold 1 of train tiny", "fold 2 of train tiny"]
    assert parent.data.metrics["macro_f1"] == pytest.approx(0.7) and parent.data.metrics["pooled/macro_f1"] == 0.72
    stored = Path(tracker.client.download_artifacts(parent.info.run_id, "mistakes.csv"))
    assert stored.read_text() == "post_id,probability\np1,0.25\n"


def test_neither_post_text_nor_folders_nor_passwords_are_stored(tmp_path: Path, store: TrackingParams) -> None:
    tracker = open_tracker(store)
    secrets = {
        "data.posts": "/home/ada/secret-clinic/posts.csv",
        "hpo.study.storage": "postgresql://ada:pass-word-1@db/optuna",
    }
    study = tracker.study("private", "postgresql://ada:pass-word-1@db/optuna", parameters=secrets, tags=TAGS)
    trial = study.trial(0, {})
    run_fold(trial, 0, 0.5)
    trial.finish("FAILED", error=f"KeyError: 'x'\n  at {SENTENCE}")
    training = tracker.training("private", parameters=secrets, tags=TAGS)
    training.log_table("table", pd.DataFrame({"sentence": [SENTENCE], "label": [1]}))
    training.finish("FINISHED")
    with sqlite3.connect(store.uri.removeprefix("sqlite:///")) as connection:
        everything = "\n".join(connection.iterdump())
    files = [file for file in Path(store.artifacts).rglob("*") if file.is_file()]
    everything += "\n".join(file.read_text(encoding="utf-8") for file in files)
    assert "posts.csv" in everything and "ada:***@db" in everything
    for secret in (SENTENCE, "secret-clinic", "pass-word-1"):
        assert secret not in everything


def test_mlflow_variables_of_the_shell_do_not_leak_in(
    tracker: MlflowTracker, study: StudyRun, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    name = "test_mlflow_variables_of_the_shell_do_not_leak_in"
    parent = the_run(tracker, name, level="study")
    monkeypatch.setenv("MLFLOW_RUN_ID", parent.info.run_id)
    monkeypatch.setenv("MLFLOW_EXPERIMENT_NAME", "other")
    monkeypatch.setenv("MLFLOW_EXPERIMENT_ID", tracker.experiments["training"])
    monkeypatch.setenv("MLFLOW_TRACKING_URI", f"sqlite:///{tmp_path / 'other.db'}")
    run_trial(study, 0, (0.5,))
    trial = the_run(tracker, name, level="trial")
    assert trial.info.run_id != parent.info.run_id
    assert trial.info.experiment_id == tracker.experiments["search"]
    assert not list(tmp_path.iterdir())


def test_experiments_open_on_their_runs_and_keep_files_in_the_artifacts_folder(
    tracker: MlflowTracker, store: TrackingParams
) -> None:
    for name in ("search", "training"):
        experiment = tracker.client.get_experiment_by_name(name)
        assert experiment.artifact_location == (Path(store.artifacts) / name).as_uri()
        assert experiment.tags["mlflow.experimentKind"] == "custom_model_development"


def test_an_experiment_links_to_views_whose_columns_runs_have(tracker: MlflowTracker, study: StudyRun) -> None:
    run_trial(study, 0, (0.7,))
    logged = the_run(tracker, study.inherited["evbind.study"], trial="0", level="trial").data
    tags = tracker.client.get_experiment(tracker.experiments["search"]).tags
    linked = re.findall(r"viewStateShareKey=([\w-]+)", tags["mlflow.note.content"])
    assert linked == ["evbind-table", "evbind-charts-of-the-trials"]
    table, charts = (json.loads(tags[f"mlflow.sharedViewState.{key}"]) for key in linked)
    metrics = [name for name in table["selectedColumns"] if name.startswith("metrics.")]
    assert {name.split("`")[1] for name in metrics} - set(logged.metrics) == {"best_value"}  # which is the study's
    assert charts["searchFilter"] == "tags.`evbind.level` = 'trial'"
    found = tracker.client.search_runs([tracker.experiments["search"]], charts["searchFilter"])
    assert {run.data.tags["evbind.level"] for run in found} == {"trial"}


def test_a_new_database_is_made_in_silence_below_the_workspace(tmp_path: Path) -> None:
    code = (
        "from evbind_lib.config.compose import TrackingParams\n"
        "from evbind_lib.tracking.tracker import open_tracker\n"
        "open_tracker(TrackingParams(uri='sqlite:///state/mlflow.db', artifacts='files'))\n"
    )
    elsewhere = tmp_path / "elsewhere"
    elsewhere.mkdir()
    environment = {**os.environ, "EVBIND_WORKSPACE": str(tmp_path / "workspace"), "PYTHONPATH": str(PROJECT)}
    command = [sys.executable, "-W", "ignore", "-c", code]
    done = subprocess.run(command, cwd=elsewhere, env=environment, capture_output=True, text=True, timeout=180)
    assert (done.returncode, done.stdout, done.stderr) == (0, "", "")
    assert (tmp_path / "workspace" / "state" / "mlflow.db").is_file()
    assert not list(elsewhere.iterdir())


def test_without_tracking_every_call_is_taken_and_nothing_is_written(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("EVBIND_WORKSPACE", str(tmp_path))
    tracker = open_tracker(TrackingParams(enabled=False, uri="", artifacts=""))
    study = tracker.study("none", STORAGE, parameters=PARAMETERS, tags=TAGS)
    study.close_stale()
    run_trial(study, 0, (0.5, 0.6))
    study.mark_best(0)
    summarise(study, {"missing": tmp_path / "missing"})
    study.finish("FINISHED")
    training = tracker.training("none", parameters=PARAMETERS, tags=TAGS)
    run_fold(training, 0, 0.5)
    training.finish("FINISHED", metrics={}, error=None, seconds=1.0)
    assert tracker.problem is None and not list(tmp_path.iterdir())


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


@pytest.mark.parametrize("uri", ["file:///tmp/mlruns", "mlruns", "/data/mlruns"])
def test_a_folder_as_store_is_refused_with_what_to_write_instead(uri: str) -> None:
    with pytest.raises(TrackingError, match=r"no longer keeps runs in folders; use tracking.uri=sqlite:///"):
        open_tracker(TrackingParams(uri=uri, artifacts="files"))


def test_an_unusable_database_is_refused_at_once(tmp_path: Path) -> None:
    (tmp_path / "text.db").write_text("this is no database, and long enough to be taken for none\n" * 20)
    uris = [
        f"sqlite:///{tmp_path / 'text.db'}",
        f"sqlite:///{tmp_path / 'text.db' / 'mlflow.db'}",
        f"sqlite:///{tmp_path}",
        f"http://ada:pass-word-1@127.0.0.1:{free_port()}",
        "nonsense://x",
    ]
    for uri in uris:
        started = time.monotonic()
        with pytest.raises(TrackingError, match=r"the MLflow store cannot be used \(.+\); set another") as caught:
            open_tracker(TrackingParams(uri=uri, artifacts=str(tmp_path / "files")))
        assert "\n" not in str(caught.value) and "pass-word-1" not in str(caught.value)
        assert time.monotonic() - started < 20, uri


def test_a_deleted_experiment_is_named_with_its_remedy(tracker: MlflowTracker, store: TrackingParams) -> None:
    experiment = tracker.experiments["training"]
    tracker.client.delete_experiment(experiment)
    try:
        with pytest.raises(TrackingError, match=f"mlflow experiments restore -x {experiment}`"):
            open_tracker(store)
    finally:
        tracker.client.restore_experiment(experiment)


def test_a_store_that_is_lost_costs_a_warning_and_no_training(
    store: TrackingParams, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    tracker = open_tracker(store)
    assert isinstance(tracker, MlflowTracker)
    study = tracker.study("lost", STORAGE, parameters=PARAMETERS, tags=TAGS)
    known = tracker.client
    tracker.client = MlflowClient(tracking_uri=f"http://127.0.0.1:{free_port()}")
    monkeypatch.setenv("MLFLOW_HTTP_REQUEST_MAX_RETRIES", "0")
    run_trial(study, 0, (0.5,))
    study.mark_best(0)
    assert study.close_stale() == 0
    assert tracker.problem is not None and "could not be written" in tracker.problem
    assert [record.name for record in caplog.records if record.levelname == "WARNING"] == ["evbind_lib.tracking.store"]
    tracker.client = known
    run_trial(study, 1, (0.5,))
    assert [run.data.tags["evbind.trial"] for run in runs_of(tracker, "lost", level="trial")] == ["1"]


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    """Address of an MLflow server in a process of its own."""
    folder = tmp_path_factory.mktemp("server")
    port = free_port()
    command = [sys.executable, "-m", "mlflow", "server", "--host", "127.0.0.1", "--port", str(port)]
    command += ["--backend-store-uri", f"sqlite:///{folder / 'mlflow.db'}", "--workers", "1"]
    command += ["--artifacts-destination", str(folder / "files")]
    environment = {**os.environ, "MLFLOW_SERVER_ENABLE_JOB_EXECUTION": "false"}  # four processes less
    with (folder / "log").open("w") as log:
        process = subprocess.Popen(command, stdout=log, stderr=log, cwd=folder, env=environment, start_new_session=True)
    try:
        address, deadline = f"http://127.0.0.1:{port}", time.monotonic() + 90
        while True:
            assert time.monotonic() < deadline and process.poll() is None, (folder / "log").read_text()[-2000:]
            try:
                urllib.request.urlopen(f"{address}/health", timeout=2).close()
                break
            except (urllib.error.URLError, OSError):
                time.sleep(0.3)
        yield address
    finally:
        os.killpg(process.pid, signal.SIGKILL)
        process.wait(timeout=30)


@pytest.mark.slow
def test_a_server_records_the_same_tree(server: str, tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    tracker = open_tracker(TrackingParams(uri=server, artifacts=str(tmp_path / "unused")))
    assert isinstance(tracker, MlflowTracker)
    file = tmp_path / "optuna_study_summary.txt"
    file.write_text("the best is trial 1\n")
    for session in range(2):
        study = tracker.study("served", STORAGE, parameters={**PARAMETERS, "session": session}, tags=TAGS)
        assert study.close_stale() == 0
        run_trial(study, session, (0.5 + session / 10, 0.7))
        study.mark_best(session)
        summarise(study, {"summary": file})
        study.finish("FINISHED")
    levels = [run.data.tags["evbind.level"] for run in runs_of(tracker, "served")]
    assert sorted(levels) == ["fold"] * 4 + ["study", "summary"] + ["trial"] * 2
    assert the_run(tracker, "served", best="true").data.tags["evbind.trial"] == "1"
    summary = the_run(tracker, "served", level="summary")
    assert summary.info.artifact_uri.startswith("mlflow-artifacts:")
    (tmp_path / "back").mkdir()
    stored = tracker.client.download_artifacts(summary.info.run_id, file.name, str(tmp_path / "back"))
    assert Path(stored).read_text() == "the best is trial 1\n"
    assert tracker.problem is None
    assert capfd.readouterr().out == "", "no address of a run may spoil a notebook"


def test_git_commit_tells_a_changed_checkout_and_none(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(tracking.store, "project_folder", lambda: tmp_path)
    assert git_commit() == "unknown"
    git = ["git", "-C", str(tmp_path), "-c", "user.name=a", "-c", "user.email=a@b.c"]
    (tmp_path / "file").write_text("one")
    for words in (["init", "-q"], ["add", "file"], ["commit", "-q", "-m", "first"]):
        subprocess.run([*git, *words], check=True, timeout=20)
    commit = git_commit()
    assert len(commit) == 40
    (tmp_path / "file").write_text("two")
    assert git_commit() == f"{commit}-dirty"


def test_package_versions_name_what_a_result_depends_on() -> None:
    assert {"torch", "transformers", "optuna", "scikit-learn"} <= package_versions().keys()


def test_reports_have_the_fields_that_runs_read() -> None:
    epoch = {field.name for field in dataclasses.fields(EpochResult)}
    fold = {field.name for field in dataclasses.fields(FoldResult)}
    assert {"fold", "epoch", "training_loss", "metrics", "seconds"} <= epoch
    assert {"fold", "metrics", "epochs", "seconds", "n_training", "n_validation", "peak_memory_mb"} <= fold
