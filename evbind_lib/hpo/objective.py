"""What a trial is: parameters suggested, folds cross-validated and reported one by one, a value returned."""

from __future__ import annotations

import hashlib
import time
import uuid
from collections.abc import Callable, Sequence
from contextvars import ContextVar
from dataclasses import KW_ONLY, dataclass, field
from functools import cached_property
from typing import Any

import optuna

import evbind_lib.hpo.study as studies
from evbind_lib.config.digest import digest_of
from evbind_lib.config.masking import FILES, is_secret, masked
from evbind_lib.config.schema import Params, dotted_name, flatten
from evbind_lib.data.corpus import Corpus
from evbind_lib.data.folds import Fold, folds_fingerprint, groups_digest
from evbind_lib.errors import ParamsError, TrainingError
from evbind_lib.hpo.space import draw, put_in
from evbind_lib.hpo.study import StudyRecord, TrialRecord
from evbind_lib.training.cache import FoldCache, fold_key, model_content, trial_name
from evbind_lib.training.metrics import METRICS, aggregate
from evbind_lib.training.result import Callback, CrossValidation, EpochResult, FoldResult, Loss, ModelInit

# Settings are the branches data, model and training whole, so that a new key counts, but for what changes no score or stands in
# the identity by itself: the folds and the seed, the model, and the data by their fingerprint, wherever they lie.
APART = (
    *(f"data.{name}" for name in (*FILES, "format", "columns", "labels", "group_by")),
    *("data.special_case", "data.sensitive", "data.eval_neg_ratio"),
    *("model.name", "model.threads", "model.trainer", "model.search_space"),
    *("training.n_folds", "training.seed", "training.holdout", "training.validation", "training.fresh"),
    *("training.provenance", "training.args.dataloader_", "training.args.per_device_eval_"),
)
_this_process_only = f"no digest {uuid.uuid4().hex}"  # in the identity of what has none
StopRequest = Callable[[], bool]  # whether somebody asked the search to stop
TOO_LONG = "the trial took longer than hpo.trials.trial_timeout={:g} seconds; raise it, or narrow the search space."


class SearchStopped(Exception):  # noqa: N818 - no error: the user asked for it
    """Ends the search after this fold; the trial waits under its number, and goes on with the next search."""


class SearchCallback:
    """Called in the course of a search; does nothing by itself."""

    wants_stop = False  # set it, for example by a button, and the search ends after the current folds

    def on_search_begin(self, study: optuna.Study, n_earlier_trials: int) -> None:
        """The study is open; trials follow."""

    def on_trial_begin(self, trial: optuna.Trial) -> None:
        """A trial begins in this process; it has drawn no parameters yet."""

    def fold_callbacks(self, trial: optuna.Trial) -> Sequence[Callback]:
        """What follows the folds of a trial of this process; asked once, when it has drawn its parameters."""
        return ()

    def on_trial_end(self, study: optuna.Study, trial: optuna.trial.FrozenTrial) -> None:
        """A trial, of this process or of one of its workers, has ended, or one of this process was stopped and will wait."""

    def on_running(self, study: optuna.Study, running: Sequence[optuna.trial.FrozenTrial]) -> None:
        """Workers are at these trials; called twice a second."""

    def on_finalist_begin(self, trial: optuna.trial.FrozenTrial) -> None:
        """A finished trial is trained again with fresh seeds; `fold_callbacks` gives what follows its folds."""

    def on_finalist_end(
        self, trial: optuna.trial.FrozenTrial, values: Sequence[float], error: BaseException | None
    ) -> None:
        """It has these values, one for each seed, or was ended by an error."""

    def on_stop_request(self) -> None:
        """The user asked the search to stop; it does so after the current folds."""

    def for_workers(self) -> SearchCallback | None:
        """What goes along to each worker process, to be called for the trials there; it must be picklable."""
        return None


@dataclass
class RunningTrial(Callback):
    """The trial of a search that this process is at; as a callback it follows its folds."""

    trial: optuna.Trial
    cache: FoldCache
    search_callbacks: Sequence[SearchCallback] = ()
    asked_to_stop: StopRequest = lambda: False
    time_limit: float | None = None
    began: float = field(default_factory=time.monotonic)

    @cached_property
    def callbacks(self) -> tuple[Callback, ...]:
        """What follows its folds."""
        return (self, *(one for each in self.search_callbacks for one in each.fold_callbacks(self.trial)))

    def on_fold_begin(self, fold: Fold, params: Params) -> None:
        """End the trial before its next fold where the search is to stop."""
        if self.asked_to_stop():
            raise SearchStopped

    def on_step(self) -> None:
        """Fail the trial where it takes longer than it may."""
        if self.time_limit is not None and time.monotonic() - self.began > self.time_limit:
            raise TrainingError(TOO_LONG.format(self.time_limit))


