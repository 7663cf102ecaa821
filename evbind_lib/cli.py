"""The ``evbind`` command: a thin skin over `evbind_lib.runner`.

Nothing heavy is imported before it is needed, so that ``evbind --help`` answers at once.
"""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Sequence
from pathlib import Path

from evbind_lib import __version__
from evbind_lib.errors import EvbindError

EXAMPLES = """\
examples:
  evbind hpo_search hpo=quick                      ten trials on the bundled sample
  evbind train trainer=hpo_best                    cross-validate what a search found
  evbind hpo_search hpo.trials.n_trials=30 hpo.metric.name=pos_f1 training.n_folds=3
  evbind hpo_search "hpo.search_space.loss_function.choices=[focal]"
  evbind hpo_search data=redsm5 data.posts=posts.csv data.annotations=annotations.csv model=deberta_v3_base
"""


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the command.

    Parameters
    ----------
    arguments : sequence of str, optional
        Words of the command line; those of the process when not given.

    Returns
    -------
    int
        0 when all went well, 1 when a notebook failed, 2 for a person's mistake, 130 when interrupted.
    """
    options = _parser().parse_args(arguments)
    try:
        return _run(options)
    except EvbindError as error:
        print(f"evbind: {error}", file=sys.stderr)
        return 2
    except KeyboardInterrupt:
        print("\nevbind: stopped; the same command goes on with the study.", file=sys.stderr)
        return 130


def _run(options: argparse.Namespace) -> int:
    from evbind_lib.params import split_arguments
    from evbind_lib.runner import NotebookError, find_notebook, near, run_notebook

    notebook = find_notebook(options.notebook)
    choices, overrides = split_arguments(options.parameters)
    try:
        execution = run_notebook(notebook, choices, overrides, output=options.output)
    except NotebookError as error:
        print(f"evbind: {error}", file=sys.stderr)
        return 1
    for line in execution.result.get("lines", []):
        print(line)
    print(f"Notebook: {near(execution.notebook)}")
    print(f"Page:     {near(execution.html)}")
    return 0


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="evbind",
        usage="evbind NOTEBOOK [GROUP=FILE ...] [KEY=VALUE ...]",
        description="Run a notebook of the kit with other parameters.\n\nnotebooks:\n" + _notebook_list(),
        epilog=EXAMPLES,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("notebook", metavar="NOTEBOOK", help="a name from the list above, or the path of a notebook")
    parser.add_argument(
        "parameters",
        metavar="KEY=VALUE",
        nargs="*",
        help="a file of params/ for a group (hpo=quick), or any parameter",
    )
    parser.add_argument(
        "--output", type=Path, metavar="FILE", help="the executed notebook (default: runs/DATE_NAME.ipynb)"
    )
    parser.add_argument("--version", action="version", version=f"evbind {__version__}")
    return parser


def _notebook_list() -> str:
    from evbind_lib.runner import notebooks

    return "\n".join(f"  {name:<14} {_title(file)}" for name, file in notebooks().items())


def _title(notebook: Path) -> str:
    cells = json.loads(notebook.read_text(encoding="utf-8"))["cells"]
    first = "".join(cells[0]["source"]).splitlines()
    return first[0].lstrip("# ") if first else ""


if __name__ == "__main__":
    sys.exit(main())
