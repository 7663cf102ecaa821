"""Training of a fold: scores are those of scikit-learn, losses and models of one's own take part, nothing is left behind."""

from __future__ import annotations

import tempfile
from collections.abc import Callable, Sequence
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pandas as pd
import pytest
import torch
import transformers
from sklearn import metrics as sklearn_metrics
from transformers import DebertaV2ForSequenceClassification, TrainerCallback

from evbind_lib.config.schema import Params
from evbind_lib.data.corpus import Corpus
from evbind_lib.data.folds import Fold, make_folds
from evbind_lib.data.negatives import fold_pairs
from evbind_lib.errors import ParamsError, TrainingError
from evbind_lib.training.crossval import cross_validate
from evbind_lib.training.fold import check, prepare_fold, train_fold
from evbind_lib.training.losses import LOSSES, make_loss, weighted_cross_entropy
from evbind_lib.training.model import load_model, predict
from evbind_lib.training.result import PREDICTION_COLUMNS, Callback, EpochResult, FoldResult
from evbind_lib.training.trainer import READ_EVERY, TrainerLoss, training_arguments
from tests.benchmarks.speed import bare_loop

Brief = Callable[..., Params]


class Diary(Callback):
    def __init__(self) -> None:
        self.lines: list[tuple] = []
        self.steps = 0

    def on_fold_begin(self, fold: Fold, params: Params) -> None:
        self.lines.append(("begin", fold.index, params.training.n_folds))

    def on_step(self) -> None:
        self.steps += 1

    def on_epoch_end(self, epoch: EpochResult) -> None:
        self.lines.append(("epoch", epoch.fold, epoch.epoch))

    def on_fold_end(self, result: FoldResult) -> None:
        self.lines.append(("end", result.fold))


def expected_metrics(table: pd.DataFrame) -> dict[str, float]:
    label, probability = table["label"], table["probability"]
    called = (probability >= 0.5).astype(int)
    return {
        "accuracy": sklearn_metrics.accuracy_score(label, called),
        "macro_f1": sklearn_metrics.f1_score(label, called, average="macro"),
        "pos_f1": sklearn_metrics.f1_score(label, called),
        "precision": sklearn_metrics.precision_score(label, called, zero_division=0),
        "recall": sklearn_metrics.recall_score(label, called),
        "specificity": sklearn_metrics.recall_score(label, called, pos_label=0),
        "balanced_accuracy": sklearn_metrics.balanced_accuracy_score(label, called),
        "matthews": sklearn_metrics.matthews_corrcoef(label, called),
        "roc_auc": sklearn_metrics.roc_auc_score(label, probability),
        "pr_auc": sklearn_metrics.average_precision_score(label, probability),
        "log_loss": sklearn_metrics.log_loss(label, probability),
        "brier": sklearn_metrics.brier_score_loss(label, probability),
    }


def test_metrics_are_scikit_learns_on_the_predictions_per_fold_and_pooled(
    brief: Brief, corpus: Corpus, folds: Sequence[Fold]
) -> None:
    result = cross_validate(corpus, folds, brief("training.args.max_steps=40", "training.args.learning_rate=3e-3"))
    predictions = result.predictions
    assert list(predictions.columns) == PREDICTION_COLUMNS
    drawn = pd.concat([fold_pairs(corpus, fold, brief())[1] for fold in folds])
    assert predictions["weight"].tolist() == drawn["weight"].tolist() and predictions["weight"].max() > 1
    for fold in result.folds:
        own = expected_metrics(predictions[predictions["fold"] == fold.fold])
        assert fold.metrics == pytest.approx(own, abs=1e-9)
        assert fold.metrics == fold.epochs[-1].metrics
    assert result.pooled() == pytest.approx(expected_metrics(predictions), abs=1e-9)
    scores = [fold.metrics["macro_f1"] for fold in result.folds]
    for name in ("mean", "median", "min", "max"):
        assert result.score("macro_f1", name) == pytest.approx(getattr(np, name)(scores))
    assert result.score("macro_f1") == pytest.approx(np.mean(scores))
    table = result.table()
    assert table.loc["mean", "macro_f1"] == pytest.approx(np.mean(scores))
    assert table.loc["std", "macro_f1"] == pytest.approx(np.std(scores, ddof=1))
    with pytest.raises(ParamsError, match="macro_f1"):
        result.score("macro_fi")


