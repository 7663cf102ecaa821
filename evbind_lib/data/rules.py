"""The rules by which rows of text become pairs: checked, cleaned, grouped, merged; a message shows ids, never a text."""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping

import numpy as np
import pandas as pd

from evbind_lib.data.tables import clean, split_sentences
from evbind_lib.errors import DataError, did_you_mean

SPECIAL_CASE = "SPECIAL_CASE"
AUTHOR = re.compile(r"[^_]+_([^_]+)_[^_]+")
LABELS = {"0": 0, "1": 1, "0.0": 0, "1.0": 1, "False": 0, "True": 1}
Place = Callable[[str], str]  # how messages name a table: `data.pairs=FILE` or, in memory, `pairs`


def clean_rows(
    table: pd.DataFrame, posts: pd.DataFrame | None, place: str, label: str
) -> tuple[pd.DataFrame, dict[str, int]]:
    """Check ids and labels, clean the sentences, drop empty ones, give a sentence an id where it has none."""
    labels = _labels(table["label"], place, label)
    table = table.assign(post_id=_post_ids(table, place), label=labels, sentence=table["sentence"].map(clean))
    empty = table["sentence"] == ""
    if empty.all():
        raise DataError(f"{place}: every sentence is empty; give a table whose rows hold sentences.")
    without_post = 0 if posts is None else int((~table["post_id"].isin(posts["post_id"])).sum())
    counts = {"annotations": len(table), "annotations_without_post": without_post, "empty_sentences": int(empty.sum())}
    table = table[~empty]
    # Made ids number a post's sentences by text, so that they are the same whatever the order of rows.
    number = table.groupby("post_id")["sentence"].transform(lambda texts: pd.factorize(texts, sort=True)[0])
    made = table["post_id"] + "_a" + number.astype(str)
    given = table["sentence_id"].str.strip() if "sentence_id" in table else made
    return table.assign(sentence_id=given.where(given != "", made)), counts


def _post_ids(table: pd.DataFrame, place: str) -> pd.Series:
    ids = table["post_id"].str.strip()
    _refuse_rows(ids == "", place, "post_id is empty; fill it in, as folds keep posts whole")
    return ids


def _labels(values: pd.Series, place: str, column: str) -> pd.Series:
    plain = values.str.strip()
    labels = plain.map(LABELS)
    wrong = plain[labels.isna()]
    if len(wrong):
        # Anything longer may be a sentence that slipped into this column.
        shown = (wrong.iloc[0] or "empty") if len(wrong.iloc[0]) <= 5 else "neither 0 nor 1"
        raise DataError(f"{place}, row {wrong.index[0]}: {column} is {shown}; write 1 for evidence and 0 for none.")
    return labels.astype(np.int8)


def check_labels(labels: pd.Series, place: str, needed: Mapping[int, str]) -> None:
    """Refuse a table in which a label is missing that cannot be sampled either."""
    for label, what in needed.items():
        if not (labels == label).any():
            raise DataError(f"{place}: no row is {what}, so nothing can be learned; add such rows.")


def _refuse_rows(wrong: pd.Series, place: str, problem: str) -> None:
    """Raise for the first row in which something is wrong."""
    if wrong.any():
        raise DataError(f"{place}, row {wrong.idxmax()}: {problem}.")


def _refuse_several(values: pd.Series, ids: pd.Series, place: str, problem: str) -> None:
    """Raise for the first id that stands with several values."""
    several = values.groupby(ids).nunique() > 1
    if several.any():
        raise DataError(f"{place}: the {ids.name} {_shown(several.idxmax())} has several {problem}.")


def _shown(value: object) -> str:
    """Make sure that a message repeats ids only: what has spaces may be a text in the wrong column."""
    return str(value) if re.fullmatch(r"\S{1,60}", str(value)) else "(a text, not shown)"


def check_posts(posts: pd.DataFrame, place: str) -> tuple[pd.DataFrame, dict[str, int]]:
    """Posts with clean ids; one id has one text."""
    posts = posts.assign(post_id=_post_ids(posts, place))
    _refuse_several(posts["text"], posts["post_id"], place, "texts; give each post its own id")
    once = posts.drop_duplicates("post_id")
    empty = once["text"].str.strip() == ""
    return posts, {"repeated_posts": len(posts) - len(once), "posts_without_text": int(empty.sum())}


