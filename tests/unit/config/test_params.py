"""The grammar of parameters: groups, overrides, defaults, and one sentence for every mistake."""

from __future__ import annotations

import shutil
import subprocess
import sys
from pathlib import Path

import pytest
from pydantic import ValidationError

from evbind_lib.config.compose import compose, describe, split_arguments, with_trainer
from evbind_lib.config.schema import GONE, Params, dotted_name
from evbind_lib.errors import ParamsError
from tests.conftest import PROJECT


def test_defaults_are_those_of_the_design() -> None:
    params = compose(model="deberta_v3_base")
    study, trials = params.hpo.study, params.hpo.trials
    assert (study.study_name, study.storage) == ("deberta-v3-hpo", "sqlite:///optuna.db")
    assert (study.direction, study.load_if_exists) == ("maximize", True)
    assert (trials.n_trials, trials.n_jobs, trials.timeout) == (50, 1, None)
    assert (params.hpo.sampler.type, params.hpo.sampler.n_startup_trials) == ("tpe", 10)
    pruner = params.hpo.pruner
    assert (pruner.type, pruner.n_startup_trials, pruner.n_warmup_steps, pruner.interval_steps) == ("median", 5, 0, 1)
    assert (params.hpo.metric.name, params.hpo.metric.fold_aggregation) == ("macro_f1", "mean")
    assert (params.hpo.fixed, params.hpo.enqueue, params.hpo.reuse) == ({}, [], False)
    assert (params.hpo.stop.no_improvement, trials.trial_timeout) == (None, None)
    assert (params.cluster.executor, params.cluster.gpu_share, params.cluster.scheduler) == ("local", 1, None)
    assert (params.training.n_folds, params.data.pos_neg_ratio) == (5, 3.0)
    assert params.training.args == {
        "num_train_epochs": 3.0,
        "learning_rate": 2e-5,
        "warmup_ratio": 0.06,
        "weight_decay": 0.01,
        "per_device_train_batch_size": 16,
    }
    assert (params.model.name, params.model.max_length) == ("microsoft/deberta-v3-base", 512)
    space = {
        name: entry.model_dump(exclude={"when"}, exclude_none=True) for name, entry in params.hpo.search_space.items()
    }
    assert space == {
        "learning_rate": {"type": "log_uniform", "low": 1e-6, "high": 1e-4},
        "per_device_train_batch_size": {"type": "categorical", "choices": [8, 16, 32]},
        "num_train_epochs": {"type": "int", "low": 2, "high": 5},
        "warmup_ratio": {"type": "uniform", "low": 0.0, "high": 0.1},
        "weight_decay": {"type": "uniform", "low": 0.0, "high": 0.05},
        "loss_function": {"type": "categorical", "choices": ["weighted_ce", "focal"]},
        "focal_gamma": {"type": "uniform", "low": 1.0, "high": 3.0},
        "focal_alpha": {"type": "uniform", "low": 0.1, "high": 0.5},
    }
    tied = {name: entry.when for name, entry in params.hpo.search_space.items() if entry.when}
    assert tied == {"focal_gamma": {"loss_function": "focal"}, "focal_alpha": {"loss_function": "focal"}}


def test_quick_is_ten_trials_and_the_tiny_model_brings_its_own_rate() -> None:
    params = compose(hpo="quick")
    assert params.hpo.trials.n_trials == 10
    assert params.training.args["learning_rate"] == 1e-3
    assert (params.hpo.search_space["learning_rate"].low, params.hpo.search_space["learning_rate"].high) == (1e-4, 1e-2)


def test_only_invented_posts_are_not_sensitive() -> None:
    assert not compose().data.sensitive
    assert compose(data="redsm5").data.sensitive and compose(data="pairs").data.sensitive


