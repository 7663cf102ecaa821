"""Inputs that cannot be used, by group: each is answered by one sentence before anything is trained or written."""

from __future__ import annotations

import functools
import itertools
import json
import math
import os
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from evbind_lib.cli import main
from evbind_lib.config.arguments import REFUSED
from evbind_lib.config.compose import compose
from evbind_lib.config.masking import masked
from evbind_lib.config.schema import KEYS, NO_TEXT, Params
from evbind_lib.data.corpus import load_corpus
from evbind_lib.errors import DataError, EvbindError, ModelError, ParamsError
from evbind_lib.hpo.search import check_search
from evbind_lib.notebook import run
from evbind_lib.training.fold import check
from evbind_lib.training.losses import LOSSES
from tests import checkpoints

LONG, NESTED = "n" * 5000, "[" * 400 + "]" * 400


def sentence_of(kind: type[EvbindError], call: Callable[[], Any]) -> str:
    """The one sentence that a call is refused with, within the seconds that one waits for it."""
    started = time.perf_counter()
    with pytest.raises(kind) as refused:
        call()
    said = str(refused.value)
    assert time.perf_counter() - started < 10
    assert said.endswith((".", "?")) and "\n" not in said and len(said) < 700, said
    assert not NO_TEXT.search(said) and "Traceback" not in said
    return said


# Numbers and texts of the whole tree, whatever is added to it.


def leaves(kind: type) -> list[str]:
    """Dotted keys that hold a value of this kind in the default parameters, or none."""
    flat = compose(hpo="quick").flat()
    return [key for key in KEYS if isinstance(flat.get(key, ()), kind) and not isinstance(flat.get(key), bool)]


@pytest.mark.parametrize("value", [math.inf, -math.inf, math.nan, 10**30, -1], ids=str)
def test_numbers_without_an_end_and_absurd_ones_are_refused_by_every_key(value: float) -> None:
    params, keys = (
        compose(hpo="quick"),
        [*leaves(int), *leaves(float), "hpo.trials.timeout", "hpo.trials.trial_timeout", "cluster.gpu_share"],
    )
    assert len(keys) > 20
    # Any number of pairs or trials may be far off, and is an end all the same.
    unbounded = {"hpo.sampler.n_startup_trials", "hpo.pruner.n_startup_trials", "hpo.finalists", "training.n_folds"}
    unbounded |= {"hpo.pruner.n_warmup_steps", "hpo.pruner.interval_steps", "hpo.trials.timeout"}
    unbounded |= {"hpo.trials.trial_timeout", "hpo.trials.n_jobs"}  # the latter is compared with the processors
    for key in {*keys} - (unbounded if value == 10**30 else set()):
        with_value = functools.partial(params.with_values, {key: value})
        assert sentence_of(ParamsError, with_value).startswith(f"{key}="), key


@pytest.mark.parametrize("value", ["a\0b", "a\ud800", "\x1b[31m", "\x7f"], ids=ascii)
def test_characters_that_no_file_or_database_keeps_are_refused_by_every_key(value: str) -> None:
    params, keys = (
        compose(hpo="quick"),
        [*leaves(str), "model.trainer.x", "training.loss_args.x", "training.args.optim"],
    )
    assert len(keys) > 20
    for key in keys:
        said = sentence_of(ParamsError, lambda key=key: params.with_values({key: value}))
        assert said.startswith(f"{key}=") and "control character" in said
    sentence_of(ParamsError, lambda: params.with_values({"hpo.enqueue": ["default", value]}))


@pytest.mark.parametrize("reason", REFUSED, ids=range(len(REFUSED)))
def test_arguments_that_a_fold_cannot_use_are_refused_with_their_remedy(reason: str) -> None:
    params, names = compose(hpo="quick"), REFUSED[reason].split()
    for name, value in itertools.product(names, (True, "", -1)):
        said = sentence_of(ParamsError, functools.partial(params.with_values, {f"training.args.{name}": value}))
        assert said == f"training.args.{name}={masked(value, name)}: {reason}."
    key = f"hpo.search_space.training.args.{names[0]}"
    said = sentence_of(ParamsError, lambda: compose([f"{key}={{type: categorical, choices: [1, 2]}}"]))
    assert said.startswith(key) and reason in said


