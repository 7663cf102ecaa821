"""What a search leaves behind: its result, the best trial as a trainer file, a summary, the table of trials."""

import contextlib
import copy
import json
import math
import warnings
from collections.abc import Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, Self

import numpy as np
import optuna
import pandas as pd
import yaml
from optuna.importance import PedAnovaImportanceEvaluator
from optuna.trial import FrozenTrial, TrialState

import evbind_lib.hpo.study as studies
from evbind_lib.config.compose import SEARCHED, experiment_name
from evbind_lib.config.masking import FILES, is_secret, masked
from evbind_lib.config.paths import portable_path, workspace, write_whole
from evbind_lib.config.schema import Params, set_values
from evbind_lib.errors import SearchError
from evbind_lib.evaluation.selection import CorrectedScore, corrected_score
from evbind_lib.hpo.finalists import N_SEEDS, Finalist, finalists
from evbind_lib.hpo.study import StudyRecord, TrialRecord
from evbind_lib.training.cache import FoldCache, trial_name

FEWEST_FOR_IMPORTANCE = 50  # complete trials: Optuna advises at least 5 in the best tenth
BY_FINALISTS = "; the choice among finalists is not in it"  # of the corrected score


@dataclass(frozen=True)
class SearchResult:
    """What a search found.

    ``best_trial`` is the complete trial of ``study`` with the best value, the earliest of equals; ``chosen_trial`` the same, or
    with ``hpo.finalists`` the one that fresh seeds chose: `params` and `predictions` are its own; ``configured`` what the search
    was called with, ``n_earlier_trials`` the finished trials before it, ``seconds`` its wall time; ``notes`` say why it ended
    before its total, or what changed since the study began, ``stopped`` whether somebody asked it to stop.

    Examples
    --------
    >>> import evbind_lib as ev
    >>> params = ev.compose(["hpo.trials.n_trials=1", "training.n_folds=2", "training.args.max_steps=2"])
    >>> corpus = ev.load_corpus(params)
    >>> result = ev.search(ev.Objective(corpus, ev.make_folds(corpus, params), params), params, study="two-steps")
    >>> result.params.training.loss_function == result.best_trial.params["loss_function"]
    True
    >>> shown = ev.SearchResult.load(params.with_values({"hpo.study.study_name": "two-steps"}))  # later, without searching
    >>> shown.best_value == result.best_value
    True
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
    def finalists(self) -> list[Finalist]:
        """The best trials trained again with fresh seeds, best first by those; none without ``hpo.finalists``."""
        return finalists(self.study)

    @property
    def chosen_trial(self) -> FrozenTrial:
        """The first of the finalists where there are any, else the best trial."""
        first = next(iter(self.finalists), None)
        return self.study.get_trials(deepcopy=False)[first.trial] if first else self.best_trial

    def corrected_score(self) -> CorrectedScore:
        """Best value corrected for having been chosen on its own folds; `SearchError` with the reason where there is none."""
        complete, identity = studies.complete_trials(self.study), StudyRecord.read(self.study).identity or {}
        for trial in complete:
            record = TrialRecord.read(trial)
            if not record.fold_scores:
                raise SearchError("the objective does not report its folds by ev.report_folds.")
            if (record.fold_aggregation or identity.get("fold_aggregation")) != "mean":
                raise SearchError("it is defined for the mean over folds alone (hpo.metric.fold_aggregation=mean).")
            if not math.isclose(np.mean(record.fold_scores), trial.values[0], abs_tol=1e-6):
                raise SearchError("the objective returns something else than the mean over its folds.")
        stopped = [trial for trial in studies.finished_trials(self.study) if trial.state == TrialState.PRUNED]
        scores = [TrialRecord.read(trial).fold_scores or [] for trial in [*complete, *stopped]]
        return corrected_score(scores, greater_is_better=not studies.is_minimised(self.study))

    @property
    def params(self) -> Params:
        """Parameters that the chosen trial was trained with; `SearchError` where its objective does not use `suggest`."""
        return studies.resolved_params(self.study, self.chosen_trial, self.configured)

    def predictions(self, number: int | None = None) -> pd.DataFrame:
        """Out-of-fold predictions of a trial, by default the chosen; as `FoldResult.predictions`, or `SearchError` where lost."""
        number = self.chosen_trial.number if number is None else number
        reported = {trial.number: trial.intermediate_values for trial in self.study.get_trials(deepcopy=False)}
        cache, folds = FoldCache(str(StudyRecord.read(self.study).uid)), sorted(reported.get(number, ()))
        found = [stored[1] for fold in folds if (stored := cache.stored(trial_name(number, fold)))]
        if not found or len(found) < len(folds):
            problem = f"this workspace has predictions of {len(found)} of {len(folds)} reported folds"
            remedy = "cross-validate its parameters again, or look where it was searched"
            raise SearchError(f"Study {self.study.study_name}, trial {number}: {problem}; {remedy}.")
        return pd.concat(found, ignore_index=True)

    @classmethod
    def load(cls, params: Params) -> Self:
        """Read the study that ``hpo.study`` names, without searching; `SearchError` where it has no complete trial."""
        study = studies.load_study(params)
        if (best := studies.best_trial(study)) is None:
            raise SearchError(f"Study {study.study_name}: none of its trials is complete; search on.")
        return cls(study, best, params, len(studies.finished_trials(study)))


def parameter_importances(study: optuna.Study, n_resamples: int = 0) -> pd.DataFrame:
    """How far each searched parameter lifts a trial into the best tenth, as a part of 1, the largest first; empty for few."""
    # PED-ANOVA (Watanabe, Bansal and Hutter, IJCAI 2023). Columns low and high, with resamples: the middle nine tenths of theirs.
    complete = studies.complete_trials(study)
    trials = [trial for trial in complete if trial.value is not None and math.isfinite(trial.value)]
    if len(trials) < FEWEST_FOR_IMPORTANCE or not any(trial.params for trial in trials):
        return pd.DataFrame({"importance": []}, dtype=float)
    found = pd.DataFrame({"importance": _best_tenth(study, trials)})
    drawn = np.random.default_rng(0).integers(0, len(trials), (n_resamples, len(trials)))
    again = pd.DataFrame([_best_tenth(study, [trials[number] for number in numbers]) for numbers in drawn])
    for name, bound in {"low": 0.05, "high": 0.95}.items() if n_resamples else ():
        found[name] = again.reindex(columns=found.index).fillna(0).quantile(bound)
    return found.rename_axis("parameter").sort_values("importance", ascending=False, kind="stable")


def _best_tenth(study: optuna.Study, trials: Sequence[FrozenTrial]) -> dict[str, float]:
    """Importances for these trials of a study; to make a study of each resample would take a minute for a thousand trials."""
    resampled = copy.copy(study)
    resampled.get_trials = lambda deepcopy=True, states=None: trials
    with warnings.catch_warnings(action="ignore"):  # remarks on parameters that few trials have
        return optuna.importance.get_param_importances(resampled, evaluator=PedAnovaImportanceEvaluator())


def trials_table(study: optuna.Study) -> pd.DataFrame:
    """A row per finished trial: number, state, value, parameters, fold scores, folds that it read and whose, seconds, error."""
    trials = studies.finished_trials(study)
    records = [TrialRecord.read(trial) for trial in trials]
    first = [(trial.number, trial.state.name, trial.values[0] if trial.values else None) for trial in trials]
    read = [(record.reused_from, record.folds_from_before) for record in records]
    last = [(record.seconds, record.error or "") for record in records]
    folds = pd.DataFrame([record.fold_scores or [] for record in records])
    parts = [
        pd.DataFrame(first, columns=["trial", "state", "value"]),
        pd.DataFrame([trial.params for trial in trials]),
        folds.rename(columns=lambda fold: f"fold_{fold + 1}"),
        pd.DataFrame(read, columns=["reused_from", "folds_read"], dtype="Int64").dropna(axis="columns", how="all"),
        pd.DataFrame(last, columns=["seconds", "error"]),
    ]
    return pd.concat(parts, axis=1)


def folds_spent(study: optuna.Study, n_folds: int) -> tuple[int, int, int]:
    """Folds that trials trained, also cut off or stopped; that they read of others; that there would be without a pruner."""
    finished, trained, read = {trial.number for trial in studies.finished_trials(study)}, 0, 0
    own: dict[int | None, int] = {}  # folds of each trial, with those of the trials, cut off, that it goes on with
    for trial in study.get_trials(deepcopy=False):
        record = TrialRecord.read(trial)
        if trial.state == TrialState.RUNNING or record.surplus:
            continue
        found, before = record.folds_from_before or 0, own.get(record.retry_of, 0)
        # Never below 0: before the rebuild, folds that a trial did not get to were counted as well.
        new = max(0, len(record.fold_scores or ()) - found)
        own[trial.number] = new + before
        trained += new
        read += max(0, found - before) if trial.number in finished else 0
    return trained, read, len(finished) * n_folds


def folds_line(study: optuna.Study, n_folds: int) -> str:
    """How many folds were trained, and read instead, as a line."""
    trained, read, whole = folds_spent(study, n_folds)
    others = f", {read} read that other trials had trained" if read else ""
    return f"{trained} of {whole} folds trained ({trained / max(whole, 1):.0%}){others}"


def choice_lines(result: SearchResult) -> list[str]:
    """The corrected score and what it estimates, or why there is none; then the finalists, and which of them is chosen."""
    found, best, name = result.finalists, result.best_trial, studies.metric_name(result.study)
    try:
        score = result.corrected_score()
        interval = f"{score.value:.4f}, 95 % interval {score.low:.4f} to {score.high:.4f}"
        estimated = "expect it of one more training with the chosen set, on new posts like these"
        lines = [f"Corrected for selection: {interval}; {estimated}{BY_FINALISTS if found else ''}."]
    except SearchError as reason:
        lines = [f"No score corrected for selection: {reason}"]
    trials = result.study.get_trials(deepcopy=False)
    for each in found:
        fresh = f"{each.mean:.4f} ± {each.std:.4f} with {len(each.values)} fresh seeds"
        lines.append(f"Finalist: trial {each.trial}, {name} {fresh} ({trials[each.trial].values[0]:.4f} in the search)")
    if found:
        other = "" if found[0].trial == best.number else f", not by trial {best.number}, the best of the search"
        lines.append(f"Chosen: trial {found[0].trial}, by the mean of its fresh seeds{other}")
    return lines


def short(value: Any) -> str:
    """A value as it is shown: numbers to four digits."""
    return f"{value:.4g}" if isinstance(value, float) else str(value)


def summary_text(result: SearchResult) -> str:
    """Account of a study in plain text."""
    study, best, name, params = result.study, result.best_trial, studies.metric_name(result.study), result.configured
    identity, record = StudyRecord.read(study).identity or {}, TrialRecord.read(best)
    direction, n_folds = study.directions[0].name.lower(), identity.get("n_folds", params.training.n_folds)
    aggregated = f", {identity['fold_aggregation']} over {n_folds} folds" if "fold_aggregation" in identity else ""
    data = "memory, fingerprint " if identity.get("source") == "memory" else ""
    values = [f"{key} = {short(value)}" for key, value in best.params.items()]
    if record.fold_scores:
        scores = ", ".join(f"{score:.4f}" for score in record.fold_scores)
        values.append(f"{record.metric or identity.get('metric') or name} of the folds: {scores}")
    values += choice_lines(result)
    codes = [f"code {code}: trials {', '.join(map(str, each))}" for code, each in studies.trials_by_code(study).items()]
    counts, importances = studies.count_trials(study), parameter_importances(study)["importance"]
    lifts = [f"{value:.2f}  {key}" for key, value in importances.items()]
    few = f"too few trials to say: {counts['complete']} complete, {FEWEST_FOR_IMPORTANCE} needed"
    ranked = [f"trial {each.number:>4}  {name} {each.values[0]:.4f}" for each in studies.ranked_trials(study)[:5]]
    ended = [trial for trial in studies.finished_trials(study) if trial.state == TrialState.FAIL]
    failed = [f"trial {each.number:>4}  {TrialRecord.read(each).error or 'no reason recorded'}" for each in ended]
    sections = {
        f"Study {study.study_name} in {masked(params.hpo.study.storage)}": [
            f"To {direction} {name}{aggregated}",
            f"{counts['total']} trials: {studies.states(counts)}",
            folds_line(study, n_folds),
            f"Model {params.model.name}; data {data}{identity['data'][:12] if 'data' in identity else 'of the objective'}",
        ],
        f"Best: trial {best.number}, {name} {result.best_value:.4f}": values,
        f"What lifts a trial into the best tenth by {name} (importance by PED-ANOVA, together 1):": lifts or [few],
        "Best trials:": ranked,
        "Trained by different code of evbind_lib.data and .training:": codes if len(codes) > 1 else [],
        "Failed:": failed,
    }
    return "\n\n".join("\n  ".join([title, *lines]) for title, lines in sections.items() if lines) + "\n"


def best_trainer_yaml(result: SearchResult) -> str:
    """The best trial's parameters as a file of the trainer group, with where they come from."""
    from evbind_lib.training.losses import own_settings  # late: it loads torch

    study, best, params, name = result.study, result.chosen_trial, result.params, studies.metric_name(result.study)
    identity, found = StudyRecord.read(study).identity or {}, result.finalists
    value = found[0].mean if found else result.best_value
    folds = identity.get("n_folds", len(TrialRecord.read(best).fold_scores or ()))
    provenance = {"study": study.study_name, "trial": best.number, "metric": name, "score": round(value, 6)}
    provenance["chosen_by"] = f"{N_SEEDS} fresh seeds among {len(found)} finalists" if found else "the search"
    provenance |= {"score_std": round(found[0].std, 6)} if found else {}
    provenance |= {"folds": folds, "model": params.model.name}
    provenance |= {"data_fingerprint": identity.get("data"), "folds_fingerprint": identity.get("folds")}
    provenance |= {"held_out": identity["held_out"]} if identity.get("held_out") else {}
    with contextlib.suppress(SearchError):
        score = result.corrected_score()
        numbers = {key: round(getattr(score, key), 6) for key in ("value", "low", "high")}
        provenance["corrected_score"] = {**numbers, "method": score.method + (BY_FINALISTS if found else "")}
    provenance |= {"data": "memory"} if identity.get("source") == "memory" else {}
    provenance |= {"lacks": lacks} if (lacks := not_in_files(study)) else {}
    training = params.training.model_dump(exclude={"n_folds", "seed", "seeds", "validation", "fresh", "provenance"})
    training["loss_args"] = own_settings(identity.get("loss") or params.training.loss_function, training["loss_args"])
    training = {key: value for key, value in _without_secrets(training).items() if key != "loss_args" or value}
    training["provenance"] = {**provenance, "date": datetime.now(UTC).date().isoformat()}
    # What the search decided outside training.
    decided = [key for key in {**best.params, **params.hpo.fixed} if key.startswith(("data.", "model."))]
    tree = set_values({"training": training}, {key: params.value_of(key) for key in decided})
    head = (
        "# @package _global_\n"
        f"# The best of a search: trial {best.number} of study {study.study_name}, {name} {value:.4f}.\n"
        "# Use it with trainer=hpo_best; the next search replaces it, so keep a copy under another name.\n"
    )
    return head + yaml.safe_dump(tree, sort_keys=False)


