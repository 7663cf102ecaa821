"""Folds: no leak, every group validated once, evidence spread, same content same folds, clear refusals."""

from __future__ import annotations

import random
from collections.abc import Callable
from pathlib import Path

import pandas as pd
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from evbind_lib.config.compose import compose
from evbind_lib.config.schema import DataParams, TrainingParams
from evbind_lib.data.corpus import Corpus, load_corpus
from evbind_lib.data.folds import Fold, balance, folds_fingerprint, leakage, make_folds
from evbind_lib.errors import FoldError
from tests.conftest import PROJECT

Write = Callable[..., DataParams]
DEFAULTS = compose()


def read(data: DataParams) -> Corpus:
    return load_corpus(DEFAULTS.model_copy(update={"data": data}))


def split(corpus: Corpus, n_folds: int, seed: int, same_post: bool | str = True) -> list[Fold]:
    data = DEFAULTS.data.model_copy(update={"seed": seed, "same_post_negatives": same_post})
    training = TrainingParams(n_folds=n_folds)
    return make_folds(corpus, DEFAULTS.model_copy(update={"data": data, "training": training}))


SAMPLE = PROJECT.parent / "shared" / "data" / "redsm5-sample"
CRITERIA = {"A": "Sleeping badly.", "B": "Low mood.", "RARE": "Eating little."}


def even_rows() -> list[tuple[str, str, str, int]]:
    """20 authors with one post each: ten with evidence of A, ten of B, two of RARE too, all one negative."""
    posts = [(f"s_{number:02d}_1", f"Said {number}.", f"Told {number}.", "AB"[number % 2]) for number in range(20)]
    rows = [row for post, said, told, name in posts for row in ((post, said, name, 1), (post, told, "A", 0))]
    return rows + [(*posts[number][:2], "RARE", 1) for number in (3, 7)]


def even_posts() -> dict[str, str]:
    return {f"s_{number:02d}_1": f"Filler {number}. Shared." for number in range(20)}


@pytest.fixture(scope="module")
def even(write_redsm5: Write) -> Corpus:
    return read(write_redsm5(even_rows(), even_posts(), CRITERIA, group_by="author"))


@given(n_folds=st.integers(2, 10), seed=st.integers(0, 2**32 - 1))
@settings(max_examples=15, deadline=None)
def test_every_group_is_validated_once_and_nothing_leaks(even: Corpus, n_folds: int, seed: int) -> None:
    folds = split(even, n_folds=n_folds, seed=seed)
    every = set(even.sentences["group"])
    assert [fold.index for fold in folds] == list(range(n_folds))
    assert sorted(group for fold in folds for group in fold.validation_groups) == sorted(every)
    for fold in folds:
        assert fold.training_groups == every - fold.validation_groups
    assert not leakage(even, folds).to_numpy().any()


@given(
    st.lists(
        st.tuples(
            st.integers(0, 11),
            st.integers(0, 15).map("Said {}.".format),
            st.sampled_from(sorted(CRITERIA)),
            st.integers(0, 1),
        ),
        max_size=40,
    ),
    st.integers(2, 5),
    st.randoms(use_true_random=False),
)
@settings(max_examples=20, deadline=None)
def test_uneven_data_splits_without_a_leak_or_is_refused_with_a_number_that_works(
    write_redsm5: Write, drawn: list, n_folds: int, mixer: random.Random
) -> None:
    rows = [(f"s_{number % 6}_{number}", *rest) for number, *rest in drawn] + [("s_0_0", "Mine.", "A", 1)]
    posts = {f"s_{number % 6}_{number}": f"Shared. Filler {number}." for number in range(12)}
    corpus = read(write_redsm5(rows, posts, CRITERIA, group_by="author"))
    try:
        folds = split(corpus, n_folds=n_folds, seed=1)
    except FoldError as error:
        remedy = str(error).rsplit("; ", 1)[1]
        if remedy.startswith("set training.n_folds="):
            works = int(remedy.removeprefix("set training.n_folds=").removesuffix(" or less."))
            assert 2 <= works < n_folds
            assert len(split(corpus, n_folds=works, seed=1)) == works
        else:
            assert remedy == "annotate more posts, or group by post_id."
        return
    assert not leakage(corpus, folds).to_numpy().any()
    assert (balance(corpus, folds)["evidence"] > 0).all()
    mixer.shuffle(rows)
    reordered = read(write_redsm5(rows, posts, CRITERIA, group_by="author"))
    assert split(reordered, n_folds=n_folds, seed=1) == folds


def test_each_common_criterion_is_spread_over_all_folds(even: Corpus) -> None:
    for seed in range(5):
        folds = split(even, n_folds=5, seed=seed)
        evidence = even.pairs[even.pairs["label"] == 1]
        for fold in folds:
            counts = evidence[evidence["group"].isin(fold.validation_groups)]["criterion_id"].value_counts()
            assert counts["A"] == counts["B"] == 2
            assert len(fold.validation_groups) == 4


def test_balance_describes_the_validated_part(even: Corpus) -> None:
    table = balance(even, split(even, n_folds=5, seed=3))
    assert list(table.index) == [1, 2, 3, 4, 5]
    assert table["groups"].tolist() == [4] * 5
    assert table[["annotated pairs", "evidence"]].sum().tolist() == [42, 22]
    expected = (table["evidence"] / table["annotated pairs"]).round(3)
    assert table["fraction of evidence"].tolist() == expected.tolist()


