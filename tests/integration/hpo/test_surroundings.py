"""What happens around a trial is not its failure: full disks, locked databases, trials that others close."""

from __future__ import annotations

import contextlib
import functools
import os
import resource
import sqlite3
import subprocess
import sys
from collections.abc import Callable, Sequence
from pathlib import Path

import optuna
import pytest
from optuna.trial import TrialState

from evbind_lib.config.schema import Params
from evbind_lib.data.corpus import Corpus
from evbind_lib.data.folds import Fold
from evbind_lib.errors import ParamsError, SearchError, TrackingError
from evbind_lib.hpo.claims import _id_of
from evbind_lib.hpo.objective import Objective, SearchCallback, suggest
from evbind_lib.hpo.results import trials_table
from evbind_lib.hpo.search import run_search
from evbind_lib.hpo.study import TrialRecord, count_trials, open_storage, storage_of
from evbind_lib.training.result import Callback


class At(SearchCallback, Callback):
    """Does something when a fold of a trial begins."""

    def __init__(self, trial: int, fold: int, act: Callable[[], None]) -> None:
        self.place, self.act = (trial, fold), act

    def fold_callbacks(self, trial: optuna.Trial) -> Sequence[Callback]:
        self.number = trial.number
        return (self,)

    def on_fold_begin(self, fold: Fold, params: Params) -> None:
        if (self.number, fold.index) == self.place:
            self.act()


def test_a_full_disk_ends_the_search_with_the_trial_queued_again_and_its_folds_kept(
    brief: Callable[..., Params], corpus: Corpus, folds: list[Fold], workspace: Path
) -> None:
    params = brief()
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    try:
        with pytest.raises(SearchError, match="the same command goes on") as caught:
            full = At(1, 1, lambda: resource.setrlimit(resource.RLIMIT_FSIZE, (1, before[1])))
            run_search(Objective(corpus, folds, params), params, callbacks=[full])
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)
    assert str(workspace) in str(caught.value)
    result = run_search(Objective(corpus, folds, params), params)
    assert count_trials(result.study) == {"total": 3, "complete": 3, "pruned": 0, "failed": 0}
    (again,) = [TrialRecord.read(trial) for trial in result.study.trials if TrialRecord.read(trial).retry_of == 1]
    assert again.folds_from_before == 1 and again.deaths in (None, 0)


def study_of(workspace: Path, name: str = "around") -> optuna.Study:
    """A study whose database is waited for one second alone."""
    options = {"connect_args": {"timeout": 1}}
    open_storage(f"sqlite:///{workspace}/optuna.db")
    storage = optuna.storages.RDBStorage(f"sqlite:///{workspace}/optuna.db", engine_kwargs=options)
    return optuna.create_study(study_name=name, storage=storage, direction="maximize")


def test_a_locked_database_ends_the_search_and_the_next_one_closes_what_it_left(
    brief: Callable[..., Params], workspace: Path
) -> None:
    study, params = study_of(workspace), brief()
    with contextlib.closing(sqlite3.connect(workspace / "optuna.db", isolation_level=None)) as other:

        def objective(trial: optuna.Trial) -> float:
            if trial.number == 1:
                other.execute("BEGIN EXCLUSIVE")
            return trial.suggest_float("x", 0, 1)

        with pytest.raises(SearchError, match=r"optuna.db: the database cannot be used.*locked"):
            run_search(objective, params, study=study)
        other.execute("ROLLBACK")
        result = run_search(lambda trial: trial.suggest_float("x", 0, 1), params, study=study_like(study))
    assert count_trials(result.study) == {"total": 3, "complete": 3, "pruned": 0, "failed": 0}


def study_like(study: optuna.Study) -> optuna.Study:
    """The study without what it was made with, so that another objective may go on."""
    study.set_user_attr("identity", None)
    return study


def test_a_store_that_fails_within_a_trial_ends_the_search_and_is_no_failure_of_it(
    brief: Callable[..., Params], workspace: Path
) -> None:
    def lost(trial: optuna.Trial) -> float:
        trial.suggest_float("x", 0, 1)
        raise TrackingError("tracking.uri=http://here: the MLflow store cannot be used.")

    with pytest.raises(SearchError, match=r"http://here.*queued again"):
        run_search(lost, brief(), study="lost")
    study = optuna.load_study(study_name="lost", storage=open_storage(brief().hpo.study.storage))
    assert [trial.state for trial in study.trials] == [TrialState.WAITING]
    assert count_trials(study)["total"] == 0


def test_a_trial_that_another_process_closed_is_given_up_and_the_search_goes_on(brief: Callable[..., Params]) -> None:
    def objective(trial: optuna.Trial) -> float:
        if trial.number == 1:
            storage_of(trial.study).set_trial_state_values(_id_of(trial.study, 1), TrialState.FAIL)
        return trial.suggest_float("x", 0, 1)

    result = run_search(objective, brief(), study="closed")
    assert [trial.state for trial in result.study.trials] == [
        TrialState.COMPLETE,
        TrialState.FAIL,
        TrialState.COMPLETE,
    ]


