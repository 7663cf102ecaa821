"""Units that folds keep whole: posts, authors, values of a column, or what several of these connect."""

import re

import pandas as pd

from evbind_lib.data import tables
from evbind_lib.errors import DataError, did_you_mean

AUTHOR = re.compile(r"s_([^_]+)_[^_]+")  # as ReDSM5's ids name one; a date with underscores does not


def group_posts(
    columns: tuple[str, ...], rows: pd.DataFrame, posts: pd.DataFrame, place: str
) -> tuple[list[str], dict[str, str], str]:
    """Columns, group of every post by them, and why these; a criterion is no property of a post: see `connected`."""
    ids = sorted({*rows["post_id"].unique(), *posts["post_id"]})
    found = [_by_column(column, ids, rows, posts, place) for column in columns if column != "criterion"]
    if not found:
        return [*columns], {post: post for post in ids}, "all pairs of one are on one side"
    _, groups, why = found[0]
    for _, values, _ in found[1:]:
        groups = connected(groups, pd.Series(ids), pd.Series([values[post] for post in ids]))
    names = [name for name, _, _ in found] + (["criterion"] if "criterion" in columns else [])
    return names, groups, why if len(names) == 1 else "what has one of them in common is one group"


def _by_column(
    column: str, ids: list[str], rows: pd.DataFrame, posts: pd.DataFrame, place: str
) -> tuple[str, dict[str, str], str]:
    """Group of every post, the post itself, the value of a column, or the author that its id names; the column, and why."""
    posts_themselves = {post: post for post in ids}
    if column == "post_id":
        named = "author" in {*posts, *rows} or any(map(AUTHOR.fullmatch, ids))
        return column, posts_themselves, f"as group_by says{', though the data name authors' if named else ''}"
    name = "author" if column == "auto" else column
    table = next((table for table in (posts, rows) if name in table), None)
    if table is not None:
        values = table[name].astype("str").str.strip()  # a label is a number by now
        tables.refuse_several(values, table["post_id"], place, "values; name a column with one per post")
        why, groups = "a column of the data", dict(zip(table["post_id"], values, strict=True))
    elif name == "author":
        groups = {post: match[1] for post in ids if (match := AUTHOR.fullmatch(post))}
        why = "named by every id, s_AUTHOR_POST"
        if column == "auto" and not groups:
            return "post_id", posts_themselves, "no id names an author as s_AUTHOR_POST"
        if column == "auto" and len(groups) < len(ids):
            why = f"{len(ids) - len(groups):,} of {len(ids):,} ids name none as s_AUTHOR_POST: each a group of its own"
            groups = posts_themselves | groups
    else:
        near = did_you_mean(name, ["author", "criterion", *posts.columns, *rows.columns])
        raise DataError(f"{place}: there is no column {name}{near}")
    if without := [post for post in ids if not groups.get(post)]:
        remedy = "add it (an author can stand in the id, as s_AUTHOR_POST) or group by post_id"
        raise DataError(f"{place}: the post_id {tables.shown(without[0])} has no {name}; {remedy}.")
    return name, groups, why


def connected(groups: dict[str, str], posts: pd.Series, values: pd.Series) -> dict[str, str]:
    """Groups of posts in which those with a value in common, directly or over others, are one, named as the first."""
    from scipy.cluster.hierarchy import DisjointSet

    edges = pd.DataFrame({"group": posts.map(groups), "value": values}).drop_duplicates()
    joined, first_with = DisjointSet(groups.values()), dict[object, str]()
    for group, value in edges.itertuples(index=False, name=None):
        joined.merge(group, first_with.setdefault(value, group))
    first = dict[str, str]()
    for part in joined.subsets():
        first |= dict.fromkeys(part, min(part))
    return {post: first[group] for post, group in groups.items()}
