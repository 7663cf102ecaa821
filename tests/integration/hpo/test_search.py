"""The search on a real SQLite file: totals, states, resumption, refusals, and what it leaves behind."""

from __future__ import annotations

import contextlib
import json
import re
import shutil
import sqlite3
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import optuna
import pandas as pd
import pytest
import yaml
from optuna.trial import FrozenTrial, TrialState

import evbind_lib as ev
from evbind_lib.config.compose import compose
from evbind_lib.config.paths import resolve_sqlite
from evbind_lib.config.schema import Params
from evbind_lib.data.corpus import Corpus, load_corpus
from evbind_lib.data.folds import Fold, make_folds
from evbind_lib.errors import ParamsError, SearchError
from evbind_lib.hpo.objective import Objective, SearchCallback, report_folds, suggest
from evbind_lib.hpo.results import SearchResult, trials_table, write_results
from evbind_lib.hpo.search import OptunaCallback, check_search, run_search
from evbind_lib.hpo.study import TrialRecord, count_trials, open_storage
from evbind_lib.training.cache import FoldCache
from evbind_lib.training.crossval import cross_validate
from evbind_lib.training.metrics import compute_metrics
from tests import forks
from tests.conftest import BRIEF, PROJECT


def search(params: Params, corpus: Corpus, *callbacks: SearchCallback | OptunaCallback, **others: Any) -> SearchResult:
    return run_search(Objective(corpus, make_folds(corpus, params), params), params, callbacks=callbacks, **others)


class Diary(SearchCallback):
    def __init__(self) -> None:
        self.trials: list[int] = []
        self.earlier = -1

    def on_search_begin(self, study: optuna.Study, n_earlier_trials: int) -> None:
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
        kept = result.predictions(trial.number)
        scores = [
            compute_metrics(part["label"].to_numpy(), part["probability"].to_numpy())["pr_auc"]
            for _, part in kept.groupby("fold")
        ]
        assert trial.user_attrs["fold_scores"] == pytest.approx(scores, abs=1e-6)
        assert trial.value == pytest.approx(min(scores), abs=1e-6)
        assert trial.intermediate_values == pytest.approx({0: scores[0], 1: min(scores)}, abs=1e-6)
    best = max(trial.value for trial in result.study.trials if trial.value is not None)
    assert result.best_value == best


def test_a_trial_that_raises_is_failed_with_its_error_and_the_study_goes_on(
    brief: Callable[..., Params], corpus: Corpus
) -> None:
    # Without it, weights that no pair has used yet are 0 / 0.
    epsilons = "hpo.search_space.adam_epsilon={type:categorical,choices:[1e-8,1e-7,0.0]}"
    result = search(brief(epsilons, "hpo.trials.n_trials=6", "hpo.sampler.type=random"), corpus)
    by_value = {
        value: {t.state for t in result.study.trials if t.params["adam_epsilon"] == value}
        for value in (1e-8, 1e-7, 0.0)
    }
    assert by_value == {1e-8: {TrialState.COMPLETE}, 1e-7: {TrialState.COMPLETE}, 0.0: {TrialState.FAIL}}
    failed = result.study.get_trials(states=(TrialState.FAIL,))
    assert all(trial.user_attrs["error"].startswith("NotFiniteError: fold 1, step") for trial in failed)
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
    epsilons = "hpo.search_space.adam_epsilon={type:categorical,choices:[0.0]}"
    with pytest.raises(SearchError, match=r"none of its 2 .*trial 0 failed with NotFiniteError: fold 1"):
        search(brief(epsilons, "hpo.trials.n_trials=2"), corpus)


def test_a_pruned_trial_stops_after_its_fold_and_is_neither_failed_nor_best(
    brief: Callable[..., Params], corpus: Corpus
) -> None:
    with pytest.raises(SearchError, match="none of its 2 trials was completed"):
        search(brief("hpo.pruner.type=threshold", "hpo.pruner.lower=1.0", "hpo.trials.n_trials=2"), corpus)
    study = optuna.load_study(study_name="deberta-v3-hpo", storage=resolve_sqlite("sqlite:///optuna.db"))
    assert {trial.state for trial in study.trials} == {TrialState.PRUNED}
    assert [len(trial.user_attrs["fold_scores"]) for trial in study.trials] == [1, 1]
    with pytest.raises(SearchError, match=r"no .*trial|complete"):
        SearchResult.load(brief())


