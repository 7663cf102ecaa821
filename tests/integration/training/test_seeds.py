"""A training repeated with several seeds: what is held, what is scored, and where it is refused."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import pandas as pd
import pytest

from evbind_lib.config.schema import Params
from evbind_lib.data.corpus import Corpus
from evbind_lib.data.folds import Fold
from evbind_lib.errors import ParamsError
from evbind_lib.hpo.search import check_search
from evbind_lib.notebook.show import training_summary
from evbind_lib.training.cache import FoldCache
from evbind_lib.training.crossval import cross_validate

Brief = Callable[..., Params]


def test_each_fold_is_trained_with_each_seed_and_scores_are_means_over_seeds(
    brief: Brief, corpus: Corpus, folds: list[Fold]
) -> None:
    params, cache = brief("training.seeds=[7,3]", "hpo.metric.fold_aggregation=min"), FoldCache("seeds")
    both = cross_validate(corpus, folds, params, cache=cache)
    assert [(result.seed, result.fold) for result in both.folds] == [(7, 0), (7, 1), (3, 0), (3, 1)]
    single = cross_validate(
        corpus, folds, brief("training.seed=3", "hpo.metric.fold_aggregation=min"), cache=FoldCache("one")
    )
    apart = [[result.metrics["pr_auc"] for result in results] for results in both.by_seed().values()]
    assert apart[1] == [result.metrics["pr_auc"] for result in single.folds] and apart[0] != apart[1]
    assert both.score("pr_auc") == pytest.approx(np.mean([min(each) for each in apart]))
    table = both.table()["pr_auc"]
    assert list(table.index) == ["1", "2", "mean", "std", "std of seeds", "pooled"]
    by_fold, by_seed = np.mean(apart, axis=0), np.mean(apart, axis=1)
    expected = [*by_fold, by_fold.mean(), by_fold.std(ddof=1), by_seed.std(ddof=1)]
    np.testing.assert_allclose(table.to_numpy()[:5], expected)
    assert "std of seeds" not in single.table().index
    parts = [result.predictions for result in both.folds[:2]]
    pd.testing.assert_frame_equal(both.predictions, pd.concat(parts, ignore_index=True))
    _, lines = training_summary(both, params)
    assert "mean and std of 2 folds; std of 2 seeds: " in lines[0]

    again = cross_validate(corpus, folds, brief("training.seeds=[3,5]"), cache=cache)
    assert [result.cached for result in again.folds] == [True, True, False, False]


@pytest.mark.parametrize(
    ("override", "place"),
    [
        ("training.seeds=[1,2]", "training.seeds="),
        ("hpo.search_space.training.seeds={type:categorical,choices:[1,2]}", "search_space.training.seeds"),
        ("training.args.seed=1", "training.args.seed"),
    ],
)
def test_a_search_has_one_seed(brief: Brief, override: str, place: str) -> None:
    with pytest.raises(ParamsError, match=place):
        check_search(brief(override))


def test_seeds_are_different_numbers(brief: Brief) -> None:
    for wrong in ("[1,1]", "[-1]", "[a]"):
        with pytest.raises(ParamsError, match=r"training\.seeds"):
            brief(f"training.seeds={wrong}")
