"""The corpus: labelled (criterion, sentence) pairs, sentences to draw negatives from, a report of every rule.

Texts of posts stay in the corpus: messages name tables, rows and ids only. `READERS` holds the formats that ``data.format``
may name: a function from ``params.data`` to a corpus under each.

Examples
--------
>>> import pandas as pd
>>> import evbind_lib as ev
>>> ev.READERS["excel"] = lambda data: ev.Corpus.from_pairs(pd.read_excel(data.pairs))
>>> sorted(ev.READERS)
['excel', 'pairs', 'redsm5']
>>> del ev.READERS["excel"]
"""

from __future__ import annotations

import dataclasses
import hashlib
import json
from collections.abc import Callable, Collection, Mapping
from dataclasses import dataclass, field, fields

import numpy as np
import pandas as pd

from evbind_lib.config.registry import Registry
from evbind_lib.config.schema import DataParams, Params
from evbind_lib.data.rules import (
    SPECIAL_CASE,
    Place,
    check_posts,
    clean_rows,
    criteria_of_pairs,
    group_posts,
    merge,
    sentence_pool,
    unknown_criterion,
)
from evbind_lib.data.tables import as_text, check_criteria, read_criteria, read_table
from evbind_lib.errors import DataError, did_you_mean

DEFAULT_CRITERIA = "evbind_lib/data/sample/redsm5_criteria.json"
POSTS = ("post_id", "text")
ANNOTATIONS = ("post_id", "sentence_text", "DSM5_symptom", "status")
PAIRS = ("post_id", "sentence", "label")


def _count(rule: str) -> int:
    return field(default=0, metadata={"rule": rule})


@dataclass(frozen=True)
class DataReport:
    """How many of what were read, merged, kept and dropped, each with the rule that it follows."""

    posts: int = _count("posts read")
    groups: int = _count("units that folds keep whole")
    criteria: int = _count("criteria with a text")
    annotations: int = _count("annotated rows read")
    pairs: int = _count("labelled pairs after all rules")
    evidence: int = _count("pairs labelled 1")
    explicit_negatives: int = _count("pairs labelled 0")
    sentences: int = _count("distinct sentences that further negatives are drawn from")
    special_case_rows: int = _count("SPECIAL_CASE rows: a 0 for every criterion, or dropped (data.special_case)")
    unknown_symptoms: int = _count("rows whose symptom has no criterion: dropped")
    empty_sentences: int = _count("rows without a sentence: dropped")
    repeated_criteria: int = _count("criteria with the text of another: taken as one")
    repeated_pairs: int = _count("same criterion and sentence again: merged into the first post that has it")
    conflicting_labels: int = _count("merged pairs labelled both 0 and 1: counted as evidence")
    repeated_sentences: int = _count("same sentence in several posts: drawn from the first post only")
    repeated_posts: int = _count("post_id and text stand there again: merged")
    posts_without_text: int = _count("posts whose text is empty: kept for their annotations")
    annotations_without_post: int = _count("rows whose post_id is not in the posts: kept")

    def table(self) -> pd.DataFrame:
        """Counts with their rules, one row each."""
        rows = [(one.name.replace("_", " "), getattr(self, one.name), one.metadata["rule"]) for one in fields(self)]
        return pd.DataFrame(rows, columns=["what", "count", "rule"]).set_index("what")