def test_a_named_study_is_resumed_only_with_what_it_was_made_with(brief: Callable[..., Params], corpus: Corpus) -> None:
    named = ("hpo.study.study_name=mine", "hpo.trials.n_trials=1")
    search(brief(*named), corpus)
    for override, difference in [
        ("hpo.metric.name=roc_auc", "metric"),
        ("hpo.metric.fold_aggregation=max", "fold_aggregation"),
        ("training.n_folds=3", "folds, n_folds"),
        ("data.eval_neg_ratio=2", "eval_neg_ratio"),
        ("training.seed=1", "seed, so"),
        ("data.seed=1", r"data\.seed, folds"),
        ("data.negatives=sampled", r"data\.negatives, so"),
        ("data.same_post_negatives=false", r"data\.same_post_negatives, so"),
        ("data.group_by=post_id", "data, folds"),
    ]:
        changed = brief(*named, override)
        with pytest.raises(SearchError, match=f"mine.* other {difference}.*NAME"):
            search(changed, load_corpus(changed))
    assert search(brief("hpo.trials.n_trials=1"), corpus).study.study_name == "deberta-v3-hpo"
    with pytest.raises(SearchError, match=r"deberta-v3-hpo.* other metric"):
        search(brief("hpo.metric.name=roc_auc"), corpus)
    assert search(brief("hpo.metric.name=roc_auc", "hpo.trials.n_trials=1"), corpus, study="roc").n_earlier_trials == 0


class Hang(SearchCallback):
    def fold_callbacks(self, trial: optuna.Trial) -> list[Any]:
        time.sleep(1000)
        return []


def search_and_hang() -> None:
    params = compose(BRIEF, hpo="quick")
    search(params, load_corpus(params), Hang())


def test_a_killed_search_goes_on_to_its_total_and_retries_what_was_cut_off(
    brief: Callable[..., Params], corpus: Corpus, workspace: Path
) -> None:
    process = forks.start(search_and_hang)
    try:
        running = _wait_for_running(workspace)
    finally:
        process.kill()
        process.join()
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


def open_at(moment: float) -> None:
    time.sleep(max(0.0, moment - time.time()))
    open_storage("sqlite:///optuna.db")


def test_processes_that_start_at_once_make_one_storage(workspace: Path) -> None:
    forks.exit_codes(forks.start(time.sleep, 0))  # the process that the others are forked from has begun now
    moment = time.time() + 2
    assert forks.exit_codes(*[forks.start(open_at, moment) for _ in range(4)]) == [0] * 4


def test_the_same_seed_searches_the_same_trials(brief: Callable[..., Params], corpus: Corpus) -> None:
    def trials(file: str) -> list[tuple]:
        study = search(brief(f"hpo.study.storage=sqlite:///{file}", "hpo.trials.n_trials=4"), corpus).study
        return [(trial.params, trial.value) for trial in study.trials]

    assert trials("one.db") == trials("two.db")