@pytest.mark.parametrize(
    ("overrides", "dotted", "value"),
    [
        (["hpo.trials.n_trials=30"], "hpo.trials.n_trials", 30),
        (["hpo=quick", "hpo.trials.n_trials=30"], "hpo.trials.n_trials", 30),
        (["hpo.trials.n_trials=30", "hpo=quick"], "hpo.trials.n_trials", 30),  # a file never undoes a value
        (["hpo.trials.n_trials=3", "hpo.trials.n_trials=4"], "hpo.trials.n_trials", 4),
        (["hpo.metric.name=pos_f1", "training.n_folds=3"], "training.n_folds", 3),
        (["training.args.adam_beta2=0.98"], "training.args.adam_beta2", 0.98),
        (["training.args.learning_rate=3e-4"], "training.args.learning_rate", 3e-4),
        (["training.args.warmup_ratio=0.2"], "training.args.warmup_ratio", 0.2),
        (["training.loss_function=focal"], "training.loss_function", "focal"),
        (["data.eval_neg_ratio=natural"], "data.eval_neg_ratio", "natural"),
        (["hpo.pruner.type=percentile", "hpo.pruner.percentile=30"], "hpo.pruner.percentile", 30),
        (["tracking=none"], "tracking.enabled", False),
        (["hpo.metric.name=log_loss", "hpo.study.direction=minimize"], "hpo.metric.name", "log_loss"),
        (["training.loss_args.margin=0.2"], "training.loss_args.margin", 0.2),
        (["+training.args.adam_beta2=0.98"], "training.args.adam_beta2", 0.98),
        (["hpo.reuse=true"], "hpo.reuse", True),
        (["hpo.fixed.training.loss_args.margin=1"], "training.loss_args.margin", 1),
        (["hpo.enqueue=[default,hpo_best,'study:earlier']"], "hpo.enqueue", ["default", "hpo_best", "study:earlier"]),
        (["hpo.stop.no_improvement=5", "hpo=quick"], "hpo.stop.no_improvement", 5),
        (["hpo.trials.trial_timeout=90"], "hpo.trials.trial_timeout", 90.0),
        (["hpo.fixed.learning_rate=0.002"], "training.args.learning_rate", 0.002),
        (["cluster.gpu_share=2"], "cluster.gpu_share", 2),
        (["cluster=dask", "cluster.scheduler=tcp://10.0.0.1:8786"], "cluster.executor", "dask"),
        (["model.name=/some/folder"], "model.name", "/some/folder"),
    ],
)
def test_overrides(overrides: list[str], dotted: str, value: object) -> None:
    assert compose(overrides).value_of(dotted) == value


@pytest.mark.parametrize(
    ("override", "name", "expected"),
    [
        ("hpo.search_space.loss_function.choices=[focal]", "loss_function", {"choices": ["focal"]}),
        ("hpo.search_space.learning_rate.high=0.5", "learning_rate", {"high": 0.5}),
        (
            "hpo.search_space.learning_rate={type:categorical,choices:[0.001,0.002]}",
            "learning_rate",
            {"choices": [0.001, 0.002]},
        ),
        (
            "hpo.search_space.per_device_train_batch_size={type:int,low:4,high:9}",
            "per_device_train_batch_size",
            {"high": 9},
        ),
        ("hpo.search_space.data.pos_neg_ratio={type:uniform,low:1,high:4}", "data.pos_neg_ratio", {"low": 1.0}),
        ("hpo.search_space.adam_beta2={type:uniform,low:0.9,high:0.999}", "adam_beta2", {"high": 0.999}),
        ("hpo.search_space.model.max_length={type:int,low:64,high:128}", "model.max_length", {"low": 64}),
        (
            "hpo.search_space.model.max_length={type:int,low:64,high:128,step:32}",
            "model.max_length",
            {"type": "int", "step": 32},
        ),
        ("hpo.search_space.num_train_epochs.type=log_int", "num_train_epochs", {"type": "log_int", "low": 2}),
        ("hpo.search_space.weight_decay.step=0.01", "weight_decay", {"type": "uniform", "step": 0.01}),
        (
            "hpo.search_space.training.loss_args.step={type:uniform,low:0,high:1}",
            "training.loss_args.step",
            {"type": "uniform", "high": 1.0},
        ),
    ],
)
def test_anything_can_be_searched_without_code(override: str, name: str, expected: dict) -> None:
    entry = compose([override]).hpo.search_space[name].model_dump()
    assert {key: entry[key] for key in expected} == expected


