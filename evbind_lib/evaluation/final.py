"""Score new sentences: one model trained on all posts, kept in the workspace, and its probability for each criterion.

Imports the rooms below it up to `training`; `widgets`, `notebook` and `cli` import it. Models stay in the workspace and are
never sent to MLflow: the words of a tokenizer trained on posts are those posts' words.
"""

from __future__ import annotations

import hashlib
import json
import shutil
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import torch
from transformers import (
    AutoModelForSequenceClassification,
    AutoTokenizer,
    PreTrainedModel,
    PreTrainedTokenizerFast,
)
from transformers.utils import logging

from evbind_lib.config.compose import Params, workspace
from evbind_lib.data.corpus import Corpus
from evbind_lib.data.negatives import training_pairs
from evbind_lib.data.tables import clean, read_table
from evbind_lib.errors import DataError, did_you_mean
from evbind_lib.training.crossval import fit
from evbind_lib.training.encoding import PairEncoder
from evbind_lib.training.model import TINY, choose_precision, load_tokenizer
from evbind_lib.training.prediction import predict

logging.disable_progress_bar()  # of loading and writing weights: tiny bars that stay in a notebook for good

ABOUT = "evbind.json"
BATCH = 64


@dataclass(frozen=True)
class Scorer:
    """A trained model with the criteria that it knows.

    Attributes
    ----------
    model : PreTrainedModel
    encoder : PairEncoder
    criteria : mapping of str to str
        Text by id.
    precision : str
    folder : pathlib.Path
        Where it is kept.
    """

    model: PreTrainedModel
    encoder: PairEncoder
    criteria: Mapping[str, str]
    precision: str
    folder: Path

    def score(self, sentences: Sequence[str], criteria: Sequence[str] = ()) -> pd.DataFrame:
        """Probability that each sentence is evidence for each criterion.

        Parameters
        ----------
        sentences : sequence of str
        criteria : sequence of str
            Ids, or texts of one's own; all that the model knows when not given.

        Returns
        -------
        pandas.DataFrame
            One row per sentence, one column per criterion, float64.

        Raises
        ------
        DataError
            When a sentence is empty or a criterion is neither an id nor a text.
        """
        cleaned = clean_sentences(sentences)
        texts = criterion_texts(criteria, self.criteria)
        pairs = pd.DataFrame(
            [(text, sentence, 0) for sentence in cleaned for text in texts.values()],
            columns=["criterion", "sentence", "label"],
        )
        probabilities = self.probabilities(pairs)
        shape = (len(cleaned), len(texts))
        return pd.DataFrame(probabilities.reshape(shape), columns=list(texts), index=range(1, len(cleaned) + 1))

    def probabilities(self, pairs: pd.DataFrame) -> np.ndarray:
        """Probability of evidence of each row of a table with columns criterion and sentence; shape (n,)."""
        if pairs.empty:
            return np.empty(0)
        pad = int(self.encoder.tokenizer.pad_token_id or 0)
        return predict(
            self.model,
            self.encoder.encode(pairs.assign(label=0)),
            pad_token_id=pad,
            batch_size=BATCH,
            precision=self.precision,
        )


def clean_sentences(sentences: Sequence[str]) -> list[str]:
    """Sentences as they are scored; one that is empty is a `DataError`."""
    cleaned = [clean(sentence) for sentence in sentences]
    for number, sentence in enumerate(cleaned, start=1):
        if not sentence:
            raise DataError(f"Sentence {number} is empty; give one that holds words.")
    return cleaned


def criterion_texts(names: Sequence[str], known: Mapping[str, str]) -> dict[str, str]:
    """Texts of criteria by id, or by the text itself where one is of a person's own.

    Parameters
    ----------
    names : sequence of str
        Ids, or texts of one's own; all that are known when empty.
    known : mapping of str to str
        Text by id.

    Returns
    -------
    dict of str to str

    Raises
    ------
    DataError
        When a name is neither an id nor a text.
    """
    texts = {}
    for name in names or known:
        if name not in known and " " not in name.strip():
            raise DataError(f"There is no criterion {name}{did_you_mean(name, known)}")
        texts[name] = known.get(name, clean(name))
    return texts


