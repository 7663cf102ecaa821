"""Where an executed notebook goes: what a run did not make is replaced by a result alone, and never by a mistake."""

from __future__ import annotations

import os
import stat
import threading
from pathlib import Path
from typing import Any

import nbformat
import papermill
import pytest
from nbformat.v4 import new_code_cell, new_notebook

from evbind_lib.cli import main

MISTAKE = "from evbind_lib.errors import ParamsError\nraise ParamsError('model=tyni is none of the choices.')"
SEEN = "print(open('link.ipynb').read())"  # what is there while the notebook runs


def write_notebook(file: Path, *sources: str) -> Path:
    parameters = new_code_cell("tracking: str = 'none'\noverrides: list = []", metadata={"tags": ["parameters"]})
    kernel = {"name": "python3", "display_name": "python3", "language": "python"}
    nbformat.write(
        new_notebook(metadata={"kernelspec": kernel}, cells=[parameters, *map(new_code_cell, sources)]), file
    )
    return file


def texts(content: str) -> list[str]:
    cells = nbformat.reads(content, as_version=4).cells
    return [output.get("text", output.get("ename")) for cell in cells for output in cell.get("outputs", [])]


def test_a_mistake_leaves_yesterdays_result_as_it_was_and_nothing_beside_it(workspace: Path, capsys: Any) -> None:
    file, yesterday = write_notebook(workspace / "own.ipynb", "print('first')", MISTAKE), workspace / "out.ipynb"
    yesterday.write_text("yesterday")
    for output in ("out.ipynb", "new/out.ipynb"):
        assert main([str(file), "tracking=none", "--output", output]) == 2
    assert capsys.readouterr().err.count("model=tyni is none of the choices.") == 2
    assert yesterday.read_text() == "yesterday"
    assert sorted(one.name for one in workspace.iterdir()) == ["out.ipynb", "own.ipynb"]


def test_a_result_and_a_failed_notebook_go_where_a_link_leads_at_their_end(workspace: Path, capsys: Any) -> None:
    (workspace / "results").mkdir()
    (target := workspace / "results" / "real.ipynb").write_text("yesterday")
    target.chmod(0o600)
    (link := workspace / "link.ipynb").symlink_to(target)
    file = write_notebook(workspace / "own.ipynb", SEEN)
    assert main([str(file), "tracking=none", "--output", "link.ipynb"]) == 0
    assert texts(target.read_text()) == ["yesterday\n"] and (workspace / "link.html").is_file()
    file = write_notebook(workspace / "own.ipynb", "1 / 0")
    assert main([str(file), "tracking=none", "--output", "link.ipynb"]) == 1
    assert texts(target.read_text()) == ["ZeroDivisionError"]
    assert "the notebook up to there is link.ipynb" in capsys.readouterr().err
    assert link.is_symlink() and stat.S_IMODE(target.stat().st_mode) == 0o600
    assert not (workspace / "runs").exists()


@pytest.mark.parametrize("name", ["own", "again", "folder", "pipe", "loop", "lost", "page", "report.html", "notes.txt"])
def test_a_place_that_is_something_else_is_refused_and_left_alone(workspace: Path, capsys: Any, name: str) -> None:
    file = write_notebook(workspace / "own.ipynb", "1")
    (workspace / "again.ipynb").hardlink_to(file)
    (workspace / "folder.ipynb").mkdir()
    (workspace / "page.html").mkdir()
    os.mkfifo(workspace / "pipe.ipynb")
    (workspace / "loop.ipynb").symlink_to("loop.ipynb")
    (workspace / "lost.ipynb").symlink_to("nowhere/x.ipynb")
    (workspace / "notes.txt").write_text("mine")
    before, output = sorted(workspace.iterdir()), name if "." in name else f"{name}.ipynb"
    content = file.read_bytes()
    assert main([str(file), "tracking=none", "--output", output]) == 2
    sentence = capsys.readouterr().err
    assert sentence.startswith(f"evbind: --output {output}: ") and sentence.count("\n") == 1
    assert sorted(workspace.iterdir()) == before and file.read_bytes() == content
    assert (workspace / "notes.txt").read_text() == "mine"


def test_an_address_for_an_output_is_refused_without_its_password(workspace: Path, capsys: Any) -> None:
    file = write_notebook(workspace / "own.ipynb", "1")
    for words in ([str(file), "--output"], ["score", "--sentence", "x", "--posts"], ["finalize", "--output"]):
        assert main([*words, "s3://key:pass@word@host/x.ipynb"]) == 2
    with pytest.raises(SystemExit):
        main(["train", "--outputs", "s3://key:pass@word@host/x.ipynb"])
    said = capsys.readouterr().err
    assert said.count("***@host/x.ipynb") == 4 and "word" not in said
    assert list(workspace.iterdir()) == [file]


def execute(source: str | Path, output: str | Path, **options: Any) -> None:
    parameters = {"tracking": "none", "api_key": "k-987654"}
    words: dict[str, Any] = {"engine_name": "evbind", "progress_bar": False, "parameters": parameters}
    papermill.execute_notebook(str(source), str(output), **words, **options)


def test_papermills_engine_leaves_links_and_pipes_what_they_are(workspace: Path) -> None:
    file = write_notebook(workspace / "own.ipynb", "print('done')")
    (target := workspace / "real.ipynb").touch(0o600)
    (link := workspace / "link.ipynb").symlink_to(target)
    execute(file, link)
    assert link.is_symlink() and texts(target.read_text()) == ["done\n"]
    assert stat.S_IMODE(target.stat().st_mode) == 0o600
    os.mkfifo(pipe := workspace / "pipe.ipynb")
    received: list[str] = []

    def read() -> None:
        while not received or not received[-1].endswith("end"):
            received.append(pipe.read_text())

    reader = threading.Thread(target=read)
    reader.start()
    execute(file, pipe)
    pipe.write_text("end")
    reader.join(10)
    assert pipe.is_fifo() and '"done\\n"' in "".join(received)


def test_papermills_engine_writes_a_relative_output_once_wherever_the_notebook_runs(workspace: Path) -> None:
    (elsewhere := workspace / "elsewhere").mkdir()
    file = write_notebook(elsewhere / "own.ipynb", "import os\nprint(os.getcwd())")
    before = file.read_bytes()
    execute(file, "own.ipynb", cwd=elsewhere)  # beside the input, had the engine taken it from where it runs
    assert file.read_bytes() == before and texts((workspace / "own.ipynb").read_text()) == [f"{elsewhere}\n"]
    assert sorted(one.name for one in workspace.rglob("*.ipynb")) == ["own.ipynb", "own.ipynb"]
    (workspace / "own.ipynb").chmod(0o600)
    execute(file, workspace / "own.ipynb")
    assert stat.S_IMODE((workspace / "own.ipynb").stat().st_mode) == 0o600


def test_what_papermill_stores_holds_no_secret_and_what_runs_has_it(workspace: Path) -> None:
    file = write_notebook(workspace / "own.ipynb", "print(api_key, len(api_key))\n1 / 0")
    with pytest.raises(papermill.PapermillExecutionError):
        execute(file, workspace / "out.ipynb")
    stored = (workspace / "out.ipynb").read_text()
    assert "k-987654" not in stored and "*** 8\n" in texts(stored)