RUNNING: ContextVar[RunningTrial | None] = ContextVar("running_trial", default=None)
running_trial = RUNNING.get  # the trial of a search of evbind's that runs here; None outside of one


def suggest(trial: optuna.Trial, params: Params) -> Params:
    """Draw the searched parameters of a trial, and record all of them in it, for `SearchResult.params`.

    Parameters
    ----------
    trial, params : optuna.Trial, Params
        ``hpo.search_space`` says what is drawn; a parameter whose ``when`` does not hold is not.

    Returns
    -------
    Params
        ``params`` with the drawn values put in; `ParamsError` where one is not allowed, or a ``when`` forms a cycle.

    Examples
    --------
    >>> import evbind_lib as ev, optuna
    >>> tried = ev.suggest(optuna.create_study().ask(), ev.compose(hpo="quick"))
    >>> 1e-4 <= tried.training.args["learning_rate"] <= 1e-2
    True
    """
    tried = put_in(params, {dotted_name(name): value for name, value in draw(trial, params).items()})
    TrialRecord(resolved=masked(tried.model_dump(include={"data", "model", "training"}))).write(trial)
    return tried


def report_folds(trial: optuna.Trial, metric: str, *, aggregation: str = "mean") -> Callback:
    """Make the folds of a trial known to Optuna, and to a search of evbind's, by a callback for its cross-validation.

    After each fold the aggregate of the folds so far is reported at step = fold (Optuna's pull request 5112), and the study's
    pruner decides on it, whatever the objective returns; `optuna.pruners.WilcoxonPruner`, which pairs folds, gets single ones.
    Where there is a pruner and the metric is one of decisions, a trial whose first two folds call all pairs alike is stopped too.
    Each fold is stored in ``runs/folds`` for `RacingPruner` and ``SearchResult.predictions``. Any `optuna.create_study` will do;
    in a search of evbind's a fold is also tracked and shown, and a time limit or a request to stop takes effect.

    Parameters
    ----------
    trial, metric, aggregation : optuna.Trial, str, {"mean", "median", "min", "max"}
        ``metric`` is a name of `METRICS`; in a study of several objectives, which Optuna does not prune, it is recorded only.

    Returns
    -------
    Callback
        For ``callbacks`` of `cross_validate`. It raises `optuna.TrialPruned` where the pruner stops the trial, never after the
        last fold, and `SearchError` where a fold validates on other pairs than earlier trials of the study. An unknown metric,
        or one whose better values lie against the study's direction, is a `ParamsError` at once.

    Examples
    --------
    >>> import evbind_lib as ev, optuna
    >>> trial = optuna.create_study(direction="maximize").ask()
    >>> ev.report_folds(trial, "log_loss")
    Traceback (most recent call last):
    evbind_lib.errors.ParamsError: report_folds(trial, 'log_loss'): study ... is maximized, against this metric; ...
    """
    greater, study = METRICS[metric].greater_is_better, trial.study
    if len(study.directions) == 1 and greater == studies.is_minimised(study):
        problem = f"study {study.study_name} is {'minimized' if greater else 'maximized'}, against this metric"
        raise ParamsError(f"report_folds(trial, {metric!r}): {problem}; report another, or set hpo.study.direction.")
    aggregate([0.0], aggregation)  # an unknown one is refused before the folds are trained
    return _ReportFolds(trial, metric, aggregation)


