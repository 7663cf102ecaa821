"""Comparisons, thresholds and baselines against scikit-learn and hand-computed values."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace
from functools import partial

import numpy as np
import pandas as pd
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy import stats
from sklearn.dummy import DummyClassifier
from sklearn.metrics import (
    balanced_accuracy_score,
    brier_score_loss,
    cohen_kappa_score,
    matthews_corrcoef,
    recall_score,
)

from evbind_lib.config.compose import compose
from evbind_lib.data.corpus import Corpus
from evbind_lib.data.folds import folds_fingerprint, make_folds
from evbind_lib.data.negatives import fold_pairs
from evbind_lib.errors import DataError, ParamsError
from evbind_lib.evaluation.baselines import cross_validate_baseline, majority_class, words
from evbind_lib.evaluation.estimate import (
    at_threshold,
    bootstrap,
    by_criterion,
    compare,
    confident_errors,
    resampled,
)
from evbind_lib.evaluation.selection import CorrectedScore, selected_on
from evbind_lib.training.metrics import METRICS, Metric, compute_metrics
from evbind_lib.training.result import CrossValidation, FoldResult


def made_predictions(n_posts: int = 40, n_pairs: int = 6, skill: float = 1.5, seed: int = 0) -> pd.DataFrame:
    """Out-of-fold predictions of a made-up model; a larger skill tells evidence better."""
    random, number = np.random.default_rng(seed), np.arange(n_posts * n_pairs)
    label = (np.random.default_rng(99).random(len(number)) < 0.3).astype(np.int8)  # the same for every seed
    score = random.normal(size=len(number)) + skill * label - skill / 2
    names = {"post_id": number // n_pairs, "sentence_id": number, "criterion_id": number % 3}
    table = pd.DataFrame({name: values.astype(str) for name, values in names.items()})
    return table.assign(fold=number % 5, label=label, probability=1 / (1 + np.exp(-score)))


def metrics_of(table: pd.DataFrame) -> dict[str, float]:
    return compute_metrics(table["label"].to_numpy(), table["probability"].to_numpy())


@pytest.fixture
def own_metrics() -> Iterator[None]:
    """Metrics of one's own: one with weights, one without, one in place of a built-in one."""
    before = dict(METRICS)
    METRICS["kappa"] = METRICS["accuracy"] = Metric(cohen_kappa_score, on="decisions")
    METRICS["squared"] = Metric(lambda labels, values: brier_score_loss(labels, values), greater_is_better=False)
    yield
    METRICS.clear()
    METRICS.update(before)


def check_resamples(metric: str) -> None:
    """Resamples are those of a table whose posts are copied as often as they were drawn; the first is the table itself."""
    table, weights = made_predictions(), np.random.default_rng(1).integers(0, 3, size=(3, 40))
    posts = np.unique(table["post_id"])
    expected = []
    for times in weights:
        copies = [table[table["post_id"] == post] for post, n in zip(posts, times, strict=True) for _ in range(n)]
        expected.append(metrics_of(pd.concat(copies))[metric])
    assert resampled(table, metric, weights) == pytest.approx(expected, abs=1e-12)
    scores = bootstrap(table, metric, n_resamples=100)
    assert scores.shape == (101,) and scores[0] == pytest.approx(metrics_of(table)[metric], abs=1e-12)
    assert scores[1:].min() < scores[0] < scores[1:].max()


@pytest.mark.parametrize("metric", METRICS)
def test_resamples_of_posts_are_scored_as_by_scikit_learn(metric: str) -> None:
    check_resamples(metric)


@pytest.mark.parametrize("metric", ["kappa", "squared", "accuracy"])
def test_a_metric_of_ones_own_is_resampled_with_and_without_weights(metric: str, own_metrics: None) -> None:
    check_resamples(metric)


BY_SCIKIT_LEARN = {
    "specificity": partial(recall_score, pos_label=0, zero_division=0),
    "balanced_accuracy": balanced_accuracy_score,
    "matthews": matthews_corrcoef,
}


@settings(max_examples=60, deadline=None)
@given(
    st.lists(
        st.tuples(st.integers(0, 3), st.integers(0, 1), st.sampled_from([0.1, 0.3, 0.5, 0.7])), min_size=4, max_size=30
    ),
    st.integers(0, 1000),
)
def test_ranks_and_counts_hold_ties_posts_left_out_and_one_class_as_scikit_learns_do(
    rows: list[tuple[int, int, float]], seed: int
) -> None:
    table = pd.DataFrame(rows, columns=["post_id", "label", "probability"])
    weights = np.random.default_rng(seed).integers(0, 3, size=(5, table["post_id"].nunique()))
    weights[:, 0] += 1  # nothing drawn at all is nothing to score
    for metric in ("roc_auc", "pr_auc", "specificity", "balanced_accuracy", "matthews"):
        found = resampled(table, metric, weights)
        with pytest.MonkeyPatch.context() as patch:
            function = BY_SCIKIT_LEARN.get(metric, METRICS[metric].function)
            patch.setitem(METRICS, metric, replace(METRICS[metric], function=function))  # as if it were the user's
            assert found == pytest.approx(resampled(table, metric, weights), nan_ok=True)
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr("evbind_lib.evaluation.estimate.MOST_CELLS", 50)  # many pairs go in parts
            assert resampled(table, metric, weights) == pytest.approx(found, nan_ok=True)


