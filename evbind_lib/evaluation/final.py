"""The model to keep: trained on all posts, saved as a folder, asked for the probability of evidence of new sentences.

Models stay in the workspace and are never sent to MLflow: the tokens of a tokenizer trained on posts are those posts' words.
"""

from __future__ import annotations

import json
import shutil
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, Self
from uuid import uuid4

import numpy as np
import pandas as pd
import torch
from transformers import AutoModelForSequenceClassification, AutoTokenizer, PreTrainedModel, PreTrainedTokenizerBase
from transformers import PreTrainedTokenizerFast as FastTokenizer

from evbind_lib.config.paths import resolve_path, workspace
from evbind_lib.config.schema import Params
from evbind_lib.data.corpus import Corpus
from evbind_lib.data.folds import Fold
from evbind_lib.data.negatives import training_pairs
from evbind_lib.data.tables import clean, read_table
from evbind_lib.errors import DataError, ModelError, did_you_mean
from evbind_lib.training.cache import fold_key
from evbind_lib.training.encoding import PairEncoder
from evbind_lib.training.metrics import THRESHOLD, probabilities_of
from evbind_lib.training.model import choose_precision, load_tokenizer, predict
from evbind_lib.training.tiny import TINY
from evbind_lib.training.trainer import fit, quiet_libraries

ABOUT = "evbind.json"
BATCH = 64


class EvidenceModel:
    """A fine-tuned model with all that it takes to ask it; `finalize` trains one, ``EvidenceModel.load(folder)`` reads one.

    Parameters
    ----------
    model : PreTrainedModel
        With two classes, on the device to predict on.
    tokenizer : PreTrainedTokenizerBase
    about : mapping
        Content of ``evbind.json``: criteria, model, max_length, precision, training, fingerprint of the data, pairs.

    Attributes
    ----------
    criteria : dict of str to str
        Texts of the criteria that it was trained on, by id.

    Examples
    --------
    >>> import pandas as pd, tempfile
    >>> import evbind_lib as ev
    >>> params = ev.compose(["training.args.max_steps=2"])
    >>> model = ev.finalize(ev.load_corpus(params), params)
    >>> pairs = pd.DataFrame({"criterion": [model.criteria["SLEEP_ISSUES"]], "sentence": ["I lie awake all night."]})
    >>> with tempfile.TemporaryDirectory() as folder:
    ...     model.save(f"{folder}/model")
    ...     again = ev.EvidenceModel.load(f"{folder}/model")
    >>> again.predict_proba(pairs).shape, again.predict(pairs).shape
    ((1, 2), (1,))
    """

    def __init__(self, model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase, about: Mapping[str, Any]) -> None:
        self.model, self.tokenizer, self.about = model, tokenizer, dict(about)
        self.criteria: dict[str, str] = dict(about["criteria"])
        self._encoder = PairEncoder(tokenizer, about["max_length"])
        too_narrow = about["precision"] == "fp16" and not torch.cuda.is_available()  # trained where there was a GPU
        self._precision = choose_precision("auto" if too_narrow else about["precision"])

    def predict_proba(self, pairs: pd.DataFrame) -> np.ndarray:
        """Probabilities of no evidence and of evidence, not calibrated.

        Parameters
        ----------
        pairs : pandas.DataFrame
            Columns criterion and sentence: texts, not ids. `DataError` where one is missing.

        Returns
        -------
        ndarray of float64, shape (n, 2)
        """
        for column in ("criterion", "sentence"):
            if column not in pairs:
                near = did_you_mean(column, map(str, pairs.columns))
                raise DataError(f"pairs: there is no column {column}{near}")
        if pairs.empty:
            return np.empty((0, 2))
        texts = pd.DataFrame({name: [clean(text) for text in pairs[name]] for name in ("criterion", "sentence")})
        logits = predict(
            self.model,
            self._encoder.encode(texts.assign(label=0)),
            pad_token_id=int(self.tokenizer.pad_token_id or 0),
            batch_size=BATCH,
            precision=self._precision,
        )
        evidence = probabilities_of(logits)
        return np.column_stack([1 - evidence, evidence])

    def predict(self, pairs: pd.DataFrame) -> np.ndarray:
        """Decisions for pairs as in `predict_proba`, int64 (n,): 1 from a probability of evidence of 0.5 on."""
        return (self.predict_proba(pairs)[:, 1] >= THRESHOLD).astype(np.int64)

    def save(self, folder: str | Path) -> None:
        """Write weights (safetensors), tokenizer and ``evbind.json``; the folder is there whole or not at all.

        It may be new, or hold such a model, which is replaced; `ModelError` where it cannot be written or holds something else.
        """
        folder = Path(folder).expanduser().resolve()
        partial = folder.with_name(f".{folder.name}.{uuid4().hex[:8]}.part")
        try:
            partial.mkdir(parents=True)
            with quiet_libraries():
                self.model.save_pretrained(partial)
                self.tokenizer.save_pretrained(partial)
            (partial / ABOUT).write_text(json.dumps(self.about, indent=1, default=str), encoding="utf-8")
            if (folder / ABOUT).is_file():
                shutil.rmtree(folder)
            partial.replace(folder)
        except OSError as error:
            raise ModelError(
                f"{folder}: the model cannot be written there ({error.strerror}); name a new folder, or one of such a model."
            ) from None
        finally:
            shutil.rmtree(partial, ignore_errors=True)

    @classmethod
    def load(cls, folder: str | Path) -> Self:
        """Read what `save` wrote, to a GPU where there is one; `ModelError` where there is no whole model.

        A relative folder is seen from the current one, else from the workspace.
        """
        place = resolve_path(str(folder))
        try:
            about = json.loads((place / ABOUT).read_text(encoding="utf-8"))
            reader = FastTokenizer if about["model"] == TINY else AutoTokenizer
            with quiet_libraries():
                tokenizer = reader.from_pretrained(place)
                model = AutoModelForSequenceClassification.from_pretrained(
                    place, dtype=torch.float32, attn_implementation="eager"
                )
            return cls(model.to("cuda" if torch.cuda.is_available() else "cpu").eval(), tokenizer, about)
        except Exception as error:
            raise ModelError(
                f"{folder}: no model can be loaded from there ({type(error).__name__}); give a folder that EvidenceModel.save "
                "wrote."
            ) from None


