"""What a million labelled pairs cost: CPU seconds and memory of reading them, of five folds, of the pairs of two, as tokens.

Run it as ``python -m tests.benchmarks.million``; what was seen stands in ``results/``.
"""

import resource
import tempfile
import time
from pathlib import Path

import numpy as np

from evbind_lib.config.compose import compose
from evbind_lib.data.corpus import load_corpus
from evbind_lib.data.folds import make_folds
from evbind_lib.data.negatives import fold_pairs

N, CRITERIA, PER_POST = 1_000_000, 9, 20


def write_table(file: Path) -> None:
    """A CSV of posts with twenty sentences each, three posts an author; one sentence in fifty stands in another post too."""
    random = np.random.default_rng(0)
    words = np.array(
        [
            first + last
            for first in ["ba", "co", "di", "fu", "ge", "ho", "ki", "lu"]
            for last in ["lar,", "min", "tor", "ven"]
        ]
    )
    texts = [" ".join(words[row]) + f" {number}." for number, row in enumerate(random.integers(0, len(words), (N, 7)))]
    with file.open("w", encoding="utf-8") as opened:
        opened.write("post_id,sentence_id,criterion,sentence,label\n")
        for number in range(N):
            post, text = number // PER_POST, texts[number // 2 if number % 50 == 0 else number]
            criterion = f"Criterion {number % CRITERIA} in a few words of its own"
            name = f"s_{post // 3}_{post}"
            opened.write(f'{name},{name}_{number % PER_POST},{criterion},"{text}",{int(number % 4 == 0)}\n')


def main() -> None:
    """Print what each step cost."""
    with tempfile.TemporaryDirectory() as folder:
        file = Path(folder) / "million.csv"
        write_table(file)
        print(f"{file.stat().st_size / 1e6:.0f} MB, {N:,} rows")
        params = compose([f"data.pairs={file}", "data.group_by=author"], data="pairs")
        started = time.process_time()

        def report(what: str) -> None:
            peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1e6
            print(f"{what:<26} {time.process_time() - started:6.1f} CPU s, peak {peak:.2f} GB")

        corpus = load_corpus(params)
        report("read")
        print(corpus.summary)
        folds = make_folds(corpus, params)
        report("folds")
        pairs = [part for fold in folds[:2] for part in fold_pairs(corpus, fold, params)]
        report("pairs of two folds")
        from evbind_lib.training.encoding import PairEncoder  # late, as it loads torch: 0.3 GB
        from evbind_lib.training.model import load_tokenizer

        encoder = PairEncoder(load_tokenizer(params.model, corpus.pairs["sentence"][:2000].tolist()), 128)
        encoded = [encoder.encode(part) for part in pairs]
        report(f"{sum(map(len, encoded)):,} pairs as tokens")


if __name__ == "__main__":
    main()
