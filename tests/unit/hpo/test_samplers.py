"""Samplers and pruners by name: options from YAML, refusals, seeds, resumption without repetition."""

from __future__ import annotations

import functools
import warnings
from collections.abc import Callable, Sequence
from typing import Any
from unittest import mock

import optuna
import pytest
from optuna.trial import TrialState

from evbind_lib.config.compose import compose
from evbind_lib.config.schema import PrunerParams, SamplerParams
from evbind_lib.errors import ParamsError
from evbind_lib.hpo.samplers import PRUNERS, SAMPLERS, build_pruner, build_sampler
from evbind_lib.hpo.space import draw

# Two ranges, a choice, and a parameter that only one of its values has.
SPACE = (
    *("~hpo.search_space." + name for name in ("per_device_train_batch_size", "num_train_epochs", "warmup_ratio")),
    *("~hpo.search_space.focal_alpha", "hpo.search_space.weight_decay={type:uniform,low:0,high:1}"),
    "hpo.search_space.focal_gamma={type:uniform,low:1,high:3,when:{loss_function:focal}}",
)


def run(sessions: Sequence[int], *overrides: str) -> list[dict[str, Any]]:
    """Parameters of the trials of a study, with a new sampler for each session of so many trials."""
    params, study = compose([*SPACE, "hpo.sampler.n_startup_trials=3", *overrides]), optuna.create_study()

    def objective(trial: optuna.Trial) -> float:
        drawn = draw(trial, params)
        return float((drawn["weight_decay"] - 0.3) ** 2 + drawn.get("focal_gamma", 2.0) * drawn["learning_rate"])

    for n_trials in sessions:
        study.sampler = build_sampler(params.hpo.sampler, n_earlier_trials=len(study.trials))
        study.optimize(objective, n_trials=n_trials)
    return [trial.params for trial in study.trials]


@pytest.mark.parametrize("kind", sorted(SAMPLERS))
def test_samplers_of_one_seed_search_alike_and_never_repeat_a_trial(kind: str) -> None:
    one_by_one, in_three = [1] * (6 if kind == "gp" else 12), [5, 5, 5]  # a Gaussian process takes its time
    with warnings.catch_warnings():
        warnings.simplefilter("error")  # nothing that a notebook would show
        first, resumed = (
            run(each, f"hpo.sampler.type={kind}", "hpo.sampler.seed=7") for each in (one_by_one, in_three)
        )
    for points in (first, resumed):
        assert len({tuple(sorted(point.items())) for point in points}) == len(points)
    assert first == run(one_by_one, f"hpo.sampler.type={kind}", "hpo.sampler.seed=7")
    assert first != run(one_by_one, f"hpo.sampler.type={kind}", "hpo.sampler.seed=8")


def test_a_resumed_low_discrepancy_sequence_is_that_of_one_go() -> None:
    for scramble in ("true", "false"):
        qmc = ("hpo.sampler.type=qmc", f"hpo.sampler.scramble={scramble}", "hpo.fixed.loss_function=weighted_ce")
        assert run([4, 5], *qmc) == run([9], *qmc)


def options_of(known: dict[str, Any], kind: str, build: Callable[[], Any]) -> dict[str, Any]:
    """Options that a constructor is called with."""
    with mock.patch.dict(known, {kind: mock.create_autospec(known[kind])}):
        build()
        return dict(known[kind].call_args.kwargs)


def sampler_of(kind: str, n_earlier_trials: int = 0, **options: Any) -> Any:
    return build_sampler(SamplerParams.model_validate({"type": kind, **options}), n_earlier_trials=n_earlier_trials)


def test_options_reach_the_sampler() -> None:
    for kind, given, expected in (
        ("tpe", {"n_ei_candidates": 3}, {"n_ei_candidates": 3, "n_startup_trials": 10, "seed": 47}),
        ("random", {"seed": None}, {"seed": None}),
        ("cmaes", {"popsize": 4}, {"popsize": 4, "seed": 47, "warn_independent_sampling": False}),
        ("qmc", {"qmc_type": "halton"}, {"qmc_type": "halton", "seed": 42}),
        ("nsgaii", {"population_size": 12}, {"population_size": 12, "seed": 47}),
    ):
        options = options_of(SAMPLERS, kind, functools.partial(sampler_of, kind, 5, **given))
        assert {name: options[name] for name in expected} == expected


def pruner_of(kind: str, **options: Any) -> Any:
    return build_pruner(PrunerParams.model_validate({"type": kind, **options}), n_folds=5)


