"""Samplers and pruners by name: options from YAML, refusals, seeds."""

from __future__ import annotations

import optuna
import pytest

from evbind_lib.errors import ParamsError
from evbind_lib.schema import PrunerParams, SamplerParams
from evbind_lib.strategies import PRUNERS, SAMPLERS, build_pruner, build_sampler


@pytest.mark.parametrize("kind", sorted(SAMPLERS))
def test_samplers_of_one_seed_suggest_alike_and_go_on_differently(kind: str) -> None:
    def values(n_earlier: int) -> list[float]:
        sampler = build_sampler(SamplerParams(type=kind, seed=7, n_startup_trials=2), n_earlier_trials=n_earlier)
        study = optuna.create_study(sampler=sampler)
        study.optimize(lambda trial: trial.suggest_float("x", 0, 1) ** 2, n_trials=4)
        return [trial.params["x"] for trial in study.trials]

    assert values(0) == values(0)
    assert values(0) != values(5)


def test_options_reach_the_sampler_and_the_pruner() -> None:
    sampler = build_sampler(SamplerParams.model_validate({"type": "tpe", "n_ei_candidates": 3}), n_earlier_trials=0)
    assert sampler._n_ei_candidates == 3
    pruner = build_pruner(PrunerParams.model_validate({"type": "percentile", "percentile": 30.0, "n_warmup_steps": 2}))
    assert pruner._percentile == 30.0 and pruner._n_warmup_steps == 2


@pytest.mark.parametrize("kind", sorted(set(PRUNERS) - {"percentile", "threshold"}))
def test_pruners_need_nothing_but_their_name(kind: str) -> None:
    assert isinstance(build_pruner(PrunerParams(type=kind)), PRUNERS[kind])


@pytest.mark.parametrize(
    ("pruner", "sentence"),
    [
        ({"type": "medain"}, "hpo.pruner.type=medain: there is none of that name; did you mean 'median'?"),
        ({"type": "median", "percentil": 3}, "hpo.pruner.percentil is not an option of median"),
        ({"type": "percentile"}, "hpo.pruner.type=percentile: "),
        ({"type": "percentile", "percentile": 300.0}, "change its options under hpo.pruner."),
    ],
)
def test_pruners_that_cannot_be(pruner: dict, sentence: str) -> None:
    with pytest.raises(ParamsError) as caught:
        build_pruner(PrunerParams.model_validate(pruner))
    assert sentence in str(caught.value)


@pytest.mark.parametrize(
    ("sampler", "sentence"),
    [
        ({"type": "tp"}, "hpo.sampler.type=tp: there is none of that name; did you mean 'tpe'?"),
        (
            {"type": "tpe", "n_startup": 3},
            "hpo.sampler.n_startup is not an option of tpe; did you mean 'n_startup_trials'?",
        ),
    ],
)
def test_samplers_that_cannot_be(sampler: dict, sentence: str) -> None:
    with pytest.raises(ParamsError) as caught:
        build_sampler(SamplerParams.model_validate(sampler), n_earlier_trials=0)
    assert sentence in str(caught.value)
