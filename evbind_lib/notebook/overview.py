"""A look at the data before any training: lengths, overlap, and sentences to browse.

Imports `data`, `encoding` and `models`; `widgets` and notebooks import it.
"""

from __future__ import annotations

import numpy as np
import pandas as pd

from evbind_lib.config.compose import ModelParams
from evbind_lib.data.corpus import Corpus
from evbind_lib.training.encoding import PairEncoder
from evbind_lib.training.model import load_tokenizer

QUANTILES = {"shortest": 0.0, "median": 0.5, "90 %": 0.9, "99 %": 0.99, "longest": 1.0}


def pair_lengths(corpus: Corpus, model: ModelParams) -> pd.DataFrame:
    """Length of every labelled pair, in words of the sentence and in word pieces of the pair.

    Parameters
    ----------
    corpus : Corpus
    model : ModelParams
        Its tokenizer and ``max_length``.

    Returns
    -------
    pandas.DataFrame
        Columns words, pieces (before truncation, special tokens counted) and truncated (bool); a row per labelled pair.

    Raises
    ------
    ModelError
        When the tokenizer cannot be loaded.
    """
    texts = [*corpus.criteria.values(), *corpus.sentences["sentence"]]
    encoder = PairEncoder(load_tokenizer(model, texts), model.max_length)
    encoded = encoder.encode(corpus.pairs)
    whole = [len(first) + len(second) + len(encoded.layout) for first, second in encoded.pieces]
    return pd.DataFrame(
        {
            "words": _words(corpus.pairs["sentence"]).to_numpy(np.int64),
            "pieces": np.array(whole, dtype=np.int64),
            "truncated": encoded.truncated(),
        }
    )


def length_table(lengths: pd.DataFrame, max_length: int) -> pd.DataFrame:
    """Quantiles of the lengths, and the share that ``max_length`` cuts.

    Parameters
    ----------
    lengths : pandas.DataFrame
        As `pair_lengths` gives it.
    max_length : int

    Returns
    -------
    pandas.DataFrame
    """
    rows = {"words of the sentence": lengths["words"], "word pieces of the pair": lengths["pieces"]}
    table = pd.DataFrame(
        {name: {label: int(values.quantile(q)) for label, q in QUANTILES.items()} for name, values in rows.items()}
    ).T
    share = f"{lengths['truncated'].mean():.1%}"
    table[f"cut at {max_length}"] = ["", share]
    return table


def overlap(corpus: Corpus) -> pd.DataFrame:
    """How often sentences and posts meet again, as counts with what each means.

    Parameters
    ----------
    corpus : Corpus

    Returns
    -------
    pandas.DataFrame
    """
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
    sensitive: bool,
) -> pd.DataFrame:
    """Labelled pairs that meet all conditions.

    Parameters
    ----------
    corpus : Corpus
    criterion : str, optional
        Id of a criterion; all when not given.
    label : int, optional
        1 for evidence, 0 for none.
    words : tuple of int
        Fewest and most words of the sentence.
    text : str
        What the sentence must hold, upper and lower case alike.
    sensitive : bool
        Give ids and lengths only.

    Returns
    -------
    pandas.DataFrame
        Columns post_id, sentence_id, criterion_id, label, words and, unless sensitive, sentence.
    """
    table = corpus.pairs.assign(words=_words(corpus.pairs["sentence"]))
    wanted = table["words"].between(*words) & table["sentence"].str.contains(text, case=False, regex=False)
    if criterion is not None:
        wanted &= table["criterion_id"] == criterion
    if label is not None:
        wanted &= table["label"] == label
    columns = ["post_id", "sentence_id", "criterion_id", "label", "words"]
    return table.loc[wanted, columns if sensitive else [*columns, "sentence"]].reset_index(drop=True)


def _words(sentences: pd.Series) -> pd.Series:
    return sentences.map(lambda sentence: len(sentence.split()))
