"""Searches in worker processes with real trainings: totals, MLflow, workers and parents that are killed, hanging trials, dask."""

from __future__ import annotations

import contextlib
import itertools
import os
import signal
import sys
import threading
import time
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import cloudpickle
import mlflow
import optuna
import pytest
from optuna.trial import FrozenTrial, TrialState

import evbind_lib as ev
from evbind_lib.config.paths import resolve_sqlite
from evbind_lib.config.schema import Params
from evbind_lib.data.corpus import Corpus
from evbind_lib.data.folds import Fold, make_folds
from evbind_lib.errors import ParamsError, SearchError
from evbind_lib.hpo import pace, workers
from evbind_lib.hpo.objective import Objective, SearchCallback, report_folds, suggest
from evbind_lib.hpo.results import SearchResult
from evbind_lib.hpo.search import check_search, run_search
from evbind_lib.hpo.study import TrialRecord, count_trials, finished_trials
from evbind_lib.training.crossval import cross_validate
from evbind_lib.training.losses import LOSSES
from evbind_lib.training.result import Callback, FoldResult
from tests import forks
from tests.conftest import BRIEF


def search(params: Params, corpus: Corpus, *callbacks: SearchCallback) -> SearchResult:
    return run_search(Objective(corpus, make_folds(corpus, params), params), params, callbacks=callbacks)


def pid_of(trial: FrozenTrial) -> int:
    return int(trial.user_attrs["worker"].split()[1])


@pytest.fixture(autouse=True)
def workers_begin_at_once(monkeypatch: pytest.MonkeyPatch, workspace: Path) -> None:
    """Workers are forked from a process that has the libraries; those of a script in test_ends begin as elsewhere."""
    for name, value in forks.for_workers(forks.begin_worker).items():
        monkeypatch.setattr(workers, name, value)


class Ends(SearchCallback):
    def __init__(self) -> None:
        self.numbers: list[int] = []

    def on_trial_end(self, study: optuna.Study, trial: FrozenTrial) -> None:
        self.numbers.append(trial.number)


@pytest.mark.usefixtures("mlflow_tables")
def test_two_workers_share_a_study_and_mlflow_has_each_trial_once(
    brief: Callable[..., Params], corpus: Corpus, folds: list[Fold], workspace: Path
) -> None:
    params = brief("hpo.trials.n_jobs=2", "hpo.trials.n_trials=6")
    overrides = [*BRIEF, "hpo.trials.n_jobs=2", "hpo.trials.n_trials=6"]
    params = ev.start("searching", overrides, hpo="quick")
    result = ev.search(Objective(corpus, folds, params), params)
    assert count_trials(result.study)["total"] == len(result.study.trials) == 6
    assert len({pid_of(trial) for trial in result.study.trials} - {os.getpid()}) == 2
    client = mlflow.MlflowClient(f"sqlite:///{workspace}/mlflow.db")
    (experiment,) = [found for found in client.search_experiments() if found.name == "search"]
    runs = client.search_runs([experiment.experiment_id], max_results=200)
    by_level: dict[str, list[Any]] = {}
    for run in runs:
        by_level.setdefault(run.data.tags["evbind.level"], []).append(run)
    levels = {level: len(found) for level, found in by_level.items()}
    assert levels == {"study": 1, "summary": 1, "trial": 6, "fold": 12}
    assert {run.info.status for run in runs} == {"FINISHED"}
    study_run = by_level["study"][0].info.run_id
    assert {run.data.tags["mlflow.parentRunId"] for run in by_level["trial"]} == {study_run}
    trial_runs = {run.info.run_id: run.data.tags["evbind.trial"] for run in by_level["trial"]}
    assert sorted(map(int, trial_runs.values())) == list(range(6))
    for run in by_level["fold"]:
        assert trial_runs[run.data.tags["mlflow.parentRunId"]] == run.data.tags["evbind.trial"]
    (best,) = [run for run in by_level["trial"] if run.data.tags.get("evbind.best") == "true"]
    assert int(best.data.tags["evbind.trial"]) == result.best_trial.number
    assert best.data.metrics["objective"] == pytest.approx(result.best_value)


