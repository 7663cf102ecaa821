"""What `import evbind_lib as ev` offers: names that complete, are typed, are documented, and whose examples run."""

from __future__ import annotations

import ast
import doctest
import inspect
from pathlib import Path
from typing import Any

import jedi
import pytest

import evbind_lib as ev
from evbind_lib.config.registry import Registry
from evbind_lib.tracking import executions

# fmt: off
DESIGN = [
    "start", "compose", "Corpus", "load_corpus", "make_folds", "fold_pairs", "train_fold", "cross_validate", "suggest",
    "report_folds", "Objective", "search", "compare", "evaluate", "finalize", "EvidenceModel", "RacingPruner", "Callback",
    "Metric", "LOSSES", "METRICS", "READERS", "plots", "Params", "Fold", "FoldResult", "CrossValidation", "SearchResult",
    "EvbindError",
]
# fmt: on


def documentation(name: str) -> str:
    """Docstring of a public name; a registry has one of its own."""
    named = getattr(ev, name)
    return inspect.cleandoc(vars(named)["__doc__"]) if isinstance(named, Registry) else inspect.getdoc(named) or ""


def _type_checking_imports() -> list[ast.ImportFrom]:
    tree = ast.parse(Path(ev.__file__).read_text(encoding="utf-8"))
    (guarded,) = [node for node in tree.body if isinstance(node, ast.If)]
    return [node for node in guarded.body if isinstance(node, ast.ImportFrom)]


def test_the_names_are_those_of_the_design_for_people_completion_and_type_checkers() -> None:
    assert sorted(ev.__all__) == sorted(DESIGN)
    assert set(dir(ev)) >= set(DESIGN)
    assert sorted(alias.name for node in _type_checking_imports() for alias in node.names) == sorted(DESIGN)
    assert (Path(ev.__file__).parent / "py.typed").is_file()
    found = {completion.name for completion in jedi.Interpreter("ev.", [{"ev": ev}]).complete()}
    assert found >= set(DESIGN)
    for name in DESIGN:
        assert getattr(ev, name) is getattr(ev, name)
    with pytest.raises(AttributeError, match="serch"):
        ev.serch  # noqa: B018


@pytest.mark.parametrize("name", DESIGN)
def test_a_public_name_is_documented_and_its_example_runs(
    name: str, workspace: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(executions, "EXECUTION", executions.Execution())  # what `start` begins ends with the example
    monkeypatch.setenv("OMP_WAIT_POLICY", "PASSIVE")
    text = documentation(name)
    test = doctest.DocTestParser().get_doctest(text, {}, name, None, None)
    assert test.examples, f"{name} has no example"
    said: list[str] = []
    flags = doctest.ELLIPSIS | doctest.IGNORE_EXCEPTION_DETAIL
    results = doctest.DocTestRunner(optionflags=flags, verbose=False).run(test, out=said.append)
    assert results.failed == 0, "".join(said)


@pytest.mark.parametrize("name", [name for name in DESIGN if name[0].islower() and name != "plots"])
def test_a_public_function_says_what_it_takes_gives_and_raises(name: str) -> None:
    function: Any = getattr(ev, name)
    text = documentation(name)
    sections = {section for section in ("Parameters", "Returns", "Examples") if f"\n{section}\n---" in text}
    assert sections == {"Parameters", "Returns", "Examples"}, text
    assert [each for each in inspect.signature(function).parameters if each not in text] == []
    positional = [
        each.name for each in inspect.signature(function).parameters.values() if each.kind != each.KEYWORD_ONLY
    ]
    assert "params" not in positional[:-1]  # it comes last, always


def test_wrong_names_of_arguments_are_refused() -> None:
    with pytest.raises(TypeError):
        ev.compose(trainr="default")  # type: ignore[call-arg]
