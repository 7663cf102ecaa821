"""Memory that runs out is met by smaller steps with the same effective batch; and it does not grow from trial to trial."""

from __future__ import annotations

import itertools
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import optuna
import psutil
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from optuna.trial import FrozenTrial, TrialState

from evbind_lib.config.compose import Params, compose
from evbind_lib.data.corpus import Corpus, load_corpus
from evbind_lib.data.folds import make_folds
from evbind_lib.errors import TrainingError
from evbind_lib.hpo.search import SearchListener, run_search
from evbind_lib.training.crossval import CrossValidator, train_fold
from evbind_lib.training.crossval import crossval as training
from evbind_lib.training.memory import half_of, is_out_of_memory, with_micro_batch
from tests.conftest import BRIEF


@pytest.fixture(scope="module")
def corpus() -> Corpus:
    return load_corpus(compose().data)


@given(st.integers(2, 512))
def test_half_of_a_batch_divides_it(batch: int) -> None:
    sizes = [batch]
    while sizes[-1] > 1:
        sizes.append(half_of(sizes[-1]))
    assert all(batch % size == 0 for size in sizes)
    assert all(small <= large / 2 for large, small in itertools.pairwise(sizes))


def test_smaller_steps_make_the_same_batch() -> None:
    params = compose(
        {}, ["training.args.per_device_train_batch_size=12", "training.args.gradient_accumulation_steps=2"]
    )
    args = with_micro_batch(params, 3).training.args
    assert (args["per_device_train_batch_size"], args["gradient_accumulation_steps"]) == (3, 8)
    assert with_micro_batch(params, 12) is params


def test_what_counts_as_out_of_memory() -> None:
    said = "[enforce fail at alloc_cpu.cpp:124] err == 0. DefaultCPUAllocator: can't allocate memory: you tried to allocate"
    assert is_out_of_memory(RuntimeError(said))
    assert is_out_of_memory(torch.OutOfMemoryError("CUDA out of memory.")) and is_out_of_memory(MemoryError())
    assert not is_out_of_memory(RuntimeError("shape '[2]' is invalid")) and not is_out_of_memory(ValueError(said))


def fits_only(monkeypatch: pytest.MonkeyPatch, most: int) -> None:
    """Let a GPU's error come wherever a step holds more pairs than that."""
    choose = training.choose_loss

    def choosing(*args: Any) -> Any:
        loss = choose(*args)

        def with_limit(outputs: Any, labels: torch.Tensor, num_items_in_batch: Any = None) -> torch.Tensor:
            if len(labels) > most:
                raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 20.00 MiB.")
            return loss(outputs, labels, num_items_in_batch)

        return with_limit

    monkeypatch.setattr(training, "choose_loss", choosing)


def test_a_trial_that_does_not_fit_is_trained_in_smaller_steps_and_says_so(
    brief: Callable[..., Params], corpus: Corpus, monkeypatch: pytest.MonkeyPatch
) -> None:
    fits_only(monkeypatch, 5)
    params = brief(
        "hpo.search_space.per_device_train_batch_size.choices=[16]", "hpo.trials.n_trials=1", "tracking=none"
    )
    result = run_search(params, corpus, make_folds(corpus, n_folds=2, seed=42))
    (trial,) = result.study.trials
    assert trial.state == TrialState.COMPLETE and trial.user_attrs["micro_batch"] == 4
    assert trial.params["per_device_train_batch_size"] == 16  # what was searched is the effective batch


def test_later_folds_begin_with_what_fitted(
    brief: Callable[..., Params], corpus: Corpus, monkeypatch: pytest.MonkeyPatch
) -> None:
    fits_only(monkeypatch, 5)
    tried: list[int] = []
    original = training.with_micro_batch
    monkeypatch.setattr(training, "with_micro_batch", lambda params, size: tried.append(size) or original(params, size))
    result = CrossValidator(corpus, make_folds(corpus, n_folds=2, seed=42)).run(brief())
    assert tried == [16, 8, 4, 4] and [report.micro_batch for report in result.folds] == [4, 4]


