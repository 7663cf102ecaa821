"""Samplers and pruners by name: options from YAML, refusals, seeds, resumption without repetition."""

from __future__ import annotations

import warnings
from collections.abc import Callable
from typing import Any

import optuna
import pytest
from optuna.trial import TrialState

from evbind_lib.config.compose import compose
from evbind_lib.config.schema import Params, PrunerParams, SamplerParams
from evbind_lib.errors import ParamsError
from evbind_lib.hpo import samplers
from evbind_lib.hpo.samplers import PRUNERS, SAMPLERS, build_pruner, build_sampler, wants_single_folds
from evbind_lib.hpo.space import draw

# Two ranges, a choice, and a parameter that only one of its values has.
SPACE = {
    "learning_rate": "{type:log_uniform,low:1e-4,high:1e-2}",
    "weight_decay": "{type:uniform,low:0,high:1}",
    "loss_function": "{type:categorical,choices:[weighted_ce,focal]}",
    "focal_gamma": "{type:uniform,low:1,high:3,when:{loss_function:focal}}",
}
TAKEN_OUT = ("per_device_train_batch_size", "num_train_epochs", "warmup_ratio", "focal_alpha")


def searched(*overrides: str) -> Params:
    space = [f"hpo.search_space.{name}={entry}" for name, entry in SPACE.items()]
    return compose([*(f"~hpo.search_space.{name}" for name in TAKEN_OUT), *space, *overrides])


def score(drawn: dict[str, Any]) -> float:
    """Made-up objective, cheap and smooth."""
    return (drawn["weight_decay"] - 0.3) ** 2 + drawn.get("focal_gamma", 2.0) * drawn["learning_rate"]


def run(study: optuna.Study, params: Params, n_trials: int) -> list[dict[str, Any]]:
    """Search as the library does: a sampler for each trial, seeded by its number."""
    optuna.logging.set_verbosity(optuna.logging.ERROR)
    drawn = []
    for _ in range(n_trials):
        number = len(study.get_trials(deepcopy=False))
        study.sampler = build_sampler(params.hpo.sampler, n_earlier_trials=number)
        trial = study.ask()
        drawn.append(draw(trial, params))
        study.tell(trial, score(drawn[-1]))
    return drawn


def distinct(points: list[dict[str, Any]]) -> int:
    return len({tuple(sorted(point.items())) for point in points})


@pytest.mark.parametrize("kind", sorted(SAMPLERS))
def test_samplers_of_one_seed_search_alike_and_never_repeat_a_trial(kind: str) -> None:
    params = searched(f"hpo.sampler.type={kind}", "hpo.sampler.n_startup_trials=3", "hpo.sampler.seed=7")
    n_trials = 6 if kind == "gp" else 12  # a Gaussian process takes its time
    with warnings.catch_warnings():
        warnings.simplefilter("error")  # nothing that a notebook would show
        first = run(optuna.create_study(), params, n_trials)
        assert first == run(optuna.create_study(), params, n_trials)
    assert distinct(first) == n_trials
    other = searched(f"hpo.sampler.type={kind}", "hpo.sampler.n_startup_trials=3", "hpo.sampler.seed=8")
    assert run(optuna.create_study(), other, n_trials) != first


@pytest.mark.parametrize("kind", sorted(SAMPLERS))
def test_a_sampler_for_a_whole_session_goes_on_without_repeating(kind: str) -> None:
    params = searched(f"hpo.sampler.type={kind}", "hpo.sampler.n_startup_trials=3")
    study = optuna.create_study()
    for _ in range(3):  # two resumptions
        study.sampler = build_sampler(params.hpo.sampler, n_earlier_trials=len(study.trials))
        study.optimize(lambda trial: score(draw(trial, params)), n_trials=5)
    assert distinct([trial.params for trial in study.trials]) == 15


@pytest.mark.parametrize("scramble", ["true", "false"])
def test_a_resumed_low_discrepancy_sequence_is_that_of_one_go(scramble: str) -> None:
    params = searched("hpo.sampler.type=qmc", f"hpo.sampler.scramble={scramble}", "hpo.fixed.loss_function=weighted_ce")
    at_once, resumed = optuna.create_study(), optuna.create_study()
    at_once.sampler = build_sampler(params.hpo.sampler, n_earlier_trials=0)
    at_once.optimize(lambda trial: score(draw(trial, params)), n_trials=9)
    for n_trials in (4, 5):
        resumed.sampler = build_sampler(params.hpo.sampler, n_earlier_trials=len(resumed.trials))
        resumed.optimize(lambda trial: score(draw(trial, params)), n_trials=n_trials)
    assert [trial.params for trial in resumed.trials] == [trial.params for trial in at_once.trials]


