"""What a search leaves behind: the best trial, its parameters and predictions, tables and files; and when a search ends early."""

from __future__ import annotations

from datetime import datetime, timedelta
from pathlib import Path
from typing import Any

import numpy as np
import optuna
import pandas as pd
import pytest
import yaml
from optuna.distributions import FloatDistribution
from optuna.trial import FrozenTrial, TrialState, create_trial

from evbind_lib.config.compose import compose, experiment_name
from evbind_lib.config.schema import Params
from evbind_lib.errors import SearchError
from evbind_lib.evaluation.selection import corrected_score
from evbind_lib.hpo.results import (
    SearchResult,
    experiment_yaml,
    folds_spent,
    parameter_importances,
    summary_text,
    trials_table,
    write_results,
)
from evbind_lib.hpo.study import best_trial, open_storage, should_stop, trials_since_improvement
from evbind_lib.notebook.run import composed, default_parameters, find_notebook
from evbind_lib.notebook.show import search_summary
from evbind_lib.training.cache import FoldCache, trial_name
from evbind_lib.training.result import FoldResult, prediction_table

pytestmark = pytest.mark.filterwarnings("ignore::optuna.exceptions.ExperimentalWarning")
IDENTITY = {"data": "d" * 64, "folds": "f" * 64, "n_folds": 2, "metric": "macro_f1", "fold_aggregation": "mean"}


def trial(params: Params, rate: float, folds: list[float], **others: Any) -> FrozenTrial:
    """A trial as `Objective` leaves it; what is no option of `create_trial` is an attribute of it."""
    options = {name: others.pop(name) for name in ("value", "state") if name in others}
    tried = params.with_values({"training.args.learning_rate": rate})
    resolved = tried.model_dump(include={"data", "model", "training"})
    return create_trial(
        params={"learning_rate": rate},
        distributions={"learning_rate": FloatDistribution(1e-4, 1e-2, log=True)},
        intermediate_values=dict(enumerate(folds)),
        user_attrs={"fold_scores": folds, "seconds": 9.0, "resolved": resolved, **others},
        **options,
    )


def result_of(params: Params, trials: list[FrozenTrial], **identity: Any) -> SearchResult:
    study = optuna.create_study(study_name="made-up", direction="maximize")
    study.set_metric_names(["macro_f1"])
    study.set_user_attr("uid", "1234")
    study.set_user_attr("identity", {**IDENTITY, **identity})
    study.add_trials(trials)
    best = best_trial(study)
    assert best is not None
    return SearchResult(study, best, params, notes=("A note.",))


@pytest.fixture
def params(workspace: Path) -> Params:
    return compose(["training.n_folds=2"], tracking="none")


@pytest.fixture
def result(params: Params) -> SearchResult:
    trials = [
        trial(params, 1e-3, [0.6, 0.7], value=0.65),
        trial(params, 2e-3, [0.8, 0.9], value=0.85),
        trial(params, 3e-3, [0.3], state=TrialState.PRUNED, value=0.3),
        trial(params, 1e-3, [0.6, 0.7], value=0.65, reused_from=0, folds_from_before=2),
        trial(params, 4e-3, [], state=TrialState.FAIL, error="TrainingError: no"),
        trial(params, 5e-3, [0.9, 0.9], value=0.9, surplus=True),
    ]
    return result_of(params, trials)


def test_the_parameters_of_the_best_trial_are_those_it_was_trained_with(result: SearchResult, params: Params) -> None:
    assert result.best_trial.number == 1 and result.best_value == 0.85
    assert result.params.training.args["learning_rate"] == 2e-3 and result.params.hpo == params.hpo
    changed = SearchResult(result.study, result.best_trial, params.with_values({"training.focal_gamma": 1.25}))
    assert changed.params.training.focal_gamma == params.training.focal_gamma  # configured since, not trained with
    with pytest.raises(SearchError, match=r"ev\.suggest"):
        _ = SearchResult(result.study, create_trial(value=0.9), params).params


