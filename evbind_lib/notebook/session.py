"""The verbs that a notebook's cell calls: each calls the pure function of its package, records it and shows how far it is.

They record where this process began with `start`; after `compose` alone they record nothing. This module does not load torch:
`start` sets what OpenMP reads at the moment when torch is loaded.
"""

from __future__ import annotations

import contextlib
import logging
import os
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Any

import optuna
from optuna.trial import FrozenTrial

from evbind_lib.config.compose import GROUPS, compose
from evbind_lib.config.schema import Params
from evbind_lib.data.corpus import Corpus
from evbind_lib.data.folds import Fold, folds_fingerprint
from evbind_lib.errors import ParamsError
from evbind_lib.hpo.objective import Objective, SearchCallback, running_trial
from evbind_lib.hpo.results import SearchResult, parameter_importances, write_results
from evbind_lib.hpo.study import best_trial, count_trials, metric_name
from evbind_lib.notebook.front_end import has_front_end
from evbind_lib.notebook.monitor import SearchMonitor
from evbind_lib.notebook.show import Progress
from evbind_lib.training.cache import FoldCache
from evbind_lib.training.result import Callback, CrossValidation

if TYPE_CHECKING:
    from transformers import TrainerCallback

    from evbind_lib.evaluation.final import EvidenceModel
    from evbind_lib.tracking.store import Store
    from evbind_lib.training.fold import ModelInit
    from evbind_lib.training.losses import Loss

# Parameters of the data that hold for any corpus; the others name the files of one.
SAMPLING = ("data.pos_neg_ratio", "data.negative_strategy", "data.eval_neg_ratio")


def start(
    name: str,
    overrides: Sequence[str] = (),
    *,
    data: str | None = None,
    model: str | None = None,
    trainer: str | None = None,
    hpo: str | None = None,
    tracking: str | None = None,
    cluster: str | None = None,
    experiment: str | None = None,
) -> Params:
    """Compose the parameters of this notebook, and record its execution and what the verbs do from here on.

    Of your process it sets the level of the logger ``evbind_lib`` and, where it is not set, ``OMP_WAIT_POLICY`` (it counts for
    a torch that is not loaded yet), nothing else.

    Parameters
    ----------
    name : str
        Of the notebook, for its run in MLflow where neither the front end nor papermill's engine ``evbind`` knows it.
    overrides : sequence of str
        Hydra overrides, applied last: ``["hpo.trials.n_trials=30"]``.
    data, model, trainer, hpo, tracking, cluster, experiment : str, optional
        A file of ``params/`` for each group, by its name: ``hpo="quick"``.

    Returns
    -------
    Params

    Raises
    ------
    ParamsError
        For an unknown group, file, key or value, or a parameter that papermill put in and the notebook does not have.
    TrackingError
        When the MLflow store cannot be used.

    Examples
    --------
    >>> import evbind_lib as ev
    >>> params = ev.start("my_notebook", ["training.n_folds=3"], data="sample", tracking="none")
    >>> params.training.n_folds
    3
    """
    from evbind_lib.tracking.executions import EXECUTION, check_injected

    # Waiting threads of OpenMP spin by default, and two trainings on the same processors then wait for each other without end.
    os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")
    logging.getLogger("evbind_lib").setLevel(logging.WARNING)
    files = (data, model, trainer, hpo, tracking, cluster, experiment)
    chosen = {group: file for group, file in zip(GROUPS, files, strict=True) if file is not None}
    given = {**chosen, "overrides": list(overrides)}
    try:
        check_injected()
        params = compose(overrides, **chosen)
    except ParamsError:
        with contextlib.suppress(ParamsError):  # the execution is recorded as failed with the first error
            EXECUTION.begin(compose().tracking, name, given)
        raise
    # Where no data were chosen they may come from memory, and the sample must not be named.
    chose_data = data or experiment or any(word.lstrip("+~").startswith("data") for word in overrides)
    EXECUTION.begin(params.tracking, name, {**given, **(params.flat() if chose_data else _without_files(params))})
    return params


