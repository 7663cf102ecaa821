"""Run a notebook in batch: check parameters and data, execute it by papermill's engine ``evbind``, keep it and its HTML page."""

from __future__ import annotations

import ast
import contextlib
import json
import sys
import tempfile
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime
from pathlib import Path
from typing import Any

import evbind_lib.errors as errors
from evbind_lib.config.compose import GROUPS, compose
from evbind_lib.config.paths import project_folder, workspace
from evbind_lib.errors import EvbindError, ExecutionError, ParamsError, did_you_mean
from evbind_lib.tracking.page import export_html, recorded_result


class NotebookError(Exception):
    """A cell failed with something that is not the user's mistake; the notebook up to there is kept."""


@dataclass(frozen=True)
class ExecutedNotebook:
    """An executed notebook: its file, its page, and what it recorded."""

    notebook: Path
    html: Path
    result: dict[str, Any]


def notebooks() -> dict[str, Path]:
    """The project's notebooks by name without number, in their order."""
    files = sorted((project_folder() / "notebooks").glob("[0-9][0-9]_*.ipynb"))
    return {file.stem.split("_", 1)[1]: file for file in files}


def find_notebook(name: str) -> Path:
    """File of a notebook, by ``hpo_search``, ``03_hpo_search`` or the path of any."""
    known = notebooks()
    for file in (*known.values(), Path(name)):
        if name in (file.stem, file.stem.partition("_")[2], str(file)) and file.suffix == ".ipynb" and file.is_file():
            return file
    raise ParamsError(f"There is no notebook {name}{did_you_mean(name, known)}")


def default_parameters(notebook: Path) -> dict[str, Any]:
    """Names and stored values of the cell tagged ``parameters``, read without running it; of an expression the value is None.

    papermill.inspect_notebook counts equal signs line by line: it loses ``overrides = ["training.n_folds=3"]``.
    """
    try:
        cells = json.loads(notebook.read_text(encoding="utf-8"))["cells"]
        tagged = [cell for cell in cells if "parameters" in cell["metadata"].get("tags", [])]
        body = ast.parse("".join(tagged[0]["source"])).body if tagged else []
    except (ValueError, KeyError, SyntaxError):
        raise ParamsError(
            f"{notebook.name}: it cannot be read as a notebook; give the path of an .ipynb file."
        ) from None
    values: dict[str, Any] = {}
    for node in body:
        targets = node.targets if isinstance(node, ast.Assign) else [getattr(node, "target", None)]
        if isinstance(node, ast.Assign | ast.AnnAssign) and isinstance(targets[0], ast.Name):
            values[targets[0].id] = None
            with contextlib.suppress(ValueError, TypeError):
                values[targets[0].id] = ast.literal_eval(node.value or "None")
    return values


def default_choices(notebook: Path) -> dict[str, str]:
    """Files of ``params/`` that the parameters cell chooses as stored."""
    return {
        group: file for group, file in default_parameters(notebook).items() if group in GROUPS and isinstance(file, str)
    }


def papermill_parameters(notebook: Path, choices: Mapping[str, str], overrides: Sequence[str]) -> dict[str, Any]:
    """Values for the parameters cell: groups that it has by name, everything else as overrides."""
    names = default_parameters(notebook)
    if "overrides" not in names:
        raise ParamsError(
            f"{notebook.name}: its parameters cell has no `overrides: list = []`; add a cell tagged `parameters` with it."
        )
    own = {group: name for group, name in choices.items() if group in names}
    further = [f"{group}={name}" for group, name in choices.items() if group not in names]
    return {**own, "overrides": [*further, *overrides]}


