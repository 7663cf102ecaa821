"""What training tells: reports of epochs, folds and a whole cross-validation, and the observers that are told.

Imports `metrics`; `training` makes them, and everything above may read them without importing torch.
"""

from __future__ import annotations

from dataclasses import dataclass

import pandas as pd

from evbind_lib.training.metrics import METRICS, aggregate, compute_metrics

PREDICTION_COLUMNS = ["fold", "post_id", "sentence_id", "criterion_id", "label", "probability"]


@dataclass(frozen=True)
class EpochResult:
    """What an epoch gave: mean training loss, validation metrics by name, seconds of training and validating.

    ``share`` is how much of the fold's training was done by then, above 0 and up to 1; None where nobody said.
    """

    fold: int
    epoch: int
    training_loss: float
    metrics: dict[str, float]
    seconds: float
    share: float | None = None


@dataclass(frozen=True)
class FoldResult:
    """What a fold gave, its out-of-fold predictions included (ids, labels and probabilities; no text)."""

    fold: int
    metrics: dict[str, float]
    epochs: tuple[EpochResult, ...]
    predictions: pd.DataFrame
    seconds: float
    n_training: int
    n_validation: int
    peak_memory_mb: float
    micro_batch: int | None = None  # pairs a step held at once, where memory was too small for the batch


class Callback:
    """Told about each fold and epoch; does nothing by itself. An exception it raises ends the cross-validation."""

    def on_fold_begin(self, fold: int) -> None:
        """A fold, counted from 0, begins."""

    def on_step(self) -> None:
        """A forward pass of training is done; kept quick, since there are many."""

    def on_epoch_end(self, report: EpochResult) -> None:
        """An epoch is trained and validated."""

    def on_fold_end(self, report: FoldResult) -> None:
        """A fold is done."""


@dataclass(frozen=True)
class CrossValidation:
    """Result of all folds."""

    folds: tuple[FoldResult, ...]
    precision: str

    @property
    def seconds(self) -> float:
        """Seconds spent in folds."""
        return sum(report.seconds for report in self.folds)

    @property
    def predictions(self) -> pd.DataFrame:
        """Out-of-fold predictions of every validated pair; columns `PREDICTION_COLUMNS`."""
        return pd.concat([report.predictions for report in self.folds], ignore_index=True)

    def score(self, metric: str, aggregation: str) -> float:
        """Per-fold values of one metric drawn together by mean, median, min or max."""
        return aggregate([report.metrics[metric] for report in self.folds], aggregation)

    def pooled(self) -> dict[str, float]:
        """Metrics of all out-of-fold predictions taken as one."""
        predictions = self.predictions
        return compute_metrics(predictions["label"].to_numpy(), predictions["probability"].to_numpy())

    def table(self) -> pd.DataFrame:
        """Metrics with one row per fold (counted from 1), their mean and standard deviation, and the pooled value."""
        folds = pd.DataFrame([report.metrics for report in self.folds], columns=list(METRICS))
        folds.index = pd.Index([str(report.fold + 1) for report in self.folds], name="fold")
        summary = pd.DataFrame(
            [folds.mean(), folds.std(ddof=1), pd.Series(self.pooled())], index=["mean", "std", "pooled"]
        )
        return pd.concat([folds, summary]).rename_axis("fold")
