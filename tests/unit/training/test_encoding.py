"""Pairs assembled from tokens are exactly what the tokenizer itself would make of them."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from transformers import AutoTokenizer, PreTrainedTokenizerBase

from evbind_lib.training import encoding
from evbind_lib.training.encoding import PairEncoder, longest_first_lengths
from evbind_lib.training.tiny import train_tiny_tokenizer
from tests import checkpoints

WORDS = ["I", "am", "tired", "all", "day", "no", "joy", "sleep", "friends", "heavy", "naïve", "…", "wörter"]


@pytest.fixture(scope="module")
def tokenizers(tmp_path_factory: pytest.TempPathFactory) -> dict[str, PreTrainedTokenizerBase]:
    folder = tmp_path_factory.mktemp("checkpoints")
    return {
        "tiny": train_tiny_tokenizer(checkpoints.texts()),
        "bert": AutoTokenizer.from_pretrained(checkpoints.write_bert(folder / "bert")),
        "roberta": AutoTokenizer.from_pretrained(checkpoints.write_roberta(folder / "roberta")),
        "deberta": AutoTokenizer.from_pretrained(checkpoints.write_deberta(folder / "deberta")),
    }


def table(pairs: list[tuple[str, str]]) -> pd.DataFrame:
    frame = pd.DataFrame(pairs, columns=["criterion", "sentence"])
    return frame.assign(label=np.arange(len(frame)) % 2)


@pytest.mark.parametrize("name", ["tiny", "bert", "roberta", "deberta"])
@settings(max_examples=60, deadline=None)
@given(
    pairs=st.lists(
        st.tuples(*[st.lists(st.sampled_from(WORDS), min_size=1, max_size=25).map(" ".join)] * 2),
        min_size=1,
        max_size=4,
    ),
    max_length=st.integers(8, 40),
)
def test_pairs_are_those_of_the_tokenizer(tokenizers: dict, name: str, pairs: list, max_length: int) -> None:
    tokenizer = tokenizers[name]
    encoded = PairEncoder(tokenizer, max_length).encode(table(pairs))
    names = tokenizer.model_input_names
    for item, (first, second) in zip((encoded[i] for i in range(len(encoded))), pairs, strict=True):
        expected = tokenizer(
            first,
            second,
            truncation="longest_first",
            max_length=max_length,
            return_token_type_ids="token_type_ids" in names,
        )
        assert item["input_ids"].tolist() == expected["input_ids"]
        if "token_type_ids" in names:
            assert item["token_type_ids"].tolist() == expected["token_type_ids"]


@given(st.integers(0, 60), st.integers(0, 60), st.integers(0, 80))
def test_the_longer_text_is_cut_first(first: int, second: int, budget: int) -> None:
    a, b = longest_first_lengths(first, second, budget)
    assert 0 <= a <= first and 0 <= b <= second
    assert a + b == min(first + second, budget)
    if first + second > budget:
        assert abs(a - b) <= 1 or (a == first and a < b) or (b == second and b < a)


def test_lengths_are_those_after_truncation(tokenizers: dict) -> None:
    encoded = PairEncoder(tokenizers["tiny"], 10).encode(table([("no joy", "sleep"), ("no joy", "tired " * 30)]))
    assert encoded.lengths().tolist() == [len(encoded[0]["input_ids"]), 10]


def test_a_text_is_tokenised_once(tokenizers: dict, monkeypatch: pytest.MonkeyPatch) -> None:
    encoder = PairEncoder(tokenizers["tiny"], 32)
    seen: list[str] = []

    class Counting:
        def __call__(self, texts: list[str], **options: object) -> object:
            seen.extend(texts)
            return tokenizers["tiny"](texts, **options)

    monkeypatch.setattr(encoder, "tokenizer", Counting())
    monkeypatch.setattr(encoding, "AT_ONCE", 2)
    first = encoder.encode(table([("no joy", "sleep"), ("no joy", "tired")]))
    second = encoder.encode(table([("no joy", "tired"), ("sleep", "no joy")]))
    assert sorted(seen) == ["no joy", "sleep", "tired"]
    assert first.tokens is second.tokens and first.tokens.dtype == np.int32, "held once for all folds"
    assert (
        first[1]["input_ids"].tolist()
        == second[0]["input_ids"].tolist()
        == tokenizers["tiny"]("no joy", "tired")["input_ids"]
    )


@pytest.mark.parametrize("name", ["tiny", "bert"])
def test_a_batch_is_padded_to_its_own_longest_pair(tokenizers: dict, name: str) -> None:
    tokenizer = tokenizers[name]
    pairs = [("no joy", "sleep"), ("heavy", "I am tired all day"), ("I am", "no")]
    encoded = PairEncoder(tokenizer, 64).encode(table(pairs))
    batch = encoded.collate([encoded[i] for i in range(3)])
    expected = tokenizer([a for a, _ in pairs], [b for _, b in pairs], padding="longest", return_tensors="np")
    assert np.array_equal(batch["input_ids"], expected["input_ids"])
    assert np.array_equal(batch["attention_mask"], expected["attention_mask"])
    assert ("token_type_ids" in batch) == (name == "bert")
    assert batch["labels"].tolist() == [0, 1, 0]


def test_truncation_keeps_a_pair_within_the_model(tokenizers: dict, tmp_path: Path) -> None:
    encoded = PairEncoder(tokenizers["roberta"], 64).encode(table([("tired " * 200, "heavy " * 200)]))
    assert len(encoded[0]["input_ids"]) == 64
