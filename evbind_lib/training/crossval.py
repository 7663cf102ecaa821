"""Train one fold, and cross-validate: Hugging Face Trainer underneath, observers beside.

Training knows nothing of Optuna or MLflow. It tells observers about epochs and folds; pruning, tracking and progress are
observers. Imports the rooms below it (`errors` to `metrics`); `search` and `notebook` import it.
"""

from __future__ import annotations

import contextlib
import gc
import tempfile
import time
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import pandas as pd
import torch
from transformers import (
    PreTrainedModel,
    PrinterCallback,
    ProgressCallback,
    Trainer,
    TrainerCallback,
    set_seed,
)

from evbind_lib.config.compose import Params
from evbind_lib.data.corpus import Corpus
from evbind_lib.data.folds import Fold
from evbind_lib.data.negatives import training_pairs, validation_pairs
from evbind_lib.errors import TrainingError
from evbind_lib.training.arguments import training_arguments
from evbind_lib.training.encoding import EncodedPairs, PadToLongest, PairEncoder
from evbind_lib.training.losses import choose_loss
from evbind_lib.training.memory import half_of, is_out_of_memory, peak_memory_mb, with_micro_batch
from evbind_lib.training.metrics import compute_metrics
from evbind_lib.training.model import choose_precision, load_model, load_tokenizer
from evbind_lib.training.prediction import predict
from evbind_lib.training.result import Callback, CrossValidation, EpochResult, FoldResult


@dataclass(frozen=True)
class FoldData:
    """One fold, encoded: what is trained on, what is predicted, and the ids of the latter."""

    fold: Fold
    encoder: PairEncoder
    training: EncodedPairs
    validation: EncodedPairs
    validation_ids: pd.DataFrame


class CrossValidator:
    """Cross-validate any number of parameter sets on the same folds, the same validation pairs and the same word pieces.

    Parameters
    ----------
    corpus : Corpus
    folds : sequence of Fold
        As `evbind_lib.data.folds.make_folds` gave them.
    """

    def __init__(self, corpus: Corpus, folds: Sequence[Fold]) -> None:
        self.corpus = corpus
        self.folds = tuple(folds)
        self._encoders: dict[Any, PairEncoder] = {}
        self._encoded: dict[Any, tuple[pd.DataFrame, EncodedPairs]] = {}
        # Each fold ends with a garbage collection; what the imports made need not be walked through every time.
        gc.collect()
        gc.freeze()

    def prepare(self, params: Params, fold: Fold) -> FoldData:
        """Draw and encode the pairs of a fold, or take them from an earlier call with the same parameters.

        Parameters
        ----------
        params : Params
        fold : Fold

        Returns
        -------
        FoldData
        """
        data, model, seed = params.data, params.model, params.training.seed
        encoder_key = (model.name, model.max_length, fold.index)
        if encoder_key not in self._encoders:
            in_training = self.corpus.sentences["group"].isin(fold.training_groups)
            texts = [*self.corpus.criteria.values(), *self.corpus.sentences.loc[in_training, "sentence"]]
            self._encoders[encoder_key] = PairEncoder(load_tokenizer(model, texts), model.max_length)
        encoder = self._encoders[encoder_key]

        training_key = ("training", encoder_key, data.pos_neg_ratio, data.negative_strategy, seed)
        if training_key not in self._encoded:
            pairs = training_pairs(self.corpus, fold.training_groups, data=data, seed=seed)
            self._encoded[training_key] = (pairs, encoder.encode(pairs))
        validation_key = ("validation", encoder_key, data.eval_neg_ratio, seed)
        if validation_key not in self._encoded:
            pairs = validation_pairs(self.corpus, fold.validation_groups, data=data, seed=seed)
            self._encoded[validation_key] = (pairs, encoder.encode(pairs))
        ids, validation = self._encoded[validation_key]
        return FoldData(fold, encoder, self._encoded[training_key][1], validation, ids)

    def run(
        self,
        params: Params,
        observers: Sequence[Callback] = (),
        finished: Mapping[int, FoldResult] | None = None,
    ) -> CrossValidation:
        """Train and validate every fold in order.

        Parameters
        ----------
        params : Params
        observers : sequence of Callback
        finished : mapping of int to FoldResult, optional
            Folds that were trained before with these parameters; observers are told of them as of the others.

        Returns
        -------
        CrossValidation

        Raises
        ------
        TrainingError
            When a loss is not a finite number.
        """
        reports: list[FoldResult] = []
        for fold in self.folds:
            report = (finished or {}).get(fold.index)
            if report is not None:
                _retell(report, observers)
            else:
                # Memory that was too small for one fold is too small for the next.
                micro_batch = reports[-1].micro_batch if reports else None
                report = train_fold(params, self.prepare(params, fold), observers, micro_batch=micro_batch)
            reports.append(report)
        return CrossValidation(tuple(reports), choose_precision(params.model.precision))