def test_three_trials_in_a_row_that_fail_alike_before_a_fold_is_done_end_the_search_with_the_cause(
    brief: Callable[..., Params], corpus: Corpus, folds: list[Fold]
) -> None:
    params = brief("hpo.trials.n_trials=9")
    tries = []

    def objective(trial: optuna.Trial) -> float:
        tries.append(trial.number)
        if trial.number < 2 or trial.number > 3:
            raise ValueError(f"no such word: {trial.number}")
        return 0.5

    with pytest.raises(SearchError, match=r"3 trials in a row .* ValueError: no such word: 6"):
        run_search(objective, params, study="alike")
    assert tries == [0, 1, 2, 3, 4, 5, 6]

    def later(trial: optuna.Trial) -> float:
        TrialRecord(fold_scores=[0.5]).write(trial)
        raise ValueError("in the second fold")

    with pytest.raises(SearchError, match="none of its 9 trials was completed"):
        run_search(later, params, study="later")


def drawn(trial: optuna.Trial, params: Params) -> float:
    return float(suggest(trial, params).training.args["learning_rate"])


def test_a_trial_that_was_added_by_hand_is_never_the_best_not_counted_and_named(brief: Callable[..., Params]) -> None:
    params = brief("hpo.trials.n_trials=2")
    objective = functools.partial(drawn, params=params)
    study = run_search(objective, params, study="mixed").study
    study.add_trial(optuna.trial.create_trial(value=0.99))
    more = brief("hpo.trials.n_trials=4")
    result = run_search(objective, more, study="mixed")
    assert count_trials(result.study)["total"] == 4 and len(result.study.trials) == 5
    assert result.best_value < 0.99 and 2 not in trials_table(result.study)["trial"].to_list()
    assert any("trial 2" in note for note in result.notes)
    study.set_user_attr("identity", None)  # as a study that another program made or renamed
    with pytest.raises(SearchError, match=r"hpo\.study\.study_name"):
        run_search(objective, more, study="mixed")


@pytest.mark.parametrize(
    ("values", "named"),
    [
        ({"learning_rate": 5.0}, "learning_rate=5.0"),
        ({"per_device_train_batch_size": 7}, "per_device_train_batch_size"),
    ],
)
def test_what_was_enqueued_from_outside_is_refused_by_name_where_it_is_out_of_range(
    brief: Callable[..., Params], values: dict[str, float], named: str
) -> None:
    params = brief()
    objective = functools.partial(drawn, params=params)
    study = run_search(objective, brief("hpo.trials.n_trials=1"), study="enqueued").study
    study.enqueue_trial(values)
    with pytest.raises(ParamsError, match=f"Trial 1 was enqueued: .*{named}"):
        run_search(objective, params, study="enqueued")
    assert count_trials(run_search(objective, params, study="enqueued").study)["complete"] == 3


def test_a_space_is_compared_with_the_trials_not_with_the_last_search(brief: Callable[..., Params]) -> None:
    both, fixed = "hpo.search_space.loss_function.choices=[weighted_ce,focal]", "hpo.fixed.loss_function=focal"
    narrower = "hpo.search_space.loss_function.choices=[focal]"
    for number, override in enumerate((both, fixed), start=1):
        params = brief(override, f"hpo.trials.n_trials={number}")
        run_search(functools.partial(drawn, params=params), params, study="space")
    params = brief(narrower)
    with pytest.raises(SearchError, match=r"other choices .* hpo\.search_space\.loss_function"):
        run_search(functools.partial(drawn, params=params), params, study="space")


def test_what_a_launcher_says_of_other_processes_is_no_part_of_a_training(workspace: Path) -> None:
    code = """
import os
import evbind_lib as ev
params = ev.compose(["training.n_folds=2", "training.args.max_steps=1"])
corpus = ev.load_corpus(params)
ev.train_fold(corpus, ev.make_folds(corpus, params)[0], params)
print(os.environ["WORLD_SIZE"])
"""
    launched = {"LOCAL_RANK": "0", "RANK": "0", "WORLD_SIZE": "2", "MASTER_ADDR": "127.0.0.1", "PMI_SIZE": "2"}
    launched |= {"OMPI_COMM_WORLD_SIZE": "2", "OMPI_COMM_WORLD_RANK": "0", "ACCELERATE_USE_FSDP": "true"}
    done = subprocess.run(
        [sys.executable, "-W", "ignore", "-c", code],
        env={**os.environ, **launched},
        capture_output=True,
        text=True,
        timeout=60,
    )
    assert (done.returncode, done.stdout) == (0, "2\n"), done.stderr[-2000:]
