"""Finalists: the best trials trained again with fresh seeds, which alone report them and choose; stopped, resumed, recorded."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path

import mlflow
import numpy as np
import optuna
import pytest
import yaml
from optuna.trial import FrozenTrial

from evbind_lib.config.paths import resolve_sqlite
from evbind_lib.config.schema import Params
from evbind_lib.data.corpus import Corpus
from evbind_lib.data.folds import Fold
from evbind_lib.errors import ParamsError, SearchError
from evbind_lib.hpo.finalists import best_trials, fresh_seeds
from evbind_lib.hpo.objective import Objective, SearchCallback
from evbind_lib.hpo.results import choice_lines
from evbind_lib.hpo.search import run_search
from evbind_lib.notebook import session
from evbind_lib.notebook.show import search_summary
from evbind_lib.tracking import executions
from evbind_lib.training.cache import FoldCache
from evbind_lib.training.crossval import cross_validate
from evbind_lib.training.result import Callback, FoldResult
from tests.conftest import BRIEF

Brief = Callable[..., Params]


class Finals(SearchCallback, Callback):
    """Which finalists began, their folds, and a stop after so many of those."""

    def __init__(self, stop_after: int = 99) -> None:
        self.began: list[int] = []
        self.cached: list[bool] = []
        self.stop_after = stop_after

    def on_finalist_begin(self, trial: FrozenTrial) -> None:
        self.began.append(trial.number)

    def fold_callbacks(self, trial: optuna.Trial) -> Sequence[Callback]:
        return [self] if self.began else []

    def on_fold_end(self, result: FoldResult) -> None:
        self.cached.append(result.cached)
        self.wants_stop = len(self.cached) >= self.stop_after


def final_runs() -> list[mlflow.entities.Run]:
    """Runs of finalists, each before its folds."""
    runs = mlflow.search_runs(experiment_names=["search"], output_format="list", order_by=["start_time ASC"])
    return [run for run in runs if "evbind.finalist" in run.data.tags]


def contents(runs: Sequence[mlflow.entities.Run]) -> list[tuple[object, ...]]:
    names = {run.info.run_id: run.info.run_name for run in runs}
    found = []
    for run in runs:
        tags = {**run.data.tags, "mlflow.parentRunId": names.get(run.data.tags["mlflow.parentRunId"])}
        found.append((run.info.run_name, run.info.status, run.data.metrics, run.data.params, tags))
    return sorted(found, key=str)


@pytest.mark.usefixtures("mlflow_tables")
def test_finalists_are_reported_by_their_fresh_seeds_alone_and_are_trained_once(
    workspace: Path, corpus: Corpus, folds: list[Fold], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(executions, "EXECUTION", executions.Execution())
    params = session.start("finals", [*BRIEF, "hpo.finalists=2", "training.args.max_steps=6"], hpo="quick")
    first = Finals()
    result = session.search(Objective(corpus, folds, params), params, callbacks=[first])
    top = [trial.number for trial in best_trials(result.study, 2)]
    assert first.began == top and first.cached == [False] * (2 * 2 * 2)
    seeds = fresh_seeds(42)
    assert len({*seeds, 42}) == 3
    assert sorted(each.trial for each in result.finalists) == sorted(top)
    for each in result.finalists:
        resolved = result.study.trials[each.trial].user_attrs["resolved"]
        tried = Params.from_tree({**params.model_dump(), **resolved})
        apart = [
            cross_validate(corpus, folds, tried.with_values({"training.seed": seed})).score("macro_f1")
            for seed in seeds
        ]
        assert each.values == pytest.approx(apart) and each.mean == pytest.approx(np.mean(apart))
    means = [each.mean for each in result.finalists]
    assert means[0] >= means[1] and result.chosen_trial.number == result.finalists[0].trial
    rate = result.chosen_trial.params["learning_rate"]
    assert result.params.training.args["learning_rate"] == rate
    file = workspace / "params" / "trainer" / "hpo_best.yaml"
    written = yaml.safe_load(file.read_text(encoding="utf-8"))["training"]
    assert written["args"]["learning_rate"] == rate and "seeds" not in written
    provenance = written["provenance"]
    assert (provenance["trial"], provenance["chosen_by"]) == (
        result.chosen_trial.number,
        "2 fresh seeds among 2 finalists",
    )
    assert provenance["score"] == pytest.approx(means[0], abs=1e-6)
    assert "corrected_score" not in provenance  # after six steps all folds score alike, which has no interval
    found, lines = search_summary(result)
    assert [each["trial"] for each in found["finalists"]] == [each.trial for each in result.finalists]
    assert any("scores the same in every fold" in line for line in lines)

    again = Finals()
    assert session.search(Objective(corpus, folds, params), params, callbacks=[again]).finalists == result.finalists
    assert again.began == []
    mlflow.set_tracking_uri(resolve_sqlite("sqlite:///mlflow.db"))
    runs = mlflow.search_runs(experiment_names=["search"])
    levels = runs["tags.evbind.level"].value_counts().to_dict()
    assert levels == {"fold": 6 + 8, "trial": 3, "finalist": 2, "study": 1, "summary": 1}
    finals = runs[runs["tags.evbind.level"] == "finalist"]
    assert sorted(finals["metrics.objective"]) == pytest.approx(sorted(means)) and set(finals["status"]) == {"FINISHED"}
    (study,) = runs.index[runs["tags.evbind.level"] == "study"]
    assert runs.loc[study, "metrics.chosen_trial"] == result.chosen_trial.number

    client, kept = mlflow.MlflowClient(), final_runs()
    for run in kept:  # as those that a lost server does not have
        client.delete_run(run.info.run_id)
    assert "0 of 3 trials" in session.sync(params)
    assert contents(final_runs()) == contents(kept) and len(kept) == 2 + 8
    session.sync(params)
    assert len(final_runs()) == len(kept)

    more = params.with_values({"hpo.finalists": 3})
    third = Finals()
    assert len(session.search(Objective(corpus, folds, more), more, callbacks=[third]).finalists) == 3
    assert third.began == [trial.number for trial in best_trials(result.study, 3)[2:]]


def test_finalists_that_were_stopped_go_on_where_they_were(brief: Brief, corpus: Corpus, folds: list[Fold]) -> None:
    params = brief("hpo.trials.n_trials=2", "hpo.finalists=1")
    objective = Objective(corpus, folds, params)
    stopped = run_search(objective, params, callbacks=[Finals(stop_after=3)])
    assert stopped.stopped and stopped.finalists == [] and stopped.chosen_trial.number == stopped.best_trial.number
    assert "goes on" in stopped.notes[-1]
    second = Finals()
    went_on = run_search(objective, params, callbacks=[second])
    assert second.cached == [True, True, True, False] and len(went_on.finalists) == 1


def test_a_finalist_that_is_not_the_best_of_the_search_is_said_and_one_without_predictions_too(
    brief: Brief, corpus: Corpus, folds: list[Fold]
) -> None:
    params = brief("hpo.trials.n_trials=2")
    result = run_search(Objective(corpus, folds, params), params)
    best = result.best_trial.number
    other = 1 - best
    values = {best: [0.5, 0.7], other: [0.65, 0.67]}
    result.study.set_user_attr("n_finalists", 2)
    result.study.set_user_attr("finalists", {str(best): {"values": values[best], "code": "any"}})
    assert result.finalists == [] and len(choice_lines(result)) == 1, "the second was not trained again"
    both = {str(number): {"values": each, "code": "any"} for number, each in values.items()}
    result.study.set_user_attr("finalists", both)
    assert [(each.trial, round(each.mean, 3)) for each in result.finalists] == [(other, 0.66), (best, 0.6)]
    *_, chosen = choice_lines(result)
    assert (
        chosen == f"Chosen: trial {other}, by the mean of its fresh seeds, not by trial {best}, the best of the search"
    )
    assert len(result.predictions()) > 0
    for file in FoldCache(result.study.user_attrs["uid"]).folder.glob(f"trial{other:05d}_*"):
        file.unlink()
    with pytest.raises(SearchError, match=f"trial {other}: .*0 of 2"):
        result.predictions()


def test_only_trials_of_an_objective_of_evbinds_have_finalists(brief: Brief) -> None:
    with pytest.raises(ParamsError, match=r"hpo\.finalists=1.*score="):
        run_search(lambda trial: 0.5, brief("hpo.finalists=1"))
