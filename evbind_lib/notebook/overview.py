"""A look at the data before any training: lengths, overlap, and pairs to browse."""

from __future__ import annotations

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
    encoder = PairEncoder(load_tokenizer(params.model, texts), params.model.max_length)
    encoded = encoder.encode(corpus.pairs)
    whole = [len(first) + len(second) + len(encoded.layout) for first, second in encoded.tokens]
    words = _words(corpus.pairs["sentence"]).to_numpy(np.int64)
    return pd.DataFrame({"words": words, "tokens": np.array(whole, dtype=np.int64), "truncated": encoded.truncated()})


def length_table(lengths: pd.DataFrame, max_length: int) -> pd.DataFrame:
    """Quantiles of `pair_lengths`, and the fraction that ``max_length`` cuts."""
    table = lengths[["words", "tokens"]].quantile(list(QUANTILES.values())).astype(int).T
    table = table.set_axis(["words of the sentence", "tokens of the pair"]).set_axis(list(QUANTILES), axis=1)
    return table.assign(**{f"cut at {max_length}": ["", f"{lengths['truncated'].mean():.1%}"]})


def overlap(corpus: Corpus) -> pd.DataFrame:
    """How often sentences and posts occur again, as counts with what each means."""
    pairs, report = corpus.pairs, corpus.report
    criteria = pairs.groupby("sentence")["criterion_id"].nunique()
    labels = pairs.groupby("sentence")["label"].nunique()
    posts = corpus.sentences.groupby("group")["post_id"].nunique()
    rows = [
        ("sentences judged for several criteria", int((criteria > 1).sum()), "a sentence can be evidence for two"),
        ("of these, evidence for one and not for another", int((labels > 1).sum()), "the hardest negatives"),
        ("repeated pairs", report.repeated_pairs, "merged before splitting"),
        ("conflicting labels", report.conflicting_labels, "counted as evidence"),
        ("sentences repeated in other posts", report.repeated_sentences, "drawn as negatives from one post only"),
        (f"most posts of one {corpus.grouped_by}", int(posts.max()), "kept on one side of every fold"),
    ]
    return pd.DataFrame(rows, columns=["what", "count", "what it means"]).set_index("what")


def browse(
    corpus: Corpus,
    *,
    criterion: str | None = None,
    label: int | None = None,
    words: tuple[int, int] = (0, 10_000),
    text: str = "",
) -> pd.DataFrame:
    """Labelled pairs that meet all conditions: ids, label, words and, unless the corpus is sensitive, the sentence."""
    table = corpus.pairs.assign(words=_words(corpus.pairs["sentence"]))
    wanted = table["words"].between(*words) & table["sentence"].str.contains(text, case=False, regex=False)
    if criterion is not None:
        wanted &= table["criterion_id"] == criterion
    if label is not None:
        wanted &= table["label"] == label
    columns = ["post_id", "sentence_id", "criterion_id", "label", "words"]
    return table.loc[wanted, columns if corpus.sensitive else [*columns, "sentence"]].reset_index(drop=True)


def _words(sentences: pd.Series) -> pd.Series:
    return sentences.map(lambda sentence: len(sentence.split()))
