"""Train a pool of parameter sets on all folds and keep their predictions, so that searches can be replayed on it.

A random sampler does not look at results, so what it draws does not depend on the pruner: a search replayed on the pool is
exactly the search that would have been run. Run it as a module; finished folds are not trained again:

    EVBIND_WORKSPACE=/tmp/pools/sample OMP_NUM_THREADS=1 nice python -m tests.benchmarks.racing.pool --seeds 10 --trials 20
"""

from __future__ import annotations

import argparse
import json
import os
import sys
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import optuna

from evbind_lib.config.compose import Params, compose, workspace
from evbind_lib.data.corpus import load_corpus
from evbind_lib.data.folds import Fold, make_folds
from evbind_lib.hpo.space import merge, suggest
from evbind_lib.training.cache import FoldCache
from evbind_lib.training.result import FoldResult

NAME = "pool"


@dataclass(frozen=True)
class Member:
    """A parameter set of the pool: which search drew it, as what trial, and what was drawn."""

    key: str
    seed: int
    number: int
    suggested: dict[str, Any]


def members(params: Params, n_seeds: int, n_trials: int) -> Iterator[tuple[Member, Params]]:
    """Draw the parameter sets of each seed's random search, in its order."""
    for seed in range(n_seeds):
        study = optuna.create_study(sampler=optuna.samplers.RandomSampler(seed=seed))
        for number in range(n_trials):
            suggested = suggest(study.ask(), params)
            member = Member(f"seed{seed:02d}_trial{number:02d}", seed, number, suggested)
            yield member, merge(params, suggested)


def train_pool(params: Params, n_seeds: int, n_trials: int, frozen: Path | None = None) -> None:
    """Train what is not yet there; a parameter set that cannot be trained is left out, as a failed trial is."""
    from evbind_lib.training.crossval import CrossValidator, train_fold

    corpus = load_corpus(params.data)
    folds = make_folds(corpus, n_folds=params.training.n_folds, seed=params.training.seed)
    kept = FoldCache(NAME)
    train: Callable[[Params, Fold], FoldResult]
    if frozen is None:
        validator = CrossValidator(corpus, folds)
        train = lambda merged, fold: train_fold(merged, validator.prepare(merged, fold))  # noqa: E731
    else:
        from tests.benchmarks.racing.frozen import FrozenFolds

        heads = FrozenFolds(corpus, params, folds, frozen, workspace() / "vectors.npy")
        train = lambda merged, fold: heads.train_fold(merged, fold.index)  # noqa: E731
    started = time.perf_counter()
    for member, merged in members(params, n_seeds, n_trials):
        try:
            for fold in folds:
                if kept.load(member.key, fold.index) is None:
                    kept.keep(member.key, train(merged, fold))
        except Exception as error:  # what fails in a search fails here too, and the pool goes on
            print(f"{member.key} failed: {type(error).__name__}: {error}", flush=True)
            continue
        note(member, params)
        print(f"{member.key} {time.perf_counter() - started:.0f} s", flush=True)


def note(member: Member, params: Params) -> None:
    """Write down a finished member, and once what the members share."""
    folder = workspace() / "members"
    folder.mkdir(parents=True, exist_ok=True)
    (folder / f"{member.key}.json").write_text(json.dumps(vars(member)), encoding="utf-8")
    identity = {
        "metric": params.hpo.metric.name,
        "fold_aggregation": params.hpo.metric.fold_aggregation,
        "n_folds": params.training.n_folds,
        "direction": params.hpo.study.direction,
    }
    (workspace() / "identity.json").write_text(json.dumps(identity), encoding="utf-8")


def read_identity() -> dict[str, Any]:
    """What the members share, as a study keeps it."""
    found: dict[str, Any] = json.loads((workspace() / "identity.json").read_text(encoding="utf-8"))
    return found


def read_members() -> list[Member]:
    """Members that are finished, by seed and number."""
    files = sorted((workspace() / "members").glob("*.json"))
    return [Member(**json.loads(file.read_text(encoding="utf-8"))) for file in files]


def main() -> None:
    """Read the command line and train."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--seeds", type=int, default=10)
    parser.add_argument("--trials", type=int, default=20)
    parser.add_argument("--frozen", type=Path, help="folder of an encoder: train a head on it and not the model")
    parser.add_argument("overrides", nargs="*", help="Hydra overrides, for example model.name=FOLDER")
    given = parser.parse_args()
    if "EVBIND_WORKSPACE" not in os.environ:
        sys.exit("Set EVBIND_WORKSPACE to a folder outside of the project: the pool is kept there.")
    train_pool(compose({"hpo": "quick"}, given.overrides), given.seeds, given.trials, given.frozen)


if __name__ == "__main__":
    main()
