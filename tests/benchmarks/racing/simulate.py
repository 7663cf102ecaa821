"""False-stop rates of the racing rules on simulated searches, where it is known which trial is truly better.

    OMP_NUM_THREADS=1 python -m tests.benchmarks.racing.simulate --searches 400

A trial has a skill. In each fold its training draws a skill about it, and its scores of the fold's pairs share the posts' and
pairs' difficulty with all other trials. Trials of equal skill have equal true scores, over posts and over trainings.
"""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import pandas as pd
from scipy.stats import beta

from evbind_lib.hpo.racing.statistics import (
    FoldScore,
    judge,
    null_differences,
    peers_of,
    post_mean_square,
    residual_mean_square,
    score_fold,
    training_shape,
)
from evbind_lib.training.metrics import METRICS

N_FOLDS = 5


@dataclass(frozen=True)
class World:
    """What is simulated: sizes, and standard deviations of the sources of noise, on the scale of the scores."""

    n_posts: int = 40
    pairs_per_post: int = 6
    training: float = 0.25  # of a trial's skill from fold to fold
    shared: float = 1.0  # of a post's difficulty, for all trials
    own: float = 0.3  # of a post's difficulty, for one training
    pair: float = 0.5  # of a pair, for one training
    failing: float = 0.0  # fraction of trainings that fail, and learn nothing
    unequal: float = 0.0  # standard deviation of the logarithm of a set's noise of training
    metric: str = "macro_f1"


class Search:
    """Posts of one search, and trials made up on them."""

    def __init__(self, world: World, seed: int) -> None:
        self.world = world
        self.random = np.random.default_rng(seed)
        size = (N_FOLDS, world.n_posts, world.pairs_per_post)
        self.label = (self.random.random(size) < 0.3).astype(np.int8)
        self.difficulty = world.shared * self.random.standard_normal(size[:2])[..., None]
        self.difficulty = self.difficulty + 0.7 * self.random.standard_normal(size)

    def trial(self, skill: float) -> list[FoldScore]:
        """Folds of a trial of this skill."""
        world, random, shape = self.world, self.random, self.label.shape
        training = world.training * (np.exp(world.unequal * random.standard_normal()) if world.unequal else 1.0)
        trained = skill + training * random.standard_normal((N_FOLDS, 1, 1))
        if world.failing:
            trained = np.where(random.random((N_FOLDS, 1, 1)) < world.failing, 0.0, trained)
        lean = training * random.standard_normal((N_FOLDS, 1, 1))
        score = trained * (2 * self.label - 1) + lean / 2 + 0.6 * self.difficulty
        score = score + world.own * random.standard_normal(shape[:2])[..., None]
        score = score + world.pair * random.standard_normal(shape)
        probability = 1 / (1 + np.exp(-score))
        posts = np.repeat(np.arange(world.n_posts), world.pairs_per_post)
        return [
            score_fold(
                pd.DataFrame(
                    {"post_id": posts, "label": self.label[fold].ravel(), "probability": probability[fold].ravel()}
                ),
                world.metric,
                fold=fold,
                n_resamples=1000,
            )
            for fold in range(N_FOLDS)
        ]


def values(folds: Sequence[FoldScore]) -> np.ndarray:
    return np.array([fold.value for fold in folds])


def naive_p(
    candidate: list[FoldScore], complete: list[list[FoldScore]], best: int, *, training: bool, selection: bool
) -> float:
    """The p-value with a source of noise left out, or with the best taken as if it had not been chosen."""
    scores = np.array([values(folds) for folds in complete])
    noise = np.array([[fold.noise for fold in folds] for folds in complete])
    own = np.array([fold.noise for fold in candidate])
    sd, peers = np.zeros(own.shape[1]), peers_of(scores)
    if training:
        mean_square, freedom = residual_mean_square(scores[peers])
        drawn = mean_square * freedom / np.random.default_rng(2).chisquare(freedom, own.shape[1])
        sd = np.sqrt(np.maximum(drawn - post_mean_square(noise[peers]), 0))
    chosen = list(range(len(complete))) if selection else [best]
    level, shape = scores[chosen].mean(axis=0), training_shape(scores[peers])
    null = null_differences(own, noise[chosen], level, (sd, sd), shape, "mean")
    difference = values(candidate).mean() - scores[best, : len(candidate)].mean()
    return float((1 + (null <= difference).sum()) / (1 + len(null)))


