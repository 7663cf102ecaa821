"""Tokenizer and sequence classifier of a hub name, a local folder or the built-in tiny DeBERTa-v3; the model's predictions."""

from __future__ import annotations

import os
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import numpy as np
import torch
from transformers import (
    AutoConfig,
    AutoModelForSequenceClassification,
    AutoTokenizer,
    DebertaV2ForSequenceClassification,
    PreTrainedModel,
    PreTrainedTokenizerBase,
)

from evbind_lib.config.schema import ModelParams
from evbind_lib.errors import ModelError
from evbind_lib.training.encoding import EncodedPairs
from evbind_lib.training.tiny import TINY, tiny_config, train_tiny_tokenizer

# Only these attention implementations exist for DeBERTa; asking for another makes transformers warn or fail.
EAGER_ONLY = ("deberta", "deberta-v2")
# What hub clients say where a model is not on this machine and cannot be had.
UNREACHABLE = (
    *("connect", "offline", "Max retries", "not a valid model identifier", "cached", "timed out", "resolve"),
)


def load_tokenizer(model: ModelParams, training_texts: Iterable[str]) -> PreTrainedTokenizerBase:
    """Tokenizer of the model; for the tiny model one is trained on the texts, which others do not look at."""
    if model.name == TINY:
        return train_tiny_tokenizer(training_texts)
    try:
        tokenizer = AutoTokenizer.from_pretrained(_place(model.name))
    except Exception as error:
        raise _model_error(model.name, "tokenizer", error) from None
    tokens = tokenizer("evidence for a criterion", add_special_tokens=False)["input_ids"]
    if not tokens or set(tokens) <= {tokenizer.unk_token_id}:
        raise ModelError(
            f"model.name={model.name}: its tokenizer turns plain English into unknown tokens, so its files are incomplete; "
            "save it again with tokenizer.save_pretrained(FOLDER)."
        )
    if tokenizer.pad_token_id is None:
        raise ModelError(
            f"model.name={model.name}: its tokenizer has no padding token; set pad_token and save it again."
        )
    return tokenizer


def load_model(model: ModelParams, tokenizer: PreTrainedTokenizerBase) -> PreTrainedModel:
    """Encoder with a two-class head of random weights, on the CPU, in float32 whatever the file's type; seed before calling.

    Weights stored in half precision make DeBERTa's loss NaN within steps (transformers issue 42805), so they are widened here
    and narrowed by autocast where the hardware allows.
    """
    config = model_config(model, tokenizer)
    if model.name == TINY:
        return DebertaV2ForSequenceClassification(config)
    attention = {"attn_implementation": "eager"} if config.model_type in EAGER_ONLY else {}
    try:
        loaded = AutoModelForSequenceClassification.from_pretrained(
            _place(model.name), config=config, dtype=torch.float32, ignore_mismatched_sizes=True, **attention
        )
    except Exception as error:
        raise _model_error(model.name, "model", error) from None
    return loaded.float()


def model_config(model: ModelParams, tokenizer: PreTrainedTokenizerBase) -> Any:
    """Configuration of the model, with two classes."""
    if model.name == TINY:
        return tiny_config(tokenizer)
    config = _load_config(model)
    config.num_labels = 2
    return config


def _load_config(model: ModelParams) -> Any:
    """Configuration of a hub model or local folder, a small file: asking for it first says early what is missing."""
    try:
        return AutoConfig.from_pretrained(_place(model.name))
    except Exception as error:
        raise _model_error(model.name, "model", error) from None


