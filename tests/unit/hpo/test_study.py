"""What trials and studies record, which trials count, when a search ends early, and which study may be gone on with."""

from __future__ import annotations

import re
import sys
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

import optuna
import pytest
from optuna.trial import FrozenTrial, TrialState, create_trial

from evbind_lib.config.compose import compose
from evbind_lib.config.schema import Params
from evbind_lib.errors import SearchError
from evbind_lib.hpo.objective import study_identity
from evbind_lib.hpo.study import (
    StudyRecord,
    TrialRecord,
    check_storage,
    complete_trials,
    count_trials,
    is_minimised,
    metric_name,
    open_storage,
    open_study,
    quiet_optuna,
    storage_of,
    study_uid,
)
from evbind_lib.training.losses import LOSSES
from evbind_lib.training.metrics import METRICS, Metric


def study_of(*rows: dict[str, Any], direction: str = "maximize") -> optuna.Study:
    """A study with trials; a row is what `create_trial` takes."""
    study = optuna.create_study(direction=direction)
    study.add_trials([create_trial(**row) for row in rows])
    return study


def scored(*values: float) -> list[dict[str, Any]]:
    return [{"value": value} for value in values]


def numbers(trials: list[FrozenTrial]) -> list[int]:
    return [trial.number for trial in trials]


def test_a_record_writes_what_is_set_and_reads_what_is_there() -> None:
    study = optuna.create_study()
    trial = study.ask()
    TrialRecord(worker="host 1 2", fold_scores=[0.5]).write(trial)
    TrialRecord(error="no", interrupted=True).write(trial)
    assert trial.user_attrs == {"worker": "host 1 2", "fold_scores": [0.5], "error": "no", "interrupted": True}
    trial.set_user_attr("of the user's own", 1)
    assert TrialRecord.read(study.trials[0]) == TrialRecord(
        worker="host 1 2", fold_scores=[0.5], error="no", interrupted=True
    )
    uid = study_uid(study)
    assert study_uid(study) == uid == StudyRecord.read(study).uid and study_uid(optuna.create_study()) != uid


ROWS = [
    *scored(0.7, 0.8, 0.8),
    {"state": TrialState.PRUNED, "value": 0.95},
    {"state": TrialState.FAIL},
    {"value": 0.99, "user_attrs": {"surplus": True}},
    {"state": TrialState.FAIL, "user_attrs": {"interrupted": True}},
    {"state": TrialState.RUNNING},
]


def test_what_was_cut_off_or_one_too_many_does_not_count() -> None:
    study = study_of(*ROWS)
    assert count_trials(study) == {"total": 5, "complete": 3, "pruned": 1, "failed": 1}
    assert numbers(complete_trials(study)) == [0, 1, 2]


def test_direction_and_name_of_the_values() -> None:
    study = study_of(*scored(0.5), direction="minimize")
    assert is_minimised(study) and not is_minimised(study_of())
    assert metric_name(study) == "objective value"
    with warnings.catch_warnings(action="ignore"):
        study.set_metric_names(["log_loss"])
    assert metric_name(study) == "log_loss"


def plain(trial: optuna.Trial) -> float:
    return float(trial.suggest_float("x", 0, 1)) * FACTOR


FACTOR = 2.0


def identity(*overrides: str, objective: Callable[[optuna.Trial], float] = plain) -> dict[str, Any]:
    return study_identity(objective, compose([*overrides]))


