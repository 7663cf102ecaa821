"""The attention of a model that is asked gives the logits of transformers' own."""

from __future__ import annotations

import copy

import pytest
import torch
from transformers import DebertaV2Config, DebertaV2ForSequenceClassification

from evbind_lib.evaluation.attention import speed_up


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
    speed_up(quick)
    assert "forward" in vars(quick.deberta.encoder.layer[0].attention.self)
    ids = torch.randint(1, 50, (5, length))
    mask = (torch.arange(length) < torch.linspace(length, 1, 5).ceil()[:, None]).long()
    with torch.no_grad():
        found, expected = (model(input_ids=ids, attention_mask=mask).logits for model in (quick, plain))
    torch.testing.assert_close(found, expected, rtol=1e-6, atol=1e-6)
    assert quick.state_dict().keys() == plain.state_dict().keys()


def test_where_the_parts_of_transformers_attention_are_others_the_model_stays_as_it_is(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    torch.manual_seed(0)
    sizes = {"hidden_size": 24, "num_hidden_layers": 2, "num_attention_heads": 3, "intermediate_size": 32}
    config = DebertaV2Config(
        vocab_size=50, relative_attention=True, pos_att_type=["c2p", "p2c"], initializer_range=0.5, **sizes
    )
    model = DebertaV2ForSequenceClassification(config).eval()
    ids = torch.randint(1, 50, (2, 9))
    expected = model(input_ids=ids).logits
    monkeypatch.setattr("evbind_lib.evaluation.attention.scaled_dot_product_attention", lambda query, *_, **__: query)
    speed_up(model)
    assert torch.equal(model(input_ids=ids).logits, expected)
