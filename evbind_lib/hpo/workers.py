"""Worker processes of a search, over `concurrent.futures`: on this machine, or on a cluster of dask's.

Each worker runs the loop of `trials` in a process of its own, with a GPU or a share of the processors of its own; trials never
share a process, since PyTorch, tokenizers and random numbers keep state in it. What one process tells another goes
through the study's storage, so that both kinds of worker, and searches that join from elsewhere, work alike. Imports the
rooms below it; `search` imports it.
"""

from __future__ import annotations

import contextlib
import multiprocessing
import multiprocessing.connection
import os
import signal
import sys
import threading
import time
import uuid
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import FIRST_COMPLETED, BrokenExecutor, Future, ProcessPoolExecutor, wait
from dataclasses import dataclass, field
from typing import Any

import optuna
import psutil
import torch
from optuna.trial import TrialState

from evbind_lib.config.compose import Params
from evbind_lib.config.processes import quieten
from evbind_lib.data.corpus import Corpus
from evbind_lib.data.folds import Fold
from evbind_lib.errors import ParamsError, SearchError
from evbind_lib.hpo.claims import close_dead, interrupt
from evbind_lib.hpo.objective import Objective, SearchListener, run_trials, too_slow
from evbind_lib.hpo.stopping import should_stop
from evbind_lib.hpo.study import finished_trials, join_study
from evbind_lib.training.cache import FoldCache
from evbind_lib.training.crossval import CrossValidator

LOOKS_EVERY = 0.5  # seconds between two looks at the study
HANGS_AFTER = 15.0  # seconds beyond its limit after which a trial that does not end itself is ended with its process
FRUITLESS_DEATHS = 4  # workers that die one after the other without a trial finished in between


@dataclass(frozen=True)
class Order:
    """What a worker is to do; it travels to its process.

    Attributes
    ----------
    params : Params
    corpus : Corpus
    folds : tuple of Fold
    study_name : str
    listeners : tuple of SearchListener
        Told of the trials in the worker.
    deadline : float
        Seconds since the epoch after which no further trial begins.
    threads : int
        Processors for each worker.
    gpus : tuple of str
        Devices of the machine to choose from, by the worker's number; empty where there are none or a cluster chooses.
    number : str
        Of this search, by which it asks its workers to stop.
    """

    params: Params
    corpus: Corpus
    folds: tuple[Fold, ...]
    study_name: str
    listeners: tuple[SearchListener, ...]
    deadline: float
    threads: int
    gpus: tuple[str, ...] = ()
    number: str = field(default_factory=lambda: uuid.uuid4().hex[:12])

    @property
    def stop_mark(self) -> str:
        """Attribute of the study that asks these workers to stop."""
        return f"stop {self.number}"


def work(order: Order, slot: int) -> None:
    """Run trials in this process until none is left.

    Parameters
    ----------
    order : Order
    slot : int
        Number of the worker, from 0.
    """
    if order.gpus:
        os.environ["CUDA_VISIBLE_DEVICES"] = order.gpus[slot % len(order.gpus)]
    quieten()
    torch.set_num_threads(order.threads)
    study = join_study(order.params, order.study_name)

    def asked_to_stop() -> bool:
        return bool(study._storage.get_study_user_attrs(study._study_id).get(order.stop_mark))

    def enough(study: optuna.Study) -> bool:
        return time.time() > order.deadline or should_stop(study, order.params) is not None

    objective = Objective(order.params, CrossValidator(order.corpus, order.folds), order.listeners, asked_to_stop)
    run_trials(study, objective, enough)


