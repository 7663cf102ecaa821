"""A study of a thousand trials of five folds: read, shown, written up and brought in step, each in under ten seconds."""

from __future__ import annotations

import time
from collections.abc import Callable
from pathlib import Path

import numpy as np
import optuna
import pytest
from optuna.trial import create_trial

from evbind_lib.config.processes import this_process
from evbind_lib.config.schema import Params
from evbind_lib.hpo.results import SearchResult, result_texts, summary_numbers
from evbind_lib.hpo.search import run_search
from evbind_lib.hpo.study import StudyRecord, TrialRecord
from evbind_lib.plots import search as figures
from evbind_lib.tracking.runs import Run
from evbind_lib.tracking.searches import study_key, sync
from evbind_lib.tracking.store import Store, evbind_tags

N_TRIALS = 1_000


def add_trials(study: optuna.Study, params: Params) -> None:
    rng, space = np.random.default_rng(0), {k: v.to_optuna() for k, v in params.hpo.search_space.items() if not v.when}
    trials = []
    for _ in range(N_TRIALS - len(study.trials)):
        scores = [float(score) for score in rng.uniform(0.5, 0.9, 5)]
        drawn = optuna.create_study(sampler=optuna.samplers.RandomSampler(int(rng.integers(1e6)))).ask(space).params
        record = TrialRecord(worker=this_process(), fold_scores=scores, fold_seconds=[1.0] * 5, seconds=5.0)
        whole = {"value": float(np.mean(scores)), "intermediate_values": dict(enumerate(scores))}
        trials.append(create_trial(params=drawn, distributions=space, user_attrs=record.values(), **whole))
    study.add_trials(trials)


@pytest.mark.full
@pytest.mark.usefixtures("mlflow_tables")
def test_a_thousand_trials_are_handled_in_seconds(brief: Callable[..., Params], workspace: Path) -> None:
    optuna.logging.set_verbosity(optuna.logging.ERROR)
    params = brief("training.n_folds=5", "hpo.trials.n_trials=1")
    study = run_search(lambda trial: 0.5, params, study=params.hpo.study.study_name).study
    add_trials(study, params)
    store = Store(params.tracking)
    run = Run.open(store, "search", study.study_name, parameters={}, study_key=study_key(study))
    for trial in study.get_trials(deepcopy=False):
        name, number = f"trial {trial.number:03d}", str(trial.number)
        below = Run.below(run, "trial", name, trial=number)
        below.start()
        below.end(tags=evbind_tags(state="COMPLETE"))
    run.end()
    StudyRecord(ended="FINISHED").write(study)
    took: dict[str, float] = {}

    def timed(name: str, work: Callable[[], object]) -> object:
        began = time.process_time()
        done = work()
        took[name] = time.process_time() - began
        return done

    result = timed("load", lambda: SearchResult.load(params))
    assert isinstance(result, SearchResult)
    texts = timed("results", lambda: result_texts(result))
    numbers = timed("numbers", lambda: summary_numbers(result))
    for draw in (figures.history, figures.importances, figures.slices):
        timed(draw.__name__, lambda draw=draw: draw(result.study))
    given = {"parameters": {}, "tags": {}, "numbers": numbers, "texts": texts}
    assert timed("sync", lambda: sync(store, result.study, **given)) == 0
    assert all(seconds < 10 for seconds in took.values()), took
