"""The model to keep: trained on all posts, saved as a folder, asked for the probability of evidence of new sentences."""

import json
import shutil
from collections.abc import Mapping, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any, Self
from uuid import uuid4

import numpy as np
import pandas as pd
import torch
from transformers import AutoModelForSequenceClassification, AutoTokenizer, PreTrainedModel, PreTrainedTokenizerBase

from evbind_lib.config.masking import masked
from evbind_lib.config.paths import resolve_path, workspace, write_whole
from evbind_lib.config.schema import SAMPLING, Params
from evbind_lib.data.corpus import Corpus
from evbind_lib.data.files import as_text, read_table
from evbind_lib.data.folds import Fold
from evbind_lib.data.negatives import training_pairs
from evbind_lib.data.tables import clean, refuse_rows
from evbind_lib.errors import DataError, ModelError, did_you_mean
from evbind_lib.evaluation.calibration import Calibration, fit_calibration, parse_aim, thresholds
from evbind_lib.training.cache import fold_key
from evbind_lib.training.encoding import PairEncoder
from evbind_lib.training.metrics import THRESHOLD
from evbind_lib.training.model import choose_precision, load_tokenizer, predict
from evbind_lib.training.trainer import fit, quiet_libraries

ABOUT = "evbind.json"
AS_TRAINED: dict[str, Any] = {"calibration": None, "aim": None, "threshold": THRESHOLD, "thresholds": {}}


class EvidenceModel:
    """A fine-tuned model with all that it takes to ask it; `finalize` trains one, ``EvidenceModel.load(folder)`` reads one.

    Attributes
    ----------
    model, tokenizer, criteria, about
        A classifier with two classes, on the device to predict on, and its tokenizer; texts of criteria by id; what
        ``evbind.json`` holds: these, model, max_length, precision, training, fingerprint of the data, pairs, calibration (slope
        and intercept; None where the probabilities are not calibrated), aim, threshold, thresholds.
    threshold, thresholds
        Probability from which `predict` calls a pair evidence (0.5 without calibration), and that of each criterion, by id.

    Examples
    --------
    >>> import pandas as pd, tempfile, evbind_lib as ev
    >>> params = ev.compose(["training.args.max_steps=2"])
    >>> model = ev.finalize(ev.load_corpus(params), params)
    >>> pairs = pd.DataFrame({"criterion": [model.criteria["SLEEP_ISSUES"]], "sentence": ["I lie awake all night."]})
    >>> with tempfile.TemporaryDirectory() as folder:
    ...     model.save(f"{folder}/model")
    ...     ev.EvidenceModel.load(f"{folder}/model").predict_proba(pairs).shape
    (1, 2)
    """

    def __init__(self, model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase, about: Mapping[str, Any]) -> None:
        self.model, self.tokenizer, self.about = model, tokenizer, dict(about)
        self.criteria: dict[str, str] = dict(about["criteria"])
        chosen = {**AS_TRAINED, **self.about}
        self.threshold, self.thresholds = float(chosen["threshold"]), dict(chosen["thresholds"])
        self._calibration = Calibration(**(chosen["calibration"] or {"slope": 1.0, "intercept": 0.0}))
        self._encoder = PairEncoder(tokenizer, about["max_length"])
        too_narrow = about["precision"] == "fp16" and not torch.cuda.is_available()  # trained where there was a GPU
        self._precision = choose_precision("auto" if too_narrow else about["precision"])

    def predict_proba(self, pairs: pd.DataFrame) -> np.ndarray:
        """Probabilities of no evidence and of evidence, float64 (n, 2), of texts: columns criterion and sentence.

        Where ``about`` has a calibration, of 100 pairs like those of the corpus with P(evidence) = 0.3 about 30 are evidence.
        """
        if pairs.empty:
            return np.empty((0, 2))
        texts = as_text(pairs, "pairs", ["criterion", "sentence"])[["criterion", "sentence"]].map(clean)
        encoded = self._encoder.encode(texts.assign(label=0))
        evidence = self._calibration(predict(self.model, encoded, batch_size=64, precision=self._precision))
        return np.column_stack([1 - evidence, evidence])

    def predict(self, pairs: pd.DataFrame) -> np.ndarray:
        """Decisions for pairs as in `predict_proba`, int64 (n,): 1 from a probability of evidence of ``threshold`` on.

        With each criterion's own: ``predict_proba(pairs)[:, 1] >= pairs["criterion_id"].map(model.thresholds)``.
        """
        return (self.predict_proba(pairs)[:, 1] >= self.threshold).astype(np.int64)

    def save(self, folder: str | Path) -> None:
        """Write weights, tokenizer and ``evbind.json`` to a new folder or one of such a model: all of it, or a `ModelError`."""
        folder = Path(folder).expanduser().resolve()
        partial = folder.with_name(f".{folder.name}.{uuid4().hex[:8]}.part")
        try:
            partial.mkdir(parents=True)
            with quiet_libraries():
                self.model.save_pretrained(partial)
                self.tokenizer.save_pretrained(partial)
            (partial / ABOUT).write_bytes(_as_json(self.about))
            if (folder / ABOUT).is_file():
                shutil.rmtree(folder)
            partial.replace(folder)
        except OSError as error:
            problem = f"the model cannot be written there ({error.strerror})"
            raise ModelError(f"{folder}: {problem}; name a new folder, or one of such a model.") from None
        finally:
            shutil.rmtree(partial, ignore_errors=True)

    @classmethod
    def load(cls, folder: str | Path) -> Self:
        """Read what `save` wrote, to a GPU where there is one; `ModelError` where the folder holds no whole model."""
        place, eager = resolve_path(str(folder)), {"attn_implementation": "eager", "trust_remote_code": False}
        try:
            about = json.loads((place / ABOUT).read_text(encoding="utf-8"))
            with quiet_libraries():
                tokenizer = AutoTokenizer.from_pretrained(place, trust_remote_code=False)
                model = AutoModelForSequenceClassification.from_pretrained(place, dtype=torch.float32, **eager)
            return cls(model.to("cuda" if torch.cuda.is_available() else "cpu").eval(), tokenizer, about)
        except Exception as error:
            problem = f"no model can be loaded from there ({type(error).__name__})"
            raise ModelError(f"{folder}: {problem}; give a folder that EvidenceModel.save wrote.") from None


