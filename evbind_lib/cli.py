"""The ``evbind`` command: a thin skin over `evbind_lib.notebook.run`; nothing heavy is imported before it is needed."""

import argparse
import gc
import json
import os
import re
import sys
from collections.abc import Callable, Sequence
from importlib.metadata import version
from pathlib import Path
from typing import NoReturn

from evbind_lib.config.compose import split_arguments
from evbind_lib.config.masking import masked
from evbind_lib.config.schema import NO_TEXT
from evbind_lib.errors import EvbindError, ParamsError, shown
from evbind_lib.notebook import commands, run

EXAMPLES = """\
examples:
  evbind hpo_search hpo=quick                      ten trials on the bundled sample
  evbind train experiment=deberta-v3-hpo           cross-validate what the search of this name found
  evbind hpo_search hpo.trials.n_trials=30 hpo.metric.name=pos_f1 training.n_folds=3
  evbind hpo_search "hpo.search_space.loss_function.choices=[focal]"
  evbind finalize trainer=hpo_best --output model  train the model to keep, and write its folder
  evbind score model --input new.csv --output scores.csv
  evbind score trainer=hpo_best --sentence "I lie awake until four."
  evbind evaluate model labelled.csv               what it scores on data that it has not seen
  evbind evaluate trainer=hpo_best data.test=unseen.csv
  evbind score trainer=hpo_best "aim=recall>=0.9"
  evbind sync hpo.study.study_name=NAME            write to MLflow what it lacks of a study
  evbind hpo_search data=redsm5 data.posts=posts.csv data.annotations=annotations.csv model=deberta_v3_base
"""


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the command: 0 when all went well, 1 when a notebook failed, 2 for the user's mistake, 130 when interrupted."""
    parser = _parser()
    options = parser.parse_intermixed_args(arguments)  # options may stand among the parameters
    # A grammar of web addresses: jsonschema, which checks notebooks, would take a second to make it and never ask it.
    sys.modules["rfc3987_syntax"] = None  # type: ignore[assignment]
    gc.set_threshold(20_000, 50, 50)  # to look for garbage takes a fifth of the time of imports
    os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")  # as `start` does, before torch is loaded
    try:
        os.getcwd()  # where that is gone, everything below would fail in words of its own
        if options.notebook is None or options.help:
            print(parser.format_help() if options.notebook in (None, "sync") else _preview(options))
            return 0
        if bad := [word for word in (sys.argv[1:] if arguments is None else arguments) if NO_TEXT.search(word)]:
            problem = "an argument holds a control character or half a character"
            raise ParamsError(f"{shown(masked(bad[0]))}: {problem}; write it again, in UTF-8.")
        if places := [str(each) for each in (options.output, options.posts) if re.match(r"[\w+.-]{2,}:/", str(each))]:
            raise ParamsError(f"{shown(masked(places[0]))}: that is an address, and the output is a file; name one.")
        options.parameters += ["training.fresh=true"] if options.fresh else []
        command = _command(options)
        if options.show:
            print(_preview(options))
            return 0
        if command:
            command(options)
            return 0
        notebook = run.find_notebook(options.notebook)
        executed = run.run_notebook(notebook, *split_arguments(options.parameters), output=options.output)
    except (EvbindError, run.NotebookError) as error:
        print(f"evbind: {masked(str(error))}", file=sys.stderr)
        return 2 if isinstance(error, EvbindError) else 1
    except OSError as error:  # of a full disk, a current folder that was removed, a pipe that nobody reads
        place = shown(masked(str(error.filename or "The current folder, or where the output goes")))
        print(f"evbind: {place}: {error.strerror or error}; free some space, or go to another folder.", file=sys.stderr)
        return 2
    except KeyboardInterrupt:
        print("\nevbind: stopped; the same command goes on with the study.", file=sys.stderr)
        return 130
    files = [f"Notebook: {run.near(executed.notebook)}", f"Page:     {run.near(executed.html)}"]
    print(*masked([*executed.result.get("lines", []), *files]), sep="\n")
    return 130 if executed.result.get("stopped") else 0