class Recorder:
    """Stands in for a constructor and remembers its options."""

    def __init__(self, of: Callable[..., Any]) -> None:
        self.__wrapped__ = of  # whose signature is asked for
        self.options: dict[str, Any] = {}

    def __call__(self, **options: Any) -> str:
        self.options = options
        return "built"


@pytest.mark.parametrize(
    ("given", "expected"),
    [
        ({"type": "tpe", "n_ei_candidates": 3}, {"n_ei_candidates": 3, "n_startup_trials": 10, "seed": 47}),
        ({"type": "random", "seed": None}, {"seed": None}),
        ({"type": "cmaes", "popsize": 4}, {"popsize": 4, "seed": 47, "warn_independent_sampling": False}),
        ({"type": "qmc", "qmc_type": "halton"}, {"qmc_type": "halton", "seed": 42}),
        ({"type": "nsgaii", "population_size": 12}, {"population_size": 12, "seed": 47}),
    ],
)
def test_options_reach_the_sampler(given: dict, expected: dict, monkeypatch: pytest.MonkeyPatch) -> None:
    maker = Recorder(SAMPLERS[given["type"]])
    monkeypatch.setitem(samplers.SAMPLERS, given["type"], maker)
    assert build_sampler(SamplerParams.model_validate(given), n_earlier_trials=5) == "built"
    assert {name: maker.options[name] for name in expected} == expected


@pytest.mark.parametrize(
    ("given", "n_folds", "expected"),
    [
        (
            {"type": "percentile", "percentile": 30.0, "n_warmup_steps": 2},
            5,
            {"percentile": 30.0, "n_startup_trials": 5, "n_warmup_steps": 2, "interval_steps": 1},
        ),
        ({"type": "median"}, 5, {"n_startup_trials": 5, "n_warmup_steps": 0, "interval_steps": 1}),
        ({"type": "hyperband"}, 5, {"max_resource": 5}),
        ({"type": "hyperband"}, None, {}),
        ({"type": "hyperband", "max_resource": 9}, 5, {"max_resource": 9}),
        ({"type": "wilcoxon", "p_threshold": 0.2}, 5, {"p_threshold": 0.2}),
    ],
)
def test_options_reach_the_pruner(
    given: dict, n_folds: int | None, expected: dict, monkeypatch: pytest.MonkeyPatch
) -> None:
    maker = Recorder(PRUNERS[given["type"]])
    monkeypatch.setitem(samplers.PRUNERS, given["type"], maker)
    build_pruner(PrunerParams.model_validate(given), n_folds=n_folds)
    assert maker.options == expected


NEED_SOMETHING = {"percentile": {"percentile": 30}, "threshold": {"lower": 0.5}, "patient": {"patience": 1}}


@pytest.mark.parametrize("kind", sorted(PRUNERS))
def test_pruners_by_their_name(kind: str) -> None:
    pruner = build_pruner(PrunerParams.model_validate({"type": kind, **NEED_SOMETHING.get(kind, {})}))
    assert type(pruner) is PRUNERS[kind]
    assert wants_single_folds(pruner) == (kind == "wilcoxon")


def test_hyperband_prunes_after_the_first_fold_without_a_complete_trial() -> None:
    params = searched("hpo.pruner.type=hyperband")
    study = optuna.create_study(pruner=build_pruner(params.hpo.pruner, n_folds=5))
    for number in range(12):
        trial = study.ask()
        for fold in range(5):
            trial.report(number, fold)
            if trial.should_prune():
                break
        study.tell(trial, number) if fold == 4 else study.tell(trial, state=TrialState.PRUNED)
    folds = [len(trial.intermediate_values) for trial in study.trials]
    assert folds[0] == 5 and min(folds) < 5


