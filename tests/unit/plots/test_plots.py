"""Figures show what the study and the predictions hold, and say so when there is too little to show."""

from __future__ import annotations

import ast
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import optuna
import pandas as pd
import plotly.io
import pytest
from optuna.distributions import CategoricalDistribution, FloatDistribution, IntDistribution
from optuna.importance import PedAnovaImportanceEvaluator
from optuna.trial import FrozenTrial, TrialState, create_trial
from scipy.special import expit
from sklearn.metrics import average_precision_score, precision_recall_curve, roc_auc_score, roc_curve

from evbind_lib import plots
from evbind_lib.errors import SearchError
from evbind_lib.evaluation import calibration
from evbind_lib.evaluation.calibration import cross_fitted
from evbind_lib.hpo.study import StudyRecord, complete_trials
from evbind_lib.plots.search import _Axis, _short
from evbind_lib.plots.validation import MAIN, MOST_POINTS
from evbind_lib.training.metrics import METRICS, compute_metrics
from evbind_lib.training.result import CrossValidation, EpochResult, FoldResult

RATE = "learning_rate"
KINDS = {RATE: FloatDistribution(1e-6, 1e-4, log=True), "num_train_epochs": IntDistribution(2, 5)}
KINDS |= {"loss": CategoricalDistribution(["weighted_ce", "focal"]), "gamma": FloatDistribution(1, 3)}
MODULES = {name: getattr(plots, name).__module__.rpartition(".")[2] for name in plots.__all__}


def made(params: dict[str, Any], value: float | None = None, **others: Any) -> FrozenTrial:
    return create_trial(params=params, distributions={name: KINDS[name] for name in params}, value=value, **others)


def make_study(*trials: FrozenTrial, direction: str = "maximize") -> optuna.Study:
    study = optuna.create_study(direction=direction)
    study.add_trials(trials)
    return study


