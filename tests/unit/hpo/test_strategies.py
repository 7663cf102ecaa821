"""Samplers and pruners by name: options from YAML, refusals, seeds, resumption without repetition."""

from __future__ import annotations

import warnings
from collections.abc import Callable
from typing import Any

import optuna
import pytest
from optuna.trial import TrialState

from evbind_lib.config.compose import Params, compose
from evbind_lib.config.schema import PrunerParams, SamplerParams
from evbind_lib.errors import ParamsError
from evbind_lib.hpo.samplers import PRUNERS, SAMPLERS, build_pruner, build_sampler, reports_each_fold_alone
from evbind_lib.hpo.space import suggest

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
    return compose({}, [*(f"~hpo.search_space.{name}" for name in TAKEN_OUT), *space, *overrides])


def loss(drawn: dict[str, Any]) -> float:
    """Made-up objective, cheap and smooth."""
    return (drawn["weight_decay"] - 0.3) ** 2 + drawn.get("focal_gamma", 2.0) * drawn["learning_rate"]


def run(study: optuna.Study, params: Params, n_trials: int) -> list[dict[str, Any]]:
    """Search as the library does: a sampler for each trial, seeded by its number."""
    optuna.logging.set_verbosity(optuna.logging.ERROR)
    drawn = []
    for _ in range(n_trials):
        number = len(study.get_trials(deepcopy=False))
        study.sampler = build_sampler(params.hpo.sampler, n_earlier_trials=number, params=params)
        trial = study.ask()
        drawn.append(suggest(trial, params))
        study.tell(trial, loss(drawn[-1]))
    return drawn


def as_keys(points: list[dict[str, Any]]) -> set[tuple]:
    return {tuple(sorted(point.items())) for point in points}


@pytest.mark.parametrize("kind", sorted(SAMPLERS))
def test_samplers_of_one_seed_search_alike_and_never_repeat_a_trial(kind: str) -> None:
    params = searched(f"hpo.sampler.type={kind}", "hpo.sampler.n_startup_trials=3", "hpo.sampler.seed=7")
    n_trials = 6 if kind == "gp" else 12  # a Gaussian process takes its time
    with warnings.catch_warnings():
        warnings.simplefilter("error")  # nothing that a notebook would show
        first = run(optuna.create_study(), params, n_trials)
        assert first == run(optuna.create_study(), params, n_trials)
    assert len(as_keys(first)) == n_trials
    other = searched(f"hpo.sampler.type={kind}", "hpo.sampler.n_startup_trials=3", "hpo.sampler.seed=8")
    assert run(optuna.create_study(), other, n_trials) != first


@pytest.mark.parametrize("kind", sorted(SAMPLERS))
def test_a_sampler_for_a_whole_session_goes_on_without_repeating(kind: str) -> None:
    params = searched(f"hpo.sampler.type={kind}", "hpo.sampler.n_startup_trials=3")
    study = optuna.create_study()
    for _ in range(3):  # two resumptions
        n_earlier = len(study.trials)
        study.sampler = build_sampler(params.hpo.sampler, n_earlier_trials=n_earlier, params=params)
        study.optimize(lambda trial: loss(suggest(trial, params)), n_trials=5)
    assert len(as_keys([trial.params for trial in study.trials])) == 15


@pytest.mark.parametrize("scramble", ["true", "false"])
def test_a_resumed_low_discrepancy_sequence_is_that_of_one_go(scramble: str) -> None:
    params = searched("hpo.sampler.type=qmc", f"hpo.sampler.scramble={scramble}", "hpo.fixed.loss_function=weighted_ce")
    at_once, resumed = optuna.create_study(), optuna.create_study()
    at_once.sampler = build_sampler(params.hpo.sampler, n_earlier_trials=0, params=params)
    at_once.optimize(lambda trial: loss(suggest(trial, params)), n_trials=9)
    for n_trials in (4, 5):
        resumed.sampler = build_sampler(params.hpo.sampler, n_earlier_trials=len(resumed.trials), params=params)
        resumed.optimize(lambda trial: loss(suggest(trial, params)), n_trials=n_trials)
    assert [trial.params for trial in resumed.trials] == [trial.params for trial in at_once.trials]


