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


class _OccurringTokens(torch.nn.Embedding):
    """The rows of an embedding whose tokens occur; another token is out of range."""

    rows: torch.Tensor

    def __init__(self, whole: torch.nn.Embedding, tokens: torch.Tensor) -> None:
        rows = torch.full((whole.num_embeddings,), len(tokens))
        rows[tokens] = torch.arange(len(tokens))
        padding = int(rows[whole.padding_idx]) if whole.padding_idx in tokens.tolist() else None
        super().__init__(len(tokens), whole.embedding_dim, padding, _weight=whole.weight.detach()[tokens])
        self.register_buffer("rows", rows, persistent=False)

    def forward(self, ids: torch.Tensor) -> torch.Tensor:
        return super().forward(self.rows[ids])


def _embed_what_occurs(model: Any, tokens: np.ndarray | None, undo: contextlib.ExitStack) -> None:
    """Have a model embed these tokens alone, until what they learned is written back; not where most of all occur."""
    whole = model.get_input_embeddings()
    if tokens is None or 2 * len(tokens) > whole.num_embeddings:
        return
    occurring = torch.from_numpy(tokens)
    small = _OccurringTokens(whole, occurring)

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
        own, asked = layer.attention.self, 1 if layer is layers[-1] else None
        own.forward = functools.partial(_attend_deberta if is_deberta else _attend_bert, own, asked)
        undo.callback(delattr, own, "forward")
    hook = layers[-1].attention.output.register_forward_pre_hook(
        lambda _, states: tuple(each[:, :1] for each in states)
    )
    undo.callback(hook.remove)


def _attend_bert(
    own: Any, asked: int | None, hidden: torch.Tensor, attention_mask: Any = None, *_: Any, **__: Any
) -> Any:
    """What transformers' `BertSelfAttention` gives, of so many tokens of each pair."""
    query, key, value = (
        project(states).unflatten(-1, (own.num_attention_heads, -1)).transpose(1, 2)
        for project, states in ((own.query, hidden[:, :asked]), (own.key, hidden), (own.value, hidden))
    )
    mask = None if attention_mask is None else attention_mask[:, :, :asked]
    dropped = own.dropout.p if own.training else 0.0
    context = scaled_dot_product_attention(query, key, value, attn_mask=mask, dropout_p=dropped)
    return context.transpose(1, 2).flatten(2), None


def _attend_deberta(
    own: Any, asked: int | None, hidden: torch.Tensor, mask: torch.Tensor, *others: Any, **given: Any
) -> Any:
    """What transformers' `DisentangledSelfAttention` gives, by its own parts, of so many tokens of each pair."""
    (n, length), heads, width = hidden.shape[:2], own.num_attention_heads, own.attention_head_size
    scale, span, relative = (3 * width) ** 0.5, own.pos_ebd_size, given["relative_pos"][0]
    if length > span and not asked:  # there are more distances than positions then
        return type(own).forward(own, hidden, mask, *others, **given)

    def split(states: torch.Tensor) -> torch.Tensor:
        return states.reshape(-1, heads, width).transpose(0, 1)

    query = split(own.query_proj(hidden[:, :asked]))
    key, value = split(own.key_proj(hidden)), split(own.value_proj(hidden))
    # Positions by distance, from length - 1 tokens before to as many behind: no others are projected.
    distances = torch.cat([relative[:, 0].flip(0), relative[0, 1:]])
    positions = own.pos_dropout(given["rel_embeddings"])[(distances + span).clamp(0, 2 * span - 1)]
    to_key, to_query = ("key_proj", "query_proj") if own.share_att_key else ("pos_key_proj", "pos_query_proj")
    pos_key = split(getattr(own, to_key)(positions)) / scale
    pos_query = split(getattr(own, to_query)(positions.flip(0))) / scale
    if asked:
        bias = torch.bmm(query, pos_key[:, length - 1 :].transpose(1, 2)).view(heads, n, 1, length)
        by_key = key.view(heads, n, length, width) * pos_query[:, None, :length].flip(2)
        bias = bias + by_key.sum(-1)[:, :, None]
    else:
        by_query, by_key = torch.bmm(query, pos_key.transpose(1, 2)), torch.bmm(key, pos_query.transpose(1, 2))
        # Each row begins one column further left than the one before, which is a view with other strides.
        row, shape = 2 * length - 1, (heads, n, length, length)
        strides = (n * length * row, length * row)
        bias = by_query.as_strided(shape, (*strides, row - 1, 1), length - 1)
        bias = bias + by_key.as_strided(shape, (*strides, 1, row - 1), length - 1)
    bias = bias.masked_fill(~mask[:, :, :1].bool().transpose(0, 1), torch.finfo(bias.dtype).min)
    query, key, value = (states.view(heads, n, -1, width) for states in (query, key, value))
    if own.training or torch.is_grad_enabled():  # on a CPU this is the faster for gradients, the other without
        bias, query, key = (each.flatten(0, 1) for each in (bias, query, key))
        scores = torch.baddbmm(bias, query, key.transpose(1, 2), alpha=1 / scale).softmax(-1)
        context = dropout(scores, own.dropout.p, own.training).view(heads, n, -1, length) @ value
    else:
        context = scaled_dot_product_attention(query, key, value, attn_mask=bias, scale=1 / scale)
    return context.permute(1, 2, 0, 3).flatten(2), None
