"""What a search leaves behind: the best trainer set, a summary, the table of trials.

Imports the rooms below it; `notebook` imports it. Files are written whole or not at all.
"""

from __future__ import annotations

import os
from collections.abc import Mapping
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import optuna
import pandas as pd
import yaml

from evbind_lib.params import Params, workspace
from evbind_lib.search import SearchResult
from evbind_lib.studies import count_trials, finished_trials


@dataclass(frozen=True)
class Outcome:
    """Files that a search wrote, and the importances named in them."""

    best_trainer: Path
    summary: Path
    trials: Path
    importances: Mapping[str, float]

    def files(self) -> dict[str, Path]:
        """The files by what they are."""
        return {"best trainer set": self.best_trainer, "summary": self.summary, "trials": self.trials}


def parameter_importances(study: optuna.Study) -> dict[str, float]:
    """Share of the score's variation that each searched parameter explains, largest first.

    Parameters
    ----------
    study : optuna.Study

    Returns
    -------
    dict of str to float
        By Optuna's default evaluator, PED-ANOVA (Watanabe et al., IJCAI 2023); empty with fewer than two complete trials.
        A parameter with a condition is judged among the trials that have it.
    """
    try:
        return {name: float(share) for name, share in optuna.importance.get_param_importances(study).items()}
    except (ValueError, RuntimeError):
        return {}


def trials_table(study: optuna.Study) -> pd.DataFrame:
    """One row per finished trial: number, state, value, parameters, score and seconds of each fold, error.

    Parameters
    ----------
    study : optuna.Study

    Returns
    -------
    pandas.DataFrame
    """
    rows = []
    for trial in finished_trials(study):
        attributes = trial.user_attrs
        row: dict[str, Any] = {
            "trial": trial.number,
            "state": trial.state.name,
            "value": trial.value,
            **trial.params,
        }
        for fold, score in enumerate(attributes.get("fold_scores", []), start=1):
            row[f"fold_{fold}"] = score
        row["seconds"] = attributes.get("seconds")
        row["error"] = attributes.get("error", "")
        rows.append(row)
    table = pd.DataFrame(rows)
    fold_columns = sorted(column for column in table.columns if column.startswith("fold_"))
    others = [column for column in table.columns if column not in {*fold_columns, "seconds", "error"}]
    return table[[*others, *fold_columns, "seconds", "error"]]


def summary_text(result: SearchResult, params: Params, importances: Mapping[str, float]) -> str:
    """Account of a study in plain text.

    Parameters
    ----------
    result : SearchResult
    params : Params
    importances : mapping of str to float

    Returns
    -------
    str
    """
    study, best, metric = result.study, result.best, params.hpo.metric
    counts = count_trials(study)
    lines = [
        f"Study {study.study_name} in {params.hpo.study.storage}",
        f"{metric.fold_aggregation} {metric.name} over {params.training.n_folds} folds, to {study.direction.name.lower()}",
        f"{counts['total']} trials: {counts['complete']} complete, {counts['pruned']} pruned, {counts['failed']} failed",
        f"Model {params.model.name}; data {study.user_attrs['identity']['data'][:12]}",
        "",
        f"Best: trial {best.number}, {metric.name} {best.value:.4f}",
        *(f"  {name} = {_short(value)}" for name, value in best.params.items()),
        "  folds: " + ", ".join(f"{score:.4f}" for score in best.user_attrs["fold_scores"]),
        "",
        "The best trial is chosen by this score, so the score flatters it: expect a little less on new posts.",
    ]
    if importances:
        lines += ["", "Importance (share of the score's variation, PED-ANOVA):"]
        lines += [f"  {name:<30} {share:.2f}" for name, share in importances.items()]
    complete = sorted(
        (t for t in study.trials if t.value is not None and t.state.name == "COMPLETE"), key=lambda t: t.value
    )
    if study.direction == optuna.study.StudyDirection.MAXIMIZE:
        complete.reverse()
    lines += ["", "Best trials:"]
    lines += [f"  trial {trial.number:>4}  {trial.value:.4f}" for trial in complete[:5]]
    failed = [trial for trial in finished_trials(study) if trial.state.name == "FAIL"]
    if failed:
        lines += ["", "Failed:"]
        lines += [f"  trial {trial.number:>4}  {trial.user_attrs.get('error', 'no reason kept')}" for trial in failed]
    return "\n".join(lines) + "\n"


def best_trainer_yaml(result: SearchResult, params: Params) -> str:
    """The best trial's parameters as a file of the trainer group, with where they come from.

    Parameters
    ----------
    result : SearchResult
    params : Params

    Returns
    -------
    str
        YAML that ``trainer=hpo_best`` composes.
    """
    study, best, metric = result.study, result.best, params.hpo.metric
    training = result.best_params.training.model_dump(exclude={"n_folds", "seed", "provenance"})
    training["provenance"] = {
        "study": study.study_name,
        "trial": best.number,
        "metric": metric.name,
        "score": round(float(best.value or 0.0), 6),
        "folds": study.user_attrs["identity"]["n_folds"],
        "model": params.model.name,
        "data_fingerprint": study.user_attrs["identity"]["data"],
        "date": datetime.now(UTC).date().isoformat(),
    }
    tree: dict[str, Any] = {"training": training}
    for name in best.params:  # searched parameters outside training
        section, dot, rest = name.partition(".")
        if dot and section != "training":
            tree.setdefault(section, {})[rest] = result.best_params.value_of(name)
    head = (
        "# @package _global_\n"
        f"# The best of a search: trial {best.number} of study {study.study_name}, {metric.name} {best.value:.4f}.\n"
        "# Use it with trainer=hpo_best; the next search writes it anew, so keep a copy under another name.\n"
    )
    return head + yaml.safe_dump(tree, sort_keys=False)


def write_outcome(result: SearchResult, params: Params) -> Outcome:
    """Write ``params/trainer/hpo_best.yaml``, ``optuna_study_summary.txt`` and ``optuna_trials.csv`` to the workspace.

    Parameters
    ----------
    result : SearchResult
    params : Params

    Returns
    -------
    Outcome
    """
    importances = parameter_importances(result.study)
    outcome = Outcome(
        best_trainer=workspace() / "params" / "trainer" / "hpo_best.yaml",
        summary=workspace() / "optuna_study_summary.txt",
        trials=workspace() / "optuna_trials.csv",
        importances=importances,
    )
    write_whole(outcome.best_trainer, best_trainer_yaml(result, params))
    write_whole(outcome.summary, summary_text(result, params, importances))
    write_whole(outcome.trials, trials_table(result.study).to_csv(index=False))
    return outcome


def write_whole(file: Path, text: str) -> None:
    """Write a text file so that a reader sees the old one or the new one, never a part."""
    file.parent.mkdir(parents=True, exist_ok=True)
    partial = file.with_name(f".{file.name}.{os.getpid()}")
    partial.write_text(text, encoding="utf-8")
    partial.replace(file)


def _short(value: Any) -> str:
    return f"{value:.4g}" if isinstance(value, float) else str(value)