def search(
    objective: Callable[[optuna.Trial], float],
    params: Params,
    *,
    study: str | optuna.Study | None = None,
    callbacks: Sequence[SearchCallback | Callable[[optuna.Study, FrozenTrial], None]] = (),
) -> SearchResult:
    """Search until the study holds ``hpo.trials.n_trials`` finished trials; the same call goes on with what is there.

    An `Objective` leaves ``params/trainer/hpo_best.yaml``, ``optuna_study_summary.txt`` and ``optuna_trials.csv`` in the
    workspace. After `start` the study, its trials and their folds are recorded in MLflow.

    Parameters
    ----------
    objective : callable
        ``objective(trial) -> float``: an `Objective`, or any function of your own; with `report_folds` inside its folds are
        recorded, cached and pruned too.
    params : Params
        Its hpo section says what is drawn, how, and when it ends.
    study : str or optuna.Study, optional
        Name of the study, or the study itself; by default ``hpo.study.study_name``.
    callbacks : sequence of SearchCallback or callable
        Optuna's ``(study, trial)`` functions, called after each trial, and evbind's own, mixed.

    Returns
    -------
    SearchResult

    Raises
    ------
    ParamsError, ModelError
        Before anything is written, when something cannot be used.
    SearchError
        When the study is another objective's, or no trial was completed.

    Examples
    --------
    >>> import evbind_lib as ev
    >>> params = ev.compose(["hpo.trials.n_trials=3", "hpo.study.storage=sqlite:///doctest.db"])
    >>> result = ev.search(lambda trial: trial.suggest_float("x", 0, 1), params, study="example")
    >>> 0 <= result.best_value <= 1
    True
    """
    from evbind_lib.hpo.search import run_search

    mine = objective if isinstance(objective, Objective) else None
    with contextlib.ExitStack() as stack:
        tracked = None
        if tracker := _tracker(params):
            from evbind_lib.tracking.executions import EXECUTION
            from evbind_lib.tracking.runs import TrackedSearch

            values, tags = _described(params, *((mine.corpus, mine.folds) if mine else ()))
            tracked = TrackedSearch(tracker, params, tags, parameters=values, on_open=EXECUTION.link)
            stack.enter_context(tracked)
        watcher = SearchMonitor(params) if has_front_end() else SearchProgress(params)
        stack.callback(watcher.close)
        own = [watcher, tracked] if tracked else [watcher]
        result = run_search(objective, params, study=study, callbacks=[*own, *callbacks])
        files = write_results(result, params) if mine else {}
        if tracked:
            tracked.summary(result.study, importances=parameter_importances(result.study), files=files)
    return result


def cross_validate(
    corpus: Corpus,
    folds: Sequence[Fold],
    params: Params,
    *,
    loss: str | Loss | None = None,
    model_init: ModelInit | None = None,
    callbacks: Sequence[Callback | TrainerCallback] = (),
    cache: FoldCache | None = None,
) -> CrossValidation:
    """Train and validate every fold in order; folds that were trained before with the same parameters are read.

    Inside a trial of `search` it belongs to that trial. Elsewhere it shows its progress and, after `start`, is a training run
    in MLflow.

    Parameters
    ----------
    corpus : Corpus
    folds : sequence of Fold
        As `make_folds` gives them.
    params : Params
        Its data, model and training sections count.
    loss : str or callable, optional
        A name of `LOSSES`, or a function ``(logits (n, 2) float, labels (n,) int64) -> (n,) float``: one number per pair. By
        default ``training.loss_function``.
    model_init : callable, optional
        ``model_init(config, tokenizer) -> PreTrainedModel`` with two classes, called once per fold after seeding.
    callbacks : sequence of Callback or transformers.TrainerCallback
        Mixed; with one of the latter nothing is cached, since it may change anything.
    cache : FoldCache, optional
        By default ``runs/folds`` of the workspace; inside a trial that of its study.

    Returns
    -------
    CrossValidation

    Raises
    ------
    ParamsError, ModelError
        Before anything is written, when something cannot be used.
    TrainingError
        When a loss is not a finite number or not one per pair.

    Examples
    --------
    >>> import evbind_lib as ev
    >>> params = ev.compose(["training.args.max_steps=2", "training.n_folds=2"])
    >>> corpus = ev.load_corpus(params)
    >>> cv = ev.cross_validate(corpus, ev.make_folds(corpus, params), params)
    >>> sorted(cv.predictions.columns)
    ['criterion_id', 'fold', 'label', 'logit', 'post_id', 'probability', 'sentence_id']
    """
    from evbind_lib.training import crossval
    from evbind_lib.training.fold import check

    trial = running_trial()
    with contextlib.ExitStack() as stack:
        if trial is not None:
            cache = cache or trial.cache
        else:
            check(params)
            cache = cache or FoldCache("training", read_all=True)
            bar = stack.enter_context(contextlib.closing(Progress("Folds", len(folds))))
            bar.update("starting")
            name = f"train {params.model.name} {'hpo_best' if params.training.provenance else 'default'}"
            callbacks = [*_open_run(stack, name, corpus, folds, params), bar, *callbacks]
        return crossval.cross_validate(
            corpus, folds, params, loss=loss, model_init=model_init, callbacks=callbacks, cache=cache
        )