class _ReportFolds(Callback):
    def __init__(self, trial: optuna.Trial, metric: str, aggregation: str) -> None:
        self.trial, self.metric, self.aggregation = trial, metric, aggregation
        running = running_trial()
        self.callbacks = running.callbacks if running and running.trial is trial else ()
        self.cache = studies.fold_cache(trial.study)
        self.results: list[FoldResult] = []
        code = studies.code_version()
        TrialRecord(format=studies.FORMAT, metric=metric, fold_aggregation=aggregation, code=code).write(trial)

    def on_fold_begin(self, fold: Fold, params: Params) -> None:
        if len(params.training.seeds) > 1:
            raise ParamsError("training.seeds: a trial reports each fold once; leave it out, or one seed in it.")
        self.n_folds = params.training.n_folds
        for callback in self.callbacks:
            callback.on_fold_begin(fold, params)

    def on_step(self) -> None:
        for callback in self.callbacks:
            callback.on_step()

    def on_epoch_end(self, epoch: EpochResult) -> None:
        for callback in self.callbacks:
            callback.on_epoch_end(epoch)

    def on_fold_end(self, result: FoldResult) -> None:
        _check_pairs(self.trial, result)
        name = trial_name(self.trial.number, result.fold)
        if result.cached:  # perhaps its own, from before it was stopped
            result = self.cache.load(name) or result
        self.cache.save(name, result)
        for callback in self.callbacks:
            callback.on_fold_end(result)
        self.results.append(result)
        if result.fold in self.trial.study.get_trials(deepcopy=False)[self.trial.number].intermediate_values:
            return  # before it was stopped
        scores, cached = [one.metrics[self.metric] for one in self.results], sum(one.cached for one in self.results)
        TrialRecord(
            fold_scores=scores,
            fold_seconds=[round(one.seconds, 3) for one in self.results],
            micro_batch=min((one.micro_batch for one in self.results if one.micro_batch), default=None),
            folds_from_before=cached or None,
            reused_from=_same_parameters(self.trial) if cached == 1 else None,
        ).write(self.trial)
        if len(self.trial.study.directions) > 1:
            return
        single = isinstance(self.trial.study.pruner, optuna.pruners.WilcoxonPruner)  # it pairs the folds of trials
        self.trial.report(scores[-1] if single else aggregate(scores, self.aggregation), step=result.fold)
        if len(scores) == self.n_folds:
            return
        if len(scores) == 2 and self._tells_nothing_apart():
            raise optuna.TrialPruned("its first two folds call every pair the same")
        if self.trial.should_prune():
            raise optuna.TrialPruned

    def _tells_nothing_apart(self) -> bool:
        """Whether the metric is of decisions and these were all alike in each fold, so that no further one would tell more."""
        decided = ((one.predictions["probability"] >= 0.5).nunique() for one in self.results)
        is_pruned = not isinstance(self.trial.study.pruner, optuna.pruners.NopPruner)
        return is_pruned and METRICS[self.metric].on == "decisions" and all(kinds == 1 for kinds in decided)


def _check_pairs(trial: optuna.Trial, result: FoldResult) -> None:
    """Refuse validation pairs that are not those of the study's first trial: the scores could not be compared."""
    table = result.predictions[["post_id", "sentence_id", "criterion_id", "label"]]
    digest, fold = hashlib.sha256(table.to_csv(index=False).encode()).hexdigest()[:16], str(result.fold)
    known = StudyRecord.read(trial.study).pairs or {}
    if fold not in known:
        StudyRecord(pairs={**known, fold: digest}).write(trial.study)
    elif known[fold] != digest:
        reason = f"validated fold {result.fold + 1} on other pairs before trial {trial.number}"
        raise studies.refusal(trial.study.study_name, reason)


def _same_parameters(trial: optuna.Trial) -> int | None:
    """Number of the first complete trial that was trained with the same parameters."""
    key, complete = TrialRecord.read(trial).parameter_key, studies.complete_trials(trial.study)
    same = (other.number for other in complete if TrialRecord.read(other).parameter_key == key)
    return next(same, None) if key is not None else None


