"""The verbs that a notebook's cell calls: each calls a function of its package, shows it and, after `start`, records it."""

from __future__ import annotations

import contextlib
import functools
import os
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import optuna
from optuna.trial import FrozenTrial

from evbind_lib.config.compose import GROUPS, compose, tracking_of
from evbind_lib.config.schema import Params, TrackingParams, flatten, without_files
from evbind_lib.data.corpus import Corpus
from evbind_lib.data.folds import Fold, folds_fingerprint
from evbind_lib.errors import ParamsError
from evbind_lib.hpo.objective import Objective, SearchCallback, running_trial
from evbind_lib.hpo.results import SearchResult, result_texts, summary_numbers, write_results
from evbind_lib.hpo.search import run_search
from evbind_lib.hpo.study import StudyRecord, best_trial, load_study
from evbind_lib.notebook.front_end import has_front_end
from evbind_lib.notebook.monitor import Progress, SearchMonitor, SearchProgress
from evbind_lib.tracking import executions
from evbind_lib.training.cache import FoldCache
from evbind_lib.training.result import Callback, CrossValidation, Loss, ModelInit

if TYPE_CHECKING:
    import pandas as pd
    from transformers import TrainerCallback

    from evbind_lib.evaluation.model import EvidenceModel
    from evbind_lib.tracking.runs import TrainingRun
    from evbind_lib.tracking.store import Store

