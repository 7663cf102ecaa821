"""Losses against torch, scikit-learn and values worked out by hand."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from sklearn.utils.class_weight import compute_class_weight
from torch.nn import functional

from evbind_lib.config.compose import TrainingParams
from evbind_lib.training.losses import choose_loss, focal, inverse_frequency_weights, weighted_cross_entropy

LOGITS = torch.tensor([[0.0, 0.0], [0.0, math.log(3.0)], [2.0, -1.0], [-0.5, 0.25]])
LABELS = torch.tensor([0, 1, 1, 0])
ONE = torch.ones(2)


@given(st.lists(st.integers(0, 1), min_size=2, max_size=200).filter(lambda labels: 0 < sum(labels) < len(labels)))
def test_class_weights_are_scikit_learns_balanced(labels: list[int]) -> None:
    expected = compute_class_weight("balanced", classes=np.array([0, 1]), y=labels)
    np.testing.assert_allclose(inverse_frequency_weights(np.array(labels)).numpy(), expected, rtol=1e-6)


def test_class_weights_need_both_classes() -> None:
    with pytest.raises(ValueError, match="both classes"):
        inverse_frequency_weights(np.zeros(3, dtype=int))


def test_unit_weights_give_plain_cross_entropy() -> None:
    expected = functional.cross_entropy(LOGITS, LABELS)
    torch.testing.assert_close(weighted_cross_entropy(LOGITS, LABELS, weights=ONE), expected)


def test_weighted_cross_entropy_by_hand() -> None:
    # p of the true class: 1/2 and 3/4; weights 2/3 and 2.
    value = weighted_cross_entropy(LOGITS[:2], LABELS[:2], weights=torch.tensor([2 / 3, 2.0]))
    assert value.item() == pytest.approx((2 / 3 * math.log(2) + 2 * math.log(4 / 3)) / 2, rel=1e-6)


def test_focal_by_hand() -> None:
    # Equation 5 of Lin et al.: -alpha_t (1 - p_t)^gamma log p_t, with p_t 1/2 and 3/4.
    value = focal(LOGITS[:2], LABELS[:2], gamma=2.0, alpha=0.25)
    expected = (0.75 * 0.25 * math.log(2) + 0.25 * 0.0625 * math.log(4 / 3)) / 2
    assert value.item() == pytest.approx(expected, rel=1e-6)


def test_focal_without_focus_is_half_the_cross_entropy() -> None:
    torch.testing.assert_close(
        focal(LOGITS, LABELS, gamma=0.0, alpha=0.5), functional.cross_entropy(LOGITS, LABELS) / 2
    )


@given(st.floats(0.0, 5.0), st.floats(0.01, 0.99), st.integers(0, 1000))
def test_focal_is_that_of_the_one_logit_form(gamma: float, alpha: float, seed: int) -> None:
    # The paper's sigmoid has the difference of our two logits as its own.
    logits = torch.randn(8, 2, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)
    labels = torch.randint(0, 2, (8,), generator=torch.Generator().manual_seed(seed))
    p = torch.sigmoid(logits[:, 1] - logits[:, 0])
    p_t = torch.where(labels == 1, p, 1 - p)
    alpha_t = torch.where(labels == 1, alpha, 1 - alpha)
    expected = (-alpha_t * (1 - p_t) ** gamma * p_t.log()).mean()
    torch.testing.assert_close(focal(logits, labels, gamma=gamma, alpha=alpha).double(), expected, rtol=1e-4, atol=1e-6)


def test_focal_stays_finite_where_a_pair_is_certain() -> None:
    logits = torch.tensor([[100.0, -100.0], [-100.0, 100.0]], requires_grad=True)
    value = focal(logits, torch.tensor([0, 0]), gamma=1.5, alpha=0.25)
    value.backward()
    assert torch.isfinite(value) and torch.isfinite(logits.grad).all()


@pytest.mark.parametrize("loss", ["weighted_ce", "focal"])
def test_micro_batches_add_up_to_the_gradient_of_one_batch(loss: str) -> None:
    chosen = choose_loss(TrainingParams(loss_function=loss), LABELS.numpy())  # type: ignore[arg-type]

    class Output:
        def __init__(self, logits: torch.Tensor) -> None:
            self.logits = logits

    def gradient(parts: list[slice]) -> torch.Tensor:
        logits = LOGITS.clone().requires_grad_()
        for part in parts:
            chosen(Output(logits[part]), LABELS[part], num_items_in_batch=len(LABELS)).backward()
        assert logits.grad is not None
        return logits.grad

    torch.testing.assert_close(gradient([slice(0, 1), slice(1, 4)]), gradient([slice(0, 4)]))
