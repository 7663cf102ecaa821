"""The racing pruner: after each fold a trial is compared with the best one on the same validation posts, pair by pair."""

import logging
from dataclasses import dataclass
from functools import lru_cache
from typing import Any

import optuna
from optuna.trial import FrozenTrial, TrialState

from evbind_lib.hpo.racing.statistics import FoldScore, Verdict, judge, score_fold
from evbind_lib.hpo.study import StudyRecord, TrialRecord, distinct_trials
from evbind_lib.training.cache import FoldCache, trial_name
from evbind_lib.training.metrics import METRICS, Metric

_logger = logging.getLogger("evbind_lib")


@dataclass(kw_only=True, eq=False)
class RacingPruner(optuna.pruners.BasePruner):
    """Stop a trial that is worse than the best, or that can hardly end better, by its predictions for the same posts.

    It works in any Optuna study whose objective hands `report_folds` to `cross_validate`, with the same folds in every trial,
    and goes by the metric given there, whatever the objective returns. After each fold but the last, two rules are asked.

    *Worse*: a trial whose true score is at least that of the best is stopped with a chance of at most ``p`` over all its folds.
    The test allows for other posts (bootstrap), other trainings (the variance of the better half of complete trials, with the
    long tail of failed ones, or from the second fold on the trial's own where that is larger) and luck: the best was selected on
    these very folds. Simulated, ``p=0.05`` stopped 1.0 to 5.0 in 100 of the trials truly as good as the best, also where 4 % of
    trainings fail or sets differ in noise, and up to 5.3 in whole searches of equal sets
    (``tests/benchmarks/racing/simulate.py``). A ``p`` too small for the number of folds and resamples stops none; that is logged.

    *Futile*: the predicted chance of ending better than the best by more than ``margin`` is below ``futility``. Of the trials
    stopped at 0.1, 0.5 to 1.9 in 100 would have ended better. This bounds the fraction of stopped trials that would have won,
    not that of good trials stopped: most trials truly as good as the best are stopped by it, and so is a good one whose first
    training fails. Where that matters, set ``futility=None``, at the price of more folds.

    Sources: Maron and Moore, NIPS 1993 (races); Tsamardinos, Greasidou and Borboudakis, Machine Learning 107, 2018 (bootstrap of
    out-of-sample predictions); Lan, Simon and Halperin, Sequential Analysis 1, 1982 (futility).

    Parameters
    ----------
    p, futility : float
        Chances as above; ``p`` above 0 and below 1, ``futility`` from 0 to 1, or None to stop no trial for that reason.
    margin : float
        How much better than the best, in units of the metric, a trial must end to be worth its folds; 0 or more.
    n_startup_trials, n_warmup_steps : int
        Complete trials before any is stopped (two in any case, to estimate the spread); folds that none is stopped before.
    n_resamples : int
        Bootstrap resamples of posts, at least 100. A value out of its range is a `ValueError`.

    Examples
    --------
    >>> import evbind_lib as ev, optuna
    >>> params = ev.compose(["training.n_folds=2", "training.args.max_steps=1"])
    >>> corpus = ev.load_corpus(params)
    >>> study = optuna.create_study(direction="maximize", pruner=ev.RacingPruner(p=0.05))
    >>> study.optimize(ev.Objective(corpus, ev.make_folds(corpus, params), params), n_trials=1)
    >>> len(study.best_trial.intermediate_values)
    2
    """

    p: float = 0.05
    futility: float | None = 0.1
    margin: float = 0.0
    n_startup_trials: int = 3
    n_warmup_steps: int = 0
    n_resamples: int = 1000

    def __post_init__(self) -> None:
        for name, holds, wish in (
            ("p", 0 < self.p < 1, "above 0 and below 1"),
            ("futility", self.futility is None or 0 <= self.futility <= 1, "from 0 to 1, or null"),
            ("margin", self.margin >= 0, "0 or more"),
            ("n_startup_trials", self.n_startup_trials >= 0, "0 or more"),
            ("n_warmup_steps", self.n_warmup_steps >= 0, "0 or more"),
            ("n_resamples", 100 <= self.n_resamples <= 1_000_000, "from 100 to 1,000,000"),
        ):
            if not holds:
                raise ValueError(f"{name}={getattr(self, name)} must be {wish}")

    def prune(self, study: optuna.Study, trial: FrozenTrial) -> bool:
        """Whether to stop the trial after its last reported fold."""
        return self.judge(study, trial).stop

    def judge(self, study: optuna.Study, trial: FrozenTrial) -> Verdict:
        """Give the decision with its reasons."""
        uid, record = StudyRecord.read(study).uid, TrialRecord.read(trial)
        if uid is None or record.metric is None or trial.last_step is None:
            return Verdict("no folds to compare")
        if trial.last_step < self.n_warmup_steps:
            return Verdict("warm-up")
        candidate = self._folds(uid, trial.number, trial.last_step + 1, record.metric)
        if candidate is None:
            return Verdict("no predictions")
        finished = study.get_trials(deepcopy=False, states=(TrialState.COMPLETE,))
        rivals = distinct_trials([trial, *finished])[1:]  # none with its own parameters
        found = [self._folds(uid, other.number, len(other.intermediate_values), record.metric) for other in rivals]
        n_folds = max((len(folds) for folds in found if folds), default=0)
        complete = [folds for folds in found if folds and len(folds) == n_folds]
        if len(complete) < max(self.n_startup_trials, 2):
            return Verdict("start-up")
        if len(candidate) >= n_folds:
            return Verdict("last fold")
        how, greater = record.fold_aggregation or "mean", METRICS[record.metric].greater_is_better
        rules: dict[str, Any] = {"p": self.p, "futility": self.futility, "margin": self.margin}
        n_looks = n_folds - 1 - self.n_warmup_steps
        if self.p / (1 + n_looks) < 1 / (1 + self.n_resamples):
            _warn_that_none_is_worse(self.p, n_looks, self.n_resamples)
        return judge(candidate, complete, aggregation=how, greater_is_better=greater, n_looks=n_looks, **rules)

    def _folds(self, uid: str, number: int, n_folds: int, metric: str) -> list[FoldScore] | None:
        """Scores of the first folds of a trial; None where the predictions of one of them are not in this workspace."""
        of = (uid, number, metric, METRICS[metric], self.n_resamples)
        try:
            return [_fold_score(fold, *of) for fold in range(n_folds)]
        except FileNotFoundError:
            return None


@lru_cache  # said once
def _warn_that_none_is_worse(p: float, n_looks: int, n_resamples: int) -> None:
    remedy = f"raise p, or n_resamples to {int((1 + n_looks) / p)}"
    text = "The racing pruner stops no trial as worse: p=%g over %d looks is below 1/%d, the least p-value of its resamples; %s."
    _logger.warning(text, p, n_looks, n_resamples + 1, remedy)


@lru_cache(maxsize=8_000)  # of 8 kB each, at 1,000 resamples
def _fold_score(fold: int, uid: str, number: int, metric: str, function: Metric, n_resamples: int) -> FoldScore:
    """Score of a cached fold; `FileNotFoundError`, which is not remembered, where it is not cached."""
    stored = FoldCache(uid).stored(trial_name(number, fold))
    if stored is None:
        raise FileNotFoundError
    return score_fold(stored[1], metric, fold=fold, n_resamples=n_resamples)
