"""Draw the negatives: for training inside the training part of a fold, for validation at one fixed ratio.

A sentence that nobody annotated for a criterion counts as a negative for it, an assumption of the data. Imports `errors`,
`params` and `data`; `training` imports it.
"""

from __future__ import annotations

import hashlib
from collections.abc import Collection
from typing import Any

import numpy as np
import pandas as pd

from evbind_lib.data import Corpus
from evbind_lib.errors import DataError
from evbind_lib.params import DataParams

MOST_PAIRS = 5_000_000
COLUMNS = ["post_id", "sentence_id", "criterion_id", "criterion", "sentence", "label", "group", "origin"]
Combination = tuple[str, int]  # a criterion's id and a row of the sentences to draw from


def training_pairs(corpus: Corpus, groups: Collection[str], *, data: DataParams, seed: int) -> pd.DataFrame:
    """All evidence of some groups, and negatives at ``data.pos_neg_ratio`` by ``data.negative_strategy``.

    Explicit negatives come first and are thinned out only where there are more than the ratio allows; the rest is drawn from
    unannotated (criterion, sentence) combinations of the same groups.

    ``stratified`` gives each criterion the ratio of its own evidence; ``hard`` prefers sentences that are evidence for
    another criterion; ``random`` draws over all criteria alike; ``all`` takes everything.

    Parameters
    ----------
    corpus : Corpus
    groups : collection of str
        The training part of a fold.
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
        wanted = round(data.pos_neg_ratio * len(draw.evidence))
        explicit, sampled = draw.anywhere(wanted)
        return draw.table(explicit, sampled)
    quotas = draw.quotas(data.pos_neg_ratio)
    explicit, left = draw.explicit_within(quotas)
    hard = draw.evidence_of_others(left) if data.negative_strategy == "hard" else []
    for name, _ in hard:
        left[name] -= 1
    return draw.table(explicit, hard + draw.unannotated(left, besides=set(hard)))


def validation_pairs(corpus: Corpus, groups: Collection[str], *, data: DataParams, seed: int) -> pd.DataFrame:
    """All evidence of some groups, and negatives at ``data.eval_neg_ratio``: what every trial is measured on.

    Depends on no parameter of training, so it is the same in every trial.

    Parameters
    ----------
    corpus : Corpus
    groups : collection of str
        The validation part of a fold.
    data : DataParams
        ``eval_neg_ratio`` negatives per evidence of each criterion, explicit ones first; or ``natural`` for every explicit
        negative and every unannotated combination.
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
    quotas = draw.quotas(float(data.eval_neg_ratio))
    explicit, left = draw.explicit_within(quotas)
    return draw.table(explicit, draw.unannotated(left))