def test_an_entry_of_another_type_leaves_nothing_of_the_old_one(workspace: Path) -> None:
    own = workspace / "params" / "hpo"
    own.mkdir(parents=True)
    stepped = "search_space: {weight_decay: {type: uniform, low: 0.1, high: 1, step: 0.1}}"
    (own / "mine.yaml").write_text(f"defaults: [default]\n{stepped}\n", encoding="utf-8")
    space = compose(["hpo.search_space.weight_decay.type=log_uniform"], hpo="mine").hpo.search_space
    expected = {"type": "log_uniform", "low": 0.1, "high": 1.0}
    assert space["weight_decay"].model_dump(exclude={"when"}, exclude_none=True) == expected


def test_a_searched_parameter_can_be_taken_out() -> None:
    assert "focal_alpha" not in compose(["~hpo.search_space.focal_alpha"]).hpo.search_space


# Overrides, the key that the sentence begins with, and a word of cause, remedy or suggestion.
MISTAKES = [
    ("hpo=quik", "hpo=quik", "did you mean 'quick'?"),
    ("cluster=dusk", "cluster=dusk", "did you mean 'dask'?"),
    ("experiment=none", "experiment=none", "no file params/experiment/none.yaml"),
    ("hpoo=quick", "hpoo", "did you mean 'hpo'?"),
    ("trainr=default", "trainr", "did you mean 'trainer'?"),
    ("n_trials=3", "n_trials", "did you mean 'hpo.trials.n_trials'?"),
    ("hpo.trials.n_trial=3", "hpo.trials.n_trial", "did you mean 'hpo.trials.n_trials'?"),
    ("hpo.stop.no_improvment=3", "hpo.stop.no_improvment", "did you mean 'hpo.stop.no_improvement'?"),
    ("hpo.trials.n_trials=0", "hpo.trials.n_trials=0", "greater than or equal to 1"),
    ("hpo.trials.n_trials=many", "hpo.trials.n_trials=many", "integer"),
    ("hpo.trials=3", "hpo.trials=3", "dictionary"),
    ("hpo.trials.trial_timeout=0", "hpo.trials.trial_timeout=0", "greater than 0"),
    ("hpo.stop.no_improvement=0", "hpo.stop.no_improvement=0", "greater than or equal to 1"),
    ("training.n_folds=1", "training.n_folds=1", "greater than or equal to 2"),
    ("model.max_length=3.5", "model.max_length=3.5", "integer"),
    ("data.eval_neg_ratio=0", "data.eval_neg_ratio=0", "above 0, or natural"),
    ("data.eval_neg_ratio=true", "data.eval_neg_ratio=True", "above 0, or natural"),
    ("hpo.metric.fold_aggregation=meen", "hpo.metric.fold_aggregation=meen", "did you mean 'mean'?"),
    ("hpo.metric.name=[macro_f1,seconds]", "hpo.metric.name", "ev.report_folds"),
    ("hpo.constraints.recall.low=0.8", "hpo.constraints", "ev.report_folds"),
    ("hpo.sampler.type=grid", "hpo.sampler", "ev.report_folds"),
    ("hpo.stop.terminator=true", "hpo.stop.terminator", "hpo.stop.no_improvement"),
    ("hpo.fixed.data.pos_neg_ration=3", "hpo.fixed.data.pos_neg_ration", "did you mean 'data.pos_neg_ratio'?"),
    ("hpo.fixed.focal_gamma=low", "training.focal_gamma=low", "number"),
    ("cluster=dask", "cluster", "set cluster.scheduler=tcp://HOST:8786"),
    ("cluster=dask cluster.scheduler=localhost", "cluster", "set cluster.scheduler=tcp://HOST:8786"),
    ("cluster.scheduler=tcp://a:1", "cluster", "choose cluster=dask"),
    ("cluster.gpu_share=0", "cluster.gpu_share=0", "greater than or equal to 1"),
    ("hpo.search_space.weight_decay.step=0", "hpo.search_space.weight_decay.step=0.0", "greater than 0"),
    ("hpo.search_space.learning_rate.step=0.1", "hpo.search_space.learning_rate", "set another type"),
    ("hpo.search_space.learning_rate.choices=[1]", "hpo.search_space.learning_rate", "set another type"),
    ("hpo.search_space.num_train_epochs.step=0.5", "hpo.search_space.num_train_epochs.step=0.5", "whole number"),
    ("hpo.search_space.num_train_epochs.low=true", "hpo.search_space.num_train_epochs.low=True", "whole number"),
    ("hpo.search_space.num_train_epochs.log=true", "hpo.search_space.num_train_epochs.log", "type=log_uniform"),
    ("hpo.search_space.num_train_epochs.type=integer", "hpo.search_space.num_train_epochs.type=integer", "mean 'int'?"),
    ("hpo.search_space.x={type:log_int,low:0,high:8}", "hpo.search_space.x", "low=0 has no logarithm"),
    ("hpo.search_space.x={type:int,low:1}", "hpo.search_space.x", "high is missing"),
    ("hpo.search_space.x={low:1,high:2}", "hpo.search_space.x.type", "required"),
    ("hpo.search_space.x={type:categorical,choices:[1,true]}", "hpo.search_space.x", "stands there twice"),
    ("hpo.search_space.x={type:categorical,choices:[[1]]}", "hpo.search_space.x", "neither number"),
    ("hpo.search_space.learning_rate.low=1", "hpo.search_space.learning_rate", "low=1 lies above high=0.01"),
    ("hpo.search_space.loss_function.choices=[]", "hpo.search_space.loss_function.choices", "at least 1"),
    ("hpo.search_space.focal_alpha.high=2", "hpo.search_space.focal_alpha", "2.0 cannot be tried"),
    ("hpo.search_space.loss_function.choices=[3]", "hpo.search_space.loss_function", "3 cannot be tried"),
    ("hpo.search_space.data.foo={type:int,low:1,high:2}", "hpo.search_space.data.foo", "did you mean 'data.format'?"),
    (
        "hpo.search_space.focal_gamma.when={focal_alpha:3}",
        "hpo.search_space.focal_gamma.when.focal_alpha",
        "never hold",
    ),
    (
        "hpo.search_space.training.args.weight_decay={type:uniform,low:0,high:1}",
        "hpo.search_space.training.args.weight_decay",
        "the same parameter as hpo.search_space.weight_decay",
    ),
    ("model.name=${foo.bar}", "The parameters cannot be composed", "foo.bar"),
    ("~hpo.search_space.foo", "The parameters cannot be composed", "hpo.search_space.foo"),
    ("n_trials", "Override 'n_trials'", "KEY=VALUE"),
    ("a=[1", "Override 'a=[1'", "KEY=VALUE"),
]


