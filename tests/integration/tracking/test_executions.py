"""Every execution of a notebook is a run in MLflow: under papermill, in a front end, failed, interrupted or killed."""

from __future__ import annotations

import contextlib
import json
import os
import shutil
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import mlflow
import nbformat
import pytest
from click.testing import CliRunner, Result
from jupyter_client.blocking import BlockingKernelClient
from jupyter_client.launcher import launch_kernel
from jupyter_client.manager import KernelManager
from jupyter_client.provisioning import local_provisioner
from mlflow.entities import Run
from nbformat.v4 import new_code_cell, new_markdown_cell, new_notebook
from papermill.cli import papermill as papermill_command

from evbind_lib.cli import main
from evbind_lib.config.paths import resolve_sqlite
from evbind_lib.notebook.run import find_notebook
from evbind_lib.tracking.page import PROGRESS
from tests import forks
from tests.conftest import BRIEF

pytestmark = pytest.mark.usefixtures("mlflow_tables")

PARAMETERS = 'trainer: str = "default"  # file of params/trainer/\noverrides: list = []  # Hydra overrides'
START = "import evbind_lib as ev\nparams = ev.start('own', overrides, trainer=trainer)"
SHOW = "from IPython.display import display\nprint('a line')\ndisplay({'text/plain': 'shown'}, raw=True)"


def client() -> mlflow.MlflowClient:
    return mlflow.MlflowClient(tracking_uri=resolve_sqlite("sqlite:///mlflow.db"))


def executions() -> list[Run]:
    """The runs of the experiment `notebooks`, oldest first."""
    experiment = client().get_experiment_by_name("notebooks")
    assert experiment is not None
    return list(client().search_runs([experiment.experiment_id], order_by=["attributes.start_time ASC"]))


def kept(run: Run, name: str) -> Path:
    return Path(client().download_artifacts(run.info.run_id, name))


def write_notebook(file: Path, *cells: str, kernel: str = "python3") -> Path:
    made = new_notebook(metadata={"kernelspec": {"name": kernel, "display_name": kernel, "language": "python"}})
    made.cells = [new_markdown_cell("# A notebook of one's own\n\n## Its only part")]
    made.cells += [new_code_cell(source) for source in cells]
    made.cells[1].metadata["tags"] = ["parameters"]
    nbformat.write(made, file)
    return file


def papermill(*words: str) -> forks.Forked:
    """Papermill's command in a process of its own that begins at once, as do its kernels."""
    return forks.begin(run_papermill, ["--engine", "evbind", "--no-progress-bar", *words])


def run_papermill(words: list[str]) -> None:
    papermill_command(words)


def papermill_here(*words: str, engine: str = "evbind") -> Result:
    """Papermill's command within this process, whose kernels begin at once."""
    return CliRunner().invoke(papermill_command, ["--engine", engine, "--no-progress-bar", *words])


def test_papermills_engine_tracks_notebooks_that_know_nothing_of_it_and_start_at_once(workspace: Path) -> None:
    write_notebook(workspace / "own.ipynb", "x = 1  # a number", "print(f'x is {x}')", "1 / (x - 3)", "print('after')")
    both = [papermill("own.ipynb", f"out{x}.ipynb", "-p", "x", str(x)) for x in (4, 3)]
    assert [bool(process.wait(180)) for process in both] == [False, True]
    run, failed = sorted(executions(), key=lambda run: run.info.status, reverse=True)
    assert (run.info.status, run.info.run_name, run.data.params["x"]) == ("FINISHED", "own", "4")
    assert run.data.tags["evbind.way"] == "papermill" and run.data.metrics["seconds"] > 0
    assert run.data.metrics["cells"] == 5, "the parameters that papermill put in are one"
    for name in ("own.ipynb", "own.html"):
        assert "x is 4" in kept(run, name).read_text()
    assert failed.info.status == "FAILED" and failed.data.metrics["cells"] == 4
    assert failed.data.tags["evbind.error"] == "ZeroDivisionError: division by zero"
    document = nbformat.read(kept(failed, "own.ipynb"), as_version=4)
    texts = [output.get("text", output.get("ename")) for cell in document.cells[1:] for output in cell.outputs]
    assert texts == ["x is 3\n", "ZeroDivisionError"]


