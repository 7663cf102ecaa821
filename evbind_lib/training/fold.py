"""Train one fold: pairs drawn and encoded, a fresh model fine-tuned by Hugging Face Trainer, the other part predicted."""

import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from types import SimpleNamespace
from typing import Any
from weakref import WeakKeyDictionary

import numpy as np
import pandas as pd
import torch
from transformers import PreTrainedModel, TrainerCallback

from evbind_lib.config.arguments import RANGES
from evbind_lib.config.encoders import TINY
from evbind_lib.config.schema import DataParams, Params, dotted_name
from evbind_lib.data.corpus import Corpus
from evbind_lib.data.folds import Fold
from evbind_lib.data.negatives import training_pairs, validation_pairs
from evbind_lib.errors import ModelError, ParamsError, TrainingError, did_you_mean, shown
from evbind_lib.training import trainer
from evbind_lib.training.cache import model_content
from evbind_lib.training.encoding import EncodedPairs, PairEncoder
from evbind_lib.training.losses import FOCAL, LOSS_ARGS, make_loss, settings_of
from evbind_lib.training.metrics import METRICS, compute_metrics
from evbind_lib.training.model import check_model, choose_precision, load_tokenizer, predict, quiet_libraries
from evbind_lib.training.probabilities import probabilities_of
from evbind_lib.training.result import Callback, EpochResult, FoldResult, Loss, ModelInit, prediction_table
from evbind_lib.training.trainer import TrainerLoss


@dataclass(frozen=True)
class FoldData:
    """One fold, encoded: what is trained on, and what is predicted with its table."""

    fold: Fold
    encoder: PairEncoder
    training: EncodedPairs
    validation: EncodedPairs
    validation_pairs: pd.DataFrame
    sensitive: bool


# By corpus, so that every fold, trial and notebook cell draws and tokenises once; gone with the corpus.
_prepared: WeakKeyDictionary[Corpus, dict[Any, Any]] = WeakKeyDictionary()
_tried: set[tuple[str, ...]] = set()  # models that were trained for a step


