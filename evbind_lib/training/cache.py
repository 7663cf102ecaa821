"""Finished folds on disk: logits, ids, labels, precision, a checksum and what they were trained with; no text.

A trial that was cut off does not train its finished folds again, a parameter set that was trained before is read, and the racing
pruner compares trials pair by pair on these files. Metrics are computed on reading, so a changed metric is never stale.
"""

from __future__ import annotations

import contextlib
import functools
import hashlib
import io
import json
import logging
from collections.abc import Callable, Sequence
from dataclasses import asdict
from importlib import metadata
from pathlib import Path
from typing import Any
from urllib.parse import quote

import numpy as np
import pandas as pd

from evbind_lib.config.digest import code_digest, digest_of
from evbind_lib.config.paths import resolve_path, workspace, write_whole
from evbind_lib.config.schema import Params
from evbind_lib.data.corpus import Corpus
from evbind_lib.data.folds import Fold, folds_fingerprint
from evbind_lib.training.metrics import compute_metrics, probabilities_of
from evbind_lib.training.result import EpochResult, FoldResult, prediction_table

IDS = ("post_id", "sentence_id", "criterion_id")
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
    """Name of everything that decides a fold's predictions: equal keys, equal results; None where something has no digest.

    It holds the parameters that change training, fingerprints of data and folds, the code of data/ and training/, versions of
    torch and transformers, the content of a local model, and the digest of a loss or model that is not evbind's.
    """
    from evbind_lib.training.losses import (
        LOSSES,
    )  # late: it loads torch, which readers of finished folds can do without

    training = params.training.model_dump(exclude={"n_folds", "provenance"})
    name = loss if isinstance(loss, str) else params.training.loss_function
    own = [LOSSES.additions().get(name) if not callable(loss) else loss, model_init]
    digests = [digest_of(function) if function is not None else "evbind" for function in own]
    if None in digests:
        return None
    training["loss_function"] = name if not callable(loss) else "own"
    if training["loss_function"] != "focal":
        training = {
            key: value for key, value in training.items() if not key.startswith("focal_") or digests[0] != "evbind"
        }
    tree = {
        "training": training,
        "data": params.data.model_dump(include={"pos_neg_ratio", "negative_strategy", "eval_neg_ratio"}),
        "model": [*params.model.model_dump(include={"name", "max_length", "precision"}).values()],
        "corpus": corpus.fingerprint,
        "folds": [folds_fingerprint(folds), fold.index],
        "code": code_digest("data", "training"),
        "versions": [metadata.version(package) for package in ("torch", "transformers")],
        "content": _content_of(params.model.name),
        "own": digests,
    }
    return hashlib.sha256(json.dumps(tree, sort_keys=True, default=str).encode()).hexdigest()[:32]


def _content_of(model: str) -> str | None:
    """Digest of the files of a model's folder; None where the model is no folder."""
    files = sorted(file for file in resolve_path(model).rglob("*") if file.is_file())
    return _digest_of_files(tuple((str(file), file.stat().st_size, file.stat().st_mtime_ns) for file in files)) or None


@functools.lru_cache(maxsize=8)
def _digest_of_files(files: tuple[tuple[str, int, int], ...]) -> str:
    """Digest of contents, made once as long as sizes and times stay: weights of gigabytes are read for it."""
    digests = []
    for name, _, _ in files:
        with open(name, "rb") as stream:
            digests.append(f"{Path(name).name} {hashlib.file_digest(stream, 'sha256').hexdigest()}")
    return hashlib.sha256("\n".join(digests).encode()).hexdigest() if digests else ""


def trial_name(number: int, fold: int) -> str:
    """Name of a fold of a trial, both counted from 0."""
    return f"trial{number:05d}_fold{fold}"


class FoldCache:
    """Folder of finished folds by name; several processes may read and write it at once.

    Parameters
    ----------
    scope : str
        Whose folds they are, for example a study's uid; a subfolder of ``runs/folds`` in the workspace.
    read_all : bool
        Read a name that this scope does not have from any other scope.
    """

    def __init__(self, scope: str, *, read_all: bool = False) -> None:
        self.folder = workspace() / "runs" / "folds" / quote(scope, safe="").replace(".", "%2E")
        self.read_all = read_all

    def save(self, name: str, result: FoldResult) -> None:
        """Save a fold; a file is there whole or not at all."""
        table = result.predictions
        arrays = {column: table[column].to_numpy(dtype=np.str_) for column in IDS}
        arrays |= {"label": table["label"].to_numpy(np.int8), "logit": table["logit"].to_numpy(np.float32)}
        facts = {
            key: value
            for key, value in vars(result).items()
            if key not in {"predictions", "metrics", "model", "cached"}
        }
        facts = {**facts, "name": name, "epochs": [asdict(epoch) for epoch in result.epochs]}
        text = json.dumps(facts)
        stream = io.BytesIO()
        np.savez_compressed(
            stream, allow_pickle=False, **arrays, facts=np.array(text), checksum=np.array(_checksum(arrays, text))
        )
        write_whole(self.folder / f"{name}.npz", stream.getvalue())

    def load(self, name: str) -> FoldResult | None:
        """Read a fold; None where it is not there. A file that is broken is dropped, to be made again."""
        files = [self.folder / f"{name}.npz"]
        if self.read_all:
            files += sorted(self.folder.parent.glob(f"*/{name}.npz"))
        return next((result for file in files if (result := _read(file, name)) is not None), None)


def _read(file: Path, name: str) -> FoldResult | None:
    if not file.is_file():
        return None
    try:
        with np.load(file, allow_pickle=False) as stored:
            arrays = {key: stored[key] for key in (*IDS, "label", "logit")}
            text, checksum = str(stored["facts"]), str(stored["checksum"])
        if checksum != _checksum(arrays, text):
            raise ValueError("the checksum differs")
        facts = json.loads(text)
        if facts.pop("name") != name:
            raise ValueError("it is another fold")
    except Exception as error:  # a flipped bit shows as any error of zip, zlib, numpy or json
        _logger.warning("The cached fold %s is broken (%s); it is trained again.", file.name, type(error).__name__)
        with contextlib.suppress(OSError):
            file.unlink()
        return None
    metrics = compute_metrics(arrays["label"], probabilities_of(arrays["logit"]))
    epochs = [EpochResult(**epoch) for epoch in facts.pop("epochs")]
    table = prediction_table(
        facts["fold"], pd.DataFrame({key: arrays[key] for key in (*IDS, "label")}), arrays["logit"]
    )
    return FoldResult(**facts, metrics=metrics, epochs=tuple(epochs), predictions=table, cached=True)


def _checksum(arrays: dict[str, np.ndarray], facts: str) -> str:
    digest = hashlib.sha256(facts.encode())
    for values in arrays.values():
        digest.update(str(values.dtype).encode() + values.tobytes())
    return digest.hexdigest()
