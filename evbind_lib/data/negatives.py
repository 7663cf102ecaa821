"""Draw negatives inside each part of a fold: sentences that nobody annotated for a criterion, an assumption about the data."""

import hashlib
from collections.abc import Collection

import numpy as np
import pandas as pd

from evbind_lib.config.schema import Params
from evbind_lib.data.corpus import Corpus
from evbind_lib.data.folds import Fold
from evbind_lib.errors import DataError

MOST_PAIRS = 5_000_000
COLUMNS = ["criterion_id", "post_id", "sentence_id", "criterion", "sentence", "label", "origin", "weight"]


def fold_pairs(corpus: Corpus, fold: Fold, params: Params) -> tuple[pd.DataFrame, pd.DataFrame]:
    """Pairs that a fold is trained on and validated on: annotated ones, and negatives sampled within each part.

    Explicit negatives come first, thinned out only where there are more than the ratio allows; the rest is drawn from (criterion,
    sentence) combinations of the same part that are annotated nowhere, as far as there are. The training part follows
    ``data.negative_strategy`` at ``data.pos_neg_ratio``: ``stratified`` gives each criterion the ratio of its own evidence (none
    where it has none, else at least one); ``hard`` prefers sentences that are evidence for another criterion; ``random`` draws
    over all criteria alike; ``all`` takes every combination. The validation part is drawn as ``stratified`` at
    ``data.eval_neg_ratio`` (``natural``: every combination), the same in every trial.

    Parameters
    ----------
    corpus, fold, params
        Of the parameters the branch ``data``, and ``training.seed`` for the draws.

    Returns
    -------
    training, validation
        Columns criterion_id, post_id, sentence_id, criterion, sentence, label (int8), origin (``annotated`` or ``sampled``),
        weight (how many combinations a sampled pair stands for: eligible / drawn; 1 for annotated pairs). A `DataError` where
        ``all`` or ``natural`` would make more than 5 million.

    Examples
    --------
    >>> import evbind_lib as ev
    >>> params = ev.compose(["training.n_folds=3"])
    >>> corpus = ev.load_corpus(params)
    >>> training, validation = ev.fold_pairs(corpus, ev.make_folds(corpus, params)[0], params)
    >>> float(validation["label"].mean())
    0.25
    """
    training = training_pairs(corpus, fold.training_groups, params)
    return training, validation_pairs(corpus, fold.validation_groups, params)


def training_pairs(corpus: Corpus, groups: Collection[str], params: Params) -> pd.DataFrame:
    """Training pairs of some groups, in any order, as `fold_pairs` describes them."""
    data, draw = params.data, _Draw(corpus, groups, "training", params.training.seed)
    if data.negative_strategy == "all":
        return draw.everything("data.negative_strategy=all")
    if data.negative_strategy == "random":
        return draw.over_all_criteria(round(data.pos_neg_ratio * len(draw.evidence)))
    return draw.stratified(data.pos_neg_ratio, hard=data.negative_strategy == "hard")


def validation_pairs(corpus: Corpus, groups: Collection[str], params: Params) -> pd.DataFrame:
    """Validation pairs of some groups, in any order, as `fold_pairs` describes them."""
    draw = _Draw(corpus, groups, "validation", params.training.seed)
    if params.data.eval_neg_ratio == "natural":
        return draw.everything("data.eval_neg_ratio=natural")
    return draw.stratified(float(params.data.eval_neg_ratio))