def run_workers(
    order: Order,
    study: optuna.Study,
    *,
    n_workers: int,
    listeners: Sequence[SearchListener],
    asked_to_stop: Callable[[], bool],
) -> None:
    """Start workers and follow the study until they are done; one that dies is replaced and its trial done again.

    Parameters
    ----------
    order : Order
    study : optuna.Study
    n_workers : int
    listeners : sequence of SearchListener
        Told here of every trial that ends.
    asked_to_stop : callable
        True where the workers are to stop after their current folds.

    Raises
    ------
    SearchError
        When workers die one after the other, or the cluster cannot be reached.
    """
    known = {trial.number for trial in study.get_trials(deepcopy=False) if trial.state.is_finished()}
    told, deaths, stopping = set(known), 0, False
    with _open_team(order, study) as team:
        left = order.params.hpo.trials.n_trials - len(finished_trials(study))
        futures = {team.submit(slot): slot for slot in range(min(n_workers, max(left, 1)))}
        while futures:
            done, _ = wait(futures, timeout=LOOKS_EVERY, return_when=FIRST_COMPLETED)
            if asked_to_stop() and not stopping:
                study.set_user_attr(order.stop_mark, True)
                stopping = True
            _end_hanging(study, order.params.hpo.trials.trial_timeout)
            if _tell(study, listeners, told):
                deaths = 0
            for future in done:
                slot = futures.pop(future)
                if not _died(future):
                    continue
                close_dead(study)
                _tell(study, listeners, told)
                deaths += 1
                if deaths >= FRUITLESS_DEATHS:
                    raise SearchError(
                        f"hpo.trials.n_jobs={n_workers}: {deaths} worker processes died one after the other, most often for "
                        "lack of memory; set fewer workers, and see workers.log in the study's folder of runs/studies."
                    )
                if not stopping:
                    futures[team.submit(slot)] = slot
        _tell(study, listeners, told)


def _died(future: Future[None]) -> bool:
    """Whether a worker's process was lost; what it raised otherwise is raised here."""
    try:
        future.result()
    except BrokenExecutor:
        return True
    return False


def _tell(study: optuna.Study, listeners: Sequence[SearchListener], told: set[int]) -> bool:
    """Tell the listeners what happened since the last look; true where a trial came to its end."""
    trials = study.get_trials(deepcopy=False)
    ended = [trial for trial in trials if trial.state.is_finished() and trial.number not in told]
    for trial in ended:
        told.add(trial.number)
        for listener in listeners:
            listener.on_trial_end(study, trial)
    running = [trial for trial in trials if trial.state == TrialState.RUNNING]
    for listener in listeners:
        listener.on_running(study, running)
    finished = {trial.number for trial in finished_trials(study)}
    return any(trial.number in finished for trial in ended)


def _end_hanging(study: optuna.Study, limit: float | None) -> None:
    """Kill workers of this process whose trial is long past its limit; such a one cannot end itself."""
    if limit is None:
        return
    children = {child.pid: child for child in psutil.Process().children(recursive=True)}
    for trial in study.get_trials(deepcopy=False, states=(TrialState.RUNNING,)):
        pid = int(str(trial.user_attrs.get("worker", "- -1 -")).rsplit(" ", 2)[1])
        started = trial.datetime_start.timestamp() if trial.datetime_start else time.time()
        if pid in children and time.time() - started > limit + HANGS_AFTER:
            interrupt(study, trial, error=f"TrainingError: {too_slow(limit)}")
            children[pid].kill()


class _Team:
    """Where workers run: one executor for each on this machine, so that one that dies takes no other with it."""

    def __init__(self, order: Order) -> None:
        self.order = order
        self.executors: dict[int, ProcessPoolExecutor] = {}

    def submit(self, slot: int) -> Future[None]:
        """Start the worker of a slot, or its successor."""
        if slot in self.executors:
            self.executors[slot].shutdown(wait=False)
        log = FoldCache(self.order.study_name).folder / "workers.log"
        log.parent.mkdir(parents=True, exist_ok=True)
        self.executors[slot] = ProcessPoolExecutor(
            1, mp_context=multiprocessing.get_context("spawn"), initializer=_begin, initargs=(str(log),)
        )
        return self.executors[slot].submit(work, self.order, slot)

    def close(self) -> None:
        """End every worker."""
        for executor in self.executors.values():
            processes = list((executor._processes or {}).values())
            executor.shutdown(wait=False, cancel_futures=True)
            for process in processes:  # one that is at work would go on to its end
                process.kill()
                process.join(10)


