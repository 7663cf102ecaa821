"""The search space: what is drawn, conditions, what cannot be searched, fixed and enqueued values."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import optuna
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from evbind_lib.config.compose import compose, with_trainer
from evbind_lib.config.distribution import Distribution
from evbind_lib.config.schema import Params, dotted_name
from evbind_lib.errors import ParamsError
from evbind_lib.hpo.objective import suggest
from evbind_lib.hpo.space import check_space, draw, enqueued_values, searched_values
from tests import checkpoints
from tests.conftest import PROJECT


def only(**entries: str) -> Params:
    """Parameters that search these names alone."""
    out = [f"~hpo.search_space.{name}" for name in compose().hpo.search_space if name not in entries]
    return compose([*out, *(f"hpo.search_space.{name}={written}" for name, written in entries.items())])


def ask(seed: int = 0, space: dict[str, Any] | None = None) -> optuna.Trial:
    return optuna.create_study(sampler=optuna.samplers.RandomSampler(seed=seed)).ask(space)


def draw_again(chosen: dict[str, Any], params: Params) -> dict[str, Any]:
    """Values of a trial that begins with these."""
    study = optuna.create_study()
    study.enqueue_trial(chosen)
    return draw(study.ask(), params)


@settings(max_examples=60, deadline=None)
@given(
    *(st.sampled_from(["uniform", "int"]), st.integers(-500, 500), st.integers(0, 500), st.integers(1, 300)),
    st.integers(0, 10_000),
)
def test_steps_are_drawn_from_low_to_the_last_one_within(kind: str, low: int, width: int, step: int, seed: int) -> None:
    scale = 1 if kind == "int" else 100
    entry = Distribution(type=kind, low=low / scale, high=(low + width) / scale, step=step / scale)
    drawn = ask(seed, {"x": entry.to_optuna()}).params["x"]
    assert min(abs(drawn - (low + k * step) / scale) for k in range(width // step + 1)) < 1e-9
    assert type(drawn) is (int if kind == "int" else float)


def test_types_are_drawn_as_they_are_written() -> None:
    params = only(
        learning_rate="{type:log_uniform,low:1e-5,high:1e-3}",
        num_train_epochs="{type:log_int,low:1,high:64}",
        weight_decay="{type:uniform,low:0,high:0.05,step:0.01}",
        per_device_train_batch_size="{type:int,low:8,high:32,step:8}",
    )
    drawn = [draw(ask(seed), params) for seed in range(200)]
    assert {values["per_device_train_batch_size"] for values in drawn} == {8, 16, 24, 32}
    assert {round(values["weight_decay"], 10) for values in drawn} == {0.0, 0.01, 0.02, 0.03, 0.04, 0.05}
    # On a logarithmic scale half of the draws lie below the geometric mean.
    assert 70 < sum(values["num_train_epochs"] <= 8 for values in drawn) < 130
    assert 70 < sum(values["learning_rate"] < 1e-4 for values in drawn) < 130
    assert type(drawn[0]["num_train_epochs"]) is int


def test_a_condition_may_name_a_parameter_by_either_of_its_names() -> None:
    params = only(
        focal_gamma="{type:categorical,choices:[1.0,2.0],when:{training.loss_function:focal}}",
        focal_alpha="{type:uniform,low:0.1,high:0.5,when:{focal_gamma:2.0}}",
        loss_function="{type:categorical,choices:[focal,weighted_ce]}",
        warmup_ratio="{type:uniform,low:0,high:0.1,when:{training.loss_function:weighted_ce}}",
    )
    check_space(params)
    drawn = [draw(ask(seed), params) for seed in range(20)]
    assert {frozenset(values) for values in drawn} == {
        frozenset({"loss_function", "warmup_ratio"}),
        frozenset({"loss_function", "focal_gamma"}),
        frozenset({"loss_function", "focal_gamma", "focal_alpha"}),
    }
    assert all(("focal_alpha" in values) == (values.get("focal_gamma") == 2.0) for values in drawn)


def test_conditions_that_form_a_cycle_are_refused() -> None:
    params = only(
        focal_gamma="{type:uniform,low:1,high:3,when:{training.focal_alpha:0.3}}",
        focal_alpha="{type:uniform,low:0.1,high:0.5,when:{training.focal_gamma:2.0}}",
    )
    with pytest.raises(ParamsError, match=r"hpo\.search_space: .*focal_alpha.* cycle") as caught:
        check_space(params)
    assert "focal_gamma" in str(caught.value)


def test_what_cannot_be_searched_is_refused_with_its_name() -> None:
    protocol = "evaluation protocol"
    for name, entry, hint in (
        ("training.seed", "{type:int,low:1,high:9}", protocol),
        ("training.n_folds", "{type:int,low:2,high:5}", protocol),
        ("data.eval_neg_ratio", "{type:uniform,low:1,high:9}", protocol),
        ("data.seed", "{type:int,low:1,high:9}", protocol),
        ("data.negatives", "{type:categorical,choices:[annotated,sampled]}", protocol),
        ("data.same_post_negatives", "{type:categorical,choices:[true,false]}", protocol),
        ("data.pairs", "{type:categorical,choices:[a.csv,b.csv]}", protocol),
        ("data.sensitive", "{type:categorical,choices:[true,false]}", protocol),
        ("learning_rat", "{type:uniform,low:0.1,high:0.2}", "did you mean 'learning_rate'"),
        ("learning_rate", "{type:uniform,low:-1,high:0.2}", "learning_rate=-1"),
        ("loss_function", "{type:categorical,choices:[focal,weighted]}", "did you mean 'weighted_ce'"),
        ("optim", "{type:categorical,choices:[adamw_torch,adamw_bnb_8bit]}", "no step can be trained"),
    ):
        with pytest.raises(ParamsError) as caught:
            check_space(compose([f"hpo.search_space.{name}={entry}"]))
        assert f"hpo.search_space.{name}" in str(caught.value) and hint in str(caught.value)


def test_how_negatives_are_drawn_for_training_can_be_searched() -> None:
    ratio = compose(["hpo.search_space.data.pos_neg_ratio={type:uniform,low:1,high:5}"])
    check_space(ratio)
    assert 1 <= draw(ask(), ratio)["data.pos_neg_ratio"] <= 5


def test_a_fixed_parameter_is_set_and_not_searched() -> None:
    params = compose(["hpo.fixed={loss_function:focal,training.args.learning_rate:0.002}"])
    assert params.training.loss_function == "focal" and params.training.args["learning_rate"] == 0.002
    assert not {"loss_function", "learning_rate"} & set(params.hpo.search_space)
    # Their condition looks at the fixed value.
    assert {"focal_gamma", "focal_alpha"} <= set(draw(ask(), params))


def test_current_values_start_a_trial() -> None:
    params = compose()
    chosen, notes = enqueued_values(params, searched_values(params))
    numbers = {"per_device_train_batch_size": 16, "num_train_epochs": 3, "warmup_ratio": 0.06, "weight_decay": 0.01}
    assert chosen == {"learning_rate": 1e-3, "loss_function": "weighted_ce", **numbers} and notes == []
    assert type(chosen["num_train_epochs"]) is int  # as it is drawn, though TrainingArguments takes 3.0
    assert draw_again(chosen, params) == chosen


def test_what_cannot_be_drawn_is_left_to_the_sampler_and_noted() -> None:
    params = compose(["hpo.search_space.num_train_epochs={type:int,low:2,high:8,step:2}"])
    values = {"training.args.learning_rate": 0.5, "per_device_train_batch_size": 64, "num_train_epochs": 3}
    values |= {"warmup_ratio": None, "loss_function": "focal", "focal_gamma": 2, "of.another.study": 1}
    chosen, notes = enqueued_values(params, values)
    assert chosen == {"loss_function": "focal", "focal_gamma": 2.0} and type(chosen["focal_gamma"]) is float
    starts = ["learning_rate=0.5", "per_device_train_batch_size=64", "num_train_epochs=3"]
    starts += ["warmup_ratio has no value", "weight_decay has no value", "focal_alpha has no value"]
    assert [note[: len(start)] for note, start in zip(notes, starts, strict=True)] == starts
    drawn = draw_again(chosen, params)
    assert drawn["focal_gamma"] == 2.0 and 1e-4 <= drawn["learning_rate"] <= 1e-2
    # What depends on a value that the sampler draws is drawn too.
    params = compose(["hpo.search_space.loss_function.choices=[focal]"])
    chosen, notes = enqueued_values(params, {**searched_values(params), "focal_gamma": 2.5})
    assert "focal_gamma" not in chosen
    assert [note.partition(",")[0] for note in notes] == [
        "loss_function=weighted_ce is outside hpo.search_space.loss_function"
    ]


@pytest.fixture(scope="module")
def stepped() -> Params:
    return compose(["hpo.search_space.weight_decay={type:uniform,low:0,high:0.05,step:0.003}"])


@settings(max_examples=60, deadline=None)
@given(seed=st.integers(0, 10_000))
def test_whatever_was_drawn_can_be_enqueued_again(stepped: Params, seed: int) -> None:
    drawn = draw(ask(seed), stepped)
    assert enqueued_values(stepped, drawn) == (drawn, [])
    trained = stepped.with_values({dotted_name(name): value for name, value in drawn.items()})
    assert enqueued_values(stepped, searched_values(trained))[0] == drawn


def test_a_search_may_begin_with_what_an_earlier_one_found(workspace: Path) -> None:
    stored = PROJECT / "tests" / "stored" / "hpo_best.yaml"
    best = workspace / "params" / "trainer" / "hpo_best.yaml"
    best.parent.mkdir(parents=True)
    best.write_text(stored.read_text(encoding="utf-8"), encoding="utf-8")
    params = compose(["hpo.enqueue=[hpo_best]"])
    check_space(params)
    found = with_trainer(params, "hpo_best")
    assert found.training.provenance is not None and params.training.provenance is None
    values, notes = enqueued_values(params, searched_values(found))
    assert values["learning_rate"] == found.training.args["learning_rate"] and not notes
    with pytest.raises(ParamsError, match="did you mean 'default'"):
        check_space(compose(["hpo.enqueue=[defalt]"]))


def test_several_encoders_are_searched_each_with_a_length_that_it_can_take(tmp_path: Path) -> None:
    long, short = checkpoints.write_bert(tmp_path / "long"), checkpoints.write_roberta(tmp_path / "short")
    space = f"hpo.search_space.model.name={{type: categorical, choices: ['{long}', '{short}']}}"
    dropout = "hpo.search_space.model.dropout={type: uniform, low: 0.0, high: 0.3}"
    schedule = "hpo.search_space.lr_scheduler_type={type: categorical, choices: [linear, cosine]}"
    smoothing = "hpo.search_space.training.loss_args.smoothing={type: uniform, low: 0.0, high: 0.2}"
    rates = [
        f"hpo.search_space.learning_rate={{type: log_uniform, low: 1e-6, high: 1e-5, when: {{model.name: {long}}}}}",
        "hpo.search_space.training.args.learning_rate="
        f"{{type: log_uniform, low: 1e-4, high: 1e-3, when: {{model.name: ['{short}']}}}}",
    ]
    chosen = [f"model.name={long}", "model.max_length=100", space, dropout, schedule, smoothing, *rates]
    params = compose([*chosen, "hpo.fixed={loss_function: smoothed_ce}"], model="pretrained")
    check_space(params)
    study = optuna.create_study(sampler=optuna.samplers.RandomSampler(seed=0))
    tried = [suggest(study.ask(), params) for _ in range(12)]
    assert {(each.model.name, each.model.max_length) for each in tried} == {(str(long), 100), (str(short), 64)}
    assert all((each.training.args["learning_rate"] < 5e-5) == (each.model.name == str(long)) for each in tried)
    drawn = draw(study.ask(), params)
    assert enqueued_values(params, {dotted_name(name): value for name, value in drawn.items()}) == (drawn, [])
    assert {each.training.args["lr_scheduler_type"] for each in tried} == {"linear", "cosine"}
    assert all(0 <= each.model.dropout <= 0.3 and 0 <= each.training.loss_args["smoothing"] <= 0.2 for each in tried)
