"""The search on a real SQLite file: totals, states, resumption, refusals, and what it leaves behind."""

from __future__ import annotations

import contextlib
import json
import os
import signal
import sqlite3
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import optuna
import pandas as pd
import pytest
import yaml
from hypothesis import given, settings
from hypothesis import strategies as st
from optuna.trial import FrozenTrial, TrialState

from evbind_lib.config.compose import Params, compose, resolve_sqlite
from evbind_lib.data.corpus import Corpus, load_corpus
from evbind_lib.data.folds import Fold, make_folds
from evbind_lib.errors import ParamsError, SearchError
from evbind_lib.hpo.objective import ReportFolds
from evbind_lib.hpo.results import trials_table, write_outcome
from evbind_lib.hpo.search import SearchListener, SearchResult, check_search, run_search
from evbind_lib.hpo.space import suggest
from evbind_lib.hpo.study import count_trials, load_predictions
from evbind_lib.training.metrics import compute_metrics
from evbind_lib.training.result import FoldResult
from tests.conftest import BRIEF


@pytest.fixture(scope="module")
def corpus() -> Corpus:
    return load_corpus(compose().data)


def folds_of(params: Params, corpus: Corpus) -> list[Fold]:
    return make_folds(corpus, n_folds=params.training.n_folds, seed=params.training.seed)


def search(params: Params, corpus: Corpus, *listeners: SearchListener) -> SearchResult:
    return run_search(params, corpus, folds_of(params, corpus), listeners)


class Diary(SearchListener):
    def __init__(self) -> None:
        self.trials: list[int] = []
        self.earlier = -1

    def on_study(self, study: optuna.Study, n_earlier_trials: int) -> None:
        self.earlier = n_earlier_trials

    def on_trial_end(self, study: optuna.Study, trial: FrozenTrial) -> None:
        self.trials.append(trial.number)


def test_a_search_resumes_to_its_total(brief: Callable[..., Params], corpus: Corpus) -> None:
    first, again, more = Diary(), Diary(), Diary()
    result = search(brief("hpo.trials.n_trials=2"), corpus, first)
    assert (first.earlier, first.trials, count_trials(result.study)["total"]) == (0, [0, 1], 2)
    search(brief("hpo.trials.n_trials=2"), corpus, again)
    assert (again.earlier, again.trials) == (2, [])
    result = search(brief("hpo.trials.n_trials=3"), corpus, more)
    assert (more.earlier, more.trials, result.n_earlier_trials) == (2, [2], 2)
    values = [trial.params["learning_rate"] for trial in result.study.trials]
    assert len(set(values)) == 3  # a resumed sampler does not draw the first trials again


def test_scores_are_the_aggregate_of_the_folds_kept_predictions(brief: Callable[..., Params], corpus: Corpus) -> None:
    result = search(brief("hpo.metric.name=pr_auc", "hpo.metric.fold_aggregation=min"), corpus)
    for trial in result.study.get_trials(states=(TrialState.COMPLETE,)):
        kept = load_predictions(result.study, trial.number)
        scores = [
            compute_metrics(part["label"].to_numpy(), part["probability"].to_numpy())["pr_auc"]
            for _, part in kept.groupby("fold")
        ]
        assert trial.user_attrs["fold_scores"] == pytest.approx(scores, abs=1e-6)
        assert trial.value == pytest.approx(min(scores), abs=1e-6)
        assert trial.intermediate_values == pytest.approx({0: scores[0], 1: min(scores)}, abs=1e-6)
        assert set(kept.columns) == {"fold", "post_id", "sentence_id", "criterion_id", "label", "probability"}
    best = max(trial.value for trial in result.study.trials if trial.value is not None)
    assert result.best.value == best


def test_a_trial_that_raises_is_failed_with_its_error_and_the_study_goes_on(
    brief: Callable[..., Params], corpus: Corpus
) -> None:
    rates = "hpo.search_space.learning_rate={type:categorical,choices:[0.001,1e30]}"
    result = search(brief(rates, "hpo.trials.n_trials=6", "hpo.sampler.type=random"), corpus)
    by_rate = {
        rate: {t.state for t in result.study.trials if t.params["learning_rate"] == rate} for rate in (0.001, 1e30)
    }
    assert by_rate == {0.001: {TrialState.COMPLETE}, 1e30: {TrialState.FAIL}}
    failed = result.study.get_trials(states=(TrialState.FAIL,))
    assert all(trial.user_attrs["error"].startswith("TrainingError: fold 1, step") for trial in failed)
    assert all(":" in place and "evbind" not in place for trial in failed for place in trial.user_attrs["traceback"])
    assert count_trials(result.study) == {
        "total": 6,
        "complete": 6 - len(failed),
        "pruned": 0,
        "failed": len(failed),
    }
    errors = trials_table(result.study).set_index("trial")["error"]
    assert errors[[trial.number for trial in failed]].str.contains("the loss is").all()


