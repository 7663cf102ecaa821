"""The corpus: labelled (criterion, sentence) pairs, sentences to draw negatives from, a report of every rule.

Imports `errors`, `params` and `tables`; `folds`, `negatives` and everything above may import it. Texts of
posts stay in the corpus: messages name files, rows and ids only.
"""

from __future__ import annotations

import hashlib
import json
import re
from dataclasses import asdict, dataclass

import numpy as np
import pandas as pd

from evbind_lib.config.compose import DataParams
from evbind_lib.data.tables import clean, read_criteria, read_table, split_sentences
from evbind_lib.errors import DataError, did_you_mean

SPECIAL_CASE = "SPECIAL_CASE"
AUTHOR = re.compile(r"[^_]+_(?P<author>[^_]+)_[^_]+")
DEFAULT_CRITERIA = "evbind_lib/data/sample/redsm5_criteria.json"

RULES = {
    "posts": "posts read",
    "groups": "units that folds keep whole",
    "criteria": "criteria with a text",
    "annotations": "annotated rows read",
    "pairs": "labelled pairs after all rules",
    "evidence": "pairs labelled 1",
    "explicit_negatives": "pairs labelled 0",
    "sentences": "distinct sentences that further negatives are drawn from",
    "special_case_rows": "SPECIAL_CASE rows: a 0 for every criterion, or dropped (data.special_case)",
    "unknown_symptoms": "rows whose symptom has no criterion: dropped",
    "empty_sentences": "rows without a sentence: dropped",
    "repeated_criteria": "criteria with the text of another: taken as one",
    "repeated_pairs": "same criterion and sentence again: merged into the first post that has it",
    "conflicting_labels": "merged pairs labelled both 0 and 1: counted as evidence",
    "repeated_sentences": "same sentence in several posts: drawn from the first post only",
    "repeated_posts": "post_id and text stand there again: merged",
    "posts_without_text": "posts whose text is empty: kept for their annotations",
    "annotations_without_post": "rows whose post_id is not in the posts: kept",
}


@dataclass(frozen=True)
class DataReport:
    """How many of what were read, merged, kept and dropped; `RULES` says what happens to each."""

    posts: int = 0
    groups: int = 0
    criteria: int = 0
    annotations: int = 0
    pairs: int = 0
    evidence: int = 0
    explicit_negatives: int = 0
    sentences: int = 0
    special_case_rows: int = 0
    unknown_symptoms: int = 0
    empty_sentences: int = 0
    repeated_criteria: int = 0
    repeated_pairs: int = 0
    conflicting_labels: int = 0
    repeated_sentences: int = 0
    repeated_posts: int = 0
    posts_without_text: int = 0
    annotations_without_post: int = 0

    def table(self) -> pd.DataFrame:
        """Show the counts with the rule that each follows."""
        rows = [(name.replace("_", " "), count, RULES[name]) for name, count in asdict(self).items()]
        return pd.DataFrame(rows, columns=["what", "count", "rule"]).set_index("what")


@dataclass(frozen=True)
class Corpus:
    """What was loaded.

    Attributes
    ----------
    pairs : pandas.DataFrame
        Labelled pairs: post_id, sentence_id, criterion_id, criterion, sentence, label (int8), group. No
        (criterion, sentence) text pair stands there twice.
    sentences : pandas.DataFrame
        Sentences that negatives may be drawn from: post_id, sentence_id, sentence, group. No text stands
        there twice.
    criteria : dict of str to str
        Text by id; no text stands there twice.
    grouped_by : str
        The column that ``group`` was taken from.
    report : DataReport
    fingerprint : str
        SHA-256 in hexadecimal of pairs, sentences and criteria; the same whatever the files' names and the
        order of their rows.
    """

    pairs: pd.DataFrame
    sentences: pd.DataFrame
    criteria: dict[str, str]
    grouped_by: str
    report: DataReport
    fingerprint: str

    def support(self) -> pd.DataFrame:
        """Evidence, explicit negatives and groups with evidence, for each criterion."""
        evidence = self.pairs[self.pairs["label"] == 1].groupby("criterion_id")
        negatives = self.pairs[self.pairs["label"] == 0].groupby("criterion_id")
        table = pd.DataFrame(index=pd.Index(list(self.criteria), name="criterion"))
        table["evidence"] = evidence.size()
        table["explicit negatives"] = negatives.size()
        table["groups with evidence"] = evidence["group"].nunique()
        return table.fillna(0).astype(int)