class _Draw:
    """Pairs and sentences of some groups, with a random stream of their own."""

    def __init__(self, corpus: Corpus, groups: Collection[str], role: str, seed: int) -> None:
        self.texts, self.criteria = corpus.criteria, sorted(corpus.criteria)
        pairs, sentences = corpus.inside(groups)
        self.evidence, self.explicit = pairs[pairs["label"] == 1], pairs[pairs["label"] == 0]
        self.pool = sentences.reset_index(drop=True)
        # A combination is a number, criterion * len(pool) + row: millions need not be held as pairs to draw a few of them.
        self.size = len(self.criteria) * len(self.pool)
        # Annotated anywhere: a pair of another fold must not come back here as a sampled negative.
        rows = pd.Index(self.pool["sentence"]).get_indexer(pd.Index(corpus.pairs["sentence"]))
        names = pd.Index(self.criteria).get_indexer(pd.Index(corpus.pairs["criterion_id"]))
        self.annotated = np.unique(names[rows >= 0] * len(self.pool) + rows[rows >= 0])
        mark = hashlib.sha256("\n".join([role, *sorted(set(groups))]).encode()).digest()
        self.random = np.random.default_rng([seed, int.from_bytes(mark[:8], "big")])

    def stratified(self, ratio: float, hard: bool = False) -> pd.DataFrame:
        """Explicit negatives and combinations at the ratio of each criterion's own evidence."""
        counts = self.evidence["criterion_id"].value_counts()
        is_evidence = self.pool["sentence"].isin(self.evidence["sentence"]).to_numpy()
        explicit, sampled = [self.explicit.iloc[:0]], [(np.empty(0, dtype=np.int64), 0)]
        for number, name in enumerate(self.criteria):
            if name not in counts:
                continue
            quota = max(round(ratio * counts[name]), 1)
            explicit.append(self._some(self.explicit[self.explicit["criterion_id"] == name], quota))
            quota -= len(explicit[-1])
            start = number * len(self.pool)
            first, last = np.searchsorted(self.annotated, [start, start + len(self.pool)])
            free = np.ones(len(self.pool), dtype=bool)
            free[self.annotated[first:last] - start] = False
            for eligible in (free & is_evidence, free & ~is_evidence) if hard else (free,):
                rows = np.flatnonzero(eligible)
                drawn = self.random.choice(rows, min(quota, len(rows)), replace=False)
                sampled.append((start + drawn, len(rows)))
                quota -= len(drawn)
        return self._table(pd.concat(explicit), sampled)

    def over_all_criteria(self, quota: int) -> pd.DataFrame:
        """Explicit negatives, then combinations with every criterion alike."""
        explicit = self._some(self.explicit, quota)
        n_free = self.size - len(self.annotated)
        ranks = self.random.choice(n_free, min(quota - len(explicit), n_free), replace=False)
        # The number of a free combination is its rank among them and how many annotated ones lie before it.
        drawn = ranks + np.searchsorted(self.annotated - np.arange(len(self.annotated)), ranks, side="right")
        return self._table(explicit, [(drawn, n_free)])

    def everything(self, key: str) -> pd.DataFrame:
        """All explicit negatives and every unannotated combination."""
        if self.size > MOST_PAIRS:
            ratio = key.replace("=all", "=stratified").replace("=natural", "=10")
            problem = f"{self.size:,} pairs in a part of a fold, more than {MOST_PAIRS:,}"
            raise DataError(f"{key}: {problem}; set for example {ratio}.")
        free = np.setdiff1d(np.arange(self.size), self.annotated)
        return self._table(self.explicit, [(free, len(free))])

    def _table(self, explicit: pd.DataFrame, strata: list[tuple[np.ndarray, int]]) -> pd.DataFrame:
        """Evidence, explicit negatives and what was drawn of each stratum, with the number it was drawn from."""
        numbers = np.concatenate([drawn for drawn, _ in strata])
        weights = np.concatenate([np.full(len(drawn), eligible / max(len(drawn), 1)) for drawn, eligible in strata])
        order = np.argsort(numbers)
        criteria, rows = np.divmod(numbers[order], max(len(self.pool), 1))
        names = pd.Series(np.array(self.criteria, dtype=object)[criteria], dtype=str)
        sampled = self.pool.iloc[rows].reset_index(drop=True)
        sampled = sampled.assign(criterion_id=names, criterion=names.map(self.texts), label=np.int8(0))
        sampled = sampled.assign(origin="sampled", weight=weights[order])
        annotated = pd.concat([self.evidence, explicit.sort_index()]).assign(origin="annotated", weight=1.0)
        return pd.concat([annotated, sampled], ignore_index=True)[COLUMNS]

    def _some(self, rows: pd.DataFrame, most: int) -> pd.DataFrame:
        """All rows where there are no more than ``most``, else a sample of them."""
        return rows if len(rows) <= most else rows.iloc[self.random.choice(len(rows), most, replace=False)]