def test_a_search_without_a_complete_trial_says_so(brief: Callable[..., Params], corpus: Corpus) -> None:
    rates = "hpo.search_space.learning_rate={type:categorical,choices:[1e30]}"
    with pytest.raises(
        SearchError, match=r"none of its 2 trials was completed; trial 0 failed with TrainingError: fold 1"
    ):
        search(brief(rates, "hpo.trials.n_trials=2"), corpus)


def test_a_pruned_trial_stops_after_its_fold_and_is_neither_failed_nor_best(
    brief: Callable[..., Params], corpus: Corpus
) -> None:
    with pytest.raises(SearchError, match="none of its 2 trials was completed"):
        search(brief("hpo.pruner.type=threshold", "hpo.pruner.lower=1.0", "hpo.trials.n_trials=2"), corpus)
    study = optuna.load_study(study_name="deberta-v3-hpo", storage=resolve_sqlite("sqlite:///optuna.db"))
    assert {trial.state for trial in study.trials} == {TrialState.PRUNED}
    assert [len(trial.user_attrs["fold_scores"]) for trial in study.trials] == [1, 1]
    assert load_predictions(study, 0)["fold"].unique().tolist() == [0]


def fold_report(fold: int, score: float) -> FoldResult:
    return FoldResult(fold, {"macro_f1": score}, (), pd.DataFrame(), 1.0, 1, 1, 1.0)


def test_the_running_aggregate_is_reported_and_the_last_fold_never_prunes() -> None:
    study = optuna.create_study(direction="maximize", pruner=optuna.pruners.ThresholdPruner(lower=0.5))
    trial = study.ask()
    observer = ReportFolds(trial, metric="macro_f1", aggregation="mean", n_folds=3)
    observer.on_fold_end(fold_report(0, 0.9))
    observer.on_fold_end(fold_report(1, 0.3))  # the mean is above the threshold although this fold is below
    observer.on_fold_end(fold_report(2, 0.0))
    assert study.trials[0].intermediate_values == pytest.approx({0: 0.9, 1: 0.6, 2: 0.4})
    other = ReportFolds(study.ask(), metric="macro_f1", aggregation="mean", n_folds=3)
    with pytest.raises(optuna.TrialPruned):
        other.on_fold_end(fold_report(0, 0.4))


@settings(max_examples=30, deadline=None)
@given(st.integers(0, 10_000))
def test_conditional_parameters_are_drawn_only_where_their_condition_holds(seed: int) -> None:
    params = compose()
    study = optuna.create_study(sampler=optuna.samplers.RandomSampler(seed=seed))
    drawn = suggest(study.ask(), params)
    always = set(params.hpo.search_space) - {"focal_gamma", "focal_alpha"}
    tied = {"focal_gamma", "focal_alpha"} if drawn["loss_function"] == "focal" else set()
    assert set(drawn) == always | tied
    for name, value in drawn.items():
        entry = params.hpo.search_space[name]
        assert value in entry.choices if entry.type == "categorical" else entry.low <= value <= entry.high


def test_conditions_may_be_lists_and_chains_and_look_at_what_is_not_searched() -> None:
    space = {
        "loss_function": "{type:categorical,choices:[focal]}",
        "weight_decay": "{type:uniform,low:0,high:1,when:{focal_gamma:[2.0,3.0]}}",
        "warmup_ratio": "{type:uniform,low:0,high:0.5,when:{data.pos_neg_ratio:7}}",
        "focal_gamma": "{type:categorical,choices:[2.0],when:{loss_function:focal}}",
    }
    params = compose({}, [f"hpo.search_space.{name}={entry}" for name, entry in space.items()])
    drawn = suggest(optuna.create_study().ask(), params)
    assert "weight_decay" in drawn and "warmup_ratio" not in drawn


