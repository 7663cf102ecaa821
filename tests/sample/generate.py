"""Write the synthetic sample: invented posts in the ReDSM5 format, the same bytes for the same seed.

Run ``python -m tests.sample.generate [FOLDER]``; without a folder the files of the package are written anew.
Only the standard library is used, so that the bytes do not depend on a version of anything.
"""

from __future__ import annotations

import argparse
import csv
import json
import random
from pathlib import Path

from tests.sample.phrases import CRITERIA, DISTRACTORS, ENDINGS, OPENINGS, PHRASES, WHEN, WHY

SEED = 20260
N_AUTHORS = 150
N_POSTS = 200

Annotation = tuple[str, str, int, str]  # sentence, symptom, status, explanation


def sentence_from(chooser: random.Random, clause: str) -> str:
    """Put an opening before a clause and an ending behind it."""
    opening, ending = chooser.choice(OPENINGS), chooser.choice(ENDINGS)
    words = " ".join(part for part in (opening, clause, ending) if part)
    return words[0].upper() + words[1:] + "."


def make_post(chooser: random.Random, symptoms: list[str]) -> list[Annotation | str]:
    """Sentences of one post in order; annotated ones with symptom, status and explanation."""
    parts: list[Annotation | str] = []
    for symptom in symptoms:
        clause = chooser.choice(PHRASES[symptom])[0]
        parts.append((sentence_from(chooser, clause), symptom, 1, WHY[1]))
    for _ in range(chooser.choice([0, 0, 1, 1, 1])):
        symptom = chooser.choice(sorted(PHRASES))
        _, other, denied = chooser.choice(PHRASES[symptom])
        kind, clause = ("other", other) if chooser.random() < 0.5 else ("denied", denied)
        parts.append((sentence_from(chooser, clause), symptom, 0, WHY[kind]))
    for _ in range(chooser.choice([0, 1, 1])):
        text = chooser.choice(DISTRACTORS)
        when = chooser.choice(WHEN)
        parts.append(f"{text} {when}".strip() + ".")
    chooser.shuffle(parts)
    return parts


def make_corpus(seed: int = SEED) -> tuple[list[list[str]], list[list[str]]]:
    """Rows of posts.csv and of annotations.csv, headers first.

    Parameters
    ----------
    seed : int

    Returns
    -------
    posts, annotations : list of list of str
    """
    chooser = random.Random(seed)
    posts = [["post_id", "text"]]
    annotations = [["post_id", "sentence_id", "sentence_text", "DSM5_symptom", "status", "explanation"]]
    authors = list(range(1, N_AUTHORS + 1)) + [chooser.randint(1, N_AUTHORS) for _ in range(N_POSTS - N_AUTHORS)]
    deck: list[str] = []
    for number, author in enumerate(sorted(authors), start=1):
        count = chooser.choice([1, 1, 2, 2, 2])
        while len(deck) < count:  # a shuffled deck gives every symptom its share
            deck += chooser.sample(sorted(PHRASES), len(PHRASES))
        symptoms, deck = deck[:count], deck[count:]
        post = f"s_{author}_{number}"
        sentences = []
        for place, part in enumerate(make_post(chooser, symptoms)):
            if isinstance(part, str):
                sentences.append(part)
                if chooser.random() < 0.02:
                    annotations.append(
                        [post, f"{post}_{place}", part, "SPECIAL_CASE", "0", "No symptom is meant here."]
                    )
                continue
            text, symptom, status, why = part
            sentences.append(text)
            annotations.append([post, f"{post}_{place}", text, symptom, str(status), why])
        posts.append([post, " ".join(sentences)])
    return posts, annotations


def write(folder: Path, seed: int = SEED) -> None:
    """Write posts.csv, annotations.csv and redsm5_criteria.json into a folder."""
    folder.mkdir(parents=True, exist_ok=True)
    for name, rows in zip(("posts.csv", "annotations.csv"), make_corpus(seed), strict=True):
        with (folder / name).open("w", encoding="utf-8", newline="") as file:
            csv.writer(file, lineterminator="\n").writerows(rows)
    criteria = {"criteria": [{"id": name, "text": text} for name, text in CRITERIA.items()]}
    (folder / "redsm5_criteria.json").write_text(json.dumps(criteria, indent=2) + "\n", encoding="utf-8")


if __name__ == "__main__":
    parser = argparse.ArgumentParser(
        description="Write posts.csv, annotations.csv and redsm5_criteria.json of the sample."
    )
    parser.add_argument(
        "folder", nargs="?", type=Path, default=Path(__file__).parent, help="default: the package itself"
    )
    write(parser.parse_args().folder)
