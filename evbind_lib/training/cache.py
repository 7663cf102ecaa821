"""Finished folds of a study's trials, kept by what they were trained with: predictions, metrics and seconds, no text.

A trial that was cut off does not train its finished folds again, one that repeats another's parameters trains nothing, and
the racing pruner compares trials pair by pair on them. Imports `params` and `reports`; `racing`, `studies` and `search`
import it.
"""

from __future__ import annotations

import hashlib
import json
import os
import tempfile
import zipfile
from collections.abc import Mapping
from dataclasses import asdict
from pathlib import Path
from typing import Any
from urllib.parse import quote

import numpy as np
import pandas as pd

from evbind_lib.config.compose import Params, workspace
from evbind_lib.training.result import PREDICTION_COLUMNS, EpochResult, FoldResult

# Where the data lie and who may read them change no result: the data's fingerprint is part of the identity.
NO_PART = ("posts", "annotations", "criteria", "pairs", "sensitive", "format")


def parameter_key(params: Params, identity: Mapping[str, Any]) -> str:
    """Short name for everything that decides a trial's folds: equal keys, equal results.

    Parameters
    ----------
    params : Params
        Of the trial.
    identity : mapping
        Of the study, as `evbind_lib.hpo.study.study_identity` gives it.

    Returns
    -------
    str
        16 hexadecimal digits.
    """
    training = params.training.model_dump(exclude={"provenance"})
    if params.training.loss_function != "focal":
        training = {name: value for name, value in training.items() if not name.startswith("focal_")}
    tree = {
        "training": training,
        "data": params.data.model_dump(exclude=set(NO_PART)),
        "model": params.model.model_dump(include={"name", "max_length", "precision"}),
        "identity": {name: identity[name] for name in ("data", "folds") if name in identity},
    }
    return hashlib.sha256(json.dumps(tree, sort_keys=True).encode()).hexdigest()[:16]


class FoldCache:
    """Folder of one study's finished folds; several processes may read and write it at once.

    The ids and labels of a fold's pairs are the same in every trial and kept once; a trial adds its probabilities.

    Parameters
    ----------
    study_name : str
    """

    def __init__(self, study_name: str) -> None:
        self.folder = workspace() / "runs" / "studies" / quote(study_name, safe=" ")
        self._pairs: dict[str, dict[str, np.ndarray]] = {}

    def keep(self, key: str, report: FoldResult) -> None:
        """Keep a fold; a file is there whole or not at all.

        Parameters
        ----------
        key : str
            As `parameter_key` gives it.
        report : FoldResult
        """
        self.folder.mkdir(parents=True, exist_ok=True)
        table = report.predictions
        ids = {name: table[name].to_numpy(dtype=np.str_) for name in ("post_id", "sentence_id", "criterion_id")}
        pairs = {**ids, "label": table["label"].to_numpy()}
        digest = hashlib.sha256()
        for values in pairs.values():
            digest.update(values.tobytes())
        pairs_file = self.folder / f"pairs_{digest.hexdigest()[:16]}.npz"
        if not pairs_file.is_file():
            _write_whole(pairs_file, pairs)
        facts = {name: value for name, value in vars(report).items() if name not in {"predictions", "epochs"}}
        facts["epochs"] = [asdict(epoch) for epoch in report.epochs]
        facts["pairs"] = pairs_file.name
        _write_whole(
            self._file(key, report.fold),
            {"probability": table["probability"].to_numpy(), "facts": np.array(json.dumps(facts))},
        )

    def load(self, key: str, fold: int) -> FoldResult | None:
        """Give a fold back; None where it was not finished here.

        Parameters
        ----------
        key : str
        fold : int
            Counted from 0.

        Returns
        -------
        FoldResult or None
        """
        try:
            with np.load(self._file(key, fold)) as arrays:
                facts, probability = json.loads(str(arrays["facts"])), arrays["probability"]
            pairs = self._load_pairs(facts.pop("pairs"))
        except (OSError, EOFError, ValueError, KeyError, zipfile.BadZipFile):  # not there, or of a disk that was full
            return None
        epochs = tuple(EpochResult(**epoch) for epoch in facts.pop("epochs"))
        table = pd.DataFrame({**pairs, "fold": np.full(len(probability), fold, np.int8), "probability": probability})
        return FoldResult(**facts, epochs=epochs, predictions=table[PREDICTION_COLUMNS])

    def predictions(self, key: str) -> dict[int, pd.DataFrame]:
        """Predictions of the finished folds of a parameter set, by fold counted from 0; no fold is left out in between."""
        found: dict[int, pd.DataFrame] = {}
        while (report := self.load(key, len(found))) is not None:
            found[len(found)] = report.predictions
        return found

    def _file(self, key: str, fold: int) -> Path:
        return self.folder / f"{key}_fold{fold}.npz"

    def _load_pairs(self, name: str) -> dict[str, np.ndarray]:
        if name not in self._pairs:
            with np.load(self.folder / name) as arrays:
                self._pairs[name] = {column: arrays[column] for column in arrays.files}
        return self._pairs[name]


def _write_whole(file: Path, arrays: Mapping[str, np.ndarray]) -> None:
    handle, partial = tempfile.mkstemp(prefix=f".{file.stem}", suffix=".npz", dir=file.parent)
    try:
        with os.fdopen(handle, "wb") as stream:
            np.savez_compressed(stream, allow_pickle=False, **arrays)
        Path(partial).replace(file)
    finally:
        Path(partial).unlink(missing_ok=True)
