"""What a notebook shows: tables of parameters and scores, figures, and the result that it records."""

import contextlib
import dataclasses
from collections import Counter
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import pandas as pd
import plotly.graph_objects as go
from IPython.display import display

from evbind_lib.config.compose import describe
from evbind_lib.config.schema import Params
from evbind_lib.data.corpus import Corpus
from evbind_lib.errors import SearchError
from evbind_lib.evaluation.calibration import calibration_scores
from evbind_lib.evaluation.estimate import by_criterion
from evbind_lib.evaluation.selection import CorrectedScore
from evbind_lib.hpo.results import SearchResult, choice_lines, experiment_choice, folds_line, folds_spent, short
from evbind_lib.hpo.study import OBJECTIVE, StudyRecord, TrialRecord, count_trials, metric_name, states
from evbind_lib.notebook.front_end import show_figure
from evbind_lib.tracking import executions
from evbind_lib.tracking.page import RESULT
from evbind_lib.training.metrics import METRICS, aggregate
from evbind_lib.training.probabilities import probabilities_of
from evbind_lib.training.result import CrossValidation, predictions_of

Summary = tuple[dict[str, Any], list[str]]  # what `record` takes: plain values, and the lines about them


def parameter_table(params: Params, *sections: str) -> pd.DataFrame:
    """Parameters as a table, of the sections named (``data``, ``model``, ...) or of all; `search_space_table` has the rest."""
    values = {name: value for name, value in describe(params).items() if not sections or name.split(".")[0] in sections}
    return pd.DataFrame(values.items(), columns=["parameter", "value"]).set_index("parameter").astype(str)


def search_space_table(params: Params) -> pd.DataFrame:
    """Search space as a table: name, type, range or choices, condition."""
    rows = []
    for name, entry in params.hpo.search_space.items():
        values = entry.choices if entry.choices is not None else [entry.low, entry.high]
        drawn = ", ".join(f"{value:g}" if isinstance(value, float) else str(value) for value in values)
        step = f", in steps of {entry.step:g}" if entry.step else ""
        conditions = ", ".join(f"{other} is {wanted}" for other, wanted in entry.when.items())
        rows.append((name, entry.type, drawn + step, conditions))
    return pd.DataFrame(rows, columns=["name", "type", "range", "only when"]).set_index("name")


def parameter_differences(sets: Mapping[str, Params]) -> pd.DataFrame:
    """Parameters of data, model and training in which several sets differ, one column each."""
    flat = pd.DataFrame({name: pd.Series(params.flat(), dtype=object) for name, params in sets.items()})
    shown = ~flat.index.str.startswith(("training.provenance", "hpo.", "tracking.", "cluster."))
    return flat[shown & (flat.astype(str).nunique(axis=1) > 1)].rename_axis("parameter").map(short)


def show(what: go.Figure | pd.DataFrame) -> None:
    """Show a table with its texts whole, or a figure."""
    if isinstance(what, pd.DataFrame):
        with pd.option_context("display.max_colwidth", None):
            display(what)
    else:
        show_figure(what)


def record(result: Mapping[str, Any], lines: Sequence[str]) -> None:
    """Show lines as this notebook's result, with plain values that the command line and tests read; scores go to its run too."""
    display({"text/plain": "\n".join(lines), RESULT: {**result, "lines": list(lines)}}, raw=True)
    if run := executions.EXECUTION.run:
        tags = {"evbind.stopped": "true"} if result.get("stopped") else {}
        run.write({name: value for name, value in result.items() if isinstance(value, float)}, tags=tags)


