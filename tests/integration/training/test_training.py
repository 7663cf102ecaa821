"""Training of a fold: what it reports is what scikit-learn says of its predictions, and it leaves nothing behind."""

from __future__ import annotations

import tempfile
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import torch
from sklearn import metrics as sklearn_metrics

from evbind_lib.config.compose import Params, compose
from evbind_lib.data.corpus import Corpus, load_corpus
from evbind_lib.data.folds import make_folds
from evbind_lib.data.negatives import validation_pairs
from evbind_lib.errors import ParamsError, TrainingError
from evbind_lib.training.arguments import training_arguments
from evbind_lib.training.crossval import CrossValidator, at_most_threads, train_fold
from evbind_lib.training.model import load_model
from evbind_lib.training.prediction import predict
from evbind_lib.training.result import PREDICTION_COLUMNS, Callback, CrossValidation, EpochResult, FoldResult


@pytest.fixture(scope="module")
def corpus() -> Corpus:
    return load_corpus(compose().data)


def cross_validate(params: Params, corpus: Corpus, *observers: Callback) -> CrossValidation:
    folds = make_folds(corpus, n_folds=params.training.n_folds, seed=params.training.seed)
    return CrossValidator(corpus, folds).run(params, observers)


class Diary(Callback):
    def __init__(self) -> None:
        self.lines: list[tuple] = []

    def on_fold_begin(self, fold: int) -> None:
        self.lines.append(("start", fold))

    def on_epoch_end(self, report: EpochResult) -> None:
        self.lines.append(("epoch", report.fold, report.epoch))

    def on_fold_end(self, report: FoldResult) -> None:
        self.lines.append(("fold", report.fold))


def test_metrics_are_scikit_learns_on_the_predictions_per_fold_and_pooled(
    brief: Callable[..., Params], corpus: Corpus
) -> None:
    result = cross_validate(brief("training.args.max_steps=40", "training.args.learning_rate=3e-3"), corpus)

    def expected(table: pd.DataFrame) -> dict[str, float]:
        label, probability = table["label"], table["probability"]
        called = (probability >= 0.5).astype(int)
        return {
            "accuracy": sklearn_metrics.accuracy_score(label, called),
            "macro_f1": sklearn_metrics.f1_score(label, called, average="macro"),
            "pos_f1": sklearn_metrics.f1_score(label, called),
            "precision": sklearn_metrics.precision_score(label, called, zero_division=0),
            "recall": sklearn_metrics.recall_score(label, called),
            "roc_auc": sklearn_metrics.roc_auc_score(label, probability),
            "pr_auc": sklearn_metrics.average_precision_score(label, probability),
            "log_loss": sklearn_metrics.log_loss(label, probability.astype(np.float64)),
        }

    predictions = result.predictions
    assert list(predictions.columns) == PREDICTION_COLUMNS
    for report in result.folds:
        own = expected(predictions[predictions["fold"] == report.fold])
        assert report.metrics == pytest.approx(own, abs=1e-6)
    assert result.pooled() == pytest.approx(expected(predictions), abs=1e-6)
    scores = [report.metrics["macro_f1"] for report in result.folds]
    for name in ("mean", "median", "min", "max"):
        assert result.score("macro_f1", name) == pytest.approx(getattr(np, name)(scores))
    table = result.table()
    assert table.loc["mean", "macro_f1"] == pytest.approx(np.mean(scores))
    assert table.loc["std", "macro_f1"] == pytest.approx(np.std(scores, ddof=1))


def test_every_validation_pair_is_predicted_once(brief: Callable[..., Params], corpus: Corpus) -> None:
    params = brief()
    result = cross_validate(params, corpus)
    folds = make_folds(corpus, n_folds=2, seed=params.training.seed)
    keys = ["post_id", "sentence_id", "criterion_id"]
    for report, fold in zip(result.folds, folds, strict=True):
        pairs = validation_pairs(corpus, fold.validation_groups, data=params.data, seed=params.training.seed)
        assert report.predictions[keys].to_numpy().tolist() == pairs[keys].to_numpy().tolist()
        assert report.predictions["label"].tolist() == pairs["label"].tolist()
    assert not result.predictions.duplicated(keys).any()


def test_the_same_parameters_give_the_same_predictions(brief: Callable[..., Params], corpus: Corpus) -> None:
    one, same, other = (cross_validate(brief(f"training.seed={seed}"), corpus).predictions for seed in (3, 3, 4))
    pd.testing.assert_frame_equal(one, same)
    assert not np.array_equal(one["probability"].to_numpy()[:50], other["probability"].to_numpy()[:50])


def test_a_fold_alone_is_trained_as_among_the_others(brief: Callable[..., Params], corpus: Corpus) -> None:
    params = brief()
    folds = make_folds(corpus, n_folds=2, seed=params.training.seed)
    together = CrossValidator(corpus, folds).run(params).folds[1]
    alone = CrossValidator(corpus, folds[1:]).run(params).folds[0]
    pd.testing.assert_frame_equal(together.predictions, alone.predictions)


def test_observers_are_told_in_order(brief: Callable[..., Params], corpus: Corpus) -> None:
    diary = Diary()
    args = (
        "training.args.max_steps=-1",
        "training.args.num_train_epochs=2",
        "training.args.per_device_train_batch_size=64",
    )
    result = cross_validate(brief(*args), corpus, diary)
    assert diary.lines == [
        line for fold in (0, 1) for line in (("start", fold), ("epoch", fold, 1), ("epoch", fold, 2), ("fold", fold))
    ]
    assert all(report.metrics == report.epochs[-1].metrics for report in result.folds)
    assert all(epoch.training_loss > 0 and epoch.seconds > 0 for report in result.folds for epoch in report.epochs)
    assert [epoch.share for report in result.folds for epoch in report.epochs] == [0.5, 1.0] * len(result.folds)


