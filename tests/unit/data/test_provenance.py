"""A parameter set says so where it is used with something else than it was found with."""

from __future__ import annotations

import re
from typing import Any

import pytest

from evbind_lib.config.compose import compose
from evbind_lib.data.corpus import Corpus, load_corpus


@pytest.mark.parametrize(
    ("used", "found", "said"),
    [
        ({}, {}, ""),
        ({}, {"data_fingerprint": "other"}, "other data: .*; experiment=study_1st alone takes along"),
        ({"model.name": "mine", "training.n_folds": 3}, {}, "with other model and folds: "),
        ({}, {"lacks": ["loss", "data"]}, "with loss and data of your own, which no file holds: its score[^;]*$"),
        ({}, {"folds": 2, "lacks": ["loss"]}, "with other folds and with loss of your own"),
    ],
)
def test_a_set_that_is_used_with_something_else_says_so_once_in_one_sentence(
    corpus: Corpus, caplog: pytest.LogCaptureFixture, used: dict[str, Any], found: dict[str, Any], said: str
) -> None:
    stated = {"study": "1st", "data_fingerprint": corpus.fingerprint, "model": "tiny", "folds": 5, **found}
    params = compose().with_values({"training.provenance": stated, **used})
    for _ in range(2):
        load_corpus(params)
    messages = [record.getMessage() for record in caplog.records]
    assert len(messages) == bool(said) and re.search(said, "".join(messages))
