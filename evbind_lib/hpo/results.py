"""What a search leaves behind: its result, the best trial as a trainer file, a summary, the table of trials."""

from __future__ import annotations

import warnings
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, Self

import optuna
import pandas as pd
import yaml
from optuna.trial import FrozenTrial, TrialState

from evbind_lib.config.paths import without_password, workspace, write_whole
from evbind_lib.config.schema import Params, set_values
from evbind_lib.errors import SearchError, did_you_mean
from evbind_lib.hpo.study import (
    StudyRecord,
    TrialRecord,
    best_trial,
    complete_trials,
    count_trials,
    finished_trials,
    is_minimised,
    metric_name,
    open_storage,
)
from evbind_lib.training.cache import FoldCache, trial_name


@dataclass(frozen=True)
class SearchResult:
    """What a search found.

    Attributes
    ----------
    study : optuna.Study
        Everything that Optuna and `evbind_lib.plots` can show.
    best_trial : optuna.trial.FrozenTrial
        The complete trial with the best value, the earliest of equals.
    configured : Params
        What the search was called with.
    n_earlier_trials : int
        Finished trials that the study had before this search.
    seconds : float
        Wall time of this search.
    notes : tuple of str
        Why it ended before its total, what changed since the study began.
    stopped : bool
        Whether somebody asked it to stop.

    Examples
    --------
    >>> import evbind_lib as ev
    >>> params = ev.compose(["hpo.trials.n_trials=1", "training.n_folds=2", "training.args.max_steps=2"])
    >>> corpus = ev.load_corpus(params)
    >>> result = ev.search(ev.Objective(corpus, ev.make_folds(corpus, params), params), params, study="two-steps")
    >>> result.params.training.loss_function == result.best_trial.params["loss_function"]
    True
    >>> list(result.predictions().columns)
    ['fold', 'post_id', 'sentence_id', 'criterion_id', 'label', 'logit', 'probability']
    """

    study: optuna.Study
    best_trial: FrozenTrial
    configured: Params
    n_earlier_trials: int = 0
    seconds: float = 0.0
    notes: tuple[str, ...] = ()
    stopped: bool = False

    @property
    def best_value(self) -> float:
        """Value of the best trial."""
        return float(self.best_trial.values[0])

    @property
    def params(self) -> Params:
        """Parameters that the best trial was trained with; `SearchError` where its objective does not use `suggest`."""
        resolved = TrialRecord.read(self.best_trial).resolved
        if resolved is None:
            raise SearchError(
                f"Study {self.study.study_name}: its objective does not use ev.suggest, so the parameters of trial "
                f"{self.best_trial.number} are not known as a whole; set them from result.best_trial.params with "
                "params.with_values, or begin the objective with ev.suggest(trial, params)."
            )
        return Params.from_tree({**self.configured.model_dump(), **resolved})

    def predictions(self, number: int | None = None) -> pd.DataFrame:
        """Out-of-fold predictions of a trial, as its folds were reported with `report_folds`.

        Parameters
        ----------
        number : int, optional
            Of the trial, counted from 0; the best one when not given.

        Returns
        -------
        pandas.DataFrame
            A row for each validated pair, as ``FoldResult.predictions``; `SearchError` where they are not in this workspace.
        """
        number = self.best_trial.number if number is None else number
        trial = next((one for one in self.study.get_trials(deepcopy=False) if one.number == number), None)
        folds = sorted(trial.intermediate_values) if trial is not None else []  # each was reported at its own number
        cache = FoldCache(str(StudyRecord.read(self.study).uid))
        found = [result for fold in folds if (result := cache.load(trial_name(number, fold))) is not None]
        if not found or len(found) < len(folds):
            raise SearchError(
                f"Study {self.study.study_name}, trial {number}: this workspace has predictions of {len(found)} of {len(folds)} "
                "reported folds; cross-validate its parameters again, or look where it was searched."
            )
        return pd.concat([result.predictions for result in found], ignore_index=True)

    @classmethod
    def load(cls, params: Params) -> Self:
        """Read the study that ``hpo.study`` names, without searching; `SearchError` where it has no complete trial."""
        name, address = params.hpo.study.study_name, params.hpo.study.storage
        storage = open_storage(address)
        try:
            study = optuna.load_study(study_name=name, storage=storage)
        except KeyError:
            near = did_you_mean(name, optuna.get_all_study_names(storage))
            raise SearchError(
                f"hpo.study.study_name={name}: {without_password(address)} has no study of that name{near}"
            ) from None
        best = best_trial(study)
        if best is None:
            raise SearchError(
                f"Study {name}: none of its trials is complete; search on with the command that began it."
            )
        return cls(study, best, params, len(finished_trials(study)))


def parameter_importances(study: optuna.Study) -> dict[str, float]:
    """Importance of each searched parameter, largest first, by PED-ANOVA (Watanabe, Bansal and Hutter, IJCAI 2023).

    A parameter with a condition is judged among the trials that have it. Empty with fewer than two complete trials.
    """
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # remarks on parameters that few trials have
            found = optuna.importance.get_param_importances(study)
        return {name: float(importance) for name, importance in found.items()}
    except (ValueError, RuntimeError):
        return {}