def test_a_search_leaves_its_files(brief: Callable[..., Params], corpus: Corpus) -> None:
    params = brief("hpo.search_space.data.pos_neg_ratio={type:uniform,low:1,high:2}", "hpo.trials.n_trials=4")
    result = search(params, corpus)
    files = write_results(result)
    again = compose(trainer="hpo_best")
    assert again.training.args == result.params.training.args
    assert again.data.pos_neg_ratio == result.best_trial.params["data.pos_neg_ratio"]
    provenance = yaml.safe_load(files["hpo_best.yaml"].read_text(encoding="utf-8"))["training"]["provenance"]
    assert (provenance["study"], provenance["trial"]) == ("deberta-v3-hpo", result.best_trial.number)
    assert provenance["data_fingerprint"] == corpus.fingerprint
    assert provenance["score"] == pytest.approx(result.best_value, abs=1e-6)
    table = pd.read_csv(files["optuna_trials.csv"])
    assert table["trial"].tolist() == [0, 1, 2, 3]
    np.testing.assert_allclose(table[["fold_1", "fold_2"]].mean(axis=1), table["value"], atol=1e-6)
    taken = compose(["experiment=deberta-v3-hpo", "hpo.trials.n_trials=5"], data="pairs", model="deberta_v3_base")
    read = cross_validate(corpus, make_folds(corpus, taken), taken, cache=FoldCache("training", read_all=True))
    assert {fold.origin.partition(",")[0] for fold in read.folds} == {"study deberta-v3-hpo"}  # none is trained
    assert search(taken, load_corpus(taken)).n_earlier_trials == 4  # the same study


def test_no_post_text_reaches_the_study(brief: Callable[..., Params], corpus: Corpus, workspace: Path) -> None:
    params = brief("hpo.trials.n_trials=1")
    result = search(params, corpus)
    write_results(result)
    sentences = [text for text in corpus.sentences["sentence"] if len(text) > 25][:200]
    kept = json.dumps([dict(result.study.user_attrs), [trial.user_attrs for trial in result.study.trials]])
    written = b"".join(file.read_bytes() for file in workspace.rglob("*") if file.is_file() and file.suffix != ".npz")
    assert len(sentences) == 200
    assert not [text for text in sentences if text in kept or text.encode() in written]
    ids = result.predictions()[["post_id", "sentence_id", "criterion_id"]].to_string()
    assert not [text for text in sentences if text in ids]


def test_callbacks_of_optunas_kind_are_called_and_may_stop_the_search(
    brief: Callable[..., Params], corpus: Corpus
) -> None:
    states: list[TrialState] = []
    once = optuna.study.MaxTrialsCallback(1, states=(TrialState.COMPLETE,))
    result = search(brief(), corpus, once, lambda study, trial: states.append(trial.state))
    assert states == [TrialState.COMPLETE] and result.stopped and count_trials(result.study)["total"] == 1


def test_a_mistake_in_the_objective_that_every_trial_would_make_ends_the_search(
    brief: Callable[..., Params], corpus: Corpus, folds: list[Fold]
) -> None:
    params = brief()

    def mistyped(trial: optuna.Trial) -> float:
        return cross_validate(corpus, folds, params, callbacks=[report_folds(trial, "pr_acu")]).score("pr_auc")

    with pytest.raises(ParamsError, match="did you mean 'pr_auc'"):
        run_search(mistyped, params, study="mistyped")
    study = optuna.load_study(study_name="mistyped", storage=open_storage("sqlite:///optuna.db"))
    assert [TrialRecord.read(trial).surplus for trial in study.trials] == [True] and count_trials(study)["total"] == 0


def test_an_objective_without_folds_and_one_that_returns_no_number(brief: Callable[..., Params]) -> None:
    params = brief("hpo.trials.n_trials=4")

    def bare(trial: optuna.Trial) -> Any:
        return [0.5, float("nan"), "a word", 0.25][trial.number]

    result = run_search(bare, params, study="bare")
    assert result.best_value == 0.5 and sum("report_folds" in note for note in result.notes) == 1
    errors = [TrialRecord.read(trial).error for trial in result.study.trials]
    assert errors[0] is None and errors[1] and "nan" in errors[1] and errors[2] and "a word" in errors[2]
    assert all(TrialRecord.read(trial).seconds is not None for trial in result.study.trials)


