"""Run a notebook in batch: check parameters and data, execute it by papermill's engine ``evbind``, keep it and its HTML page."""

from __future__ import annotations

import contextlib
import os
import sys
import tempfile
import warnings
from collections.abc import Mapping, Sequence
from datetime import datetime
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

from evbind_lib.config.arguments import RANGES
from evbind_lib.config.compose import GROUPS, compose
from evbind_lib.config.paths import DISK_ERRORS, project_folder, workspace, write_whole
from evbind_lib.config.schema import Params
from evbind_lib.errors import EvbindError, ExecutionError, ParamsError, did_you_mean, shown
from evbind_lib.tracking.page import UNREADABLE, assigned, export_html, recorded_result, tagged

if TYPE_CHECKING:
    from evbind_lib.data.corpus import Corpus

# Seconds that a kernel may take to start, and a cell to end.
WAITS: dict[str, int | None] = {"start_timeout": 180, "execution_timeout": None}


class NotebookError(Exception):
    """A cell failed with something that is not the user's mistake; the notebook up to there is kept."""


class ExecutedNotebook(NamedTuple):
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
    file = known.get(name) or next((each for each in known.values() if each.stem == name), Path(name))
    if file.suffix == ".ipynb" and os.path.isfile(file):
        return file
    raise ParamsError(f"There is no notebook '{shown(name)}'{did_you_mean(name, known)}")


def default_parameters(notebook: Path) -> dict[str, Any]:
    """Names and stored values of the cell tagged ``parameters``, read without running it; of an expression the value is None."""
    try:
        return assigned(*tagged(_read(notebook), "parameters"))
    except UNREADABLE as error:
        problem = f"its parameters cell cannot be read as Python ({type(error).__name__}); correct that cell"
        raise ParamsError(f"{notebook.name}: {problem}.") from None


def _read(notebook: Path) -> Any:
    """A notebook, of today's format whatever the file's."""
    import nbformat

    try:
        with warnings.catch_warnings(action="ignore"):  # of cells without ids
            read = nbformat.read(notebook, as_version=4)
            nbformat.validate(read)
        nbformat.writes(read).encode()  # as it will be stored
        return read
    except Exception as error:  # nbformat has no class for JSON that is no notebook, and its messages quote the file
        place = "/".join(map(str, getattr(error, "absolute_path", ()))) or type(error).__name__
        problem = f"it cannot be read as a notebook ({place}); save it again in JupyterLab"
        raise ParamsError(f"{notebook.name}: {problem}, or give the path of an .ipynb file.") from None


def composed(notebook: Path, choices: Mapping[str, str], overrides: Sequence[str]) -> Params:
    """Parameters that a notebook composes, with the files that its parameters cell chooses where no other is chosen."""
    chosen = {**default_parameters(notebook), **papermill_parameters(notebook, choices, overrides)}
    return compose(chosen["overrides"] or [], **{group: chosen[group] for group in GROUPS if group in chosen})


def papermill_parameters(notebook: Path, choices: Mapping[str, str], overrides: Sequence[str]) -> dict[str, Any]:
    """Values for the parameters cell: its own, as ``aim=f1`` or ``trainers=[a,b]``, groups by name, the rest as overrides."""
    stored = default_parameters(notebook)
    if "overrides" not in stored:
        remedy = "add a cell tagged `parameters` with it."
        raise ParamsError(f"{notebook.name}: its parameters cell has no `overrides: list = []`; {remedy}")
    own: dict[str, Any] = {group: name for group, name in choices.items() if group in stored}
    # What is chosen beside an experiment goes on top of it; the files that the cell itself names do not.
    first = sorted(choices, key=lambda group: group != "experiment")
    words = [f"{group}={choices[group]}" for group in first if group not in stored or "experiment" in choices]
    for word in overrides:
        name, _, value = word.partition("=")
        if name in {*stored} - {*GROUPS, "overrides"}:
            listed = isinstance(stored[name], list)
            own[name] = [each.strip() for each in value.strip("[]").split(",") if each.strip()] if listed else value
        else:
            words.append(word)
    return {**own, "overrides": words} if words else own  # else those of the cell stand


def check(notebook: Path, choices: Mapping[str, str], overrides: Sequence[str]) -> tuple[Params, Corpus]:
    """Refuse what needs no torch to be refused, before a kernel starts; parameters and corpus."""
    from evbind_lib.data.corpus import load_corpus
    from evbind_lib.data.folds import make_folds

    params = composed(notebook, choices, overrides)
    if "hpo" in default_parameters(notebook):
        from evbind_lib.hpo.study import check_storage

        check_storage(params.hpo.study.storage)
    corpus = load_corpus(params)
    make_folds(corpus, params)
    if {*params.training.args} - {*RANGES}:  # which transformers itself must judge: seconds to load it, but no kernel
        from evbind_lib.training.fold import check as check_training

        check_training(params)
    return params, corpus


