"""Tokenizer and sequence classifier of a hub name, a local folder or the built-in tiny DeBERTa-v3; the model's predictions."""

import contextlib
import copy
import functools
import importlib.util
import json
import logging
import os
import re
import time
import warnings
from collections.abc import Iterable, Iterator
from typing import Any

import numpy as np
import torch
import transformers
from transformers import AutoConfig, AutoTokenizer, PreTrainedModel, PreTrainedTokenizerBase

from evbind_lib.config.encoders import TINY, model_folder, unreachable
from evbind_lib.config.schema import ModelParams
from evbind_lib.errors import ModelError, shown
from evbind_lib.training.encoding import EncodedPairs
from evbind_lib.training.tiny import tiny_config, train_tiny_tokenizer

# A package of the extra `attention`: DeBERTa-v2's and v3's attention without its largest intermediate tensors.
FLASH = "disentangled_flash"
# What hub clients say where a model is not on this machine and cannot be had.
UNREACHABLE = ("connect", "offline", "Max retries", "not a valid model identifier", "cached", "timed out", "resolve")
LAUNCHER = re.compile(r"(LOCAL_)?(RANK|WORLD_SIZE)$|(OMPI|PMI|PMIX|MV2|ACCELERATE)_")
LFS = b"version https://git-lfs"  # how what a clone without git-lfs has instead of a file begins


def load_tokenizer(model: ModelParams, training_texts: Iterable[str]) -> PreTrainedTokenizerBase:
    """Tokenizer of the model; for the tiny model one is trained on the texts, which others do not look at."""
    if model.name == TINY:
        return train_tiny_tokenizer(training_texts)
    tokenizer = _from_pretrained(AutoTokenizer, model.name)
    tokens = tokenizer("evidence for a criterion", add_special_tokens=False)["input_ids"]
    if not tokens or set(tokens) <= {tokenizer.unk_token_id}:
        problem = "turns plain English into unknown tokens, so its files are incomplete"
        remedy = "save it again with tokenizer.save_pretrained(FOLDER)"
        raise ModelError(f"model.name={model.name}: its tokenizer {problem}; {remedy}.")
    if tokenizer.pad_token_id is None and tokenizer.eos_token_id is None:
        remedy = "set pad_token and save it again"
        raise ModelError(f"model.name={model.name}: its tokenizer has no padding token; {remedy}.")
    if tokenizer.pad_token_id is None:  # as of GPT-2; what is padded is masked, so any token will do
        tokenizer.pad_token = tokenizer.eos_token
    return tokenizer


def load_model(model: ModelParams, tokenizer: PreTrainedTokenizerBase) -> PreTrainedModel:
    """Encoder with a two-class head of random weights, on the CPU, in float32 whatever the file's type; seed before calling."""
    config = model_config(model, tokenizer)
    if model.name == TINY:
        return _with_attention(transformers.DebertaV2ForSequenceClassification(config), model)
    # Stored half precision makes DeBERTa's loss NaN within steps (transformers issue 42805); autocast narrows where it can.
    options = {"config": config, "dtype": torch.float32, "ignore_mismatched_sizes": True, "output_loading_info": True}
    loaded, found = _from_pretrained(transformers.AutoModelForSequenceClassification, model.name, **options)
    _check_weights(model, loaded, found, max(tokenizer.get_vocab().values()) + 1)
    return _with_attention(loaded.float(), model)


def model_config(model: ModelParams, tokenizer: PreTrainedTokenizerBase) -> Any:
    """Configuration of the model, with two classes, the tokenizer's padding and ``model.dropout``."""
    config = tiny_config(tokenizer) if model.name == TINY else _from_pretrained(AutoConfig, model.name, num_labels=2)
    config.pad_token_id = tokenizer.pad_token_id  # by which decoders find a pair's last token
    if model.dropout is not None:  # each architecture has its own names for it
        named = [name for name, value in vars(config).items() if "drop" in name and isinstance(value, float)]
        config.update({name: model.dropout for name in named if "layerdrop" not in name})
    return config


def _check_weights(model: ModelParams, loaded: PreTrainedModel, found: dict[str, Any], n_tokens: int) -> None:
    """Refuse weights that the configuration or the tokenizer does not fit; only the head may be new."""
    place = f"model.name={shown(model.name)}"
    encoder = {f"{loaded.base_model_prefix}.{name}" for name, _ in loaded.base_model.named_parameters()}
    other = sorted(str(key) for key, *_ in found["mismatched_keys"] if key in encoder)
    if other or len(encoder & {*found["missing_keys"]}) > len(encoder) / 2:
        problem = "its weights are not in it"
        if other:
            problem = f"the sizes of {other[0]} in the weights and in config.json differ"
        raise ModelError(f"{place}: {problem}; give a folder whose files were saved together.")
    if n_tokens > (n_rows := loaded.get_input_embeddings().num_embeddings):
        problem = f"its tokenizer has {n_tokens} tokens and its embeddings {n_rows} rows"
        raise ModelError(f"{place}: {problem}; call model.resize_token_embeddings({n_tokens}) and save it again.")


