"""The ``evbind`` command: a thin skin over `evbind_lib.notebook.run`; nothing heavy is imported before it is needed."""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Sequence
from importlib.metadata import version
from pathlib import Path

from evbind_lib.errors import EvbindError, ParamsError

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
    """Run the command: 0 when all went well, 1 when a notebook failed, 2 for the user's mistake, 130 when interrupted."""
    parser = _parser()
    options = parser.parse_args(arguments)
    try:
        if options.notebook is None:
            parser.print_help()
            return 0
        return _score(options) if options.sentence or options.input else _run(options)
    except EvbindError as error:
        print(f"evbind: {error}", file=sys.stderr)
        return 2
    except KeyboardInterrupt:
        print("\nevbind: stopped; the same command goes on with the study.", file=sys.stderr)
        return 130


def _run(options: argparse.Namespace) -> int:
    from evbind_lib.config.compose import split_arguments
    from evbind_lib.notebook.run import NotebookError, find_notebook, near, run_notebook

    notebook = find_notebook(options.notebook)
    choices, overrides = split_arguments(options.parameters)
    try:
        executed = run_notebook(notebook, choices, overrides, output=options.output)
    except NotebookError as error:
        print(f"evbind: {error}", file=sys.stderr)
        return 1
    for line in executed.result.get("lines", []):
        print(line)
    print(f"Notebook: {near(executed.notebook)}")
    print(f"Page:     {near(executed.html)}")
    return 130 if executed.result.get("stopped") else 0


def _score(options: argparse.Namespace) -> int:
    """Score sentences with the model that notebook 05 trains and keeps."""
    from evbind_lib.config.compose import compose, split_arguments
    from evbind_lib.data.corpus import load_corpus
    from evbind_lib.notebook.run import default_choices, find_notebook

    if options.notebook != "score":
        raise ParamsError(
            f"--sentence and --input go with `evbind score`, not with {options.notebook}; leave them out."
        )
    choices, overrides = split_arguments(options.parameters)
    params = compose(overrides, **{**default_choices(find_notebook("score")), **choices})
    corpus = load_corpus(params)
    from evbind_lib.evaluation import final

    # What cannot be scored is refused before a model is trained for it.
    final.criterion_texts(options.criterion, corpus.criteria)
    table = final.read_sentences(options.input) if options.input else None
    sentences = final.clean_sentences(options.sentence)
    folder = final.model_folder(corpus, params)
    if folder is None or not folder.is_dir():
        print("Training the model on all posts; the next time it is there.", file=sys.stderr)
    model = final.open_model(corpus, params)
    if table is not None:
        scored = final.score_table(model, table, options.criterion)
        scored.to_csv(options.output or sys.stdout, index=False, float_format="%.4f")
        return 0
    scores = final.score_sentences(model, sentences, options.criterion)
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
    add = parser.add_argument
    add("notebook", metavar="NOTEBOOK", nargs="?", help="a name from the list above, or the path of a notebook")
    help_of_words = "a file of params/ for a group (hpo=quick), or any parameter"
    add("parameters", metavar="KEY=VALUE", nargs="*", help=help_of_words)
    help_of_output = "the executed notebook (default: runs/DATE_NAME.ipynb); with --input, the table of scores"
    add("--output", type=Path, metavar="FILE", help=help_of_output)
    add("--version", action="version", version=f"evbind {version('evbind')}")
    add = parser.add_argument_group("evbind score, from the shell").add_argument
    add("--sentence", action="append", default=[], metavar="TEXT", help="a sentence to score; may be repeated")
    add("--input", metavar="FILE", help="a table with a column sentence; scores go to --output, or here")
    help_of_criteria = "a criterion's id, or a text of your own; default: all"
    add("--criterion", action="append", default=[], metavar="ID", help=help_of_criteria)
    return parser


def _notebook_list() -> str:
    from evbind_lib.notebook.run import notebooks

    return "\n".join(f"  {name:<14} {_title(file)}" for name, file in notebooks().items())


def _title(notebook: Path) -> str:
    cells = json.loads(notebook.read_text(encoding="utf-8"))["cells"]
    return "".join(cells[0]["source"]).partition("\n")[0].lstrip("# ")


if __name__ == "__main__":
    sys.exit(main())