def test_every_validation_pair_is_predicted_once(brief: Brief, corpus: Corpus, folds: Sequence[Fold]) -> None:
    params = brief()
    result = cross_validate(corpus, folds, params)
    keys = ["post_id", "sentence_id", "criterion_id"]
    for fold, done in zip(folds, result.folds, strict=True):
        training, validation = fold_pairs(corpus, fold, params)
        assert done.predictions[keys].to_numpy().tolist() == validation[keys].to_numpy().tolist()
        assert done.predictions["label"].tolist() == validation["label"].tolist()
        assert (done.n_training, done.n_validation) == (len(training), len(validation))
        assert done.peak_memory_mb > 10 and done.seconds > 0
    assert not result.predictions.duplicated(keys).any()


def test_the_same_parameters_give_the_same_predictions_and_a_fold_alone_as_among_the_others(
    brief: Brief, corpus: Corpus, folds: Sequence[Fold]
) -> None:
    one = cross_validate(corpus, folds, brief())
    pd.testing.assert_frame_equal(one.folds[1].predictions, train_fold(corpus, folds[1], brief()).predictions)
    other = train_fold(corpus, folds[0], brief("training.seed=4"))
    assert not np.array_equal(one.folds[0].predictions["logit"][:50], other.predictions["logit"][:50])


def test_callbacks_are_called_in_order(brief: Brief, corpus: Corpus, folds: Sequence[Fold]) -> None:
    diary = Diary()
    args = ("training.args.max_steps=-1", "training.args.per_device_train_batch_size=64")
    result = cross_validate(corpus, folds, brief(*args, "training.args.num_train_epochs=2"), callbacks=[diary])
    assert diary.lines == [
        line for fold in (0, 1) for line in (("begin", fold, 2), ("epoch", fold, 1), ("epoch", fold, 2), ("end", fold))
    ]
    assert diary.steps >= 4
    assert all(epoch.training_loss > 0 and epoch.seconds > 0 for fold in result.folds for epoch in fold.epochs)
    part = train_fold(corpus, folds[0], brief(*args, "training.args.num_train_epochs=1.5"))
    assert len(part.epochs) == 2, "part of an epoch is validated too"


def test_epochs_are_validated_each_or_the_last_alone_with_the_same_predictions(
    brief: Brief, corpus: Corpus, folds: Sequence[Fold]
) -> None:
    class OneEpochLess(TrainerCallback):
        def on_epoch_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
            control.should_training_stop = state.epoch >= 2

    args = ("training.args.max_steps=-1", "training.args.per_device_train_batch_size=64")
    three = [*args, "training.args.num_train_epochs=3"]
    last, each = (
        train_fold(corpus, folds[0], brief(*three, f"training.validation={when}")) for when in ("last", "each")
    )
    assert [epoch.metrics is None for epoch in last.epochs] == [True, True, False]
    assert None not in [epoch.metrics for epoch in each.epochs]
    assert last.metrics == last.epochs[-1].metrics == each.epochs[-1].metrics
    assert [epoch.training_loss for epoch in last.epochs] == [epoch.training_loss for epoch in each.epochs]
    pd.testing.assert_frame_equal(last.predictions, each.predictions)
    stopped = train_fold(corpus, folds[0], brief(*three), callbacks=[OneEpochLess()])
    assert [epoch.metrics is None for epoch in stopped.epochs] == [True, False], (
        "wherever it ends, the end is validated"
    )


def test_an_exception_of_a_callback_ends_the_cross_validation(
    brief: Brief, corpus: Corpus, folds: Sequence[Fold]
) -> None:
    class Enough(Callback):
        def on_fold_end(self, result: FoldResult) -> None:
            raise KeyError("enough")

    diary = Diary()
    with pytest.raises(KeyError, match="enough"):
        cross_validate(corpus, folds, brief(), callbacks=[diary, Enough()])
    assert [line[0] for line in diary.lines].count("begin") == 1