@pytest.mark.parametrize(("overrides", "key", "word"), MISTAKES, ids=[mistake[0] for mistake in MISTAKES])
def test_a_mistake_is_answered_with_its_key_and_a_remedy(overrides: str, key: str, word: str) -> None:
    with pytest.raises(ParamsError) as caught:
        compose(overrides.split())
    message = str(caught.value)
    assert message.startswith((f"{key}:", f"{key} ")) and word in message
    assert "\n" not in message and message.endswith((".", "?"))


def test_fixing_everything_leaves_nothing_to_search() -> None:
    fixed = [f"hpo.fixed.{name}={compose().value_of(dotted_name(name))}" for name in compose().hpo.search_space]
    with pytest.raises(ParamsError, match=r"hpo\.fixed names every searched parameter"):
        compose(fixed)


def test_a_key_that_is_gone_from_a_users_own_file_says_what_to_do(workspace: Path) -> None:
    own = workspace / "params" / "hpo"
    own.mkdir(parents=True)
    for number, (section, key) in enumerate(
        [("constraints: {recall: {low: 1}}", "constraints"), ("stop: {min_trials: 3}", "stop.min_trials")]
    ):
        (own / f"mine{number}.yaml").write_text(f"defaults: [default]\n{section}\n", encoding="utf-8")
        with pytest.raises(ParamsError) as caught:
            compose(hpo=f"mine{number}")
        assert str(caught.value) == f"hpo.{key}: {GONE[f'hpo.{key}']}."


