"""Run one notebook over several parameter sets, some at a time; go on where it stopped.

Each set runs as an ``evbind`` process of its own, so that one which fails or is killed takes no other with it. Imports `errors`,
`pages`, `params` and `runner`; `cli` imports it.
"""

from __future__ import annotations

import hashlib
import json
import os
import subprocess
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from itertools import product
from pathlib import Path
from typing import Any

import yaml

from evbind_lib.errors import EvbindError, ParamsError, did_you_mean
from evbind_lib.params import resolve_path, split_arguments, workspace
from evbind_lib.runner import check, find_notebook, papermill_parameters

KEYS = ("notebook", "jobs", "sets", "grid")


@dataclass(frozen=True)
class Sweep:
    """A notebook and the parameter sets to run it with.

    Attributes
    ----------
    name : str
    notebook : str
    sets : tuple of tuple of str
        Words as ``evbind NOTEBOOK`` takes them.
    jobs : int
        How many run at a time.
    """

    name: str
    notebook: str
    sets: tuple[tuple[str, ...], ...]
    jobs: int = 1

    @property
    def folder(self) -> Path:
        """Where its notebooks and outcomes are kept."""
        return workspace() / "runs" / "sweeps" / self.name

    def file(self, words: Sequence[str]) -> Path:
        """Executed notebook of a set; the same words give the same name."""
        key = hashlib.sha256(json.dumps([self.notebook, *words]).encode()).hexdigest()[:10]
        return self.folder / f"{Path(self.notebook).stem}_{key}.ipynb"


@dataclass(frozen=True)
class SetOutcome:
    """How one set ended: ``finished``, ``failed`` or ``done before``, after how many seconds, and what it said."""

    words: tuple[str, ...]
    status: str
    seconds: float
    said: str

    def row(self) -> dict[str, Any]:
        """As a row of the table of outcomes."""
        return {
            "parameters": " ".join(self.words) or "(as stored)",
            "status": self.status,
            "seconds": round(self.seconds, 1),
            "said": self.said,
        }


def read_sweep(path: str) -> Sweep:
    """Read a sweep from YAML: ``notebook``, and ``sets`` (a list of lists of words) or ``grid`` (values by parameter), or both.

    Parameters
    ----------
    path : str

    Returns
    -------
    Sweep
        With both, every set is combined with every point of the grid.

    Raises
    ------
    ParamsError
        When the file cannot be used.
    """
    file = resolve_path(path)
    place = f"sweep {path}"
    try:
        tree = yaml.safe_load(file.read_text(encoding="utf-8"))
    except (OSError, UnicodeDecodeError) as error:
        raise ParamsError(
            f"{place}: the file cannot be read ({getattr(error, 'strerror', error)}); name a YAML file."
        ) from None
    except yaml.YAMLError as error:
        mark = getattr(error, "problem_mark", None)
        line = f", line {mark.line + 1}" if mark is not None else ""
        raise ParamsError(
            f"{place}{line}: not valid YAML ({getattr(error, 'problem', error)}); mend the file."
        ) from None
    if not isinstance(tree, dict) or "notebook" not in tree:
        raise ParamsError(f"{place}: it names no notebook; write for example `notebook: train`.")
    for key in tree:
        if key not in KEYS:
            raise ParamsError(f"{place}: {key} is not a key of a sweep{did_you_mean(str(key), KEYS)}")
    sets = [_words(entry, place) for entry in tree.get("sets") or [[]]]
    grid: Mapping[str, Any] = tree.get("grid") or {}
    if not all(isinstance(values, list) and values for values in grid.values()):
        raise ParamsError(
            f"{place}: grid needs a list of values for each parameter; write for example training.seed: [1, 2]."
        )
    points = [
        tuple(f"{name}={_plain(value)}" for name, value in zip(grid, point, strict=True))
        for point in product(*grid.values())
    ]
    jobs = tree.get("jobs", 1)
    if not isinstance(jobs, int) or jobs < 1:
        raise ParamsError(f"{place}: jobs={jobs} must be a whole number from 1 on.")
    every = tuple(dict.fromkeys((*entry, *point) for entry in sets for point in points))
    return Sweep(file.stem, str(tree["notebook"]), every, jobs)


def _words(entry: Any, place: str) -> tuple[str, ...]:
    words = entry.split() if isinstance(entry, str) else entry
    if not isinstance(words, list) or not all(isinstance(word, str) and "=" in word for word in words):
        raise ParamsError(
            f"{place}: the set {entry!r} is not a list of KEY=VALUE; write for example [trainer=default]."
        )
    return tuple(words)


def _plain(value: Any) -> str:
    return "null" if value is None else str(value).lower() if isinstance(value, bool) else str(value)


def check_sweep(sweep: Sweep) -> None:
    """Refuse a sweep before anything runs when one of its sets cannot be used.

    Raises
    ------
    EvbindError
        With the set named.
    """
    notebook = find_notebook(sweep.notebook)
    for words in sweep.sets:
        choices, overrides = split_arguments(words)
        try:
            papermill_parameters(notebook, choices, overrides)
            check(notebook, choices, overrides)
        except EvbindError as error:
            raise type(error)(f"set {' '.join(words)}: {error}") from None


def run_sweep(sweep: Sweep, tell: Callable[[SetOutcome, int], None]) -> list[SetOutcome]:
    """Run every set that is not done yet; one that fails stops no other.

    Parameters
    ----------
    sweep : Sweep
    tell : callable
        Told each outcome as it comes, and how many are there then.

    Returns
    -------
    list of SetOutcome
        In the order of the sets; also in ``outcomes.csv`` of the sweep's folder.
    """
    import pandas as pd

    check_sweep(sweep)
    sweep.folder.mkdir(parents=True, exist_ok=True)
    there: list[SetOutcome] = []

    def run(words: tuple[str, ...]) -> SetOutcome:
        outcome = _run_set(sweep, words)
        there.append(outcome)
        tell(outcome, len(there))
        return outcome

    with ThreadPoolExecutor(sweep.jobs) as pool:  # each thread only waits for its process
        outcomes = list(pool.map(run, sweep.sets))
    pd.DataFrame([outcome.row() for outcome in outcomes]).to_csv(sweep.folder / "outcomes.csv", index=False)
    return outcomes


def _run_set(sweep: Sweep, words: tuple[str, ...]) -> SetOutcome:
    file = sweep.file(words)
    done = file.with_suffix(".json")
    if done.is_file() and file.is_file():
        known = json.loads(done.read_text(encoding="utf-8"))
        return SetOutcome(words, "done before", known["seconds"], known["said"])
    started = time.monotonic()
    command = [sys.executable, "-m", "evbind_lib.cli", sweep.notebook, *words, "--output", str(file)]
    threads = str(max(1, (os.cpu_count() or 1) // sweep.jobs))
    environment = {"OMP_NUM_THREADS": threads, **os.environ} if sweep.jobs > 1 else dict(os.environ)
    process = subprocess.run(command, capture_output=True, text=True, env=environment)
    seconds = time.monotonic() - started
    lines = (process.stdout if process.returncode == 0 else process.stderr).strip().splitlines()
    if process.returncode:
        return SetOutcome(words, "failed", seconds, lines[-1].removeprefix("evbind: ") if lines else "it was killed")
    said = lines[0] if lines else ""
    done.write_text(json.dumps({"words": words, "seconds": round(seconds, 1), "said": said}), encoding="utf-8")
    return SetOutcome(words, "finished", seconds, said)
