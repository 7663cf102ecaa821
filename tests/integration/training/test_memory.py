"""Memory that runs out is met by smaller steps with the same effective batch; and it does not grow from trial to trial."""

from __future__ import annotations

import itertools
import sys
from collections.abc import Callable, Sequence
from pathlib import Path

import optuna
import psutil
import pytest
import torch
from optuna.trial import FrozenTrial, TrialState

from evbind_lib.config.compose import compose
from evbind_lib.config.schema import Params
from evbind_lib.data.corpus import Corpus
from evbind_lib.data.folds import Fold
from evbind_lib.errors import TrainingError
from evbind_lib.hpo.objective import Objective
from evbind_lib.hpo.search import run_search
from evbind_lib.training.crossval import cross_validate
from evbind_lib.training.result import Loss
from evbind_lib.training.trainer import is_out_of_memory, with_micro_batch
from tests import forks
from tests.conftest import BRIEF


def test_smaller_steps_make_the_same_batch() -> None:
    params = compose(["training.args.per_device_train_batch_size=12", "training.args.gradient_accumulation_steps=2"])
    args = with_micro_batch(params, 3).training.args
    assert (args["per_device_train_batch_size"], args["gradient_accumulation_steps"]) == (3, 8)
    assert with_micro_batch(params, 12) is params


def test_what_counts_as_out_of_memory() -> None:
    said = "[enforce fail at alloc_cpu.cpp:124] err == 0. DefaultCPUAllocator: can't allocate memory: you tried to allocate"
    assert is_out_of_memory(RuntimeError(said))
    assert is_out_of_memory(torch.OutOfMemoryError("CUDA out of memory.")) and is_out_of_memory(MemoryError())
    assert not is_out_of_memory(RuntimeError("shape '[2]' is invalid")) and not is_out_of_memory(ValueError(said))


def fits_only(most: int, seen: list[int] | None = None) -> Loss:
    """A loss under which a GPU's error comes wherever a step holds more pairs than that."""

    def loss(logits: torch.Tensor, labels: torch.Tensor) -> torch.Tensor:
        if seen is not None:
            seen.append(len(labels))
        if len(labels) > most:
            raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 20.00 MiB.")
        return torch.nn.functional.cross_entropy(logits, labels, reduction="none")

    return loss


def test_a_trial_that_does_not_fit_is_trained_in_smaller_steps_and_says_so(
    brief: Callable[..., Params], corpus: Corpus, folds: Sequence[Fold]
) -> None:
    params = brief("hpo.search_space.per_device_train_batch_size.choices=[16]", "hpo.trials.n_trials=1")
    result = run_search(Objective(corpus, folds, params, loss=fits_only(5)), params)
    (trial,) = result.study.trials
    assert trial.state == TrialState.COMPLETE and trial.user_attrs["micro_batch"] == 4
    assert trial.params["per_device_train_batch_size"] == 16  # what was searched is the effective batch


@pytest.mark.parametrize(("fits", "sizes"), [(5, [16, 8, 4]), (2, [18, 9, 3, 1]), (6, [7, 1])])
def test_later_folds_begin_with_what_fitted_the_largest_divisor_of_the_batch(
    fits: int, sizes: list[int], brief: Callable[..., Params], corpus: Corpus, folds: Sequence[Fold]
) -> None:
    tried: list[int] = []
    params = brief(f"training.args.per_device_train_batch_size={sizes[0]}")
    result = cross_validate(corpus, folds, params, loss=fits_only(fits, tried))
    assert [size for size, _ in itertools.groupby(tried)] == sizes
    assert [fold.micro_batch for fold in result.folds] == [sizes[-1]] * 2


def test_a_fold_that_is_cross_validated_alone_is_trained_in_smaller_steps_too(
    brief: Callable[..., Params], corpus: Corpus, folds: Sequence[Fold]
) -> None:
    params = brief("training.args.per_device_train_batch_size=16")
    (fold,) = cross_validate(corpus, folds[:1], params, loss=fits_only(5)).folds
    assert fold.micro_batch == 4