def test_the_parent_hears_of_every_trial_and_workers_overlap(brief: Callable[..., Params], corpus: Corpus) -> None:
    ends = Ends()
    result = search(brief("hpo.trials.n_jobs=2", "hpo.trials.n_trials=5", "tracking=none"), corpus, ends)
    assert sorted(ends.numbers) == list(range(5))
    times = sorted((trial.datetime_start, trial.datetime_complete) for trial in result.study.trials)
    assert any(start < end for (_, end), (start, _) in itertools.pairwise(times))
    again = Ends()
    result = search(brief("hpo.trials.n_jobs=2", "hpo.trials.n_trials=5", "tracking=none"), corpus, again)
    assert (again.numbers, result.n_earlier_trials) == ([], 5)  # nothing to do, and no worker is started for it


class HangInWorker(SearchCallback, Callback):
    """Makes one trial hang for good, there where it is trained."""

    def for_workers(self) -> SearchCallback:
        return self

    def fold_callbacks(self, trial: optuna.Trial) -> list[Callback]:
        return [self] if trial.number == 1 else []

    def on_fold_begin(self, fold: Fold, params: Params) -> None:
        signal.pthread_sigmask(signal.SIG_BLOCK, [signal.SIGTERM])
        time.sleep(10_000)


def test_a_hanging_trial_is_ended_with_its_process_and_the_search_goes_on(
    brief: Callable[..., Params], corpus: Corpus, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(workers, "HANGS_AFTER", 1.0)
    result = search(brief("hpo.trials.trial_timeout=8", "tracking=none"), corpus, HangInWorker())
    hung = result.study.trials[1]
    assert hung.state == TrialState.FAIL and not hung.user_attrs.get("interrupted")
    assert "took longer than hpo.trials.trial_timeout=8 seconds" in hung.user_attrs["error"]
    assert count_trials(result.study) == {"total": 3, "complete": 2, "pruned": 0, "failed": 1}


def test_a_slow_trial_ends_itself(brief: Callable[..., Params], corpus: Corpus) -> None:
    params = brief(
        "hpo.trials.trial_timeout=2", "tracking=none", "hpo.trials.n_trials=1", "training.args.max_steps=100000"
    )
    with pytest.raises(SearchError, match="trial 0 failed with TrainingError: the trial took"):
        search(params, corpus)


class Interrupt(SearchCallback, Callback):
    """Ctrl-C while the first fold of a trial is trained; twice where asked."""

    def __init__(self, trial: int, times: int = 1) -> None:
        self.trial, self.times = trial, times

    def fold_callbacks(self, trial: optuna.Trial) -> list[Callback]:
        return [self] if trial.number == self.trial else []

    def on_step(self) -> None:
        for _ in range(self.times):
            self.times -= 1
            signal.raise_signal(signal.SIGINT)


class Trained(SearchCallback, Callback):
    """Counts steps: folds that are given back from before have none."""

    def __init__(self) -> None:
        self.steps = 0
        self.folds: list[int] = []

    def fold_callbacks(self, trial: optuna.Trial) -> list[Callback]:
        return [self]

    def on_step(self) -> None:
        self.steps += 1

    def on_fold_end(self, result: FoldResult) -> None:
        self.folds.append(result.fold)


def test_ctrl_c_stops_after_the_fold_and_the_same_command_trains_only_the_others(
    brief: Callable[..., Params], corpus: Corpus
) -> None:
    params = brief("tracking=none")
    before = signal.getsignal(signal.SIGINT)  # a suite in the background is started with it ignored
    result = search(params, corpus, Interrupt(trial=1))
    assert result.stopped
    assert result.notes[-1].startswith("Stopped on request after 1 of 3 trials; the same command goes on")
    assert signal.getsignal(signal.SIGINT) is before
    watcher = Trained()
    result = search(params, corpus, watcher)
    assert count_trials(result.study)["total"] == 3 and not result.stopped
    assert watcher.folds == [0, 1, 0, 1]  # told of all
    assert watcher.steps == 3 * 3  # and trained three of them, with three steps each
    assert [trial.state for trial in result.study.trials] == [TrialState.COMPLETE] * 3
    assert not any("folds_from_before" in trial.user_attrs for trial in result.study.trials), "none is of another trial"


def test_ctrl_c_before_any_trial_is_complete_says_how_to_go_on(brief: Callable[..., Params], corpus: Corpus) -> None:
    with pytest.raises(SearchError, match="Stopped on request after 0 of 3 trials; the same command goes on"):
        search(brief("tracking=none"), corpus, Interrupt(trial=0))


def test_ctrl_c_twice_stops_at_once_and_the_trial_waits(brief: Callable[..., Params], corpus: Corpus) -> None:
    with pytest.raises(KeyboardInterrupt):
        search(brief("tracking=none"), corpus, Interrupt(trial=0, times=2))
    study = optuna.load_study(study_name="deberta-v3-hpo", storage=resolve_sqlite("sqlite:///optuna.db"))
    assert [trial.state for trial in study.trials] == [TrialState.WAITING]


class InterruptWhenBothRun(SearchCallback):
    def __init__(self) -> None:
        self.done = False

    def on_running(self, study: optuna.Study, running: Any) -> None:
        if not self.done and len([trial for trial in running if "resolved" in trial.user_attrs]) == 2:
            self.done = True
            signal.raise_signal(signal.SIGINT)


def test_ctrl_c_stops_workers_after_their_folds(brief: Callable[..., Params], corpus: Corpus) -> None:
    params = brief("tracking=none", "hpo.trials.n_jobs=2", "hpo.trials.n_trials=4", "training.args.max_steps=20")
    with contextlib.suppress(SearchError):  # stopped before any trial was complete
        assert search(params, corpus, InterruptWhenBothRun()).stopped
    study = optuna.load_study(study_name="deberta-v3-hpo", storage=resolve_sqlite("sqlite:///optuna.db"))
    assert len(finished_trials(study)) < 4 and {trial.state.name for trial in study.trials} <= {"COMPLETE", "WAITING"}
    result = search(
        brief("tracking=none", "hpo.trials.n_jobs=2", "hpo.trials.n_trials=4", "training.args.max_steps=20"), corpus
    )
    assert count_trials(result.study)["total"] == len(result.study.trials) == 4


def test_the_same_search_on_a_dask_cluster(
    brief: Callable[..., Params], corpus: Corpus, workspace: Path, database: str
) -> None:
    import dask
    from distributed import LocalCluster

    processes = {"n_workers": 2, "threads_per_worker": 1, "env": {"EVBIND_WORKSPACE": str(workspace)}}
    with (
        dask.config.set({"distributed.worker.multiprocessing-method": "forkserver"}),
        LocalCluster(**processes, dashboard_address=None) as cluster,
    ):
        words = (
            "cluster=dask",
            f"cluster.scheduler={cluster.scheduler_address}",
            "hpo.trials.n_jobs=2",
            "tracking=none",
        )
        with pytest.raises(ParamsError, match=r"hpo\.study\.storage.*PostgreSQL"):
            check_search(brief(*words))
        result = search(brief(*words, "hpo.trials.n_trials=4", f"hpo.study.storage={database}"), corpus)
        assert count_trials(result.study)["total"] == 4
        assert len({pid_of(trial) for trial in result.study.trials} - {os.getpid()}) == 2


OWN_SHARE = "set cluster.gpu_share=2 or more to share them."
STORAGE = "hpo.study.storage=postgresql://somebody@somewhere/evbind"


def test_a_cluster_that_cannot_be_used(brief: Callable[..., Params], monkeypatch: pytest.MonkeyPatch) -> None:
    from distributed import LocalCluster

    monkeypatch.setattr(workers, "ANSWERS_WITHIN", "2s")
    with pytest.raises(SearchError, match="no dask scheduler can be reached there"):
        workers.check_workers(brief("cluster=dask", "cluster.scheduler=tcp://127.0.0.1:1", STORAGE))
    with (
        LocalCluster(
            n_workers=1, threads_per_worker=2, processes=False, protocol="tcp://", dashboard_address=None
        ) as cluster,
        pytest.raises(ParamsError, match="a worker there runs several threads"),
    ):
        workers.check_workers(brief("cluster=dask", f"cluster.scheduler={cluster.scheduler_address}", STORAGE))


def test_more_workers_than_gpus_hold(brief: Callable[..., Params], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("torch.cuda.device_count", lambda: 2)
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "3,5")
    assert workers.visible_gpus() == ("3", "5")
    workers.check_workers(brief("hpo.trials.n_jobs=2"))
    workers.check_workers(brief("hpo.trials.n_jobs=4", "cluster.gpu_share=2"))
    workers.check_workers(brief("hpo.trials.n_jobs=3"))  # as many as fit are started
    with pytest.raises(ParamsError, match=r"n_jobs=3: there are 2 GPUs .* cluster\.gpu_share=auto"):
        workers.check_workers(brief("hpo.trials.n_jobs=3", "cluster.gpu_share=1"))


def test_a_gpu_is_shared_by_as_many_workers_as_its_memory_holds_and_its_idle_time_has_room_for(
    brief: Callable[..., Params], corpus: Corpus, folds: list[Fold], monkeypatch: pytest.MonkeyPatch
) -> None:
    params = brief("hpo.trials.n_jobs=8")
    objective = Objective(corpus, folds, params)
    assert pace.workers_at_once(objective, params) == (8, [])  # no GPU: the processors are shared
    monkeypatch.setattr(pace, "visible_gpus", lambda: ("0", "1"))
    batches = []

    def measured(corpus: Corpus, fold: Fold, params: Params, batch: int, model_init: None) -> tuple[float, float, Any]:
        batches.append(batch)
        return 0.004 if batch == 32 else 0.0015, 1.0, SimpleNamespace(peak_memory_mb=1300.0)

    def share(free_gb: float, *words: str) -> tuple[int, list[str]]:
        monkeypatch.setattr("torch.cuda.mem_get_info", lambda: (free_gb * 2**30, 80 * 2**30))
        return pace.workers_at_once(objective, brief("hpo.trials.n_jobs=8", *words))

    monkeypatch.setattr(pace, "measure_pace", measured)
    memory_for = (1300 + pace.CONTEXT_MB) / 1024 / pace.USABLE
    number, (note,) = share(20 * memory_for)  # 4 / 1.5 trainings fill a GPU
    assert number == 2 * 2 and batches == [32, 32 * pace.WIDER]  # the largest batch that is searched
    assert note == "4 of 8 workers: of a GPU, its memory holds 20 trainings, and its work fills 2.7."
    assert share(1.5 * memory_for)[0] == 2 and share(0.1 * memory_for)[0] == 2  # one on each at least
    assert share(1.5 * memory_for, "hpo.trials.n_jobs=2") == (2, [])
    assert share(0.0, "cluster.gpu_share=4") == (8, [])
    own = pace.workers_at_once(lambda trial: 0.0, params)
    assert own == (2, [f"2 of 8 workers, one for each GPU: only an ev.Objective can be measured; {OWN_SHARE}"])


def test_a_search_starts_no_more_workers_than_fit_a_gpu_and_says_so(
    brief: Callable[..., Params], corpus: Corpus, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(pace, "visible_gpus", lambda: ("0",))
    monkeypatch.setattr("torch.cuda.mem_get_info", lambda: (0, 0))  # what is measured besides is this processor
    result = search(brief("hpo.trials.n_jobs=2", "hpo.trials.n_trials=2"), corpus)
    assert count_trials(result.study)["total"] == 2 and len({pid_of(trial) for trial in result.study.trials}) == 1
    assert any(note.startswith("1 of 2 workers: of a GPU, its memory holds 0 trainings") for note in result.notes)


def test_a_script_that_is_no_file_is_refused_before_its_workers_look_for_it(
    brief: Callable[..., Params], monkeypatch: pytest.MonkeyPatch
) -> None:
    # As it is for `python < script.py`.
    monkeypatch.setattr(sys.modules["__main__"], "__file__", "<stdin>", raising=False)
    with pytest.raises(ParamsError, match=r"<stdin>: .* must be a file that .*hpo.trials.n_jobs=1"):
        workers.check_workers(brief("hpo.trials.n_jobs=2"))


def test_more_workers_than_processors(brief: Callable[..., Params]) -> None:
    workers.check_workers(brief("hpo.trials.n_jobs=1"))
    with pytest.raises(ParamsError, match=r"n_jobs=100000: there are \d+ processors"):
        workers.check_workers(brief("hpo.trials.n_jobs=100000"))


def test_functions_of_a_notebook_are_searched_by_two_workers_stopped_and_resumed(
    brief: Callable[..., Params], corpus: Corpus, folds: list[Fold], monkeypatch: pytest.MonkeyPatch
) -> None:
    import torch

    def doubled(params: Any, labels: Any) -> Any:
        return lambda logits, labels: 2 * torch.nn.functional.cross_entropy(logits, labels, reduction="none")

    monkeypatch.setitem(LOSSES, "doubled", doubled)  # as a cell does: a worker has it from its order
    cloudpickle.register_pickle_by_value(sys.modules[__name__])
    params = brief(
        "hpo.trials.n_jobs=2",
        "hpo.trials.n_trials=4",
        "training.loss_function=doubled",
        "~hpo.search_space.loss_function",
    )

    def objective(trial: optuna.Trial) -> float:
        tried = suggest(trial, params)
        cv = cross_validate(corpus, folds, tried, callbacks=[report_folds(trial, "pr_auc")])
        return cv.score("pr_auc") - 0.01 * cv.seconds / 60

    class Stop(SearchCallback):
        def on_trial_end(self, study: optuna.Study, trial: FrozenTrial) -> None:
            self.wants_stop = True

    # So many that both workers cannot have trained them before they are asked to stop.
    many = params.with_values({"hpo.trials.n_trials": 30})
    result = run_search(objective, many, study="own", callbacks=[Stop()])
    done = count_trials(result.study)["total"]
    assert result.stopped and 1 <= done < 30
    result = run_search(objective, params.with_values({"hpo.trials.n_trials": done + 1}), study="own")
    assert count_trials(result.study) == {"total": done + 1, "complete": done + 1, "pruned": 0, "failed": 0}
    assert os.getpid() not in {pid_of(trial) for trial in finished_trials(result.study)}
    assert {TrialRecord.read(trial).metric for trial in finished_trials(result.study)} == {"pr_auc"}
    assert result.params.training.loss_function == "doubled" and len(result.predictions()["fold"].unique()) == 2


def test_what_cannot_be_sent_is_named_before_a_study_is_made(
    brief: Callable[..., Params], corpus: Corpus, folds: list[Fold], workspace: Path
) -> None:
    lock = threading.Lock()

    def helper() -> float:
        with lock:
            return 0.5

    params = brief("hpo.trials.n_jobs=2")
    for objective in (lambda trial: helper(), Objective(corpus, folds, params, score=lambda result: helper())):
        with pytest.raises(SearchError, match=r"lock \(lock\).*n_jobs=1"):
            run_search(objective, params)
    assert not (workspace / "optuna.db").exists()


def test_an_error_that_ends_the_search_comes_from_the_worker(brief: Callable[..., Params]) -> None:
    def mistyped(trial: optuna.Trial) -> Any:
        return report_folds(trial, "pr_acu")

    with pytest.raises(ParamsError, match="did you mean 'pr_auc'"):
        run_search(mistyped, brief("hpo.trials.n_jobs=2"))
