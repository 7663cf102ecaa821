"""What any model must beat: the majority class, and logistic regression on words, on the same folds and pairs. No torch."""

import time
from collections.abc import Callable, Sequence

import numpy as np
import pandas as pd
from scipy.special import logit
from sklearn.feature_extraction.text import TfidfVectorizer
from sklearn.linear_model import LogisticRegression
from sklearn.pipeline import make_pipeline

from evbind_lib.config.schema import Params
from evbind_lib.data.corpus import Corpus
from evbind_lib.data.folds import Fold
from evbind_lib.data.negatives import fold_pairs
from evbind_lib.training.metrics import compute_metrics
from evbind_lib.training.result import CrossValidation, FoldResult, prediction_table

# Given a fold's training and validation pairs, P(evidence) of the latter, float64 (n,).
Baseline = Callable[[pd.DataFrame, pd.DataFrame], np.ndarray]
LEAST = float(np.finfo(np.float64).eps)  # so that a logit is finite


def majority_class(training: pd.DataFrame, validation: pd.DataFrame) -> np.ndarray:
    """Fraction of evidence among the training pairs, for every validation pair alike."""
    return np.full(len(validation), float(training["label"].mean()))


def words(training: pd.DataFrame, validation: pd.DataFrame) -> np.ndarray:
    """Logistic regression on TF-IDF of words and pairs of words: which ones go with evidence, hardly with which criterion."""
    classifier = LogisticRegression(class_weight="balanced", max_iter=2000)
    model = make_pipeline(TfidfVectorizer(ngram_range=(1, 2)), classifier)
    model.fit(training["criterion"] + " " + training["sentence"], training["label"])
    return np.asarray(model.predict_proba(validation["criterion"] + " " + validation["sentence"])[:, 1])


def cross_validate_baseline(
    baseline: Baseline, corpus: Corpus, folds: Sequence[Fold], params: Params
) -> CrossValidation:
    """Cross-validate a baseline on the pairs that a model of these parameters is trained and validated on; no epochs."""
    results = []
    for fold in folds:
        started = time.perf_counter()
        training, validation = fold_pairs(corpus, fold, params)
        evidence = np.clip(baseline(training, validation), LEAST, 1 - LEAST)
        table = prediction_table(fold.index, validation, logit(evidence))
        metrics = compute_metrics(table["label"].to_numpy(), table["probability"].to_numpy())
        seconds, sizes = time.perf_counter() - started, (len(training), len(validation))
        results.append(FoldResult(fold.index, metrics, (), table, seconds, *sizes, precision="fp64", peak_memory_mb=0))
    return CrossValidation(tuple(results), params.hpo.metric.fold_aggregation)
