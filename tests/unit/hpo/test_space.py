"""The search space: steps and scales, conditions, fixed and enqueued values, the points of a grid."""

from __future__ import annotations

import itertools
import math
from pathlib import Path
from typing import Any

import optuna
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from optuna.distributions import CategoricalDistribution, FloatDistribution, IntDistribution
from pydantic import TypeAdapter

from evbind_lib.config.compose import Params, compose, with_trainer
from evbind_lib.config.distributions import SearchSpaceEntry
from evbind_lib.errors import ParamsError
from evbind_lib.hpo.space import (
    check_space,
    distribution,
    enqueued_values,
    grid_points,
    grid_values,
    merge,
    searched_values,
    suggest,
)
from tests.conftest import PROJECT

ENTRY: TypeAdapter[Any] = TypeAdapter(SearchSpaceEntry)


def entry(**values: Any) -> Any:
    return ENTRY.validate_python(values)


def only(**entries: str) -> Params:
    """Parameters that search these names alone."""
    out = [f"~hpo.search_space.{name}" for name in compose().hpo.search_space if name not in entries]
    return compose({}, [*out, *(f"hpo.search_space.{name}={written}" for name, written in entries.items())])


@pytest.mark.parametrize(
    ("written", "expected"),
    [
        ({"type": "uniform", "low": 0, "high": 1}, FloatDistribution(0, 1)),
        ({"type": "uniform", "low": 0, "high": 0.3, "step": 0.1}, FloatDistribution(0, 0.3, step=0.1)),
        ({"type": "uniform", "low": 0.1, "high": 1, "step": 0.4}, FloatDistribution(0.1, 0.9, step=0.4)),
        ({"type": "uniform", "low": 1, "high": 2, "step": 5}, FloatDistribution(1, 1, step=5)),
        ({"type": "log_uniform", "low": 1e-6, "high": 1e-4}, FloatDistribution(1e-6, 1e-4, log=True)),
        ({"type": "int", "low": 2, "high": 5}, IntDistribution(2, 5)),
        ({"type": "int", "low": 2, "high": 9, "step": 3}, IntDistribution(2, 8, step=3)),
        ({"type": "log_int", "low": 1, "high": 512}, IntDistribution(1, 512, log=True)),
        ({"type": "categorical", "choices": [8, "a", None]}, CategoricalDistribution([8, "a", None])),
    ],
)
def test_each_type_is_a_distribution_of_optuna(written: dict, expected: optuna.distributions.BaseDistribution) -> None:
    assert distribution(entry(**written)) == expected