def search_summary(result: SearchResult) -> Summary:
    """Result and lines of a search."""
    study, best, n_earlier = result.study, result.best_trial, result.n_earlier_trials
    counts, drawn, metric, value = count_trials(study), TrialRecord.read(best), metric_name(study), result.best_value
    n_folds, choice = result.configured.training.n_folds, experiment_choice(result)
    folds = dict(zip(("trained", "read", "whole"), folds_spent(study, n_folds), strict=True))
    found = {"study": study.study_name, "best_trial": best.number, "best_value": value, "best_params": best.params}
    found |= {"counts": counts, "folds": folds, "finalists": [dataclasses.asdict(each) for each in result.finalists]}
    resumed = f", resumed: {n_earlier} of them are from earlier runs" if n_earlier else ""
    lines = [f"Study {study.study_name}: {counts['total']} trials ({states(counts)}){resumed}", *result.notes]
    scored = ""
    if scores := drawn.fold_scores:
        lines.append(folds_line(study, n_folds))
        aggregation, reported = drawn.fold_aggregation or "mean", drawn.metric or metric
        other = "" if reported == metric else f"{reported} {aggregate(scores, aggregation):.4f}, "
        scored = f" ({other}{aggregation} of {len(scores)} folds)"
    lines += [f"Best: trial {best.number}, {metric} {value:.4f}{scored}", *choice_lines(result)]
    with contextlib.suppress(SearchError):
        found["corrected_score"] = dataclasses.asdict(result.corrected_score())
    if (StudyRecord.read(study).identity or {}).get("objective", OBJECTIVE) == OBJECTIVE:  # others leave no files
        lines += [f"  params/{choice.replace('=', '/')}.yaml   use it: evbind train {choice}"] if choice else []
        lines += ["  params/trainer/hpo_best.yaml", "  optuna_study_summary.txt", "  optuna_trials.csv"]
    found |= {"experiment": choice, "went_on_from": n_earlier, "stopped": result.stopped}
    return found, [*lines, *_mlflow_line(result.configured)]


def best_trial_table(result: SearchResult) -> pd.DataFrame:
    """Parameters of the chosen trial and its score in each fold of the search, as one column."""
    scores = TrialRecord.read(result.chosen_trial).fold_scores or []
    folds = {f"score in fold {number}": score for number, score in enumerate(scores, start=1)}
    values = pd.Series({**result.chosen_trial.params, **folds}, dtype=object).map(short)
    return values.to_frame(f"trial {result.chosen_trial.number}")