def test_the_table_of_trials(result: SearchResult) -> None:
    table = trials_table(result.study).set_index("trial")
    assert " ".join(table.columns) == "state value learning_rate fold_1 fold_2 reused_from folds_read seconds error"
    assert table.index.tolist() == [0, 1, 2, 3, 4]  # the one beyond the total is no part of the study
    assert table["reused_from"].tolist() == [pd.NA, pd.NA, pd.NA, 0, pd.NA]
    assert table.loc[4, "error"] == "TrainingError: no" and np.isnan(table.loc[2, "fold_2"])
    empty = trials_table(optuna.create_study())
    assert empty.empty and list(empty.columns) == ["trial", "state", "value", "seconds", "error"]


def test_the_summary_counts_trials_and_folds(result: SearchResult, params: Params) -> None:
    # 2 + 2 + 1, nothing of the one that took its folds over, nothing failed
    assert folds_spent(result.study, 2) == (5, 2, 10)
    lines = [line.strip() for line in summary_text(result).splitlines()]
    for line in (
        "To maximize macro_f1, mean over 2 folds",
        "5 trials: 3 complete, 1 pruned, 1 failed",
        "5 of 10 folds trained (50%), 2 read that other trials had trained",
        f"Model tiny; data {'d' * 12}",
        "Best: trial 1, macro_f1 0.8500",
        "macro_f1 of the folds: 0.8000, 0.9000",
        "trial    4  TrainingError: no",
    ):
        assert line in lines
    ranked = lines[lines.index("Best trials:") + 1 :][:3]
    assert [line.split()[1] for line in ranked] == ["1", "0", "3"]
    assert "too few trials to say: 3 complete, 50 needed" in lines
    assert parameter_importances(result.study).empty and parameter_importances(optuna.create_study()).empty


def test_importance_for_the_best_tenth_counts_complete_trials_of_the_study_alone(params: Params) -> None:
    random = np.random.default_rng(0)
    rates = 10 ** random.uniform(-4, -2, 50)
    trials = [trial(params, rate, [0.5, 0.5 + rate], value=0.5 + rate / 2) for rate in rates]
    surplus = [trial(params, 5e-4, [0.9, 0.9], value=0.9, surplus=True)] * 20
    found = parameter_importances(result_of(params, [*trials, *surplus]).study, n_resamples=20)
    assert found.index.tolist() == ["learning_rate"] and found.loc["learning_rate"].tolist() == [1, 1, 1]
    assert parameter_importances(result_of(params, [*trials[:49], *surplus]).study).empty
    assert "1.00  learning_rate" in summary_text(result_of(params, trials))


def test_the_corrected_score_goes_by_complete_and_stopped_trials_and_stands_in_summary_and_file(
    result: SearchResult, params: Params
) -> None:
    corrected = result.corrected_score()
    # Nothing of the failed trial and the surplus one.
    assert corrected == corrected_score([[0.6, 0.7], [0.8, 0.9], [0.6, 0.7], [0.3]])
    assert corrected.low < corrected.value <= result.best_value + 1e-9 < corrected.high
    line = f"Corrected for selection: {corrected.value:.4f}, 95 % interval {corrected.low:.4f} to {corrected.high:.4f}"
    assert line in summary_text(result)
    files = write_results(result)
    provenance = yaml.safe_load(files["hpo_best.yaml"].read_text())["training"]["provenance"]
    assert set(provenance["corrected_score"]) == {"value", "low", "high", "method"}
    assert provenance["corrected_score"]["value"] == pytest.approx(corrected.value, abs=1e-6)


