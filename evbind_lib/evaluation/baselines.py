"""What any model must beat, on the same folds and pairs: the majority class, and words that both texts share. No torch."""

import time
from collections.abc import Callable, Sequence

import numpy as np
import pandas as pd
from scipy import sparse
from scipy.special import logit
from sklearn.feature_extraction.text import CountVectorizer, TfidfVectorizer
from sklearn.linear_model import LogisticRegression
from sklearn.preprocessing import StandardScaler

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
    """Logistic regression on TF-IDF of words and pairs of words of both texts, their cosine, and what words they share."""
    texts = pd.unique(training[["criterion", "sentence"]].to_numpy().ravel())
    weigh, split = TfidfVectorizer(ngram_range=(1, 2)).fit(texts), CountVectorizer(binary=True).fit(texts)

    def features(pairs: pd.DataFrame) -> tuple[sparse.csr_array, np.ndarray]:
        """TF-IDF of criterion and of sentence side by side, and how alike they are: cosine, fraction of the words of each."""
        codes, texts = pd.factorize(pairs[["criterion", "sentence"]].to_numpy().ravel())  # each repeats over many pairs
        weights, words = (sparse.csr_array(each.transform(texts)) for each in (weigh, split))
        criterion, sentence, one, other = (each[codes[part::2]] for each in (weights, words) for part in (0, 1))
        shared = one.multiply(other).sum(axis=1)
        parts = [shared / np.maximum(side.sum(axis=1), 1) for side in (one, other)]
        alike = np.column_stack([criterion.multiply(sentence).sum(axis=1), *parts])
        return sparse.hstack([criterion, sentence], format="csr"), alike

    (first, alike), (second, alike_later) = features(training), features(validation)
    scale = StandardScaler().fit(alike)  # a few numbers among thousands of words
    model = LogisticRegression(class_weight="balanced", max_iter=2000)
    model.fit(sparse.hstack([first, scale.transform(alike)], format="csr"), training["label"])
    found = model.predict_proba(sparse.hstack([second, scale.transform(alike_later)], format="csr"))
    return np.asarray(found[:, 1])


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
