"""Figures of validated predictions: scores of folds and criteria, learning curves, thresholds, reliability, confusion matrix.

``results`` is a `CrossValidation`, a `FoldResult`, a table of predictions (columns label, probability and, where needed, fold
and criterion_id), or, but for `thresholds`, a mapping of names to such. From ``threshold`` on a pair is called evidence.
"""

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np
import pandas as pd
import plotly.graph_objects as go
from plotly.subplots import make_subplots
from sklearn.metrics import average_precision_score, precision_recall_curve, roc_auc_score, roc_curve

from evbind_lib.evaluation import calibration
from evbind_lib.evaluation.estimate import at_threshold, by_criterion
from evbind_lib.plots.style import BLUE, GREEN, GREY, INK, ORANGE, VERMILION, marker, sentence, styled, whole_steps
from evbind_lib.training.metrics import METRICS, compute_metrics
from evbind_lib.training.probabilities import THRESHOLD, probabilities_of
from evbind_lib.training.result import CrossValidation, FoldResult, predictions_of

MOST_POINTS = 1000  # of a curve; more cannot be seen and makes notebooks heavy
MAIN = ("macro_f1", "pos_f1", "roc_auc", "pr_auc")
Trained = CrossValidation | FoldResult
Result = Trained | pd.DataFrame


def fold_scores(results: Result | Mapping[str, Result], metrics: Sequence[str] = ()) -> go.Figure:
    """Score of each fold and their mean, for each metric: by default all where higher is better, of several results four."""
    models, one = _named(results, _fold_metrics)
    every = [name for name in METRICS if METRICS[name].greater_is_better and name in next(iter(models.values()))]
    chosen = list(metrics or (every if one else MAIN))
    width, figure = 0.8 / len(models), go.Figure()
    for position, (model, folds) in enumerate(models.items()):
        centre = np.arange(len(chosen)) + width * (position - (len(models) - 1) / 2)
        offsets = width * np.linspace(-0.4, 0.4, len(folds) + 2)[1:-1]
        for number, (fold, scores) in enumerate(folds[chosen].iterrows()):
            look = _look(one, model, position, fold, number)
            figure.add_scatter(x=centre + offsets[number], y=scores, text=f"fold {fold + 1}", **look)
        name, shade = ("mean", GREY) if one else (model, marker(position)["color"])
        bar = {"symbol": "line-ew-open", "size": 60 * width, "line": {"width": 3}, "color": shade}
        figure.add_scatter(x=centre, y=folds[chosen].mean(), text="mean", name=name, showlegend=one, marker=bar)
    figure.update_traces(mode="markers", hovertemplate="%{text}: %{y:.4f}")
    figure.update_xaxes(tickvals=list(range(len(chosen))), ticktext=chosen, showgrid=False, zeroline=False)
    figure.update_layout(legend={} if one else {"orientation": "h", "y": -0.2})
    caption = f"{max(map(len, models.values()))} folds, a dot each; a bar at their mean"
    return styled(figure, "Scores of the folds", caption, x="metric", y="score")


def learning_curves(results: Trained | Mapping[str, Trained], metric: str = "macro_f1") -> go.Figure:
    """Training loss and a validation metric after each epoch (``training.validation=each``), a line for each fold."""
    models, one = _named(results, _folds)
    most = max((len(fold.epochs) for folds in models.values() for fold in folds), default=0)
    if not most:
        return sentence("Learning curves", "These folds were read from the cache, which holds no epochs.")
    figure = make_subplots(cols=2, horizontal_spacing=0.12)
    for position, (model, folds) in enumerate(models.items()):
        for number, fold in enumerate(folds):
            look = {**_look(one, model, position, fold.fold, number), "mode": "lines+markers", "row": 1}
            losses = {epoch.epoch: epoch.training_loss for epoch in fold.epochs}
            scores = {epoch.epoch: epoch.metrics[metric] for epoch in fold.epochs if epoch.metrics is not None}
            figure.add_scatter(x=list(losses), y=list(losses.values()), **look, col=1)
            figure.add_scatter(x=list(scores), y=list(scores.values()), **{**look, "showlegend": False}, col=2)
    figure.update_xaxes(title_text="epoch", dtick=whole_steps(most))
    figure.update_layout(yaxis_title_text="training loss (mean of the epoch)", yaxis2_title_text=f"validation {metric}")
    text = f"{max(map(len, models.values()))} folds, a line each"
    if any(epoch.metrics is None for folds in models.values() for fold in folds for epoch in fold.epochs):
        text += "; trained where the last epoch alone was validated: training.fresh=true trains them for the curve"
    return styled(figure, "Learning curves", text)


