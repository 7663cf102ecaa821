"""What a corpus holds, by hand-made files; which files are refused, and that the message says what to do."""

from __future__ import annotations

import json
import random
import subprocess
import sys
from collections.abc import Callable
from functools import partial
from pathlib import Path

import pandas as pd
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from evbind_lib.config.compose import compose
from evbind_lib.config.schema import DataParams
from evbind_lib.data.corpus import DEFAULT_CRITERIA, READERS, Corpus, load_corpus
from evbind_lib.data.tables import clean_id, read_criteria, split_sentences
from evbind_lib.errors import DataError, ParamsError
from tests.conftest import PROJECT

SHARED = PROJECT.parent / "shared" / "data"
CRITERIA = {"SLEEP": "Sleeping badly.", "MOOD": "Low mood."}
POSTS = {"s_ann_1": "I lie awake. I feel low!\nHello there", "s_bob_1": "I lie  awake. Bye.", "s_bob_2": " "}
ROWS = [
    ("s_bob_1", "I lie awake.", "SLEEP", 1),
    ("s_ann_1", "I lie awake.", "SLEEP", 0),
    ("s_ann_1", "I feel low!", "MOOD", 1),
    ("s_ann_1", "I feel low!", "MOOD", 1),
    ("s_ann_1", "Something else.", "MOOD", 0),
    ("s_ann_1", "  ", "MOOD", 0),
    ("s_eve_1", "Kept without a post.", "SLEEP", 0),
    ("s_ann_1", "Of no known symptom.", "HUNGER", 1),
]
Write = Callable[..., DataParams]
DEFAULTS = compose()


def read(data: DataParams) -> Corpus:
    return load_corpus(DEFAULTS.model_copy(update={"data": data}))


def labelled(corpus: Corpus) -> dict[tuple[str, str], int]:
    keys = zip(corpus.pairs["criterion_id"], corpus.pairs["sentence"], strict=True)
    return dict(zip(keys, corpus.pairs["label"].tolist(), strict=True))


def write_pairs(folder: Path, table: pd.DataFrame, suffix: str = ".csv") -> DataParams:
    file = folder / f"pairs{suffix}"
    if suffix == ".parquet":
        table.to_parquet(file)
    elif suffix == ".jsonl":
        table.to_json(file, orient="records", lines=True)
    else:
        table.to_csv(file, index=False, sep="\t" if suffix == ".tsv" else ",")
    return DataParams(format="pairs", pairs=str(file))


def pairs_table() -> pd.DataFrame:
    rows = [
        ("p1", "Sleeping badly.", "I lie awake.", 1, "x"),
        ("p1", "Low mood.", "None", 0, "x"),
        ("p2", "Low mood.", "NA", 1, "y"),
        ("p3", "Sleeping badly.", "Fine, “really”.", 0, "y"),
    ]
    return pd.DataFrame(rows, columns=["post_id", "criterion", "sentence", "label", "forum"])


def refusal(load: Callable[[], object]) -> str:
    """Message of the one-sentence error that loading ends in."""
    with pytest.raises(DataError) as caught:
        load()
    message = str(caught.value)
    assert "\n" not in message and message[-1] in ".?"
    return message


# What is kept


def test_pairs_are_merged_into_the_first_post_and_evidence_wins(write_redsm5: Write) -> None:
    corpus = read(write_redsm5(ROWS, POSTS, CRITERIA))
    evidence = {("SLEEP", "I lie awake."): 1, ("MOOD", "I feel low!"): 1}
    assert labelled(corpus) == {**evidence, ("MOOD", "Something else."): 0, ("SLEEP", "Kept without a post."): 0}
    awake = corpus.pairs[corpus.pairs["sentence"] == "I lie awake."].iloc[0]
    assert (awake["post_id"], awake["group"], awake["criterion"]) == ("s_ann_1", "s_ann_1", "Sleeping badly.")
    assert corpus.pairs["label"].dtype == "int8" and list(corpus.pairs.index) == list(range(4))
    # Every sentence is in the pool once, with its first post.
    pool = dict(zip(corpus.sentences["sentence"], corpus.sentences["post_id"], strict=True))
    first = dict.fromkeys(["I lie awake.", "I feel low!", "Hello there", "Something else."], "s_ann_1")
    assert pool == {**first, "Bye.": "s_bob_1", "Kept without a post.": "s_eve_1"} and len(pool) == len(
        corpus.sentences
    )