@pytest.mark.parametrize("kind", ["tpe", "gp", "nsgaii", "random", "qmc"])
def test_samplers_for_several_objectives_with_bounds(kind: str) -> None:
    params = searched(
        "hpo.metric.name=[macro_f1,seconds]", f"hpo.sampler.type={kind}", "hpo.sampler.n_startup_trials=3"
    )
    study = optuna.create_study(directions=["maximize", "minimize"])
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        for number in range(6):
            study.sampler = build_sampler(params.hpo.sampler, n_earlier_trials=number, params=params)
            trial = study.ask()
            drawn = suggest(trial, params)
            trial.set_constraint("recall.low", 0.5 - drawn["weight_decay"])
            study.tell(trial, [-loss(drawn), drawn["learning_rate"]])
    assert len(as_keys([trial.params for trial in study.trials])) == 6


def test_a_grid_tries_every_point_once_over_sessions_and_kills() -> None:
    params = searched("hpo.sampler.type=grid", "hpo.sampler.points=3")
    study = optuna.create_study()
    n_points = 3 * 3 * (1 + 3)  # rates, decays, weighted_ce once and focal with three gammas
    run(study, params, 5)
    study.sampler = build_sampler(params.hpo.sampler, n_earlier_trials=5, params=params)
    cut_off = study.ask()  # killed before it drew anything: its point comes again
    study.tell(cut_off, state=TrialState.FAIL)
    retried = study.ask()  # killed later: queued again with its own parameters
    drawn = suggest(retried, params)
    study.tell(retried, state=TrialState.FAIL)
    study.enqueue_trial(drawn)
    run(study, params, n_points - 5)
    complete = study.get_trials(states=(TrialState.COMPLETE,))
    assert len(as_keys([trial.params for trial in complete])) == len(complete) == n_points
    sampler = build_sampler(params.hpo.sampler, n_earlier_trials=0, params=params)
    assert sampler.is_exhausted(study) and len(sampler.points) == n_points  # type: ignore[attr-defined]
    run(study, params, 1)  # a trial too many repeats a point, and does not raise


def test_workers_that_ask_at_once_get_different_points() -> None:
    params = searched("hpo.sampler.type=grid", "hpo.sampler.points=2")
    study = optuna.create_study()
    study.sampler = build_sampler(params.hpo.sampler, n_earlier_trials=0, params=params)
    numbers = [study._storage.create_new_trial(study._study_id) for _ in range(6)]  # none has drawn yet
    trials = [optuna.Trial(study, number) for number in reversed(numbers)]
    assert len(as_keys([suggest(trial, params) for trial in trials])) == 6


def test_a_grid_fills_what_an_enqueued_trial_leaves_open() -> None:
    params = searched("hpo.sampler.type=grid", "hpo.sampler.points=2")
    study = optuna.create_study()
    study.enqueue_trial({"weight_decay": 0.123})
    (drawn,) = run(study, params, 1)
    assert drawn["weight_decay"] == 0.123 and drawn["learning_rate"] in (1e-4, 1e-2)
    assert not build_sampler(params.hpo.sampler, n_earlier_trials=0, params=params).is_exhausted(study)  # type: ignore[attr-defined]


def test_a_grid_too_large_to_be_meant_is_refused() -> None:
    with pytest.raises(ParamsError, match=r"the grid has more than 100000 points; lower hpo\.sampler\.points"):
        build_sampler(
            SamplerParams.model_validate({"type": "grid", "points": 100}), n_earlier_trials=0, params=searched()
        )


def test_options_reach_the_sampler_and_the_pruner() -> None:
    def sampler(**options: Any) -> Any:
        return build_sampler(SamplerParams.model_validate(options), n_earlier_trials=0)

    assert sampler(type="tpe", n_ei_candidates=3)._n_ei_candidates == 3
    grouped = sampler(type="tpe", group=True)
    assert grouped._group and grouped._multivariate
    assert sampler(type="tpe", multivariate=False)._multivariate is False
    assert sampler(type="cmaes", popsize=4)._popsize == 4
    assert sampler(type="qmc", qmc_type="halton")._qmc_type == "halton"
    assert sampler(type="nsgaii", population_size=12)._population_size == 12
    pruner = build_pruner(PrunerParams.model_validate({"type": "percentile", "percentile": 30.0, "n_warmup_steps": 2}))
    assert pruner._percentile == 30.0 and pruner._n_warmup_steps == 2


