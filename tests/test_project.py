"""The project's own promises: rooms import downward, files of the environment agree, importing is light."""

from __future__ import annotations

import ast
import re
import subprocess
import sys
import tomllib
from pathlib import Path

import pytest
import yaml
from packaging.requirements import Requirement

import evbind_lib

PROJECT = Path(evbind_lib.__file__).resolve().parent.parent
ROOMS = [
    *("errors", "sentences", "distributions", "hpo", "schema", "params"),
    *("tables", "data", "negatives", "folds", "encoding", "models", "losses"),
    *("metrics", "reports", "memory", "arguments", "prediction", "training", "baselines", "estimate"),
    *("overview", "scoring", "kept", "spread", "races", "racing", "space", "grid", "strategies"),
    *("objectives", "processes", "storage", "studies", "stopping", "claims"),
    *("trials", "workers", "search", "pages", "tracking", "plots", "widgets", "outcome"),
    *("runner", "sweep", "engine", "execution", "display", "notebook", "cli"),
]
# What papermill or a person may load for any notebook stands alone.
MODULES = sorted(file for file in (PROJECT / "evbind_lib").rglob("*.py") if file.stem != "__init__" or file.parent.name)


def room(name: str) -> str:
    return name.removeprefix("evbind_lib.").partition(".")[0]


def imported_rooms(file: Path) -> set[str]:
    found = set()
    for node in ast.walk(ast.parse(file.read_text(encoding="utf-8"))):
        if isinstance(node, ast.ImportFrom) and (node.module or "").startswith("evbind_lib."):
            found.add(room(node.module or ""))
        elif isinstance(node, ast.ImportFrom) and node.module == "evbind_lib":
            found |= {alias.name for alias in node.names if alias.name in ROOMS}
        elif isinstance(node, ast.Import):
            found |= {room(alias.name) for alias in node.names if alias.name.startswith("evbind_lib.")}
    return found


def room_of(file: Path) -> str:
    return file.relative_to(PROJECT / "evbind_lib").parts[0].removesuffix(".py")


@pytest.mark.parametrize("file", MODULES, ids=lambda file: str(file.relative_to(PROJECT)))
def test_a_room_imports_only_rooms_below_it(file: Path) -> None:
    own = room_of(file)
    if own in {"__init__", "sample_data"}:
        assert not imported_rooms(file) - {"sample_data"}
        return
    below = ROOMS[: ROOMS.index(own)]
    assert imported_rooms(file) - {own} <= set(below)


def test_the_list_of_rooms_is_the_documented_one() -> None:
    listed = re.findall(r"``(\w+)``", (evbind_lib.__doc__ or "").replace("``params/``", ""))
    assert listed == ROOMS
    assert {room_of(file) for file in MODULES} - {"__init__", "sample_data"} == set(ROOMS)


@pytest.mark.parametrize("file", MODULES, ids=lambda file: str(file.relative_to(PROJECT)))
def test_a_module_has_one_duty_and_says_it(file: Path) -> None:
    text = file.read_text(encoding="utf-8")
    assert ast.get_docstring(ast.parse(text))
    assert len(text.splitlines()) <= 420


def test_importing_the_package_is_light() -> None:
    heavy = ("torch", "transformers", "mlflow", "sklearn", "pandas", "optuna", "papermill")
    code = f"import sys, evbind_lib, evbind_lib.cli; print([name for name in {heavy} if name in sys.modules])"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, cwd=PROJECT, timeout=60)
    assert done.stdout.strip() == "[]", done.stderr


def requirements() -> tuple[dict[str, Requirement], dict[str, str]]:
    project = tomllib.loads((PROJECT / "pyproject.toml").read_text(encoding="utf-8"))["project"]
    every = [*project["dependencies"], *(line for extra in project["optional-dependencies"].values() for line in extra)]
    pins = {}
    for line in (PROJECT / "constraints.txt").read_text(encoding="utf-8").splitlines():
        if line.strip() and not line.startswith("#"):
            name, _, version = line.partition("==")
            pins[name.strip().lower().replace("_", "-").partition("[")[0]] = version.partition(";")[0].strip()
    return {Requirement(line).name.lower().replace("_", "-"): Requirement(line) for line in every}, pins


def test_every_dependency_is_pinned_once() -> None:
    wanted, pins = requirements()
    assert [name for name in wanted if not pins.get(name)] == []
    assert [name for name, wish in wanted.items() if not wish.specifier.contains(pins[name], prereleases=True)] == []


def test_the_pins_are_what_the_tests_run_with() -> None:
    from importlib import metadata

    wanted, pins = requirements()
    installed = {name: metadata.version(name).partition("+")[0] for name in wanted}
    assert installed == {name: pins[name] for name in wanted}


def test_conda_users_get_the_same_pins() -> None:
    environment = yaml.safe_load((PROJECT / "environment.yml").read_text(encoding="utf-8"))
    project = tomllib.loads((PROJECT / "pyproject.toml").read_text(encoding="utf-8"))["project"]
    (by_pip,) = [entry["pip"] for entry in environment["dependencies"] if isinstance(entry, dict)]
    assert by_pip == ["-c constraints.txt", "-e .[dev]"]  # no pin of its own that could drift
    (python,) = [entry for entry in environment["dependencies"] if str(entry).startswith("python=")]
    lowest = project["requires-python"].removeprefix(">=")
    assert tuple(map(int, python.removeprefix("python=").split("."))) >= tuple(map(int, lowest.split(".")))
    assert environment["name"] == project["name"]
    assert "pip" in environment["dependencies"]


def test_every_dependency_says_what_it_is_for() -> None:
    text = (PROJECT / "pyproject.toml").read_text(encoding="utf-8")
    inside = text[text.index("dependencies = [") : text.index("[project.scripts]")]
    lines = [line.strip() for line in inside.splitlines() if line.strip().startswith('"')]
    assert len(lines) > 30
    assert [line for line in lines if "#" not in line] == []


def test_the_checkout_holds_only_what_a_reader_expects() -> None:
    listed = subprocess.run(["git", "ls-files"], capture_output=True, text=True, cwd=PROJECT, check=False)
    if listed.returncode:
        pytest.skip("not a git checkout")
    top = {line.partition("/")[0] for line in listed.stdout.splitlines()}
    assert top <= {
        *(".ci", ".gitignore", "CHANGELOG.md", "CONTRIBUTING.md", "LICENSE", "Makefile", "README.md"),
        *("constraints.txt", "environment.yml", "evbind_lib", "notebooks", "params", "pyproject.toml", "tests"),
    }