def test_report_counts_what_was_done(write_redsm5: Write) -> None:
    corpus = read(write_redsm5(ROWS, POSTS, CRITERIA))
    found = {name: count for name, count in corpus.report.table()["count"].items() if count}
    assert found == {
        **{
            "posts": 3,
            "groups": 4,
            "criteria": 2,
            "annotations": 8,
            "pairs": 4,
            "evidence": 2,
            "explicit negatives": 2,
        },
        **{"sentences": 6, "unknown symptoms": 1, "empty sentences": 1, "repeated pairs": 2, "conflicting labels": 1},
        **{
            "repeated sentences": 1,
            "posts without text": 1,
            "annotations without post": 1,
            "annotations not in post": 1,
        },
    }
    assert corpus.support().loc[["SLEEP", "MOOD"]].to_numpy().tolist() == [[1, 1, 1], [1, 1, 1]]


def test_special_cases_are_negatives_of_every_criterion_or_dropped(write_redsm5: Write) -> None:
    rows = [*ROWS[:3], ("s_ann_1", "I dance.", "SPECIAL_CASE", 1), ("s_ann_1", "I feel low!", "SPECIAL_CASE", 0)]
    awake = {("SLEEP", "I lie awake."): 1}
    kept = read(write_redsm5(rows, POSTS, CRITERIA))
    special = {(name, text): 0 for name in CRITERIA for text in ("I dance.", "I feel low!")}
    assert labelled(kept) == {**awake, **special, ("MOOD", "I feel low!"): 1}
    dropped = read(write_redsm5(rows, POSTS, CRITERIA, special_case="drop"))
    assert labelled(dropped) == {**awake, ("MOOD", "I feel low!"): 1}
    assert kept.report.special_case_rows == dropped.report.special_case_rows == 2


def test_texts_that_look_alike_are_one(write_redsm5: Write) -> None:
    rows = [("a", "Cafe\u0301  is\t\x08shut\x9f ", "MOOD", 1), ("b", "Café is shut", "MOOD", 1), ("b", "NA", "MOOD", 0)]
    corpus = read(write_redsm5(rows, {"a": "x", "b": "None"}, CRITERIA))
    assert labelled(corpus) == {("MOOD", "Café is shut"): 1, ("MOOD", "NA"): 0}
    assert {"None", "NA"} < set(corpus.sentences["sentence"])


@pytest.mark.parametrize(
    "other",
    [
        *(
            "I DON'T SLEEP.",
            "I don\u2019t sleep.",
            "I don't sleep",
            "I don't sleep!!",
            "I don&#39;t sleep.",
            "I\u200b don't sleep.",
        ),
        *(
            "I don't sl\u00adeep.",
            "I don\uff07t sleep.",
            "\uff29 don't sleep.",
            " I  don't\tsleep. ",
            "I don&apos;t sleep\u2026",
        ),
    ],
)
def test_texts_are_one_whatever_the_case_quotes_width_marks_and_last_stop(write_redsm5: Write, other: str) -> None:
    rows = [("a", "I don't sleep.", "MOOD", 1), ("b", other, "MOOD", 0), ("b", "I do sleep.", "MOOD", 0)]
    corpus = read(write_redsm5(rows, {"a": "x", "b": other}, CRITERIA))
    assert labelled(corpus) == {("MOOD", "I don't sleep."): 1, ("MOOD", "I do sleep."): 0}
    assert corpus.report.conflicting_labels == 1 and len(corpus.sentences) == 3


def test_a_sentence_of_invisible_marks_is_empty_and_a_criterion_written_twice_is_the_first() -> None:
    rows = [("a", "1", "Sleeping badly", "I lie awake.", 1), ("b", "1", "sleeping badly.", "I had soup.", 0)]
    rows += [("b", "1", "Sleeping badly", "\u200b\ufeff", 0), ("b", "1", "Sleeping badly", "?", 0)]
    table = pd.DataFrame(rows, columns=["post_id", "criterion_id", "criterion", "sentence", "label"])
    corpus = Corpus.from_pairs(table)
    assert corpus.criteria == {"1": "Sleeping badly"} and corpus.report.empty_sentences == 1
    assert {sentence for _, sentence in labelled(corpus)} == {"I lie awake.", "I had soup.", "?"}


