"""Digests of a user's loss, model or objective with everything it uses, and of evbind's own code."""

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
NAMES, ATTRIBUTES = ("LOAD_GLOBAL", "LOAD_NAME"), ("LOAD_ATTR", "LOAD_METHOD")
DOCUMENTED = (ast.Module, ast.ClassDef, ast.FunctionDef, ast.AsyncFunctionDef)


def digest_of(function: Any) -> str | None:
    """Digest of what a callable computes, followed through names; None where something has no content (a lock, a file)."""
    # Followed are closures, globals, nested functions, the user's own modules and classes. Other objects count by what pickle
    # would write, installed packages and evbind by name, a corpus by its fingerprint; file names, line numbers, docstrings and
    # parameters (which studies and caches hold themselves) not at all.
    try:
        return hashlib.sha256(repr(_describe(function, {})).encode()).hexdigest()
    except Exception:  # whatever an object raises that is asked for its content
        return None


def _describe(value: Any, seen: dict[int, Any]) -> Any:
    """What a value is, as nested lists of plain values whose text is the same in every process."""
    kind = type(value)
    if kind in PLAIN:
        return value
    if kind in (list, tuple, dict):
        return [kind.__name__, *(_describe(item, seen) for item in (value.items() if kind is dict else value))]
    if kind in (set, frozenset):
        return [kind.__name__, *sorted(repr(_describe(item, {})) for item in value)]
    if kind is types.CodeType:  # its arguments, its instructions with the names and constants they use; no docstring
        form = [value.co_argcount, value.co_posonlyargcount, value.co_kwonlyargcount, value.co_flags, value.co_varnames]
        return [form, *((step.opname, _describe(step.argval, {})) for step in dis.get_instructions(value))]
    if kind is types.ModuleType:
        return ["module", value.__name__]
    if id(value) in seen:
        return ["again", seen[id(value)][0]]
    seen[id(value)] = len(seen), value  # held, so that no other object gets its id
    return [kind.__name__, *(_describe(part, seen) for part in _parts(value))]


def _parts(value: Any) -> list[Any]:
    """What decides the content of a function, a class or any other object."""
    kind = type(value)
    if kind is types.FunctionType:
        code, names = value.__code__, value.__globals__
        if code.co_filename.startswith(INSTALLED):  # wrapped: a decorator of an installed package
            return [value.__module__, code.co_qualname, getattr(value, "__wrapped__", None)]
        cells = [cell.cell_contents for cell in value.__closure__ or () if cell != types.CellType()]
        steps = list(_instructions(code))
        read, taken = ({step.argval for step in steps if step.opname in kinds} for kinds in (NAMES, ATTRIBUTES))
        found = {name: names[name] for name in sorted(read) if name in names}
        for name, module in list(found.items()):
            if isinstance(module, types.ModuleType) and not _is_installed(module):  # a file beside the notebook
                found |= {f"{name}.{part}": vars(module)[part] for part in sorted(taken) if part in vars(module)}
        return [code, cells, value.__defaults__, value.__kwdefaults__, found]
    if isinstance(value, type):
        if _is_installed(sys.modules.get(value.__module__)):
            return [value.__module__, value.__qualname__]
        parts = vars(value).items()
        own = {name: part for name, part in parts if callable(part) or not name.startswith(("__", "_abc_"))}
        return [value.__bases__, own]
    if isinstance(value, property | staticmethod | classmethod):
        return [getattr(value, name, None) for name in ("fget", "fset", "__func__")]
    if kind.__module__.startswith("evbind_lib.") and (kind.__name__ == "Params" or hasattr(value, "fingerprint")):
        return [getattr(value, "fingerprint", None)]
    if hasattr(value, "untyped_storage"):  # a tensor, of which pickle writes more than its content
        return [str(value.dtype), str(value.detach().cpu().tolist())]
    content = copyreg.dispatch_table[kind](value) if kind in copyreg.dispatch_table else value.__reduce_ex__(2)
    if isinstance(content, str):  # known by its name, as functions written in C are
        return [content, str(getattr(value, "__module__", "")), getattr(value, "__wrapped__", None)]
    return [list(part) if isinstance(part, Iterator) else part for part in content]


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


@functools.cache
def code_digest(*packages: str) -> str:
    """Digest of some packages of evbind, for example ``"data", "training"``, without their comments and docstrings."""
    digest = hashlib.sha256()
    for file in sorted(file for package in packages for file in (PACKAGE / package).rglob("*.py")):
        tree = ast.parse(file.read_text(encoding="utf-8"))
        for node in ast.walk(tree):
            if isinstance(node, DOCUMENTED) and ast.get_docstring(node):
                node.body = node.body[1:]
        digest.update(f"{file.relative_to(PACKAGE)}\n{ast.dump(tree)}\n".encode())
    return digest.hexdigest()
