"""Every way in ends in a search with a best trial: each format, and exports of annotation tools, on small invented tables."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pandas as pd
import pytest

from evbind_lib.config.compose import compose
from evbind_lib.data.corpus import READERS, load_corpus
from evbind_lib.data.folds import make_folds
from evbind_lib.hpo.objective import Objective
from evbind_lib.hpo.search import run_search
from tests.conftest import BRIEF

N = 12
CLAIMS = [f"Tea number {n} is served hot." for n in range(N)]
STEAMING, OTHER = ([f"{words} {n}." for n in range(N)] for words in ("Steam rose from cup", "The bus was late on day"))


def lines(file: Path, rows: list[dict[str, Any]]) -> Path:
    file.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    return file


def redsm5(folder: Path) -> list[str]:
    posts = [{"post_id": f"p{n}", "text": f"I lie awake in night {n}. {OTHER[n]} I had soup {n}."} for n in range(N)]
    rows = [(f"p{n}", f"I lie awake in night {n}.", "SLEEP_ISSUES", 1) for n in range(N)]
    rows += [(f"p{n}", OTHER[n], "SLEEP_ISSUES", 0) for n in range(N)]
    pd.DataFrame(posts).to_csv(folder / "posts.csv", index=False)
    names = ["post_id", "sentence_text", "DSM5_symptom", "status"]
    pd.DataFrame(rows, columns=names).to_csv(folder / "annotations.csv", index=False)
    return [f"data.{name}={folder}/{name}.csv" for name in ("posts", "annotations")]


def pairs(folder: Path) -> list[str]:
    rows = [
        (f"p{n}", "Is served hot.", text, label) for n in range(N) for text, label in ((STEAMING[n], 1), (OTHER[n], 0))
    ]
    pd.DataFrame(rows, columns=["post_id", "criterion", "sentence", "label"]).to_csv(
        folder / "pairs.tsv", sep="\t", index=False
    )
    return [f"data.pairs={folder}/pairs.tsv"]


def scifact(folder: Path) -> list[str]:
    abstracts = [
        {"doc_id": n, "title": "T", "abstract": [STEAMING[n], OTHER[n]], "structured": False} for n in range(N)
    ]
    supported = [{"sentences": [0], "label": "SUPPORT"}]
    claims = [{"id": n, "claim": CLAIMS[n], "evidence": {str(n): supported}, "cited_doc_ids": [n]} for n in range(N)]
    return [f"data.claims={lines(folder / 'c.jsonl', claims)}", f"data.corpus={lines(folder / 'd.jsonl', abstracts)}"]


def wice(folder: Path) -> list[str]:
    found = {"supporting_sentences": [[0]], "label": "supported"}
    rows = [
        {"claim": CLAIMS[n], "evidence": [STEAMING[n], OTHER[n]], "meta": {"id": f"dev{n}"}, **found} for n in range(N)
    ]
    return [f"data.pairs={lines(folder / 'dev.jsonl', rows)}"]


def label_studio(folder: Path) -> list[str]:
    """Its CSV: columns in the order of the alphabet, all texts quoted, the choice in a column named as its control."""
    rows = [
        {
            **{"annotation_id": 70 + at, "annotator": "ada@example.org", "created_at": "2026-03-09T21:52:49.513742Z"},
            **{"criterion": "Is served hot.", "id": at, "judged": "Evidence" if texts is STEAMING else "Not relevant"},
            **{"lead_time": 4.288, "post": n, "text": texts[n], "updated_at": "2026-03-09T22:16:08.746926Z"},
        }
        for at, (n, texts) in enumerate((n, texts) for n in range(N) for texts in (STEAMING, OTHER))
    ]
    pd.DataFrame(rows).to_csv(folder / "project-1.csv", index=False, quoting=2)
    names = "data.columns={sentence: text, label: judged, post_id: post}"
    return [f"data.pairs={folder}/project-1.csv", names, "data.labels={evidence: [Evidence], none: [Not relevant]}"]


def doccano(folder: Path) -> list[str]:
    """Its CSV of a text classification: metadata in columns of their own, labels joined by #; in a .zip for each annotator."""
    rows = [
        {"id": at, "text": texts[n], "criterion": "Is served hot.", "post_id": n, "label": name, "Comments": ""}
        for at, (n, texts, name) in enumerate(
            (n, *each) for n in range(N) for each in ((STEAMING, "evidence"), (OTHER, "other"))
        )
    ]
    archived = {"method": "zip", "archive_name": "admin.csv"}
    pd.DataFrame(rows).to_csv(folder / "export.zip", index=False, compression=archived)
    labels = "data.labels={evidence: [evidence], none: [other]}"
    return [f"data.pairs={folder}/export.zip", "data.columns={sentence: text}", labels]


FORMATS: dict[Callable[[Path], list[str]], str] = {each: each.__name__ for each in (redsm5, pairs, scifact, wice)}


@pytest.mark.parametrize("write", [*FORMATS, label_studio, doccano])
def test_a_short_search_on_a_file_of_each_format_ends_with_a_best_trial(
    write: Callable[[Path], list[str]], workspace: Path
) -> None:
    few = ["hpo.trials.n_trials=1", "training.args.max_steps=2", *write(workspace)]
    params = compose([*BRIEF, *few], hpo="quick", data=FORMATS.get(write, "pairs"))
    corpus = load_corpus(params)
    assert (corpus.source, corpus.report.evidence) == (params.data.format, N)
    folds = make_folds(corpus, params)
    result = run_search(Objective(corpus, folds, params), params)
    assert 0 <= result.best_value <= 1 and len(result.best_trial.intermediate_values) == 2
    assert set(result.predictions()["label"]) == {0, 1}


def test_every_format_is_searched() -> None:
    assert {*FORMATS.values()} == {*READERS}
