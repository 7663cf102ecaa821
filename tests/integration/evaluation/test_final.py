"""A model trained once on all posts: saved, loaded, found again, and asked from the shell and from a file."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Callable
from dataclasses import asdict
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import torch
from scipy.special import logit
from transformers import AutoModelForSequenceClassification, AutoTokenizer

from evbind_lib.config.compose import compose
from evbind_lib.config.schema import Params
from evbind_lib.data.corpus import Corpus
from evbind_lib.errors import DataError, EvbindError, ModelError
from evbind_lib.evaluation import final
from evbind_lib.evaluation.calibration import fit_calibration, thresholds
from evbind_lib.evaluation.final import finalize, model_folder, open_model
from evbind_lib.evaluation.model import ABOUT, EvidenceModel
from evbind_lib.evaluation.scoring import score_sentences
from evbind_lib.training.losses import LOSSES
from tests import checkpoints
from tests.conftest import BRIEF


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
    with monkeypatch.context() as patched, pytest.raises(ModelError, match="No space left"):
        move = Path.replace  # which fails for the new folder when the old one has been moved aside
        patched.setattr(Path, "replace", lambda own, to: fails(own) if own.suffix == ".part" else move(own, to))
        model.save(tmp_path / "model")
    assert [file.name for file in tmp_path.iterdir()] == ["model"]  # the old one, and nothing half written beside it
    assert EvidenceModel.load(tmp_path / "model").about == again.about
    model.save(tmp_path / "model")  # a model of ours is replaced, anything else is not
    (tmp_path / "notes").mkdir()
    (tmp_path / "notes" / "important.txt").write_text("x")
    with pytest.raises(ModelError, match="notes"):
        model.save(tmp_path / "notes")
    assert (tmp_path / "notes" / "important.txt").is_file()
    with pytest.raises(ModelError, match=r"notes.*evbind finalize"):
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


def test_plain_transformers_gives_the_same_logits_by_the_model_card(
    model: EvidenceModel, corpus: Corpus, tmp_path: Path
) -> None:
    model.save(tmp_path / "model")
    again, pairs = EvidenceModel.load(tmp_path / "model"), corpus.pairs.head(40)[["criterion", "sentence"]]
    pairs.loc[0, "sentence"] = "I cannot sleep and I am tired. " * 60  # which is cut
    pairs.to_json(tmp_path / "pairs.json", orient="values")
    code = """
import json, sys, torch
from transformers import AutoModelForSequenceClassification, AutoTokenizer
tokenizer = AutoTokenizer.from_pretrained("model")
model = AutoModelForSequenceClassification.from_pretrained("model", attn_implementation="eager").eval()
batch = tokenizer(*map(list, zip(*json.load(open("pairs.json")))), truncation="longest_first", padding=True, return_tensors="pt")
with torch.no_grad():
    logits = model(**batch).logits
print(json.dumps([model.config.id2label, (logits[:, 1] - logits[:, 0]).tolist(), "evbind_lib" in sys.modules]))
"""
    environment = {name: value for name, value in os.environ.items() if name != "PYTHONPATH"}
    done = subprocess.run([sys.executable, "-c", code], cwd=tmp_path, env=environment, capture_output=True, check=True)
    names, logits, ours = json.loads(done.stdout)
    assert names == {"0": "no_evidence", "1": "evidence"} and not ours
    assert again.about["precision"] == "fp32"
    assert logit(again.predict_proba(pairs)[:, 1]) == pytest.approx(logits, abs=1e-6)


def test_the_card_is_filled_from_facts_and_holds_no_text(corpus: Corpus, tmp_path: Path) -> None:
    corrected = {"value": 0.7959, "low": 0.7332, "high": 0.8585}
    found = {"study": "mine", "metric": "macro_f1", "corrected_score": corrected}
    params = compose(BRIEF).with_values({"training.provenance": found})
    made = finalize(corpus, params, predictions=made_predictions(corpus), aim="f1")
    made.save(tmp_path / "model")
    card = (tmp_path / "model" / "README.md").read_text()
    report, scores = corpus.report, thresholds(made_predictions(corpus), "f1").loc["all"]
    for fact in (
        *(corpus.fingerprint, "`tiny`", f"{report.pairs} annotated", f"{report.evidence} evidence", "150 groups"),
        *(f"f1 {scores['f1']:.3f}", "macro_f1 0.7959, 95 % interval 0.7332 to 0.8585", "no diagnosis", "aim f1"),
        *("holds their words", "| training.args.max_steps | 3 |", f"| version.torch | {torch.__version__} |"),
    ):
        assert fact in card, fact
    assert not any(sentence in card for sentence in corpus.sentences["sentence"])
    assert {file.stat().st_mode & 0o777 for file in (tmp_path / "model").glob("tokenizer*")} == {0o600}


def test_attention_of_a_loaded_model_is_sdpa_where_its_class_has_it_and_the_same(
    corpus: Corpus, tmp_path: Path, model: EvidenceModel
) -> None:
    bert = str(checkpoints.write_bert(tmp_path / "bert"))
    kept = AutoModelForSequenceClassification.from_pretrained(bert, num_labels=2, attn_implementation="eager").eval()
    about = {**model.about, "model": bert, "max_length": 64}
    about.pop("tokens")
    eager = EvidenceModel(kept, AutoTokenizer.from_pretrained(bert), about)
    eager.save(tmp_path / "model")
    loaded, pairs = EvidenceModel.load(tmp_path / "model"), corpus.pairs.head(20)
    assert "sdpa" in {each.config._attn_implementation for each in loaded.model.modules() if hasattr(each, "config")}
    assert loaded.predict_proba(pairs) == pytest.approx(eager.predict_proba(pairs), abs=1e-5)


def test_a_folder_that_does_not_go_together_is_refused(model: EvidenceModel, tmp_path: Path) -> None:
    for problem, change in {
        "thresholds for calibrated": {"threshold": 0.2},
        "tokenizer": {"tokens": "of another"},
        "no model": {"criteria": None},
    }.items():
        EvidenceModel(model.model, model.tokenizer, model.about).save(tmp_path / "model")
        (tmp_path / "model" / ABOUT).write_text(json.dumps({**model.about, **change}))
        with pytest.raises(ModelError, match=problem):
            EvidenceModel.load(tmp_path / "model")


def test_a_model_for_a_folder_is_trained_once_for_all_aims(
    brief: Callable[..., Params], corpus: Corpus, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    first = open_model(corpus, brief(), folder=tmp_path / "one")
    monkeypatch.setattr(final, "finalize", lambda *words, **options: pytest.fail("trained again"))
    again = open_model(
        corpus, brief(), predictions=made_predictions(corpus), aim="recall>=0.9", folder=tmp_path / "two"
    )
    assert again.about["aim"] == EvidenceModel.load(tmp_path / "two").about["aim"] == "recall>=0.9"
    assert EvidenceModel.load(tmp_path / "one").about["trained"] == first.about["trained"] == again.about["trained"]
