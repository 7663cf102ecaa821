"""The ``evbind`` command: a thin skin over `evbind_lib.notebook.run`.

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
  evbind score trainer=hpo_best --sentence "I lie awake until four."
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
    if options.sentence or options.input:
        return _score(options)
    from evbind_lib.config.compose import split_arguments
    from evbind_lib.notebook.run import NotebookError, find_notebook, near, run_notebook

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
    return 130 if execution.result.get("stopped") else 0


def _score(options: argparse.Namespace) -> int:
    """Score sentences from the shell, with the model that notebook 05 trains and keeps."""
    from evbind_lib.config.compose import compose, split_arguments
    from evbind_lib.errors import ParamsError
    from evbind_lib.notebook.run import default_choices, find_notebook

    if options.notebook != "score":
        raise ParamsError(
            f"--sentence and --input go with `evbind score`, not with {options.notebook}; leave them out."
        )
    choices, overrides = split_arguments(options.parameters)
    params = compose({**default_choices(find_notebook("score")), **choices}, overrides)
    from evbind_lib.data.corpus import load_corpus
    from evbind_lib.evaluation.final import (
        clean_sentences,
        criterion_texts,
        open_scorer,
        read_sentences,
        score_table,
        scorer_folder,
    )

    corpus = load_corpus(params.data)
    # What cannot be scored is told before a model is trained for it.
    criterion_texts(options.criterion, corpus.criteria)
    table = read_sentences(options.input) if options.input else None
    sentences = clean_sentences(options.sentence)
    if not scorer_folder(params, corpus).is_dir():
        print("Training the model on all posts; the next time it is there.", file=sys.stderr)
    scorer = open_scorer(params, corpus)
    if table is not None:
        scored = score_table(scorer, table, options.criterion)
        scored.to_csv(options.output or sys.stdout, index=False, float_format="%.4f")
        return 0
    scores = scorer.score(sentences, options.criterion)
    for number, row in scores.iterrows():
        if len(scores) > 1:
            print(f"sentence {number}")
        for name, probability in row.sort_values(ascending=False).items():
            print(f"  {probability:.3f}  {name}")
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
        "--output",
        type=Path,
        metavar="FILE",
        help="the executed notebook (default: runs/DATE_NAME.ipynb); with --input, the table of scores",
    )
    scoring = parser.add_argument_group("evbind score, from the shell")
    scoring.add_argument(
        "--sentence", action="append", default=[], metavar="TEXT", help="a sentence to score; may be repeated"
    )
    scoring.add_argument(
        "--input", metavar="FILE", help="a table with a column sentence; scores go to --output, or here"
    )
    scoring.add_argument(
        "--criterion",
        action="append",
        default=[],
        metavar="ID",
        help="a criterion's id, or a text of one's own; default: all",
    )
    parser.add_argument("--version", action="version", version=f"evbind {__version__}")
    return parser


def _notebook_list() -> str:
    from evbind_lib.notebook.run import notebooks

    return "\n".join(f"  {name:<14} {_title(file)}" for name, file in notebooks().items())


def _title(notebook: Path) -> str:
    cells = json.loads(notebook.read_text(encoding="utf-8"))["cells"]
    first = "".join(cells[0]["source"]).splitlines()
    return first[0].lstrip("# ") if first else ""


if __name__ == "__main__":
    sys.exit(main())
