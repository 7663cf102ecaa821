"""Finished folds on disk: read as they were trained, never stale, never mixed up, never fatal when broken."""

from __future__ import annotations

import random
from collections.abc import Callable, Sequence
from datetime import date
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
import torch

from evbind_lib.config.schema import Params
from evbind_lib.data.corpus import Corpus
from evbind_lib.data.folds import Fold
from evbind_lib.training import cache as cache_module
from evbind_lib.training.cache import FoldCache, fold_key, trial_name
from evbind_lib.training.crossval import cross_validate
from evbind_lib.training.fold import train_fold
from evbind_lib.training.losses import LOSSES
from evbind_lib.training.metrics import METRICS, Metric
from evbind_lib.training.result import Callback, FoldResult
from tests import checkpoints

Brief = Callable[..., Params]


class Seen(Callback):
    def __init__(self) -> None:
        self.results: list[FoldResult] = []
        self.steps = 0

    def on_step(self) -> None:
        self.steps += 1

    def on_fold_end(self, result: FoldResult) -> None:
        self.results.append(result)


@pytest.fixture
def result(brief: Brief, corpus: Corpus, folds: Sequence[Fold]) -> FoldResult:
    return train_fold(corpus, folds[0], brief("training.args.max_steps=1"))


def test_a_fold_is_read_as_it_was_trained(brief: Brief, corpus: Corpus, folds: Sequence[Fold]) -> None:
    cache = FoldCache("a study's uid")
    first, again = Seen(), Seen()
    trained = cross_validate(corpus, folds, brief(), callbacks=[first], cache=cache)
    read = cross_validate(corpus, folds, brief(), callbacks=[again], cache=cache)
    pd.testing.assert_frame_equal(read.predictions, trained.predictions)
    assert [fold.metrics for fold in read.folds] == [fold.metrics for fold in trained.folds]
    assert [fold.epochs for fold in read.folds] == [fold.epochs for fold in trained.folds]
    assert [fold.cached for fold in (*trained.folds, *read.folds)] == [False, False, True, True]
    assert again.steps == 0 and len(again.results) == 2, "callbacks are called, nothing is trained"
    elsewhere = FoldCache("another")
    key = fold_key(corpus, folds, folds[0], brief())
    assert key and elsewhere.load(key) is None and FoldCache("another", read_all=True).load(key) is not None


def test_a_fold_is_read_whoever_trained_it_and_says_so_until_it_is_asked_for_again(
    brief: Brief, corpus: Corpus, folds: Sequence[Fold]
) -> None:
    args = ("training.args.max_steps=-1", "training.args.per_device_train_batch_size=256")
    last, each, fresh = (
        brief(*args, f"training.{more}") for more in ("validation=last", "validation=each", "fresh=true")
    )
    study, own = FoldCache("uid", origin="study mine"), FoldCache("training", read_all=True)
    today = f"trained {date.today().isoformat()}"

    def trained(params: Params, cache: FoldCache) -> tuple[bool, str]:
        (result,) = cross_validate(corpus, folds[:1], params, cache=cache).folds
        return not result.cached, result.origin

    assert trained(last, study) == (True, "")
    # A curve is no reason to train for hours what is there: its figure says how to have it.
    assert trained(last, own) == trained(each, own) == (False, f"study mine, {today}")
    assert trained(fresh, own) == (True, "")
    assert trained(last, own) == (False, f"an earlier training, {today}")


def test_no_text_is_in_the_files(result: FoldResult, corpus: Corpus) -> None:
    cache = FoldCache("uid")
    cache.save("fold", result)
    (file,) = cache.folder.iterdir()
    with np.load(file) as arrays:
        content = " ".join(str(arrays[name].tolist()) for name in arrays.files)
    assert not any(sentence in content for sentence in corpus.sentences["sentence"])


def own_loss(scale: float) -> Callable[..., Any]:
    def loss(logits: torch.Tensor, labels: torch.Tensor) -> torch.Tensor:
        return scale * torch.nn.functional.cross_entropy(logits, labels, reduction="none")

    return loss


