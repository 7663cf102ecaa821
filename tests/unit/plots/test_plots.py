"""Figures show what the study and the predictions hold, name their axes, and say so when there is little."""

from __future__ import annotations

import json
import logging
from pathlib import Path
from typing import Any

import numpy as np
import optuna
import pandas as pd
import plotly.graph_objects as go
import pytest
from optuna.distributions import CategoricalDistribution, FloatDistribution, IntDistribution
from optuna.trial import TrialState, create_trial
from sklearn.metrics import average_precision_score, precision_recall_curve, roc_auc_score, roc_curve

from evbind_lib import plots
from evbind_lib.training.crossval import CrossValidation, EpochResult, FoldResult
from evbind_lib.training.metrics import SCORES, compute_metrics

RATE = "learning_rate"
SPACE: dict[str, Any] = {
    RATE: FloatDistribution(1e-6, 1e-4, log=True),
    "per_device_train_batch_size": CategoricalDistribution([8, 16, 32]),
    "num_train_epochs": IntDistribution(2, 5),
    "loss_function": CategoricalDistribution(["weighted_ce", "focal"]),
    "focal_gamma": FloatDistribution(1.0, 3.0),
}
STUDY_PLOTS = {
    "history": plots.optimisation_history,
    "importances": plots.importances,
    "parallel": plots.parallel_coordinates,
    "slices": plots.slices,
    "contour": plots.contour,
    "intermediate": plots.intermediate_values,
    "timeline": plots.timeline,
    "distribution": plots.distribution,
}


def objective(trial: optuna.Trial) -> float:
    """Score of a made-up training: best near a learning rate of 1e-5; trial 3 fails."""
    rate = trial.suggest_float(RATE, 1e-6, 1e-4, log=True)
    trial.suggest_categorical("per_device_train_batch_size", [8, 16, 32])
    epochs = trial.suggest_int("num_train_epochs", 2, 5)
    if trial.suggest_categorical("loss_function", ["weighted_ce", "focal"]) == "focal":
        trial.suggest_float("focal_gamma", 1.0, 3.0)
    trial.set_user_attr("worker", {"host": "some-machine"})
    if trial.number == 3:
        raise ValueError("made to fail")
    score = 0.8 - 0.1 * abs(np.log10(rate) + 5) + 0.01 * epochs
    for fold in range(5):
        trial.report(score + 0.01 * fold, fold)
        if fold < 4 and trial.should_prune():
            raise optuna.TrialPruned
    return float(score + 0.04)


@pytest.fixture(scope="module")
def study(tmp_path_factory: pytest.TempPathFactory) -> optuna.Study:
    """A study in SQLite with complete, pruned and failed trials and a conditional parameter."""
    optuna.logging.set_verbosity(optuna.logging.ERROR)
    made = optuna.create_study(
        storage=f"sqlite:///{tmp_path_factory.mktemp('study') / 'optuna.db'}",
        study_name="deberta-v3-hpo",
        direction="maximize",
        sampler=optuna.samplers.TPESampler(seed=3),
        pruner=optuna.pruners.MedianPruner(n_startup_trials=4),
    )
    made.set_metric_names(["macro_f1"])
    made.set_user_attr("identity", {"fold_aggregation": "mean"})
    made.optimize(objective, n_trials=20, catch=(ValueError,))
    states = {trial.state for trial in made.trials}
    assert states == {TrialState.COMPLETE, TrialState.PRUNED, TrialState.FAIL}
    return made


@pytest.fixture(scope="module")
def predictions() -> pd.DataFrame:
    """Out-of-fold predictions of three folds, 300 pairs, 30% evidence."""
    random = np.random.default_rng(0)
    label = (random.random(300) < 0.3).astype("int8")
    probability = (1 / (1 + np.exp(-(random.normal(0, 1.5, 300) + 2 * label - 1)))).astype("float32")
    fold = np.repeat(np.arange(3, dtype="int8"), 100)
    return pd.DataFrame({"fold": fold, "label": label, "probability": probability})


