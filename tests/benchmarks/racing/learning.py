"""What TPE should be told of a stopped trial, measured on a pool: TPE suggests, and the nearest set not yet tried answers.

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

from evbind_lib.params import Params, compose
from evbind_lib.racing import RacingPruner
from evbind_lib.space import suggest
from tests.benchmarks.racing.pool import Member
from tests.benchmarks.racing.replay import Pool

Told = Callable[
    [np.ndarray, np.ndarray], float | None
]  # running scores, those of the best trial: value, or None for PRUNED


def place(suggested: dict[str, object], params: Params) -> np.ndarray:
    """Coordinates of a parameter set in the scaled space; what does not apply lies in the middle."""
    found: list[float] = []
    for name, entry in params.hpo.search_space.items():
        choices = getattr(entry, "choices", None)
        if choices is not None:
            # Two categories lie sqrt(1/2 + 1/2) = 1 apart.
            found += [np.sqrt(0.5) * (suggested.get(name) == choice) for choice in choices]
        elif name not in suggested:
            found.append(0.5)
        else:
            low, high, value = entry.low, entry.high, float(suggested[name])  # type: ignore[union-attr,arg-type]
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


def search(pool: Pool, params: Params, seed: int, n_trials: int, tell: Told | str, pruner: RacingPruner | None) -> dict:
    """One search by TPE: folds, best score, and the mean final score of what was tried after the start-up."""
    study = pool.study(pruner or optuna.pruners.NopPruner(), optuna.samplers.TPESampler(seed=seed, n_startup_trials=10))
    places = np.array([place(member.suggested, params) for member in pool.members])
    free = np.ones(len(places), dtype=bool)
    folds, tried, complete = 0, [], []
    for _ in range(n_trials):
        asked = study.ask()
        wish = place(suggest(asked, params), params)
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
            trial.set_user_attr("parameter_key", None)  # the pool has all its folds; the search has not
            study.tell(trial, pool.sign * min(value, best.mean() - 1e-6))  # an estimate never is the best
    finals = pool.scores.mean(axis=1)
    best_final = max(pool.sign * finals[number] for number in complete)
    return {"folds": folds, "best": best_final, "tried": pool.sign * finals[tried[10:]].mean()}


def main() -> None:
    """Print the table."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--seeds", type=int, default=30)
    parser.add_argument("--trials", type=int, default=30)
    parser.add_argument("--metric")
    parser.add_argument("overrides", nargs="*")
    given = parser.parse_args()
    pool, params = Pool(given.metric), compose({"hpo": "quick"}, given.overrides)
    racing = RacingPruner(n_startup_trials=3)
    ways: dict[str, tuple[Told | str, RacingPruner | None]] = {"nothing is stopped": ("", None)}
    ways |= {name: (tell, racing) for name, tell in told_as().items()}
    ways["FAIL: TPE learns nothing of it"] = ("FAIL", racing)
    print(
        f"### {given.trials} trials of TPE, {given.seeds} seeds, {len(pool.members)} sets, {pool.identity['metric']}\n"
    )
    print("| a stopped trial is told as | folds | best | difference to PRUNED | mean final score of what was tried |")
    print("| --- | --- | --- | --- | --- |")
    found = {name: [] for name in ways}
    for seed in range(given.seeds):
        for name, (tell, pruner) in ways.items():
            found[name].append(search(pool, params, seed, given.trials, tell, pruner))
    base = np.array([row["best"] for row in found["PRUNED, with the running means"]])
    for name, rows in found.items():
        best, folds, tried = (np.array([row[key] for row in rows]) for key in ("best", "folds", "tried"))
        apart, error = best - base, (best - base).std(ddof=1) / np.sqrt(len(best))
        print(
            f"| {name} | {folds.mean():.1f} | {pool.sign * best.mean():.4f} | {apart.mean():+.4f} ± {error:.4f} "
            f"| {pool.sign * tried.mean():.4f} ± {tried.std(ddof=1) / np.sqrt(len(tried)):.4f} |"
        )


if __name__ == "__main__":
    main()
