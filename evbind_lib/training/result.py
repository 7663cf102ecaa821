"""What training gives: results of epochs, folds and a whole cross-validation; the callbacks it calls. No torch in it."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
import pandas as pd

from evbind_lib.config.schema import Params
from evbind_lib.data.folds import Fold
from evbind_lib.training.metrics import METRICS, aggregate, compute_metrics
from evbind_lib.training.probabilities import probabilities_of

if TYPE_CHECKING:
    from torch import Tensor
    from transformers import PreTrainedModel, PreTrainedTokenizerBase

Loss = Callable[["Tensor", "Tensor"], "Tensor"]  # of each pair, by logits (n, 2) and labels (n,)
ModelInit = Callable[[Any, "PreTrainedTokenizerBase"], "PreTrainedModel"]  # of a configuration and a tokenizer
PREDICTION_COLUMNS = ["fold", "post_id", "sentence_id", "criterion_id", "label", "logit", "probability", "weight"]


@dataclass(frozen=True)
class EpochResult:
    """What an epoch (counted from 1; folds from 0) gave: mean loss, seconds, metrics, None where it was not validated."""

    fold: int
    epoch: int
    training_loss: float
    metrics: dict[str, float] | None
    seconds: float


@dataclass(frozen=True)
class FoldResult:
    """What a fold gave, its out-of-fold predictions included.

    Attributes
    ----------
    fold, epochs, metrics
        Counted from 0; results of its epochs; metrics of the validation part after the last one, by the names of `METRICS`.
    predictions
        A row for each validated pair: fold, post_id, sentence_id, criterion_id, label (int8), logit (float32: evidence minus
        no evidence), probability (float64), weight (float64: how many combinations a sampled pair stands for). No text.
    sensitive
        Whether the corpus is: its ids then stay in the workspace.
    seconds, n_training, n_validation, precision, cached, model
        Time and pairs it took; ``bf16``, ``fp16`` or ``fp32``; whether it was read from disk; the model, with ``keep_model``.
    seed, origin
        Of its weights and batches, as ``training.seed`` or one of ``training.seeds`` has it; of one read from disk, what trained
        it and when.
    peak_memory_mb, micro_batch
        Of the GPU, or the process since it started; pairs held at once where memory was too small for the batch.

    Examples
    --------
    >>> import evbind_lib as ev
    >>> params = ev.compose(["training.args.max_steps=1"])
    >>> corpus = ev.load_corpus(params)
    >>> ev.train_fold(corpus, ev.make_folds(corpus, params)[0], params).precision
    'fp32'
    """

    fold: int
    metrics: dict[str, float]
    epochs: tuple[EpochResult, ...]
    predictions: pd.DataFrame
    seconds: float
    n_training: int
    n_validation: int
    precision: str
    peak_memory_mb: float
    micro_batch: int | None = None
    cached: bool = False
    seed: int | None = None
    origin: str = ""
    model: PreTrainedModel | None = None
    sensitive: bool = True


def prediction_table(fold: int, pairs: pd.DataFrame, logits: np.ndarray) -> pd.DataFrame:
    """Predictions of a fold's validation pairs, in their order; columns `PREDICTION_COLUMNS`."""
    table = pairs[["post_id", "sentence_id", "criterion_id"]].reset_index(drop=True)
    label, weight = pairs["label"].to_numpy(np.int8), pairs["weight"].to_numpy(np.float64)
    table = table.assign(fold=np.int8(fold), label=label, weight=weight, logit=np.asarray(logits, dtype=np.float32))
    return table.assign(probability=probabilities_of(table["logit"].to_numpy()))[PREDICTION_COLUMNS]


def predictions_of(result: FoldResult | CrossValidation | pd.DataFrame) -> pd.DataFrame:
    """Out-of-fold predictions of a result, or the table of them itself."""
    return result if isinstance(result, pd.DataFrame) else result.predictions


