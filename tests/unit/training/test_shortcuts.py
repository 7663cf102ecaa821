"""A classifier on a shorter way gives the logits and gradients of transformers' own."""

from __future__ import annotations

import copy
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from transformers import (
    AutoModelForSequenceClassification,
    BertConfig,
    BertForSequenceClassification,
    DebertaV2Config,
    DebertaV2ForSequenceClassification,
    ElectraConfig,
    PreTrainedModel,
    RobertaConfig,
    T5Config,
    TrainerCallback,
)

from evbind_lib.config.schema import Params
from evbind_lib.data.corpus import Corpus
from evbind_lib.data.folds import Fold
from evbind_lib.training.fold import train_fold
from evbind_lib.training.model import autocast
from evbind_lib.training.shortcuts import take_shortcuts
from tests import checkpoints

SMALL = {"vocab_size": 50, "hidden_size": 24, "num_hidden_layers": 2, "num_attention_heads": 3, "intermediate_size": 32}
WIDE = {"initializer_range": 0.3}  # with narrower ones every token gets the same attention
NO_DROPOUT = {"hidden_dropout_prob": 0.0, "attention_probs_dropout_prob": 0.0}
DEBERTA = DebertaV2Config(
    relative_attention=True, pos_att_type=["c2p", "p2c"], position_buckets=16, **SMALL, **WIDE, **NO_DROPOUT
)


def is_changed(model: PreTrainedModel) -> bool:
    """Whether the last layer computes its attention otherwise than its class."""
    return "forward" in vars(model.base_model.encoder.layer[-1].attention.self)


@pytest.mark.parametrize("shared", [True, False])
@pytest.mark.parametrize("buckets", [4, 16, -1])
@pytest.mark.parametrize("length", [1, 2, 7, 40])
def test_logits_are_those_of_transformers_at_any_length_and_padding(shared: bool, buckets: int, length: int) -> None:
    torch.manual_seed(0)
    sizes = {"hidden_size": 24, "num_hidden_layers": 3, "num_attention_heads": 3, "intermediate_size": 32}
    options = {
        "position_buckets": buckets,
        "share_att_key": shared,
        "max_relative_positions": 32,
        "norm_rel_ebd": "layer_norm",
    }
    config = DebertaV2Config(
        vocab_size=50, relative_attention=True, pos_att_type=["c2p", "p2c"], initializer_range=0.5, **sizes, **options
    )
    plain = DebertaV2ForSequenceClassification(config).double().eval()  # single precision rounds wide weights at 1e-5
    quick = copy.deepcopy(plain)
    take_shortcuts(quick)
    assert "forward" in vars(quick.deberta.encoder.layer[0].attention.self)
    ids = torch.randint(1, 50, (5, length))
    mask = (torch.arange(length) < torch.linspace(length, 1, 5).ceil()[:, None]).long()
    with torch.no_grad():
        found, expected = (model(input_ids=ids, attention_mask=mask).logits for model in (quick, plain))
    torch.testing.assert_close(found, expected, rtol=1e-6, atol=1e-6)
    assert quick.state_dict().keys() == plain.state_dict().keys()