def precision_recall(results: Result | Mapping[str, Result]) -> go.Figure:
    """Precision against recall over all thresholds, for all folds together and for one result by fold too; dotted is chance."""
    axes = {"x": "recall: fraction of evidence that is found", "y": "precision: fraction of finds that are right"}

    def curve(label: pd.Series, probability: pd.Series) -> tuple[np.ndarray, np.ndarray]:
        precision, recall, _ = precision_recall_curve(label, probability)
        return recall[:-1], precision[:-1]  # the last point is made up: where nothing is called, there is no precision

    figure = _curves(results, "Precision and recall", curve, average_precision_score, "average precision", **axes)
    for trace in figure.data:
        trace.mode = "lines" if len(trace.x) > 1 else "markers"
    return figure.update_traces(line_shape="hv")


def roc(results: Result | Mapping[str, Result]) -> go.Figure:
    """True against false positive rate over all thresholds, of all folds together and of one result by fold too, with chance."""
    axes = {"x": "false positive rate: fraction of the others called evidence", "y": "true positive rate (recall)"}
    title, chance = "Receiver operating characteristic", (0, 1)
    return _curves(results, title, lambda *pairs: roc_curve(*pairs)[:2], roc_auc_score, "AUC", chance=chance, **axes)


def confusion_matrix(results: Result | Mapping[str, Result], threshold: float = THRESHOLD) -> go.Figure:
    """Counts of right and wrong decisions and their fraction of each row; rows are what is annotated, columns what is decided."""
    tables, one = _named(results, predictions_of)
    figure = make_subplots(cols=len(tables), subplot_titles=None if one else list(tables), shared_yaxes=True)
    for column, table in enumerate(tables.values(), start=1):
        figure.add_trace(_matrix(at_threshold(table, threshold)), row=1, col=column)
    styled(figure, f"Confusion matrix at threshold {threshold:g}", _counted(next(iter(tables.values()))), x="predicted")
    up = {"title_text": "annotated", "autorange": "reversed"}
    return figure.update_layout(yaxis=up, margin_t=85 if one else 120)


def criteria(results: Result | Mapping[str, Result], score: str = "pos_f1") -> go.Figure:
    """One score (pos_f1, precision, recall or pr_auc) of each criterion, the most evidence on top; with little a score jumps."""
    tables, one = _named(results, lambda result: by_criterion(predictions_of(result)))
    order = next(iter(tables.values()))["evidence"][::-1]
    names = [f"{criterion} ({evidence})" for criterion, evidence in order.items()]
    figure = go.Figure()
    for position, (model, table) in enumerate(tables.items()):
        scores = table.loc[order.index, score]
        figure.add_scatter(x=scores, y=names, name=model, mode="markers", marker=marker(position, 11))
    figure.update_traces(hovertemplate="%{y}: %{x:.3f}")
    figure.update_layout(legend={"orientation": "h", "y": -0.2}, showlegend=not one, xaxis_range=[-0.02, 1.02])
    caption = "All folds together; in brackets the number of pairs that are evidence"
    return styled(figure, f"{score} of each criterion", caption, x=f"{score} (0 to 1)", height=220 + 26 * len(order))