def clean_criteria(table: pd.DataFrame, place: str) -> pd.DataFrame:
    """Pairs with clean ids and texts of their criteria, at least one of both, and ids made of the texts where there are none."""
    columns = [column for column in ("criterion", "criterion_id") if column in table]
    if not columns:
        near = did_you_mean("criterion", table.columns)
        raise DataError(f"{place}: it needs a column criterion or criterion_id and has neither{near}")
    for column in columns:
        table = table.assign(**{column: table[column].map(clean)})
        _refuse_rows(table[column] == "", place, f"{column} is empty; fill it in for every row")
    if "criterion_id" not in table:
        texts = sorted(set(table["criterion"]))
        width = max(4, len(str(len(texts))))
        ids = {text: f"C{number:0{width}d}" for number, text in enumerate(texts, start=1)}
        table = table.assign(criterion_id=table["criterion"].map(ids))
    if "criterion" in table:
        _refuse_several(table["criterion"], table["criterion_id"], place, "texts; give each text its own id")
    return table


def with_texts(table: pd.DataFrame, criteria: Mapping[str, str], place: str, column: str) -> tuple[pd.DataFrame, int]:
    """Give every row the text of its criterion; rows whose id has no text are dropped, and counted."""
    if table.empty:
        raise DataError(f"{place}: every {column} is {SPECIAL_CASE}; add rows annotated for a criterion.")
    known = table["criterion_id"].isin(criteria)
    if not known.any():
        first = _shown(table["criterion_id"].iloc[0])
        near = did_you_mean(first, criteria)
        remedy = "; correct it, or give the criteria that have these ids." if near == "." else near
        raise DataError(f"{place}: no {column} is the id of a criterion, for example {first}{remedy}")
    kept = table[known]
    return kept.assign(criterion=kept["criterion_id"].map(criteria)), int((~known).sum())


def group_posts(group_by: str, rows: pd.DataFrame, posts: pd.DataFrame, place: str) -> tuple[str, dict[str, str]]:
    """Group of every post: the post itself, the value of a column, or the author that its id names."""
    ids = sorted({*rows["post_id"], *posts["post_id"]})
    authors = {post: match[1] for post in ids if (match := AUTHOR.fullmatch(post))}
    table = next((table for table in (posts, rows) if group_by in table), None)
    if group_by == "auto":
        has_authors = "author" in posts or "author" in rows or len(authors) == len(ids)
        return group_posts("author" if has_authors else "post_id", rows, posts, place)
    if group_by == "post_id":
        groups = {post: post for post in ids}
    elif table is not None:
        values = table[group_by].astype(str).str.strip()
        _refuse_several(values, table["post_id"], place, "values; name a column with one per post")
        groups = dict(zip(table["post_id"], values, strict=True))
    elif group_by == "author":
        groups = authors
    else:
        columns = ["author", *posts.columns, *rows.columns]
        raise DataError(f"{place}: there is no column of that name{did_you_mean(group_by, columns)}")
    for post in ids:
        if not groups.get(post):
            remedy = "add it (an author can stand in the id, as s_AUTHOR_POST) or group by post_id"
            raise DataError(f"{place}: the post_id {_shown(post)} has no {group_by}; {remedy}.")
    return group_by, groups


def merge(rows: pd.DataFrame) -> tuple[pd.DataFrame, dict[str, int]]:
    """First row of each (criterion, sentence), by post and sentence id; evidence if any is."""
    columns = ["post_id", "sentence_id", "criterion_id", "criterion", "sentence", "label", "group"]
    ordered = rows[columns].sort_values(columns[:5], kind="stable", ignore_index=True)
    keys = ["criterion", "sentence"]
    labels = ordered.groupby(keys, sort=False)["label"]
    highest, lowest = labels.transform("max"), labels.transform("min")
    first = ~ordered.duplicated(keys)
    counts = {"repeated_pairs": int((~first).sum()), "conflicting_labels": int((highest != lowest)[first].sum())}
    return ordered.assign(label=highest)[first].reset_index(drop=True), counts


def sentence_pool(rows: pd.DataFrame, posts: pd.DataFrame, groups: dict[str, str]) -> tuple[pd.DataFrame, int]:
    """Every distinct sentence once, from the first post that has it, and how many other posts repeat one.

    Within a post the annotated sentence comes before the same text in the post, so that it keeps its id.
    """
    split = posts.assign(sentence=posts["text"].map(split_sentences)).explode("sentence").dropna(subset="sentence")
    numbers = split.groupby("post_id").cumcount().astype(str)
    split["sentence_id"] = split["post_id"] + "_s" + numbers
    columns = ["post_id", "sentence_id", "sentence"]
    every = pd.concat([rows[columns].assign(order=0), split[columns].assign(order=1)], ignore_index=True)
    within = every.sort_values(["post_id", "order", "sentence_id", "sentence"]).drop_duplicates(["post_id", "sentence"])
    pool = within.drop_duplicates("sentence")[columns].reset_index(drop=True)
    return pool.assign(group=pool["post_id"].map(groups)), len(within) - len(pool)
