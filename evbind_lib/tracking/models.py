"""The model one keeps as MLflow's users know it: a logged model of the flavor `transformers`, linked to the run that made it."""

import hashlib
import json
import re
import tempfile
from importlib import metadata
from pathlib import Path

import mlflow
import pandas as pd
import transformers
from huggingface_hub import ModelCard
from mlflow.entities import LoggedModel, LoggedModelInput, LoggedModelOutput, LoggedModelStatus
from mlflow.models import Model, infer_signature

from evbind_lib.evaluation.card import card
from evbind_lib.evaluation.model import EvidenceModel, as_json
from evbind_lib.tracking.runs import Run
from evbind_lib.tracking.store import Store
from evbind_lib.training.model import quiet_libraries

SENTENCE, ANSWER = "I lie awake until four.", pd.DataFrame({"label": ["evidence"], "score": [0.9]})  # invented


def log_model(run: Run, model: EvidenceModel) -> None:
    """Log a model as what a run made, or the one that was logged before as what it read; register it where that is asked."""
    client, digest = run.store.client, hashlib.sha256(as_json(model.about)).hexdigest()[:32]
    with run.store.going_on("the model is in its folder"):
        same = client.search_logged_models([run.experiment], f"tags.`evbind.model` = '{digest}'")
        whole = [each for each in same if each.status == LoggedModelStatus.READY]
        if whole:
            client.log_inputs(run.run_id, models=[LoggedModelInput(whole[0].model_id)])
        logged = whole[0] if whole else _write(run, model, {"evbind.model": digest})
        if name := run.store.tracking.registered_model_name:
            _register(run.store, logged, name)


def _write(run: Run, model: EvidenceModel, tags: dict[str, str]) -> LoggedModel:
    """Write a logged model with its files."""
    client, name = run.store.client, re.sub(r"[^\w-]+", "-", Path(model.about["model"]).name)
    logged = client.create_logged_model(run.experiment, name, source_run_id=run.run_id, tags=tags)
    known = {"artifact_path": logged.artifact_location, "model_uuid": logged.model_id, "model_id": logged.model_id}
    example = pd.DataFrame({"text": [next(iter(model.criteria.values()))], "text_pair": [SENTENCE]})
    with tempfile.TemporaryDirectory() as folder, quiet_libraries():
        model.save(saved := Path(folder, "saved"))
        mlflow.transformers.save_model(
            # Of its folder, since MLflow looks up a name in the hub; the folder itself it does not take with transformers 5.
            transformers.pipeline("text-classification", str(saved)),
            str(made := Path(folder, "model")),
            mlflow_model=Model(run_id=run.run_id, **known),
            signature=infer_signature(example, ANSWER),
            input_example=example,
            model_config={"truncation": "longest_first", "max_length": model.about["max_length"]},
            model_card=ModelCard(card(model.about)),
            metadata={"evbind": json.loads(as_json(model.about))},
            pip_requirements=[f"{each}=={metadata.version(each)}" for each in ("mlflow", "transformers", "torch")],
        )
        (made / "LICENSE.txt").unlink(missing_ok=True)  # it names the folder as a repository of the hub
        client.log_model_artifacts(logged.model_id, str(made))
    client.log_outputs(run.run_id, [LoggedModelOutput(logged.model_id, step=0)])
    return client.finalize_logged_model(logged.model_id, "READY")


def _register(store: Store, logged: LoggedModel, name: str) -> None:
    """Make a logged model a version of a registered one, unless it is."""
    # By its id a database would look for it where MLflow's global address points to; a server takes no folder.
    client, source = store.client, f"models:/{logged.model_id}" if store.served else logged.artifact_location
    if not client.search_registered_models(f"name = '{name}'"):
        client.create_registered_model(name)
    if source not in [version.source for version in client.search_model_versions(f"name = '{name}'")]:
        client.create_model_version(name, source, logged.source_run_id, model_id=logged.model_id)
