"""A search that is killed, asleep or without disk and server, and started again: nothing is lost, doubled or left running."""

from __future__ import annotations

import contextlib
import multiprocessing
import os
import random
import signal
import subprocess
import sys
import time
from collections import Counter
from collections.abc import Collection, Sequence
from pathlib import Path
from typing import Any

import mlflow
import optuna
import psutil
import pytest
from optuna.trial import FrozenTrial, TrialState

import evbind_lib as ev
from evbind_lib import cli
from evbind_lib.config.paths import resolve_sqlite
from evbind_lib.data.corpus import Corpus
from evbind_lib.data.folds import Fold
from evbind_lib.errors import EvbindError
from evbind_lib.hpo import study as studies
from evbind_lib.hpo import workers
from evbind_lib.hpo.objective import Objective
from evbind_lib.hpo.study import finished_trials
from evbind_lib.notebook import session
from evbind_lib.tracking import executions
from tests import forks
from tests.conftest import BRIEF, PROJECT
from tests.storages import free_port, mlflow_server

# MLflow itself cannot use a database that was killed while it made its tables.
pytestmark = pytest.mark.usefixtures("mlflow_tables")

STORAGE = "sqlite:///optuna.db"
WORDS = (*BRIEF, "training.args.max_steps=40")


SCRIPT = f"""
import sys
sys.path.append({str(PROJECT)!r})
from tests.integration.hpo import test_crashes as crashes
crashes.hurry()
if __name__ == "__main__":
    crashes.search(sys.argv[1:])
"""


def hurry() -> None:
    """Let a search be taken for dead soon."""
    studies.HEARTBEAT, studies.GRACE = 1, 2


def search(words: Sequence[str]) -> None:
    params = ev.start("crashes", words, hpo="quick")
    corpus = ev.load_corpus(params)
    ev.search(Objective(corpus, ev.make_folds(corpus, params), params), params)


def search_forked(words: Sequence[str]) -> int:
    """Search in a process of its own whose workers are forked as well, and end as a script does."""
    hurry()
    for name, value in forks.for_workers(begin_worker).items():
        setattr(workers, name, value)
    try:
        search(words)
    except EvbindError as error:
        print(error, file=sys.stderr)
        return 1
    return 0


def begin_worker(*words: Any) -> None:
    hurry()
    os.setpgid(0, os.getpgid(multiprocessing.parent_process().pid))
    forks.begin_worker(*words)


def words_of(n_trials: int, *others: str) -> list[str]:
    return [*WORDS, "hpo.trials.n_jobs=2", f"hpo.trials.n_trials={n_trials}", *others]


def start(n_trials: int, *others: str) -> forks.Forked:
    return forks.begin(search_forked, words_of(n_trials, *others))


def start_script(workspace: Path, n_trials: int) -> subprocess.Popen[bytes]:
    """The same as a script, whose workers begin as those of a user do."""
    script = workspace / "search.py"
    script.write_text(SCRIPT, encoding="utf-8")
    return subprocess.Popen([sys.executable, "-W", "ignore", str(script), *words_of(n_trials)])


def workers_of(search: int) -> list[psutil.Process]:
    found = []
    for child in psutil.Process().children(recursive=True):
        with contextlib.suppress(psutil.NoSuchProcess, ProcessLookupError):  # it has just ended
            is_worker = os.getpgid(child.pid) == search != child.pid or "spawn_main" in " ".join(child.cmdline())
            found += [child] if is_worker else []
    return found


