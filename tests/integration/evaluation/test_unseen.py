"""Data that no trial has seen: what is held out, what is refused, what a model scores there and how often that was asked."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import mlflow
import pandas as pd
import pytest
from sklearn.metrics import average_precision_score, f1_score

from evbind_lib.config.compose import compose
from evbind_lib.config.paths import resolve_sqlite
from evbind_lib.config.schema import Params
from evbind_lib.data.corpus import Corpus
from evbind_lib.data.folds import held_out, make_folds
from evbind_lib.data.negatives import validation_pairs
from evbind_lib.data.unseen import split_off
from evbind_lib.errors import DataError, EvbindError, FoldError, ParamsError
from evbind_lib.hpo.objective import Objective
from evbind_lib.hpo.results import write_results
from evbind_lib.hpo.search import run_search
from evbind_lib.notebook import session
from evbind_lib.notebook.show import evaluation_summary
from evbind_lib.tracking import executions
from tests.conftest import BRIEF

Brief = Callable[..., Params]


@pytest.mark.parametrize("holdout", [0.1, 0.2, 0.25, 0.3])
def test_a_holdout_is_of_whole_groups_stratified_and_in_no_fold(holdout: float, corpus: Corpus) -> None:
    params = compose([f"training.holdout={holdout}", "training.n_folds=3"])
    apart = held_out(corpus, params)
    assert len(apart) / len(corpus.groups) == pytest.approx(holdout, abs=0.04)
    assert apart == held_out(corpus, params.with_values({"training.n_folds": 5}))
    folds = make_folds(corpus, params)
    for fold in folds:
        assert not apart & (fold.training_groups | fold.validation_groups)
    assert frozenset().union(apart, *(fold.validation_groups for fold in folds)) == {*corpus.groups}
    rest, unseen = split_off(corpus, params)
    assert ({*unseen.groups}, {*rest.groups}) == (apart, {*corpus.groups} - apart)
    assert unseen.pairs["label"].mean() == pytest.approx(corpus.pairs["label"].mean(), abs=0.1)
    assert not {*unseen.sentences["sentence"]} & {*rest.sentences["sentence"]}


def table(posts: range, evidence: range, text: str = "sentence") -> pd.DataFrame:
    rows = [
        (f"p{post}", "A criterion.", f"{text} {post} {row}", row == 0 and post in evidence)
        for post in posts
        for row in (0, 1)
    ]
    return pd.DataFrame(rows, columns=["post_id", "criterion", "sentence", "label"]).astype({"label": int})


@pytest.mark.parametrize(
    ("corpus_of", "overrides", "kind", "said"),
    [
        (range(20), (), ParamsError, "neither is set"),
        (range(20), ("training.holdout=0.2", "data.test=test.csv"), ParamsError, "both are set"),
        (range(2), ("training.holdout=0.1",), FoldError, r"training\.holdout=0\.1.*evidence"),
        (range(3), ("training.holdout=0.5", "data.test=null"), None, ""),
        (range(20), ("data.test=nothing.csv",), DataError, r"data\.test=nothing\.csv"),
        (range(20), ("data.test=empty",), DataError, "0 files posts"),
        (range(20), ("data.test=groups.csv",), DataError, r"1 of its 3 groups \(post_id\)"),
        (range(20), ("data.test=texts.csv",), DataError, "2 of its 6 annotated sentences"),
        (range(20), ("data.test=test.csv",), None, ""),
    ],
)
def test_what_trials_may_have_seen_is_refused_before_anything_is_trained(
    corpus_of: range, overrides: tuple[str, ...], kind: type[EvbindError] | None, said: str, workspace: Path
) -> None:
    corpus = Corpus.from_pairs(table(range(20), corpus_of))
    (workspace / "empty").mkdir()
    elsewhere = range(90, 93)
    table(elsewhere, elsewhere, "unseen").to_csv("test.csv", index=False)
    table(range(19, 22), range(19, 22), "unseen").to_csv("groups.csv", index=False)
    twice = table(elsewhere, elsewhere, "unseen")
    twice.loc[:1, "sentence"] = ["sentence 3 0", "sentence 3 1"]
    twice.to_csv("texts.csv", index=False)
    params = compose(["data.group_by=post_id", *overrides])
    if kind is None:
        rest, unseen = split_off(corpus, params)
        assert unseen.report.evidence > 0 and not {*rest.groups} & {*unseen.groups}
        return
    with pytest.raises(kind, match=said):
        split_off(corpus, params)


def test_a_folder_with_posts_and_annotations_is_a_test_set(corpus: Corpus, workspace: Path) -> None:
    posts = pd.DataFrame({"post_id": ["s_new_1", "s_new_2"], "text": ["A quiet day.", "Soup again."]})
    annotations = pd.DataFrame(
        [
            ("s_new_1", "s_new_1_0", "A quiet day.", "SLEEP_ISSUES", 0),
            ("s_new_2", "s_new_2_0", "Soup again.", "SLEEP_ISSUES", 1),
        ],
        columns=["post_id", "sentence_id", "sentence_text", "DSM5_symptom", "status"],
    )
    (workspace / "new").mkdir()
    posts.to_csv("new/posts.csv", index=False)
    annotations.to_csv("new/annotations.csv", index=False)
    rest, unseen = split_off(corpus, compose(["data.test=new"]))
    assert rest is corpus and unseen.groups == ("new",) and unseen.report.evidence == 1


def test_a_set_is_evaluated_only_on_what_its_search_held_out(brief: Brief, corpus: Corpus) -> None:
    for holdout, study in ((0.2, "apart"), (0.0, "all")):
        params = brief(f"training.holdout={holdout}", "hpo.trials.n_trials=1")
        objective = Objective(corpus, make_folds(corpus, params), params)
        result = run_search(objective, params, study=study)
        write_results(result)
        best = compose(trainer="hpo_best")
        provenance = best.training.provenance or {}
        assert best.training.holdout == holdout and ("held_out" in provenance) == (holdout > 0)
        if holdout:
            assert len(split_off(corpus, best)[1].groups) == 30
        for other in {"training.holdout=0.3", "training.holdout=0.2"} - {f"training.holdout={holdout}"}:
            with pytest.raises(ParamsError, match=f"study {study}.*have seen these"):
                split_off(corpus, compose([other], trainer="hpo_best"))


@pytest.mark.usefixtures("mlflow_tables")
def test_an_evaluation_is_scored_recorded_and_counted(
    corpus: Corpus, workspace: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(executions, "EXECUTION", executions.Execution())
    params = session.start("mine", [*BRIEF, "training.holdout=0.2", "training.args.max_steps=30"])
    rest, unseen = split_off(corpus, params)
    model = session.finalize(rest, params)
    first, again = session.evaluate(model, unseen), session.evaluate(model, unseen)
    assert (first.attrs["asked_before"], again.attrs["asked_before"]) == (0, 1)
    assert "once before" in evaluation_summary(again)[1][-1] and "not asked before" in evaluation_summary(first)[1][-1]
    pairs = validation_pairs(unseen, unseen.groups, params.data)
    probability, decided = model.predict_proba(pairs)[:, 1], model.predict(pairs)
    every = first.loc["all"]
    assert every.loc["macro_f1", "value"] == pytest.approx(f1_score(pairs["label"], decided, average="macro"))
    assert every.loc["pr_auc", "value"] == pytest.approx(average_precision_score(pairs["label"], probability))
    posts = pairs.assign(called=decided).groupby(["post_id", "criterion_id"])[["label", "called"]].max()
    called, both = posts["called"].sum(), (posts["called"] * posts["label"]).sum()
    expected = {"precision": both / called, "recall": both / posts["label"].sum()}
    found = first.attrs["posts"]
    assert called and {name: value for name, (value, _, _) in found.items()} == pytest.approx(expected)
    assert all(0 <= low <= value <= high <= 1 and low < high for value, low, high in found.values())
    sleep = pairs["criterion_id"] == "SLEEP_ISSUES"
    row = first.loc[("SLEEP_ISSUES", "pr_auc")]
    assert row["value"] == pytest.approx(average_precision_score(pairs["label"][sleep], probability[sleep]))
    assert (row["pairs"], row["evidence"]) == (sleep.sum(), pairs["label"][sleep].sum())
    assert (
        every["groups"] == pairs["post_id"].map(dict(unseen.sentences[["post_id", "group"]].to_numpy())).nunique()
    ).all()
    assert (every["low"] <= every["value"]).all() and (every["value"] <= every["high"]).all()
    lines = (workspace / "runs" / "evaluations.jsonl").read_text(encoding="utf-8").splitlines()
    assert [json.loads(line)["macro_f1"] for line in lines] == pytest.approx(
        [every.loc["macro_f1", "value"]] * 2, abs=1e-6
    )
    assert not any(group in "".join(lines) for group in unseen.groups if len(group) > 6)
    mlflow.set_tracking_uri(resolve_sqlite("sqlite:///mlflow.db"))
    runs = mlflow.search_runs(experiment_names=["training"]).query("`tags.mlflow.runName` == 'evaluate tiny'")
    assert sorted(runs["metrics.asked_before"]) == [0, 1]
    assert runs["metrics.macro_f1_low"].tolist() == pytest.approx([every.loc["macro_f1", "low"]] * 2)
    assert set(runs["tags.evbind.data_fingerprint"]) == {unseen.fingerprint}
