"""Run a notebook in batch with papermill: check the parameters first, execute, keep the notebook and its HTML.

Imports `errors`, `params`, `pages` and, for the checks, the light rooms `data` and `folds`; `cli` imports it.
"""

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

from evbind_lib import errors
from evbind_lib.config.compose import GROUPS, compose, project_folder, resolve_path, workspace
from evbind_lib.errors import EvbindError, ExecutionError, ModelError, ParamsError, did_you_mean
from evbind_lib.tracking.page import assigned_names, export_html, recorded_result


class NotebookError(Exception):
    """A cell failed with something that is not a person's mistake; the partial notebook is kept."""


@dataclass(frozen=True)
class Execution:
    """An executed notebook: its file, its HTML, and what it recorded."""

    notebook: Path
    html: Path
    result: dict[str, Any]


def notebooks() -> dict[str, Path]:
    """The project's notebooks by name without number, in their order."""
    files = sorted((project_folder() / "notebooks").glob("[0-9][0-9]_*.ipynb"))
    return {file.stem.split("_", 1)[1]: file for file in files}


def find_notebook(name: str) -> Path:
    """File of a notebook.

    Parameters
    ----------
    name : str
        ``hpo_search``, ``03_hpo_search``, or the path of any notebook.

    Returns
    -------
    pathlib.Path

    Raises
    ------
    ParamsError
        When there is none, with the nearest name.
    """
    known = notebooks()
    if name in known:
        return known[name]
    for file in (*known.values(), Path(name)):
        if name in (file.stem, str(file)) and file.suffix == ".ipynb" and file.is_file():
            return file
    raise ParamsError(f"There is no notebook {name}{did_you_mean(name, known)}")


def parameter_names(notebook: Path) -> list[str]:
    """Names assigned in the cell tagged ``parameters``, read from its source without running it."""
    try:
        cells = json.loads(notebook.read_text(encoding="utf-8"))["cells"]
    except (ValueError, KeyError):
        raise ParamsError(f"{notebook.name} is not a notebook; give the path of an .ipynb file.") from None
    for cell in cells:
        if "parameters" in cell["metadata"].get("tags", []):
            return assigned_names("".join(cell["source"]))
    return []


def papermill_parameters(notebook: Path, choices: Mapping[str, str], overrides: Sequence[str]) -> dict[str, Any]:
    """Values for the parameters cell: group choices it has by name, everything else as overrides."""
    names = parameter_names(notebook)
    if "overrides" not in names:
        raise ParamsError(
            f"{notebook.name}: its parameters cell has no `overrides: list = []`; add a cell tagged `parameters` with it."
        )
    own = {group: name for group, name in choices.items() if group in names}
    further = [f"{group}={name}" for group, name in choices.items() if group not in names]
    return {**own, "overrides": [*further, *overrides]}


def check(notebook: Path, choices: Mapping[str, str], overrides: Sequence[str]) -> None:
    """Refuse parameters and data that cannot be used before a kernel starts or a file is written.

    What needs torch (the model, the training arguments) is checked inside the notebook, before its study or run exists.

    Raises
    ------
    EvbindError
    """
    from evbind_lib.data.corpus import load_corpus
    from evbind_lib.data.folds import make_folds
    from evbind_lib.hpo.objectives import check_objectives
    from evbind_lib.hpo.samplers import build_pruner, build_sampler
    from evbind_lib.hpo.space import check_space
    from evbind_lib.hpo.storage import check_storage

    params = compose({**default_choices(notebook), **choices}, overrides)
    check_folder(params.model.name)
    if "hpo" in parameter_names(notebook):
        check_storage(params.hpo.study.storage)
    check_space(params)
    build_sampler(params.hpo.sampler, n_earlier_trials=0, params=params)
    build_pruner(params.hpo.pruner, n_folds=params.training.n_folds)
    check_objectives(params)
    corpus = load_corpus(params.data)
    make_folds(corpus, n_folds=params.training.n_folds, seed=params.training.seed)


def check_folder(model: str) -> None:
    """Refuse a model's folder that is not there; whether a hub has a name is asked in the notebook, which may take long.

    Raises
    ------
    ModelError
    """
    looks_like_folder = model.startswith(("/", ".", "~")) or model.count("/") > 1
    if looks_like_folder and not resolve_path(model).is_dir():
        raise ModelError(
            f"model.name={model}: is not a folder; give the folder that save_pretrained wrote, or a name of the hub."
        )


def default_choices(notebook: Path) -> dict[str, str]:
    """Group choices that the parameters cell makes as stored."""
    return {group: value for group, value in _defaults(notebook).items() if group in GROUPS}


def _defaults(notebook: Path) -> dict[str, Any]:
    for cell in json.loads(notebook.read_text(encoding="utf-8"))["cells"]:
        if "parameters" in cell["metadata"].get("tags", []):
            values = {}
            for node in ast.parse("".join(cell["source"])).body:
                if isinstance(node, ast.AnnAssign) and isinstance(node.target, ast.Name) and node.value is not None:
                    values[node.target.id] = ast.literal_eval(node.value)
            return values
    return {}


def run_notebook(
    notebook: Path,
    choices: Mapping[str, str] | None = None,
    overrides: Sequence[str] = (),
    *,
    output: Path | None = None,
) -> Execution:
    """Check, execute and export a notebook.

    Parameters
    ----------
    notebook : pathlib.Path
    choices : mapping of str to str, optional
        Group choices, for example ``{"hpo": "quick"}``.
    overrides : sequence of str
        Hydra overrides, applied last.
    output : pathlib.Path, optional
        File of the executed notebook; by default in ``runs/`` of the workspace, named by date and notebook.

    Returns
    -------
    Execution

    Raises
    ------
    EvbindError
        For a mistake in parameters or data; nothing is left behind.
    NotebookError
        When a cell failed otherwise; the notebook up to that cell is kept.
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


def _execute(notebook: Path, output: Path, parameters: dict[str, Any]) -> Execution:
    import papermill
    from jupyter_client.kernelspec import NoSuchKernel
    from nbclient.exceptions import DeadKernelError
    from papermill.exceptions import PapermillExecutionError

    kept = f"the notebook up to there is {near(output)}."
    try:
        executed = papermill.execute_notebook(
            notebook, None, parameters=parameters, engine_name="evbind", progress_bar=False, save_to=str(output)
        )
        return Execution(output, export_html(executed, output.with_suffix(".html")), recorded_result(executed))
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
            f"{near(output)}: the notebook cannot be written ({error.strerror or error}); make room there or choose another "
            "--output. What was last saved of it is kept."
        ) from None
    finally:
        if sys.stderr.isatty():
            sys.stderr.write("\n")


def near(file: Path) -> str:
    """A path as one would type it from here."""
    return str(file.relative_to(Path.cwd())) if file.is_relative_to(Path.cwd()) else str(file)
