"""Figures show what the study and the predictions hold, and say so when there is too little to show."""

from __future__ import annotations

import ast
import json
import logging
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import optuna
import pandas as pd
import plotly.io
import pytest
from optuna.distributions import CategoricalDistribution, FloatDistribution, IntDistribution
from optuna.trial import TrialState, create_trial
from sklearn.metrics import average_precision_score, precision_recall_curve, roc_auc_score, roc_curve

from evbind_lib import plots
from evbind_lib.errors import SearchError
from evbind_lib.hpo.study import StudyRecord
from evbind_lib.plots.search import _heights, _short, _ticks
from evbind_lib.plots.validation import MAIN, MOST_POINTS
from evbind_lib.training.metrics import METRICS, compute_metrics
from evbind_lib.training.result import CrossValidation, EpochResult, FoldResult

RATE = "learning_rate"
# fmt: off
OF_A_STUDY = ["history", "importances", "parallel_coordinates", "slices", "contour", "intermediate_values", "timeline",
              "distribution"]
OF_RESULTS = ["fold_scores", "learning_curves", "precision_recall", "roc", "confusion_matrix", "criteria", "thresholds"]
# fmt: on


def objective(trial: optuna.Trial) -> float:
    """Score of a made-up training: best near a learning rate of 1e-5; trial 3 fails after a fold."""
    rate = trial.suggest_float(RATE, 1e-6, 1e-4, log=True)
    trial.suggest_categorical("per_device_train_batch_size", [8, 16, 32])
    epochs = trial.suggest_int("num_train_epochs", 2, 5)
    if trial.suggest_categorical("loss_function", ["weighted_ce", "focal"]) == "focal":
        trial.suggest_float("focal_gamma", 1.0, 3.0)
    trial.set_user_attr("worker", "some-machine")
    score = 0.8 - 0.1 * abs(np.log10(rate) + 5) + 0.01 * epochs
    for fold in range(5):
        trial.report(score + 0.01 * fold, fold)
        if trial.number == 3:
            raise ValueError("made to fail")
        if fold < 4 and trial.should_prune():
            raise optuna.TrialPruned
    return float(score + 0.04)


@pytest.fixture(autouse=True)
def quiet() -> None:
    optuna.logging.set_verbosity(optuna.logging.ERROR)


@pytest.fixture(scope="module")
def study() -> optuna.Study:
    """A study with complete, pruned and failed trials and a conditional parameter."""
    parts = {"sampler": optuna.samplers.TPESampler(seed=3), "pruner": optuna.pruners.MedianPruner(n_startup_trials=4)}
    made = optuna.create_study(direction="maximize", **parts)
    made.set_metric_names(["macro_f1"])
    StudyRecord(identity={"fold_aggregation": "mean"}).write(made)
    made.optimize(objective, n_trials=20, catch=(ValueError,))
    assert {trial.state for trial in made.trials} == {TrialState.COMPLETE, TrialState.PRUNED, TrialState.FAIL}
    return made


@pytest.fixture(scope="module")
def complete(study: optuna.Study) -> dict[int, optuna.trial.FrozenTrial]:
    return {trial.number: trial for trial in study.get_trials(states=(TrialState.COMPLETE,))}


@pytest.fixture(scope="module")
def predictions() -> pd.DataFrame:
    """Out-of-fold predictions of three folds, 300 pairs, 30% evidence."""
    random = np.random.default_rng(0)
    label = (random.random(300) < 0.3).astype("int8")
    probability = 1 / (1 + np.exp(-(random.normal(0, 1.5, 300) + 2 * label - 1)))
    fold, criterion = np.repeat(np.arange(3, dtype="int8"), 100), random.choice(["A", "B"], 300, p=[0.7, 0.3])
    return pd.DataFrame({"fold": fold, "criterion_id": criterion, "label": label, "probability": probability})


