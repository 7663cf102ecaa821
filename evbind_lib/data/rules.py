"""The rules by which rows of text become pairs: checked, cleaned, grouped, merged; a message shows ids, never a text."""

from __future__ import annotations

import re
from collections.abc import Callable

import numpy as np
import pandas as pd

from evbind_lib.data.tables import clean, split_sentences
from evbind_lib.errors import DataError, did_you_mean

SPECIAL_CASE = "SPECIAL_CASE"
AUTHOR = re.compile(r"[^_]+_(?P<author>[^_]+)_[^_]+")
Place = Callable[[str], str]  # how messages name a table: `data.pairs=FILE` or, in memory, `pairs`


def clean_rows(
    table: pd.DataFrame, posts: pd.DataFrame | None, place: str, label: str
) -> tuple[pd.DataFrame, dict[str, int]]:
    """Check ids and labels, clean the sentences, drop empty ones, give a sentence an id where it has none."""
    table = table.assign(
        post_id=_post_ids(table, place),
        label=_labels(table["label"], place, label),
        sentence=table["sentence"].map(clean),
    )
    empty = table["sentence"] == ""
    if empty.all():
        raise DataError(f"{place}: every sentence is empty; give a table whose rows hold sentences.")
    known = table["post_id"] if posts is None else posts["post_id"]
    counts = {
        "annotations": len(table),
        "annotations_without_post": int((~table["post_id"].isin(known)).sum()),
        "empty_sentences": int(empty.sum()),
    }
    table = table[~empty]
    # Made ids number a post's sentences by text, so that they are the same whatever the order of rows.
    given = table["sentence_id"].str.strip() if "sentence_id" in table else pd.Series("", index=table.index)
    if (given == "").any():
        sentences = table.groupby("post_id")["sentence"]
        number = sentences.transform(lambda texts: pd.factorize(texts, sort=True)[0])
        given = given.where(given != "", table["post_id"] + "_a" + number.astype(str))
    return table.assign(sentence_id=given), counts


def criteria_of_pairs(
    table: pd.DataFrame, criteria: dict[str, str] | None, place: str
) -> tuple[pd.DataFrame, dict[str, str], int]:
    """Give every row an id and a text of its criterion; rows whose id has no text are dropped and counted."""
    for column in {"criterion", "criterion_id"} & set(table.columns):
        table = table.assign(**{column: table[column].map(clean)})
        empty = table.index[table[column] == ""]
        if len(empty):
            raise DataError(f"{place}, row {empty[0]}: {column} is empty; fill it in for every row.")
    if "criterion" in table:
        if "criterion_id" not in table:
            texts = sorted(set(table["criterion"]))
            width = max(4, len(str(len(texts))))
            ids = {text: f"C{number:0{width}d}" for number, text in enumerate(texts, start=1)}
            table = table.assign(criterion_id=table["criterion"].map(ids))
        texts_of = table.groupby("criterion_id")["criterion"].nunique()
        if (texts_of > 1).any():
            name = _shown(str(texts_of.idxmax()))
            raise DataError(f"{place}: the criterion_id {name} has several texts; give each text its own id.")
        return table, dict(sorted(zip(table["criterion_id"], table["criterion"], strict=True))), 0
    if criteria is None:
        remedy = "add a column criterion" + (", or set data.criteria to their JSON file" if place != "pairs" else "")
        raise DataError(f"{place}: it gives no texts for criterion_id; {remedy}.")
    known = table["criterion_id"].isin(criteria)
    if not known.any():
        raise unknown_criterion(table["criterion_id"], criteria, place, "criterion_id")
    kept = table[known]
    return kept.assign(criterion=kept["criterion_id"].map(criteria)), criteria, int((~known).sum())


def check_posts(posts: pd.DataFrame, place: Place) -> pd.DataFrame:
    """Posts with clean ids; one id has one text."""
    posts = posts.assign(post_id=_post_ids(posts, place("posts")))
    texts = posts.groupby("post_id")["text"].nunique()
    if (texts > 1).any():
        name = _shown(str(texts.idxmax()))
        raise DataError(f"{place('posts')}: the post_id {name} has different texts; give each post its own id.")
    return posts


def _post_ids(table: pd.DataFrame, place: str) -> pd.Series:
    ids = table["post_id"].str.strip()
    empty = ids.index[ids == ""]
    if len(empty):
        raise DataError(f"{place}, row {empty[0]}: post_id is empty; fill it in, as folds keep posts whole.")
    return ids


def _labels(values: pd.Series, place: str, column: str) -> pd.Series:
    plain = values.str.strip().replace({"0.0": "0", "1.0": "1", "False": "0", "True": "1"})
    wrong = plain.index[~plain.isin(["0", "1"])]
    if len(wrong):
        value = plain[wrong[0]]
        # Anything longer may be a sentence that slipped into this column.
        shown = (value or "empty") if len(value) <= 5 else "neither 0 nor 1"
        raise DataError(f"{place}, row {wrong[0]}: {column} is {shown}; write 1 for evidence and 0 for none.")
    return plain.astype(np.int8)


