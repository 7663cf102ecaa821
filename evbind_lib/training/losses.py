"""Losses for few, unbalanced positives: weighted cross-entropy and focal loss.

Imports `params` for the choice of the loss; `training` imports it. Both losses divide by the number of pairs of the
whole optimiser step, so that gradient accumulation gives the gradient of one large batch exactly.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
import pandas as pd
import torch
from torch.nn import functional

from evbind_lib.config.compose import TrainingParams


def inverse_frequency_weights(labels: np.ndarray) -> torch.Tensor:
    """Class weights N / (2 N_c), scikit-learn's ``balanced``: both classes weigh the same in all, the mean weight is 1.

    Parameters
    ----------
    labels : ndarray of int, shape (n,)
        0 or 1, of the training part of a fold.

    Returns
    -------
    torch.Tensor
        Shape (2,), float32: weight of class 0 and of class 1.

    Raises
    ------
    ValueError
        When a class does not occur.
    """
    counts = np.bincount(labels, minlength=2)
    if len(counts) != 2 or (counts == 0).any():
        raise ValueError(f"both classes 0 and 1 must occur, counts are {counts.tolist()}")
    return torch.tensor(len(labels) / (2 * counts), dtype=torch.float32)


def weighted_cross_entropy(
    logits: torch.Tensor,
    labels: torch.Tensor,
    *,
    weights: torch.Tensor,
    n_pairs: torch.Tensor | int | None = None,
) -> torch.Tensor:
    """Cross-entropy, each pair times the weight of its class, averaged over pairs.

    ``torch.nn.CrossEntropyLoss(weight=...)`` divides by the sum of the weights in the batch instead, which makes a rare
    positive count less in a batch where it is alone; here each pair counts the same wherever it falls.

    Parameters
    ----------
    logits : torch.Tensor
        Shape (batch, 2).
    labels : torch.Tensor
        Shape (batch,), int64.
    weights : torch.Tensor
        Shape (2,).
    n_pairs : int or torch.Tensor, optional
        Pairs to average over; the batch's own number when not given.

    Returns
    -------
    torch.Tensor
        Scalar.
    """
    losses = functional.cross_entropy(logits.float(), labels, weight=weights.to(logits.device), reduction="sum")
    return losses / (labels.numel() if n_pairs is None else n_pairs)


def focal(
    logits: torch.Tensor,
    labels: torch.Tensor,
    *,
    gamma: float,
    alpha: float,
    n_pairs: torch.Tensor | int | None = None,
) -> torch.Tensor:
    """Focal loss -alpha_t (1 - p_t)^gamma log(p_t), averaged over pairs (Lin et al., ICCV 2017, equation 5).

    Parameters
    ----------
    logits : torch.Tensor
        Shape (batch, 2); p_t is the softmax probability of the true class.
    labels : torch.Tensor
        Shape (batch,), int64.
    gamma : float
        At 0 every pair counts alike; the larger, the less an easy pair counts.
    alpha : float
        Weight of the evidence class; the other has 1 - alpha.
    n_pairs : int or torch.Tensor, optional
        Pairs to average over; the batch's own number when not given.

    Returns
    -------
    torch.Tensor
        Scalar.
    """
    log_p = functional.log_softmax(logits.float(), dim=-1).gather(1, labels[:, None]).squeeze(1)
    alpha_t = torch.where(labels == 1, alpha, 1.0 - alpha)
    losses = -alpha_t * (1.0 - log_p.exp()).clamp_min(0) ** gamma * log_p
    return losses.sum() / (labels.numel() if n_pairs is None else n_pairs)


def choose_loss(training: TrainingParams, labels: np.ndarray) -> Callable[..., torch.Tensor]:
    """Loss function in the form that ``Trainer(compute_loss_func=...)`` calls.

    Parameters
    ----------
    training : TrainingParams
        Its ``loss_function``, ``focal_gamma`` and ``focal_alpha`` decide.
    labels : ndarray of int, shape (n,)
        Labels of the training part of the fold, for the class weights.

    Returns
    -------
    callable
        ``(outputs, labels, num_items_in_batch=None) -> scalar tensor``.
    """
    weights = inverse_frequency_weights(labels)

    def loss(outputs: Any, labels: torch.Tensor, num_items_in_batch: torch.Tensor | int | None = None) -> torch.Tensor:
        if training.loss_function == "focal":
            gamma, alpha = training.focal_gamma, training.focal_alpha
            return focal(outputs.logits, labels, gamma=gamma, alpha=alpha, n_pairs=num_items_in_batch)
        return weighted_cross_entropy(outputs.logits, labels, weights=weights, n_pairs=num_items_in_batch)

    return loss


def loss_table(
    probabilities: Sequence[float] = (0.05, 0.25, 0.5, 0.75, 0.95),
    *,
    share_of_evidence: float = 0.25,
    gammas: Sequence[float] = (1.0, 2.0, 3.0),
    alpha: float = 0.5,
) -> pd.DataFrame:
    """What each loss charges for one piece of evidence, by the probability that the model gives it.

    Parameters
    ----------
    probabilities : sequence of float
        Given to evidence; high is right.
    share_of_evidence : float
        Among the training pairs, for the class weights.
    gammas : sequence of float
    alpha : float

    Returns
    -------
    pandas.DataFrame
        One row per probability.
    """
    labels = torch.ones(1, dtype=torch.int64)
    weights = inverse_frequency_weights(
        np.repeat([0, 1], [round(1000 * (1 - share_of_evidence)), round(1000 * share_of_evidence)])
    )
    rows = {}
    for probability in probabilities:
        logits = torch.tensor([[1 - probability, probability]], dtype=torch.float64).log()
        row = {"weighted_ce": float(weighted_cross_entropy(logits, labels, weights=weights))}
        row |= {f"focal, gamma {gamma:g}": float(focal(logits, labels, gamma=gamma, alpha=alpha)) for gamma in gammas}
        rows[probability] = row
    return pd.DataFrame.from_dict(rows, orient="index").rename_axis("probability of evidence")
