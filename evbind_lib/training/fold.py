"""Train one fold: pairs drawn and encoded, a fresh model fine-tuned by Hugging Face Trainer, the other part predicted.

Training knows nothing of Optuna or MLflow: pruning, tracking and progress are callbacks.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any
from weakref import WeakKeyDictionary

import numpy as np
import pandas as pd
import torch
from transformers import PreTrainedModel, TrainerCallback

from evbind_lib.config.schema import Params
from evbind_lib.data.corpus import Corpus
from evbind_lib.data.folds import Fold
from evbind_lib.data.negatives import training_pairs, validation_pairs
from evbind_lib.errors import ParamsError, TrainingError
from evbind_lib.training.encoding import EncodedPairs, PairEncoder
from evbind_lib.training.losses import Loss
from evbind_lib.training.metrics import METRICS, compute_metrics, probabilities_of
from evbind_lib.training.model import check_model, choose_precision, load_tokenizer, predict
from evbind_lib.training.result import Callback, EpochResult, FoldResult, prediction_table
from evbind_lib.training.tiny import TINY
from evbind_lib.training.trainer import (
    ModelInit,
    TrainerLoss,
    choose_loss,
    collect_garbage,
    fit,
    half_of,
    is_out_of_memory,
    peak_memory_mb,
    quiet_libraries,
    training_arguments,
    with_micro_batch,
)


@dataclass(frozen=True)
class FoldData:
    """One fold, encoded: what is trained on, what is predicted, and the table of the latter."""

    fold: Fold
    encoder: PairEncoder
    training: EncodedPairs
    validation: EncodedPairs
    validation_pairs: pd.DataFrame


# By corpus, so that every fold, trial and notebook cell draws and tokenises once; gone with the corpus.
_prepared: WeakKeyDictionary[Corpus, dict[Any, Any]] = WeakKeyDictionary()


def prepare_fold(corpus: Corpus, fold: Fold, params: Params) -> FoldData:
    """Draw and encode the pairs of a fold, or take them from an earlier call with the same data parameters."""
    memory = _prepared.setdefault(corpus, {})
    data, model = params.data, params.model
    # The tiny model's tokenizer is trained on the training part; a pretrained one is the same in every fold.
    tokenizer = (model.name, model.max_length, fold if model.name == TINY else None)
    if tokenizer not in memory:
        inside = corpus.sentences["group"].isin(fold.training_groups)
        texts = [*corpus.criteria.values(), *corpus.sentences.loc[inside, "sentence"]]
        memory[tokenizer] = PairEncoder(load_tokenizer(model, texts), model.max_length)
    encoder = memory[tokenizer]
    place, seed = (model.name, model.max_length, fold), params.training.seed

    def last(part: str, drawn_with: Any, draw: Callable[[], pd.DataFrame]) -> tuple[pd.DataFrame, EncodedPairs]:
        """Pairs as they were last drawn; a search over pos_neg_ratio would fill the memory with all of them."""
        known = memory.get((part, place))
        if known is None or known[0] != drawn_with:
            pairs = draw()
            known = memory[part, place] = (drawn_with, pairs, encoder.encode(pairs))
        return known[1], known[2]

    _, training = last(
        "training",
        (data.pos_neg_ratio, data.negative_strategy, seed),
        lambda: training_pairs(corpus, fold.training_groups, params),
    )
    table, validation = last(
        "validation", (data.eval_neg_ratio, seed), lambda: validation_pairs(corpus, fold.validation_groups, params)
    )
    return FoldData(fold, encoder, training, validation, table)


def train_fold(
    corpus: Corpus,
    fold: Fold,
    params: Params,
    *,
    loss: str | Loss | None = None,
    model_init: ModelInit | None = None,
    callbacks: Sequence[Callback | TrainerCallback] = (),
    keep_model: bool = False,
) -> FoldResult:
    """Fine-tune a fresh model on the training part of a fold and predict the other part after every epoch.

    No checkpoint is written. Where memory does not hold a batch, the fold begins again with half as many pairs at once and
    twice as many steps to accumulate gradients over: the effective batch, and so the optimisation, stays the same.

    Parameters
    ----------
    corpus : Corpus
    fold : Fold
        One of `make_folds`.
    params : Params
        Its data, model and training sections count.
    loss : str or callable, optional
        A name of `LOSSES`, or a function ``(logits (n, 2) float, labels (n,) int64) -> (n,) float``, one number per pair. By
        default ``training.loss_function``.
    model_init : callable, optional
        ``model_init(config, tokenizer) -> PreTrainedModel`` with two classes, called once after seeding. By default the
        encoder of ``model.name`` with a fresh head.
    callbacks : sequence of Callback or transformers.TrainerCallback
        Mixed; the latter go to the Trainer.
    keep_model : bool
        Give the trained model in ``FoldResult.model``; else it is gone when the function returns.

    Returns
    -------
    FoldResult
        Metrics and predictions are those after the last epoch.

    Raises
    ------
    TrainingError
        When a loss is not a finite number or not one per pair, or memory does not hold a single pair.
    ParamsError, ModelError
        When parameters name something that there is not.

    Examples
    --------
    >>> import evbind_lib as ev
    >>> params = ev.compose(["training.args.max_steps=2"])
    >>> corpus = ev.load_corpus(params)
    >>> result = ev.train_fold(corpus, ev.make_folds(corpus, params)[0], params)
    >>> result.n_validation == len(result.predictions)
    True
    """
    with quiet_libraries():
        data = prepare_fold(corpus, fold, params)
        return train_prepared(data, params, loss, model_init, callbacks, keep_model=keep_model)


def train_prepared(
    data: FoldData,
    params: Params,
    loss: str | Loss | None,
    model_init: ModelInit | None,
    callbacks: Sequence[Callback | TrainerCallback],
    *,
    keep_model: bool = False,
    micro_batch: int | None = None,
) -> FoldResult:
    """Train a fold whose pairs are encoded; ``micro_batch`` pairs at once where fewer than the batch are known to fit."""
    started = time.perf_counter()
    fold = data.fold.index
    ours = [callback for callback in callbacks if isinstance(callback, Callback)]
    for callback in ours:
        callback.on_fold_begin(data.fold, params)
    if torch.cuda.is_available():
        torch.cuda.reset_peak_memory_stats()
    batch = int(params.training.args.get("per_device_train_batch_size", 8))
    theirs = [callback for callback in callbacks if isinstance(callback, TrainerCallback)]
    model: PreTrainedModel | None = None
    while model is None:
        tried = micro_batch or batch
        watched = TrainerLoss(choose_loss(params, data.training.labels, loss), f"fold {fold + 1}")
        validation = _Validation(data, choose_precision(params.model.precision), watched, ours)
        smaller = with_micro_batch(params, tried)
        try:
            model = fit(smaller, data.encoder, data.training, watched, model_init, [validation, *theirs])
        except Exception as error:
            if not is_out_of_memory(error):
                raise
            if tried == 1:
                raise TrainingError(
                    f"fold {fold + 1}: memory does not hold a single pair; lower model.max_length, or choose a smaller model."
                ) from None
            micro_batch = half_of(tried)
        finally:
            collect_garbage()
    result = FoldResult(
        fold=fold,
        metrics=dict(validation.epochs[-1].metrics or {}),
        epochs=tuple(validation.epochs),
        predictions=prediction_table(fold, data.validation_pairs, validation.logits),
        seconds=time.perf_counter() - started,
        n_training=len(data.training),
        n_validation=len(data.validation),
        precision=choose_precision(params.model.precision),
        peak_memory_mb=peak_memory_mb(),
        micro_batch=micro_batch if micro_batch != batch else None,
        model=model if keep_model else None,
    )
    del model
    collect_garbage()  # Trainer and model refer to each other; without this, memory is held until some later fold
    for callback in ours:
        callback.on_fold_end(result)
    return result


class _Validation(TrainerCallback):
    """Predict the validation part at the end of each epoch, and call evbind's callbacks."""

    def __init__(self, data: FoldData, precision: str, loss: TrainerLoss, callbacks: Sequence[Callback]) -> None:
        self.data = data
        self.precision = precision
        self.loss = loss
        self.callbacks = callbacks
        self.epochs: list[EpochResult] = []
        self.logits = np.empty(0, dtype=np.float32)
        self.started = time.perf_counter()

    def on_epoch_begin(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        self.started = time.perf_counter()

    def on_step_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        for callback in self.callbacks:
            callback.on_step()

    on_substep_end = on_step_end

    def on_epoch_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        self._validate(kwargs["model"], args.per_device_eval_batch_size)

    def on_train_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        # max_steps or a fractional num_train_epochs may end between two epochs.
        if self.loss.values or not self.epochs:
            self._validate(kwargs["model"], args.per_device_eval_batch_size)

    def _validate(self, model: PreTrainedModel, batch_size: int) -> None:
        logits = predict(model, self.data.validation, batch_size=batch_size, precision=self.precision)
        self.logits = logits.astype(np.float32)  # as it is cached, so that metrics of cached folds are the same
        epoch = EpochResult(
            fold=self.data.fold.index,
            epoch=len(self.epochs) + 1,
            training_loss=self.loss.epoch_mean(),
            metrics=compute_metrics(self.data.validation.labels, probabilities_of(self.logits)),
            seconds=time.perf_counter() - self.started,
        )
        self.epochs.append(epoch)
        for callback in self.callbacks:
            callback.on_epoch_end(epoch)


def check(params: Params) -> None:
    """Refuse what cannot be trained, before anything is trained or written.

    Loads the model once and runs a pair through it. Raises `ParamsError` for an unknown loss or metric, a direction that is
    not the metric's, or training arguments that transformers refuses; `ModelError` for a model that cannot be loaded.
    """
    choose_loss(params, np.array([0, 1]))
    better = "maximize" if METRICS[params.hpo.metric.name].greater_is_better else "minimize"
    if params.hpo.study.direction != better:
        order = "higher" if better == "maximize" else "lower"
        raise ParamsError(
            f"hpo.study.direction={params.hpo.study.direction}: {params.hpo.metric.name} is better when {order}; set "
            f"hpo.study.direction={better}."
        )
    with quiet_libraries():
        training_arguments(params, output_dir="unused")
        check_model(params.model)
