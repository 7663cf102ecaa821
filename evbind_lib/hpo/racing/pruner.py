"""The racing pruner: after each fold a trial is compared with the best one on the same validation posts, pair by pair.

Imports `kept`, and `spread` and `races`, where the statistics are; `strategies` imports it.
"""

from __future__ import annotations

from collections import OrderedDict
from dataclasses import replace
from typing import Literal

import optuna
from optuna.trial import FrozenTrial, TrialState

from evbind_lib.hpo.racing.races import Verdict, chance_within_a_fold, judge
from evbind_lib.hpo.racing.spread import FoldScore, score_fold
from evbind_lib.training.cache import FoldCache

MOST_BYTES = 64_000_000  # of replicates held in memory


class RacingPruner(optuna.pruners.BasePruner):
    """Stop a trial that is worse than the best, or that can hardly end better, by its predictions for the same posts.

    After each fold but the last, two rules are asked. What each promises:

    *Worse* (``p``): a trial whose true score is at least that of the best is stopped with a chance of at most ``p`` over
    all folds. The null distribution has three sources: other posts (bootstrap of posts within folds, the same draws for
    all trials), other trainings (a variance component per fold, by the method of moments from the better half of complete
    trials, its uncertainty and the long tail of failed trainings included), and luck: the best was chosen on these very
    folds. ``p`` is divided among the looks, with one share in reserve. The promise rests on approximations, the bootstrap's
    and that the noise of good trials is alike; ``tests/benchmarks/racing/simulate.py`` measures how it is kept.

    *Futile* (``futility``): the trial's final score, as it would be observed, is predicted to exceed the best one's by more
    than ``margin`` with a chance below ``futility``. That bounds the share of stopped trials that would have ended better,
    not the share of good trials stopped: of trials truly as good as the best, this rule may stop many. Most trials of a
    late search lie there, and most of the time is saved there.

    Both rules are the same for every metric, log loss included. ``test="signed_rank"`` asks Wilcoxon's signed-rank test on the
    posts' mean log losses instead, its level divided also by the number of complete trials not clearly below the best. It
    tells two trained models apart, not two parameter sets, and does not keep ``p`` where trainings differ: in the simulation
    it stopped 8 of 10 trials that were truly as good. It suits a training that always gives the same model.

    Parameters
    ----------
    p : float
        Chance, above 0 and below 1, of stopping by the first rule a trial that is truly at least as good as the best.
    futility : float or None
        Chance of ending better, from 0 to 1, below which a trial is stopped; None: never for that reason.
    margin : float
        How much better than the best, in units of the metric, a trial must end to be worth going on; 0 or more.
    n_startup_trials : int
        Complete trials before any is stopped; two are needed in any case, to estimate the spread.
    n_warmup_steps : int
        Folds that no trial is stopped before; the steps that are reported are folds, counted from 0.
    n_resamples : int
        Draws of posts, at least 100.
    epochs : bool
        Look within each fold as well: after every epoch but its last the futility rule is asked, with the fold's end predicted
        from where complete trials stood after the same share of their training. The test against being worse waits for whole
        folds. It asks that rule several times as often, so a stricter futility, such as 0.05, belongs to it.
    test : {"auto", "bootstrap", "signed_rank"}
        ``auto``: the bootstrap. Signed ranks are for log loss alone; other metrics, which are no means over posts, are
        bootstrapped whatever the choice.

    Raises
    ------
    ValueError
        For a value out of its range.

    Notes
    -----
    It reads the predictions kept by `evbind_lib.training.cache.FoldCache` under the ``parameter_key`` of each trial, and the
    study's ``identity``. Trials without them are passed over; a trial that has none itself is never stopped.
    """

    def __init__(
        self,
        *,
        p: float = 0.05,
        futility: float | None = 0.1,
        margin: float = 0.0,
        n_startup_trials: int = 3,
        n_warmup_steps: int = 0,
        n_resamples: int = 1000,
        epochs: bool = False,
        test: Literal["auto", "bootstrap", "signed_rank"] = "auto",
    ) -> None:
        if not 0 < p < 1:
            raise ValueError(f"p={p} must be above 0 and below 1")
        if futility is not None and not 0 <= futility <= 1:
            raise ValueError(f"futility={futility} must be from 0 to 1, or null")
        if not margin >= 0:
            raise ValueError(f"margin={margin} must be 0 or more")
        if n_startup_trials < 0 or n_warmup_steps < 0:
            raise ValueError("n_startup_trials and n_warmup_steps must be 0 or more")
        if n_resamples < 100:
            raise ValueError(f"n_resamples={n_resamples} must be 100 or more")
        if epochs and futility is None:
            raise ValueError("epochs=true asks the futility rule after each epoch, so futility must not be null")
        if test not in ("auto", "bootstrap", "signed_rank"):
            raise ValueError(f"test={test} must be auto, bootstrap or signed_rank")
        self.p, self.futility, self.margin = p, futility, margin
        self.n_startup_trials, self.n_warmup_steps = n_startup_trials, n_warmup_steps
        self.n_resamples, self.epochs, self.test = n_resamples, epochs, test
        self._scores: OrderedDict[tuple[str, str, int, str], FoldScore] = OrderedDict()

    def prune(self, study: optuna.Study, trial: FrozenTrial) -> bool:
        """Whether to stop the trial after its last reported fold."""
        return self.judge(study, trial).stop

    def judge(self, study: optuna.Study, trial: FrozenTrial) -> Verdict:
        """Give the decision with its reasons.

        Parameters
        ----------
        study : optuna.Study
        trial : FrozenTrial

        Returns
        -------
        Verdict
        """
        identity, step = study.user_attrs.get("identity"), trial.last_step
        if identity is None or step is None or not isinstance(identity.get("metric"), str):
            return Verdict(False, "no folds to compare")
        metric, n_folds = identity["metric"], identity["n_folds"]
        if step >= n_folds - 1:
            return Verdict(False, "last fold")
        if step < self.n_warmup_steps:
            return Verdict(False, "warm-up")
        field = self._field(study, trial.user_attrs.get("parameter_key"), step + 1)
        if isinstance(field, str):
            return Verdict(False, field)
        candidate, complete = field
        return judge(
            candidate,
            complete,
            aggregation=identity["fold_aggregation"],
            direction=identity["direction"],
            p=self.p,
            futility=self.futility,
            margin=self.margin,
            n_looks=n_folds - 1 - self.n_warmup_steps,
            ranks=metric == "log_loss" and self.test == "signed_rank",
        )

    def chance_within_a_fold(self, study: optuna.Study, key: str, fold: int, score: float, share: float) -> float:
        """Chance that a trial ends better than the best, asked after an epoch.

        Parameters
        ----------
        study : optuna.Study
        key : str
            The trial's ``parameter_key``.
        fold : int
            That is being trained, counted from 0.
        score : float
            Metric of the fold after the epoch.
        share : float
            Of the fold's training that is done, above 0 and below 1.

        Returns
        -------
        float
            1 where there is nothing to compare with yet.
        """
        identity = study.user_attrs.get("identity")
        if identity is None or not isinstance(identity.get("metric"), str) or fold < self.n_warmup_steps:
            return 1.0
        field = self._field(study, key, fold)
        if isinstance(field, str):
            return 1.0
        done, complete = field
        return chance_within_a_fold(
            done,
            score,
            share,
            complete,
            aggregation=identity["fold_aggregation"],
            direction=identity["direction"],
            margin=self.margin,
            n_draws=self.n_resamples,
        )

    def _field(
        self, study: optuna.Study, key: str | None, n_done: int
    ) -> tuple[list[FoldScore], list[list[FoldScore]]] | str:
        """A trial's first folds and the complete trials it is compared with, or why there is nothing to compare."""
        identity = study.user_attrs["identity"]
        metric, n_folds = identity["metric"], identity["n_folds"]
        kept = FoldCache(study.study_name)
        candidate = self._folds(kept, key, n_done, metric)
        if candidate is None:
            return "no predictions"
        others = study.get_trials(deepcopy=False, states=(TrialState.COMPLETE,))
        keys = dict.fromkeys(other.user_attrs.get("parameter_key") for other in others)
        found = [self._folds(kept, other, n_folds, metric) for other in keys if other != key]
        pairs = [fold.pairs for fold in candidate]
        complete = [folds for folds in found if folds and [fold.pairs for fold in folds[:n_done]] == pairs]
        if len(complete) < max(self.n_startup_trials, 2):
            return "start-up"
        return candidate, complete

    def _folds(self, kept: FoldCache, key: str | None, n_folds: int, metric: str) -> list[FoldScore] | None:
        """Scores of the first folds of a parameter set; None where one of them is not kept."""
        if key is None:
            return None
        found, folder = [], str(kept.folder)
        for fold in range(n_folds):
            name = (folder, key, fold, metric)
            if name not in self._scores:
                report = kept.load(key, fold)
                if report is None:
                    return None
                scored = score_fold(report.predictions, metric, fold=fold, n_resamples=self.n_resamples)
                course = [(epoch.share, epoch.metrics[metric]) for epoch in report.epochs if epoch.share is not None]
                self._scores[name] = replace(scored, course=tuple(course))
                if len(self._scores) * self.n_resamples * 8 > MOST_BYTES:
                    self._scores.popitem(last=False)  # the one not asked for longest
            self._scores.move_to_end(name)
            found.append(self._scores[name])
        return found