NEED_SOMETHING = {"percentile": {"percentile": 30}, "threshold": {"lower": 0.5}, "patient": {"patience": 1}}


@pytest.mark.parametrize("kind", sorted(PRUNERS))
def test_pruners_by_their_name(kind: str) -> None:
    pruner = PrunerParams.model_validate({"type": kind, **NEED_SOMETHING.get(kind, {})})
    assert type(build_pruner(pruner)) is PRUNERS[kind]
    assert reports_each_fold_alone(pruner) == (kind == "wilcoxon")


def test_hyperband_knows_how_many_folds_there_are() -> None:
    pruner = PrunerParams(type="hyperband")
    assert build_pruner(pruner, n_folds=5)._max_resource == 5
    assert build_pruner(pruner)._max_resource == "auto"
    own = PrunerParams.model_validate({"type": "hyperband", "max_resource": 9})
    assert build_pruner(own, n_folds=5)._max_resource == 9
    assert build_pruner(pruner, n_folds=5)._min_resource == 1


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


def test_a_patient_pruner_wraps_another() -> None:
    def patient(**options: Any) -> PrunerParams:
        return PrunerParams.model_validate({"type": "patient", "patience": 2, **options})

    usual = build_pruner(patient(n_startup_trials=7, n_warmup_steps=1))
    assert usual._patience == 2 and isinstance(usual._wrapped_pruner, optuna.pruners.MedianPruner)
    assert (usual._wrapped_pruner._n_startup_trials, usual._wrapped_pruner._n_warmup_steps) == (7, 1)
    wilcoxon = patient(wrapped={"type": "wilcoxon", "p_threshold": 0.2})
    assert build_pruner(wilcoxon)._wrapped_pruner._p_threshold == 0.2
    assert reports_each_fold_alone(wilcoxon)
    assert reports_each_fold_alone(patient(wrapped={"type": "patient", "patience": 1, "wrapped": {"type": "wilcoxon"}}))
    assert not reports_each_fold_alone(patient())
    assert build_pruner(patient(wrapped=None))._wrapped_pruner is None
    assert build_pruner(patient(wrapped={"type": "hyperband"}), n_folds=5)._wrapped_pruner._max_resource == 5
    from_yaml = compose({}, ["hpo.pruner.type=patient", "hpo.pruner.patience=1", "hpo.pruner.wrapped={type:median}"])
    assert build_pruner(from_yaml.hpo.pruner)._patience == 1


def test_the_racing_pruner_takes_its_options() -> None:
    pytest.importorskip("evbind_lib.hpo.racing.pruner")
    pruner = build_pruner(PrunerParams.model_validate({"type": "racing", "p": 0.2, "n_startup_trials": 1}))
    assert type(pruner).__name__ == "RacingPruner"
    with pytest.raises(ParamsError, match=r"hpo\.pruner\.marginn is not an option of racing; did you mean 'margin'\?"):
        build_pruner(PrunerParams.model_validate({"type": "racing", "marginn": 0.2}))


def refusal(build: Callable[[], object]) -> str:
    with pytest.raises(ParamsError) as caught:
        build()
    message = str(caught.value)
    assert "\n" not in message and message.endswith((".", "?"))
    return message


