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
from evbind_lib.notebook import run

POSTS = "post_id,text\ns_1_1,I am low. I sleep badly.\ns_2_2,I eat well. I am fine.\ns_3_3,I cry a lot. Rain today.\n"
ROWS = "post_id,sentence_id,sentence_text,DSM5_symptom,status,explanation\n"
GOOD = (
    ROWS
    + "s_1_1,a,I am low.,DEPRESSED_MOOD,1,x\ns_2_2,b,I am fine.,DEPRESSED_MOOD,0,x\ns_3_3,c,I cry a lot.,DEPRESSED_MOOD,1,x\n"
)


@pytest.fixture
def refused(workspace: Path, capfd: pytest.CaptureFixture[str]) -> Callable[..., str]:
    """Run the command, make sure of a refusal that leaves nothing, and return its sentence."""

    def refuse(*words: str) -> str:
        before = sorted(workspace.rglob("*"))
        code = main(list(words))
        out, err = capfd.readouterr()
        assert code == 2
        # What only the notebook can find is a failed execution, and MLflow says so; there is nothing else of it.
        record = {
            workspace / "mlflow.db",
            workspace / "mlflow.db.lock",
            *workspace.glob("mlartifacts"),
            *workspace.glob("mlartifacts/notebooks/**/*"),
        }
        record |= {workspace / "mlartifacts" / "notebooks"}
        assert sorted(set(workspace.rglob("*")) - record) == sorted(set(before) - record)
        assert out == ""
        data, place, err = err.rpartition("evbind: ")  # what only the notebook finds comes after the line on the data
        assert place and (not data or (data.startswith("Data: ") and data.count("\n") == 1)), data
        assert err.count("\n") == 1, err
        assert "Traceback" not in err
        return err.strip()

    return refuse


MISTAKES = [  # words, the key that the sentence names, what it suggests
    (["hpo_serch"], "hpo_serch", "'hpo_search'"),
    (["hpo_search", "hpo=quik"], "hpo=quik", "'quick'"),
    (["hpo_search", "hpo.trials.n_trial=3"], "hpo.trials.n_trial", "n_trials'"),
    (["hpo_search", "training.n_folds=1000"], "training.n_folds=1000", ""),
    (
        ["hpo_search", "hpo.study.storage=postgresql://nobody@localhost:1/none"],
        "hpo.study.storage",
        "sqlite:///optuna.db",
    ),
    (["hpo_search", "hpo.search_space.learnin_rate.low=1e-5"], "learnin_rate", "'learning_rate'"),
    (["hpo_search", "hpo.metric.name=[macro_f1,pos_f1]"], "hpo.metric.name", "report_folds"),
    (["hpo_search", "=3"], "'=3'", "KEY=VALUE"),
    (["hpo_search", "data.group_by=autor"], "data.group_by=autor", "'author'"),
    (["hpo_search", "data.posts=nowhere.csv"], "data.posts=nowhere.csv", ""),
    (["train", "data=pairs", "data.pairs=nowhere.parquet"], "data.pairs=nowhere.parquet", ""),
    (["train", "trainer=hpo_best"], "trainer=hpo_best", "evbind hpo_search"),
    (["train", "--sentence", "It rained."], "train", ""),
    (["score", "trainer=default", "aim=recal>=0.9", "--sentence", "It rained."], "aim=recal>=0.9", "recall>=R"),
    (
        ["score", "trainer=default", "--sentence", "It rained.", "--criterion", "SLEEP_ISUES"],
        "SLEEP_ISUES",
        "'SLEEP_ISSUES'",
    ),
]


@pytest.mark.parametrize(("words", "key", "suggestion"), MISTAKES)
def test_mistakes_are_refused_before_a_kernel_starts(
    refused: Callable[..., str], monkeypatch: pytest.MonkeyPatch, words: list[str], key: str, suggestion: str
) -> None:
    monkeypatch.setattr(run, "_execute", lambda *_: pytest.fail("a kernel would have been started"))
    sentence = refused(*words)
    assert key in sentence and suggestion in sentence


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
@pytest.mark.usefixtures("mlflow_tables")
@pytest.mark.parametrize(
    ("word", "key", "suggestion"),
    [
        ("hpo.pruner.type=medain", "hpo.pruner.type=medain", "'median'"),
        ("training.args.optim=adamm", "training.args", ""),
        ("tracking.uri=http://localhost:1", "tracking.uri=http://localhost:1", "tracking=none"),
    ],
)
def test_mistakes_that_only_the_notebook_finds(
    refused: Callable[..., str], word: str, key: str, suggestion: str
) -> None:
    sentence = refused("hpo_search", word)
    assert key in sentence and suggestion in sentence


def test_a_real_shell_sees_exit_code_2_and_no_traceback(workspace: Path) -> None:
    command = [sys.executable, "-m", "evbind_lib.cli", "hpo_search", "hpo=quik"]
    done = subprocess.run(command, capture_output=True, text=True, timeout=60)
    assert (done.returncode, done.stdout) == (2, "")
    assert done.stderr.startswith("evbind: hpo=quik: ") and done.stderr.endswith("did you mean 'quick'?\n")


def test_checking_a_command_in_the_shell_loads_no_torch() -> None:
    code = (
        "import sys; from evbind_lib.notebook.run import check, find_notebook; "
        "check(find_notebook('hpo_search'), {}, []); print([name for name in ('torch', 'transformers') if name in sys.modules])"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=60)
    assert done.stdout.strip() == "[]", done.stderr


def test_help_names_the_notebooks_and_the_grammar(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["--help"]) == 0
    said = capsys.readouterr().out
    assert "hpo_search" in said and "extend" in said and "trainer=hpo_best" in said
    assert main([]) == 0  # `evbind` alone
    assert capsys.readouterr().out == said
    with pytest.raises(SystemExit):
        main(["--version"])
    assert capsys.readouterr().out == f"evbind {__version__}\n"