# What the command is given, a line each: the override, and a word of the answer.
COMPOSED = {
    "training.args.learning_rate=inf": "finite",
    "training.args.learning_rate=1e30": "100",
    "training.args.learning_rate=0": "0.000000000001",
    "training.args.learning_rate=1e-30": "0.000000000001",
    "training.args.learning_rate=1e-320": "32 bits",
    "training.args.adam_epsilon=1e308": "less than or equal to 1",
    "training.args.adam_epsilon=1e30": "less than or equal to 1",
    "training.args.num_train_epochs=1e-300": "32 bits",
    "training.args.lr_scheduler_kwargs={power: 1e-320}": "32 bits",
    "training.loss_args.margin=1e-39": "32 bits",
    "data.pos_neg_ratio=1e-320": "32 bits",
    "training.seeds=[true]": "training.seeds.0",
    "training.seeds=['1']": "training.seeds.0",
    "training.n_folds=2026-11-28": "integer",
    "hpo.trials.n_trials=1:30": "integer",
    "training.args.learning_rate=null": "number",
    "training.args.learning_rate=[1]": "number",
    "training.args.num_train_epochs=1e9": "10000",
    "training.args.max_steps=-5": "-1",
    "training.args.max_steps=1e12": "1000000000",
    "training.args.warmup_steps=-3": "0",
    "training.args.warmup_steps=inf": "finite",
    "training.args.weight_decay=1e9": "100",
    "training.args.adam_beta1=2": "less than 1",
    "training.args.adam_beta2=1": "less than 1",
    "training.args.adam_epsilon=-1": "0",
    "training.args.max_grad_norm=nan": "finite",
    "training.args.max_grad_norm=-1": "0",
    "training.args.neftune_noise_alpha=inf": "finite",
    "training.args.dataloader_num_workers=-1": "0",
    "training.args.dataloader_num_workers=1000": "64",
    "training.args.per_device_train_batch_size=1000000000": "65536",
    "training.args.per_device_eval_batch_size=1e12": "65536",
    "training.args.gradient_accumulation_steps=1e12": "65536",
    "training.args.train_sampling_strategy=foo": "none of the choices",
    "training.args.optim_target_modules=foo": "without optim",
    "training.args.gradient_checkpointing_kwargs={foo: 1}": "without gradient_checkpointing",
    "training.args=3": "dictionary",
    "training.loss_args.margin=inf": "finite",
    "training.focal_gamma=1e308": "100",
    "training.focal_gamma=true": "number",
    "hpo.trials.n_trials=true": "number",
    "training.args.learning_rate=true": "number",
    "training.args.lr_scheduler_kwargs={power: nan}": "finite",
    "training.args.optim_args=[[inf]]": "finite",
    "data.pos_neg_ratio=1e308": "1000000",
    "data.eval_neg_ratio=1e308": "natural",
    "model.max_length=1000000000": "131072",
    "model.threads=100000": "1024",
    "hpo.trials.timeout=0.001": "greater than or equal to 1",
    "hpo.trials.trial_timeout=0.001": "greater than or equal to 1",
    "hpo.trials.n_trials=1000000000000000000000": "1000000",
    "hpo.study.study_name='  '": "name",
    "hpo.study.study_name='..'": "name",
    "hpo.study.study_name='.'": "name",
    "hpo.study.study_name=' a'": "blanks",
    f"hpo.study.study_name={LONG}": "200 bytes",
    "hpo.study.storage='sqlite://'": "sqlite:///optuna.db",
    "hpo.study.storage='sqlite:///:memory:'": "sqlite:///optuna.db",
    "hpo.study.storage='sqlite+pysqlite://'": "sqlite:///optuna.db",
    "hpo.study.storage='sqlite:///file:x?mode=memory&uri=true'": "sqlite:///optuna.db",
    "tracking.uri=''": "sqlite:///mlflow.db",
    "tracking.uri='sqlite:///'": "sqlite:///mlflow.db",
    "tracking.uri='sqlite:///:memory:'": "sqlite:///mlflow.db",
    "tracking.registered_model_name=''": "a name",
    "tracking.registered_model_name=a/b": "without / and :",
    "hpo.search_space.per_device_train_batch_size={type: uniform, low: 1, high: 8}": "fractional part",
    "hpo.search_space.model.max_length={type: log_uniform, low: 16, high: 64}": "fractional part",
    "hpo.search_space.per_device_train_batch_size.choices=[8,'8']": "are the same",
    "hpo.search_space.weight_decay={type: categorical, choices: [0.1,'0.1']}": "are the same",
    "hpo.search_space.training.fresh={type: categorical, choices: [true,'true']}": "are the same",
    "hpo.search_space.adam_epsilon={type: log_uniform, low: 1e-300, high: 1e-8}": "32 bits",
    "hpo.fixed={learning_rate: 0.1, training.args.learning_rate: 0.2}": "two names",
    "hpo.fixed={learning_rate: inf}": "training.args.learning_rate",
    "hpo.search_space.dataloader_num_workers={type: int, low: 0, high: 1000}": "64",
    "cluster.gpu_share=1000000": "100",
    "cluster.gpu_share=all": "auto",
    "cluster.gpu_share=1.5": "whole number",
    "tracking.artifacts=s3://key:word@bucket/x": "environment",
    "hpo=../hpo/quick": "'quick'",
    "hpo=/etc/passwd": "known are",
    "trainer=params/trainer/default.yaml": "'default'",
    "hpo=[quick]": "'quick'",
    f"hpo={LONG}": "known are",
    f"{LONG}=1": "is not a parameter",
    f"training.n_folds={'9' * 5000}": "digits",
    f"training.args.x={NESTED}": "nested too deeply",
    "hydra.run.dir=x": "Hydra",
    "hydra/launcher=x": "Hydra",
    "--x=3": "KEY=VALUE",
    ".hpo=1": "KEY=VALUE",
    "a=\ud800": "KEY=VALUE",
    "\ud800=1": "KEY=VALUE",
    "=": "KEY=VALUE",
    "model.name=${model.name}": "Recursive",
    "hpo.trials.n_trials=range(1,3)": "n_trials",
    "~hpo": "hpo",
}