@dataclass(eq=False, repr=False)  # its repr would show posts
class Objective:
    """The default objective: suggest parameters, cross-validate them, return the score. It can be pickled.

    Parameters
    ----------
    corpus, folds, loss, model_init
        As in `cross_validate`; the same in every trial.
    params : Params
        ``hpo.search_space`` is searched; ``hpo.metric`` is reported fold by fold, and returned without ``score``.
    score : callable, optional
        ``score(CrossValidation) -> float``, returned in place of ``hpo.metric``. Pruners go by ``hpo.metric`` all the same.

    Examples
    --------
    >>> import evbind_lib as ev, optuna
    >>> params = ev.compose(["training.n_folds=2", "training.args.max_steps=2"])
    >>> corpus = ev.load_corpus(params)
    >>> study = optuna.create_study(direction="maximize")  # or ev.search, which adds all that a search has beside
    >>> study.optimize(ev.Objective(corpus, ev.make_folds(corpus, params), params), n_trials=1)
    >>> 0 < study.best_value < 1
    True
    """

    corpus: Corpus
    folds: Sequence[Fold]
    params: Params
    _: KW_ONLY
    loss: str | Loss | None = None
    model_init: ModelInit | None = None
    score: Callable[[CrossValidation], float] | None = None

    def __call__(self, trial: optuna.Trial) -> float:
        """Run a trial; in a search of evbind's, folds that were trained before with the same parameters are read."""
        params, metric, running = suggest(trial, self.params), self.params.hpo.metric, running_trial()
        key = fold_key(self.corpus, self.folds, self.folds[0], params, loss=self.loss, model_init=self.model_init)
        TrialRecord(parameter_key=key).write(trial)
        report = report_folds(trial, metric.name, aggregation=metric.fold_aggregation)
        result = self.cross_validated(params, [report], running.cache if running else None)
        TrialRecord(pooled=result.pooled()).write(trial)
        return self.value_of(result)

    def cross_validated(
        self, params: Params, callbacks: Sequence[Callback], cache: FoldCache | None
    ) -> CrossValidation:
        """Cross-validate with parameters in place of its own."""
        from evbind_lib.training.crossval import cross_validate  # late: it loads torch

        own: dict[str, Any] = {"loss": self.loss, "model_init": self.model_init}
        return cross_validate(self.corpus, self.folds, params, callbacks=callbacks, cache=cache, **own)

    def value_of(self, result: CrossValidation) -> float:
        """Value of a cross-validation: what ``score`` makes of it, else ``hpo.metric``."""
        metric = self.params.hpo.metric
        return self.score(result) if self.score else result.score(metric.name, metric.fold_aggregation)


def digest_for_identity(function: Callable[..., Any] | None) -> str | None:
    """Digest of a function of the user's; of one that has none a text that no other process has."""
    return None if function is None else digest_of(function) or _this_process_only


def study_identity(objective: Callable[..., Any], params: Params) -> dict[str, Any]:
    """What two searches must have in common for their values to be comparable, as plain values that the study holds."""
    from evbind_lib.training.losses import LOSSES  # late: it loads torch

    trained = objective.params if isinstance(objective, Objective) else params
    searched = {dotted_name(name): entry for name, entry in trained.hpo.search_space.items()}
    drawn, metric = searched.get("training.loss_function"), trained.hpo.metric.name
    losses = drawn.choices if drawn and drawn.choices else [trained.training.loss_function]
    registered = {f"loss {name}": digest_for_identity(LOSSES.additions().get(name)) for name in losses}
    registered[f"metric {metric}"] = digest_for_identity(getattr(METRICS.additions().get(metric), "function", None))
    settings = {
        name: value
        for name, value in flatten(trained.model_dump(include={"data", "model", "training"})).items()
        if value != {} and name not in searched and not name.startswith(APART) and not is_secret(name)
    }
    shared: dict[str, Any] = {"direction": params.hpo.study.direction, "settings": settings, "registered": registered}
    shared |= {"searched": sorted(searched), "seed": trained.training.seed, "model": trained.model.name}
    shared["files in model.name"] = model_content(trained)
    if type(objective) is Objective:
        inside = {group for fold in objective.folds for group in fold.training_groups | fold.validation_groups}
        return shared | {
            "objective": studies.OBJECTIVE,
            "data": objective.corpus.fingerprint,
            "source": objective.corpus.source,
            "folds": folds_fingerprint(objective.folds),
            "n_folds": len(objective.folds),
            "held_out": groups_digest({*objective.corpus.groups} - inside),
            "eval_neg_ratio": trained.data.eval_neg_ratio,
            "metric": metric,
            "fold_aggregation": trained.hpo.metric.fold_aggregation,
            "loss": objective.loss if isinstance(objective.loss, str) else digest_for_identity(objective.loss),
            "model_init": digest_for_identity(objective.model_init),
            "score": digest_for_identity(objective.score),
        }
    made = objective if hasattr(objective, "__qualname__") else type(objective)
    return {**shared, "objective": f"{made.__module__}.{made.__qualname__}", "code": digest_for_identity(objective)}