def test_hpo_best_is_that_of_this_workspace_or_names_the_command_that_makes_it(
    workspace: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with pytest.raises(ParamsError, match=r"a search writes it, so run `evbind hpo_search hpo=quick` first"):
        compose(trainer="hpo_best")
    stored = PROJECT / "tests" / "stored" / "hpo_best.yaml"
    shipped = workspace.parent / "elsewhere"  # what another workspace found is of other data
    (shipped / "params").mkdir(parents=True)
    shutil.copytree(PROJECT / "params", shipped / "params", dirs_exist_ok=True)
    shutil.copy(stored, shipped / "params" / "trainer" / "hpo_best.yaml")
    monkeypatch.setattr("evbind_lib.config.compose.project_folder", lambda: shipped)
    with pytest.raises(ParamsError, match="trainer=hpo_best"):
        with_trainer(compose(), "hpo_best")
    (workspace / "params" / "trainer").mkdir(parents=True)
    shutil.copy(stored, workspace / "params" / "trainer")
    assert compose(trainer="hpo_best").training.provenance is not None


def test_a_broken_file_is_named_with_its_line(workspace: Path) -> None:
    own = workspace / "params" / "hpo"
    own.mkdir(parents=True)
    (own / "mine.yaml").write_text("trials:\n  n_trials: [3\n", encoding="utf-8")
    with pytest.raises(ParamsError, match=r"mine\.yaml, line \d+: not valid YAML"):
        compose(hpo="mine")


def test_a_users_own_files_lie_in_the_workspace_and_go_first(workspace: Path) -> None:
    own = workspace / "params" / "hpo"
    own.mkdir(parents=True)
    (own / "mine.yaml").write_text("defaults: [default]\ntrials: {n_trials: 7}\n", encoding="utf-8")
    assert compose(hpo="mine").hpo.trials.n_trials == 7
    (own / "quick.yaml").write_text("defaults: [default]\ntrials: {n_trials: 8}\n", encoding="utf-8")
    assert compose(hpo="quick").hpo.trials.n_trials == 8
    with pytest.raises(ParamsError, match="did you mean 'mine'"):
        compose(hpo="min")


def test_an_experiment_sets_whatever_it_names_and_overrides_go_after_it(workspace: Path) -> None:
    own = workspace / "params" / "experiment"
    own.mkdir(parents=True)
    text = "# @package _global_\ndefaults: [override /hpo: quick]\ntraining: {n_folds: 3, loss_function: focal}\n"
    (own / "first.yaml").write_text(text, encoding="utf-8")
    for params in (compose(experiment="first"), compose(["experiment=first"])):
        assert (params.training.n_folds, params.training.loss_function) == (3, "focal")
        assert params.hpo.trials.n_trials == 10 and params.training.seed == 42
    assert compose(["training.n_folds=4"], experiment="first").training.n_folds == 4
    with pytest.raises(ParamsError, match=r"experiment=frist: .*did you mean 'first'"):
        compose(experiment="frist")


def test_a_workspace_may_have_any_name(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    folder = tmp_path / "Anna's data, 2nd [new]"
    (folder / "params" / "hpo").mkdir(parents=True)
    (folder / "params" / "hpo" / "mine.yaml").write_text("defaults: [default]\ntrials: {n_trials: 7}\n")
    monkeypatch.setenv("EVBIND_WORKSPACE", str(folder))
    assert compose(hpo="mine").hpo.trials.n_trials == 7
    shutil.copytree(PROJECT / "params", folder / "shipped" / "params")
    monkeypatch.setattr("evbind_lib.config.compose.project_folder", lambda: folder / "shipped")
    assert compose(hpo="mine").hpo.trials.n_trials == 7


def test_params_are_frozen_and_copies_are_validated() -> None:
    params = compose()
    with pytest.raises(ValidationError):
        params.training.n_folds = 3  # type: ignore[misc]
    changed = params.with_values({"training.args.learning_rate": 0.5, "data.pos_neg_ratio": 2})
    assert changed.training.args["learning_rate"] == 0.5 and changed.data.pos_neg_ratio == 2.0
    assert params.training.args["learning_rate"] == 1e-3
    with pytest.raises(ParamsError, match=r"training\.n_folds=1: "):
        params.with_values({"training.n_folds": 1})
    assert Params.model_validate(params.model_dump()) == params


@pytest.mark.parametrize(
    ("name", "dotted"),
    [
        ("learning_rate", "training.args.learning_rate"),
        ("loss_function", "training.loss_function"),
        ("seed", "training.seed"),
        ("any_other", "training.args.any_other"),
        ("training.loss_args.margin", "training.loss_args.margin"),
        ("data.pos_neg_ratio", "data.pos_neg_ratio"),
        ("model.max_length", "model.max_length"),
        ("training.args.adam_beta2", "training.args.adam_beta2"),
    ],
)
def test_short_names_stand_for_dotted_ones(name: str, dotted: str) -> None:
    assert dotted_name(name) == dotted


@pytest.mark.parametrize("name", ["training.args", "training.loss_args", "model.trainer", "hpo.trials.n_trials", "a.b"])
def test_what_holds_no_single_value_cannot_be_searched(name: str) -> None:
    with pytest.raises(ValueError, match=r"hpo\.search_space\."):
        dotted_name(name)


def test_the_table_of_parameters_shows_what_shapes_a_result() -> None:
    table = describe(compose())
    assert table["training.n_folds"] == 5 and "hpo.enqueue" not in table
    assert not [key for key in table if key.startswith(("hpo.search_space", "model.trainer"))]


def test_composing_is_light() -> None:
    heavy = "{'torch', 'transformers', 'optuna', 'mlflow', 'pandas', 'sklearn'}"
    code = (
        f"import sys, evbind_lib.config.compose as c; c.compose(hpo='quick'); print(sorted({heavy} & set(sys.modules)))"
    )
    shown = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert shown.stdout.strip() == "[]"


def test_words_of_the_command_line() -> None:
    assert split_arguments(["hpo=quick", "training.n_folds=3", "trainer=hpo_best", "cluster=dask", "odd"]) == (
        {"hpo": "quick", "trainer": "hpo_best", "cluster": "dask"},
        ["training.n_folds=3", "odd"],
    )


def test_another_type_of_pruner_or_sampler_leaves_the_options_of_the_old_one_behind() -> None:
    racing = compose(hpo="quick").hpo.pruner
    assert (racing.type, racing.model_extra) == ("racing", {"p": 0.05, "futility": 0.1})
    none = compose(["hpo.pruner.type=none"], hpo="quick").hpo.pruner
    assert (none.type, none.model_extra) == ("none", {})
    own = compose(["hpo.pruner.type=wilcoxon", "hpo.pruner.p_threshold=0.2"], hpo="quick").hpo.pruner
    assert own.model_extra == {"p_threshold": 0.2}
    kept = compose(["hpo.pruner.futility=null"], hpo="quick").hpo.pruner
    assert kept.model_extra == {"p": 0.05, "futility": None}
