"""Ways through an encoder that are shorter and give the same logits.

The last layer computes the first token alone, which is classified; DeBERTa's attention no position that is not used; and the
embedding holds the tokens that occur, since in each step an optimiser goes through all (98 of DeBERTa-v3-base's 184 million).
"""

import contextlib
import functools
from collections.abc import Callable
from typing import Any

import numpy as np
import torch
from torch.nn.functional import dropout, scaled_dot_product_attention


def take_shortcuts(model: Any, tokens: np.ndarray | None = None) -> Callable[[], Any]:
    """Shorten a classifier's way where its logits stay the same, for pairs of these tokens or of any; what undoes it."""
    was_training, undo = model.training, contextlib.ExitStack()
    model.eval()
    for shorten in (_ask_the_first_token, _embed_what_occurs):
        # What fails is taken back: its parts are others, or its head asks for more than the first token.
        with contextlib.suppress(Exception), contextlib.ExitStack() as tried:
            expected = _logits(model, tokens)
            shorten(model, tokens, tried)
            torch.testing.assert_close(_logits(model, tokens), expected, rtol=1e-4, atol=1e-5)
            undo.push(tried.pop_all())
    model.train(was_training)
    return undo.close


def _logits(model: Any, tokens: np.ndarray | None) -> torch.Tensor:
    """Logits of a text of eight tokens and one of five, by the way of training where the tokens are known."""
    known = torch.arange(model.config.vocab_size) if tokens is None else torch.from_numpy(tokens)
    ids = known[torch.arange(16).view(2, 8) % len(known)]
    mask = (torch.arange(8) < torch.tensor([[8], [5]])).long()
    with torch.set_grad_enabled(tokens is not None):
        return model(input_ids=ids, attention_mask=mask).logits.detach()


def _embed_what_occurs(model: Any, tokens: np.ndarray | None, undo: contextlib.ExitStack) -> None:
    """Have a model embed these tokens alone, until what they learned is written back; not where most of all occur."""
    whole = model.get_input_embeddings()
    if tokens is None or 2 * len(tokens) > whole.num_embeddings:
        return
    occurring = torch.from_numpy(tokens)
    rows = torch.full((whole.num_embeddings,), len(tokens))  # of a token that does not occur: out of range
    rows[occurring] = torch.arange(len(tokens))
    padding = int(rows[whole.padding_idx]) if whole.padding_idx in tokens.tolist() else None
    learned = whole.weight.detach()[occurring]
    small = torch.nn.Embedding.from_pretrained(learned, freeze=False, padding_idx=padding)
    small.register_buffer("rows", rows, persistent=False)
    small.register_forward_pre_hook(lambda module, given: (module.rows[given[0]],))

    def restore() -> None:
        with torch.no_grad():
            whole.weight[occurring] = small.weight.to(whole.weight.device)
        model.set_input_embeddings(whole.to(small.weight.device))

    undo.callback(restore)
    model.set_input_embeddings(small)


def _ask_the_first_token(model: Any, tokens: np.ndarray | None, undo: contextlib.ExitStack) -> None:
    """Have the last layer of an encoder built like BERT or DeBERTa-v2, and in the latter all attention, compute less."""
    layers = getattr(getattr(model.base_model, "encoder", None), "layer", ())
    if not layers or not hasattr(layers[-1], "attention"):
        return
    is_deberta = model.config.model_type == "deberta-v2"
    for layer in layers if is_deberta else layers[-1:]:
        own = layer.attention.self
        attend = functools.partial(_attend_deberta, own, layer is layers[-1])
        own.forward = attend if is_deberta else functools.partial(_attend_bert, own)
        undo.callback(delattr, own, "forward")
    hook = layers[-1].attention.output.register_forward_pre_hook(
        lambda _, states: tuple(each[:, :1] for each in states)
    )
    undo.callback(hook.remove)


def _attend_bert(own: Any, hidden: torch.Tensor, attention_mask: Any = None, *_: Any, **__: Any) -> Any:
    """What transformers' `BertSelfAttention` gives, of the first token of each pair."""
    mask = torch.zeros(()) if attention_mask is None else attention_mask[:, 0, :1]
    padding = ~mask if mask.dtype is torch.bool else mask < 0
    query = own.query(hidden[:, 0]) / own.attention_head_size**0.5
    return _attend_first(own, (own.key, own.value), hidden, query, padding), None