@pytest.mark.parametrize("override", COMPOSED, ids=lambda each: ascii(each[:60]))
def test_an_override_that_cannot_be_used_is_refused_when_it_is_composed(override: str) -> None:
    assert COMPOSED[override] in sentence_of(ParamsError, lambda: compose([override]))


@pytest.mark.parametrize(
    ("given", "word"),
    [
        ({"overrides": None}, "list of texts"),
        ({"overrides": "data.pairs=x"}, "list of texts"),
        ({"overrides": 3}, "list of texts"),
        ({"overrides": {"a": 1}}, "list of texts"),
        ({"overrides": [3]}, "KEY=VALUE"),
        ({"overrides": [None]}, "KEY=VALUE"),
        ({"overrides": [["a=1"]]}, "KEY=VALUE"),
        ({"trainer": 3}, "params/trainer/"),
        ({"data": ["sample"]}, "params/data/"),
        ({"hpo": True}, "params/hpo/"),
        ({"trainer": "params/trainer/default.yaml"}, "'default'"),
        ({"model": "tiny\0"}, "tiny"),
    ],
)
def test_a_parameters_cell_with_values_of_other_types(given: dict[str, Any], word: str) -> None:
    assert word in sentence_of(ParamsError, lambda: compose(**given))


JUDGED = {
    "lr_scheduler_type=foo": "SchedulerType",
    "lr_scheduler_type=cosine_with_min_lr": "min_lr",
    "lr_scheduler_type=warmup_stable_decay": "num_decay_steps",
    "lr_scheduler_type=reduce_lr_on_plateau": "eval strategy",
    "lr_scheduler_kwargs={foo: 1}": "foo",
    "optim=adamm": "adamm",
    "optim=galore_adamw": "galore",
    "optim_args=foo training.args.optim=adamw_torch": "",
    "neftune_noise_alpha=-1": "",
    "use_liger_kernel=true": "liger",
    "dataloader_prefetch_factor=2": "prefetch_factor",
    "dataloader_persistent_workers=true": "persistent_workers",
    "dataloader_multiprocessing_context=foo": "multiprocessing_context",
    "torch_empty_cache_steps=0": "torch_empty_cache_steps",
    "debug=foo": "DebugOption",
    "gradient_checkpointing=maybe": "boolean",
    "learnin_rate=3": "'learning_rate'",
    "1=2": "is not a field",
}
FINE = (
    *("lr_scheduler_type=cosine", "lr_scheduler_type=polynomial", "optim=sgd", "optim=adafactor", "adam_epsilon=0"),
    *("neftune_noise_alpha=5", "activation_checkpointing=true", "full_determinism=false", "dataloader_drop_last=true"),
    *("max_steps=0", "max_grad_norm=0", "train_sampling_strategy=random", "warmup_steps=10"),
)


@pytest.mark.parametrize("argument", JUDGED)
def test_other_arguments_are_judged_by_transformers_before_a_trial(argument: str) -> None:
    params = compose(f"training.args.{argument}".split(" ") if "{" not in argument else [f"training.args.{argument}"])
    assert JUDGED[argument] in sentence_of(ParamsError, lambda: check(params))


