"""What any model must beat: the majority class, and logistic regression on words, on the same folds and pairs.

Imports `data`, `folds`, `negatives`, `metrics` and `reports`; notebooks and everything above may import it. No torch.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence

import numpy as np
import pandas as pd
from sklearn.feature_extraction.text import TfidfVectorizer
from sklearn.linear_model import LogisticRegression
from sklearn.pipeline import make_pipeline

from evbind_lib.config.compose import Params
from evbind_lib.data.corpus import Corpus
from evbind_lib.data.folds import Fold
from evbind_lib.data.negatives import training_pairs, validation_pairs
from evbind_lib.training.metrics import compute_metrics
from evbind_lib.training.result import PREDICTION_COLUMNS, CrossValidation, FoldResult

# Given training and validation pairs, the probability of evidence of the latter.
Baseline = Callable[[pd.DataFrame, pd.DataFrame], np.ndarray]


def majority_class(training: pd.DataFrame, validation: pd.DataFrame) -> np.ndarray:
    """Share of evidence among the training pairs, for every pair alike.

    Parameters
    ----------
    training, validation : pandas.DataFrame
        As `evbind_lib.data.negatives` gives them.

    Returns
    -------
    ndarray of float64, shape (n validation pairs,)
        Every pair is called what most training pairs are.
    """
    return np.full(len(validation), float(training["label"].mean()))


def words(training: pd.DataFrame, validation: pd.DataFrame) -> np.ndarray:
    """Logistic regression on TF-IDF of words and pairs of words, criterion and sentence as one text.

    It can learn which words go with evidence at all, and next to nothing of which sentence goes with which criterion.

    Parameters
    ----------
    training, validation : pandas.DataFrame
        As `evbind_lib.data.negatives` gives them.

    Returns
    -------
    ndarray of float64, shape (n validation pairs,)
    """
    model = make_pipeline(
        TfidfVectorizer(ngram_range=(1, 2)), LogisticRegression(class_weight="balanced", max_iter=2000)
    )
    model.fit(training["criterion"] + " " + training["sentence"], training["label"])
    probabilities: np.ndarray = model.predict_proba(validation["criterion"] + " " + validation["sentence"])[:, 1]
    return probabilities


def cross_validate_baseline(
    baseline: Baseline, params: Params, corpus: Corpus, folds: Sequence[Fold]
) -> CrossValidation:
    """Cross-validate a baseline on the pairs that a model of these parameters is trained and validated on.

    Parameters
    ----------
    baseline : callable
        `majority_class`, `words`, or any function like them.
    params : Params
        Its data and seed.
    corpus : Corpus
    folds : sequence of Fold

    Returns
    -------
    CrossValidation
        Without epochs.
    """
    reports = []
    for fold in folds:
        started = time.perf_counter()
        seed = params.training.seed
        training = training_pairs(corpus, fold.training_groups, data=params.data, seed=seed)
        validation = validation_pairs(corpus, fold.validation_groups, data=params.data, seed=seed)
        probabilities = baseline(training, validation)
        table = validation.assign(fold=np.int8(fold.index), probability=probabilities.astype(np.float32))
        reports.append(
            FoldResult(
                fold=fold.index,
                metrics=compute_metrics(validation["label"].to_numpy(), probabilities),
                epochs=(),
                predictions=table[PREDICTION_COLUMNS].reset_index(drop=True),
                seconds=time.perf_counter() - started,
                n_training=len(training),
                n_validation=len(validation),
                peak_memory_mb=0.0,
            )
        )
    return CrossValidation(tuple(reports), "fp64")