def trials_table(study: optuna.Study) -> pd.DataFrame:
    """A row per finished trial: number, state, value, parameters, fold scores, trial whose folds it took over, seconds, error."""
    rows, folds = [], 0
    for trial in finished_trials(study):
        record = TrialRecord.read(trial)
        scores = record.fold_scores or []
        folds = max(folds, len(scores))
        row = {"trial": trial.number, "state": trial.state.name, "value": (trial.values or [None])[0], **trial.params}
        row |= {f"fold_{number}": score for number, score in enumerate(scores, start=1)}
        rows.append({**row, "reused_from": record.reused_from, "seconds": record.seconds, "error": record.error or ""})
    table = pd.DataFrame(rows, columns=None if rows else ["trial", "state", "value", "reused_from", "seconds", "error"])
    last = [*(f"fold_{number + 1}" for number in range(folds)), "reused_from", "seconds", "error"]
    table = table[[*(name for name in table if name not in last), *last]].astype({"reused_from": "Int64"})
    return table.drop(columns=[] if table["reused_from"].notna().any() else "reused_from")


def folds_spent(study: optuna.Study, n_folds: int) -> tuple[int, int]:
    """How many folds the finished trials trained, those taken over left out, and how many there would be without a pruner."""
    trials = finished_trials(study)
    trained = 0
    for record in map(TrialRecord.read, trials):
        # A retry goes on with the folds of a trial that was cut off, which is not among these.
        taken_over = record.reused_from is not None or record.retry_of is None
        reused = record.folds_from_before or 0 if taken_over else 0
        trained += max(0, len(record.fold_scores or ()) - reused)
    return trained, len(trials) * n_folds


def summary_text(result: SearchResult, params: Params) -> str:
    """Account of a study in plain text."""
    study, best, name = result.study, result.best_trial, metric_name(result.study)
    identity, record, counts = StudyRecord.read(study).identity or {}, TrialRecord.read(best), count_trials(study)
    n_folds, scores = identity.get("n_folds", params.training.n_folds), record.fold_scores or []
    trained, whole = folds_spent(study, n_folds)
    aggregated = f", {identity['fold_aggregation']} over {n_folds} folds" if "fold_aggregation" in identity else ""
    lines = [
        f"Study {study.study_name} in {without_password(params.hpo.study.storage)}",
        f"To {study.directions[0].name.lower()} {name}{aggregated}",
        f"{counts['total']} trials: {counts['complete']} complete, {counts['pruned']} pruned, {counts['failed']} failed",
        f"{trained} of {whole} folds trained",
        f"Model {params.model.name}; data {_data(identity)}",
        "",
        f"Best: trial {best.number}, {name} {result.best_value:.4f}",
        *(f"  {key} = {f'{value:.4g}' if isinstance(value, float) else value}" for key, value in best.params.items()),
    ]
    if scores:
        folds = ", ".join(f"{score:.4f}" for score in scores)
        lines.append(f"  {record.metric or identity.get('metric') or name} of the folds: {folds}")
    lines += [
        "",
        "The best trial is selected by this score, so the score is optimistic: expect a little less on new posts.",
    ]
    if importances := parameter_importances(study):
        lines += ["", f"Importance for {name} (PED-ANOVA):"]
        lines += [f"  {key:<30} {importance:.2f}" for key, importance in importances.items()]
    sign = 1 if is_minimised(study) else -1
    ranked = sorted(complete_trials(study), key=lambda trial: (sign * trial.values[0], trial.number))
    lines += ["", "Best trials:", *(f"  trial {one.number:>4}  {name} {one.values[0]:.4f}" for one in ranked[:5])]
    failed = [trial for trial in finished_trials(study) if trial.state == TrialState.FAIL]
    if failed:
        lines += ["", "Failed:"]
        lines += [f"  trial {one.number:>4}  {TrialRecord.read(one).error or 'no reason recorded'}" for one in failed]
    return "\n".join(lines) + "\n"


def _data(identity: dict[str, Any]) -> str:
    fingerprint = str(identity.get("data", "of the objective"))[:12]
    return f"memory, fingerprint {fingerprint}" if identity.get("source") == "memory" else fingerprint


def best_trainer_yaml(result: SearchResult) -> str:
    """The best trial's parameters as a file of the trainer group, with where they come from."""
    study, best, params, name = result.study, result.best_trial, result.params, metric_name(result.study)
    identity = StudyRecord.read(study).identity or {}
    training = params.training.model_dump(exclude={"n_folds", "seed", "provenance"})
    training = {key: value for key, value in training.items() if key != "loss_args" or value}
    training["provenance"] = {
        "study": study.study_name,
        "trial": best.number,
        "metric": name,
        "score": round(result.best_value, 6),
        "folds": identity.get("n_folds", len(TrialRecord.read(best).fold_scores or ())),
        "model": params.model.name,
        **({"data": "memory"} if identity.get("source") == "memory" else {}),
        "data_fingerprint": identity.get("data"),
        "date": datetime.now(UTC).date().isoformat(),
    }
    # What the search decided outside training.
    decided = [key for key in {**best.params, **params.hpo.fixed} if key.startswith(("data.", "model."))]
    tree = set_values({"training": training}, {key: params.value_of(key) for key in decided})
    head = (
        "# @package _global_\n"
        f"# The best of a search: trial {best.number} of study {study.study_name}, {name} {result.best_value:.4f}.\n"
        "# Use it with trainer=hpo_best; the next search replaces it, so keep a copy under another name.\n"
    )
    return head + yaml.safe_dump(tree, sort_keys=False)


def write_results(result: SearchResult, params: Params) -> dict[str, Path]:
    """Write summary and table to the workspace and, where the objective uses `suggest`, ``hpo_best.yaml``; the files by name."""
    texts = {
        "optuna_study_summary.txt": summary_text(result, params),
        "optuna_trials.csv": trials_table(result.study).to_csv(index=False),
    }
    if TrialRecord.read(result.best_trial).resolved is not None:
        texts = {"params/trainer/hpo_best.yaml": best_trainer_yaml(result), **texts}
    for name, text in texts.items():
        write_whole(workspace() / name, text)
    return {Path(name).name: workspace() / name for name in texts}
