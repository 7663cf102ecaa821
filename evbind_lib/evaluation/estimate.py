"""Estimates from out-of-fold predictions: comparisons over folds, decisions, scores by criterion, errors."""

import contextlib
from collections.abc import Mapping

import numpy as np
import pandas as pd

from evbind_lib.data.files import as_text
from evbind_lib.errors import DataError, ParamsError, did_you_mean
from evbind_lib.evaluation.selection import CorrectedScore, corrected_t, holm, probability_of_practical_difference
from evbind_lib.training.metrics import METRICS, compute_metrics, scores_of_decisions
from evbind_lib.training.probabilities import THRESHOLD
from evbind_lib.training.result import CrossValidation, predictions_of

KEYS = ["fold", "post_id", "sentence_id", "criterion_id"]
PAIR = [*KEYS, "label"]
MOST_CELLS = 4_000_000  # of an array of resamples by pairs


def compare(
    results: Mapping[str, CrossValidation | pd.DataFrame],
    metric: str,
    *,
    reference: str | None = None,
    selected: Mapping[str, CorrectedScore | None] | None = None,
    rope: float = 0.01,
) -> pd.DataFrame:
    """Compare results on the same folds and pairs by one metric, with intervals and tests over the folds.

    Folds differ in posts and in training, so both are in the intervals. A set that was chosen by its score on these very folds is
    compared by its score corrected for selection, or not at all: name it in ``selected``.

    Parameters
    ----------
    results
        Cross-validations, or tables with fold, post_id, sentence_id, criterion_id, label and probability, by names of your own.
        With ``training.seeds`` a fold's score is the mean over them.
    metric, reference
        A name of `METRICS`; the result that the others are compared with, by default the first.
    selected
        Results whose set a search chose on these folds, with their corrected score by this metric
        (``SearchResult.corrected_score()``, or `evbind_lib.evaluation.selection.selected_on`), or None where they have none.
    rope
        Differences up to here, in units of the metric, make no difference in practice.

    Returns
    -------
    pandas.DataFrame
        A row per result, in units of the metric: ``mean`` over folds with ``low`` and ``high``; ``difference`` to the reference
        with ``difference_low``, ``difference_high`` and two-sided ``p_value``, by the corrected resampled t over paired folds
        (Nadeau and Bengio 2003, Machine Learning 52:239), ``p_holm`` the same for all rows together (Holm 1979); probabilities
        that the result is truly ``worse`` or ``better`` by more than ``rope``, or ``alike`` (Benavoli et al. 2017, JMLR 18:77);
        ``pairs`` and ``evidence`` that this rests on; ``mean_is``: how the mean is made. Bounds are of 95 % intervals. Of the
        reference, and of a selected set without a corrected score, differences are NaN: no verdict.

    Raises
    ------
    ParamsError, DataError
        For an unknown metric or name; for other pairs or folds, fewer than 2 folds, a fold where the metric is not defined, or a
        table that lacks a column.

    Examples
    --------
    >>> import evbind_lib as ev
    >>> from evbind_lib.evaluation.baselines import cross_validate_baseline, majority_class, words
    >>> params = ev.compose()
    >>> data = ev.load_corpus(params)
    >>> folds = ev.make_folds(data, params)
    >>> results = {each.__name__: cross_validate_baseline(each, data, folds, params) for each in (majority_class, words)}
    >>> bool(ev.compare(results, "macro_f1").loc["words", "difference_low"] > 0)
    True
    """
    reference, selected = next(iter(results), "") if reference is None else reference, selected or {}
    for argument, names in {"reference": [reference], "selected": selected}.items():
        for name in set(names) - set(results):
            raise ParamsError(f"{argument}={name}: there is no result of that name{did_you_mean(name, results)}")
    tables = {name: predictions_of(result) for name, result in results.items()}
    for name, table in tables.items():
        as_text(table.head(1), f"results[{name!r}]", [*PAIR, "probability"])  # refuses a missing column
    expected, types = tables[reference][PAIR].sort_values(KEYS, ignore_index=True), tables[reference][PAIR].dtypes
    scores, rows, greater_is_better = {}, {}, METRICS[metric].greater_is_better
    for name, table in tables.items():
        if not expected.equals(table[PAIR].astype(types.to_dict()).sort_values(KEYS, ignore_index=True)):
            remedy = "cross-validate both on the same corpus and folds, with the same data.eval_neg_ratio"
            raise DataError(f"{name} and {reference} are not of the same pairs in the same folds; {remedy}.")
        seeds = result.by_seed().values() if isinstance(result := results[name], CrossValidation) else ()
        repeated = [pd.concat([fold.predictions for fold in folds]) for folds in seeds] or [table]
        scores[name] = np.mean([_fold_scores(each, metric, name) for each in repeated], axis=0)
    known = {name: score.value for name, score in selected.items() if score}
    moved = {name: folds - folds.mean() + known.get(name, folds.mean()) for name, folds in scores.items()}
    for name, folds in scores.items():
        own = (*corrected_t(folds)[:3], "mean of the folds")
        if score := selected.get(name):
            own = (score.value, score.low, score.high, "corrected for selection")
        elif name in selected:
            own = (folds.mean(), np.nan, np.nan, "selected on these folds")
        gain = [np.nan] * 7
        if name != reference and selected.get(name, True) and selected.get(reference, True):
            apart = moved[name] - moved[reference]
            below, alike, above = probability_of_practical_difference(apart, rope)
            gain = [*corrected_t(apart), *((below, alike, above) if greater_is_better else (above, alike, below))]
        rows[name] = (*own[:3], *gain, len(tables[name]), int(tables[name]["label"].sum()), own[3])
    columns = ["mean", "low", "high", "difference", "difference_low", "difference_high", "p_value"]
    columns += ["worse", "alike", "better", "pairs", "evidence", "mean_is"]
    found = pd.DataFrame.from_dict(rows, orient="index", columns=columns).rename_axis("result")
    found.insert(7, "p_holm", holm(found["p_value"].to_numpy()))
    return found