def test_ids_are_composed_without_invisible_marks_and_nothing_else() -> None:
    assert clean_id(" cafe\u0301\u200b_1\ufeff ") == "caf\u00e9_1"
    for name in ("00101", "T3_abc", "a  b", "x.", "\uff21"):
        assert clean_id(name) == name


def test_criteria_of_the_same_text_are_one(write_redsm5: Write) -> None:
    criteria = {"SLEEP": "Sleeping badly.", "INSOMNIA": "Sleeping  badly."}
    rows = [("a", "I lie awake.", "SLEEP", 1), ("b", "I lie awake.", "INSOMNIA", 0), ("b", "Hm.", "INSOMNIA", 0)]
    corpus = read(write_redsm5(rows, {"a": "x", "b": "y"}, criteria))
    assert labelled(corpus) == {("SLEEP", "I lie awake."): 1, ("SLEEP", "Hm."): 0}
    assert corpus.criteria == {"SLEEP": "Sleeping badly."}
    assert corpus.report.repeated_criteria == 1


def test_sentences_end_at_stops_and_line_ends() -> None:
    text = "One.  Two!\nThree\r\n\r\nfour? “Five”... 3.5 times"
    assert split_sentences(text) == ["One.", "Two!", "Three", "four?", "“Five”...", "3.5 times"]
    assert split_sentences(" \n ") == []


def test_packaged_criteria_are_the_nine_symptoms_and_the_default(write_redsm5: Write) -> None:
    assert len(read_criteria(DEFAULT_CRITERIA)) == 9
    rows = [("a", "I lie awake.", "SLEEP_ISSUES", 1)]
    corpus = read(write_redsm5(rows, {"a": "I lie awake."}, {}, criteria=None))
    symptoms = (
        "DEPRESSED_MOOD ANHEDONIA APPETITE_CHANGE SLEEP_ISSUES PSYCHOMOTOR FATIGUE WORTHLESSNESS COGNITIVE_ISSUES"
    )
    assert set(corpus.criteria) == {*symptoms.split(), "SUICIDAL_THOUGHTS"}


# Tables of pairs


@pytest.mark.parametrize("suffix", [".csv", ".tsv", ".parquet", ".jsonl"])
def test_tables_of_pairs_are_the_same_corpus_in_every_format(tmp_path: Path, suffix: str) -> None:
    corpus = read(write_pairs(tmp_path, pairs_table(), suffix))
    low = {("C0001", "None"): 0, ("C0001", "NA"): 1}
    assert labelled(corpus) == {**low, ("C0002", "I lie awake."): 1, ("C0002", "Fine, “really”."): 0}
    assert corpus.criteria == {"C0001": "Low mood.", "C0002": "Sleeping badly."}
    assert sorted(corpus.sentences["sentence"]) == ["Fine, “really”.", "I lie awake.", "NA", "None"]
    other = tmp_path / "other"
    other.mkdir()
    assert corpus.fingerprint == read(write_pairs(other, pairs_table())).fingerprint


def test_files_beside_a_table_of_pairs_add_sentences_and_texts_of_criteria(tmp_path: Path) -> None:
    (tmp_path / "posts.csv").write_text("\ufeffpost_id,text\np1,I lie awake. I read.\n", encoding="utf-8")
    table = pairs_table().assign(criterion_id=["S", "M", "M", "other"]).drop(columns="criterion")
    data = write_pairs(tmp_path, table).model_copy(update={"posts": str(tmp_path / "posts.csv")})
    assert "data.criteria" in refusal(lambda: read(data))
    criteria = tmp_path / "criteria.json"
    criteria.write_text(json.dumps({"criteria": [{"id": "S", "text": "Sleep."}, {"id": "M", "text": "Mood."}]}))
    corpus = read(data.model_copy(update={"criteria": str(criteria)}))
    assert corpus.criteria == {"S": "Sleep.", "M": "Mood."} and "I read." in set(corpus.sentences["sentence"])
    assert (corpus.report.unknown_symptoms, corpus.report.annotations_without_post) == (1, 2)


