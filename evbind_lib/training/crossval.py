"""Cross-validate: train every fold in order, with each seed, or read it from the cache."""

import dataclasses
import functools
import itertools
from collections.abc import Sequence

from transformers import TrainerCallback

from evbind_lib.config.schema import Params
from evbind_lib.data.corpus import Corpus
from evbind_lib.data.folds import Fold
from evbind_lib.training.cache import FoldCache, fold_key
from evbind_lib.training.fold import prepare_fold, train_prepared
from evbind_lib.training.model import quiet_libraries
from evbind_lib.training.result import Callback, CrossValidation, FoldResult, Loss, ModelInit


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
    """Train and validate every fold in order, as `evbind_lib.cross_validate` documents, or read it from the cache by its key."""
    configured = params.training
    ours = [callback for callback in callbacks if isinstance(callback, Callback)]
    if len(ours) < len(callbacks):
        cache = None  # a TrainerCallback can change anything, and nothing says what it does
    results: list[FoldResult] = []
    with quiet_libraries():
        for seed, fold in itertools.product(configured.seeds or [configured.seed], folds):
            # Callbacks read from it how many folds there are, and which seed this is.
            training = configured.model_copy(update={"n_folds": len(folds), "seed": seed})
            params = params.model_copy(update={"training": training})
            key = fold_key(corpus, folds, fold, params, loss=loss, model_init=model_init) if cache else None
            result = cache.load(key) if cache and key and not configured.fresh else None
            if result is None:
                save = functools.partial(cache.save, key) if cache and key else None
                # Memory that was too small for one fold is too small for the next.
                fits = results[-1].micro_batch if results else None
                data = prepare_fold(corpus, fold, params)
                result = train_prepared(data, params, loss, model_init, callbacks, micro_batch=fits, save=save)
            else:
                result = dataclasses.replace(result, cached=True, sensitive=corpus.sensitive)
                for callback in ours:
                    callback.on_fold_begin(fold, params)
                for epoch, callback in itertools.product(result.epochs, ours):
                    callback.on_epoch_end(epoch)
                for callback in ours:
                    callback.on_fold_end(result)
            results.append(result)
    return CrossValidation(tuple(results), params.hpo.metric.fold_aggregation)
