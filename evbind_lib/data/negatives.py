"""The pairs of each part of a fold: all that are annotated, and negatives drawn of what nobody annotated, an assumption."""

import hashlib
from collections.abc import Collection, Sequence

import numpy as np
import pandas as pd

from evbind_lib.config.schema import DataParams, Params
from evbind_lib.data.corpus import Corpus
from evbind_lib.data.folds import Fold
from evbind_lib.errors import DataError

MOST_PAIRS = 5_000_000
EVERY_PAIR = {  # strategies that take every combination: how they are asked for, and what takes fewer
    "all": ("data.negative_strategy=all", "data.negative_strategy=stratified"),
    "natural": ("data.eval_neg_ratio=natural", "data.eval_neg_ratio=10"),
}
COLUMNS = ["criterion_id", "post_id", "sentence_id", "criterion", "sentence", "label", "origin", "weight"]


def fold_pairs(corpus: Corpus, fold: Fold, params: Params) -> tuple[pd.DataFrame, pd.DataFrame]:
    """Pairs that a fold is trained on and validated on: every annotated pair of each part, and negatives sampled within it.

    ``data.negatives`` is ``annotated`` (these pairs alone), ``sampled`` (more negatives are added where the annotated ones are
    fewer than the ratio asks for) or ``auto``: ``annotated`` for a table of pairs that has negatives. Drawn are (criterion,
    sentence) combinations of the same part, as far as there are, none of `Corpus.not_drawn`. The training part follows
    ``data.negative_strategy`` at ``data.pos_neg_ratio``: ``stratified`` gives each criterion the ratio of its own evidence (none
    where it has none, else at least one); ``hard`` prefers sentences that are evidence for another criterion; ``random`` draws
    over all criteria alike; ``all`` takes every combination. The validation part is drawn as ``stratified`` at
    ``data.eval_neg_ratio`` (``natural``: every combination), the same in every trial.

    Parameters
    ----------
    corpus, fold, params
        Of the parameters the branch ``data``, with ``data.seed`` for the draws.

    Returns
    -------
    training, validation
        Columns criterion_id, post_id, sentence_id, criterion, sentence, label (int8), origin (``annotated`` or ``sampled``),
        weight (how many combinations a sampled pair stands for: eligible / drawn; 1 for annotated pairs). A `DataError` where
        ``all`` or ``natural`` would make more than 5 million, or ``annotated`` finds no negative.

    Examples
    --------
    >>> import evbind_lib as ev
    >>> params = ev.compose(["training.n_folds=3"])
    >>> corpus = ev.load_corpus(params)
    >>> training, validation = ev.fold_pairs(corpus, ev.make_folds(corpus, params)[0], params)
    >>> float(validation["label"].mean())
    0.25
    """
    training = training_pairs(corpus, fold.training_groups, params.data)
    return training, validation_pairs(corpus, fold.validation_groups, params.data)


def training_pairs(corpus: Corpus, groups: Collection[str], data: DataParams) -> pd.DataFrame:
    """Training pairs of some groups, in any order, as `fold_pairs` describes them."""
    return _Draw(corpus, groups, "training", data).pairs(data.negative_strategy, data.pos_neg_ratio)


def validation_pairs(corpus: Corpus, groups: Collection[str], data: DataParams) -> pd.DataFrame:
    """Validation pairs of some groups, in any order, as `fold_pairs` describes them."""
    ratio = data.eval_neg_ratio
    strategy, ratio = ("natural", 0.0) if ratio == "natural" else ("stratified", float(ratio))
    return _Draw(corpus, groups, "validation", data).pairs(strategy, ratio)


def part_counts(corpus: Corpus, folds: Sequence[Fold], params: Params) -> pd.DataFrame:
    """Pairs as annotated, and as each fold is trained on and validated on: counts, and the fraction that is evidence."""

    def counted(pairs: pd.DataFrame, groups: Collection[str]) -> list[float]:
        evidence, annotated = int(pairs["label"].sum()), int((pairs["origin"] == "annotated").sum())
        left_out, fraction = len(corpus.inside(groups)[0]) - annotated, evidence / max(len(pairs), 1)
        return [evidence, annotated - evidence, len(pairs) - annotated, left_out, round(fraction, 3)]

    rows = {("all", "annotated"): counted(corpus.pairs.assign(origin="annotated"), corpus.groups)}
    for fold in folds:
        training, validation = fold_pairs(corpus, fold, params)
        rows[str(fold.index + 1), "trained"] = counted(training, fold.training_groups)
        rows[str(fold.index + 1), "validated"] = counted(validation, fold.validation_groups)
    columns = ["evidence", "annotated negatives", "sampled negatives", "annotated left out", "fraction of evidence"]
    table = pd.DataFrame(rows, index=columns).T.rename_axis(["fold", "pairs"])
    return table.astype(dict.fromkeys(columns[:-1], int))


