"""What a search leaves behind: the best trainer set, a summary, the table of trials.

Imports the rooms below it; `notebook` imports it. Files are written whole or not at all.
"""

from __future__ import annotations

import os
import warnings
from collections.abc import Mapping
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import optuna
import pandas as pd
import yaml
from optuna.study import StudyDirection
from optuna.trial import FrozenTrial

from evbind_lib.config.compose import Params, workspace
from evbind_lib.config.hpo import SECONDS
from evbind_lib.hpo.objectives import complete_trials, is_feasible, losses, names_of, pareto_front, several
from evbind_lib.hpo.search import SearchResult
from evbind_lib.hpo.study import count_trials, finished_trials


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
        A parameter with a condition is judged among the trials that have it. Of several objectives they are for the
        first.
    """
    target = None
    if len(study.directions) > 1:  # PED-ANOVA takes for granted that lower is better
        sign = -1 if study.directions[0] == StudyDirection.MAXIMIZE else 1

        def target(trial: FrozenTrial) -> float:
            return float(sign * trial.values[0])

    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # remarks on parameters that few trials have
            shares = optuna.importance.get_param_importances(study, target=target)
        return {name: float(share) for name, share in shares.items()}
    except (ValueError, RuntimeError):
        return {}


def trials_table(study: optuna.Study) -> pd.DataFrame:
    """One row per finished trial: number, state, value, parameters, score of each fold, seconds, error.

    Parameters
    ----------
    study : optuna.Study

    Returns
    -------
    pandas.DataFrame
        With several objectives one column for each, by its name, instead of ``value``; with constraints a column
        ``feasible``; where a trial had the parameters of an earlier one and took its result, a column ``reused_from``.
    """
    rows = []
    columns = names_of(study) if len(study.directions) > 1 else ["value"]
    # Two columns called seconds would be one too many: the objective is what the folds trained.
    columns = ["training_seconds" if name == SECONDS else name for name in columns]
    for trial in finished_trials(study):
        attributes = trial.user_attrs
        row: dict[str, Any] = {
            "trial": trial.number,
            "state": trial.state.name,
            **dict(zip(columns, trial.values or [None] * len(columns), strict=True)),
        }
        if trial.constraints:
            row["feasible"] = is_feasible(trial)
        row.update(trial.params)
        if "reused_from" in attributes:
            row["reused_from"] = attributes["reused_from"]
        for fold, score in enumerate(attributes.get("fold_scores", []), start=1):
            row[f"fold_{fold}"] = score
        row["seconds"] = attributes.get("seconds")
        row["error"] = attributes.get("error", "")
        rows.append(row)
    table = pd.DataFrame(rows, columns=None if rows else ["trial", "state", *columns, "seconds", "error"])
    if "reused_from" in table:
        table["reused_from"] = table["reused_from"].astype("Int64")
    folds = sorted((name for name in table.columns if name.startswith("fold_")), key=lambda name: int(name[5:]))
    last = [*(["reused_from"] if "reused_from" in table else []), "seconds", "error"]
    return table[[*(name for name in table.columns if name not in {*folds, *last}), *folds, *last]]


def folds_spent(study: optuna.Study, n_folds: int) -> tuple[int, int]:
    """How many folds the finished trials trained, and how many they would have trained without a pruner.

    Parameters
    ----------
    study : optuna.Study
    n_folds : int

    Returns
    -------
    trained : int
        Folds that a trial took from an earlier one with the same parameters are not among them; one that it was stopped in is.
    whole : int
    """
    trials = finished_trials(study)
    trained = 0
    for trial in trials:
        reused = trial.user_attrs.get("folds_from_before", n_folds) if "reused_from" in trial.user_attrs else 0
        begun = len(trial.user_attrs.get("fold_scores", [])) + ("stopped_within_fold" in trial.user_attrs)
        trained += max(0, begun - reused)
    return trained, len(trials) * n_folds


def _told(study: optuna.Study, trial: FrozenTrial) -> str:
    """Objectives of a trial by name: ``macro_f1 0.7123, seconds 81.3``."""
    return ", ".join(
        f"{name} {value:.1f}" if name == SECONDS else f"{name} {value:.4f}"
        for name, value in zip(names_of(study), trial.values, strict=True)
    )


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
    counts, (trained, whole) = count_trials(study), folds_spent(study, params.training.n_folds)
    aims = " and ".join(
        f"{direction.name.lower()} {name}" for name, direction in zip(metric.names, study.directions, strict=True)
    )
    lines = [
        f"Study {study.study_name} in {params.hpo.study.storage}",
        f"To {aims}, {metric.fold_aggregation} over {params.training.n_folds} folds",
        f"{counts['total']} trials: {counts['complete']} complete, {counts['pruned']} pruned, {counts['failed']} failed",
        f"{trained} of {whole} folds trained",
        f"Model {params.model.name}; data {study.user_attrs['identity']['data'][:12]}",
        *_bounds_lines(study, params),
        "",
        f"Best: trial {best.number}, {_told(study, best)}",
        *(f"  {name} = {_short(value)}" for name, value in best.params.items()),
        f"  {metric.first} of the folds: " + ", ".join(f"{score:.4f}" for score in best.user_attrs["fold_scores"]),
        "",
        "The best trial is chosen by this score, so the score flatters it: expect a little less on new posts.",
    ]
    if importances:
        lines += ["", f"Importance for {metric.first} (share of the score's variation, PED-ANOVA):"]
        lines += [f"  {name:<30} {share:.2f}" for name, share in importances.items()]
    if several(params):
        lines += ["", "Pareto front (no trial is better in every objective):"]
        listed = pareto_front(study, params)
    else:
        lines += ["", "Best trials:"]
        feasible = [trial for trial in complete_trials(study) if is_feasible(trial, params)]
        listed = sorted(feasible, key=lambda trial: (losses(study, trial), trial.number))[:5]
    lines += [f"  trial {trial.number:>4}  {_told(study, trial)}" for trial in listed]
    failed = [trial for trial in finished_trials(study) if trial.state.name == "FAIL"]
    if failed:
        lines += ["", "Failed:"]
        lines += [f"  trial {trial.number:>4}  {trial.user_attrs.get('error', 'no reason kept')}" for trial in failed]
    return "\n".join(lines) + "\n"


def _bounds_lines(study: optuna.Study, params: Params) -> list[str]:
    if not params.hpo.constraints:
        return []
    said = []
    for name, bounds in params.hpo.constraints.items():
        said += [f"{name} at least {bounds.low:g}"] if bounds.low is not None else []
        said += [f"{name} at most {bounds.high:g}"] if bounds.high is not None else []
    trials = complete_trials(study)
    kept = sum(is_feasible(trial, params) for trial in trials)
    return [f"Bounds: {', '.join(said)}; {kept} of {len(trials)} complete trials keep them"]


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
        "metric": metric.first,
        "score": round(float(best.values[0]), 6),
        "folds": study.user_attrs["identity"]["n_folds"],
        "model": params.model.name,
        "data_fingerprint": study.user_attrs["identity"]["data"],
        "date": datetime.now(UTC).date().isoformat(),
    }
    tree: dict[str, Any] = {"training": training}
    for name in {**best.params, **params.hpo.fixed}:  # what the search decided outside training
        section, dot, rest = name.partition(".")
        if dot and section != "training":
            tree.setdefault(section, {})[rest] = result.best_params.value_of(name)
    head = (
        "# @package _global_\n"
        f"# The best of a search: trial {best.number} of study {study.study_name}, {_told(study, best)}.\n"
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