def test_a_single_pair_that_does_not_fit_is_told(
    brief: Callable[..., Params], corpus: Corpus, monkeypatch: pytest.MonkeyPatch
) -> None:
    fits_only(monkeypatch, 0)
    with pytest.raises(TrainingError, match=r"fold 1: memory does not hold a single pair; lower model\.max_length"):
        CrossValidator(corpus, make_folds(corpus, n_folds=2, seed=42)).run(brief())


REAL = f"""
import resource, psutil
from evbind_lib.data.corpus import load_corpus
from evbind_lib.data.folds import make_folds
from evbind_lib.config.compose import compose
from evbind_lib.training.crossval import CrossValidator, train_fold
params = compose({{"hpo": "quick"}}, {[*BRIEF, "training.args.max_steps=2", "data.pos_neg_ratio=3"]!r})
corpus = load_corpus(params.data)
folds = make_folds(corpus, n_folds=2, seed=42)
fold = CrossValidator(corpus, folds).prepare(params, folds[0])
train_fold(params, fold)  # libraries have what they need
large = params.with_values({{"training.args.per_device_train_batch_size": 512}})
most = psutil.Process().memory_info().vms + 250 * 2**20  # without a limit it takes about 400
resource.setrlimit(resource.RLIMIT_AS, (most, most))
tight = train_fold(large, fold)
print(tight.micro_batch)
"""


@pytest.mark.skipif(sys.platform != "linux", reason="only Linux limits a process's address space")
def test_a_machine_that_really_has_no_more_memory(workspace: Path) -> None:
    done = subprocess.run([sys.executable, "-W", "ignore", "-c", REAL], capture_output=True, text=True, timeout=300)
    assert done.stdout.strip() in {"256", "128", "64", "32"}, done.stderr[-2000:]


class ResidentSize(SearchListener):
    def __init__(self) -> None:
        self.megabytes: list[float] = []

    def on_trial_end(self, study: optuna.Study, trial: FrozenTrial) -> None:
        self.megabytes.append(psutil.Process().memory_info().rss / 2**20)


def growth(params: Params, corpus: Corpus) -> tuple[float, float]:
    """Resident size after the first tenth of the trials, and at the end."""
    size = ResidentSize()
    run_search(params, corpus, make_folds(corpus, n_folds=2, seed=42), [size])
    tenth = len(size.megabytes) // 10
    return max(size.megabytes[tenth : 2 * tenth]), max(size.megabytes[-tenth:])


def many_trials(brief: Callable[..., Params], number: int) -> Params:
    # One length of batch, or the allocator would meet a longer one now and then.
    return brief(f"hpo.trials.n_trials={number}", "tracking=none", "hpo.sampler.type=random", "hpo.pruner.type=none")


def test_memory_does_not_grow_over_thirty_trials(brief: Callable[..., Params], corpus: Corpus) -> None:
    early, late = growth(many_trials(brief, 30), corpus)
    assert late < early + 25, f"{early:.0f} MB grew to {late:.0f} MB"


@pytest.mark.full
def test_memory_does_not_grow_over_two_hundred_trials(brief: Callable[..., Params], corpus: Corpus) -> None:
    early, late = growth(many_trials(brief, 200), corpus)
    assert late < early + 25, f"{early:.0f} MB grew to {late:.0f} MB"


def test_a_fold_given_back_from_before_is_told_to_observers_and_not_trained(
    brief: Callable[..., Params], corpus: Corpus
) -> None:
    params = brief()
    validator = CrossValidator(corpus, make_folds(corpus, n_folds=2, seed=42))
    first = train_fold(params, validator.prepare(params, validator.folds[0]))
    result = validator.run(params, finished={0: first})
    assert result.folds[0] is first and result.folds[1].fold == 1