class _Draw:
    """Pairs and sentences of some groups, with a random stream of their own."""

    def __init__(self, corpus: Corpus, groups: Collection[str], role: str, data: DataParams) -> None:
        pairs, sentences = corpus.inside(groups)
        # Where folds share no criterion, none of the other side's is drawn for here.
        own = pairs["criterion_id"] if "criterion" in corpus.grouped_by.split(", ") else corpus.criteria
        self.texts, self.criteria = corpus.criteria, sorted(set(own))
        self.evidence, self.explicit = pairs[pairs["label"] == 1], pairs[pairs["label"] == 0]
        self.pool = sentences.reset_index(drop=True)
        # A combination is a number, criterion * len(pool) + row: millions need not be held as pairs to draw a few of them.
        self.size = len(self.criteria) * len(self.pool)
        self.samples = corpus.samples_negatives(data)
        # Sorted; a pair of another fold must not come back here either.
        table = corpus.not_drawn(data) if self.samples else pairs.iloc[:0]
        rows = pd.Index(self.pool["sentence"]).get_indexer(pd.Index(table["sentence"]))
        names = pd.Index(self.criteria).get_indexer(pd.Index(table["criterion_id"]))
        self.withheld = np.unique(names[rows >= 0] * len(self.pool) + rows[rows >= 0])
        mark = hashlib.sha256("\n".join([role, *sorted(set(groups))]).encode()).digest()
        self.random = np.random.default_rng([data.seed, int.from_bytes(mark[:8], "big")])

    def pairs(self, strategy: str, ratio: float) -> pd.DataFrame:
        """The annotated pairs, and what the strategy draws besides where negatives are sampled."""
        if not self.samples:
            return self._table([])
        if strategy in EVERY_PAIR:
            key, fewer = EVERY_PAIR[strategy]
            if self.size > MOST_PAIRS:
                problem = f"{self.size:,} pairs in a part of a fold, more than {MOST_PAIRS:,}"
                raise DataError(f"{key}: {problem}; set for example {fewer}.")
            return self.over_all_criteria(self.size)
        if strategy == "random":
            return self.over_all_criteria(max(round(ratio * len(self.evidence)) - len(self.explicit), 0))
        return self.stratified(ratio, hard=strategy == "hard")

    def stratified(self, ratio: float, hard: bool = False) -> pd.DataFrame:
        """Combinations that bring each criterion's negatives to the ratio of its own evidence."""
        counts, negatives = (table["criterion_id"].value_counts() for table in (self.evidence, self.explicit))
        is_evidence = self.pool["sentence"].isin(self.evidence["sentence"]).to_numpy()
        sampled: list[pd.Series] = []
        for number, name in enumerate(self.criteria):
            if name not in counts:
                continue
            quota = max(max(round(ratio * counts[name]), 1) - negatives.get(name, 0), 0)
            start = number * len(self.pool)
            first, last = np.searchsorted(self.withheld, [start, start + len(self.pool)])
            free = np.ones(len(self.pool), dtype=bool)
            free[self.withheld[first:last] - start] = False
            for eligible in (free & is_evidence, free & ~is_evidence) if hard else (free,):
                rows = np.flatnonzero(eligible)
                drawn = self.random.choice(rows, min(quota, len(rows)), replace=False)
                sampled.append(pd.Series(len(rows) / max(len(drawn), 1), start + drawn))
                quota -= len(drawn)
        return self._table(sampled)

    def over_all_criteria(self, quota: int) -> pd.DataFrame:
        """So many combinations, as far as there are, with every criterion alike."""
        n_free = self.size - len(self.withheld)
        ranks = self.random.choice(n_free, min(quota, n_free), replace=False)
        # The number of a free combination is its rank among them and how many withheld ones lie before it.
        drawn = ranks + np.searchsorted(self.withheld - np.arange(len(self.withheld)), ranks, side="right")
        return self._table([pd.Series(n_free / max(len(drawn), 1), drawn)])

    def _table(self, strata: list[pd.Series]) -> pd.DataFrame:
        """All annotated pairs, and the combinations drawn of each stratum: weights by their numbers."""
        weights = pd.concat([pd.Series(index=np.empty(0, dtype=np.int64), dtype=float), *strata]).sort_index()
        criteria, rows = np.divmod(weights.index.to_numpy(), max(len(self.pool), 1))
        names = pd.Series(np.array(self.criteria, dtype=object)[criteria], dtype=str)
        sampled = self.pool.take(rows).reset_index(drop=True)
        sampled = sampled.assign(criterion_id=names, criterion=names.map(self.texts), label=np.int8(0))
        sampled = sampled.assign(origin="sampled", weight=weights.to_numpy())
        annotated = pd.concat([self.evidence, self.explicit]).assign(origin="annotated", weight=1.0)
        return pd.concat([annotated, sampled], ignore_index=True)[COLUMNS]
