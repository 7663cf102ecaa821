"""Losses for few, unbalanced positives: weighted cross-entropy and focal loss, in a registry that takes further ones."""

import inspect
from collections.abc import Callable, Mapping
from functools import partial
from typing import Any

import numpy as np
import pandas as pd
import torch
from sklearn.utils.class_weight import compute_class_weight
from torch.nn import functional

from evbind_lib.config.registry import Registry
from evbind_lib.config.schema import TrainingParams
from evbind_lib.training.result import Loss

LOSS_ARGS, FOCAL = "training.loss_args.", "training.focal_"  # parameters of a loss begin so


def inverse_frequency_weights(labels: np.ndarray) -> torch.Tensor:
    """Class weights N / (2 N_c), scikit-learn's ``balanced``, float32 (2,): both classes weigh the same in all."""
    weights = compute_class_weight("balanced", classes=np.array([0, 1]), y=labels)
    return torch.tensor(weights, dtype=torch.float32)


def weighted_cross_entropy(
    logits: torch.Tensor, labels: torch.Tensor, *, weights: torch.Tensor, smoothing: float = 0.0
) -> torch.Tensor:
    """Cross-entropy of each pair times the weight of its class: logits (n, 2), labels (n,), weights (2,) -> (n,).

    Against 1 - smoothing / 2 for the true class (Szegedy et al., CVPR 2016, section 7). ``torch.nn.CrossEntropyLoss(weight=...)``
    divides by the batch's sum of weights; here each pair counts the same wherever it falls.
    """
    losses = functional.cross_entropy(logits.float(), labels, label_smoothing=smoothing, reduction="none")
    return losses * weights.to(logits.device, non_blocking=True)[labels]


def focal(logits: torch.Tensor, labels: torch.Tensor, *, gamma: float, alpha: float) -> torch.Tensor:
    """Focal loss -alpha_t (1 - p_t)^gamma log(p_t) of each pair (Lin et al., ICCV 2017, equation 5): (n, 2), (n,) -> (n,).

    p_t is the softmax probability of the true class; the larger ``gamma``, the less an easy pair counts, at 0 all count alike;
    ``alpha`` is the weight of the evidence class, the other has 1 - alpha.
    """
    log_both = functional.log_softmax(logits.float(), dim=-1)
    log_p, log_rest = (log_both.gather(1, answers[:, None]).squeeze(1) for answers in (labels, 1 - labels))
    alpha_t = torch.where(labels == 1, alpha, 1.0 - alpha)
    # 1 - p_t by its logarithm: where p_t is 1 exactly, the slope of 0 ** gamma is infinite for gamma below 1.
    return -alpha_t * (gamma * log_rest).exp() * log_p


LOSSES = Registry[Callable[..., Loss]](
    "training.loss_function",
    "loss",
    weighted_ce=lambda training, labels: partial(weighted_cross_entropy, weights=inverse_frequency_weights(labels)),
    smoothed_ce=lambda training, labels, *, smoothing=0.1: partial(
        weighted_cross_entropy, weights=inverse_frequency_weights(labels), smoothing=smoothing
    ),
    focal=lambda training, labels: partial(focal, gamma=training.focal_gamma, alpha=training.focal_alpha),
)
LOSSES.__doc__ = """Losses by name: what ``training.loss_function`` chooses from.

An entry is a *factory*: ``factory(training, labels, *, ...)`` is called once per fold with `TrainingParams`, the labels (n,) of
the training pairs and those of ``training.loss_args`` that it has keywords for (one without keywords may read them there), and
gives the loss: ``loss(logits, labels)`` with logits (n, 2) float and labels (n,) int64 -> (n,) float. The argument ``loss=`` of
`train_fold` and `cross_validate` takes such a loss itself.

Examples
--------
>>> import torch, evbind_lib as ev
>>> def smooth_ce(training, labels, *, smoothing=0.1):  # training.loss_function=smooth_ce training.loss_args.smoothing=0.2
...     return torch.nn.CrossEntropyLoss(label_smoothing=smoothing, reduction="none")
>>> ev.LOSSES["smooth_ce"] = smooth_ce
>>> del ev.LOSSES["smooth_ce"]
"""


def settings_of(loss: str | Loss) -> set[str] | None:
    """Parameters that a loss takes: its two of the focal loss, keywords of its factory; None of one of the user's own without."""
    if not isinstance(loss, str) or loss not in LOSSES:
        return None
    parameters = inspect.signature(LOSSES[loss]).parameters.values()
    named = {f"{LOSS_ARGS}{each.name}" for each in parameters if each.kind is each.KEYWORD_ONLY}
    takes_any = any(each.kind is each.VAR_KEYWORD for each in parameters)
    own = {f"{FOCAL}gamma", f"{FOCAL}alpha"} if loss == "focal" else set()
    return None if takes_any or (not named and loss in LOSSES.additions()) else named | own


def own_settings(loss: str | Loss, given: Mapping[str, Any]) -> dict[str, Any]:
    """Those of ``training.loss_args`` that a loss takes: where several are searched, the others are another's."""
    names = settings_of(loss)
    return {key: value for key, value in given.items() if names is None or f"{LOSS_ARGS}{key}" in names}


def make_loss(training: TrainingParams, labels: np.ndarray, loss: str | Loss | None = None) -> Loss:
    """The function that was handed in, else what the factory of this name, or the one set, makes for training labels (n,)."""
    if callable(loss):
        return loss
    name = loss or training.loss_function
    factory = LOSSES[name]
    given = own_settings(name, training.loss_args) if len(inspect.signature(factory).parameters) > 2 else {}
    return factory(training, labels, **given)


def loss_table() -> pd.DataFrame:
    """What each loss charges for one piece of evidence among a quarter of such, by the probability that the model gives it."""
    probabilities = [0.05, 0.25, 0.5, 0.75, 0.95]
    labels = torch.ones(len(probabilities), dtype=torch.int64)
    logits = torch.tensor([[1 - p, p] for p in probabilities], dtype=torch.float64).log()
    weights = inverse_frequency_weights(np.array([0, 0, 0, 1]))
    columns = {"weighted_ce": weighted_cross_entropy(logits, labels, weights=weights)}
    columns |= {f"focal, gamma {gamma}": focal(logits, labels, gamma=gamma, alpha=0.5) for gamma in (1, 2, 3)}
    index = pd.Index(probabilities, name="probability of evidence")
    return pd.DataFrame({name: values.double().numpy() for name, values in columns.items()}, index=index)
