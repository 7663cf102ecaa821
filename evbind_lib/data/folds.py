"""Folds that share no author or post, hold like fractions of evidence, and are the same in every trial."""

import hashlib
import warnings
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass
from fractions import Fraction

import numpy as np
import pandas as pd

from evbind_lib.config.schema import DataParams, Params
from evbind_lib.data.corpus import Corpus
from evbind_lib.data.tables import text_key
from evbind_lib.errors import FoldError

# Criteria that recur, as symptoms do; more are claims, and one known from training gives its pairs away.
MOST_CLASSES = 50
MOST_TRIED = 20  # numbers of folds above this are not tried out to be named as a remedy


@dataclass(frozen=True)
class Fold:
    """One split of the groups (posts, authors) of a corpus; ``index`` counts from 0.

    Examples
    --------
    >>> import evbind_lib as ev
    >>> fold = ev.Fold(index=0, training_groups=frozenset({"p1", "p2"}), validation_groups=frozenset({"p3"}))
    """

    index: int
    training_groups: frozenset[str]
    validation_groups: frozenset[str]


def make_folds(corpus: Corpus, params: Params) -> list[Fold]:
    """Split the groups of a corpus with scikit-learn's `StratifiedGroupKFold`.

    Rows are the labelled pairs, and one negative row for each group without any. A positive's class is its criterion where
    that has evidence in at least ``n_folds`` groups, else "other evidence"; all negatives are one class. So each criterion is
    spread over the folds where that is possible, and the fraction of evidence is balanced where it is not.

    Parameters
    ----------
    corpus, params
        Number of folds and seed are ``training.n_folds`` and ``data.seed``; ``training.holdout`` is a fraction of the groups
        that no fold holds, kept for `evaluate`.

    Returns
    -------
    list of Fold
        The same for the same content, whatever the order of rows in the files. A `FoldError` names a number of folds that works
        where there are fewer groups than folds, or a part of a fold would lack evidence or negatives.

    Examples
    --------
    >>> import evbind_lib as ev
    >>> params = ev.compose(["training.n_folds=3"])
    >>> [len(fold.validation_groups) for fold in ev.make_folds(ev.load_corpus(params), params)]
    [49, 50, 50]
    """
    if apart := held_out(corpus, params):
        corpus = corpus.subset(set(corpus.groups) - apart)
    n_folds, data = params.training.n_folds, params.data
    folds, problem = _try_split(corpus, n_folds, data)
    if not problem:
        return folds
    remedy = "annotate more posts" + ("" if corpus.grouped_by == "post_id" else ", or group by post_id")
    if "criterion" in corpus.grouped_by and len(corpus.repeats):
        remedy = f"take out headings and the like, which stand in several posts (corpus.repeats), or {remedy}"
    if problem.endswith("negatives") and not corpus.samples_negatives(data):
        remedy += ", or set data.negatives=sampled"
    for fewer in range(min(n_folds - 1, MOST_TRIED), 1, -1):
        if not _try_split(corpus, fewer, data)[1]:
            remedy = f"set training.n_folds={fewer} or less"
            break
    raise FoldError(f"training.n_folds={n_folds}: {problem}; {remedy}.")


def _try_split(corpus: Corpus, n_folds: int, data: DataParams) -> tuple[list[Fold], str]:
    """Folds, and why they cannot be used; nothing where they can."""
    from sklearn.model_selection import StratifiedGroupKFold  # a second, which reading data need not wait for

    every, pairs = corpus.groups, corpus.pairs
    is_evidence, names = pairs["label"] == 1, pairs["criterion_id"]
    with_evidence = pairs.loc[is_evidence, "group"].nunique()
    if n_folds > len(every):
        return [], f"the data has only {len(every)} groups ({corpus.why_groups})"
    if n_folds > with_evidence:
        return [], f"only {with_evidence} of the {len(every)} groups ({corpus.why_groups}) have evidence"
    spread = pairs[is_evidence].groupby("criterion_id")["group"].nunique()
    is_common = names.isin(spread.index[spread >= n_folds])
    classes = ("criterion " + names).where(is_common, "other evidence").where(is_evidence, "no evidence")
    # Numbers in the order of the names, as the splitter would make of them.
    row_groups = pd.Index(every).get_indexer(pd.Index(pairs["group"]))
    silent = np.setdiff1d(np.arange(len(every)), row_groups)
    classes = pd.concat([classes, pd.Series("no evidence", silent)])
    row_groups, row_classes = np.append(row_groups, silent), pd.factorize(classes, sort=True)[0]
    with warnings.catch_warnings(action="ignore", category=UserWarning):  # of rarer classes than folds; ours are pooled
        splitter = StratifiedGroupKFold(n_splits=n_folds, shuffle=True, random_state=data.seed)
        splits = list(splitter.split(row_groups, row_classes, row_groups))
    validated = [frozenset(every[group] for group in np.unique(row_groups[rows])) for _, rows in splits]
    folds = [Fold(index, frozenset(every) - part, part) for index, part in enumerate(validated)]
    parts = {}
    for fold in folds:
        parts[f"training part of fold {fold.index + 1}"] = fold.training_groups
        parts[f"validation part of fold {fold.index + 1}"] = fold.validation_groups
    return folds, _missing_class(corpus, parts, data)