@pytest.fixture(scope="module")
def result(predictions: pd.DataFrame) -> CrossValidation:
    """Three folds with two epochs each."""
    reports = []
    for fold in range(3):
        part = predictions[predictions["fold"] == fold]
        metrics = compute_metrics(part["label"].to_numpy(), part["probability"].to_numpy())
        epochs = tuple(
            EpochResult(fold, epoch, 0.7 / epoch, {**metrics, "macro_f1": 0.3 * epoch}, seconds=1.0) for epoch in (1, 2)
        )
        reports.append(FoldResult(fold, metrics, epochs, part, 2.0, 200, 100, 500.0))
    return CrossValidation(tuple(reports), "fp32")


def traces(figure: go.Figure, name: str) -> list[Any]:
    return [trace for trace in figure.data if trace.name == name]


def test_every_figure_of_a_search_has_a_title_and_a_height_and_fits_the_page(study: optuna.Study) -> None:
    for name, plot in STUDY_PLOTS.items():
        figure = plot(study)
        assert figure.layout.title.text, name
        assert figure.layout.height and figure.layout.width is None, name
        assert figure.data and json.loads(figure.to_json()), name
        assert "Objective Value" not in figure.to_json(), name


def test_figures_are_the_same_for_the_same_study(study: optuna.Study) -> None:
    for name, plot in STUDY_PLOTS.items():
        assert plot(study).to_json() == plot(study).to_json(), name


def test_no_figure_gives_away_what_machine_a_trial_ran_on(study: optuna.Study) -> None:
    assert all("some-machine" not in plot(study).to_json() for plot in STUDY_PLOTS.values())


def test_figures_leave_the_log_and_its_level_alone(study: optuna.Study, caplog: pytest.LogCaptureFixture) -> None:
    level = optuna.logging.get_verbosity()
    optuna.logging.set_verbosity(optuna.logging.INFO)
    try:
        with caplog.at_level(logging.DEBUG):
            for plot in STUDY_PLOTS.values():
                plot(study)
        assert optuna.logging.get_verbosity() == optuna.logging.INFO
        assert not [record for record in caplog.records if record.name.startswith("optuna")]
    finally:
        optuna.logging.set_verbosity(level)


def test_history_shows_complete_and_pruned_trials_and_the_best_so_far(study: optuna.Study) -> None:
    figure = plots.optimisation_history(study)
    complete = study.get_trials(states=(TrialState.COMPLETE,))
    pruned = study.get_trials(states=(TrialState.PRUNED,))
    assert list(traces(figure, "complete")[0].x) == [trial.number for trial in complete]
    assert list(traces(figure, "complete")[0].y) == [trial.value for trial in complete]
    assert list(traces(figure, "pruned (fewer folds)")[0].x) == [trial.number for trial in pruned]
    assert traces(figure, "best so far")[0].y[-1] == study.best_value
    assert figure.layout.yaxis.title.text == "macro_f1, mean of folds"
    assert plots.optimisation_history(study, "pos_f1").layout.yaxis.title.text == "pos_f1, mean of folds"


def test_importances_are_those_of_optuna(study: optuna.Study) -> None:
    expected = optuna.importance.get_param_importances(study)
    bars = plots.importances(study).data[0]
    assert sorted(bars.x) == pytest.approx(sorted(expected.values()))
    assert bars.y[-1] == RATE == next(iter(expected))
    assert "batch_size" in bars.y and "epochs" in bars.y


def test_parallel_coordinates_draw_every_complete_trial_and_the_best_last(study: optuna.Study) -> None:
    figure = plots.parallel_coordinates(study)
    lines = [trace for trace in figure.data if trace.mode == "lines"]
    assert len(lines) == len(study.get_trials(states=(TrialState.COMPLETE,)))
    assert figure.data[-1].y[0] == 1.0 and figure.data[-1].line.width > lines[0].line.width
    labels = [text.replace("<br>", "") for text in figure.layout.xaxis.ticktext]
    assert labels == ["macro_f1", "focal_gamma", RATE, "loss_function", "epochs", "batch_size"]
    assert lines[0].customdata[5][0] == "batch_size"


def test_parallel_coordinates_and_slices_have_the_learning_rate_on_a_log_scale(study: optuna.Study) -> None:
    complete = study.get_trials(states=(TrialState.COMPLETE,))
    rates = np.log10([trial.params[RATE] for trial in complete])
    heights = (rates - rates.min()) / (rates.max() - rates.min())
    lines = [trace for trace in plots.parallel_coordinates(study).data if trace.mode == "lines"]
    assert sorted(line.y[2] for line in lines) == pytest.approx(sorted(heights))
    panel = next(axis for axis in axes(plots.slices(study)) if "learning_rate" in axis.title.text)
    assert panel.type == "log" and panel.title.text == "learning_rate (log scale)"


