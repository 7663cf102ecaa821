"""The model one keeps in MLflow: loaded back by its two flavors, linked to its run, registered when asked, once."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace

import mlflow
import numpy as np
import pytest
from scipy.special import logit

from evbind_lib.config.paths import resolve_sqlite
from evbind_lib.data.corpus import Corpus
from evbind_lib.notebook import session
from evbind_lib.tracking import executions
from evbind_lib.tracking.store import Store
from tests.conftest import BRIEF


@pytest.fixture(autouse=True)
def execution(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(executions, "EXECUTION", executions.Execution())


@pytest.mark.usefixtures("mlflow_tables")
def test_a_model_is_logged_once_loaded_back_and_registered_when_asked(corpus: Corpus) -> None:
    params = session.start("mine", [*BRIEF, "tracking.registered_model_name=mine"])
    model = session.open_model(corpus, params)
    assert session.open_model(corpus, params).about == model.about
    store = Store(params.tracking)
    made, read = store.find(store.experiments["training"], {"evbind.level": "training"})
    (logged,) = store.client.search_logged_models([made.info.experiment_id])
    assert (logged.source_run_id, logged.status, logged.name) == (made.info.run_id, "READY", "tiny")
    assert [output.model_id for output in made.outputs.model_outputs] == [logged.model_id]
    inputs = store.client.get_run(read.info.run_id).inputs
    assert [each.model_id for each in inputs.model_inputs] == [logged.model_id] and len(inputs.dataset_inputs) == 1
    (version,) = store.client.search_model_versions("name = 'mine'")
    assert version.run_id == made.info.run_id

    mlflow.set_tracking_uri(resolve_sqlite(params.tracking.uri))
    pairs = corpus.pairs.head(3)[["criterion", "sentence"]]
    texts = pairs.rename(columns={"criterion": "text", "sentence": "text_pair"})
    asked = mlflow.pyfunc.load_model("models:/mine/1")
    assert asked.metadata.metadata["evbind"]["fingerprint"] == corpus.fingerprint
    assert asked.metadata.get_input_schema().input_names() == ["text", "text_pair"]
    assert asked.input_example["text"].tolist() == [next(iter(corpus.criteria.values()))]
    both = mlflow.transformers.load_model(f"models:/{logged.model_id}")(texts.to_dict("records"), top_k=None)
    found = [{each["label"]: each["score"] for each in pair}["evidence"] for pair in both]
    expected = model.predict_proba(pairs)[:, 1]
    assert logit(found) == pytest.approx(logit(expected), abs=1e-5)
    table = asked.predict(texts)
    assert (table["label"] == "evidence").tolist() == (expected >= 0.5).tolist()
    assert table["score"].to_numpy() == pytest.approx(np.maximum(expected, 1 - expected), abs=1e-5)


@pytest.mark.usefixtures("mlflow_tables")
def test_of_sensitive_data_no_model_is_logged_and_a_lost_server_takes_none_away(
    corpus: Corpus, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    params = session.start("mine", [*BRIEF, "tracking.registered_model_name=mine"])
    session.finalize(replace(corpus, sensitive=True), params)
    store = Store(params.tracking)
    (run,) = store.find(store.experiments["training"], {"evbind.level": "training"})
    assert run.info.status == "FINISHED"
    assert not caplog.records

    def fails(*_: object, **__: object) -> None:
        raise mlflow.MlflowException("the server is gone")

    monkeypatch.setattr(mlflow.MlflowClient, "create_logged_model", fails)
    model = session.finalize(corpus, params)
    assert model.predict_proba(corpus.pairs.head(2)).shape == (2, 2)
    assert "the server is gone" in caplog.text
    assert not store.client.search_logged_models([run.info.experiment_id])
    assert not store.client.search_registered_models()


@pytest.mark.usefixtures("mlflow_tables")
def test_system_metrics_are_logged_where_they_are_asked_for(brief: Callable, monkeypatch: pytest.MonkeyPatch) -> None:
    import time

    monkeypatch.setenv("MLFLOW_SYSTEM_METRICS_SAMPLING_INTERVAL", "0.1")
    from evbind_lib.tracking.runs import TrainingRun

    names = []
    for word in ("true", "false"):
        store = Store(brief(f"tracking.system_metrics={word}").tracking)
        with TrainingRun.open(store, "training", "train", parameters={}) as run:
            time.sleep(1)
        names.append({name for name in store.client.get_run(run.run_id).data.metrics if name.startswith("system/")})
    assert "system/cpu_utilization_percentage" in names[0] and not names[1]
