"""Objectives, bounds, the best trial and the Pareto front; when a search ends early."""

from __future__ import annotations

from datetime import datetime, timedelta
from typing import Any

import numpy as np
import optuna
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from optuna.distributions import FloatDistribution
from optuna.trial import FrozenTrial, TrialState, create_trial

from evbind_lib.config.compose import Params, compose
from evbind_lib.errors import ParamsError
from evbind_lib.hpo.objectives import (
    best_trial,
    check_objectives,
    constraint_values,
    directions,
    effective_pruner,
    is_feasible,
    metric_names,
    names_of,
    objective_values,
    pareto_front,
    several,
    why_no_best,
)
from evbind_lib.hpo.samplers import build_sampler
from evbind_lib.hpo.space import suggest
from evbind_lib.hpo.stopping import fold_noise, should_stop, trials_since_improvement

FOLDS = [{"macro_f1": 0.5, "recall": 0.6, "log_loss": 0.7}, {"macro_f1": 0.8, "recall": 0.9, "log_loss": 0.4}]
TWO = "hpo.metric.name=[macro_f1,seconds]"


def study_of(rows: list[dict[str, Any]], *wanted: str) -> optuna.Study:
    """A study with trials that ended one minute after the other; a row is what `create_trial` takes."""
    study = optuna.create_study(directions=wanted or ["maximize"])
    start = datetime(2026, 1, 1)
    for number, row in enumerate(rows):
        trial = create_trial(**row)
        if trial.state.is_finished():
            trial.datetime_complete = start + timedelta(minutes=number)
        study.add_trial(trial)
    return study


def scored(*values: float) -> list[dict[str, Any]]:
    return [{"value": value} for value in values]


def numbers(trials: list[FrozenTrial]) -> list[int]:
    return [trial.number for trial in trials]


def test_one_metric_is_one_number_drawn_together_over_folds() -> None:
    params = compose()
    assert (metric_names(params), directions(params), several(params)) == (["macro_f1"], ["maximize"], False)
    assert objective_values(params, FOLDS) == pytest.approx(0.65)
    least = compose({}, ["hpo.metric.fold_aggregation=min"])
    assert objective_values(least, FOLDS) == 0.5
    losses = compose({}, ["hpo.metric.name=log_loss", "hpo.study.direction=minimize"])
    assert directions(losses) == ["minimize"] and objective_values(losses, FOLDS) == pytest.approx(0.55)


def test_several_objectives_each_have_their_own_direction() -> None:
    params = compose({}, ["hpo.metric.name=[macro_f1,log_loss,seconds]"])
    assert directions(params) == ["maximize", "minimize", "minimize"] and several(params)
    assert objective_values(params, FOLDS, 81.5) == pytest.approx([0.65, 0.55, 81.5])
    assert params.hpo.pruner.type == "median" and effective_pruner(params).type == "none"
    assert effective_pruner(compose()).type == "median"


def test_bounds_are_distances_that_optuna_understands() -> None:
    params = compose(
        {}, ["hpo.constraints={recall:{low:0.8,high:0.95},seconds:{high:60}}", "hpo.constraints.log_loss.high=0.55"]
    )
    found = constraint_values(params, FOLDS, 81.5)
    assert found == pytest.approx(
        {"recall.low": 0.05, "recall.high": -0.2, "seconds.high": 21.5, "log_loss.high": 0.0}, abs=1e-12
    )
    assert constraint_values(compose(), FOLDS) == {}


def test_the_best_trial_keeps_the_bounds() -> None:
    rows = [
        {"value": 0.9, "constraints": {"recall.low": 0.1}},
        {"value": 0.7, "constraints": {"recall.low": -0.1}},
        {"value": 0.8, "constraints": {"recall.low": 0.0}},
        {"value": 0.8, "constraints": {"recall.low": -0.2}},
        {"state": TrialState.PRUNED, "value": 0.95},
        {"state": TrialState.FAIL},
        {"value": 0.99, "user_attrs": {"surplus": True}},
    ]
    study = study_of(rows)
    best = best_trial(study)
    assert best is not None and best.number == 2  # the earlier of equals
    assert best.value == study_of(rows[:6]).best_value
    dropped = best_trial(study, compose())
    assert dropped is not None and dropped.number == 0  # nothing is bounded any more
    asked = best_trial(study, compose({}, ["hpo.constraints.recall.low=0.8"]))
    assert asked is not None and asked.number == 2