def test_a_table_in_memory_is_the_same_corpus_as_its_file(tmp_path: Path) -> None:
    table = pairs_table()
    for changed in (table, table.assign(label=table["label"].astype(float)), table.assign(label=table["label"] == 1)):
        corpus = Corpus.from_pairs(changed, group_by="forum")
        from_file = read(write_pairs(tmp_path, table).model_copy(update={"group_by": "forum"}))
        assert corpus.fingerprint == from_file.fingerprint and corpus.report == from_file.report
        assert (corpus.sensitive, corpus.source, from_file.source) == (True, "memory", "pairs")
        assert corpus.grouped_by == "forum" and corpus.groups == ("x", "y")
    assert not Corpus.from_pairs(table, sensitive=False).sensitive


def test_posts_in_memory_are_the_same_corpus_as_their_files(write_redsm5: Write) -> None:
    rows = [*ROWS, ("s_ann_1", "I dance.", "SPECIAL_CASE", 1)]
    names = ["post_id", "sentence_text", "DSM5_symptom", "status"]
    annotations, posts = pd.DataFrame(rows, columns=names), pd.DataFrame(POSTS.items(), columns=["post_id", "text"])
    for group_by in (None, "author", "post_id"):
        corpus = Corpus.from_posts(posts, annotations, CRITERIA, group_by=group_by)
        from_file = read(write_redsm5(rows, POSTS, CRITERIA, group_by=group_by or "auto"))
        assert corpus.fingerprint == from_file.fingerprint and corpus.report == from_file.report
        assert (corpus.sensitive, corpus.source, corpus.grouped_by) == (True, "memory", group_by or "author")


def test_tables_in_memory_are_checked_as_files_are() -> None:
    for column, values, words in (
        ("label", [1, 0, 2, 0], "pairs, row 2: label is 2"),
        ("post_id", ["p1", None, "p2", "p3"], "pairs, row 1: post_id is empty"),
        ("criterion", [None, "a", "b", "c"], "pairs, row 0: criterion is empty"),
        ("label", [0, 0, 0, 0], "pairs: no row is evidence"),
        ("criterion_id", ["A", "A", "B", "C"], "pairs: the criterion_id A has several texts"),
    ):
        message = refusal(partial(Corpus.from_pairs, pairs_table().assign(**{column: values})))
        assert message.startswith(words) and "data." not in message


def test_what_is_missing_in_memory_is_named() -> None:
    table, of = pairs_table(), Corpus.from_pairs
    assert "did you mean 'sentences'?" in refusal(lambda: of(table.rename(columns={"sentence": "sentences"})))
    assert "forum stands there twice" in refusal(lambda: of(pd.concat([table, table["forum"]], axis=1)))
    assert "group_by: there is no column" in refusal(lambda: of(table, group_by="forums"))
    assert "add a column criterion" in refusal(lambda: of(table.rename(columns={"criterion": "criterion_id"})))
    posts, rows = pd.DataFrame({"post_id": ["a"], "text": ["x"]}), [("a", "x", "MOODY", 1)]
    annotations = pd.DataFrame(rows, columns=["post_id", "sentence_text", "DSM5_symptom", "status"])
    for criteria, words in (({}, "no criterion"), ({"MOOD": " "}, "MOOD has no text"), (CRITERIA, "mean 'MOOD'")):
        assert words in refusal(partial(Corpus.from_posts, posts, annotations, criteria))
    assert "posts: the column text" in refusal(lambda: Corpus.from_posts(posts[["post_id"]], annotations, CRITERIA))


def test_whole_numbers_with_gaps_are_written_without_a_point() -> None:
    table = pairs_table().assign(post_id=[1.0, 1.0, 2.0, 3.0], sentence_id=[1.0, None, 2.0, 3.0])
    assert Corpus.from_pairs(table).pairs.sort_values("sentence")["sentence_id"].tolist() == ["3", "1", "2", "1_a1"]


def test_a_subset_holds_its_groups_alone(corpus: Corpus) -> None:
    some = corpus.groups[:7]
    part = corpus.subset(some)
    assert part.groups == some and part.criteria == corpus.criteria and part.fingerprint != corpus.fingerprint
    assert len(part.pairs) == corpus.pairs["group"].isin(some).sum() == part.report.pairs
    assert part.report.sentences == len(part.sentences) and part.report.groups == 7
    assert part.report.evidence + part.report.explicit_negatives == part.report.pairs
    assert (part.sensitive, part.source) == (corpus.sensitive, corpus.source)
    assert corpus.subset(corpus.groups).fingerprint == corpus.fingerprint
    assert "1 of 2 are not in the corpus" in refusal(lambda: corpus.subset([some[0], "s_who_1"]))


