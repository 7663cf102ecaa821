"""The bundled sample: the script's own bytes, the published format, and hard enough to tell a search from a guess."""

from __future__ import annotations

import csv
import re
from pathlib import Path

import numpy as np
import pytest
from sklearn.feature_extraction.text import TfidfVectorizer
from sklearn.linear_model import LogisticRegression
from sklearn.pipeline import make_pipeline

import evbind_lib.data.corpus
from evbind_lib.config.compose import Params, compose
from evbind_lib.data.corpus import Corpus, load_corpus
from evbind_lib.data.folds import make_folds
from evbind_lib.data.negatives import training_pairs, validation_pairs
from evbind_lib.training.crossval import CrossValidator
from evbind_lib.training.metrics import compute_metrics
from tests.sample.generate import make_corpus, write

PACKAGE = Path(evbind_lib.data.corpus.__file__).parent / "sample"
FILES = ("posts.csv", "annotations.csv", "redsm5_criteria.json")


@pytest.fixture(scope="module")
def params() -> Params:
    return compose()


@pytest.fixture(scope="module")
def corpus(params: Params) -> Corpus:
    return load_corpus(params.data)


def test_the_script_writes_the_packaged_bytes(tmp_path: Path) -> None:
    write(tmp_path)
    assert [name for name in FILES if (tmp_path / name).read_bytes() != (PACKAGE / name).read_bytes()] == []


def test_another_seed_writes_another_sample() -> None:
    assert make_corpus(1) != make_corpus(2)


def test_columns_and_statuses_are_those_of_redsm5() -> None:
    with (PACKAGE / "annotations.csv").open(encoding="utf-8", newline="") as file:
        rows = list(csv.DictReader(file))
    assert list(rows[0]) == ["post_id", "sentence_id", "sentence_text", "DSM5_symptom", "status", "explanation"]
    assert {row["status"] for row in rows} == {"0", "1"}
    assert all(re.fullmatch(r"s_\d+_\d+", row["post_id"]) for row in rows)
    assert len({row["DSM5_symptom"] for row in rows} - {"SPECIAL_CASE"}) == 9


def test_its_size_is_that_of_a_pilot(corpus: Corpus) -> None:
    assert 150 <= corpus.report.posts <= 250
    assert corpus.grouped_by == "author" and corpus.report.groups < corpus.report.posts
    support = corpus.support()
    assert len(support) == 9 and support["groups with evidence"].min() >= 10
    assert corpus.report.explicit_negatives > 100
    dropped = ("unknown_symptoms", "empty_sentences", "conflicting_labels", "annotations_without_post")
    assert [getattr(corpus.report, name) for name in dropped] == [0, 0, 0, 0]


@pytest.mark.slow
def test_words_alone_do_not_tell_and_good_and_bad_settings_show(params: Params, corpus: Corpus) -> None:
    folds = make_folds(corpus, n_folds=5, seed=params.training.seed)[:2]
    floor = []
    for fold in folds:
        training = training_pairs(corpus, fold.training_groups, data=params.data, seed=42)
        validation = validation_pairs(corpus, fold.validation_groups, data=params.data, seed=42)
        by_words = make_pipeline(
            TfidfVectorizer(ngram_range=(1, 2)), LogisticRegression(class_weight="balanced", max_iter=2000)
        )
        by_words.fit(training["criterion"] + " " + training["sentence"], training["label"])
        probability = by_words.predict_proba(validation["criterion"] + " " + validation["sentence"])[:, 1]
        floor.append(compute_metrics(validation["label"].to_numpy(), probability)["macro_f1"])
    validator = CrossValidator(corpus, folds)

    def score(learning_rate: float) -> float:
        values = {"training.args.learning_rate": learning_rate, "training.args.num_train_epochs": 4}
        return validator.run(params.with_values(values)).score("macro_f1", "mean")

    good, low, high = score(2e-3), score(1e-4), score(1e-2)
    assert 0.5 < np.mean(floor) < 0.68  # seen: 0.60
    assert good > np.mean(floor) + 0.08  # seen: 0.80
    assert good > max(low, high) + 0.1
