"""Sentences beside evidence in the same post, and those that say it in other words: they make no negatives of its criterion."""

import re

import numpy as np
import pandas as pd

from evbind_lib.data.tables import text_key

# Dice's coefficient of the words of two sentences, and at least so many in common. In the public ReDSM5 sample 15 of 21 pieces
# of evidence have such a sentence in their post, each one a rewording (at 60 % of the words of the shorter sentence: 10, and one
# that is none); on WiCE's dev split 2.1 % of the annotated negatives beside evidence are near it (2.2 %).
OVERLAP, FEWEST_WORDS = 0.42, 4
AT_ONCE = 10_000_000  # shared words that are counted at once, for memory
WORD = r"\w+"


def beside_evidence(pairs: pd.DataFrame, posts: pd.DataFrame) -> pd.DataFrame:
    """Unannotated combinations (criterion_id, sentence) of posts with evidence for the criterion, and whether it is ``near``."""
    posts = posts.drop_duplicates()
    post = pd.factorize(posts["post_id"])[0]
    sentence, texts = pd.factorize(posts["sentence"].to_numpy(dtype=object))
    criterion, names = pd.factorize(pairs["criterion_id"].to_numpy(dtype=object))
    # Numbers instead of texts from here on: a combination is criterion * len(texts) + sentence.
    places = pd.DataFrame({"post": post, "sentence": sentence, "place": np.arange(len(post))})
    annotated = pd.DataFrame({"criterion": criterion, "sentence": pd.Index(texts).get_indexer(pairs["sentence"])})
    evidence = annotated[(pairs["label"] == 1).to_numpy()].merge(places, on="sentence")
    beside = evidence[["criterion", "post"]].drop_duplicates().merge(places[places["post"].isin(evidence["post"])])
    combinations, known, near = (
        np.unique(table["criterion"] * len(texts) + table["sentence"])
        for table in (beside, annotated, evidence[["criterion", "place"]].merge(_near(places, texts, evidence)))
    )
    combinations = combinations[~np.isin(combinations, known)]
    which, what = np.divmod(combinations, max(len(texts), 1))
    found = {"criterion_id": names[which], "sentence": texts[what], "near": np.isin(combinations, near)}
    return pd.DataFrame(found)


def _near(places: pd.DataFrame, texts: np.ndarray, evidence: pd.DataFrame) -> pd.DataFrame:
    """Sentences near evidence of the same post: place of the evidence, number of the sentence."""
    from sklearn.feature_extraction.text import CountVectorizer  # a second, which reading data need not wait for

    places = places[places["post"].isin(evidence["post"])]
    sources = np.flatnonzero(places["place"].isin(evidence["place"]))
    place, sentence, post = (places[name].to_numpy(np.int64) for name in ("place", "sentence", "post"))
    numbers, rows = np.unique(sentence, return_inverse=True)
    counter = CountVectorizer(binary=True, lowercase=False, preprocessor=text_key, token_pattern=WORD)
    counter.fit([*texts[numbers], "a"])  # it refuses texts without any word
    words = counter.transform(texts[numbers])[rows]
    # A word of another post is another word, so that one product compares the sentences of each post with each other alone.
    of_post = np.repeat(post, np.diff(words.indptr)) * words.shape[1] + words.indices
    columns, words.indices = np.unique(of_post, return_inverse=True)
    words = type(words)((words.data.astype(np.int32), words.indices, words.indptr), shape=(len(rows), len(columns)))
    turned, lengths = words.T.tocsr(), np.diff(words.indptr)
    work, pairs = np.cumsum(words[sources] @ np.asarray(words.sum(axis=0)).ravel()), [np.empty((2, 0), dtype=np.int64)]
    for part in np.split(sources, np.searchsorted(work, np.arange(AT_ONCE, work[-1:].sum(), AT_ONCE))):
        product = (words[part] @ turned).tocoo()
        one, other, common = part[product.row], product.col, product.data
        both = np.stack([lengths[one], lengths[other]])
        near = (common >= FEWEST_WORDS) & (2 * common >= OVERLAP * both.sum(axis=0))
        candidates = np.flatnonzero(~near & (common == both.min(axis=0)))
        near[candidates] = [_within(texts[sentence[one[at]]], texts[sentence[other[at]]]) for at in candidates]
        near &= one != other
        pairs.append(np.stack([place[one[near]], sentence[other[near]]]))
    found = np.concatenate(pairs, axis=1)
    return pd.DataFrame({"place": found[0], "sentence": found[1]})


def _within(one: str, other: str) -> bool:
    """Whether one of two sentences lies within the other, word by word, so that "ill" does not lie within "will"."""
    first, second = (f" {' '.join(re.findall(WORD, text_key(text)))} " for text in (one, other))
    return first in second or second in first
