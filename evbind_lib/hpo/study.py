"""Studies in Optuna's storage: open or resume one, count its trials, find its out-of-fold predictions.

Imports the rooms below it; `search` and everything above may import it.
"""

from __future__ import annotations

import time
import uuid
import warnings
from collections.abc import Mapping, Sequence
from typing import Any

import optuna
import pandas as pd
from optuna.exceptions import DuplicatedStudyError, ExperimentalWarning
from optuna.trial import FrozenTrial, TrialState

from evbind_lib.config.compose import Params
from evbind_lib.data.corpus import Corpus
from evbind_lib.data.folds import Fold, folds_fingerprint
from evbind_lib.errors import SearchError
from evbind_lib.hpo.objectives import directions, effective_pruner
from evbind_lib.hpo.samplers import build_pruner, build_sampler
from evbind_lib.hpo.storage import open_storage
from evbind_lib.training.cache import FoldCache
from evbind_lib.training.result import PREDICTION_COLUMNS

DEFAULT_STUDY_NAME = "deberta-v3-hpo"
# Seconds that the process which makes a study may take to say what it is made with.
MAKING = 20.0


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
    return [trial for trial in study.get_trials(deepcopy=False) if counts_as_finished(trial)]


def counts_as_finished(trial: FrozenTrial) -> bool:
    """Whether a trial ended by itself: was neither cut off nor given back as one too many."""
    attributes = trial.user_attrs
    return trial.state.is_finished() and not attributes.get("interrupted") and not attributes.get("surplus")


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
        "direction": directions(params)[0],
        "constraints": {name: bounds.model_dump() for name, bounds in params.hpo.constraints.items()},
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
    storage = open_storage(params.hpo.study.storage)
    name, exists = _choose_name(params, identity, storage)
    study = None if exists else _make(params, identity, storage, name)
    if study is None:  # it was there, or another process made it at this moment
        study = optuna.load_study(study_name=name, storage=storage)
        differences = _differences(study, identity)
        if differences:
            raise SearchError(_refusal(name, differences))
        if "identity" not in study.user_attrs:  # made by a process that died over it
            _describe(study, params, identity)
    study.pruner = build_pruner(effective_pruner(params), n_folds=params.training.n_folds)
    study.sampler = build_sampler(params.hpo.sampler, n_earlier_trials=0, params=params)
    return study


def join_study(params: Params, name: str) -> optuna.Study:
    """Load a study that is there, in a worker.

    Parameters
    ----------
    params : Params
    name : str
        As the study was opened with, which may be another than ``hpo.study.study_name``.

    Returns
    -------
    optuna.Study
    """
    optuna.logging.set_verbosity(optuna.logging.ERROR)
    study = optuna.load_study(study_name=name, storage=open_storage(params.hpo.study.storage))
    study.pruner = build_pruner(effective_pruner(params), n_folds=params.training.n_folds)
    study.sampler = build_sampler(params.hpo.sampler, n_earlier_trials=0, params=params)
    return study


def _choose_name(params: Params, identity: Mapping[str, Any], storage: optuna.storages.BaseStorage) -> tuple[str, bool]:
    """Name of the study to open, and whether it is there."""
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
            raise SearchError(_refusal(name, differences))
        name = f"{DEFAULT_STUDY_NAME}-{number}"
    return name, name in names


def _refusal(name: str, differences: Sequence[str]) -> str:
    return (
        f"hpo.study.study_name={name}: that study was made with other {', '.join(differences)}, so its trials cannot "
        "be compared with new ones; choose another hpo.study.study_name or go back to what it was made with."
    )


def _make(
    params: Params, identity: Mapping[str, Any], storage: optuna.storages.BaseStorage, name: str
) -> optuna.Study | None:
    """Make a study and say in it what it is made with; None where another process was faster."""
    try:
        study = optuna.create_study(storage=storage, study_name=name, directions=directions(params))
    except DuplicatedStudyError:
        _wait_for_identity(name, storage)
        return None
    _describe(study, params, identity)
    return study


def _describe(study: optuna.Study, params: Params, identity: Mapping[str, Any]) -> None:
    # Of this very study, so that one made anew under the same name does not go on with the runs of the old one.
    study.set_user_attr("uid", uuid.uuid4().hex)
    study.set_user_attr("sampler", params.hpo.sampler.model_dump())
    study.set_user_attr("pruner", params.hpo.pruner.model_dump())
    study.set_user_attr("optuna_version", optuna.__version__)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", ExperimentalWarning)
        study.set_metric_names(params.hpo.metric.names)
    study.set_user_attr("identity", dict(identity))  # last: whoever waits for it finds the rest


def _wait_for_identity(name: str, storage: optuna.storages.BaseStorage) -> None:
    deadline = time.monotonic() + MAKING
    while time.monotonic() < deadline:
        if "identity" in optuna.load_study(study_name=name, storage=storage).user_attrs:
            return
        time.sleep(0.1)


def _differences(study: optuna.Study, identity: Mapping[str, Any]) -> list[str]:
    known = study.user_attrs.get("identity", {})
    return [key for key, value in identity.items() if key in known and known[key] != value]


def load_predictions(study: optuna.Study, number: int) -> pd.DataFrame:
    """Out-of-fold predictions of a trial, of the folds it came to.

    Parameters
    ----------
    study : optuna.Study
    number : int

    Returns
    -------
    pandas.DataFrame
        Columns as `evbind_lib.training.result.PREDICTION_COLUMNS`; empty where none are kept in this workspace.
    """
    attributes = study.trials[number].user_attrs
    parts = FoldCache(study.study_name).predictions(attributes.get("parameter_key", ""))
    n_folds = len(attributes.get("fold_scores", parts))
    tables = [table for fold, table in parts.items() if fold < n_folds]
    return pd.concat(tables, ignore_index=True) if tables else pd.DataFrame(columns=PREDICTION_COLUMNS)