@pytest.fixture(scope="module")
def result(predictions: pd.DataFrame) -> CrossValidation:
    """Three folds with two epochs each, of which the first is not validated in fold 3."""
    folds = []
    for fold, part in predictions.groupby("fold"):
        metrics = compute_metrics(part["label"].to_numpy(), part["probability"].to_numpy())
        scores = [None if fold == 2 else {**metrics, "macro_f1": 0.3}, {**metrics, "macro_f1": 0.6}]
        epochs = tuple(EpochResult(fold, epoch, 0.7 / epoch, scores[epoch - 1], 1.0) for epoch in (1, 2))
        folds.append(FoldResult(fold, metrics, epochs, part, 2.0, 200, 100, "fp32", 500.0))
    return CrossValidation(tuple(folds))


def traces(figure: Any, name: str) -> list[Any]:
    return [trace for trace in figure.data if (trace.name or "").startswith(name)]


def make_study(*trials: tuple[dict[str, float], float], direction: str = "maximize", **others: Any) -> optuna.Study:
    made = optuna.create_study(direction=direction)
    for params, value in trials:
        kinds = {name: FloatDistribution(0, 1) for name in params}
        made.add_trial(create_trial(params=params, distributions=kinds, value=value, **others))
    return made


def test_names_are_loaded_on_first_use_and_say_what_there_is() -> None:
    tree = ast.parse(Path(plots.__file__).read_text(encoding="utf-8"))
    imported = {name.name for node in ast.walk(tree) if isinstance(node, ast.ImportFrom) for name in node.names}
    assert set(plots.__all__) == set(dir(plots)) == imported - {"annotations", "import_module", "TYPE_CHECKING", "Any"}
    assert all(getattr(plots, name).__doc__ for name in plots.__all__)
    with pytest.raises(AttributeError, match="pareto"):
        _ = plots.pareto
    code = "import sys, evbind_lib.plots as p; p.history, p.roc; print({'torch', 'transformers', 'mlflow'} & {*sys.modules})"
    folder = Path(plots.__file__).parents[2]
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, cwd=folder, timeout=120)
    assert done.stdout.strip() == "set()", done.stderr


