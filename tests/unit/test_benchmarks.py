"""The benchmarks ask for parameters that there are."""

from pathlib import Path

import pytest
from transformers import DebertaV2Config

from evbind_lib.config.compose import compose
from tests.benchmarks.speed import QUICK, SETUPS, Setup


@pytest.mark.parametrize("setup", [*SETUPS.values(), *QUICK.values()], ids=lambda setup: setup.title)
def test_every_setup_is_a_trial_of_its_own_encoder(setup: Setup, tmp_path: Path) -> None:
    DebertaV2Config(hidden_size=64, num_hidden_layers=2).save_pretrained(tmp_path)
    params = compose(setup.words(str(tmp_path)))
    assert params.model.name == ("tiny" if setup.title == "tiny" else str(tmp_path))
    assert (params.training.args["learning_rate"], params.training.args["num_train_epochs"]) == (
        setup.rate,
        setup.epochs,
    )