def kill_at_random(workspace: Path, *, kills: int, n_trials: int, seed: int) -> Counter[str]:
    """Start a search again and again and kill something of it each time; then let it come to its end."""
    pick, killed = random.Random(seed), Counter[str]()
    running = start_script(workspace, n_trials)
    try:
        while killed.total() < kills and running.poll() is None:
            time.sleep(3 + 15 * pick.random())  # starting takes a good part of it: that is killed as well
            what = pick.choice(["parent", "worker", "both"])
            found = workers_of(running.pid) if running.poll() is None else []
            if what in {"worker", "both"}:
                for worker in found[: 1 if what == "worker" else None]:
                    worker.send_signal(signal.SIGKILL)
            if what in {"parent", "both"} and running.poll() is None:
                running.send_signal(signal.SIGKILL)
                running.wait()
            if found or what == "parent":
                killed[what] += 1
            if running.poll() is not None:
                running = start_script(workspace, n_trials)
        assert running.wait(timeout=600) == 0
    finally:
        running.kill()
    return killed


def check(n_trials: int, storage: str = STORAGE, tracking: str = "sqlite:///mlflow.db") -> None:
    study = optuna.load_study(study_name="deberta-v3-hpo", storage=resolve_sqlite(storage))
    trials = study.get_trials()
    assert len(finished_trials(study)) == n_trials
    assert not [trial for trial in trials if not trial.state.is_finished()]
    assert not [trial for trial in finished_trials(study) if trial.state == TrialState.FAIL]
    for trial in trials:
        if trial.user_attrs.get("interrupted") and trial.params:
            again = trial
            while again.user_attrs.get("interrupted"):  # a retry may have been killed too, even in its first fold
                (again,) = [other for other in trials if other.user_attrs.get("retry_of") == again.number]
            assert {name: again.params[name] for name in trial.params} == trial.params or not again.params
            if again.params and trial.intermediate_values:
                assert again.user_attrs["folds_from_before"] >= len(trial.intermediate_values)
                assert again.intermediate_values[0] == trial.intermediate_values[0]

    client = mlflow.MlflowClient(resolve_sqlite(tracking))
    (experiment,) = [found for found in client.search_experiments() if found.name == "search"]
    runs = client.search_runs([experiment.experiment_id], max_results=5000)
    levels = Counter(run.data.tags["evbind.level"] for run in runs)
    assert (levels["study"], levels["summary"]) == (1, 1)
    assert [run.info.run_id for run in runs if run.info.status == "RUNNING"] == []
    by_trial = Counter(run.data.tags["evbind.trial"] for run in runs if run.data.tags["evbind.level"] == "trial")
    assert set(by_trial.values()) == {1}
    assert {str(trial.number) for trial in finished_trials(study)} <= set(by_trial)
    assert {run.info.status for run in runs if run.data.tags["evbind.level"] in ("study", "summary")} == {"FINISHED"}
    ended = {run.data.tags["evbind.trial"]: run for run in runs if run.data.tags["evbind.level"] == "trial"}
    below = Counter(run.data.tags["mlflow.parentRunId"] for run in runs if run.data.tags["evbind.level"] == "fold")
    for trial in finished_trials(study):
        run = ended[str(trial.number)]
        assert run.info.status == "FINISHED" and below[run.info.run_id] == len(trial.intermediate_values)
        assert run.data.metrics.get("objective") == (trial.value if trial.state == TrialState.COMPLETE else None)
    parents = {run.info.run_id for run in runs}
    assert all(
        run.data.tags.get("mlflow.parentRunId", "") in parents
        for run in runs
        if run.data.tags["evbind.level"] != "study"
    )


def first_fold(
    running: forks.Forked | subprocess.Popen[bytes], known: Collection[int] = (), storage: str = STORAGE
) -> FrozenTrial:
    """The first trial in training, but the known ones, that has a fold done."""
    deadline, study = time.monotonic() + 120, None
    while running.poll() is None and time.monotonic() < deadline:
        with contextlib.suppress(Exception):  # the file is there before its tables
            study = study or optuna.load_study(study_name="deberta-v3-hpo", storage=resolve_sqlite(storage))
            for trial in study.get_trials(states=(TrialState.RUNNING,)):
                if trial.intermediate_values and trial.number not in known:
                    return trial
        time.sleep(0.1)
    raise AssertionError("no trial came to its first fold")


