"""Small local checkpoints of random weights, written as `save_pretrained` writes them, of many families."""

from __future__ import annotations

import io
import json
from pathlib import Path

import pandas as pd
import sentencepiece
import torch
from tokenizers import Tokenizer, models, normalizers, pre_tokenizers, processors, trainers
from transformers import (
    AlbertConfig,
    AutoModelForSequenceClassification,
    BertConfig,
    BertForSequenceClassification,
    BertTokenizerFast,
    DebertaV2Config,
    DebertaV2ForSequenceClassification,
    ElectraConfig,
    GPT2Config,
    LlamaConfig,
    ModernBertConfig,
    PreTrainedTokenizerFast,
    RobertaConfig,
    RobertaForSequenceClassification,
    RobertaTokenizerFast,
    T5Config,
    XLNetConfig,
)

SAMPLE = Path(__file__).resolve().parent.parent / "evbind_lib" / "data" / "sample"
SMALL = {"hidden_size": 32, "num_hidden_layers": 1, "num_attention_heads": 2, "intermediate_size": 64}


def texts() -> list[str]:
    return pd.read_csv(SAMPLE / "annotations.csv")["sentence_text"].tolist()


def write_bert(folder: Path) -> Path:
    special = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]"]
    tokenizer = Tokenizer(models.WordPiece(unk_token="[UNK]"))
    tokenizer.normalizer = normalizers.BertNormalizer()
    tokenizer.pre_tokenizer = pre_tokenizers.BertPreTokenizer()
    tokenizer.train_from_iterator(
        texts(), trainers.WordPieceTrainer(vocab_size=300, special_tokens=special, show_progress=False)
    )
    tokenizer.post_processor = processors.TemplateProcessing(
        single="[CLS] $A [SEP]", pair="[CLS] $A [SEP] $B:1 [SEP]:1", special_tokens=[("[CLS]", 2), ("[SEP]", 3)]
    )
    BertTokenizerFast(tokenizer_object=tokenizer).save_pretrained(folder)
    torch.manual_seed(0)
    BertForSequenceClassification(BertConfig(vocab_size=300, **SMALL)).save_pretrained(folder)
    return folder


def write_roberta(folder: Path) -> Path:
    special = ["<s>", "<pad>", "</s>", "<unk>", "<mask>"]
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    trainer = trainers.BpeTrainer(
        vocab_size=400,
        special_tokens=special,
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    tokenizer.train_from_iterator(texts(), trainer)
    tokenizer.post_processor = processors.RobertaProcessing(("</s>", 2), ("<s>", 0))
    RobertaTokenizerFast(tokenizer_object=tokenizer).save_pretrained(folder)
    torch.manual_seed(0)
    config = RobertaConfig(vocab_size=400, max_position_embeddings=66, type_vocab_size=1, **SMALL)
    RobertaForSequenceClassification(config).save_pretrained(folder)
    return folder


def write_deberta(folder: Path) -> Path:
    """As the published one: a SentencePiece model alone, weights in half precision."""
    model = io.BytesIO()
    pieces = {"pad_piece": "[PAD]", "bos_piece": "[CLS]", "eos_piece": "[SEP]", "unk_piece": "[UNK]"}
    sentencepiece.SentencePieceTrainer.train(
        sentence_iterator=iter(texts()),
        model_writer=model,
        vocab_size=220,
        model_type="unigram",
        **{"pad_id": 0, "bos_id": 1, "eos_id": 2, "unk_id": 3, **pieces},
        minloglevel=2,
    )
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "spm.model").write_bytes(model.getvalue())
    tokenizer = {"tokenizer_class": "DebertaV2Tokenizer", "do_lower_case": False, "vocab_type": "spm"}
    (folder / "tokenizer_config.json").write_text(json.dumps(tokenizer), encoding="utf-8")
    config = DebertaV2Config(
        vocab_size=256,
        relative_attention=True,
        position_buckets=16,
        pos_att_type=["p2c", "c2p"],
        share_att_key=True,
        norm_rel_ebd="layer_norm",
        position_biased_input=False,
        type_vocab_size=0,
        **SMALL,
    )
    torch.manual_seed(0)
    DebertaV2ForSequenceClassification(config).half().save_pretrained(folder)
    return folder


BERT_LIKE = ("[CLS] $A [SEP]", "[CLS] $A [SEP] $B:1 [SEP]:1")
DECODER = {"n_embd": 32, "n_layer": 1, "n_head": 2}
T5 = {"d_model": 32, "d_kv": 16, "d_ff": 64, "num_layers": 1, "num_heads": 2}
# Configuration, what the tokenizer puts around one text and two, and further settings of the tokenizer.
FAMILIES = {
    "albert": (AlbertConfig(vocab_size=300, embedding_size=16, **SMALL), BERT_LIKE, {}),
    "electra": (ElectraConfig(vocab_size=300, embedding_size=16, **SMALL), BERT_LIKE, {}),
    "modernbert": (
        ModernBertConfig(vocab_size=300, pad_token_id=0, cls_token_id=1, sep_token_id=2, **SMALL),
        BERT_LIKE,
        {},
    ),
    "gpt2": (GPT2Config(vocab_size=300, **DECODER), ("$A", "$A $B:1"), {"pad_token": None}),
    "llama": (LlamaConfig(vocab_size=300, **SMALL), ("[CLS] $A", "[CLS] $A [CLS]:1 $B:1"), {"padding_side": "left"}),
    "t5": (
        T5Config(vocab_size=300, eos_token_id=2, decoder_start_token_id=0, **T5),
        ("$A [SEP]", "$A [SEP] $B:1 [SEP]:1"),
        {},
    ),
    "xlnet": (
        XLNetConfig(vocab_size=300, d_model=32, n_layer=1, n_head=2, d_inner=64),
        ("$A [SEP] [CLS]:2", "$A [SEP] $B:1 [SEP]:1 [CLS]:2"),
        {"padding_side": "left"},
    ),
}


def write_family(name: str, folder: Path) -> Path:
    """A folder of one of `FAMILIES`."""
    config, (single, pair), settings = FAMILIES[name]
    special = ["[PAD]", "[CLS]", "[SEP]", "[UNK]"]
    tokenizer = Tokenizer(models.BPE(unk_token="[UNK]"))
    tokenizer.pre_tokenizer = pre_tokenizers.Whitespace()
    tokenizer.train_from_iterator(
        texts(), trainers.BpeTrainer(vocab_size=300, special_tokens=special, show_progress=False)
    )
    tokenizer.post_processor = processors.TemplateProcessing(
        single=single, pair=pair, special_tokens=[("[CLS]", 1), ("[SEP]", 2)]
    )
    given = {"pad_token": "[PAD]", "eos_token": "[SEP]", "unk_token": "[UNK]", **settings}
    PreTrainedTokenizerFast(tokenizer_object=tokenizer, **given).save_pretrained(folder)
    torch.manual_seed(0)
    AutoModelForSequenceClassification.from_config(config).save_pretrained(folder)
    return folder