def scorer_folder(params: Params, corpus: Corpus) -> Path:
    """Folder of the model that these parameters and data make."""
    training = params.training.model_dump(exclude={"n_folds", "provenance"})
    data = {"pos_neg_ratio": params.data.pos_neg_ratio, "negative_strategy": params.data.negative_strategy}
    key = json.dumps([params.model.model_dump(), training, data, corpus.fingerprint], sort_keys=True, default=str)
    name = Path(params.model.name).name
    return workspace() / "runs" / "models" / f"{name}_{hashlib.sha256(key.encode()).hexdigest()[:12]}"


def open_scorer(params: Params, corpus: Corpus) -> Scorer:
    """Load the model of these parameters and data, after training it on all posts where there is none yet.

    Parameters
    ----------
    params : Params
    corpus : Corpus

    Returns
    -------
    Scorer

    Raises
    ------
    ModelError
        When the model cannot be loaded.
    TrainingError
        When its loss is not a finite number.
    """
    folder = scorer_folder(params, corpus)
    if not (folder / ABOUT).is_file():
        _train(params, corpus, folder)
    about: dict[str, Any] = json.loads((folder / ABOUT).read_text(encoding="utf-8"))
    kind = PreTrainedTokenizerFast if params.model.name == TINY else AutoTokenizer
    encoder = PairEncoder(kind.from_pretrained(folder), params.model.max_length)
    model = AutoModelForSequenceClassification.from_pretrained(folder, dtype=torch.float32, attn_implementation="eager")
    model.to("cuda" if torch.cuda.is_available() else "cpu").eval()
    return Scorer(model, encoder, about["criteria"], choose_precision(params.model.precision), folder)


def _train(params: Params, corpus: Corpus, folder: Path) -> None:
    every = frozenset(corpus.sentences["group"]) | frozenset(corpus.pairs["group"])
    pairs = training_pairs(corpus, every, data=params.data, seed=params.training.seed)
    texts = [*corpus.criteria.values(), *corpus.sentences["sentence"]]
    encoder = PairEncoder(load_tokenizer(params.model, texts), params.model.max_length)
    model = fit(params, encoder, encoder.encode(pairs), place="all posts")
    partial = folder.with_name(f".{folder.name}")
    shutil.rmtree(partial, ignore_errors=True)
    partial.mkdir(parents=True)
    model.save_pretrained(partial)
    encoder.tokenizer.save_pretrained(partial)
    about = {
        "criteria": dict(corpus.criteria),
        "training": params.training.model_dump(exclude={"n_folds"}),
        "model": params.model.name,
        "data_fingerprint": corpus.fingerprint,
        "pairs": len(pairs),
    }
    (partial / ABOUT).write_text(json.dumps(about, indent=1), encoding="utf-8")
    partial.replace(folder)


def read_sentences(file: str) -> pd.DataFrame:
    """Read the sentences of a table that is to be scored.

    Parameters
    ----------
    file : str
        CSV, TSV, Parquet or JSONL with a column sentence (or sentence_text).

    Returns
    -------
    pandas.DataFrame
        Columns sentence, and post_id and sentence_id where the file has them, else row.

    Raises
    ------
    DataError
        When the file cannot be read or a sentence is empty.
    """
    table = read_table(file, "--input", ())
    column = next((name for name in ("sentence", "sentence_text") if name in table), None)
    if column is None:
        near = did_you_mean("sentence", [str(name) for name in table.columns])
        raise DataError(f"--input={file}: it needs a column sentence and has none{near}")
    empty = table.index[table[column].map(clean) == ""]
    if len(empty):
        raise DataError(f"--input={file}, row {empty[0]}: the sentence is empty; fill it in or take the row out.")
    ids = [name for name in ("post_id", "sentence_id") if name in table]
    left = table[ids].reset_index(drop=True) if ids else pd.DataFrame({"row": np.asarray(table.index)})
    return left.assign(sentence=table[column].to_numpy())


def score_table(scorer: Scorer, sentences: pd.DataFrame, criteria: Sequence[str] = ()) -> pd.DataFrame:
    """Score sentences that `read_sentences` gave.

    Parameters
    ----------
    scorer : Scorer
    sentences : pandas.DataFrame
    criteria : sequence of str
        Ids or texts; all that the model knows when not given.

    Returns
    -------
    pandas.DataFrame
        A row per sentence, in the file's order: its ids, then one column per criterion. No text.
    """
    scores = scorer.score(sentences["sentence"].tolist(), criteria)
    return pd.concat([sentences.drop(columns="sentence"), scores.reset_index(drop=True)], axis=1)
