"""Tokenizer and sequence classifier: a hub name, a local folder, or the built-in tiny DeBERTa-v3.

Imports `errors` and `params`; `training` imports it.
"""

from __future__ import annotations

import os
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import torch
from tokenizers import Tokenizer, decoders, models, normalizers, pre_tokenizers, processors, trainers
from transformers import (
    AutoConfig,
    AutoModelForSequenceClassification,
    AutoTokenizer,
    DebertaV2Config,
    DebertaV2ForSequenceClassification,
    PreTrainedModel,
    PreTrainedTokenizerBase,
    PreTrainedTokenizerFast,
)

from evbind_lib.config.compose import ModelParams
from evbind_lib.errors import ModelError

TINY = "tiny"
TINY_VOCABULARY = 2000
# Only these attention implementations exist for DeBERTa; asking for another makes transformers warn or fail.
EAGER_ONLY = ("deberta", "deberta-v2")


def load_tokenizer(model: ModelParams, training_texts: Iterable[str]) -> PreTrainedTokenizerBase:
    """Tokenizer of the model; for the tiny model one is trained on the spot.

    Parameters
    ----------
    model : ModelParams
    training_texts : iterable of str
        Texts of the training part of a fold; only the tiny model looks at them.

    Returns
    -------
    PreTrainedTokenizerBase

    Raises
    ------
    ModelError
        When it cannot be loaded, or loses the text it is given.
    """
    if model.name == TINY:
        return train_tiny_tokenizer(training_texts)
    try:
        tokenizer = AutoTokenizer.from_pretrained(_place(model.name))
    except Exception as error:
        raise _model_error(model.name, "tokenizer", error) from None
    pieces = tokenizer("evidence for a criterion", add_special_tokens=False)["input_ids"]
    if not pieces or set(pieces) <= {tokenizer.unk_token_id}:
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
    """Encoder with a fresh two-class head, in float32 whatever the file's type.

    Weights stored in half precision make DeBERTa's loss NaN within steps (transformers issue 42805), so they are widened
    here and narrowed by autocast where the hardware allows.

    Parameters
    ----------
    model : ModelParams
    tokenizer : PreTrainedTokenizerBase
        As `load_tokenizer` gave it; the tiny model takes its vocabulary size.

    Returns
    -------
    PreTrainedModel
        On the CPU. Draw the seed before calling: the new weights are random.

    Raises
    ------
    ModelError
        When it cannot be loaded.
    """
    if model.name == TINY:
        return DebertaV2ForSequenceClassification(tiny_config(tokenizer))
    try:
        config = load_config(model)
        config.num_labels = 2
        attention = {"attn_implementation": "eager"} if config.model_type in EAGER_ONLY else {}
        loaded = AutoModelForSequenceClassification.from_pretrained(
            _place(model.name), config=config, dtype=torch.float32, ignore_mismatched_sizes=True, **attention
        )
    except ModelError:
        raise
    except Exception as error:
        raise _model_error(model.name, "model", error) from None
    return loaded.float()


def check_model(model: ModelParams) -> None:
    """Load model and tokenizer once and run a pair through, so that what cannot work fails before a study exists.

    Parameters
    ----------
    model : ModelParams

    Raises
    ------
    ModelError
        When the model cannot be loaded, or is too short for ``max_length``.
    """
    choose_precision(model.precision)
    if model.name == TINY:
        return
    config = load_config(model)
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


def load_config(model: ModelParams) -> Any:
    """Configuration of a hub model or local folder, a small file: asking for it first tells early what is missing."""
    folder = _place(model.name)
    try:
        return AutoConfig.from_pretrained(folder)
    except Exception as error:
        raise _model_error(model.name, "model", error) from None


def tiny_config(tokenizer: PreTrainedTokenizerBase) -> DebertaV2Config:
    """Configuration of the tiny model: DeBERTa-v3's architecture (He et al., ICLR 2023) at a hundredth of its size."""
    return DebertaV2Config(
        vocab_size=len(tokenizer),
        hidden_size=64,
        num_hidden_layers=2,
        num_attention_heads=2,
        intermediate_size=128,
        max_position_embeddings=512,
        relative_attention=True,
        position_buckets=32,
        pos_att_type=["p2c", "c2p"],
        share_att_key=True,
        norm_rel_ebd="layer_norm",
        position_biased_input=False,
        type_vocab_size=0,
        pad_token_id=tokenizer.pad_token_id,
        num_labels=2,
        initializer_range=0.1,  # five times the usual: from random weights so narrow a model learns sooner
        # From random weights and a thousand pairs, dropout costs more than it gives.
        hidden_dropout_prob=0.0,
        attention_probs_dropout_prob=0.0,
    )


