"""Bias, error and coverage of corrected scores and of comparisons, on simulated searches whose truth is known.

    OMP_NUM_THREADS=1 nice -n 19 python -m tests.benchmarks.selection [--quick]

A post's score is the set's true score + the post's difficulty, shared by all trials + noise of the training, shared by the
posts of its fold + noise of its own; a fold's score is the mean over its posts. Every search draws its own spreads, about those
seen on the sample: 0.05 to 0.09 between folds, 0.02 to 0.045 between trainings of a fold. `CHOSEN_ON` are the seeds that the
methods were chosen on; what is printed is from others.
"""

from __future__ import annotations

import argparse
from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
from scipy import stats

from evbind_lib.errors import SearchError
from evbind_lib.evaluation.selection import corrected_score, corrected_t
from evbind_lib.hpo.racing.statistics import FoldScore, judge

N_FOLDS, N_POSTS, N_RESAMPLES = 5, 40, 200
CHOSEN_ON, REPORTED = range(1, 10), 2026
CORRECTED = np.sqrt(1 / N_FOLDS + 1 / (N_FOLDS - 1))
Estimate = tuple[float, float, float]  # value, low, high


@dataclass(frozen=True)
class Search:
    """Scores (n_trials, n_folds), NaN where racing stopped a trial; of posts (n_trials, n_folds, n_posts); true scores."""

    scores: np.ndarray
    posts: np.ndarray
    truth: np.ndarray
    common: (
        float  # luck of the posts drawn, the same for all trials and all methods: left out of the bias, for precision
    )

    @property
    def complete(self) -> np.ndarray:
        return np.isfinite(self.scores).all(axis=1)

    @property
    def best(self) -> int:
        return int(np.nanargmax(self.scores.mean(axis=1)))


# ---- worlds ----


def true_scores(kind: str, random: np.random.Generator) -> np.ndarray:
    """What the sets of a search would score on average over posts and trainings."""
    n = 10 if "ten" in kind else int(random.choice([20, 30, 50]))
    if "equal" in kind:
        return np.full(n, 0.8)
    if "tail" in kind:
        return np.where(random.random(n) < 0.3, random.uniform(0.4, 0.5, n), 0.8 - 0.05 * random.exponential(size=n))
    return 0.78 + random.uniform(0.01, 0.03) * random.standard_normal(n)


def simulate(kind: str, random: np.random.Generator) -> Search:
    """A search of this kind; its name says what is in it."""
    fold, training, own = random.uniform(0.05, 0.09), random.uniform(0.02, 0.045), random.uniform(0.01, 0.02)
    if "few differences between folds" in kind:
        fold = 0.01
    post = fold * np.sqrt(N_POSTS) * random.standard_normal((N_FOLDS, N_POSTS))
    truth = true_scores(kind, random)
    shape = (len(truth), N_FOLDS)
    noise = training * random.standard_normal(shape)
    if "luck" in kind:  # the mean over folds varies 1.35 times as much as with independent folds
        noise += training * np.sqrt(0.35 / N_FOLDS) * random.standard_normal((len(truth), 1))
    if "unequal noise" in kind:
        noise *= np.exp(0.5 * random.standard_normal((len(truth), 1)) - 0.125)
    if "fail" in kind:
        noise -= 0.3 * ((random.random(shape) < 0.04) - 0.04)
    if "climb" in kind:
        truth, noise = climb(len(truth), noise, post.mean(axis=1), training, random)
    posts = (truth[:, None] + noise)[..., None] + post
    posts = posts + own * np.sqrt(N_POSTS) * random.standard_normal(posts.shape)
    scores = raced(posts, random) if "raced" in kind else posts.mean(axis=2)
    return Search(scores, posts, truth, float((posts.mean(axis=2) - truth[:, None]).mean()))


def climb(
    n: int, noise: np.ndarray, post: np.ndarray, training: float, random: np.random.Generator
) -> tuple[np.ndarray, np.ndarray]:
    """True scores and noise where a sampler tries near the best seen, and neighbours share part of their luck in a fold."""
    optimum, place, truth, noise = random.random(3), np.empty((n, 3)), np.empty(n), 0.8 * noise
    waves, phase = 3 * random.standard_normal((3, 20)), random.uniform(0, 2 * np.pi, 20)
    height = 0.6 * training * np.sqrt(2 / 20) * random.standard_normal((N_FOLDS, 20))
    for trial in range(n):
        near = trial >= 10 and random.random() < 0.8
        best = place[np.argmax((truth[:, None] + noise)[: max(trial, 1)].mean(axis=1))]
        step = 0.12 * random.standard_normal(3)
        place[trial] = np.clip(best + step, 0, 1) if near else random.random(3)
        truth[trial] = 0.8 - 0.25 * ((place[trial] - optimum) ** 2).sum()
        noise[trial] += height @ np.cos(place[trial] @ waves + phase)
    return truth, noise


