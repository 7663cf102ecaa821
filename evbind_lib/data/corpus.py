"""The corpus: labelled (criterion, sentence) pairs, sentences to draw negatives from, a report of every rule."""

from __future__ import annotations

import dataclasses
import functools
import hashlib
import json
import logging
from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass
from typing import Annotated, Literal, get_type_hints

import numpy as np
import pandas as pd

from evbind_lib.config.compose import experiment_name
from evbind_lib.config.masking import FILES
from evbind_lib.config.paths import resolve_path
from evbind_lib.config.registry import Registry
from evbind_lib.config.schema import DataParams, Params
from evbind_lib.data import formats, near_matches, tables
from evbind_lib.data.files import NAMED, as_text, read_file, read_rows
from evbind_lib.data.groups import connected, group_posts
from evbind_lib.data.merging import merge
from evbind_lib.errors import DataError, did_you_mean, near_name, shown

DEFAULT_CRITERIA = "evbind_lib/data/sample/redsm5_criteria.json"
POSTS = ("post_id", "text")
ANNOTATIONS = ("post_id", "sentence_text", "DSM5_symptom", "status")
PAIRS = ("sentence", "label")
# What each format reads; one of the user's own may read any.
FILES_OF = {"redsm5": "posts annotations criteria", "pairs": "posts pairs criteria"}
FILES_OF |= {"scifact": "claims corpus", "wice": "pairs"}
# Of annotated sentences in their posts' texts, where the other sentences of these posts can be trusted.
MOST_NOT_FOUND = 0.1
MOST_CONNECTED = 1 / 3  # of the pairs, in a group that several columns connect, where folds can be alike


@dataclass(frozen=True)
class DataReport:
    """How many of what were read, merged, kept and dropped, each with the rule that it follows."""

    posts: Annotated[int, "posts read"] = 0
    groups: Annotated[int, "units that folds keep whole"] = 0
    criteria: Annotated[int, "criteria with a text"] = 0
    annotations: Annotated[int, "annotated rows read"] = 0
    pairs: Annotated[int, "labelled pairs after all rules"] = 0
    evidence: Annotated[int, "pairs labelled 1"] = 0
    explicit_negatives: Annotated[int, "pairs labelled 0"] = 0
    sentences: Annotated[int, "distinct sentences that further negatives are drawn from"] = 0
    special_case_rows: Annotated[int, "SPECIAL_CASE rows: a 0 for every criterion, or dropped (data.special_case)"] = 0
    unknown_symptoms: Annotated[int, "rows whose symptom has no criterion: dropped"] = 0
    repeated_sentence_ids: Annotated[int, "a sentence_id again in its post, of another sentence: a number is added"] = 0
    empty_sentences: Annotated[int, "rows without a sentence: dropped"] = 0
    repeated_criteria: Annotated[int, "criteria with the text of another: taken as one"] = 0
    repeated_pairs: Annotated[int, "same criterion and sentence again: merged into the first post that has it"] = 0
    conflicting_labels: Annotated[int, "merged pairs labelled both 0 and 1: counted as evidence"] = 0
    moved_pairs: Annotated[int, "pairs of a sentence that an earlier post has too: kept with that post"] = 0
    repeated_sentences: Annotated[int, "same sentence in several posts: drawn from the first post only"] = 0
    repeated_posts: Annotated[int, "post_id and text stand there again: merged"] = 0
    posts_without_text: Annotated[int, "posts whose text is empty: kept for their annotations"] = 0
    annotations_without_post: Annotated[int, "rows whose post_id is not in the posts: kept"] = 0
    annotations_not_in_post: Annotated[int, "rows whose sentence is not in the text of their post: kept"] = 0

    def table(self) -> pd.DataFrame:
        """Counts with their rules, one row each."""
        rules = get_type_hints(DataReport, include_extras=True).items()
        rows = [(name.replace("_", " "), getattr(self, name), rule.__metadata__[0]) for name, rule in rules]
        return pd.DataFrame(rows, columns=["what", "count", "rule"]).set_index("what")