@pytest.mark.slow
def test_without_the_engine_the_kernel_tracks_the_cells_that_it_runs(workspace: Path) -> None:
    write_notebook(workspace / "mine.ipynb", PARAMETERS, START, SHOW)
    assert papermill_here("mine.ipynb", "out.ipynb", engine="nbclient").exit_code == 0
    refusal = str(papermill_here("mine.ipynb", "out.ipynb", "-p", "traner", "tiny", engine="nbclient").exception)
    assert "traner" in refusal and "did you mean 'trainer'?" in refusal
    run, failed = executions()
    assert (run.info.status, run.info.run_name, run.data.tags["evbind.way"]) == ("FINISHED", "own", "kernel")
    cells = nbformat.read(kept(run, "own.ipynb"), as_version=4).cells
    assert [cell.source for cell in cells] == [PARAMETERS, START, SHOW]
    assert [output.output_type for output in cells[2].outputs] == ["stream", "display_data"]
    assert failed.info.status == "FAILED" and failed.data.tags["evbind.error"].startswith("ParamsError: traner")


def test_the_shell_sees_progress_ctrl_c_reaches_the_cell_and_a_kill_is_marked_at_the_next_start(
    workspace: Path,
) -> None:
    progress = f"display({{'text/plain': 'half', {PROGRESS!r}: {{'done': 1, 'total': 2}}}}, raw=True)"
    patient = f"try:\n    {progress}\n    time.sleep(100)\nexcept KeyboardInterrupt:\n    print('put', 'away')"
    write_notebook(workspace / "slow.ipynb", "x = 1", f"import time\n{patient}", "time.sleep(100)")
    write_notebook(workspace / "own.ipynb", "x = 1")
    command = [sys.executable, "-m", "papermill", "--engine", "evbind", "--no-progress-bar", "slow.ipynb", "out.ipynb"]
    process = subprocess.Popen(command, stderr=subprocess.PIPE, text=True, start_new_session=True)
    output = workspace / "out.ipynb"
    assert process.stderr is not None
    try:
        while process.stderr.readline() != "half\n":
            assert process.poll() is None
        process.send_signal(signal.SIGINT)
        wait_for(lambda: "put away" in output.read_text())
    finally:
        os.killpg(process.pid, signal.SIGKILL)
        process.wait()
    assert PROGRESS not in str(nbformat.read(output, as_version=4).cells[2].outputs)
    assert [run.info.status for run in executions()] == ["RUNNING"]
    assert papermill_here("own.ipynb", "out2.ipynb").exit_code == 0
    assert [(run.info.run_name, run.info.status) for run in executions()] == [("slow", "KILLED"), ("own", "FINISHED")]


def wait_for(condition: Callable[[], Any], seconds: float = 60) -> None:
    deadline = time.monotonic() + seconds
    while time.monotonic() < deadline:
        if condition():
            return
        time.sleep(0.3)
    raise AssertionError("it did not happen")


@contextlib.contextmanager
def kernel_of(notebook: Path) -> Iterator[tuple[KernelManager, BlockingKernelClient]]:
    """A kernel as a front end starts it for a notebook."""
    manager = KernelManager(kernel_name="python3")
    manager.start_kernel(cwd=str(notebook.parent), env={**os.environ, "JPY_SESSION_NAME": notebook.name})
    talk = manager.blocking_client()
    talk.start_channels()
    talk.wait_for_ready(timeout=60)
    try:
        yield manager, talk
    finally:
        talk.stop_channels()
        manager.shutdown_kernel()


def run_source(talk: BlockingKernelClient, source: str, cell_id: str | None) -> tuple[str, list[str]]:
    """Run a cell as front ends do, which tell the kernel its id; return how it ended and what was printed."""
    content = {"code": source, "silent": False, "store_history": True}
    message = talk.session.msg("execute_request", content, metadata={"cellId": cell_id})
    talk.shell_channel.send(message)
    status = talk._recv_reply(message["header"]["msg_id"], timeout=90)["content"]["status"]
    printed: list[str] = []
    while True:
        shown = talk.get_iopub_msg(timeout=30)
        if shown["parent_header"].get("msg_id") == message["header"]["msg_id"]:
            if shown["content"].get("execution_state") == "idle":
                return status, printed
            printed.append(shown["content"].get("text", ""))


