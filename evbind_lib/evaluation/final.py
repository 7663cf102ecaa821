"""The model to keep, trained on all posts and calibrated on out-of-fold predictions; read where it was trained before."""

from dataclasses import asdict
from datetime import UTC, datetime
from importlib import metadata
from pathlib import Path
from typing import Any

import pandas as pd

from evbind_lib.config.masking import masked
from evbind_lib.config.paths import workspace, write_whole
from evbind_lib.config.schema import SAMPLING, Params
from evbind_lib.data.corpus import Corpus
from evbind_lib.data.files import as_text
from evbind_lib.data.folds import Fold
from evbind_lib.data.negatives import training_pairs
from evbind_lib.evaluation.calibration import SCORES, fit_calibration, parse_aim, thresholds
from evbind_lib.evaluation.card import card
from evbind_lib.evaluation.model import ABOUT, AS_TRAINED, CARD, NAMES, EvidenceModel, as_json, tokens_digest
from evbind_lib.training.cache import fold_key
from evbind_lib.training.encoding import PairEncoder
from evbind_lib.training.model import load_tokenizer, quiet_libraries
from evbind_lib.training.trainer import fit


def finalize(
    corpus: Corpus, params: Params, *, predictions: pd.DataFrame | None = None, aim: str = "macro_f1"
) -> EvidenceModel:
    """Train one model on all posts, as `evbind_lib.finalize` documents; no post is left to calibrate or measure it on."""
    decided = _decided(predictions, aim)  # refused before it is trained
    pairs = training_pairs(corpus, corpus.groups, params.data)
    with quiet_libraries():
        tokenizer = load_tokenizer(params.model, [*corpus.criteria.values(), *corpus.sentences["sentence"]])
        encoder = PairEncoder(tokenizer, params.model.max_length)
        encoded = encoder.encode(pairs)
        model = fit(params, encoder, encoded, asked=[encoded]).eval()
    # What plain transformers asks a folder.
    tokenizer.model_max_length = params.model.max_length
    model.config.update({"id2label": dict(enumerate(NAMES)), "label2id": {name: at for at, name in enumerate(NAMES)}})
    report = corpus.report
    about = {
        "criteria": dict(corpus.criteria),
        "fingerprint": corpus.fingerprint,
        "counts": {"annotated": report.pairs, "evidence": report.evidence, "groups": report.groups},
        "pairs": len(pairs),
        "model": params.model.name,
        "tokens": tokens_digest(tokenizer, corpus.criteria),
        **params.model.model_dump(include={"max_length", "precision", "threads"}),
        **decided,
        "data": params.data.model_dump(include=SAMPLING),
        "training": masked(params.training.model_dump(exclude={"n_folds", "fresh"})),
        "versions": {name: metadata.version(name) for name in ("evbind", "torch", "transformers", "tokenizers")},
        "trained": datetime.now(UTC).isoformat(timespec="seconds"),
    }
    return EvidenceModel(model, tokenizer, about)


def _decided(predictions: pd.DataFrame | None, aim: str) -> dict[str, Any]:
    """What out-of-fold predictions decide of a model: its map, and the thresholds for an aim."""
    parse_aim(aim)
    if predictions is None:
        return AS_TRAINED
    as_text(predictions.head(1), "predictions", ["fold", "criterion_id", "label", "logit", "weight"])
    table = thresholds(predictions, aim)
    chosen = table["threshold"].drop("each").to_dict()
    decided = {"calibration": asdict(fit_calibration(predictions)), "aim": aim, "threshold": chosen.pop("all")}
    return {**decided, "thresholds": chosen, "cross_validated": table.loc["all", SCORES].round(6).to_dict()}


def model_folder(corpus: Corpus, params: Params) -> Path | None:
    """Folder in the workspace of the model of these parameters and data; None where a loss of one's own has no digest."""
    everything = Fold(0, frozenset(corpus.groups), frozenset())
    trained = params.with_values({"data.eval_neg_ratio": 1.0})  # validation pairs change no weight
    key = fold_key(corpus, [everything], everything, trained)
    return workspace() / "runs" / "models" / f"{Path(params.model.name).name}_{key[:12]}" if key else None


def open_model(
    corpus: Corpus,
    params: Params,
    *,
    predictions: pd.DataFrame | None = None,
    aim: str = "macro_f1",
    folder: Path | None = None,
) -> EvidenceModel:
    """The model of these parameters and data, calibrated as asked: read where `model_folder` has it, else trained."""
    found = model_folder(corpus, params)
    if found is None or not (found / ABOUT).is_file():
        model = finalize(corpus, params, predictions=predictions, aim=aim)
        for place in filter(None, (found, folder)):
            model.save(place)
        return model
    trained = EvidenceModel.load(found)
    # Weights may have taken hours and are kept; map and thresholds take milliseconds and are made again, so none is ever stale.
    model = EvidenceModel(trained.model, trained.tokenizer, {**trained.about, **_decided(predictions, aim)})
    if folder is not None:
        model.save(folder)
    elif model.about != trained.about:
        write_whole(found / ABOUT, as_json(model.about))
        write_whole(found / CARD, card(model.about))
    return model