def test_where_no_trial_keeps_the_bounds_the_nearest_is_named() -> None:
    study = study_of(
        [
            {"value": 0.9, "constraints": {"recall.low": 0.3, "seconds.high": -1.0}},
            {"value": 0.7, "constraints": {"recall.low": 0.125, "seconds.high": 0.0625}},
        ]
    )
    assert best_trial(study) is None and pareto_front(study) == []
    assert why_no_best(study) == (
        "none of its 2 complete trials keeps hpo.constraints (trial 1 comes nearest, missing recall.low by 0.125, "
        "seconds.high by 0.0625)"
    )
    empty = study_of([])
    assert best_trial(empty) is None and why_no_best(empty) == ""


def test_lower_is_better_where_the_study_says_so() -> None:
    study = study_of(scored(0.5, 0.2, 0.4), "minimize")
    best = best_trial(study)
    assert best is not None and best.number == 1


def test_the_best_of_several_objectives_is_on_the_front_and_best_in_the_first() -> None:
    rows = [{"values": [0.7, 50.0]}, {"values": [0.8, 90.0]}, {"values": [0.8, 80.0]}, {"values": [0.6, 60.0]}]
    study = study_of(rows, "maximize", "minimize")
    assert numbers(pareto_front(study)) == [2, 0]
    best = best_trial(study)
    assert best is not None and best.number == 2
    assert names_of(study) == ["score", "objective 2"]
    study.set_metric_names(["macro_f1", "seconds"])
    assert names_of(study) == ["macro_f1", "seconds"]


@settings(max_examples=80, deadline=None)
@given(st.lists(st.tuples(st.integers(0, 4), st.integers(0, 4), st.integers(-1, 1)), max_size=12))
def test_the_front_is_that_of_optuna(rows: list[tuple[int, int, int]]) -> None:
    trials = [
        {"values": [float(up), float(down)], "constraints": {"recall.low": float(missed)}} for up, down, missed in rows
    ]
    study = study_of(trials, "maximize", "minimize")
    front = pareto_front(study)
    assert sorted(numbers(front)) == sorted(numbers(study.best_trials))
    best = best_trial(study)
    assert best is None if not front else best is not None and best.number in numbers(front)
    assert all(is_feasible(trial) for trial in front)


@pytest.mark.parametrize(
    ("overrides", "what"), [([TWO], "several objectives"), (["hpo.constraints.recall.low=0.8"], "constraints")]
)
def test_a_sampler_that_cannot_do_it_is_refused(overrides: list[str], what: str) -> None:
    with pytest.raises(ParamsError) as caught:
        check_objectives(compose({}, [*overrides, "hpo.sampler.type=cmaes"]))
    assert str(caught.value) == (
        f"hpo.sampler.type=cmaes: it cannot search with {what}; set hpo.sampler.type to tpe, gp or nsgaii."
    )
    for kind in ("tpe", "gp", "nsgaii", "random", "qmc", "grid"):
        check_objectives(compose({}, [*overrides, f"hpo.sampler.type={kind}"]))
    check_objectives(compose({}, ["hpo.sampler.type=cmaes"]))


def patient(n_trials: int) -> Params:
    return compose({}, [f"hpo.stop.no_improvement={n_trials}"])


def test_a_search_stops_when_nothing_gets_better() -> None:
    scores = [0.5, 0.6, 0.6, 0.55]
    assert [trials_since_improvement(study_of(scored(*scores[:n]))) for n in range(5)] == [0, 0, 0, 1, 2]
    assert should_stop(study_of(scored(*scores)), patient(3)) is None
    assert should_stop(study_of(scored(*scores)), compose()) is None
    assert should_stop(study_of(scored(*scores)), patient(2)) == (
        "The last 2 trials brought nothing better (hpo.stop.no_improvement=2)."
    )
    assert trials_since_improvement(study_of(scored(*scores, 0.7))) == 0
    assert should_stop(study_of(scored(0.5, 0.4)), patient(1)) == (
        "The last trial brought nothing better (hpo.stop.no_improvement=1)."
    )


