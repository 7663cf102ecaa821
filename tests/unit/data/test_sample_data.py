"""The bundled sample: the generator's own bytes, the published format, the size of a pilot."""

from __future__ import annotations

import csv
import re
from pathlib import Path

import evbind_lib.data.corpus
from evbind_lib.data.corpus import Corpus
from tests.sample.generate import make_corpus, write

PACKAGE = Path(evbind_lib.data.corpus.__file__).parent / "sample"
FILES = ("posts.csv", "annotations.csv", "redsm5_criteria.json")


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
