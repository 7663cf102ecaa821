"""Whether the ids of two files meet, what folds keep whole, and that one line says so."""

from __future__ import annotations

from collections.abc import Callable

import networkx as nx
import pandas as pd
import pytest
from hypothesis import given
from hypothesis import strategies as st

from evbind_lib.config.compose import compose
from evbind_lib.config.schema import DataParams
from evbind_lib.data.corpus import Corpus, load_corpus
from evbind_lib.data.folds import Fold, leakage, make_folds
from evbind_lib.data.groups import connected
from evbind_lib.data.negatives import fold_pairs
from evbind_lib.errors import DataError, FoldError, ParamsError
from evbind_lib.notebook import run

CRITERIA = {"A": "Sleeping badly.", "B": "Low mood.", "C": "No joy."}
Spelling = Callable[[int], str]


def read(
    write_redsm5: Callable[..., DataParams], there: Spelling, here: Spelling, criterion: Spelling = "ABC".__getitem__
) -> Corpus:
    """Fifteen posts of five sentences, each annotated, as the two files spell their ids."""
    texts = {post: [f"Sentence {part} of post {post}." for part in range(5)] for post in range(15)}
    rows = [
        (here(post), text, criterion(part % 3), int((post + part) % 3 == 0))
        for post, parts in texts.items()
        for part, text in enumerate(parts)
    ]
    data = write_redsm5(
        rows, {there(post): " ".join(parts) for post, parts in texts.items()}, CRITERIA, group_by="auto"
    )
    return load_corpus(compose().model_copy(update={"data": data}))


@pytest.mark.parametrize(
    ("there", "here", "rule"),
    [
        ("{}", "{}.0", "a trailing .0"),
        ("00{}", "{}", "leading zeros"),
        ("Abc{}", "abc{}", "capitals"),
        ("p{}", "t3_p{}", "t3_"),
        ("p{}", "xp{}", "correct one of both"),
    ],
)
def test_ids_of_which_none_meets_are_refused_with_both_spellings_and_the_rule(
    write_redsm5: Callable[..., DataParams], there: str, here: str, rule: str
) -> None:
    with pytest.raises(DataError) as caught:
        read(write_redsm5, lambda post: there.format(post + 101), lambda post: here.format(post + 101))
    message = str(caught.value)
    assert f"here {here.format(101)}, there {there.format(101)}" in message and rule in message


@pytest.mark.parametrize("here", ["cafe\u0301{}", "caf\u00e9\u200b{}", "\ufeffcaf\u00e9{}"])
def test_ids_that_look_alike_meet(write_redsm5: Callable[..., DataParams], here: str) -> None:
    corpus = read(write_redsm5, "caf\u00e9{}".format, here.format)
    assert (corpus.report.annotations_without_post, corpus.report.groups) == (0, 15)
    assert corpus.summary == (
        "75 pairs, 25 of them evidence, 3 criteria; 15 groups (post_id: no id names an author as s_AUTHOR_POST)"
    )


def test_the_line_of_every_command_says_how_many_do_not_meet_and_what_would_match(
    write_redsm5: Callable[..., DataParams],
) -> None:
    odd = read(write_redsm5, "p{}".format, lambda post: f"p{post}" if post > 1 else f"t3_p{post}")
    assert "10 annotations of 2 posts that are not there, which would be there without Reddit's t3_" in odd.summary
    lower = read(write_redsm5, "p{}".format, "p{}".format, "aBC".__getitem__)
    assert "30 rows of unknown DSM5_symptom dropped (most often a, did you mean A?)" in lower.summary
    assert lower.report.unknown_symptoms == 30


def test_an_id_that_names_no_author_is_a_group_of_its_own_and_a_date_names_none(
    write_redsm5: Callable[..., DataParams],
) -> None:
    def spell(post: int) -> str:
        return f"s_{post // 2}_{post}" if post else "s_some_one_0"

    corpus = read(write_redsm5, spell, spell)
    # Posts 1 to 14 are of the authors 0 to 7.
    assert (corpus.grouped_by, corpus.report.groups) == ("author", 9) and "s_some_one_0" in corpus.groups
    assert "author: 1 of 15 ids name none" in corpus.summary
    dates = read(write_redsm5, "2024_01_{}".format, "2024_01_{}".format)
    assert (dates.grouped_by, dates.report.groups) == ("post_id", 15)


def test_posts_are_the_groups_of_a_table_and_authors_in_it_are_told_of() -> None:
    rows = [
        (f"p{post}", "Sleeping badly.", f"Sentence of post {post}.", post % 2, f"a{post // 2}") for post in range(8)
    ]
    table = pd.DataFrame(rows, columns=["post_id", "criterion", "sentence", "label", "author"])
    told = "8 groups (post_id: as group_by says, though the data name authors)"
    assert told in Corpus.from_pairs(table, group_by="post_id").summary
    table_without = table.drop(columns="author")
    assert "8 groups (post_id: as group_by says)" in Corpus.from_pairs(table_without).summary
    in_ids = table_without.assign(post_id=[f"s_{post // 2}_{post}" for post in range(8)])
    assert told in Corpus.from_pairs(in_ids).summary
    assert "4 groups (author: a column of the data)" in Corpus.from_pairs(table, group_by="author").summary


