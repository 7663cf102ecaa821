"""Commands of the shell that run no notebook: a model that is kept, what can be chosen and what it will take; what they print."""

from __future__ import annotations

import argparse
import json
import sys
import tempfile
from collections.abc import Mapping, Sequence
from datetime import timedelta
from pathlib import Path
from statistics import fmean
from typing import TYPE_CHECKING, Any

from evbind_lib.config.compose import compose, describe, group_files, split_arguments
from evbind_lib.config.paths import write_whole
from evbind_lib.config.schema import GROUPS, Params
from evbind_lib.errors import DataError, ParamsError, shown
from evbind_lib.notebook import run
from evbind_lib.tracking import executions

if TYPE_CHECKING:
    from evbind_lib.data.corpus import Corpus
    from evbind_lib.evaluation.model import EvidenceModel

BATCH = "per_device_train_batch_size"
MAIN = (
    *("data.posts", "data.annotations", "data.pairs", "data.group_by", "data.pos_neg_ratio", "model.name"),
    *("model.max_length", "training.n_folds", "training.loss_function", "training.args.learning_rate"),
    *("training.args.num_train_epochs", f"training.args.{BATCH}", "hpo.study.study_name", "hpo.trials.n_trials"),
    *("hpo.trials.timeout", "hpo.metric.name", "hpo.pruner.type"),
)


def names_folder(words: Sequence[str]) -> bool:
    """Whether parameters begin with a folder, rather than with KEY=VALUE."""
    return bool(words) and "=" not in words[0]


def sync(options: argparse.Namespace) -> None:
    """Write to MLflow what it lacks of a study."""
    params = run.composed(run.find_notebook("hpo_search"), *split_arguments(options.parameters))
    from evbind_lib.notebook import session

    print(session.sync(params))


def finalize(options: argparse.Namespace) -> None:
    """Train the model to keep and write its folder, by default that under runs/models/ which ``score`` finds."""
    corpus, params, aim = _asked(options.parameters)
    from evbind_lib.evaluation.final import model_folder
    from evbind_lib.evaluation.model import check_folder

    folder = None if options.output is None else check_folder(options.output)
    executions.EXECUTION.begin(params.tracking, None, {})
    model = _kept(corpus, params, aim, folder)
    place = folder or model_folder(corpus, params)
    print(f"{len(model.criteria)} criteria, {model.model.num_parameters():,} weights")
    if corpus.sensitive and params.tracking.enabled:
        print("MLflow has its run and not the model: the data are sensitive.")
    if place:  # a loss that has no digest has none
        print(f"Model:  {run.near(place)}\nuse it: evbind score {run.near(place)} --input FILE")


def score(options: argparse.Namespace) -> None:
    """Score sentences, a table of pairs or posts by a model in a folder, or by the one of some parameters."""
    if not (options.sentence or options.input):
        raise ParamsError("evbind score: nothing to score; give --sentence TEXT or --input FILE.")
    for file, name in ((options.output, "--output"), (options.posts, "--posts")):
        _check_output(file, name, options.input)
    part = options.output and options.output.with_name(f"{options.output.name}.part")
    if options.posts and options.posts in (options.output, part):
        raise ParamsError(f"--posts {shown(options.posts)}: the scores are written there; name another file.")
    if options.with_text and not options.input:
        raise ParamsError("--with-text keeps the texts of --input; leave it out, or give --input FILE.")
    folder, *others = options.parameters or [""]
    if (by_folder := names_folder(options.parameters)) and others:
        raise ParamsError(f"{shown(others[0])}: {shown(folder)} has its own parameters; leave it out.")
    asked: Any = () if by_folder else _asked(options.parameters)
    from evbind_lib.evaluation import scoring  # loads torch
    from evbind_lib.evaluation.model import EvidenceModel

    model = EvidenceModel.load(folder) if by_folder else None
    known = model.criteria if model else asked[0].criteria
    # What cannot be scored is refused before a model is trained for it.
    scoring.criterion_texts(options.criterion, known)
    sentences = scoring.clean_sentences(options.sentence)
    pairs, columns = scoring.read_pairs(options.input, known, options.criterion) if options.input else (None, [])
    if options.posts and pairs is not None:
        scoring.post_column(pairs)
    model = model or _kept(*asked)
    aim = model.about["aim"] or "none: its probabilities are not calibrated"
    print(f"Evidence from a probability of {model.threshold:.3f} on (aim={aim}).", file=sys.stderr)
    if pairs is not None:
        pairs["probability"] = scoring.score_pairs(model, pairs, part)
        pairs["decision"] = (pairs["probability"] >= model.threshold).astype(int)
        texts = [name for name in scoring.TEXTS if options.with_text and name in pairs]
        table = pairs[[*columns, *texts, "probability", "decision"]].to_csv(index=False, float_format="%.4f")
        if options.posts:
            write_whole(options.posts, scoring.by_post(pairs).to_csv(index=False, float_format="%.4f"))
        if not options.output:
            sys.stdout.write(table)
        else:
            write_whole(options.output, table)
            part.unlink()
    if sentences:
        for number, row in scoring.score_sentences(model, sentences, options.criterion).iterrows():
            if len(sentences) > 1:
                print(f"sentence {number}")
            print(*(f"  {value:.3f}  {name}" for name, value in row.sort_values(ascending=False).items()), sep="\n")


