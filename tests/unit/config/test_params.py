"""The grammar of parameters: groups, overrides, defaults, and one sentence for every mistake."""

from __future__ import annotations

from pathlib import Path

import pytest
from pydantic import ValidationError
from transformers import TrainingArguments

from evbind_lib.config.compose import compose, resolve_path, resolve_sqlite, split_arguments
from evbind_lib.config.schema import Params, dotted_name, training_argument_types
from evbind_lib.errors import ParamsError
from tests.conftest import PROJECT


def test_defaults_are_those_of_the_design() -> None:
    params = compose({"model": "deberta_v3_base"})
    study, trials = params.hpo.study, params.hpo.trials
    assert (study.study_name, study.storage) == ("deberta-v3-hpo", "sqlite:///optuna.db")
    assert (study.direction, study.load_if_exists) == ("maximize", True)
    assert (trials.n_trials, trials.n_jobs, trials.timeout) == (50, 1, None)
    assert (params.hpo.sampler.type, params.hpo.sampler.n_startup_trials) == ("tpe", 10)
    pruner = params.hpo.pruner
    assert (pruner.type, pruner.n_startup_trials, pruner.n_warmup_steps, pruner.interval_steps) == ("median", 5, 0, 1)
    assert (params.hpo.metric.name, params.hpo.metric.fold_aggregation) == ("macro_f1", "mean")
    assert (params.hpo.metric.first, params.hpo.metric.names) == ("macro_f1", ["macro_f1"])
    assert (params.hpo.constraints, params.hpo.fixed, params.hpo.enqueue) == ({}, {}, [])
    stop = params.hpo.stop
    assert (stop.no_improvement, stop.terminator, stop.min_trials, trials.trial_timeout) == (None, False, 20, None)
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
    params = compose({"hpo": "quick"})
    assert params.hpo.trials.n_trials == 10
    assert params.training.args["learning_rate"] == 1e-3
    assert (params.hpo.search_space["learning_rate"].low, params.hpo.search_space["learning_rate"].high) == (1e-4, 1e-2)


def test_only_invented_posts_are_not_sensitive() -> None:
    assert not compose().data.sensitive
    assert compose({"data": "redsm5"}).data.sensitive and compose({"data": "pairs"}).data.sensitive


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
        (["hpo.metric.name=[macro_f1,seconds]"], "hpo.metric.name", ["macro_f1", "seconds"]),
        (["hpo.metric.name=[pos_f1]"], "hpo.metric.name", "pos_f1"),
        (["hpo.metric.name=log_loss", "hpo.study.direction=minimize"], "hpo.metric.name", "log_loss"),
        (["hpo.metric.name=[log_loss,seconds]"], "hpo.metric.first", "log_loss"),
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
    assert compose({}, overrides).value_of(dotted) == value


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
    ],
)
def test_anything_can_be_searched_without_code(override: str, name: str, expected: dict) -> None:
    entry = compose({}, [override]).hpo.search_space[name].model_dump()
    assert {key: entry[key] for key in expected} == expected


def test_an_entry_of_another_type_leaves_nothing_of_the_old_one(workspace: Path) -> None:
    own = workspace / "params" / "hpo"
    own.mkdir(parents=True)
    stepped = "search_space: {weight_decay: {type: uniform, low: 0.1, high: 1, step: 0.1}}"
    (own / "mine.yaml").write_text(f"defaults: [default]\n{stepped}\n", encoding="utf-8")
    entry = compose({"hpo": "mine"}, ["hpo.search_space.weight_decay.type=log_uniform"]).hpo.search_space[
        "weight_decay"
    ]
    assert entry.model_dump(exclude={"when"}) == {"type": "log_uniform", "low": 0.1, "high": 1.0}


def test_a_searched_parameter_can_be_taken_out() -> None:
    assert "focal_alpha" not in compose({}, ["~hpo.search_space.focal_alpha"]).hpo.search_space


