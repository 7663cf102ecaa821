"""The verbs after `start`: what of them stands in MLflow, inside a trial and outside, for the user's own objective and table."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import mlflow
import optuna
import pandas as pd
import pytest

from evbind_lib.config.paths import resolve_sqlite
from evbind_lib.config.schema import Params
from evbind_lib.data.corpus import Corpus
from evbind_lib.data.folds import Fold, make_folds
from evbind_lib.errors import SearchError
from evbind_lib.hpo.objective import report_folds, suggest
from evbind_lib.notebook import session
from evbind_lib.notebook.show import search_summary
from evbind_lib.tracking import executions
from tests.conftest import BRIEF

pytestmark = pytest.mark.usefixtures("mlflow_tables")


@pytest.fixture
def params(workspace: Path, monkeypatch: pytest.MonkeyPatch) -> Params:
    """Parameters of a process that began with `start`."""
    monkeypatch.setattr(executions, "EXECUTION", executions.Execution())
    return session.start("mine", [*BRIEF, "hpo.trials.n_trials=2"], hpo="quick")


def runs(experiment: str) -> pd.DataFrame:
    mlflow.set_tracking_uri(resolve_sqlite("sqlite:///mlflow.db"))
    return mlflow.search_runs(experiment_names=[experiment])


def test_an_own_objective_is_tracked_as_the_default_one_and_its_folds_are_read_afterwards(
    params: Params, corpus: Corpus, folds: list[Fold], workspace: Path
) -> None:
    ended: list[int] = []

    def objective(trial: optuna.Trial) -> float:
        tried = suggest(trial, params)
        cv = session.cross_validate(corpus, folds, tried, callbacks=[report_folds(trial, "pr_auc")])
        return cv.score("pr_auc") - 0.1

    def called(study: optuna.Study, trial: Any) -> None:
        ended.append(trial.number)

    result = session.search(objective, params, study="pr-auc-minus-cost", callbacks=[called])
    assert ended == [0, 1]
    found = runs("search")
    assert found["tags.evbind.level"].value_counts().to_dict() == {"fold": 4, "trial": 2, "study": 1, "summary": 1}
    assert runs("training").empty
    assert not (workspace / "optuna_trials.csv").exists() and not (workspace / "params").exists()
    _, lines = search_summary(result)
    assert not any("hpo_best" in line for line in lines) and "pr_auc" in "".join(lines)

    cv = session.cross_validate(corpus, folds, result.params)
    assert [fold.cached for fold in cv.folds] == [True, True]
    assert cv.score("pr_auc") - 0.1 == pytest.approx(result.best_value)
    assert runs("training")["tags.evbind.level"].value_counts().to_dict() == {"fold": 2, "training": 1}

    with pytest.raises(SearchError, match="study="):
        session.search(lambda trial: 0.5, params, study="pr-auc-minus-cost")


def test_a_table_in_memory_is_recorded_by_its_fingerprint_and_nothing_of_its_texts(
    params: Params, corpus: Corpus, workspace: Path
) -> None:
    table = corpus.pairs[["post_id", "criterion", "criterion_id", "sentence", "label"]]
    own = Corpus.from_pairs(table.assign(sentence="secretword " + table["sentence"]))
    session.cross_validate(own, make_folds(own, params), params)
    session.finalize(own, params)
    training = runs("training").query("`tags.evbind.level` == 'training'")
    assert sorted(training["tags.mlflow.runName"]) == ["finalize tiny", "train tiny default"]
    assert set(training["params.data"]) == {"memory"} and set(training["params.data.fingerprint"]) == {own.fingerprint}
    assert "params.data.posts" not in training
    written = b"".join(file.read_bytes() for file in workspace.rglob("*") if file.is_file())
    assert b"secretword" not in written and b"sample/posts.csv" not in written
