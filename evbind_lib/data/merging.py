"""From cleaned rows and posts to pairs and sentences of which none stands there twice: what is merged, and where it is kept."""

import numpy as np
import pandas as pd

from evbind_lib.data import tables
from evbind_lib.data.groups import connected

ROW = ["post_id", "sentence_id", "criterion_id", "criterion", "sentence"]
SENTENCE = ["post_id", "sentence_id", "sentence"]


def merge(
    rows: pd.DataFrame, posts: pd.DataFrame, groups: dict[str, str], by: list[str]
) -> tuple[pd.DataFrame, pd.DataFrame, pd.DataFrame, dict[str, int]]:
    """Pairs; sentences, each with one post, and the further posts that have them; all with their groups; counts."""
    # Of each (criterion, sentence) the first row stays, by post and sentence id; it is evidence if any is.
    rows = rows[[*ROW, "label"]].sort_values(ROW, kind="stable", ignore_index=True)
    # Without the posts' texts, as each would be copied for all of its sentences.
    split = posts[["post_id"]].assign(sentence=posts["text"].map(tables.split_sentences)).explode("sentence")
    split = split.dropna(subset="sentence").astype("str")
    split["sentence_id"] = split["post_id"] + "_s" + split.groupby("post_id").cumcount().astype(str)
    counts = {"annotations_not_in_post": _not_in_post(rows, posts)}
    split = split.sort_values(["post_id", "sentence_id"], kind="stable")
    alike = _written_alike(pd.concat([rows["sentence"], split["sentence"]]))
    rows["sentence"], split["sentence"] = alike[: len(rows)], alike[len(rows) :]
    # All pairs of a sentence stand with the first post that is annotated for it, or it would be on both sides of a fold.
    home = np.flatnonzero(~rows.duplicated("sentence"))[pd.factorize(rows["sentence"])[0]]
    moved = rows.assign(**{name: rows[name].array[home] for name in ("post_id", "sentence_id")})
    if "criterion" in by[1:]:
        groups = connected(groups, moved["post_id"], moved["criterion_id"])
    pairs, pair_counts = _pairs(moved, rows["post_id"])
    pairs["group"] = pairs["post_id"].map(groups)
    sentences, repeats = (table.assign(group=table["post_id"].map(groups)) for table in _distinct(rows, split))
    if by == ["criterion"]:  # a sentence to draw from is where its first pair is, or that of its post
        pairs["group"] = pairs["criterion_id"]
        of_sentence, of_post = (pairs.groupby(name)["group"].first() for name in ("sentence", "post_id"))
        for table in (sentences, repeats):
            near = table["sentence"].map(of_sentence).fillna(table["post_id"].map(of_post))
            table["group"] = near.fillna(table["group"])
    n_groups = pairs["group"].nunique() if by == ["criterion"] else len(set(groups.values()))
    counts |= pair_counts | {"repeated_sentences": len(repeats), "posts": len(posts), "groups": n_groups}
    return pairs, sentences, repeats, counts


def _written_alike(sentences: pd.Series) -> pd.api.extensions.ExtensionArray:
    """Every text as the first is written that is one text with it, so that equal texts are equal strings."""
    first = dict[str, str]()
    codes, texts = pd.factorize(sentences)
    return pd.array([first.setdefault(tables.text_key(text), text) for text in texts.tolist()], dtype="str")[codes]


def _pairs(rows: pd.DataFrame, own_post: pd.Series) -> tuple[pd.DataFrame, dict[str, int]]:
    """One row for each criterion and sentence, evidence if any row is, with counts."""
    keys = ["criterion", "sentence"]
    labels, again = rows.groupby(keys, sort=False)["label"], rows.duplicated(keys)
    highest, lowest = labels.transform("max"), labels.transform("min")
    counts = {
        "repeated_pairs": int(again.sum()),
        "conflicting_labels": int(((highest != lowest) & ~again).sum()),
        "moved_pairs": int(((own_post != rows["post_id"]) & ~again).sum()),
    }
    pairs = rows.assign(label=highest)[~again]
    return pairs.sort_values(ROW, kind="stable", ignore_index=True), counts


def _distinct(rows: pd.DataFrame, split: pd.DataFrame) -> tuple[pd.DataFrame, pd.DataFrame]:
    """Every sentence in the first post that has it, annotated ones before those of posts' texts; and its further posts."""
    every = pd.concat([rows[SENTENCE].assign(order=0), split[SENTENCE].assign(order=1)], ignore_index=True)
    every[SENTENCE] = every[SENTENCE].astype("category")  # sorted by numbers, twice
    # Of an annotated sentence that is found in the text of its post too, the annotation's id stays.
    within = every.sort_values(["order", *SENTENCE]).drop_duplicates(["post_id", "sentence"])
    again = within.duplicated("sentence")
    sentences = within.loc[~again, SENTENCE].sort_values(SENTENCE, kind="stable", ignore_index=True)
    return sentences.astype("str"), within.loc[again, ["post_id", "sentence"]].reset_index(drop=True).astype("str")


def _not_in_post(rows: pd.DataFrame, posts: pd.DataFrame) -> int:
    """Number of annotated rows whose sentence is not in the text of their post; those of posts without text do not count."""
    named = zip(posts["post_id"], posts["text"], strict=True)
    texts = {post: tables.text_key(text) for post, text in named if text.strip()}
    pairs = zip(rows["post_id"], rows["sentence"], strict=True)
    return sum(post in texts and tables.text_key(sentence) not in texts[post] for post, sentence in pairs)