@pytest.mark.slow
def test_a_worker_and_then_the_parent_killed_within_a_trial(
    workspace: Path, corpus: Corpus, folds: list[Fold], monkeypatch: pytest.MonkeyPatch
) -> None:
    running = start(5)
    try:
        cut_off = first_fold(running)
        os.kill(int(cut_off.user_attrs["worker"].split()[1]), signal.SIGKILL)
        first_fold(running, [cut_off.number])
        waited = time.monotonic()
        while len(team := workers_of(running.pid)) < 2 and time.monotonic() - waited < 30:
            time.sleep(0.1)
    finally:
        running.kill()
        running.wait()
    assert len(team) == 2  # the killed one was replaced
    _, alive = psutil.wait_procs(team, timeout=10)
    assert not alive  # they leave with their parent
    monkeypatch.setattr(executions, "EXECUTION", executions.Execution())
    params = session.start("crashes", [*WORDS, "hpo.trials.n_trials=5"], hpo="quick")
    session.search(Objective(corpus, folds, params), params)  # workers are not needed to go on
    check(5)
    study = optuna.load_study(study_name="deberta-v3-hpo", storage=resolve_sqlite(STORAGE))
    assert study.trials[cut_off.number].user_attrs["interrupted"]


@pytest.mark.slow
@pytest.mark.parametrize("n_jobs", [1, pytest.param(2, marks=pytest.mark.full)])
def test_a_search_that_slept_and_lost_its_server_and_then_its_disk_ends_whole_and_so_does_its_mlflow(
    workspace: Path, database: str, capsys: pytest.CaptureFixture[str], n_jobs: int
) -> None:
    port, n_trials, storage = free_port(), 2 + 2 * n_jobs, database
    with contextlib.ExitStack() as server:
        tracking = server.enter_context(mlflow_server(workspace, port))
        words = (f"hpo.study.storage={storage}", f"tracking.uri={tracking}", "training.args.max_steps=20")
        running = start(n_trials, *words, f"hpo.trials.n_jobs={n_jobs}")
        try:
            first = first_fold(running, storage=storage)
            os.killpg(running.pid, signal.SIGSTOP)  # as a machine sleeps, here longer than a heartbeat may stay away
            time.sleep(4)
            os.killpg(running.pid, signal.SIGCONT)
            second = first_fold(running, range(first.number + n_jobs), storage)
            server.close()
            first_fold(running, range(second.number + 1), storage)
            for process in (psutil.Process(running.pid), *workers_of(running.pid)):  # as on a disk that is full
                process.rlimit(psutil.RLIMIT_FSIZE, (1, -1))
            ended = running.wait(60)
        finally:
            with contextlib.suppress(ProcessLookupError):
                os.killpg(running.pid, signal.SIGKILL)
        assert running.stderr is not None
        said = running.stderr.read()
        assert ended == 1 and "the same command goes on" in said.splitlines()[-1]
        assert start(n_trials, *words, "tracking=none", "hpo.trials.n_jobs=1").wait(120) == 0
        with mlflow_server(workspace, port):
            assert cli.main(["sync", *BRIEF, "hpo=quick", *words]) == 0
            assert cli.main(["sync", *BRIEF, "hpo=quick", *words]) == 0
        assert " 0 of " in capsys.readouterr().out.splitlines()[-1]
        check(n_trials, storage)  # of the server's own database


@pytest.mark.full
def test_killed_at_thirty_moments(workspace: Path) -> None:
    killed = kill_at_random(workspace, kills=30, n_trials=60, seed=11)
    assert killed.total() >= 20 and set(killed) == {"parent", "worker", "both"}
    check(60)


@pytest.mark.full
def test_two_searches_with_two_workers_each_hold_the_total_of_two_hundred(workspace: Path) -> None:
    both = [start_script(workspace, 200) for _ in range(2)]
    assert [process.wait(timeout=3000) for process in both] == [0, 0]
    check(200)
