"""What a notebook shows: parameters, figures, progress, the result that tests and the command line read back.

Imports the rooms below it; `notebook` imports it and gives its names to notebooks.
"""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from typing import Any

import pandas as pd
import plotly.graph_objects as go
from IPython.display import display

from evbind_lib.config.compose import Params, describe, workspace
from evbind_lib.data.corpus import Corpus
from evbind_lib.evaluation.estimate import at_threshold, difference, interval
from evbind_lib.hpo.objectives import metric_names, names_of, pareto_front, several
from evbind_lib.hpo.results import Outcome, folds_spent
from evbind_lib.hpo.search import SearchResult
from evbind_lib.hpo.study import count_trials
from evbind_lib.notebook import front_end
from evbind_lib.notebook.monitor import show_trials
from evbind_lib.tracking.page import PROGRESS, RESULT
from evbind_lib.tracking.tracker import RUN_VARIABLE
from evbind_lib.training.crossval import CrossValidation


def show_parameters(params: Params, *sections: str) -> pd.DataFrame:
    """Resolved parameters as a table, the search space apart (`show_search_space`).

    Parameters
    ----------
    params : Params
    *sections : str
        ``data``, ``model``, ``training``, ``hpo``, ``tracking``, ``cluster``: those to show; all when none is named.

    Returns
    -------
    pandas.DataFrame
    """
    shown = {
        name: value for name, value in describe(params).items() if not sections or name.partition(".")[0] in sections
    }
    return pd.DataFrame(shown.items(), columns=["parameter", "value"]).set_index("parameter").astype(str)


def show_search_space(params: Params) -> pd.DataFrame:
    """Search space as a table: name, type, range or choices, condition."""
    rows = []
    for name, entry in params.hpo.search_space.items():
        values = entry.model_dump()
        span = values["choices"] if "choices" in values else [values["low"], values["high"]]
        step = f", in steps of {values['step']:g}" if values.get("step") else ""
        when = ", ".join(f"{other} is {wanted}" for other, wanted in entry.when.items())
        rows.append(
            {
                "name": name,
                "type": values["type"],
                "range": ", ".join(f"{v:g}" if isinstance(v, float) else str(v) for v in span) + step,
                "only when": when,
            }
        )
    return pd.DataFrame(rows).set_index("name")


def show(figure: go.Figure, result: SearchResult | None = None) -> None:
    """Display a figure; in a front end, clicking a point of a search's figure shows its trial.

    Parameters
    ----------
    figure : plotly.graph_objects.Figure
    result : SearchResult, optional
        The search that the figure is of.
    """
    if result is None:
        front_end.show(figure)
    else:
        show_trials(figure, result.study, result.best_params)


def record(result: Mapping[str, Any], lines: Sequence[str]) -> None:
    """Record a notebook's result in its own output: shown as text, and read back by the command line and by tests.

    Parameters
    ----------
    result : mapping of str to plain value
    lines : sequence of str
        What a person reads, here and on the command line.
    """
    display({"text/plain": "\n".join(lines), RESULT: {**result, "lines": list(lines)}}, raw=True)


class Progress:
    """One line that is updated in place, for whoever waits: a front end, or a terminal behind papermill's engine ``evbind``.

    Where nobody watches nothing is shown, and when it is closed nothing stays in the notebook.

    Parameters
    ----------
    title : str
    total : int
        Steps in all.
    """

    def __init__(self, title: str, total: int) -> None:
        self.title = title
        self.total = total
        watched = front_end.has_front_end() or RUN_VARIABLE in os.environ
        self.handle = display(self._bundle(0, "starting"), raw=True, display_id=True) if watched else None

    def update(self, done: int, text: str) -> None:
        """Show how many steps are done, and what is going on."""
        if self.handle is not None:
            self.handle.update(self._bundle(done, text), raw=True)

    def close(self) -> None:
        """Take the line away."""
        if self.handle is not None:
            self.handle.update({"text/plain": "", "text/html": ""}, raw=True)

    def _bundle(self, done: int, text: str) -> dict[str, Any]:
        filled = round(20 * min(done / self.total, 1.0)) if self.total else 20
        line = f"{self.title} [{'#' * filled}{'.' * (20 - filled)}] {done}/{self.total}  {text}"
        bar = f'<progress value="{done}" max="{self.total}" style="width:14em"></progress>'
        page = f"{bar} {self.title} {done}/{self.total} · {text}"
        return {"text/plain": line, "text/html": page, PROGRESS: {"done": done, "total": self.total}}