def run_cells(talk: BlockingKernelClient, notebook: Path, *numbers: int, source: str | None = None) -> list[str]:
    """Run cells of a file; return how each ended."""
    cells = nbformat.read(notebook, as_version=4).cells
    return [run_source(talk, source or cells[number].source, cells[number].id)[0] for number in numbers]


@pytest.mark.slow
def test_in_a_front_end_run_all_makes_a_run_and_running_cells_again_makes_none(workspace: Path) -> None:
    file = write_notebook(workspace / "mine.ipynb", PARAMETERS, START, SHOW, "params.training.n_folds")
    with kernel_of(file) as (manager, talk):
        assert run_cells(talk, file, 1, 2, 3) == ["ok"] * 3
        assert [run.info.status for run in executions()] == ["RUNNING"]
        assert run_cells(talk, file, 4) == ["ok"]
        (run,) = executions()
        assert (run.info.run_name, run.info.status) == ("mine", "FINISHED")
        assert run.data.tags["evbind.way"] == "jupyter"
        assert run.data.params["trainer"] == "default" and run.data.params["training.n_folds"] == "5"
        document = nbformat.read(kept(run, "mine.ipynb"), as_version=4)
        assert [output.output_type for output in document.cells[3].outputs] == ["stream", "display_data"]
        assert document.cells[4].outputs[0].data["text/plain"] == "5"
        assert "# A notebook of one's own" in document.cells[0].source

        run_cells(talk, file, 4, 3, 2, 2, 3, 4)  # cells again, the one that starts among them
        assert len(executions()) == 1
        run_cells(talk, file, 1, 2, 3, 4)  # all of them again, from the top
        assert [run.info.status for run in executions()] == ["FINISHED", "FINISHED"]

        wrong = PARAMETERS.replace('"default"', '"defalt"')
        run_cells(talk, file, 1, source=wrong)
        assert run_cells(talk, file, 2) == ["error"]
        run = executions()[-1]
        assert len(executions()) == 3 and run.info.status == "FAILED"
        assert run.data.tags["evbind.error"].startswith("ParamsError: trainer=defalt: there is no file")
        run_cells(talk, file, 1, 2)
        assert [run.info.status for run in executions()] == ["FINISHED", "FINISHED", "FAILED", "RUNNING"]

        def interrupt() -> None:
            wait_for((workspace / "begun").exists)
            manager.interrupt_kernel()

        threading.Thread(target=interrupt).start()
        assert run_cells(talk, file, 3, source="import time; open('begun', 'w').close(); time.sleep(60)") == ["error"]
        assert executions()[-1].info.status == "KILLED"
        run_cells(talk, file, 3, 4)  # put right
        assert executions()[-1].info.status == "FINISHED"
        run_cells(talk, file, 1, 2)
    wait_for(lambda: executions()[-1].info.status == "KILLED")
    assert executions()[-1].data.tags["evbind.error"] == "the kernel was shut down before its last cell"


@pytest.mark.slow
def test_three_ways_to_run_one_notebook_record_the_same(workspace: Path) -> None:
    words = list(BRIEF[:4])
    assert main(["train", *words]) == 0
    file = find_notebook("train")
    given = ["-y", f"overrides: {words}".replace("'", '"')]
    for engine in ("evbind", "nbclient"):
        assert papermill_here(str(file), f"{engine}.ipynb", *given, engine=engine).exit_code == 0
    runs = executions()
    assert [run.info.status for run in runs] == ["FINISHED"] * 3
    assert [run.data.tags["evbind.way"] for run in runs] == ["papermill", "papermill", "kernel"]
    assert len({run.info.run_name for run in runs}) == 1
    assert len({run.data.params["training.args.max_steps"] for run in runs}) == 1
    for run in runs:
        training = client().get_run(run.data.tags["evbind.training_run"])
        assert training.data.tags["evbind.notebook_run"] == run.info.run_id
        assert training.info.run_id in run.data.tags["mlflow.note.content"]
        document = nbformat.read(kept(run, "02_train.ipynb"), as_version=4)
        kinds = [list(output.data) for cell in document.cells for output in cell.get("outputs", [])]
        assert sum("application/vnd.plotly.v1+json" in kind for kind in kinds) == 5
        assert "Plotly.newPlot" in kept(run, "02_train.html").read_text()