def axes(figure: go.Figure) -> list[Any]:
    keys = [key for key in figure.layout if key.startswith("xaxis")]
    return [figure.layout[key] for key in sorted(keys, key=lambda key: int(key.removeprefix("xaxis") or 1))]


def test_slices_stand_in_a_grid_without_quotes_around_choices(study: optuna.Study) -> None:
    figure = plots.slices(study, columns=3)
    names = [axis.title.text for axis in axes(figure)]
    assert names == ["focal_gamma", "learning_rate (log scale)", "loss_function", "epochs", "batch_size"]
    assert all(0 <= axis.domain[0] < axis.domain[1] <= 1 for axis in axes(figure))
    loss = axes(figure)[2]
    assert list(loss.categoryarray) == ["weighted_ce", "focal"]
    assert {x for x in figure.data[2].x} <= {"weighted_ce", "focal"}


def test_contour_takes_the_two_most_important_parameters_that_trials_share(study: optuna.Study) -> None:
    ranked = list(optuna.importance.get_param_importances(study))
    figure = plots.contour(study)
    names = {figure.layout.xaxis.title.text, figure.layout.yaxis.title.text}
    assert "learning_rate (log scale)" in names
    assert ranked[0] == RATE
    assert [trace.type for trace in figure.data] == ["contour", "scatter"]


def test_intermediate_values_count_folds_from_one(study: optuna.Study) -> None:
    figure = plots.intermediate_values(study)
    assert {min(trace.x) for trace in figure.data} == {1}
    assert max(max(trace.x) for trace in figure.data) == 5
    assert figure.data[-1].name == f"best (trial {study.best_trial.number})"
    assert figure.layout.xaxis.title.text == "folds done"
    assert sum(bool(trace.showlegend) for trace in figure.data) == 3  # complete, pruned, best: once each


def test_timeline_has_one_bar_for_each_trial_with_its_state(study: optuna.Study) -> None:
    figure = plots.timeline(study)
    counts = {trace.name: len(trace.y) for trace in figure.data}
    states = [trial.state.name.lower() for trial in study.trials]
    assert counts == {"complete": states.count("complete"), "pruned": states.count("pruned"), "failed": 1}
    assert min(min(trace.base) for trace in figure.data) == 0
    assert "since the first trial began" in figure.layout.xaxis.title.text


def test_distribution_rises_to_all_trials(study: optuna.Study) -> None:
    curve = plots.distribution(study).data[0]
    assert curve.y[-1] == 1.0 and list(curve.y) == sorted(curve.y)


def make_study(trials: list[tuple[dict[str, Any], float]], direction: str = "maximize") -> optuna.Study:
    made = optuna.create_study(direction=direction)
    for params, value in trials:
        distributions = {name: SPACE.get(name, FloatDistribution(0, 1)) for name in params}
        made.add_trial(create_trial(params=params, distributions=distributions, value=value))
    return made


@pytest.mark.parametrize(
    "trials",
    [
        [],
        [({RATE: 1e-5}, 0.5)],
        [({}, 0.5), ({}, 0.6)],
        [({RATE: 1e-5}, 0.5), ({RATE: 2e-5}, 0.6)],
        [({RATE: 1e-5, "num_train_epochs": 2}, 0.5), ({RATE: 1e-5, "num_train_epochs": 2}, 0.5)],
        [({RATE: 1e-5}, float("inf")), ({RATE: 2e-5}, 0.6)],
    ],
    ids=["none", "one", "no parameter", "one parameter", "all alike", "infinite"],
)
def test_too_little_to_plot_gives_a_sentence_and_no_error(trials: list[tuple[dict[str, Any], float]]) -> None:
    made = make_study(trials)
    for name, plot in STUDY_PLOTS.items():
        figure = plot(made)
        assert figure.data or figure.layout.annotations[0].text.endswith("."), name
    assert "two parameters" in plots.contour(made).layout.annotations[0].text


