"""Folds that share no author or post, hold like shares of each criterion's evidence, and are the same in every trial.

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

from evbind_lib.data import Corpus
from evbind_lib.errors import FoldError


@dataclass(frozen=True)
class Fold:
    """One split: the groups trained on and the groups validated on."""

    index: int
    training_groups: frozenset[str]
    validation_groups: frozenset[str]


def make_folds(corpus: Corpus, *, n_folds: int, seed: int) -> list[Fold]:
    """Split the groups of a corpus with scikit-learn's `StratifiedGroupKFold`.

    Rows are the labelled pairs, and one negative row for each group that has sentences but no labelled pair. A positive's
    class is its criterion where that criterion has evidence in at least ``n_folds`` groups, and "other evidence" where it
    is rarer; all negatives are one class. So each criterion is spread over the folds where that is possible, and the share
    of evidence is balanced where it is not.

    Parameters
    ----------
    corpus : Corpus
    n_folds : int
    seed : int

    Returns
    -------
    list of Fold
        The same for the same content, whatever the order of rows in the files.

    Raises
    ------
    FoldError
        When there are more folds than groups, or a part of a fold would lack positives or negatives.
    """
    groups = sorted(set(corpus.sentences["group"]) | set(corpus.pairs["group"]))
    if n_folds > len(groups):
        raise FoldError(
            f"training.n_folds={n_folds}: the data has only {len(groups)} groups ({corpus.grouped_by}); set training.n_folds to "
            f"{len(groups)} or less."
        )
    folds = _split(corpus, groups, n_folds, seed)
    problem = _one_sided(corpus.pairs, folds)
    if problem:
        workable = [n for n in range(n_folds - 1, 1, -1) if not _one_sided(corpus.pairs, _split(corpus, groups, n, seed))]
        remedy = f"set training.n_folds={workable[0]}" if workable else "more annotated posts are needed"
        raise FoldError(f"training.n_folds={n_folds}: {problem}, so it cannot be scored; {remedy}.")
    return folds


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
        warnings.simplefilter("ignore", UserWarning)  # it warns of classes rarer than the folds; ours are pooled
        splitter = StratifiedGroupKFold(n_splits=n_folds, shuffle=True, random_state=seed)
        splits = list(splitter.split(row_groups, row_classes, row_groups))
    every = frozenset(groups)
    folds = []
    for index, (_, validation_rows) in enumerate(splits):
        validation = frozenset(row_groups[validation_rows].tolist())
        folds.append(Fold(index, every - validation, validation))
    return folds


def _one_sided(pairs: pd.DataFrame, folds: Sequence[Fold]) -> str:
    """Say which part of which fold lacks a class; explicit negatives are not needed, since others are sampled."""
    for fold in folds:
        for part, groups in (("training", fold.training_groups), ("validation", fold.validation_groups)):
            inside = pairs[pairs["group"].isin(groups)]
            if not (inside["label"] == 1).any():
                return f"the {part} part of fold {fold.index + 1} has no evidence"
    return ""


def folds_fingerprint(folds: Sequence[Fold]) -> str:
    """SHA-256 in hexadecimal of which group is validated in which fold."""
    lines = sorted(f"{group}\t{fold.index}" for fold in folds for group in fold.validation_groups)
    return hashlib.sha256("\n".join(lines).encode()).hexdigest()


def balance(corpus: Corpus, folds: Sequence[Fold]) -> pd.DataFrame:
    """Validation part of each fold: groups, annotated pairs, evidence and its share.

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
                "share of evidence": round(evidence / len(inside), 3),
                "criteria with evidence": int(inside.loc[inside["label"] == 1, "criterion_id"].nunique()),
            }
        )
    return pd.DataFrame(rows).set_index("fold")


def leakage(corpus: Corpus, folds: Sequence[Fold]) -> pd.DataFrame:
    """Count what stands on both sides of each fold; every number must be zero.

    Parameters
    ----------
    corpus : Corpus
    folds : sequence of Fold

    Returns
    -------
    pandas.DataFrame
        One row per fold: groups, posts, and identical (criterion, sentence) text pairs on both sides.
    """
    rows = []
    for fold in folds:
        training, validation = (_inside(corpus.pairs, part) for part in (fold.training_groups, fold.validation_groups))
        sides = [
            set(zip(part["criterion"], part["sentence"], strict=True)) for part in (training, validation)
        ]
        rows.append(
            {
                "fold": fold.index + 1,
                "groups": len(fold.training_groups & fold.validation_groups),
                "posts": len(set(training["post_id"]) & set(validation["post_id"])),
                "identical pairs": len(sides[0] & sides[1]),
            }
        )
    return pd.DataFrame(rows).set_index("fold")


def _inside(table: pd.DataFrame, groups: Collection[str]) -> pd.DataFrame:
    return table[table["group"].isin(groups)]