def predictions_scoring(*scores: float) -> pd.DataFrame:
    """Out-of-fold predictions whose metric ``mean`` is, in each fold, one of these."""
    names = {name: [str(number) for number in range(2 * len(scores))] for name in ("post_id", "sentence_id")}
    fold, label = np.repeat(np.arange(len(scores)), 2), np.tile([0, 1], len(scores)).astype(np.int8)
    return pd.DataFrame(names).assign(criterion_id="A", fold=fold, label=label, probability=np.repeat(scores, 2))


@pytest.fixture
def mean() -> Iterator[None]:
    """A metric that a table's probabilities set at will: their mean; and its opposite, where less is better."""
    METRICS["mean"] = Metric(lambda labels, values: float(np.mean(values)))
    METRICS["cost"] = Metric(lambda labels, values: float(np.mean(values)), greater_is_better=False)
    yield
    del METRICS["mean"], METRICS["cost"]


LEVEL, BETTER, OTHER = [0.5, 0.6, 0.7, 0.55], [0.62, 0.7, 0.79, 0.68], [0.48, 0.63, 0.69, 0.56]
GAIN = ["difference", "difference_low", "difference_high", "p_value"]


def test_a_comparison_is_the_corrected_t_over_paired_folds_with_holm_and_practical_differences(mean: None) -> None:
    sets = {"default": LEVEL, "better": BETTER, "other": OTHER}
    found = compare({name: predictions_scoring(*scores) for name, scores in sets.items()}, "mean")
    for name, scores in sets.items():  # by scipy: the t interval with 1 / 4 + 1 / 3 in place of 1 / 4
        half = stats.t.ppf(0.975, 3) * np.std(scores, ddof=1) * np.sqrt(1 / 4 + 1 / 3)
        expected = [np.mean(scores), np.mean(scores) - half, np.mean(scores) + half]
        assert found.loc[name, ["mean", "low", "high"]].tolist() == pytest.approx(expected)
        assert found.loc[name, ["pairs", "evidence", "mean_is"]].tolist() == [8, 4, "mean of the folds"]
    assert found.loc["default", [*GAIN, "p_holm", "worse", "alike", "better"]].isna().all()
    apart = np.subtract(BETTER, LEVEL)
    error = apart.std(ddof=1) * np.sqrt(1 / 4 + 1 / 3)
    p_value = 2 * stats.t.sf(apart.mean() / error, 3)
    assert found.loc["better", ["difference", "p_value"]].tolist() == pytest.approx([apart.mean(), p_value])
    assert found.loc["better", "p_holm"] == pytest.approx(2 * p_value)  # the smaller of two
    assert found.loc["other", "p_holm"] == pytest.approx(found.loc["other", "p_value"])
    assert found.loc["better", "better"] == pytest.approx(stats.t.sf((0.01 - apart.mean()) / error, 3))
    assert found.loc["other", ["worse", "alike", "better"]].sum() == pytest.approx(1)
    turned = compare({name: predictions_scoring(*scores) for name, scores in sets.items()}, "cost", reference="better")
    # Less is better, and the other one is the reference.
    swapped = found.loc["better", ["better", "alike", "worse"]].tolist()
    assert turned.loc["default", ["better", "alike", "worse"]].tolist() == pytest.approx(swapped)
    ends = found.loc["better", ["difference_high", "difference_low"]]
    assert turned.loc["default", GAIN].tolist() == pytest.approx([-apart.mean(), *-ends, p_value])


def test_a_set_chosen_on_these_folds_is_compared_by_its_corrected_score_or_not_at_all(mean: None) -> None:
    results = {"default": predictions_scoring(*LEVEL), "best": predictions_scoring(*BETTER)}
    plain = compare(results, "mean").loc["best"]
    corrected = CorrectedScore(0.62, 0.5, 0.74, "by hand")
    found = compare(results, "mean", selected={"best": corrected}).loc["best"]
    assert found[["mean", "low", "high", "mean_is"]].tolist() == [0.62, 0.5, 0.74, "corrected for selection"]
    lost = np.mean(BETTER) - 0.62
    assert found[GAIN[:3]].tolist() == pytest.approx((plain[GAIN[:3]] - lost).tolist())
    assert found["p_value"] > plain["p_value"] and found["better"] < plain["better"]
    none = compare(results, "mean", selected={"best": None}).loc["best"]
    assert none["mean"] == plain["mean"] and none["mean_is"] == "selected on these folds"
    assert none[["low", "high", *GAIN, "p_holm", "worse", "alike", "better"]].isna().all()
    turned = compare(results, "mean", reference="best", selected={"best": None})  # nothing can be held against it
    assert turned.loc["default", GAIN].isna().all() and turned.loc["default", "low"] > 0