def evaluate(options: argparse.Namespace) -> None:
    """Score labelled data that a model in a folder has not seen: a table of pairs, or any that ``data=...`` names."""
    folder, *words = options.parameters
    file = words.pop(0) if names_folder(words) else None
    choices, overrides = split_arguments(words)
    params = compose(overrides, **({"data": "pairs"} | choices if file else choices))
    _check_output(options.output, "--output", folder)
    if not file and not any(word.startswith("data") for word in words):
        raise ParamsError(f"evbind evaluate {shown(folder)}: no labelled data; give a table of pairs, or data=... .")
    from evbind_lib.data.corpus import load_corpus
    from evbind_lib.evaluation.model import EvidenceModel
    from evbind_lib.notebook import session, show

    model = EvidenceModel.load(folder)
    with tempfile.TemporaryDirectory() as temporary:
        if file:  # which may have ids of criteria alone
            criteria = Path(temporary, "criteria.json")
            criteria.write_text(json.dumps(model.criteria), encoding="utf-8")
            params = params.with_values({"data.pairs": file, "data.criteria": params.data.criteria or str(criteria)})
        corpus = load_corpus(params)
    if corpus.fingerprint == model.about["fingerprint"]:
        raise DataError(f"{shown(file or folder)}: the model was trained on these data; give others.")
    print(f"Data: {corpus.summary}", file=sys.stderr)
    executions.EXECUTION.begin(params.tracking, None, {})
    table = session.evaluate(model, corpus)
    print(*show.evaluation_summary(table)[1], "Whether a post has evidence for a criterion:", sep="\n")
    for name, bounds in table.attrs["posts"].items():
        print("  {} {:.4f} ({:.4f} to {:.4f})".format(name, *bounds))
    if options.output:
        write_whole(options.output, table.to_csv(float_format="%.4f"))


def choices_text(notebook: Path) -> str:
    """What can be chosen for a notebook: files by group, its own parameters, and the main keys with their values."""
    stored = run.default_parameters(notebook)
    # hpo_best may not be there yet.
    params = run.composed(notebook, {"trainer": "default"} if "trainer" in stored else {}, [])
    groups = [group for group in GROUPS if group in stored or group in ("tracking", "cluster", "experiment")]
    files = [f"  {group + '=':<12}{' '.join(group_files(group)) or '(a search writes one)'}" for group in groups]
    own = [f"  {name}={stored[name]}" for name in stored if name not in (*GROUPS, "overrides")]
    values = {key: params.value_of(key) for key in MAIN if "hpo" in stored or not key.startswith("hpo.")}
    keys = [f"  {key}={'null' if value is None else value}" for key, value in values.items()]
    title = f"evbind {notebook.stem.partition('_')[2]}: files of params/ by group"
    return "\n".join([title, *files, "keys", *own, *keys, "options, such as --input and --output: evbind --help"])