@dataclass(frozen=True, eq=False)
class Corpus:
    """Labelled pairs, and the sentences that negatives are drawn from; made by `load_corpus`, `from_pairs` or `from_posts`.

    Attributes
    ----------
    pairs : pandas.DataFrame
        Labelled pairs: post_id, sentence_id, criterion_id, criterion, sentence, label (int8; 1 is evidence), group. No
        (criterion, sentence) text pair stands there twice.
    sentences : pandas.DataFrame
        Sentences that negatives may be drawn from: post_id, sentence_id, sentence, group. No text stands there twice.
    criteria : dict of str to str
        Text by id; no text stands there twice.
    grouped_by : str
        The column that ``group`` was taken from: folds keep groups whole.
    report : DataReport
        Counts of what was read, merged, kept and dropped.
    fingerprint : str
        SHA-256 in hexadecimal of pairs, sentences and criteria; the same whatever the tables' names and the order of their
        rows.
    sensitive : bool
        Whether the texts are people's own words, of which nothing leaves the workspace.
    source : str
        Format that it was read in, or ``memory``.

    Examples
    --------
    >>> import evbind_lib as ev
    >>> corpus = ev.load_corpus(ev.compose())
    >>> len(corpus.groups), corpus.sensitive, corpus.source
    (149, False, 'redsm5')
    >>> len(corpus.subset(corpus.groups[:20]).groups)
    20
    """

    pairs: pd.DataFrame
    sentences: pd.DataFrame
    criteria: dict[str, str]
    grouped_by: str
    report: DataReport
    fingerprint: str
    sensitive: bool = True
    source: str = "memory"

    @classmethod
    def from_pairs(cls, pairs: pd.DataFrame, *, group_by: str = "post_id", sensitive: bool = True) -> Corpus:
        """Make a corpus of one table of labelled pairs in memory, by the same checks and rules as a file.

        Parameters
        ----------
        pairs : pandas.DataFrame
            Columns post_id, criterion (its text) and perhaps criterion_id, sentence, label (1 for evidence, 0 for none; both
            are needed); sentence_id is optional.
        group_by : str
            What folds keep whole: ``post_id``, ``author`` or any column with one value per post.
        sensitive : bool
            True for people's own words: no text then reaches MLflow, notebooks, logs or messages.

        Raises
        ------
        DataError
            For a table that cannot be used; rows are counted from 0.

        Examples
        --------
        >>> import pandas as pd
        >>> import evbind_lib as ev
        >>> rows = [("p1", "Sleeping badly.", "I lie awake.", 1), ("p2", "Sleeping badly.", "I had soup.", 0)]
        >>> table = pd.DataFrame(rows, columns=["post_id", "criterion", "sentence", "label"])
        >>> ev.Corpus.from_pairs(table, sensitive=False).pairs[["post_id", "criterion_id", "label"]]
          post_id criterion_id  label
        0      p1        C0001      1
        1      p2        C0001      0
        """
        rows = as_text(pairs, "pairs", PAIRS)
        return dataclasses.replace(_of_pairs(rows, None, None, group_by, str), sensitive=sensitive)

    @classmethod
    def from_posts(
        cls,
        posts: pd.DataFrame,
        annotations: pd.DataFrame,
        criteria: Mapping[str, str],
        *,
        group_by: str | None = None,
        sensitive: bool = True,
    ) -> Corpus:
        """Make a corpus of posts and annotations in memory, in ReDSM5's columns, by the same checks and rules as its files.

        Parameters
        ----------
        posts : pandas.DataFrame
            Columns post_id, text; further negatives are drawn from their sentences.
        annotations : pandas.DataFrame
            Columns post_id, sentence_text, DSM5_symptom (the id of a criterion, or SPECIAL_CASE for a sentence that is
            evidence for none), status (1 for evidence, 0 for none); sentence_id is optional.
        criteria : mapping of str to str
            Text by id.
        group_by : str, optional
            As in `from_pairs`; without it the author, where there is such a column or every post_id carries one
            (s_AUTHOR_POST), else the post.
        sensitive : bool
            As in `from_pairs`.

        Raises
        ------
        DataError
            For a table that cannot be used; rows are counted from 0.

        Examples
        --------
        >>> import pandas as pd
        >>> import evbind_lib as ev
        >>> posts = pd.DataFrame({"post_id": ["p1"], "text": ["I lie awake. I had soup."]})
        >>> rows = [("p1", "I lie awake.", "SLEEP", 1)]
        >>> table = pd.DataFrame(rows, columns=["post_id", "sentence_text", "DSM5_symptom", "status"])
        >>> corpus = ev.Corpus.from_posts(posts, table, {"SLEEP": "Sleeping badly."}, sensitive=False)
        >>> corpus.sentences["sentence"].tolist(), corpus.grouped_by
        (['I lie awake.', 'I had soup.'], 'post_id')
        """
        tables = as_text(posts, "posts", POSTS), as_text(annotations, "annotations", ANNOTATIONS)
        texts, data = check_criteria(criteria.items(), "criteria"), DataParams(group_by=group_by or "auto")
        return dataclasses.replace(_of_posts(*tables, texts, data, str), sensitive=sensitive)

    @property
    def groups(self) -> tuple[str, ...]:
        """Units that folds keep whole, sorted."""
        return tuple(sorted({*self.pairs["group"], *self.sentences["group"]}))

    def subset(self, groups: Collection[str]) -> Corpus:
        """Corpus of some groups: their pairs and sentences, all criteria, a fingerprint and counts of its own."""
        missing = set(groups) - set(self.groups)
        if missing:
            raise DataError(
                f"groups: {len(missing)} of {len(set(groups))} are not in the corpus; take them of corpus.groups."
            )
        pairs, sentences = (
            table[table["group"].isin(groups)].reset_index(drop=True) for table in (self.pairs, self.sentences)
        )
        posts = {*pairs["post_id"], *sentences["post_id"]}
        report = _counted(DataReport(posts=len(posts), groups=len(set(groups))), pairs, sentences, self.criteria)
        fingerprint = _fingerprint(pairs, sentences, self.criteria)
        return dataclasses.replace(self, pairs=pairs, sentences=sentences, report=report, fingerprint=fingerprint)

    def support(self) -> pd.DataFrame:
        """Evidence, explicit negatives and groups with evidence, for each criterion."""
        evidence = self.pairs[self.pairs["label"] == 1].groupby("criterion_id")
        negatives = self.pairs[self.pairs["label"] == 0].groupby("criterion_id")
        table = pd.DataFrame(index=pd.Index(list(self.criteria), name="criterion"))
        table["evidence"] = evidence.size()
        table["explicit negatives"] = negatives.size()
        table["groups with evidence"] = evidence["group"].nunique()
        return table.fillna(0).astype(int)