def test_a_finalist_is_reported_by_its_fresh_seeds_and_the_corrected_score_says_that_this_choice_is_not_in_it(
    result: SearchResult, params: Params
) -> None:
    result.study.set_user_attr("n_finalists", 2)
    result.study.set_user_attr("finalists", {"1": {"values": [0.70, 0.72]}, "0": {"values": [0.75, 0.77]}})
    training = yaml.safe_load(write_results(result)["hpo_best.yaml"].read_text())["training"]
    provenance = training["provenance"]
    assert (provenance["trial"], provenance["score"], training["args"]["learning_rate"]) == (0, 0.76, 1e-3)
    assert provenance["chosen_by"] == "2 fresh seeds among 2 finalists"
    assert provenance["corrected_score"]["method"].endswith("; the choice among finalists is not in it")
    assert any("the choice among finalists is not in it" in line for line in search_summary(result)[1])


@pytest.mark.parametrize(
    ("trials", "identity", "reason"),
    [
        ([([0.6, 0.7], 0.65), ([0.8, 0.9], 0.85)], {}, "3 trials"),
        ([([0.6, 0.7], 0.6), ([0.8, 0.9], 0.8), ([0.1, 0.2], 0.1)], {"fold_aggregation": "min"}, "mean over folds"),
        ([([0.6, 0.7], 0.55), ([0.8, 0.9], 0.75), ([0.1, 0.2], 0.05)], {}, "something else"),
        ([([], 0.55), ([], 0.75), ([], 0.05)], {}, "report_folds"),
    ],
)
def test_where_there_is_no_corrected_score_the_line_says_why(
    params: Params, trials: list[tuple[list[float], float]], identity: dict[str, Any], reason: str
) -> None:
    result = result_of(params, [trial(params, 1e-3, folds, value=value) for folds, value in trials], **identity)
    assert reason in next(line for line in summary_text(result).splitlines() if "No score corrected" in line)
    files = write_results(result)
    assert "corrected_score" not in yaml.safe_load(files["hpo_best.yaml"].read_text())["training"]["provenance"]


def test_folds_of_a_trial_that_was_cut_off_count_once(params: Params) -> None:
    study = optuna.create_study(direction="maximize")
    study.add_trial(trial(params, 1e-3, [0.6], state=TrialState.FAIL, interrupted=True))
    retried, half, of_another_study = {"retry_of": 0}, {"reused_from": 1}, {"folds_from_before": 2}
    for attributes in (retried, half, of_another_study):
        study.add_trial(trial(params, 1e-3, [0.6, 0.7], value=0.65, **{"folds_from_before": 1, **attributes}))
    assert folds_spent(study, 2) == (1 + 1 + 1 + 0, 0 + 1 + 2, 6)
    study.add_trial(trial(params, 1e-3, [0.6], state=TrialState.WAITING))  # stopped, and not yet gone on with
    assert folds_spent(study, 2) == (1 + 1 + 1 + 0 + 1, 0 + 1 + 2, 6)


def test_the_summary_names_the_trials_by_the_code_that_trained_them_where_it_changed(params: Params) -> None:
    codes = {0: "old", 1: "old", 2: "new"}
    trials = [trial(params, 1e-3, [0.6, 0.7], value=0.65, code=code) for code in codes.values()]
    lines = [line.strip() for line in summary_text(result_of(params, trials)).splitlines()]
    assert {"code old: trials 0, 1", "code new: trials 2"} <= set(lines)
    assert "code " not in summary_text(result_of(params, trials[:2]))


def written_training(files: dict[str, Path]) -> dict[str, Any]:
    return dict(yaml.safe_load(files["hpo_best.yaml"].read_text(encoding="utf-8"))["training"])


