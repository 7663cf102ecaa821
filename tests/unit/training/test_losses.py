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

from evbind_lib.config.compose import compose
from evbind_lib.config.schema import TrainingParams
from evbind_lib.errors import ParamsError
from evbind_lib.training.fold import check
from evbind_lib.training.losses import (
    LOSSES,
    focal,
    inverse_frequency_weights,
    loss_table,
    make_loss,
    own_settings,
    weighted_cross_entropy,
)

LOGITS = torch.tensor([[0.0, 0.0], [0.0, math.log(3.0)], [2.0, -1.0], [-0.5, 0.25]])
LABELS = torch.tensor([0, 1, 1, 0])
ONE = torch.ones(2)


@given(st.lists(st.integers(0, 1), min_size=2, max_size=200).filter(lambda labels: 0 < sum(labels) < len(labels)))
def test_class_weights_are_scikit_learns_balanced(labels: list[int]) -> None:
    expected = compute_class_weight("balanced", classes=np.array([0, 1]), y=labels)
    np.testing.assert_allclose(inverse_frequency_weights(np.array(labels)).numpy(), expected, rtol=1e-6)


def test_class_weights_need_both_classes() -> None:
    with pytest.raises(ValueError, match="classes"):
        inverse_frequency_weights(np.zeros(3, dtype=int))


def test_unit_weights_give_plain_cross_entropy() -> None:
    expected = functional.cross_entropy(LOGITS, LABELS, reduction="none")
    torch.testing.assert_close(weighted_cross_entropy(LOGITS, LABELS, weights=ONE), expected)


def test_weighted_cross_entropy_by_hand() -> None:
    # p of the true class: 1/2 and 3/4; weights 2/3 and 2.
    value = weighted_cross_entropy(LOGITS[:2], LABELS[:2], weights=torch.tensor([2 / 3, 2.0]))
    assert value.tolist() == pytest.approx([2 / 3 * math.log(2), 2 * math.log(4 / 3)], rel=1e-6)


@given(st.floats(0.0, 0.9), st.integers(0, 1000))
def test_smoothed_cross_entropy_is_torchs_times_the_weight_of_the_class(smoothing: float, seed: int) -> None:
    logits = torch.randn(8, 2, generator=torch.Generator().manual_seed(seed), dtype=torch.float64).float()
    labels, weights = torch.arange(8) % 2, torch.tensor([0.5, 3.0])
    expected = functional.cross_entropy(logits, labels, label_smoothing=smoothing, reduction="none") * weights[labels]
    given = weighted_cross_entropy(logits, labels, weights=weights, smoothing=smoothing)
    torch.testing.assert_close(given, expected)


def test_smoothing_is_a_setting_of_the_loss() -> None:
    training = TrainingParams(loss_function="smoothed_ce", loss_args={"smoothing": 0.4})
    loss = make_loss(training, np.array([0, 1]))
    expected = functional.cross_entropy(LOGITS, LABELS, label_smoothing=0.4, reduction="none")
    torch.testing.assert_close(loss(LOGITS, LABELS), expected)


def test_a_loss_is_given_the_settings_that_its_factory_has_keywords_for(monkeypatch: pytest.MonkeyPatch) -> None:
    settings = {"smoothing": 0.4, "margin": 1}
    factories = {
        "named": lambda training, labels, *, margin=0.2: margin,
        "every": lambda training, labels, **settings: settings,
        "reads": lambda training, labels: training.loss_args,
    }
    for name, factory in factories.items():
        monkeypatch.setitem(LOSSES, name, factory)
    training = TrainingParams(loss_args=settings)
    made = {name: make_loss(training, np.array([0, 1]), name) for name in factories}
    assert made == {"named": 1, "every": settings, "reads": settings}
    assert own_settings("smoothed_ce", settings) == {"smoothing": 0.4} and own_settings("focal", settings) == {}
    make_loss(training, np.array([0, 1]), "weighted_ce")(LOGITS, LABELS)