def test_the_key_holds_everything_that_changes_a_fold(
    brief: Brief, corpus: Corpus, folds: Sequence[Fold], monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    def key(*overrides: str, fold: int = 0, **own: Any) -> str | None:
        return fold_key(corpus, folds, folds[fold], brief(*overrides), **own)

    same = [
        key(),
        key("model.threads=2"),
        key("hpo.trials.n_trials=9"),
        key("training.focal_gamma=1"),
        key("hpo.metric.name=pos_f1"),
    ]
    assert len(set(same)) == 1
    changed = [
        key(fold=1),
        key("training.seed=7"),
        key("training.args.learning_rate=1e-5"),
        key("training.loss_function=focal"),
        key("training.loss_function=focal", "training.focal_gamma=1"),
        key("data.seed=7"),
        key("data.negatives=annotated"),
        key("data.same_post_negatives=false"),
        key("data.pos_neg_ratio=2"),
        key("data.eval_neg_ratio=2"),
        key("data.negative_strategy=hard"),
        key("model.max_length=64"),
        key("model.precision=bf16"),
        key("model.attention=eager"),
        key(loss=own_loss(1.0)),
        key(loss=own_loss(2.0)),
        key(model_init=lambda config, tokenizer: None),
        fold_key(corpus, folds[:1], folds[0], brief()),
        fold_key(corpus.subset(corpus.groups[:50]), folds, folds[0], brief()),
    ]
    assert None not in changed and len({*same, *changed}) == 1 + len(changed)
    monkeypatch.setattr(cache_module, "code_digest", lambda *packages: "other code")
    assert key() not in {*same, *changed}


def test_a_registered_loss_of_ones_own_is_known_by_its_code(
    brief: Brief, corpus: Corpus, folds: Sequence[Fold], monkeypatch: pytest.MonkeyPatch
) -> None:
    keys = []
    for scale in (1.0, 0.0):
        monkeypatch.setitem(LOSSES, "mine", lambda training, labels, scale=scale: own_loss(scale))
        keys.append(fold_key(corpus, folds, folds[0], brief("training.loss_function=mine")))
    assert len({*keys, None}) == 3


def test_weights_that_are_replaced_in_the_same_folder_are_another_model(
    brief: Brief, corpus: Corpus, folds: Sequence[Fold], tmp_path: Path
) -> None:
    folder = checkpoints.write_bert(tmp_path / "bert")
    params = brief("model=pretrained", f"model.name={folder}")
    before = fold_key(corpus, folds, folds[0], params)
    weights = folder / "model.safetensors"
    content = bytearray(weights.read_bytes())
    content[-1] ^= 1
    weights.write_bytes(content)
    assert fold_key(corpus, folds, folds[0], params) != before


def test_metrics_are_computed_on_reading(result: FoldResult, monkeypatch: pytest.MonkeyPatch) -> None:
    FoldCache("uid").save("fold", result)
    monkeypatch.setitem(METRICS, "constant", Metric(lambda labels, values: 0.25))
    read = FoldCache("uid").load("fold")
    assert read is not None and read.metrics == {**result.metrics, "constant": 0.25}


def test_a_broken_file_is_dropped_and_never_raises(result: FoldResult) -> None:
    cache = FoldCache("uid")
    cache.save(trial_name(3, 0), result)
    (file,) = cache.folder.iterdir()
    whole = file.read_bytes()
    random.seed(0)
    for _ in range(150):
        broken = bytearray(whole)
        broken[random.randrange(len(whole))] ^= 1 << random.randrange(8)
        file.write_bytes(broken)
        read = cache.load(trial_name(3, 0))
        if read is not None:  # a bit that nothing reads, such as a time in the zip's directory
            pd.testing.assert_frame_equal(read.predictions, result.predictions)
        else:
            assert not file.exists()
    for size in (0, 10, len(whole) // 2):
        file.write_bytes(whole[:size])
        assert cache.load(trial_name(3, 0)) is None
    file.write_bytes(whole)
    assert cache.load(trial_name(3, 0)) is not None
    file.rename(cache.folder / f"{trial_name(4, 0)}.npz")
    assert cache.load(trial_name(4, 0)) is None, "a fold under another's name is not taken for it"