def check_model(model: ModelParams) -> None:
    """Refuse what the configuration already says of a model: that it is not there, or too short for ``max_length``."""
    if model.name == TINY:
        if model.attention == FLASH:
            load_model(model, load_tokenizer(model, ("criterion", "sentence")))
        return
    config = _from_pretrained(AutoConfig, model.name)  # a small file, which says early what is missing
    length, positions = model.max_length, getattr(config, "max_position_embeddings", None) or 0  # -1: without an end
    absolute = getattr(config, "position_biased_input", True)  # DeBERTa-v3 has relative positions only
    if absolute and 0 < positions < length:
        problem = f"{model.name} has {positions} positions; set model.max_length={positions} or less"
        raise ModelError(f"model.max_length={length}: {problem}.")


def _with_attention(loaded: PreTrainedModel, model: ModelParams) -> PreTrainedModel:
    """The model with the attention that ``model.attention`` asks for; names and values of its weights stay as they are."""
    gain, asked = None, model.attention == FLASH
    # On a CPU training/shortcuts.py is faster; the tiny model, which gains nothing by it, gets the same scores everywhere.
    if model.attention == "eager" or (not asked and (model.name == TINY or not torch.cuda.is_available())):
        return loaded
    if loaded.config.model_type != "deberta-v2":
        problem = f"there is none for a model of type {loaded.config.model_type}"
    elif importlib.util.find_spec(FLASH) is None:
        problem = "the package is not installed (pip install 'evbind[attention]')"
    else:
        gain = _gain_of_flash(loaded.config.to_json_string(), choose_precision(model.precision))
        problem = "it does not compute here what transformers does"
    if asked and gain is None:
        raise ModelError(f"model.attention={FLASH}: {problem}; set model.attention=auto.")
    return _replace_attention(loaded) if gain is not None and (asked or gain > 1) else loaded


def _replace_attention(model: PreTrainedModel) -> PreTrainedModel:
    import disentangled_flash

    backend = "triton" if torch.cuda.is_available() else "torch"
    disentangled_flash.optimize_deberta_training(model.deberta, backend=backend)
    return model


@functools.lru_cache(maxsize=8)
def _gain_of_flash(config: str, precision: str) -> float | None:
    """How many times faster one layer of this shape learns; None where logits or gradients differ by more than rounding."""
    small = {**json.loads(config), "num_hidden_layers": 1, "vocab_size": 100, "pad_token_id": 0}
    small["initializer_range"] = small["hidden_size"] ** -0.5  # with narrower ones every token gets the same attention
    device = "cuda" if torch.cuda.is_available() else "cpu"

    def learn(model: PreTrainedModel, pairs: int, length: int, precision: str) -> tuple[list[torch.Tensor], float]:
        """Logits and gradients of a batch in which each pair is shorter than the one before, and the seconds of it."""
        torch.manual_seed(0)  # the same tokens and dropout for both
        ids = torch.randint(1, 100, (pairs, length), device=device)
        mask = (torch.arange(length) < torch.linspace(length, length / 2, pairs)[:, None]).long().to(device)
        model.zero_grad()
        started = time.perf_counter()
        with autocast(device, precision):
            logits = model(input_ids=ids, attention_mask=mask).logits
            logits.float().logsumexp(1).sum().backward()
        grads = [weight.grad for weight in model.parameters() if weight.grad is not None]
        found = [tensor.detach().float().cpu() for tensor in (logits, *grads)]  # .cpu() waits for a GPU
        return found, time.perf_counter() - started

    try:
        with torch.random.fork_rng():
            shape = transformers.DebertaV2Config.from_dict(small, attn_implementation="eager")
            eager = transformers.DebertaV2ForSequenceClassification(shape)
            models = [model.to(device) for model in (eager, _replace_attention(copy.deepcopy(eager)))]
            for pairs, length in ((3, 37), (8, 64)):
                learned = (learn(model, pairs, length, "fp32")[0] for model in models)
                torch.testing.assert_close(*learned, rtol=1e-4, atol=1e-5)
            seconds = np.array([[learn(model, 8, 64, precision)[1] for model in models] for _ in range(4)])
    except Exception:  # kernels are compiled for the GPU that is there, which may fail in any way
        return None
    return float(np.divide(*seconds.min(axis=0)))