def raced(posts: np.ndarray, random: np.random.Generator) -> np.ndarray:
    """Scores with NaN for the folds that the racing pruner, with its defaults, would not have trained."""
    drawn = random.multinomial(N_POSTS, np.full(N_POSTS, 1 / N_POSTS), size=N_RESAMPLES) / N_POSTS
    scores, noise = posts.mean(axis=2), posts @ drawn.T
    noise -= noise.mean(axis=2, keepdims=True)
    kept, complete = scores.copy(), []
    for trial in range(len(posts)):
        folds = [FoldScore(float(scores[trial, fold]), noise[trial, fold]) for fold in range(N_FOLDS)]
        looks = range(1, N_FOLDS) if len(complete) >= 3 else ()
        stop = next((done for done in looks if judge(folds[:done], complete).stop), None)
        if stop is None:
            complete.append(folds)
        else:
            kept[trial, stop:] = np.nan
    return kept


# ---- scores of the best ----


def about(value: float, folds: np.ndarray) -> Estimate:
    """The value with the corrected resampled t over these scores of folds."""
    mean, low, high, _ = corrected_t(folds)
    return value, value + low - mean, value + high - mean


def shipped(search: Search) -> Estimate:
    found = corrected_score(search.scores)
    return found.value, found.low, found.high


def naive(search: Search) -> Estimate:
    return about(search.scores[search.best].mean(), search.scores[search.best])


def leave_one_fold_out(search: Search) -> Estimate:
    """Choose on all folds but one, score on that one; folds lacking are filled in. The method to beat."""
    scores, level, found = search.scores, search.scores[search.complete].mean(axis=0), []
    for fold in range(N_FOLDS):
        others = np.delete(scores - level, fold, axis=1)
        some = np.isfinite(others).any(axis=1)
        distance = np.full(len(scores), -np.inf)
        distance[some] = np.nanmean(others[some], axis=1)
        chosen = int(distance.argmax())
        score = scores[chosen, fold]
        found.append(score if np.isfinite(score) else level[fold] + distance[chosen])
    return about(min(float(np.mean(found)), naive(search)[0]), np.array(found))


def plain_t(search: Search) -> Estimate:
    """The same, with the t interval that takes folds for independent."""
    value, low, high = leave_one_fold_out(search)
    half = (high - low) / 2 / CORRECTED / np.sqrt(N_FOLDS)
    return value, value - half, value + half


def noise_of_a_fold(scores: np.ndarray) -> float:
    left = scores - scores.mean(axis=0)
    left = left - left.mean(axis=1, keepdims=True)
    return float((left**2).sum() / (len(scores) - 1) / (N_FOLDS - 1))


def shrinkage(search: Search) -> Estimate:
    """Towards the mean of complete trials, by the variance of trial x fold (Efron 2011, a normal field)."""
    scores = search.scores[search.complete]
    means, n = scores.mean(axis=1), len(scores)
    factor = max(0.0, 1 - (n - 3) / (n - 1) * noise_of_a_fold(scores) / N_FOLDS / means.var(ddof=1)) if n > 3 else 1.0
    return about(means.mean() + factor * (means.max() - means.mean()), search.scores[search.best])


def mixture(search: Search) -> Estimate:
    """Expectation of the best's true score, true scores distributed as is likeliest (Efron 2011; Kiefer and Wolfowitz 1956)."""
    there, distance = np.isfinite(search.scores), np.zeros(len(search.scores))
    for _ in range(100):
        level = np.nanmean(search.scores - distance[:, None], axis=0)
        distance = np.nanmean(search.scores - level, axis=1)
    squares = np.nansum((search.scores - level - distance[:, None]) ** 2, axis=1)
    pooled = squares.sum() / (there.sum() - len(there) - N_FOLDS + 1)
    variance = (4 * pooled + squares) / (3 + there.sum(axis=1)) / there.sum(axis=1)
    atoms = np.linspace(distance.min(), distance.max(), 80)
    likelihood = np.exp(-((distance[:, None] - atoms) ** 2) / variance[:, None] / 2) + 1e-300
    weight = np.full(80, 1 / 80)
    for _ in range(300):
        posterior = likelihood * weight
        posterior /= posterior.sum(axis=1, keepdims=True)
        weight = posterior.mean(axis=0)
    best = search.scores[search.best]
    return about(best.mean() - max(0.0, distance[search.best] - posterior[search.best] @ atoms), best)