Described = tuple[dict[str, Any], dict[str, Any]]  # parameters and tags of a run


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

    Of your process it sets ``OMP_WAIT_POLICY`` and what MLflow says and waits for, unless you did, and nothing else.

    Parameters
    ----------
    name
        Of the notebook, for its run in MLflow where neither the front end nor papermill's engine ``evbind`` knows it.
    overrides, data, model, trainer, hpo, tracking, cluster, experiment
        As in `compose`: Hydra overrides, and a file of ``params/`` for each group.

    Returns
    -------
    Params
        `ParamsError` for an unknown group, file, key or value, or a parameter that papermill put in and the notebook does not
        have; `TrackingError` for a store of MLflow's that cannot be used.

    Examples
    --------
    >>> import evbind_lib as ev
    >>> ev.start("my_notebook", ["training.n_folds=3"], data="sample", tracking="none").training.n_folds
    3
    """
    # Waiting threads of OpenMP spin by default, and two trainings on the same processors then wait for each other without end.
    os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")
    files = (data, model, trainer, hpo, tracking, cluster, experiment)
    chosen = {group: file for group, file in zip(GROUPS, files, strict=True) if file is not None}
    given, begin = {**chosen, "overrides": overrides}, executions.EXECUTION.begin
    try:
        executions.check_injected()
        params = compose(overrides, **chosen)
    except ParamsError:
        with contextlib.suppress(ParamsError):  # the execution is recorded as failed with the first error
            begin(tracking_of(given), name, given)
        raise
    # Where no data were chosen they may come from memory, and the sample must not be named.
    chose_data = data or experiment or any(word.lstrip("+~").startswith(("data", "experiment=")) for word in overrides)
    begin(params.tracking, name, {**given, **(params.flat() if chose_data else without_files(params.flat()))})
    return params


def search(
    objective: Callable[[optuna.Trial], float],
    params: Params,
    *,
    study: str | optuna.Study | None = None,
    callbacks: Sequence[SearchCallback | Callable[[optuna.Study, FrozenTrial], None]] = (),
) -> SearchResult:
    """Search until the study holds ``hpo.trials.n_trials`` finished trials; the same call goes on with what is there.

    After `start` the study, its trials and their folds are runs in MLflow. An `Objective` leaves files in the workspace:
    ``params/trainer/hpo_best.yaml``, ``optuna_study_summary.txt`` and ``optuna_trials.csv``.

    Parameters
    ----------
    objective
        An `Objective`, or any ``objective(trial) -> float``; with `report_folds` its folds are recorded, cached and pruned too.
    params
        The hpo section says what is drawn, how, and when the search ends.
    study
        The study or its name; by default ``hpo.study.study_name``.
    callbacks
        Optuna's ``(study, trial)`` functions, called after each trial, and evbind's own, mixed.

    Returns
    -------
    SearchResult
        `ParamsError`, `ModelError` or `SearchError` where something cannot be used or the study is another objective's, before
        anything is written; `SearchError` where no trial is complete.

    Examples
    --------
    >>> import evbind_lib as ev
    >>> params = ev.compose(["hpo.trials.n_trials=3", "hpo.study.storage=sqlite:///doctest.db"])
    >>> result = ev.search(lambda trial: trial.suggest_float("x", 0, 1), params, study="example")
    >>> 0 <= result.best_value <= 1
    True
    """
    mine, tracked = objective if isinstance(objective, Objective) else None, None
    with contextlib.ExitStack() as stack:
        if store := _open_store(params.tracking):
            from evbind_lib.tracking.searches import TrackedSearch

            described = _described(params, mine.corpus, mine.folds) if mine else _described(params)
            tracked = stack.enter_context(TrackedSearch(store, *described))
        shown = SearchMonitor(params) if has_front_end() else SearchProgress(params)
        own = [stack.enter_context(contextlib.closing(shown)), *([tracked] if tracked else [])]
        result = run_search(objective, params, study=study, callbacks=[*own, *callbacks])
        files = write_results(result) if mine else {}
        if tracked:
            texts = {name: file.read_text(encoding="utf-8") for name, file in files.items()}
            tracked.summary(numbers=summary_numbers(result), texts=texts)
    return result


def sync(params: Params) -> str:
    """Bring MLflow's runs of the study that ``hpo.study`` names in step with Optuna's storage; what was done, as a line."""
    from evbind_lib.tracking import searches
    from evbind_lib.tracking.store import Store

    if not params.tracking.enabled:
        raise ParamsError("tracking=none: there is no MLflow to write to; leave it out.")
    study, (values, tags) = load_study(params), _described(params)
    identity = StudyRecord.read(study).identity or {}
    tags |= {f"evbind.{name}_fingerprint": identity[name] for name in ("data", "folds") if name in identity}
    given: dict[str, Any] = {"parameters": values, "tags": tags, "numbers": {}, "texts": {}}
    if best_trial(study):  # else there is nothing to sum up
        result = SearchResult.load(params)
        given["texts"] = {Path(name).name: text for name, text in result_texts(result).items()}
        given["numbers"] = summary_numbers(result)
    n_written = searches.sync(Store(params.tracking), study, **given)
    return f"Study {study.study_name}: {n_written} of {len(study.get_trials(deepcopy=False))} trials written to MLflow."


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
    """Train and validate every fold in order, with each of ``training.seeds`` where there are any.

    Folds that were trained before with the same parameters are read.

    Inside a trial of `search` it belongs to the trial; elsewhere it shows its progress and, after `start`, is a run in MLflow.

    Parameters
    ----------
    corpus, folds, params
        As `load_corpus` and `make_folds` give them; of ``params`` the sections data, model and training count.
    loss
        A name of `LOSSES`, by default ``training.loss_function``, or a function ``(logits (n, 2) float, labels (n,) int64) ->
        (n,) float``: one number per pair.
    model_init
        ``model_init(config, tokenizer) -> PreTrainedModel`` with two classes, called once per fold after seeding.
    callbacks
        evbind's and transformers', mixed; with one of the latter nothing is cached, since it may change anything.
    cache
        By default ``runs/folds`` of the workspace; inside a trial that of its study.

    Returns
    -------
    CrossValidation
        `ParamsError` or `ModelError` where something cannot be used, before anything is written; `TrainingError` where a loss is
        not a finite number or not one per pair.

    Examples
    --------
    >>> import evbind_lib as ev
    >>> params = ev.compose(["training.args.max_steps=2", "training.n_folds=2"])
    >>> corpus = ev.load_corpus(params)
    >>> cv = ev.cross_validate(corpus, ev.make_folds(corpus, params), params)
    >>> len(cv.folds), cv.pooled()["macro_f1"] <= 1
    (2, True)
    """
    from evbind_lib.training import crossval
    from evbind_lib.training.fold import check

    train = functools.partial(crossval.cross_validate, corpus, folds, params, loss=loss, model_init=model_init)
    if trial := running_trial():
        return train(callbacks=callbacks, cache=cache or trial.cache)
    check(params, loss)
    name = f"train {params.model.name} {'hpo_best' if params.training.provenance else 'default'}"
    n_trainings = len(folds) * max(1, len(params.training.seeds))
    line, described = Progress(n_trainings, params.training.n_folds), _described(params, corpus, folds)
    with contextlib.closing(line), _training_run(name, params.tracking, described) as runs:
        line.update("starting")
        return train(callbacks=[*runs, line, *callbacks], cache=cache or FoldCache("training", read_all=True))


def finalize(
    corpus: Corpus, params: Params, *, predictions: pd.DataFrame | None = None, aim: str = "macro_f1"
) -> EvidenceModel:
    """Train one model on all posts, the one to use; after `start` a training run in MLflow, with the model.

    There it is a logged model for ``mlflow.transformers.load_model`` and ``mlflow.pyfunc``, which know of no calibration, with
    ``about`` as its metadata, registered where ``tracking.registered_model_name`` is set. Of sensitive data there is the run
    alone.

    With out-of-fold predictions its probabilities are calibrated, by logistic regression on their logits in which a sampled
    negative counts for all that it was drawn from (Platt 1999; King and Zeng 2001, Political Analysis 9:137). Without them they
    are too high, as evidence is more frequent among training pairs, and ``about["calibration"]`` is None.

    Parameters
    ----------
    corpus, params
        The sections data, model and training count; of a search ``result.params``.
    predictions
        Of a cross-validation with these parameters, two folds or more: ``cv.predictions``; ``result.predictions()`` of a search.
    aim
        What thresholds on calibrated probabilities are chosen for: ``f1``, ``macro_f1``, ``recall>=R`` or ``precision>=P``.

    Returns
    -------
    EvidenceModel
        Its score on new posts is about what cross-validation estimated with a little less data; these posts cannot measure it.
        `ParamsError`, `DataError`, `ModelError` or `TrainingError` where something cannot be used, or the loss is not a finite
        number.

    Examples
    --------
    >>> import evbind_lib as ev
    >>> params = ev.compose(["training.args.max_steps=2", "training.n_folds=2"])
    >>> corpus = ev.load_corpus(params)
    >>> cv = ev.cross_validate(corpus, ev.make_folds(corpus, params), params)
    >>> model = ev.finalize(corpus, params, predictions=cv.predictions, aim="recall>=0.9")
    >>> model.predict_proba(corpus.pairs.head(3)).shape, 0 < model.threshold < 1
    ((3, 2), True)
    """
    from evbind_lib.evaluation import final
    from evbind_lib.training.fold import check

    check(params)
    return _recorded_model(corpus, params, lambda: final.finalize(corpus, params, predictions=predictions, aim=aim))


def open_model(corpus: Corpus, params: Params, **given: Any) -> EvidenceModel:
    """What `final.open_model` reads or trains; after `start` a training run in MLflow."""
    from evbind_lib.evaluation import final

    return _recorded_model(corpus, params, lambda: final.open_model(corpus, params, **given))


def _recorded_model(corpus: Corpus, params: Params, make: Callable[[], EvidenceModel]) -> EvidenceModel:
    """A model in a training run that holds it too, unless it may know words of sensitive data."""
    with _training_run(f"finalize {params.model.name}", params.tracking, _described(params, corpus)) as runs:
        model = make()
        for run in runs if not corpus.sensitive else ():
            from evbind_lib.tracking.models import log_model

            log_model(run, model)
    return model


def evaluate(model: EvidenceModel, corpus: Corpus) -> pd.DataFrame:
    """Score a model on posts that it has not seen; after `start` a run in MLflow and a line in ``runs/evaluations.jsonl``.

    Where no trial of a search has seen them either (``training.holdout``, ``data.test``), no choice is in the score, as long as
    nothing is chosen by it: ``table.attrs["asked_before"]`` counts how often these data were asked in this workspace.

    Parameters
    ----------
    model, corpus
        A model that `finalize` made, and a corpus that shares no group with what it was trained on. Pairs are those that
        cross-validation would validate on: ``data`` as the model was trained with, each pair once.

    Returns
    -------
    pandas.DataFrame
        A row for each criterion, first ``all`` of them, and metric: ``value``, ``low`` and ``high`` of a 95 % interval by
        resampling whole groups, and on how many ``pairs``, ``evidence`` and ``groups`` it rests. F1, precision and recall go by
        ``model.predict``. ``attrs["posts"]`` has precision and recall of a post's evidence for a criterion, by any of its pairs
        here, each with its bounds: where negatives are sampled, a post has more pairs. A `DataError` where a table is too large
        or has nothing to score.

    Examples
    --------
    >>> import evbind_lib as ev
    >>> params = ev.compose(["training.args.max_steps=2"])
    >>> corpus = ev.load_corpus(params)
    >>> fold = ev.make_folds(corpus, params)[0]
    >>> model = ev.finalize(corpus.subset(fold.training_groups), params)
    >>> table = ev.evaluate(model, corpus.subset(fold.validation_groups))
    >>> int(table.loc[("all", "macro_f1"), "groups"])
    30
    """
    from evbind_lib.evaluation import unseen

    table = unseen.evaluate(model, corpus)
    if (tracking := executions.EXECUTION.tracking) is None:
        return table
    table.attrs["asked_before"] = before = unseen.note_evaluation(model, corpus, table)
    parameters = {"model.name": model.about["model"], **flatten({"training": model.about["training"]})}
    tags = {"evbind.data_fingerprint": corpus.fingerprint, "evbind.trained_on": model.about["fingerprint"]}
    with _training_run(f"evaluate {model.about['model']}", tracking, (parameters, tags)) as runs:
        ends, every = {"": "value", "_low": "low", "_high": "high"}, table.loc["all"].iterrows()
        numbers = {f"{metric}{end}": float(row[ends[end]]) for metric, row in every for end in ends}
        for run in runs:
            run.write({**numbers, "asked_before": before})
    return table


@contextlib.contextmanager
def _training_run(name: str, tracking: TrackingParams, described: Described) -> Iterator[list[TrainingRun]]:
    """A training run around some work, as the callback of its folds; none where nothing is recorded."""
    if not (store := _open_store(tracking)):
        yield []
        return
    from evbind_lib.tracking.runs import TrainingRun

    with TrainingRun.open(store, "training", name, *described) as run:
        executions.EXECUTION.link(run, "training", name)
        yield [run]


def _open_store(tracking: TrackingParams) -> Store | None:
    """Where runs are recorded; None after `compose` alone, and with tracking=none."""
    if executions.EXECUTION.tracking is None or not tracking.enabled:
        return None
    from evbind_lib.tracking.store import Store

    return Store(tracking)


def _described(params: Params, corpus: Corpus | None = None, folds: Sequence[Fold] = ()) -> Described:
    """Parameters and tags of a run: what its numbers were measured on and with."""
    from evbind_lib.training.model import choose_precision

    tags = {"evbind.seed": str(params.training.seed), "evbind.data_seed": str(params.data.seed)}
    tags["evbind.precision"] = choose_precision(params.model.precision)
    if folds:
        tags["evbind.folds_fingerprint"] = folds_fingerprint(folds)
    if corpus is None:
        return without_files(params.flat()), tags
    tags["evbind.data_fingerprint"] = corpus.fingerprint
    if corpus.source != "memory":
        return params.flat(), tags
    return {**without_files(params.flat()), "data": "memory", "data.fingerprint": corpus.fingerprint}, tags