def choose_precision(wanted: str) -> str:
    """Number format of training: ``auto`` is bf16 where the hardware multiplies it natively, else fp16 on a GPU, else fp32."""
    if wanted == "fp16" and not torch.cuda.is_available():
        raise ModelError("model.precision=fp16 needs a GPU and there is none; set model.precision=auto.")
    if wanted != "auto":
        return wanted
    if torch.cuda.is_available():
        return "bf16" if torch.cuda.is_bf16_supported(including_emulation=False) else "fp16"
    of_cpu = torch.cpu.get_capabilities()
    return "bf16" if of_cpu.get("avx512_bf16") or of_cpu.get("amx_tile") else "fp32"


def autocast(device: str, precision: str) -> torch.autocast:
    """Context in which a model computes in this precision."""
    kind = {"bf16": torch.bfloat16, "fp16": torch.float16}.get(precision)
    return torch.autocast(device, dtype=kind, enabled=kind is not None)


def predict(model: PreTrainedModel, pairs: EncodedPairs, *, batch_size: int, precision: str) -> np.ndarray:
    """Logit of evidence minus that of no evidence of each pair, float64 (n,), in the pairs' order."""
    order, logits = np.argsort(pairs.lengths(), kind="stable"), np.empty(len(pairs))  # like lengths need little padding
    was_training = model.training
    model.eval()
    # Not inference_mode: what a model then keeps for itself, as positions of a length, cannot take part in training.
    with torch.no_grad(), autocast(model.device.type, precision):
        for start in range(0, len(order), batch_size):
            rows = order[start : start + batch_size]
            batch = pairs.collate([pairs[int(row)] for row in rows])
            del batch["labels"]
            both = model(**{name: tensor.to(model.device) for name, tensor in batch.items()}).logits.double()
            logits[rows] = (both[:, 1] - both[:, 0]).cpu().numpy()
    model.train(was_training)
    return logits


def _from_pretrained(kind: Any, name: str, **options: Any) -> Any:
    """What a class of transformers loads from a local folder or the hub, never its code; one sentence where it cannot."""
    folder, place = model_folder(name), f"model.name={shown(name)}"
    if folder and not os.path.isfile(folder / "config.json"):  # unlike Path.is_file, for any name
        missing = "has no config.json" if os.path.isdir(folder) else "is not a folder"
        raise ModelError(f"{place}: {missing}; give the folder that save_pretrained wrote, or a hub name.")
    for file in folder.iterdir() if folder else ():
        if os.path.getsize(file) < 1000 and file.is_file() and file.read_bytes().startswith(LFS):
            raise ModelError(f"{place}: {file.name} is a pointer of git-lfs, not the file; run git lfs pull there.")
    try:
        return kind.from_pretrained(str(folder) if folder else name, trust_remote_code=False, **options)
    except Exception as error:  # hub clients, transformers and safetensors have many
        part, reason = "tokenizer" if kind is AutoTokenizer else "model", shown(str(error).partition("\n")[0])
        if folder is None and any(word in str(error) for word in UNREACHABLE):
            raise unreachable(name) from None
        problem = f"cannot be loaded ({type(error).__name__}: {reason or 'no reason given'})"
        remedy = "use an encoder that AutoModelForSequenceClassification loads"
        raise ModelError(f"{place}: the {part} {problem}; {remedy}.") from None


@contextlib.contextmanager
def quiet_libraries() -> Iterator[None]:
    """Keep lines and bars of PyTorch and Hugging Face out of a notebook, and what a launcher set out of a training."""
    with warnings.catch_warnings(), contextlib.ExitStack() as at_the_end:
        # What torchrun, mpirun or accelerate set: a training would wait for others of its group.
        for name in filter(LAUNCHER.match, list(os.environ)):
            at_the_end.callback(os.environ.__setitem__, name, os.environ.pop(name))
        warnings.filterwarnings("ignore", module=r"(torch|transformers|accelerate|sklearn)(\.|$)")
        for logger in map(logging.getLogger, ("transformers", "accelerate", "torch")):
            at_the_end.callback(logger.setLevel, logger.level)
            logger.setLevel(logging.ERROR)
        if transformers.logging.is_progress_bar_enabled():
            at_the_end.callback(transformers.logging.enable_progress_bar)
            transformers.logging.disable_progress_bar()
        yield
