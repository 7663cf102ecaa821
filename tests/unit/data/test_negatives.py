"""Which negatives are drawn: no annotated pair, none twice, at the ratio, none on both sides of a fold."""

from __future__ import annotations

import random
from collections.abc import Mapping, Sequence
from typing import Any

import pandas as pd
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from evbind_lib.config.compose import compose
from evbind_lib.config.schema import DataParams, Params, TrainingParams
from evbind_lib.data.corpus import Corpus, load_corpus
from evbind_lib.data.folds import Fold, make_folds
from evbind_lib.data.negatives import COLUMNS, fold_pairs, part_counts, training_pairs, validation_pairs
from evbind_lib.data.tables import text_key
from evbind_lib.errors import DataError, FoldError
from tests.conftest import PROJECT

Row = tuple[str, str, str, int]
DEFAULTS = compose()


def settings_of(n_folds: int = 5, seed: int = 1, **data: Any) -> Params:
    branch = DataParams().model_copy(update={"same_post_negatives": True, "seed": seed, **data})
    return DEFAULTS.model_copy(update={"data": branch, "training": TrainingParams(n_folds=n_folds)})


def data_of(seed: int = 1, **data: Any) -> DataParams:
    return settings_of(seed=seed, **data).data


def made(rows: Sequence[Row], posts: Mapping[str, str] | None = None, group_by: str = "author") -> Corpus:
    """Corpus of these tables; files would only take time."""
    annotations = pd.DataFrame(rows, columns=["post_id", "sentence_text", "DSM5_symptom", "status"])
    texts = pd.DataFrame((posts or POSTS).items(), columns=["post_id", "text"])
    return Corpus.from_posts(texts, annotations, CRITERIA, group_by=group_by)


CRITERIA = {"A": "Sleeping badly.", "B": "Low mood.", "C": "Eating little."}
POSTS = {f"s_{number % 4}_{number}": f"Filler {number}. Shared. Also {number % 2}." for number in range(8)}

# Rows over few sentences, so that repeats, conflicts and sentences shared by authors are frequent.
ROWS = st.lists(
    st.tuples(
        st.sampled_from(sorted(POSTS)),
        st.sampled_from([*(f"Said {number}." for number in range(9)), "Shared.", "Filler 3."]),
        st.sampled_from(["A", "B", "C", "C", "SPECIAL_CASE"]),
        st.integers(0, 1),
    ),
    min_size=1,
    max_size=40,
).filter(lambda rows: any(row[3] == 1 and row[2] != "SPECIAL_CASE" for row in rows))
STRATEGIES = st.sampled_from(["stratified", "hard", "random", "all"])
RATIOS = st.sampled_from([0.1, 0.5, 1.0, 2.5, 3.0, 50.0])
EXAMPLES = settings(max_examples=12, deadline=None)


def keys(table: pd.DataFrame) -> list[tuple[str, str]]:
    return list(zip(table["criterion"], table["sentence"], strict=True))


def groups_of(corpus: Corpus, pairs: pd.DataFrame) -> set[str]:
    """Groups of the posts that pairs come from."""
    every = pd.concat([corpus.pairs, corpus.sentences])
    return set(every[every["post_id"].isin(pairs["post_id"])]["group"])


def inside(table: pd.DataFrame, groups: frozenset[str]) -> pd.DataFrame:
    return table[table["group"].isin(groups)]


def unannotated(corpus: Corpus, groups: frozenset[str]) -> set[tuple[str, str]]:
    """Every combination that may be sampled, listed one by one; none of these sentences is near another."""
    pool = inside(corpus.sentences, groups)["sentence"]
    return {(text, sentence) for text in corpus.criteria.values() for sentence in pool} - set(keys(corpus.pairs))


def some_groups(corpus: Corpus) -> frozenset[str]:
    """All groups but the last, and always one with evidence."""
    names = sorted(set(corpus.sentences["group"]))
    return frozenset({*names[:-1], corpus.pairs.loc[corpus.pairs["label"] == 1, "group"].iloc[0]})