def not_in_files(study: optuna.Study) -> list[str]:
    """What of a search no file of parameters can hold: the data, loss, model or objective of somebody's own."""
    identity = StudyRecord.read(study).identity or {}
    own = ["data"] if identity.get("source") == "memory" else []
    own += ["objective"] if identity.get("objective", studies.OBJECTIVE) != studies.OBJECTIVE else []
    own += [name for name in ("loss", "model_init", "score") if identity.get(name)]
    return own + [name for name, digest in (identity.get("registered") or {}).items() if digest]


def experiment_yaml(result: SearchResult) -> str:
    """A search as a file of the group experiment: its data, model, search and folds, and the chosen trial's parameters."""
    study, params = result.study, result.params
    tree = params.model_dump(include={*SEARCHED})
    provenance = yaml.safe_load(best_trainer_yaml(result))["training"]["provenance"]
    tree["training"] |= {"fresh": False, "provenance": provenance}
    for name in FILES:
        tree["data"][name] = tree["data"][name] and portable_path(tree["data"][name])
    space = {name: entry.model_dump(exclude_none=True) for name, entry in params.hpo.search_space.items()}
    tree["hpo"] |= {"fixed": set_values({}, params.hpo.fixed), "search_space": set_values({}, space)}
    tree["hpo"]["study"] |= {"study_name": study.study_name}
    del tree["hpo"]["study"]["storage"]
    head = (
        "# @package _global_\n"
        f"# Study {study.study_name} as a whole: data, model, folds, search, and the parameters of trial "
        f"{result.chosen_trial.number}.\n"
        f"# Use it with experiment={experiment_name(study.study_name)}; when the study goes on, it is written again.\n"
    )
    # By way of JSON: YAML would write a list that stands in two places once, and refer to it.
    return head + yaml.safe_dump(json.loads(json.dumps(_without_secrets(tree))), sort_keys=False)


