"""The verbs of a cell: what `start` leaves alone, what is recorded about a corpus in memory, what lines say."""

from __future__ import annotations

import logging
import os
import warnings
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import optuna
import pandas as pd
import pytest

from evbind_lib.config.compose import compose
from evbind_lib.data.corpus import Corpus
from evbind_lib.data.folds import Fold
from evbind_lib.errors import ParamsError, SearchError
from evbind_lib.evaluation.estimate import compare
from evbind_lib.evaluation.selection import corrected_score
from evbind_lib.hpo.study import StudyRecord, open_storage
from evbind_lib.notebook import monitor, session, show
from evbind_lib.tracking import executions
from evbind_lib.tracking.page import RUN_VARIABLE
from evbind_lib.training.cache import FoldCache, trial_name
from evbind_lib.training.result import FoldResult, prediction_table
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
    assert execution.tracking


def test_after_compose_alone_nothing_is_recorded(workspace: Path, corpus: Corpus, folds: list[Fold]) -> None:
    params = compose(BRIEF)
    cv = session.cross_validate(corpus, folds, params)
    assert not (workspace / "mlflow.db").exists()
    again = session.cross_validate(corpus, folds, params)
    assert [fold.cached for fold in cv.folds + again.folds] == [False, False, True, True]
    assert cv.predictions.equals(again.predictions)
    assert "2 of 2 folds read from an earlier training, trained " in "".join(show.training_summary(again, params)[1])


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


def predictions(fold: int, logits: list[float]) -> pd.DataFrame:
    """Predictions of a fold of four pairs, the first two of them evidence."""
    ids = {"post_id": list("pqrs"), "sentence_id": [f"{fold}{n}" for n in range(4)], "criterion_id": list("AABB")}
    return prediction_table(fold, pd.DataFrame({**ids, "label": [1, 1, 0, 0], "weight": 1.0}), np.array(logits))


def test_an_earlier_search_is_a_row_by_name_with_its_corrected_score() -> None:
    params, scores = compose(["training.n_folds=2"], tracking="none"), [[0.7, 0.8], [0.6, 0.7], [0.5, 0.6]]
    study = optuna.create_study(study_name="seen", storage=open_storage("sqlite:///optuna.db"), direction="maximize")
    with warnings.catch_warnings(action="ignore"):
        study.set_metric_names(["macro_f1"])
    StudyRecord(uid="1234", identity={"fold_aggregation": "mean"}).write(study)
    for folds in scores:
        attributes = {"fold_scores": folds, "metric": "macro_f1"}
        options = {"intermediate_values": dict(enumerate(folds)), "user_attrs": attributes}
        study.add_trial(optuna.trial.create_trial(value=float(np.mean(folds)), **options))
    with pytest.raises(SearchError, match="0 of 2"):
        show.earlier_search("seen", params, "macro_f1")
    for fold in (0, 1):
        table = predictions(fold, [2.0, -1.0, -2.0, -3.0])
        FoldCache("1234").save(trial_name(0, fold), FoldResult(fold, {}, (), table, 1.0, 4, 4, "fp32", 0.0))
    table, score = show.earlier_search("seen", params, "macro_f1")
    assert table["logit"].tolist() == [2.0, -1.0, -2.0, -3.0] * 2 and score == corrected_score(scores)
    assert (
        show.earlier_search("seen", params, "pr_auc")[1] is None
    )  # nothing was selected by that, and nothing corrects it


def test_a_comparison_says_means_differences_and_what_has_no_verdict() -> None:
    sure, fair = [3.0, 2.0, -2.0, -3.0], [3.0, -1.0, -2.0, 1.0]
    sets = {"default": [fair, fair], "mine": [sure, fair], "chosen": [sure, sure]}
    results = {name: pd.concat([predictions(*fold) for fold in enumerate(folds)]) for name, folds in sets.items()}
    table = compare(results, "accuracy", selected={"chosen": None})
    result, lines = show.comparison_summary(table, "accuracy", "default")
    assert result["means"] == {"default": 0.5, "mine": 0.75, "chosen": 1.0} and result["best"] == "chosen"
    assert list(result["differences"]) == ["mine"] and result["differences"]["mine"][0] == 0.25
    assert lines[2] == "chosen          accuracy 1.000, selected on these folds"
    assert len(lines) == 4 and lines[3].startswith("mine against default: +0.250 (")
    by_criterion = show.criteria_table(results, "recall")
    assert by_criterion.loc["A"].tolist() == [4, 4, 0.5, 0.75, 1.0] and by_criterion.loc["B", "pairs"] == 4


def test_the_line_of_a_search_says_the_time_left_also_of_a_resumed_one_and_how_each_trial_ended(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    lines: list[str] = []
    keep = SimpleNamespace(update=lambda bundle, **options: lines.append(bundle["text/plain"]))
    monkeypatch.setenv(RUN_VARIABLE, "a run")
    monkeypatch.setattr(monitor, "display", lambda bundle, **options: keep.update(bundle) or keep)
    progress = monitor.SearchProgress(compose(["hpo.trials.n_trials=4", "hpo.trials.n_jobs=2"]))
    study = optuna.create_study()
    progress.on_search_begin(study, 0)
    for number in (0, 1):
        study.add_trial(optuna.create_trial(value=0.5, user_attrs={"seconds": 40.0}))
        progress.on_trial_end(study, study.trials[number])
    progress.on_search_begin(study, 2)
    assert "0/4  time left: known after the first trial" in lines[0]
    assert "1/4  trial 0: complete, objective value 0.5000, 0:00:40; best objective value 0.5000 (trial 0)" in lines[1]
    assert "2/4" in lines[2] and lines[2].endswith("about 0:00:40 left")  # two trials of 40 s by two workers
    assert "done before: 2" in lines[3] and lines[3].endswith("about 0:00:40 left")