def test_parameters_that_exclude_each_other_make_no_contour() -> None:
    made = make_study([({"a": 0.1}, 0.5), ({"a": 0.2}, 0.6), ({"b": 0.1}, 0.7), ({"b": 0.3}, 0.4)])
    assert not plots.contour(made).data
    assert plots.slices(made).data and plots.parallel_coordinates(made).data


def test_where_less_is_better_the_lowest_trial_is_the_best() -> None:
    made = make_study([({"a": 0.1}, 3.0), ({"a": 0.2}, 1.0), ({"a": 0.4}, 2.0)], direction="minimize")
    assert plots.parallel_coordinates(made).data[-1].y[0] == 0.0
    assert plots.optimisation_history(made).data[-1].y[-1] == 1.0


@pytest.fixture(scope="module")
def two() -> optuna.Study:
    """A study of macro_f1 and seconds, of which the larger models are better and slower; trial 4 is outside the bounds."""
    optuna.logging.set_verbosity(optuna.logging.ERROR)
    made = optuna.create_study(directions=["maximize", "minimize"], sampler=optuna.samplers.RandomSampler(seed=1))
    made.set_metric_names(["macro_f1", "seconds"])
    made.set_user_attr("identity", {"fold_aggregation": "mean"})
    for number in range(12):
        trial = made.ask()
        rate, epochs = trial.suggest_float(RATE, 1e-6, 1e-4, log=True), trial.suggest_int("num_train_epochs", 2, 9)
        trial.set_constraint("recall.low", 0.5 if number == 4 else -0.1)
        score = 0.6 + 0.02 * epochs - 0.1 * abs(np.log10(rate) + 5) + (1.0 if number == 4 else 0.0)
        made.tell(trial, [score, 10.0 * epochs])
    return made


def test_every_figure_is_of_the_first_of_several_objectives(two: optuna.Study) -> None:
    for name, plot in STUDY_PLOTS.items():
        figure = plot(two)
        if name != "intermediate":
            assert figure.data and json.loads(figure.to_json()), name
            assert "Objective Value" not in figure.to_json(), name
    assert plots.intermediate_values(two).layout.annotations[0].text == "Of several objectives no folds are reported."
    history = plots.optimisation_history(two)
    assert history.layout.yaxis.title.text == "macro_f1, mean of folds"
    feasible = [trial for trial in two.trials if trial.number != 4]
    assert list(traces(history, "complete")[0].y) == [trial.values[0] for trial in two.trials if trial.number != 4]
    assert list(traces(history, "outside the bounds")[0].x) == [4]
    best = max(feasible, key=lambda trial: trial.values[0])
    assert traces(history, "best so far")[0].y[-1] == best.values[0]
    parallel = plots.parallel_coordinates(two)
    assert parallel.data[-1].meta[0] == best.number and parallel.data[-1].line.width == 4
    assert plots.importances(two).data[0].y[-1] in {"learning_rate", "epochs"}
    expected = optuna.importance.get_param_importances(two, target=lambda trial: -trial.values[0])
    assert sorted(plots.importances(two).data[0].x) == pytest.approx(sorted(expected.values()))


def test_the_pareto_front_joins_the_trials_that_nothing_beats(two: optuna.Study) -> None:
    figure = plots.pareto(two)
    front = traces(figure, "Pareto front")[0]
    assert sorted(front.meta) == sorted(trial.number for trial in two.best_trials)
    assert list(front.x) == sorted(front.x) and list(front.y) == sorted(front.y)  # more seconds, more score
    assert front.mode == "lines+markers"
    assert list(traces(figure, "outside the bounds")[0].meta) == [4]
    shown = sum(len(trace.x) for trace in figure.data)
    assert shown == len(two.trials)
    for trace in figure.data:
        points = [list(point) for point in zip(trace.x, trace.y, strict=True)]
        assert [two.trials[number].values[::-1] for number in trace.meta] == points
    assert figure.layout.xaxis.title.text == "training time of a trial (seconds)"
    assert figure.layout.yaxis.title.text == "macro_f1, mean of folds"
    assert figure.layout.title.text == "Pareto front of macro_f1 and seconds"
    turned = plots.pareto(two, ["seconds", "macro_f1"])
    assert turned.layout.yaxis.title.text == "training time of a trial (seconds)"
    assert sorted(traces(turned, "Pareto front")[0].meta) == sorted(front.meta)
    assert figure.to_json() == plots.pareto(two).to_json()
    assert f"trial {front.meta[0]}<br>macro_f1" in front.text[0]


