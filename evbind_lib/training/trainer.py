"""Hugging Face Trainer as evbind uses it: its arguments, the loss it calls, what memory allows."""

import contextlib
import functools
import gc
import inspect
import re
import resource
import sys
import tempfile
from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
import transformers
from pydantic import PydanticUserError, TypeAdapter, ValidationError
from transformers import PreTrainedModel, TrainerCallback, TrainingArguments

from evbind_lib.config.arguments import RANGES
from evbind_lib.config.schema import Params
from evbind_lib.errors import ParamsError, TrainingError, did_you_mean, shown
from evbind_lib.training.encoding import EncodedPairs, PairEncoder
from evbind_lib.training.losses import make_loss
from evbind_lib.training.model import choose_precision, load_model, model_config
from evbind_lib.training.result import Loss, ModelInit
from evbind_lib.training.shortcuts import take_shortcuts

BATCH, STEPS = "per_device_train_batch_size", "gradient_accumulation_steps"
# What PyTorch says on a CPU and on Apple's chips, which have no error class for it; the last is oneDNN, which gives no reason.
OUT_OF_MEMORY = re.compile("(?i)can(no|')t allocate memory|(not enough|out of) memory|could not create a primitive")
READ_EVERY = 32  # steps; a loss that is not finite ends the training that many later at most
_signature = inspect.signature(TrainingArguments, eval_str=True)
TYPES = {name: each.annotation for name, each in _signature.parameters.items()} | RANGES
_adapter = functools.cache(lambda name: TypeAdapter(TYPES[name]))


def _checked(args: dict[str, Any]) -> dict[str, Any]:
    """Values of ``training.args`` with the types that transformers declares."""
    checked = dict(args)
    for name, value in args.items():
        if name not in TYPES:
            near = did_you_mean(name, TYPES)
            raise ParamsError(f"training.args.{name} is not a field of transformers.TrainingArguments{near}")
        try:
            # A type that pydantic does not know is left to transformers.
            with contextlib.suppress(PydanticUserError):
                checked[name] = _adapter(name).validate_python(value)
        except ValidationError as error:
            reason = error.errors()[0]["msg"].replace("Input should be", "must be")
            raise ParamsError(f"training.args.{name}={value}: {reason}.") from None
    return checked


def training_arguments(params: Params, *, output_dir: str) -> TrainingArguments:
    """``TrainingArguments`` of these parameters; with evbind's defaults nothing is written to ``output_dir``."""
    on_cpu = not (torch.cuda.is_available() or torch.backends.mps.is_available())
    precision, chosen = choose_precision(params.model.precision), _checked(params.training.args)
    if "warmup_ratio" in chosen:
        chosen = {"warmup_steps": chosen.pop("warmup_ratio"), **chosen}
    args: dict[str, Any] = {
        "output_dir": output_dir,
        # Each epoch is validated by a callback, on pairs sorted by length.
        **dict.fromkeys(("save_strategy", "eval_strategy", "logging_strategy"), "no"),
        "logging_nan_inf_filter": False,
        "report_to": "none",
        "disable_tqdm": True,
        "seed": params.training.seed,
        "optim": "adamw_torch_fused",
        "lr_scheduler_type": "linear",
        "train_sampling_strategy": "group_by_length",
        "per_device_eval_batch_size": 64,
        # A copy that is waited for would make every step wait for the one before.
        "dataloader_pin_memory": not on_cpu,
        "accelerator_config": {"non_blocking": not on_cpu},
        "use_cpu": on_cpu,
        "bf16": precision == "bf16",
        "fp16": precision == "fp16",
        **chosen,
    }
    try:
        arguments = TrainingArguments(**args)
    except Exception as error:  # each argument is read by code of its own
        problem = f"transformers refuses them: {shown(str(error).splitlines()[0].rstrip('.'))}"
        raise ParamsError(f"training.args: {problem}; change them or leave them out.") from None
    # No DataParallel, which has no public switch and changes the effective batch: several GPUs serve several trials.
    if arguments.n_gpu > 1:
        arguments._n_gpu = 1
    return arguments


def with_micro_batch(params: Params, micro_batch: int) -> Params:
    """Parameters that hold fewer pairs at once and accumulate gradients over more steps, for the same effective batch."""
    args = params.training.args
    parts = int(args.get(BATCH, 8)) // micro_batch
    if parts == 1:
        return params
    evaluated = min(micro_batch, int(args.get("per_device_eval_batch_size", micro_batch)))
    fitting = {BATCH: micro_batch, STEPS: int(args.get(STEPS, 1)) * parts, "per_device_eval_batch_size": evaluated}
    training = params.training.model_copy(update={"args": {**args, **fitting}})
    return params.model_copy(update={"training": training})