@pytest.mark.parametrize("argument", FINE)
def test_an_argument_that_is_odd_but_works_is_taken(argument: str) -> None:
    check(compose([f"training.args.{argument}"]))


SEARCHED = "hpo.search_space.training.loss_args.{}={{type: uniform, low: 0.1, high: 0.2}}"
BOTH = "hpo.search_space.loss_function.choices=[smoothed_ce,focal]"


@pytest.mark.parametrize(
    ("overrides", "word"),
    [
        (["training.loss_args.smoothing=0.1"], "smoothing: there is no setting of that name in weighted_ce or focal"),
        (["training.loss_function=smoothed_ce", "training.loss_args.smothing=0.1"], "mean 'smoothing'?"),
        ([SEARCHED.format("smothing"), BOTH], "mean 'smoothing'?"),
        ([SEARCHED.format("smoothing")[:-1] + ", when: {loss_function: focal}}", BOTH], "in focal; known"),
        ([SEARCHED.format("smoothing"), "hpo.fixed={loss_function: weighted_ce}"], "take it out"),
    ],
)
def test_a_setting_that_no_loss_takes_is_refused_before_a_trial(overrides: list[str], word: str) -> None:
    said = sentence_of(ParamsError, lambda: check_search(compose(overrides, hpo="quick")))
    assert said.startswith("training.loss_args.sm") and word in said


@pytest.mark.parametrize("value", ["x", "2", "null", "{a: 1}"])
def test_a_value_that_a_loss_cannot_be_computed_with_is_refused_before_a_trial(value: str) -> None:
    params = compose(["training.loss_function=smoothed_ce", f"training.loss_args.smoothing={value}"])
    assert "training.loss_args" in sentence_of(ParamsError, lambda: check(params))


