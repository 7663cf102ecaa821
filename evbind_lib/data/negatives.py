"""Draw the negatives: for training inside the training part of a fold, for validation at one fixed ratio.

A sentence that nobody annotated for a criterion counts as a negative for it: an assumption about the data.
Imports `errors`, `params` and `data`; `training` imports it.
"""

from __future__ import annotations

import hashlib
from collections.abc import Collection

import numpy as np
import pandas as pd

from evbind_lib.config.compose import DataParams
from evbind_lib.data.corpus import Corpus
from evbind_lib.errors import DataError

MOST_PAIRS = 5_000_000
COLUMNS = ["post_id", "sentence_id", "criterion_id", "criterion", "sentence", "label", "group", "origin"]


def training_pairs(corpus: Corpus, groups: Collection[str], *, data: DataParams, seed: int) -> pd.DataFrame:
    """All evidence of some groups, and negatives at ``data.pos_neg_ratio`` by ``data.negative_strategy``.

    Explicit negatives come first and are thinned out only where there are more than the ratio allows; the
    rest is drawn from (criterion, sentence) combinations of the same groups that are annotated nowhere in the
    corpus. Where there are too few of both, there are fewer negatives; none comes twice.

    ``stratified`` gives each criterion the ratio of its own evidence: none where it has no evidence in these
    groups, else at least one. ``hard`` does the same and prefers sentences that are evidence for another
    criterion; ``random`` draws over all criteria alike, with or without evidence; ``all`` takes every
    explicit negative and every unannotated combination.

    Parameters
    ----------
    corpus : Corpus
    groups : collection of str
        The training part of a fold, in any order.
    data : DataParams
    seed : int

    Returns
    -------
    pandas.DataFrame
        Columns `COLUMNS`; ``origin`` is ``annotated`` or ``sampled``. The same for the same seed and groups.

    Raises
    ------
    DataError
        When ``all`` would make more than 5 million pairs.
    """
    draw = _Draw(corpus, groups, "training", seed)
    if data.negative_strategy == "all":
        return draw.table(draw.explicit, draw.everything("data.negative_strategy=all"))
    if data.negative_strategy == "random":
        return draw.table(*draw.over_all_criteria(round(data.pos_neg_ratio * len(draw.evidence))))
    return draw.table(*draw.stratified(data.pos_neg_ratio, hard=data.negative_strategy == "hard"))


def validation_pairs(corpus: Corpus, groups: Collection[str], *, data: DataParams, seed: int) -> pd.DataFrame:
    """All evidence of some groups, and negatives at ``data.eval_neg_ratio``: what every trial is measured on.

    Depends on no parameter of training, so it is the same in every trial.

    Parameters
    ----------
    corpus : Corpus
    groups : collection of str
        The validation part of a fold, in any order.
    data : DataParams
        ``eval_neg_ratio`` negatives per evidence of each criterion, explicit ones first, as ``stratified``
        does; or ``natural`` for every explicit negative and every unannotated combination.
    seed : int

    Returns
    -------
    pandas.DataFrame
        As `training_pairs`.

    Raises
    ------
    DataError
        When ``natural`` would make more than 5 million pairs.
    """
    draw = _Draw(corpus, groups, "validation", seed)
    if data.eval_neg_ratio == "natural":
        return draw.table(draw.explicit, draw.everything("data.eval_neg_ratio=natural"))
    return draw.table(*draw.stratified(float(data.eval_neg_ratio)))