def test_a_format_of_ones_own_is_one_entry() -> None:
    READERS["reversed"] = lambda data: Corpus.from_pairs(pairs_table().iloc[::-1])
    try:
        corpus = read(DataParams(format="reversed", sensitive=False))
        assert (corpus.source, corpus.sensitive, len(corpus.pairs)) == ("reversed", False, 4)
        assert list(READERS.additions()) == ["reversed"]
    finally:
        del READERS["reversed"]
    with pytest.raises(ParamsError, match=r"data\.format=redsm: .*did you mean 'redsm5'"):
        read(DataParams(format="redsm"))


def test_a_file_that_is_needed_must_be_named_and_be_there(write_redsm5: Write, tmp_path: Path) -> None:
    for data, key in ((DataParams(), "posts"), (DataParams(format="pairs"), "pairs")):
        message = refusal(partial(read, data))
        assert message.startswith(f"data.{key} names no file") and f"set data.{key}=FILE" in message
    for key in ("posts", "annotations", "criteria"):
        data = write_redsm5(ROWS, POSTS, CRITERIA).model_copy(update={key: str(tmp_path / "gone.csv")})
        message = refusal(partial(read, data))
        assert message.startswith(f"data.{key}=") and "gone.csv" in message and f"set data.{key}" in message


# Groups


def test_groups_are_posts_authors_or_a_column(write_redsm5: Write, tmp_path: Path) -> None:
    posts, authors = {"s_ann_1", "s_bob_1", "s_bob_2", "s_eve_1"}, {"ann", "bob", "eve"}
    for wanted, groups in (("post_id", posts), ("author", authors), ("auto", authors)):
        corpus = read(write_redsm5(ROWS, POSTS, CRITERIA, group_by=wanted))
        assert corpus.report.groups == len(groups) and set(corpus.groups) <= groups
        assert corpus.grouped_by == ("author" if wanted == "auto" else wanted)
    # A column goes before the author in the id.
    table = pairs_table().assign(post_id=["s_1_1", "s_1_1", "s_2_1", "s_3_1"], author=["a", "a", "b", "b"])
    for wanted in ("author", "auto"):
        assert read(write_pairs(tmp_path, table).model_copy(update={"group_by": wanted})).groups == ("a", "b")


def test_groups_that_are_not_one_per_post_are_refused(tmp_path: Path) -> None:
    for column, values, words in (
        ("forum", ["x", "y", "y", "y"], ["post_id p1", "several"]),
        ("forum", ["x", "x", "", "y"], ["post_id p2", "group by post_id"]),
        ("forumz", [], ["did you mean 'forum'?"]),
        ("author", [], ["post_id p1", "group by post_id"]),
    ):
        table = pairs_table().assign(**{column: values}) if values else pairs_table()
        message = refusal(partial(read, write_pairs(tmp_path, table).model_copy(update={"group_by": column})))
        assert message.startswith(f"data.group_by={column}: ") and all(word in message for word in words)


def test_a_post_given_twice_is_one_unless_its_texts_or_groups_differ(write_redsm5: Write) -> None:
    data = write_redsm5(ROWS, POSTS, CRITERIA, group_by="author")
    posts = Path(str(data.posts))

    def write(*rows: tuple[str, str, str]) -> None:
        pd.DataFrame(rows, columns=["post_id", "text", "author"]).to_csv(posts, index=False)

    others = [("s_bob_1", "y", "bob"), ("s_eve_1", "z", "eve")]
    write(("s_ann_1", "x", "ann"), ("s_ann_1", "x", "ann"), *others)
    assert read(data).report.repeated_posts == 1
    write(("s_ann_1", "x", "ann"), ("s_ann_1", "x", "anna"), *others)
    assert "the post_id s_ann_1 has several values" in refusal(lambda: read(data))
    write(("s_ann_1", "x", "ann"), ("s_ann_1", "y", "ann"), *others)
    message = refusal(lambda: read(data))
    assert "data.posts=" in message and "s_ann_1 has several texts" in message


# Fingerprint