def tibshirani(search: Search) -> Estimate:
    """Less the mean over folds of what the fold's best has above the best (Tibshirani and Tibshirani 2009)."""
    best = search.scores[search.best]
    return about(best.mean() - (np.nanmax(search.scores, axis=0) - best).mean(), best)


def bernau(search: Search) -> Estimate:
    """Mean of complete trials, each by how often noise would make it the best (Bernau et al. 2013, the smoothed one)."""
    scores = search.scores[search.complete]
    error = np.sqrt(noise_of_a_fold(scores) / N_FOLDS)
    drawn = scores.mean(axis=1) + error * np.random.default_rng(0).standard_normal((1000, len(scores)))
    folds = np.bincount(drawn.argmax(axis=1), minlength=len(scores)) / 1000 @ scores
    return about(folds.mean(), folds)


def bbc_cv(search: Search) -> Estimate:
    """Choose on posts drawn, score on posts not drawn (BBC-CV, Tsamardinos et al. 2018); percentiles of its resamples."""
    posts = search.posts[search.complete].reshape(int(search.complete.sum()), -1)
    n = posts.shape[1]
    drawn = np.random.default_rng(0).multinomial(n, np.full(n, 1 / n), size=200)
    chosen, left = (posts @ drawn.T).argmax(axis=0), drawn == 0
    found = (posts @ left.T)[chosen, np.arange(200)] / left.sum(axis=1)
    return float(found.mean()), *np.quantile(found, [0.025, 0.975])


METHODS: dict[str, Callable[[Search], Estimate]] = {
    "the best's own score": naive,
    "`corrected_score`": shipped,
    "leave one fold out": leave_one_fold_out,
    "the same, plain t": plain_t,
    "shrinkage, normal": shrinkage,
    "shrinkage, mixture": mixture,
    "Tibshirani": tibshirani,
    "Bernau et al.": bernau,
    "BBC-CV": bbc_cv,
}
WORLDS = (
    "equal",
    "mixed",
    "long bad tail",
    "equal, seed luck",
    "mixed, unequal noise",
    "mixed, 4 % fail",
    "hill-climbing",
    "ten, mixed",
    "ten, equal",
    "equal, few differences between folds",
    "equal, raced",
    "mixed, raced",
    "long bad tail, raced",
    "hill-climbing, raced",
    "mixed, 4 % fail, raced",
)