@dataclass(frozen=True, eq=False)
class Corpus:
    """Labelled pairs, and the sentences that negatives are drawn from; made by `load_corpus`, `from_pairs` or `from_posts`.

    Attributes
    ----------
    pairs, sentences, criteria
        Columns post_id, sentence_id, criterion_id, criterion, sentence, label (int8; 1 is evidence), group; of the sentences
        post_id, sentence_id, sentence, group; texts of criteria by id. None holds a text twice, and what `tables.text_key` takes
        for one text is one; all pairs of a sentence stand with the first post that is annotated for it.
    grouped_by, counts, report, fingerprint
        The columns of the groups that folds keep whole; counts of what was read, merged and dropped, also with their rules and
        what is left; SHA-256 in hexadecimal of pairs, sentences and criteria in any order.
    remarks
        Why these are the groups, then what should be known of the data; `summary` is the line that every command prints.
    sensitive, source
        Whether texts stay in the workspace, out of all messages; the format read, or ``memory``.
    form, repeats, spans_in_posts
        ``posts`` with annotations, or a table of ``pairs``; further posts (post_id, sentence, group) that a sentence occurs in;
        whether annotated sentences are found in the texts of their posts, all but one in ten at least.

    Examples
    --------
    >>> import pandas as pd, evbind_lib as ev
    >>> rows = [("p1", "Sleeping badly.", "I lie awake.", 1), ("p2", "Sleeping badly.", "I had soup.", 0)]
    >>> table = pd.DataFrame(rows, columns=["post_id", "criterion", "sentence", "label"])
    >>> corpus = ev.Corpus.from_pairs(table, sensitive=False)
    >>> corpus.groups, corpus.criteria, corpus.subset(["p1"]).report.evidence
    (('p1', 'p2'), {'C0001': 'Sleeping badly.'}, 1)
    """

    pairs: pd.DataFrame
    sentences: pd.DataFrame
    repeats: pd.DataFrame
    criteria: dict[str, str]
    grouped_by: str
    form: Literal["posts", "pairs"]
    spans_in_posts: bool
    counts: dict[str, int]
    remarks: tuple[str, ...]
    sensitive: bool = True
    source: str = "memory"

    @classmethod
    def from_pairs(
        cls, pairs: pd.DataFrame, *, group_by: str | list[str] = "post_id", sensitive: bool = True
    ) -> Corpus:
        """Make a corpus of one table of labelled pairs in memory; a `DataError` names the row, counted from 0.

        ``pairs`` has columns criterion (its text), sentence, label (1 for evidence, 0 for none), and where you like criterion_id,
        sentence_id and post_id (else each row is a post); without a 0, negatives are sampled. ``group_by`` is what folds keep
        whole: ``post_id``, ``author``, a column with one value per post, ``criterion``, or a list of these, of which one in
        common is enough; ``sensitive`` stands for people's own words, of which no text reaches MLflow, logs or messages.
        """
        data = DataParams(group_by=group_by or "post_id", sensitive=sensitive)
        return _corpus(pairs.reset_index(drop=True), None, None, data)

    @classmethod
    def from_posts(
        cls,
        posts: pd.DataFrame,
        annotations: pd.DataFrame,
        criteria: Mapping[str, str],
        *,
        group_by: str | list[str] | None = None,
        sensitive: bool = True,
    ) -> Corpus:
        """Make a corpus of posts and annotations in memory, in ReDSM5's columns; a `DataError` names the row, counted from 0.

        ``posts`` has columns post_id and text, from whose sentences negatives are drawn; ``annotations`` post_id, sentence_text,
        DSM5_symptom (id of a criterion, or SPECIAL_CASE for evidence of none), status (1 for evidence, 0 for none) and where you
        like sentence_id; ``criteria`` are texts by id. ``group_by`` and ``sensitive`` are as in `from_pairs`; by default the
        author groups, where there is such a column or every post_id carries one (s_AUTHOR_POST), else the post.
        """
        annotations, posts = (table.reset_index(drop=True) for table in (annotations, posts))
        data = DataParams(group_by=group_by or "auto", sensitive=sensitive)
        return _corpus(annotations, posts, tables.check_criteria(criteria.items(), "criteria"), data, "annotations")

    @functools.cached_property
    def report(self) -> DataReport:
        """Counts of what was read, merged and dropped, and of what there is now."""
        evidence = int(self.pairs["label"].sum())
        held = {"pairs": len(self.pairs), "evidence": evidence, "explicit_negatives": len(self.pairs) - evidence}
        return DataReport(criteria=len(self.criteria), sentences=len(self.sentences), **held, **self.counts)

    @functools.cached_property
    def fingerprint(self) -> str:
        """SHA-256 in hexadecimal of pairs, sentences and criteria in any order."""
        digest = hashlib.sha256()
        for table in (self.pairs, self.sentences, self.repeats):
            coded = [pd.factorize(table[name]) for name in sorted(table.columns)]
            values = (np.asarray(each, dtype=object)[codes].tolist() for codes, each in coded)
            digest.update(json.dumps(sorted(zip(*values, strict=True))).encode())
        digest.update(json.dumps(sorted(self.criteria.items())).encode())
        return digest.hexdigest()

    @property
    def groups(self) -> tuple[str, ...]:
        """Units that folds keep whole, sorted."""
        return tuple(sorted(pd.concat([self.pairs["group"], self.sentences["group"]]).unique()))

    @property
    def summary(self) -> str:
        """One line: pairs, evidence, criteria, the groups and why, and what should be known of the data."""
        counts, others = self.report, self.remarks[1:]
        what = f"{counts.pairs:,} pairs, {counts.evidence:,} of them evidence, {counts.criteria:,} criteria"
        return "; ".join([what, f"{counts.groups:,} groups ({self.why_groups})", *others])

    @property
    def why_groups(self) -> str:
        """Columns of the groups, and why these are the groups."""
        return f"{self.grouped_by}: {self.remarks[0]}"

    def groups_of(self, pairs: pd.DataFrame) -> pd.Series:
        """Group of every pair, by its columns post_id and criterion_id."""
        if self.grouped_by == "criterion":
            return pairs["criterion_id"]
        posts = pd.concat([self.pairs, self.sentences]).drop_duplicates("post_id").set_index("post_id")
        return pairs["post_id"].map(posts["group"])

    def subset(self, groups: Collection[str]) -> Corpus:
        """Corpus of some groups: their pairs and sentences, all criteria, a fingerprint and counts of its own."""
        missing = set(groups) - set(self.groups)
        if missing:
            raise DataError(f"groups: {len(missing)} of {len(groups)} are not in the corpus; see corpus.groups.")
        pairs, sentences = (table.reset_index(drop=True) for table in self.inside(groups))
        counts = {"posts": len({*pairs["post_id"], *sentences["post_id"]}), "groups": len(set(groups))}
        # One who has nothing but repeats is in no group of its own.
        repeats = self.repeats[~self.repeats["group"].isin({*self.groups} - {*groups})].reset_index(drop=True)
        why = self.remarks[:1]
        return dataclasses.replace(self, pairs=pairs, sentences=sentences, repeats=repeats, counts=counts, remarks=why)

    def inside(self, groups: Collection[str]) -> tuple[pd.DataFrame, pd.DataFrame]:
        """Pairs and sentences of some groups."""
        pairs, sentences = (table[table["group"].isin(groups)] for table in (self.pairs, self.sentences))
        return pairs, sentences

    def samples_negatives(self, data: DataParams) -> bool:
        """Whether negatives are drawn besides the annotated ones: as ``data.negatives`` says, or where a table has none."""
        has_negatives = bool(self.report.explicit_negatives)
        if data.negatives == "annotated" and not has_negatives:
            problem = "no pair of these data is annotated as no evidence"
            raise DataError(f"data.negatives=annotated: {problem}; set data.negatives=sampled.")
        return data.negatives == "sampled" or (data.negatives == "auto" and (self.form == "posts" or not has_negatives))

    def not_drawn(self, data: DataParams) -> pd.DataFrame:
        """Combinations (criterion_id, sentence) never sampled as negatives: annotated, or beside evidence as ``data`` says."""
        # On WiCE 7 of 4,353 at the default ratio, so that no score shows them (words baseline, macro_f1 0.537 and 0.536).
        same_post = self.spans_in_posts if data.same_post_negatives == "auto" else data.same_post_negatives
        beside = self.beside_evidence
        beside = beside[beside["near"]] if same_post else beside
        return pd.concat([table[["criterion_id", "sentence"]] for table in (self.pairs, beside)], ignore_index=True)

    @functools.cached_property
    def beside_evidence(self) -> pd.DataFrame:
        """What `near_matches.beside_evidence` finds in all posts."""
        posts = pd.concat([table[["post_id", "sentence"]] for table in (self.sentences, self.repeats)])
        return near_matches.beside_evidence(self.pairs, posts)

    def support(self) -> pd.DataFrame:
        """Evidence, explicit negatives and groups with evidence, for each criterion."""
        negatives, evidence = (self.pairs[self.pairs["label"] == label].groupby("criterion_id") for label in (0, 1))
        counts = {"evidence": evidence.size(), "explicit negatives": negatives.size()}
        counts["groups with evidence"] = evidence["group"].nunique()
        table = pd.DataFrame(counts, index=pd.Index(list(self.criteria), name="criterion"))
        return table.fillna(0).astype(int)