def test_a_study_that_is_handed_in_keeps_its_sampler_and_pruner(brief: Callable[..., Params]) -> None:
    params = brief("hpo.trials.n_trials=9")
    grid = optuna.samplers.GridSampler({"x": [1.0, 2.0, 3.0]}, seed=1)
    study = optuna.create_study(direction="maximize", sampler=grid)
    study.enqueue_trial({"x": 2.0})
    result = run_search(lambda trial: trial.suggest_float("x", 0, 5), params, study=study)
    assert result.study is study and study.sampler is grid and result.best_value == 3.0
    assert {trial.params["x"] for trial in study.trials} == {1.0, 2.0, 3.0}  # the grid ended it before nine
    with pytest.raises(SearchError, match="in memory"):
        run_search(lambda trial: 0.5, brief("hpo.trials.n_jobs=2"), study=optuna.create_study(direction="maximize"))
    with pytest.raises(SearchError, match="several objectives"):
        run_search(lambda trial: 0.5, params, study=optuna.create_study(directions=["maximize", "maximize"]))


def test_check_search_is_the_one_list(brief: Callable[..., Params]) -> None:
    check_search(brief())
    for override, key in [
        ("training.loss_function=focl", "training.loss_function"),
        ("hpo.metric.name=macrof1", "hpo.metric.name"),
        ("hpo.metric.name=log_loss", "hpo.study.direction"),
        ("training.args.learning_rat=1", "training.args.learning_rat"),
        ("hpo.search_space.training.seed={type:int,low:1,high:2}", "hpo.search_space.training.seed"),
        ("hpo.sampler.type=tpee", "hpo.sampler.type"),
        ("hpo.pruner.type=medain", "hpo.pruner.type"),
        ("hpo.trials.n_jobs=100000", "hpo.trials.n_jobs"),
    ]:
        with pytest.raises(ParamsError) as caught:
            check_search(brief(override))
        assert key in str(caught.value), override
    with pytest.raises(SearchError, match=r"hpo\.study\.storage"):
        check_search(brief("hpo.study.storage=nothing"))


@pytest.mark.parametrize(
    ("named", "words"),
    [
        ("hpo.pruner.type=hyperband", ["hpo.pruner.type=hyperband", "hpo.pruner.reduction_factor=0"]),
        ("n_resamples", ["hpo.pruner.type=racing", "hpo.pruner.n_resamples=1000000000000"]),
        ("hpo.enqueue=study:none", ["hpo.enqueue=['study:none']"]),
        ("hpo.search_space.model.name", ["hpo.search_space.model.name={type: categorical, choices: [tiny, ./nope]}"]),
    ],
)
def test_what_only_a_trial_would_have_met_is_refused_before_one(
    brief: Callable[..., Params], workspace: Path, named: str, words: list[str]
) -> None:
    with pytest.raises(ev.EvbindError, match=re.escape(named)):
        check_search(brief(*words))
    assert not list(workspace.iterdir())


def test_how_negatives_are_drawn_is_not_searched_where_none_are(brief: Callable[..., Params], corpus: Corpus) -> None:
    table = Corpus.from_pairs(
        corpus.pairs.drop(columns="group")
    )  # for which auto is annotated, as only the corpus shows
    for name, entry in (
        ("pos_neg_ratio", "uniform,low:1,high:5"),
        ("negative_strategy", "categorical,choices:[all,hard]"),
    ):
        params = brief(f"hpo.search_space.data.{name}={{type:{entry}}}")
        check_search(params)
        refused = rf"search_space\.data\.{name}: .*data\.negatives=sampled\.$"
        with pytest.raises(ParamsError, match=refused):
            check_search(params.with_values({"data.negatives": "annotated"}))
        with pytest.raises(ParamsError, match=refused):
            run_search(Objective(table, make_folds(table, params), params), params)


OLD = ("training.n_folds=3", "hpo.trials.n_trials=5")