def test_the_files_of_a_search(result: SearchResult, params: Params) -> None:
    files = write_results(result)
    assert list(files) == ["hpo_best.yaml", "optuna_study_summary.txt", "optuna_trials.csv"]
    written = written_training(files)
    assert written["args"]["learning_rate"] == 2e-3 and not {"n_folds", "seed", "loss_args"} & set(written)
    provenance = written["provenance"]
    assert (
        provenance.pop("date")
        and provenance.pop("corrected_score")
        and provenance
        == {
            **{"study": "made-up", "trial": 1, "metric": "macro_f1", "score": 0.85, "folds": 2, "model": "tiny"},
            **{"data_fingerprint": "d" * 64, "folds_fingerprint": "f" * 64, "chosen_by": "the search"},
        }
    )
    assert compose(trainer="hpo_best").training.args["learning_rate"] == 2e-3
    assert len(pd.read_csv(files["optuna_trials.csv"])) == 5
    assert files["optuna_study_summary.txt"].read_text() == summary_text(result)


def test_a_searched_or_fixed_parameter_outside_training_goes_into_the_file(workspace: Path) -> None:
    params = compose(["hpo.fixed={data.pos_neg_ratio:2,loss_function:focal}"])
    write_results(result_of(params, [trial(params, 1e-3, [0.6, 0.7], value=0.65)]))
    best = compose(trainer="hpo_best")
    assert best.data.pos_neg_ratio == 2 and best.training.loss_function == "focal"


def test_a_corpus_in_memory_is_named_so(params: Params) -> None:
    files = write_results(result_of(params, [trial(params, 1e-3, [0.6, 0.7], value=0.65)], source="memory"))
    provenance, summary = written_training(files)["provenance"], files["optuna_study_summary.txt"].read_text()
    assert provenance["data"] == "memory" and provenance["data_fingerprint"] == "d" * 64
    assert f"data memory, fingerprint {'d' * 12}" in summary and "posts.csv" not in summary


def test_an_objective_without_suggest_and_folds_leaves_no_trainer_file(params: Params, workspace: Path) -> None:
    study = optuna.create_study(direction="minimize")
    study.optimize(lambda trial: trial.suggest_float("x", 0, 1), n_trials=3)
    files = write_results(SearchResult(study, study.best_trial, params))
    assert list(files) == ["optuna_study_summary.txt", "optuna_trials.csv"]
    assert "To minimize" in files["optuna_study_summary.txt"].read_text()
    assert not (workspace / "params").exists()


@pytest.fixture
def elsewhere(workspace: Path, monkeypatch: pytest.MonkeyPatch) -> Params:
    """Parameters of a search of a table beside the current folder, with another model than the sample's and many settings."""
    folder = workspace.parent / "mine"
    folder.mkdir()
    (folder / "table.csv").touch()
    (workspace / "criteria.json").touch()
    monkeypatch.chdir(folder)
    searched = "hpo.search_space.data.pos_neg_ratio={type: uniform, low: 1, high: 2}"
    overrides = ["data.pairs=table.csv", "data.criteria=criteria.json", "data.columns={sentence: text}", searched]
    overrides += [
        "training.n_folds=2",
        "training.args.adam_beta2=0.9",
        "training.holdout=0.2",
        "hpo.fixed={focal_gamma: 1.5}",
    ]
    overrides += ["hpo.study.storage=postgresql://me:hush@host/db", "hpo.sampler.type=random"]
    return compose(overrides, data="pairs", model="deberta_v3_base", hpo="quick")


