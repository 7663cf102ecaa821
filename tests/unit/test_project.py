"""The project's own promises: packages import downward, files of the environment agree, importing is light."""

from __future__ import annotations

import ast
import multiprocessing
import subprocess
import sys
import tomllib
from graphlib import TopologicalSorter
from importlib import import_module
from pathlib import Path
from types import SimpleNamespace

import pytest
import yaml
from packaging.requirements import Requirement
from packaging.specifiers import SpecifierSet

import evbind_lib

PROJECT = Path(evbind_lib.__file__).resolve().parent.parent
LIBRARY = PROJECT / "evbind_lib"
# Each package may import those before it, and itself; `cli` stands on all of them.
PACKAGES = ["errors", "config", "data", "training", "evaluation", "hpo", "plots", "tracking", "notebook", "cli"]
MODULES = sorted(LIBRARY.rglob("*.py"))


def package_of(file: Path) -> str:
    return file.relative_to(LIBRARY).parts[0].removesuffix(".py")


def imports(file: Path) -> set[str]:
    """Dotted names of the library's own modules that a file imports, at its top or within functions."""
    found = set()
    for node in ast.walk(ast.parse(file.read_text(encoding="utf-8"))):
        if isinstance(node, ast.ImportFrom) and (node.module or "").partition(".")[0] == "evbind_lib":
            found.add(node.module or "")
        elif isinstance(node, ast.Import):
            found |= {alias.name for alias in node.names if alias.name.partition(".")[0] == "evbind_lib"}
    return found


def test_a_package_imports_only_packages_before_it() -> None:
    assert {package_of(file) for file in MODULES} - {"__init__"} == set(PACKAGES)
    climbing = []
    for file in MODULES:
        own = package_of(file)
        for name in imports(file) if own != "__init__" else ():
            other = name.split(".")[1] if "." in name else name
            if other not in PACKAGES[: PACKAGES.index(own) + 1]:
                climbing.append(f"{file.relative_to(PROJECT)} imports {name}")
    assert climbing == []


def test_modules_import_one_another_in_no_circle() -> None:
    names = {file: ".".join(file.relative_to(PROJECT).with_suffix("").parts) for file in MODULES}
    imported = {name: imports(file) - {"evbind_lib"} for file, name in names.items() if name != "evbind_lib.__init__"}
    list(TopologicalSorter(imported).static_order())  # raises CycleError


def import_each(names: list[str]) -> None:
    """Import one module after another, each as if no other of ours had been."""
    for name in names:
        for imported in [each for each in sys.modules if each.partition(".")[0] == "evbind_lib"]:
            del sys.modules[imported]
        try:
            import_module(name)
        except ImportError as error:
            sys.exit(f"{name} cannot be imported on its own: {error}")


def test_every_module_can_be_imported_on_its_own() -> None:
    names = [".".join(file.relative_to(PROJECT).with_suffix("").parts).removesuffix(".__init__") for file in MODULES]
    process = multiprocessing.get_context("fork").Process(target=import_each, args=(names,))  # which has the libraries
    process.start()
    process.join(300)
    assert process.exitcode == 0


def test_a_module_has_one_duty_and_says_it() -> None:
    undocumented = [file for file in MODULES if not ast.get_docstring(ast.parse(file.read_text(encoding="utf-8")))]
    assert undocumented == []
    lengths = {str(file.relative_to(PROJECT)): len(file.read_text(encoding="utf-8").splitlines()) for file in MODULES}
    assert {name: length for name, length in lengths.items() if length > 420} == {}
    # The rebuild ended at 8,000 lines, and the design means 10,000 for all that came after it; data, encoders, faults and MLflow
    # asked for more (CONTRIBUTING, "Where the lines are"), the last for workers that share a GPU. From here it may only shrink.
    assert sum(lengths.values()) <= 12352


def test_private_names_of_other_libraries_stand_in_one_function_each() -> None:
    found = set()
    for file in MODULES:
        for function in ast.walk(ast.parse(file.read_text(encoding="utf-8"))):
            if not isinstance(function, ast.FunctionDef):
                continue
            for node in ast.walk(function):
                private = (
                    isinstance(node, ast.Attribute) and node.attr.startswith("_") and not node.attr.startswith("__")
                )
                own = private and isinstance(node.value, ast.Name) and node.value.id in {"self", "cls", "os"}
                if private and not own:
                    found.add((file.name, function.name, node.attr))
                elif isinstance(node, ast.Constant) and str(node.value).startswith("_is_"):
                    found.add((file.name, function.name, "torch.cpu._is_..."))
    assert found == {
        ("study.py", "storage_of", "_storage"),
        ("claims.py", "_without_heartbeat", "_get_stale_trial_ids"),
        ("trainer.py", "training_arguments", "_n_gpu"),
        ("monitor.py", "hear_while_busy", "_reply_subshell_id"),
    }


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


def test_the_pins_can_be_had_with_the_first_release_of_the_lowest_python_that_is_promised() -> None:
    from importlib import metadata

    project = tomllib.loads((PROJECT / "pyproject.toml").read_text(encoding="utf-8"))["project"]
    lowest = project["requires-python"].removeprefix(">=") + ".0"
    _, pins = requirements()
    asked = {
        each.name.lower().replace("_", "-"): each.metadata.get("Requires-Python") for each in metadata.distributions()
    }
    pythons = {name: SpecifierSet(asked[name] or "") for name in pins if name in asked}
    assert len(pythons) > len(pins) * 0.9  # some are of other systems
    assert [name for name, admitted in pythons.items() if not admitted.contains(lowest)] == []


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
        *(
            ".ci",
            ".gitignore",
            "CHANGELOG.md",
            "CITATION.cff",
            "CONTRIBUTING.md",
            "docs",
            "LICENSE",
            "Makefile",
            "README.md",
        ),
        *("constraints.txt", "environment.yml", "evbind_lib", "notebooks", "params", "pyproject.toml", "tests"),
    }


def test_pytest_shares_a_folder_and_runs_a_file_in_one_process(pytestconfig: pytest.Config) -> None:
    option = SimpleNamespace(capture="fd", numprocesses="auto")
    for places, processes in ([str(PROJECT / "tests")], 2), ([__file__], 0), ([f"{__file__}::test"], 0):
        config = SimpleNamespace(args=places, option=option)
        assert pytestconfig.hook.pytest_xdist_auto_num_workers(config=config) == processes
