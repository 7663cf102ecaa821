"""What a command says of a notebook before it runs it."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

from evbind_lib.cli import main
from evbind_lib.config.compose import compose
from evbind_lib.data.corpus import Corpus
from evbind_lib.data.folds import make_folds
from evbind_lib.data.negatives import fold_pairs
from evbind_lib.notebook.commands import _pairs
from tests.conftest import BRIEF


def test_help_of_a_notebook_lists_its_files_by_group_its_own_parameters_and_main_keys(
    workspace: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["score", "--help"]) == 0  # also where no search has written what it reads by default
    said = capsys.readouterr().out
    assert "data=       pairs redsm5 sample scifact wice\n" in said and "  aim=macro_f1\n" in said
    assert "  training.n_folds=5\n" in said and "hpo." not in said
    assert main(["hpo_search", "-h"]) == 0 and "  hpo.trials.timeout=null\n" in capsys.readouterr().out
    assert main(["sync", "--help"]) == 0 and "notebooks:" in capsys.readouterr().out
    assert main(["scroe", "--help"]) == 2 and "score" in capsys.readouterr().err


def test_what_a_search_will_take_is_said_before_it_trains(
    workspace: Path, capsys: pytest.CaptureFixture[str], corpus: Corpus
) -> None:
    overrides = [*BRIEF, "training.args.max_steps=-1", "hpo.trials.n_trials=300"]
    assert main(["hpo_search", "--show", *overrides]) == 0
    said, params = capsys.readouterr().out, compose(overrides)
    training, validation = fold_pairs(corpus, make_folds(corpus, params)[0], params)
    steps = -(-len(training) // 32)  # by the largest batch of the search
    assert f"2 folds; the first trains on {len(training)} pairs, {steps} steps of 32 in an epoch" in said
    assert f"validated on {len(validation)} pairs" in said and "training.n_folds" in said and "MB" in said
    found = re.findall(r"About (.+):(.+):(.+) for a trial, (.+):(.+):(.+) for 300 trials by 1 at once", said)
    hours, minutes, seconds, *whole = map(int, found[0])
    trial, every = (3600 * h + 60 * m + s for h, m, s in ((hours, minutes, seconds), whole))
    assert abs(every - 300 * trial) <= 150 + 1 and every > 0 and "hpo.trials.timeout=SECONDS" in said
    assert not (workspace / "optuna.db").exists()
    longer = compose(["training.args.num_train_epochs=4"])
    assert (_pairs(longer, 100), _pairs(compose(["training.args.max_steps=5"]), 100)) == (400, 5 * 16)