def _fold_scores(predictions: pd.DataFrame, metric: str, name: str) -> np.ndarray:
    """Metric of each fold, in the order of their numbers; at least two, all finite."""
    fold, label, probability = (predictions[column].to_numpy() for column in ("fold", "label", "probability"))
    numbers = np.unique(fold)
    if len(numbers) < 2:
        raise DataError(f"{name} has {len(numbers)} fold, and a comparison needs 2; cross-validate it on all folds.")
    scores = np.array([METRICS[metric](label[fold == number], probability[fold == number]) for number in numbers])
    for number in numbers[~np.isfinite(scores)]:
        remedy = "compare by another metric, or on fewer folds"
        raise DataError(f"{name}: {metric} is not defined in fold {number + 1}, which has one class alone; {remedy}.")
    return scores


def bootstrap(predictions: pd.DataFrame, metric: str, *, n_resamples: int = 1000, seed: int = 0) -> np.ndarray:
    """Metric of all predictions, then of each resample of their posts, (1 + n_resamples,); one seed draws the same posts."""
    # Posts, not pairs, since pairs of one post are alike (cluster bootstrap).
    n_posts = predictions["post_id"].nunique()
    drawn = np.random.default_rng(seed).multinomial(n_posts, np.full(n_posts, 1 / n_posts), size=n_resamples)
    return resampled(predictions, metric, np.vstack([np.ones_like(drawn[:1]), drawn]))