@given(ROWS, STRATEGIES, RATIOS, st.integers(0, 3))
@EXAMPLES
def test_what_is_drawn_is_lawful(rows: list, strategy: str, ratio: float, seed: int) -> None:
    corpus = made(rows)
    groups = some_groups(corpus)
    pairs = training_pairs(corpus, groups, data_of(seed=seed, negative_strategy=strategy, pos_neg_ratio=ratio))
    annotated, sampled = pairs[pairs["origin"] == "annotated"], pairs[pairs["origin"] == "sampled"]

    assert list(pairs.columns) == COLUMNS and list(pairs.index) == list(range(len(pairs)))
    assert groups_of(corpus, pairs) <= groups
    assert len(set(keys(pairs))) == len(pairs)
    assert set(keys(sampled)) <= unannotated(corpus, groups)
    assert (sampled["label"] == 0).all() and pairs["label"].dtype == "int8"
    assert (pairs["criterion_id"].map(corpus.criteria) == pairs["criterion"]).all()
    of_groups = inside(corpus.pairs, groups)
    truth = dict(zip(keys(of_groups), of_groups["label"], strict=True))
    assert all(truth[key] == label for key, label in zip(keys(annotated), annotated["label"], strict=True))
    assert set(keys(annotated)) == set(truth)  # every annotated pair, negative ones included


@given(ROWS, st.sampled_from(["stratified", "hard", "random"]), RATIOS)
@EXAMPLES
def test_sampling_adds_to_all_annotated_negatives_up_to_the_ratio(rows: list, strategy: str, ratio: float) -> None:
    corpus = made(rows)
    groups = some_groups(corpus)
    of_groups, free = inside(corpus.pairs, groups), unannotated(corpus, groups)
    data = data_of(negative_strategy=strategy, pos_neg_ratio=ratio, eval_neg_ratio=ratio)
    for draw in (training_pairs, validation_pairs):
        pairs = draw(corpus, groups, data)
        together = (
            strategy == "random" and draw is training_pairs
        )  # else each criterion has the ratio of its own evidence
        for texts in [[*CRITERIA.values()]] if together else [[text] for text in corpus.criteria.values()]:
            mine, known = (table[table["criterion"].isin(texts)] for table in (pairs, of_groups))
            evidence, explicit = int(known["label"].sum()), int((known["label"] == 0).sum())
            possible = sum(criterion in texts for criterion, _ in free)
            quota = max(round(ratio * evidence), 0 if together else 1) if evidence else 0
            negatives = mine[mine["label"] == 0]
            assert len(negatives) == max(explicit, min(quota, explicit + possible))
            assert (negatives["origin"] == "annotated").sum() == explicit


@given(ROWS, STRATEGIES, RATIOS)
@EXAMPLES
def test_sampled_pairs_weigh_as_many_as_they_were_drawn_from(rows: list, strategy: str, ratio: float) -> None:
    corpus = made(rows)
    groups = some_groups(corpus)
    pairs = training_pairs(corpus, groups, data_of(negative_strategy=strategy, pos_neg_ratio=ratio))
    sampled, free = pairs[pairs["origin"] == "sampled"], unannotated(corpus, groups)
    assert (pairs.loc[pairs["origin"] == "annotated", "weight"] == 1.0).all()
    assert (sampled["weight"] >= 1.0).all() and pairs["weight"].dtype == float
    if strategy in ("random", "all"):  # one stratum
        assert sampled["weight"].sum() == pytest.approx(len(free) if len(sampled) else 0)
        return
    is_evidence = set(inside(corpus.pairs, groups).query("label == 1")["sentence"])
    for text, drawn in sampled.groupby("criterion"):
        of_criterion = [sentence for criterion, sentence in free if criterion == text]
        strata = [[one for one in of_criterion if (one in is_evidence) == first] for first in (True, False)]
        for stratum in strata if strategy == "hard" else [of_criterion]:
            within = drawn[drawn["sentence"].isin(stratum)]
            assert within["weight"].sum() == pytest.approx(len(stratum) if len(within) else 0)


def test_both_parts_of_a_fold_are_drawn_within_it(corpus: Corpus, folds: list[Fold]) -> None:
    training, validation = fold_pairs(corpus, folds[0], DEFAULTS)
    assert groups_of(corpus, training) <= folds[0].training_groups
    assert groups_of(corpus, validation) <= folds[0].validation_groups
    pd.testing.assert_frame_equal(validation, validation_pairs(corpus, folds[0].validation_groups, DEFAULTS.data))