@pytest.mark.parametrize("fault", ["labels.missing", "logits[:, 2]", "{}['weights']", "1 / 0", "logits + 'a'"])
def test_a_loss_that_cannot_be_computed_is_refused_before_anything_is_trained(
    fault: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(LOSSES, "broken", lambda training, labels: lambda logits, labels: eval(fault))
    with pytest.raises(ParamsError, match=r"training\.loss_function=broken: it cannot be computed"):
        check(compose(["training.loss_function=broken"]))


def test_focal_by_hand() -> None:
    # Equation 5 of Lin et al.: -alpha_t (1 - p_t)^gamma log p_t, with p_t 1/2 and 3/4.
    value = focal(LOGITS[:2], LABELS[:2], gamma=2.0, alpha=0.25)
    assert value.tolist() == pytest.approx([0.75 * 0.25 * math.log(2), 0.25 * 0.0625 * math.log(4 / 3)], rel=1e-6)


def test_focal_without_focus_is_half_the_cross_entropy() -> None:
    expected = functional.cross_entropy(LOGITS, LABELS, reduction="none") / 2
    torch.testing.assert_close(focal(LOGITS, LABELS, gamma=0.0, alpha=0.5), expected)


@given(st.floats(0.0, 5.0), st.floats(0.01, 0.99), st.integers(0, 1000))
def test_focal_is_that_of_the_one_logit_form(gamma: float, alpha: float, seed: int) -> None:
    # The paper's sigmoid has the difference of our two logits as its own.
    logits = torch.randn(8, 2, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)
    labels = torch.randint(0, 2, (8,), generator=torch.Generator().manual_seed(seed))
    p = torch.sigmoid(logits[:, 1] - logits[:, 0])
    p_t = torch.where(labels == 1, p, 1 - p)
    alpha_t = torch.where(labels == 1, alpha, 1 - alpha)
    expected = -alpha_t * (1 - p_t) ** gamma * p_t.log()
    torch.testing.assert_close(focal(logits, labels, gamma=gamma, alpha=alpha).double(), expected, rtol=1e-4, atol=1e-6)


def test_focal_stays_finite_where_a_pair_is_certain() -> None:
    logits = torch.tensor([[100.0, -100.0], [-100.0, 100.0]], requires_grad=True)
    value = focal(logits, torch.tensor([0, 0]), gamma=1.5, alpha=0.25)
    value.sum().backward()
    assert torch.isfinite(value).all() and torch.isfinite(logits.grad).all()


@pytest.mark.parametrize("gamma", [0.0, 0.1, 0.5, 1.0, 2.0])
def test_gradients_of_focal_are_those_in_double_precision_also_where_a_pair_is_saturated(gamma: float) -> None:
    distances = [0.0, 1.0, 5.0, 17.0, 30.0, 104.0, -5.0, -30.0]  # in float32 the probability is 1 exactly from 17 on
    logits = torch.tensor([[0.0, distance] for distance in distances], requires_grad=True)
    focal(logits, torch.ones(len(distances), dtype=torch.int64), gamma=gamma, alpha=0.25).sum().backward()
    exact = torch.tensor(distances, dtype=torch.float64, requires_grad=True)
    p, rest = torch.sigmoid(exact), torch.sigmoid(-exact)  # as accurate near 1 as near 0
    (-0.25 * rest**gamma * p.log()).sum().backward()
    assert exact.grad is not None and logits.grad is not None and torch.isfinite(exact.grad).all()
    torch.testing.assert_close(logits.grad[:, 1].double(), exact.grad, rtol=1e-4, atol=1e-7)


def test_losses_are_made_by_name_for_the_labels_of_a_fold() -> None:
    labels = np.array([0, 0, 0, 1])
    weighted = LOSSES["weighted_ce"](TrainingParams(), labels)(LOGITS, LABELS)
    weights = inverse_frequency_weights(labels)
    torch.testing.assert_close(weighted, functional.cross_entropy(LOGITS, LABELS, weight=weights, reduction="none"))
    training = TrainingParams(focal_gamma=1.5, focal_alpha=0.3)
    expected = focal(LOGITS, LABELS, gamma=1.5, alpha=0.3)
    torch.testing.assert_close(LOSSES["focal"](training, labels)(LOGITS, LABELS), expected)
    with pytest.raises(ParamsError, match=r"training\.loss_function=focl.*'focal'"):
        LOSSES["focl"]


def test_the_table_of_losses_charges_what_the_losses_do() -> None:
    table = loss_table().loc[[0.5, 0.75]]
    assert table["weighted_ce"].tolist() == pytest.approx([2 * math.log(2), 2 * math.log(4 / 3)], rel=1e-6)
    assert table["focal, gamma 2"].tolist() == pytest.approx([math.log(2) / 8, math.log(4 / 3) / 32], rel=1e-6)