class _Draw:
    """Pairs and sentences of some groups with a random stream of their own."""

    def __init__(self, corpus: Corpus, groups: Collection[str], role: str, seed: int) -> None:
        inside = frozenset(groups)
        self.criteria = corpus.criteria
        pairs = corpus.pairs[corpus.pairs["group"].isin(inside)]
        self.evidence = pairs[pairs["label"] == 1]
        self.explicit = pairs[pairs["label"] == 0]
        self.pool = corpus.sentences[corpus.sentences["group"].isin(inside)].reset_index(drop=True)
        self.texts = self.pool["sentence"].to_numpy()
        # Labelled anywhere: a sentence of another fold must not come back here as a sampled negative.
        labelled = corpus.pairs.groupby("criterion_id")["sentence"].agg(set).to_dict()
        self.labelled: dict[str, set[str]] = {name: labelled.get(name, set()) for name in corpus.criteria}
        mark = hashlib.sha256("\n".join([role, *sorted(inside)]).encode()).digest()
        self.random = np.random.default_rng([seed, int.from_bytes(mark[:8], "big")])

    def quotas(self, ratio: float) -> dict[str, int]:
        """Negatives for each criterion; one without evidence here gets none."""
        counts = self.evidence["criterion_id"].value_counts(sort=False).sort_index()
        return {str(name): round(ratio * count) for name, count in counts.items()}

    def explicit_within(self, quotas: dict[str, int]) -> tuple[pd.DataFrame, dict[str, int]]:
        """Explicit negatives, at most the quota of each criterion, and what is left of each quota."""
        parts = [self.explicit.iloc[:0]]
        left = dict(quotas)
        for name, rows in self.explicit.groupby("criterion_id"):
            quota = quotas.get(str(name), 0)
            if len(rows) > quota:
                rows = rows.iloc[np.sort(self.random.choice(len(rows), quota, replace=False))]
            left[str(name)] = quota - len(rows)
            parts.append(rows)
        return pd.concat(parts), left

    def unannotated(self, wanted: dict[str, int], besides: Collection[Combination] = ()) -> list[Combination]:
        """Draw as many unannotated combinations of each criterion as wanted, or as there are, none twice."""
        drawn: list[Combination] = []
        for name in sorted(wanted):
            found = 0
            for row in self.random.permutation(len(self.texts)) if wanted[name] > 0 else ():
                if found == wanted[name]:
                    break
                if self.texts[row] not in self.labelled[name] and (name, int(row)) not in besides:
                    drawn.append((name, int(row)))
                    found += 1
        return drawn

    def evidence_of_others(self, wanted: dict[str, int]) -> list[Combination]:
        """Sentences that are evidence for some criterion, paired with another that nobody annotated them for."""
        rows = np.flatnonzero(pd.Series(self.texts).isin(set(self.evidence["sentence"])))
        drawn: list[Combination] = []
        for name in sorted(wanted):
            if wanted[name] > 0:
                free = [int(row) for row in rows if self.texts[row] not in self.labelled[name]]
                chosen = self.random.choice(len(free), min(wanted[name], len(free)), replace=False)
                drawn += [(name, free[i]) for i in np.sort(chosen)]
        return drawn

    def anywhere(self, wanted: int) -> tuple[pd.DataFrame, list[Combination]]:
        """Explicit negatives, then unannotated combinations drawn alike over all criteria."""
        n_explicit = min(wanted, len(self.explicit))
        explicit = self.explicit.iloc[np.sort(self.random.choice(len(self.explicit), n_explicit, replace=False))]
        names = list(self.criteria)
        sampled: set[Combination] = set()
        for _ in range(20 * wanted):  # a bound: with few sentences there may not be as many as wanted
            if len(explicit) + len(sampled) >= wanted:
                break
            row, which = divmod(int(self.random.integers(len(names) * len(self.texts))), len(names))
            if self.texts[row] not in self.labelled[names[which]]:
                sampled.add((names[which], row))
        return explicit, sorted(sampled)

    def everything(self, key: str) -> list[Combination]:
        """Every unannotated combination."""
        size = len(self.criteria) * len(self.pool)
        if size > MOST_PAIRS:
            raise DataError(
                f"{key} makes {size:,} pairs of {len(self.criteria)} criteria and {len(self.pool):,} sentences in one fold; use a "
                "ratio instead."
            )
        rows = range(len(self.texts))
        return [(name, row) for name in self.criteria for row in rows if self.texts[row] not in self.labelled[name]]

    def table(self, explicit: pd.DataFrame, sampled: list[Combination]) -> pd.DataFrame:
        """Evidence, explicit and sampled negatives as one table."""
        annotated = pd.concat([self.evidence, explicit]).assign(origin="annotated")
        rows = self.pool.iloc[[row for _, row in sampled]].reset_index(drop=True)
        names: Any = pd.Series([name for name, _ in sampled], dtype=str)
        drawn = rows.assign(criterion_id=names, criterion=names.map(self.criteria), label=np.int8(0), origin="sampled")
        return pd.concat([annotated, drawn], ignore_index=True)[COLUMNS]
