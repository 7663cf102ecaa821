"""A look at the data before any training: lengths and overlap."""

import numpy as np
import pandas as pd

from evbind_lib.config.schema import Params
from evbind_lib.data.corpus import Corpus

QUANTILES = {"shortest": 0.0, "median": 0.5, "90 %": 0.9, "99 %": 0.99, "longest": 1.0}


def pair_lengths(corpus: Corpus, params: Params) -> pd.DataFrame:
    """Length of every labelled pair: words of the sentence, tokens of the pair before truncation, whether it is truncated."""
    from evbind_lib.training.encoding import PairEncoder
    from evbind_lib.training.model import load_tokenizer

    texts = [*corpus.criteria.values(), *corpus.sentences["sentence"]]
    encoded = PairEncoder(load_tokenizer(params.model, texts), params.model.max_length).encode(corpus.pairs)
    whole = encoded.full.sum(axis=1, dtype=np.int64) + len(encoded.layout)
    words = corpus.pairs["sentence"].str.count(r"\S+").to_numpy(np.int64)
    return pd.DataFrame({"words": words, "tokens": whole, "truncated": whole > params.model.max_length})


def length_table(lengths: pd.DataFrame, max_length: int) -> pd.DataFrame:
    """Quantiles of `pair_lengths`, and the fraction that ``max_length`` cuts."""
    table = lengths[["words", "tokens"]].quantile(list(QUANTILES.values())).astype(int).T
    table = table.set_axis(["words of the sentence", "tokens of the pair"]).set_axis(list(QUANTILES), axis=1)
    return table.assign(**{f"cut at {max_length}": ["", f"{lengths['truncated'].mean():.1%}"]})


def overlap(corpus: Corpus) -> pd.DataFrame:
    """How often sentences and posts occur again, beside what the data report counts, with what each means."""
    several = corpus.pairs.groupby("sentence")[["criterion_id", "label"]].nunique().gt(1).sum()
    near, posts = corpus.beside_evidence["near"].sum(), corpus.sentences.groupby("group")["post_id"].nunique()
    rows = [
        ("sentences judged for several criteria", several["criterion_id"], "a sentence can be evidence for two"),
        ("of these, evidence for one and not for another", several["label"], "the hardest negatives"),
        ("near matches of evidence", int(near), "never drawn as negatives of its criterion"),
        (f"most posts of one {corpus.grouped_by}", posts.max(), "kept on one side of every fold"),
    ]
    return pd.DataFrame(rows, columns=["what", "count", "what it means"]).set_index("what")
