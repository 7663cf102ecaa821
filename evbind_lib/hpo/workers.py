"""Worker processes of a search, here or on dask's cluster: trials never share one, as PyTorch and random numbers keep state."""

import contextlib
import gc
import inspect
import multiprocessing.connection
import os
import signal
import sys
import threading
import time
import uuid
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import FIRST_COMPLETED, BrokenExecutor, Executor, Future, ProcessPoolExecutor, wait
from pathlib import Path
from typing import Any

import cloudpickle
import optuna
import psutil
from optuna.trial import TrialState

from evbind_lib.config.registry import Registry
from evbind_lib.config.schema import Params
from evbind_lib.data.corpus import READERS
from evbind_lib.errors import ParamsError, SearchError
from evbind_lib.hpo.claims import close_dead, interrupt
from evbind_lib.hpo.objective import TOO_LONG, SearchCallback, StopRequest
from evbind_lib.hpo.study import TrialRecord, finished_trials, is_finished, quiet_optuna, storage_of, study_uid
from evbind_lib.training.cache import FoldCache
from evbind_lib.training.metrics import METRICS

LOOKS_EVERY = 0.5  # seconds between two looks at the study
HANGS_AFTER = 15.0  # seconds beyond its limit after which a trial that does not end itself is ended with its process
ANSWERS_WITHIN = "10s"  # a cluster
FRUITLESS_DEATHS = 4  # workers that die one after the other without a trial finished in between
ALONE = "search in this process: hpo.trials.n_jobs=1 hpo.trials.trial_timeout=null cluster=local"
Loop = Callable[[optuna.Study, StopRequest], None]  # runs trials of a study until it is asked to stop


def uses_workers(params: Params) -> bool:
    """Whether trials run in processes of their own; one that hangs can only be ended with its process."""
    trials = params.hpo.trials
    return trials.n_jobs > 1 or trials.trial_timeout is not None or params.cluster.executor == "dask"


def _registries() -> tuple[Registry[Any], ...]:
    """What a user may add to by a name that a worker must know as well."""
    from evbind_lib.training.losses import LOSSES  # late: it loads torch

    return LOSSES, METRICS, READERS


def order_bytes(study: str | optuna.Study | None, *order: Any) -> bytes:
    """What goes to workers, functions of a notebook by value, with the entries of registries that are not evbind's."""
    if isinstance(study, optuna.Study) and isinstance(storage_of(study), optuna.storages.InMemoryStorage):
        raise SearchError(f"Study {study.study_name} is in memory, unseen by workers; give it a storage, or {ALONE}.")
    additions = [registry.additions() for registry in _registries()]
    try:
        return bytes(cloudpickle.dumps((study, additions, *order)))
    except Exception as error:  # pickling runs code of any object
        held = f"The objective cannot be sent to workers, since it holds {_culprit(order[0]) or error}"
        raise SearchError(f"{held}; make that inside the objective, or {ALONE}.") from None


def _culprit(thing: Any, depth: int = 6) -> str:
    """Name and type of what cannot be pickled among the names a function uses, or an object holds; empty where all of it can."""
    seen = inspect.getclosurevars(thing) if inspect.isfunction(thing) else None
    for name, value in ({**seen.nonlocals, **seen.globals} if seen else getattr(thing, "__dict__", {})).items():
        try:
            cloudpickle.dumps(value)
        except Exception:
            return (depth and _culprit(value, depth - 1)) or f"{name} ({type(value).__name__})"
    return ""


def work(order: bytes) -> None:
    """Run trials in this process until none is left."""
    gc.set_threshold(20_000, 50, 50)  # as the command does
    from evbind_lib.training.model import quiet_libraries  # late: it loads torch

    study, additions, loop, stop_mark = cloudpickle.loads(order)
    for registry, added in zip(_registries(), additions, strict=True):
        registry.update(added)
    with quiet_libraries(), quiet_optuna():
        loop(study, lambda: bool(study.user_attrs.get(stop_mark)))


