"""The bundled sample is hard enough to show the difference between good and bad settings, and between a model and words."""

from __future__ import annotations

import pytest

from evbind_lib.config.compose import compose
from evbind_lib.data.corpus import Corpus
from evbind_lib.data.folds import make_folds
from evbind_lib.evaluation.baselines import cross_validate_baseline, words
from evbind_lib.training.crossval import cross_validate


@pytest.mark.slow
def test_words_alone_do_not_tell_and_good_and_bad_settings_show(corpus: Corpus) -> None:
    params = compose(["training.n_folds=5"])
    folds = make_folds(corpus, params)[:2]
    floor = cross_validate_baseline(words, corpus, folds, params).score("macro_f1")

    def score(learning_rate: float) -> float:
        values = {"training.args.learning_rate": learning_rate, "training.args.num_train_epochs": 4}
        return cross_validate(corpus, folds, params.with_values(values)).score("macro_f1")

    good, low, high = score(2e-3), score(1e-4), score(1e-2)
    assert 0.5 < floor < 0.68  # seen: 0.60
    assert good > floor + 0.08  # seen: 0.80
    assert good > max(low, high) + 0.1