@pytest.fixture(scope="module")
def study() -> optuna.Study:
    """Complete, pruned and failed trials with a conditional parameter; scores are best near a learning rate of 1e-5."""
    random, trials = np.random.default_rng(4), []
    for number in range(20):
        rate, loss = 10 ** random.uniform(-6, -4), "focal" if number % 2 else "weighted_ce"
        params = {RATE: rate, "num_train_epochs": 2 + number % 3, "loss": loss}
        params |= {"gamma": random.uniform(1, 3)} if loss == "focal" else {}
        state = [TrialState.COMPLETE, TrialState.COMPLETE, TrialState.PRUNED, TrialState.FAIL][number // 2 % 4]
        folds = [0.8 - 0.1 * abs(np.log10(rate) + 5) + 0.01 * fold for fold in range(5)]
        values = dict(enumerate(folds if state == TrialState.COMPLETE else folds[:2]))
        others = {"intermediate_values": values, "user_attrs": {"worker": "some-machine"}, "state": state}
        trials.append(made(params, folds[-1] if state == TrialState.COMPLETE else None, **others))
    study = make_study(*trials)
    study.set_metric_names(["macro_f1"])
    StudyRecord(identity={"fold_aggregation": "mean"}).write(study)
    return study


@pytest.fixture(scope="module")
def result() -> CrossValidation:
    """Three folds of 100 pairs, 30% evidence, with two epochs each, of which the first is not validated in fold 3."""
    random, folds = np.random.default_rng(0), []
    for fold in range(3):
        label = (random.random(100) < 0.3).astype("int8")
        probability = np.clip(0.3 * label + random.random(100), 0, 1)
        metrics = compute_metrics(label, probability)
        scores = [None if fold == 2 else {**metrics, "macro_f1": 0.3}, {**metrics, "macro_f1": 0.6}]
        epochs = tuple(EpochResult(fold, epoch, 0.7 / epoch, scores[epoch - 1], 1.0) for epoch in (1, 2))
        table = pd.DataFrame({"fold": fold, "criterion_id": "A", "label": label, "probability": probability})
        table = table.assign(logit=4 * probability - 2, weight=np.where(label, 1.0, 9.0), group=np.arange(100) // 5)
        folds.append(FoldResult(fold, metrics, epochs, table, 2.0, 200, 100, "fp32", 500.0))
    return CrossValidation(tuple(folds))


def traces(figure: Any, name: str) -> list[Any]:
    return [trace for trace in figure.data if (trace.name or "").startswith(name)]


def points(trace: Any) -> dict[Any, Any]:
    return dict(zip(trace.x, trace.y, strict=True))


def numbers(trace: Any) -> list[int]:
    """The trials that the mouse names at the points of a trace."""
    return [int(each[0]) for each in trace.customdata]


def test_names_say_what_there_is() -> None:
    tree = ast.parse(Path(plots.__file__).read_text(encoding="utf-8"))
    imported = {name.name for node in ast.walk(tree) if isinstance(node, ast.ImportFrom) for name in node.names}
    assert set(plots.__all__) == set(dir(plots)) == imported
    assert not hasattr(plots, "pareto")


def test_every_figure_fits_the_page_is_reproducible_names_no_machine_and_sets_results_side_by_side(
    study: optuna.Study, result: CrossValidation, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name in (
        name for name, module in MODULES.items() if module != "data" and name != "importances"
    ):  # needs 50 trials
        plot, shown = getattr(plots, name), study if MODULES[name] == "search" else result
        figure, content = plot(shown), plot(shown).to_json()
        assert figure.data and figure.layout.title.text and figure.layout.title.subtitle.text, name
        assert figure.layout.height and figure.layout.width is None
        assert content == figure.to_json() and "some-machine" not in content
        assert figure.layout.template.layout.paper_bgcolor == "white"
        if shown is result:
            assert name == "thresholds" or "second" in plot({"first": result, "second": result}).to_json()
            assert plot(result.folds[0]).data or name == "reliability"  # which needs other folds to calibrate on
            assert name == "learning_curves" or plot(result.predictions).to_json() == content, name
    monkeypatch.setattr(plotly.io.templates, "default", "plotly_dark")
    assert plots.roc(result).layout.template.layout.paper_bgcolor == "rgb(17,17,17)"


def test_history_and_distribution_show_the_trials_and_the_best_so_far(study: optuna.Study) -> None:
    figure, (curve, ticks) = plots.history(study), plots.distribution(study).data
    (scores,), (stopped,), (line,) = (traces(figure, name) for name in ("complete", "pruned", "best"))
    pruned = study.get_trials(states=(TrialState.PRUNED,))
    assert points(scores) == {trial.number: trial.value for trial in complete_trials(study)}
    assert points(stopped) == {trial.number: trial.intermediate_values[trial.last_step] for trial in pruned}
    assert line.x[-1] == study.trials[-1].number and line.y[-1] == study.best_value and list(line.y) == sorted(line.y)
    assert all(numbers(trace) == list(trace.x) for trace in figure.data)
    assert figure.layout.yaxis.title.text == "macro_f1, mean of folds"
    assert figure.layout.title.subtitle.text == "16 of 20 trials, 4 of them pruned"  # the failed ones have no score
    assert dict(zip(numbers(ticks), ticks.x, strict=True)) == points(stopped)
    assert curve.x[1:] == tuple(sorted(scores.y)) and list(curve.y) == pytest.approx(np.linspace(0, 1, len(curve.x)))
    other = made({}, state=TrialState.PRUNED, intermediate_values={0: 0.4}, user_attrs={"metric": "pr_auc"})
    costs = make_study(*(made({"gamma": cost}, cost) for cost in (3, 1, 2)), other, direction="minimize")
    assert traces(plots.history(costs), "best")[0].y == (3.0, 1.0, 1.0, 1.0)  # less is better
    assert traces(plots.history(costs), "pruned (no score)")[0].y == (1.0,)  # what it reported is another metric
    assert [numbers(trace)[0] for trace in plots.parallel_coordinates(costs).data if trace.mode == "lines"][-1] == 1


def test_parallel_coordinates_draw_every_trial_with_a_score_stopped_ones_dotted_and_the_best_last(
    study: optuna.Study,
) -> None:
    figure = plots.parallel_coordinates(study)
    lines = {numbers(trace)[0]: trace for trace in figure.data if trace.mode == "lines"}
    trials = {number: study.trials[number] for number in lines}
    complete, pruned = {trial.number for trial in complete_trials(study)}, {4, 5, 12, 13}
    assert {*lines} == complete | pruned and {*[*lines][:4]} == pruned and [*lines][-1] == study.best_trial.number
    assert {number for number, line in lines.items() if line.line.dash == "dot"} == pruned
    assert {"not used", "1e-05", "weighted_ce"} < {note.text for note in figure.layout.annotations}
    rates = np.log10([trial.params[RATE] for trial in trials.values()])  # a log scale
    assert [line.y[1] for line in lines.values()] == pytest.approx((rates - rates.min()) / np.ptp(rates))
    for number, trial in trials.items():
        assert lines[number].y[3] == ["weighted_ce", "focal"].index(trial.params["loss"])
        assert (lines[number].y[4] < 0) == ("gamma" not in trial.params)
        score = trial.intermediate_values[trial.last_step] if number in pruned else trial.value
        assert f"macro_f1 {score:.5g}" in lines[number].hovertemplate


def test_slices_and_contour_show_parameters_on_their_scales_and_stopped_trials_apart(study: optuna.Study) -> None:
    slices, (dots,) = plots.slices(study), plots.contour(study).data
    axes = [slices.layout[f"xaxis{number}"] for number in ("", 2, 3, 4)]
    assert [axis.title.text for axis in axes] == [f"{RATE} (log scale)", "epochs", "loss", "gamma"]
    assert [axis.type for axis in axes] == ["log", None, None, None]
    complete = [trial.number for trial in complete_trials(study)]
    for trace, name in zip(traces(slices, "complete"), (RATE, "num_train_epochs", "loss", "gamma"), strict=True):
        having = [study.trials[number] for number in complete if name in study.trials[number].params]
        assert numbers(trace) == list(trace.marker.color) == [trial.number for trial in having]
        assert list(trace.y) == [trial.value for trial in having]
        values = [axes[2].ticktext[int(x)] for x in trace.x] if name == "loss" else list(trace.x)
        assert values == [trial.params[name] for trial in having]
    assert [numbers(trace) for trace in traces(slices, "pruned")] == [[4, 5, 12, 13]] * 3 + [[5, 13]]
    assert all(isinstance(tick, int) for tick in slices.layout.coloraxis.colorbar.tickvals)
    # Of twelve complete trials nothing says which parameters matter, and nothing is drawn between them: the first two, as dots.
    both = [study.trials[number] for number in complete]
    assert [list(dots.x), list(dots.y)] == [
        [trial.params[name] for trial in both] for name in (RATE, "num_train_epochs")
    ]
    assert list(dots.marker.color) == [trial.value for trial in both] and numbers(dots) == complete
    assert plots.contour(study).layout.title.subtitle.text == "12 of 20 trials"


def test_from_fifty_complete_trials_on_importance_is_for_the_best_tenth_with_its_spread() -> None:
    random, trials = np.random.default_rng(1), []
    for _ in range(50):
        params = {RATE: 10 ** random.uniform(-6, -4), "gamma": random.uniform(1, 3), "num_train_epochs": 2}
        trials.append(made(params, 0.8 - abs(np.log10(params[RATE]) + 5) + 0.01 * random.standard_normal()))
    few, enough = make_study(*trials[:49], made({RATE: 1e-5}, float("inf"))), make_study(*trials)
    figure = plots.importances(few)
    assert not figure.data and "49 complete, and 50 are needed" in figure.layout.annotations[0].text
    (bars,) = plots.importances(enough).data
    expected = optuna.importance.get_param_importances(enough, evaluator=PedAnovaImportanceEvaluator())
    assert dict(zip(bars.y, bars.x, strict=True)) == pytest.approx(
        {"epochs" if "epochs" in k else k: v for k, v in expected.items()}
    )
    assert bars.y[-1] == RATE and bars.x[-1] > 0.5 and sum(bars.x) == pytest.approx(1)
    low, high = np.array(bars.customdata).T
    assert (low <= high).all() and high[-1] - low[-1] > 0.05 and (np.array(bars.error_x.array) >= 0).all()
    surface, dots = plots.contour(enough).data
    assert surface.type == "contour" and plots.contour(enough).layout.xaxis.title.text.startswith(RATE)
    assert list(surface.z) == [trial.value for trial in trials] and len(dots.x) == 50


def test_intermediate_values_count_folds_from_one_and_the_best_is_on_top(study: optuna.Study) -> None:
    figure = plots.intermediate_values(study)
    names = sorted(trace.name for trace in figure.data if trace.showlegend)
    assert names == [f"best (trial {study.best_trial.number})", "complete", "failed", "pruned"]
    assert figure.data[-1].name == names[0]
    for trace in figure.data:
        reported = study.trials[numbers(trace)[0]].intermediate_values
        assert points(trace) == {step + 1: value for step, value in reported.items()}
    assert figure.layout.yaxis.title.text == "macro_f1, mean of folds done"
    plain = make_study(made({}, 0.5, intermediate_values={1: 0.1, 10: 0.3}))
    assert plots.intermediate_values(plain).data[0].x == (1, 10)  # not of folds
    StudyRecord(identity={"fold_aggregation": "mean"}, pruner={"type": "wilcoxon"}).write(plain)
    assert "mean" not in plots.intermediate_values(plain).layout.yaxis.title.text


def test_timeline_has_a_bar_for_each_trial_and_one_that_was_killed_does_not_run_for_ever(study: optuna.Study) -> None:
    bars = [bar for trace in plots.timeline(study).data for bar in zip(trace.y, trace.base, trace.x, strict=True)]
    assert sorted(number for number, _, _ in bars) == list(range(20))
    for number, start, milliseconds in bars:
        assert start == study.trials[number].datetime_start
        assert milliseconds == pytest.approx(1000 * study.trials[number].duration.total_seconds())
    killed = made({}, state=TrialState.RUNNING)
    killed.datetime_start = killed.datetime_start.replace(year=2020)
    assert traces(plots.timeline(make_study(made({}, 0.5), killed)), "running")[0].x[0] < 1000


def test_a_trial_that_was_stopped_shows_its_folds_and_no_bar(study: optuna.Study) -> None:
    stopped = made({}, state=TrialState.WAITING, intermediate_values={0: 0.4})
    stopped.datetime_start = study.trials[0].datetime_start
    held = make_study(made({}, 0.5), stopped)
    assert points(traces(plots.intermediate_values(held), "waiting to go on")[0]) == {0: 0.4}
    assert [trace.name for trace in plots.timeline(held).data] == ["complete"]


def test_too_little_to_plot_gives_a_sentence_and_no_error() -> None:
    rate, bare = [made({RATE: 1e-5}, 0.5), made({RATE: 2e-5}, 0.6)], [made({}, 0.5), made({}, 0.6)]
    alike, infinite = [made({RATE: 1e-5, "gamma": 2}, 0.5)] * 3, [made({RATE: 1e-5}, float("inf")), rate[1]]
    apart = [*rate, made({"gamma": 1}, 0.7), made({"gamma": 2}, 0.4)]
    for trials in ([], rate[:1], bare, rate, alike, apart, infinite):
        figures = {name: getattr(plots, name)(make_study(*trials)) for name in MODULES if MODULES[name] == "search"}
        assert all(figure.data or figure.layout.annotations[0].text.endswith(".") for figure in figures.values())
        assert not figures["contour"].data and not figures["importances"].data
    with pytest.raises(SearchError, match=r"optuna\.visualization"):
        plots.history(optuna.create_study(directions=["maximize", "minimize"]))


def test_names_are_short_only_where_that_stays_clear_and_ticks_are_round() -> None:
    names = ["training.args.num_train_epochs", "training.args.learning_rate", "model.name", "data.name"]
    assert [_short(name, names) for name in names] == ["epochs", "learning_rate", "model.name", "data.name"]
    for kind, values, expected in (
        (KINDS[RATE], [2e-6, 9e-5], "3e-06 1e-05 3e-05"),
        (KINDS[RATE], [3.05e-5, 3.35e-5], "3.1e-05 3.2e-05 3.3e-05"),
        (KINDS["gamma"], [1.11, 1.47], "1.2 1.3 1.4"),
        (KINDS["gamma"], [1.5, 1.5], "1.5"),
        (IntDistribution(2, 9), [2, 5], "2 3 4 5"),
        (CategoricalDistribution([None, "a", "b"]), [None, "b"], "None a b"),
    ):
        assert " ".join(_Axis("name", kind, dict(enumerate(values))).ticks().values()) == expected


def test_fold_scores_and_learning_curves_show_each_fold(result: CrossValidation) -> None:
    figure, names = plots.fold_scores(result), [name for name in METRICS if METRICS[name].greater_is_better]
    assert list(traces(figure, "fold 2")[0].y) == [result.folds[1].metrics[name] for name in names]
    assert list(traces(figure, "mean")[0].y) == pytest.approx([result.score(name, "mean") for name in names])
    halved = [
        replace(fold, seed=7, metrics={name: fold.metrics[name] / 2 for name in METRICS}) for fold in result.folds
    ]
    both = plots.fold_scores(CrossValidation((*(replace(fold, seed=3) for fold in result.folds), *halved)))
    assert [*traces(both, "fold 2")[0].y] == pytest.approx([result.folds[1].metrics[name] * 3 / 4 for name in names])
    assert both.layout.title.subtitle.text == figure.layout.title.subtitle.text and len(both.data) == len(figure.data)
    figure = plots.fold_scores({"first": result, "second": result})
    first, second = ([trace.x[0] for trace in traces(figure, name)] for name in ("first", "second"))
    assert max(first) < min(second) and figure.layout.xaxis.ticktext == MAIN
    loss, metric = traces(plots.learning_curves(result), "fold 1")
    assert points(loss) == {1: 0.7, 2: 0.35} and points(metric) == {1: 0.3, 2: 0.6}
    assert traces(plots.learning_curves(result), "fold 3")[1].x == (2,)  # the other epoch was not validated
    cached = FoldResult(0, {}, (), result.predictions, 1.0, 2, 1, "fp32", 1.0, cached=True)
    assert plots.learning_curves(cached).layout.annotations[0].text.endswith(".")


def test_curves_are_those_of_scikit_learn(result: CrossValidation) -> None:
    table = result.predictions
    label, probability, evidence = table["label"], table["probability"], table["label"].mean()
    precision, recall, _ = precision_recall_curve(label, probability)
    called = recall[:-1], precision[:-1]  # where nothing is called there is no precision, and scikit-learn adds a 1
    for plot, score, x, y, chance in (
        (plots.precision_recall, average_precision_score, *called, evidence),
        (plots.roc, roc_auc_score, *roc_curve(label, probability)[:2], (0, 1)),
    ):
        curve, *folds, guess = plot(table).data
        assert all(map(np.array_equal, (curve.x, curve.y, guess.y), (x, y, np.zeros(2) + chance)))
        assert curve.name == f"all folds: {score(label, probability):.3f}" and len(folds) == 3
        assert not plot(table[label == 1]).data and not plot(table.head(0)).data  # one class, no curve
    many = pd.DataFrame({"label": [0, 1] * 2000, "probability": np.linspace(0, 1, 4000)})
    curve = plots.precision_recall(many).data[0]  # stays light and keeps its ends
    assert len(curve.x) <= MOST_POINTS and (curve.x[0], curve.x[-1], curve.y[-1]) == (1.0, 1 / 2000, 1.0)
    majority = plots.precision_recall(many.assign(probability=0.5)).data[0]
    assert (majority.mode, majority.x, majority.y) == ("markers", (1.0,), (0.5,))


def test_decisions_are_counted_by_hand() -> None:
    table = pd.DataFrame({"label": [0, 0, 0, 1, 1, 1], "probability": [0.1, 0.5, 0.8, 0.4, 0.6, 0.9]})
    for threshold, counts in ((0.5, [[1, 2], [1, 2]]), (0.7, [[2, 1], [2, 1]])):
        (heat,), figure = plots.confusion_matrix(table, threshold).data, plots.thresholds(table, threshold)
        assert [[int(cell.split("<")[0]) for cell in row] for row in heat.text] == counts
        assert np.allclose(heat.z, np.array(counts) / 3)
        assert np.array_equal(figure.data[-1].text, heat.text) and figure.layout.shapes[0].x0 == threshold
    assert not plots.confusion_matrix(table.head(3)).data[0].z[1].any()  # no fraction of nothing
    (dots,) = plots.criteria(table.assign(criterion_id=list("AABBAA")), "recall").data
    assert dots.y == ("B (1)", "A (2)") and list(dots.x) == [0.0, 1.0]  # the most evidence on top


def test_decisions_and_reliability_are_counted_as_the_pairs_weigh(result: CrossValidation) -> None:
    table = pd.DataFrame({"label": [0, 0, 1, 1], "probability": [0.1, 0.8, 0.4, 0.9], "weight": [9.0, 5.0, 1.0, 1.0]})
    figure = plots.thresholds(table, 0.5)
    assert [[cell.split("<")[0] for cell in row] for row in figure.data[-1].text] == [["9", "5"], ["1", "1"]]
    precision = points(figure.data[0])
    assert precision[0.5] == pytest.approx(1 / 6) and precision[0.9] == 1 and np.isnan(precision[0.95])
    table, figure = result.predictions, plots.reliability(result)
    trained, calibrated, _, base = figure.data
    for trace, probability in ((trained, expit(table["logit"].to_numpy())), (calibrated, cross_fitted(table))):
        judged = table.assign(probability=probability)
        bins = calibration.reliability(judged)
        assert (list(trace.x), list(trace.y)) == (bins["predicted"].tolist(), bins["observed"].tolist())
        assert trace.name.endswith(f": {calibration.calibration_scores(judged).loc['ece', 'value']:.3f}")
    assert base.y[0] == pytest.approx(np.average(table["label"], weights=table["weight"]))
    assert float(calibrated.name.split()[-1]) < 0.05 < float(trained.name.split()[-1])
    assert not plots.reliability(result.folds[0]).data


def test_figures_of_the_data_show_its_tables() -> None:
    support = pd.DataFrame({"evidence": [3, 9], "explicit negatives": [4, 1]}, index=["A", "B"])
    evidence, negatives = plots.class_balance(support).data
    assert (evidence.y, evidence.x, negatives.x) == (("A", "B"), (3, 9), (4, 1))
    figure = plots.fold_balance(pd.DataFrame({"annotated pairs": [10, 20], "evidence": [4, 5]}, index=[1, 2]))
    assert [trace.y for trace in figure.data] == [(4, 5), (6, 15), (0.4, 0.25)] and figure.layout.shapes[0].y0 == 0.3
    table = pd.DataFrame({"words": [5, 5, 7], "tokens": [12, 13, 13], "truncated": [False, True, True]})
    figure = plots.lengths(table, 12)
    assert [points(trace) for trace in figure.data] == [{5: 2, 7: 1}, {12: 1, 13: 2}]
    assert figure.layout.shapes[0].x0 == 12 and not plots.lengths(table, 128).layout.shapes