@given(st.randoms(use_true_random=False), st.booleans())
@settings(max_examples=15, deadline=None)
def test_order_of_rows_changes_nothing(write_redsm5: Write, mixer: random.Random, with_ids: bool) -> None:
    def load(rows: list, posts: dict[str, str]) -> Corpus:
        data = write_redsm5(rows, posts, CRITERIA, group_by="author")
        if with_ids:  # one id for two sentences, as a careless table may have it
            table = pd.read_csv(str(data.annotations), keep_default_na=False).assign(sentence_id="1")
            table.to_csv(str(data.annotations), index=False)
        return read(data)

    rows, posts = list(ROWS), list(POSTS.items())
    mixer.shuffle(rows)
    mixer.shuffle(posts)
    plain, mixed = load(ROWS, POSTS), load(rows, dict(posts))
    assert plain.fingerprint == mixed.fingerprint
    pd.testing.assert_frame_equal(plain.pairs, mixed.pairs)
    pd.testing.assert_frame_equal(plain.sentences, mixed.sentences)


def test_any_change_of_content_changes_the_fingerprint(write_redsm5: Write) -> None:
    def fingerprint(rows: list = ROWS, posts: dict = POSTS, criteria: dict = CRITERIA, **others: str) -> str:
        return read(write_redsm5(rows, posts, criteria, **others)).fingerprint

    prints = [
        fingerprint(),
        fingerprint(rows=ROWS[:-3]),
        fingerprint(rows=[*ROWS[:4], ("s_ann_1", "Something else.", "MOOD", 1), *ROWS[5:]]),
        fingerprint(rows=[*ROWS[:4], ("s_ann_1", "Something else!", "MOOD", 0), *ROWS[5:]]),
        fingerprint(posts=POSTS | {"s_bob_2": "One more."}),
        fingerprint(criteria=CRITERIA | {"MOOD": "Sad mood."}),
        fingerprint(criteria=CRITERIA | {"HUNGER": "Eating little."}),
        fingerprint(group_by="author"),
    ]
    assert len(set(prints)) == len(prints)
    assert fingerprint() == prints[0]


# Refusals

HEAD = "post_id,sentence_text,DSM5_symptom,status\n"
PAIRS = "post_id,criterion,sentence,label\n"
# fmt: off
REFUSED = [  # parameter, content, words of the message
    ("annotations", "", "empty; give a file with data"),
    ("annotations", HEAD, "no rows; give a table with data"),
    ("annotations", "post_id,sentence,DSM5_symptom,status\na,x,MOOD,1\n", "sentence_text is missing; mean 'sentence'"),
    ("annotations", HEAD + "a,x,MOOD,1\na,y,MOOD,2\n", "row 3; status is 2; write 1"),
    ("annotations", HEAD + "a,x,MOOD,\n", "row 2; status is empty; write 1"),
    ("annotations", HEAD + " ,x,MOOD,1\n", "row 2; post_id is empty; fill it in"),
    ("annotations", HEAD + 'a,"x,MOOD,1\nb,y,MOOD,0\n', "quote texts"),
    ("annotations", HEAD + "a,x,MOOD,1\nb,y, and z,MOOD,0\n", "3; quote texts"),
    ("annotations", HEAD + "s_ann_1,x,MOODY,1\n", "no DSM5_symptom; MOODY; did you mean 'MOOD'?"),
    ("annotations", HEAD + "s_ann_1,x,SPECIAL_CASE,1\n", "every DSM5_symptom is SPECIAL_CASE; add rows"),
    ("annotations", HEAD + "s_ann_1,x,MOOD,0\n", "no row is evidence (status 1); add such rows"),
    ("annotations", HEAD + "a, ,MOOD,1\n", "every sentence is empty; give a table"),
    ("posts", b"post_id,text\na,caf\xe9\n", "not UTF-8; save it in UTF-8"),
    ("posts", "post_id,text\na,x\n".encode("utf-16"), "not UTF-8; save it in UTF-8"),
    ("posts", "id,text\na,x\n", "column post_id is missing"),
    ("posts", "post_id,text\na,x\n,y\n", "row 3; post_id is empty"),
    ("criteria", "", "empty"),
    ("criteria", '{"criteria": [', "not readable; line 1; correct"),
    ("criteria", "[1, 2]", "neither"),
    ("criteria", '{"criteria": [{"id": "A"}]}', "neither; write"),
    ("criteria", '{"criteria": []}', "names no criterion; add one"),
    ("criteria", '{"A": 1}', "criterion A has no text; write what"),
    ("criteria", '{"criteria": [{"id": "A", "text": "x"}, {"id": "A", "text": "y"}]}', "id A; twice; own id"),
    ("criteria", '{"A": "x", "A": "y"}', "id A; twice"),
    ("criteria", '{"A": " "}', "criterion A has no text; write what"),
    ("pairs.xlsx", "x", ".xlsx; CSV"),
    ("pairs", "x", "suffix; .csv"),
    ("pairs.parquet", "x", "not a .parquet file; write it again"),
    ("pairs.jsonl", '{"post_id": "a"}\n[1]\n', "line 2; not a JSON object; correct"),
    ("pairs.csv", "post_id,sentence,label\na,x,1\n", "criterion or criterion_id; has neither"),
    ("pairs.csv", PAIRS + "a,c,x,1\na,c,y,maybe\n", "row 3; label is maybe; write 1; data.labels={evidence: [...]"),
    ("pairs.csv", PAIRS + "a,c,x,1\na,,y,0\n", "row 3; criterion is empty; fill it in"),
    ("pairs.csv", PAIRS + "a,c,x,0\n", "no row is evidence (label 1); add such rows"),
    ("pairs.csv", "post_id,criterion_id,criterion,sentence,label\na,A,c,x,0\na,A,d,y,1\n", "A has several texts; its own id"),
]
# fmt: on


