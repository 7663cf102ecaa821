"""Folds that share no author or post, hold like fractions of evidence, and are the same in every trial."""

from __future__ import annotations

import hashlib
import warnings
from collections.abc import Collection, Sequence
from dataclasses import dataclass

import numpy as np
import pandas as pd

from evbind_lib.config.schema import Params
from evbind_lib.data.corpus import Corpus
from evbind_lib.errors import FoldError

MOST_TRIED = 20  # numbers of folds above this are not tried out to be named as a remedy


@dataclass(frozen=True)
class Fold:
    """One split of the groups of a corpus.

    Attributes
    ----------
    index : int
        From 0.
    training_groups, validation_groups : frozenset of str
        Groups (posts, authors) trained on and validated on; together all groups of the corpus.

    Examples
    --------
    >>> import evbind_lib as ev
    >>> fold = ev.Fold(index=0, training_groups=frozenset({"p1", "p2"}), validation_groups=frozenset({"p3"}))
    >>> sorted(fold.training_groups)
    ['p1', 'p2']
    """

    index: int
    training_groups: frozenset[str]
    validation_groups: frozenset[str]


def make_folds(corpus: Corpus, params: Params) -> list[Fold]:
    """Split the groups of a corpus with scikit-learn's `StratifiedGroupKFold`.

    Rows are the labelled pairs, and one negative row for each group that has sentences but no labelled pair. A positive's
    class is its criterion where that criterion has evidence in at least ``n_folds`` groups, and "other evidence" where it is
    rarer; all negatives are one class. So each criterion is spread over the folds where that is possible, and the fraction
    of evidence is balanced where it is not.

    Parameters
    ----------
    corpus : Corpus
    params : Params
        Number of folds and seed are ``training.n_folds`` and ``training.seed``.

    Returns
    -------
    list of Fold
        The same for the same content, whatever the order of rows in the files.

    Raises
    ------
    FoldError
        When there are more folds than groups, or a part of a fold would lack evidence or negatives.

    Examples
    --------
    >>> import evbind_lib as ev
    >>> params = ev.compose(["training.n_folds=3"])
    >>> corpus = ev.load_corpus(params)
    >>> folds = ev.make_folds(corpus, params)
    >>> [len(fold.validation_groups) for fold in folds]
    [49, 50, 50]
    """
    n_folds, seed = params.training.n_folds, params.training.seed
    with_evidence = corpus.pairs.loc[corpus.pairs["label"] == 1, "group"].nunique()
    most = min(len(corpus.groups), with_evidence)
    what = f"groups ({corpus.grouped_by})"
    if n_folds > len(corpus.groups):
        problem = f"the data has only {len(corpus.groups)} {what}"
    elif n_folds > with_evidence:
        problem = f"only {with_evidence} of the {len(corpus.groups)} {what} have evidence"
    else:
        folds = _split(corpus, n_folds, seed)
        problem = _missing_class(corpus, folds)
        if not problem:
            return folds
        most = n_folds - 1
    for works in range(min(most, MOST_TRIED), 1, -1):
        if not _missing_class(corpus, _split(corpus, works, seed)):
            remedy = f"set training.n_folds={works} or less"
            break
    else:
        remedy = "annotate more posts" + ("" if corpus.grouped_by == "post_id" else ", or group by post_id")
    raise FoldError(f"training.n_folds={n_folds}: {problem}; {remedy}.")


def _split(corpus: Corpus, n_folds: int, seed: int) -> list[Fold]:
    from sklearn.model_selection import StratifiedGroupKFold  # a second, which reading data need not wait for

    groups = list(corpus.groups)
    pairs = corpus.pairs.sort_values(["group", "criterion", "sentence"], kind="stable")
    positives = pairs[pairs["label"] == 1]
    spread = positives.groupby("criterion_id")["group"].nunique()
    common = set(spread[spread >= n_folds].index)
    classes = np.where(
        pairs["label"] == 1,
        np.where(pairs["criterion_id"].isin(common), "criterion " + pairs["criterion_id"], "other evidence"),
        "no evidence",
    )
    silent = sorted(set(groups) - set(pairs["group"]))
    row_classes = np.concatenate([classes, np.full(len(silent), "no evidence")]).astype(str)
    row_groups = np.concatenate([pairs["group"].to_numpy(dtype=str), np.array(silent, dtype=str)])
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", UserWarning)  # of classes rarer than the folds; ours are pooled
        splitter = StratifiedGroupKFold(n_splits=n_folds, shuffle=True, random_state=seed)
        splits = list(splitter.split(row_groups, row_classes, row_groups))
    every = frozenset(groups)
    validated = [frozenset(row_groups[rows].tolist()) for _, rows in splits]
    return [Fold(index, every - validation, validation) for index, validation in enumerate(validated)]