def thresholds(result: Result, threshold: float = THRESHOLD) -> go.Figure:
    """Precision, recall and F1 of one result over all thresholds, and the decisions at one of them.

    Where predictions have weights, a sampled negative counts for all that it was drawn from, as in `reliability`.
    """
    table = predictions_of(result)
    weights, now = table.get("weight"), at_threshold(table, threshold, table.get("weight"))
    grid = np.round(np.arange(0.0, 1.005, 0.01), 2)
    scores = pd.DataFrame([at_threshold(table, value, weights) for value in grid])
    scores["precision"] = scores["precision"].where(scores["tp"] + scores["fp"] > 0)  # of nothing called there is none
    figure = make_subplots(cols=2, column_widths=[0.64, 0.36], horizontal_spacing=0.16)
    lines = {"precision": (BLUE, "solid"), "recall": (ORANGE, "dash"), "pos_f1": (GREEN, "dot")}
    for name, (shade, dash) in lines.items():
        line = {"color": shade, "width": 2.5, "dash": dash}
        figure.add_scatter(x=grid, y=scores[name], name=name, mode="lines", line=line, row=1, col=1)
    figure.add_vline(x=threshold, line={"color": VERMILION, "width": 2}, row=1, col=1)
    figure.add_trace(_matrix(now), row=1, col=2)
    figure.update_xaxes(title_text="threshold on the probability of evidence", range=[0, 1], col=1)
    figure.update_xaxes(title_text="predicted", col=2)
    figure.update_yaxes(title_text="score (0 to 1)", range=[0, 1.02], col=1)
    figure.update_yaxes(title_text="annotated", autorange="reversed", col=2)
    title = f"At threshold {threshold:.2f}: {', '.join(f'{name} {now[name]:.3f}' for name in lines)}"
    legend = {"orientation": "h", "yref": "container", "y": 0.01}
    styled(figure, title, _counted(table, weighted=True), height=440)
    return figure.update_layout(margin_b=100, legend=legend)


def reliability(results: Result | Mapping[str, Result]) -> go.Figure:
    """Observed fraction of evidence against the predicted probability, in ten bins of equal count.

    Of one result it is also shown before calibration. Dots on the diagonal are probabilities that mean what they say. The map
    of each fold is fitted on the other folds; bars are 95 % intervals over resampled groups, or posts where no group is named.
    """
    tables, one = _named(results, predictions_of)
    title, figure, most = "Reliability: does a probability mean what it says?", go.Figure(), 0.0
    if any(table["fold"].nunique() < 2 for table in tables.values()):
        return sentence(title, "Calibration is judged on folds it has not seen: give predictions of two folds or more.")
    for position, (model, table) in enumerate(tables.items()):
        groups = table["group" if "group" in table else "post_id"]
        stages = {"as trained": probabilities_of(table["logit"].to_numpy())} if one else {}
        stages |= {"calibrated" if one else model: calibration.cross_fitted(table)}
        for stage, probability in stages.items():
            bins = calibration.reliability(table.assign(probability=probability, group=groups))
            error = float(np.average((bins["observed"] - bins["predicted"]).abs(), weights=bins["pairs"]))
            shade: dict[str, Any] = marker(1 if stage == "as trained" else position, 9)
            bar = {"array": bins["high"] - bins["observed"], "arrayminus": bins["observed"] - bins["low"]}
            look = {"error_y": {**bar, "thickness": 1.5, "width": 3}, "marker": shade, "line_color": shade["color"]}
            look |= {"name": f"{stage}: {error:.3f}", "customdata": bins[["low", "high"]]}
            figure.add_scatter(x=bins["predicted"], y=bins["observed"], mode="lines+markers", **look)
            most = max(most, float(bins[["predicted", "high"]].to_numpy().max()))
    text = "predicted %{x:.3f}<br>observed %{y:.3f} (%{customdata[0]:.3f} to %{customdata[1]:.3f})"
    figure.update_traces(hovertemplate=text)
    first, end = next(iter(tables.values())), min(1.0, 1.04 * most)
    rate = float(np.average(first["label"], weights=first["weight"]))
    for name, level, dash in (("as it should be", (0, end), "dot"), (f"base rate: {rate:.3f}", (rate, rate), "dash")):
        line = {"color": GREY, "dash": dash, "width": 1.5}
        figure.add_scatter(x=[0, end], y=level, mode="lines", name=name, line=line, hoverinfo="skip")
    figure.update_layout(legend_title_text="calibration error", xaxis_range=[-0.01, end], yaxis_range=[-0.01, end])
    axes = {"x": "predicted probability of evidence (mean of the bin)", "y": "observed fraction of evidence"}
    return styled(figure, title, f"{_counted(first, weighted=True)}, in ten bins of equal count", height=460, **axes)


