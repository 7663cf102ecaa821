"""A search by the shell with secrets in its parameters: no file of the workspace holds one, nor the folder of the data."""

from __future__ import annotations

import shutil
from pathlib import Path

import pytest

from evbind_lib.cli import main
from evbind_lib.config.paths import PACKAGE
from tests.conftest import BRIEF

PASSWORDS = ("pa%40ss-word/1", "pa@ss-word/1")  # in an address and as it is meant
TOKEN = "hf_canary0123456789"


@pytest.mark.slow
@pytest.mark.usefixtures("mlflow_tables")
def test_no_file_of_the_workspace_holds_a_password_a_token_or_the_folder_of_the_data(
    workspace: Path, tmp_path: Path, database: str, capfd: pytest.CaptureFixture[str]
) -> None:
    shutil.copytree(PACKAGE / "data" / "sample", clinic := tmp_path / "ada clinic")
    server = database.replace("evbind@", f"evbind:{PASSWORDS[0]}@")
    words = [*BRIEF, "hpo.trials.n_trials=1", f"hpo.study.storage={server}", f"model.trainer.hub_token={TOKEN}"]
    words += [f"data.{name}='{clinic}/{name}.csv'" for name in ("posts", "annotations")]
    assert main(["hpo_search", *words]) == 0
    assert main(["hpo_search", *words, "hpo.study.study_name=x", "hpo.metric.name=f2"]) == 2
    places = {"what is printed": "".join(capfd.readouterr()).encode()}
    places |= {str(file): file.read_bytes() for file in workspace.rglob("*") if file.is_file()}
    assert (
        b"hub_token=***" in places[str(workspace / "mlflow.db")]
        and b"evbind:***@127.0.0.1" in places[str(workspace / "mlflow.db")]
    )
    secrets = (*PASSWORDS, TOKEN, "ada clinic")
    # YAML breaks a long path at its spaces.
    experiment = b" ".join(places.pop(str(workspace / "params" / "experiment" / "redsm5-tiny.yaml")).split())
    assert b"ada clinic" in experiment and not any(secret.encode() in experiment for secret in secrets[:-1]), (
        "by this one file the same data are trained on again"
    )
    assert [
        (place, secret) for place, content in places.items() for secret in secrets if secret.encode() in content
    ] == []