def test_of_many_equal_sets_few_families_hold_a_false_claim_and_few_intervals_miss(mean: None) -> None:
    random, claimed, missed = np.random.default_rng(3), 0, 0
    for _ in range(150):
        shared = 0.5 + 0.06 * random.standard_normal(5)
        tables = [predictions_scoring(*np.clip(shared + 0.03 * random.standard_normal(5), 0, 1)) for _ in range(4)]
        found = compare(dict(zip("abcd", tables, strict=True)), "mean")
        claimed += bool((found["p_holm"] < 0.05).any())
        missed += int(((found["difference_low"] > 0) | (found["difference_high"] < 0)).sum())
    assert claimed / 150 <= 0.07 and missed / 450 <= 0.05


def test_a_fold_trained_with_several_seeds_counts_once_by_their_mean(mean: None) -> None:
    def folds(seed: int, scores: list[float]) -> list[FoldResult]:
        parts = predictions_scoring(*scores).groupby("fold")
        return [FoldResult(int(fold), {}, (), part, 1.0, 2, 2, "fp64", 0.0, seed=seed) for fold, part in parts]

    twice = CrossValidation((*folds(1, LEVEL), *folds(2, BETTER)))
    half = predictions_scoring(*np.mean([LEVEL, BETTER], axis=0))
    found = compare({"default": predictions_scoring(*OTHER), "twice": twice, "half": half}, "mean")
    assert found.loc["twice"].drop("mean_is").tolist() == pytest.approx(found.loc["half"].drop("mean_is").tolist())


def test_sets_are_known_as_selected_by_the_provenance_of_their_file(corpus: Corpus) -> None:
    folds, params = make_folds(corpus, compose()), compose()
    score = {"value": 0.79, "low": 0.73, "high": 0.85, "method": "as in the file"}
    chosen = {"metric": "macro_f1", "folds": 5, "data_fingerprint": corpus.fingerprint, "corrected_score": score}
    chosen["folds_fingerprint"] = folds_fingerprint(folds)
    provenances = {
        "of a search": chosen,
        "by an older file": {name: value for name, value in chosen.items() if name != "folds_fingerprint"},
        "without a score": {name: value for name, value in chosen.items() if name != "corrected_score"},
        "by another metric": {**chosen, "metric": "pr_auc"},
        "on other data": {**chosen, "data_fingerprint": "d" * 64},
        "on other folds": {**chosen, "folds_fingerprint": "f" * 64},
        "on three folds": {**chosen, "folds": 3},
    }
    sets = {name: params.with_values({"training.provenance": value}) for name, value in provenances.items()}
    found = selected_on(corpus, folds, "macro_f1", {"default": params, **sets})
    known = CorrectedScore(**score)
    assert found == {
        "of a search": known,
        "by an older file": known,
        "without a score": None,
        "by another metric": None,
    }


def test_results_are_compared_with_the_reference_on_the_same_pairs(corpus: Corpus) -> None:
    params = compose()
    folds = make_folds(corpus, params)
    results = {each.__name__: cross_validate_baseline(each, corpus, folds, params) for each in (majority_class, words)}
    table, predictions = results["words"].predictions, results["majority_class"].predictions
    found = compare({**results, "table": table.sample(frac=1, random_state=1)}, "macro_f1")
    assert found.index.tolist() == ["majority_class", "words", "table"]
    assert found.loc["words", "mean"] == pytest.approx(results["words"].score("macro_f1", "mean"))
    assert found.loc["table"].drop("mean_is").tolist() == pytest.approx(found.loc["words"].drop("mean_is").tolist())
    assert found.loc["words", ["pairs", "evidence"]].tolist() == [len(table), table["label"].sum()]
    with pytest.raises(ParamsError, match="did you mean 'words'"):
        compare(results, "macro_f1", reference="word")
    with pytest.raises(ParamsError, match=r"selected=word.*did you mean 'words'"):
        compare(results, "macro_f1", selected={"word": None})
    with pytest.raises(ParamsError, match="'macro_f1'"):
        compare(results, "macro_f")
    with pytest.raises(ParamsError):
        compare({}, "macro_f1")
    with pytest.raises(DataError, match=r"part and all .*data\.eval_neg_ratio"):
        compare({"all": predictions, "part": table.iloc[1:]}, "macro_f1")
    with pytest.raises(DataError, match=r"same folds"):
        compare({"all": predictions, "other folds": table.assign(fold=(table["fold"] + 1) % 5)}, "macro_f1")
    with pytest.raises(DataError, match=r"'mine'.*probability.*did you mean 'probabilities'"):
        compare({"mine": table.rename(columns={"probability": "probabilities"})}, "macro_f1")
    with pytest.raises(DataError, match="1 fold"):
        compare({"one": table[table["fold"] == 0]}, "macro_f1")
    evidence = table[(table["label"] == 1) | (table["fold"] > 0)]
    with pytest.raises(DataError, match="roc_auc is not defined in fold 1"):
        compare({"one class": evidence}, "roc_auc")