def finalize(
    corpus: Corpus, params: Params, *, predictions: pd.DataFrame | None = None, aim: str = "macro_f1"
) -> EvidenceModel:
    """Train one model on all posts, as `evbind_lib.finalize` documents; no post is left to calibrate or measure it on."""
    decided = _decided(predictions, aim)  # refused before it is trained
    pairs = training_pairs(corpus, corpus.groups, params)
    with quiet_libraries():
        tokenizer = load_tokenizer(params.model, [*corpus.criteria.values(), *corpus.sentences["sentence"]])
        encoder = PairEncoder(tokenizer, params.model.max_length)
        model = fit(params, encoder, encoder.encode(pairs)).eval()
    about = {"criteria": dict(corpus.criteria), "fingerprint": corpus.fingerprint, "pairs": len(pairs)}
    about |= {"model": params.model.name, **params.model.model_dump(include={"max_length", "precision"}), **decided}
    about["data"] = params.data.model_dump(include=SAMPLING)
    about["training"] = masked(params.training.model_dump(exclude={"n_folds"}))
    return EvidenceModel(model, tokenizer, about)


def _decided(predictions: pd.DataFrame | None, aim: str) -> dict[str, Any]:
    """What out-of-fold predictions decide of a model: its map, and the thresholds for an aim."""
    parse_aim(aim)
    if predictions is None:
        return AS_TRAINED
    as_text(predictions.head(1), "predictions", ["fold", "criterion_id", "label", "logit", "weight"])
    chosen = thresholds(predictions, aim)["threshold"].drop("each").to_dict()
    decided = {"calibration": asdict(fit_calibration(predictions)), "aim": aim, "threshold": chosen.pop("all")}
    return {**decided, "thresholds": chosen}


def _as_json(about: Mapping[str, Any]) -> bytes:
    return json.dumps(about, indent=1, default=str).encode()


def model_folder(corpus: Corpus, params: Params) -> Path | None:
    """Folder in the workspace of the model of these parameters and data; None where a loss of one's own has no digest."""
    everything = Fold(0, frozenset(corpus.groups), frozenset())
    trained = params.with_values({"data.eval_neg_ratio": 1.0})  # validation pairs change no weight
    key = fold_key(corpus, [everything], everything, trained)
    return workspace() / "runs" / "models" / f"{Path(params.model.name).name}_{key[:12]}" if key else None


def open_model(
    corpus: Corpus, params: Params, *, predictions: pd.DataFrame | None = None, aim: str = "macro_f1"
) -> EvidenceModel:
    """The model of these parameters and data, read from `model_folder` where it was trained before, and calibrated as asked."""
    # Never sent to MLflow: the tokens of a tokenizer trained on posts are those posts' words.
    folder = model_folder(corpus, params)
    if folder is None or not (folder / ABOUT).is_file():
        model = finalize(corpus, params, predictions=predictions, aim=aim)
        if folder is not None:
            model.save(folder)
        return model
    trained = EvidenceModel.load(folder)
    # Weights may have taken hours and are kept; map and thresholds take milliseconds and are made again, so none is ever stale.
    model = EvidenceModel(trained.model, trained.tokenizer, {**trained.about, **_decided(predictions, aim)})
    if model.about != trained.about:
        write_whole(folder / ABOUT, _as_json(model.about))
    return model


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
            raise DataError(f"There is no criterion {name}{did_you_mean(name, known)}")
    return {name: known.get(name, clean(name)) for name in names or known}


def read_sentences(file: str) -> pd.DataFrame:
    """Sentences of a table (CSV, TSV, Parquet, JSONL) with their post_id and sentence_id, or row where the file has neither."""
    table = read_table(file, "--input", ()).rename_axis("row")
    if "sentence" not in table:
        table = table.rename(columns={"sentence_text": "sentence"})  # as ReDSM5 calls it
    as_text(table, f"--input={file}", ["sentence"])
    problem = "the sentence is empty; fill it in or take the row out"
    refuse_rows(table["sentence"].map(clean) == "", f"--input={file}", problem)
    table = table.filter(["post_id", "sentence_id", "sentence"])
    return table.reset_index(drop=len(table.columns) > 1)


def score_table(model: EvidenceModel, sentences: pd.DataFrame, criteria: Sequence[str] = ()) -> pd.DataFrame:
    """Ids of the sentences of `read_sentences` and a column of probabilities per criterion, in the file's order; no text."""
    scores = score_sentences(model, sentences["sentence"].tolist(), criteria)
    return pd.concat([sentences.drop(columns="sentence"), scores.reset_index(drop=True)], axis=1)
