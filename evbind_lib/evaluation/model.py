"""The model one keeps: a folder of Hugging Face's that is asked for the probability of evidence of new sentences."""

import hashlib
import json
import os
import shutil
import tempfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Self
from uuid import uuid4

import numpy as np
import pandas as pd
import torch
from transformers import AutoModelForSequenceClassification, AutoTokenizer, PreTrainedModel, PreTrainedTokenizerBase

from evbind_lib.config.encoders import TINY
from evbind_lib.config.paths import resolve_path, workspace
from evbind_lib.data.files import as_text
from evbind_lib.data.tables import clean, each_text
from evbind_lib.errors import ModelError, shown
from evbind_lib.evaluation.calibration import Calibration
from evbind_lib.evaluation.card import card
from evbind_lib.training.encoding import PairEncoder
from evbind_lib.training.model import choose_precision, predict, quiet_libraries
from evbind_lib.training.probabilities import THRESHOLD
from evbind_lib.training.shortcuts import take_shortcuts

ABOUT, CARD = "evbind.json", "README.md"
AS_TRAINED: dict[str, Any] = {"calibration": None, "aim": None, "threshold": THRESHOLD, "thresholds": {}}
AS_TRAINED["cross_validated"] = None
NAMES = ("no_evidence", "evidence")


class EvidenceModel:
    """A fine-tuned model with all that it takes to ask it; `finalize` trains one, ``EvidenceModel.load(folder)`` reads one.

    Attributes
    ----------
    model, tokenizer, criteria, about
        A classifier with two classes, on the device to predict on, and its tokenizer; texts of criteria by id; what
        ``evbind.json`` holds: these, model, max_length, precision, training, fingerprint of the data, counts, versions,
        calibration (slope and intercept; None where the probabilities are not calibrated), aim, threshold, thresholds.
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
        texts = as_text(pairs.reset_index(drop=True), "pairs", ["criterion", "sentence"])[["criterion", "sentence"]]
        encoded = self._encoder.encode(texts.apply(each_text, change=clean).assign(label=0))
        # Once so much was freed, glibc keeps what batches free, in place of asking the system for it again.
        torch.empty(30 << 20, dtype=torch.uint8)
        threads = torch.get_num_threads()
        torch.set_num_threads(min(self.about.get("threads") or threads, threads))  # as it was trained
        try:
            logits = predict(self.model, encoded, batch_size=64, precision=self._precision)
        finally:
            torch.set_num_threads(threads)
        evidence = self._calibration(logits)
        return np.column_stack([1 - evidence, evidence])

    def predict(self, pairs: pd.DataFrame) -> np.ndarray:
        """Decisions for pairs as in `predict_proba`, int64 (n,): 1 from a probability of evidence of ``threshold`` on.

        With each criterion's own: ``predict_proba(pairs)[:, 1] >= pairs["criterion_id"].map(model.thresholds)``.
        """
        return (self.predict_proba(pairs)[:, 1] >= self.threshold).astype(np.int64)

    def save(self, folder: str | Path) -> None:
        """Write a folder of Hugging Face's with ``evbind.json`` and a model card, whole or not at all; `ModelError` as told.

        The folder is new, empty, or such a model, which is replaced. A tokenizer that was trained on posts holds their words: its
        files can be read by you alone.
        """
        folder = check_folder(folder)
        partial, before = (folder.with_name(f".{folder.name}.{uuid4().hex[:8]}.{end}") for end in ("part", "old"))
        try:
            partial.mkdir(parents=True)
            with quiet_libraries():
                self.model.save_pretrained(partial)
                self.tokenizer.save_pretrained(partial)
            for file in partial.glob("tokenizer*") if self.about["model"] == TINY else ():
                file.chmod(0o600)
            (partial / ABOUT).write_bytes(as_json(self.about))
            (partial / CARD).write_text(card(self.about), encoding="utf-8")
            if (folder / ABOUT).is_file():
                folder.replace(before)
            partial.replace(folder)
        except OSError as error:
            if before.exists():
                before.replace(folder)
            problem = f"the model cannot be written there ({error.strerror})"
            raise ModelError(f"{folder}: {problem}; name a new folder, or one of such a model.") from None
        finally:
            for left in (partial, before):
                shutil.rmtree(left, ignore_errors=True)

    @classmethod
    def load(cls, folder: str | Path) -> Self:
        """Read what `save` wrote, to a GPU where there is one; `ModelError` where the folder holds no whole model."""
        place = resolve_path(str(folder))
        try:
            about = json.loads((place / ABOUT).read_text(encoding="utf-8"))
            with quiet_libraries():
                tokenizer = AutoTokenizer.from_pretrained(place, trust_remote_code=False)
                # Its attention is transformers' choice: SDPA where the class has it.
                options: dict[str, Any] = {"dtype": torch.float32, "trust_remote_code": False}
                model = AutoModelForSequenceClassification.from_pretrained(place, **options)
            take_shortcuts(model)
            found = cls(model.to("cuda" if torch.cuda.is_available() else "cpu").eval(), tokenizer, about)
        except Exception as error:
            problem = f"no model can be loaded from there ({type(error).__name__})"
            remedy = "give a folder that evbind finalize or EvidenceModel.save wrote"
            raise ModelError(f"{shown(folder)}: {problem}; {remedy}.") from None
        problem = ""
        if about.get("tokens", tokens := tokens_digest(tokenizer, found.criteria)) != tokens:
            problem = "its tokenizer is not the one that the model was trained with"
        elif not about.get("calibration") and (found.thresholds or found.threshold != THRESHOLD):
            problem = "it has thresholds for calibrated probabilities and no calibration"
        if problem:
            raise ModelError(f"{shown(folder)}: {problem}; copy the folder again, or finalize again.")
        return found


def check_folder(folder: str | Path) -> Path:
    """Absolute path of a folder that a model may be written to: new, empty, or such a model; else a `ModelError`."""
    problem = "it is there and is no model"
    try:
        place = Path(os.path.expanduser(folder)).resolve()
        with tempfile.TemporaryDirectory(dir=next(each for each in place.parents if each.exists())):
            pass
        is_free = (place / ABOUT).is_file() or not place.exists() or not any(place.iterdir())
        if is_free and not workspace().is_relative_to(place):  # which training fills
            return place
    except (OSError, ValueError) as error:
        problem = f"the model cannot be written there ({getattr(error, 'strerror', error)})"
    raise ModelError(f"{shown(folder)}: {problem}; name a new folder, or one of such a model.")


def tokens_digest(tokenizer: PreTrainedTokenizerBase, criteria: Mapping[str, str]) -> str:
    """Digest of the tokens that a tokenizer makes of the criteria, and of how many it knows."""
    tokens = [len(tokenizer), *(tokenizer(text)["input_ids"] for text in criteria.values())]
    return hashlib.sha256(json.dumps(tokens).encode()).hexdigest()[:16]


def as_json(about: Mapping[str, Any]) -> bytes:
    """What a model's folder holds of it."""
    return json.dumps(about, indent=1, default=str).encode()
