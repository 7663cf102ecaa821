"""Sentences, pairs and posts asked of a model: read from a table, scored in parts that a later start goes on from."""

import contextlib
import hashlib
import json
from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np
import pandas as pd
from tqdm import tqdm

from evbind_lib.data.files import as_text, read_file, read_rows
from evbind_lib.data.tables import clean, each_text, refuse_rows, split_sentences
from evbind_lib.data.tables import shown as shown_id
from evbind_lib.errors import DataError, did_you_mean, shown
from evbind_lib.evaluation.model import EvidenceModel

AT_ONCE = 4096  # pairs, of which none is lost when scoring is cut off
TEXTS = ["sentence", "sentence_text", "text"]


def score_sentences(model: EvidenceModel, sentences: Sequence[str], criteria: Sequence[str] = ()) -> pd.DataFrame:
    """P(evidence) of each sentence (row, from 1) for each criterion (column): ids, or texts of the user's own; all by default."""
    rows, columns = clean_sentences(sentences), criterion_texts(criteria, model.criteria)
    pairs = pd.DataFrame([(text, row) for row in rows for text in columns.values()], columns=["criterion", "sentence"])
    evidence = model.predict_proba(pairs)[:, 1].reshape(len(rows), len(columns))
    return pd.DataFrame(evidence, columns=list(columns), index=range(1, len(rows) + 1))


def clean_sentences(sentences: Sequence[str]) -> list[str]:
    """Sentences as they are scored; one that is empty is a `DataError`."""
    cleaned = list(map(clean, sentences))
    if "" in cleaned:
        raise DataError(f"Sentence {cleaned.index('') + 1} is empty; give one that holds words.")
    return cleaned


def criterion_texts(names: Sequence[str], known: Mapping[str, str]) -> dict[str, str]:
    """Texts of criteria by id, or by the text itself where it is the user's own; all that are known when none is named."""
    for name in names:
        if name not in known and " " not in name.strip():
            raise DataError(f"There is no criterion {shown(name)}{did_you_mean(name, known)}")
    return {name: known.get(name, clean(name)) for name in names or known}


def read_pairs(file: str, known: Mapping[str, str], criteria: Sequence[str] = ()) -> tuple[pd.DataFrame, list[str]]:
    """Pairs to score, of a table of pairs, or of sentences or posts with every criterion; the columns to keep beside scores."""
    asked, place = criterion_texts(criteria, known), f"--input={file:.200}"
    table = as_text(read_file(file, "--input", read_rows), place, ()).rename_axis("row")
    for name in {"probability", "decision"} & {*table}:
        raise DataError(f"{place}: it has a column {name}, which the scores will have; give it another name.")
    if not {*TEXTS} & {*table}:
        as_text(table, place, ["sentence"])  # which says what is missing
    if not {"post_id", "sentence_id", "row"} & {*table}:
        table.insert(0, "row", table.index)
    kept = [str(name) for name in table if name not in TEXTS]
    if "sentence" not in table and "sentence_text" in table:  # as ReDSM5 calls it
        table["sentence"] = table["sentence_text"]
    if "sentence" not in table:
        table = table.assign(sentence=table["text"].map(split_sentences)).explode("sentence").dropna(subset="sentence")
        number = "sentence_id"
        while number in table:  # a column of the user's, which is kept
            number += "_in_text"
        table[number], kept = table.groupby(level=0).cumcount(), [*kept, number]
    table["sentence"] = each_text(table["sentence"].astype("str"), clean)
    refuse_rows(table["sentence"] == "", place, "the sentence is empty; fill it in or take the row out")
    if not {"criterion_id", "criterion"} & {*table}:
        every = pd.DataFrame(asked.items(), columns=["criterion_id", "criterion"])
        return table.merge(every, how="cross"), [*kept, "criterion_id"]
    if criteria:
        raise DataError(f"{place}: its rows name their criteria; leave --criterion out.")
    if "criterion" not in table:
        table["criterion"] = table["criterion_id"].map(known)
        for row, name in table.loc[table["criterion"].isna(), "criterion_id"].items():
            problem = f"{shown_id(name)} is none of the model's criteria; add a column criterion with its text"
            raise DataError(f"{place}, row {row}: {problem}.")
    refuse_rows(table["criterion"].map(clean) == "", place, "criterion is empty; fill it in or take the row out")
    return table.reset_index(drop=True), kept


def score_pairs(model: EvidenceModel, pairs: pd.DataFrame, part: Path | None = None) -> np.ndarray:
    """P(evidence) of each pair, with progress on stderr; what ``part`` holds of an earlier start is not asked again."""
    texts = pairs[["criterion", "sentence"]]
    # The longest first: like lengths need little padding, memory is short at once or never, and time left only shrinks.
    order = np.argsort(-(texts["criterion"].str.len() + texts["sentence"].str.len()).to_numpy(), kind="stable")
    about = json.dumps([model.about, len(texts)], sort_keys=True, default=str)
    rows = pd.util.hash_pandas_object(texts, index=False).to_numpy()
    done = _begun(part, hashlib.sha256(about.encode() + rows.tobytes()).hexdigest()) if part else []
    stream = part.open("a", encoding="ascii") if part else contextlib.nullcontext()
    with stream as file, tqdm(total=len(texts), initial=len(done), unit=" pairs", leave=False, disable=None) as bar:
        for start in range(len(done), len(texts), AT_ONCE):
            found = model.predict_proba(texts.iloc[order[start : start + AT_ONCE]])[:, 1].tolist()
            if file:
                file.write(json.dumps(found) + "\n")
                file.flush()
            done += found
            bar.update(len(found))
    evidence = np.empty(len(texts))
    evidence[order] = done
    return evidence


def _begun(part: Path, mark: str) -> list[float]:
    """Probabilities of an earlier start, whose last line may have been cut off; `DataError` where it was of something else."""
    content = part.read_bytes() if part.exists() else b""
    whole, problem = content[: content.rfind(b"\n") + 1], "it is of another input or model"
    try:
        first, *lines = whole.decode("ascii").splitlines() or [mark]
        if first == mark and (whole or mark.encode().startswith(content)):
            part.write_bytes(whole or f"{mark}\n".encode())
            return [each for line in lines for each in json.loads(line)]
    except ValueError:
        problem = "it cannot be read"
    except OSError as error:
        problem = f"it cannot be written ({error.strerror})"
    raise DataError(f"{part}: {problem}; remove it, or name another --output.")


def post_column(pairs: pd.DataFrame) -> str:
    """Name of the column that says of which post a sentence is; `DataError` where none does."""
    if "post_id" not in pairs and not {"row", "text"} <= {*pairs}:
        raise DataError("--posts: the input does not say which post a sentence is of; add a column post_id.")
    return "post_id" if "post_id" in pairs else "row"


def by_post(scored: pd.DataFrame) -> pd.DataFrame:
    """Of each post and criterion: sentences, those decided to be evidence, the highest probability, and whether any is."""
    columns = [post_column(scored), "criterion_id" if "criterion_id" in scored else "criterion"]
    found = scored.groupby(columns, sort=False)
    decided, highest = found["decision"], found["probability"].max()
    table = {"sentences": decided.size(), "evidence": decided.sum(), "probability": highest, "decision": decided.max()}
    return pd.DataFrame(table).reset_index()