def test_pruned_failed_and_unfeasible_trials_bring_nothing_better() -> None:
    rows = [
        *scored(0.5),
        {"state": TrialState.PRUNED, "value": 0.9},
        {"state": TrialState.FAIL},
        {"value": 0.9, "constraints": {"recall.low": 0.1}},
    ]
    assert trials_since_improvement(study_of(rows)) == 3
    assert trials_since_improvement(study_of([*rows, {"value": 0.6, "constraints": {"recall.low": 0.0}}])) == 0
    ignored = [{"state": TrialState.FAIL, "user_attrs": {"interrupted": True}}, {"state": TrialState.RUNNING}]
    assert trials_since_improvement(study_of([*rows, *ignored])) == 3


def test_what_counts_is_the_order_of_the_ends() -> None:
    study = study_of(scored(0.6, 0.5))
    late = create_trial(value=0.55)
    late.datetime_complete = datetime(2025, 1, 1)  # the first to end, though the last to begin
    study.add_trial(late)
    assert trials_since_improvement(study) == 1


def test_of_several_objectives_a_trial_is_better_that_none_is_as_good_as() -> None:
    rows = [[0.5, 50.0], [0.4, 40.0], [0.4, 45.0], [0.4, 40.0]]
    since = [
        trials_since_improvement(study_of([{"values": row} for row in rows[:n]], "maximize", "minimize"))
        for n in range(1, 5)
    ]
    assert since == [0, 0, 1, 2]


def searched(n_trials: int, noise: float) -> optuna.Study:
    """A study of a smooth score whose folds differ by the noise."""
    random = np.random.default_rng(0)
    space = {"x": FloatDistribution(0, 1)}
    rows = []
    for x in random.random(n_trials):
        folds = 1 - (x - 0.5) ** 2 + random.normal(0, noise, 5)
        row = {"params": {"x": float(x)}, "distributions": space, "value": float(folds.mean())}
        rows.append({**row, "user_attrs": {"fold_scores": folds.tolist()}})
    return study_of(rows)


def test_the_terminator_waits_for_trials_and_for_the_noise() -> None:
    asked = compose({}, ["hpo.stop.terminator=true"])
    sentence = "What is left to gain is below the noise between folds (hpo.stop.terminator=true)."
    assert should_stop(searched(19, noise=0.3), asked) is None  # hpo.stop.min_trials=20
    assert should_stop(searched(25, noise=0.3), asked) == sentence
    assert should_stop(searched(25, noise=1e-6), asked) is None
    assert should_stop(searched(25, noise=0.3), compose()) is None
    earlier = compose({}, ["hpo.stop.terminator=true", "hpo.stop.min_trials=10"])
    assert should_stop(searched(12, noise=0.3), earlier) == sentence
    nothing_shared = study_of([{"value": 0.5, "user_attrs": {"fold_scores": [0.4, 0.6]}}] * 20)
    assert should_stop(nothing_shared, asked) is None


def test_the_noise_of_folds_by_hand() -> None:
    trial = create_trial(value=0.5, user_attrs={"fold_scores": [0.4, 0.6, 0.5, 0.5]})
    assert fold_noise(trial) == pytest.approx((0.005 * (1 / 4 + 1 / 3)) ** 0.5)


def test_a_grid_that_is_done_ends_the_search() -> None:
    params = compose(
        {},
        [
            *(f"~hpo.search_space.{name}" for name in compose().hpo.search_space if name != "learning_rate"),
            *("hpo.search_space.learning_rate={type:categorical,choices:[0.001,0.002]}", "hpo.sampler.type=grid"),
        ],
    )
    study = optuna.create_study(direction="maximize")
    for number in range(2):
        assert should_stop(study, params) is None
        study.sampler = build_sampler(params.hpo.sampler, n_earlier_trials=number, params=params)
        trial = study.ask()
        study.tell(trial, suggest(trial, params)["learning_rate"])
    assert should_stop(study, params) == "All 2 points of the grid have been tried."
