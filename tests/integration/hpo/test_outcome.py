"""What is said and written of a search: one objective or several, bounds, folds spent, results taken over."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import optuna
import pandas as pd
import pytest
import yaml
from optuna.distributions import FloatDistribution
from optuna.trial import TrialState, create_trial

from evbind_lib.config.compose import Params, compose
from evbind_lib.hpo.objectives import best_trial
from evbind_lib.hpo.results import folds_spent, parameter_importances, summary_text, trials_table, write_outcome
from evbind_lib.hpo.search import SearchResult
from evbind_lib.notebook.show import search_lines, search_result, show_search_space

DISTRIBUTION = {"learning_rate": FloatDistribution(1e-4, 1e-2, log=True)}


def trial(params: Params, rate: float, folds: list[float], **others: Any) -> optuna.trial.FrozenTrial:
    attributes = others.pop("user_attrs", {})
    resolved = {
        key: value
        for key, value in params.with_values({"training.args.learning_rate": rate}).model_dump().items()
        if key in {"data", "model", "training"}
    }
    return create_trial(
        params={"learning_rate": rate},
        distributions=DISTRIBUTION,
        user_attrs={"fold_scores": folds, "seconds": 9.0, "resolved": resolved, **attributes},
        **others,
    )


def result_of(params: Params, trials: list[optuna.trial.FrozenTrial], names: list[str]) -> SearchResult:
    directions = ["minimize" if name == "seconds" else "maximize" for name in names]
    study = optuna.create_study(study_name="made-up", directions=directions)
    study.set_metric_names(names)
    study.set_user_attr("identity", {"data": "d" * 64, "n_folds": 2, "fold_aggregation": "mean"})
    for made in trials:
        study.add_trial(made)
    best = best_trial(study, params)
    assert best is not None
    best_params = Params.model_validate({**params.model_dump(), **best.user_attrs["resolved"]})
    return SearchResult(study, best, best_params, 0, 12.0, notes=("A note.",))


@pytest.fixture
def single(workspace: Path) -> tuple[SearchResult, Params]:
    params = compose({"tracking": "none"}, ["training.n_folds=2", "hpo.constraints.recall.low=0.5"])
    within, outside = {"recall.low": -0.1}, {"recall.low": 0.2}
    trials = [
        trial(params, 1e-3, [0.6, 0.7], value=0.65, constraints=within),
        trial(params, 2e-3, [0.8, 0.9], value=0.85, constraints=outside),
        trial(params, 3e-3, [0.3], state=TrialState.PRUNED, value=0.3),
        trial(params, 1e-3, [0.6, 0.7], value=0.65, constraints=within, user_attrs={"reused_from": 0}),
        trial(params, 4e-3, [], state=TrialState.FAIL, user_attrs={"error": "TrainingError: no"}),
        trial(params, 5e-3, [0.6, 0.6], value=0.6, constraints=within, user_attrs={"surplus": True}),
    ]
    return result_of(params, trials, ["macro_f1"]), params


@pytest.fixture
def double(workspace: Path) -> tuple[SearchResult, Params]:
    params = compose({"tracking": "none"}, ["training.n_folds=2", "hpo.metric.name=[macro_f1,seconds]"])
    rows = [(1e-3, [0.6, 0.7], 50.0), (2e-3, [0.8, 0.8], 90.0), (3e-3, [0.5, 0.6], 60.0), (4e-3, [0.5, 0.5], 20.0)]
    trials = [trial(params, rate, folds, values=[sum(folds) / 2, seconds]) for rate, folds, seconds in rows]
    failed = trial(params, 5e-3, [], state=TrialState.FAIL)
    return result_of(params, [*trials, failed], ["macro_f1", "seconds"]), params


def test_the_table_of_one_objective(single: tuple[SearchResult, Params]) -> None:
    table = trials_table(single[0].study).set_index("trial")
    assert list(table.columns) == [
        *("state", "value", "feasible", "learning_rate", "fold_1", "fold_2"),
        *("reused_from", "seconds", "error"),
    ]
    assert table.index.tolist() == [0, 1, 2, 3, 4]  # the one beyond the total is no part of the study
    assert table["feasible"].dropna().tolist() == [True, False, True]
    assert table["reused_from"].tolist() == [pd.NA, pd.NA, pd.NA, 0, pd.NA]
    assert table.loc[4, "error"] == "TrainingError: no"


def test_the_summary_counts_folds_and_bounds(single: tuple[SearchResult, Params]) -> None:
    result, params = single
    assert folds_spent(result.study, 2) == (
        5,
        10,
    )  # 2 + 2 + 1, nothing of the one that took its result over, nothing failed
    text = summary_text(result, params, parameter_importances(result.study))
    for line in (
        "To maximize macro_f1, mean over 2 folds",
        "5 trials: 3 complete, 1 pruned, 1 failed",
        "5 of 10 folds trained",
        "Bounds: recall at least 0.5; 2 of 3 complete trials keep them",
        "Best: trial 0, macro_f1 0.6500",
        "  macro_f1 of the folds: 0.6000, 0.7000",
        "  trial    4  TrainingError: no",
    ):
        assert line in text.splitlines()
    assert "  trial    1  macro_f1 0.8500" not in text  # outside the bounds
    assert "Pareto" not in text


def test_folds_kept_of_a_trial_that_was_cut_off_count_once() -> None:
    params = compose()
    study = optuna.create_study(direction="maximize")
    study.add_trial(trial(params, 1e-3, [], state=TrialState.FAIL, user_attrs={"interrupted": True}))
    study.add_trial(trial(params, 1e-3, [0.6, 0.7], value=0.65, user_attrs={"folds_from_before": 1, "retry_of": 0}))
    half = {"folds_from_before": 1, "reused_from": 1}
    study.add_trial(trial(params, 1e-3, [0.6, 0.7], value=0.65, user_attrs=half))
    assert folds_spent(study, 2) == (3, 4)


def test_the_table_and_the_summary_of_several_objectives(double: tuple[SearchResult, Params]) -> None:
    result, params = double
    table = trials_table(result.study)
    assert list(table.columns) == [
        *("trial", "state", "macro_f1", "training_seconds", "learning_rate", "fold_1", "fold_2", "seconds", "error")
    ]
    assert table["training_seconds"].tolist()[:4] == [50.0, 90.0, 60.0, 20.0]
    assert table["macro_f1"].isna().tolist() == [False] * 4 + [True]
    text = summary_text(result, params, {})
    front = text[text.index("Pareto front") :].splitlines()[1:4]
    assert front == [
        "  trial    1  macro_f1 0.8000, seconds 90.0",
        "  trial    0  macro_f1 0.6500, seconds 50.0",
        "  trial    3  macro_f1 0.5000, seconds 20.0",
    ]
    assert "To maximize macro_f1 and minimize seconds, mean over 2 folds" in text
    assert "Best: trial 1, macro_f1 0.8000, seconds 90.0" in text


def test_several_objectives_leave_the_files_of_the_best_in_the_first(double: tuple[SearchResult, Params]) -> None:
    result, params = double
    outcome = write_outcome(result, params)
    provenance = yaml.safe_load(outcome.best_trainer.read_text(encoding="utf-8"))["training"]["provenance"]
    assert (provenance["trial"], provenance["metric"], provenance["score"]) == (1, "macro_f1", 0.8)
    assert compose({"trainer": "hpo_best"}).training.args["learning_rate"] == 2e-3
    assert outcome.importances == parameter_importances(result.study) and set(outcome.importances) == {"learning_rate"}
    shown = search_lines(result, outcome, params)
    assert shown[:2] == ["Study made-up: 5 trials (4 complete, 0 pruned, 1 failed)", "A note."]
    assert "Pareto front of macro_f1 and seconds: trials 1, 0, 3" in shown
    assert "no trial is stopped early with several objectives; hpo.pruner=median was not used" in shown
    recorded = search_result(result)
    assert (recorded["best_value"], recorded["best_values"]) == (0.8, {"macro_f1": 0.8, "seconds": 90.0})
    assert recorded["pareto_front"] == [1, 0, 3] and recorded["folds"] == {"trained": 8, "whole": 10}


def test_one_objective_says_what_it_always_said(single: tuple[SearchResult, Params]) -> None:
    result, params = single
    outcome = write_outcome(result, params)
    shown = search_lines(result, outcome, params)
    assert shown[2:4] == ["5 of 10 folds trained (50%)", "Best: trial 0, macro_f1 0.6500 (mean of 2 folds)"]
    assert set(search_result(result)) == {
        *("study", "best_trial", "best_value", "best_params", "counts", "folds", "went_on_from", "stopped")
    }


def test_a_fixed_parameter_outside_training_goes_into_the_best_trainer_set(workspace: Path) -> None:
    params = compose({}, ["hpo.fixed={data.pos_neg_ratio:2,loss_function:focal}"])
    result = result_of(params, [trial(params, 1e-3, [0.6, 0.7], value=0.65)], ["macro_f1"])
    write_outcome(result, params)
    best = compose({"trainer": "hpo_best"})
    assert best.data.pos_neg_ratio == 2 and best.training.loss_function == "focal"


def test_an_empty_study_has_an_empty_table() -> None:
    table = trials_table(optuna.create_study())
    assert table.empty and list(table.columns) == ["trial", "state", "value", "seconds", "error"]


def test_the_search_space_is_shown_with_steps() -> None:
    table = show_search_space(compose({}, ["hpo.search_space.weight_decay.step=0.01"]))
    assert table.loc["weight_decay", "range"] == "0, 0.05, in steps of 0.01"
    assert table.loc["learning_rate", "range"] == "0.0001, 0.01"
