"""Studies in Optuna's storage: open or resume one, count its trials, keep its out-of-fold predictions.

Imports the rooms below it; `search` and everything above may import it.
"""

from __future__ import annotations

import os
import random
import socket
import time
import uuid
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import optuna
import pandas as pd
import sqlalchemy.exc
from optuna.trial import FrozenTrial, TrialState

from evbind_lib.data import Corpus
from evbind_lib.errors import SearchError
from evbind_lib.folds import Fold, folds_fingerprint
from evbind_lib.params import Params, resolve_sqlite, workspace
from evbind_lib.strategies import build_pruner, build_sampler
from evbind_lib.training import FoldReport

DEFAULT_STUDY_NAME = "deberta-v3-hpo"


def count_trials(study: optuna.Study) -> dict[str, int]:
    """Number of finished trials of a study by state; one that was cut off and retried is not counted.

    Parameters
    ----------
    study : optuna.Study

    Returns
    -------
    dict of str to int
        ``total``, ``complete``, ``pruned`` and ``failed``.
    """
    trials = finished_trials(study)
    states = {"complete": TrialState.COMPLETE, "pruned": TrialState.PRUNED, "failed": TrialState.FAIL}
    counts = {name: sum(trial.state == state for trial in trials) for name, state in states.items()}
    return {"total": len(trials), **counts}


def finished_trials(study: optuna.Study) -> list[FrozenTrial]:
    """Trials that ended by themselves: complete, pruned or failed."""
    trials = study.get_trials(deepcopy=False)
    return [trial for trial in trials if trial.state.is_finished() and not trial.user_attrs.get("interrupted")]


def study_identity(params: Params, corpus: Corpus, folds: Sequence[Fold]) -> dict[str, Any]:
    """What two searches must share for their scores to be comparable, as plain values kept in the study."""
    return {
        "data": corpus.fingerprint,
        "folds": folds_fingerprint(folds),
        "n_folds": len(folds),
        "eval_neg_ratio": params.data.eval_neg_ratio,
        "seed": params.training.seed,
        "model": params.model.name,
        "metric": params.hpo.metric.name,
        "fold_aggregation": params.hpo.metric.fold_aggregation,
        "direction": params.hpo.study.direction,
    }


def open_study(params: Params, identity: Mapping[str, Any]) -> optuna.Study:
    """Create the study, or load it to go on with it.

    The default study name stands for whatever is searched first. Where a study of that name was made on other data, folds,
    model or metric, the search becomes a study of its own, named with a number behind; a name that a person chose is
    never changed: there the difference is an error.

    Parameters
    ----------
    params : Params
    identity : mapping
        As `study_identity` gives it.

    Returns
    -------
    optuna.Study

    Raises
    ------
    SearchError
        When the storage cannot be reached, the study exists and ``load_if_exists`` is false, or it was made with something
        else.
    """
    optuna.logging.set_verbosity(optuna.logging.ERROR)
    storage = _open_storage(params.hpo.study.storage)
    wanted = params.hpo.study
    names = {summary.study_name for summary in optuna.get_all_study_summaries(storage, include_best_trial=False)}
    name = wanted.study_name
    for number in range(2, len(names) + 3):
        if name not in names:
            break
        differences = _differences(optuna.load_study(study_name=name, storage=storage), identity)
        if not differences and wanted.load_if_exists:
            break
        if wanted.study_name != DEFAULT_STUDY_NAME:
            if not wanted.load_if_exists:
                raise SearchError(
                    f"hpo.study.study_name={name}: a study of that name exists in {wanted.storage} and load_if_exists is "
                    "false; choose another name, or set hpo.study.load_if_exists=true to go on with it."
                )
            raise SearchError(
                f"hpo.study.study_name={name}: that study was made with other {', '.join(differences)}, so its trials cannot "
                "be compared with new ones; choose another hpo.study.study_name or go back to what it was made with."
            )
        name = f"{DEFAULT_STUDY_NAME}-{number}"
    study = optuna.create_study(
        storage=storage,
        study_name=name,
        direction=wanted.direction,
        load_if_exists=True,
        pruner=build_pruner(params.hpo.pruner),
    )
    study.sampler = build_sampler(params.hpo.sampler, n_earlier_trials=len(study.get_trials(deepcopy=False)))
    if "identity" not in study.user_attrs:
        study.set_user_attr("identity", dict(identity))
        # Of this very study, so that one made anew under the same name does not go on with the runs of the old one.
        study.set_user_attr("uid", uuid.uuid4().hex)
    study.set_user_attr("sampler", params.hpo.sampler.model_dump())
    study.set_user_attr("pruner", params.hpo.pruner.model_dump())
    study.set_user_attr("optuna_version", optuna.__version__)
    study.set_metric_names([params.hpo.metric.name])
    return study