def load_corpus(data: DataParams) -> Corpus:
    """Read, check, clean and group the data.

    Parameters
    ----------
    data : DataParams

    Returns
    -------
    Corpus

    Raises
    ------
    DataError
        For files that cannot be used; one sentence with file, row or column, and remedy.
    """
    reader = _read_redsm5 if data.format == "redsm5" else _read_pairs
    rows, posts, criteria, counts = reader(data)
    grouped_by, groups = _group(data, rows, posts)
    # Repeated posts are told apart by _group alone: there a post with two authors is an error.
    once = posts.drop_duplicates("post_id")
    counts["repeated_posts"] = len(posts) - len(once) if "text" in posts else 0
    counts["posts_without_text"] = int((once["text"].str.strip() == "").sum()) if "text" in once else 0
    first_id: dict[str, str] = {}
    same_as = {name: first_id.setdefault(text, name) for name, text in criteria.items()}
    counts["repeated_criteria"] = len(criteria) - len(first_id)
    criteria = {name: text for text, name in first_id.items()}
    rows = rows.assign(criterion_id=rows["criterion_id"].map(same_as), group=rows["post_id"].map(groups))
    pairs, merge_counts = _merge(rows)
    _check_classes(pairs, data)
    sentences, repeated = _sentence_pool(rows, once, groups)
    evidence = int(pairs["label"].sum())
    report = DataReport(
        posts=len(once),
        groups=len(set(groups.values())),
        criteria=len(criteria),
        pairs=len(pairs),
        evidence=evidence,
        explicit_negatives=len(pairs) - evidence,
        sentences=len(sentences),
        repeated_sentences=repeated,
        **counts,
        **merge_counts,
    )
    return Corpus(pairs, sentences, criteria, grouped_by, report, _fingerprint(pairs, sentences, criteria))


def _read_redsm5(data: DataParams) -> tuple[pd.DataFrame, pd.DataFrame, dict[str, str], dict[str, int]]:
    assert data.posts is not None and data.annotations is not None
    posts = _read_posts(data.posts)
    criteria = read_criteria(data.criteria or DEFAULT_CRITERIA)
    place = f"data.annotations={data.annotations}"
    names = {"sentence_text": "sentence", "DSM5_symptom": "criterion_id", "status": "label"}
    table = read_table(data.annotations, "data.annotations", ["post_id", *names]).rename(columns=names)
    table, counts = _clean_rows(table, posts, place, "status")
    table["criterion_id"] = table["criterion_id"].str.strip()
    special = table["criterion_id"] == SPECIAL_CASE
    known = table["criterion_id"].isin(criteria)
    counts["special_case_rows"] = int(special.sum())
    counts["unknown_symptoms"] = int((~special & ~known).sum())
    if not known.any():
        raise _unknown_criterion(table.loc[~special, "criterion_id"], criteria, place, "DSM5_symptom")
    rows = table[known & ~special]
    if data.special_case == "negative" and special.any():
        every = pd.DataFrame({"criterion_id": list(criteria)})
        for_each = table[special].drop(columns="criterion_id").merge(every, how="cross")
        rows = pd.concat([rows, for_each.assign(label=np.int8(0))])
    return rows.assign(criterion=rows["criterion_id"].map(criteria)), posts, criteria, counts


def _read_pairs(data: DataParams) -> tuple[pd.DataFrame, pd.DataFrame, dict[str, str], dict[str, int]]:
    assert data.pairs is not None
    place = f"data.pairs={data.pairs}"
    table = read_table(data.pairs, "data.pairs", ("post_id", "sentence", "label"))
    if not {"criterion", "criterion_id"} & set(table.columns):
        near = did_you_mean("criterion", [str(name) for name in table.columns])
        raise DataError(f"{place}: it needs a column criterion or criterion_id and has neither{near}")
    posts = _read_posts(data.posts) if data.posts else None
    table, counts = _clean_rows(table, posts, place, "label")
    table, criteria, counts["unknown_symptoms"] = _criteria_of_pairs(table, data, place)
    return table, table[["post_id"]].drop_duplicates() if posts is None else posts, criteria, counts


