"""Train a pool of parameter sets on all folds and save their predictions, so that searches can be replayed on it.

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
from collections.abc import Iterator
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import optuna

from evbind_lib.config.compose import compose
from evbind_lib.config.paths import workspace
from evbind_lib.config.schema import Params
from evbind_lib.data.corpus import load_corpus
from evbind_lib.data.folds import make_folds
from evbind_lib.hpo.objective import suggest
from evbind_lib.training.cache import FoldCache, trial_name

NAME = "pool"


@dataclass(frozen=True)
class Member:
    """A parameter set of the pool: its place there, which search drew it as what trial, and what was drawn."""

    place: int
    seed: int
    number: int
    suggested: dict[str, Any]


def members(params: Params, seeds: range, n_trials: int) -> Iterator[tuple[Member, Params]]:
    """Draw the parameter sets of each seed's random search, in its order."""
    for seed in seeds:
        study = optuna.create_study(sampler=optuna.samplers.RandomSampler(seed=seed))
        for number in range(n_trials):
            trial = study.ask()
            tried = suggest(trial, params)
            yield Member(seed * n_trials + number, seed, number, dict(trial.params)), tried


def train_pool(params: Params, seeds: range, n_trials: int, frozen: Path | None = None) -> None:
    """Train what is not yet there; a parameter set that cannot be trained is left out, as a failed trial is."""
    corpus = load_corpus(params)
    folds = make_folds(corpus, params)
    cache = FoldCache(NAME)
    if frozen is None:
        from evbind_lib.training.fold import train_fold
    else:
        from tests.benchmarks.racing.frozen import FrozenFolds

        train_fold = FrozenFolds(corpus, params, folds, frozen, workspace() / "vectors.npy").train_fold
    started = time.perf_counter()
    for member, tried in members(params, seeds, n_trials):
        try:
            for fold in folds:
                name = trial_name(member.place, fold.index)
                if cache.load(name) is None:
                    cache.save(name, train_fold(corpus, fold, tried))
        except Exception as error:  # what fails in a search fails here too, and the pool goes on
            print(f"{member.place} failed: {type(error).__name__}: {error}", flush=True)
            continue
        note(member, params)
        print(f"{member.place} {time.perf_counter() - started:.0f} s", flush=True)


def note(member: Member, params: Params) -> None:
    """Write down a finished member, and once what the members share."""
    folder = workspace() / "members"
    folder.mkdir(parents=True, exist_ok=True)
    (folder / f"{member.place:05d}.json").write_text(json.dumps(asdict(member)), encoding="utf-8")
    identity = {"metric": params.hpo.metric.name, "n_folds": params.training.n_folds}
    (workspace() / "identity.json").write_text(json.dumps(identity), encoding="utf-8")


def read_identity() -> dict[str, Any]:
    """Metric and number of folds of the members."""
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
    parser.add_argument("--first-seed", type=int, default=0, help="a pool that no rule was chosen on begins elsewhere")
    parser.add_argument("--trials", type=int, default=20)
    parser.add_argument("--frozen", type=Path, help="folder of an encoder: train a head on it and not the model")
    parser.add_argument("overrides", nargs="*", help="Hydra overrides, for example model=minilm")
    given = parser.parse_args()
    if "EVBIND_WORKSPACE" not in os.environ:
        sys.exit("Set EVBIND_WORKSPACE to a folder outside of the project: the pool is saved there.")
    seeds = range(given.first_seed, given.first_seed + given.seeds)
    train_pool(compose(given.overrides, hpo="quick"), seeds, given.trials, given.frozen)


if __name__ == "__main__":
    main()