@pytest.mark.parametrize(("precision", "tolerance"), [("fp32", 1e-5), ("bf16", 5e-2)])
@pytest.mark.parametrize(
    ("kind", "attention"),
    [(DEBERTA, "eager"), (BertConfig, "eager"), (BertConfig, "sdpa"), (RobertaConfig, "sdpa"), (ElectraConfig, "sdpa")],
)
def test_a_step_of_training_has_the_gradients_of_transformers(
    kind: Any, attention: str, precision: str, tolerance: float
) -> None:
    config = kind if kind is DEBERTA else kind(**SMALL, **WIDE, **NO_DROPOUT)
    torch.manual_seed(0)
    plain = AutoModelForSequenceClassification.from_config(config, attn_implementation=attention).train()
    quick = copy.deepcopy(plain)
    take_shortcuts(quick)
    assert is_changed(quick) and quick.training
    ids = torch.randint(2, 50, (5, 14))
    mask = (torch.arange(14) < torch.tensor([14, 12, 7, 3, 1])[:, None]).long()
    for model in (plain, quick):
        with autocast("cpu", precision):
            logits = model(input_ids=ids, attention_mask=mask).logits
        torch.nn.functional.cross_entropy(logits.float(), torch.tensor([0, 1, 0, 1, 1])).backward()
    largest = max(weight.grad.abs().max() for weight in plain.parameters() if weight.grad is not None)
    for (name, one), other in zip(plain.named_parameters(), quick.parameters(), strict=True):
        assert (one.grad is None) == (other.grad is None), name
        if one.grad is not None:
            torch.testing.assert_close(other.grad, one.grad, rtol=0, atol=float(tolerance * largest), msg=name)


def test_dropout_is_the_same_where_activations_are_computed_again_for_the_gradients() -> None:
    config = DebertaV2Config(**DEBERTA.to_dict() | {"attention_probs_dropout_prob": 0.3, "hidden_dropout_prob": 0.3})
    model = DebertaV2ForSequenceClassification(config).train()
    take_shortcuts(model, np.arange(50))
    ids, weight, found = (
        torch.randint(1, 50, (4, 12)),
        model.deberta.encoder.layer[0].attention.self.query_proj.weight,
        [],
    )
    for again in (False, True):
        if again:  # the first pass is without gradients then
            model.gradient_checkpointing_enable({"use_reentrant": True})
            model.enable_input_require_grads()
        torch.manual_seed(3)
        model.zero_grad()
        torch.nn.functional.cross_entropy(model(input_ids=ids).logits, torch.tensor([0, 1, 1, 0])).backward()
        found.append(weight.grad.clone())
    torch.testing.assert_close(*found)
    assert found[0].abs().max() > 0


@pytest.mark.parametrize("config", [DEBERTA, BertConfig(**SMALL, **WIDE, **NO_DROPOUT)])
def test_an_embedding_of_the_tokens_that_occur_learns_what_the_whole_one_does(config: Any) -> None:
    torch.manual_seed(0)
    plain = AutoModelForSequenceClassification.from_config(config).train()
    quick, before = copy.deepcopy(plain), plain.get_input_embeddings().weight.detach().clone()
    occurring = np.array([0, 7, 9, 20, 33, 41])
    undo = take_shortcuts(quick, occurring)
    assert quick.get_input_embeddings().num_embeddings == 6
    with pytest.raises(IndexError):
        quick(input_ids=torch.tensor([[7, 8]]))
    ids = torch.tensor([[7, 9, 20, 41], [33, 7, 41, 0]])
    for model in (plain, quick):
        optimizer = torch.optim.SGD(model.parameters(), lr=0.1)  # Adam would make steps of rounding
        for _ in range(3):
            torch.nn.functional.cross_entropy(
                model(input_ids=ids, attention_mask=(ids > 0).long()).logits, torch.tensor([0, 1])
            ).backward()
            torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
            optimizer.step()
            optimizer.zero_grad()
    undo()
    after = quick.get_input_embeddings().weight
    assert after.shape == before.shape and {*torch.nonzero((after != before).any(1))[:, 0].tolist()} <= {*occurring}
    for (name, one), (other, two) in zip(plain.named_parameters(), quick.named_parameters(), strict=True):
        assert name == other
        torch.testing.assert_close(two, one, rtol=0, atol=1e-5, msg=name)


class Sizes(TrainerCallback):
    """Looks at the model that is trained."""

    def on_step_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        self.rows, self.changed = kwargs["model"].get_input_embeddings().num_embeddings, is_changed(kwargs["model"])