def search_result(result: SearchResult) -> dict[str, Any]:
    """Plain values of a search that tests and the command line read back."""
    study, best = result.study, result.best
    found = {
        "study": study.study_name,
        "best_trial": best.number,
        "best_value": best.values[0],
        "best_params": best.params,
        "counts": count_trials(study),
        "folds": dict(zip(("trained", "whole"), folds_spent(study, result.best_params.training.n_folds), strict=True)),
        "went_on_from": result.n_earlier_trials,
        "stopped": result.stopped,
    }
    if len(study.directions) > 1:
        found["best_values"] = dict(zip(names_of(study), best.values, strict=True))
        found["pareto_front"] = [trial.number for trial in pareto_front(study, result.best_params)]
    return found


def training_result(result: CrossValidation) -> dict[str, Any]:
    """Plain values of a cross-validation that tests and the command line read back."""
    table = result.table()
    return {
        "n_folds": len(result.folds),
        "mean": table.loc["mean"].to_dict(),
        "pooled": table.loc["pooled"].to_dict(),
    }


def show_best(result: SearchResult) -> pd.DataFrame:
    """Parameters of the best trial and its score in each fold, as one column."""
    scores = {
        f"score in fold {number}": score for number, score in enumerate(result.best.user_attrs["fold_scores"], start=1)
    }
    rows = {**result.best.params, **scores}
    shown = {name: f"{value:.4g}" if isinstance(value, float) else str(value) for name, value in rows.items()}
    return pd.DataFrame({f"trial {result.best.number}": shown})


def near(path: Any) -> str:
    """Path as seen from the workspace, so that no stored output names a machine's folders."""
    return os.path.relpath(path, workspace())


def search_lines(result: SearchResult, outcome: Outcome, params: Params) -> list[str]:
    """What a person wants to know when a search ends."""
    counts, metric, best = count_trials(result.study), params.hpo.metric, result.best
    states = f"{counts['complete']} complete, {counts['pruned']} pruned, {counts['failed']} failed"
    trained, whole = folds_spent(result.study, params.training.n_folds)
    resumed = f", resumed: {result.n_earlier_trials} of them are from earlier runs" if result.n_earlier_trials else ""
    lines = [
        f"Study {result.study.study_name}: {counts['total']} trials ({states}){resumed}",
        *result.notes,
        f"{trained} of {whole} folds trained ({trained / whole:.0%})" if whole else "No fold trained",
        f"Best: trial {best.number}, {metric.first} {best.values[0]:.4f} "
        f"({metric.fold_aggregation} of {params.training.n_folds} folds)",
        *_front_lines(result, params),
        f"  {near(outcome.best_trainer)}   use it: evbind train trainer=hpo_best",
        f"  {near(outcome.summary)}",
        f"  {near(outcome.trials)}",
    ]
    if params.tracking.enabled:
        lines.append(f"  MLflow: mlflow ui --backend-store-uri {params.tracking.uri}")
    return lines


def _front_lines(result: SearchResult, params: Params) -> list[str]:
    """What is to be said of several objectives."""
    if not several(params):
        return []
    front = ", ".join(str(trial.number) for trial in pareto_front(result.study, params))
    unpruned = [] if params.hpo.pruner.type == "none" else [f"hpo.pruner={params.hpo.pruner.type} was not used"]
    wish = "no trial is stopped early with several objectives"
    return [f"Pareto front of {' and '.join(metric_names(params))}: trials {front}", "; ".join([wish, *unpruned])]


def training_lines(result: CrossValidation, params: Params) -> list[str]:
    """What a person wants to know when a cross-validation ends."""
    table = result.table()
    shown = ["macro_f1", "pos_f1", "roc_auc", "pr_auc"]
    lines = [
        f"{name:<9} {mean:.4f} ± {std:.4f} (mean and std of {len(result.folds)} folds)"
        for name, mean, std in zip(shown, table.loc["mean", shown], table.loc["std", shown], strict=True)
    ]
    if params.tracking.enabled:
        lines.append(f"MLflow: mlflow ui --backend-store-uri {params.tracking.uri}")
    return lines