def _open_storage(url: str) -> optuna.storages.BaseStorage:
    resolved = resolve_sqlite(url)
    try:
        if resolved.startswith("sqlite:///"):
            Path(resolved.removeprefix("sqlite:///")).parent.mkdir(parents=True, exist_ok=True)
        # SQLite's own five seconds are short for a busy disk.
        connect = {"connect_args": {"timeout": 60}} if resolved.startswith("sqlite") else {}
        if "://" not in resolved:
            raise ValueError("it is not an address such as sqlite:///optuna.db")
        for _ in range(5):
            try:
                return optuna.storages.RDBStorage(resolved, engine_kwargs=connect)
            except sqlalchemy.exc.DBAPIError as error:
                if "UNIQUE" not in str(error) and "exists" not in str(error):
                    raise
                time.sleep(0.2 + 0.3 * random.random())  # another process was making the same tables at this moment
        return optuna.storages.RDBStorage(resolved, engine_kwargs=connect)
    except Exception as error:
        reason = str(error.__cause__ or error).splitlines()[0]
        raise SearchError(
            f"hpo.study.storage={url}: the storage cannot be opened ({reason}); give one that can, for example "
            "sqlite:///optuna.db."
        ) from None


def check_storage(url: str) -> None:
    """Find out whether studies can be kept there, without making anything.

    Parameters
    ----------
    url : str
        ``hpo.study.storage``.

    Raises
    ------
    SearchError
        When they cannot.
    """
    resolved = resolve_sqlite(url)
    if not resolved.startswith("sqlite:///"):
        _open_storage(url)
        return
    file = Path(resolved.removeprefix("sqlite:///").partition("?")[0])
    place = next(place for place in (file, *file.parents) if place.exists())
    if place.is_dir() == (place == file) or not os.access(place, os.W_OK):
        what = "is a folder" if place == file else "cannot be written"
        raise SearchError(f"hpo.study.storage={url}: {place.name or place} {what}; name a file that can be written.")


def _differences(study: optuna.Study, identity: Mapping[str, Any]) -> list[str]:
    known = study.user_attrs.get("identity", {})
    return [key for key, value in identity.items() if key in known and known[key] != value]


def retry_interrupted(study: optuna.Study) -> list[int]:
    """Close trials that a killed process on this machine left RUNNING, and queue their parameters again.

    Optuna's heartbeat could do this only minutes later; here the process that ran the trial is looked for.

    Parameters
    ----------
    study : optuna.Study

    Returns
    -------
    list of int
        Numbers of the trials closed.
    """
    closed = []
    for trial in study.get_trials(deepcopy=False, states=(TrialState.RUNNING,)):
        worker = trial.user_attrs.get("worker", {})
        if worker.get("host") != socket.gethostname() or _is_alive(worker.get("pid", -1)):
            continue
        study._storage.set_trial_user_attr(trial._trial_id, "interrupted", True)
        study.tell(trial.number, state=TrialState.FAIL)
        if trial.params:
            study.enqueue_trial(trial.params, user_attrs={"retry_of": trial.number})
        closed.append(trial.number)
    return closed


def _is_alive(pid: int) -> bool:
    if pid == os.getpid():
        return False  # this process runs no trial yet
    try:
        os.kill(pid, 0)
    except (ProcessLookupError, OverflowError, ValueError):
        return False
    except PermissionError:
        return True
    return True


def predictions_folder(study_name: str) -> Path:
    """Folder with the out-of-fold predictions of a study's trials."""
    return workspace() / "runs" / "studies" / study_name


def keep_predictions(study_name: str, number: int, reports: Sequence[FoldReport]) -> None:
    """Keep a trial's out-of-fold predictions, of the folds it came to: ids, labels and probabilities, compressed."""
    if not reports:
        return
    folder = predictions_folder(study_name)
    folder.mkdir(parents=True, exist_ok=True)
    table = pd.concat([report.predictions for report in reports], ignore_index=True)
    arrays: dict[str, Any] = {name: table[name].to_numpy() for name in ("fold", "label", "probability")}
    ids: dict[str, Any] = {
        name: table[name].to_numpy(dtype=np.str_) for name in ("post_id", "sentence_id", "criterion_id")
    }
    np.savez_compressed(folder / f"trial_{number:04d}.npz", **arrays, **ids)


def load_predictions(study_name: str, number: int) -> pd.DataFrame:
    """Out-of-fold predictions of a trial; columns as `evbind_lib.training.PREDICTION_COLUMNS`."""
    with np.load(predictions_folder(study_name) / f"trial_{number:04d}.npz") as arrays:
        return pd.DataFrame(
            {name: arrays[name] for name in ("fold", "post_id", "sentence_id", "criterion_id", "label", "probability")}
        )