def _named(results: Any, read: Callable[[Any], Any]) -> tuple[dict[str, Any], bool]:
    """What is read of each result by its name, and whether it is one result."""
    named = results if isinstance(results, Mapping) else {"all folds": results}
    return {name: read(result) for name, result in named.items()}, len(named) == 1


def _folds(result: Trained) -> tuple[FoldResult, ...]:
    return (result,) if isinstance(result, FoldResult) else result.folds


def _fold_metrics(result: Result) -> pd.DataFrame:
    """A row of metrics for each fold, of several seeds their mean."""
    if not isinstance(result, pd.DataFrame):
        return pd.DataFrame([{"fold": each.fold, **each.metrics} for each in _folds(result)]).groupby("fold").mean()
    parts = result.groupby("fold")[["label", "probability"]]
    return pd.DataFrame({fold: compute_metrics(*part.to_numpy().T) for fold, part in parts}).T


def _look(one: bool, model: str, position: int, fold: Any, number: int) -> dict[str, Any]:
    """Name and colour of a fold: its own where there is one model, else the model's."""
    name, shade = (f"fold {fold + 1}", number) if one else (model, position)
    return {"name": name, "legendgroup": name, "showlegend": one or number == 0, "marker": marker(shade)}


def _counted(table: pd.DataFrame, weighted: bool = False) -> str:
    standing = f" that stand for {table['weight'].sum():,.0f}" if weighted and "weight" in table else ""
    return f"{len(table):,} pairs{standing}, {table['label'].sum():,} of them evidence"


def _curves(results: Any, title: str, curve: Any, area: Any, name: str, chance: Any = None, **axes: Any) -> go.Figure:
    """Curves over all thresholds, and the line that chance would reach: by default at the fraction of evidence."""
    tables, one = _named(results, predictions_of)
    first = next(iter(tables.values()))
    folds = {f"fold {fold + 1}": part for fold, part in first.groupby("fold")} if one and "fold" in first else {}
    figure = go.Figure()
    for position, (model, table) in enumerate((tables | folds).items()):
        pairs = table["label"], table["probability"]
        if pairs[0].nunique() == 2:
            across, up = curve(*pairs)
            seen = np.unique(np.linspace(0, len(across) - 1, MOST_POINTS).round().astype(int))
            line = {"color": marker(position)["color"], "width": 3 if model in tables else 1.2}
            figure.add_scatter(x=across[seen], y=up[seen], mode="lines", line=line, name=f"{model}: {area(*pairs):.3f}")
    if not figure.data:
        return sentence(title, "A curve needs pairs with and without evidence.")
    figure.update_traces(hovertemplate="%{x:.3f}, %{y:.3f}")
    level = chance or [first["label"].mean()] * 2
    look = {"line": {"color": GREY, "dash": "dot", "width": 1.5}, "hoverinfo": "skip"}
    figure.add_scatter(x=[0, 1], y=level, mode="lines", name=f"chance: {sum(level) / 2:.3f}", **look)
    figure.update_layout(legend_title_text=name, xaxis_range=[-0.01, 1.01], yaxis_range=[-0.01, 1.03])
    return styled(figure, title, _counted(first), height=440, **axes)


def _matrix(now: Mapping[str, float]) -> go.Heatmap:
    """Counts of decisions with their fraction of the annotated row, which the shade follows."""
    names, counts = ["no evidence", "evidence"], np.array([[now["tn"], now["fp"]], [now["fn"], now["tp"]]], dtype=float)
    fractions = counts / counts.sum(axis=1, keepdims=True).clip(min=1)
    # Light enough to read the counts on it.
    look = {"colorscale": "Blues", "zmin": 0, "zmax": 1.4, "showscale": False, "xgap": 3, "ygap": 3}
    written = np.vectorize("{:,.0f}<br>{:.1%} of row".format)(counts, fractions)
    text = {"text": written, "texttemplate": "%{text}", "textfont": {"size": 15, "color": INK}}
    hover = "annotated %{y}, predicted %{x}: %{text}<extra></extra>"
    return go.Heatmap(z=fractions, x=names, y=names, hovertemplate=hover, **text, **look)
