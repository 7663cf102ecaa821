"""A tiny DeBERTa-v3 built on the spot, for trying the kit and for tests: random weights, a tokenizer of the training texts."""

from collections.abc import Iterable

from tokenizers import Tokenizer, decoders, models, normalizers, pre_tokenizers, processors, trainers
from transformers import DebertaV2Config, PreTrainedTokenizerBase, PreTrainedTokenizerFast

VOCABULARY = 2000
SPECIAL = {f"{name.lower()}_token": f"[{name}]" for name in ("PAD", "CLS", "SEP", "UNK", "MASK")}


def tiny_config(tokenizer: PreTrainedTokenizerBase) -> DebertaV2Config:
    """Configuration of the tiny model: DeBERTa-v3's architecture (He et al., ICLR 2023) at a hundredth of its size."""
    return DebertaV2Config(
        vocab_size=len(tokenizer),
        hidden_size=64,
        num_hidden_layers=2,
        num_attention_heads=2,
        intermediate_size=128,
        relative_attention=True,
        position_buckets=32,
        pos_att_type=["p2c", "c2p"],
        share_att_key=True,
        norm_rel_ebd="layer_norm",
        position_biased_input=False,
        initializer_range=0.1,  # five times the usual: from random weights so narrow a model learns sooner
        # From random weights and a thousand pairs, dropout costs more than it gives.
        hidden_dropout_prob=0.0,
        attention_probs_dropout_prob=0.0,
    )


def train_tiny_tokenizer(texts: Iterable[str]) -> PreTrainedTokenizerFast:
    """Train a byte-pair tokenizer, ``[CLS] first [SEP] second [SEP]``, on some texts; thousands take well under 2 s."""
    # DeBERTa-v3 itself has a Unigram vocabulary; on so few texts byte pairs come nearer to whole words: pairs a third shorter.
    special = [*SPECIAL.values()]
    tokenizer = Tokenizer(models.BPE(unk_token="[UNK]"))
    tokenizer.normalizer = normalizers.Sequence([normalizers.NFC(), normalizers.Lowercase()])
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence([pre_tokenizers.Punctuation(), pre_tokenizers.Metaspace()])
    tokenizer.decoder = decoders.Metaspace()
    trainer = trainers.BpeTrainer(vocab_size=VOCABULARY, min_frequency=2, special_tokens=special, show_progress=False)
    # Sorted, so that the same texts give the same vocabulary in any order.
    tokenizer.train_from_iterator(sorted(set(texts)), trainer)
    # The trainer numbers special tokens first, in their order.
    sep, cls = ((token, special.index(token)) for token in ("[SEP]", "[CLS]"))
    tokenizer.post_processor = processors.BertProcessing(sep, cls)
    names = ["input_ids", "attention_mask"]
    return PreTrainedTokenizerFast(tokenizer_object=tokenizer, model_input_names=names, **SPECIAL)
