"""The verbs of a cell: what `start` leaves alone, what is recorded about a corpus in memory, what lines say."""

from __future__ import annotations

import logging
import os
import warnings
from pathlib import Path

import pandas as pd
import pytest

from evbind_lib.config.compose import compose
from evbind_lib.data.corpus import Corpus
from evbind_lib.data.folds import Fold
from evbind_lib.errors import ParamsError
from evbind_lib.notebook import session, show
from evbind_lib.tracking import executions
from tests.conftest import BRIEF


@pytest.fixture(autouse=True)
def execution(monkeypatch: pytest.MonkeyPatch, workspace: Path) -> executions.Execution:
    """An execution that ends with the test."""
    fresh = executions.Execution()
    monkeypatch.setattr(executions, "EXECUTION", fresh)
    return fresh


def test_start_leaves_filters_levels_and_options_of_the_user_alone(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("OMP_WAIT_POLICY", raising=False)
    names = ("optuna", "transformers", "mlflow", "torch", "")

    def state() -> object:
        levels = [logging.getLogger(name).level for name in names]
        return list(warnings.filters), levels, pd.get_option("display.max_colwidth"), pd.get_option("display.precision")

    before, environment = state(), dict(os.environ)
    params = session.start("mine", ["training.n_folds=3"], tracking="none", hpo="quick")
    assert (params.training.n_folds, params.hpo.trials.n_trials) == (3, 10)
    assert state() == before
    assert {name for name in os.environ if environment.get(name) != os.environ[name]} <= {
        *("OMP_WAIT_POLICY", "MLFLOW_DISABLE_TELEMETRY", "MLFLOW_SUPPRESS_PRINTING_URL_TO_STDOUT"),
    }
    assert os.environ["OMP_WAIT_POLICY"] == "PASSIVE"


def test_a_refused_start_is_recorded_all_the_same(execution: executions.Execution) -> None:
    with pytest.raises(ParamsError, match="'quick'"):
        session.start("mine", hpo="quik")
    assert execution.begun


def test_after_compose_alone_nothing_is_recorded(workspace: Path, corpus: Corpus, folds: list[Fold]) -> None:
    params = compose(BRIEF)
    cv = session.cross_validate(corpus, folds, params)
    assert not (workspace / "mlflow.db").exists()
    again = session.cross_validate(corpus, folds, params)
    assert [fold.cached for fold in cv.folds + again.folds] == [False, False, True, True]
    assert cv.predictions.equals(again.predictions)
    assert "2 of 2 folds read from the cache" in show.training_summary(again, params)[1]


def test_a_corpus_in_memory_is_never_described_as_the_sample(corpus: Corpus, folds: list[Fold]) -> None:
    params = compose(data="sample")
    values, tags = session._described(params, corpus, folds)
    assert values["data.posts"].endswith("posts.csv")
    own = Corpus.from_pairs(corpus.pairs[["post_id", "criterion", "criterion_id", "sentence", "label"]])
    assert own.sensitive
    values, tags = session._described(params, own)
    assert (
        values["data"] == "memory" and values["data.fingerprint"] == own.fingerprint == tags["evbind.data_fingerprint"]
    )
    assert values["data.pos_neg_ratio"] == 3
    assert not any("sample" in str(value) for value in values.values())
    assert not any("sample" in str(value) for value in session._described(params)[0].values())
