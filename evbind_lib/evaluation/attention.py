"""DeBERTa's attention of a model that is only asked: without positions that do not occur, their copies for each pair, gathers."""

import functools
from typing import Any

import torch
from torch.nn.functional import scaled_dot_product_attention


def speed_up(model: Any) -> None:
    """Have a DeBERTa-v2 compute its attention here where it gives the same logits; other models stay as they are."""
    if model.config.model_type != "deberta-v2" or {*(model.config.pos_att_type or ())} != {"c2p", "p2c"}:
        return
    layers, expected = model.deberta.encoder.layer, _logits(model)
    for layer in layers:
        # Only the first token is classified: the last layer asks for that alone.
        asked = 1 if layer is layers[-1] else None
        layer.attention.self.forward = functools.partial(_attend, layer.attention.self, asked)
    output = layers[-1].attention.output
    hook = output.register_forward_pre_hook(lambda _, args: tuple(each[:, :1] for each in args))
    try:
        torch.testing.assert_close(_logits(model), expected, rtol=1e-4, atol=1e-5)
    except Exception:  # another version of transformers, whose parts are others
        hook.remove()
        for layer in layers:
            del layer.attention.self.forward


@torch.no_grad()
def _logits(model: Any) -> torch.Tensor:
    """Logits of a text of eight tokens and one of five."""
    ids = torch.arange(16).view(2, 8) % model.config.vocab_size
    return model(input_ids=ids, attention_mask=(torch.arange(8) < torch.tensor([[8], [5]])).long()).logits


def _attend(own: Any, asked: int | None, hidden: torch.Tensor, mask: torch.Tensor, *_: Any, **given: Any) -> Any:
    """What transformers' `DisentangledSelfAttention` gives, by its own parts, of so many tokens of each pair."""
    (n, length), heads, width = hidden.shape[:2], own.num_attention_heads, own.attention_head_size
    scale, span, relative = (3 * width) ** 0.5, own.pos_ebd_size, given["relative_pos"][0]

    def split(states: torch.Tensor) -> torch.Tensor:
        return states.reshape(-1, heads, width).transpose(0, 1)

    query = split(own.query_proj(hidden[:, :asked]))
    key, value = split(own.key_proj(hidden)), split(own.value_proj(hidden))
    # Positions by distance, from length - 1 tokens before to as many behind: no others are projected.
    distances = torch.cat([relative[:, 0].flip(0), relative[0, 1:]])
    positions = given["rel_embeddings"][(distances + span).clamp(0, 2 * span - 1)]
    to_key, to_query = ("key_proj", "query_proj") if own.share_att_key else ("pos_key_proj", "pos_query_proj")
    pos_key = split(getattr(own, to_key)(positions)) / scale
    pos_query = split(getattr(own, to_query)(positions.flip(0))) / scale
    if asked:
        bias = torch.bmm(query, pos_key[:, length - 1 :].transpose(1, 2)).view(heads, n, 1, length)
        bias += (key.view(heads, n, length, width) * pos_query[:, None, :length].flip(2)).sum(-1)[:, :, None]
    else:
        by_query, by_key = torch.bmm(query, pos_key.transpose(1, 2)), torch.bmm(key, pos_query.transpose(1, 2))
        # Each row begins one column further left than the one before, which is a view with other strides.
        row, shape = 2 * length - 1, (heads, n, length, length)
        strides = (n * length * row, length * row)
        bias = by_query.as_strided(shape, (*strides, row - 1, 1), length - 1)
        bias = bias + by_key.as_strided(shape, (*strides, 1, row - 1), length - 1)
    bias.masked_fill_(~mask[:, :, :1].bool().transpose(0, 1), torch.finfo(bias.dtype).min)
    query, key, value = (states.view(heads, n, -1, width) for states in (query, key, value))
    context = scaled_dot_product_attention(query, key, value, attn_mask=bias, scale=1 / scale)
    return context.permute(1, 2, 0, 3).flatten(2), None
