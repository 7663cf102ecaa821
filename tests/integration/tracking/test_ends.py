"""How an execution ends, as the shell and MLflow see it: the same by the command, papermill's engine and plain papermill."""

from __future__ import annotations

import json
import runpy
import signal
import subprocess
import sys
from pathlib import Path

import nbformat
import optuna
import pytest
from nbformat.v4 import new_code_cell, new_notebook

from evbind_lib.cli import main
from evbind_lib.config.paths import resolve_sqlite
from tests import forks
from tests.conftest import BRIEF
from tests.integration.tracking.test_executions import executions, papermill, papermill_here, wait_for

pytestmark = pytest.mark.usefixtures("mlflow_tables")

PARAMETERS = "# Parameters\ntrainer: str = 'default'\noverrides: list = []"
START = "import evbind_lib as ev\nparams = ev.start('own', overrides, trainer=trainer)"


def write(file: Path, *sources: str) -> Path:
    """A notebook whose metadata name no kernel, with an assignment above its parameters."""
    cells = [new_code_cell(source) for source in ("import sys\nn = 3", PARAMETERS, START, *sources)]
    cells[1].metadata["tags"] = ["parameters"]
    for cell in cells:
        if "1 / 0" in cell.source:
            cell.metadata["tags"] = ["raises-exception"]
    nbformat.write(new_notebook(cells=cells), file)
    return file


@pytest.mark.slow
def test_what_is_meant_to_raise_or_to_exit_is_no_failure(workspace: Path) -> None:
    write(workspace / "own.ipynb", "1 / 0", "print('after')", "sys.exit(0)", "print('never')")
    assert main(["own.ipynb", "--output", "out.ipynb"]) == 0
    stored = nbformat.read(workspace / "out.ipynb", as_version=4)
    texts = str(
        [output.get("text", output.get("ename")) for cell in stored.cells for output in cell.get("outputs", [])]
    )
    assert all(word in texts for word in ("ZeroDivisionError", "after", "SystemExit")) and "never" not in texts
    done = papermill_here("own.ipynb", "out2.ipynb", "--inject-paths", "-k", "python3", "-l", "python")
    assert done.exit_code == 0, done.exception
    papermill_here("own.ipynb", "out3.ipynb", "-k", "python3", engine="nbclient")
    assert [run.info.status for run in executions()] == ["FINISHED"] * 3
    assert not any(run.data.tags.get("evbind.error") for run in executions())


@pytest.mark.slow
def test_ctrl_c_that_a_search_answers_ends_with_130_and_a_tag(workspace: Path) -> None:
    answer = "from evbind_lib.notebook import show\nshow.record({'stopped': True}, ['stopped'])"
    source = (
        f"import time\ntry:\n    open('begun', 'w').close(); time.sleep(100)\nexcept KeyboardInterrupt:\n    {answer}"
    )
    write(workspace / "own.ipynb", source.replace("\nshow", "\n    show"), "print('the end')")
    for number in range(2):
        output = workspace / f"out{number}.ipynb"
        command = ["own.ipynb", "--output", output.name]
        process = papermill("own.ipynb", output.name) if number else forks.begin(main, command)
        wait_for((workspace / "begun").exists)
        (workspace / "begun").unlink()
        process.send_signal(signal.SIGINT)
        assert process.wait(60) == 130
        assert "the end\\n" in output.read_text()
    runs = executions()
    assert [(run.info.status, run.data.tags["evbind.stopped"]) for run in runs] == [("FINISHED", "true")] * 2


@pytest.mark.slow
def test_ctrl_c_in_a_search_without_a_complete_trial_ends_with_130_as_any_other_stop(workspace: Path) -> None:
    # As `report_folds` ends a trial after a fold, where somebody asked to stop.
    ends = "from evbind_lib.hpo.objective import SearchStopped\ndef objective(trial):\n    open('begun', 'w').close()"
    objective = f"{ends}; time.sleep(3)\n    raise SearchStopped"
    write(workspace / "own.ipynb", f"import time\n{objective}", "ev.search(objective, params, study='stopped')")
    process = forks.begin(main, ["own.ipynb", "--output", "out.ipynb"])
    wait_for((workspace / "begun").exists)
    process.send_signal(signal.SIGINT)
    assert process.wait(60) == 130
    assert "the same command goes on" in process.stderr.read()
    assert "Stopped on request" in (workspace / "out.ipynb").read_text()
    assert [run.info.status for run in executions()] == ["KILLED"]


def test_ctrl_c_while_the_kernel_starts_ends_the_run_before_any_cell(
    workspace: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (folder := workspace / "kernels" / "late").mkdir(parents=True)
    described = {"argv": [sys.executable, "-m", "late"], "display_name": "late", "language": "python"}
    (folder / "kernel.json").write_text(json.dumps(described))
    (workspace / "late.py").write_text("import time\nopen('begun', 'w').close()\ntime.sleep(100)\n")
    monkeypatch.setenv("JUPYTER_PATH", str(workspace))
    notebook = nbformat.read(write(workspace / "own.ipynb", "print('never')"), as_version=4)
    notebook.metadata["kernelspec"] = {"name": "late", "language": "python", "display_name": "late"}
    nbformat.write(notebook, workspace / "own.ipynb")
    process = forks.begin(main, ["own.ipynb", "--output", "out.ipynb"])
    wait_for((workspace / "begun").exists)
    process.send_signal(signal.SIGINT)
    assert process.wait(60) == 130
    (run,) = executions()
    assert run.info.status != "FINISHED" and run.data.tags["evbind.error"].startswith("KeyboardInterrupt")


def test_a_cell_that_takes_too_long_is_not_told_as_a_full_disk(
    workspace: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    from evbind_lib.notebook import run

    monkeypatch.setitem(run.WAITS, "execution_timeout", 1)
    write(workspace / "own.ipynb", "import time; time.sleep(30)")
    assert main(["own.ipynb", "--output", "out.ipynb"]) == 1
    said = capsys.readouterr().err
    assert "in time" in said and "free some space" not in said and (workspace / "out.ipynb").exists()


def test_a_script_that_searches_without_a_guard_is_told_so_and_with_one_has_a_worker(workspace: Path) -> None:
    words, script = [*BRIEF, "hpo.trials.trial_timeout=100", "tracking=none"], workspace / "own.py"
    source = (
        f"import evbind_lib as ev\nparams = ev.compose({words})\nev.search(lambda trial: 1.0, params, study='own')\n"
    )
    script.write_text(source)
    told = forks.begin(runpy.run_path, str(script), None, "__main__")
    said = told.stderr.read() if told.stderr else ""
    assert "own.py: " in said and "if __name__ == '__main__'" in said and told.wait(60) == 1
    assert not (workspace / "optuna.db").exists()
    script.write_text(source.replace("ev.search", "if __name__ == '__main__':\n    ev.search"))
    guarded = subprocess.Popen([sys.executable, "own.py"])
    assert guarded.wait(100) == 0
    trials = optuna.load_study(study_name="own", storage=resolve_sqlite("sqlite:///optuna.db")).trials
    assert len(trials) == 3 and str(guarded.pid) not in {trial.user_attrs["worker"].split()[1] for trial in trials}
