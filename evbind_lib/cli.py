"""The ``evbind`` command: a thin skin over `evbind_lib.notebook.run`; nothing heavy is imported before it is needed."""

import argparse
import json
import os
import sys
from collections.abc import Sequence
from importlib.metadata import version
from pathlib import Path

from evbind_lib.config.compose import split_arguments
from evbind_lib.config.masking import masked
from evbind_lib.config.schema import NO_TEXT
from evbind_lib.errors import EvbindError, ParamsError, shown
from evbind_lib.notebook import run

EXAMPLES = """\
examples:
  evbind hpo_search hpo=quick                      ten trials on the bundled sample
  evbind train experiment=deberta-v3-hpo           cross-validate what the search of this name found
  evbind hpo_search hpo.trials.n_trials=30 hpo.metric.name=pos_f1 training.n_folds=3
  evbind hpo_search "hpo.search_space.loss_function.choices=[focal]"
  evbind score trainer=hpo_best --sentence "I lie awake until four."
  evbind evaluate trainer=hpo_best data.test=unseen.csv
  evbind score trainer=hpo_best "aim=recall>=0.9"
  evbind sync hpo.study.study_name=NAME            write to MLflow what it lacks of a study
  evbind hpo_search data=redsm5 data.posts=posts.csv data.annotations=annotations.csv model=deberta_v3_base
"""


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the command: 0 when all went well, 1 when a notebook failed, 2 for the user's mistake, 130 when interrupted."""
    parser = _parser()
    options = parser.parse_intermixed_args(arguments)  # options may stand among the parameters
    try:
        if options.notebook is None or options.help or options.show:
            is_one = options.notebook not in (None, "sync")
            print(_preview(options) if is_one else parser.format_help())
            return 0
        if options.notebook == "sync":
            params = run.composed(run.find_notebook("hpo_search"), *split_arguments(options.parameters))
            from evbind_lib.notebook.session import sync

            print(sync(params))
            return 0
        if bad := [word for word in (sys.argv[1:] if arguments is None else arguments) if NO_TEXT.search(word)]:
            problem = "an argument holds a control character or half a character"
            raise ParamsError(f"{shown(masked(bad[0]))}: {problem}; write it again, in UTF-8.")
        options.parameters += ["training.fresh=true"] if options.fresh else []
        if options.sentence or options.criterion or options.input is not None:
            return _score(options)
        notebook = run.find_notebook(options.notebook)
        executed = run.run_notebook(notebook, *split_arguments(options.parameters), output=options.output)
    except (EvbindError, run.NotebookError) as error:
        print(f"evbind: {masked(str(error))}", file=sys.stderr)
        return 2 if isinstance(error, EvbindError) else 1
    except KeyboardInterrupt:
        print("\nevbind: stopped; the same command goes on with the study.", file=sys.stderr)
        return 130
    files = [f"Notebook: {run.near(executed.notebook)}", f"Page:     {run.near(executed.html)}"]
    print(*executed.result.get("lines", []), *files, sep="\n")
    return 130 if executed.result.get("stopped") else 0


def _preview(options: argparse.Namespace) -> str:
    """What can be chosen for a notebook, or what it would do with what was chosen."""
    from evbind_lib.notebook import preview

    notebook = run.find_notebook(options.notebook)
    return (
        preview.choices_text(notebook)
        if options.help
        else preview.plan_text(notebook, *split_arguments(options.parameters))
    )


def _score(options: argparse.Namespace) -> int:
    """Score sentences with the model that notebook 05 trains and keeps."""
    if options.notebook != "score" or not (options.sentence or options.input):
        problem = "--criterion, --sentence and --input go with `evbind score`, a sentence or a table"
        raise ParamsError(f"{problem}; leave them out of evbind {options.notebook}, or give one.")
    if options.output is not None:
        _check_output(options)
    notebook, (choices, words) = run.find_notebook("score"), split_arguments(options.parameters)
    own, overrides = run.own_parameters(notebook, words)
    params = run.composed(notebook, choices, overrides)
    from evbind_lib.data.corpus import load_corpus
    from evbind_lib.data.folds import make_folds
    from evbind_lib.evaluation.calibration import parse_aim

    aim = {**run.default_parameters(notebook), **own}["aim"]
    parse_aim(aim)
    corpus = load_corpus(params)
    folds = make_folds(corpus, params)
    os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")  # as `start` does, and for the same reason
    from evbind_lib.evaluation import final  # loads torch
    from evbind_lib.training.cache import FoldCache
    from evbind_lib.training.crossval import cross_validate

    # What cannot be scored is refused before a model is trained for it.
    final.criterion_texts(options.criterion, corpus.criteria)
    table = final.read_sentences(options.input) if options.input else None
    sentences = final.clean_sentences(options.sentence)
    print(f"Data: {corpus.summary}", file=sys.stderr)
    folder = final.model_folder(corpus, params)
    if folder is None or not folder.is_dir():
        print("Training the model on all posts, and folds to calibrate it; the next time it is there.", file=sys.stderr)
    result = cross_validate(corpus, folds, params, cache=FoldCache("training", read_all=True))
    model = final.open_model(corpus, params, predictions=result.predictions, aim=aim)
    print(f"Evidence from a probability of {model.threshold:.3f} on (aim={aim}).", file=sys.stderr)
    if table is not None:
        scored = final.score_table(model, table, options.criterion)
        scored.to_csv(options.output or sys.stdout, index=False, float_format="%.4f")
        return 0
    for number, row in final.score_sentences(model, sentences, options.criterion).iterrows():
        if len(sentences) > 1:
            print(f"sentence {number}")
        for name, probability in row.sort_values(ascending=False).items():
            print(f"  {probability:.3f}  {name}")
    return 0


def _check_output(options: argparse.Namespace) -> None:
    """Refuse a file for the scores that has nothing to hold or cannot be written, before a model is trained for it."""
    try:
        if not options.input:
            raise OSError(0, "only the scores of --input go into a file")
        is_new = not options.output.exists()
        options.output.open("a").close()
        if is_new:
            options.output.unlink()
    except OSError as error:
        problem = f"nothing can be written to it ({error.strerror}); leave it out or name another file"
        raise ParamsError(f"--output {shown(options.output)}: {problem}.") from None


def _parser() -> argparse.ArgumentParser:
    titles = []
    for name, file in run.notebooks().items():
        first = json.loads(file.read_text(encoding="utf-8"))["cells"][0]
        titles.append(f"  {name:<14} {''.join(first['source']).splitlines()[0].lstrip('# ')}")
    parser = argparse.ArgumentParser(
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
    output = "the executed notebook (default: runs/DATE_NAME.ipynb); with --input, the table of scores"
    add("--output", type=Path, metavar="FILE", help=output)
    add("-h", "--help", action="store_true", help="this, or of a NOTEBOOK its groups, files and main keys")
    add("--show", action="store_true", help="what NOTEBOOK would do: parameters, pairs, steps, time and memory")
    add("--fresh", action="store_true", help="train folds that are there from before, in place of reading them")
    add("--version", action="version", version=f"evbind {version('evbind')}")
    add = parser.add_argument_group("evbind score, from the shell").add_argument
    add("--sentence", action="append", default=[], metavar="TEXT", help="a sentence to score; may be repeated")
    add("--input", metavar="FILE", help="a table with a column sentence; scores go to --output, or here")
    criterion = "a criterion's id, or a text of your own; default: all"
    add("--criterion", action="append", default=[], metavar="ID", help=criterion)
    return parser


if __name__ == "__main__":
    sys.exit(main())