def load_corpus(params: Params) -> Corpus:
    """Read, check, clean and group the data that the parameters name.

    Parameters
    ----------
    params
        ``params.data`` counts; `ParamsError` where its format is no name of `READERS`.

    Returns
    -------
    Corpus
        Sensitive as ``data.sensitive`` has it. Files that cannot be used are a `DataError` with file, row or column, and remedy.

    Examples
    --------
    >>> import evbind_lib as ev
    >>> corpus = ev.load_corpus(ev.compose(data="sample"))
    >>> corpus.report.posts, len(corpus.criteria)
    (200, 9)
    """
    data = params.data
    for name in FILES:
        if (given := getattr(data, name)) and name not in FILES_OF.get(data.format, name).split() and name != "test":
            problem = f"data.format={data.format} reads no such file; choose other data, as data=pairs, or take it out"
            raise DataError(f"data.{name}={shown(given)}: {problem}.")
    if data.test and not resolve_path(data.test).exists():  # which is read when all is trained
        raise DataError(f"data.test={shown(data.test)}: there is no such file or folder; correct it, or leave it out.")
    if data.special_case == "drop" and data.format in {*FILES_OF} - {"redsm5"}:
        raise DataError(f"data.special_case: data.format={data.format} has no such rows; leave it out.")
    corpus = dataclasses.replace(READERS[data.format](data), sensitive=data.sensitive, source=data.format)
    if params.training.provenance:
        _note_provenance(params, corpus.fingerprint)
    return corpus