def test_random_draws_over_all_criteria_alike() -> None:
    rows = [(f"p{number}", f"Said {number}.", "A", 1) for number in range(100)]
    posts = {f"p{number}": f"Told {number}. Wrote {number}. Sang {number}." for number in range(100)}
    pairs = training_pairs(
        made(rows, posts, "post_id"), set(posts), data_of(negative_strategy="random", pos_neg_ratio=3.0)
    )
    counts = pairs[pairs["origin"] == "sampled"]["criterion_id"].value_counts()
    # 300 drawn from 300, 400 and 400 combinations: 82, 109 and 109 expected, standard deviation about 8.
    assert counts.sum() == 300
    assert 58 < counts["A"] < 106 and 82 < counts["B"] < 136 and 82 < counts["C"] < 136


@given(ROWS)
@EXAMPLES
def test_all_and_natural_take_everything(rows: list) -> None:
    corpus = made(rows)
    groups = some_groups(corpus)
    everything = set(keys(inside(corpus.pairs, groups))) | unannotated(corpus, groups)
    for draw in (training_pairs, validation_pairs):
        pairs = draw(corpus, groups, data_of(negative_strategy="all", eval_neg_ratio="natural"))
        assert sorted(keys(pairs)) == sorted(everything)


def test_hard_prefers_evidence_for_another_criterion() -> None:
    rows = [(f"p{number}", f"Said {number}.", "AB"[number % 2], 1) for number in range(8)]
    posts = {f"p{number}": f"Filler {number}. More {number}." for number in range(8)}
    for ratio in (1.0, 2.0):
        corpus = made(rows, posts, "post_id")
        pairs = training_pairs(corpus, set(posts), data_of(negative_strategy="hard", pos_neg_ratio=ratio))
        negatives = pairs[pairs["label"] == 0]
        hard = negatives[negatives["sentence"].str.startswith("Said")]
        # Four sentences of evidence each: ratio 1 has room for no other, ratio 2 is filled up.
        assert hard["criterion_id"].value_counts().to_dict() == {"A": 4, "B": 4}
        assert len(negatives) == 8 * ratio


@given(ROWS, STRATEGIES, st.randoms(use_true_random=False))
@EXAMPLES
def test_draws_depend_on_content_and_seed_alone(rows: list, strategy: str, mixer: random.Random) -> None:
    corpus, data = made(rows), data_of(seed=7, negative_strategy=strategy)
    groups = sorted(some_groups(corpus))
    mixed_rows = list(rows)
    mixer.shuffle(mixed_rows)
    other = made(mixed_rows)
    for draw in (training_pairs, validation_pairs):
        first = draw(corpus, groups, data)
        pd.testing.assert_frame_equal(first, draw(corpus, groups, data))
        pd.testing.assert_frame_equal(first, draw(corpus, groups[::-1], data))
        columns = ["criterion", "sentence", "label", "origin", "weight"]
        reordered = draw(other, frozenset(groups), data)
        pd.testing.assert_frame_equal(first[columns], reordered[columns])


@given(ROWS, st.sampled_from([0.5, 3.0, "natural"]))
@EXAMPLES
def test_validation_is_the_same_whatever_training_is_set_to(rows: list, eval_neg_ratio: Any) -> None:
    corpus = made(rows)
    groups = some_groups(corpus)
    plain = validation_pairs(corpus, groups, data_of(eval_neg_ratio=eval_neg_ratio))
    for strategy, ratio in (("hard", 1.0), ("random", 10.0), ("all", 3.0)):
        changed = data_of(eval_neg_ratio=eval_neg_ratio, negative_strategy=strategy, pos_neg_ratio=ratio)
        pd.testing.assert_frame_equal(plain, validation_pairs(corpus, groups, changed))


