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
from evbind_lib.training.cache import FoldCache
from evbind_lib.training.metrics import compute_metrics
from tests.benchmarks.racing.pool import NAME, Member, read_identity, read_members

optuna.logging.set_verbosity(optuna.logging.ERROR)
MakePruner = Callable[[], optuna.pruners.BasePruner]


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
        self.identity = read_identity()
        if metric is not None:
            self.identity |= {"metric": metric, "direction": "minimize" if metric == "log_loss" else "maximize"}
        self.sign = 1 if self.identity["direction"] == "maximize" else -1
        self.members: list[Member] = read_members()
        kept = FoldCache(NAME)
        self.scores = np.array([self._scores(kept, member) for member in self.members])
        self.courses = [self._courses(kept, member) for member in self.members]

    def _scores(self, kept: FoldCache, member: Member) -> list[float]:
        tables = kept.predictions(member.key).values()
        metric = self.identity["metric"]
        return [compute_metrics(t["label"].to_numpy(), t["probability"].to_numpy())[metric] for t in tables]

    def _courses(self, kept: FoldCache, member: Member) -> list[list[tuple[float, float]]]:
        """Share of each fold's training and the metric then, after every epoch but the last."""
        metric, found = self.identity["metric"], []
        for fold in range(self.scores.shape[1]):
            report = kept.load(member.key, fold)
            epochs = report.epochs if report is not None else ()
            found.append([(e.share, e.metrics[metric]) for e in epochs if e.share is not None and e.share < 1])
        return found

    def study(
        self, pruner: optuna.pruners.BasePruner, sampler: optuna.samplers.BaseSampler | None = None
    ) -> optuna.Study:
        """A study in memory that the racing pruner finds the pool's predictions for."""
        sampler = sampler or optuna.samplers.RandomSampler(seed=0)
        study = optuna.create_study(
            study_name=NAME, direction=self.identity["direction"], pruner=pruner, sampler=sampler
        )
        study.set_user_attr("identity", self.identity)
        return study

    def run_trial(self, trial: optuna.Trial, member: int, *, raw: bool = False) -> float:
        """Report a member's folds as a search would; gives how many are trained until the pruner stops it, or all."""
        trial.set_user_attr("parameter_key", self.members[member].key)
        values, pruner = self.scores[member], trial.study.pruner
        within = isinstance(pruner, RacingPruner) and pruner.epochs
        for fold in range(len(values)):
            for share, score in self.courses[member][fold] if within else ():
                key = self.members[member].key
                if pruner.chance_within_a_fold(trial.study, key, fold, score, share) < pruner.futility:
                    return fold + share
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

    folds: float
    best: float
    kept_best: bool


def replay(pool: Pool, order: Sequence[int], pruner: optuna.pruners.BasePruner, *, raw: bool) -> Outcome:
    """Run one search over the members in this order."""
    study, folds = pool.study(pruner), 0.0
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
    """Pruners by name, and whether they are told the fold's own value."""
    pruners = optuna.pruners

    def racing(**options: Any) -> MakePruner:
        # One for all searches of a pool: what it keeps of a fold is the same in each.
        shared = RacingPruner(**options)
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
        "racing, futility 0.05, start-up 3, epochs": (racing(futility=0.05, n_startup_trials=3, epochs=True), False),
        "racing, futility 0.1, start-up 3, epochs": (racing(n_startup_trials=3, epochs=True), False),
        "racing, futility 0.2, start-up 3, epochs": (racing(futility=0.2, n_startup_trials=3, epochs=True), False),
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
        f"### {given.trials} trials, {pool.identity['metric']}: {drawn} searches as drawn and {given.random_orders} random "
        f"draws from {len(pool.members)} sets\n"
    )
    print("| pruner | folds | share | best | difference to none | kept the best | worst loss |")
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
