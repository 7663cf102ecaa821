"""Which sentences are beside evidence in its post, and which of them say it in other words."""

from __future__ import annotations

import re

import pandas as pd
from hypothesis import given, settings
from hypothesis import strategies as st

from evbind_lib.config.compose import compose
from evbind_lib.data.corpus import Corpus
from evbind_lib.data.negatives import training_pairs, validation_pairs
from evbind_lib.data.tables import text_key

SENTENCES = st.lists(st.sampled_from(["I", "can't", "stop", "crying", "now", "cry", "so"]), min_size=1, max_size=7)
POSTS = st.lists(st.lists(SENTENCES.map(" ".join), min_size=1, max_size=5), min_size=1, max_size=3)
PARAMS = compose()
CRITERIA = {"A": "Low mood.", "B": "Sleeping badly."}


def is_near(one: str, other: str) -> bool:
    """The rule, for two sentences, as its docstring has it."""
    first, second = (re.findall(r"\w+", text_key(text)) for text in (one, other))
    common = len({*first} & {*second})
    if common >= 4 and 2 * common / (len({*first}) + len({*second})) >= 0.42:
        return True
    short, long = sorted((first, second), key=len)
    return any(long[at : at + len(short)] == short for at in range(len(long) - len(short) + 1))


def corpus_of(posts: list[list[str]], evidence: list[tuple[int, str]]) -> Corpus:
    """Posts of these sentences, the first of each post evidence where ``evidence`` has its number and a criterion."""
    texts = pd.DataFrame(
        {"post_id": [f"p{at}" for at in range(len(posts))], "text": ["\n".join(each) for each in posts]}
    )
    rows = [(f"p{at % len(posts)}", posts[at % len(posts)][0], name, 1) for at, name in evidence]
    columns = ["post_id", "sentence_text", "DSM5_symptom", "status"]
    return Corpus.from_posts(texts, pd.DataFrame(rows, columns=columns), CRITERIA, group_by="post_id")


@given(
    POSTS,
    st.lists(st.tuples(st.integers(0, 2), st.sampled_from("AB")), min_size=1, max_size=4),
    st.sampled_from(["stratified", "hard", "random", "all"]),
)
@settings(max_examples=30, deadline=None)
def test_no_sampled_sentence_is_near_evidence_of_its_criterion_in_its_post(
    posts: list[list[str]], evidence: list[tuple[int, str]], strategy: str
) -> None:
    corpus = corpus_of(posts, evidence)
    of_post = pd.concat([corpus.sentences, corpus.repeats])[["post_id", "sentence"]]
    annotated = set(zip(corpus.pairs["criterion_id"], corpus.pairs["sentence"], strict=True))
    expected: dict[tuple[str, str], bool] = {}
    for name, said in annotated:  # all of them are evidence
        for post in of_post.loc[of_post["sentence"] == said, "post_id"]:
            for other in of_post.loc[of_post["post_id"] == post, "sentence"]:
                if (name, other) not in annotated:
                    expected[name, other] = expected.get((name, other), False) or is_near(said, other)
    beside = corpus.beside_evidence
    assert (
        dict(zip(zip(beside["criterion_id"], beside["sentence"], strict=True), beside["near"], strict=True)) == expected
    )
    data = {"data.same_post_negatives": True, "data.negative_strategy": strategy, "data.eval_neg_ratio": "natural"}
    params = PARAMS.with_values(data)
    for draw in (training_pairs, validation_pairs):
        drawn = draw(corpus, corpus.groups, params.data).query("origin == 'sampled'")
        assert not any(expected.get(pair, False) for pair in zip(drawn["criterion_id"], drawn["sentence"], strict=True))