def prepare_fold(corpus: Corpus, fold: Fold, params: Params) -> FoldData:
    """Draw and encode the pairs of a fold, or take them from an earlier call with the same data parameters."""
    memory, data, model = _prepared.setdefault(corpus, {}), params.data, params.model
    # The tiny model's tokenizer is trained on the training part; a pretrained one is the same in every fold.
    tokenizer = (model.name, model.max_length, fold if model.name == TINY else None)
    if tokenizer not in memory:
        _, sentences = corpus.inside(fold.training_groups)
        texts = [*corpus.criteria.values(), *sentences["sentence"]]
        memory[tokenizer] = PairEncoder(load_tokenizer(model, texts), model.max_length)
    encoder = memory[tokenizer]

    def last(draw: Callable[..., pd.DataFrame], groups: frozenset[str], data: DataParams) -> tuple[Any, EncodedPairs]:
        """Pairs as they were last drawn; a search over pos_neg_ratio would fill the memory with all of them."""
        place = (draw, model.name, model.max_length, fold)
        if place not in memory or memory[place][0] != data:
            pairs = draw(corpus, groups, data)
            memory[place] = data, pairs, encoder.encode(pairs)
        return memory[place][1:]

    _, training = last(training_pairs, fold.training_groups, data)
    of_training = {"pos_neg_ratio": 1.0, "negative_strategy": "all"}  # may be searched, and change no validation pair
    table, validation = last(validation_pairs, fold.validation_groups, data.model_copy(update=of_training))
    return FoldData(fold, encoder, training, validation, table, corpus.sensitive)


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
    """Fine-tune a fresh model on the training part of a fold and predict the other part; no checkpoints.

    Where memory does not hold a batch, the fold begins again with half as many pairs at once and twice as many steps to
    accumulate gradients over: the effective batch, and so the optimisation, stays the same.

    Parameters
    ----------
    corpus, fold, params
        Of the parameters the branches ``data``, ``model`` and ``training``.
    loss
        A name of `LOSSES`, or a function ``(logits (n, 2) float, labels (n,) int64) -> (n,) float``, one number per pair; by
        default ``training.loss_function``.
    model_init
        ``model_init(config, tokenizer) -> PreTrainedModel`` with two classes, called once after seeding; by default the encoder
        of ``model.name`` with a fresh head.
    callbacks, keep_model
        `Callback` and ``transformers.TrainerCallback`` mixed; whether ``FoldResult.model`` holds the trained model.

    Returns
    -------
    FoldResult
        Metrics and predictions after the last epoch. A `TrainingError` where a loss is not finite or not one number per pair, or
        memory does not hold a single pair; `ParamsError` or `ModelError` where parameters name what there is not.

    Examples
    --------
    >>> import evbind_lib as ev
    >>> params = ev.compose(["training.args.max_steps=2"])
    >>> corpus = ev.load_corpus(params)
    >>> len(ev.train_fold(corpus, ev.make_folds(corpus, params)[0], params).epochs)
    1
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
    save: Callable[[FoldResult], None] | None = None,
) -> FoldResult:
    """Train a fold whose pairs are encoded; ``micro_batch`` pairs at once where fewer than the batch are known to fit."""
    started, fold = time.perf_counter(), data.fold.index
    ours = [callback for callback in callbacks if isinstance(callback, Callback)]
    for callback in ours:
        callback.on_fold_begin(data.fold, params)
    if torch.cuda.is_available():
        torch.cuda.reset_peak_memory_stats()
    batch = int(params.training.args.get(trainer.BATCH, 8))
    precision = choose_precision(params.model.precision)
    theirs = [callback for callback in callbacks if isinstance(callback, TrainerCallback)]
    asked = [] if theirs else [data.training, data.validation]  # theirs may ask the model anything
    # Under one seed the folds of a set might share its luck, which no correction of their mean could see.
    seed = int(np.random.SeedSequence([params.training.seed, fold]).generate_state(1)[0])
    seeded = params.model_copy(update={"training": params.training.model_copy(update={"seed": seed})})
    model: PreTrainedModel | None = None
    while model is None:
        tried = micro_batch or batch
        watched = TrainerLoss(make_loss(params.training, data.training.labels, loss), f"fold {fold + 1}")
        validation = _Validation(data, params, precision, watched, ours)
        smaller, hooks = trainer.with_micro_batch(seeded, tried), [validation, *theirs]
        try:
            model = trainer.fit(smaller, data.encoder, data.training, watched, model_init, hooks, asked)
        except trainer.NotFiniteError:
            if precision == "fp32":
                raise
            precision = "fp32"  # once more from the same seed: sixteen bits may be what the loss left
            seeded = seeded.model_copy(update={"model": params.model.model_copy(update={"precision": precision})})
        except Exception as error:
            if not trainer.is_out_of_memory(error):
                raise
            if tried == 1:
                remedy = "lower model.max_length, or choose a smaller model"
                raise TrainingError(f"fold {fold + 1}: memory does not hold a single pair; {remedy}.") from None
            micro_batch = max(size for size in range(1, tried // 2 + 1) if tried % size == 0)
        finally:
            if model is None:  # else below, when nothing needs it any more
                trainer.collect_garbage()
    result = FoldResult(
        fold=fold,
        metrics=dict(validation.epochs[-1].metrics or {}),
        epochs=tuple(validation.epochs),
        predictions=prediction_table(fold, data.validation_pairs, validation.logits),
        seconds=time.perf_counter() - started,
        n_training=len(data.training),
        n_validation=len(data.validation),
        precision=precision,
        seed=params.training.seed,
        peak_memory_mb=trainer.peak_memory_mb(),
        micro_batch=micro_batch if micro_batch != batch else None,
        model=model if keep_model else None,
        sensitive=data.sensitive,
    )
    del model
    trainer.collect_garbage()  # Trainer and model refer to each other; without this, memory is held until some later fold
    if save:
        save(result)  # before a pruner looks at it, or a kill can lose it
    for callback in ours:
        callback.on_fold_end(result)
    return result


class _Validation(TrainerCallback):
    """Predict the validation part after each epoch or after the last, and call evbind's callbacks."""

    def __init__(
        self, data: FoldData, params: Params, precision: str, loss: TrainerLoss, callbacks: Sequence[Callback]
    ) -> None:
        self.data, self.precision, self.loss, self.callbacks = data, precision, loss, callbacks
        self.each = params.training.validation == "each"
        self.epochs: list[EpochResult] = []
        self.logits = np.empty(0, dtype=np.float32)
        self.started, self.trained = time.perf_counter(), False

    def on_epoch_begin(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        if self.trained:  # only now it shows that the epoch before was not the last
            self._close()
        self.started = time.perf_counter()

    def on_step_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        self.trained = True
        for callback in self.callbacks:
            callback.on_step()

    on_substep_end = on_step_end

    def on_epoch_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        if self.each:
            self._close(kwargs["model"], args.per_device_eval_batch_size)

    def on_train_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        # max_steps, a fractional num_train_epochs or a callback may end it at any step.
        if self.trained or not self.epochs:
            self._close(kwargs["model"], args.per_device_eval_batch_size)

    def _close(self, model: PreTrainedModel | None = None, batch_size: int = 0) -> None:
        """End an epoch, validated with a model where one is given."""
        training_loss, metrics, self.trained = self.loss.epoch_mean(), None, False
        if model is not None:
            logits = predict(model, self.data.validation, batch_size=batch_size, precision=self.precision)
            self.logits = logits.astype(np.float32)  # as it is cached, so that metrics of cached folds are the same
            metrics = compute_metrics(self.data.validation.labels, probabilities_of(self.logits))
        seconds = time.perf_counter() - self.started
        epoch = EpochResult(self.data.fold.index, len(self.epochs) + 1, training_loss, metrics, seconds)
        self.epochs.append(epoch)
        for callback in self.callbacks:
            callback.on_epoch_end(epoch)


def check(params: Params, loss: str | Loss | None = None) -> None:
    """Refuse what cannot be used before anything is trained or written; a loss that was handed in keeps what it takes."""
    check_values(params)
    given = [f"{LOSS_ARGS}{name}" for name in params.training.loss_args]
    for name in dict.fromkeys([*given, *map(dotted_name, params.hpo.search_space)]):
        losses = [loss] if loss else losses_of(params, name)
        takes = [settings_of(each) for each in losses]
        if name.startswith((LOSS_ARGS, FOCAL)) and not any(each is None or name in each for each in takes):
            known = [each.rpartition(".")[2] for each in set[str]().union(*filter(None, takes))]
            near = did_you_mean(name.rpartition(".")[2], known) if known else "; take it out."
            raise ParamsError(f"{name}: there is no setting of that name in {' or '.join(map(str, losses))}{near}")


def losses_of(params: Params, name: str) -> list[Any]:
    """Losses that a parameter is used with: those of its ``when``, else the one set, and of a loss's own those searched."""
    space, key = {dotted_name(each): entry for each, entry in params.hpo.search_space.items()}, "training.loss_function"
    when = {dotted_name(other): wanted for other, wanted in space[name].when.items()} if name in space else {}
    searched = space[key].choices if key in space and name.startswith((LOSS_ARGS, FOCAL)) else None
    losses = when.get(key) or [params.training.loss_function, *(searched or [])]
    return [*dict.fromkeys(losses if isinstance(losses, list) else [losses])]


def check_values(params: Params) -> None:
    """Refuse a loss, metric, direction, training argument or model that cannot be used."""
    tried, labels = SimpleNamespace(logits=torch.zeros(2, 2)), torch.tensor([0, 1])
    try:
        TrainerLoss(make_loss(params.training, labels.numpy()), "two pairs")(tried, labels)
    except (ArithmeticError, AttributeError, LookupError, RuntimeError, TypeError, ValueError) as error:
        place, problem = f"training.loss_function={params.training.loss_function}", _reason(error)
        raise ParamsError(f"{place}: it cannot be computed ({problem}); look at training.loss_args.") from None
    name, key = params.hpo.metric.name, "hpo.study.direction"
    better, order = ("maximize", "higher") if METRICS[name].greater_is_better else ("minimize", "lower")
    if params.hpo.study.direction != better:
        problem = f"{name} is better when {order}; set {key}={better}"
        raise ParamsError(f"{key}={params.hpo.study.direction}: {problem}.")
    with quiet_libraries():
        trainer.training_arguments(params, output_dir="unused")
        check_model(params.model)
        if not {*params.training.args} <= {*RANGES}:
            _try_arguments(params)
        model = (params.model.model_dump_json(), *model_content(params))
        if params.model.name != TINY and model not in _tried:  # once, and not for each verb of a notebook
            _try_model(params)
            _tried.add(model)


def _try_arguments(params: Params) -> None:
    """Train the tiny model by two steps: transformers and PyTorch look at most arguments when they use them."""
    model = params.model.model_copy(update={"name": TINY, "max_length": 16, "attention": "eager"})
    args = {name: value for name, value in params.training.args.items() if not name.startswith("warmup_")}
    args |= {"max_steps": 2, trainer.BATCH: 1, trainer.STEPS: 1}
    try:
        _try_steps(params.model_copy(update={"model": model}), args)
    except Exception as error:  # each argument is used by code of its own
        problem = f"no step can be trained with them ({_reason(error)}); change or leave out one"
        raise ParamsError(f"training.args: {problem}.") from None


def _try_model(params: Params) -> None:
    """Train it by a step with a short pair and one of ``max_length``, on the very path of a fold."""
    try:
        _try_steps(params, {"max_steps": 1, trainer.BATCH: 2, "learning_rate": 1e-6})
    except (AttributeError, IndexError, RuntimeError, TypeError, ValueError) as error:
        if trainer.is_out_of_memory(error):  # a fold goes on with fewer pairs at once
            return
        # Embeddings that are too short, as RoBERTa's are by two, only say that an index is out of range.
        place, problem = f"model.max_length={params.model.max_length}: {params.model.name}", _reason(error)
        remedy = "set a smaller model.max_length, or use another encoder"
        raise ModelError(f"{place} cannot be trained with pairs that long ({problem}); {remedy}.") from None


def _try_steps(params: Params, args: dict[str, Any]) -> None:
    sentences = ["two", "three " * params.model.max_length]
    encoder = PairEncoder(load_tokenizer(params.model, sentences), params.model.max_length)
    pairs = encoder.encode(pd.DataFrame({"criterion": "one", "sentence": sentences, "label": [0, 1]}))
    training = params.training.model_copy(update={"args": args})
    try:
        with torch.random.fork_rng():
            trainer.fit(params.model_copy(update={"training": training}), encoder, pairs, asked=[pairs])
    finally:
        trainer.collect_garbage()


def _reason(error: Exception) -> str:
    return shown(str(error).partition("\n")[0].rstrip(".") or type(error).__name__)