def test_trainer_callbacks_of_transformers_go_to_the_trainer(
    brief: Brief, corpus: Corpus, folds: Sequence[Fold]
) -> None:
    class StopEarly(TrainerCallback):
        seen = 0

        def on_step_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
            self.seen += 1
            control.should_training_stop = True

    stop, diary = StopEarly(), Diary()
    train_fold(corpus, folds[0], brief(), callbacks=[stop, diary])
    assert (stop.seen, diary.steps) == (1, 1)


def test_a_loss_handed_in_trains_as_the_built_in_one(brief: Brief, corpus: Corpus, folds: Sequence[Fold]) -> None:
    params = brief()
    training, _ = fold_pairs(corpus, folds[0], params)
    counts = np.bincount(training["label"])
    weights = torch.tensor(len(training) / (2 * counts), dtype=torch.float32)

    def own(logits: torch.Tensor, labels: torch.Tensor) -> torch.Tensor:
        return torch.nn.functional.cross_entropy(logits, labels, weight=weights, reduction="none")

    built_in = train_fold(corpus, folds[0], params).predictions
    pd.testing.assert_frame_equal(train_fold(corpus, folds[0], params, loss=own).predictions, built_in)
    by_name = train_fold(corpus, folds[0], params, loss="focal").predictions
    assert not np.array_equal(by_name["logit"], built_in["logit"])


def test_a_loss_that_is_no_number_per_pair_is_refused(brief: Brief, corpus: Corpus, folds: Sequence[Fold]) -> None:
    with pytest.raises(TrainingError, match='reduction="none"'):
        train_fold(corpus, folds[0], brief(), loss=torch.nn.functional.cross_entropy)


def test_a_registered_loss_is_usable_by_name_with_arguments_of_its_own(
    brief: Brief, corpus: Corpus, folds: Sequence[Fold], monkeypatch: pytest.MonkeyPatch
) -> None:
    seen = []

    def factory(training: Any, labels: np.ndarray) -> Any:
        seen.append((training.loss_args, len(labels)))
        return lambda logits, labels: weighted_cross_entropy(logits, labels, weights=torch.ones(2))

    monkeypatch.setitem(LOSSES, "plain", factory)
    params = brief("training.loss_function=plain", "training.loss_args.smoothing=0.1")
    check(params)
    result = train_fold(corpus, folds[0], params)
    assert seen[-1] == ({"smoothing": 0.1}, result.n_training)


def test_a_model_of_ones_own_is_made_once_per_fold_after_seeding(
    brief: Brief, corpus: Corpus, folds: Sequence[Fold]
) -> None:
    made = []

    def usual(config: Any, tokenizer: Any) -> Any:
        made.append((config.num_labels, len(tokenizer)))
        return DebertaV2ForSequenceClassification(config)

    result = cross_validate(corpus, folds, brief(), model_init=usual)
    assert [labels for labels, _ in made] == [2, 2]
    pd.testing.assert_frame_equal(result.predictions, cross_validate(corpus, folds, brief()).predictions)
    kept = train_fold(corpus, folds[0], brief(), model_init=usual, keep_model=True)
    assert isinstance(kept.model, DebertaV2ForSequenceClassification) and result.folds[0].model is None


def test_each_fold_has_a_seed_of_its_own_and_that_of_the_data_is_another(brief: Brief, corpus: Corpus) -> None:
    seeds: list[int] = []

    def seen(config: Any, tokenizer: Any) -> Any:
        seeds.append(torch.initial_seed())
        return DebertaV2ForSequenceClassification(config)

    def train(*overrides: str) -> tuple[list[int], list[Fold], list[list[str]]]:
        params = brief(*overrides)
        folds = make_folds(corpus, params)
        seeds.clear()
        result = cross_validate(corpus, folds, params, model_init=seen)
        return seeds[:], folds, [fold.predictions["sentence_id"].tolist() for fold in result.folds]

    first, same_data, same_training = train(), train("training.seed=7"), train("data.seed=7")
    assert first[0] == [int(np.random.SeedSequence([42, fold]).generate_state(1)[0]) for fold in (0, 1)]
    assert not {*first[0]} & {*same_data[0]} and same_data[1:] == first[1:]
    assert same_training[0] == first[0] and same_training[1] != first[1] and same_training[2] != first[2]


