"""Sentences beside evidence in the same post, and those that say it in other words: they make no negatives of its criterion."""

import re

import numpy as np
import pandas as pd

from evbind_lib.data.tables import text_key

OVERLAP, FEWEST_WORDS = 0.6, 4  # of the words of the shorter sentence, and at least so many in common


def beside_evidence(pairs: pd.DataFrame, posts: pd.DataFrame) -> pd.DataFrame:
    """Unannotated combinations (criterion_id, sentence) of a post with evidence for the criterion, and whether they are ``near``.

    Near is a sentence that holds the evidence or lies within it, or shares four words with it that are 60 % of the shorter one:
    on WiCE's dev split 16 % of evidence sentences are near another one of their claim and document, and 1.4 % of the annotated
    negatives there. ``posts`` has every sentence of every post, columns post_id and sentence.
    """
    evidence = pairs.loc[pairs["label"] == 1, ["criterion_id", "sentence"]].merge(posts, on="sentence")
    other = evidence.merge(posts, on="post_id", suffixes=("_of_evidence", ""))
    other = other[other["sentence"] != other["sentence_of_evidence"]]
    annotated = pd.MultiIndex.from_frame(pairs[["criterion_id", "sentence"]])
    other = other[~pd.MultiIndex.from_frame(other[["criterion_id", "sentence"]]).isin(annotated)]
    texts = {*other["sentence"], *other["sentence_of_evidence"]}
    said = {text: re.findall(r"\w+", text_key(text)) for text in texts}
    words = {text: frozenset(each) for text, each in said.items()}

    def is_near(one: str, two: str) -> bool:
        common, least = len(words[one] & words[two]), min(len(words[one]), len(words[two]))
        if common >= FEWEST_WORDS and common >= OVERLAP * least:
            return True
        # Whole words, so that "ill" does not lie within "will".
        first, second = (f" {' '.join(said[text])} " for text in (one, two))
        return common == least > 0 and (first in second or second in first)

    near = [is_near(*texts) for texts in zip(other["sentence_of_evidence"], other["sentence"], strict=True)]
    other = other.assign(near=np.array(near, dtype=bool))
    return other.groupby(["criterion_id", "sentence"])["near"].any().reset_index()