def finalize(corpus: Corpus, params: Params) -> EvidenceModel:
    """Train one model on all posts; how good it is, cross-validation has estimated: no post is left to measure it on."""
    pairs = training_pairs(corpus, corpus.groups, params)
    with quiet_libraries():
        tokenizer = load_tokenizer(params.model, [*corpus.criteria.values(), *corpus.sentences["sentence"]])
        encoder = PairEncoder(tokenizer, params.model.max_length)
        model = fit(params, encoder, encoder.encode(pairs)).eval()
    about = {
        "criteria": dict(corpus.criteria),
        **{"model": params.model.name, "max_length": params.model.max_length, "precision": params.model.precision},
        "training": params.training.model_dump(exclude={"n_folds"}),
        **{"fingerprint": corpus.fingerprint, "pairs": len(pairs)},
    }
    return EvidenceModel(model, tokenizer, about)


def model_folder(corpus: Corpus, params: Params) -> Path | None:
    """Folder in the workspace of the model of these parameters and data; None where a loss of one's own has no digest."""
    everything = Fold(0, frozenset(corpus.groups), frozenset())
    # Validation pairs change no weight.
    key = fold_key(corpus, [everything], everything, params.with_values({"data.eval_neg_ratio": 1.0}))
    return workspace() / "runs" / "models" / f"{Path(params.model.name).name}_{key[:12]}" if key else None


def open_model(corpus: Corpus, params: Params) -> EvidenceModel:
    """The model of these parameters and data, read from `model_folder` where it was trained before."""
    folder = model_folder(corpus, params)
    if folder is not None and (folder / ABOUT).is_file():
        return EvidenceModel.load(folder)
    model = finalize(corpus, params)
    if folder is not None:
        model.save(folder)
    return model


def score_sentences(model: EvidenceModel, sentences: Sequence[str], criteria: Sequence[str] = ()) -> pd.DataFrame:
    """P(evidence) of each sentence (row, from 1) for each criterion (column): ids, or texts of the user's own; all by default."""
    cleaned, texts = clean_sentences(sentences), criterion_texts(criteria, model.criteria)
    pairs = [(text, sentence) for sentence in cleaned for text in texts.values()]
    evidence = model.predict_proba(pd.DataFrame(pairs, columns=["criterion", "sentence"]))[:, 1]
    shape = (len(cleaned), len(texts))
    return pd.DataFrame(evidence.reshape(shape), columns=list(texts), index=range(1, len(cleaned) + 1))


def clean_sentences(sentences: Sequence[str]) -> list[str]:
    """Sentences as they are scored; one that is empty is a `DataError`."""
    cleaned = [clean(sentence) for sentence in sentences]
    if "" in cleaned:
        raise DataError(f"Sentence {cleaned.index('') + 1} is empty; give one that holds words.")
    return cleaned


def criterion_texts(names: Sequence[str], known: Mapping[str, str]) -> dict[str, str]:
    """Texts of criteria by id, or by the text itself where it is the user's own; all that are known when none is named."""
    for name in names:
        if name not in known and " " not in name.strip():
            raise DataError(f"There is no criterion {name}{did_you_mean(name, known)}")
    return {name: known.get(name, clean(name)) for name in names or known}


def read_sentences(file: str) -> pd.DataFrame:
    """Sentences of a table (CSV, TSV, Parquet, JSONL) with their post_id and sentence_id, or row where the file has neither."""
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


def score_table(model: EvidenceModel, sentences: pd.DataFrame, criteria: Sequence[str] = ()) -> pd.DataFrame:
    """Ids of the sentences of `read_sentences` and a column of probabilities per criterion, in the file's order; no text."""
    scores = score_sentences(model, sentences["sentence"].tolist(), criteria)
    return pd.concat([sentences.drop(columns="sentence"), scores.reset_index(drop=True)], axis=1)