def test_an_experiment_takes_a_search_everywhere_whatever_files_a_notebook_chooses(
    elsewhere: Params, workspace: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    found = result_of(elsewhere, [trial(elsewhere, 1e-3, [0.6, 0.7], value=0.65)])
    write_results(found)
    written = (workspace / "params" / "experiment" / "made-up.yaml").read_text()
    assert "hush" not in written and "storage" not in written and "tracking" not in written
    monkeypatch.chdir(workspace)
    here = compose(["hpo.study.storage=sqlite:///mine.db"], tracking="none")
    taken = compose(
        ["experiment=made-up", "hpo.study.storage=sqlite:///mine.db"],
        data="sample", model="tiny", trainer="hpo_best", hpo="default", tracking="none",
    )  # fmt: skip
    expected = found.params.with_values({"data.pairs": str(workspace.parent / "mine" / "table.csv")})
    assert taken.data == expected.data and taken.model == expected.model
    assert taken.training.model_copy(update={"provenance": None}) == expected.training
    study = here.hpo.study.model_copy(update={"study_name": "made-up"})
    assert taken.hpo == expected.hpo.model_copy(update={"study": study}) and taken.tracking == here.tracking


def test_a_file_chosen_after_an_experiment_goes_on_top_and_in_the_shell_every_one_that_is_typed(
    params: Params, workspace: Path
) -> None:
    write_results(result_of(params, [trial(params, 3e-3, [0.6, 0.7], value=0.65)]))
    compare, best = find_notebook("compare"), {"experiment": "made-up"}
    assert "trainer" in default_parameters(compare)  # and is hpo_best there, which is no choice of the user's
    taken = composed(compare, best, [])
    assert taken.training.args["learning_rate"] == 3e-3 and (taken.training.provenance or {})["study"] == "made-up"
    default = composed(compare, {"trainer": "default", **best}, ["training.n_folds=3"])
    assert default.training.args["learning_rate"] == 1e-3 and default.training.n_folds == 3
    assert default.training.provenance is None  # nothing chose it on these folds
    assert composed(compare, {"model": "deberta_v3_base", **best}, []).model.name == "microsoft/deberta-v3-base"


@pytest.mark.parametrize(
    ("identity", "lacks"),
    [
        ({"source": "memory"}, ["data"]),
        ({"loss": "d1", "model_init": "d2", "score": "d3"}, ["loss", "model_init", "score"]),
        ({"registered": {"loss mine": "d4", "metric macro_f1": None}}, ["loss mine"]),
        ({"objective": "__main__.mine"}, ["objective"]),
    ],
)
def test_a_search_that_no_file_can_hold_leaves_no_experiment_and_its_trainer_file_says_what_it_lacks(
    params: Params, workspace: Path, identity: dict[str, Any], lacks: list[str]
) -> None:
    found = result_of(params, [trial(params, 1e-3, [0.6, 0.7], value=0.65)], **identity)
    provenance = written_training(write_results(found))["provenance"]
    assert provenance["lacks"] == lacks and not (workspace / "params" / "experiment").exists()
    assert not any("evbind" in line for line in search_summary(found)[1])


def test_an_experiment_holds_no_secret_and_its_name_is_one_that_a_file_and_hydra_take(params: Params) -> None:
    secret = params.with_values({"training.loss_args.api_key": 4711.0, "model.trainer": {"token": "hush"}})
    text = experiment_yaml(result_of(secret, [trial(secret, 1e-3, [0.6, 0.7], value=0.65)]))
    assert "4711" not in text and "hush" not in text
    names = {"deberta-v3-hpo": "deberta-v3-hpo", "a b/ü": "a_b__", "null": "study_null", "2026": "study_2026"}
    assert {name: experiment_name(name) for name in names} == names


def fold_result(fold: int) -> FoldResult:
    pairs = pd.DataFrame(
        {"post_id": ["a", "b"], "sentence_id": ["1", "2"], "criterion_id": "C", "label": [1, 0], "weight": [1.0, 9.5]}
    )
    table = prediction_table(fold, pairs, np.array([fold + 0.5, -1.0]))
    return FoldResult(fold, {}, (), table, 1.0, 2, 2, "fp32", 0.0)


def test_the_predictions_of_a_trial_are_those_of_its_reported_folds(result: SearchResult) -> None:
    cache = FoldCache("1234")
    for number, folds in {1: [0, 1], 2: [0], 0: [0]}.items():
        for fold in folds:
            cache.save(trial_name(number, fold), fold_result(fold))
    best = result.predictions()
    assert best["fold"].tolist() == [0, 0, 1, 1] and best["logit"].tolist() == [0.5, -1.0, 1.5, -1.0]
    assert best["weight"].tolist() == [1.0, 9.5, 1.0, 9.5]
    assert len(result.predictions(2)) == 2  # pruned after its first fold
    for number, counts in {0: "1 of 2", 4: "0 of 0", 99: "0 of 0"}.items():
        with pytest.raises(SearchError, match=f"trial {number}.*{counts}"):
            result.predictions(number)


def test_a_study_is_read_without_searching(params: Params) -> None:
    study = optuna.create_study(study_name="seen", storage=open_storage("sqlite:///optuna.db"), direction="maximize")
    with pytest.raises(SearchError, match="none of its trials is complete"):
        SearchResult.load(params.with_values({"hpo.study.study_name": "seen"}))
    study.add_trial(trial(params, 2e-3, [0.6, 0.7], value=0.65))
    loaded = SearchResult.load(params.with_values({"hpo.study.study_name": "seen"}))
    assert (loaded.best_trial.number, loaded.n_earlier_trials) == (0, 1)
    with pytest.raises(SearchError, match=r"hpo\.study\.study_name=sen: .*did you mean 'seen'"):
        SearchResult.load(params.with_values({"hpo.study.study_name": "sen"}))


def study_of(rows: list[dict[str, Any]], direction: str = "maximize") -> optuna.Study:
    """A study with trials that ended one minute after the other; a row is what `create_trial` takes."""
    study = optuna.create_study(direction=direction)
    for number, row in enumerate(rows):
        made = create_trial(**row)
        if made.state.is_finished():
            made.datetime_complete = datetime(2026, 1, 1) + timedelta(minutes=number)
        study.add_trial(made)
    return study


def scored(*values: float) -> list[dict[str, Any]]:
    return [{"value": value} for value in values]


def test_the_best_trial_is_the_earliest_of_equals_that_counts() -> None:
    pruned, failed = {"state": TrialState.PRUNED, "value": 0.95}, {"state": TrialState.FAIL}
    others = [pruned, failed, {"value": 0.99, "user_attrs": {"surplus": True}}]
    for rows, direction, expected in (
        ([*scored(0.7, 0.8, 0.8), *others], "maximize", 1),
        (scored(0.5, 0.2, 0.4), "minimize", 1),
        (others, "maximize", None),
        ([], "maximize", None),
    ):
        best = best_trial(study_of(rows, direction))
        assert (None if best is None else best.number) == expected


def test_a_search_stops_when_nothing_gets_better() -> None:
    scores = [0.5, 0.6, 0.6, 0.55]
    assert [trials_since_improvement(study_of(scored(*scores[:n]))) for n in range(5)] == [0, 0, 0, 1, 2]
    assert trials_since_improvement(study_of(scored(0.5, 0.2, 0.4), "minimize")) == 1
    for most, stops in (("null", False), (3, False), (2, True)):
        reason = should_stop(study_of(scored(*scores)), compose([f"hpo.stop.no_improvement={most}"]))
        assert ("hpo.stop.no_improvement=2" in (reason or "")) == stops
    # Pruned and failed trials bring nothing better; what was cut off or runs does not count.
    rows = [*scored(0.5), {"state": TrialState.PRUNED, "value": 0.9}, {"state": TrialState.FAIL}]
    assert trials_since_improvement(study_of([*rows, *scored(0.6)])) == 0
    ignored = [{"state": TrialState.FAIL, "user_attrs": {"interrupted": True}}, {"state": TrialState.RUNNING}]
    assert trials_since_improvement(study_of([*rows, *ignored])) == 2
    # The order is that of the ends: the first to end may be the last to begin.
    study, late = study_of(scored(0.6, 0.5)), create_trial(value=0.55)
    late.datetime_complete = datetime(2025, 1, 1)
    study.add_trial(late)
    assert trials_since_improvement(study) == 1