def fraction(hits: int, n: int) -> str:
    """A fraction with its Clopper-Pearson interval of 95%."""
    low = beta.ppf(0.025, hits, n - hits + 1) if hits else 0.0
    high = beta.ppf(0.975, hits + 1, n - hits) if hits < n else 1.0
    return f"{hits / n:.3f} ({low:.3f} to {high:.3f})"


def false_stops(world: World, n_searches: int, n_trials: int, spread: float) -> dict[str, list[float]]:
    """Smallest p-values over the looks, of candidates that are truly as good as the best, which was chosen of ``n_trials``.

    Parameters
    ----------
    world : World
    n_searches : int
    n_trials : int
        Complete ones that the best is chosen from.
    spread : float
        Standard deviation of skill among them; 0 is the worst case, all are equal.

    Returns
    -------
    dict of str to list of float
        By rule, one per search: times 5, as the rule divides its level by the looks and one.
    """
    upwards = METRICS[world.metric].greater_is_better
    found: dict[str, list[float]] = {}
    for seed in range(n_searches):
        search = Search(world, seed)
        skills = 1.2 + spread * search.random.standard_normal(n_trials)
        complete = [search.trial(skill) for skill in skills]
        best = int(np.argmax([values(folds).mean() * (1 if upwards else -1) for folds in complete]))
        candidate = search.trial(skills[best])
        smallest: dict[str, float] = {}
        for done in range(1, N_FOLDS):
            part = candidate[:done]
            now = {"racing": judge(part, complete, greater_is_better=upwards, futility=None).p_value}
            if upwards:
                now["no selection"] = naive_p(part, complete, best, training=True, selection=False)
                now["no training"] = naive_p(part, complete, best, training=False, selection=True)
                now["neither"] = naive_p(part, complete, best, training=False, selection=False)
            smallest = {name: min(p, smallest.get(name, 1.0)) for name, p in now.items()}
        for name, p in smallest.items():
            found.setdefault(name, []).append(p * N_FOLDS)
    return found


def power(world: World, n_searches: int, n_trials: int, behind: float) -> list[int]:
    """Folds that the test spends on a candidate whose skill is below that of the best, which truly is the best."""
    spent = []
    for seed in range(n_searches):
        search = Search(world, 10_000 + seed)
        complete = [search.trial(1.2 - 0.1 * abs(search.random.standard_normal())) for _ in range(n_trials)]
        candidate = search.trial(1.2 - behind)
        stops = (judge(candidate[:done], complete, futility=None).stop for done in range(1, N_FOLDS))
        spent.append(next((done for done, stop in enumerate(stops, start=1) if stop), N_FOLDS))
    return spent


def race(
    world: World, seed: int, n_trials: int, spread: float, *, p: float, futility: float | None
) -> list[tuple[str, bool, bool, int]]:
    """One search with pruning: for each trial judged, the rule that stopped it, whether it would have ended better than the
    best, whether it truly is at least as good, and its folds.
    """
    search = Search(world, seed)
    complete: list[list[FoldScore]] = []
    skills: list[float] = []
    judged = []
    for number in range(n_trials):
        skill = 1.2 + spread * search.random.standard_normal()
        folds = search.trial(skill)
        rule, done = "go on", N_FOLDS
        if number >= 5:
            best = int(np.argmax([values(other).mean() for other in complete]))
            for done in range(1, N_FOLDS):
                rule = judge(folds[:done], complete, p=p, futility=futility).rule
                if rule != "go on":
                    break
            else:
                done = N_FOLDS
            better = bool(values(folds).mean() > values(complete[best]).mean())
            judged.append((rule, better, skill >= skills[best], done))
        if rule == "go on":
            complete.append(folds)
            skills.append(skill)
    return judged