def test_groups_without_any_annotation_are_validated_too(write_redsm5: Write) -> None:
    posts = even_posts() | {f"s_more{number}_1": f"Quiet {number}." for number in range(15)}
    corpus = read(write_redsm5(even_rows(), posts, CRITERIA, group_by="author"))
    folds = split(corpus, n_folds=5, seed=1)
    validated = set().union(*(fold.validation_groups for fold in folds))
    assert validated == set(corpus.sentences["group"]) and len(validated) == 35
    assert max(len(fold.validation_groups) for fold in folds) <= 10


def test_folds_and_their_fingerprint_depend_on_seed_and_number(even: Corpus) -> None:
    def fingerprint(n_folds: int, seed: int) -> str:
        return folds_fingerprint(split(even, n_folds=n_folds, seed=seed))

    assert fingerprint(5, 1) == fingerprint(5, 1)
    assert len({fingerprint(5, 1), fingerprint(5, 2), fingerprint(4, 1)}) == 3


def test_leakage_is_counted_where_there_is_some(even: Corpus) -> None:
    every = frozenset(even.sentences["group"])
    table = leakage(even, [Fold(0, every, frozenset({"00", "01"}))])
    # 4 annotated sentences, 2 fillers and the shared one.
    assert table.loc[1].to_dict() == {"groups": 2, "posts": 2, "pairs": 4, "sentences": 7}


def test_a_sentence_annotated_in_several_posts_is_on_one_side_whatever_the_criterion_and_writing(
    write_redsm5: Write,
) -> None:
    rows = [("s_b_1", "I\u2019m TIRED", "A", 1), ("s_c_1", "I'm tired.", "B", 1), ("s_a_1", "Low.", "B", 1)]
    rows += [("s_a_1", "Nothing.", "A", 0), ("s_b_1", "Two.", "A", 0)]
    posts = {"s_a_1": "I'm tired! One.", "s_b_1": "Two.", "s_c_1": "Three."}
    corpus = read(write_redsm5(rows, posts, CRITERIA, group_by="author"))
    evidence = corpus.pairs[corpus.pairs["label"] == 1]
    assert set(zip(evidence["criterion_id"], evidence["post_id"], strict=True)) == {
        *(("A", "s_b_1"), ("B", "s_b_1"), ("B", "s_a_1")),
    }
    assert corpus.report.moved_pairs == 1
    for seed in range(5):
        assert not leakage(corpus, split(corpus, n_folds=2, seed=seed)).to_numpy().any()


# Refusals


def refusal(corpus: Corpus, n_folds: int, same_post: bool | str = True) -> str:
    with pytest.raises(FoldError) as caught:
        split(corpus, n_folds, 42, same_post)
    message = str(caught.value)
    assert message.startswith(f"training.n_folds={n_folds}: ") and message.endswith(".") and "\n" not in message
    return message


def test_more_folds_than_groups(even: Corpus) -> None:
    message = refusal(even, 21)
    assert "only 20 groups (author: " in message and "set training.n_folds=20 or less" in message


def test_evidence_in_too_few_groups(write_redsm5: Write) -> None:
    rows = [(post, text, name, label if post < "s_03" else 0) for post, text, name, label in even_rows()]
    corpus = read(write_redsm5(rows, even_posts(), CRITERIA, group_by="author"))
    message = refusal(corpus, 5)
    assert "only 3 of the 20 groups (author: named by every id, s_AUTHOR_POST) have evidence" in message
    assert "set training.n_folds=3 or less" in message


def test_evidence_in_one_group_alone(write_redsm5: Write) -> None:
    rows = [("s_a_1", "Tired.", "A", 1), ("s_a_2", "Awake.", "A", 1), ("s_b_1", "Fine.", "A", 0)]
    posts = {"s_a_1": "One.", "s_a_2": "Two.", "s_b_1": "Three."}
    by_author = read(write_redsm5(rows, posts, CRITERIA, group_by="author"))
    assert "annotate more posts, or group by post_id" in refusal(by_author, 2)
    assert len(split(read(write_redsm5(rows, posts, CRITERIA)), n_folds=2, seed=1)) == 2


def test_a_part_without_negatives(tmp_path: Path) -> None:
    rows = [("a", "c", "x", 1), ("b", "c", "y", 1), ("b", "c", "z", 0)]
    table = pd.DataFrame(rows, columns=["post_id", "criterion", "sentence", "label"])
    table.to_csv(tmp_path / "pairs.csv", index=False)
    corpus = read(DataParams(format="pairs", pairs=str(tmp_path / "pairs.csv")))
    message = refusal(corpus, 2)
    assert "would have no negatives" in message and message.endswith(
        "; annotate more posts, or set data.negatives=sampled."
    )


@pytest.mark.skipif(not SAMPLE.is_dir(), reason="the public ReDSM5 sample is not here")
@pytest.mark.parametrize(
    ("group_by", "same_post", "most"), [("author", True, 11), ("post_id", True, 12), ("post_id", "auto", 7)]
)
def test_public_sample_of_redsm5(group_by: str, same_post: bool | str, most: int) -> None:
    files = {name: str(SAMPLE / f"{name}.csv") for name in ("posts", "annotations")}
    corpus = read(DataParams(**files, group_by=group_by))
    for n_folds in (2, 5, most):
        folds = split(corpus, n_folds, 42, same_post)
        assert not leakage(corpus, folds).to_numpy().any()
    assert f"set training.n_folds={most} or less" in refusal(corpus, most + 1, same_post)
    assert f"set training.n_folds={most} or less" in refusal(corpus, 25, same_post)