@pytest.mark.parametrize(("name", "content", "words"), REFUSED)
def test_a_file_that_cannot_be_used(
    write_redsm5: Write, tmp_path: Path, name: str, content: str | bytes, words: str
) -> None:
    data, key = write_redsm5(ROWS, POSTS, CRITERIA), name.partition(".")[0]
    file = Path(str(getattr(data, key) or tmp_path / name))
    file.write_bytes(content if isinstance(content, bytes) else content.encode())
    if key == "pairs":
        data = DataParams(format="pairs", pairs=str(file))
    message = refusal(lambda: read(data))
    assert message.startswith(f"data.{key}={file}")
    assert all(word in message for word in words.split("; ")), message


@pytest.mark.parametrize("columns", [(1, 0, 2, 3), (0, 2, 1, 3), (0, 3, 2, 1)])
def test_messages_repeat_no_text_that_slipped_into_another_column(
    write_redsm5: Write, columns: tuple[int, ...]
) -> None:
    data = write_redsm5([("a", "My own words", "MOOD", 1)], POSTS, CRITERIA, group_by="author")
    table = pd.read_csv(str(data.annotations))
    header = list(table.columns)
    table.iloc[:, list(columns)].set_axis(header, axis=1).to_csv(str(data.annotations), index=False)
    assert "own words" not in refusal(lambda: read(data))


# Beyond hand-made files


def test_data_is_light_to_import() -> None:
    check = "import sys, evbind_lib.data.corpus; print(*sys.modules)"
    shown = subprocess.run([sys.executable, "-c", check], capture_output=True, text=True, check=True)
    assert not {"sklearn", "torch", "transformers", "mlflow", "optuna"} & set(shown.stdout.split())


@pytest.mark.skipif(not (SHARED / "redsm5-sample").is_dir(), reason="the public ReDSM5 sample is not here")
def test_public_sample_of_redsm5() -> None:
    folder = SHARED / "redsm5-sample"
    data = DataParams(posts=str(folder / "posts.csv"), annotations=str(folder / "annotations.csv"), group_by="author")
    corpus = read(data)
    assert (len(corpus.pairs), corpus.report.posts, corpus.report.groups) == (25, 17, 14)
    assert (corpus.report.evidence, corpus.report.explicit_negatives) == (21, 4)
    assert corpus.report.annotations_without_post == corpus.report.unknown_symptoms == 0


@pytest.mark.skipif(not (SHARED / "wice-dev").is_dir(), reason="the dev split of WiCE is not here")
def test_wice() -> None:
    folder = SHARED / "wice-dev"
    files = {"posts": "posts.csv", "annotations": "annotations.csv", "criteria": "criteria.json"}
    corpus = read(DataParams(**{key: str(folder / name) for key, name in files.items()}))
    report = corpus.report
    assert (report.annotations, report.criteria, report.posts) == (41_700, 349, 349)
    assert report.pairs + report.repeated_pairs + report.empty_sentences == 41_700
    assert not corpus.pairs.duplicated(["criterion", "sentence"]).any()
    assert not corpus.sentences.duplicated("sentence").any()
    assert set(corpus.pairs["sentence"]) <= set(corpus.sentences["sentence"])