def table_of_false_stops(n: int, only: str) -> None:
    """Print how often each rule stops a trial that is truly as good as the best."""
    print(f"### False stops of a trial truly as good as the selected best, {n} searches a row\n")
    print("| case | rule | p = 0.05 | p = 0.1 |\n| --- | --- | --- | --- |", flush=True)
    cases = {
        "20 equal trials": (World(), 20, 0.0),
        "20 equal trials, much noise of training": (World(training=0.6), 20, 0.0),
        "20 equal trials, none": (World(training=0.0, own=0.0), 20, 0.0),
        "20 equal trials, 12 posts a fold": (World(n_posts=12), 20, 0.0),
        "5 equal trials": (World(), 5, 0.0),
        "3 equal trials": (World(), 3, 0.0),
        "20 trials of mixed skill": (World(), 20, 0.2),
        **{f"{n} equal trials, 4 % of trainings fail": (World(failing=0.04), n, 0.0) for n in (5, 20)},
        **{f"{n} equal trials of unequal noise": (World(unequal=0.5), n, 0.0) for n in (5, 20)},
        "20 equal trials of very unequal noise": (World(unequal=1.0), 20, 0.0),
        "20 equal trials, pr_auc": (World(metric="pr_auc"), 20, 0.0),
        "20 equal trials, log_loss": (World(metric="log_loss"), 20, 0.0),
        "20 equal trials, log_loss, much noise of training": (World(metric="log_loss", training=0.6), 20, 0.0),
    }
    for case, (world, n_trials, spread) in cases.items():
        if only not in case:
            continue
        for rule, found in false_stops(world, n, n_trials, spread).items():
            rates = [fraction(int((np.array(found) <= p).sum()), n) for p in (0.05, 0.1)]
            print(f"| {case} | {rule} | {rates[0]} | {rates[1]} |", flush=True)


def table_of_power(n: int) -> None:
    """Print what the test alone spends on trials that are worse."""
    print("\n### Folds that the test alone spends on a worse trial (p = 0.05)\n")
    print("| skill below the best | folds of 5 | stopped after the first |\n| --- | --- | --- |")
    for behind in (0.0, 0.2, 0.4, 0.8):
        spent = np.array(power(World(), n, 10, behind))
        print(f"| {behind} | {spent.mean():.2f} | {(spent == 1).mean():.2f} |", flush=True)


def table_of_races(n: int, only: str) -> None:
    """Print what both rules do in whole searches."""
    print(f"\n### Whole searches of 20 trials, 5 of them before any is stopped, {n} searches a row\n")
    print("| skills | rules | stopped | of these would have ended better | truly as good stopped by the test | folds |")
    print("| --- | --- | --- | --- | --- | --- |")
    for skills, world, spread in (
        ("equal", World(), 0.0),
        ("equal, much noise", World(training=0.6), 0.0),
        ("mixed", World(), 0.2),
        ("equal, 4 % fail", World(failing=0.04), 0.0),
        ("mixed, 4 % fail", World(failing=0.04), 0.2),
        ("equal, unequal noise", World(unequal=0.5), 0.0),
        ("mixed, unequal noise", World(unequal=0.5), 0.2),
    ):
        for futility in (None, 0.05, 0.1, 0.2) if only in skills else ():
            rows = [row for seed in range(n) for row in race(world, seed, 20, spread, p=0.05, futility=futility)]
            stopped = [row for row in rows if row[0] != "go on"]
            good = [row for row in rows if row[2]]
            rules = "test" if futility is None else f"test, futility {futility}"
            print(
                f"| {skills} | {rules} | {len(stopped) / len(rows):.2f} "
                f"| {fraction(sum(row[1] for row in stopped), max(len(stopped), 1))} "
                f"| {fraction(sum(row[0] == 'worse' for row in good), len(good))} "
                f"| {np.mean([row[3] for row in rows]):.2f} |",
                flush=True,
            )


def main() -> None:
    """Print the tables."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--searches", type=int, default=300)
    parser.add_argument("--table", choices=("false_stops", "power", "races"))
    parser.add_argument("--only", default="", metavar="TEXT", help="cases that hold this text")
    given = parser.parse_args()
    if given.table in (None, "false_stops"):
        table_of_false_stops(given.searches, given.only)
    if given.table in (None, "power"):
        table_of_power(given.searches // 4)
    if given.table in (None, "races"):
        table_of_races(given.searches // 4, given.only)


if __name__ == "__main__":
    main()