def finalize(corpus: Corpus, params: Params) -> EvidenceModel:
    """Train one model on all posts, the one to use; after `start` a training run in MLflow, which does not get the model.

    Parameters
    ----------
    corpus : Corpus
    params : Params
        Its data, model and training sections count; of a search ``result.params``.

    Returns
    -------
    EvidenceModel
        Its score on new posts is about what cross-validation estimated with a little less data; these posts cannot measure it.

    Raises
    ------
    ParamsError, ModelError
        When something cannot be used.
    TrainingError
        When the loss is not a finite number.

    Examples
    --------
    >>> import evbind_lib as ev
    >>> params = ev.compose(["training.args.max_steps=2"])
    >>> corpus = ev.load_corpus(params)
    >>> ev.finalize(corpus, params).predict_proba(corpus.pairs.head(3)).shape
    (3, 2)
    """
    from evbind_lib.evaluation import final
    from evbind_lib.training.fold import check

    check(params)
    with contextlib.ExitStack() as stack:
        _open_run(stack, f"finalize {params.model.name}", corpus, (), params)
        return final.finalize(corpus, params)


class SearchProgress(SearchCallback):
    """Shows the trials that are done in one line, with the best value so far."""

    def __init__(self, params: Params) -> None:
        self.line = Progress("Trials", params.hpo.trials.n_trials)
        self.close = self.line.close

    def on_search_begin(self, study: optuna.Study, n_earlier_trials: int) -> None:
        """Show where the study stands."""
        self._count(study)
        earlier = f"study {study.study_name} resumed, done before: {n_earlier_trials}"
        self.line.update(earlier if n_earlier_trials else "")

    def fold_callbacks(self, trial: optuna.Trial) -> Sequence[Callback]:
        """Follow the trial's folds."""
        self.line.before = f"trial {trial.number}, "
        return [self.line]

    def on_running(self, study: optuna.Study, running: Sequence[FrozenTrial]) -> None:
        """Show how far the trials of the workers are."""
        self.line.update(
            ", ".join(f"trial {trial.number} after fold {len(trial.intermediate_values)}" for trial in running)
        )

    def on_stop_request(self) -> None:
        """Show that the search ends after the current folds."""
        self.line.update("stopping after the current fold, once more to stop at once")

    def on_trial_end(self, study: optuna.Study, trial: FrozenTrial) -> None:
        """Show the best value so far."""
        self._count(study)
        self.line.update()

    def _count(self, study: optuna.Study) -> None:
        self.line.done, best = count_trials(study)["total"], best_trial(study)
        if best is not None:
            self.line.best = f"best {metric_name(study)} {best.value:.4f} (trial {best.number})"


def _tracker(params: Params) -> Store | None:
    """Where this process records; None after `compose` alone, and with tracking=none."""
    from evbind_lib.tracking.executions import EXECUTION
    from evbind_lib.tracking.store import open_tracker

    return open_tracker(params.tracking) if EXECUTION.begun else None


def _open_run(
    stack: contextlib.ExitStack, name: str, corpus: Corpus, folds: Sequence[Fold], params: Params
) -> list[Callback]:
    """Open a training run that ends with the stack, and give its callback; none where nothing is recorded."""
    tracker = _tracker(params)
    if tracker is None:
        return []
    from evbind_lib.tracking.executions import EXECUTION
    from evbind_lib.tracking.runs import TrainingRun

    values, tags = _described(params, corpus, folds)
    run = stack.enter_context(TrainingRun.open(tracker, name, parameters=values, tags=tags))
    EXECUTION.link(run, "training", name)
    return [run]


def _described(
    params: Params, corpus: Corpus | None = None, folds: Sequence[Fold] = ()
) -> tuple[dict[str, Any], dict[str, str]]:
    """Parameters and tags of a run: what its numbers were measured on and with."""
    from evbind_lib.training.model import choose_precision

    tags = {"evbind.seed": str(params.training.seed), "evbind.precision": choose_precision(params.model.precision)}
    if folds:
        tags["evbind.folds_fingerprint"] = folds_fingerprint(folds)
    if corpus is None:
        return _without_files(params), tags
    tags["evbind.data_fingerprint"] = corpus.fingerprint
    if corpus.source != "memory":
        return params.flat(), tags
    return {**_without_files(params), "data": "memory", "data.fingerprint": corpus.fingerprint}, tags


def _without_files(params: Params) -> dict[str, Any]:
    """Parameters without those that name the files of a corpus: it may be another one."""
    flat = params.flat()
    return {name: value for name, value in flat.items() if not name.startswith("data.") or name in SAMPLING}
