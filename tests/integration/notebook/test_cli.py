"""What the command line says to a mistake: one sentence, exit code 2, and nothing written."""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

from evbind_lib import __version__
from evbind_lib.cli import main

POSTS = "post_id,text\ns_1_1,I am low. I sleep badly.\ns_2_2,I eat well. I am fine.\ns_3_3,I cry a lot. Rain today.\n"
ROWS = "post_id,sentence_id,sentence_text,DSM5_symptom,status,explanation\n"
GOOD = (
    ROWS
    + "s_1_1,a,I am low.,DEPRESSED_MOOD,1,x\ns_2_2,b,I am fine.,DEPRESSED_MOOD,0,x\ns_3_3,c,I cry a lot.,DEPRESSED_MOOD,1,x\n"
)


@pytest.fixture
def refused(workspace: Path, capfd: pytest.CaptureFixture[str]) -> Callable[..., str]:
    """Run the command, make sure of a refusal that leaves nothing, and return its sentence."""

    def run(*words: str) -> str:
        before = sorted(workspace.rglob("*"))
        code = main(list(words))
        out, err = capfd.readouterr()
        assert code == 2
        # What only the notebook can find is a failed execution, and MLflow says so; there is nothing else of it.
        record = {
            workspace / "mlflow.db",
            *workspace.glob("mlartifacts"),
            *workspace.glob("mlartifacts/notebooks/**/*"),
        }
        record |= {workspace / "mlartifacts" / "notebooks"}
        assert sorted(set(workspace.rglob("*")) - record) == before
        assert out == ""
        assert err.startswith("evbind: ") and err.count("\n") == 1, err
        assert "Traceback" not in err
        return err.removeprefix("evbind: ").strip()

    return run


@pytest.mark.parametrize(
    ("words", "sentence"),
    [
        (["hpo_serch"], "There is no notebook hpo_serch; did you mean 'hpo_search'?"),
        (["hpo_search", "hpo=quik"], "hpo=quik: there is no file params/hpo/quik.yaml; did you mean 'quick'?"),
        (["hpo_search", "hpo.trials.n_trial=3"], "hpo.trials.n_trial is not a parameter; did you mean"),
        (["hpo_search", "hpo.pruner.type=medain"], "hpo.pruner.type=medain: there is none of that name"),
        (["hpo_search", "hpo.sampler.type=tp"], "hpo.sampler.type=tp: there is none of that name"),
        (["hpo_search", "hpo.metric.name=f1"], "hpo.metric.name=f1: must be one of accuracy"),
        (["hpo_search", "training.n_folds=1000"], "training.n_folds=1000: the data has only"),
        (["hpo_search", "model.name=./nowhere"], "model.name=./nowhere: is not a folder; give the folder"),
        (
            ["hpo_search", "hpo.study.storage=postgresql://nobody@localhost:1/none"],
            "the storage cannot be opened",
        ),
        (["hpo_search", "hpo.study.storage=grpc://localhost"], "it is not of the form grpc://HOST:PORT"),
        (["hpo_search", "hpo.pruner.futility=2"], "hpo.pruner.type=racing: "),
        (["hpo_search", "hpo.pruner.futilty=0.2"], "is not an option of racing; did you mean 'futility'?"),
        (["hpo_search", "hpo.search_space.learnin_rate.low=1e-5"], "did you mean 'learning_rate'?"),
        (["hpo_search", "hpo.search_space.weight_decay.when={lerning_rate: 1}"], "did you mean 'learning_rate'?"),
        (["hpo_search", "hpo.search_space.training.seed={type: int, low: 1, high: 3}"], "would change what the score"),
        (["hpo_search", "hpo.enqueue=[hpo_bst]"], "params/trainer/hpo_bst.yaml"),
        (["hpo_search", "=3"], "Override '=3' is not of the form KEY=VALUE"),
        (
            ["hpo_search", "data.group_by=autor"],
            "data.group_by=autor: there is no column of that name; did you mean 'author'?",
        ),
        (["hpo_search", "data.posts=nowhere.csv"], "data.posts=nowhere.csv"),
        (["train", "data=pairs", "data.pairs=nowhere.parquet"], "data.pairs=nowhere.parquet"),
    ],
)
def test_mistakes_in_the_parameters(refused: Callable[..., str], words: list[str], sentence: str) -> None:
    assert sentence in refused(*words)


@pytest.mark.parametrize(
    ("files", "words"),
    [
        ({"annotations.csv": b""}, ["annotations.csv", "empty"]),
        ({"annotations.csv": ROWS.encode()}, ["annotations.csv"]),
        ({"annotations.csv": GOOD.replace("status", "stats").encode()}, ["annotations.csv", "status"]),
        ({"annotations.csv": GOOD.replace(",0,x", ",2,x").encode()}, ["annotations.csv", "row 3", "status is 2"]),
        ({"annotations.csv": GOOD.replace(",1,x", ",0,x").encode()}, ["annotations.csv", "no row is evidence"]),
        ({"annotations.csv": GOOD.encode("utf-16")}, ["annotations.csv", "UTF-8"]),
        ({"posts.csv": POSTS.encode("latin-1").replace(b"low", b"l\xf6w")}, ["posts.csv", "UTF-8"]),
        ({"criteria.json": b"{"}, ["criteria.json", "line 1"]),
        ({"criteria.json": b'{"ELSE": "Something else."}'}, ["annotations.csv", "DEPRESSED_MOOD"]),
    ],
)
def test_files_that_cannot_be_used(
    refused: Callable[..., str], workspace: Path, files: dict[str, bytes], words: list[str]
) -> None:
    criteria = json.dumps({"DEPRESSED_MOOD": "Feels low."}).encode()
    everything = {"posts.csv": POSTS.encode(), "annotations.csv": GOOD.encode(), "criteria.json": criteria, **files}
    for name, content in everything.items():
        (workspace / name).write_bytes(content)
    said = refused(
        "hpo_search",
        *("data=redsm5", "data.posts=posts.csv", "data.annotations=annotations.csv", "data.criteria=criteria.json"),
        "training.n_folds=2",
    )
    assert [word for word in words if word not in said] == []
    assert "I am low" not in said and "cry" not in said


@pytest.mark.slow
@pytest.mark.parametrize(
    ("word", "sentence"),
    [
        ("training.args.optim=adamm", "training.args: transformers refuses them"),
        ("hpo.trials.n_jobs=100000", "hpo.trials.n_jobs=100000"),
        ("tracking.uri=http://localhost:1", "tracking.uri=http://localhost:1: the MLflow store cannot be used"),
    ],
)
def test_mistakes_that_only_the_notebook_finds(refused: Callable[..., str], word: str, sentence: str) -> None:
    assert sentence in refused("hpo_search", word)


def test_a_real_shell_sees_exit_code_2_and_no_traceback(workspace: Path) -> None:
    done = subprocess.run(
        [sys.executable, "-m", "evbind_lib.cli", "hpo_search", "hpo=quik"], capture_output=True, text=True, timeout=60
    )
    assert (done.returncode, done.stdout) == (2, "")
    assert done.stderr == "evbind: hpo=quik: there is no file params/hpo/quik.yaml; did you mean 'quick'?\n"


def test_help_names_the_notebooks_and_the_grammar(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as ended:
        main(["--help"])
    assert ended.value.code == 0
    said = capsys.readouterr().out
    assert "hpo_search" in said and "train" in said and "trainer=hpo_best" in said
    with pytest.raises(SystemExit):
        main(["--version"])
    assert capsys.readouterr().out == f"evbind {__version__}\n"
