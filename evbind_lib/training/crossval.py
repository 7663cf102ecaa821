"""Cross-validate: train every fold in order, or read it from the cache."""

from __future__ import annotations

from collections.abc import Sequence

from transformers import TrainerCallback

from evbind_lib.config.schema import Params
from evbind_lib.data.corpus import Corpus
from evbind_lib.data.folds import Fold
from evbind_lib.training.cache import FoldCache, fold_key
from evbind_lib.training.fold import prepare_fold, train_prepared
from evbind_lib.training.losses import Loss
from evbind_lib.training.result import Callback, CrossValidation, FoldResult
from evbind_lib.training.trainer import ModelInit, quiet_libraries


def cross_validate(
    corpus: Corpus,
    folds: Sequence[Fold],
    params: Params,
    *,
    loss: str | Loss | None = None,
    model_init: ModelInit | None = None,
    callbacks: Sequence[Callback | TrainerCallback] = (),
    cache: FoldCache | None = None,
) -> CrossValidation:
    """Train and validate every fold in order; `evbind_lib.cross_validate` documents the parameters, and records and shows it.

    With ``cache``, folds trained before with the same `fold_key` are read from it, the others written to it. Where a loss or a
    model has no digest, or a TrainerCallback takes part, a fold has no key and is trained.
    """
    # Callbacks read from it how many folds there are.
    params = params.model_copy(update={"training": params.training.model_copy(update={"n_folds": len(folds)})})
    ours = [callback for callback in callbacks if isinstance(callback, Callback)]
    if len(ours) < len(callbacks):
        cache = None  # a TrainerCallback can change anything, and nothing says what it does
    results: list[FoldResult] = []
    with quiet_libraries():
        for fold in folds:
            key = fold_key(corpus, folds, fold, params, loss=loss, model_init=model_init) if cache else None
            result = cache.load(key) if cache and key else None
            if result is not None:
                _call(ours, fold, params, result)
            else:
                # Memory that was too small for one fold is too small for the next.
                micro_batch = results[-1].micro_batch if results else None
                data = prepare_fold(corpus, fold, params)
                callers = [_Save(cache, key), *callbacks] if cache and key else callbacks
                result = train_prepared(data, params, loss, model_init, callers, micro_batch=micro_batch)
            results.append(result)
    return CrossValidation(tuple(results), params.hpo.metric.fold_aggregation)


def _call(callbacks: Sequence[Callback], fold: Fold, params: Params, result: FoldResult) -> None:
    """Call the callbacks for a fold that was trained before."""
    for callback in callbacks:
        callback.on_fold_begin(fold, params)
    for epoch in result.epochs:
        for callback in callbacks:
            callback.on_epoch_end(epoch)
    for callback in callbacks:
        callback.on_fold_end(result)


class _Save(Callback):
    """Save a fold before a pruner looks at it, or a kill can lose it."""

    def __init__(self, cache: FoldCache, key: str) -> None:
        self.cache, self.key = cache, key

    def on_fold_end(self, result: FoldResult) -> None:
        self.cache.save(self.key, result)