def _without_secrets(tree: dict[str, Any]) -> dict[str, Any]:
    kept = {name: value for name, value in tree.items() if not is_secret(name)}
    return {name: _without_secrets(value) if isinstance(value, dict) else value for name, value in kept.items()}


def experiment_choice(result: SearchResult) -> str | None:
    """Word that takes a search as a whole, once it is written; None where a file cannot hold it."""
    if not_in_files(result.study) or TrialRecord.read(result.chosen_trial).resolved is None:
        return None
    return f"experiment={experiment_name(result.study.study_name)}"


def result_texts(result: SearchResult) -> dict[str, str]:
    """Summary and table and, where the objective uses `suggest`, ``hpo_best.yaml``, by their places in the workspace."""
    texts = {
        "optuna_study_summary.txt": summary_text(result),
        "optuna_trials.csv": trials_table(result.study).to_csv(index=False),
    }
    if TrialRecord.read(result.chosen_trial).resolved is not None:
        texts = {"params/trainer/hpo_best.yaml": best_trainer_yaml(result), **texts}
    return texts


def write_results(result: SearchResult) -> dict[str, Path]:
    """Write `result_texts` to the workspace; the files by name."""
    texts = result_texts(result)
    for name, text in texts.items():
        write_whole(workspace() / name, text)
    if choice := experiment_choice(result):  # not among the texts: they go to MLflow, and it has the folders of data
        write_whole(workspace() / "params" / f"{choice.replace('=', '/')}.yaml", experiment_yaml(result))
    return {Path(name).name: workspace() / name for name in texts}


def summary_numbers(result: SearchResult) -> dict[str, float]:
    """What a study is summed up by beside its best value."""
    numbers = {
        f"importance_for_best_tenth/{name}": float(each)
        for name, each in parameter_importances(result.study)["importance"].items()
    }
    trained, read, _ = folds_spent(result.study, result.configured.training.n_folds)
    numbers |= {"folds_trained": trained, "folds_read": read}
    if found := result.finalists:
        numbers |= {"chosen_trial": found[0].trial, "chosen_value": found[0].mean, "chosen_std": found[0].std}
    with contextlib.suppress(SearchError):
        numbers["corrected_score"] = result.corrected_score().value
    return numbers