def _clean_rows(
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


def _criteria_of_pairs(table: pd.DataFrame, data: DataParams, place: str) -> tuple[pd.DataFrame, dict[str, str], int]:
    """Give every row an id and a text of its criterion; rows whose id has no text are dropped and counted."""
    for column in ("criterion", "criterion_id"):
        if column in table:
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
        criteria = dict(zip(table["criterion_id"], table["criterion"], strict=True))
        return table, dict(sorted(criteria.items())), 0
    if data.criteria is None:
        raise DataError(f"{place}: it gives no texts for criterion_id; set data.criteria to their JSON file.")
    criteria = read_criteria(data.criteria)
    known = table["criterion_id"].isin(criteria)
    if not known.any():
        raise _unknown_criterion(table["criterion_id"], criteria, place, "criterion_id")
    kept = table[known]
    return kept.assign(criterion=kept["criterion_id"].map(criteria)), criteria, int((~known).sum())


def _read_posts(path: str) -> pd.DataFrame:
    place = f"data.posts={path}"
    posts = read_table(path, "data.posts", ("post_id", "text"))
    posts = posts.assign(post_id=_post_ids(posts, place))
    texts = posts.groupby("post_id")["text"].nunique()
    if (texts > 1).any():
        name = _shown(str(texts.idxmax()))
        raise DataError(f"{place}: the post_id {name} has different texts; give each post its own id.")
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


def _unknown_criterion(names: pd.Series, criteria: dict[str, str], place: str, column: str) -> DataError:
    if names.empty:
        return DataError(f"{place}: every {column} is {SPECIAL_CASE}; add rows annotated for a criterion.")
    first = _shown(str(names.iloc[0]))
    near = did_you_mean(first, criteria)
    remedy = "; correct it or name the criteria's file in data.criteria." if near == "." else near
    return DataError(f"{place}: no {column} is an id of data.criteria, for example {first}{remedy}")


def _check_classes(pairs: pd.DataFrame, data: DataParams) -> None:
    """Refuse data without evidence, and a table of pairs without negatives."""
    place = f"data.annotations={data.annotations}" if data.format == "redsm5" else f"data.pairs={data.pairs}"
    column = "status" if data.format == "redsm5" else "label"
    for label, what in ((1, "evidence"), (0, "a negative")):
        if not (pairs["label"] == label).any() and (label == 1 or data.format == "pairs"):
            raise DataError(
                f"{place}: no row is {what} ({column} {label}), so nothing can be told apart; add such rows."
            )


def _group(data: DataParams, rows: pd.DataFrame, posts: pd.DataFrame) -> tuple[str, dict[str, str]]:
    """Group of every post: the post itself, its author as a column or the id has it, or another column."""
    ids = sorted({*rows["post_id"], *posts["post_id"]})
    carried = {post: match["author"] for post in ids if (match := AUTHOR.fullmatch(post))}
    wanted = data.group_by
    if wanted == "auto":
        has_author = len(carried) == len(ids) or "author" in posts or "author" in rows
        wanted = "author" if has_author else "post_id"
    place = f"data.group_by={wanted}"
    if wanted == "post_id":
        return wanted, {post: post for post in ids}
    table = next((table for table in (posts, rows) if wanted in table), None)
    if table is not None:
        column = table[wanted].astype(str).str.strip()
        values = column.groupby(table["post_id"]).agg(["nunique", "first"])
        mixed = values.index[values["nunique"] > 1]
        if len(mixed):
            first = _shown(str(mixed[0]))
            raise DataError(f"{place}: the post {first} has several values; name a column with one per post.")
        group_of = {str(post): str(value) for post, value in values["first"].items()}
        missing = [post for post in ids if not group_of.get(post)]
        if missing:
            first = _shown(missing[0])
            raise DataError(f"{place}: the post {first} has no value; add it or set data.group_by=post_id.")
        return wanted, group_of
    if wanted == "author":
        if len(carried) < len(ids):
            first = _shown(next(post for post in ids if post not in carried))
            raise DataError(f"{place}: the post_id {first} names no author (s_AUTHOR_POST); set data.group_by=post_id.")
        return wanted, carried
    columns = dict.fromkeys(["author", *posts.columns, *rows.columns])
    raise DataError(f"{place}: there is no column of that name{did_you_mean(wanted, columns)}")


def _merge(rows: pd.DataFrame) -> tuple[pd.DataFrame, dict[str, int]]:
    """Keep the first row of each (criterion, sentence), by post and sentence id; evidence if any is."""
    columns = ["post_id", "sentence_id", "criterion_id", "criterion", "sentence", "label", "group"]
    ordered = rows[columns].sort_values(columns[:5], kind="stable", ignore_index=True)
    keys = ["criterion", "sentence"]
    labels = ordered.groupby(keys, sort=False)["label"]
    highest, lowest = labels.transform("max"), labels.transform("min")
    first = ~ordered.duplicated(keys)
    merged = ordered.assign(label=highest)[first].reset_index(drop=True)
    conflicts = int((highest != lowest)[first].sum())
    return merged, {"repeated_pairs": int((~first).sum()), "conflicting_labels": conflicts}


def _sentence_pool(rows: pd.DataFrame, posts: pd.DataFrame, groups: dict[str, str]) -> tuple[pd.DataFrame, int]:
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


def _fingerprint(pairs: pd.DataFrame, sentences: pd.DataFrame, criteria: dict[str, str]) -> str:
    digest = hashlib.sha256()
    for table in (pairs, sentences):
        columns = [table[name].tolist() for name in sorted(table.columns)]
        digest.update(json.dumps(sorted(zip(*columns, strict=True))).encode())
    digest.update(json.dumps(sorted(criteria.items())).encode())
    return digest.hexdigest()
