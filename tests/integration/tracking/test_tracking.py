"""Runs in a real MLflow: the tree, going on with a study, no post text, and stores that cannot be used."""

from __future__ import annotations

import contextlib
import json
import math
import os
import pickle
import shutil
import sqlite3
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import optuna
import pandas as pd
import pytest
from mlflow import MlflowClient
from mlflow.entities import Run
from optuna.trial import TrialState

from evbind_lib.config.compose import compose
from evbind_lib.config.paths import sqlite_file
from evbind_lib.config.processes import this_process
from evbind_lib.config.schema import TrackingParams
from evbind_lib.data.folds import Fold
from evbind_lib.errors import TrackingError
from evbind_lib.hpo.study import StudyRecord, TrialRecord
from evbind_lib.tracking import executions, store
from evbind_lib.tracking.runs import NotebookRun, TrainingRun
from evbind_lib.tracking.searches import TrackedSearch, TrackedTrials
from evbind_lib.tracking.store import PROCESS, Store, git_commit
from evbind_lib.training.result import EpochResult, FoldResult
from tests.storages import free_port, mlflow_server

SENTENCE = "I have not slept for weeks and nothing tastes of anything"
PARAMETERS = {"training.n_folds": 2, "hpo.trials.n_trials": 10, "data.posts": "/home/ada/secret-clinic/posts.csv"}
TAGS = {"evbind.data_fingerprint": "d1", "evbind.seed": "42"}
DRAWN = {"learning_rate", "loss_function"}
PARAMS = compose(["training.n_folds=2"])
PROJECT = Path(store.__file__).parents[2]


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory, mlflow_database: Path) -> TrackingParams:
    """A database that the module's tests share."""
    folder = tmp_path_factory.mktemp("mlflow")
    shutil.copy(mlflow_database, folder)
    return TrackingParams(uri=f"sqlite:///{folder / 'mlflow.db'}", artifacts=str(folder / "files"))


@pytest.fixture(scope="module")
def tracker(place: TrackingParams) -> Store:
    return Store(place)