@pytest.mark.parametrize("loss", ["weighted_ce", "focal"])
def test_accumulated_steps_train_as_one_large_batch(
    brief: Brief, corpus: Corpus, folds: Sequence[Fold], loss: str
) -> None:
    shared = (
        *("training.args.max_steps=4", f"training.loss_function={loss}"),
        "training.args.train_sampling_strategy=sequential",
    )
    whole = train_fold(corpus, folds[0], brief(*shared, "training.args.per_device_train_batch_size=16"))
    small = ("training.args.per_device_train_batch_size=4", "training.args.gradient_accumulation_steps=4")
    parts = train_fold(corpus, folds[0], brief(*shared, *small))
    difference = whole.predictions["probability"] - parts.predictions["probability"]
    assert difference.abs().max() < 1e-4


def test_a_loss_that_is_not_finite_stops_at_once_and_names_fold_and_step(
    brief: Brief, corpus: Corpus, folds: Sequence[Fold]
) -> None:
    with pytest.raises(TrainingError, match=r"fold 1, step \d+.*training\.args\.learning_rate"):
        train_fold(corpus, folds[0], brief("training.args.adam_epsilon=0", "training.args.max_steps=20"))


def test_weights_are_those_of_a_bare_loop(brief: Brief, corpus: Corpus, folds: Sequence[Fold]) -> None:
    args = {"max_steps": 5, "train_sampling_strategy": "sequential", "learning_rate": 3e-3, "warmup_ratio": 0.4}
    params = brief("training.args.weight_decay=0.5", *(f"training.args.{name}={value}" for name, value in args.items()))
    trained = train_fold(corpus, folds[0], params, keep_model=True).model
    assert trained is not None
    data = prepare_fold(corpus, folds[0], params)
    rows = np.arange(5 * params.training.args["per_device_train_batch_size"]).reshape(5, -1)
    batches = [data.training.collate([data.training[int(row)] for row in batch]) for batch in rows]
    # A seed of its own for each fold.
    own = int(np.random.SeedSequence([params.training.seed, 0]).generate_state(1)[0])
    params = params.with_values({"training.seed": own})
    transformers.set_seed(own)
    model, arguments = load_model(params.model, data.encoder.tokenizer), training_arguments(params, output_dir="unused")
    bare_loop(model, batches, 5, make_loss(params.training, data.training.labels), arguments, "fp32")
    for (name, one), other in zip(trained.named_parameters(), model.parameters(), strict=True):
        torch.testing.assert_close(one, other, rtol=0, atol=1e-6, msg=lambda text, name=name: f"{name}: {text}")


@pytest.mark.parametrize(("bad", "raised_at"), [(5, READ_EVERY), (READ_EVERY + 1, None)])
def test_losses_are_read_many_at_a_time_and_the_first_that_is_not_finite_is_named(bad: int, raised_at: int) -> None:
    labels, calls = torch.zeros(4, dtype=torch.int64), 0

    def loss(logits: torch.Tensor, labels: torch.Tensor) -> torch.Tensor:
        return logits[:, 0] * (np.nan if calls >= bad else 1)

    watched = TrainerLoss(loss, "fold 2")
    with pytest.raises(TrainingError, match=rf"fold 2, step {bad}: the loss is nan"):
        while calls < READ_EVERY + 9:
            calls += 1
            watched(SimpleNamespace(logits=torch.ones(4, 2)), labels)
        watched.epoch_mean()
    assert calls == (raised_at or READ_EVERY + 9)


