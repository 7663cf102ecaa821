"""The faster attention computes what transformers' own does, and is taken only where it does and saves time."""

from __future__ import annotations

import copy
import importlib.util
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from transformers import DebertaV2Config, DebertaV2ForSequenceClassification, PreTrainedModel, set_seed

from evbind_lib.config.schema import ModelParams, Params
from evbind_lib.data.corpus import Corpus
from evbind_lib.data.folds import Fold
from evbind_lib.errors import ModelError
from evbind_lib.training import model as module
from evbind_lib.training.fold import check, train_fold
from evbind_lib.training.model import FLASH, autocast, load_model, load_tokenizer
from tests import checkpoints

installed = pytest.mark.skipif(
    importlib.util.find_spec(FLASH) is None, reason="the extra `attention` (disentangled-flash) is not installed"
)


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return checkpoints.write_deberta(tmp_path_factory.mktemp("checkpoints") / "deberta")


def attention_of(model: PreTrainedModel) -> str:
    return type(model.base_model.encoder.layer[0].attention.self).__module__.partition(".")[0]


def load(name: Path | str, attention: str) -> PreTrainedModel:
    params = ModelParams(name=str(name), max_length=64, precision="fp32", attention=attention)
    tokenizer = load_tokenizer(params, ("one", "two three"))
    set_seed(3)
    return load_model(params, tokenizer)


@installed
@pytest.mark.parametrize(("precision", "tolerance"), [("fp32", 1e-6), ("bf16", 1e-2)])
@pytest.mark.parametrize(("hidden", "heads", "buckets", "dropout"), [(64, 2, 32, 0.0), (96, 3, 256, 0.1)])
def test_logits_and_gradients_are_those_of_transformers_on_padded_batches(
    hidden: int, heads: int, buckets: int, dropout: float, precision: str, tolerance: float
) -> None:
    torch.manual_seed(0)
    config = DebertaV2Config(
        vocab_size=100,
        hidden_size=hidden,
        num_hidden_layers=2,
        num_attention_heads=heads,
        intermediate_size=2 * hidden,
        relative_attention=True,
        position_buckets=buckets,
        pos_att_type=["p2c", "c2p"],
        share_att_key=True,
        norm_rel_ebd="layer_norm",
        position_biased_input=False,
        type_vocab_size=0,
        hidden_dropout_prob=dropout,
        attention_probs_dropout_prob=dropout,
        initializer_range=hidden**-0.5,  # with narrower ones every token gets the same attention
    )
    eager = DebertaV2ForSequenceClassification(config).train()
    models = eager, module._replace_attention(copy.deepcopy(eager))
    assert attention_of(models[1]) == FLASH and models[1].state_dict().keys() == eager.state_dict().keys()
    ids = torch.randint(1, 100, (5, 70))
    mask = (torch.arange(70) < torch.tensor([70, 64, 33, 9, 3])[:, None]).long()
    for model in models:
        set_seed(1)  # the same dropout
        with autocast("cpu", precision):
            logits = model(input_ids=ids * mask, attention_mask=mask).logits
            torch.nn.functional.cross_entropy(logits.float(), torch.tensor([0, 1, 0, 1, 1])).backward()
        model.logits = logits.detach()
    torch.testing.assert_close(models[1].logits, models[0].logits, rtol=0, atol=tolerance)
    for (name, one), (_, other) in zip(*(model.named_parameters() for model in models), strict=True):
        torch.testing.assert_close(
            other.grad, one.grad, rtol=tolerance, atol=tolerance, msg=lambda text, n=name: n + text
        )


@installed
def test_a_fold_is_trained_alike_and_validated_between(
    folder: Path, brief: Callable[..., Params], corpus: Corpus, folds: list[Fold]
) -> None:
    def trained(attention: str) -> Any:
        model = [
            "model=pretrained",
            f"model.name={folder}",
            "model.max_length=64",
            "model.precision=fp32",
            f"model.attention={attention}",
        ]
        epochs = ["training.args.max_steps=-1", "training.args.num_train_epochs=2", "training.validation=each"]
        rate = ["training.args.learning_rate=1e-3", "training.args.per_device_train_batch_size=64"]
        return train_fold(corpus, folds[0], brief(*model, *epochs, *rate), keep_model=True)

    eager, fast = trained("eager"), trained(FLASH)
    assert (attention_of(eager.model), attention_of(fast.model)) == ("transformers", FLASH)
    np.testing.assert_allclose(fast.predictions["logit"], eager.predictions["logit"], atol=1e-4)
    assert [epoch.training_loss for epoch in fast.epochs] == pytest.approx([e.training_loss for e in eager.epochs])


@installed
def test_auto_takes_it_on_a_gpu_alone_where_it_is_equal_and_faster(
    folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    before = load(folder, "eager").state_dict()
    monkeypatch.setattr(module, "_gain_of_flash", lambda config, precision: 1.2)
    assert attention_of(load(folder, "auto")) == "transformers", "on a CPU there is a faster one"
    replaced = module._replace_attention(load(folder, "eager"))
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(module, "_replace_attention", lambda model: replaced)  # without a GPU there are no kernels
    for gain, taken in ((1.2, FLASH), (0.9, "transformers"), (None, "transformers")):
        monkeypatch.setattr(module, "_gain_of_flash", lambda config, precision, gain=gain: gain)
        model = load(folder, "auto")
        assert attention_of(model) == taken
        assert all(torch.equal(value, before[name]) for name, value in model.state_dict().items()), "also the new head"
    with pytest.raises(ModelError, match=r"model\.attention=disentangled_flash.*model\.attention=auto"):
        load(folder, FLASH)
    monkeypatch.undo()
    monkeypatch.setattr(module, "_gain_of_flash", lambda config, precision: 0.9)
    assert attention_of(load(folder, FLASH)) == attention_of(load("tiny", FLASH)) == FLASH
    assert attention_of(load("tiny", "auto")) == "transformers", (
        "scores of the first search are the same without the extra"
    )


@installed
def test_attention_that_computes_something_else_is_found_out(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    config = load(folder, "eager").config.to_json_string()
    before = torch.random.get_rng_state()
    assert module._gain_of_flash.__wrapped__(config, "fp32") > 0
    assert torch.equal(torch.random.get_rng_state(), before)

    def wrong(model: PreTrainedModel) -> PreTrainedModel:
        with torch.no_grad():
            model.base_model.encoder.layer[0].attention.self.value_proj.weight.mul_(1.01)
        return model

    monkeypatch.setattr(module, "_replace_attention", wrong)
    assert module._gain_of_flash.__wrapped__(config, "fp32") is None


def test_where_it_cannot_be_had_it_is_refused_before_training_and_auto_does_without(
    tmp_path: Path, folder: Path, brief: Callable[..., Params], monkeypatch: pytest.MonkeyPatch
) -> None:
    bert = checkpoints.write_bert(tmp_path / "bert")
    assert attention_of(load(bert, "auto")) == "transformers"
    with pytest.raises(ModelError, match="a model of type bert"):
        check(brief("model=pretrained", f"model.name={bert}", "model.max_length=64", f"model.attention={FLASH}"))
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    assert attention_of(load(folder, "auto")) == "transformers"
    for named in (["model=tiny"], ["model=pretrained", f"model.name={folder}"]):
        with pytest.raises(ModelError, match=r"evbind\[attention\]"):
            check(brief(*named, "model.max_length=64", f"model.attention={FLASH}"))
