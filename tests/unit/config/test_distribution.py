"""Searched parameters: each type as Optuna's distribution, steps, and that what is drawn lies among them."""

from __future__ import annotations

import ast
from typing import Any

import optuna
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from optuna.distributions import BaseDistribution, CategoricalDistribution, FloatDistribution, IntDistribution
from pydantic import ValidationError

from evbind_lib.config.distribution import Distribution


def draw(written: Distribution, seed: int) -> Any:
    study = optuna.create_study(sampler=optuna.samplers.RandomSampler(seed=seed))
    return study.ask({"x": written.to_optuna()}).params["x"]


# fmt: off
DISTRIBUTIONS = [
    ({"type": "uniform", "low": 0, "high": 1}, FloatDistribution(0, 1)),
    ({"type": "uniform", "low": 0, "high": 0.3, "step": 0.1}, FloatDistribution(0, 0.3, step=0.1)),
    ({"type": "uniform", "low": 0.1, "high": 1, "step": 0.4}, FloatDistribution(0.1, 0.9, step=0.4)),
    ({"type": "uniform", "low": 1, "high": 2, "step": 5}, FloatDistribution(1, 1, step=5)),
    ({"type": "log_uniform", "low": 1e-6, "high": 1e-4}, FloatDistribution(1e-6, 1e-4, log=True)),
    ({"type": "int", "low": 2, "high": 5}, IntDistribution(2, 5)),
    ({"type": "int", "low": 2.0, "high": 9, "step": 3}, IntDistribution(2, 8, step=3)),
    ({"type": "log_int", "low": 1, "high": 512}, IntDistribution(1, 512, log=True)),
    ({"type": "categorical", "choices": [8, "a", None]}, CategoricalDistribution([8, "a", None])),
]
REFUSED = [
    "uniform low=2 high=1", "log_uniform low=0 high=1", "log_uniform low=1 high=2 step=1", "int low=1 high=2.5",
    "int low=1", "int low=True high=3", "uniform low=0 high=1e999", "uniform low=0 high=1 step=0", "categorical",
    "uniform low=0 high=1 choices=[1]", "categorical choices=[]", "categorical choices=[1,2,1]",
    "categorical choices=[1,True]", "categorical choices=[[1]]", "normal low=0 high=1",
]
# fmt: on


@pytest.mark.parametrize(("written", "expected"), DISTRIBUTIONS)
def test_each_type_is_a_distribution_of_optuna(written: dict, expected: BaseDistribution) -> None:
    entry = Distribution(**written)
    assert entry.to_optuna() == expected
    assert Distribution.model_validate(entry.model_dump()) == entry
    if entry.type in ("int", "log_int"):
        assert all(type(value) is int for value in (entry.low, entry.high, entry.last))


@pytest.mark.parametrize("written", REFUSED)
def test_what_cannot_be_drawn_from_is_refused(written: str) -> None:
    kind, *fields = written.split()
    with pytest.raises(ValidationError):
        Distribution(type=kind, **{name: ast.literal_eval(value) for name, value in (one.split("=") for one in fields)})


@settings(max_examples=40, deadline=None)
@given(
    st.decimals(-5, 5, places=2), st.decimals(0, 5, places=2), st.decimals("0.01", 3, places=2), st.integers(0, 10_000)
)
def test_steps_are_drawn_from_low_to_the_last_one_within(low: Any, width: Any, step: Any, seed: int) -> None:
    written = Distribution(type="uniform", low=float(low), high=float(low + width), step=float(step))
    steps = [float(low + k * step) for k in range(int(width // step) + 1)]
    assert written.last == pytest.approx(steps[-1])
    assert min(abs(draw(written, seed) - value) for value in steps) < 1e-9


@settings(max_examples=40, deadline=None)
@given(st.integers(-50, 50), st.integers(0, 60), st.integers(1, 20), st.integers(0, 10_000))
def test_whole_numbers_with_a_step(low: int, width: int, step: int, seed: int) -> None:
    written = Distribution(type="int", low=low, high=low + width, step=step)
    allowed = list(range(low, low + width + 1, step))
    assert written.last == allowed[-1] and draw(written, seed) in allowed
