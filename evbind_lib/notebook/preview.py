"""What a command will do, before it does: the files and main keys of a notebook, and what its work will take."""

from collections.abc import Mapping, Sequence
from datetime import timedelta
from pathlib import Path
from statistics import fmean

from evbind_lib.config.compose import describe, group_files
from evbind_lib.config.schema import GROUPS, Params
from evbind_lib.notebook.run import composed, default_parameters

BATCH = "per_device_train_batch_size"
MAIN = (
    *("data.posts", "data.annotations", "data.pairs", "data.group_by", "data.pos_neg_ratio", "model.name"),
    *("model.max_length", "training.n_folds", "training.loss_function", "training.args.learning_rate"),
    *("training.args.num_train_epochs", f"training.args.{BATCH}", "hpo.study.study_name", "hpo.trials.n_trials"),
    *("hpo.trials.timeout", "hpo.metric.name", "hpo.pruner.type"),
)


def choices_text(notebook: Path) -> str:
    """What can be chosen for a notebook: files by group, its own parameters, and the main keys with their values."""
    stored = default_parameters(notebook)
    # hpo_best may not be there yet.
    params = composed(notebook, {"trainer": "default"} if "trainer" in stored else {}, [])
    groups = [group for group in GROUPS if group in stored or group in ("tracking", "cluster", "experiment")]
    files = [f"  {group + '=':<12}{' '.join(group_files(group)) or '(a search writes one)'}" for group in groups]
    own = [f"  {name}={stored[name]}" for name in stored if name not in (*GROUPS, "overrides")]
    values = {key: params.value_of(key) for key in MAIN if "hpo" in stored or not key.startswith("hpo.")}
    keys = [f"  {key}={'null' if value is None else value}" for key, value in values.items()]
    title = f"evbind {notebook.stem.partition('_')[2]}: files of params/ by group"
    return "\n".join([title, *files, "keys", *own, *keys, "options, such as --input and --output: evbind --help"])


def plan_text(notebook: Path, choices: Mapping[str, str], overrides: Sequence[str]) -> str:
    """Composed parameters, pairs, steps and folds, and time and memory as the first steps of a fold let expect."""
    from evbind_lib.data.corpus import load_corpus
    from evbind_lib.data.folds import make_folds
    from evbind_lib.hpo.pace import N_STEPS, drawn, largest_batch, measure_pace
    from evbind_lib.hpo.search import check_search
    from evbind_lib.training.fold import check

    params, searches = composed(notebook, choices, overrides), notebook.stem.endswith("hpo_search")
    (check_search if searches else check)(params)
    corpus = load_corpus(params)
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


def _pairs(params: Params, n_training: int) -> float:
    """Pairs that a fold is trained on, each as often as it is."""
    args = params.training.args
    most = args.get("max_steps", -1) * args.get(BATCH, 8) * args.get("gradient_accumulation_steps", 1)
    return float(most if most > 0 else n_training * args.get("num_train_epochs", 3))


def _time(seconds: float) -> str:
    return str(timedelta(seconds=round(seconds)))