def _shown(value: str) -> str:
    """Make sure that a message repeats ids only: what has spaces may be a text in the wrong column."""
    return value if re.fullmatch(r"\S{1,60}", value) else "(a text, not shown)"


def unknown_criterion(names: pd.Series, criteria: dict[str, str], place: str, column: str) -> DataError:
    """Error for a table none of whose rows names a criterion that has a text."""
    if names.empty:
        return DataError(f"{place}: every {column} is {SPECIAL_CASE}; add rows annotated for a criterion.")
    first = _shown(str(names.iloc[0]))
    near = did_you_mean(first, criteria)
    remedy = "; correct it, or give the criteria that have these ids." if near == "." else near
    return DataError(f"{place}: no {column} is the id of a criterion, for example {first}{remedy}")


def group_posts(group_by: str, rows: pd.DataFrame, posts: pd.DataFrame, place: str) -> tuple[str, dict[str, str]]:
    """Group of every post: the post itself, its author as a column or the id has it, or another column."""
    ids = sorted({*rows["post_id"], *posts["post_id"]})
    authors = {post: match["author"] for post in ids if (match := AUTHOR.fullmatch(post))}
    if group_by == "auto":
        has_author = len(authors) == len(ids) or "author" in posts or "author" in rows
        group_by = "author" if has_author else "post_id"
    if group_by == "post_id":
        return group_by, {post: post for post in ids}
    table = next((table for table in (posts, rows) if group_by in table), None)
    if table is not None:
        return group_by, _group_by_column(table, group_by, ids, place)
    if group_by != "author":
        columns = dict.fromkeys(["author", *posts.columns, *rows.columns])
        raise DataError(f"{place}: there is no column of that name{did_you_mean(group_by, columns)}")
    if len(authors) < len(ids):
        first = _shown(next(post for post in ids if post not in authors))
        raise DataError(f"{place}: the post_id {first} names no author (s_AUTHOR_POST); group by post_id.")
    return group_by, authors


def _group_by_column(table: pd.DataFrame, column: str, ids: list[str], place: str) -> dict[str, str]:
    """Value of a column for every post, which must have one and no more."""
    values = table[column].astype(str).str.strip().groupby(table["post_id"]).agg(["nunique", "first"])
    mixed = values.index[values["nunique"] > 1]
    if len(mixed):
        first = _shown(str(mixed[0]))
        raise DataError(f"{place}: the post {first} has several values; name a column with one per post.")
    group_of = {str(post): str(value) for post, value in values["first"].items()}
    missing = [post for post in ids if not group_of.get(post)]
    if missing:
        raise DataError(f"{place}: the post {_shown(missing[0])} has no value; add it or group by post_id.")
    return group_of


def merge(rows: pd.DataFrame) -> tuple[pd.DataFrame, dict[str, int]]:
    """First row of each (criterion, sentence), by post and sentence id; evidence if any is."""
    columns = ["post_id", "sentence_id", "criterion_id", "criterion", "sentence", "label", "group"]
    ordered = rows[columns].sort_values(columns[:5], kind="stable", ignore_index=True)
    keys = ["criterion", "sentence"]
    labels = ordered.groupby(keys, sort=False)["label"]
    highest, lowest = labels.transform("max"), labels.transform("min")
    first = ~ordered.duplicated(keys)
    merged = ordered.assign(label=highest)[first].reset_index(drop=True)
    conflicts = int((highest != lowest)[first].sum())
    return merged, {"repeated_pairs": int((~first).sum()), "conflicting_labels": conflicts}


def sentence_pool(rows: pd.DataFrame, posts: pd.DataFrame, groups: dict[str, str]) -> tuple[pd.DataFrame, int]:
    """Every distinct sentence once, from the first post that has it, and how many other posts repeat one.

    Within a post the annotated sentence comes before the same text in the post, so that it keeps its id.
    """
    columns = ["post_id", "sentence_id", "sentence"]
    parts = [rows[columns].assign(order=0)]
    if "text" in posts:
        split = posts[["post_id"]].assign(sentence=posts["text"].map(split_sentences)).explode("sentence")
        split = split.dropna(subset="sentence")
        numbers = split.groupby("post_id").cumcount().astype(str)
        parts.append(split.assign(sentence_id=split["post_id"] + "_s" + numbers, order=1))
    every = pd.concat(parts, ignore_index=True).sort_values(["post_id", "order", "sentence_id", "sentence"])
    within = every.drop_duplicates(["post_id", "sentence"])
    pool = within.drop_duplicates("sentence")[columns].reset_index(drop=True)
    pool["group"] = pool["post_id"].map(groups)
    return pool, len(within) - len(pool)