def test_a_study_made_before_the_rebuild_is_read_and_not_gone_on_with(
    brief: Callable[..., Params], corpus: Corpus, workspace: Path
) -> None:
    shutil.copy(PROJECT / "tests" / "stored" / "optuna_before_rebuild.db", workspace / "optuna.db")
    old = SearchResult.load(brief(*OLD))
    assert (old.best_trial.number, old.n_earlier_trials) == (3, 4)
    assert old.best_value == pytest.approx(0.4172, abs=1e-4)
    assert old.params.training.args["learning_rate"] == old.best_trial.params["learning_rate"]
    assert TrialRecord.read(old.best_trial).fold_scores == pytest.approx([0.4234, 0.4949, 0.3333], abs=1e-4)
    with pytest.raises(SearchError, match=r"deberta-v3-hpo.* other data, metric"):
        search(brief(*OLD, "hpo.metric.name=recall"), corpus)
    with pytest.raises(SearchError, match=r"deberta-v3-hpo.* other objective"):
        run_search(lambda trial: 0.5, brief(*OLD))
    # Since then every annotated pair is used and other negatives are drawn: its scores are of other pairs, and none are mixed.
    with pytest.raises(SearchError, match=r"deberta-v3-hpo.* other data.*NAME"):
        search(brief(*OLD), corpus)
    assert len(trials_table(SearchResult.load(brief(*OLD)).study)) == 4


class Stop(SearchCallback):
    """Stops the search after a trial."""

    def on_trial_end(self, study: optuna.Study, trial: FrozenTrial) -> None:
        self.wants_stop = True


PENALTY = 0.01


def test_an_own_objective_is_searched_stopped_and_resumed_and_has_an_identity(
    brief: Callable[..., Params], corpus: Corpus, folds: list[Fold], monkeypatch: pytest.MonkeyPatch
) -> None:
    params = brief()

    def objective(trial: optuna.Trial) -> float:
        tried = suggest(trial, params)
        cv = cross_validate(corpus, folds, tried, callbacks=[report_folds(trial, "pr_auc")])
        return cv.score("pr_auc") - PENALTY * cv.seconds / 60

    result = run_search(objective, params, study="pr-auc-minus-cost", callbacks=[Stop()])
    assert result.stopped and count_trials(result.study)["total"] == 1
    result = run_search(objective, params, study="pr-auc-minus-cost")
    assert (result.n_earlier_trials, count_trials(result.study)["complete"]) == (1, 3)
    best = TrialRecord.read(result.best_trial)
    assert best.metric == "pr_auc" and best.fold_scores is not None and best.fold_seconds is not None
    cost = 0.01 * sum(best.fold_seconds) / 60
    assert result.best_value == pytest.approx(np.mean(best.fold_scores) - cost, abs=1e-6)
    assert result.params.training.args["learning_rate"] == result.best_trial.params["learning_rate"]
    assert len(result.predictions()["fold"].unique()) == 2
    with pytest.raises(SearchError, match=r'other .*code.*study="NAME"'):
        monkeypatch.setitem(globals(), "PENALTY", 0.02)
        run_search(objective, params, study="pr-auc-minus-cost")
    with pytest.raises(SearchError, match="other objective"):
        search(params, corpus, study="pr-auc-minus-cost")


def test_an_edited_loss_makes_another_identity_and_takes_no_old_folds(
    brief: Callable[..., Params], corpus: Corpus, folds: list[Fold], monkeypatch: pytest.MonkeyPatch
) -> None:
    import torch

    params = brief("hpo.trials.n_trials=1")

    def loss(logits: torch.Tensor, labels: torch.Tensor) -> torch.Tensor:
        return PENALTY * torch.nn.functional.cross_entropy(logits, labels, reduction="none")

    first = run_search(Objective(corpus, folds, params, loss=loss), params, study="own-loss")
    monkeypatch.setitem(globals(), "PENALTY", 5.0)
    edited = Objective(corpus, folds, params, loss=loss)
    with pytest.raises(SearchError, match=r"own-loss.* other loss"):
        run_search(edited, params, study="own-loss")
    second = run_search(edited, brief("hpo.trials.n_trials=1", "hpo.reuse=true"), study="edited")
    assert TrialRecord.read(second.best_trial).folds_from_before is None
    monkeypatch.setitem(globals(), "PENALTY", 0.01)
    third = run_search(
        Objective(corpus, folds, params, loss=loss), brief("hpo.trials.n_trials=1", "hpo.reuse=true"), study="third"
    )
    assert TrialRecord.read(third.best_trial).folds_from_before == 2 and third.best_value == first.best_value