def run_workers(
    study: optuna.Study, loop: Loop, params: Params, callbacks: Sequence[SearchCallback], asked_to_stop: StopRequest
) -> None:
    """Start workers and follow the study until they are done; one that dies is replaced and its trial done again."""
    trials, stop_mark = params.hpo.trials, f"stop {uuid.uuid4().hex[:12]}"
    order, log = order_bytes(study, loop, stop_mark), FoldCache(study_uid(study)).folder / "workers.log"
    reported = {trial.number for trial in study.get_trials(deepcopy=False) if trial.state.is_finished()}
    deaths, stopping, left = 0, False, trials.n_trials - len(finished_trials(study))
    try:
        with _team(params, order, log) as submit:
            futures = {submit(slot): slot for slot in range(min(trials.n_jobs, left))}
            while futures:
                done, _ = wait(futures, timeout=LOOKS_EVERY, return_when=FIRST_COMPLETED)
                if not stopping and (stopping := asked_to_stop()):
                    study.set_user_attr(stop_mark, True)
                _end_hanging(study, trials.trial_timeout)
                if _report(study, callbacks, reported):
                    deaths = 0
                for future in done:
                    slot = futures.pop(future)
                    if not _died(future):
                        continue
                    close_dead(study)
                    deaths += 1
                    if deaths >= FRUITLESS_DEATHS:
                        died = f"hpo.trials.n_jobs={trials.n_jobs}: {deaths} workers died one after the other"
                        raise SearchError(f"{died}, most often for lack of memory; set fewer, and see {log}.")
                    if not stopping:
                        futures[submit(slot)] = slot
            _report(study, callbacks, reported)
    except BaseException:
        study.set_user_attr(stop_mark, True)  # workers of a cluster cannot be killed from here
        raise
    finally:
        close_dead(study, counts_as_death=False)


def _died(future: Future[None]) -> bool:
    """Whether a worker's process was lost; what it raised otherwise is raised here."""
    try:
        future.result()
    except BrokenExecutor:
        return True
    except ModuleNotFoundError as error:
        remedy = f"install it there, or send it along by cloudpickle.register_pickle_by_value({error.name})"
        raise SearchError(f"A worker has no module {error.name}; {remedy}.") from None
    return False


def _report(study: optuna.Study, callbacks: Sequence[SearchCallback], reported: set[int]) -> bool:
    """Call the callbacks for what happened since the last look; true where a trial came to its end."""
    trials = study.get_trials(deepcopy=False)
    ended = [trial for trial in trials if trial.state.is_finished() and trial.number not in reported]
    reported.update(trial.number for trial in ended)
    running = [trial for trial in trials if trial.state == TrialState.RUNNING]
    for callback in callbacks:
        for trial in ended:
            callback.on_trial_end(study, trial)
        callback.on_running(study, running)
    return any(is_finished(trial) for trial in ended)


def _end_hanging(study: optuna.Study, limit: float | None) -> None:
    """Kill workers of this process whose trial is long past its limit; such a one cannot end itself."""
    if limit is None:
        return
    children, late = {child.pid: child for child in psutil.Process().children(recursive=True)}, limit + HANGS_AFTER
    for trial in study.get_trials(deepcopy=False, states=(TrialState.RUNNING,)):
        pid = int((TrialRecord.read(trial).worker or "- -1 -").rsplit(" ", 2)[1])
        if pid in children and time.time() - trial.datetime_start.timestamp() > late:
            interrupt(study, trial, error=f"TrainingError: {TOO_LONG.format(limit)}")
            children[pid].kill()


