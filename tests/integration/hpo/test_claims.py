"""Trials claimed by several processes on real storages: the total is exact, and what a killed process ran is done again."""

from __future__ import annotations

import contextlib
import random
import time
from collections import Counter
from collections.abc import Callable
from multiprocessing.process import BaseProcess
from pathlib import Path
from types import SimpleNamespace

import optuna
import pytest
from optuna.trial import TrialState

from evbind_lib.config.compose import compose
from evbind_lib.config.processes import is_dead, this_process
from evbind_lib.config.schema import Params
from evbind_lib.hpo.claims import (
    DEATHS_ALLOWED,
    claim_trial,
    close_dead,
    heartbeat,
    mark,
    queue_again,
    requeue_lost,
)
from evbind_lib.hpo.study import TrialRecord, finished_trials, open_storage, open_study
from tests import forks

IDENTITY = {"objective": "test", "searched": []}


def work(seconds: float, params: Params) -> None:
    """Claim trials and give each a score at once, as a worker does around its training."""
    study = open_study(params, IDENTITY)
    while (trial := claim(study, params)) is not None:
        with heartbeat(trial):
            rate = trial.suggest_float("learning_rate", 1e-4, 1e-2, log=True)
            time.sleep(random.expovariate(1 / seconds))
            trial.study.tell(trial, rate)


@pytest.fixture(params=["sqlite", "postgresql"])
def storage(request: pytest.FixtureRequest, workspace: Path) -> str:
    return f"sqlite:///{workspace}/optuna.db" if request.param == "sqlite" else request.getfixturevalue("database")


def start(storage: str, n_trials: int, seconds: float) -> BaseProcess:
    words = [f"hpo.study.storage={storage}", f"hpo.trials.n_trials={n_trials}", "hpo.sampler.type=random"]
    return forks.start(work, seconds, compose(words, hpo="quick"))


def load(storage: str) -> optuna.Study:
    return optuna.load_study(study_name="deberta-v3-hpo", storage=open_storage(storage))


def test_four_processes_make_exactly_the_total(storage: str) -> None:
    assert forks.exit_codes(*[start(storage, 40, 0.01) for _ in range(4)]) == [0] * 4
    study = load(storage)
    finished = finished_trials(study)
    assert len(finished) == 40 and all(trial.state == TrialState.COMPLETE for trial in finished)
    assert [trial.number for trial in study.trials] == list(range(len(study.trials)))
    surplus = [trial for trial in study.trials if trial.user_attrs.get("surplus")]
    assert len(study.trials) == 40 + len(surplus)
    by = Counter(trial.user_attrs["worker"] for trial in finished)
    assert len(by) == 4  # all took part
    rates = [trial.params["learning_rate"] for trial in finished]
    assert len(set(rates)) == 40  # workers that start at once do not draw alike


def at_work(storage: str) -> set[int]:
    """Processes that have a trial."""
    with contextlib.suppress(KeyError):  # there is no study yet
        running = load(storage).get_trials(states=(TrialState.RUNNING,))
        return {int(trial.user_attrs["worker"].split()[1]) for trial in running if "worker" in trial.user_attrs}
    return set()


def test_killed_processes_lose_and_double_nothing(storage: str) -> None:
    pick, in_a_trial = random.Random(7), start(storage, 40, 1e6)  # which it would stay in for days
    while in_a_trial.pid not in at_work(storage):
        assert in_a_trial.is_alive()
        time.sleep(0.1)
    workers = [start(storage, 40, 0.25) for _ in range(3)]
    for _ in range(3):
        time.sleep(0.3 + 0.3 * pick.random())
        victim = pick.randrange(3)  # wherever it is: starting, in a trial, between two
        workers[victim].kill()
        workers[victim].join()
        workers[victim] = start(storage, 40, 0.25)
    in_a_trial.kill()
    in_a_trial.join()
    assert forks.exit_codes(*workers) == [0] * 3
    assert forks.exit_codes(start(storage, 40, 0.01)) == [0]  # what the last kill left
    study = load(storage)
    finished = finished_trials(study)
    assert len(finished) == 40 and study.trials[0].user_attrs["interrupted"]
    assert not study.get_trials(states=(TrialState.RUNNING, TrialState.WAITING))
    for trial in study.trials:
        if trial.user_attrs.get("interrupted") and trial.params:
            again = [other for other in study.trials if other.user_attrs.get("retry_of") == trial.number]
            assert len(again) == 1 and again[0].params == trial.params
    assert len({trial.params["learning_rate"] for trial in finished}) == 40


def test_a_process_is_told_from_one_that_has_its_number_now() -> None:
    host, number, started = this_process().rsplit(" ", 2)
    assert not is_dead(this_process())
    assert is_dead(f"{host} {number} {float(started) - 100:.1f}")
    assert is_dead(f"{host} 999999999 {started}")
    assert not is_dead(f"another-host 999999999 {started}")


DEAD = f"{this_process().rsplit(' ', 2)[0]} 999999999 0.0"


def claim(study: optuna.Study, params: Params) -> optuna.Trial | None:
    return claim_trial(study, params.hpo.trials.n_trials, params.hpo.sampler)


