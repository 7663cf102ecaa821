"""A small head on a frozen sentence encoder: real text and real noise of training at a second a fold, without a GPU.

Claim and sentence are encoded once by a pretrained encoder (mean of its last states); a head of one hidden layer is trained on
their product and their distance, with the kit's pairs, losses and parameters.
"""

from __future__ import annotations

import time
from pathlib import Path

import numpy as np
import pandas as pd
import torch
from torch import nn

from evbind_lib.config.schema import Params
from evbind_lib.data.corpus import Corpus
from evbind_lib.data.folds import Fold
from evbind_lib.data.negatives import fold_pairs
from evbind_lib.training.losses import LOSSES
from evbind_lib.training.metrics import compute_metrics
from evbind_lib.training.result import FoldResult, prediction_table

HIDDEN = 64


def encode(texts: list[str], folder: Path, batch_size: int = 64) -> np.ndarray:
    """Mean of the encoder's last states over a text's tokens, of length 1; texts of like length together."""
    from transformers import AutoModel, AutoTokenizer

    tokenizer = AutoTokenizer.from_pretrained(folder)
    model = AutoModel.from_pretrained(folder, dtype=torch.float32).eval()
    order = np.argsort([len(text) for text in texts])
    vectors = np.empty((len(texts), model.config.hidden_size), dtype=np.float32)
    with torch.inference_mode(), torch.autocast("cpu", torch.bfloat16):
        for start in range(0, len(texts), batch_size):
            part = order[start : start + batch_size]
            tokens = tokenizer(
                [texts[index] for index in part], padding=True, truncation=True, max_length=64, return_tensors="pt"
            )
            states = model(**tokens).last_hidden_state.float()
            mask = tokens["attention_mask"][..., None]
            mean = (states * mask).sum(1) / mask.sum(1)
            vectors[part] = nn.functional.normalize(mean, dim=1).numpy()
    return vectors


class FrozenFolds:
    """Pairs of all folds, encoded; trains a head on any of them.

    Parameters
    ----------
    corpus : Corpus
    params : Params
    folds : list of Fold
    encoder : Path
        Folder of a pretrained encoder.
    cache : Path
        File for the vectors, so that a second call does not encode again.
    """

    def __init__(self, corpus: Corpus, params: Params, folds: list[Fold], encoder: Path, cache: Path) -> None:
        self.pairs = [fold_pairs(corpus, fold, params) for fold in folds]
        tables = pd.concat([table for both in self.pairs for table in both])
        texts = sorted(set(tables["criterion"]) | set(tables["sentence"]))
        self.places = {text: place for place, text in enumerate(texts)}
        if cache.is_file():
            self.vectors = np.load(cache)
        else:
            self.vectors = encode(texts, encoder)
            np.save(cache, self.vectors)

    def _features(self, table: pd.DataFrame) -> torch.Tensor:
        claim = self.vectors[table["criterion"].map(self.places).to_numpy()]
        sentence = self.vectors[table["sentence"].map(self.places).to_numpy()]
        scale = np.float32(np.sqrt(claim.shape[1]))
        return torch.from_numpy(np.hstack([claim * sentence * scale, np.abs(claim - sentence)]))

    def train_fold(self, corpus: Corpus, fold: Fold, params: Params) -> FoldResult:
        """Train a new head and predict the validation pairs."""
        started = time.perf_counter()
        training, validation = self.pairs[fold.index]
        settings, args = params.training, params.training.args
        torch.manual_seed(settings.seed)
        features, labels = self._features(training), torch.from_numpy(training["label"].to_numpy(dtype=np.int64))
        head = nn.Sequential(nn.Linear(features.shape[1], HIDDEN), nn.ReLU(), nn.Dropout(0.1), nn.Linear(HIDDEN, 2))
        loss = LOSSES[settings.loss_function](settings, training["label"].to_numpy(dtype=np.int64))
        size, epochs = args["per_device_train_batch_size"], int(args["num_train_epochs"])
        optimizer = torch.optim.AdamW(
            head.parameters(), lr=args["learning_rate"], weight_decay=args["weight_decay"], fused=True
        )
        steps = epochs * -(-len(labels) // size)
        warm = max(1, round(args["warmup_ratio"] * steps))
        schedule = torch.optim.lr_scheduler.LambdaLR(
            optimizer, lambda step: min((step + 1) / warm, (steps - step) / max(1, steps - warm))
        )
        for _ in range(epochs):
            for batch in torch.randperm(len(labels)).split(size):
                optimizer.zero_grad()
                loss(head(features[batch]), labels[batch]).mean().backward()
                optimizer.step()
                schedule.step()
        head.eval()
        with torch.inference_mode():
            logits = head(self._features(validation)).numpy()
        table = prediction_table(fold.index, validation, logits[:, 1] - logits[:, 0])
        metrics = compute_metrics(table["label"].to_numpy(), table["probability"].to_numpy())
        return FoldResult(
            fold=fold.index,
            metrics=metrics,
            epochs=(),
            predictions=table,
            seconds=time.perf_counter() - started,
            n_training=len(training),
            n_validation=len(validation),
            precision="fp32",
            peak_memory_mb=0.0,
        )
