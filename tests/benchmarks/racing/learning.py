"""TPE with pruning, measured on a pool: how a stopped trial should be reported to it, and how the pruners do under it.

TPE suggests, and the nearest set that is not yet tried answers.

    EVBIND_WORKSPACE=/tmp/pools/sample OMP_NUM_THREADS=1 python -m tests.benchmarks.racing.learning --seeds 30

Nearest in the search space scaled to 0 to 1 (rates in logarithms; another category is as far as end from end). The trial is then
entered with the parameters of the set that answered, so that what TPE learns from is true. Overrides are those of the pool.
"""

from __future__ import annotations

import argparse
from collections.abc import Callable

import numpy as np
import optuna
from optuna.trial import TrialState

from evbind_lib.config.compose import compose
from evbind_lib.config.schema import Params
from evbind_lib.hpo.objective import suggest
from tests.benchmarks.racing.pool import Member
from tests.benchmarks.racing.replay import Pool, PoolRacing

BASE = "nothing is stopped"
Told = Callable[
    [np.ndarray, np.ndarray], float | None
]  # running scores, those of the best trial: value, or None for PRUNED


def place(suggested: dict[str, object], params: Params) -> np.ndarray:
    """Coordinates of a parameter set in the scaled space; what does not apply lies in the middle."""
    found: list[float] = []
    for name, entry in params.hpo.search_space.items():
        if entry.choices is not None:
            # Two categories lie sqrt(1/2 + 1/2) = 1 apart.
            found += [np.sqrt(0.5) * (suggested.get(name) == choice) for choice in entry.choices]
        elif name not in suggested:
            found.append(0.5)
        else:
            low, high, value = entry.low, entry.high, float(suggested[name])  # type: ignore[arg-type]
            if "log" in str(entry.type):
                low, high, value = np.log(low), np.log(high), np.log(value)
            found.append((value - low) / (high - low))
    return np.array(found)


def told_as() -> dict[str, Told]:
    """Ways to tell a stopped trial; values are turned so that more is better."""
    return {
        "PRUNED, with the running means": lambda own, best: None,
        "COMPLETE, running mean": lambda own, best: float(own.mean()),
        "COMPLETE, best's final score plus the running difference": lambda own, best: float(
            best.mean() + own.mean() - best[: len(own)].mean()
        ),
    }


def ways_to_tell() -> dict[str, tuple[Told | str, optuna.pruners.BasePruner]]:
    """Rows of the first table."""
    racing = PoolRacing(n_startup_trials=3)
    ways: dict[str, tuple[Told | str, optuna.pruners.BasePruner]] = {BASE: ("", optuna.pruners.NopPruner())}
    ways |= {name: (tell, racing) for name, tell in told_as().items()}
    return ways | {"FAIL: TPE learns nothing of it": ("FAIL", racing)}


def pruners() -> dict[str, tuple[Told | str, optuna.pruners.BasePruner]]:
    """Rows of the second table; all stopped trials are told as PRUNED."""
    found = {
        BASE: optuna.pruners.NopPruner(),
        "median": optuna.pruners.MedianPruner(),
        "median, start-up 3": optuna.pruners.MedianPruner(n_startup_trials=3),
        "percentile 25, start-up 3": optuna.pruners.PercentilePruner(25.0, n_startup_trials=3),
        "successive halving": optuna.pruners.SuccessiveHalvingPruner(),
        "racing, test only, start-up 3": PoolRacing(futility=None, n_startup_trials=3),
        "racing, futility 0.1, start-up 3": PoolRacing(futility=0.1, n_startup_trials=3),
        "racing, futility 0.2, start-up 3": PoolRacing(futility=0.2, n_startup_trials=3),
        "racing, futility 0.1, start-up 3, warm-up 1": PoolRacing(n_startup_trials=3, n_warmup_steps=1),
    }
    return {name: ("", pruner) for name, pruner in found.items()}