def train_tiny_tokenizer(texts: Iterable[str]) -> PreTrainedTokenizerFast:
    """Train a byte-pair tokenizer on some texts; a corpus of thousands takes well under 2 s.

    DeBERTa-v3 itself has a Unigram vocabulary; on a corpus this small byte pairs come nearer to whole words, which
    makes pairs a third shorter.

    Parameters
    ----------
    texts : iterable of str

    Returns
    -------
    PreTrainedTokenizerFast
        ``[CLS] first [SEP] second [SEP]``.
    """
    special = ["[PAD]", "[CLS]", "[SEP]", "[UNK]", "[MASK]"]
    tokenizer = Tokenizer(models.BPE(unk_token="[UNK]"))
    tokenizer.normalizer = normalizers.Sequence([normalizers.NFC(), normalizers.Lowercase()])
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence([pre_tokenizers.Punctuation(), pre_tokenizers.Metaspace()])
    tokenizer.decoder = decoders.Metaspace()
    trainer = trainers.BpeTrainer(
        vocab_size=TINY_VOCABULARY, min_frequency=2, special_tokens=special, show_progress=False
    )
    # Sorted, so that the same texts give the same vocabulary in any order.
    tokenizer.train_from_iterator(sorted(set(texts)), trainer)
    ids = {token: tokenizer.token_to_id(token) for token in special}
    tokenizer.post_processor = processors.TemplateProcessing(
        single="[CLS] $A [SEP]",
        pair="[CLS] $A [SEP] $B:1 [SEP]:1",
        special_tokens=[("[CLS]", ids["[CLS]"]), ("[SEP]", ids["[SEP]"])],
    )
    return PreTrainedTokenizerFast(
        tokenizer_object=tokenizer,
        pad_token="[PAD]",
        cls_token="[CLS]",
        sep_token="[SEP]",
        unk_token="[UNK]",
        mask_token="[MASK]",
        model_input_names=["input_ids", "attention_mask"],
    )


def choose_precision(wanted: str) -> str:
    """Number format of the forward and backward pass.

    Parameters
    ----------
    wanted : str
        ``auto``, ``bf16``, ``fp16`` or ``fp32``.

    Returns
    -------
    str
        For ``auto``: ``bf16`` where the hardware multiplies it natively (GPUs since Ampere, CPUs with avx512_bf16 or amx),
        else ``fp16`` on a GPU, else ``fp32``.

    Raises
    ------
    ModelError
        For ``fp16`` without a GPU.
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
    # Private in torch 2.13, so a missing name means "cannot tell" and therefore fp32.
    return any(
        getattr(torch.cpu, probe, lambda: False)() for probe in ("_is_avx512_bf16_supported", "_is_amx_tile_supported")
    )


def _place(name: str) -> str:
    """A local folder where the name is one, else the hub name as it is."""
    folder = Path(name).expanduser()
    looks_local = name.startswith((".", "~", os.sep)) or folder.is_dir()
    if not looks_local:
        return name
    if not (folder / "config.json").is_file():
        missing = "is not a folder" if not folder.is_dir() else "has no config.json"
        raise ModelError(f"model.name={name}: {missing}; give the folder that save_pretrained wrote, or a hub name.")
    return str(folder.resolve())


def _model_error(name: str, part: str, error: Exception) -> ModelError:
    if isinstance(error, ModelError):
        return error
    text = str(error)
    reason = text.splitlines()[0] if text else type(error).__name__
    hub_words = (
        "connect",
        "offline",
        "Max retries",
        "not a valid model identifier",
        "cached",
        "timed out",
        "resolve",
    )
    if not Path(name).expanduser().is_dir() and any(word in text for word in hub_words):
        return ModelError(
            f"model.name={name}: the {part} is not on this machine and the Hugging Face hub cannot be reached or has no "
            f"such model; download it elsewhere and give its folder: model.name=/path/to/{name.split('/')[-1]}."
        )
    return ModelError(
        f"model.name={name}: the {part} cannot be loaded ({type(error).__name__}: {reason}); use an encoder that "
        "AutoModelForSequenceClassification loads."
    )
