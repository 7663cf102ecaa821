"""Replay random searches over a pool with one pruner after another: folds spent, and the best score found.

    EVBIND_WORKSPACE=/tmp/pools/sample OMP_NUM_THREADS=1 python -m tests.benchmarks.racing.replay --trials 20

A random sampler draws the same parameter sets whatever is pruned, so each replay is the search itself. The pruners are
Optuna's own, on its own studies. A step is a fold; the running mean is reported, to the Wilcoxon pruner the fold's own value.
"""

from __future__ import annotations

import argparse
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import optuna
from optuna.trial import TrialState

from evbind_lib.hpo.racing.pruner import RacingPruner
from evbind_lib.hpo.racing.statistics import FoldScore
from evbind_lib.hpo.study import StudyRecord, TrialRecord
from evbind_lib.training.cache import FoldCache, trial_name
from evbind_lib.training.metrics import METRICS
from tests.benchmarks.racing.pool import NAME, Member, read_identity, read_members

optuna.logging.set_verbosity(optuna.logging.ERROR)
MakePruner = Callable[[], optuna.pruners.BasePruner]


class PoolRacing(RacingPruner):
    """The racing pruner where the folds of a trial are those of a member of the pool."""

    def __init__(self, **options: Any) -> None:
        super().__init__(**options)
        self.members: dict[int, int] = {}  # place in the pool by the trial's number

    def _folds(self, uid: str, number: int, n_folds: int, metric: str) -> list[FoldScore] | None:
        return super()._folds(uid, self.members[number], n_folds, metric) if number in self.members else None


class Pool:
    """A pool's members with their scores.

    Attributes
    ----------
    members : list of Member
    scores : ndarray of float, shape (n_members, n_folds)
    sign : int
        1 where more is better, else -1.
    """

    def __init__(self, metric: str | None = None) -> None:
        identity = read_identity()
        self.metric = metric or identity["metric"]
        self.sign = 1 if METRICS[self.metric].greater_is_better else -1
        self.members: list[Member] = read_members()
        self.scores = np.array([self._scores(member, identity["n_folds"]) for member in self.members])

    def _scores(self, member: Member, n_folds: int) -> list[float]:
        results = [FoldCache(NAME).load(trial_name(member.place, fold)) for fold in range(n_folds)]
        return [result.metrics[self.metric] for result in results if result is not None]

    def study(
        self, pruner: optuna.pruners.BasePruner, sampler: optuna.samplers.BaseSampler | None = None
    ) -> optuna.Study:
        """A study in memory that the racing pruner finds the pool's predictions for."""
        sampler = sampler or optuna.samplers.RandomSampler(seed=0)
        direction = "maximize" if self.sign > 0 else "minimize"
        study = optuna.create_study(direction=direction, pruner=pruner, sampler=sampler)
        StudyRecord(uid=NAME).write(study)
        if isinstance(pruner, PoolRacing):
            pruner.members = {}
        return study

    def run_trial(self, trial: optuna.Trial, member: int, *, raw: bool = False) -> int:
        """Report a member's folds as a search would, until the pruner stops it; gives how many are trained."""
        TrialRecord(metric=self.metric, fold_aggregation="mean").write(trial)
        values, pruner = self.scores[member], trial.study.pruner
        if isinstance(pruner, PoolRacing):
            pruner.members[trial.number] = self.members[member].place
        for fold in range(len(values)):
            trial.report(float(values[fold] if raw else values[: fold + 1].mean()), fold)
            if fold < len(values) - 1 and trial.should_prune():
                return fold + 1
        return len(values)

    def searches(self, n_trials: int, n_random: int) -> list[np.ndarray]:
        """The searches that the pool was drawn for, cut into pieces of ``n_trials``, and random draws of that many."""
        whole = len(self.members) // n_trials
        drawn = [np.arange(start * n_trials, (start + 1) * n_trials) for start in range(whole)]
        random = np.random.default_rng(0)
        return drawn + [random.permutation(len(self.members))[:n_trials] for _ in range(n_random)]


@dataclass(frozen=True)
class Outcome:
    """Of one search: folds trained, final score of the best complete trial, and whether that is the best there was."""

    folds: int
    best: float
    kept_best: bool