def test_a_fold_takes_shortcuts_but_for_a_callback_of_transformers_which_meets_the_whole_model(
    brief: Callable[..., Params], corpus: Corpus, folds: list[Fold], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder, seen, shortened = checkpoints.write_bert(tmp_path / "bert"), Sizes(), list[int]()
    BertForSequenceClassification(BertConfig(**SMALL | {"vocab_size": 1000}, **NO_DROPOUT)).save_pretrained(folder)

    def shorten(model: Any, tokens: Any) -> Callable[[], Any]:
        undo = take_shortcuts(model, tokens)
        shortened.append(model.get_input_embeddings().num_embeddings)
        return undo

    monkeypatch.setattr("evbind_lib.training.trainer.take_shortcuts", shorten)
    words = ["model=pretrained", f"model.name={folder}", "model.max_length=32", "model.precision=fp32"]
    watched = train_fold(corpus, folds[0], brief(*words), callbacks=[seen])
    eager = train_fold(corpus, folds[0], brief(*words, "model.attention=eager"))
    assert (seen.rows, seen.changed, shortened) == (1000, False, [])
    quick = train_fold(corpus, folds[0], brief(*words), keep_model=True)
    assert quick.model is not None and quick.model.get_input_embeddings().num_embeddings == 1000 > 2 * shortened[0]
    for other in (watched, eager):
        np.testing.assert_allclose(quick.predictions["logit"], other.predictions["logit"], atol=1e-4)


class MeanOfTokens(BertForSequenceClassification):
    """A head that asks for every token."""

    def forward(self, input_ids: Any, attention_mask: Any = None) -> Any:
        states = self.bert(input_ids, attention_mask=attention_mask).last_hidden_state
        return type("Output", (), {"logits": self.classifier(states.mean(1))})


@pytest.mark.parametrize("tokens", [None, np.arange(50)], ids=["asked", "trained"])
@pytest.mark.parametrize("kind", ["every token", "other parts", "no such layers"])
def test_a_model_whose_logits_would_change_stays_as_it_is(
    kind: str, tokens: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    torch.manual_seed(0)
    if kind == "every token":
        model: PreTrainedModel = MeanOfTokens(BertConfig(**SMALL, **WIDE)).eval()
    elif kind == "other parts":  # of another version of transformers
        model = DebertaV2ForSequenceClassification(DEBERTA).eval()
        place = "evbind_lib.training.shortcuts."
        monkeypatch.setattr(place + "dropout", lambda weights, *_: 2 * weights)
        monkeypatch.setattr(place + "scaled_dot_product_attention", lambda query, *_, **__: query)
    else:
        config = T5Config(
            vocab_size=50,
            d_model=24,
            d_kv=8,
            d_ff=32,
            num_layers=2,
            num_heads=3,
            eos_token_id=7,
            decoder_start_token_id=0,
        )
        model = AutoModelForSequenceClassification.from_config(config).eval()
    ids = torch.randint(8, 50, (2, 9))
    ids[:, -1] = 7
    expected = model(input_ids=ids).logits
    take_shortcuts(model, tokens)
    assert torch.equal(model(input_ids=ids).logits, expected)
    assert not any("forward" in vars(module) for module in model.modules())


def test_the_model_of_a_fold_is_transformers_own_again(
    brief: Callable[..., Params], corpus: Corpus, folds: list[Fold]
) -> None:
    quick, eager = (
        train_fold(corpus, folds[0], brief(f"model.attention={attention}"), keep_model=True)
        for attention in ("auto", "eager")
    )
    assert quick.model is not None and not is_changed(quick.model)
    ids = torch.arange(10)[None]
    assert quick.model.base_model(input_ids=ids).last_hidden_state.shape[1] == 10
    assert quick.metrics == pytest.approx(eager.metrics) and quick.model is not eager.model
    for one, other in zip(quick.model.parameters(), eager.model.parameters(), strict=True):
        torch.testing.assert_close(one, other, rtol=0, atol=1e-5)