class _Draw:
    """Pairs and sentences of some groups, with a random stream of their own.

    A combination is a number, ``criterion * len(pool) + row``, so that 349 criteria times 40,000 sentences
    need not be held as pairs in order to draw a few of them.
    """

    def __init__(self, corpus: Corpus, groups: Collection[str], role: str, seed: int) -> None:
        inside = frozenset(groups)
        self.corpus = corpus
        self.criteria = sorted(corpus.criteria)
        pairs = corpus.pairs[corpus.pairs["group"].isin(inside)]
        self.evidence = pairs[pairs["label"] == 1]
        self.explicit = pairs[pairs["label"] == 0]
        self.pool = corpus.sentences[corpus.sentences["group"].isin(inside)].reset_index(drop=True)
        # Annotated anywhere: a pair of another fold must not come back here as a sampled negative.
        rows = pd.Index(self.pool["sentence"]).get_indexer(pd.Index(corpus.pairs["sentence"]))
        names = pd.Index(self.criteria).get_indexer(pd.Index(corpus.pairs["criterion_id"]))
        self.annotated = np.unique(names[rows >= 0] * len(self.pool) + rows[rows >= 0])
        mark = hashlib.sha256("\n".join([role, *sorted(inside)]).encode()).digest()
        self.random = np.random.default_rng([seed, int.from_bytes(mark[:8], "big")])

    def stratified(self, ratio: float, hard: bool = False) -> tuple[pd.DataFrame, np.ndarray]:
        """Draw explicit negatives and combinations at the ratio of each criterion's own evidence."""
        counts = self.evidence["criterion_id"].value_counts()
        of_criterion = dict(iter(self.explicit.groupby("criterion_id")))
        is_evidence = self.pool["sentence"].isin(self.evidence["sentence"]).to_numpy()
        explicit, sampled = [self.explicit.iloc[:0]], [np.empty(0, dtype=np.int64)]
        for number, name in enumerate(self.criteria):
            evidence = int(counts.get(name, 0))
            quota = max(round(ratio * evidence), 1) if evidence else 0
            explicit.append(self._some(of_criterion.get(name, self.explicit.iloc[:0]), quota))
            quota -= len(explicit[-1])
            if quota == 0:
                continue
            free = self._unannotated(number)
            for eligible in (free & is_evidence, free & ~is_evidence) if hard else (free,):
                rows = np.flatnonzero(eligible)
                rows = self.random.choice(rows, min(quota, len(rows)), replace=False)
                sampled.append(number * len(self.pool) + rows)
                quota -= len(rows)
        return pd.concat(explicit), np.concatenate(sampled)

    def over_all_criteria(self, quota: int) -> tuple[pd.DataFrame, np.ndarray]:
        """Draw explicit negatives, then combinations with every criterion alike."""
        explicit = self._some(self.explicit, quota)
        quota -= len(explicit)
        size = len(self.criteria) * len(self.pool)
        if 2 * (quota + len(self.annotated)) >= size:  # blind draws would hit the same ones again and again
            free = np.setdiff1d(np.arange(size), self.annotated)
            return explicit, self.random.choice(free, min(quota, len(free)), replace=False)
        drawn = np.empty(0, dtype=np.int64)
        while len(drawn) < quota:
            more = self.random.integers(size, size=2 * quota)
            every = np.concatenate([drawn, more[~np.isin(more, self.annotated)]])
            drawn = every[np.sort(np.unique(every, return_index=True)[1])]
        return explicit, drawn[:quota]

    def everything(self, key: str) -> np.ndarray:
        """Every unannotated combination."""
        size = len(self.criteria) * len(self.pool)
        if size > MOST_PAIRS:
            ratio = key.replace("=all", "=stratified").replace("=natural", "=10")
            raise DataError(
                f"{key}: {len(self.criteria)} criteria and {len(self.pool):,} sentences in a part of a fold "
                f"make {size:,} pairs, more than {MOST_PAIRS:,}; set for example {ratio}."
            )
        return np.setdiff1d(np.arange(size), self.annotated)

    def table(self, explicit: pd.DataFrame, sampled: np.ndarray) -> pd.DataFrame:
        """Evidence, explicit and sampled negatives as one table."""
        numbers, rows = np.divmod(np.sort(sampled), max(len(self.pool), 1))
        names = pd.Series(np.array(self.criteria, dtype=object)[numbers], dtype=str)
        drawn = self.pool.iloc[rows].reset_index(drop=True)
        drawn = drawn.assign(criterion_id=names, criterion=names.map(self.corpus.criteria), origin="sampled")
        annotated = pd.concat([self.evidence, explicit.sort_index()]).assign(origin="annotated")
        return pd.concat([annotated, drawn.assign(label=np.int8(0))], ignore_index=True)[COLUMNS]

    def _some(self, rows: pd.DataFrame, most: int) -> pd.DataFrame:
        """All rows where there are no more than ``most``, else a sample of them."""
        return rows if len(rows) <= most else rows.iloc[self.random.choice(len(rows), most, replace=False)]

    def _unannotated(self, number: int) -> np.ndarray:
        """Which rows of the pool nobody annotated for a criterion."""
        start = number * len(self.pool)
        first, last = np.searchsorted(self.annotated, [start, start + len(self.pool)])
        free = np.ones(len(self.pool), dtype=bool)
        free[self.annotated[first:last] - start] = False
        return free
