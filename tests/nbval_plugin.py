"""How `pytest --nbval` compares the stored notebooks: in a workspace that begins empty, without what no two runs share.

A plugin (``-p`` in pyproject.toml) rather than a conftest.py beside the notebooks, which would ship with them in the wheel.

``make test`` runs them with everything else; by themselves: ``pytest notebooks``. Scores of a trained model differ a little
between processors and numbers of threads, so a cell may hold ``within: 0.02`` in its metadata: words, counts and the form of its
tables are compared exactly, decimal numbers to within 0.02. Whatever lies further apart is put before nbval as it is, which then
fails the cell and shows both. Cells tagged ``nbval-ignore-output`` are run and not compared. Each of both says why (``reason``).
"""

from __future__ import annotations

import base64
import functools
import gc
import os
import re
import shutil
import sys
import tempfile
from functools import partial
from pathlib import Path
from typing import Any

import nbformat
import numpy as np
import pytest
from jupyter_client.provisioning import local_provisioner
from nbval.plugin import IPyNbCell
from xdist.scheduler import LoadFileScheduling

from tests import forks

# What a search found when the notebooks were stored: 04 and 05 need one.
BEST = Path(__file__).parent / "stored" / "hpo_best.yaml"

DECIMAL = re.compile(r"-?\d+\.\d+(?:e[+-]?\d+)?")


def settle(fresh: Any, stored: Any, within: float) -> Any:
    """Take over from the stored value each decimal number that the fresh one comes near enough to.

    Parameters
    ----------
    fresh, stored : str, number, list or dict
        An output, or a part of one.
    within : float
        Largest distance of two numbers that count as equal.

    Returns
    -------
    str, number, list or dict
        Equal to the stored value where nothing else differs.
    """
    if isinstance(fresh, dict) and isinstance(stored, dict):
        if "bdata" in fresh and "bdata" in stored:
            return stored if _same_numbers(fresh, stored, within) else fresh
        return {name: settle(value, stored.get(name), within) for name, value in fresh.items()}
    if isinstance(fresh, list) and isinstance(stored, list) and len(fresh) == len(stored):
        return [settle(*pair, within) for pair in zip(fresh, stored, strict=True)]
    if isinstance(fresh, float) and isinstance(stored, (float, int)):
        return stored if abs(fresh - stored) <= within else fresh
    if isinstance(fresh, str) and isinstance(stored, str) and DECIMAL.split(fresh) == DECIMAL.split(stored):
        pairs = iter(zip(DECIMAL.findall(fresh), DECIMAL.findall(stored), strict=True))

        def nearest(_: re.Match[str]) -> str:
            ours, theirs = next(pairs)
            return theirs if abs(float(ours) - float(theirs)) <= within + 1e-9 else ours

        return DECIMAL.sub(nearest, fresh)
    return fresh


def _same_numbers(fresh: dict[str, Any], stored: dict[str, Any], within: float) -> bool:
    """Compare two arrays as plotly writes them into a figure: numbers in base64, with their type and shape beside."""
    ours, theirs = (np.frombuffer(base64.b64decode(each["bdata"]), each["dtype"]) for each in (fresh, stored))
    alike = (
        fresh["dtype"] == stored["dtype"] and fresh.get("shape") == stored.get("shape") and ours.shape == theirs.shape
    )
    return bool(alike and np.allclose(ours, theirs, rtol=0, atol=within, equal_nan=True))


def compare_within(cell: IPyNbCell, within: float, fresh: list[Any], stored: list[Any], **others: Any) -> bool:
    """Compare outputs as nbval does, after numbers that are near enough have been settled."""
    if len(fresh) == len(stored):
        fresh = [
            nbformat.from_dict({name: settle(value, theirs.get(name), within) for name, value in ours.items()})
            for ours, theirs in zip(fresh, stored, strict=True)
        ]
    return bool(type(cell).compare_outputs(cell, fresh, stored, **others))