def test_a_study_is_gone_on_with_by_the_same_objective_alone(workspace: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    params = compose()
    first = open_study(params, identity())
    assert storage_of(first) is not None and StudyRecord.read(first).pruner is not None
    first.add_trial(create_trial(value=0.5))
    again = open_study(params, identity())
    assert len(again.trials) == 1 and StudyRecord.read(again).uid == StudyRecord.read(first).uid
    with monkeypatch.context() as edited:
        edited.setattr(sys.modules[__name__], "FACTOR", 3.0)
        other_global = identity()
    for other, difference in [
        (other_global, "code, or data that it reads"),
        (identity(objective=lambda trial: 0.5), "objective"),
        (identity("model=deberta_v3_base"), "model"),
        (identity("training.seed=1"), "seed"),
        (identity("data.pos_neg_ratio=2"), "data.pos_neg_ratio"),
        ({**identity(), "direction": "minimize"}, "direction"),
    ]:
        with pytest.raises(SearchError) as caught:
            open_study(params, other)
        message = str(caught.value)
        assert difference in message and "hpo.study.study_name=NAME" in message and 'study="NAME"' in message
        assert open_study(params, other, "another").study_name == "another"
        optuna.delete_study(study_name="another", storage=storage_of(first))


def test_a_study_of_before_it_was_called_after_data_and_model_is_gone_on_with_where_it_is_the_same(
    workspace: Path,
) -> None:
    params = compose(model="deberta_v3_base")
    of_this, name = study_identity(plain, params), params.hpo.study.study_name
    assert open_study(params, of_this, "deberta-v3-hpo").study_name != name  # as it was called before
    assert open_study(params, of_this).study_name == "deberta-v3-hpo"
    assert open_study(params, of_this, "mine").study_name == "mine"  # what is named is never another
    other = study_identity(plain, params.with_values({"training.seed": 1}))
    assert open_study(params, other).study_name == name
    optuna.delete_study(study_name=name, storage=open_storage(params.hpo.study.storage))
    assert open_study(params, {**other, "source": "memory"}).study_name == "memory-deberta-v3-base"


def test_what_changes_no_score_or_is_known_of_one_side_only_is_not_compared(workspace: Path) -> None:
    params = compose()
    open_study(params, identity())
    for override in (
        "training.args.per_device_eval_batch_size=8",
        "hpo.trials.n_trials=99",
        "hpo.metric.name=roc_auc",
        "hpo.fixed={learning_rate: 0.001}",  # searched before, fixed now
        "model.threads=2",
    ):
        open_study(params, identity(override))


@pytest.mark.parametrize(
    "override",
    [
        *("model.max_length=64", "model.precision=bf16", "data.negative_strategy=hard", "data.pos_neg_ratio=2"),
        *("training.args.weight_decay=0.5", "training.args.max_grad_norm=0.5", "~training.args.warmup_ratio"),
        *("training.loss_args.margin=1", "training.focal_gamma=1"),
    ],
)
def test_a_fixed_setting_that_changes_scores_is_refused_by_name(override: str, workspace: Path) -> None:
    before, now = (study_identity(plain, replaced_space(compose([*each]))) for each in ((), (override,)))
    open_study(compose(), before)
    with pytest.raises(SearchError, match=re.escape(override.lstrip("~").partition("=")[0])):
        open_study(compose(), now)
    open_study(compose(), before)


def replaced_space(params: Params) -> Params:
    """Parameters with nothing searched but the learning rate."""
    rate = {"type": "log_uniform", "low": 1e-3, "high": 1e-2}
    return params.with_values({"hpo.search_space": {"learning_rate": rate}})


def test_what_was_ever_searched_may_be_fixed_and_searched_again(workspace: Path) -> None:
    for override in ("hpo.fixed={weight_decay: 0.01}", "hpo.fixed={weight_decay: 0.02}", "hpo.trials.n_trials=9"):
        open_study(compose(), identity())
        open_study(compose(), identity(override))


def test_a_field_that_a_newer_version_added_counts_as_its_default(workspace: Path) -> None:
    before = identity()
    older = {name: value for name, value in before["settings"].items() if name != "training.focal_gamma"}
    older.pop("data.negative_strategy")
    open_study(compose(), {**before, "settings": older, "searched": []})
    open_study(compose(), {**before, "searched": []})
    with pytest.raises(SearchError, match=r"data\.negative_strategy"):
        open_study(compose(), {**identity("data.negative_strategy=hard"), "searched": []})


def test_weights_replaced_in_the_same_folder_are_another_model(workspace: Path) -> None:
    (workspace / "model").mkdir()
    weights = workspace / "model" / "model.safetensors"
    weights.write_bytes(b"first")
    open_study(compose(), identity("model=pretrained", "model.name=model"))
    weights.write_bytes(b"other")
    with pytest.raises(SearchError, match=r"files in model\.name"):
        open_study(compose(), identity("model=pretrained", "model.name=model"))


def test_own_losses_and_metrics_count_by_their_code(monkeypatch: pytest.MonkeyPatch) -> None:
    built_in = identity("hpo.metric.name=recall")["registered"]
    assert built_in == {"loss weighted_ce": None, "loss focal": None, "metric recall": None}
    monkeypatch.setitem(METRICS, "recall", Metric(lambda labels, values: 1.0))
    monkeypatch.setitem(LOSSES, "mine", lambda params, labels: None)
    chosen = "hpo.search_space.loss_function.choices=[focal, mine]"
    one = identity(chosen, "hpo.metric.name=recall")["registered"]
    assert one["loss focal"] is None and one["loss mine"] and one["metric recall"]
    monkeypatch.setitem(LOSSES, "mine", lambda params, labels: 1.0)
    other = identity(chosen, "hpo.metric.name=recall")["registered"]
    assert other["loss mine"] != one["loss mine"] and other["metric recall"] == one["metric recall"]


def test_an_objective_without_a_digest_is_the_same_in_this_process_alone(workspace: Path) -> None:
    import threading

    lock = threading.Lock()

    def locked(trial: optuna.Trial) -> float:
        with lock:
            return 0.5

    one = identity(objective=locked)
    assert identity(objective=locked) == one and "no digest" in one["code"]


def test_a_study_of_a_script_is_refused_unless_it_is_empty_or_handed_in(workspace: Path) -> None:
    params = compose()
    made = optuna.create_study(
        study_name="deberta-v3-hpo", storage=open_storage("sqlite:///optuna.db"), direction="maximize"
    )
    made.enqueue_trial({"x": 0.5})
    assert StudyRecord.read(open_study(params, identity())).identity == identity()
    made = optuna.create_study(study_name="scripted", storage=storage_of(made), direction="maximize")
    made.optimize(plain, n_trials=1)
    with pytest.raises(SearchError, match="scripted"):
        open_study(params, identity(), "scripted")
    assert open_study(params, identity(), made) is made
    with pytest.raises(SearchError, match="code"):
        open_study(params, {**identity(), "code": "other"}, made)


def test_a_study_that_exists_can_be_refused(workspace: Path) -> None:
    params = compose(["hpo.study.load_if_exists=false"])
    open_study(params, identity())
    with pytest.raises(SearchError, match="load_if_exists"):
        open_study(params, identity())


@pytest.mark.parametrize(
    "storage", ["nothing", "sqlite:////proc/none/optuna.db", "postgresql://nobody:secret@localhost:1/none"]
)
def test_a_storage_that_cannot_be_opened(storage: str) -> None:
    with pytest.raises(SearchError, match=r"hpo\.study\.storage=") as caught:
        open_storage(storage)
    assert "secret" not in str(caught.value)
    if not storage.startswith("sqlite"):
        with pytest.raises(SearchError, match=r"hpo\.study\.storage="):
            check_storage(storage)


def test_a_missing_driver_is_one_sentence(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "psycopg", None)
    with pytest.raises(SearchError, match=r"evbind\[postgres\]"):
        open_storage("postgresql://nobody@localhost:1/none")


def test_checking_a_storage_makes_nothing(workspace: Path) -> None:
    check_storage("sqlite:///new/folder/optuna.db")
    assert not list(workspace.iterdir())
    with pytest.raises(SearchError, match="cannot be written"):
        check_storage(f"sqlite:///{workspace}")


def test_optuna_logs_as_before_after_a_search() -> None:
    optuna.logging.set_verbosity(optuna.logging.WARNING)
    with pytest.raises(ZeroDivisionError), quiet_optuna():
        assert optuna.logging.get_verbosity() == optuna.logging.ERROR
        raise ZeroDivisionError
    assert optuna.logging.get_verbosity() == optuna.logging.WARNING


def test_a_folder_may_have_any_sign_in_its_name(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (folder := tmp_path / "a {z} %20 ? # 'b'").mkdir()
    monkeypatch.setenv("EVBIND_WORKSPACE", str(folder))
    open_storage("sqlite:///optuna.db").create_new_study([optuna.study.StudyDirection.MAXIMIZE], "here")
    assert {file.name for file in folder.iterdir()} == {"optuna.db", "optuna.db.lock"}
    assert [file.name for file in tmp_path.iterdir()] == [folder.name]
