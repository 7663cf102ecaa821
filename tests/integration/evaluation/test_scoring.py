"""A model trained once on all posts, kept, found again, and asked from the shell and from a file."""

from __future__ import annotations

import io
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pandas as pd
import pytest

from evbind_lib.cli import main
from evbind_lib.config.compose import Params
from evbind_lib.data.corpus import load_corpus
from evbind_lib.errors import DataError
from evbind_lib.evaluation.final import ABOUT, open_scorer, read_sentences, score_table, scorer_folder

WORDS = ["trainer=default", "training.args.max_steps=3", "data.pos_neg_ratio=1"]


def test_a_scorer_is_trained_once_and_found_again(brief: Callable[..., Params], workspace: Path) -> None:
    params = brief()
    corpus = load_corpus(params.data)
    first = open_scorer(params, corpus)
    assert json.loads((first.folder / ABOUT).read_text())["data_fingerprint"] == corpus.fingerprint
    written = {file: file.stat().st_mtime_ns for file in first.folder.iterdir()}
    again = open_scorer(params, corpus)
    assert {file: file.stat().st_mtime_ns for file in again.folder.iterdir()} == written
    sentences = ["I cannot sleep.", "It rained."]
    pd.testing.assert_frame_equal(first.score(sentences), again.score(sentences))
    assert list(first.score(sentences).columns) == list(corpus.criteria)
    assert first.score(sentences).map(lambda p: 0 < p < 1).all().all()
    assert scorer_folder(brief("training.args.learning_rate=0.003"), corpus) != first.folder
    assert scorer_folder(brief("training.n_folds=3"), corpus) == first.folder  # folds play no part


def test_criteria_by_id_or_by_a_text_of_ones_own(brief: Callable[..., Params]) -> None:
    params = brief()
    scorer = open_scorer(params, load_corpus(params.data))
    own = "Someone talks about their garden."
    scores = scorer.score(["I planted roses."], ["FATIGUE", own])
    assert list(scores.columns) == ["FATIGUE", own]
    with pytest.raises(DataError, match=r"There is no criterion FATIGE; did you mean 'FATIGUE'\?"):
        scorer.score(["I planted roses."], ["FATIGE"])
    with pytest.raises(DataError, match="Sentence 2 is empty"):
        scorer.score(["I planted roses.", "  "])


def test_a_file_is_scored_row_by_row_without_its_text(brief: Callable[..., Params], workspace: Path) -> None:
    params = brief()
    scorer = open_scorer(params, load_corpus(params.data))
    table = pd.DataFrame({"post_id": ["a", "b"], "sentence": ["I cannot sleep.", "I am fine, and you?"]})
    table.to_csv(workspace / "new.csv", index=False)
    scores = score_table(scorer, read_sentences("new.csv"), ["SLEEP_ISSUES"])
    assert list(scores.columns) == ["post_id", "SLEEP_ISSUES"]
    one_by_one = [scorer.score([text], ["SLEEP_ISSUES"]).iloc[0, 0] for text in table["sentence"]]
    assert scores["SLEEP_ISSUES"].tolist() == pytest.approx(one_by_one, abs=1e-5)  # whatever the padding
    (workspace / "other.csv").write_text("post_id,sentense\na,b\n")
    with pytest.raises(
        DataError, match=r"other\.csv: it needs a column sentence and has none; did you mean 'sentense'"
    ):
        read_sentences("other.csv")


def test_from_the_shell(workspace: Path, capsys: Any) -> None:
    assert main(["score", *WORDS, "--sentence", "I cannot sleep.", "--criterion", "SLEEP_ISSUES"]) == 0
    told = capsys.readouterr()
    assert "Training the model on all posts" in told.err
    probability, name = told.out.split()
    assert name == "SLEEP_ISSUES" and 0 < float(probability) < 1
    (workspace / "new.jsonl").write_text('{"sentence": "I cannot sleep."}\n{"sentence": "It rained."}\n')
    assert main(["score", *WORDS, "--input", "new.jsonl"]) == 0
    told = capsys.readouterr()
    assert told.err == ""  # the model is there now
    table = pd.read_csv(io.StringIO(told.out))
    assert table["row"].tolist() == [1, 2] and len(table.columns) == 10
    assert table.loc[0, "SLEEP_ISSUES"] == pytest.approx(float(probability), abs=1e-3)
    assert main(["score", *WORDS, "--input", "new.jsonl", "--output", "scores.csv"]) == 0
    assert pd.read_csv("scores.csv").equals(table)


@pytest.mark.parametrize(
    ("words", "sentence"),
    [
        (["train", "--sentence", "x"], "--sentence and --input go with `evbind score`, not with train"),
        (["score", "--sentence", "x"], "trainer=hpo_best: params/trainer/hpo_best.yaml does not exist yet"),
        (["score", *WORDS, "--input", "no.csv"], "--input=no.csv: there is no such file"),
    ],
)
def test_mistakes(workspace: Path, capsys: Any, words: list[str], sentence: str) -> None:
    assert main(words) == 2
    assert sentence in capsys.readouterr().err


@pytest.mark.parametrize(
    ("words", "sentence"),
    [
        (["--sentence", "I cannot sleep.", "--criterion", "SLEEP_ISUES"], "did you mean 'SLEEP_ISSUES'?"),
        (["--input", "nowhere.csv"], "nowhere.csv"),
        (["--sentence", " "], "Sentence 1 is empty"),
    ],
)
def test_what_cannot_be_scored_is_told_before_a_model_is_trained(
    workspace: Path, capsys: pytest.CaptureFixture[str], words: list[str], sentence: str
) -> None:
    assert main(["score", "trainer=default", *words]) == 2
    told = capsys.readouterr().err
    assert sentence in told and "Training" not in told
    assert not list(workspace.rglob("*"))