def test_every_figure_of_a_study_fits_the_page_is_reproducible_and_names_no_machine(
    study: optuna.Study, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    optuna.logging.set_verbosity(optuna.logging.INFO)
    for name in OF_A_STUDY:
        with caplog.at_level(logging.DEBUG):
            figure = getattr(plots, name)(study)
        layout, content = figure.layout, figure.to_json()
        assert layout.title.text and layout.title.subtitle.text and layout.height and layout.width is None
        assert figure.data and json.loads(content) and "some-machine" not in content
        assert content == getattr(plots, name)(study).to_json()
        with monkeypatch.context() as patch:
            patch.setattr(plotly.io.templates, "default", "plotly_dark")
            dark = getattr(plots, name)(study).layout.template.layout.paper_bgcolor
        assert (layout.template.layout.paper_bgcolor, dark) == ("white", "rgb(17,17,17)")
    assert optuna.logging.get_verbosity() == optuna.logging.INFO
    assert not [record for record in caplog.records if record.name.startswith("optuna")]


def test_history_shows_complete_and_pruned_trials_and_the_best_so_far(study: optuna.Study, complete: Any) -> None:
    figure = plots.history(study)
    (points,), (stopped,), (line,) = (traces(figure, name) for name in ("complete", "pruned", "best"))
    pruned = study.get_trials(states=(TrialState.PRUNED,))
    assert dict(zip(points.x, points.y, strict=True)) == {number: trial.value for number, trial in complete.items()}
    assert list(stopped.x) == [trial.number for trial in pruned]
    assert list(stopped.y) == [trial.intermediate_values[trial.last_step] for trial in pruned]
    assert line.x[-1] == study.trials[-1].number and line.y[-1] == study.best_value and list(line.y) == sorted(line.y)
    assert all(list(trace.meta) == list(trace.x) for trace in figure.data)
    assert figure.layout.yaxis.title.text == "macro_f1, mean of folds"


def test_pruned_trials_that_reported_another_metric_have_no_score() -> None:
    made = make_study(({"a": 0.1}, -50.0), ({"a": 0.2}, -60.0))
    made.add_trial(create_trial(state=TrialState.PRUNED, intermediate_values={0: 0.4}, user_attrs={"metric": "pr_auc"}))
    history = plots.history(made)
    assert traces(history, "pruned")[0].y[0] < -60 and history.layout.yaxis.title.text == "objective value"
    assert plots.intermediate_values(made).data[0].y == (0.4,)


def test_importances_are_those_of_optuna_most_important_on_top(study: optuna.Study) -> None:
    expected = optuna.importance.get_param_importances(study)
    (bars,) = plots.importances(study).data
    assert list(bars.x) == list(expected.values())[::-1]
    assert bars.y[-1] == RATE == next(iter(expected)) and {"batch_size", "epochs"} < {*bars.y}


def test_parallel_coordinates_draw_every_complete_trial_and_the_best_last(study: optuna.Study, complete: Any) -> None:
    figure = plots.parallel_coordinates(study)
    lines = [trace for trace in figure.data if trace.mode == "lines"]
    assert {line.meta[0] for line in lines} == set(complete) and lines[-1].meta[0] == study.best_trial.number
    assert lines[-1].y[0] == 1.0 and lines[-1].line.width > lines[0].line.width
    labels = [text.replace("<br>", "") for text in figure.layout.xaxis.ticktext]
    assert labels[:5] == ["macro_f1", RATE, "batch_size", "epochs", "loss_function"]
    rates = {number: np.log10(trial.params[RATE]) for number, trial in complete.items()}
    low, high = min(rates.values()), max(rates.values())
    for line in lines:
        trial = complete[line.meta[0]]
        assert line.y[1] == pytest.approx((rates[trial.number] - low) / (high - low))  # a log scale
        assert line.y[2] == [8, 16, 32].index(trial.params["per_device_train_batch_size"]) / 2
        assert (line.y[5] < 0) == ("focal_gamma" not in trial.params)
        assert len(line.meta) == len(line.x) and f"{trial.value:.4f}" in line.text


def test_slices_show_the_score_over_each_parameter_on_its_scale(study: optuna.Study, complete: Any) -> None:
    figure = plots.slices(study)
    assert [figure.layout[f"xaxis{n}"].title.text for n in ("", 2, 3, 4, 5)] == [
        *(f"{RATE} (log scale)", "batch_size", "epochs", "loss_function", "focal_gamma")
    ]
    names = (RATE, "per_device_train_batch_size", "num_train_epochs", "loss_function", "focal_gamma")
    for trace, name in zip(figure.data, names, strict=True):
        having = [trial for trial in complete.values() if name in trial.params]
        assert list(trace.meta) == list(trace.marker.color) == [trial.number for trial in having]
        assert list(trace.y) == [trial.value for trial in having]
        assert list(map(str, trace.x)) == [str(trial.params[name]) for trial in having]
        assert trace.marker.coloraxis == "coloraxis"  # one scale for all panels
    assert figure.layout.xaxis.type == "log" and figure.layout.xaxis4.categoryarray == ("weighted_ce", "focal")
    assert figure.layout.xaxis2.type == "category"  # batch sizes are choices


def test_contour_takes_the_two_most_important_parameters_that_trials_share(study: optuna.Study, complete: Any) -> None:
    figure = plots.contour(study)
    first, second = list(optuna.importance.get_param_importances(study))[:2]
    colours, points = figure.data
    assert figure.layout.xaxis.title.text == f"{RATE} (log scale)" and first == RATE
    assert list(points.x) == [complete[number].params[first] for number in points.meta]
    assert list(map(str, points.y)) == [str(complete[number].params[second]) for number in points.meta]
    assert list(colours.z) == [complete[number].value for number in points.meta]


def test_intermediate_values_count_folds_from_one_and_the_best_is_on_top(study: optuna.Study) -> None:
    figure = plots.intermediate_values(study)
    assert figure.data[-1].name == f"best (trial {study.best_trial.number})"
    assert sorted(trace.name for trace in figure.data if trace.showlegend)[1:] == ["complete", "failed", "pruned"]
    for trace in figure.data:
        reported = study.trials[trace.meta[0]].intermediate_values
        assert dict(zip(trace.x, trace.y, strict=True)) == {step + 1: value for step, value in reported.items()}
    assert figure.layout.yaxis.title.text == "macro_f1, mean of folds done"
    plain = make_study(({}, 0.5), intermediate_values={1: 0.1, 10: 0.3})
    assert plots.intermediate_values(plain).data[0].x == (1, 10)  # not of folds
    StudyRecord(identity={"fold_aggregation": "mean"}, pruner={"type": "wilcoxon"}).write(plain)
    assert "mean" not in plots.intermediate_values(plain).layout.yaxis.title.text


def test_timeline_has_a_bar_for_each_trial_and_one_that_was_killed_does_not_run_for_ever(study: optuna.Study) -> None:
    figure = plots.timeline(study)
    states = [trial.state.name.lower().replace("fail", "failed") for trial in study.trials]
    assert {trace.name: len(trace.y) for trace in figure.data} == {name: states.count(name) for name in set(states)}
    assert min(min(trace.base) for trace in figure.data) == 0
    assert all(trace.meta == trace.y for trace in figure.data)
    killed = create_trial(state=TrialState.RUNNING)
    killed.datetime_start = killed.datetime_start.replace(year=2020)
    made = make_study(({}, 0.5))
    made.add_trial(killed)
    assert traces(plots.timeline(made), "running")[0].x[0] < 1 / 3600


def test_distribution_rises_from_none_to_all_trials(study: optuna.Study, complete: Any) -> None:
    (curve,) = plots.distribution(study).data
    scores = sorted(trial.value for trial in complete.values())
    assert list(curve.x) == [scores[0], *scores]
    assert list(curve.y) == pytest.approx(np.linspace(0, 1, len(scores) + 1))
    assert [complete[number].value for number in curve.meta[1:]] == scores


def test_too_little_to_plot_gives_a_sentence_and_no_error() -> None:
    rate = [({RATE: 0.1}, 0.5), ({RATE: 0.2}, 0.6)]
    alike = [({RATE: 0.1, "a": 0.2}, 0.5)] * 3
    apart = [({"a": 0.1}, 0.5), ({"a": 0.2}, 0.6), ({"b": 0.1}, 0.7), ({"b": 0.3}, 0.4)]
    for trials in ([], rate[:1], [({}, 0.5), ({}, 0.6)], rate, alike, apart, [({RATE: 0.1}, float("inf")), rate[1]]):
        made = make_study(*trials)
        for name in OF_A_STUDY:
            figure = getattr(plots, name)(made)
            assert figure.data or figure.layout.annotations[0].text.endswith("."), name
        assert not plots.contour(made).data
    assert plots.slices(make_study(*apart)).data and plots.parallel_coordinates(make_study(*apart)).data
    several = optuna.create_study(directions=["maximize", "minimize"])
    with pytest.raises(SearchError, match=r"optuna\.visualization"):
        plots.history(several)


def test_where_less_is_better_the_lowest_trial_is_the_best() -> None:
    made = make_study(({"a": 0.1}, 3.0), ({"a": 0.2}, 1.0), ({"a": 0.4}, 2.0), direction="minimize")
    assert [trace.meta[0] for trace in plots.parallel_coordinates(made).data if trace.meta][-1] == 1
    assert traces(plots.history(made), "best")[0].y == (3.0, 1.0, 1.0, 1.0)


def test_names_are_short_only_where_that_stays_clear_and_ticks_are_round() -> None:
    names = ["data.pos_neg_ratio", "training.args.learning_rate", "model.name", "data.name"]
    assert [_short(name, names) for name in names] == ["pos_neg_ratio", "learning_rate", "model.name", "data.name"]
    assert _ticks(FloatDistribution(1e-6, 1e-4, log=True), [2e-6, 9e-5]) == pytest.approx([3e-6, 1e-5, 3e-5, 1e-4])
    assert _ticks(IntDistribution(1, 9), [2, 5]) == [2, 3, 4, 5]
    assert _ticks(IntDistribution(16, 512), [16, 400]) == [100, 200, 300, 400]
    assert _ticks(FloatDistribution(0, 1), [0.11, 0.47]) == pytest.approx([0.2, 0.3, 0.4])
    assert _ticks(FloatDistribution(0, 1), [0.5, 0.5]) == [0.5]
    heights, ticks = _heights({3: None, 7: "b"}, CategoricalDistribution([None, "a", "b"]))
    assert heights == {3: 0.0, 7: 1.0} and ticks == [(0.0, "None"), (0.5, "a"), (1.0, "b")]


def test_every_figure_of_results_takes_one_or_several_and_predictions_alone(result: CrossValidation) -> None:
    for name in OF_RESULTS:
        plot = getattr(plots, name)
        layout, several = plot(result).layout, plot({"first": result, "second": result})
        assert layout.title.text and layout.title.subtitle.text and layout.height and layout.width is None
        assert "first" in several.to_json() and "second" in several.to_json(), name
        assert plot(result.folds[0]).data
        if name != "learning_curves":
            assert plot(result.predictions).to_json() == plot(result).to_json(), name


def test_fold_scores_show_each_fold_and_the_mean(result: CrossValidation) -> None:
    figure = plots.fold_scores(result)
    names = [name for name in METRICS if name != "log_loss"]
    assert list(figure.layout.xaxis.ticktext) == names
    assert list(traces(figure, "fold 2")[0].y) == [result.folds[1].metrics[name] for name in names]
    assert list(traces(figure, "mean")[0].y) == pytest.approx([result.score(name, "mean") for name in names])
    both = plots.fold_scores({"first": result, "second": result}, ["recall"])
    assert [list(trace.y) for trace in traces(both, "second")[:3]] == [
        [fold.metrics["recall"]] for fold in result.folds
    ]
    assert max(trace.x[0] for trace in traces(both, "first")) < min(trace.x[0] for trace in traces(both, "second"))
    assert plots.fold_scores({"first": result, "second": result}).layout.xaxis.ticktext == MAIN


def test_learning_curves_follow_loss_and_metric_and_leave_out_epochs_that_were_not_validated(
    result: CrossValidation,
) -> None:
    loss, metric = traces(plots.learning_curves(result), "fold 1")
    assert (loss.x, loss.y) == ((1, 2), (0.7, 0.35)) and (metric.x, metric.y) == ((1, 2), (0.3, 0.6))
    assert traces(plots.learning_curves(result), "fold 3")[1].x == (2,)
    cached = FoldResult(0, {}, (), result.predictions, 1.0, 2, 1, "fp32", 1.0, cached=True)
    assert plots.learning_curves(cached).layout.annotations[0].text.endswith(".")


@pytest.mark.parametrize("plot", [plots.precision_recall, plots.roc])
def test_curves_are_those_of_scikit_learn(plot: Callable[..., Any], predictions: pd.DataFrame) -> None:
    def expected(table: pd.DataFrame) -> tuple[np.ndarray, np.ndarray, float]:
        label, probability = table["label"], table["probability"]
        if plot is plots.roc:
            return (*roc_curve(label, probability)[:2], roc_auc_score(label, probability))
        precision, recall, _ = precision_recall_curve(label, probability, drop_intermediate=True)
        return recall, precision, average_precision_score(label, probability)

    figure = plot(predictions)
    for name, part in (("all folds", predictions), ("fold 2", predictions[predictions["fold"] == 1])):
        x, y, score = expected(part)
        (curve,) = traces(figure, f"{name}: {score:.3f}")
        assert np.array_equal(curve.x, x) and np.array_equal(curve.y, y)
    chance = traces(figure, "chance")[0].y
    assert chance == ((0, 1) if plot is plots.roc else (predictions["label"].mean(),) * 2)
    one_class = predictions.assign(label=predictions["label"].where(predictions["fold"] != 1, 0))
    assert [trace.name[:6] for trace in plot(one_class).data[:2]] == ["fold 1", "fold 3"]
    assert not plot(one_class[one_class["fold"] == 1]).data and not plot(predictions.head(0)).data
    assert len(plot(predictions.drop(columns="fold")).data) == 2


def test_curves_of_many_predictions_stay_light_and_keep_their_ends() -> None:
    random = np.random.default_rng(1)
    many = pd.DataFrame({"label": random.integers(0, 2, 20_000), "probability": random.random(20_000)})
    curve = plots.precision_recall(many).data[0]
    assert len(curve.x) <= MOST_POINTS and (curve.x[0], curve.x[-1], curve.y[-1]) == (1.0, 0.0, 1.0)


def test_decisions_are_counted_by_hand() -> None:
    table = pd.DataFrame({"label": [0, 0, 0, 1, 1, 1], "probability": [0.1, 0.5, 0.8, 0.4, 0.6, 0.9]})
    for threshold, counts in ((0.5, [[1, 2], [1, 2]]), (0.7, [[2, 1], [2, 1]])):
        (heat,) = plots.confusion_matrix(table, threshold).data
        assert [[int(cell.split("<")[0]) for cell in row] for row in heat.text] == counts
        assert np.allclose(heat.z, np.array(counts) / 3)
        figure = plots.thresholds(table, threshold)  # a slider moves its line and its counts
        assert np.array_equal(figure.data[-1].text, heat.text) and figure.layout.shapes[0].x0 == threshold
    recall = traces(figure, "recall")[0]
    assert dict(zip(recall.x, recall.y, strict=True))[0.6] == pytest.approx(2 / 3)
    (heat,) = plots.confusion_matrix(pd.DataFrame({"label": [0, 0], "probability": [0.1, 0.9]})).data
    assert heat.z.tolist() == [[0.5, 0.5], [0.0, 0.0]]  # no fraction of nothing


def test_criteria_stand_by_their_evidence_and_a_model_that_finds_nothing_is_left_out(result: CrossValidation) -> None:
    nothing = result.predictions.assign(probability=0.0)
    figure = plots.criteria({"nothing": nothing, "model": result}, "recall")
    (dots,) = figure.data
    table = result.predictions
    evidence = table[table["label"] == 1].groupby("criterion_id")
    assert dots.name == "model" and dots.marker.color == plots.style.colour(1)
    assert dots.y == (f"B ({evidence.size()['B']})", f"A ({evidence.size()['A']})")
    found = evidence["probability"].apply(lambda values: (values >= 0.5).mean())
    assert list(dots.x) == pytest.approx([found["B"], found["A"]])


def test_figures_of_the_data_show_its_tables() -> None:
    support = pd.DataFrame({"evidence": [3, 9], "explicit negatives": [4, 1]}, index=["A", "B"])
    evidence, negatives = plots.class_balance(support).data
    assert (evidence.y, evidence.x, negatives.x) == (("A", "B"), (3, 9), (4, 1))
    balance = pd.DataFrame({"annotated pairs": [10, 20], "evidence": [4, 5]}, index=[1, 2])
    figure = plots.fold_balance(balance)
    assert [trace.y for trace in figure.data] == [(4, 5), (6, 15), (0.4, 0.25)]
    assert figure.layout.shapes[0].y0 == pytest.approx(0.3)
    table = pd.DataFrame({"words": [5, 5, 7], "tokens": [12, 13, 13], "truncated": [False, True, True]})
    figure = plots.lengths(table, 12)
    assert [(trace.x, trace.y) for trace in figure.data] == [((5, 7), (2, 1)), ((12, 13), (1, 2))]
    assert figure.layout.shapes[0].x0 == 12 and not plots.lengths(table, 128).layout.shapes