def training_summary(result: CrossValidation, params: Params) -> Summary:
    """Result and lines of a cross-validation."""
    table, n_folds = result.table(), len(result.folds)
    n_seeds, lines = len(result.by_seed()), []
    counted = f"{n_folds // n_seeds} folds"
    for name in ("macro_f1", "pos_f1", "roc_auc", "pr_auc"):
        mean, std = table.loc[["mean", "std"], name]
        between = f"; std of {n_seeds} seeds: {table[name]['std of seeds']:.4f}" if n_seeds > 1 else ""
        lines.append(f"{name:<9} {mean:.4f} ± {std:.4f} (mean and std of {counted}{between})")
    origins = Counter(fold.origin or "the cache" for fold in result.folds if fold.cached)
    lines += [f"{n} of {n_folds} folds read from {origin} (--fresh trains)" for origin, n in origins.items()]
    values = {name: table.loc[name].to_dict() for name in ("mean", "pooled")}
    return {"n_folds": n_folds // n_seeds, "n_seeds": n_seeds, **values}, [*lines, *_mlflow_line(params)]


def evaluation_summary(table: pd.DataFrame) -> Summary:
    """Result and lines of `evbind_lib.evaluate`, with how often these data were asked before."""
    every, before = table.loc["all"], table.attrs.get("asked_before", 0)
    counts = {name: int(every[name].iloc[0]) for name in ("pairs", "evidence", "groups")}
    lines = [f"{metric:<9} {row.value:.4f} ({row.low:.4f} to {row.high:.4f})" for metric, row in every.iterrows()]
    lines.append("{pairs} pairs, {evidence} of them evidence, of {groups} groups that no fold held".format(**counts))
    often = "once" if before == 1 else f"{before} times"
    again = f"These data were asked {often} before: what is chosen by their scores makes them too high."
    lines.append(again if before else "These data were not asked before.")
    return {**every["value"].to_dict(), **counts, "asked_before": before}, lines


def data_summary(corpus: Corpus, lengths: pd.DataFrame, audit: pd.DataFrame) -> Summary:
    """Result and lines of a look at the data: corpus, `overview.pair_lengths`, `evbind_lib.data.folds.leakage`."""
    report, cut = corpus.report, round(float(lengths["truncated"].mean()), 4)
    leaks = int(audit.to_numpy().sum())
    found = {name: getattr(report, name) for name in ("pairs", "evidence", "criteria", "groups")}
    fingerprint = corpus.fingerprint[:12]
    found |= {"grouped_by": corpus.grouped_by, "truncated": cut, "leaks": leaks, "fingerprint": fingerprint}
    return found, [
        f"{report.pairs} labelled pairs, {report.evidence} of them evidence, for {report.criteria} criteria",
        f"{report.groups} groups ({corpus.grouped_by}), {leaks} leaks between folds, {cut:.1%} of pairs cut",
        audit.attrs["criteria"],
        f"fingerprint {fingerprint}",
    ]


def mean_scores(results: Mapping[str, CrossValidation]) -> pd.DataFrame:
    """Mean of the folds of every metric, one row per result, to two decimals: folds differ by far more."""
    return pd.DataFrame({name: result.table().loc["mean"] for name, result in results.items()}).T.round(2)


def earlier_search(study: str, params: Params, metric: str) -> tuple[pd.DataFrame, CorrectedScore | None]:
    """Out-of-fold predictions of the best trial of an earlier search, and its corrected score where this metric has one."""
    found = SearchResult.load(params.with_values({"hpo.study.study_name": study}))
    with contextlib.suppress(SearchError):
        return found.predictions(), found.corrected_score() if metric_name(found.study) == metric else None
    return found.predictions(), None


def criteria_table(results: Mapping[str, CrossValidation | pd.DataFrame], score: str) -> pd.DataFrame:
    """One score (pos_f1, precision, recall or pr_auc) of each criterion, a column for each result, with pairs and evidence."""
    tables = {name: by_criterion(predictions_of(result)) for name, result in results.items()}
    support = next(iter(tables.values()))[["pairs", "evidence"]]
    return support.join(pd.DataFrame({name: table[score] for name, table in tables.items()}))


def comparison_summary(table: pd.DataFrame, metric: str, reference: str) -> Summary:
    """Result and lines of what `compare` found, the best result last."""
    lower_first = METRICS[metric].greater_is_better
    ranked, lines, differences = table.sort_values("mean", ascending=lower_first, kind="stable"), [], {}
    for name, row in ranked.iterrows():
        interval = "" if np.isnan(row["low"]) else f" ({row['low']:.3f} to {row['high']:.3f})"
        remark = "" if row["mean_is"] == "mean of the folds" else f", {row['mean_is']}"
        lines.append(f"{name:<15} {metric} {row['mean']:.3f}{interval}{remark}")
    columns = ["difference", "difference_low", "difference_high", "p_holm"]
    for name, row in ranked[ranked["p_holm"].notna()].iterrows():
        differences[str(name)] = [float(value) for value in row[columns]]
        gain, low, high, p_value = differences[str(name)]
        odds = f"better {row['better']:.2f}, alike {row['alike']:.2f}, worse {row['worse']:.2f}"
        lines.append(f"{name} against {reference}: {gain:+.3f} ({low:+.3f} to {high:+.3f}), p {p_value:.3f}; {odds}")
    return {"means": ranked["mean"].to_dict(), "best": ranked.index[-1], "differences": differences}, lines


def calibration_table(predictions: pd.DataFrame) -> pd.DataFrame:
    """Errors of probabilities as trained and as `calibrated` gives them, these with a 95 % interval, and of the base rate."""
    trained = predictions.assign(probability=probabilities_of(predictions["logit"].to_numpy()))
    table = calibration_scores(predictions).assign(**{"as trained": calibration_scores(trained)["value"]})
    named = table.rename(columns={"value": "calibrated", "base_rate": "base rate"})
    return named[["as trained", "calibrated", "low", "high", "base rate"]]


def calibration_summary(scores: pd.DataFrame, chosen: pd.DataFrame, aim: str) -> Summary:
    """Result and lines of `calibration_table`, and of the `thresholds` chosen for an aim."""
    found: dict[str, Any] = {"aim": aim, **{f"{name}": value for name, value in chosen.to_dict("index")["all"].items()}}
    lines = ["Probabilities, calibrated on the other folds:"]
    for name, row in scores.to_dict("index").items():
        found[f"calibrated_{name}"], beside = row["calibrated"], ""
        if name != "ece":  # of the base rate it is 0
            found[f"base_rate_{name}"], beside = row["base rate"], f", base rate {row['base rate']:.3f}"
        lines.append(f"  {name:<9} {row['calibrated']:.3f} (95 %: {row['low']:.3f} to {row['high']:.3f}){beside}")
    scored = ", ".join(f"{name} {found[name]:.2f}" for name in ("precision", "recall", "f1", "macro_f1"))
    return found, [*lines, f"Evidence from {found['threshold']:.2f} on (aim={aim}): {scored}"]


def _mlflow_line(params: Params) -> list[str]:
    tracking = params.tracking
    return [f"MLflow: mlflow ui --backend-store-uri {tracking.uri}"] if tracking.enabled else []