def test_conditions_in_a_circle_are_refused() -> None:
    overrides = [
        "hpo.search_space.focal_gamma.when={focal_alpha:0.3}",
        "hpo.search_space.focal_alpha.when={focal_gamma:2.0}",
    ]
    with pytest.raises(ParamsError, match="focal_gamma, focal_alpha go in a circle"):
        check_search(compose({}, overrides))


@pytest.mark.parametrize("name", ["training.seed", "data.eval_neg_ratio", "data.group_by"])
def test_the_yardstick_cannot_be_searched(name: str) -> None:
    params = compose({}, [f"hpo.search_space.{name}={{type:categorical,choices:[{compose().value_of(name)}]}}"])
    with pytest.raises(ParamsError, match="would change what the score is measured on"):
        check_search(params)


def test_a_named_study_is_resumed_only_with_what_it_was_made_with(brief: Callable[..., Params], corpus: Corpus) -> None:
    named = ("hpo.study.study_name=mine", "hpo.trials.n_trials=1")
    search(brief(*named), corpus)
    for override, difference in [
        ("hpo.metric.name=roc_auc", "metric"),
        ("hpo.metric.fold_aggregation=max", "fold_aggregation"),
        ("training.n_folds=3", "folds, n_folds"),
        ("data.eval_neg_ratio=2", "eval_neg_ratio"),
        ("training.seed=1", "folds, seed"),
        ("data.group_by=post_id", "data, folds"),
    ]:
        changed = brief(*named, override)
        with pytest.raises(
            SearchError, match=f"mine: that study was made with other {difference}, so its trials cannot"
        ):
            search(changed, load_corpus(changed.data))
    with pytest.raises(SearchError, match="load_if_exists is false; choose another name"):
        search(brief(*named, "hpo.study.load_if_exists=false"), corpus)


def test_under_the_default_name_other_conditions_make_a_study_of_their_own(
    brief: Callable[..., Params], corpus: Corpus
) -> None:
    one = ("hpo.trials.n_trials=1",)
    assert search(brief(*one), corpus).study.study_name == "deberta-v3-hpo"
    second = search(brief(*one, "hpo.metric.name=roc_auc"), corpus)
    assert second.study.study_name == "deberta-v3-hpo-2"
    assert search(brief(*one, "hpo.metric.name=roc_auc"), corpus).n_earlier_trials == 1  # resumed
    assert search(brief(*one), corpus).study.study_name == "deberta-v3-hpo"
    fresh = search(brief(*one, "hpo.study.load_if_exists=false"), corpus)
    assert (fresh.study.study_name, fresh.n_earlier_trials) == ("deberta-v3-hpo-3", 0)


@pytest.mark.parametrize(
    "storage", ["nothing", "sqlite:////proc/none/optuna.db", "postgresql://nobody@localhost:1/none"]
)
def test_a_storage_that_cannot_be_opened(brief: Callable[..., Params], corpus: Corpus, storage: str) -> None:
    with pytest.raises(
        SearchError, match=r"hpo\.study\.storage=.*: the storage cannot be opened .*; give one that can"
    ):
        search(brief(f"hpo.study.storage={storage}"), corpus)


def test_a_killed_search_goes_on_to_its_total_and_retries_what_was_cut_off(
    brief: Callable[..., Params], corpus: Corpus, workspace: Path
) -> None:
    code = f"""
from evbind_lib.config.compose import compose
from evbind_lib.data.corpus import load_corpus
from evbind_lib.data.folds import make_folds
from evbind_lib.hpo.search import run_search
params = compose({{"hpo": "quick"}}, {[*BRIEF, "training.args.max_steps=100000"]!r})
corpus = load_corpus(params.data)
run_search(params, corpus, make_folds(corpus, n_folds=2, seed=42))
"""
    worker = subprocess.Popen([sys.executable, "-c", code], env={**os.environ, "EVBIND_WORKSPACE": str(workspace)})
    try:
        running = _wait_for_running(workspace)
    finally:
        worker.send_signal(signal.SIGKILL)
        worker.wait()
    result = search(brief(), corpus)
    trials = result.study.trials
    assert count_trials(result.study)["total"] == 3
    assert not [trial for trial in trials if not trial.state.is_finished()]
    cut_off, *others = trials
    assert cut_off.user_attrs["interrupted"] and cut_off.state == TrialState.FAIL
    assert cut_off.params == running
    (retried,) = [trial for trial in others if trial.user_attrs.get("retry_of") == 0]
    assert retried.params == running