def _preview(options: argparse.Namespace) -> str:
    """What can be chosen for a notebook, or what it would do with what was chosen."""
    notebook = run.find_notebook("score" if options.notebook == "finalize" else options.notebook)
    if options.help:
        return commands.choices_text(notebook)
    return commands.plan_text(notebook, *split_arguments(options.parameters))


def _command(options: argparse.Namespace) -> Callable[[argparse.Namespace], None] | None:
    """What runs no notebook: a command about a model that is kept; options of scoring go with that alone."""
    name, given = options.notebook, [options.sentence, options.criterion, options.posts, options.with_text]
    scores = any(given) or options.input is not None
    if scores and name != "score":
        problem = "--sentence, --input, --criterion, --posts and --with-text go with `evbind score`"
        raise ParamsError(f"{problem}; leave them out of evbind {shown(name)}.")
    if name == "sync":
        if options.output is not None or options.show or options.fresh:
            raise ParamsError("evbind sync trains nothing and writes no file; leave out --output, --show and --fresh.")
        return commands.sync
    if scores or (name == "score" and commands.names_folder(options.parameters)):
        return commands.score
    by_folder = name == "evaluate" and commands.names_folder(options.parameters)
    return commands.finalize if name == "finalize" else commands.evaluate if by_folder else None


class _Parser(argparse.ArgumentParser):
    def error(self, message: str) -> NoReturn:
        super().error(masked(message))


def _parser() -> argparse.ArgumentParser:
    titles = []
    for name, file in run.notebooks().items():
        first = json.loads(file.read_text(encoding="utf-8"))["cells"][0]
        titles.append(f"  {name:<14} {''.join(first['source']).splitlines()[0].lstrip('# ')}")
    parser = _Parser(
        prog="evbind",
        usage="evbind NOTEBOOK [GROUP=FILE ...] [KEY=VALUE ...]",
        description="\n".join(["Run a notebook of the kit with other parameters.", "", "notebooks:", *titles]),
        epilog=EXAMPLES,
        formatter_class=argparse.RawDescriptionHelpFormatter,
        add_help=False,
    )
    add = parser.add_argument
    add("notebook", nargs="?", metavar="NOTEBOOK", help="a name from the list above, or the path of a notebook")
    words = "a file of params/ for a group (hpo=quick), any parameter, or one of the notebook's own (aim=f1)"
    add("parameters", nargs="*", metavar="KEY=VALUE", help=words)
    output = "the executed notebook (default: runs/DATE_NAME.ipynb), the table of scores, or the folder of finalize"
    add("--output", type=Path, metavar="FILE", help=output)
    add("-h", "--help", action="store_true", help="this, or of a NOTEBOOK its groups, files and main keys")
    add("--show", action="store_true", help="what NOTEBOOK would do: parameters, pairs, steps, time and memory")
    add("--fresh", action="store_true", help="train folds that are there from before, in place of reading them")
    add("--version", action="version", version=f"evbind {version('evbind')}")
    add = parser.add_argument_group("evbind score FOLDER, or KEY=VALUE ...").add_argument
    add("--sentence", action="append", default=[], metavar="TEXT", help="a sentence to score; may be repeated")
    table = "a table of sentences, pairs (criterion, criterion_id) or posts (text); scores go to --output, or here"
    add("--input", metavar="FILE", help=table)
    add("--posts", type=Path, metavar="FILE", help="which criteria have evidence in which post of --input")
    add("--with-text", action="store_true", help="keep the texts of --input beside their scores")
    criterion = "a criterion's id, or a text of your own; default: all"
    add("--criterion", action="append", default=[], metavar="ID", help=criterion)
    return parser


if __name__ == "__main__":
    sys.exit(main())