def test_a_patient_pruner_wraps_another(monkeypatch: pytest.MonkeyPatch) -> None:
    def patient(**options: Any) -> Any:
        return build_pruner(PrunerParams.model_validate({"type": "patient", "patience": 2, **options}), n_folds=5)

    assert isinstance(patient().wrapped, optuna.pruners.MedianPruner) and not wants_single_folds(patient())
    assert isinstance(patient(wrapped={"type": "wilcoxon", "p_threshold": 0.2}).wrapped, optuna.pruners.WilcoxonPruner)
    nested = patient(wrapped={"type": "patient", "patience": 1, "wrapped": {"type": "wilcoxon"}})
    assert wants_single_folds(nested) and wants_single_folds(nested.wrapped)
    assert patient(wrapped=None).wrapped is None
    from_yaml = compose(
        ["hpo.pruner.type=patient", "hpo.pruner.patience=1", "hpo.pruner.wrapped={type: threshold, lower: 0}"]
    )
    assert isinstance(build_pruner(from_yaml.hpo.pruner).wrapped, optuna.pruners.ThresholdPruner)
    maker = Recorder(PRUNERS["median"])
    monkeypatch.setitem(samplers.PRUNERS, "median", maker)
    patient(n_startup_trials=7, n_warmup_steps=1)
    assert (maker.options["n_startup_trials"], maker.options["n_warmup_steps"]) == (7, 1)


def test_the_racing_pruner_takes_its_options() -> None:
    pruner: Any = build_pruner(PrunerParams.model_validate({"type": "racing", "p": 0.2, "n_startup_trials": 1}))
    assert type(pruner).__name__ == "RacingPruner" and (pruner.p, pruner.n_startup_trials) == (0.2, 1)


REFUSED_PRUNERS = [
    ({"type": "medain"}, "hpo.pruner.type=medain", "'median'"),
    ({"type": "racin"}, "hpo.pruner.type=racin", "'racing'"),
    ({"type": "racing", "marginn": 0.2}, "hpo.pruner.marginn", "'margin'"),
    ({"type": "racing", "p": 2}, "hpo.pruner.type=racing", "p=2"),
    ({"type": "median", "percentil": 3}, "hpo.pruner.percentil", "not an option of median"),
    ({"type": "wilcoxon", "p_treshold": 0.1}, "hpo.pruner.p_treshold", "'p_threshold'"),
    ({"type": "wilcoxon", "p_threshold": 3}, "hpo.pruner.type=wilcoxon", "p_threshold"),
    ({"type": "percentile"}, "hpo.pruner.type=percentile", "'percentile'"),
    ({"type": "percentile", "percentile": 300.0}, "hpo.pruner.type=percentile", "under hpo.pruner"),
    ({"type": "percentile", "percentile": "low"}, "hpo.pruner.type=percentile", "under hpo.pruner"),
    ({"type": "threshold"}, "hpo.pruner.type=threshold", "lower or upper"),
    ({"type": "none", "patience": 3}, "hpo.pruner.patience", "not an option of none"),
    ({"type": "patient"}, "hpo.pruner.type=patient", "'patience'"),
    ({"type": "patient", "patience": 1, "wraped": {"type": "median"}}, "hpo.pruner.wraped", "'wrapped'"),
    ({"type": "patient", "patience": 1, "wrapped": "median"}, "hpo.pruner.wrapped=median", "{type: median}"),
    ({"type": "patient", "patience": 1, "wrapped": {"type": "percentil"}}, "hpo.pruner.wrapped.type", "'percentile'"),
    (
        {"type": "patient", "patience": 1, "wrapped": {"n_startup_trials": -1}},
        "hpo.pruner.wrapped.n_startup_trials=-1",
        "",
    ),
]
REFUSED_SAMPLERS = [
    ({"type": "tp"}, "hpo.sampler.type=tp", "'tpe'"),
    ({"type": "tpe", "n_startup": 3}, "hpo.sampler.n_startup", "'n_startup_trials'"),
    ({"type": "tpe", "group": True, "multivariate": False}, "hpo.sampler.type=tpe", "multivariate"),
    ({"type": "random", "points": 3}, "hpo.sampler.points", "not an option of random"),
    ({"type": "qmc", "qmc_type": "sobl"}, "hpo.sampler.type=qmc", "`sobol`"),
]


def test_pruners_and_samplers_that_cannot_be_are_refused_with_key_and_suggestion() -> None:
    def refused(build: Callable[[], object]) -> str:
        with pytest.raises(ParamsError) as caught:
            build()
        message = str(caught.value)
        assert "\n" not in message and message.endswith((".", "?"))
        return message

    for given, key, hint in REFUSED_PRUNERS:
        message = refused(lambda given=given: build_pruner(PrunerParams.model_validate(given)))
        assert key in message and hint in message
    for given, key, hint in REFUSED_SAMPLERS:
        message = refused(lambda given=given: build_sampler(SamplerParams.model_validate(given), n_earlier_trials=0))
        assert key in message and hint in message


def test_a_grid_is_refused_with_the_way_to_have_one() -> None:
    with pytest.raises(ParamsError, match=r"hpo\.sampler\.type=grid.*ev\.report_folds"):
        compose(["hpo.sampler.type=grid"])