@given(ROWS, STRATEGIES, st.sampled_from([3.0, "natural"]), st.integers(0, 100))
@EXAMPLES
def test_no_pair_is_trained_on_and_validated(rows: list, strategy: str, eval_neg_ratio: Any, seed: int) -> None:
    rows = [*rows, ("s_1_1", "Said 1.", "A", 1), ("s_2_2", "Said 2.", "A", 1)]
    corpus = made(rows)
    params = settings_of(2, seed, negative_strategy=strategy, eval_neg_ratio=eval_neg_ratio)
    try:
        folds = make_folds(corpus, params)
    except FoldError:  # so few rows may leave a part without evidence, which is refused
        return
    for fold in folds:
        training = training_pairs(corpus, fold.training_groups, params.data)
        validation = validation_pairs(corpus, fold.validation_groups, params.data)
        assert not set(keys(training)) & set(keys(validation))
        assert not groups_of(corpus, training) & groups_of(corpus, validation)
        for part in (training, validation):
            assert set(part["label"]) == {0, 1}


def test_seeds_and_roles_draw_differently() -> None:
    rows = [(f"p{number}", f"Said {number}.", "A", 1) for number in range(20)]
    corpus = made(rows, {f"p{number}": f"Filler {number}." for number in range(20)}, "post_id")
    drawn = [
        sorted(keys(draw(corpus, corpus.groups, data_of(seed=seed, pos_neg_ratio=0.5, eval_neg_ratio=0.5))))
        for draw in (training_pairs, validation_pairs)
        for seed in (1, 2)
    ]
    assert all(drawn[i] != drawn[j] for i in range(4) for j in range(i))


def test_more_than_five_million_pairs_are_refused() -> None:
    number = pd.Series(range(2_300)).astype(str)
    table = pd.DataFrame({"post_id": "p" + number, "criterion": "Claim " + number, "sentence": "Said " + number})
    table["label"] = table.index % 2
    corpus = Corpus.from_pairs(table)
    with pytest.raises(DataError, match=r"data\.negative_strategy=all: .* set .*strategy=stratified\.$"):
        training_pairs(corpus, corpus.groups, data_of(negative_strategy="all", negatives="sampled"))
    with pytest.raises(DataError, match=r"data\.eval_neg_ratio=natural: 5,290,000 pairs.*ratio=10\.$"):
        validation_pairs(corpus, corpus.groups, data_of(eval_neg_ratio="natural", negatives="sampled"))
    # A ratio needs no list of all combinations.
    drawn = validation_pairs(corpus, corpus.groups, data_of(negatives="sampled")).query(
        "criterion_id in @evident", local_dict={"evident": set(corpus.pairs.query("label == 1")["criterion_id"])}
    )
    assert (drawn["label"] == 0).sum() == 3 * (drawn["label"] == 1).sum()


CLAIMS = pd.DataFrame(
    [
        *((f"p{number}", "Few are evidence.", f"Said {number}.", int(number < 10)) for number in range(40)),
        *((f"p{number}", "None is evidence.", f"Told {number}.", 0) for number in range(20)),
    ],
    columns=["post_id", "criterion", "sentence", "label"],
)


def test_every_annotated_pair_of_a_table_is_used_and_none_is_added() -> None:
    corpus = Corpus.from_pairs(CLAIMS)
    params = settings_of(2)
    folds = make_folds(corpus, params)
    for fold in folds:
        for pairs, groups in zip(
            fold_pairs(corpus, fold, params), (fold.training_groups, fold.validation_groups), strict=True
        ):
            mine = CLAIMS[CLAIMS["post_id"].isin(groups)]
            assert sorted(keys(pairs)) == sorted(keys(mine)) and pairs["label"].sum() == mine["label"].sum()
            assert (pairs["origin"] == "annotated").all() and (pairs["weight"] == 1.0).all()
    counts = part_counts(corpus, folds, params)
    assert counts.loc[("all", "annotated")].tolist() == [10, 50, 0, 0, 0.167]
    assert counts.groupby("pairs")[["evidence", "annotated negatives"]].sum().loc["validated"].tolist() == [10, 50]
    assert not counts[["sampled negatives", "annotated left out"]].to_numpy().any()


def test_sampled_adds_nothing_where_annotated_negatives_exceed_the_ratio() -> None:
    corpus = Corpus.from_pairs(CLAIMS)
    drawn = training_pairs(corpus, corpus.groups, data_of(negatives="sampled", pos_neg_ratio=4.0))
    counts = drawn.groupby(["criterion", "origin"]).size()
    assert counts["Few are evidence."].to_dict() == {"annotated": 40, "sampled": 10}
    assert counts["None is evidence."].to_dict() == {"annotated": 20}