@pytest.fixture(autouse=True)
def variables_of_the_shell(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """No run may go where these would lead MLflow's own functions."""
    monkeypatch.setenv("MLFLOW_RUN_ID", "0" * 32)
    monkeypatch.setenv("MLFLOW_EXPERIMENT_ID", "77")
    monkeypatch.setenv("MLFLOW_TRACKING_URI", f"sqlite:///{tmp_path / 'nowhere' / 'other.db'}")


@pytest.fixture
def study(request: pytest.FixtureRequest) -> optuna.Study:
    """A study of the test's own name."""
    return new_study(request.node.name)


def new_study(name: str) -> optuna.Study:
    return optuna.create_study(study_name=name, direction="maximize", sampler=optuna.samplers.RandomSampler(seed=1))


@contextlib.contextmanager
def tracked(tracker: Store, study: optuna.Study, parameters: dict[str, Any] = PARAMETERS) -> Iterator[TrackedSearch]:
    """A search in its course, as far as callbacks know of it."""
    with TrackedSearch(tracker, parameters, TAGS) as search:
        search.on_search_begin(study, 0)
        yield search


def run_fold(run: Any, fold: int, score: float, *, ends: bool = True) -> None:
    """Call a run for a fold of a training; the first of its two epochs is not validated."""
    run.on_fold_begin(Fold(fold, ("a",), ("b",)), PARAMS)
    last = {"macro_f1": score, "roc_auc": math.nan}
    epochs = EpochResult(fold, 1, 1.0, None, 0.5), EpochResult(fold, 2, 0.5, last, 0.5)
    for epoch in epochs:
        run.on_epoch_end(epoch)
    predictions = pd.DataFrame({"fold": fold, "post_id": "post-of-ada", "label": [0, 1], "probability": [0.2, 0.7]})
    if ends:
        run.on_fold_end(FoldResult(fold, last, epochs, predictions, 1.5, 300, 80, "fp32", 512.0))


def run_trial(
    search: TrackedTrials,
    study: optuna.Study,
    *scores: float,
    state: TrialState = TrialState.COMPLETE,
    cut_off_in: int | None = None,
    **record: Any,
) -> int:
    """Run a trial of these scores of folds, as `hpo` calls a callback; return its number."""
    trial = study.ask()
    search.on_trial_begin(trial)
    trial.suggest_float("learning_rate", 1e-6, 1e-4)
    trial.suggest_categorical("loss_function", ["focal"])
    for run in search.fold_callbacks(trial) if scores or cut_off_in is not None else ():
        for fold, score in enumerate(scores):
            run_fold(run, fold, score)
        if cut_off_in is not None:
            run_fold(run, cut_off_in, 0.5, ends=False)
    TrialRecord(seconds=3.0, pooled={"macro_f1": 0.5}, **record).write(trial)
    value = sum(scores) / len(scores) if scores else 0.25
    study.tell(trial, value if state == TrialState.COMPLETE else None, state=state)
    search.on_trial_end(study, study.trials[trial.number])
    return int(trial.number)


def runs_of(tracker: Store, name: str, **tags: str) -> list[Run]:
    wanted = {"evbind.study": name, **{f"evbind.{key}": value for key, value in tags.items()}}
    return tracker.find(tracker.experiments["search"], wanted)


def the_run(tracker: Store, name: str, **tags: str) -> Run:
    (only,) = runs_of(tracker, name, **tags)
    return only


def history(tracker: Store, run: Run, metric: str) -> list[tuple[int, float]]:
    points = tracker.client.get_metric_history(run.info.run_id, metric)
    return [(point.step, round(point.value, 6)) for point in points]


def statuses(tracker: Store, name: str) -> dict[str, str]:
    """By level, of a study with one trial."""
    return {run.data.tags["evbind.level"]: run.info.status for run in runs_of(tracker, name)}


def test_a_study_is_a_tree_of_trials_and_folds(
    tracker: Store, study: optuna.Study, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    name, file = study.study_name, tmp_path / "optuna_trials.csv"
    file.write_text("number\n")
    notebook = NotebookRun.begin(tracker, "mine", {}, way="jupyter", outer=None)
    monkeypatch.setattr(executions.EXECUTION, "run", notebook)
    with TrackedSearch(tracker, PARAMS.flat(), TAGS) as search:
        search.on_search_begin(study, 0)
        run_trial(search, study, 0.6, 0.8, retry_of=7)
        run_trial(search, study, 0.4, state=TrialState.PRUNED)
        search.summary(
            numbers={"importance/learning_rate": 0.7, "corrected_score": 0.6}, texts={"optuna_trials.csv": "number\n"}
        )
    parent, summary = the_run(tracker, name, level="study"), the_run(tracker, name, level="summary")
    trials, folds = runs_of(tracker, name, level="trial"), runs_of(tracker, name, level="fold")
    assert parent.data.tags["evbind.notebook_run"] == notebook.run_id
    assert tracker.client.get_run(notebook.run_id).data.tags["evbind.study_run"] == parent.info.run_id
    assert {run.data.tags["mlflow.parentRunId"] for run in [*trials, summary]} == {parent.info.run_id}
    assert [run.data.tags["mlflow.parentRunId"] for run in folds] == [trials[n].info.run_id for n in (0, 0, 1)]
    assert {run.info.status for run in [parent, *trials, *folds, summary]} == {"FINISHED"}
    assert [run.info.run_name for run in trials] == ["trial 000 (best)", "trial 001 (pruned)"]
    files = [[file.path for file in tracker.client.list_artifacts(run.info.run_id)] for run in trials]
    assert files == [["params.json"]] * 2, "predictions of sensitive data have ids of posts"
    assert [run.info.run_name for run in folds] == [f"fold {f} of trial 00{t}" for f, t in ((1, 0), (2, 0), (1, 1))]
    assert parent.data.params["training.n_folds"] == "2" and parent.data.tags["evbind.data_fingerprint"] == "d1"
    assert parent.data.tags["evbind.git_commit"] == git_commit()
    assert {"evbind.version.torch", "evbind.version.optuna", "evbind.version.scikit-learn"} <= parent.data.tags.keys()

    data = [run.inputs.dataset_inputs for run in [parent, *trials]]
    assert [[each.dataset.digest for each in inputs] for inputs in data] == [["d1"]] * 3
    assert str(StudyRecord.read(study).mlflow).endswith(
        f"/#/experiments/{parent.info.experiment_id}/runs/{parent.info.run_id}"
    )

    trial, pruned = trials
    assert history(tracker, trial, "fold/macro_f1") == [(1, 0.6), (2, 0.8)]
    assert history(tracker, trial, "macro_f1") == [(1, 0.6), (2, 0.7)], "the mean so far"
    numbers = {"objective": pytest.approx(0.7), "pooled/macro_f1": 0.5, "seconds": 3.0, "folds": 2}
    assert numbers.items() <= trial.data.metrics.items()
    assert trial.data.params.keys() == DRAWN and trial.data.params["loss_function"] == "focal"
    assert (trial.data.tags["evbind.state"], pruned.data.tags["evbind.state"]) == ("COMPLETE", "PRUNED")
    assert trial.data.tags["evbind.retry_of"] == "7" and "evbind.retry_of" not in pruned.data.tags
    assert "objective" not in pruned.data.metrics, "a score of fewer folds must not sort among the others"
    place = {"experiment": trial.info.experiment_id, "run": trial.info.run_id}
    assert TrialRecord.read(study.trials[0]).mlflow_run == place

    assert history(tracker, folds[0], "training_loss") == [(1, 1.0), (2, 0.5)]
    assert history(tracker, folds[0], "macro_f1") == [(2, 0.6)], "not every epoch is validated"
    assert "roc_auc" not in folds[0].data.metrics
    sizes = {"n_training": 300, "n_validation": 80, "peak_memory_mb": 512, "seconds": 1.5}
    assert sizes.items() <= folds[0].data.metrics.items()

    assert summary.data.metrics["trials_total"] == parent.data.metrics["trials_total"] == 2
    assert summary.data.metrics["importance/learning_rate"] == 0.7
    assert summary.data.tags["best.loss_function"] == "focal"
    assert "2 trials: 1 complete, 1 pruned" in parent.data.tags["mlflow.note.content"]
    assert Path(tracker.client.download_artifacts(summary.info.run_id, file.name)).read_text() == "number\n"


def test_a_resumed_study_goes_on_in_its_run_and_doubles_nothing(place: TrackingParams, study: optuna.Study) -> None:
    name, many = (
        study.study_name,
        {f"parameter_{number}": number for number in range(120)},
    )  # more than MLflow takes at once
    began = time.time()
    for session, score in enumerate((0.5, 0.7, 0.6)):
        time.sleep(0.5 * session)  # what passes between two searches is not what the study took
        tracker = Store(place)
        now = {**PARAMETERS, **many, "hpo.trials.n_trials": 10 * (session + 1), f"new.in.session.{session}": session}
        with tracked(tracker, study, now) as search:
            assert the_run(tracker, name, level="study").info.status == "RUNNING"
            run_trial(search, study, score)
            search.summary(numbers={}, texts={})
    parent, summary = the_run(tracker, name, level="study"), the_run(tracker, name, level="summary")
    assert parent.info.status == "FINISHED" and len(parent.data.params) == 126
    assert (parent.info.end_time - parent.info.start_time) / 1000 < time.time() - began - 1.4
    assert len(parent.inputs.dataset_inputs) == 1
    assert parent.data.params["hpo.trials.n_trials"] == "10" and parent.data.params["new.in.session.2"] == "2"
    assert parent.data.tags["evbind.changed"] == "hpo.trials.n_trials=30"
    stored = Path(tracker.client.download_artifacts(parent.info.run_id, "params.json"))
    assert json.loads(stored.read_text())["hpo.trials.n_trials"] == 30
    assert history(tracker, summary, "trials_total") == [(1, 1), (2, 2), (3, 3)]
    trials = runs_of(tracker, name, level="trial")
    assert [run.data.tags.get("evbind.best") for run in trials] == ["false", "true", None], "the mark of the best moves"
    assert [run.info.run_name for run in trials] == ["trial 000", "trial 001 (best)", "trial 002"]
    assert parent.data.tags["evbind.best_trial"] == "1" and parent.data.metrics["best_value"] == 0.7


def test_a_study_is_known_by_its_uid_whatever_its_name(tracker: Store) -> None:
    name = 'Ada\'s "first" 100% <study> ünd'
    one, other = new_study(name), new_study(name)
    for study in (one, one, other):
        with tracked(tracker, study) as search:
            run_trial(search, study, 0.5)
    found = tracker.find(tracker.experiments["search"], {"evbind.level": "study"})
    assert [run.info.run_name for run in found].count(name) == 2


def test_trials_end_as_they_ended_and_a_fold_that_was_cut_off_has_no_run(tracker: Store, study: optuna.Study) -> None:
    name, failed = study.study_name, TrialState.FAIL
    with tracked(tracker, study) as search:
        run_trial(search, study, 0.5, cut_off_in=1, state=failed, error=f"ValueError: the loss is nan\n{SENTENCE}")
        run_trial(search, study, cut_off_in=0, state=TrialState.PRUNED)
        run_trial(search, study, cut_off_in=0, state=failed, interrupted=True)
        run_trial(search, study)  # an objective that reports no folds
    ended = [sorted(run.info.status for run in runs_of(tracker, name, trial=str(number))) for number in range(4)]
    assert ended == [["FAILED", "FINISHED"], ["FINISHED"], ["KILLED"], ["FINISHED"]]
    trials = runs_of(tracker, name, level="trial")
    assert trials[0].data.tags["evbind.error"] == "ValueError: the loss is nan"
    assert trials[3].data.metrics["objective"] == 0.25 and trials[3].data.params.keys() == DRAWN


@pytest.mark.parametrize(("error", "status"), [(KeyboardInterrupt(), "KILLED"), (ValueError("x"), "FAILED")])
def test_a_search_that_ends_early_leaves_nothing_running(tracker: Store, error: BaseException, status: str) -> None:
    study = new_study(f"ends {status}")
    with pytest.raises(type(error)), tracked(tracker, study) as search:
        trial = study.ask()
        search.on_trial_begin(trial)
        run_fold(*search.fold_callbacks(trial), 0, 0.5, ends=False)
        raise error
    assert statuses(tracker, study.study_name) == {"study": status, "trial": "KILLED"}


def test_trials_of_workers_go_below_the_run_of_the_search(tracker: Store, study: optuna.Study) -> None:
    with tracked(tracker, study) as search:
        worker = pickle.loads(pickle.dumps(search.for_workers()))
        assert worker.study_run.store is not tracker
        number = run_trial(worker, study, 0.6)
        search.on_trial_end(study, study.trials[number])
    parent, trial = (the_run(tracker, study.study_name, level=level) for level in ("study", "trial"))
    assert trial.data.tags["mlflow.parentRunId"] == parent.info.run_id
    assert trial.info.run_name == "trial 000 (best)" and trial.info.status == "FINISHED"


def test_runs_of_a_dead_process_are_ended_and_its_study_goes_on(
    tracker: Store, study: optuna.Study, monkeypatch: pytest.MonkeyPatch
) -> None:
    name = study.study_name
    with monkeypatch.context() as patch, tracked(tracker, study) as search:
        patch.setattr(tracker.client, "set_terminated", lambda *words, **named: None)  # a kill lets nobody end a run
        trial = study.ask()
        search.on_trial_begin(trial)
        run_fold(*search.fold_callbacks(trial), 0, 0.5, ends=False)
    host, _, started = this_process().rsplit(" ", 2)
    for run in runs_of(tracker, name):
        assert run.info.status == "RUNNING"
        tracker.client.set_tag(run.info.run_id, PROCESS, f"{host} 1 {started}")
    with tracked(tracker, study) as search:
        assert statuses(tracker, name) == {"study": "RUNNING", "trial": "KILLED"}
        dead = the_run(tracker, name, level="trial").info
        assert dead.end_time == dead.start_time, "no heartbeat after its start"
        search.on_trial_begin(study.ask())
        tracker.end_abandoned()
        running = [run.data.tags["evbind.level"] for run in runs_of(tracker, name) if run.info.status == "RUNNING"]
        assert running == ["study", "trial"], "what a living search is at is not abandoned"


def test_a_training_holds_its_folds_and_ends_as_the_work_did(tracker: Store) -> None:
    for error in (None, KeyboardInterrupt(), ValueError(f"no\n{SENTENCE}")):
        run = TrainingRun.open(tracker, "training", "train tiny", parameters=PARAMETERS, tags=TAGS)
        with pytest.raises(type(error)) if error else contextlib.nullcontext(), run:
            for fold, score in enumerate((0.6, 0.8)):
                run_fold(run, fold, score, ends=not (error and fold))
            if error:
                raise error
    experiment = tracker.experiments["training"]
    done, killed, failed = tracker.find(experiment, {"evbind.level": "training"})
    assert [run.info.status for run in (done, killed, failed)] == ["FINISHED", "KILLED", "FAILED"]
    assert failed.data.tags["evbind.error"] == "ValueError: no"
    folds = tracker.find(experiment, {"mlflow.parentRunId": done.info.run_id})
    assert [run.info.run_name for run in folds] == ["fold 1 of train tiny", "fold 2 of train tiny"]
    assert done.data.metrics["macro_f1"] == pytest.approx(0.7) and done.data.metrics["pooled/macro_f1"] == 1
    assert done.data.metrics["seconds"] == 3 and "pooled/macro_f1" not in failed.data.metrics


def test_neither_post_text_nor_folders_nor_passwords_are_stored(place: TrackingParams, study: optuna.Study) -> None:
    tracker, password = Store(place), "postgresql://ada:pass-word-1@db/optuna"
    with tracked(tracker, study, {**PARAMETERS, "hpo.study.storage": password}) as search:
        run_trial(search, study, 0.5, state=TrialState.FAIL, error=f"KeyError: 'x'\n  at {SENTENCE}")
    with TrainingRun.open(tracker, "training", "private", parameters={"hpo.study.storage": password}, tags=TAGS) as run:
        run_fold(run, 0, 0.5)
    with contextlib.closing(sqlite3.connect(place.uri.removeprefix("sqlite:///"))) as connection:
        everything = "\n".join(connection.iterdump())
    files = [file for file in Path(place.artifacts).rglob("*") if file.is_file()]
    everything += "\n".join(file.read_text(encoding="utf-8") for file in files)
    assert "posts.csv" in everything and "ada:***@db" in everything
    for secret in (SENTENCE, "secret-clinic", "pass-word-1", "post-of-ada"):
        assert secret not in everything


def test_a_new_database_is_made_in_silence_below_the_workspace(tmp_path: Path) -> None:
    code = (
        "import logging\n"
        "from evbind_lib.config.schema import TrackingParams\n"
        "from evbind_lib.tracking.store import Store\n"
        "loggers = [logging.getLogger(name) for name in ('mlflow', 'alembic')]\n"
        "before = [logger.level for logger in loggers]\n"
        "Store(TrackingParams(uri='sqlite:///state/mlflow.db', artifacts='files')).client.search_experiments()\n"
        "assert before == [logger.level for logger in loggers], 'the user sets these'\n"
    )
    elsewhere = tmp_path / "elsewhere"
    elsewhere.mkdir()
    environment = {**os.environ, "EVBIND_WORKSPACE": str(tmp_path / "workspace"), "PYTHONPATH": str(PROJECT)}
    command = [sys.executable, "-W", "ignore", "-c", code]
    done = subprocess.run(command, cwd=elsewhere, env=environment, capture_output=True, text=True, timeout=180)
    assert (done.returncode, done.stdout, done.stderr) == (0, "", "")
    assert (tmp_path / "workspace" / "state" / "mlflow.db").is_file()
    assert not list(elsewhere.iterdir())


def test_an_unusable_store_is_refused_at_once_with_what_to_do(tmp_path: Path) -> None:
    (tmp_path / "text.db").write_text("this is no database, and long enough to be taken for none\n" * 20)
    folders = ["file:///tmp/mlruns", "mlruns", "/data/mlruns"]
    files = [f"sqlite:///{tmp_path / 'text.db'}", f"sqlite:///{tmp_path / 'text.db' / 'x.db'}", f"sqlite:///{tmp_path}"]
    server = f"http://ada:pass-word-1@127.0.0.1:{free_port()}"
    for uri in [*folders, *files, server, "nonsense://x"]:
        started = time.monotonic()
        with pytest.raises(TrackingError) as caught:
            Store(TrackingParams(uri=uri, artifacts=str(tmp_path / "files")))
        sentence = str(caught.value)
        assert "tracking=none" in sentence and ("sqlite:///" in sentence or uri not in folders)
        assert sentence.startswith("tracking.uri=") and "\n" not in sentence and "pass-word-1" not in sentence
        assert time.monotonic() - started < 20, uri


def test_a_place_for_files_that_is_none_is_refused_before_a_run_is_made(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    nowhere = {"": "no place", " ": "no place", "s3://": "no place", "foo://bar": "artifact repository"}
    nowhere |= {"/dev/null": "exists", "/proc/x": "No such file", str(tmp_path / "file"): "(File exists)"}
    for artifacts, word in nowhere.items():
        with pytest.raises(TrackingError) as caught:
            Store(TrackingParams(uri=f"sqlite:///{tmp_path / 'new.db'}", artifacts=artifacts))
        said = str(caught.value)
        assert (
            said.startswith(f"tracking.artifacts={artifacts}: ")
            and word in said
            and "another tracking.artifacts" in said
        )
    assert not (tmp_path / "new.db").exists()


def test_a_database_that_is_lost_while_work_goes_on_is_told_in_one_sentence(
    tracker: Store, place: TrackingParams, tmp_path: Path, capfd: pytest.CaptureFixture[str], caplog: Any
) -> None:
    shutil.copy(str(sqlite_file(tracker.uri)), lost := tmp_path / "lost.db")
    store = Store(place.model_copy(update={"uri": f"sqlite:///{lost}"}))
    run = store.start(store.experiments["search"], "lost", {})
    lost.unlink()
    with store.going_on():
        store.client.log_metric(run, "cells", 1.0)
    assert store.has_gaps and "Traceback" not in "".join(capfd.readouterr())
    (said,) = [record.getMessage() for record in caplog.records if record.name == "evbind_lib"]
    assert "sqlite3." in said and "autoflush" not in said and "\n" not in said


def test_experiments_keep_files_in_their_folder_and_a_deleted_one_is_named(
    tracker: Store, place: TrackingParams
) -> None:
    for name, number in tracker.experiments.items():
        experiment = tracker.client.get_experiment(number)
        assert experiment.artifact_location == (Path(place.artifacts) / name).as_uri()
        assert experiment.tags["mlflow.experimentKind"] == "custom_model_development", "its page opens on the runs"
        tracker.client.delete_experiment(number)
        try:
            with pytest.raises(TrackingError, match=f"mlflow experiments restore -x {number}"):
                Store(place)
        finally:
            tracker.client.restore_experiment(number)


@pytest.mark.slow
def test_a_server_records_the_same_tree(
    study: optuna.Study, tmp_path: Path, mlflow_database: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    shutil.copy(mlflow_database, tmp_path)
    file, name = tmp_path / "optuna_study_summary.txt", study.study_name
    file.write_text("the best is trial 1\n")
    with mlflow_server(tmp_path) as address:
        tracker = Store(TrackingParams(uri=address, artifacts=str(tmp_path / "unused")))
        for session in range(2):
            with tracked(tracker, study, {**PARAMETERS, "session": session}) as search:
                run_trial(search, study, 0.5 + session / 10, 0.7)
                search.summary(numbers={}, texts={"optuna_study_summary.txt": "the best is trial 1\n"})
        levels = [run.data.tags["evbind.level"] for run in runs_of(tracker, name)]
        assert sorted(levels) == ["fold"] * 4 + ["study", "summary"] + ["trial"] * 2
        assert the_run(tracker, name, best="true").data.tags["evbind.trial"] == "1"
        summary = the_run(tracker, name, level="summary").info
        assert summary.artifact_uri.startswith("mlflow-artifacts:")
        assert Path(tracker.client.download_artifacts(summary.run_id, file.name)).read_text() == file.read_text()
    assert not tracker.has_gaps
    assert capfd.readouterr().out == "", "no address of a run may spoil a notebook"


def test_git_commit_shows_a_changed_checkout_and_none(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(store, "project_folder", lambda: tmp_path)
    assert git_commit() == "unknown"
    git = ["git", "-C", str(tmp_path), "-c", "user.name=a", "-c", "user.email=a@b.c"]
    (tmp_path / "file").write_text("one")
    for words in (["init", "-q"], ["add", "file"], ["commit", "-q", "-m", "first"], ["tag", "v1"]):
        subprocess.run([*git, *words], check=True, timeout=20)
    commit = git_commit()
    assert len(commit) == 40
    (tmp_path / "file").write_text("two")
    assert git_commit() == f"{commit}-dirty"


def test_an_experiment_that_another_machine_makes_at_the_same_moment_is_shared(
    tracker: Store, place: TrackingParams, monkeypatch: pytest.MonkeyPatch
) -> None:
    look, missed = MlflowClient.get_experiment_by_name, set()

    def too_early(client: MlflowClient, name: str) -> Any:
        if name in missed:
            return look(client, name)
        missed.add(name)  # it was not there yet when this one looked

    monkeypatch.setattr(MlflowClient, "get_experiment_by_name", too_early)
    assert Store(place).experiments == tracker.experiments and len(missed) == 3