def search(
    pool: Pool,
    params: Params,
    seed: int,
    n_trials: int,
    budget: int,
    tell: Told | str,
    pruner: optuna.pruners.BasePruner,
) -> dict[str, float]:
    """One search by TPE, until so many trials or so many folds: folds, trials, the best score, whether the best that was tried
    was stopped, and the mean final score of what was tried after the start-up.
    """
    study = pool.study(pruner, optuna.samplers.TPESampler(seed=seed, n_startup_trials=10))
    places = np.array([place(member.suggested, params) for member in pool.members])
    free = np.ones(len(places), dtype=bool)
    folds, tried, complete = 0, [], []
    while len(tried) < min(n_trials, len(places)) and folds < budget:
        asked = study.ask()
        suggest(asked, params)
        wish = place(asked.params, params)
        study.tell(asked, state=TrialState.FAIL)  # TPE does not look at failed trials
        number = int(np.where(free, ((places - wish) ** 2).sum(axis=1), np.inf).argmin())
        free[number] = False
        member: Member = pool.members[number]
        study.enqueue_trial(member.suggested)
        trial = study.ask()
        suggest(trial, params)
        done = pool.run_trial(trial, number)
        folds += done
        tried.append(number)
        if done == pool.scores.shape[1]:
            complete.append(number)
            study.tell(trial, float(pool.scores[number].mean()))
            continue
        best = pool.sign * pool.scores[max(complete, key=lambda n: pool.sign * pool.scores[n].mean())]
        value = None if isinstance(tell, str) else tell(pool.sign * pool.scores[number, :done], best)
        if tell == "FAIL":
            study.tell(trial, state=TrialState.FAIL)
        elif value is None:
            study.tell(trial, state=TrialState.PRUNED)
        else:
            study.tell(trial, pool.sign * min(value, best.mean() - 1e-6))  # an estimate never is the best
    finals = pool.scores.mean(axis=1)
    best_final = max(pool.sign * finals[number] for number in complete)
    return {
        "folds": folds,
        "trials": len(tried),
        "best": best_final,
        "tried": pool.sign * finals[tried[10:]].mean(),
        "lost": float((pool.sign * finals[tried]).max() > best_final),
    }


def main() -> None:
    """Print the table."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--seeds", type=int, default=30)
    parser.add_argument("--trials", type=int, default=30)
    parser.add_argument("--folds", type=int, help="end a search after so many folds, not after so many trials")
    parser.add_argument("--metric")
    parser.add_argument("--pruners", action="store_true", help="compare pruners, not what TPE is told")
    parser.add_argument("overrides", nargs="*")
    given = parser.parse_args()
    pool, params = Pool(given.metric), compose(given.overrides, hpo="quick")
    ways = pruners() if given.pruners else ways_to_tell()
    n_trials, budget, size = given.trials, 10**9, f"{given.trials} trials"
    if given.folds is not None:
        n_trials, budget, size = 10**9, given.folds, f"{given.folds} folds"
    print(f"### {size} of TPE, {given.seeds} seeds, {len(pool.members)} sets, {pool.metric}\n")
    first = "pruner" if given.pruners else "a stopped trial is told as"
    columns = ["trials", "folds", "best", "difference to none", "stopped the best it tried", "mean final score tried"]
    print("| " + " | ".join([first, *columns]) + " |\n" + "| --- " * 7 + "|")
    found: dict[str, list[dict[str, float]]] = {name: [] for name in ways}
    for seed in range(given.seeds):
        for name, (tell, pruner) in ways.items():
            found[name].append(search(pool, params, seed, n_trials, budget, tell, pruner))
    base = np.array([row["best"] for row in found[BASE]])
    for name, rows in found.items():
        best, folds, trials = (np.array([row[key] for row in rows]) for key in ("best", "folds", "trials"))
        tried, lost = (np.array([row[key] for row in rows]) for key in ("tried", "lost"))
        apart, root = best - base, np.sqrt(len(best))
        print(
            f"| {name} | {trials.mean():.1f} | {folds.mean():.1f} "
            f"| {pool.sign * best.mean():.4f} | {apart.mean():+.4f} ± {apart.std(ddof=1) / root:.4f} "
            f"| {int(lost.sum())} of {len(lost)} | {pool.sign * tried.mean():.4f} ± {tried.std(ddof=1) / root:.4f} |"
        )


if __name__ == "__main__":
    main()
