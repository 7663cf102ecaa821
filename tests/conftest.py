"""Files of data in the ReDSM5 form, written for one test each."""

from __future__ import annotations

import json
import os
import shutil
import uuid
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import pandas as pd
import pytest
from filelock import FileLock
from hypothesis import settings

from evbind_lib.config.compose import compose
from evbind_lib.config.schema import DataParams, Params
from evbind_lib.data.corpus import Corpus, load_corpus
from evbind_lib.data.folds import Fold, make_folds
from tests import forks
from tests.storages import postgres

PROJECT = Path(__file__).resolve().parent.parent

# The same examples in every run, so that a change is what makes a test fail; HYPOTHESIS_PROFILE=default looks for new ones.
settings.register_profile("same", derandomize=True, deadline=None)
settings.load_profile(os.environ.get("HYPOTHESIS_PROFILE", "same"))

# Everything real, but two folds and three steps each: for tests of what is around the training.
BRIEF = (
    *("training.n_folds=2", "training.args.max_steps=3", "data.pos_neg_ratio=1", "data.eval_neg_ratio=1"),
    *("hpo.trials.n_trials=3", "hpo.sampler.n_startup_trials=2", "hpo.pruner.n_startup_trials=99"),
)
Row = tuple[str, str, str, int]  # post_id, sentence, criterion_id, status


@pytest.fixture(scope="session")
def write_redsm5(tmp_path_factory: pytest.TempPathFactory) -> Callable[..., DataParams]:
    """Give a function that writes posts, annotations and criteria to files and returns their parameters."""

    def write(rows: Sequence[Row], posts: Mapping[str, str], texts: Mapping[str, str], **others: Any) -> DataParams:
        folder: Path = tmp_path_factory.mktemp("data")
        names = ["post_id", "sentence_text", "DSM5_symptom", "status"]
        pd.DataFrame(rows, columns=names).to_csv(folder / "annotations.csv", index=False)
        pd.DataFrame(posts.items(), columns=["post_id", "text"]).to_csv(folder / "posts.csv", index=False)
        (folder / "criteria.json").write_text(json.dumps(texts), encoding="utf-8")
        files = {name: str(folder / f"{name}.csv") for name in ("posts", "annotations")}
        files["criteria"] = str(folder / "criteria.json")
        return DataParams(**{**files, **others})

    return write


@pytest.fixture(autouse=True)
def nothing_is_left_in_the_project(tmp_path_factory: pytest.TempPathFactory, monkeypatch: pytest.MonkeyPatch) -> None:
    """A test without a workspace of its own works in one beside those of the others, and not in the checkout."""
    if "EVBIND_WORKSPACE" not in os.environ:
        monkeypatch.setenv("EVBIND_WORKSPACE", str(tmp_path_factory.getbasetemp() / "shared_workspace"))


@pytest.fixture
def workspace(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """An empty workspace, which is also the current folder."""
    folder = tmp_path / "workspace"
    folder.mkdir()
    monkeypatch.setenv("EVBIND_WORKSPACE", str(folder))
    monkeypatch.delenv("MLFLOW_TRACKING_URI", raising=False)  # which mlflow.set_tracking_uri of another test sets
    monkeypatch.chdir(folder)
    return folder


@pytest.fixture(scope="session")
def server() -> Iterator[str]:
    """Address of a PostgreSQL server, without the name of a database."""
    with postgres() as address:
        yield address.removesuffix("postgres")


@pytest.fixture
def database(server: str) -> str:
    """Address of an empty database of the test's own on that server."""
    import psycopg

    name = f"test_{uuid.uuid4().hex}"
    with psycopg.connect(f"{server}postgres", autocommit=True) as connection:
        connection.execute(f"CREATE DATABASE {name}")
    return f"{server}{name}"


@pytest.fixture(scope="session")
def once(tmp_path_factory: pytest.TempPathFactory) -> Callable[[str, Callable[[Path], Any]], Path]:
    """Give a function that fills a folder once for all processes of the test session."""
    shared = tmp_path_factory.getbasetemp()
    shared = shared.parent if "PYTEST_XDIST_WORKER" in os.environ else shared

    def make(name: str, fill: Callable[[Path], Any]) -> Path:
        folder, made = shared / name, shared / f"{name}.made"
        with FileLock(shared / f"{name}.lock"):
            if not made.exists():
                folder.mkdir()
                fill(folder)
                made.touch()
        return folder

    return make


@pytest.fixture(scope="session")
def mlflow_database(once: Callable[..., Path]) -> Path:
    """A database of MLflow without runs, to be copied: MLflow takes seconds to make its tables."""

    def fill(folder: Path) -> None:
        from mlflow import MlflowClient

        MlflowClient(f"sqlite:///{folder / 'mlflow.db'}").search_experiments()

    return once("mlflow", fill) / "mlflow.db"


@pytest.fixture
def mlflow_tables(workspace: Path, mlflow_database: Path) -> None:
    """Such a database in the workspace."""
    shutil.copy(mlflow_database, workspace)


@pytest.fixture
def searched(workspace: Path, once: Callable[..., Path], mlflow_database: Path) -> Path:
    """The workspace with a finished search of three trials, made by the command; what it printed is in stdout and stderr."""

    def fill(folder: Path) -> None:
        shutil.copy(mlflow_database, folder)
        assert forks.begin(_search, folder).wait(300) == 0, (folder / "stderr").read_text()

    return shutil.copytree(once("searched", fill), workspace, dirs_exist_ok=True)


def _search(folder: Path) -> int:
    """The command in a process of its own, with its output in files."""
    from evbind_lib.cli import main

    os.chdir(folder)
    os.environ["EVBIND_WORKSPACE"] = str(folder)
    for number, name in enumerate(("stdout", "stderr"), start=1):
        os.dup2(os.open(name, os.O_WRONLY | os.O_CREAT), number)
    return main(["hpo_search", *BRIEF])


@pytest.fixture
def brief(workspace: Path) -> Callable[..., Params]:
    """Parameters of a run that takes seconds, with further overrides."""
    return lambda *overrides: compose([*BRIEF, *overrides], hpo="quick")


@pytest.fixture(scope="session")
def corpus() -> Corpus:
    """The bundled sample."""
    return load_corpus(compose())


@pytest.fixture(scope="session")
def folds(corpus: Corpus) -> list[Fold]:
    """Two folds of the sample, as `BRIEF` has them."""
    return make_folds(corpus, compose(BRIEF))
