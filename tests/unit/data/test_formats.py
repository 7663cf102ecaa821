"""Formats of claim verification, as published, on tiny files: the same pairs, folds that share no claim, and refusals."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from evbind_lib.config.compose import compose
from evbind_lib.data.corpus import Corpus, load_corpus
from evbind_lib.data.folds import leakage, make_folds
from evbind_lib.errors import DataError

ABSTRACTS = [
    {
        "doc_id": 11,
        "title": "T",
        "abstract": ["Tea was served.", "It was hot.", "We measured it."],
        "structured": False,
    },
    {"doc_id": 12, "title": "U", "abstract": ["Ice was kept.", "It did not melt."], "structured": False},
    {"doc_id": 13, "title": "V", "abstract": ["Nothing to see."], "structured": False},
]
CLAIMS = [
    {
        "id": 1,
        "claim": "Tea is hot.",
        "evidence": {"11": [{"sentences": [1], "label": "SUPPORT"}, {"sentences": [1, 2], "label": "SUPPORT"}]},
        "cited_doc_ids": [11],
    },
    {
        "id": 2,
        "claim": "Ice melts.",
        "evidence": {"12": [{"sentences": [1], "label": "CONTRADICT"}]},
        "cited_doc_ids": [12, 13],
    },
    {"id": 3, "claim": "Nothing is known.", "evidence": {}, "cited_doc_ids": [13]},
]
WICE = [
    {
        "claim": "Tea is hot.",
        "evidence": ["Menu", "Tea is hot."],
        "supporting_sentences": [[1]],
        "meta": {"id": "dev1"},
    },
    {
        "claim": "Ice is cold.",
        "evidence": ["Home", "Ice is", "very cold."],
        "supporting_sentences": [[1, 2], [2]],
        "meta": {"id": "dev2"},
    },
    {"claim": "Salt is sweet.", "evidence": ["No."], "supporting_sentences": [], "meta": {"id": "dev3"}},
]


def write(file: Path, rows: list) -> str:
    file.write_text("\n".join(map(json.dumps, rows)))
    return str(file)


def evidence(corpus: Corpus) -> set[tuple[str, str]]:
    found = corpus.pairs[corpus.pairs["label"] == 1]
    return set(zip(found["criterion"], found["sentence"], strict=True))


def test_sentences_of_scifacts_rationales_are_evidence_of_their_claim(tmp_path: Path) -> None:
    claims, abstracts = write(tmp_path / "claims.jsonl", CLAIMS), write(tmp_path / "corpus.jsonl", ABSTRACTS)
    params = compose([f"data.claims={claims}", f"data.corpus={abstracts}", "training.n_folds=2"], data="scifact")
    corpus = load_corpus(params)
    hot = {("Tea is hot.", "It was hot."), ("Tea is hot.", "We measured it.")}
    assert evidence(corpus) == hot | {("Ice melts.", "It did not melt.")}
    # Claim 3 cites what claim 2 does, so that they are one group, and folds share no claim.
    assert (corpus.report.pairs, corpus.report.groups, corpus.grouped_by) == (7, 2, "post_id, criterion")
    assert not leakage(corpus, make_folds(corpus, params)).to_numpy().any()
    assert dict(zip(corpus.pairs["sentence"], corpus.pairs["sentence_id"], strict=True))["We measured it."] == "11_2"


def test_sentences_of_wices_supporting_sets_are_evidence(tmp_path: Path) -> None:
    file = write(tmp_path / "dev.jsonl", WICE)
    corpus = load_corpus(compose([f"data.pairs={file}"], data="wice"))
    assert evidence(corpus) == {
        ("Tea is hot.", "Tea is hot."),
        ("Ice is cold.", "Ice is"),
        ("Ice is cold.", "very cold."),
    }
    assert corpus.report.pairs == 6 and corpus.groups == ("dev1", "dev2", "dev3")


def test_what_is_not_of_the_format_is_refused_with_its_line(tmp_path: Path) -> None:
    wice, abstracts = tmp_path / "dev.jsonl", write(tmp_path / "corpus.jsonl", ABSTRACTS[:2])
    claims = write(tmp_path / "claims.jsonl", CLAIMS)
    for rows, words in (
        ([WICE[0], {"claim": "x"}], ", line 2: not of this format ('meta' is missing)"),
        ([{**WICE[0], "evidence": None}], ", line 1: not of this format"),
        ([{**WICE[0], "claim": [1]}], ", row 1: criterion holds a list"),
        ([], ": the file is empty"),
    ):
        write(wice, rows)
        with pytest.raises(DataError) as caught:
            load_corpus(compose([f"data.pairs={wice}"], data="wice"))
        assert str(caught.value).startswith(f"data.pairs={wice}{words}")
    with pytest.raises(DataError, match=r"data\.claims=.*, line 2: the document 13 is not in data\.corpus"):
        load_corpus(compose([f"data.claims={claims}", f"data.corpus={abstracts}"], data="scifact"))