def test_part_of_an_epoch_is_validated_too(brief: Callable[..., Params], corpus: Corpus) -> None:
    args = (
        "training.args.max_steps=-1",
        "training.args.num_train_epochs=1.5",
        "training.args.per_device_train_batch_size=64",
    )
    result = cross_validate(brief(*args), corpus)
    assert [len(report.epochs) for report in result.folds] == [2, 2]


@pytest.mark.parametrize("loss", ["weighted_ce", "focal"])
def test_accumulated_steps_train_as_one_large_batch(brief: Callable[..., Params], corpus: Corpus, loss: str) -> None:
    shared = (
        "training.args.max_steps=4",
        f"training.loss_function={loss}",
        "training.args.train_sampling_strategy=sequential",
    )
    whole = cross_validate(brief(*shared, "training.args.per_device_train_batch_size=16"), corpus)
    parts = cross_validate(
        brief(*shared, "training.args.per_device_train_batch_size=4", "training.args.gradient_accumulation_steps=4"),
        corpus,
    )
    difference = whole.predictions["probability"] - parts.predictions["probability"]
    assert difference.abs().max() < 1e-4


def test_a_loss_that_is_no_number_stops_at_once_and_names_fold_and_step(
    brief: Callable[..., Params], corpus: Corpus
) -> None:
    with pytest.raises(
        TrainingError, match=r"fold 1, step \d+: the loss is (nan|inf); lower training.args.learning_rate"
    ):
        cross_validate(brief("training.args.learning_rate=1e30", "training.args.max_steps=20"), corpus)


def test_nothing_is_written(
    brief: Callable[..., Params], corpus: Corpus, workspace: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    temporary = tmp_path / "temporary"
    temporary.mkdir()
    monkeypatch.setattr(tempfile, "tempdir", str(temporary))
    cross_validate(brief(), corpus)
    assert list(workspace.rglob("*")) == [] and list(temporary.rglob("*")) == []


def test_predictions_do_not_hang_on_the_batches(brief: Callable[..., Params], corpus: Corpus) -> None:
    params = brief()
    fold = make_folds(corpus, n_folds=2, seed=0)[0]
    data = CrossValidator(corpus, [fold]).prepare(params, fold)
    model = load_model(params.model, data.encoder.tokenizer)
    pad = int(data.encoder.tokenizer.pad_token_id)
    few, many = (
        predict(model, data.validation, pad_token_id=pad, batch_size=size, precision="fp32") for size in (3, 200)
    )
    np.testing.assert_allclose(few, many, atol=1e-5)
    assert model.training  # as it was


def test_validation_is_the_same_for_every_trial(brief: Callable[..., Params], corpus: Corpus) -> None:
    params = brief()
    fold = make_folds(corpus, n_folds=2, seed=0)[0]
    validator = CrossValidator(corpus, [fold])
    first = validator.prepare(params, fold)
    other = validator.prepare(params.with_values({"data.pos_neg_ratio": 3, "data.negative_strategy": "hard"}), fold)
    assert first.validation is other.validation
    assert len(other.training) > len(first.training)


def test_the_usual_name_of_warm_up_and_any_other_argument(brief: Callable[..., Params]) -> None:
    arguments = training_arguments(
        brief(
            "training.args.warmup_ratio=0.25", "training.args.adam_beta2=0.98", "training.args.lr_scheduler_type=cosine"
        ),
        output_dir="unused",
    )
    assert arguments.warmup_steps == 0.25 and arguments.get_warmup_steps(100) == 25
    assert arguments.adam_beta2 == 0.98 and arguments.lr_scheduler_type == "cosine"
    assert arguments.save_strategy == "no" and arguments.optim == "adamw_torch_fused"
    assert training_arguments(brief("training.args.optim=adafactor"), output_dir="unused").optim == "adafactor"


def test_what_transformers_refuses_is_told_in_a_sentence(brief: Callable[..., Params]) -> None:
    with pytest.raises(
        ParamsError, match=r"training\.args: transformers refuses them: .*; change them or leave them out"
    ):
        training_arguments(brief("training.args.optim=adamm"), output_dir="unused")


def test_memory_and_sizes_are_reported(brief: Callable[..., Params], corpus: Corpus) -> None:
    params = brief()
    fold = make_folds(corpus, n_folds=2, seed=0)[0]
    data = CrossValidator(corpus, [fold]).prepare(params, fold)
    report = train_fold(params, data)
    assert (report.n_training, report.n_validation) == (len(data.training), len(data.validation))
    assert report.peak_memory_mb > 10 and report.seconds > 0


def test_a_model_may_take_fewer_threads_and_gives_them_back(brief: Callable[..., Params], corpus: Corpus) -> None:
    class Threads(Callback):
        def __init__(self) -> None:
            self.seen: set[int] = set()

        def on_step(self) -> None:
            self.seen.add(torch.get_num_threads())

    before = torch.get_num_threads()
    try:
        torch.set_num_threads(2)
        watcher = Threads()
        cross_validate(brief("model.threads=1"), corpus, watcher)
        assert watcher.seen == {1} and torch.get_num_threads() == 2
        with pytest.raises(RuntimeError, match="cut off"), at_most_threads(1):
            raise RuntimeError("cut off")
        assert torch.get_num_threads() == 2
        with at_most_threads(None):
            assert torch.get_num_threads() == 2
    finally:
        torch.set_num_threads(before)
