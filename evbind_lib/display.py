"""What a notebook shows: parameters, figures, progress, the result that tests and the command line read back.

Imports the rooms below it; `notebook` imports it and gives its names to notebooks.
"""

from __future__ import annotations

import base64
import json
import os
from collections.abc import Mapping, Sequence
from typing import Any

import pandas as pd
import plotly.graph_objects as go
from IPython.display import display

from evbind_lib.outcome import Outcome
from evbind_lib.pages import PLOTLY, PROGRESS, RESULT
from evbind_lib.params import Params, describe, workspace
from evbind_lib.search import SearchResult
from evbind_lib.studies import count_trials
from evbind_lib.training import CrossValidation


def show_parameters(params: Params) -> pd.DataFrame:
    """Resolved parameters as a table, the search space apart (`show_search_space`)."""
    table = pd.DataFrame(describe(params).items(), columns=["parameter", "value"]).set_index("parameter")
    return table.astype(str)


def show_search_space(params: Params) -> pd.DataFrame:
    """Search space as a table: name, type, range or choices, condition."""
    rows = []
    for name, entry in params.hpo.search_space.items():
        values = entry.model_dump()
        span = values["choices"] if "choices" in values else [values["low"], values["high"]]
        when = ", ".join(f"{other} is {wanted}" for other, wanted in entry.when.items())
        rows.append(
            {
                "name": name,
                "type": values["type"],
                "range": ", ".join(f"{v:g}" if isinstance(v, float) else str(v) for v in span),
                "only when": when,
            }
        )
    return pd.DataFrame(rows).set_index("name")


def show(figure: go.Figure) -> None:
    """Display a figure; with ``EVBIND_STATIC_FIGURES=1`` a static picture goes with it, for pages without JavaScript.

    The picture needs kaleido and Chrome or Chromium, and a second of time: stored notebooks have it, searches do not.
    """
    bundle: dict[str, Any] = {PLOTLY: json.loads(figure.to_json())}
    if os.environ.get("EVBIND_STATIC_FIGURES") == "1":
        bundle["image/png"] = base64.b64encode(figure.to_image(format="png", width=900, scale=1)).decode()
    display(bundle, raw=True)


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
    """One line that is updated in place: a notebook keeps only its last state, a terminal shows each.

    Parameters
    ----------
    title : str
    total : int
        Steps in all.
    """

    def __init__(self, title: str, total: int) -> None:
        self.title = title
        self.total = total
        self.handle = display(self._bundle(0, "starting"), raw=True, display_id=True)

    def update(self, done: int, text: str) -> None:
        """Show how many steps are done, and what is going on."""
        if self.handle is not None:  # None outside of IPython
            self.handle.update(self._bundle(done, text), raw=True)

    def _bundle(self, done: int, text: str) -> dict[str, Any]:
        filled = round(20 * min(done / self.total, 1.0)) if self.total else 20
        line = f"{self.title} [{'#' * filled}{'.' * (20 - filled)}] {done}/{self.total}  {text}"
        bar = f'<progress value="{done}" max="{self.total}" style="width:14em"></progress>'
        page = f"{bar} {self.title} {done}/{self.total} · {text}"
        return {"text/plain": line, "text/html": page, PROGRESS: {"done": done, "total": self.total}}


def search_result(result: SearchResult) -> dict[str, Any]:
    """Plain values of a search that tests and the command line read back."""
    return {
        "study": result.study.study_name,
        "best_trial": result.best.number,
        "best_value": result.best.value,
        "best_params": result.best.params,
        "counts": count_trials(result.study),
        "went_on_from": result.n_earlier_trials,
    }


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
    counts, metric = count_trials(result.study), params.hpo.metric
    states = f"{counts['complete']} complete, {counts['pruned']} pruned, {counts['failed']} failed"
    resumed = f", resumed: {result.n_earlier_trials} of them are from earlier runs" if result.n_earlier_trials else ""
    lines = [
        f"Study {result.study.study_name}: {counts['total']} trials ({states}){resumed}",
        f"Best: trial {result.best.number}, {metric.name} {result.best.value:.4f} "
        f"({metric.fold_aggregation} of {params.training.n_folds} folds)",
        f"  {near(outcome.best_trainer)}   use it: evbind train trainer=hpo_best",
        f"  {near(outcome.summary)}",
        f"  {near(outcome.trials)}",
    ]
    if params.tracking.enabled:
        lines.append(f"  MLflow: mlflow ui --backend-store-uri {params.tracking.uri}")
    return lines


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