@contextlib.contextmanager
def _team(params: Params, order: bytes, log: Path) -> Iterator[Callable[[int], Future[None]]]:
    """A function that starts the worker of a slot, or its successor; in the end every worker is ended."""
    if params.cluster.executor == "dask":  # a cluster chooses devices and threads, and restarts what it lost
        with contextlib.closing(_connect(params)) as client:
            yield lambda slot: client.get_executor(pure=False).submit(work, order)
        return
    import torch

    threads, gpus = max(1, torch.get_num_threads() // params.hpo.trials.n_jobs), visible_gpus()
    executors, processes = list[Executor](), set[Any]()
    log.parent.mkdir(parents=True, exist_ok=True)

    def submit(slot: int) -> Future[None]:
        spawn, before = multiprocessing.get_context("spawn"), set(multiprocessing.active_children())
        gpu = gpus[slot % len(gpus)] if gpus else None
        # An executor for each, so that one that dies takes no other with it.
        executors.append(ProcessPoolExecutor(1, spawn, _begin, (str(log), gpu, threads)))
        future = executors[-1].submit(work, order)
        processes.update(set(multiprocessing.active_children()) - before)
        return future

    try:
        yield submit
    finally:
        for executor in executors:
            executor.shutdown(wait=False, cancel_futures=True)
        for process in processes:  # one that is at work would go on to its end
            process.kill()
            process.join(10)


def _connect(params: Params) -> Any:
    scheduler = params.cluster.scheduler
    try:
        from distributed import Client
    except ImportError:
        raise ParamsError("cluster=dask: the package distributed is missing; pip install 'evbind[cluster]'.") from None
    try:
        return Client(scheduler, timeout=ANSWERS_WITHIN, set_as_default=False)
    except (OSError, ValueError) as error:
        problem = f"no dask scheduler can be reached there ({type(error).__name__})"
        raise SearchError(f"cluster.scheduler={scheduler}: {problem}; start one with `dask scheduler`.") from None


def check_workers(params: Params) -> None:
    """Refuse workers that there cannot be: of a script without a guard, more than GPUs or processors serve, or of a cluster."""
    if params.cluster.executor == "dask":
        storage, scheduler = params.hpo.study.storage, params.cluster.scheduler
        if storage.startswith("sqlite"):
            problem = "the machines of a cluster cannot share a file of SQLite"
            raise ParamsError(f"hpo.study.storage={storage}: {problem}; set PostgreSQL's, postgresql://USER@HOST/NAME.")
        with contextlib.closing(_connect(params)) as client:
            threads = client.nthreads().values()
        if max(threads, default=1) > 1:
            problem = "a worker there runs several threads, and trials cannot share a process"
            raise ParamsError(f"cluster.scheduler={scheduler}: {problem}; start it with `dask worker --nthreads 1`.")
        return
    script: str = getattr(sys.modules["__main__"], "__file__", None) or ""  # as <stdin>
    if uses_workers(params) and script and not (os.path.isfile(script) and b"__name__" in Path(script).read_bytes()):
        problem = "workers run this script, so it must be a file that searches only below `if __name__ == '__main__':`"
        raise ParamsError(f"{Path(script).name}: {problem}; put it there, or {ALONE}.")
    jobs, per_gpu, gpus = params.hpo.trials.n_jobs, params.cluster.gpu_share, len(visible_gpus())
    processors = len(psutil.Process().cpu_affinity()) if sys.platform == "linux" else os.cpu_count() or jobs
    if gpus and per_gpu != "auto" and jobs > gpus * per_gpu:
        remedy = "lower it, or let workers share one with cluster.gpu_share=auto"
        raise ParamsError(f"hpo.trials.n_jobs={jobs}: there are {gpus} GPUs for {per_gpu} workers each; {remedy}.")
    if not gpus and jobs > processors:
        problem = f"there are {processors} processors, and a worker needs one of its own"
        raise ParamsError(f"hpo.trials.n_jobs={jobs}: {problem}; lower it.")


def visible_gpus() -> tuple[str, ...]:
    """Devices that this process may use, as ``CUDA_VISIBLE_DEVICES`` names them."""
    import torch

    count = torch.cuda.device_count()
    names = os.environ.get("CUDA_VISIBLE_DEVICES") or ",".join(map(str, range(count)))
    return tuple(name.strip() for name in names.split(",")[:count])


def _begin(log: str, gpu: str | None, threads: int) -> None:
    """Set up a worker process: quiet, deaf to Ctrl-C, which the parent handles, and gone when the parent is."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    # A notebook's kernel would show what its children print; what a library prints goes to a file.
    handle = os.open(log, os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o600)
    for stream in (1, 2):
        os.dup2(handle, stream)
    sys.stdout, sys.stderr = open(1, "w", closefd=False), open(2, "w", closefd=False)  # noqa: SIM115 - for good
    threading.Thread(target=_leave_with_parent, daemon=True).start()
    if gpu is not None:
        os.environ["CUDA_VISIBLE_DEVICES"] = gpu
    import torch

    torch.set_num_threads(threads)


def _leave_with_parent() -> None:
    parent = multiprocessing.parent_process()
    if parent is not None:
        multiprocessing.connection.wait([parent.sentinel])
        os._exit(1)  # a parent that was killed cannot ask; the trial is done again by the next search