def replay(pool: Pool, order: Sequence[int], pruner: optuna.pruners.BasePruner, *, raw: bool) -> Outcome:
    """Run one search over the members in this order."""
    study, folds = pool.study(pruner), 0
    for member in order:
        trial = study.ask()
        done = pool.run_trial(trial, member, raw=raw)
        folds += done
        if done < pool.scores.shape[1]:
            study.tell(trial, state=TrialState.PRUNED)
        else:
            study.tell(trial, float(pool.scores[member].mean()))
    there = pool.sign * pool.scores[list(order)].mean(axis=1)
    return Outcome(folds, study.best_value, bool(pool.sign * study.best_value >= there.max() - 1e-12))


def contestants() -> dict[str, tuple[MakePruner, bool]]:
    """Pruners by name, and whether each fold's own value is reported to them."""
    pruners = optuna.pruners

    def racing(**options: Any) -> MakePruner:
        # One for all searches of a pool: what it holds of a fold is the same in each.
        shared = PoolRacing(**options)
        return lambda: shared

    return {
        "none": (pruners.NopPruner, False),
        "median (the default so far)": (pruners.MedianPruner, False),
        "percentile 25": (lambda: pruners.PercentilePruner(25.0), False),
        "wilcoxon, p 0.1": (lambda: pruners.WilcoxonPruner(p_threshold=0.1), True),
        "hyperband": (lambda: pruners.HyperbandPruner(max_resource=5), False),  # as the kit builds it for 5 folds
        "hyperband, factor 2": (
            lambda: pruners.HyperbandPruner(min_resource=1, max_resource=5, reduction_factor=2),
            False,
        ),
        "successive halving": (pruners.SuccessiveHalvingPruner, False),
        "successive halving, factor 2": (
            lambda: pruners.SuccessiveHalvingPruner(min_resource=1, reduction_factor=2),
            False,
        ),
        "median, start-up 3": (lambda: pruners.MedianPruner(n_startup_trials=3), False),
        "percentile 25, start-up 3": (lambda: pruners.PercentilePruner(25.0, n_startup_trials=3), False),
        "racing, test only, start-up 5": (racing(futility=None, n_startup_trials=5), False),
        "racing, futility 0.1, start-up 5": (racing(futility=0.1, n_startup_trials=5), False),
        "racing, futility 0.2, start-up 5": (racing(futility=0.2, n_startup_trials=5), False),
        "racing, test only, start-up 3": (racing(futility=None, n_startup_trials=3), False),
        "racing, futility 0.05, start-up 3": (racing(futility=0.05, n_startup_trials=3), False),
        "racing, futility 0.1, start-up 3": (racing(futility=0.1, n_startup_trials=3), False),
        "racing, futility 0.2, start-up 3": (racing(futility=0.2, n_startup_trials=3), False),
        "racing, futility 0.3, start-up 3": (racing(futility=0.3, n_startup_trials=3), False),
        "racing, futility 0.1, start-up 3, warm-up 1": (racing(n_startup_trials=3, n_warmup_steps=1), False),
    }


def main() -> None:
    """Print the table."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--trials", type=int, default=20)
    parser.add_argument("--random-orders", type=int, default=40)
    parser.add_argument("--metric")
    parser.add_argument("--pruners", default="", help="only those whose name holds this, and none")
    given = parser.parse_args()
    pool = Pool(given.metric)
    searches = pool.searches(given.trials, given.random_orders)
    drawn = len(searches) - given.random_orders
    print(
        f"### {given.trials} trials, {pool.metric}: {drawn} searches as drawn and {given.random_orders} random "
        f"draws from {len(pool.members)} sets\n"
    )
    print("| pruner | folds | fraction | best | difference to none | kept the best | worst loss |")
    print("| --- | --- | --- | --- | --- | --- | --- |")
    unpruned: np.ndarray = np.empty(0)
    chosen = {name: value for name, value in contestants().items() if name == "none" or given.pruners in name}
    for name, (make, raw) in chosen.items():
        outcomes = [replay(pool, order, make(), raw=raw) for order in searches]
        best = pool.sign * np.array([outcome.best for outcome in outcomes])
        folds = np.array([outcome.folds for outcome in outcomes])
        unpruned = best if name == "none" else unpruned
        lost = best - unpruned
        error = lost.std(ddof=1) / np.sqrt(len(lost))
        print(
            f"| {name} | {folds.mean():.1f} | {folds.mean() / (given.trials * pool.scores.shape[1]):.2f} "
            f"| {pool.sign * best.mean():.4f} | {lost.mean():+.4f} ± {error:.4f} "
            f"| {sum(outcome.kept_best for outcome in outcomes)} of {len(outcomes)} | {lost.min():+.3f} |",
            flush=True,
        )


if __name__ == "__main__":
    main()
