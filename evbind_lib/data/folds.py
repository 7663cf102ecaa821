"""Folds that share no author or post, hold like shares of evidence, and are the same in every trial.

Imports `errors` and `data`; `negatives`, `training` and everything above may import it.
"""

from __future__ import annotations

import hashlib
import warnings
from collections.abc import Collection, Sequence
from dataclasses import dataclass

import numpy as np
import pandas as pd
from sklearn.model_selection import StratifiedGroupKFold

from evbind_lib.data.corpus import Corpus
from evbind_lib.errors import FoldError

MOST_TRIED = 20  # numbers of folds above this are not tried out to be named as a remedy


@dataclass(frozen=True)
class Fold:
    """One split: the groups trained on and the groups validated on."""

    index: int
    training_groups: frozenset[str]
    validation_groups: frozenset[str]


def make_folds(corpus: Corpus, *, n_folds: int, seed: int) -> list[Fold]:
    """Split the groups of a corpus with scikit-learn's `StratifiedGroupKFold`.

    Rows are the labelled pairs, and one negative row for each group that has sentences but no labelled pair.
    A positive's class is its criterion where that criterion has evidence in at least ``n_folds`` groups, and
    "other evidence" where it is rarer; all negatives are one class. So each criterion is spread over the
    folds where that is possible, and the share of evidence is balanced where it is not.

    Parameters
    ----------
    corpus : Corpus
    n_folds : int
        At least 2.
    seed : int

    Returns
    -------
    list of Fold
        The same for the same content, whatever the order of rows in the files.

    Raises
    ------
    FoldError
        When there are more folds than groups, or a part of a fold would lack evidence or negatives.
    """
    if n_folds < 2:
        raise FoldError(f"training.n_folds={n_folds}: that leaves nothing to train on; set 2 or more.")
    groups = sorted(set(corpus.sentences["group"]) | set(corpus.pairs["group"]))
    with_evidence = corpus.pairs.loc[corpus.pairs["label"] == 1, "group"].nunique()
    most = min(len(groups), with_evidence)
    what = f"groups ({corpus.grouped_by})"
    if n_folds > len(groups):
        problem = f"the data has only {len(groups)} {what}"
    elif n_folds > with_evidence:
        problem = f"only {with_evidence} of the {len(groups)} {what} have evidence"
    else:
        folds = _split(corpus, groups, n_folds, seed)
        problem = _missing_class(corpus, folds)
        if not problem:
            return folds
        most = n_folds - 1
    for works in range(min(most, MOST_TRIED), 1, -1):
        if not _missing_class(corpus, _split(corpus, groups, works, seed)):
            remedy = f"set training.n_folds={works} or less"
            break
    else:
        remedy = "annotate more posts" + ("" if corpus.grouped_by == "post_id" else ", or group by post_id")
    raise FoldError(f"training.n_folds={n_folds}: {problem}; {remedy}.")


def _split(corpus: Corpus, groups: list[str], n_folds: int, seed: int) -> list[Fold]:
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
    folds = []
    for index, (_, validation_rows) in enumerate(splits):
        validation = frozenset(row_groups[validation_rows].tolist())
        folds.append(Fold(index, every - validation, validation))
    return folds


def _missing_class(corpus: Corpus, folds: Sequence[Fold]) -> str:
    """Say which part of which fold has no evidence or no negatives, explicit or to be sampled."""
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
    """Describe the validation part of each fold: groups, annotated pairs, evidence and its share.

    Parameters
    ----------
    corpus : Corpus
    folds : sequence of Fold

    Returns
    -------
    pandas.DataFrame
        One row per fold, counted from 1.
    """
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
                "share of evidence": round(evidence / max(len(inside), 1), 3),
                "criteria with evidence": int(inside.loc[inside["label"] == 1, "criterion_id"].nunique()),
            }
        )
    return pd.DataFrame(rows).set_index("fold")


def leakage(corpus: Corpus, folds: Sequence[Fold]) -> pd.DataFrame:
    """Count what stands on both sides of each fold.

    Parameters
    ----------
    corpus : Corpus
    folds : sequence of Fold

    Returns
    -------
    pandas.DataFrame
        One row per fold. Zero, always: groups, posts, identical (criterion, sentence) text pairs, and
        sentences that negatives are drawn from. Not always zero, and shown so that it is known: sentences
        annotated on both sides, for different criteria.
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