def test_parameters_that_kill_their_process_again_and_again_fail(brief: Callable[..., Params]) -> None:
    params = brief("hpo.trials.n_trials=2")
    study = open_study(params, IDENTITY)
    for death in range(1, DEATHS_ALLOWED + 1):
        trial = claim(study, params)
        assert trial is not None
        trial.suggest_float("learning_rate", 0.1, 0.2)
        TrialRecord(worker=DEAD).write(trial)
        assert close_dead(study) == [trial.number]
        ended = study.trials[trial.number]
        assert ended.user_attrs.get("interrupted", False) is (death < DEATHS_ALLOWED)
    assert ended.state == TrialState.FAIL and f"its process died {DEATHS_ALLOWED} times" in ended.user_attrs["error"]
    assert len({trial.params["learning_rate"] for trial in study.trials}) == 1
    assert len(finished_trials(study)) == 1 and close_dead(study) == []


def test_a_search_that_was_killed_does_not_count_against_its_trials(brief: Callable[..., Params]) -> None:
    params = brief("hpo.trials.n_trials=2")
    study = open_study(params, IDENTITY)
    for _ in range(DEATHS_ALLOWED + 1):
        trial = claim(study, params)
        assert trial is not None
        trial.suggest_float("learning_rate", 0.1, 0.2)
        TrialRecord(worker=DEAD).write(trial)
        assert close_dead(study, counts_as_death=False) == [trial.number]
    assert not finished_trials(study)


def test_what_was_closed_but_not_queued_again_is_queued_once(
    brief: Callable[..., Params], monkeypatch: pytest.MonkeyPatch
) -> None:
    params = brief("hpo.trials.n_trials=2")
    study = open_study(params, IDENTITY)
    trial = claim(study, params)
    assert trial is not None
    rate = trial.suggest_float("learning_rate", 0.1, 0.2)
    TrialRecord(interrupted=True).write(trial)
    study.tell(trial, state=TrialState.FAIL)
    requeue_lost(study)
    assert len(study.trials) == 1  # another process may be about to do it
    monkeypatch.setattr("evbind_lib.hpo.claims.time", SimpleNamespace(time=lambda: time.time() + 5.1))
    requeue_lost(study)
    requeue_lost(study)
    (waiting,) = study.get_trials(states=(TrialState.WAITING,))
    assert waiting.user_attrs["retry_of"] == 0
    again = claim(study, params)
    assert again is not None and again.suggest_float("learning_rate", 0.1, 0.2) == rate


def test_what_a_trial_was_to_begin_with_is_queued_again_although_it_drew_nothing(brief: Callable[..., Params]) -> None:
    params = brief()
    study = open_study(params, IDENTITY)
    study.enqueue_trial({"learning_rate": 0.15})
    trial = claim(study, params)
    assert trial is not None
    TrialRecord(worker=DEAD).write(trial)
    assert close_dead(study) == [0]
    again = claim(study, params)
    assert again is not None and again.suggest_float("learning_rate", 0.1, 0.2) == 0.15


def test_waiting_trials_beyond_the_total_stay_waiting(brief: Callable[..., Params]) -> None:
    params = brief("hpo.trials.n_trials=1")
    study = open_study(params, IDENTITY)
    for rate in (0.1, 0.15):
        study.enqueue_trial({"learning_rate": rate})
    first = claim(study, params)
    assert first is not None and claim(study, params) is None
    study.tell(first, first.suggest_float("learning_rate", 0.1, 0.2))
    assert claim(study, params) is None
    queue_again(study, study.trials[0])
    assert claim(study, params) is None


def test_a_trial_of_a_script_is_left_alone(brief: Callable[..., Params]) -> None:
    study = open_study(brief(), IDENTITY)
    asked = study.ask()
    assert close_dead(study) == []
    study.tell(asked, 0.5)


def test_a_trial_without_heartbeat_on_another_host_is_done_again(
    brief: Callable[..., Params], database: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("evbind_lib.hpo.study.HEARTBEAT", 1)
    monkeypatch.setattr("evbind_lib.hpo.study.GRACE", 2)
    params = brief(f"hpo.study.storage={database}")
    study = open_study(params, IDENTITY)
    trials = [claim(study, params) for _ in range(2)]
    for trial in trials:
        assert trial is not None
        trial.suggest_float("learning_rate", 0.1, 0.2)
        TrialRecord(worker="another-host 1 0.0").write(trial)
    silent, lively = trials
    with heartbeat(silent):
        time.sleep(0.5)
    with heartbeat(lively):
        time.sleep(4)
        assert close_dead(study) == [silent.number]
    (again,) = study.get_trials(states=(TrialState.WAITING,))
    assert again.user_attrs["retry_of"] == silent.number


def test_a_stopped_trial_that_is_taken_after_a_while_is_not_taken_for_dead(
    brief: Callable[..., Params], database: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("evbind_lib.hpo.study.HEARTBEAT", 1)
    monkeypatch.setattr("evbind_lib.hpo.study.GRACE", 1)
    params = brief(f"hpo.study.storage={database}")
    study = open_study(params, IDENTITY)
    trial = claim(study, params)
    assert trial is not None
    with heartbeat(trial):
        time.sleep(0.5)
    mark(study, trial.number, TrialRecord(), TrialState.WAITING)
    time.sleep(2)
    again = claim(study, params)
    assert again is not None and again.number == trial.number
    TrialRecord(worker="another-host 1 0.0").write(again)
    assert close_dead(study) == []