def load_corpus(params: Params) -> Corpus:
    """Read, check, clean and group the data that the parameters name.

    Parameters
    ----------
    params : Params
        ``params.data`` decides; its format is a name of `READERS`.

    Returns
    -------
    Corpus
        Sensitive as ``data.sensitive`` has it.

    Raises
    ------
    DataError
        For files that cannot be used; one sentence with file, row or column, and remedy.
    ParamsError
        For a format that is not in `READERS`.

    Examples
    --------
    >>> import evbind_lib as ev
    >>> corpus = ev.load_corpus(ev.compose(data="sample"))
    >>> corpus.report.posts, len(corpus.criteria)
    (200, 9)
    """
    corpus = READERS[params.data.format](params.data)
    return dataclasses.replace(corpus, sensitive=params.data.sensitive, source=params.data.format)


READERS: Registry[Callable[[DataParams], Corpus]] = Registry("data.format", "format")


def _in_files(data: DataParams) -> Place:
    return lambda key: f"data.{key}={getattr(data, key)}"


def _file(data: DataParams, key: str) -> str:
    """File that a parameter must name."""
    file = getattr(data, key)
    if file is None:
        raise DataError(f"data.{key} names no file, which data.format={data.format} needs; set data.{key}=FILE.")
    return file


def _read_redsm5(data: DataParams) -> Corpus:
    posts = read_table(_file(data, "posts"), "data.posts", POSTS)
    annotations = read_table(_file(data, "annotations"), "data.annotations", ANNOTATIONS)
    return _of_posts(posts, annotations, read_criteria(data.criteria or DEFAULT_CRITERIA), data, _in_files(data))


def _read_pairs(data: DataParams) -> Corpus:
    rows = read_table(_file(data, "pairs"), "data.pairs", PAIRS)
    posts = read_table(data.posts, "data.posts", POSTS) if data.posts else None
    texts = read_criteria(data.criteria) if data.criteria and "criterion" not in rows else None
    return _of_pairs(rows, posts, texts, data.group_by, _in_files(data))


READERS.update(redsm5=_read_redsm5, pairs=_read_pairs)
READERS.seal()