def is_out_of_memory(error: BaseException) -> bool:
    """Whether an error says that the memory of a GPU or of the machine is used up."""
    named = isinstance(error, torch.OutOfMemoryError | MemoryError)
    return named or (isinstance(error, RuntimeError) and OUT_OF_MEMORY.search(str(error)) is not None)


def peak_memory_mb() -> float:
    """Most memory held: of the GPU since the fold began, else of the process since it started."""
    if torch.cuda.is_available():
        return torch.cuda.max_memory_allocated() / 2**20
    unit = 2**20 if sys.platform == "darwin" else 2**10
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / unit


class NotFiniteError(TrainingError):
    """A loss that is infinite or no number."""


class TrainerLoss:
    """A loss in the form that Trainer calls; refuses a number that is not finite, and keeps the mean over an epoch."""

    def __init__(self, loss: Loss, place: str) -> None:
        self.loss, self.place, self.steps = loss, place, 0
        self.values: list[float] = []
        self.unread: list[torch.Tensor] = []  # on the device; reading one would make every step wait for it

    def __call__(self, outputs: Any, labels: torch.Tensor, num_items_in_batch: Any = None) -> torch.Tensor:
        """Sum of the losses of a micro-batch over the number of pairs of its whole optimiser step."""
        losses = self.loss(outputs.logits, labels)
        if losses.shape != labels.shape:
            problem = f"the loss gives a tensor of shape {tuple(losses.shape)} for {len(labels)} pairs"
            raise TrainingError(f'{self.place}: {problem}; return one number per pair (reduction="none").')
        value = losses.sum() / (labels.numel() if num_items_in_batch is None else num_items_in_batch)
        self.unread.append(value.detach())
        if len(self.unread) == READ_EVERY:
            self.read()
        return value

    def read(self) -> None:
        """Fetch the numbers that are still on the device; a `TrainingError` names the first step that is not finite."""
        numbers = torch.stack(self.unread).tolist() if self.unread else []
        self.unread.clear()
        for step, number in enumerate(numbers, start=self.steps + 1):
            if not np.isfinite(number):
                remedy = "lower training.args.learning_rate, or set model.precision=fp32"
                raise NotFiniteError(f"{self.place}, step {step}: the loss is {number}; {remedy}.")
        self.steps += len(numbers)
        self.values += numbers

    def epoch_mean(self) -> float:
        """Mean since the last call."""
        self.read()
        values, self.values = self.values, []
        return float(np.mean(values)) if values else float("nan")


def fit(
    params: Params,
    encoder: PairEncoder,
    pairs: EncodedPairs,
    loss: TrainerLoss | None = None,
    model_init: ModelInit | None = None,
    callbacks: Sequence[TrainerCallback] = (),
    asked: Sequence[EncodedPairs] = (),
) -> PreTrainedModel:
    """Fine-tune a fresh model on pairs and leave it on its device, by shortcuts where all pairs that it is asked are known."""
    trainer_class = _load_trainer()
    transformers.set_seed(params.training.seed)
    tokenizer = encoder.tokenizer
    if model_init is None:
        model = load_model(params.model, tokenizer)
    else:
        model = model_init(model_config(params.model, tokenizer), tokenizer)
    loss = loss or TrainerLoss(make_loss(params.training, pairs.labels), "all data")
    with tempfile.TemporaryDirectory(prefix="evbind-") as unused, contextlib.ExitStack() as at_the_end:
        if asked and model_init is None and params.model.attention == "auto":
            tokens = np.unique(np.concatenate([each.vocabulary() for each in asked]))
            at_the_end.callback(take_shortcuts(model, tokens))
        trainer = trainer_class(
            model=model,
            args=training_arguments(params, output_dir=unused),
            train_dataset=pairs,
            data_collator=pairs.collate,
            compute_loss_func=loss,
            callbacks=list(callbacks),
        )
        # Without a progress bar Trainer would print its logs, which spoils notebooks.
        trainer.remove_callback(transformers.PrinterCallback)
        threads = torch.get_num_threads()
        at_the_end.callback(torch.set_num_threads, threads)
        torch.set_num_threads(min(params.model.threads or threads, threads))
        trainer.train()
        loss.read()
    return model


def collect_garbage() -> None:
    """Free what a fold held."""
    gc.collect()
    torch.cuda.empty_cache()  # which does nothing where no GPU is in use


@functools.cache
def _load_trainer() -> Any:
    """Trainer; what its import and those before it made is not walked through at the end of every fold from here on."""
    loaded = transformers.Trainer
    gc.collect()
    gc.freeze()  # before there is a model, which would be held for good
    return loaded