def test_nothing_is_written(
    brief: Brief,
    corpus: Corpus,
    folds: Sequence[Fold],
    workspace: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    temporary = tmp_path / "temporary"
    temporary.mkdir()
    monkeypatch.setattr(tempfile, "tempdir", str(temporary))
    cross_validate(corpus, folds, brief())
    assert list(workspace.rglob("*")) == [] and list(temporary.rglob("*")) == []


def test_predictions_do_not_depend_on_the_batches(brief: Brief, corpus: Corpus, folds: Sequence[Fold]) -> None:
    params = brief()
    data = prepare_fold(corpus, folds[0], params)
    model = load_model(params.model, data.encoder.tokenizer)
    few, many = (predict(model, data.validation, batch_size=size, precision="fp32") for size in (3, 200))
    np.testing.assert_allclose(few, many, atol=1e-4)
    assert model.training  # as it was


def test_validation_is_the_same_for_every_trial(brief: Brief, corpus: Corpus, folds: Sequence[Fold]) -> None:
    params = brief()
    first = prepare_fold(corpus, folds[0], params)
    again = params.with_values({"data.pos_neg_ratio": 3, "data.negative_strategy": "hard"})
    other = prepare_fold(corpus, folds[0], again)
    assert first.validation is other.validation and len(other.training) > len(first.training)
    assert prepare_fold(corpus, make_folds(corpus, params)[0], params).validation is first.validation


def test_the_usual_name_of_warm_up_and_any_other_argument(brief: Brief) -> None:
    args = ("warmup_ratio=0.25", "adam_beta2=0.98", "lr_scheduler_type=cosine")
    arguments = training_arguments(brief(*(f"training.args.{arg}" for arg in args)), output_dir="unused")
    assert arguments.warmup_steps == 0.25 and arguments.get_warmup_steps(100) == 25
    assert arguments.adam_beta2 == 0.98 and arguments.lr_scheduler_type == "cosine"
    assert arguments.save_strategy == "no" and arguments.optim == "adamw_torch_fused"
    assert training_arguments(brief("training.args.optim=adafactor"), output_dir="unused").optim == "adafactor"


@pytest.mark.parametrize(
    ("override", "named"),
    [
        ("training.args.optim=adamm", r"training\.args"),
        ("training.args.learning_rte=1", r"training\.args\.learning_rte.*'learning_rate'"),
        ("training.args.evaluation_strategy=epoch", r"'eval_strategy'"),
        ("training.args.learning_rate=0", r"training\.args\.learning_rate=0"),
        ("training.args.per_device_train_batch_size=many", r"training\.args\.per_device_train_batch_size=many"),
        ("training.loss_function=focl", r"training\.loss_function=focl.*'focal'"),
        ("hpo.metric.name=macro_f", r"hpo\.metric\.name=macro_f.*'macro_f1'"),
        ("hpo.metric.name=log_loss", r"hpo\.study\.direction=minimize"),
        ("model.precision=fp16", r"model\.precision=auto"),
    ],
)
def test_what_cannot_be_trained_is_refused_before(brief: Brief, override: str, named: str) -> None:
    if override == "model.precision=fp16" and torch.cuda.is_available():
        pytest.skip("a GPU multiplies fp16")
    with pytest.raises(Exception, match=named) as refused:
        check(brief(override))
    assert refused.type.__module__ == "evbind_lib.errors"


def test_a_model_may_take_fewer_threads_and_gives_them_back(
    brief: Brief, corpus: Corpus, folds: Sequence[Fold]
) -> None:
    class Threads(Callback):
        def __init__(self) -> None:
            self.seen: set[int] = set()

        def on_step(self) -> None:
            self.seen.add(torch.get_num_threads())

    class CutOff(Callback):
        def on_epoch_end(self, epoch: EpochResult) -> None:
            raise RuntimeError("cut off")

    before = torch.get_num_threads()
    try:
        torch.set_num_threads(2)
        watcher = Threads()
        train_fold(corpus, folds[0], brief("model.threads=1"), callbacks=[watcher])
        assert watcher.seen == {1} and torch.get_num_threads() == 2
        with pytest.raises(RuntimeError, match="cut off"):
            train_fold(corpus, folds[0], brief("model.threads=1"), callbacks=[CutOff()])
        assert torch.get_num_threads() == 2
    finally:
        torch.set_num_threads(before)