def _of_posts(
    posts: pd.DataFrame, annotations: pd.DataFrame, criteria: dict[str, str], data: DataParams, place: Place
) -> Corpus:
    posts = check_posts(posts, place)
    names = {"sentence_text": "sentence", "DSM5_symptom": "criterion_id", "status": "label"}
    table, counts = clean_rows(annotations.rename(columns=names), posts, place("annotations"), "status")
    table["criterion_id"] = table["criterion_id"].str.strip()
    special = table["criterion_id"] == SPECIAL_CASE
    known = table["criterion_id"].isin(criteria)
    counts["special_case_rows"] = int(special.sum())
    counts["unknown_symptoms"] = int((~special & ~known).sum())
    if not known.any():
        raise unknown_criterion(table.loc[~special, "criterion_id"], criteria, place("annotations"), "DSM5_symptom")
    rows = table[known & ~special]
    if data.special_case == "negative" and special.any():
        every = pd.DataFrame({"criterion_id": list(criteria)})
        for_each = table[special].drop(columns="criterion_id").merge(every, how="cross")
        rows = pd.concat([rows, for_each.assign(label=np.int8(0))])
    rows = rows.assign(criterion=rows["criterion_id"].map(criteria))
    corpus = _corpus(rows, posts, criteria, data.group_by, counts, place)
    return _with_classes(corpus, place("annotations"), {"evidence (status 1)": 1})


def _of_pairs(
    table: pd.DataFrame, posts: pd.DataFrame | None, criteria: dict[str, str] | None, group_by: str, place: Place
) -> Corpus:
    if not {"criterion", "criterion_id"} & set(table.columns):
        near = did_you_mean("criterion", table.columns)
        raise DataError(f"{place('pairs')}: it needs a column criterion or criterion_id and has neither{near}")
    posts = None if posts is None else check_posts(posts, place)
    table, counts = clean_rows(table, posts, place("pairs"), "label")
    table, criteria, counts["unknown_symptoms"] = criteria_of_pairs(table, criteria, place("pairs"))
    posts = table[["post_id"]].drop_duplicates() if posts is None else posts
    corpus = _corpus(table, posts, criteria, group_by, counts, place)
    return _with_classes(corpus, place("pairs"), {"evidence (label 1)": 1, "a negative (label 0)": 0})


def _with_classes(corpus: Corpus, place: str, needed: Mapping[str, int]) -> Corpus:
    """Refuse a corpus in which a class is missing that cannot be sampled either."""
    for what, label in needed.items():
        if not (corpus.pairs["label"] == label).any():
            raise DataError(f"{place}: no row is {what}, so nothing can be learned; add such rows.")
    return corpus


def _corpus(
    rows: pd.DataFrame,
    posts: pd.DataFrame,
    criteria: dict[str, str],
    group_by: str,
    counts: dict[str, int],
    place: Place,
) -> Corpus:
    """Group, merge and count what both forms of data have come to."""
    grouped_by, groups = group_posts(group_by, rows, posts, place("group_by"))
    # Repeated posts are told apart by group_posts alone: there a post with two authors is an error.
    once = posts.drop_duplicates("post_id")
    counts["repeated_posts"] = len(posts) - len(once) if "text" in posts else 0
    counts["posts_without_text"] = int((once["text"].str.strip() == "").sum()) if "text" in once else 0
    first_id: dict[str, str] = {}
    same_as = {name: first_id.setdefault(text, name) for name, text in criteria.items()}
    counts["repeated_criteria"] = len(criteria) - len(first_id)
    criteria = {name: text for text, name in first_id.items()}
    rows = rows.assign(criterion_id=rows["criterion_id"].map(same_as), group=rows["post_id"].map(groups))
    pairs, merge_counts = merge(rows)
    sentences, counts["repeated_sentences"] = sentence_pool(rows, once, groups)
    report = DataReport(posts=len(once), groups=len(set(groups.values())), **counts, **merge_counts)
    report = _counted(report, pairs, sentences, criteria)
    return Corpus(pairs, sentences, criteria, grouped_by, report, _fingerprint(pairs, sentences, criteria))


def _counted(
    report: DataReport, pairs: pd.DataFrame, sentences: pd.DataFrame, criteria: Mapping[str, str]
) -> DataReport:
    """Report with the counts that the finished tables give."""
    evidence = int(pairs["label"].sum())
    return dataclasses.replace(
        report,
        criteria=len(criteria),
        pairs=len(pairs),
        evidence=evidence,
        explicit_negatives=len(pairs) - evidence,
        sentences=len(sentences),
    )


def _fingerprint(pairs: pd.DataFrame, sentences: pd.DataFrame, criteria: dict[str, str]) -> str:
    digest = hashlib.sha256()
    for table in (pairs, sentences):
        columns = [table[name].tolist() for name in sorted(table.columns)]
        digest.update(json.dumps(sorted(zip(*columns, strict=True))).encode())
    digest.update(json.dumps(sorted(criteria.items())).encode())
    return digest.hexdigest()
