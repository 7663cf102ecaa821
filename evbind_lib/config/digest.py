"""Digests of a user's loss, model or objective with everything it uses, and of evbind's own code."""

from __future__ import annotations

import ast
import copyreg
import dis
import functools
import hashlib
import os
import sys
import sysconfig
import types
from collections.abc import Iterator
from typing import Any

from evbind_lib.config.paths import PACKAGE

PLAIN = (type(None), bool, int, float, complex, str, bytes)
# What lies here counts by its name: the standard library and installed packages, and evbind, whose code has a digest of its own.
PATHS = {sysconfig.get_path(name) for name in ("stdlib", "platstdlib", "purelib", "platlib")}
INSTALLED = (*PATHS, f"{PACKAGE}{os.sep}", "<frozen")
UNTOLD = {"__doc__", "__module__", "__qualname__", "__firstlineno__", "__static_attributes__", "__annotations__"}


def digest_of(function: Any) -> str | None:
    """Digest of what a callable computes: instructions, constants, defaults and, followed through names, all that it uses.

    Followed are closures, globals, nested functions, the user's own modules and classes; every other object counts by the
    content that pickle would write. Functions and classes of installed packages and of evbind count by name; file names, line
    numbers, docstrings and annotations do not count. A corpus counts by its fingerprint, and parameters not at all: the
    studies and caches that hold this digest hold them already. None where something used has no content that can be read (a
    lock, an open file): better no reuse than the results of another function.
    """
    try:
        return hashlib.sha256(repr(_describe(function, {})).encode()).hexdigest()
    except Exception:  # whatever an object raises that is asked for its content
        return None


def _describe(value: Any, seen: dict[int, Any]) -> Any:
    """What a value is, as nested lists of plain values whose text is the same in every process."""
    kind = type(value)
    if kind in PLAIN:
        return value
    if kind in (list, tuple):
        return [kind.__name__, *(_describe(item, seen) for item in value)]
    if kind in (set, frozenset):
        return [kind.__name__, *sorted(repr(_describe(item, {})) for item in value)]
    if kind is dict:
        return [kind.__name__, *([_describe(name, seen), _describe(item, seen)] for name, item in value.items())]
    if isinstance(value, types.ModuleType):
        return ["module", value.__name__]
    if id(value) in seen:
        return ["again", seen[id(value)][0]]
    seen[id(value)] = len(seen), value  # held, so that no other object gets its id
    if isinstance(value, types.FunctionType):
        return ["function", *_function(value, seen)]
    if isinstance(value, type):
        return ["class", *_class(value, seen)]
    if isinstance(value, property | staticmethod | classmethod):
        parts = [value.fget, value.fset] if isinstance(value, property) else [value.__func__]
        return [kind.__name__, *(_describe(part, seen) for part in parts)]
    if kind.__module__.startswith("evbind_lib.") and (kind.__name__ == "Params" or hasattr(value, "fingerprint")):
        return [kind.__name__, getattr(value, "fingerprint", None)]
    if hasattr(value, "untyped_storage"):  # a tensor, of which pickle writes more than its content
        return [kind.__name__, str(value.dtype), value.detach().cpu().tolist()]
    reduce = copyreg.dispatch_table.get(kind)
    content = reduce(value) if reduce else value.__reduce_ex__(2)
    if isinstance(content, str):  # known by its name, as functions written in C are
        return [content, str(getattr(value, "__module__", "")), _describe(getattr(value, "__wrapped__", None), seen)]
    return [_describe(list(part) if isinstance(part, Iterator) else part, seen) for part in content]


def _function(function: types.FunctionType, seen: dict[int, Any]) -> list[Any]:
    if function.__code__.co_filename.startswith(INSTALLED):  # wrapped: a decorator of an installed package
        wrapped = _describe(getattr(function, "__wrapped__", None), seen)
        return [function.__module__, function.__code__.co_qualname, wrapped]
    cells = [cell.cell_contents for cell in function.__closure__ or () if cell != types.CellType()]
    steps = list(_instructions(function.__code__))
    read = sorted({step.argval for step in steps if step.opname in ("LOAD_GLOBAL", "LOAD_NAME")})
    found = {name: function.__globals__[name] for name in read if name in function.__globals__}
    for name, module in list(found.items()):
        if isinstance(module, types.ModuleType) and not _is_installed(module):  # a file beside the notebook
            taken = {step.argval for step in steps if step.opname in ("LOAD_ATTR", "LOAD_METHOD")}
            found |= {f"{name}.{part}": vars(module)[part] for part in sorted(taken) if part in vars(module)}
    parts = (cells, function.__defaults__, function.__kwdefaults__, found)
    return [_code(function.__code__), *(_describe(part, seen) for part in parts)]


def _is_installed(module: types.ModuleType | None) -> bool:
    """Whether a module is no user's; one that is not there was sent from another process."""
    file = getattr(module, "__file__", None) or "<frozen"
    return module is not None and module.__name__ != "__main__" and file.startswith(INSTALLED)


def _instructions(code: types.CodeType) -> Iterator[dis.Instruction]:
    """Instructions of a function and of those defined in it."""
    yield from dis.get_instructions(code)
    for constant in code.co_consts:
        if isinstance(constant, types.CodeType):
            yield from _instructions(constant)


def _code(code: types.CodeType) -> list[Any]:
    """Instructions with the names and constants they use (no docstring among them), and the form of the arguments."""
    steps = [(step.opname, step.argval) for step in dis.get_instructions(code)]
    stored = [name if kind == "STORE_NAME" else None for kind, name in [*steps[1:], ("", "")]]
    used = [step for step, name in zip(steps, stored, strict=True) if step[0] != "LOAD_CONST" or name not in UNTOLD]
    form = code.co_argcount, code.co_posonlyargcount, code.co_kwonlyargcount, code.co_flags
    arguments = code.co_varnames[: code.co_argcount + code.co_kwonlyargcount]
    values = (_code(value) if isinstance(value, types.CodeType) else _describe(value, {}) for _, value in used)
    return [form, arguments, [name for name, _ in used], *values]


def _class(value: type, seen: dict[int, Any]) -> list[Any]:
    if _is_installed(sys.modules.get(value.__module__)):
        return [value.__module__, value.__qualname__]
    members = {name: member for name, member in vars(value).items() if name not in UNTOLD}
    own = {name: member for name, member in members.items() if callable(member) or not name.startswith(("__", "_abc_"))}
    return [_describe(value.__bases__, seen), _describe(own, seen)]


@functools.cache
def code_digest(*packages: str) -> str:
    """Digest of some packages of evbind, for example ``"data", "training"``, without their comments and docstrings."""
    digest = hashlib.sha256()
    for file in sorted(file for package in packages for file in (PACKAGE / package).rglob("*.py")):
        tree = ast.parse(file.read_text(encoding="utf-8"))
        for node in ast.walk(tree):
            if isinstance(
                node, ast.Module | ast.ClassDef | ast.FunctionDef | ast.AsyncFunctionDef
            ) and ast.get_docstring(node):
                node.body = node.body[1:]
        digest.update(f"{file.relative_to(PACKAGE)}\n{ast.dump(tree)}\n".encode())
    return digest.hexdigest()