def resampled(predictions: pd.DataFrame, metric: str, weights: np.ndarray) -> np.ndarray:
    """Metric of each resample of posts, NaN where not defined; weights (n_resamples, n_posts) are draws of posts by sorted id."""
    # Decisions and ranks are scored for all resamples at once: scikit-learn takes seconds, and racing asks after every fold.
    predictions = predictions.sort_values("probability", ascending=False)
    posts = np.unique(predictions["post_id"].to_numpy(dtype=str), return_inverse=True)[1]
    label, probability = predictions["label"].to_numpy(), predictions["probability"].to_numpy()
    own = metric in METRICS.additions()
    if METRICS[metric].on == "decisions" and not own:
        count = lambda pairs: weights @ np.bincount(posts, pairs, minlength=weights.shape[1])  # noqa: E731
        return scores_of_decisions(label, probability >= THRESHOLD, count)[metric]
    if metric in ("roc_auc", "pr_auc") and not own:
        parts = np.array_split(weights, -(-len(weights) * len(label) // MOST_CELLS))
        return np.concatenate([_ranked(metric, label, probability, times[:, posts]) for times in parts])
    scores = np.full(len(weights), np.nan)
    for number, times in enumerate(weights):
        drawn = np.repeat(np.arange(len(posts)), times[posts])
        with contextlib.suppress(ValueError):  # as many metrics raise where only one class occurs
            scores[number] = METRICS[metric](label[drawn], probability[drawn])
    return scores


def _ranked(metric: str, label: np.ndarray, probability: np.ndarray, times: np.ndarray) -> np.ndarray:
    """Metric by ranks of sorted pairs that are counted so many times in each resample, (n_resamples, n_pairs)."""
    starts = np.flatnonzero(np.diff(probability, prepend=np.inf))  # equal probabilities share a rank
    by_label = (times * (label == answer) for answer in (1, 0))
    evidence, other = (np.add.reduceat(counts, starts, axis=1, dtype=float) for counts in by_label)
    found = evidence.cumsum(axis=1)
    with np.errstate(invalid="ignore"):  # a rank that no pair is drawn at is 0 / 0
        if metric == "roc_auc":
            scores = ((found - evidence / 2) * other).sum(axis=1) / other.sum(axis=1)
        else:
            scores = np.nansum(found / (found + other.cumsum(axis=1)) * evidence, axis=1)
        scores /= evidence.sum(axis=1)
    return np.where(other.any(axis=1), scores, np.nan)


def by_criterion(predictions: pd.DataFrame) -> pd.DataFrame:
    """One row per criterion, most evidence first: pairs, evidence, precision, recall, pos_f1 and pr_auc."""
    rows = {}
    for criterion, part in predictions.groupby("criterion_id"):
        values = compute_metrics(part["label"].to_numpy(), part["probability"].to_numpy())
        chosen = {name: values[name] for name in ("precision", "recall", "pos_f1", "pr_auc")}
        rows[criterion] = {"pairs": len(part), "evidence": int(part["label"].sum()), **chosen}
    table = pd.DataFrame.from_dict(rows, orient="index").rename_axis("criterion")
    return table.sort_values("evidence", ascending=False, kind="stable")


def at_threshold(predictions: pd.DataFrame, threshold: float, weights: pd.Series | None = None) -> dict[str, float]:
    """``tp, fp, fn, tn`` and the metrics of decisions; a pair, counted so often, is called evidence from the threshold on."""
    label, called = predictions["label"].to_numpy(), predictions["probability"].to_numpy() >= threshold
    count = np.sum if weights is None else weights.to_numpy().__matmul__
    return {name: float(value) for name, value in scores_of_decisions(label, called, count).items()}


def confident_errors(predictions: pd.DataFrame, threshold: float = THRESHOLD, most: int = 20) -> pd.DataFrame:
    """Wrong decisions, the surest first; ``kind`` is ``missed`` or ``false alarm``, ``row`` the place in the predictions."""
    predictions = predictions.assign(row=range(len(predictions)))
    wrong = predictions[(predictions["probability"] >= threshold) != (predictions["label"] == 1)]
    kind, sure = np.where(wrong["label"] == 1, "missed", "false alarm"), (wrong["probability"] - threshold).abs()
    table = wrong.assign(kind=kind, sure=sure).sort_values(["sure", "sentence_id"], ascending=[False, True])
    columns = ["kind", "row", "post_id", "sentence_id", "criterion_id", "probability"]
    return table[columns].head(most).reset_index(drop=True)