def held_out(corpus: Corpus, params: Params) -> frozenset[str]:
    """Groups that ``training.holdout`` keeps out of every fold, stratified as folds are; none where it is 0."""
    if not params.training.holdout:
        return frozenset()
    place = f"training.holdout={params.training.holdout:g}"
    part = max(Fraction(params.training.holdout).limit_denominator(MOST_TRIED), Fraction(1, MOST_TRIED))
    parts, problem = _try_split(corpus, part.denominator, params.data)
    if not parts:
        problem = f"{problem}, too few for {part.denominator} parts"
        raise FoldError(f"{place}: {problem}; hold out 0.5, or annotate more posts.")
    groups = frozenset[str]().union(*(each.validation_groups for each in parts[: part.numerator]))
    both = {"rest": frozenset(corpus.groups) - groups, "part held out": groups}
    if problem := _missing_class(corpus, both, params.data):
        raise FoldError(f"{place}: {problem}; hold out a larger part, or annotate more posts.")
    return groups


def groups_digest(groups: Collection[str]) -> str | None:
    """Short digest of some groups, None of none."""
    return hashlib.sha256("\n".join(sorted(groups)).encode()).hexdigest()[:16] if groups else None


def _missing_class(corpus: Corpus, parts: Mapping[str, frozenset[str]], data: DataParams) -> str:
    """Which part has no evidence or no negatives, annotated or to be sampled; nothing where all have."""
    samples = corpus.samples_negatives(data)
    withheld = corpus.not_drawn(data) if samples else corpus.pairs.iloc[:0]
    for part, groups in parts.items():
        pairs = corpus.pairs.loc[corpus.pairs["group"].isin(groups), ["criterion_id", "label"]]
        criteria = pairs.loc[pairs["label"] == 1, "criterion_id"].unique()
        if not len(criteria):
            return f"the {part} would have no evidence"
        if (pairs["label"] == 0).any():
            continue
        _, sentences = corpus.inside(groups)
        # One can be sampled where a sentence of this part may be drawn for a criterion with evidence.
        taken = withheld.loc[withheld["sentence"].isin(sentences["sentence"]), "criterion_id"].value_counts()
        if not samples or all(taken.get(name, 0) >= len(sentences) for name in criteria):
            return f"the {part} would have no negatives"
    return ""


def folds_fingerprint(folds: Sequence[Fold]) -> str:
    """SHA-256 in hexadecimal of which group is validated in which fold."""
    lines = sorted(f"{group}\t{fold.index}" for fold in folds for group in fold.validation_groups)
    return hashlib.sha256("\n".join(lines).encode()).hexdigest()


def balance(corpus: Corpus, folds: Sequence[Fold]) -> pd.DataFrame:
    """Groups, annotated pairs and evidence in the validation part of each fold, counted from 1."""
    rows = {}
    for fold in folds:
        pairs, _ = corpus.inside(fold.validation_groups)
        evidence = pairs[pairs["label"] == 1]
        fraction, criteria = round(len(evidence) / max(len(pairs), 1), 3), evidence["criterion_id"].nunique()
        rows[fold.index + 1] = [len(fold.validation_groups), len(pairs), len(evidence), fraction, criteria]
    columns = ["groups", "annotated pairs", "evidence", "fraction of evidence", "criteria with evidence"]
    return pd.DataFrame.from_dict(rows, orient="index", columns=columns).rename_axis("fold")


def leakage(corpus: Corpus, folds: Sequence[Fold]) -> pd.DataFrame:
    """Count what stands on both sides of each fold, annotated or to be drawn from: nothing should; of criteria see ``attrs``."""
    columns = ["group", "post_id", "sentence"]
    every = pd.concat([corpus.pairs[[*columns, "criterion_id"]], corpus.sentences[columns]], ignore_index=True)
    keys = every["sentence"].map({text: text_key(text) for text in every["sentence"].unique()})
    held = {"groups": every["group"], "posts": every["post_id"], "pairs": every["criterion_id"] + "\t" + keys}
    held |= {"sentences": keys, "criteria": every["criterion_id"]}
    numbers = {what: pd.factorize(values)[0] for what, values in held.items()}  # -1 where there is no pair
    rows = {}
    for fold in folds:
        one, other = (every["group"].isin(groups) for groups in (fold.training_groups, fold.validation_groups))
        shared = {what: np.intersect1d(each[one], each[other]) for what, each in numbers.items()}
        rows[fold.index + 1] = {what: int((values >= 0).sum()) for what, values in shared.items()}
    table = pd.DataFrame.from_dict(rows, orient="index").rename_axis("fold")
    both, classes = int(table["criteria"].max()), len(corpus.criteria) <= MOST_CLASSES
    if classes:  # no leak, so no column
        del table["criteria"]
    verdict = "meant, as they are classes" if classes else "a leak of claims: set data.group_by=[post_id,criterion]"
    told = f" ({verdict})" if both else ""
    table.attrs["criteria"] = f"{both:,} of {len(corpus.criteria):,} criteria on both sides{told}"
    return table
