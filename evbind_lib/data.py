"""The corpus: labelled (criterion, sentence) pairs, further sentences to draw negatives from, and a report of every rule.

Imports `errors`, `params` and `tables`; `folds`, `negatives` and everything above may import it. Texts of posts stay in
the corpus: messages name files, rows and ids only.
"""

from __future__ import annotations

import hashlib
import re
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np
import pandas as pd

from evbind_lib.errors import DataError, did_you_mean
from evbind_lib.params import DataParams
from evbind_lib.tables import clean, read_criteria, read_table, split_sentences

SPECIAL_CASE = "SPECIAL_CASE"
AUTHOR = re.compile(r"[^_]+_(?P<author>[^_]+)_[^_]+")
DEFAULT_CRITERIA = "evbind_lib/sample_data/redsm5_criteria.json"

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
    "repeated_pairs": "same criterion and sentence again: merged into the first post that has it",
    "conflicting_labels": "merged pairs labelled both 0 and 1: counted as evidence",
    "repeated_sentences": "same sentence in several posts: drawn from the first post only",
    "repeated_posts": "post_id and text stand there again: merged",
    "annotations_without_post": "annotated post_id not in the posts: kept",
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
    repeated_pairs: int = 0
    conflicting_labels: int = 0
    repeated_sentences: int = 0
    repeated_posts: int = 0
    annotations_without_post: int = 0

    def table(self) -> pd.DataFrame:
        """The counts with the rule that each follows."""
        rows = [(name.replace("_", " "), count, RULES[name]) for name, count in asdict(self).items()]
        return pd.DataFrame(rows, columns=["what", "count", "rule"]).set_index("what")