def test_a_setting_is_taken_where_the_chosen_or_a_searched_loss_or_one_of_ones_own_has_it(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    check(compose(["training.loss_function=smoothed_ce", "training.loss_args.smoothing=0.1"]))
    check_search(compose([SEARCHED.format("smoothing"), BOTH]))
    margin = compose(["training.loss_args.margin=0.1"])
    check(margin, lambda logits, labels: logits.sum(dim=1))
    monkeypatch.setitem(LOSSES, "mine", lambda training, labels: lambda logits, labels: logits.sum(dim=1))
    check(compose(["training.loss_args.margin=0.1", "training.loss_function=mine"]))


BOMB = "a0: &a0 [x, x, x, x, x, x, x, x, x]\n" + "".join(
    f"a{n}: &a{n} [{', '.join([f'*a{n - 1}'] * 9)}]\n" for n in range(1, 10)
)


@pytest.mark.parametrize(
    ("text", "word"),
    [
        (BOMB, "aliases"),
        ("a: &a [*a]\n", "aliases"),
        (f"trials: {NESTED}\n", "nested too deeply"),
        ("trials: [3\n", "line 3"),
        ('study: {study_name: "a\\0b"}\n', "control character"),
        ('study: {study_name: "a\\ud800b"}\n', ""),
        ("\0", ""),
        ("[1, 2]\n", ""),
        ("3\n", ""),
        ("trials: !!python/object/apply:os.system ['true']\n", "python"),
        ("trials: {n_trials: .inf}\n", "hpo.trials.n_trials"),
        ("trials: null\n", "hpo.trials"),
        ("? [a, b]\n: 3\n", ""),
        ("trials: {n_trials: 3, n_trials: 4}\n", "n_trials"),
        ("trials:\n  n_trials: 1:30  # a time\n", "mine.yaml, line 3: 1:30"),
        ("trials: {timeout: 1:30.5}\n", "by 60"),
        ("trials: {n_trials: 010}\n", "by 8"),
    ],
    ids=range(17),
)
def test_a_file_of_the_users_own_that_cannot_be_used(workspace: Path, text: str, word: str) -> None:
    (workspace / "params" / "hpo").mkdir(parents=True)
    (workspace / "params" / "hpo" / "mine.yaml").write_text(f"defaults: [default]\n{text}" if ":" in text else text)
    assert word in sentence_of(ParamsError, lambda: compose(hpo="mine"))


def test_files_that_use_aliases_as_people_do_are_read_and_params_must_be_a_folder(workspace: Path) -> None:
    folder = workspace / "params" / "hpo"
    folder.mkdir(parents=True)
    text = "defaults: [default]\ntrials: {n_trials: &n 7, timeout: 100}\nstop: {no_improvement: *n}\n"
    (folder / "mine.yaml").write_text(f"{text}study: {{study_name: '1:30'}}  # begun 9:05\n")
    assert compose(hpo="mine").hpo.stop.no_improvement == 7
    (folder / "bytes.yaml").write_bytes(bytes(range(256)))
    sentence_of(ParamsError, lambda: compose(hpo="bytes"))
    folder.parent.rename(workspace / "elsewhere")
    (workspace / "params").write_text("")
    assert "is not a folder" in sentence_of(ParamsError, compose)


SAMPLERS = {
    "sampler.n_ei_candidates=many": "must be int",
    "sampler.n_ei_candidates=2.5": "must be int",
    "sampler.n_ei_candidates=1000000000": "1,000,000",
    "sampler.multivariate=maybe": "must be bool",
    "sampler.n_ei_candidates=0": "cannot be used",
    "sampler.n_ei_candidates=-3": "negative",
    "sampler.prior_weight=-1": "prior_weight",
    "sampler.gamma=3": "not an option of tpe",
    "sampler.type=qmc hpo.sampler.independent_sampler=random": "not an option of qmc",
    "sampler.type=cmaes hpo.sampler.popsize=-1": "popsize",
    "sampler.type=cmaes hpo.sampler.sigma0=x": "float",
    "sampler.type=cmaes hpo.sampler.sigma0=0": "float",
    "sampler.type=cmaes hpo.sampler.sigma0=.inf": "float",
    "pruner.type=percentile hpo.pruner.percentile=true": "must be float",
    "pruner.type=patient hpo.pruner.patience=1.5": "must be int",
    "pruner.n_resamples=150.5": "must be int",
}


@pytest.mark.parametrize("words", SAMPLERS)
def test_an_option_that_a_sampler_or_pruner_cannot_use_is_refused_before_a_trial(words: str) -> None:
    params = compose(f"hpo.{words}".split(), hpo="quick")
    said = sentence_of(ParamsError, lambda: check_search(params))
    assert said.startswith(("hpo.sampler.", "hpo.pruner.")) and SAMPLERS[words] in said


# Of searched parameters what no trial would draw, or notice.
IN_VAIN = {
    "focal_gamma.when={loss_function: nope}": "no loss of that name",
    "focal_gamma.when={loss_function: []}": "no trial draws",
    "focal_gamma.when={num_train_epochs: 7}": "no trial draws",
    "focal_gamma.when={weight_decay: 0.01}": "no trial draws",
    "focal_gamma.when={nope: 1}": "neither searched nor set",
    "focal_gamma.when={model.dropout: 0.1}": "neither searched nor set",
    "focal_gamma.when={loss_function: weighted_ce}": "no setting of that name in weighted_ce",
    "training.loss_args.smoothing={type: uniform, low: 0, high: 3, when: {loss_function: smoothed_ce}} "
    "hpo.search_space.loss_function.choices=[weighted_ce,smoothed_ce,focal]": "smoothing: training.loss_function=smoothed_ce",
    "training.fresh={type: categorical, choices: [true, false]}": "protocol",
    "training.holdout={type: uniform, low: 0.1, high: 0.2}": "protocol",
}


@pytest.mark.parametrize("words", IN_VAIN)
def test_what_is_searched_in_vain_is_refused_before_a_trial(words: str) -> None:
    params = compose([f"hpo.search_space.{word}" for word in words.split(" hpo.search_space.")], hpo="quick")
    assert IN_VAIN[words] in sentence_of(ParamsError, lambda: check_search(params))


def test_a_condition_on_what_is_set_or_on_a_choice_left_out_may_leave_a_parameter_out_of_the_search() -> None:
    check_search(compose(["hpo.search_space.loss_function.choices=[weighted_ce]"], hpo="quick"))
    check_search(compose(["hpo.fixed={loss_function: weighted_ce}"], hpo="quick"))
    alone = ["~hpo.search_space.focal_gamma", "hpo.fixed={loss_function: weighted_ce}"]
    space = "hpo.search_space.training.focal_gamma={type: uniform, low: 1, high: 3}"
    assert "in weighted_ce" in sentence_of(ParamsError, lambda: check_search(compose([*alone, space], hpo="quick")))


PROVENANCE = "training: {provenance: {study: x, lacks: 3}}\n"
EDITED = {
    f"data: null\nmodel: null\nhpo: null\n{PROVENANCE}": "",
    f"data: {{}}\nmodel: {{}}\nhpo: words\n{PROVENANCE}": "",
    f"data: {{}}\nmodel: {{}}\nhpo: {{study: words}}\n{PROVENANCE}": "hpo.study",
}


@pytest.mark.parametrize("text", EDITED, ids=range(len(EDITED)))
def test_an_experiment_that_somebody_edited(workspace: Path, text: str) -> None:
    (workspace / "params" / "experiment").mkdir(parents=True)
    (workspace / "params" / "experiment" / "mine.yaml").write_text(f"# @package _global_\n{text}")
    assert EDITED[text] in sentence_of(ParamsError, lambda: compose(experiment="mine"))


def test_files_among_the_parameters_that_cannot_be_read_and_ones_without_their_first_line(workspace: Path) -> None:
    (hpo := workspace / "params" / "hpo").mkdir(parents=True)
    (hpo / "folder.yaml").mkdir()
    os.mkfifo(hpo / "pipe.yaml")
    (hpo / ".#mine.yaml").symlink_to("me@host.1234")  # an editor's lock
    (hpo.parent / "trainer").mkdir()
    (hpo.parent / "trainer" / "mine.yaml").write_text("args: {learning_rate: 0.001}\n")
    assert compose(hpo="quick") and load_corpus(compose(["++training.provenance={study: [1], lacks: 3}"]))
    for name in ("folder", "pipe", "'.#mine'"):
        assert "no file params/hpo/" in sentence_of(ParamsError, lambda name=name: compose(hpo=name))
    assert "# @package training" in sentence_of(ParamsError, lambda: compose(trainer="mine"))
    sentence_of(DataError, lambda: load_corpus(compose(["data.pairs='~nobody-here/x.csv'"], data="pairs")))


def test_columns_are_named_as_they_are_and_long_or_invisible_names_as_they_can_be_read(workspace: Path) -> None:
    rows = "".join(f"p{n},C one.,S {n}.,{n % 2}\n" for n in range(9))
    (workspace / "x.csv").write_text(f"post_id,criterion,sentence,label\n{rows}")

    def read(*words: str) -> str:
        return sentence_of(DataError, lambda: load_corpus(compose(["data.pairs=x.csv", *words], data="pairs")))

    assert "did you mean 'sentence'?" in read("data.columns={sentence: sentense}")
    assert "did you mean 'sentence'?" in read("data.columns={sentense: sentence}")
    assert "data.claims=x.csv: data.format=pairs reads no such file" in read("data.claims=x.csv")
    assert "data.test=z.csv: there is no such file" in read("data.test=z.csv")
    assert "data.special_case" in read("data.special_case=drop")
    of_sample = compose(["data.pairs=x.csv"])
    assert "data=pairs" in sentence_of(DataError, lambda: load_corpus(of_sample))
    (workspace / "y.csv").write_text(f"post_id,criterion,sentence,label\np1,C one.,T.,0\n{rows}")
    assert "several values" in read("data.group_by=label", "data.pairs=y.csv")
    (workspace / "x.csv").write_text(f"\ufeff\ufeffpost_id,criterion,sentence,label\n{rows}")
    assert r"did you mean '\ufeffpost_id'?" in read()
    (workspace / "x.csv").write_text(f"{'a' * 100_000}\n1\n")
    assert "(100000 characters)" in read()


# The command line: notebooks that are none, and what is written beside them.
GOOD = 'data: str = "sample"\noverrides: list = []'


def cell(source: Any = GOOD, **other: Any) -> dict[str, Any]:
    outputs = {"outputs": [], "execution_count": None}
    return {"cell_type": "code", "source": source, "metadata": {"tags": ["parameters"]}, **outputs, **other}


def notebook(*cells: Any, **other: Any) -> dict[str, Any]:
    return {"cells": list(cells), "metadata": {}, "nbformat": 4, "nbformat_minor": 4, **other}


NO_NOTEBOOKS: list[Any] = [
    *([], None, 3, "x", True, {}, {"cells": []}),
    *(notebook(cells=None), notebook(cells={}), notebook(cells=[1, 2]), notebook(cells="x"), notebook(None)),
    *(notebook(cell(metadata=metadata)) for metadata in (None, [], 3, {"tags": None}, {"tags": "parameters"}, {})),
    *(notebook(cell(source)) for source in (None, 3, [1, 2], {}, "overrides = (", "x = '\ud800'", "x = '\0'", NESTED)),
    *(notebook({key: value for key, value in cell().items() if key != left}) for left in cell()),
    *(notebook(cell(), metadata=metadata) for metadata in (None, [], {"kernelspec": None}, {"kernelspec": "python3"})),
    *(notebook(cell(), nbformat=version) for version in (99, "x", None, 3)),
    *(notebook(cell(outputs=None)), notebook(cell(), {"cell_type": "foo", "source": "", "metadata": {}})),
    *(
        notebook(cell("overrides = []\ntrainer = 3")),
        notebook(cell('overrides = []\ndata = "params/data/sample.yaml"')),
    ),
]
NO_JSON = [b"", bytes(range(256)), b"[" * 100_000, b'{"cells": NaN}', json.dumps(notebook(cell())).encode("utf-16")]


@pytest.fixture
def refused(workspace: Path, capfd: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> Callable[..., str]:
    """Run the command, make sure of exit code 2, one sentence and nothing left, and return the sentence."""
    monkeypatch.setattr(run, "_execute", lambda *_: pytest.fail("a kernel would have been started"))

    def refuse(*words: str) -> str:
        before = sorted(workspace.rglob("*"))
        code = main(words)
        out, err = capfd.readouterr()
        assert (code, out) == (2, "") and err.startswith("evbind: ") and err.count("\n") == 1, err
        assert err.endswith((".\n", "?\n")) and sorted(workspace.rglob("*")) == before
        return err

    return refuse


@pytest.mark.parametrize("number", range(len(NO_NOTEBOOKS)))
def test_json_that_is_no_notebook(refused: Callable[..., str], workspace: Path, number: int) -> None:
    (workspace / "mine.ipynb").write_text(json.dumps(NO_NOTEBOOKS[number]))
    said = refused("mine.ipynb")
    assert "mine.ipynb: " in said or "params/" in said


@pytest.mark.parametrize("content", NO_JSON, ids=range(len(NO_JSON)))
def test_files_that_are_no_notebook_are_not_quoted(
    refused: Callable[..., str], workspace: Path, content: bytes
) -> None:
    (workspace / "mine.ipynb").write_bytes(content)
    assert "cannot be read as a notebook" in refused("mine.ipynb")
    (workspace / "posts.ipynb").write_text('{"sentence": "I lie awake"}\n{"sentence": "I eat"}\n')
    assert "awake" not in refused("posts.ipynb")


COMMANDS = [
    *([""], ["."], ["/"], ["mine"], ["../mine.ipynb"], ["folder"], ["\ud800"], ["a\0b"], [LONG], [f"{LONG}.ipynb"]),
    *(["mine.ipynb", word] for word in ("\ud800", "x=\ud800", "data", "data=", "data=\n", "overrides=[]", "hpo=3")),
    *(
        ["mine.ipynb", "--output", name]
        for name in ("", "folder", "x.html", f"{'n' * 300}.ipynb", "a\0b.ipynb", "\ud800.ipynb", "mine.ipynb/x.ipynb")
    ),
    *(["mine.ipynb", "--output", name] for name in ("/proc/x/y.ipynb", "/dev/null/y.ipynb", "mine.ipynb")),
    *(["train", *words] for words in (["--criterion", "x"], ["--input", "x"], ["--sentence", "x"], ["--input", ""])),
]
SCORE = [
    *(["--sentence", ""], ["--sentence", "\ud800"], ["--input", ""], ["--input", "folder"]),
    *(["--input", "nope.csv"], ["--input", "mine.ipynb"], ["--criterion", "SLEEP_ISSUES"]),
    *(["--sentence", "x", *words] for words in (["--output", "y.csv"], ["--input", "nope.csv"], ["--criterion", ""])),
    *(["--input", "good.csv", "--output", name] for name in ("", "folder", "nowhere/y.csv", "/proc/y.csv", LONG)),
    *(
        ["--sentence", "x", f"aim={aim}"]
        for aim in ("", "3", "recall>=7", "recall>=nan", "recal>=0.5", "precision>=-1")
    ),
]


@pytest.mark.parametrize("words", [*COMMANDS, *(["score", "trainer=default", *words] for words in SCORE)], ids=ascii)
def test_a_command_that_cannot_be_run(refused: Callable[..., str], workspace: Path, words: list[str]) -> None:
    (workspace / "mine.ipynb").write_text(json.dumps(notebook(cell())))
    (workspace / "good.csv").write_text("sentence\nI lie awake.\n")
    (workspace / "folder").mkdir()
    refused(*words)


# Folders of models: a configuration, weights or a tokenizer that do not go together.
BROKEN: dict[str, Callable[[dict[str, Any]], Any]] = {
    "hidden_size below 0": lambda config: config | {"hidden_size": -8},
    "hidden_size 0": lambda config: config | {"hidden_size": 0},
    "hidden_size of another model": lambda config: config | {"hidden_size": 24},
    "heads that do not divide": lambda config: config | {"num_attention_heads": 7},
    "no layers of a number": lambda config: config | {"num_hidden_layers": "two"},
    "vocabulary 0": lambda config: config | {"vocab_size": 0},
    "unknown type": lambda config: config | {"model_type": "nope"},
    "type of T5": lambda config: config | {"model_type": "t5"},
    "type null": lambda config: config | {"model_type": None},
    "type missing": lambda config: {key: value for key, value in config.items() if key != "model_type"},
    "a list": lambda config: [config],
    "null": lambda config: None,
    "activation unknown": lambda config: config | {"hidden_act": "nope"},
    "code of its own": lambda config: config | {"auto_map": {"AutoConfig": "evil.Config"}, "model_type": "evil"},
}


@pytest.fixture(scope="module")
def bert(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return checkpoints.write_bert(tmp_path_factory.mktemp("models") / "bert")


@pytest.mark.parametrize("name", BROKEN)
def test_a_configuration_that_does_not_make_a_model(bert: Path, name: str) -> None:
    file = bert / "config.json"
    whole = file.read_text()
    try:
        file.write_text(json.dumps(BROKEN[name](json.loads(whole))))
        params = compose([f"model.name={bert}", "model.max_length=16"], model="pretrained")
        assert bert.name in sentence_of(ModelError, lambda: check(params))
    finally:
        file.write_text(whole)


WEIGHTS = [
    b"",
    b"\0" * 100,
    b"version https://git-lfs.github.com/spec/v1\noid sha256:00\nsize 3\n",
    bytes(range(256)) * 9,
]


@pytest.mark.parametrize("part", ["model.safetensors", "config.json", "tokenizer.json"])
@pytest.mark.parametrize("content", WEIGHTS, ids=range(len(WEIGHTS)))
def test_a_file_of_a_model_that_is_broken(bert: Path, part: str, content: bytes) -> None:
    whole = (bert / part).read_bytes()
    try:
        (bert / part).write_bytes(content)
        params = compose([f"model.name={bert}", "model.max_length=16"], model="pretrained")
        assert bert.name in sentence_of(ModelError, lambda: check(params))
    finally:
        (bert / part).write_bytes(whole)


@pytest.mark.parametrize(
    "name", ["'  '", f"/{LONG}", LONG, "../../x", "/proc", "/dev/null", "'no such/na me'", "'~nobody/x'"]
)
def test_a_name_that_no_model_has(monkeypatch: pytest.MonkeyPatch, name: str) -> None:
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)

    def use() -> None:
        check(compose([f"model.name={name}"], model="pretrained"))

    assert sentence_of(ModelError, use).startswith("model.name=")


@pytest.mark.parametrize(
    "words",
    [
        *(["sync", *words] for words in (["--output", "x.csv"], ["--input", "good.csv"], ["--show"], ["--fresh"])),
        *(["train", "--show", *words] for words in (["--sentence", "x"], ["--posts", "x.csv"], ["a\x1b=3"])),
        ["sync", "hpo.study.study_name=nope"],
        ["score", "trainer=default", "--sentence", "x", "--with-text"],
        ["score", "trainer=default", "--input", "good.csv", "--output", "y.csv", "--posts", "./y.csv"],
        ["score", "trainer=default", "--input", "good.csv", "--output", "y.csv", "--posts", "y.csv.part"],
        ["finalize", "trainer=default", "--output", ""],
    ],
    ids=ascii,
)
def test_a_word_without_effect_and_a_place_that_is_taken_are_refused_and_no_database_is_made(
    refused: Callable[..., str], workspace: Path, words: list[str]
) -> None:
    (workspace / "good.csv").write_text("post_id,sentence\np1,I lie awake.\n")
    refused(*words)


def test_a_current_folder_that_was_removed_is_named(
    workspace: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    (gone := workspace / "gone").mkdir()
    monkeypatch.chdir(gone)
    gone.rmdir()
    assert main(["train"]) == 2
    assert "current folder" in (said := capsys.readouterr().err) and said.count("\n") == 1


def test_nothing_of_this_changes_parameters_that_are_fine() -> None:
    params = compose(hpo="quick")
    assert Params.model_validate(params.model_dump()) == params
    check(params)