def test_a_table_without_negatives_is_sampled_and_annotated_is_refused() -> None:
    corpus = Corpus.from_pairs(CLAIMS[CLAIMS["label"] == 1].assign(criterion=["A.", "B."] * 5))
    assert set(training_pairs(corpus, corpus.groups, data_of())["origin"]) == {"annotated", "sampled"}
    with pytest.raises(DataError, match=r"data\.negatives=annotated: .*data\.negatives=sampled\.$"):
        training_pairs(corpus, corpus.groups, data_of(negatives="annotated"))


def test_no_negative_says_its_criterions_evidence_in_other_words() -> None:
    near = [
        "I just can't finish knitting now, and worry.",  # holds it
        "Can\u2019t finish knitting.",  # lies within it
        "Now I can't really finish those socks or knitting.",  # five of its seven words
    ]
    far = ["Now I am hungry.", "Knitting is for others.", "I just now ate."]
    posts = {"a": " ".join(["I just can't finish knitting now.", *near, *far]), "b": " ".join(["Well then.", *near])}
    corpus = made([("a", "I just can't finish knitting now!", "B", 1), ("b", "Well then.", "A", 1)], posts, "post_id")
    everything = training_pairs(corpus, ["a", "b"], data_of(negative_strategy="all"))
    drawn = everything[everything["origin"] == "sampled"].groupby("criterion_id")["sentence"].agg(set)
    assert drawn["B"] == {*far, "Well then."}
    assert drawn["A"] == {"I just can't finish knitting now!", *near, *far}  # of another criterion they are negatives
    withheld = data_of(negative_strategy="all", same_post_negatives=False)
    drawn = (
        training_pairs(corpus, ["a", "b"], withheld)
        .query("origin == 'sampled'")
        .groupby("criterion_id")["sentence"]
        .agg(set)
    )
    assert drawn["B"] == {"Well then."} and drawn["A"] == {"I just can't finish knitting now!", *far}


@pytest.mark.parametrize("found", [True, False])
def test_sentences_beside_evidence_are_drawn_only_where_annotated_sentences_are_found_in_their_posts(
    found: bool,
) -> None:
    posts = {f"p{number}": f"Told {number}. {'Said' if found else 'Spoke'} {number}." for number in range(10)}
    corpus = made([(post, f"Said {post[1:]}.", "A", 1) for post in posts], posts, "post_id")
    assert corpus.report.annotations_not_in_post == (0 if found else 10)
    drawn = training_pairs(corpus, posts, data_of(negative_strategy="all", same_post_negatives="auto"))
    assert drawn.query("criterion_id == 'A' and origin == 'sampled'").empty is not found


SHARED = PROJECT.parent / "shared" / "data"


@pytest.mark.parametrize(("name", "n_folds"), [("redsm5-sample", 5), ("wice-dev", 5)])
def test_counts_by_part_are_those_of_the_files(name: str, n_folds: int) -> None:
    if not (SHARED / name).is_dir():
        pytest.skip(f"{name} is not here")
    files = {key: str(SHARED / name / f"{key}.csv") for key in ("posts", "annotations")}
    if (SHARED / name / "criteria.json").is_file():
        files["criteria"] = str(SHARED / name / "criteria.json")
    params = DEFAULTS.model_copy(update={"data": DataParams(**files), "training": TrainingParams(n_folds=n_folds)})
    corpus = load_corpus(params)
    table = pd.read_csv(files["annotations"], keep_default_na=False)
    table = table.assign(text=table["sentence_text"].map(text_key))
    labels = table[table["text"] != ""].groupby(["DSM5_symptom", "text"])["status"].max()
    counts = part_counts(corpus, make_folds(corpus, params), params)
    names = ["evidence", "annotated negatives", "annotated left out"]
    expected = [(labels == 1).sum(), (labels == 0).sum(), 0]
    sums = counts.groupby("pairs")[names].sum()
    assert counts.loc[("all", "annotated"), names].tolist() == sums.loc["validated"].tolist() == expected
    assert sums.loc["trained"].tolist() == [count * (n_folds - 1) for count in expected]