def plan_text(notebook: Path, choices: Mapping[str, str], overrides: Sequence[str]) -> str:
    """Composed parameters, pairs, steps and folds, and time and memory as the first steps of a fold let expect."""
    from evbind_lib.data.folds import make_folds
    from evbind_lib.hpo.pace import N_STEPS, drawn, largest_batch, measure_pace
    from evbind_lib.hpo.search import check_search
    from evbind_lib.training.fold import check

    params, corpus = run.check(notebook, choices, overrides)
    searches = notebook.stem.endswith("hpo_search")
    (check_search if searches else check)(params)
    folds, sets = make_folds(corpus, params), drawn(params) if searches else [params]
    batch = largest_batch(sets)
    of_pair, validation, fold = measure_pace(corpus, folds[0], params, batch)
    of_set = len(folds) * (of_pair * fmean(_pairs(each, fold.n_training) for each in sets) + validation)
    lines = [f"{key:<45}{value}" for key, value in describe(params).items()] + [f"Data: {corpus.summary}"]
    pairs = f"{fold.n_training:,} pairs, {-(-fold.n_training // batch):,} steps of {batch} in an epoch"
    lines += [f"{len(folds)} folds; the first trains on {pairs}, and is validated on {fold.n_validation:,} pairs"]
    took = f"{of_pair * batch:.2g} s each, validation {validation:.2g} s, {fold.peak_memory_mb:,.0f} MB"
    lines += [f"{N_STEPS} steps took {took} at most"]
    if not searches:
        return "\n".join([*lines, f"About {_time(of_set * max(1, len(params.training.seeds)))} for all folds"])
    trials = params.hpo.trials
    whole = f"{_time(of_set * trials.n_trials / trials.n_jobs)} for {trials.n_trials} trials by {trials.n_jobs} at once"
    remedy = "hpo.trials.timeout=SECONDS ends it earlier, and the same command goes on"
    return "\n".join([*lines, f"About {_time(of_set)} for a trial, {whole}, less what a pruner spares; {remedy}"])


def _asked(words: Sequence[str]) -> tuple[Corpus, Params, str]:
    """Data, parameters and aim, as notebook 05 has them; refused where no folds can be made."""
    notebook, (choices, overrides) = run.find_notebook("score"), split_arguments(words)
    from evbind_lib.evaluation.calibration import parse_aim

    given = {**run.default_parameters(notebook), **run.papermill_parameters(notebook, choices, overrides)}
    parse_aim(given["aim"])
    params, corpus = run.check(notebook, choices, overrides)
    return corpus, params, given["aim"]


def _kept(corpus: Corpus, params: Params, aim: str, folder: Path | None = None) -> EvidenceModel:
    """The model of these parameters, calibrated by out-of-fold predictions; what is not there yet is trained, and recorded."""
    from evbind_lib.data.folds import make_folds
    from evbind_lib.evaluation.final import model_folder
    from evbind_lib.notebook import session

    print(f"Data: {corpus.summary}", file=sys.stderr)
    found = model_folder(corpus, params)
    if found is None or not found.is_dir():
        print("Training the model on all posts, and folds to calibrate it; the next time it is there.", file=sys.stderr)
    result = session.cross_validate(corpus, make_folds(corpus, params), params)
    return session.open_model(corpus, params, predictions=result.predictions, aim=aim, folder=folder)


def _check_output(file: Path | None, option: str, source: str | None) -> None:
    """Refuse a file for scores that is there, has nothing to hold or cannot be written, before a model is trained for it."""
    if file is None:
        return
    try:
        if not source:
            raise OSError(0, "only the scores of --input go into a file")
        file.open("x").close()
        file.unlink()
    except OSError as error:
        raise ParamsError(f"{option} {shown(file)}: {error.strerror}; leave it out or name another file.") from None


def _pairs(params: Params, n_training: int) -> float:
    """Pairs that a fold is trained on, each as often as it is."""
    args = params.training.args
    most = args.get("max_steps", -1) * args.get(BATCH, 8) * args.get("gradient_accumulation_steps", 1)
    return float(most if most > 0 else n_training * args.get("num_train_epochs", 3))


def _time(seconds: float) -> str:
    return str(timedelta(seconds=round(seconds)))