@pytest.mark.parametrize(
    ("pruner", "sentence"),
    [
        ({"type": "medain"}, "hpo.pruner.type=medain: there is none of that name; did you mean 'median'?"),
        ({"type": "racin"}, "hpo.pruner.type=racin: there is none of that name; did you mean 'racing'?"),
        ({"type": "median", "percentil": 3}, "hpo.pruner.percentil is not an option of median"),
        (
            {"type": "wilcoxon", "p_treshold": 0.1},
            "hpo.pruner.p_treshold is not an option of wilcoxon; did you mean 'p_threshold'?",
        ),
        ({"type": "wilcoxon", "p_threshold": 3}, "hpo.pruner.type=wilcoxon: p_threshold must be between 0 and 1"),
        ({"type": "percentile"}, "hpo.pruner.type=percentile: it needs hpo.pruner.percentile; set it."),
        ({"type": "percentile", "percentile": 300.0}, "change its options under hpo.pruner."),
        ({"type": "percentile", "percentile": "low"}, "hpo.pruner.percentile=low: must be a number."),
        ({"type": "threshold"}, "hpo.pruner.type=threshold: Either lower or upper must be specified; change"),
        ({"type": "none", "patience": 3}, "hpo.pruner.patience is not an option of none"),
        ({"type": "patient"}, "hpo.pruner.type=patient: it needs hpo.pruner.patience; set it."),
        (
            {"type": "patient", "patience": 1, "wraped": {"type": "median"}},
            "hpo.pruner.wraped is not an option of patient; did you mean 'wrapped'?",
        ),
        (
            {"type": "patient", "patience": 1, "wrapped": "median"},
            "hpo.pruner.wrapped=median: must be a pruner, for example {type: median}.",
        ),
        (
            {"type": "patient", "patience": 1, "wrapped": {"type": "percentil"}},
            "hpo.pruner.wrapped.type=percentil: there is none of that name; did you mean 'percentile'?",
        ),
        (
            {"type": "patient", "patience": 1, "wrapped": {"type": "percentile"}},
            "hpo.pruner.wrapped.type=percentile: it needs hpo.pruner.wrapped.percentile; set it.",
        ),
        (
            {"type": "patient", "patience": 1, "wrapped": {"n_startup_trials": -1}},
            "hpo.pruner.wrapped.n_startup_trials=-1: must be greater than or equal to 0.",
        ),
        ({"type": "patient", "patience": 1, "wrapped_pruner": 1}, "hpo.pruner.wrapped_pruner is not an option of"),
    ],
)
def test_pruners_that_cannot_be(pruner: dict, sentence: str) -> None:
    assert sentence in refusal(lambda: build_pruner(PrunerParams.model_validate(pruner)))


@pytest.mark.parametrize(
    ("sampler", "sentence"),
    [
        ({"type": "tp"}, "hpo.sampler.type=tp: there is none of that name; did you mean 'tpe'?"),
        (
            {"type": "tpe", "n_startup": 3},
            "hpo.sampler.n_startup is not an option of tpe; did you mean 'n_startup_trials'?",
        ),
        ({"type": "tpe", "n_ei_candidates": "many"}, "hpo.sampler.n_ei_candidates=many: must be a whole number."),
        ({"type": "tpe", "group": True, "multivariate": False}, "hpo.sampler.type=tpe: "),
        # What YAML cannot give is no option: functions, objects, and what Optuna has given up.
        ({"type": "tpe", "gamma": 3}, "hpo.sampler.gamma is not an option of tpe"),
        ({"type": "tpe", "constraints_func": 3}, "hpo.sampler.constraints_func is not an option of tpe"),
        ({"type": "gp", "independent_sampler": "x"}, "hpo.sampler.independent_sampler is not an option of gp"),
        ({"type": "nsgaii", "crossover": "x"}, "hpo.sampler.crossover is not an option of nsgaii"),
        ({"type": "cmaes", "source_trials": []}, "hpo.sampler.source_trials is not an option of cmaes"),
        ({"type": "cmaes", "x0": {}}, "hpo.sampler.x0 is not an option of cmaes"),
        ({"type": "random", "points": 3}, "hpo.sampler.points is not an option of random"),
        ({"type": "qmc", "qmc_type": "sobl"}, "Choose either `halton` or `sobol`; change its options"),
        ({"type": "grid", "point": 3}, "hpo.sampler.point is not an option of grid; did you mean 'points'?"),
        ({"type": "grid", "points": 0}, "hpo.sampler.points=0: must be greater than or equal to 1."),
    ],
)
def test_samplers_that_cannot_be(sampler: dict, sentence: str) -> None:
    assert sentence in refusal(lambda: build_sampler(SamplerParams.model_validate(sampler), n_earlier_trials=0))