def check_model(model: ModelParams) -> None:
    """Load model and tokenizer once and run a pair of ``max_length`` through; `ModelError` where that cannot work."""
    choose_precision(model.precision)
    if model.name == TINY:
        return
    config = _load_config(model)
    positions = getattr(config, "max_position_embeddings", None)
    absolute = getattr(config, "position_biased_input", True)  # DeBERTa-v3 has relative positions only
    if absolute and positions and model.max_length > positions:
        raise ModelError(
            f"model.max_length={model.max_length}: {model.name} has {positions} positions; set model.max_length={positions} "
            "or less."
        )
    tokenizer = load_tokenizer(model, ())
    longest = tokenizer(
        "criterion", "sentence " * model.max_length, truncation=True, max_length=model.max_length, return_tensors="pt"
    )
    with torch.inference_mode():
        try:
            load_model(model, tokenizer).eval()(**longest)
        except (IndexError, RuntimeError) as error:  # RoBERTa has two positions less than its configuration says
            reason = str(error).splitlines()[0].rstrip(".")
            raise ModelError(
                f"model.max_length={model.max_length}: {model.name} cannot take a pair that long ({reason}); set a smaller "
                "model.max_length."
            ) from None


def choose_precision(wanted: str) -> str:
    """Number format of the forward and backward pass.

    ``auto`` is ``bf16`` where the hardware multiplies it natively (GPUs since Ampere, CPUs with avx512_bf16 or amx), else
    ``fp16`` on a GPU, else ``fp32``; ``fp16`` without a GPU is a `ModelError`.
    """
    if wanted == "fp16" and not torch.cuda.is_available():
        raise ModelError("model.precision=fp16 needs a GPU and there is none; set model.precision=auto.")
    if wanted != "auto":
        return wanted
    if torch.cuda.is_available():
        return "bf16" if torch.cuda.is_bf16_supported(including_emulation=False) else "fp16"
    if torch.backends.mps.is_available():
        return "fp32"
    return "bf16" if _cpu_multiplies_bf16() else "fp32"


def _cpu_multiplies_bf16() -> bool:
    """Whether this CPU has instructions for bf16; PyTorch 2.13 knows by private names, of which a missing one means "no"."""
    probes = ("_is_avx512_bf16_supported", "_is_amx_tile_supported")
    return any(getattr(torch.cpu, probe, lambda: False)() for probe in probes)


def predict(model: PreTrainedModel, pairs: EncodedPairs, *, batch_size: int, precision: str) -> np.ndarray:
    """Logit of evidence minus that of no evidence of each pair, float64 (n,), in the pairs' order."""
    order = np.argsort(pairs.lengths(), kind="stable")  # batches of like length hold little padding
    logits = np.empty(len(pairs))
    kind = {"bf16": torch.bfloat16, "fp16": torch.float16}.get(precision)
    was_training = model.training
    model.eval()
    try:
        with torch.inference_mode(), torch.autocast(model.device.type, dtype=kind, enabled=kind is not None):
            for start in range(0, len(order), batch_size):
                rows = order[start : start + batch_size]
                batch = pairs.collate([pairs[int(row)] for row in rows])
                del batch["labels"]
                both = model(**{name: tensor.to(model.device) for name, tensor in batch.items()}).logits.double()
                logits[rows] = (both[:, 1] - both[:, 0]).cpu().numpy()
    finally:
        model.train(was_training)
    return logits


def _place(name: str) -> str:
    """A local folder where the name is one, else the hub name as it is."""
    folder = Path(name).expanduser()
    if not (name.startswith((".", "~", os.sep)) or folder.is_dir()):
        return name
    if not (folder / "config.json").is_file():
        missing = "is not a folder" if not folder.is_dir() else "has no config.json"
        raise ModelError(f"model.name={name}: {missing}; give the folder that save_pretrained wrote, or a hub name.")
    return str(folder.resolve())


def _model_error(name: str, part: str, error: Exception) -> ModelError:
    if isinstance(error, ModelError):
        return error
    text = str(error)
    if not Path(name).expanduser().is_dir() and any(word in text for word in UNREACHABLE):
        return ModelError(
            f"model.name={name}: the {part} is not on this machine and the Hugging Face hub cannot be reached or has no "
            f"such model; download it elsewhere and give its folder: model.name=/path/to/{name.split('/')[-1]}."
        )
    reason = text.splitlines()[0] if text else "no reason given"
    return ModelError(
        f"model.name={name}: the {part} cannot be loaded ({type(error).__name__}: {reason}); use an encoder that "
        "AutoModelForSequenceClassification loads."
    )