def test_what_stops_an_execution_before_its_first_cell_is_one_sentence(
    workspace: Path, capsys: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    file = write_notebook(workspace / "mine.ipynb", PARAMETERS, "1", kernel="julia-9")
    assert main([str(file)]) == 2
    data, said = capsys.readouterr().err.splitlines()
    assert (
        data.startswith("Data: 420 pairs")
        and said.startswith("evbind: mine.ipynb")
        and "'julia-9' is not installed" in said
    )
    assert [run.info.status for run in executions()] == ["FAILED"]
    monkeypatch.setattr(local_provisioner, "launch_kernel", launch_kernel)
    monkeypatch.setenv("JUPYTER_PATH", str(workspace / "jupyter"))
    for name, program in {"absent": workspace / "none", "forbidden": file}.items():  # a notebook is no program
        (spec := workspace / "jupyter" / "kernels" / name).mkdir(parents=True)
        words = {"argv": [str(program), "{connection_file}"], "display_name": name, "language": "python"}
        (spec / "kernel.json").write_text(json.dumps(words))
        write_notebook(file, PARAMETERS, "1", kernel=name)
        assert main([str(file)]) == 2
        said = capsys.readouterr().err.splitlines()[1]
        assert f"mine.ipynb: its kernel '{name}' cannot be started ({program}: " in said and "free some" not in said
    assert not list((workspace / "runs").glob("*.ipynb"))
    (workspace / "taken").write_text("")
    assert main(["train", "--output", "taken/out.ipynb"]) == 2
    said = capsys.readouterr().err
    assert said.startswith("evbind: taken") and "choose another --output" in said


@pytest.fixture
def small(workspace: Path) -> Iterator[Path]:
    """A folder of the workspace that is a disk of 64 kB."""
    (folder := workspace / "small").mkdir()
    command = ["mount", "-t", "tmpfs", "-o", "size=64k", "tmpfs", str(folder)]
    if not shutil.which("mount") or subprocess.run(command, capture_output=True).returncode:
        pytest.skip("a small file system can only be mounted by root")
    yield folder
    subprocess.run(["umount", str(folder)], check=True)


def test_a_full_disk_keeps_what_was_saved_of_the_notebook(workspace: Path, small: Path, capsys: Any) -> None:
    file = write_notebook(
        workspace / "mine.ipynb", PARAMETERS, "print('first')", "print('x' * 100_000)", "print('last')"
    )
    assert main([str(file), "--output", "small/out.ipynb"]) == 2
    _, said = capsys.readouterr().err.splitlines()
    assert said.startswith("evbind: small/out.ipynb") and "(No space left on device)" in said
    assert "choose another --output" in said
    saved = nbformat.read(small / "out.ipynb", as_version=4)
    assert [output.text for cell in saved.cells[1:] for output in cell.outputs] == ["first\n"]
    (run,) = executions()
    assert run.info.status == "FAILED" and "No space left" in run.data.tags["evbind.error"]


def test_where_a_cell_met_the_full_disk_its_sentence_is_told_and_not_that_of_the_notebook(
    workspace: Path, small: Path, capsys: Any
) -> None:
    fills = "from evbind_lib.config.paths import write_whole\nfrom evbind_lib.errors import SearchError\n"
    fills += "open('small/other', 'wb', buffering=0).write(bytes(70_000))\n"
    fills += "try:\n    write_whole(Path('small/optuna.db'), b'x' * 9)\nexcept OSError as error:\n"
    fills += "    raise SearchError(f'{error.filename}: {error.strerror}.') from None"
    file = write_notebook(workspace / "mine.ipynb", PARAMETERS, f"from pathlib import Path\n{fills}")
    assert main([str(file), "--output", "small/out.ipynb"]) == 2
    assert capsys.readouterr().err.splitlines()[1] == f"evbind: {small}/optuna.db: No space left on device."
    assert [each.name for each in small.iterdir()] == ["other"]