@settings(max_examples=60, deadline=None)
@given(
    st.decimals(-5, 5, places=2), st.decimals(0, 5, places=2), st.decimals("0.01", 3, places=2), st.integers(0, 10_000)
)
def test_steps_are_drawn_from_low_to_the_last_one_within(low: Any, width: Any, step: Any, seed: int) -> None:
    written = entry(type="uniform", low=float(low), high=float(low + width), step=float(step))
    n_steps = int(width // step)
    drawn = suggest_one(written, seed)
    assert min(abs(drawn - float(low + k * step)) for k in range(n_steps + 1)) < 1e-9
    values = grid_values(written, 5)
    assert values == pytest.approx([float(low + k * step) for k in range(n_steps + 1)])
    distribution_ = distribution(written)
    assert all(distribution_._contains(value) for value in values)


@settings(max_examples=60, deadline=None)
@given(st.integers(-50, 50), st.integers(0, 60), st.integers(1, 20), st.integers(0, 10_000))
def test_whole_numbers_with_a_step(low: int, width: int, step: int, seed: int) -> None:
    written = entry(type="int", low=low, high=low + width, step=step)
    allowed = list(range(low, low + width + 1, step))
    assert suggest_one(written, seed) in allowed
    assert grid_values(written, 5) == allowed


@settings(max_examples=60, deadline=None)
@given(st.floats(1e-9, 1e9), st.floats(1, 1e9), st.integers(1, 9), st.sampled_from(["uniform", "log_uniform"]))
def test_points_of_a_range_hold_both_ends_and_lie_at_equal_distances(
    low: float, factor: float, points: int, kind: str
) -> None:
    written = entry(type=kind, low=low, high=low * factor)
    values = grid_values(written, points)
    assert all(low <= value <= low * factor for value in values)
    assert values[0] == pytest.approx(low)
    if points > 1 and low < low * factor:
        assert len(values) == points and values[-1] == pytest.approx(low * factor)
        scaled = [math.log(value) for value in values] if kind == "log_uniform" else values
        distances = [b - a for a, b in itertools.pairwise(scaled)]
        assert distances == pytest.approx([distances[0]] * len(distances), rel=1e-6, abs=1e-9 * abs(scaled[-1]) + 1e-12)


def suggest_one(written: Any, seed: int) -> Any:
    study = optuna.create_study(sampler=optuna.samplers.RandomSampler(seed=seed))
    kind = distribution(written)
    trial = study.ask({"x": kind})
    return trial.params["x"]


def test_types_are_drawn_as_they_are_written() -> None:
    params = only(
        learning_rate="{type:log_uniform,low:1e-5,high:1e-3}",
        num_train_epochs="{type:log_int,low:1,high:64}",
        weight_decay="{type:uniform,low:0,high:0.05,step:0.01}",
        per_device_train_batch_size="{type:int,low:8,high:32,step:8}",
    )
    drawn = []
    for seed in range(200):
        study = optuna.create_study(sampler=optuna.samplers.RandomSampler(seed=seed))
        drawn.append(suggest(study.ask(), params))
    assert {values["per_device_train_batch_size"] for values in drawn} == {8, 16, 24, 32}
    assert {round(values["weight_decay"], 10) for values in drawn} == {0.0, 0.01, 0.02, 0.03, 0.04, 0.05}
    # On a logarithmic scale half of the draws lie below the geometric mean.
    assert 70 < sum(values["num_train_epochs"] <= 8 for values in drawn) < 130
    assert 70 < sum(values["learning_rate"] < 1e-4 for values in drawn) < 130
    assert merge(params, drawn[0]).training.args["num_train_epochs"] == drawn[0]["num_train_epochs"]


def test_a_condition_may_name_a_parameter_by_either_of_its_names() -> None:
    params = only(
        loss_function="{type:categorical,choices:[focal]}",
        focal_gamma="{type:uniform,low:1,high:3,when:{training.loss_function:focal}}",
        warmup_ratio="{type:uniform,low:0,high:0.1,when:{training.loss_function:weighted_ce}}",
    )
    assert set(suggest(optuna.create_study().ask(), params)) == {"loss_function", "focal_gamma"}
    circle = only(
        focal_gamma="{type:uniform,low:1,high:3,when:{training.focal_alpha:0.3}}",
        focal_alpha="{type:uniform,low:0.1,high:0.5,when:{training.focal_gamma:2.0}}",
    )
    with pytest.raises(
        ParamsError, match=r"the `when` of focal_gamma, focal_alpha go in a circle; take one of them out\."
    ):
        check_space(circle)


def test_a_fixed_parameter_is_set_and_not_searched() -> None:
    params = compose(
        {}, ["hpo.fixed={loss_function:focal,training.args.learning_rate:0.002}", "hpo.fixed.adam_beta2=0.98"]
    )
    assert params.training.loss_function == "focal"
    assert params.training.args["learning_rate"] == 0.002 and params.training.args["adam_beta2"] == 0.98
    assert not {"loss_function", "learning_rate"} & set(params.hpo.search_space)
    drawn = suggest(optuna.create_study().ask(), params)
    assert {"focal_gamma", "focal_alpha"} <= set(drawn)  # their condition looks at the fixed value
    # A set that was trained earlier keeps its own value.
    assert params.with_values({"training.args.learning_rate": 0.1}).training.args["learning_rate"] == 0.1
    nested = compose({}, ["hpo.fixed.data.pos_neg_ratio=2"])
    assert nested.data.pos_neg_ratio == 2 and nested.hpo.fixed == {"data.pos_neg_ratio": 2}


def test_current_values_start_a_trial() -> None:
    params = compose()
    values = searched_values(params)
    assert values["learning_rate"] == 1e-3 and values["loss_function"] == "weighted_ce"
    fixed, notes = enqueued_values(params, values)
    assert fixed == {
        "learning_rate": 1e-3,
        "per_device_train_batch_size": 16,
        "num_train_epochs": 3,
        "warmup_ratio": 0.06,
        "weight_decay": 0.01,
        "loss_function": "weighted_ce",
    }
    assert type(fixed["num_train_epochs"]) is int  # as it is drawn, though TrainingArguments takes 3.0
    assert notes == []
    study = optuna.create_study()
    study.enqueue_trial(fixed)
    assert suggest(study.ask(), params) == fixed


def test_what_cannot_be_drawn_is_left_to_the_sampler_and_said() -> None:
    params = compose({}, ["hpo.search_space.num_train_epochs={type:int,low:2,high:8,step:2}"])
    values = {
        "training.args.learning_rate": 0.5,
        "per_device_train_batch_size": 64,
        "num_train_epochs": 3,
        "warmup_ratio": None,
        "loss_function": "focal",
        "focal_gamma": 2,
        "of_another_study": 1,
    }
    fixed, notes = enqueued_values(params, values)
    assert fixed == {"loss_function": "focal", "focal_gamma": 2.0}
    assert notes == [
        "learning_rate=0.5 of the enqueued set is not in its range 0.0001 to 0.01, so the sampler draws it.",
        "per_device_train_batch_size=64 of the enqueued set is not in its choices 16, 32, so the sampler draws it.",
        "num_train_epochs=3 of the enqueued set is not in its range 2 to 8 in steps of 2, so the sampler draws it.",
        "warmup_ratio has no value in the enqueued set, so the sampler draws it.",
        "weight_decay has no value in the enqueued set, so the sampler draws it.",
        "focal_alpha has no value in the enqueued set, so the sampler draws it.",
    ]
    study = optuna.create_study()
    study.enqueue_trial(fixed)
    drawn = suggest(study.ask(), params)
    assert drawn["focal_gamma"] == 2.0 and 1e-4 <= drawn["learning_rate"] <= 1e-2


def test_what_depends_on_a_value_that_the_sampler_draws_is_drawn_too() -> None:
    params = compose({}, ["hpo.search_space.loss_function.choices=[focal]"])
    fixed, notes = enqueued_values(params, {**searched_values(params), "focal_gamma": 2.5})
    assert "loss_function" not in fixed and "focal_gamma" not in fixed
    assert notes == [
        "loss_function=weighted_ce of the enqueued set is not in its choices focal, so the sampler draws it."
    ]


@pytest.fixture(scope="module")
def stepped() -> Params:
    return compose({}, ["hpo.search_space.weight_decay={type:uniform,low:0,high:0.05,step:0.003}"])


@settings(max_examples=60, deadline=None)
@given(seed=st.integers(0, 10_000))
def test_whatever_was_drawn_can_be_enqueued_again(stepped: Params, seed: int) -> None:
    params = stepped
    study = optuna.create_study(sampler=optuna.samplers.RandomSampler(seed=seed))
    drawn = suggest(study.ask(), params)
    assert enqueued_values(params, drawn) == (drawn, [])
    assert enqueued_values(params, searched_values(merge(params, drawn)))[0] == drawn


def test_a_bool_is_no_number() -> None:
    params = compose({}, ["hpo.search_space.fp16={type:categorical,choices:[true,false]}"])
    assert enqueued_values(params, {"fp16": False})[0] == {"fp16": False}
    assert "fp16" not in enqueued_values(params, {"fp16": 0})[0]
    assert "learning_rate" not in enqueued_values(params, {"learning_rate": True})[0]


def test_a_trainer_file_on_top_of_the_parameters(workspace: Path) -> None:
    params = compose({"model": "deberta_v3_base"}, ["training.args.learning_rate=9e-5", "training.n_folds=3"])
    default = with_trainer(params, "default")
    assert default.training.args["learning_rate"] == 2e-5  # of the file, for this model
    assert default.training.n_folds == 3 and default.data == params.data and default.hpo == params.hpo
    own = workspace / "params" / "trainer"
    own.mkdir(parents=True)
    (own / "mine.yaml").write_text(
        "# @package _global_\ntraining: {args: {weight_decay: 0.02}, loss_function: focal}\ndata: {pos_neg_ratio: 2}\n",
        encoding="utf-8",
    )
    mine = with_trainer(params, "mine")
    assert mine.training.args["weight_decay"] == 0.02 and mine.training.args["learning_rate"] == 9e-5
    assert (mine.training.loss_function, mine.data.pos_neg_ratio) == ("focal", 2.0)
    with pytest.raises(
        ParamsError, match=r"trainer=min: there is no file params/trainer/min\.yaml; did you mean 'mine'\?"
    ):
        with_trainer(params, "min")
    (own / "odd.yaml").write_text("# @package training\nargs: {lerning_rate: 3}\n", encoding="utf-8")
    with pytest.raises(ParamsError, match="did you mean 'learning_rate'"):
        with_trainer(params, "odd")


def test_a_grid_leaves_out_what_a_condition_leaves_out() -> None:
    params = only(
        learning_rate="{type:log_uniform,low:1e-4,high:1e-2}",
        num_train_epochs="{type:int,low:2,high:3}",
        loss_function="{type:categorical,choices:[weighted_ce,focal]}",
        focal_gamma="{type:uniform,low:1,high:3,when:{loss_function:focal}}",
    )
    points = list(grid_points(params, 3))
    assert len(points) == 3 * 2 * (1 + 3)
    assert len({tuple(sorted(point.items())) for point in points}) == len(points)
    assert all(("focal_gamma" in point) == (point["loss_function"] == "focal") for point in points)
    assert sorted({point["learning_rate"] for point in points}) == pytest.approx([1e-4, 1e-3, 1e-2])


def test_a_grid_of_a_logarithmic_whole_number_repeats_nothing() -> None:
    assert grid_values(entry(type="log_int", low=1, high=4), 9) == [1, 2, 3, 4]
    assert grid_values(entry(type="log_int", low=8, high=128), 5) == [8, 16, 32, 64, 128]
    assert grid_values(entry(type="uniform", low=0, high=1), 1) == [0.0]


def test_a_search_may_begin_with_what_an_earlier_one_found(workspace: Path) -> None:
    stored = PROJECT / "tests" / "stored" / "hpo_best.yaml"
    best = workspace / "params" / "trainer" / "hpo_best.yaml"
    best.parent.mkdir(parents=True)
    best.write_text(stored.read_text(encoding="utf-8"), encoding="utf-8")
    params = compose({}, ["hpo.enqueue=[hpo_best]"])
    check_space(params)
    found = with_trainer(params, "hpo_best")
    assert found.training.provenance is not None and params.training.provenance is None
    values, notes = enqueued_values(params, searched_values(found))
    assert values["learning_rate"] == found.training.args["learning_rate"] and not notes
