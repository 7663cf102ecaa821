"""`evbind finalize`, `score FOLDER` and `evaluate FOLDER`: a model that is kept, and asked where its training data are not."""

from __future__ import annotations

import io
import json
import os
import shutil
import signal
import time
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from mlflow import MlflowClient

from evbind_lib.cli import main
from evbind_lib.evaluation.model import EvidenceModel
from tests import forks
from tests.conftest import BRIEF

SENTENCES = ["I lie awake until four.", "It rained all day.", "I eat nothing any more."]


@pytest.fixture
def kept(workspace: Path, once: Callable[..., Path], mlflow_database: Path) -> Path:
    """The folder of a model, made by the command in another workspace."""

    def fill(folder: Path) -> None:
        before = os.environ["EVBIND_WORKSPACE"]
        (folder / "elsewhere").mkdir()
        shutil.copy(mlflow_database, folder / "elsewhere")
        os.environ["EVBIND_WORKSPACE"] = str(folder / "elsewhere")
        try:
            assert main(["finalize", "trainer=default", *BRIEF, "--output", str(folder / "model")]) == 0
        finally:
            os.environ["EVBIND_WORKSPACE"] = before
        client = MlflowClient(f"sqlite:///{folder / 'elsewhere' / 'mlflow.db'}")
        assert client.get_experiment_by_name("training") is not None  # its training is a run

    return shutil.copytree(once("kept", fill) / "model", workspace / "kept")


