"""Calibration and thresholds against simulated truth, scikit-learn and brute force."""

from __future__ import annotations

import warnings
from dataclasses import asdict

import numpy as np
import pandas as pd
import pytest
from scipy.special import expit
from sklearn.calibration import CalibratedClassifierCV, calibration_curve
from sklearn.frozen import FrozenEstimator
from sklearn.linear_model import LogisticRegression
from sklearn.metrics import brier_score_loss, f1_score, log_loss, precision_score, recall_score

from evbind_lib.errors import DataError, ParamsError
from evbind_lib.evaluation.calibration import (
    Calibration,
    calibration_scores,
    choose_threshold,
    cross_fitted,
    fit_calibration,
    parse_aim,
    reliability,
    thresholds,
)


def made_pairs(n_pairs: int, seed: int = 0, *, one_in: int = 1, slope: float = 2.0, shift: float = 3.0) -> pd.DataFrame:
    """Pairs whose true log odds a model reports ``slope`` times too sure and shifted; one negative in so many is drawn."""
    random = np.random.default_rng(seed)
    odds = random.normal(-3, 1.5, n_pairs)
    label = (random.random(n_pairs) < expit(odds)).astype(int)
    names = {"fold": np.arange(n_pairs) % 5, "group": np.arange(n_pairs) // 20, "criterion_id": np.arange(n_pairs) % 3}
    table = pd.DataFrame({**names, "label": label, "logit": slope * odds + shift, "truth": expit(odds), "weight": 1.0})
    drawn = table["label"].eq(1) | (random.random(n_pairs) < 1 / one_in)
    n_negatives, drawn = table["label"].eq(0).sum(), table[drawn].reset_index(drop=True)
    drawn.loc[drawn["label"] == 0, "weight"] = n_negatives / drawn["label"].eq(0).sum()
    return drawn


def arrays(table: pd.DataFrame, *names: str) -> list[np.ndarray]:
    return [table[name].to_numpy() for name in names]


def error_of(table: pd.DataFrame, probabilities: np.ndarray) -> float:
    scores = calibration_scores(table.assign(probability=probabilities))
    return float(scores.loc["ece", "value"])


@pytest.mark.parametrize("one_in", [1, 3, 20])
def test_truth_is_recovered_from_sampled_negatives_by_their_weights_alone(one_in: int) -> None:
    sampled, every = made_pairs(60_000, one_in=one_in), made_pairs(60_000, seed=1)
    calibration = fit_calibration(sampled)
    assert (calibration.slope, calibration.intercept) == pytest.approx((1 / 2, -3 / 2), abs=0.05)
    # On all pairs of other groups, of which none is left out, and on the sampled ones as they are weighted.
    assert error_of(every, expit(every["logit"].to_numpy())) > 0.08
    assert error_of(every, calibration(every["logit"].to_numpy())) < 0.01
    assert error_of(sampled, cross_fitted(sampled)) < 0.01
    assert np.abs(cross_fitted(sampled) - sampled["truth"]).max() < 0.05
    if one_in > 1:
        assert error_of(sampled, cross_fitted(sampled.assign(weight=1.0))) > 0.05


def test_the_map_is_that_of_scikit_learn() -> None:
    table = made_pairs(3000, one_in=5)
    labels, logits, weights = arrays(table, "label", "logit", "weight")
    found = fit_calibration(table)
    plain = LogisticRegression(C=np.inf, tol=1e-10).fit(logits[:, None], labels, sample_weight=weights)
    assert found.slope == pytest.approx(plain.coef_[0, 0], rel=0.01)  # but for Platt's targets
    assert found.intercept == pytest.approx(plain.intercept_[0], rel=0.01)
    score = LogisticRegression()  # whose decision function is the logit
    score.coef_, score.intercept_, score.classes_ = np.ones((1, 1)), np.zeros(1), np.array([0, 1])
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # of the frozen estimator, which takes no weights
        platt = CalibratedClassifierCV(FrozenEstimator(score)).fit(logits[:, None], labels, sample_weight=weights)
    assert found(logits) == pytest.approx(platt.predict_proba(logits[:, None])[:, 1], abs=1e-4)
    assert found == Calibration(**asdict(found))


def test_a_weight_counts_like_that_many_pairs() -> None:
    table = made_pairs(500).assign(weight=np.arange(500) % 3 + 1)
    copied = table.loc[table.index.repeat(table["weight"])].assign(weight=1)
    once, copies = (fit_calibration(each) for each in (table, copied))
    assert asdict(once) == pytest.approx(asdict(copies), rel=1e-6)
    drawn = [calibration_scores(each.assign(probability=once(each["logit"].to_numpy()))) for each in (table, copied)]
    pd.testing.assert_frame_equal(*drawn)


@pytest.mark.parametrize(
    "logits", [[-1.0, 2.0, 0.5, 3.0], [7.0] * 4, [-1.0, -1.0 + 1e-9, -1.0, -1.0], [1e4, -1e4, 0, 1]]
)
@pytest.mark.parametrize("labels", [[0, 0, 0, 0], [1, 1, 1, 1], [0, 1, 0, 1], [1, 0, 1, 0]])
def test_whatever_the_pairs_the_map_is_finite_and_never_turns_the_order_round(
    labels: list[int], logits: list[float]
) -> None:
    for weight in (1.0, 1e4):
        with warnings.catch_warnings():
            warnings.simplefilter("error")
            found = fit_calibration(pd.DataFrame({"label": labels, "logit": logits, "weight": weight}))
        assert np.isfinite([found.slope, found.intercept]).all() and found.slope >= 0
        if len(set(labels)) == 1:
            expected = 1 / (4 * weight + 2)  # one more pair of each class
            assert found(np.array(logits)) == pytest.approx(expected if labels[0] == 0 else 1 - expected, rel=1e-3)


def test_a_model_that_ranks_the_wrong_way_round_is_given_the_fraction_of_evidence() -> None:
    table = made_pairs(2000, one_in=4, slope=-1.0)
    found = fit_calibration(table)
    assert found.slope == 0
    assert found(table["logit"].to_numpy()) == pytest.approx(
        np.average(table["label"], weights=table["weight"]), abs=1e-3
    )


def test_a_fold_is_calibrated_and_judged_without_its_own_labels() -> None:
    table = made_pairs(2000, one_in=3)
    inside = table["fold"] == 2
    turned = table.assign(label=table["label"].where(~inside, 1 - table["label"]))
    before, after = cross_fitted(table), cross_fitted(turned)
    assert (before[inside] == after[inside]).all() and (before[~inside] != after[~inside]).all()
    others = fit_calibration(table[~inside])
    assert (before[inside] == others(table.loc[inside, "logit"].to_numpy())).all()
    one = table[inside]
    for refused in (lambda: cross_fitted(one), lambda: thresholds(one, "f1")):
        with pytest.raises(DataError, match="two folds"):
            refused()


def test_scores_are_those_of_scikit_learn_with_intervals_that_resample_groups() -> None:
    table = made_pairs(4000, one_in=5)
    labels, weights = arrays(table, "label", "weight")
    judged = table.assign(probability=cross_fitted(table))
    found = calibration_scores(judged)
    rate = np.full(len(labels), np.average(labels, weights=weights))
    for column, values in {"value": judged["probability"], "base_rate": rate}.items():
        assert found.loc["brier", column] == pytest.approx(brier_score_loss(labels, values, sample_weight=weights))
        assert found.loc["log_loss", column] == pytest.approx(log_loss(labels, values, sample_weight=weights))
    assert (found["low"] <= found["value"]).all() and (found["value"] <= found["high"]).all()
    # Pairs that come in copies tell no more than one of each, and groups say that they do.
    again = calibration_scores(pd.concat([judged] * 4, ignore_index=True))
    pd.testing.assert_frame_equal(again, found)


def test_bins_are_those_of_scikit_learns_quantiles() -> None:
    table = made_pairs(3000)
    labels, probabilities = table["label"], cross_fitted(table)
    found = reliability(table.assign(probability=probabilities))
    observed, predicted = calibration_curve(labels, probabilities, n_bins=10, strategy="quantile")
    assert found["observed"].to_numpy() == pytest.approx(observed)
    assert found["predicted"].to_numpy() == pytest.approx(predicted)
    assert (found["pairs"] == 300).all()
    assert ((found["low"] <= found["observed"]) & (found["observed"] <= found["high"])).all()
    assert error_of(table, probabilities) == pytest.approx(np.abs(observed - predicted).mean())
    alike = reliability(table.assign(probability=0.2))
    assert len(alike) == 1 and alike.loc[0, "observed"] == labels.mean()


def test_the_interval_of_the_error_holds_the_truth_where_that_is_none() -> None:
    held = 0
    for seed in range(60):
        scores = calibration_scores(made_pairs(1000, seed).rename(columns={"truth": "probability"}))
        held += scores.loc["ece", "low"] == 0
    assert held >= 54


@pytest.mark.parametrize("seed", range(5))
@pytest.mark.parametrize("digits", [1, 8])
def test_a_threshold_is_the_best_of_all(seed: int, digits: int) -> None:
    random = np.random.default_rng(seed)
    labels, weights = random.integers(0, 2, 40), random.integers(1, 9, 40).astype(float)
    values = np.round(random.random(40) * 0.7 + labels * 0.3, digits).clip(0, 1)

    def scored(threshold: float) -> dict[str, float]:
        called = (values >= threshold).astype(int)
        more = {"sample_weight": weights, "zero_division": 0}
        scores = {"f1": f1_score(labels, called, **more), "macro_f1": f1_score(labels, called, average="macro", **more)}
        ratios = {"precision": precision_score, "recall": recall_score}
        return scores | {name: float(ratio(labels, called, **more)) for name, ratio in ratios.items()}

    table = pd.DataFrame([scored(threshold) for threshold in np.unique(values)])
    judged = pd.DataFrame({"label": labels, "probability": values, "weight": weights})
    for aim in ("f1", "macro_f1"):
        assert scored(choose_threshold(judged, aim))[aim] == pytest.approx(table[aim].max())
    for name, other in (("recall", "precision"), ("precision", "recall")):
        for least in (0.5, 0.75, 1.0):
            found = scored(choose_threshold(judged, f"{name}>={least}"))
            enough = table[table[name] >= least]
            if len(enough):
                assert found[name] >= least
                assert found[other] == pytest.approx(enough[other].max())
            else:
                assert found[name] == pytest.approx(table[name].max())


def test_a_threshold_where_there_is_nothing_to_choose_by() -> None:
    even = pd.DataFrame({"label": [0, 0, 0], "probability": 0.5, "weight": 1.0})
    assert choose_threshold(even, "f1") == 0.5
    assert choose_threshold(even.head(0), "recall>=0.9") == 0.5
    for aim in ("f1", "macro_f1", "recall>=0.9", "precision>=0.8"):
        assert choose_threshold(even.assign(label=1), aim) <= 0.5  # everything is evidence, and called so


def test_the_words_of_an_aim() -> None:
    assert parse_aim("macro_f1") == ("macro_f1", 0.0)
    assert parse_aim("recall >= 0.90") == ("recall", 0.9)
    assert parse_aim("precision>=1") == ("precision", 1.0)
    for wrong in ("F1", "recall", "recall>0.9", "recall>=0", "precision>=1.5", "accuracy>=0.9", "recall>=90%"):
        with pytest.raises(ParamsError, match=r"aim=.*f1, macro_f1, recall>=R, precision>=P"):
            parse_aim(wrong)


def test_thresholds_are_judged_on_folds_that_did_not_choose_them() -> None:
    table = made_pairs(6000, one_in=3).sample(frac=1, random_state=0)  # in any order
    found = thresholds(table, "f1")
    assert found.index.tolist() == ["all", 0, 1, 2, "each"]
    labels, logits, weights, folds, criteria = arrays(table, "label", "logit", "weight", "fold", "criterion_id")
    judged = table.assign(probability=fit_calibration(table)(logits))
    assert found.loc["all", "threshold"] == choose_threshold(judged, "f1")
    called = {"all": np.zeros(len(table), dtype=bool), "each": np.zeros(len(table), dtype=bool)}
    for fold in range(5):
        seen, rows = folds != fold, folds == fold
        judged = table.assign(probability=fit_calibration(table[seen])(logits))
        called["all"][rows] = judged["probability"][rows] >= choose_threshold(judged[seen], "f1")
        for criterion in range(3):
            own = criteria == criterion
            threshold = choose_threshold(judged[seen & own], "f1")
            called["each"][rows & own] = judged["probability"][rows & own] >= threshold
    for name, decided in called.items():
        row, more = found.loc[name], {"sample_weight": weights}
        assert row["precision"] == pytest.approx(precision_score(labels, decided, **more))
        assert row["recall"] == pytest.approx(recall_score(labels, decided, **more))
        assert row["f1"] == pytest.approx(f1_score(labels, decided, **more))
        assert row["macro_f1"] == pytest.approx(f1_score(labels, decided, average="macro", **more))
        assert row["flagged"] == pytest.approx(np.average(decided, weights=weights))
    assert np.isnan(found.loc["each", "threshold"])


def test_a_bound_holds_on_new_posts_about_as_asked() -> None:
    found = thresholds(made_pairs(20_000, one_in=3, shift=0.0), "recall>=0.9").loc["all"]
    assert found["recall"] == pytest.approx(0.9, abs=0.02)
    assert found["precision"] < 0.5