def _note_provenance(params: Params, fingerprint: str) -> None:
    """Say where a search found these parameters with other data, model or folds, or with what no file holds."""
    found = params.training.provenance or {}
    here = {"data_fingerprint": fingerprint, "model": params.model.name, "folds": params.training.n_folds}
    other = [name.partition("_")[0] for name, value in here.items() if found.get(name, value) not in (None, value)]
    study, lacks = str(found.get("study")), found.get("lacks")
    lacks = [*map(str, lacks)] if isinstance(lacks, list) else []  # a file that somebody edited
    apart = [f"with other {' and '.join(other)}"] if other else []
    apart += [f"with {' and '.join(lacks)} of your own, which no file holds"] if lacks else []
    if apart:
        remedy = "" if lacks else f"; experiment={experiment_name(study)} alone takes along what it was found with"
        said = f"The training parameters were found by study {study} {' and '.join(apart)}"
        _warn_once(f"{said}: its score does not hold here{remedy}.")


_warn_once = functools.cache(logging.getLogger("evbind_lib").warning)


def _read(data: DataParams, key: str, columns: Sequence[str]) -> Corpus:
    """Corpus of a table, of posts where they are named, and of criteria, ReDSM5's where it names none."""
    of_posts = key == "annotations"
    posts = read_file(data.posts, "data.posts", read_rows) if data.posts or of_posts else None
    table = read_file(getattr(data, key), f"data.{key}", read_rows)
    known = [str(column) for each in (table, posts) if each is not None for column in each]
    by = [data.group_by] if isinstance(data.group_by, str) else data.group_by
    for ours, theirs in data.columns.items():
        if ours not in (wanted := [*columns, *NAMED, *(POSTS if posts is not None else ()), *by]):
            raise DataError(f"data.columns.{shown(ours)}: no column of that name is read{did_you_mean(ours, wanted)}")
        if theirs not in known:
            place, near = f"data.columns={{{ours}: {theirs:.100}}}", did_you_mean(theirs, known)
            raise DataError(f"{place}: the column {theirs:.100} is missing{near}")
    file = data.criteria or (DEFAULT_CRITERIA if of_posts else None)
    return _corpus(table, posts, tables.read_criteria(file) if file else None, data, key)


READERS = Registry[Callable[[DataParams], Corpus]](
    "data.format",
    "format",
    redsm5=lambda data: _read(data, "annotations", ANNOTATIONS),
    pairs=lambda data: _read(data, "pairs", PAIRS),
    scifact=lambda data: _corpus(formats.scifact_pairs(data), None, None, data, "claims"),
    wice=lambda data: _corpus(formats.wice_pairs(data), None, None, data),
)
READERS.__doc__ = """Formats that ``data.format`` chooses from, each a function from ``params.data`` to a corpus.

Examples
--------
>>> import pandas as pd, evbind_lib as ev
>>> ev.READERS["excel"] = lambda data: ev.Corpus.from_pairs(pd.read_excel(data.pairs))
>>> del ev.READERS["excel"]
"""