def _wait_for_running(workspace: Path) -> dict[str, Any]:
    deadline = time.monotonic() + 90
    uri = f"file:{workspace / 'optuna.db'}?mode=ro"
    while time.monotonic() < deadline:
        # Looked at from outside: opening it with Optuna while it is being made would make it a second time.
        with contextlib.suppress(sqlite3.OperationalError), contextlib.closing(sqlite3.connect(uri, uri=True)) as base:
            if base.execute("SELECT 1 FROM trial_user_attributes WHERE key = 'resolved'").fetchone():
                study = optuna.load_study(study_name="deberta-v3-hpo", storage=resolve_sqlite("sqlite:///optuna.db"))
                return study.trials[0].params
        time.sleep(0.2)
    raise AssertionError("the search did not start")


def test_processes_that_start_at_once_make_one_storage(workspace: Path) -> None:
    code = """
import sys, time
from evbind_lib.hpo.storage import open_storage
time.sleep(max(0.0, float(sys.argv[1]) - time.time()))
open_storage("sqlite:///optuna.db")
"""
    command = [sys.executable, "-c", code, str(time.time() + 9)]
    environment = {**os.environ, "EVBIND_WORKSPACE": str(workspace)}
    processes = [subprocess.Popen(command, env=environment) for _ in range(4)]
    assert [process.wait() for process in processes] == [0] * 4


def test_the_same_seed_searches_the_same_trials(brief: Callable[..., Params], corpus: Corpus) -> None:
    def trials(file: str) -> list[tuple]:
        study = search(brief(f"hpo.study.storage=sqlite:///{file}", "hpo.trials.n_trials=4"), corpus).study
        return [(trial.params, trial.value) for trial in study.trials]

    assert trials("one.db") == trials("two.db")


def test_a_search_leaves_its_files(brief: Callable[..., Params], corpus: Corpus, workspace: Path) -> None:
    params = brief("hpo.search_space.data.pos_neg_ratio={type:uniform,low:1,high:2}", "hpo.trials.n_trials=4")
    result = search(params, corpus)
    outcome = write_outcome(result, params)
    best = result.best
    assert outcome.best_trainer == workspace / "params" / "trainer" / "hpo_best.yaml"
    again = compose({"trainer": "hpo_best"})
    resolved = best.user_attrs["resolved"]
    assert again.training.model_dump(exclude={"provenance", "n_folds", "seed"}) == {
        key: value for key, value in resolved["training"].items() if key not in {"provenance", "n_folds", "seed"}
    }
    assert again.data.pos_neg_ratio == best.params["data.pos_neg_ratio"]
    provenance = yaml.safe_load(outcome.best_trainer.read_text(encoding="utf-8"))["training"]["provenance"]
    assert (provenance["study"], provenance["trial"]) == ("deberta-v3-hpo", best.number)
    assert provenance["data_fingerprint"] == corpus.fingerprint
    assert provenance["score"] == pytest.approx(best.value, abs=1e-6)

    table = pd.read_csv(outcome.trials)
    assert table["trial"].tolist() == [0, 1, 2, 3]
    np.testing.assert_allclose(table[["fold_1", "fold_2"]].mean(axis=1), table["value"], atol=1e-6)
    summary = outcome.summary.read_text(encoding="utf-8")
    assert f"Best: trial {best.number}, macro_f1 {best.value:.4f}" in summary
    assert "4 trials: 4 complete, 0 pruned, 0 failed" in summary


def test_no_post_text_reaches_the_study(brief: Callable[..., Params], corpus: Corpus, workspace: Path) -> None:
    params = brief("hpo.trials.n_trials=1")
    result = search(params, corpus)
    write_outcome(result, params)
    sentences = [text for text in corpus.sentences["sentence"] if len(text) > 25][:200]
    kept = json.dumps([dict(result.study.user_attrs), [trial.user_attrs for trial in result.study.trials]])
    written = b"".join(file.read_bytes() for file in workspace.rglob("*") if file.is_file() and file.suffix != ".npz")
    assert len(sentences) == 200
    assert not [text for text in sentences if text in kept or text.encode() in written]
    ids = load_predictions(result.study, 0)[["post_id", "sentence_id", "criterion_id"]].to_string()
    assert not [text for text in sentences if text in ids]