@pytest.mark.parametrize(
    ("overrides", "sentence"),
    [
        (["hpo=quik"], "hpo=quik: there is no file params/hpo/quik.yaml; did you mean 'quick'?"),
        (["hpoo=quick"], "hpoo: there is no group or parameter of that name; did you mean 'hpo'?"),
        (["hpo.trials.n_trial=3"], "hpo.trials.n_trial is not a parameter; did you mean 'hpo.trials.n_trials'?"),
        (["hpo.trials.n_trials=0"], "hpo.trials.n_trials=0: must be greater than or equal to 1."),
        (["hpo.trials.n_trials=many"], "hpo.trials.n_trials=many: must be a whole number."),
        (["training.n_folds=1"], "training.n_folds=1: must be greater than or equal to 2."),
        (["model.max_length=3.5"], "model.max_length=3.5: must be a whole number."),
        (
            ["hpo.metric.name=f1"],
            "hpo.metric.name=f1: must be one of accuracy, macro_f1, pos_f1, precision, recall, roc_auc, pr_auc, log_loss.",
        ),
        (["hpo.metric.name=[macro_f1,secnds]"], "hpo.metric.name=secnds: must be one of accuracy, macro_f1, "),
        (["hpo.metric.name=[macro_f1,secnds]"], "log_loss, seconds; did you mean 'seconds'?"),
        (["hpo.metric.name=[macro_f1,macro_f1]"], "hpo.metric.name names macro_f1 twice; take one of them out."),
        (["hpo.metric.name=[]"], "hpo.metric.name must not be empty; name a metric, for example macro_f1."),
        (
            ["hpo.metric.name=seconds"],
            "hpo.metric.name=seconds: seconds can only stand behind a metric, since the first objective decides the best "
            "trial; write for example [macro_f1,seconds].",
        ),
        (["hpo.metric.name=[seconds,macro_f1]"], "seconds can only stand behind a metric"),
        (
            ["hpo.metric.name=log_loss"],
            "hpo.study.direction=maximize: log_loss is better when lower; set hpo.study.direction=minimize.",
        ),
        (
            ["hpo.study.direction=minimize"],
            "hpo.study.direction=minimize: macro_f1 is better when higher; set hpo.study.direction=maximize.",
        ),
        (
            ["hpo.constraints.recal.low=0.8"],
            "hpo.constraints.recal: there is no metric of that name; did you mean 'recall'?",
        ),
        (["hpo.constraints={recall:{}}"], "hpo.constraints.recall: neither low nor high is set; set one of them."),
        (
            ["hpo.constraints.recall={low:0.9,high:0.1}"],
            "hpo.constraints.recall: low=0.9 lies above high=0.1; exchange them.",
        ),
        (["hpo.constraints.recall.lo=0.9"], "hpo.constraints.recall.lo is not a parameter"),
        (["hpo.stop.no_improvement=0"], "hpo.stop.no_improvement=0: must be greater than or equal to 1."),
        (["hpo.stop.no_improvment=3"], "did you mean 'hpo.stop.no_improvement'?"),
        (
            ["hpo.stop.terminator=true", "hpo.metric.name=[macro_f1,seconds]"],
            "hpo.stop.terminator=true: Optuna's terminator judges one objective; set hpo.stop.terminator=false or one "
            "hpo.metric.name.",
        ),
        (["hpo.trials.trial_timeout=0"], "hpo.trials.trial_timeout=0: must be greater than 0."),
        (
            ["hpo.fixed.lerning_rate=3"],
            "hpo.fixed.lerning_rate: no parameter of that name can be searched; did you mean 'learning_rate'?",
        ),
        (["hpo.fixed.learning_rate=low"], "training.args.learning_rate='low': must be a number."),
        (
            [f"hpo.fixed.{name}={compose().value_of(dotted_name(name))}" for name in compose().hpo.search_space],
            "hpo.fixed names every searched parameter, so nothing is left to search; take one of them out.",
        ),
        (
            ["cluster=dask"],
            "cluster.scheduler names no scheduler, which cluster.executor=dask needs; set cluster.scheduler=tcp://HOST:8786.",
        ),
        (
            ["cluster.scheduler=tcp://a:1"],
            "cluster.scheduler=tcp://a:1 is of no use to cluster.executor=local; choose cluster=dask or leave it out.",
        ),
        (
            ["cluster=dask", "cluster.scheduler=localhost"],
            "cluster.scheduler=localhost is not the address of a scheduler; write for example tcp://HOST:8786.",
        ),
        (["cluster=dusk"], "cluster=dusk: there is no file params/cluster/dusk.yaml; did you mean 'dask'?"),
        (["cluster.gpu_share=0"], "cluster.gpu_share=0: must be greater than or equal to 1."),
        (
            ["hpo.search_space.weight_decay.step=0"],
            "hpo.search_space.weight_decay.step=0: must be greater than 0.",
        ),
        (
            ["hpo.search_space.learning_rate.step=0.1"],
            "hpo.search_space.learning_rate.step does not go with the type of this parameter; set "
            "hpo.search_space.learning_rate.type as well.",
        ),
        (
            ["hpo.search_space.num_train_epochs.step=0.5"],
            "hpo.search_space.num_train_epochs.step=0.5: must be a whole number.",
        ),
        (
            ["hpo.search_space.num_train_epochs.log=true"],
            "hpo.search_space.num_train_epochs.log: a logarithmic scale is a type of its own; set "
            "hpo.search_space.num_train_epochs.type to log_uniform or log_int.",
        ),
        (
            ["hpo.search_space.per_device_train_batch_size={type:log_int,low:0,high:8}"],
            "low=0 has no logarithm; use a low of 1 or more, or type=int.",
        ),
        (
            ["hpo.search_space.training.args.weight_decay={type:uniform,low:0,high:1}"],
            "hpo.search_space.training.args.weight_decay is the same parameter as hpo.search_space.weight_decay; take one "
            "of them out.",
        ),
        (
            ["hpo.metric.fold_aggregation=meen"],
            "hpo.metric.fold_aggregation=meen: must be one of mean, median, min, max; did you mean 'mean'?",
        ),
        (
            ["hpo.search_space.learning_rate.low=1"],
            "hpo.search_space.learning_rate: low=1 lies above high=0.01; exchange them.",
        ),
        (
            ["hpo.search_space.learning_rate.low=0"],
            "hpo.search_space.learning_rate: low=0 has no logarithm; use a low above 0 or type=uniform.",
        ),
        (["hpo.search_space.loss_function.choices=[]"], "hpo.search_space.loss_function.choices: must not be empty."),
        (
            ["hpo.search_space.loss_function.choices=[foca]"],
            "hpo.search_space.loss_function: 'foca' cannot be tried: must be one of weighted_ce, focal; "
            "did you mean 'focal'?",
        ),
        (
            ["hpo.search_space.learning_rate.choices=[1]"],
            "hpo.search_space.learning_rate.choices does not go with the type of this parameter; set "
            "hpo.search_space.learning_rate.type as well.",
        ),
        (
            ["hpo.search_space.lerning_rate={type:int,low:1,high:2}"],
            "hpo.search_space.lerning_rate: no parameter of that name can be searched; did you mean 'learning_rate'?",
        ),
        (
            ["hpo.search_space.focal_gamma.when={loss_functio:focal}"],
            "hpo.search_space.focal_gamma.when.loss_functio: no parameter of that name can be searched; did you mean "
            "'loss_function'?",
        ),
        (
            ["hpo.search_space.focal_gamma.when={loss_function:fokal}"],
            "hpo.search_space.focal_gamma.when.loss_function: 'fokal' can never hold: must be one of weighted_ce, focal; "
            "did you mean 'focal'?",
        ),
        (["hpo.search_space.num_train_epochs.type=integer"], "did you mean 'int'?"),
        (
            ["training.args.lerning_rate=3"],
            "training.args.lerning_rate is not a field of transformers.TrainingArguments; did you mean 'learning_rate'?",
        ),
        (["training.args.learning_rate=abc"], "training.args.learning_rate='abc': must be a number."),
        (
            ["training.args.evaluation_strategy=no"],
            "training.args.evaluation_strategy is gone from transformers; use training.args.eval_strategy.",
        ),
        (["data.eval_neg_ratio=0"], "data.eval_neg_ratio=0: must be greater than 0 or natural."),
        (
            ["data=pairs", "data.pairs=null"],
            "data.pairs names no file, which data.format=pairs needs; set data.pairs=FILE.",
        ),
        (["n_trials"], "Override 'n_trials' is not of the form KEY=VALUE; write for example hpo.trials.n_trials=30."),
        (["a=[1"], "Override 'a=[1' cannot be read"),
    ],
)
def test_mistakes_are_answered_with_place_cause_and_remedy(overrides: list[str], sentence: str) -> None:
    with pytest.raises(ParamsError) as caught:
        compose({}, overrides)
    message = str(caught.value)
    assert sentence in message
    assert "\n" not in message
    assert message.endswith((".", "?"))