def test_a_pareto_front_needs_objectives_and_trials(study: optuna.Study) -> None:
    assert plots.pareto(study).layout.annotations[0].text == "A Pareto front needs a search with several objectives."
    empty = optuna.create_study(directions=["maximize", "minimize"])
    assert plots.pareto(empty).layout.annotations[0].text == "No trial is complete yet."
    with pytest.raises(ValueError, match="no objective speed; known are score, objective 2"):
        plots.pareto(empty, ["score", "speed"])
    for name, plot in STUDY_PLOTS.items():
        assert plot(empty).layout.annotations[0].text.endswith("."), name


def test_of_three_objectives_two_are_shown_and_the_front_is_of_all() -> None:
    made = optuna.create_study(directions=["maximize", "minimize", "minimize"])
    made.set_metric_names(["macro_f1", "log_loss", "seconds"])
    for values in ([0.7, 0.5, 30.0], [0.7, 0.5, 20.0], [0.6, 0.4, 90.0], [0.5, 0.6, 10.0]):
        made.add_trial(create_trial(values=values))
    figure = plots.pareto(made, ["macro_f1", "log_loss"])
    front = traces(figure, "Pareto front")[0]
    assert sorted(front.meta) == [1, 2, 3] and front.mode == "markers"
    assert "seconds 20" in "".join(front.text)


def test_a_trial_outside_the_bounds_is_never_the_best() -> None:
    made = optuna.create_study(direction="maximize")
    for value, missed in ((0.9, 0.2), (0.5, -0.1), (0.6, -0.1)):
        distributions = {RATE: SPACE[RATE]}
        made.add_trial(
            create_trial(
                params={RATE: value * 1e-4},
                distributions=distributions,
                value=value,
                constraints={"recall.low": missed},
                intermediate_values={0: value},
            )
        )
    history = plots.optimisation_history(made)
    assert list(traces(history, "outside the bounds")[0].y) == [0.9]
    assert traces(history, "best so far")[0].y[-1] == 0.6
    assert plots.intermediate_values(made).data[-1].name == "best (trial 2)"
    parallel = plots.parallel_coordinates(made)
    assert parallel.data[-1].meta[0] == 2
    assert {trace.name for trace in parallel.data if trace.showlegend} == {"within the bounds", "outside the bounds"}
    assert list(traces(plots.slices(made), "outside the bounds")[0].meta) == [0]


def test_dotted_names_are_cut_only_where_that_stays_clear() -> None:
    names = ["data.pos_neg_ratio", "training.args.learning_rate", "model.name", "data.name"]
    assert [plots.axes.short_name(name, names) for name in names] == [
        "pos_neg_ratio",
        "learning_rate",
        "model.name",
        "data.name",
    ]


def test_fold_scores_show_each_fold_and_the_mean(result: CrossValidation) -> None:
    figure = plots.fold_scores(result)
    assert list(figure.layout.xaxis.ticktext) == list(SCORES)
    assert list(traces(figure, "fold 2")[0].y) == [result.folds[1].metrics[name] for name in SCORES]
    means = [np.mean([report.metrics[name] for report in result.folds]) for name in SCORES]
    assert list(traces(figure, "mean")[0].y) == pytest.approx(means)


def test_learning_curves_follow_loss_and_metric_of_each_fold(result: CrossValidation) -> None:
    figure = plots.learning_curves(result.folds)
    loss, metric = traces(figure, "fold 1")
    assert list(loss.x) == [1, 2] and list(loss.y) == [0.7, 0.35]
    assert list(metric.y) == [0.3, 0.6]
    assert figure.layout.yaxis2.title.text == "validation macro_f1"


def test_precision_recall_is_that_of_scikit_learn(predictions: pd.DataFrame) -> None:
    figure = plots.precision_recall(predictions)
    label, probability = predictions["label"], predictions["probability"]
    precision, recall, _ = precision_recall_curve(label, probability, drop_intermediate=True)
    pooled = traces(figure, f"<b>all folds: {average_precision_score(label, probability):.3f}</b>")[0]
    assert np.array_equal(pooled.x, recall) and np.array_equal(pooled.y, precision)
    chance = traces(figure, f"chance ({label.mean():.3f})")[0]
    assert list(chance.y) == [label.mean()] * 2
    assert len(figure.data) == 5