def _corpus(
    table: pd.DataFrame,
    posts: pd.DataFrame | None,
    criteria: dict[str, str] | None,
    data: DataParams,
    key: str = "pairs",
) -> Corpus:
    """Corpus of annotations of posts, in ReDSM5's columns, or of a table of pairs: checked, cleaned, grouped and merged."""
    of_posts, counts, remarks = key == "annotations", dict[str, int](), list[str]()
    label, symptom = ("status", "DSM5_symptom") if of_posts else ("label", "criterion_id")

    def place(name: str) -> str:  # as messages have it, which name no file of tables in memory
        return name if getattr(data, key) is None else f"data.{name}={getattr(data, name)!s:.200}"

    where = place(key)
    table = as_text(table, where, ANNOTATIONS if of_posts else PAIRS, data.columns)
    if posts is not None:
        posts = tables.check_posts(as_text(posts, place("posts"), POSTS, data.columns), place("posts"), counts)
    if "post_id" not in table:
        if near_name("post_id", table.columns):
            raise DataError(f"{where}: the column post_id is missing{did_you_mean('post_id', table.columns)}")
        table = table.assign(post_id=[f"row{row}" for row in table.index])
        remarks.append("each row is a post of its own, as there is no column post_id")
    if of_posts:
        table = table.rename(columns={"sentence_text": "sentence", "DSM5_symptom": "criterion_id"})
    table = tables.clean_rows(table, where, label, data.labels, counts)
    if posts is not None:
        tables.compare_ids(table, posts, where, counts, remarks)
    special = table.iloc[:0]
    if of_posts:
        ids = tables.each_text(table["criterion_id"], tables.clean_id)
        special, table = table[ids == tables.SPECIAL_CASE], table.assign(criterion_id=ids)[ids != tables.SPECIAL_CASE]
    else:
        table = tables.clean_criteria(table, where)
        if "criterion" in table:
            criteria = {str(name): text for name, text in table.groupby("criterion_id")["criterion"].min().items()}
    if criteria is None:
        raise DataError(f"{where}: criterion_id has no texts; add a column criterion, or set data.criteria for a file.")
    rows = tables.with_texts(table, criteria, where, symptom, counts, remarks)
    if of_posts and data.special_case == "negative":
        every = pd.DataFrame(criteria.items(), columns=["criterion_id", "criterion"])
        for_each = special.drop(columns="criterion_id").merge(every, how="cross")
        rows = pd.concat([rows, for_each.assign(label=np.int8(0))])
    if not (rows["label"] == 1).any():
        raise DataError(f"{where}: no row is evidence ({label} 1), so nothing can be learned; add such rows.")
    posts = rows[["post_id"]].drop_duplicates().assign(text="") if posts is None else posts
    wanted = (data.group_by,) if isinstance(data.group_by, str) else tuple(dict.fromkeys(data.group_by))
    by, groups, why = group_posts(wanted, rows, posts, place("group_by"))
    posts = posts.drop_duplicates("post_id")  # one that stands there twice has one group
    first_id: dict[str, str] = {}
    same_as = {name: first_id.setdefault(tables.text_key(text), name) for name, text in criteria.items()}
    counts |= {"special_case_rows": len(special), "repeated_criteria": len(criteria) - len(first_id)}
    criteria = {name: criteria[name] for name in first_id.values()}
    rows = rows.assign(criterion_id=rows["criterion_id"].map(same_as))
    rows = rows.assign(criterion=rows["criterion_id"].map(criteria))
    pairs, sentences, repeats, found = merge(rows, posts, groups, by)
    if again := counts["repeated_sentence_ids"]:
        remarks.append(f"{again:,} repeated sentence ids made unique")
    largest, remedy = pairs["group"].value_counts(normalize=True).iloc[0], "group by one of them"
    apart = {*connected(groups, rows["post_id"], rows["criterion_id"]).values()} if "criterion" in by[1:] else ()
    if len(apart) > found["groups"]:
        several = repeats.loc[repeats["sentence"].isin(pairs["sentence"]), "sentence"].nunique()
        why += f", and texts that stand in several posts ({several:,}) join what would be {len(apart):,} groups"
        remedy = f"take headings and the like out (corpus.repeats has them), or {remedy}"
    if len(by) > 1 and largest > MOST_CONNECTED:
        remarks.append(f"these connect {largest:.0%} of the pairs to one group, so {remedy}")
    in_posts = found["annotations_not_in_post"] <= MOST_NOT_FOUND * len(rows)
    told = counts | found, (why, *remarks), data.sensitive
    return Corpus(pairs, sentences, repeats, criteria, ", ".join(by), "posts" if of_posts else "pairs", in_posts, *told)