def test_hpo_best_before_any_search_says_which_command_makes_it(
    workspace: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    import evbind_lib.config.compose

    # A checkout in which nobody has searched yet.
    monkeypatch.setattr(evbind_lib.config.compose, "project_folder", lambda: workspace)
    import shutil

    shutil.copytree(PROJECT / "params", workspace / "params")
    (workspace / "params" / "trainer" / "hpo_best.yaml").unlink(missing_ok=True)
    with pytest.raises(ParamsError, match=r"a search writes it, so run `evbind hpo_search hpo=quick` first"):
        compose({"trainer": "hpo_best"})


def test_a_broken_file_is_named_with_its_line(workspace: Path) -> None:
    own = workspace / "params" / "hpo"
    own.mkdir(parents=True)
    (own / "mine.yaml").write_text("trials:\n  n_trials: [3\n", encoding="utf-8")
    with pytest.raises(ParamsError, match=r"mine\.yaml, line \d+: not valid YAML"):
        compose({"hpo": "mine"})


def test_a_persons_own_files_lie_in_the_workspace(workspace: Path) -> None:
    own = workspace / "params" / "hpo"
    own.mkdir(parents=True)
    (own / "mine.yaml").write_text("defaults: [default]\ntrials: {n_trials: 7}\n", encoding="utf-8")
    assert compose({"hpo": "mine"}).hpo.trials.n_trials == 7


def test_params_are_frozen_and_copies_are_validated() -> None:
    params = compose()
    with pytest.raises(ValidationError):
        params.training.n_folds = 3  # type: ignore[misc]
    changed = params.with_values({"training.args.learning_rate": 0.5, "data.pos_neg_ratio": 2})
    assert changed.training.args["learning_rate"] == 0.5 and changed.data.pos_neg_ratio == 2.0
    assert params.training.args["learning_rate"] == 1e-3
    with pytest.raises(ValidationError):
        params.with_values({"training.args.learning_rate": -1})
    assert Params.model_validate(params.model_dump()) == params


def test_names_of_training_arguments_are_those_of_the_library() -> None:
    read = training_argument_types()
    fields = set(TrainingArguments.__dataclass_fields__)
    known = {name for name in fields if not name.startswith("_")}
    assert known - set(read) == set()
    assert set(read) - fields == {"warmup_ratio"}


@pytest.mark.parametrize(
    ("name", "dotted"),
    [
        ("learning_rate", "training.args.learning_rate"),
        ("loss_function", "training.loss_function"),
        ("data.pos_neg_ratio", "data.pos_neg_ratio"),
        ("model.max_length", "model.max_length"),
        ("training.args.adam_beta2", "training.args.adam_beta2"),
    ],
)
def test_short_names_stand_for_dotted_ones(name: str, dotted: str) -> None:
    assert dotted_name(name) == dotted


def test_words_of_the_command_line() -> None:
    assert split_arguments(["hpo=quick", "training.n_folds=3", "trainer=hpo_best", "cluster=dask", "odd"]) == (
        {"hpo": "quick", "trainer": "hpo_best", "cluster": "dask"},
        ["training.n_folds=3", "odd"],
    )


def test_state_lies_in_the_workspace(workspace: Path) -> None:
    assert resolve_sqlite("sqlite:///optuna.db") == f"sqlite:///{workspace / 'optuna.db'}"
    assert resolve_sqlite("sqlite:////abs/optuna.db") == "sqlite:////abs/optuna.db"
    assert resolve_sqlite("postgresql://host/db") == "postgresql://host/db"
    (workspace / "posts.csv").write_text("x", encoding="utf-8")
    assert resolve_path("posts.csv") == workspace / "posts.csv"
    assert resolve_path("evbind_lib/data/sample/posts.csv").is_file()  # from the checkout, wherever one stands


def test_another_type_of_pruner_or_sampler_leaves_the_options_of_the_old_one_behind() -> None:
    racing = compose({"hpo": "quick"}).hpo.pruner
    assert (racing.type, racing.model_extra) == ("racing", {"p": 0.05, "futility": 0.1})
    none = compose({"hpo": "quick"}, ["hpo.pruner.type=none"]).hpo.pruner
    assert (none.type, none.model_extra) == ("none", {})
    own = compose({"hpo": "quick"}, ["hpo.pruner.type=wilcoxon", "hpo.pruner.p_threshold=0.2"]).hpo.pruner
    assert own.model_extra == {"p_threshold": 0.2}
    kept = compose({"hpo": "quick"}, ["hpo.pruner.futility=null"]).hpo.pruner
    assert kept.model_extra == {"p": 0.05, "futility": None}
