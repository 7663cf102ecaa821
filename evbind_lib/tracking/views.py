"""What MLflow's page is to show of an experiment, columns and named charts, as a view that a link opens.

MLflow keeps the choice of columns and charts in the browser, so nobody can set them for a person who just opens the page. A
*shared view*, such as its Share button makes, is different: a tag of the experiment holds the choice and a link names it. We
write that tag, and put the link into the experiment's description. The keys are those of MLflow 3's page, which promises
none of them; a page that does not know them shows its usual columns. Imports nothing; its neighbour `store` imports it.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from typing import Any

SECTION = "evbind charts"
SEARCHED = ("learning_rate", "num_train_epochs", "per_device_train_batch_size", "loss_function")
MOST_RUNS = 100  # that a chart shows


def view_tags(experiment: str, views: Mapping[str, str]) -> dict[str, str]:
    """Tags of an experiment that hold its views, and the description that links to them.

    Parameters
    ----------
    experiment : str
        Its id.
    views : mapping of str to str
        `SEARCH`, `TRAINING` or `NOTEBOOKS`.

    Returns
    -------
    dict of str to str
    """
    links = [f"[{name}](#/experiments/{experiment}/runs?{_opened(name)})" for name in views]
    return {
        **{f"mlflow.sharedViewState.{_key(name)}": state for name, state in views.items()},
        "mlflow.note.content": f"Views that evbind suggests: {', '.join(links)}",
    }


def _key(name: str) -> str:
    return f"evbind-{name.replace(' ', '-')}"


def _opened(name: str) -> str:
    return f"viewStateShareKey={_key(name)}" + ("&compareRunsMode=CHART" if name.startswith("charts") else "")


def _charts(*charts: Mapping[str, Any], runs: str, order: str) -> str:
    """State of a page of charts over the runs of one level."""
    # Drawn is what is listed, and a run below another is listed by itself only where the list is sorted by a metric.
    every = {"metricSectionId": SECTION, "deleted": False, "isGenerated": False, "runsCountToCompare": MOST_RUNS}
    section = {"uuid": SECTION, "name": "Charts", "display": True, "isReordered": False, "deleted": False}
    return json.dumps(
        {
            "orderByKey": f"metrics.`{order}`",
            "orderByAsc": False,
            "searchFilter": f"tags.`evbind.level` = '{runs}'",
            "runsHiddenMode": "SHOW_ALL",
            "compareRunCharts": [{"uuid": f"evbind {number}", **every, **chart} for number, chart in enumerate(charts)],
            "compareRunSections": [section],
            # Without this the page smooths lines, of five points as well.
            "globalLineChartConfig": {"xAxisKey": "step", "lineSmoothness": 0, "selectedXAxisMetricKey": ""},
        }
    )


def _table(**names: Sequence[str]) -> str:
    """State of the table of runs with these columns."""
    return json.dumps({"selectedColumns": [f"{kind}.`{name}`" for kind, some in names.items() for name in some]})


def _bars(title: str, metric: str) -> dict[str, Any]:
    return {"type": "BAR", "displayName": title, "metricKey": metric}


def _lines(title: str, metric: str) -> dict[str, Any]:
    drawn = {"metricKey": metric, "selectedMetricKeys": [metric], "xAxisKey": "step", "useGlobalLineSmoothing": True}
    return {"type": "LINE", "displayName": title, **drawn}


SEARCH = {
    "table": _table(
        metrics=["best_value", "objective", "folds", "macro_f1", "seconds"],
        tags=["evbind.state"],
        params=SEARCHED,
    ),
    "charts of the trials": _charts(
        {
            "type": "PARALLEL",
            "displayName": "Parameters and objective",
            "selectedParams": list(SEARCHED),
            "selectedMetrics": ["objective"],
        },
        {
            "type": "SCATTER",
            "displayName": "Objective by learning rate",
            "xaxis": {"key": "learning_rate", "type": "PARAM"},
            "yaxis": {"key": "objective", "type": "METRIC"},
        },
        _bars("Objective of each trial", "objective"),
        _lines("Macro F1, mean of the folds so far", "macro_f1"),
        runs="trial",
        order="objective",
    ),
}
TRAINING = {
    "table": _table(
        metrics=["pooled/macro_f1", "pooled/pos_f1", "pooled/pr_auc", "pooled/roc_auc", "folds", "seconds"],
        params=["training.args.learning_rate", "training.loss_function"],
    ),
    "charts of the trainings": _charts(
        _bars("Macro F1, all out-of-fold predictions", "pooled/macro_f1"),
        _bars("Area under precision and recall, all out-of-fold predictions", "pooled/pr_auc"),
        _lines("Macro F1, mean of the folds so far", "macro_f1"),
        runs="training",
        order="pooled/macro_f1",
    ),
    "charts of the folds": _charts(
        _lines("Training loss by epoch", "training_loss"),
        _lines("Validation log loss by epoch", "log_loss"),
        _lines("Macro F1 by epoch", "macro_f1"),
        runs="fold",
        order="macro_f1",
    ),
}
NOTEBOOKS = {
    "table": _table(metrics=["seconds", "cells"], tags=["evbind.way", "evbind.error"], attributes=["Description"]),
    "charts": _charts(
        _bars("Seconds of each execution", "seconds"),
        _lines("Seconds of each cell", "cell_seconds"),
        runs="notebook",
        order="seconds",
    ),
}