def _retell(report: FoldResult, observers: Sequence[Callback]) -> None:
    for observer in observers:
        observer.on_fold_begin(report.fold)
    for epoch in report.epochs:
        for observer in observers:
            observer.on_epoch_end(epoch)
    for observer in observers:
        observer.on_fold_end(report)


def train_fold(
    params: Params, data: FoldData, observers: Sequence[Callback] = (), *, micro_batch: int | None = None
) -> FoldResult:
    """Fine-tune a fresh model on the training part of a fold and predict the other part after every epoch.

    No checkpoint is written, and the model is gone when the function returns. Where memory does not hold a batch, the fold
    begins anew with half as many pairs at once and twice as many steps to gather gradients over: the effective batch, and
    so the optimisation, stays the same.

    Parameters
    ----------
    params : Params
    data : FoldData
    observers : sequence of Callback
    micro_batch : int, optional
        Pairs at once, where fewer than the batch are known to fit.

    Returns
    -------
    FoldResult
        Metrics and predictions are those after the last epoch.

    Raises
    ------
    TrainingError
        When a loss is not a finite number, or memory does not hold a single pair; the message names fold and step.
    """
    started = time.perf_counter()
    fold = data.fold.index
    for observer in observers:
        observer.on_fold_begin(fold)
    if torch.cuda.is_available():
        torch.cuda.reset_peak_memory_stats()
    batch = int(params.training.args.get("per_device_train_batch_size", 8))
    validator = None
    while validator is None:
        tried = micro_batch or batch
        try:
            validator = _fit_fold(with_micro_batch(params, tried), data, observers)
        except Exception as error:
            if not is_out_of_memory(error):
                raise
            if tried == 1:
                raise TrainingError(
                    f"fold {fold + 1}: memory does not hold a single pair; lower model.max_length, or choose a smaller model."
                ) from None
        finally:
            # Trainer and model refer to each other; without this, memory is held until some later fold.
            gc.collect()
            if torch.cuda.is_available():
                torch.cuda.empty_cache()
        if validator is None:
            micro_batch = half_of(tried)
    last = validator.epochs[-1]
    report = FoldResult(
        fold=fold,
        metrics=last.metrics,
        epochs=tuple(validator.epochs),
        predictions=_prediction_table(data, validator.probabilities),
        seconds=time.perf_counter() - started,
        n_training=len(data.training),
        n_validation=len(data.validation),
        peak_memory_mb=peak_memory_mb(),
        micro_batch=micro_batch if micro_batch != batch else None,
    )
    for observer in observers:
        observer.on_fold_end(report)
    return report


def _fit_fold(params: Params, data: FoldData, observers: Sequence[Callback]) -> _ValidateEachEpoch:
    place = f"fold {data.fold.index + 1}"
    watched = WatchedLoss(choose_loss(params.training, data.training.labels), place, observers)
    validator = _ValidateEachEpoch(data, choose_precision(params.model.precision), watched, observers)
    fit(params, data.encoder, data.training, loss=watched, callbacks=[validator])
    return validator