def _attend_first(
    own: Any, projections: Any, hidden: torch.Tensor, query: torch.Tensor, padding: Any, positions: Any = None
) -> torch.Tensor:
    """What first tokens attend to; ``positions`` are keys and queries of positions, both (length, heads, width)."""
    # Queries go through the keys' weights once, and what is attended to through the values', in place of every token's state.
    shape = own.num_attention_heads, own.attention_head_size
    (to_key, key_bias), (to_value, value_bias) = (
        (each.weight.unflatten(0, shape), each.bias.view(shape)) for each in projections
    )
    query = query.unflatten(-1, shape)
    scores = torch.einsum("nhw,hwc->nhc", query, to_key) @ hidden.transpose(1, 2)
    scores = scores + (query * key_bias).sum(-1, keepdim=True)
    if positions is not None:
        pos_key, pos_query = positions
        asked = torch.einsum("lhw,hwc->lhc", pos_query, to_key)
        scores = scores + torch.einsum("nhw,lhw->nhl", query, pos_key) + (pos_query * key_bias).sum(-1).T
        scores = scores + torch.einsum("nlc,lhc->nhl", hidden, asked)
    weights = scores.masked_fill(padding, torch.finfo(scores.dtype).min).softmax(-1)
    weights = dropout(weights, own.dropout.p, own.training)
    context = torch.einsum("nhc,hwc->nhw", weights @ hidden, to_value)
    return (context + weights.sum(-1, keepdim=True) * value_bias).flatten(1)[:, None]


def _attend_deberta(own: Any, first: bool, hidden: torch.Tensor, mask: torch.Tensor, *_: Any, **given: Any) -> Any:
    """What transformers' `DisentangledSelfAttention` gives, by its own parts, of all tokens of each pair or of the first."""
    (n, length), heads, width = hidden.shape[:2], own.num_attention_heads, own.attention_head_size
    scale, span, relative = (3 * width) ** 0.5, own.pos_ebd_size, given["relative_pos"][0]
    padding = ~mask[:, 0, :1].bool()
    # Positions by distance, from length - 1 tokens before to as many behind: no others are projected.
    distances = relative[0] if first else torch.cat([relative[:, 0].flip(0), relative[0, 1:]])
    positions = own.pos_dropout(given["rel_embeddings"])[(distances + span).clamp(0, 2 * span - 1)]
    to_key, to_query = ("key_proj", "query_proj") if own.share_att_key else ("pos_key_proj", "pos_query_proj")
    pos_key, pos_query = (getattr(own, name)(positions).unflatten(-1, (heads, width)) for name in (to_key, to_query))
    if first:
        query = own.query_proj(hidden[:, 0]) / scale
        return _attend_first(
            own, (own.key_proj, own.value_proj), hidden, query, padding, (pos_key, pos_query / scale)
        ), None
    projections = own.query_proj, own.key_proj, own.value_proj
    query, key, value = (each(hidden).view(-1, heads, width).transpose(0, 1) for each in projections)
    by_query = torch.bmm(query, pos_key.permute(1, 2, 0) / scale)
    by_key = torch.bmm(key, pos_query.flip(0).permute(1, 2, 0) / scale)
    # Each row begins one column further left than the one before, which is a view with other strides.
    row, shape = 2 * length - 1, (heads, n, length, length)
    strides = (n * length * row, length * row)
    bias = by_query.as_strided(shape, (*strides, row - 1, 1), length - 1)
    bias = bias + by_key.as_strided(shape, (*strides, 1, row - 1), length - 1)
    bias = bias.masked_fill(padding[:, None].transpose(0, 1), torch.finfo(bias.dtype).min)
    query, key, value = (states.view(heads, n, length, width) for states in (query, key, value))
    if own.training or torch.is_grad_enabled():  # on a CPU this is the faster for gradients, the other without
        bias, query, key = (each.flatten(0, 1) for each in (bias, query, key))
        scores = torch.baddbmm(bias, query, key.transpose(1, 2), alpha=1 / scale).softmax(-1)
        context = dropout(scores, own.dropout.p, own.training).view(shape) @ value
    else:
        context = scaled_dot_product_attention(query, key, value, attn_mask=bias, scale=1 / scale)
    return context.permute(1, 2, 0, 3).flatten(2), None