def check(notebook: Path, choices: Mapping[str, str], overrides: Sequence[str]) -> None:
    """Refuse parameters, data and a storage that cannot be used before a kernel starts; the notebook's verbs check the rest.

    What needs torch is among the rest, so that the shell does not load it.
    """
    from evbind_lib.data.corpus import load_corpus
    from evbind_lib.data.folds import make_folds

    params = compose(overrides, **{**default_choices(notebook), **choices})
    if "hpo" in default_parameters(notebook):
        from evbind_lib.hpo.study import check_storage

        check_storage(params.hpo.study.storage)
    make_folds(load_corpus(params), params)


def run_notebook(
    notebook: Path,
    choices: Mapping[str, str] | None = None,
    overrides: Sequence[str] = (),
    *,
    output: Path | None = None,
) -> ExecutedNotebook:
    """Check, execute and export a notebook, by default to ``runs/`` of the workspace, named by date and notebook.

    For a mistake in parameters or data (`EvbindError`) nothing is left behind; where a cell failed otherwise (`NotebookError`)
    the notebook up to that cell is kept.
    """
    choices = dict(choices or {})
    parameters = papermill_parameters(notebook, choices, overrides)
    check(notebook, choices, overrides)
    if output is None:
        output = workspace() / "runs" / f"{datetime.now():%Y-%m-%d_%H%M%S}_{notebook.stem}.ipynb"
    made = [folder for folder in (output.parent, *output.parent.parents) if not folder.exists()]
    try:
        output.parent.mkdir(parents=True, exist_ok=True)
        with tempfile.NamedTemporaryFile(dir=output.parent):
            pass
    except OSError as error:
        raise ExecutionError(
            f"{output.parent}: the folder cannot be written ({error.strerror}); choose another --output."
        ) from None
    try:
        return _execute(notebook, output, parameters)
    except EvbindError:
        for folder in made:
            with contextlib.suppress(OSError):  # another execution may have put something there
                folder.rmdir()
        raise


def _execute(notebook: Path, output: Path, parameters: dict[str, Any]) -> ExecutedNotebook:
    import papermill
    from jupyter_client.kernelspec import NoSuchKernel
    from nbclient.exceptions import DeadKernelError
    from papermill.exceptions import PapermillExecutionError

    kept = f"the notebook up to there is {near(output)}."
    try:
        executed = papermill.execute_notebook(
            notebook, None, parameters=parameters, engine_name="evbind", progress_bar=False, save_to=str(output)
        )
        return ExecutedNotebook(output, export_html(executed, output.with_suffix(".html")), recorded_result(executed))
    except PapermillExecutionError as error:
        if error.ename == "KeyboardInterrupt":
            raise KeyboardInterrupt from None
        kind = getattr(errors, error.ename, None)
        if isinstance(kind, type) and issubclass(kind, EvbindError):
            output.unlink(missing_ok=True)
            raise kind(error.evalue) from None
        reason = f"{error.ename}: {error.evalue}"
        raise NotebookError(f"{notebook.stem}: cell {error.exec_count} failed with {reason}; {kept}") from None
    except EvbindError:  # of the tracking, before the first cell
        output.unlink(missing_ok=True)
        raise
    except DeadKernelError:
        raise NotebookError(
            f"{notebook.stem}: the kernel died, most often for lack of memory; try a smaller "
            f"training.args.per_device_train_batch_size; {kept}"
        ) from None
    except NoSuchKernel as error:
        output.unlink(missing_ok=True)
        raise ExecutionError(
            f"{notebook.name}: its kernel '{error.name}' is not installed here; choose one of `jupyter kernelspec list` "
            "in JupyterLab, or install it."
        ) from None
    except OSError as error:
        raise ExecutionError(
            f"{near(output)}: the notebook cannot be written ({error.strerror or error}); free some space there or choose "
            "another --output. What was last saved of it is kept."
        ) from None
    finally:
        if sys.stderr.isatty():
            sys.stderr.write("\n")


def near(file: Path) -> str:
    """A path as one would type it from here."""
    return str(file.relative_to(Path.cwd())) if file.is_relative_to(Path.cwd()) else str(file)