def table_of_scores(n: int, seed: int) -> None:
    """Print bias, error, coverage and width of the methods in each world."""
    print(f"### Score of the best, {n} searches a world, half of these where raced\n")
    print("| world | method | bias | rmse | coverage | width |\n| --- | --- | --- | --- | --- | --- |", flush=True)
    for number, kind in enumerate(WORLDS):
        random, rows, undefined = np.random.default_rng([seed, number]), [], 0
        for _ in range(n // 2 if "raced" in kind else n):
            search = simulate(kind, random)
            try:
                found = [method(search) for method in METHODS.values()]
            except SearchError:
                undefined += 1
                continue
            rows.append([(*each, search.truth[search.best], search.common) for each in found])
        value, low, high, truth, common = np.moveaxis(np.array(rows), 2, 0)
        error = value - truth
        for place, name in enumerate(METHODS):
            wrong, apart = error[:, place], (error - common)[:, place]
            covered = ((low <= truth) & (truth <= high))[:, place]
            print(
                f"| {kind if place == 0 else ''} | {name} | {apart.mean():+.4f} ± {apart.std() / np.sqrt(len(apart)):.4f} "
                f"| {np.sqrt((wrong**2).mean()):.4f} | {covered.mean():.3f} | {(high - low)[:, place].mean():.3f} |",
                flush=True,
            )
        if undefined:
            print(f"| | *not defined in {undefined} searches* | | | | |", flush=True)


# ---- comparisons ----


def compared(kind: str, n: int, random: np.random.Generator) -> dict[str, tuple[float, float, float, float]]:
    """Coverage, false claims, width and claims of each method, for differences of two sets over ``n`` experiments."""
    training, own = random.uniform(0.02, 0.045, (n, 1, 1)), random.uniform(0.01, 0.02, (n, 1, 1))
    n_sets = 11 if "best of" in kind else 2
    truth = np.zeros((n, n_sets))
    if "different" in kind:
        truth[:, 1] = 0.06
    if "mixed" in kind:
        truth[:, 1:] = 0.02 * random.standard_normal((n, 10))
    spread = np.broadcast_to(training, (n, n_sets, 1))
    if "unequal" in kind:
        spread = spread * np.where(np.arange(n_sets) == 0, 0.5, 1.5)[:, None]
    trained = spread * random.standard_normal((n, n_sets, N_FOLDS))
    shared = 0.35 / N_FOLDS if "luck" in kind else 0.0
    trained = trained + spread * np.sqrt(shared) * random.standard_normal((n, n_sets, 1))
    if "fail" in kind:
        trained = trained - 0.3 * ((random.random(trained.shape) < 0.04) - 0.04)
    posts = own[..., None] * np.sqrt(N_POSTS) * random.standard_normal((n, n_sets, N_FOLDS, N_POSTS))
    posts = posts + (truth[..., None] + trained)[..., None]
    scores = posts.mean(axis=3)
    chosen, each = 1 + scores[:, 1:].mean(axis=2).argmax(axis=1), np.arange(n)
    difference, true = scores[each, chosen] - scores[:, 0], truth[each, chosen] - truth[:, 0]
    mean, deviation = difference.mean(axis=1), difference.std(axis=1, ddof=1)
    t = stats.t.ppf(0.975, N_FOLDS - 1)
    of_posts = (posts[each, chosen] - posts[:, 0]).reshape(n, -1)
    halves = {
        "bootstrap of posts": 1.96 * of_posts.std(axis=1) / np.sqrt(of_posts.shape[1]),
        "plain t": t * deviation / np.sqrt(N_FOLDS),
        "corrected t": t * deviation * CORRECTED,
    }
    if n_sets > 2:
        left = scores - scores.mean(axis=2, keepdims=True) - scores.mean(axis=1, keepdims=True)
        left = left + scores.mean(axis=(1, 2), keepdims=True)
        freedom = (n_sets - 1) * (N_FOLDS - 1)
        variance = (left**2).sum(axis=(1, 2)) / freedom
        halves["variance components"] = stats.t.ppf(0.975, freedom) * np.sqrt(2 * variance) * CORRECTED
    centre = {name: mean for name in halves}
    if n_sets > 2:
        few = slice(0, min(n, 1500))
        moved = [corrected_score(s).value - s.mean(axis=1).max() for s in scores[few, 1:]]
        name = "corrected t, by `corrected_score`"
        halves[name], centre[name] = halves["corrected t"][few], mean[few] + moved
    noise = spread[each, chosen, 0] ** 2 + spread[:, 0, 0] ** 2 + 2 * own[:, 0, 0] ** 2
    noise = noise + (2 * 0.04 * 0.96 * 0.3**2 if "fail" in kind else 0.0)
    shared_part = shared * (spread[each, chosen, 0] ** 2 + spread[:, 0, 0] ** 2)
    halves["oracle"] = 1.96 * np.sqrt(noise / N_FOLDS + shared_part)
    centre["oracle"] = mean
    found = {}
    for name, half in halves.items():
        value, right = centre[name], true[: len(half)]
        covered, claimed = np.abs(value - right) <= half, np.abs(value) > half
        false = claimed & (np.sign(value) != np.sign(right))
        found[name] = (covered.mean(), false.mean(), 2 * half.mean(), claimed.mean())
    return found


def table_of_comparisons(n: int, seed: int) -> None:
    """Print coverage, false claims and width of comparisons; required are at least 0.93 and at most 0.07."""
    print(f"\n### Comparisons of two sets over {N_FOLDS} folds, {n} a world (by `corrected_score`: at most 1,500)\n")
    print(
        "| world | method | coverage | false claims | mean width | any claim |\n| --- | --- | --- | --- | --- | --- |"
    )
    for number, kind in enumerate(
        (
            "equal",
            "equal, unequal noise",
            "equal, 4 % fail",
            "equal, seed luck",
            "different by 0.06",
            "best of ten equal against default",
            "best of ten mixed against default",
            "best of ten equal against default, unequal noise",
            "best of ten equal against default, 4 % fail",
        )
    ):
        rows = compared(kind, n, np.random.default_rng([seed, 100 + number]))
        for place, (name, row) in enumerate(rows.items()):
            print(
                f"| {kind if place == 0 else ''} | {name} | " + " | ".join(f"{each:.3f}" for each in row) + " |",
                flush=True,
            )


def main() -> None:
    """Print the tables."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--quick", action="store_true", help="a tenth of the searches: about half a minute")
    parser.add_argument(
        "--seed", type=int, default=REPORTED, help=f"not one of {[*CHOSEN_ON]}, which methods were chosen on"
    )
    parser.add_argument("--table", choices=("scores", "comparisons"))
    given = parser.parse_args()
    if given.table != "comparisons":
        table_of_scores(60 if given.quick else 600, given.seed)
    if given.table != "scores":
        table_of_comparisons(500 if given.quick else 5000, given.seed)


if __name__ == "__main__":
    main()