@settings(max_examples=50, deadline=None)
@given(st.floats(0.01, 0.99), st.integers(0, 5))
def test_decisions_at_a_threshold_count_every_pair_once(threshold: float, seed: int) -> None:
    table, names = made_predictions(seed=seed), ("precision", "recall", "pos_f1")
    found, at_half, by_sklearn = at_threshold(table, threshold), at_threshold(table, 0.5), metrics_of(table)
    assert found["tp"] + found["fp"] + found["fn"] + found["tn"] == len(table)
    assert found["tp"] + found["fn"] == table["label"].sum()
    assert [at_half[name] for name in names] == pytest.approx([by_sklearn[name] for name in names])
    weights = pd.Series(np.random.default_rng(seed).integers(1, 9, len(table)))
    twice = at_threshold(table.loc[table.index.repeat(weights)], threshold)
    assert at_threshold(table, threshold, weights) == pytest.approx(twice)  # a weight is a number of copies
    assert [at_threshold(table, 1.1)[name] for name in names] == [0, 0, 0]  # nothing is called evidence


def test_scores_by_criterion_rest_on_its_own_pairs() -> None:
    table = made_predictions()
    scores = by_criterion(table)
    assert scores["pairs"].sum() == len(table) and scores["evidence"].is_monotonic_decreasing
    assert scores.loc["1", "pr_auc"] == metrics_of(table[table["criterion_id"] == "1"])["pr_auc"]


def test_the_surest_errors_come_first() -> None:
    table = made_predictions()
    errors = confident_errors(table, 0.5, most=1000)
    wrong = (table["probability"] >= 0.5) != (table["label"] == 1)
    assert len(errors) == wrong.sum() and (errors["probability"] - 0.5).abs().is_monotonic_decreasing
    missed = set(errors.loc[errors["kind"] == "missed", "sentence_id"])
    assert missed == set(table[wrong & (table["label"] == 1)]["sentence_id"])
    assert len(confident_errors(table, 0.5, most=3)) == 3


def test_baselines_use_the_pairs_of_the_folds(corpus: Corpus) -> None:
    params = compose(["training.n_folds=3"])
    folds = make_folds(corpus, params)
    majority = cross_validate_baseline(majority_class, corpus, folds, params)
    for fold, result in zip(folds, majority.folds, strict=True):
        training, validation = fold_pairs(corpus, fold, params)
        dummy = DummyClassifier(strategy="prior").fit(training[["label"]], training["label"])
        expected = compute_metrics(validation["label"].to_numpy(), dummy.predict_proba(validation[["label"]])[:, 1])
        assert result.metrics == pytest.approx(expected)
        assert result.predictions["sentence_id"].tolist() == validation["sentence_id"].tolist()
        assert (result.n_training, result.n_validation, result.precision) == (len(training), len(validation), "fp64")
    by_words = cross_validate_baseline(words, corpus, folds, params)
    # Words are not enough, or the sample would be too easy.
    assert majority.score("macro_f1") + 0.1 < by_words.score("macro_f1") < 0.72
    sure = cross_validate_baseline(lambda training, pairs: pairs["label"].to_numpy(float), corpus, folds, params)
    assert sure.score("macro_f1") == 1.0 and np.isfinite(sure.predictions["logit"]).all()


def test_words_see_which_sentence_goes_with_which_criterion() -> None:
    names = ["sleep", "appetite", "energy", "guilt"]
    rows = [(f"trouble with {one}", f"my {other} is bad", int(one == other)) for one in names for other in names]
    table = pd.DataFrame(rows * 20, columns=["criterion", "sentence", "label"])
    found = words(table, table)  # every criterion and every sentence has the same fraction of evidence
    assert ((found > 0.5) == (table["label"] == 1)).all()
    unseen = pd.DataFrame({"criterion": ["trouble with tears"] * 2, "sentence": ["my tears is bad", "..."]})
    assert words(table, unseen)[0] > words(table, unseen)[1]
