"""How `pytest --nbval` compares the stored notebooks: in an empty workspace, without what no two runs share.

``make test`` runs them with everything else; by themselves: ``pytest notebooks``. Cells tagged ``nbval-ignore-output`` are
run and not compared; each says why in its metadata (`reason`).
"""

from __future__ import annotations

import os
import shutil
import tempfile
from pathlib import Path
from typing import Any

import pytest

# What a search found when the notebooks were stored: 04 and 05 need one.
BEST = Path(__file__).parent.parent / "tests" / "stored" / "hpo_best.yaml"


def pytest_collectstart(collector: Any) -> None:
    """Leave out what is kept beside what is shown: results at full precision."""
    if hasattr(collector, "skip_compare"):
        collector.skip_compare += ("application/vnd.evbind.result+json",)


@pytest.hookimpl(tryfirst=True)
def pytest_runtest_setup(item: Any) -> None:
    """Give each notebook, when its kernel is about to start, a workspace of its own with the stored best trainer set."""
    notebook = item.parent
    if getattr(notebook, "workspace", None) is None:
        notebook.workspace = tempfile.TemporaryDirectory(prefix="evbind-nbval-")  # gone with the notebook
        trainer = Path(notebook.workspace.name) / "params" / "trainer"
        trainer.mkdir(parents=True)
        shutil.copy(BEST, trainer / BEST.name)
    os.environ["EVBIND_WORKSPACE"] = notebook.workspace.name
    for name in ("EVBIND_STATIC_FIGURES", "EVBIND_WIDGETS", "JPY_SESSION_NAME"):
        os.environ.pop(name, None)


def pytest_runtest_teardown(item: Any) -> None:
    """Let other tests have the environment as it was; a kernel that runs keeps its own."""
    os.environ.pop("EVBIND_WORKSPACE", None)