def test_sentences_are_asked_about_every_criterion_and_all_columns_but_text_are_kept(
    kept: Path, workspace: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    table = pd.DataFrame({"post_id": ["p1", "p1", "p2"], "sentence": SENTENCES, "annotator": ["a", "b", "a"]})
    table.to_csv("new.csv", index=False)
    model = EvidenceModel.load(kept)
    assert main(["score", "kept", "--input", "new.csv", "--output", "scores.csv", "--posts", "posts.csv"]) == 0
    scores = pd.read_csv("scores.csv")
    assert list(scores) == ["post_id", "annotator", "criterion_id", "probability", "decision"]
    assert len(scores) == 3 * len(model.criteria) and scores["annotator"].tolist()[:: len(model.criteria)] == [*"aba"]
    pairs = [(text, sentence) for sentence in SENTENCES for text in model.criteria.values()]
    evidence = model.predict_proba(pd.DataFrame(pairs, columns=["criterion", "sentence"]))[:, 1]
    assert scores["probability"].to_numpy() == pytest.approx(evidence, abs=5.1e-5)
    assert scores["decision"].tolist() == (evidence >= model.threshold).astype(int).tolist()
    posts = pd.read_csv("posts.csv").set_index(["post_id", "criterion_id"])
    for (post, criterion), rows in scores.groupby(["post_id", "criterion_id"]):
        found = posts.loc[(post, criterion)]
        assert found[["sentences", "evidence"]].tolist() == [len(rows), rows["decision"].sum()]
        assert found[["probability", "decision"]].tolist() == [rows["probability"].max(), rows["decision"].max()]
    assert sorted(file.name for file in workspace.iterdir()) == ["kept", "new.csv", "posts.csv", "scores.csv"]


def test_pairs_and_posts_are_scored_too_and_text_stays_where_it_is_asked_for(
    kept: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    pd.DataFrame({"criterion": ["A wish of one's own."], "sentence": SENTENCES[:1]}).to_csv("pairs.csv", index=False)
    assert main(["score", "kept", "--input", "pairs.csv", "--with-text"]) == 0
    table = pd.read_csv(io.StringIO(capsys.readouterr().out))
    assert list(table) == ["row", "criterion", "sentence", "probability", "decision"] and len(table) == 1
    whole = {"post_id": ["p1"], "text": [" ".join(SENTENCES)]}
    pd.DataFrame({**whole, "sentence_id": ["mine"]}).to_csv("named.csv", index=False)
    assert main(["score", "kept", "--input", "named.csv", "--criterion", "SLEEP_ISSUES"]) == 0
    out, err = capsys.readouterr()
    table = pd.read_csv(io.StringIO(out))
    assert table["sentence_id"].tolist() == ["mine"] * 3 and table["sentence_id_in_text"].tolist() == [0, 1, 2]
    assert len(err.splitlines()) == 1 and "\r" not in err, "no bar where nobody watches"
    pd.DataFrame(whole).to_csv("posts.csv", index=False)
    words = ["--input", "posts.csv", "--criterion", "SLEEP_ISSUES", "--posts", "by_post.csv"]
    assert main(["score", "kept", *words]) == 0
    table = pd.read_csv(io.StringIO(capsys.readouterr().out))
    (post,) = pd.read_csv("by_post.csv").to_dict("records")
    found = {"sentences": 3, "evidence": table["decision"].sum(), "decision": table["decision"].max()}
    assert post == {"post_id": "p1", "criterion_id": "SLEEP_ISSUES", **found, "probability": table["probability"].max()}
    assert table[["post_id", "sentence_id"]].to_numpy().tolist() == [["p1", 0], ["p1", 1], ["p1", 2]]
    assert main(["score", "kept", "--sentence", SENTENCES[0], "--criterion", "SLEEP_ISSUES"]) == 0
    (line,) = capsys.readouterr().out.splitlines()
    assert float(line.split()[0]) == pytest.approx(table["probability"][0], abs=1e-3)


def test_scoring_that_was_killed_goes_on_with_the_same_input_alone(kept: Path, workspace: Path) -> None:
    numbers = np.random.default_rng(0).integers(0, 999, 3000)
    pd.DataFrame({"sentence": [f"I counted {number} sheep." for number in numbers]}).to_csv("new.csv", index=False)
    words = ["score", "kept", "--input", "new.csv", "--output", "scores.csv"]
    part, process = workspace / "scores.csv.part", forks.begin(main, words)
    deadline = time.monotonic() + 120
    while process.poll() is None and time.monotonic() < deadline:
        if part.exists() and part.read_bytes().count(b"\n") > 2:  # its mark and two parts
            break
        time.sleep(0.02)
    os.kill(process.pid, signal.SIGKILL)
    process.wait()
    first = part.read_text().splitlines()
    assert len(first) > 2 and not (workspace / "scores.csv").exists()
    part.write_text("\n".join([first[0], first[1], first[2][:40]]))  # cut off within a line, as a full disk does
    doubted = json.loads(first[1])
    part.write_text("\n".join([first[0], json.dumps([0.123456] * len(doubted)), first[2][:40]]))
    assert main(words) == 0
    scores = pd.read_csv("scores.csv")
    # What was there is not asked again, and the rest is what it would have been.
    assert (scores["probability"] == 0.1235).sum() == len(doubted) and len(scores) == 27000 and not part.exists()
    part.write_text("\n".join(first) + "\n")
    assert main(["score", "kept", "--input", "new.csv", "--output", "scores.csv"]) == 2  # finished: never replaced
    (workspace / "scores.csv").unlink()
    pd.DataFrame({"sentence": SENTENCES}).to_csv("new.csv", index=False)
    assert main(words) == 2 and part.read_text().splitlines() == first  # of another input


@pytest.mark.usefixtures("mlflow_tables")
def test_labelled_data_are_scored_by_the_folder(kept: Path, capsys: pytest.CaptureFixture[str]) -> None:
    rows = [(f"p{number}", "SLEEP_ISSUES", f"Night {number} was long.", number % 2) for number in range(20)]
    table = pd.DataFrame(rows, columns=["post_id", "criterion_id", "sentence", "label"])
    table.to_csv("labelled.csv", index=False)
    assert main(["evaluate", "kept", "labelled.csv", "--output", "found.csv"]) == 0
    printed = capsys.readouterr().out
    assert "20 pairs, 10 of them evidence, of 20 groups" in printed and "not asked before" in printed
    assert "Whether a post has evidence for a criterion:\n  precision " in printed and printed.count(" to ") == 8
    model = EvidenceModel.load(kept)
    decided = model.predict(table.assign(criterion=model.criteria["SLEEP_ISSUES"]))
    precision = decided[table["label"] == 1].sum() / max(decided.sum(), 1)
    found = pd.read_csv("found.csv").set_index(["criterion", "metric"])["value"]
    assert found["all", "precision"] == pytest.approx(precision)
    assert main(["evaluate", "kept", "labelled.csv"]) == 0
    assert "asked once before" in capsys.readouterr().out


REFUSED = [
    (["finalize", "trainer=default", "--output", "notes"], "notes", "such a model"),
    (["score", "notes", "--sentence", "x"], "notes", "evbind finalize"),
    (["score", "kept", "hpo=quick", "--sentence", "x"], "hpo=quick", "its own parameters"),
    (["score", "kept"], "score", "--sentence"),
    (["score", "kept", "--input", "empty.csv"], "sentence", "missing"),
    (["score", "kept", "--input", "names.csv"], "NONE_SUCH", "criteria"),
    (["score", "kept", "--input", "new.csv", "--output", "notes"], "--output", "another file"),
    (["score", "kept", "--input", "new.csv", "--posts", "posts.csv"], "--posts", "post_id"),
    (["score", "kept", "--input", "ids.csv", "--posts", "posts.csv"], "--posts", "post_id"),
    (["score", "kept", "--input", "new.csv", "--output", "there.csv"], "there.csv", "another file"),
    (["evaluate", "kept"], "kept", "data=..."),
    (["evaluate", "kept", "new.csv"], "label", "missing"),
    (["train", "--with-text"], "--with-text", "evbind score"),
    (["score", "experiment=none_such", "--sentence", "x"], "none_such", "known are: "),
]


@pytest.mark.parametrize(("words", "key", "remedy"), REFUSED, ids=lambda value: "-".join(value)[:40])
def test_what_cannot_be_done_is_said_before_anything_is_trained_or_written(
    kept: Path, workspace: Path, capsys: pytest.CaptureFixture[str], words: list[str], key: str, remedy: str
) -> None:
    (workspace / "notes").mkdir()
    (workspace / "notes" / "mine.txt").write_text("x")
    (workspace / "new.csv").write_text("sentence\nIt rained.\n")
    (workspace / "empty.csv").write_text("other\nIt rained.\n")
    (workspace / "names.csv").write_text("criterion_id,sentence\nNONE_SUCH,It rained.\n")
    (workspace / "ids.csv").write_text("sentence_id,text\ns1,It rained.\n")
    (workspace / "there.csv").write_text("x\n")
    (workspace / "params" / "experiment").mkdir(parents=True, exist_ok=True)
    (workspace / "params" / "experiment" / "searched.yaml").write_text("# @package _global_\n")
    before = {file: file.stat().st_mtime_ns for file in workspace.rglob("*")}
    assert main(words) == 2
    out, err = capsys.readouterr()
    assert out == "" and err.startswith("evbind: ") and err.count("\n") == 1 and key in err and remedy in err
    assert {file: file.stat().st_mtime_ns for file in workspace.rglob("*")} == before