def _missing_class(corpus: Corpus, folds: Sequence[Fold]) -> str:
    """Which part of which fold has no evidence or no negatives, explicit or to be sampled; nothing where all have."""
    for fold in folds:
        sides = {"training": fold.training_groups, "validation": fold.validation_groups}
        for part, groups in sides.items():
            place = f"the {part} part of fold {fold.index + 1} would have no"
            pairs = _inside(corpus.pairs, groups)
            criteria = set(pairs.loc[pairs["label"] == 1, "criterion_id"])
            if not criteria:
                return f"{place} evidence"
            if pairs.loc[pairs["label"] == 0, "criterion_id"].isin(criteria).any():
                continue
            # One can be sampled where a sentence of this part is annotated nowhere for such a criterion.
            pool = _inside(corpus.sentences, groups)["sentence"]
            annotated = corpus.pairs[corpus.pairs["sentence"].isin(pool)]["criterion_id"].value_counts()
            if all(annotated.get(name, 0) >= len(pool) for name in criteria):
                return f"{place} negatives"
    return ""


def folds_fingerprint(folds: Sequence[Fold]) -> str:
    """SHA-256 in hexadecimal of which group is validated in which fold."""
    lines = sorted(f"{group}\t{fold.index}" for fold in folds for group in fold.validation_groups)
    return hashlib.sha256("\n".join(lines).encode()).hexdigest()


def balance(corpus: Corpus, folds: Sequence[Fold]) -> pd.DataFrame:
    """Groups, annotated pairs and evidence in the validation part of each fold, counted from 1."""
    rows = []
    for fold in folds:
        inside = _inside(corpus.pairs, fold.validation_groups)
        evidence = int(inside["label"].sum())
        rows.append(
            {
                "fold": fold.index + 1,
                "groups": len(fold.validation_groups),
                "annotated pairs": len(inside),
                "evidence": evidence,
                "fraction of evidence": round(evidence / max(len(inside), 1), 3),
                "criteria with evidence": int(inside.loc[inside["label"] == 1, "criterion_id"].nunique()),
            }
        )
    return pd.DataFrame(rows).set_index("fold")


def leakage(corpus: Corpus, folds: Sequence[Fold]) -> pd.DataFrame:
    """Count what stands on both sides of each fold.

    Zero, always: groups, posts, identical (criterion, sentence) text pairs, and sentences that negatives are drawn from. Not
    always zero, and shown so that it is known: sentences annotated on both sides, for different criteria.
    """
    rows = []
    for fold in folds:
        parts = (fold.training_groups, fold.validation_groups)
        pairs = [_inside(corpus.pairs, part) for part in parts]
        pools = [_inside(corpus.sentences, part) for part in parts]
        posts = [set(one["post_id"]) | set(pool["post_id"]) for one, pool in zip(pairs, pools, strict=True)]
        texts = [set(zip(one["criterion"], one["sentence"], strict=True)) for one in pairs]
        rows.append(
            {
                "fold": fold.index + 1,
                "groups": len(fold.training_groups & fold.validation_groups),
                "posts": len(posts[0] & posts[1]),
                "identical pairs": len(texts[0] & texts[1]),
                "sentences drawn from": len(set(pools[0]["sentence"]) & set(pools[1]["sentence"])),
                "sentences with other criteria": len(set(pairs[0]["sentence"]) & set(pairs[1]["sentence"])),
            }
        )
    return pd.DataFrame(rows).set_index("fold")


def _inside(table: pd.DataFrame, groups: Collection[str]) -> pd.DataFrame:
    return table[table["group"].isin(groups)]
