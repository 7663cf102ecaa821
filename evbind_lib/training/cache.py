"""Finished folds on disk, for trials cut off, known parameters and racing: ids, labels, logits, weights; no text."""

import contextlib
import functools
import hashlib
import io
import json
import logging
from collections.abc import Callable, Sequence
from dataclasses import asdict
from datetime import date
from importlib import metadata
from pathlib import Path
from typing import Any
from urllib.parse import quote

import numpy as np
import pandas as pd

from evbind_lib.config.digest import code_digest, digest_of
from evbind_lib.config.encoders import model_folder
from evbind_lib.config.paths import workspace, write_whole
from evbind_lib.config.schema import SAMPLING, Params
from evbind_lib.data.corpus import Corpus
from evbind_lib.data.folds import Fold, folds_fingerprint
from evbind_lib.training.metrics import compute_metrics
from evbind_lib.training.result import EpochResult, FoldResult, prediction_table

STORED: dict[str, Any] = dict.fromkeys(("post_id", "sentence_id", "criterion_id"), np.str_)  # columns of predictions
STORED |= {"label": np.int8, "logit": np.float32, "weight": np.float64}
_logger = logging.getLogger("evbind_lib")


def fold_key(
    corpus: Corpus,
    folds: Sequence[Fold],
    fold: Fold,
    params: Params,
    *,
    loss: str | Callable[..., Any] | None = None,
    model_init: Callable[..., Any] | None = None,
) -> str | None:
    """Name of everything that decides a fold's predictions: equal keys, equal results; None where a part has no digest."""
    from evbind_lib.training.losses import LOSSES, own_settings  # late: readers of finished folds can do without torch

    name = "own" if callable(loss) else loss or params.training.loss_function
    own = [loss if callable(loss) else LOSSES.additions().get(name), model_init]
    digests = [digest_of(function) if function is not None else "evbind" for function in own]
    if None in digests:
        return None
    apart = {"n_folds", "seeds", "holdout", "validation", "fresh", "provenance", "loss_function", "loss_args"}
    without_focal = {"focal_gamma", "focal_alpha"} if digests[0] == "evbind" and name != "focal" else set()
    tree = {
        "training": params.training.model_dump(exclude=apart | without_focal),
        "loss": [name, own_settings(loss or name, params.training.loss_args)],
        "data": params.data.model_dump(include=SAMPLING),
        "model": [*params.model.model_dump(exclude={"threads", "trainer", "search_space"}).values()],
        "corpus": corpus.fingerprint,
        "folds": [folds_fingerprint(folds), fold.index],
        "code": code_digest("data", "training"),
        "versions": [metadata.version(package) for package in ("torch", "transformers")],
        "content": model_content(params),
        "own": digests,
    }
    return hashlib.sha256(json.dumps(tree, sort_keys=True, default=str).encode()).hexdigest()[:32]


def model_content(params: Params) -> list[str]:
    """Digests of the files of a model in a local folder; none of one that is known by its name alone."""
    folder = model_folder(params.model.name)
    files = sorted(file for file in folder.rglob("*") if file.is_file()) if folder else []
    return [f"{file.name} {_digest_of(file, file.stat().st_size, file.stat().st_mtime_ns)}" for file in files]


@functools.cache
def _digest_of(file: Path, *size_and_time: int) -> str:
    """Digest of a content, made once as long as size and time stay: weights of gigabytes are read for it."""
    with open(file, "rb") as stream:
        return hashlib.file_digest(stream, "sha256").hexdigest()


def trial_name(number: int, fold: int) -> str:
    """Name of a fold of a trial, both counted from 0."""
    return f"trial{number:05d}_fold{fold}"


class FoldCache:
    """Finished folds by name, of one scope (a study's uid, say) or to be read from all; for several processes at once."""

    def __init__(self, scope: str, *, read_all: bool = False, origin: str = "an earlier training") -> None:
        self.folder = workspace() / "runs" / "folds" / quote(scope, safe="").replace(".", "%2E")
        self.read_all, self.origin = read_all, origin

    def save(self, name: str, result: FoldResult) -> None:
        """Save a fold; a file is there whole or not at all."""
        arrays = {column: result.predictions[column].to_numpy(kind) for column, kind in STORED.items()}
        facts = {key: value for key, value in vars(result).items() if key not in ("predictions", "metrics", "model")}
        facts["origin"] = result.origin or f"{self.origin}, trained {date.today().isoformat()}"
        text = json.dumps({**facts, "name": name, "epochs": [asdict(epoch) for epoch in result.epochs]})
        stream = io.BytesIO()
        np.savez_compressed(stream, allow_pickle=False, facts=np.array(text), **arrays)
        write_whole(self.folder / f"{name}.npz", stream.getvalue())

    def load(self, name: str) -> FoldResult | None:
        """Read a fold as it was saved; None where it is not there. A file that is broken is dropped, to be made again."""
        if (found := self.stored(name)) is None:
            return None
        facts, predictions = found
        # Computed, not stored, so that a changed metric is never stale.
        metrics = compute_metrics(predictions["label"].to_numpy(), predictions["probability"].to_numpy())
        return FoldResult(**facts, metrics=metrics, predictions=predictions)

    def stored(self, name: str) -> tuple[dict[str, Any], pd.DataFrame] | None:
        """Facts and predictions of a fold as `load` has them, without its metrics, which take most of the time of that."""
        others = sorted(self.folder.parent.glob(f"*/{name}.npz")) if self.read_all else []
        files = [self.folder / f"{name}.npz", *others]
        return next((found for file in files if file.is_file() and (found := _read(file, name))), None)


def _read(file: Path, name: str) -> tuple[dict[str, Any], pd.DataFrame] | None:
    try:
        with np.load(file, allow_pickle=False) as stored:
            table = pd.DataFrame({column: stored[column] for column in STORED})
            facts = json.loads(str(stored["facts"]))
            if stored.zip.testzip() or facts.pop("name") != name:  # by the checksum that a zip has of each file in it
                raise ValueError("a checksum differs, or it is another fold")
    except Exception as error:  # a flipped bit shows as any error of zip, zlib, numpy or json
        _logger.warning("The cached fold %s is broken (%s); it is trained again.", file.name, type(error).__name__)
        with contextlib.suppress(OSError):
            file.unlink()
        return None
    facts["epochs"] = tuple(EpochResult(**epoch) for epoch in facts["epochs"])
    return facts, prediction_table(facts["fold"], table, table["logit"].to_numpy())
