"""A model trained once on all posts: saved, loaded, found again, and asked from the shell and from a file."""

from __future__ import annotations

import io
import json
from collections.abc import Callable
from dataclasses import asdict
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from scipy.special import logit

from evbind_lib.cli import main
from evbind_lib.config.compose import compose
from evbind_lib.config.schema import Params
from evbind_lib.data.corpus import Corpus
from evbind_lib.errors import DataError, EvbindError, ModelError
from evbind_lib.evaluation import final
from evbind_lib.evaluation.calibration import fit_calibration, thresholds
from evbind_lib.evaluation.final import ABOUT, EvidenceModel, finalize, model_folder, open_model, score_sentences
from evbind_lib.training.losses import LOSSES
from tests.conftest import BRIEF

WORDS = ["trainer=default", "training.args.max_steps=3", "data.pos_neg_ratio=1", "training.n_folds=2"]


@pytest.fixture(scope="module")
def model(corpus: Corpus) -> EvidenceModel:
    return finalize(corpus, compose(BRIEF))


def test_a_model_gives_probabilities_and_decisions_of_pairs_of_texts(model: EvidenceModel, corpus: Corpus) -> None:
    pairs = corpus.pairs.head(70)[["criterion", "sentence"]]
    both = model.predict_proba(pairs)
    assert both.shape == (70, 2) and both.dtype == np.float64
    assert both.sum(axis=1) == pytest.approx(1) and ((both > 0) & (both < 1)).all()
    assert model.predict(pairs).tolist() == (both[:, 1] >= 0.5).astype(int).tolist()
    spaced = pairs.assign(sentence="  " + pairs["sentence"].str.replace(" ", "   "))
    assert model.predict_proba(spaced) == pytest.approx(both)  # texts are cleaned as those of the training were
    assert model.predict_proba(pairs.head(0)).shape == (0, 2)
    with pytest.raises(DataError, match=r"sentence .*did you mean 'sentense'"):
        model.predict_proba(pairs.rename(columns={"sentence": "sentense"}))