def test_roc_is_that_of_scikit_learn(predictions: pd.DataFrame) -> None:
    figure = plots.roc(predictions)
    first = predictions[predictions["fold"] == 0]
    false_alarms, found, _ = roc_curve(first["label"], first["probability"])
    curve = traces(figure, f"fold 1: {roc_auc_score(first['label'], first['probability']):.3f}")[0]
    assert np.array_equal(curve.x, false_alarms) and np.array_equal(curve.y, found)
    assert figure.data[-2].line.width > curve.line.width


def test_a_fold_of_one_class_has_no_curve_and_predictions_of_one_class_a_sentence(
    predictions: pd.DataFrame,
) -> None:
    one_class = predictions.copy()
    one_class.loc[one_class["fold"] == 1, "label"] = 0
    assert [trace.name[:6] for trace in plots.roc(one_class).data[:2]] == ["fold 1", "fold 3"]
    for plot in (plots.roc, plots.precision_recall):
        assert not plot(one_class[one_class["fold"] == 1]).data
        assert not plot(predictions.head(0)).data


def test_curves_of_many_predictions_stay_light_and_keep_their_ends() -> None:
    random = np.random.default_rng(1)
    label = random.integers(0, 2, 20_000)
    many = pd.DataFrame({"fold": 0, "label": label, "probability": random.random(20_000)})
    curve = plots.precision_recall(many).data[-2]
    assert len(curve.x) <= plots.validation.MOST_POINTS
    assert (curve.x[0], curve.x[-1], curve.y[-1]) == (1.0, 0.0, 1.0)


@pytest.mark.parametrize(("threshold", "counts"), [(0.5, [[1, 2], [1, 2]]), (0.7, [[2, 1], [2, 1]])])
def test_confusion_matrix_counts_by_hand(threshold: float, counts: list[list[int]]) -> None:
    table = pd.DataFrame({"label": [0, 0, 0, 1, 1, 1], "probability": [0.1, 0.5, 0.8, 0.4, 0.6, 0.9]})
    heat = plots.confusion_matrix(table, threshold).data[0]
    assert heat.customdata.tolist() == counts
    assert np.allclose(heat.z, np.array(counts) / 3)
    assert heat.text[0][0] == f"{counts[0][0]}<br>{counts[0][0] / 3:.1%} of row"


def test_confusion_matrix_of_one_class_has_no_share_of_nothing() -> None:
    heat = plots.confusion_matrix(pd.DataFrame({"label": [0, 0], "probability": [0.1, 0.9]})).data[0]
    assert heat.z.tolist() == [[0.5, 0.5], [0.0, 0.0]]


def test_plots_run_without_torch_transformers_and_mlflow() -> None:
    import subprocess
    import sys

    code = "import sys, evbind_lib.plots; print([m for m in ('torch', 'transformers', 'mlflow') if m in sys.modules])"
    folder = Path(plots.__file__).parents[2]
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, cwd=folder, timeout=120)
    assert done.stdout.strip() == "[]", done.stderr


def test_slices_colour_trials_alike_in_every_panel(study: optuna.Study) -> None:
    complete = study.get_trials(states=(TrialState.COMPLETE,))
    scales = {(trace.marker.cmin, trace.marker.cmax) for trace in plots.slices(study).data}
    assert scales == {(complete[0].number, complete[-1].number)}


def test_a_point_of_any_plot_names_its_trial(study: optuna.Study) -> None:
    complete = {trial.number: trial for trial in study.trials if trial.state.name == "COMPLETE"}
    for figure in (plots.optimisation_history(study), plots.intermediate_values(study), plots.timeline(study)):
        assert all(trace.meta for trace in figure.data if getattr(trace, "mode", None) != "lines")
    for trace in plots.slices(study).data:
        for number, value in zip(trace.meta, trace.y, strict=True):
            assert complete[number].value == value
    lines = [trace for trace in plots.parallel_coordinates(study).data if trace.mode == "lines"]
    assert len(lines) == len(complete)
    for line in lines:
        assert float(line.customdata[0][1]) == pytest.approx(complete[line.meta[0]].value, rel=1e-3)
    (points,) = [trace for trace in plots.contour(study).data if trace.type == "scatter"]
    assert set(points.meta) <= set(complete)