def test_repeated_sentence_ids_are_made_unique_by_the_text_and_counted() -> None:
    rows = [
        ("a", "0", "x", "One.", 1),
        ("a", "0", "y", "Two.", 0),
        ("a", "0", "y", "One.", 0),
        ("b", "0", "x", "Six.", 0),
    ]
    table = pd.DataFrame(rows, columns=["post_id", "sentence_id", "criterion", "sentence", "label"])
    for each in (table, table.iloc[::-1]):
        corpus = Corpus.from_pairs(each)
        found = dict(zip(corpus.pairs["sentence"], corpus.pairs["sentence_id"], strict=True))
        assert found == {"One.": "0", "Two.": "0~1", "Six.": "0"}
        assert corpus.report.repeated_sentence_ids == 1 and "1 repeated sentence id" in corpus.summary


# What several columns connect


def claims(group_by: str | list[str]) -> Corpus:
    """Sixty claims that are judged on several posts each, those of 24 with the same remainder."""
    rows = [
        (f"p{post}", f"Claim {claim} is true.", f"Sentence {claim} of {post}.", int((post + claim) % 3 == 0))
        for claim in range(60)
        for post in range(24)
        if post % 6 == claim % 6
    ]
    return Corpus.from_pairs(
        pd.DataFrame(rows, columns=["post_id", "criterion", "sentence", "label"]), group_by=group_by
    )


@given(st.lists(st.tuples(st.integers(0, 9), st.integers(0, 5)), min_size=1))
def test_connected_groups_are_the_components_of_the_graph(edges: list[tuple[int, int]]) -> None:
    graph = nx.Graph([(f"p{post}", value) for post, value in edges])
    posts = [f"p{post}" for post, _ in edges]
    found = connected({post: post for post in posts}, pd.Series(posts), pd.Series([value for _, value in edges]))
    for part in nx.connected_components(graph):
        inside = [post for post in part if isinstance(post, str)]
        assert {found[post] for post in inside} == {min(inside)}


@pytest.mark.parametrize("group_by", ["post_id", "criterion", ["post_id", "criterion"]])
def test_folds_by_criterion_share_none_and_the_audit_counts_them(group_by: str | list[str]) -> None:
    corpus = claims(group_by)
    params = compose(["training.n_folds=2", "data.negatives=sampled", "data.negative_strategy=all"])
    folds = make_folds(corpus, params)
    audited = leakage(corpus, folds)
    assert ("a leak of claims" in audited.attrs["criteria"]) == (group_by == "post_id")
    audit = audited.sum().to_dict()
    # Claims 0, 6, 12 ... are judged on the posts 0, 6, 12 ...: six components of ten claims and four posts.
    assert corpus.report.groups == {"post_id": 24, "criterion": 60}.get(str(group_by), 6)
    assert (audit["criteria"] == 0) == ("criterion" in group_by) and (audit["posts"] == 0) == (group_by != "criterion")
    assert audit["groups"] == audit["sentences"] == audit["pairs"] == 0
    for fold in folds:
        training, validation = fold_pairs(corpus, fold, params)
        shared = {*training["criterion_id"]} & {*validation["criterion_id"]}
        assert (not shared) == ("criterion" in group_by)
        for pairs, groups in ((training, fold.training_groups), (validation, fold.validation_groups)):
            assert {*corpus.groups_of(pairs)} <= groups


def test_a_few_criteria_are_classes_that_are_meant_on_both_sides(corpus: Corpus, folds: list[Fold]) -> None:
    audit = leakage(corpus, folds)
    assert audit.attrs["criteria"].startswith("9 of 9 criteria on both sides (meant") and not audit.to_numpy().any()


def test_columns_that_connect_most_pairs_to_one_group_are_told() -> None:
    rows = [("a", "c", "One.", 1), ("b", "c", "Two.", 0), ("b", "d", "Six.", 0)]
    table = pd.DataFrame(rows, columns=["post_id", "criterion", "sentence", "label"])
    assert (
        "these connect 100% of the pairs to one group"
        in Corpus.from_pairs(table, group_by=["post_id", "criterion"]).summary
    )
    assert "connect" not in claims(["post_id", "criterion"]).summary


def test_a_heading_that_joins_all_claims_is_named_where_folds_are_refused() -> None:
    rows = [(f"p{post}", f"Claim {post}.", text, post % 2) for post in range(9) for text in ("Aims:", f"Text {post}.")]
    table = pd.DataFrame(rows, columns=["post_id", "criterion", "sentence", "label"])
    params, group_by = compose(["training.n_folds=3"]), ["post_id", "criterion"]
    joined = Corpus.from_pairs(table, group_by=group_by)
    assert "100% of the pairs to one group, so take headings and the like out" in joined.summary
    with pytest.raises(FoldError) as caught:
        make_folds(joined, params)
    why, _, remedy = str(caught.value).partition(";")
    assert "only 1 groups (post_id, criterion: " in why and "several posts (1) join what would be 9 groups" in why
    assert "group by post_id" in remedy and "corpus.repeats" in remedy and "Aims" not in str(caught.value)
    without = Corpus.from_pairs(table[table["sentence"] != "Aims:"], group_by=group_by)
    assert len(make_folds(without, params)) == 3 and "several posts" not in without.summary


def test_data_group_by_takes_one_name_or_several() -> None:
    assert compose(["data.group_by=[post_id,criterion]"]).data.group_by == ["post_id", "criterion"]
    for wrong in ("[]", "3", "''"):
        with pytest.raises(ParamsError, match=r"data\.group_by"):
            compose([f"data.group_by={wrong}"])
    with pytest.raises(DataError, match="no column claims"):
        claims(["claims", "criterion"])


def test_what_every_command_checks_first_gives_its_line_on_the_data() -> None:
    _, corpus = run.check(run.find_notebook("explore_data"), {}, ["data.group_by=auto"])
    says = "Data: 420 pairs, 292 of them evidence, 9 criteria; 150 groups (author: named by every id, s_AUTHOR_POST)"
    assert f"Data: {corpus.summary}" == says
