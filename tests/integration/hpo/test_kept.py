"""Finished folds are kept and given back as they were, by what decides them and nothing else."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import numpy as np
import pandas as pd
import pytest

from evbind_lib.config.compose import Params, compose
from evbind_lib.training.cache import FoldCache, parameter_key
from evbind_lib.training.result import EpochResult, FoldResult

IDENTITY = {"data": "d", "folds": "f"}


def report(fold: int, probabilities: list[float]) -> FoldResult:
    n = len(probabilities)
    table = pd.DataFrame(
        {
            "fold": np.full(n, fold, np.int8),
            "post_id": [f"s_{number}" for number in range(n)],
            "sentence_id": [str(number) for number in range(n)],
            "criterion_id": ["A"] * n,
            "label": (np.arange(n) % 2).astype(np.int8),
            "probability": np.array(probabilities, np.float32),
        }
    )
    epochs = (EpochResult(fold, 1, 0.7, {"macro_f1": 0.5, "roc_auc": float("nan")}, 1.5),)
    return FoldResult(fold, {"macro_f1": 0.5, "roc_auc": float("nan")}, epochs, table, 2.5, 10, n, 100.0, 4)


def test_a_fold_comes_back_as_it_was(workspace: Path) -> None:
    kept, original = (
        FoldCache(
            "study/with 'signs' ..",
        ),
        report(0, [0.25, 0.5, 0.125]),
    )
    kept.keep("key", original)
    back = FoldCache("study/with 'signs' ..").load("key", 0)
    assert back is not None
    pd.testing.assert_frame_equal(back.predictions, original.predictions)
    same = {name: value for name, value in vars(original).items() if name not in {"predictions", "epochs", "metrics"}}
    assert {name: getattr(back, name) for name in same} == same
    assert back.metrics == pytest.approx(original.metrics, nan_ok=True) and back.epochs[0].epoch == 1
    assert kept.load("key", 1) is None and kept.load("other", 0) is None
    assert kept.folder.parent == workspace / "runs" / "studies"  # a name cannot lead elsewhere


def test_ids_are_kept_once_for_all_trials(workspace: Path) -> None:
    kept = FoldCache("study")
    for key in ("one", "two", "three"):
        for fold in (0, 1):
            kept.keep(key, report(fold, [0.5] * (3 + fold)))
    assert len(list(kept.folder.glob("pairs_*"))) == 2 and len(list(kept.folder.glob("*_fold*"))) == 6
    assert sorted(kept.predictions("two")) == [0, 1]


def test_a_gap_ends_what_is_given_back(workspace: Path) -> None:
    kept = FoldCache("study")
    for fold in (0, 2):
        kept.keep("key", report(fold, [0.5]))
    assert list(kept.predictions("key")) == [0]


def test_a_spoilt_file_is_as_none(workspace: Path) -> None:
    kept = FoldCache("study")
    kept.keep("key", report(0, [0.5]))
    (file,) = kept.folder.glob("key_fold0.npz")
    file.write_bytes(file.read_bytes()[:40])
    assert kept.load("key", 0) is None
    file.write_bytes(b"")
    assert kept.load("key", 0) is None


@pytest.mark.parametrize(
    ("override", "same"),
    [
        ("training.args.learning_rate=0.002", False),
        ("training.args.adam_beta2=0.98", False),
        ("training.seed=1", False),
        ("data.pos_neg_ratio=2", False),
        ("data.eval_neg_ratio=2", False),
        ("model.max_length=64", False),
        ("training.loss_function=focal", False),
        ("training.focal_gamma=1.5", True),  # of a loss that is not used
        ("data.sensitive=true", True),
        ("hpo.trials.n_trials=77", True),
        ("tracking=none", True),
    ],
)
def test_the_key_names_what_decides_a_fold(override: str, same: bool) -> None:
    default = parameter_key(compose(), IDENTITY)
    assert (parameter_key(compose({}, [override]), IDENTITY) == default) is same
    assert parameter_key(compose(), {**IDENTITY, "data": "other"}) != default


def test_the_key_of_searched_parameters_is_that_of_set_ones(brief: Callable[..., Params]) -> None:
    params = brief()
    searched = params.with_values({"training.args.learning_rate": 0.004})
    assert parameter_key(searched, IDENTITY) == parameter_key(brief("training.args.learning_rate=4e-3"), IDENTITY)