class Callback:
    """Called while folds are trained; does nothing by itself. An exception that a method raises ends the cross-validation.

    Examples
    --------
    >>> import evbind_lib as ev
    >>> class Report(ev.Callback):
    ...     def on_fold_end(self, result):
    ...         print(result.fold, result.metrics["macro_f1"])
    """

    def on_fold_begin(self, fold: Fold, params: Params) -> None:
        """A fold begins; ``params.training.n_folds`` is the number of folds that are cross-validated."""

    def on_step(self) -> None:
        """A forward and backward pass is done; keep it quick, since there are many."""

    def on_epoch_end(self, epoch: EpochResult) -> None:
        """An epoch is trained, and validated where ``epoch.metrics`` is not None."""

    def on_fold_end(self, result: FoldResult) -> None:
        """A fold is done, trained or read from the cache (``result.cached``)."""


@dataclass(frozen=True)
class CrossValidation:
    """Result of all folds; ``aggregation`` is how `score` aggregates by default, that of ``hpo.metric.fold_aggregation``.

    With ``training.seeds`` it holds every fold once for each seed: scores are means over seeds, and `table` has the spread
    between folds and between seeds apart. Predictions are those of the first seed: of one training, as calibration and
    thresholds need them, and not of an ensemble that nobody will use.

    Examples
    --------
    >>> import evbind_lib as ev
    >>> params = ev.compose(["training.args.max_steps=1", "training.n_folds=2"])
    >>> corpus = ev.load_corpus(params)
    >>> cv = ev.cross_validate(corpus, ev.make_folds(corpus, params), params)
    >>> cv.score("macro_f1") <= 1
    True
    """

    folds: tuple[FoldResult, ...]
    aggregation: str = "mean"

    def score(self, metric: str, aggregation: str | None = None) -> float:
        """One metric aggregated over the folds by mean, median, min or max; an unknown name is a `ParamsError`."""
        METRICS[metric]  # refuses an unknown name
        values = ([result.metrics[metric] for result in folds] for folds in self.by_seed().values())
        return float(np.mean([aggregate(each, aggregation or self.aggregation) for each in values]))

    def by_seed(self) -> dict[int | None, tuple[FoldResult, ...]]:
        """The folds of each seed, in the order of ``training.seeds``."""
        seeds = dict.fromkeys(result.seed for result in self.folds)
        return {seed: tuple(result for result in self.folds if result.seed == seed) for seed in seeds}

    @property
    def predictions(self) -> pd.DataFrame:
        """Out-of-fold predictions of every validated pair, of the first seed; columns as in `FoldResult`."""
        first = next(iter(self.by_seed().values()))
        return pd.concat([result.predictions for result in first], ignore_index=True)

    @property
    def seconds(self) -> float:
        """Seconds that the folds were trained and validated, also where they were read from the cache."""
        return sum(result.seconds for result in self.folds)

    def pooled(self) -> dict[str, float]:
        """Metrics of all out-of-fold predictions taken as one; of several seeds their mean."""
        tables = [pd.concat([result.predictions for result in folds]) for folds in self.by_seed().values()]
        every = [compute_metrics(table["label"].to_numpy(), table["probability"].to_numpy()) for table in tables]
        return {name: float(np.mean([each[name] for each in every])) for name in every[0]}

    def table(self) -> pd.DataFrame:
        """Metrics with one row per fold (counted from 1), their mean and standard deviation, and the pooled value.

        Of several seeds a fold's row is the mean over them, and ``std of seeds`` the standard deviation of a seed's mean.
        """
        every = pd.DataFrame([result.metrics for result in self.folds], columns=list(METRICS))
        every.index = pd.MultiIndex.from_tuples([(str(result.fold + 1), str(result.seed)) for result in self.folds])
        folds, seeds = (every.groupby(level=level, sort=False).mean() for level in (0, 1))
        rows = {"mean": folds.mean(), "std": folds.std(ddof=1)}
        rows |= {"std of seeds": seeds.std(ddof=1)} if len(seeds) > 1 else {}
        return pd.concat([folds, pd.DataFrame({**rows, "pooled": self.pooled()}).T]).rename_axis("fold")