def test_options_reach_the_pruner() -> None:
    usual = {"n_startup_trials": 5, "n_warmup_steps": 0, "interval_steps": 1}
    for kind, given, expected in (
        ("percentile", {"percentile": 30.0, "n_warmup_steps": 2}, {**usual, "percentile": 30.0, "n_warmup_steps": 2}),
        ("median", {}, usual),
        ("hyperband", {}, {"max_resource": 5}),
        ("hyperband", {"max_resource": 9}, {"max_resource": 9}),
        ("wilcoxon", {"p_threshold": 0.2}, {"p_threshold": 0.2}),
    ):
        assert options_of(PRUNERS, kind, functools.partial(pruner_of, kind, **given)) == expected
    # What a patient pruner wraps is a median pruner with the same options.
    built = functools.partial(pruner_of, "patient", patience=1, n_startup_trials=7, n_warmup_steps=1)
    expected = {"n_startup_trials": 7, "n_warmup_steps": 1, "interval_steps": 1}
    assert options_of(PRUNERS, "median", built) == expected


def test_pruners_by_their_name() -> None:
    needed = {"percentile": {"percentile": 30}, "threshold": {"lower": 0.5}, "patient": {"patience": 1}}
    for kind, maker in PRUNERS.items():
        assert type(pruner_of(kind, **needed.get(kind, {}))) is maker
    racing = pruner_of("racing", p=0.2, n_startup_trials=1)
    assert (racing.p, racing.n_startup_trials) == (0.2, 1)


def test_hyperband_prunes_after_the_first_fold_without_a_complete_trial() -> None:
    study = optuna.create_study(pruner=pruner_of("hyperband"))
    for number in range(12):
        trial = study.ask()
        for fold in range(5):
            trial.report(number, fold)
            if trial.should_prune():
                break
        study.tell(trial, number) if fold == 4 else study.tell(trial, state=TrialState.PRUNED)
    folds = [len(trial.intermediate_values) for trial in study.trials]
    assert folds[0] == 5 and min(folds) < 5


REFUSED_PRUNERS: list[tuple[tuple[str, dict[str, Any]], str, str]] = [
    (("medain", {}), "hpo.pruner.type=medain", "'median'"),
    (("racin", {}), "hpo.pruner.type=racin", "'racing'"),
    (("racing", {"marginn": 0.2}), "hpo.pruner.marginn", "'margin'"),
    (("racing", {"p": 2}), "hpo.pruner.type=racing", "p=2"),
    (("median", {"percentil": 3}), "hpo.pruner.percentil", "not an option of median"),
    (("wilcoxon", {"p_treshold": 0.1}), "hpo.pruner.p_treshold", "'p_threshold'"),
    (("wilcoxon", {"p_threshold": 3}), "hpo.pruner.type=wilcoxon", "p_threshold"),
    (("percentile", {}), "hpo.pruner.type=percentile", "'percentile'"),
    (("percentile", {"percentile": 300.0}), "hpo.pruner.type=percentile", "under hpo.pruner"),
    (("percentile", {"percentile": "low"}), "hpo.pruner.percentile=low", "must be float"),
    (("threshold", {}), "hpo.pruner.type=threshold", "lower or upper"),
    (("patient", {}), "hpo.pruner.type=patient", "'patience'"),
]
REFUSED_SAMPLERS: list[tuple[tuple[str, dict[str, Any]], str, str]] = [
    (("tp", {}), "hpo.sampler.type=tp", "'tpe'"),
    (("tpe", {"n_startup": 3}), "hpo.sampler.n_startup", "'n_startup_trials'"),
    (("tpe", {"group": True, "multivariate": False}), "hpo.sampler.type=tpe", "multivariate"),
    (("random", {"points": 3}), "hpo.sampler.points", "not an option of random"),
    (("qmc", {"qmc_type": "sobl"}), "hpo.sampler.type=qmc", "`sobol`"),
]


def test_pruners_and_samplers_that_cannot_be_are_refused_with_key_and_suggestion() -> None:
    def check(build: Callable[[], object], key: str, hint: str) -> None:
        with pytest.raises(ParamsError) as caught:
            build()
        message = str(caught.value)
        assert key in message and hint in message and "\n" not in message and message.endswith((".", "?"))

    for (kind, given), key, hint in REFUSED_PRUNERS:
        check(functools.partial(pruner_of, kind, **given), key, hint)
    for (kind, given), key, hint in REFUSED_SAMPLERS:
        check(functools.partial(sampler_of, kind, **given), key, hint)
    with pytest.raises(ParamsError, match=r"hpo\.sampler.*ev\.report_folds"):  # a grid, with the way to have one
        compose(["hpo.sampler.type=grid"])
