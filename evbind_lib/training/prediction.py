"""Probabilities of a model for encoded pairs.

Imports `encoding`; `training` imports it.
"""

from __future__ import annotations

import numpy as np
import torch
from transformers import PreTrainedModel

from evbind_lib.training.encoding import EncodedPairs, PadToLongest


def predict(
    model: PreTrainedModel, pairs: EncodedPairs, *, pad_token_id: int, batch_size: int, precision: str
) -> np.ndarray:
    """Probability of evidence for each pair; batches hold pairs of like length, the order is that of the pairs.

    Parameters
    ----------
    model : PreTrainedModel
        On the device to predict on.
    pairs : EncodedPairs
    pad_token_id : int
    batch_size : int
    precision : str
        ``bf16``, ``fp16`` or ``fp32``.

    Returns
    -------
    ndarray of float64, shape (n,)
        P(evidence), the softmax of the two logits.
    """
    collate = PadToLongest(pad_token_id)
    order = np.argsort(pairs.lengths(), kind="stable")
    probabilities = np.empty(len(pairs))
    kind = {"bf16": torch.bfloat16, "fp16": torch.float16}.get(precision)
    was_training = model.training
    model.eval()
    try:
        with torch.inference_mode(), torch.autocast(model.device.type, dtype=kind, enabled=kind is not None):
            for start in range(0, len(order), batch_size):
                rows = order[start : start + batch_size]
                batch = collate([pairs[int(row)] for row in rows])
                del batch["labels"]
                logits = model(**{name: tensor.to(model.device) for name, tensor in batch.items()}).logits
                probabilities[rows] = logits.double().softmax(dim=-1)[:, 1].cpu().numpy()
    finally:
        model.train(was_training)
    return probabilities
