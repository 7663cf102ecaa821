"""What a step of training takes, by the first steps of a fold, and how many workers a GPU is shared by."""

from __future__ import annotations

import time
from typing import Any

import optuna

from evbind_lib.config.schema import Params
from evbind_lib.data.corpus import Corpus
from evbind_lib.data.folds import Fold
from evbind_lib.hpo.objective import Objective, suggest
from evbind_lib.hpo.study import quiet_optuna
from evbind_lib.hpo.workers import visible_gpus
from evbind_lib.training.result import Callback, FoldResult, ModelInit

N_STEPS, N_WARM_UP, BATCH = 20, 5, "per_device_train_batch_size"
WIDER = 8  # times a batch, as much work at once as that many trainings have
CONTEXT_MB = 700  # what a process takes of a GPU before its first tensor
USABLE = 0.9  # part of a GPU's free memory


class _Steps(Callback):
    def __init__(self) -> None:
        self.ends: list[float] = []

    def on_step(self) -> None:
        import torch

        if torch.cuda.is_available():
            torch.cuda.synchronize()  # it only queues steps
        self.ends.append(time.perf_counter())


def measure_pace(
    corpus: Corpus, fold: Fold, params: Params, batch: int, model_init: ModelInit | None = None
) -> tuple[float, float, FoldResult]:
    """Seconds for a pair, in steps of ``batch`` pairs, and for the validation, of a fold that is trained for its first steps."""
    from evbind_lib.training.fold import train_fold  # late: it loads torch

    few, steps = params.with_values({"training.args.max_steps": N_STEPS, f"training.args.{BATCH}": batch}), _Steps()
    trained = train_fold(corpus, fold, few, model_init=model_init, callbacks=[steps])
    ended, at_once = time.perf_counter(), trained.micro_batch or min(batch, trained.n_training)
    of_step = (steps.ends[-1] - steps.ends[N_WARM_UP]) / (len(steps.ends) - 1 - N_WARM_UP)
    return of_step / at_once, ended - steps.ends[-1], trained


def drawn(params: Params) -> list[Params]:
    """Parameters of thirty trials, as the search space has them."""
    with quiet_optuna():
        study = optuna.create_study(sampler=optuna.samplers.RandomSampler(seed=0))
    return [suggest(study.ask(), params) for _ in range(30)]


def largest_batch(sets: list[Params]) -> int:
    """Pairs of a step, in the set that has the most."""
    return max(int(each.training.args.get(BATCH, 8)) for each in sets)


def workers_at_once(objective: Any, params: Params) -> tuple[int, list[str]]:
    """How many workers to start, and a note where ``cluster.gpu_share=auto`` finds room for fewer than ``hpo.trials.n_jobs``."""
    wanted, gpus, is_local = params.hpo.trials.n_jobs, len(visible_gpus()), params.cluster.executor == "local"
    if params.cluster.gpu_share != "auto" or not is_local or not 0 < gpus < wanted:
        return wanted, []
    if not isinstance(objective, Objective):
        problem = "only an ev.Objective can be measured; set cluster.gpu_share=2 or more to share them"
        return gpus, [f"{gpus} of {wanted} workers, one for each GPU: {problem}."]
    import torch

    batch, own = largest_batch(drawn(objective.params)), (objective.corpus, objective.folds[0], objective.params)
    (alone, _, fold), (together, _, _) = (measure_pace(*own, n, objective.model_init) for n in (batch, WIDER * batch))
    # As many as memory holds, and as the GPU is faster for each pair of a larger batch: it waits between a small model's steps.
    free_mb = USABLE * torch.cuda.mem_get_info()[0] / 2**20
    held, filled = free_mb / (fold.peak_memory_mb + CONTEXT_MB), alone / together
    number = min(wanted, gpus * max(1, int(min(held, filled))))
    reason = f"of a GPU, its memory holds {int(held)} trainings, and its work fills {filled:.1f}"
    return number, [f"{number} of {wanted} workers: {reason}."] if number < wanted else []