def test_a_folder_holds_all_that_it_takes_and_is_written_whole(
    model: EvidenceModel, corpus: Corpus, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    pairs = corpus.pairs.head(20)
    model.save(tmp_path / "model")
    again = EvidenceModel.load(tmp_path / "model")
    assert again.predict_proba(pairs) == pytest.approx(model.predict_proba(pairs), abs=1e-6)
    assert again.criteria == dict(corpus.criteria) and again.about == json.loads(json.dumps(model.about))
    assert {"model", "max_length", "precision", "training", "fingerprint", "pairs"} <= set(again.about)
    assert (tmp_path / "model" / "model.safetensors").is_file()
    text = "".join(file.read_text() for file in (tmp_path / "model").glob("*.json") if file.name != "tokenizer.json")
    assert not any(sentence in text for sentence in corpus.sentences["sentence"].head(50))

    def fails(folder: Path) -> None:
        raise OSError(28, "No space left on device")

    with monkeypatch.context() as patched, pytest.raises(ModelError, match="No space left"):
        patched.setattr(model.tokenizer, "save_pretrained", fails)
        model.save(tmp_path / "model")
    assert [file.name for file in tmp_path.iterdir()] == ["model"]  # the old one, and nothing half written beside it
    assert EvidenceModel.load(tmp_path / "model").about == again.about
    model.save(tmp_path / "model")  # a model of ours is replaced, anything else is not
    (tmp_path / "notes").mkdir()
    (tmp_path / "notes" / "important.txt").write_text("x")
    with pytest.raises(ModelError, match="notes"):
        model.save(tmp_path / "notes")
    assert (tmp_path / "notes" / "important.txt").is_file()
    with pytest.raises(ModelError, match=r"notes.*EvidenceModel\.save"):
        EvidenceModel.load(tmp_path / "notes")


def test_a_model_is_trained_once_and_found_again(brief: Callable[..., Params], corpus: Corpus) -> None:
    params = brief()
    folder = model_folder(corpus, params)
    assert folder is not None and not folder.exists()
    first = open_model(corpus, params)
    assert json.loads((folder / ABOUT).read_text())["fingerprint"] == corpus.fingerprint
    written = {file: file.stat().st_mtime_ns for file in folder.iterdir()}
    again = open_model(corpus, params)
    assert {file: file.stat().st_mtime_ns for file in folder.iterdir()} == written
    sentences = ["I cannot sleep.", "It rained."]
    scores = score_sentences(again, sentences)
    pd.testing.assert_frame_equal(score_sentences(first, sentences), scores)
    assert list(scores.columns) == list(corpus.criteria) and scores.index.tolist() == [1, 2]
    # What changes no weight changes no folder.
    for word in (
        *("training.n_folds=3", "data.eval_neg_ratio=2", "model.threads=1", "hpo.trials.n_trials=9"),
        *("hpo.search_space.weight_decay.high=0.1", "model.search_space.weight_decay.high=0.1", "data.sensitive=true"),
    ):
        assert model_folder(corpus, brief(word)) == folder
    for word in ("training.args.learning_rate=0.003", "data.pos_neg_ratio=2", "model.max_length=64", "training.seed=1"):
        assert model_folder(corpus, brief(word)) != folder


def made_predictions(corpus: Corpus, *, shift: float = 0.0) -> pd.DataFrame:
    """Predictions of two folds whose sampled negatives stand for ten each."""
    random, label = np.random.default_rng(0), np.arange(400) % 4 == 0
    names = {"fold": np.arange(400) // 200, "criterion_id": random.choice(list(corpus.criteria)[:2], 400)}
    names |= {"label": label.astype(int), "logit": random.normal(2.0 * label - 1.0, 1.0) + shift}
    return pd.DataFrame({**names, "weight": np.where(label, 1.0, 10.0)})


def test_a_model_is_calibrated_on_out_of_fold_predictions_and_keeps_it(
    model: EvidenceModel, corpus: Corpus, tmp_path: Path
) -> None:
    pairs, predictions = corpus.pairs.head(70), made_predictions(corpus)
    assert model.about["calibration"] is None and model.threshold == 0.5 and not model.thresholds
    found = finalize(corpus, compose(BRIEF), predictions=predictions, aim="recall>=0.9")
    by_hand, chosen = fit_calibration(predictions), thresholds(predictions, "recall>=0.9")["threshold"]
    assert found.predict_proba(pairs)[:, 1] == pytest.approx(by_hand(logit(model.predict_proba(pairs)[:, 1])), abs=1e-6)
    assert found.predict(pairs).tolist() == (found.predict_proba(pairs)[:, 1] >= chosen["all"]).astype(int).tolist()
    assert found.thresholds == chosen.drop(["all", "each"]).to_dict() and found.threshold == chosen["all"]
    found.save(tmp_path / "model")
    again = EvidenceModel.load(tmp_path / "model")
    assert again.about == json.loads(json.dumps(found.about)) and again.threshold == found.threshold
    assert again.predict_proba(pairs) == pytest.approx(found.predict_proba(pairs), abs=1e-6)


def test_another_calibration_or_aim_is_never_read_from_before_and_trains_nothing(
    brief: Callable[..., Params], corpus: Corpus, monkeypatch: pytest.MonkeyPatch
) -> None:
    params, pairs = brief(), corpus.pairs.head(20)
    open_model(corpus, params, predictions=made_predictions(corpus), aim="f1")
    monkeypatch.setattr(final, "fit", lambda *_: pytest.fail("the model is there and need not be trained"))
    for predictions, aim in (
        (made_predictions(corpus), "f1"),
        (made_predictions(corpus), "precision>=0.9"),
        (made_predictions(corpus, shift=2.0), "precision>=0.9"),
        (None, "f1"),
    ):
        opened = open_model(corpus, params, predictions=predictions, aim=aim)
        expected = predictions is not None and asdict(fit_calibration(predictions))
        assert (opened.about["calibration"] or False) == expected
        assert opened.about["aim"] == (aim if expected else None)
        kept = EvidenceModel.load(model_folder(corpus, params) or "")
        assert kept.about == opened.about and kept.threshold == opened.threshold
        assert kept.predict_proba(pairs) == pytest.approx(opened.predict_proba(pairs))


def test_what_cannot_be_calibrated_on_is_refused_before_a_model_is_trained(
    corpus: Corpus, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(final, "fit", lambda *_: pytest.fail("a model would have been trained"))
    table, params = made_predictions(corpus), compose(BRIEF)
    for predictions, aim, key in (
        (table, "recal>=0.9", "aim=recal>=0.9"),
        (None, "recall>=2", "aim=recall>=2"),
        (table[table["fold"] == 0], "f1", "two folds"),
        (table.drop(columns="weight"), "f1", "column weight"),
    ):
        with pytest.raises(EvbindError, match=key):
            finalize(corpus, params, predictions=predictions, aim=aim)


def test_a_loss_that_has_no_digest_is_trained_every_time(brief: Callable[..., Params], corpus: Corpus) -> None:
    with open(__file__) as held:  # an open file has no digest
        LOSSES["mine"] = lambda training, labels: LOSSES["weighted_ce"](training, labels) if held else None
        try:
            params = brief("training.loss_function=mine")
            assert model_folder(corpus, params) is None
            assert open_model(corpus, params).about["training"]["loss_function"] == "mine"
        finally:
            del LOSSES["mine"]


def test_a_model_of_half_precision_is_asked_without_a_gpu_too(model: EvidenceModel, corpus: Corpus) -> None:
    narrow = EvidenceModel(model.model, model.tokenizer, {**model.about, "precision": "fp16"})
    assert narrow.predict(corpus.pairs.head(9)).shape == (9,)


def test_criteria_by_id_or_by_a_text_of_ones_own(model: EvidenceModel) -> None:
    criteria = ["FATIGUE", "Someone talks about their garden."]
    assert list(score_sentences(model, ["I planted roses."], criteria).columns) == criteria


def test_a_file_is_scored_row_by_row_without_its_text(model: EvidenceModel, workspace: Path) -> None:
    texts = ["I cannot sleep.", "I am fine, and you?"]
    one_by_one = [score_sentences(model, [text], ["SLEEP_ISSUES"]).iloc[0, 0] for text in texts]
    for ids, name in ((["post_id"], "sentence"), (["post_id", "sentence_id"], "sentence_text"), ([], "sentence")):
        table = pd.DataFrame({**{column: ["a", "b"] for column in ids}, "other": ["x", "y"], name: texts})
        table.to_csv("new.csv", index=False)
        scores = final.score_table(model, final.read_sentences("new.csv"), ["SLEEP_ISSUES"])
        assert list(scores.columns) == [*(ids or ["row"]), "SLEEP_ISSUES"]
        assert scores["SLEEP_ISSUES"].tolist() == pytest.approx(one_by_one, abs=1e-5)  # whatever the padding
    assert scores["row"].tolist() == [2, 3]  # of the file


def test_from_the_shell(workspace: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["score", *WORDS, "--sentence", "I cannot sleep.", "--criterion", "SLEEP_ISSUES"]) == 0
    shown = capsys.readouterr()
    assert "Training the model on all posts" in shown.err and "aim=macro_f1" in shown.err
    probability, name = shown.out.split()
    assert name == "SLEEP_ISSUES" and 0 < float(probability) < 1
    (workspace / "new.jsonl").write_text('{"sentence": "I cannot sleep."}\n{"sentence": "It rained."}\n')
    assert main(["score", *WORDS, "--input", "new.jsonl"]) == 0
    shown = capsys.readouterr()
    assert "Training" not in shown.err  # the model is there now
    table = pd.read_csv(io.StringIO(shown.out))
    assert table["row"].tolist() == [1, 2] and len(table.columns) == 10
    assert table.loc[0, "SLEEP_ISSUES"] == pytest.approx(float(probability), abs=1e-3)
    assert main(["score", *WORDS, "--input", "new.jsonl", "--output", "scores.csv"]) == 0
    assert pd.read_csv("scores.csv").equals(table)


def test_printed_probabilities_are_as_high_as_evidence_is_frequent(
    corpus: Corpus, workspace: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    corpus.sentences.to_csv("all.csv", index=False)
    assert main(["score", *WORDS, "aim=recall>=0.9", "--input", "all.csv", "--output", "scores.csv"]) == 0
    scores = pd.read_csv("scores.csv")[list(corpus.criteria)]
    natural = corpus.pairs["label"].sum() / scores.size
    assert natural == pytest.approx(0.063, abs=0.001) and scores.to_numpy().mean() == pytest.approx(natural, abs=0.02)
    assert "aim=recall>=0.9" in capsys.readouterr().err


def test_what_cannot_be_scored_is_refused_before_a_model_is_trained(
    workspace: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (workspace / "other.csv").write_text("post_id,sentense\na,b\n")
    (workspace / "empty.csv").write_text("post_id,sentence\na,I cannot sleep.\nb,  \n")
    sentence = ["--sentence", "I cannot sleep."]
    for words, key, hint in (
        (["train", "--sentence", "x"], "--sentence", "score"),
        (["score", "--sentence", "x"], "trainer=hpo_best", "hpo_search"),
        (["score", *WORDS, *sentence, "--criterion", "SLEEP_ISUES"], "SLEEP_ISUES", "did you mean 'SLEEP_ISSUES'?"),
        (["score", *WORDS, "--input", "nowhere.csv"], "--input=nowhere.csv", ""),
        (["score", *WORDS, "--input", "other.csv"], "other.csv: ", "did you mean 'sentense'"),
        (["score", *WORDS, "--input", "empty.csv"], "empty.csv, row 3", ""),
        (["score", *WORDS, *sentence, "--sentence", " "], "Sentence 2 is empty", ""),
    ):
        assert main(words) == 2
        shown = capsys.readouterr().err
        assert key in shown and hint in shown and "Training" not in shown
    assert {file.name for file in workspace.rglob("*")} == {"other.csv", "empty.csv"}