def test_a_single_pair_that_does_not_fit_is_refused(
    brief: Callable[..., Params], corpus: Corpus, folds: Sequence[Fold]
) -> None:
    with pytest.raises(TrainingError, match=r"fold 1.*model\.max_length"):
        cross_validate(corpus, folds, brief(), loss=fits_only(0))


REAL = f"""
import resource, psutil, sys, torch
from evbind_lib.config.compose import compose
from evbind_lib.data.corpus import load_corpus
from evbind_lib.data.folds import make_folds
from evbind_lib.training.fold import train_fold
params = compose({[*BRIEF, "training.args.max_steps=2", "data.pos_neg_ratio=3"]!r}, hpo="quick")
corpus = load_corpus(params)
fold = make_folds(corpus, params)[0]
train_fold(corpus, fold, params)  # libraries have what they need
large = params.with_values({{"training.args.per_device_train_batch_size": 512}})
def takes_a_mebibyte_for_each_pair(logits, labels):  # far more than may be free of what the process has already
    torch.ones(len(labels), 2**18)
    return torch.nn.functional.cross_entropy(logits, labels, reduction="none")
most = psutil.Process().memory_info().vms + 400 * 2**20  # all else takes up to 200
resource.setrlimit(resource.RLIMIT_AS, (most, most))
print(train_fold(corpus, fold, large, loss=takes_a_mebibyte_for_each_pair).micro_batch, file=sys.stderr)
"""


@pytest.mark.skipif(sys.platform != "linux", reason="only Linux limits a process's address space")
def test_a_machine_that_really_has_no_more_memory(workspace: Path) -> None:
    process = forks.begin(exec, REAL, {})
    said = process.stderr.read() if process.stderr else ""
    assert process.wait(60) == 0 and said.split()[-1] in {"256", "128", "64"}, said[-2000:]


FIRST = f"""
import sys, weakref
from evbind_lib.config.compose import compose
from evbind_lib.data.corpus import load_corpus
from evbind_lib.data.folds import make_folds
from evbind_lib.training import trainer
from evbind_lib.training.fold import train_fold
made, load_model = [], trainer.load_model
def load(*given):
    model = load_model(*given)
    made.append(weakref.ref(model))
    return model
trainer.load_model = load
params = compose({[*BRIEF, "model.precision=bf16"]!r}, hpo="quick")  # Trainer and model refer to each other then
corpus = load_corpus(params)
train_fold(corpus, make_folds(corpus, params)[0], params)
print(len(made), made[0]() is None, file=sys.stderr)
"""


def test_the_first_model_of_a_process_is_freed_as_those_after_it(workspace: Path) -> None:
    process = forks.begin(exec, FIRST, {})
    said = process.stderr.read() if process.stderr else ""
    assert process.wait(60) == 0 and said.splitlines()[-1] == "1 True", said[-2000:]


def growth(params: Params, corpus: Corpus, folds: Sequence[Fold]) -> tuple[float, float]:
    """Resident size after the first tenth of the trials, and at the end."""
    megabytes: list[float] = []

    def measure(study: optuna.Study, trial: FrozenTrial) -> None:
        megabytes.append(psutil.Process().memory_info().rss / 2**20)

    run_search(Objective(corpus, folds, params), params, callbacks=[measure])
    tenth = len(megabytes) // 10
    return max(megabytes[tenth : 2 * tenth]), max(megabytes[-tenth:])


def many_trials(brief: Callable[..., Params], number: int) -> Params:
    # One length of batch, or the allocator would meet a longer one now and then.
    return brief(f"hpo.trials.n_trials={number}", "hpo.sampler.type=random", "hpo.pruner.type=none")


def test_memory_does_not_grow_over_ten_trials(
    brief: Callable[..., Params], corpus: Corpus, folds: Sequence[Fold]
) -> None:
    early, late = growth(many_trials(brief, 10), corpus, folds)
    assert late < early + 25, f"{early:.0f} MB grew to {late:.0f} MB"


@pytest.mark.full
def test_memory_does_not_grow_over_two_hundred_trials(
    brief: Callable[..., Params], corpus: Corpus, folds: Sequence[Fold]
) -> None:
    early, late = growth(many_trials(brief, 200), corpus, folds)
    assert late < early + 25, f"{early:.0f} MB grew to {late:.0f} MB"