def fit(
    params: Params,
    encoder: PairEncoder,
    pairs: EncodedPairs,
    *,
    place: str = "",
    loss: WatchedLoss | None = None,
    callbacks: Sequence[TrainerCallback] = (),
) -> PreTrainedModel:
    """Fine-tune a fresh model on encoded pairs; no checkpoint is written.

    Parameters
    ----------
    params : Params
    encoder : PairEncoder
        Its tokenizer made the pairs.
    pairs : EncodedPairs
    place : str
        What an error says is being trained, where no loss is given.
    loss : WatchedLoss, optional
        By default the one that the parameters choose.
    callbacks : sequence of TrainerCallback

    Returns
    -------
    PreTrainedModel
        On the device it was trained on, in training mode.

    Raises
    ------
    TrainingError
        When a loss is not a finite number.
    """
    set_seed(params.training.seed)
    model = load_model(params.model, encoder.tokenizer)
    with tempfile.TemporaryDirectory(prefix="evbind-") as unused:
        trainer = Trainer(
            model=model,
            args=training_arguments(params, output_dir=unused),
            train_dataset=pairs,
            data_collator=PadToLongest(int(encoder.tokenizer.pad_token_id or 0)),
            compute_loss_func=loss or WatchedLoss(choose_loss(params.training, pairs.labels), place),
            callbacks=list(callbacks),
        )
        # Without a progress bar Trainer would print its logs, which spoils notebooks.
        trainer.remove_callback(PrinterCallback)
        trainer.remove_callback(ProgressCallback)
        with at_most_threads(params.model.threads):
            trainer.train()
    return model


@contextlib.contextmanager
def at_most_threads(most: int | None) -> Iterator[None]:
    """Share operations among no more threads than this for a while; None: as many as before."""
    before = torch.get_num_threads()
    torch.set_num_threads(min(most or before, before))
    try:
        yield
    finally:
        torch.set_num_threads(before)


class WatchedLoss:
    """The loss, with its mean over an epoch kept and a number that is not finite refused at once."""

    def __init__(self, loss: Any, place: str, observers: Sequence[Callback] = ()) -> None:
        self.loss = loss
        self.place = place
        self.observers = observers
        self.steps = 0
        self.values: list[float] = []

    def __call__(self, outputs: Any, labels: torch.Tensor, num_items_in_batch: Any = None) -> torch.Tensor:
        """Compute, keep and check the loss of one step."""
        value = self.loss(outputs, labels, num_items_in_batch=num_items_in_batch)
        self.steps += 1
        number = float(value.detach())
        if not np.isfinite(number):
            raise TrainingError(
                f"{self.place}, step {self.steps}: the loss is {number}; lower training.args.learning_rate, or set "
                "model.precision=fp32."
            )
        self.values.append(number)
        for observer in self.observers:
            observer.on_step()
        return value

    def epoch_mean(self) -> float:
        """Mean since the last call."""
        mean = float(np.mean(self.values)) if self.values else float("nan")
        self.values.clear()
        return mean


class _ValidateEachEpoch(TrainerCallback):
    """Predict the validation part at the end of each epoch and tell the observers."""

    def __init__(self, data: FoldData, precision: str, loss: WatchedLoss, observers: Sequence[Callback]) -> None:
        self.data = data
        self.precision = precision
        self.loss = loss
        self.observers = observers
        self.epochs: list[EpochResult] = []
        self.probabilities = np.empty(0)
        self.started = time.perf_counter()

    def on_epoch_begin(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        self.started = time.perf_counter()

    def on_epoch_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        share = min(1.0, state.global_step / state.max_steps) if state.max_steps > 0 else None
        self._validate(kwargs["model"], args.per_device_eval_batch_size, share)

    def on_train_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        # max_steps or a fractional num_train_epochs may end between two epochs.
        if self.loss.values or not self.epochs:
            self._validate(kwargs["model"], args.per_device_eval_batch_size, 1.0)

    def _validate(self, model: PreTrainedModel, batch_size: int, share: float | None) -> None:
        self.probabilities = predict(
            model,
            self.data.validation,
            pad_token_id=int(self.data.encoder.tokenizer.pad_token_id or 0),
            batch_size=batch_size,
            precision=self.precision,
        )
        report = EpochResult(
            fold=self.data.fold.index,
            epoch=len(self.epochs) + 1,
            training_loss=self.loss.epoch_mean(),
            metrics=compute_metrics(self.data.validation.labels, self.probabilities),
            seconds=time.perf_counter() - self.started,
            share=share,
        )
        self.epochs.append(report)
        for observer in self.observers:
            observer.on_epoch_end(report)


def _prediction_table(data: FoldData, probabilities: np.ndarray) -> pd.DataFrame:
    table = data.validation_ids[["post_id", "sentence_id", "criterion_id"]].copy()
    table.insert(0, "fold", np.int8(data.fold.index))
    table["label"] = data.validation.labels.astype(np.int8)
    table["probability"] = probabilities.astype(np.float32)
    return table