class _DaskTeam(_Team):
    """Workers of a dask cluster; it restarts by itself what a lost machine was doing."""

    def __init__(self, order: Order) -> None:
        super().__init__(order)
        self.client = _connect(str(order.params.cluster.scheduler))
        self.executor = self.client.get_executor(pure=False)

    def submit(self, slot: int) -> Future[None]:
        future: Future[None] = self.executor.submit(work, self.order, slot)
        return future

    def close(self) -> None:
        self.client.close()


@contextlib.contextmanager
def _open_team(order: Order, study: optuna.Study) -> Iterator[_Team]:
    team = _DaskTeam(order) if order.params.cluster.executor == "dask" else _Team(order)
    try:
        yield team
    except BaseException:
        study.set_user_attr(order.stop_mark, True)  # those of a cluster cannot be killed from here
        raise
    finally:
        team.close()
        close_dead(study)


def _connect(scheduler: str) -> Any:
    try:
        from distributed import Client
    except ImportError:
        raise ParamsError("cluster=dask: the package distributed is missing; pip install -e '.[cluster]'.") from None
    try:
        client = Client(scheduler, timeout="10s", set_as_default=False)
    except (OSError, ValueError) as error:
        raise SearchError(
            f"cluster.scheduler={scheduler}: no dask scheduler can be reached there ({type(error).__name__}); start one with "
            "`dask scheduler`, or give its address."
        ) from None
    return client


def check_workers(params: Params) -> None:
    """Refuse workers that there cannot be, before any training.

    Raises
    ------
    ParamsError
        For more workers than GPUs hold or processors serve, or a cluster whose workers run several threads.
    SearchError
        For a scheduler that cannot be reached.
    """
    n_workers, cluster = params.hpo.trials.n_jobs, params.cluster
    if cluster.executor == "dask":
        with contextlib.closing(_connect(str(cluster.scheduler))) as client:
            threads = client.nthreads()
        if any(number > 1 for number in threads.values()):
            raise ParamsError(
                f"cluster.scheduler={cluster.scheduler}: a worker there runs several threads, and trials cannot share a process; "
                "start workers with `dask worker --nthreads 1`."
            )
        return
    gpus, processors = (
        visible_gpus(),
        len(psutil.Process().cpu_affinity()) if sys.platform == "linux" else os.cpu_count(),
    )
    if not gpus and processors and n_workers > processors:
        raise ParamsError(
            f"hpo.trials.n_jobs={n_workers}: there are {processors} processors, and a worker needs one of its own; lower it."
        )
    if gpus and n_workers > len(gpus) * cluster.gpu_share:
        raise ParamsError(
            f"hpo.trials.n_jobs={n_workers}: there are {len(gpus)} GPUs for {cluster.gpu_share} workers each; lower it, or let "
            "workers share one with cluster.gpu_share=2."
        )


def visible_gpus() -> tuple[str, ...]:
    """Devices that this process may use, as ``CUDA_VISIBLE_DEVICES`` names them."""
    count = torch.cuda.device_count()
    named = [name.strip() for name in os.environ.get("CUDA_VISIBLE_DEVICES", "").split(",") if name.strip()]
    return tuple(named[:count]) if named else tuple(str(number) for number in range(count))


def _begin(log: str) -> None:
    """Set up a worker process: quiet, deaf to Ctrl-C, which the parent handles, and gone when the parent is."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    # A notebook's kernel would show what its children print; what a library says goes to a file.
    handle = os.open(log, os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o600)
    for stream in (1, 2):
        os.dup2(handle, stream)
    sys.stdout, sys.stderr = open(1, "w", closefd=False), open(2, "w", closefd=False)  # noqa: SIM115 - for good
    threading.Thread(target=_leave_with_parent, daemon=True).start()


def _leave_with_parent() -> None:
    parent = multiprocessing.parent_process()
    if parent is not None:
        multiprocessing.connection.wait([parent.sentinel])
        os._exit(1)  # a parent that was killed cannot ask; the trial is retried by the next search
