"""Sentences beside evidence in the same post, and those that say it in other words: they make no negatives of its criterion."""

import re

import numpy as np
import pandas as pd

from evbind_lib.data.tables import text_key

# Dice's coefficient of the words of two sentences, and at least so many in common. In the public ReDSM5 sample 15 of 21 pieces
# of evidence have such a sentence in their post, each one a rewording (at 60 % of the words of the shorter sentence: 10, and one
# that is none); on WiCE's dev split 2.1 % of the annotated negatives beside evidence are near it (2.2 %).
OVERLAP, FEWEST_WORDS = 0.42, 4


def beside_evidence(pairs: pd.DataFrame, posts: pd.DataFrame) -> pd.DataFrame:
    """Unannotated combinations (criterion_id, sentence) of posts with evidence for the criterion, and whether it is ``near``."""
    annotated = {*zip(pairs["criterion_id"], pairs["sentence"], strict=True)}
    criteria_of = pairs[pairs["label"] == 1].groupby("sentence")["criterion_id"].agg(list).to_dict()
    found: dict[tuple[str, str], bool] = {}
    for sentences in posts.drop_duplicates().groupby("post_id")["sentence"].agg(list):
        evidence = [sentence for sentence in sentences if sentence in criteria_of]
        words = {sentence: re.findall(r"\w+", text_key(sentence)) for sentence in sentences if evidence}
        for said in evidence:
            for other, of_other in words.items():
                near = _is_near(words[said], of_other)
                for combination in ((criterion, other) for criterion in criteria_of[said]):
                    if combination not in annotated:
                        found[combination] = near or found.get(combination, False)
    table = pd.DataFrame([*found], columns=["criterion_id", "sentence"], dtype="str")
    return table.assign(near=np.array([*found.values()], dtype=bool))


def _is_near(one: list[str], other: list[str]) -> bool:
    """Whether the words of two sentences are mostly the same, or one lies within the other, word by word."""
    first, second = {*one}, {*other}
    common = len(first & second)
    if common >= FEWEST_WORDS and 2 * common >= OVERLAP * (len(first) + len(second)):
        return True
    # With a space at the ends, so that "ill" does not lie within "will".
    whole, part = sorted((f" {' '.join(words)} " for words in (one, other)), key=len, reverse=True)
    return common == min(len(first), len(second)) and part in whole