def data_summary(corpus: Corpus, lengths: pd.DataFrame, audit: pd.DataFrame) -> tuple[dict[str, Any], list[str]]:
    """Result and lines of a look at the data.

    Parameters
    ----------
    corpus : Corpus
    lengths : pandas.DataFrame
        As `evbind_lib.notebook.overview.pair_lengths` gives it.
    audit : pandas.DataFrame
        As `evbind_lib.data.folds.leakage` gives it.

    Returns
    -------
    dict
    list of str
    """
    report = corpus.report
    leaks = int(audit.drop(columns="sentences with other criteria").to_numpy().sum())
    result = {
        "pairs": report.pairs,
        "evidence": report.evidence,
        "criteria": report.criteria,
        "groups": report.groups,
        "grouped_by": corpus.grouped_by,
        "truncated": round(float(lengths["truncated"].mean()), 4),
        "leaks": leaks,
        "fingerprint": corpus.fingerprint[:12],
    }
    lines = [
        f"{report.pairs} labelled pairs, {report.evidence} of them evidence, for {report.criteria} criteria",
        f"{report.groups} groups ({corpus.grouped_by}), {leaks} leaks between folds, {result['truncated']:.1%} of pairs cut",
        f"fingerprint {result['fingerprint']}",
    ]
    return result, lines


def show_differences(sets: Mapping[str, Params]) -> pd.DataFrame:
    """Parameters in which several sets differ, one column each."""
    flat = {name: params.flat() for name, params in sets.items()}
    names = list(dict.fromkeys(name for values in flat.values() for name in values))
    hidden = ("training.provenance", "hpo.", "tracking.", "cluster.")
    rows = {
        name: {label: values.get(name) for label, values in flat.items()}
        for name in names
        if not name.startswith(hidden) and len({str(values.get(name)) for values in flat.values()}) > 1
    }
    table = pd.DataFrame.from_dict(rows, orient="index", columns=list(flat)).rename_axis("parameter")
    return table.map(lambda value: f"{value:.4g}" if isinstance(value, float) else str(value))


def compare_means(results: Mapping[str, CrossValidation]) -> pd.DataFrame:
    """Mean of the folds of every metric, one row per candidate, to two decimals: folds differ by far more."""
    rows = {name: result.table().loc["mean"] for name, result in results.items()}
    return pd.DataFrame.from_dict(rows, orient="index").round(2)


def compare_intervals(predictions: Mapping[str, pd.DataFrame], metric: str) -> pd.DataFrame:
    """A metric of several sets of out-of-fold predictions with intervals, and each one's gain over the one above it."""
    rows, above = {}, None
    for name, table in predictions.items():
        gain = "" if above is None else str(difference(above, table, metric))
        rows[name] = {f"{metric} (95 % interval)": str(interval(table, metric)), "gain over the row above": gain}
        above = table
    return pd.DataFrame.from_dict(rows, orient="index")


def comparison_summary(results: Mapping[str, CrossValidation], metric: str) -> tuple[dict[str, Any], list[str]]:
    """Result and lines of a comparison, the best candidate last.

    Parameters
    ----------
    results : mapping of str to CrossValidation
    metric : str

    Returns
    -------
    dict
    list of str
    """
    means = {name: result.score(metric, "mean") for name, result in results.items()}
    ranking = sorted(means, key=lambda name: means[name])
    best, second = ranking[-1], ranking[-2]
    gain = difference(results[second].predictions, results[best].predictions, metric)
    told = "more than chance" if gain.low > 0 else "not told apart from chance"
    lines = [f"{name:<15} {metric} {means[name]:.3f}" for name in ranking]
    lines.append(f"{best} over {second}: {gain}, {told}")
    return {"means": means, "best": best, "gain": [gain.value, gain.low, gain.high]}, lines


def scoring_summary(result: CrossValidation, threshold: float) -> tuple[dict[str, Any], list[str]]:
    """Result and lines of a look at thresholds.

    Parameters
    ----------
    result : CrossValidation
    threshold : float

    Returns
    -------
    dict
    list of str
    """
    usual, chosen = (at_threshold(result.predictions, value) for value in (0.5, threshold))
    lines = [
        f"threshold {value:.2f}: precision {row['precision']:.2f}, recall {row['recall']:.2f}, F1 {row['pos_f1']:.2f}"
        for value, row in ((0.5, usual), (threshold, chosen))
    ]
    return {"threshold": threshold, "at_half": usual, "at_threshold": chosen}, lines