def run_notebook(
    notebook: Path, choices: Mapping[str, str], overrides: Sequence[str] = (), *, output: Path | None = None
) -> ExecutedNotebook:
    """Check, execute and export a notebook, by default to ``runs/`` of the workspace, named by date and notebook."""
    parameters = papermill_parameters(notebook, choices, overrides)
    if output is not None:
        check_output(notebook, output)
    _, corpus = check(notebook, choices, overrides)
    default = workspace() / "runs" / f"{datetime.now():%Y-%m-%d_%H%M%S}_{notebook.stem}.ipynb"
    target = output or default
    # A file that is there is touched when all is done: until then the notebook is saved in one of its own.
    wanted = default if target.exists() else target
    made = [folder for folder in (wanted.parent, *wanted.parent.parents) if not folder.exists()]
    own = None
    try:
        own = _new_file(wanted)
        tempfile.NamedTemporaryFile(dir=target.resolve().parent).close()  # refused before hours of work
        sys.stderr.write(f"Data: {corpus.summary}\n")
        target = output or own
        try:
            executed = _execute(notebook, own, target, parameters)
        except EvbindError:
            own.unlink(missing_ok=True)
            raise
        except (NotebookError, KeyboardInterrupt):
            _move(own, target)
            raise
        _move(own, target)
        return ExecutedNotebook(target, export_html(executed, target.with_suffix(".html")), recorded_result(executed))
    except OSError as error:
        if not error.filename and error.errno not in DISK_ERRORS:  # no file's: a pipe that nobody reads
            raise
        file = Path(error.filename or target) if error.errno in DISK_ERRORS else target
        problem = f"it cannot be written ({error.strerror or error}); free some space or choose another --output"
        saved = f"; what was last saved of the notebook is {near(own)}" if own and own.exists() else ""
        raise ExecutionError(f"{near(file)}: {problem}{saved}.") from None
    finally:
        for folder in made:
            with contextlib.suppress(OSError):  # something is in it
                folder.rmdir()


def check_output(notebook: Path, output: Path) -> None:
    """Refuse a place for the executed notebook that is something else, or the notebook itself."""
    if output.suffix != ".ipynb" or len(os.fsencode(output.name)) > 200:
        problem = "the executed notebook is a file .ipynb, with a name of at most 200 bytes; name it so"
        raise ParamsError(f"--output {shown(output)}: {problem}.")
    if output.exists() and output.samefile(notebook):
        raise ParamsError(f"--output {output}: that is the notebook to be run itself; give another name.")
    for file in (output, output.with_suffix(".html")):
        place = os.path.realpath(file)
        is_lost = os.path.islink(file) and not os.path.isdir(os.path.dirname(place))  # a link to where no folder is
        if is_lost or (os.path.lexists(place) and not os.path.isfile(place)):  # or a link to itself
            raise ParamsError(f"--output {output}: {file} is there, and is no file; give another name.")


def _new_file(wanted: Path, number: int = 1) -> Path:
    """Make an empty file of that name or, where others were faster, of that name and the next number."""
    wanted.parent.mkdir(parents=True, exist_ok=True)
    file = wanted.with_stem(f"{wanted.stem}_{number}") if number > 1 else wanted
    with contextlib.suppress(FileExistsError):
        file.touch(exist_ok=False)
        return file
    return _new_file(wanted, number + 1)


def _move(own: Path, target: Path) -> None:
    if own != target:
        write_whole(target, own.read_bytes())
        own.unlink()


def _execute(notebook: Path, own: Path, target: Path, parameters: dict[str, Any]) -> Any:
    """Execute a notebook by papermill, which saves it in ``own`` after each cell; errors name ``target``."""
    import papermill
    from jupyter_client.kernelspec import NoSuchKernel
    from nbclient.exceptions import DeadKernelError
    from papermill.exceptions import PapermillExecutionError

    kernel = _read(notebook).metadata.get("kernelspec", {}).get("name", "python3")
    options = {"kernel_name": kernel, "language": "python", "engine_name": "evbind", **WAITS}
    options |= {"progress_bar": False, "save_to": str(own.absolute())}
    remedy = "choose one of `jupyter kernelspec list` in JupyterLab, or install it"
    try:
        return papermill.execute_notebook(notebook, None, parameters=parameters, **options)
    except NoSuchKernel as error:
        raise ExecutionError(f"{notebook.name}: its kernel '{error.name}' is not installed here; {remedy}.") from None
    except DeadKernelError:
        problem = "the kernel died, mostly for lack of memory; try a smaller training.args.per_device_train_batch_size"
    except (TimeoutError, RuntimeError) as error:  # of nbclient: no start, no end or no output in time
        reason = shown(str(error).partition("\n")[0])
        problem = f"the kernel did not answer in time ({reason}); give the machine less to do and run it again"
    except OSError as error:
        if not error.filename or error.errno in DISK_ERRORS or Path(error.filename) == own.resolve():
            raise
        problem = f"its kernel '{kernel}' cannot be started ({error.filename}: {error.strerror})"
        raise ExecutionError(f"{notebook.name}: {problem}; {remedy}.") from None
    except PapermillExecutionError as error:
        if error.ename == "KeyboardInterrupt":
            raise KeyboardInterrupt from None
        mistakes = {kind.__name__: kind for kind in [*EvbindError.__subclasses__(), EvbindError]}
        if error.ename in mistakes:
            raise mistakes[error.ename](error.evalue) from None
        problem = f"cell {error.exec_count} failed with {error.ename}: {error.evalue}"
    finally:
        if sys.stderr.isatty():
            sys.stderr.write("\n")  # below the line of progress
    raise NotebookError(f"{notebook.stem}: {problem}; the notebook up to there is {near(target)}.")


def near(file: Path) -> str:
    """A path as one would type it from here."""
    return str(file.relative_to(Path.cwd())) if file.is_relative_to(Path.cwd()) else str(file)