@dataclass(frozen=True)
class Corpus:
    """What was loaded.

    Attributes
    ----------
    pairs : pandas.DataFrame
        Labelled pairs: post_id, sentence_id, criterion_id, criterion, sentence, label (int8), group. No (criterion, sentence)
        text pair stands there twice.
    sentences : pandas.DataFrame
        Sentences that negatives may be drawn from: post_id, sentence_id, sentence, group. No text stands there twice.
    criteria : dict of str to str
        Text by id.
    grouped_by : str
        The column that ``group`` was taken from.
    report : DataReport
    fingerprint : str
        SHA-256 in hexadecimal of pairs, sentences and criteria; the same whatever the files' names and row order.
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
    rows["group"] = rows["post_id"].map(groups)
    pairs, merge_counts = _merge(rows)
    sentences, repeated = _sentence_pool(rows, posts, groups)
    for label, what in ((1, "evidence (label or status 1)"), (0, "a negative")):
        if data.format == "pairs" and not (pairs["label"] == label).any():
            raise DataError(f"data.pairs={data.pairs}: no row is {what}, so there is nothing to tell apart; add some.")
    if not (pairs["label"] == 1).any():
        raise DataError(f"data.annotations={data.annotations}: no row is evidence (status 1), so there is nothing to learn; add some.")
    evidence = int(pairs["label"].sum())
    report = DataReport(
        posts=len(posts),
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
    pairs = pairs.drop(columns="row", errors="ignore")
    return Corpus(pairs, sentences, criteria, grouped_by, report, _fingerprint(pairs, sentences, criteria))


def _read_redsm5(data: DataParams) -> tuple[pd.DataFrame, pd.DataFrame, dict[str, str], dict[str, int]]:
    assert data.posts is not None and data.annotations is not None
    posts, repeated_posts = _read_posts(data.posts)
    criteria = read_criteria(data.criteria or DEFAULT_CRITERIA)
    needed = ("post_id", "sentence_text", "DSM5_symptom", "status")
    table = read_table(data.annotations, "data.annotations", needed)
    place = f"data.annotations={data.annotations}"
    _check_ids(table, place)
    table["label"] = _labels(table["status"], place, "status")
    table = table.rename(columns={"sentence_text": "sentence", "DSM5_symptom": "criterion_id"})
    table["sentence"] = table["sentence"].map(clean)
    if "sentence_id" not in table:
        table["sentence_id"] = table["post_id"] + "_row" + table.index.astype(str)
    counts = {
        "annotations": len(table),
        "repeated_posts": repeated_posts,
        "annotations_without_post": int((~table["post_id"].isin(posts["post_id"])).sum()),
        "empty_sentences": int((table["sentence"] == "").sum()),
    }
    table = table[table["sentence"] != ""]
    special = table["criterion_id"] == SPECIAL_CASE
    known = table["criterion_id"].isin(criteria)
    counts["special_case_rows"] = int(special.sum())
    counts["unknown_symptoms"] = int((~special & ~known).sum())
    if not known.any():
        first = str(table.loc[~special, "criterion_id"].iloc[0]) if (~special).any() else SPECIAL_CASE
        raise DataError(f"{place}: no DSM5_symptom is an id of data.criteria, for example {first}{did_you_mean(first, criteria)}")
    rows = table[known & ~special]
    if data.special_case == "negative" and special.any():
        for_each = table[special].drop(columns="criterion_id").merge(pd.DataFrame({"criterion_id": list(criteria)}), how="cross")
        for_each["label"] = np.int8(0)
        rows = pd.concat([rows, for_each])
    rows = rows.assign(criterion=rows["criterion_id"].map(criteria))
    return rows.reset_index(drop=True), posts, criteria, counts


def _read_pairs(data: DataParams) -> tuple[pd.DataFrame, pd.DataFrame, dict[str, str], dict[str, int]]:
    assert data.pairs is not None
    place = f"data.pairs={data.pairs}"
    table = read_table(data.pairs, "data.pairs", ("post_id", "sentence", "label"))
    _check_ids(table, place)
    if not {"criterion", "criterion_id"} & set(table.columns):
        raise DataError(f"{place}: the column criterion or criterion_id is missing; add one of them.")
    table["label"] = _labels(table["label"], place, "label")
    table["sentence"] = table["sentence"].map(clean)
    if "sentence_id" not in table:
        table["sentence_id"] = table["post_id"] + "_row" + table.index.astype(str)
    counts = {"annotations": len(table), "empty_sentences": int((table["sentence"] == "").sum())}
    table = table[table["sentence"] != ""]
    table, criteria, unknown = _criteria_of_pairs(table, data, place)
    counts["unknown_symptoms"] = unknown
    posts, counts["repeated_posts"] = _read_posts(data.posts) if data.posts else (table[["post_id"]].drop_duplicates(), 0)
    counts["annotations_without_post"] = int((~table["post_id"].isin(posts["post_id"])).sum())
    return table.reset_index(drop=True), posts, criteria, counts


def _criteria_of_pairs(table: pd.DataFrame, data: DataParams, place: str) -> tuple[pd.DataFrame, dict[str, str], int]:
    """Give every row an id and a text of its criterion; rows whose id has no text are dropped and counted."""
    if "criterion" in table:
        table = table.assign(criterion=table["criterion"].map(clean))
        empty = table.index[table["criterion"] == ""]
        if len(empty):
            raise DataError(f"{place}, row {empty[0]}: the criterion is empty; write what counts as evidence for it.")
        if "criterion_id" not in table:
            texts = sorted(set(table["criterion"]))
            width = len(str(len(texts)))
            ids = {text: f"C{number:0{width}d}" for number, text in enumerate(texts, start=1)}
            table = table.assign(criterion_id=table["criterion"].map(ids))
        texts_of = table.groupby("criterion_id")["criterion"].nunique()
        if (texts_of > 1).any():
            raise DataError(f"{place}: the criterion_id {texts_of.idxmax()} has several texts; give each text its own id.")
        criteria = dict(zip(table["criterion_id"], table["criterion"], strict=True))
        return table, dict(sorted(criteria.items())), 0
    if data.criteria is None:
        raise DataError(f"{place}: it has criterion_id but no texts; set data.criteria to a JSON file with them.")
    criteria = read_criteria(data.criteria)
    known = table["criterion_id"].isin(criteria)
    if not known.any():
        first = str(table["criterion_id"].iloc[0])
        raise DataError(f"{place}: no criterion_id is an id of data.criteria, for example {first}{did_you_mean(first, criteria)}")
    kept = table[known]
    return kept.assign(criterion=kept["criterion_id"].map(criteria)), criteria, int((~known).sum())


def _read_posts(path: str) -> tuple[pd.DataFrame, int]:
    posts = read_table(path, "data.posts", ("post_id", "text"))
    _check_ids(posts, f"data.posts={path}")
    texts = posts.groupby("post_id")["text"].nunique()
    if (texts > 1).any():
        raise DataError(f"data.posts={path}: the post_id {texts.idxmax()} stands there with different texts; give each post its own id.")
    once = posts.drop_duplicates("post_id")
    return once, len(posts) - len(once)


def _check_ids(table: pd.DataFrame, place: str) -> None:
    empty = table.index[table["post_id"].str.strip() == ""]
    if len(empty):
        raise DataError(f"{place}, row {empty[0]}: post_id is empty; folds need to know the post of every sentence.")


def _labels(values: pd.Series, place: str, column: str) -> pd.Series:
    plain = values.str.strip().replace({"0.0": "0", "1.0": "1", "False": "0", "True": "1"})
    wrong = plain.index[~plain.isin(["0", "1"])]
    if len(wrong):
        shown = plain[wrong[0]][:20] or "empty"
        raise DataError(f"{place}, row {wrong[0]}: {column} is {shown}; write 1 for evidence and 0 for none.")
    return plain.astype(np.int8)


def _group(data: DataParams, rows: pd.DataFrame, posts: pd.DataFrame) -> tuple[str, dict[str, str]]:
    """Group of every post: the post itself, its author as the id carries it, or a column."""
    ids = sorted({*rows["post_id"], *posts["post_id"]})
    wanted = data.group_by
    carried = {post: match["author"] for post in ids if (match := AUTHOR.fullmatch(post))}
    if wanted == "auto":
        wanted = "author" if len(carried) == len(ids) else "post_id"
    if wanted == "post_id":
        return wanted, {post: post for post in ids}
    table = next((table for table in (posts, rows) if wanted in table.columns), None)
    if table is not None:
        values = table.groupby("post_id")[wanted].agg(["nunique", "first"])
        mixed = values.index[values["nunique"] > 1]
        if len(mixed):
            raise DataError(f"data.group_by={wanted}: the post {mixed[0]} has several values of it; choose a column with one value per post.")
        missing = [post for post in ids if post not in values.index or values.at[post, "first"] == ""]
        if missing:
            raise DataError(f"data.group_by={wanted}: the post {missing[0]} has no value of it; fill it in or choose data.group_by=post_id.")
        return wanted, values["first"].to_dict()
    if wanted == "author":
        if len(carried) < len(ids):
            first = next(post for post in ids if post not in carried)
            raise DataError(f"data.group_by=author: the post_id {first} carries no author (s_<author>_<post>); set data.group_by=post_id.")
        return wanted, carried
    columns = [*posts.columns, *rows.columns, "author"]
    raise DataError(f"data.group_by={wanted}: there is no column of that name{did_you_mean(wanted, columns)}")


def _merge(rows: pd.DataFrame) -> tuple[pd.DataFrame, dict[str, int]]:
    """One row per (criterion, sentence) text pair: the first by post and sentence id, evidence if any of them is."""
    ordered = rows.sort_values(["post_id", "sentence_id", "criterion_id"], kind="stable")
    keys = ["criterion", "sentence"]
    labels = ordered.groupby(keys)["label"]
    highest, lowest = labels.transform("max"), labels.transform("min")
    first = ~ordered.duplicated(keys)
    columns = ["post_id", "sentence_id", "criterion_id", "criterion", "sentence", "label", "group"]
    merged = ordered.assign(label=highest)[first][columns].reset_index(drop=True)
    counts = {"repeated_pairs": int((~first).sum()), "conflicting_labels": int((highest != lowest)[first].sum())}
    return merged, counts


def _sentence_pool(rows: pd.DataFrame, posts: pd.DataFrame, groups: dict[str, str]) -> tuple[pd.DataFrame, int]:
    """Every distinct sentence once: annotated ones first, so that a shared text keeps its annotated id within a post."""
    annotated = rows[["post_id", "sentence_id", "sentence"]].drop_duplicates(["post_id", "sentence"]).assign(order=0)
    parts = [annotated]
    if "text" in posts:
        split = posts.assign(sentence=posts["text"].map(split_sentences))[["post_id", "sentence"]].explode("sentence")
        split = split.dropna(subset="sentence")
        numbers = split.groupby("post_id").cumcount().astype(str)
        parts.append(split.assign(sentence_id=split["post_id"] + "_s" + numbers, order=1))
    every = pd.concat(parts).sort_values(["post_id", "order", "sentence_id"], kind="stable")
    within = every.drop_duplicates(["post_id", "sentence"])
    pool = within.drop_duplicates("sentence")[["post_id", "sentence_id", "sentence"]].reset_index(drop=True)
    pool["group"] = pool["post_id"].map(groups)
    return pool, len(within) - len(pool)


def _fingerprint(pairs: pd.DataFrame, sentences: pd.DataFrame, criteria: dict[str, str]) -> str:
    digest = hashlib.sha256()
    tables: list[Any] = [pairs[["criterion", "sentence", "label", "group"]], sentences[["sentence", "group"]]]
    tables.append(pd.DataFrame(sorted(criteria.items())))
    for table in tables:
        hashes = pd.util.hash_pandas_object(table.astype(str), index=False).to_numpy()
        digest.update(np.sort(hashes).tobytes())
    return digest.hexdigest()