def pytest_configure(config: pytest.Config) -> None:
    """Let a kernel that a test starts be forked from a process that has loaded the libraries; one of a command begins as ever."""
    config.option.nbval_sanitize_with = str(
        Path(__file__).with_name("nbval.cfg")
    )  # from whichever folder pytest is started
    local_provisioner.launch_kernel = forks.launch_kernel
    gc.disable()  # until all is imported


def pytest_collection_finish() -> None:
    """Let garbage be looked for from here on, and not among what the imports made, which took a sixth of the tests' time."""
    freeze_imports()
    gc.enable()


def pytest_runtest_logfinish() -> None:
    """Nor among what a test has imported: each of the folds trained after it would look for garbage there."""
    if len(sys.modules) > _frozen_modules + 20:
        freeze_imports()


_frozen_modules = 0


def freeze_imports() -> None:
    """Keep what is there, less the garbage, from being looked through for garbage again."""
    global _frozen_modules
    gc.collect()
    gc.freeze()
    _frozen_modules = len(sys.modules)


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Let the cells that say so be compared with their own tolerance."""
    for item in items:
        if isinstance(item, IPyNbCell) and "within" in item.cell.metadata:
            item.compare_outputs = partial(compare_within, item, float(item.cell.metadata["within"]))


def pytest_collectstart(collector: Any) -> None:
    """Leave out what is kept beside what is shown: results at full precision."""
    if hasattr(collector, "skip_compare"):
        collector.skip_compare += ("application/vnd.evbind.result+json",)


class _Scheduling(LoadFileScheduling):  # type: ignore[misc]
    """The tests of a file go to one process, and all notebooks to one, since they share a workspace."""

    def _split_scope(self, nodeid: str) -> str:
        file = str(super()._split_scope(nodeid))
        return "notebooks" if file.endswith(".ipynb") else file


@pytest.hookimpl(tryfirst=True, optionalhook=True)  # else xdist answers with the number of processors
def pytest_xdist_auto_num_workers(config: pytest.Config) -> int:
    """Folders take two processes; a file or a test that was picked out begins sooner, and can be stepped through, in this one."""
    return 2 if all(Path(arg).is_dir() for arg in config.args) and config.option.capture != "no" else 0


@pytest.hookimpl(optionalhook=True)
def pytest_xdist_make_scheduler(config: pytest.Config, log: Any) -> LoadFileScheduling | None:
    """For ``--dist loadfile``."""
    return _Scheduling(config, log) if config.getoption("dist") == "loadfile" else None


# One for all notebooks, as a user has it: 04 and 05 read the folds that 02 and 03 trained. Gone with the process.
WORKSPACE = functools.cache(partial(tempfile.TemporaryDirectory, prefix="evbind-nbval-"))


@pytest.hookimpl(tryfirst=True)
def pytest_runtest_setup(item: Any) -> None:
    """Let the kernel of a notebook, when it is about to start, work in a workspace with the stored best trainer set."""
    if not isinstance(item, IPyNbCell):
        return
    if not hasattr(item.parent, "has_begun"):
        item.parent.has_begun = True
        trainer = Path(WORKSPACE().name) / "params" / "trainer"
        trainer.mkdir(parents=True, exist_ok=True)
        shutil.copy(BEST, trainer / BEST.name)  # also over what 03 found, which on other processors may be another set
    os.environ["EVBIND_WORKSPACE"] = WORKSPACE().name
    os.environ["EVBIND_STATIC_FIGURES"] = "0"  # plotly's form alone is compared
    for name in ("EVBIND_WIDGETS", "JPY_SESSION_NAME"):
        os.environ.pop(name, None)


def pytest_runtest_teardown(item: Any) -> None:
    """Let other tests have the environment as it was; a kernel that runs keeps its own."""
    if isinstance(item, IPyNbCell):
        for name in ("EVBIND_WORKSPACE", "EVBIND_STATIC_FIGURES"):
            os.environ.pop(name, None)
