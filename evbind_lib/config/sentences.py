"""What pydantic found wrong, in a person's words.

Imports only `errors`; `schema` and `params` import it.
"""

from __future__ import annotations

import re
from typing import Any

from pydantic import BaseModel, ValidationError

from evbind_lib.errors import did_you_mean


def validation_sentence(error: ValidationError, model: type[BaseModel]) -> str:
    """The first problem of a validation as one sentence that names the key.

    Parameters
    ----------
    error : ValidationError
    model : type of pydantic.BaseModel
        What was validated; a mistyped key is answered with its nearest field.

    Returns
    -------
    str
    """
    first, *others = error.errors()
    tags = {"uniform", "log_uniform", "int", "log_int", "categorical"}
    parts = [str(part) for part in first["loc"]]
    in_space = parts[:2] == ["hpo", "search_space"]
    parts = [part for i, part in enumerate(parts) if not (in_space and i == 3 and part in tags)]
    parts = [part for part in parts if not part.startswith(("constrained-", "function-", "literal["))]
    if parts and parts[-1] in {"float", "int", "str", "bool"}:
        parts = parts[:-1]
    key, sentence = ".".join(parts), problem(first)
    for other in others:  # the other branches of a union, such as "a number or natural"
        if other["loc"][: len(parts)] == tuple(parts) and not in_space:
            sentence += " or " + problem(other).removeprefix("must be ")
    if first["type"] == "extra_forbidden" and in_space and parts[-1] in {"low", "high", "choices", "step"}:
        return f"{key} does not go with the type of this parameter; set {'.'.join(parts[:-1])}.type as well."
    if first["type"] == "extra_forbidden" and in_space and parts[-1] == "log":
        return f"{key}: a logarithmic scale is a type of its own; set {'.'.join(parts[:-1])}.type to log_uniform or log_int."
    if first["type"] == "extra_forbidden":
        return f"{key} is not a parameter{_nearest_sibling(parts, model)}"
    end = "" if sentence.endswith(("?", ".")) else "."
    if first["type"] == "value_error" and re.match(r"[a-z_]+\.[\w.]+", sentence):
        return sentence + end  # it names its key itself
    shown = first.get("input")
    value = f"={shown}" if isinstance(shown, str | int | float | bool) or shown is None else ""
    return f"{key}{'' if first['type'] == 'missing' else value}: {sentence}" + ("" if sentence.endswith("?") else ".")


def problem(error: Any) -> str:
    """One validation error in a person's words, without the key."""
    kind, context = error["type"], error.get("ctx", {})
    if kind == "value_error":
        return str(context["error"])
    if kind == "literal_error":
        options = re.findall(r"'([^']+)'", context["expected"])
        if len(options) == 1:
            return f"must be {options[0]}"
        return "must be one of " + ", ".join(options) + _hint(str(error["input"]), options)
    if kind == "union_tag_invalid":
        options = re.findall(r"'([^']+)'", context["expected_tags"])
        return "type must be one of " + ", ".join(options) + _hint(str(context["tag"]), options)
    if kind == "union_tag_not_found":
        return "type is missing; set it to uniform, log_uniform, int, log_int or categorical"
    if kind.startswith("int_"):
        return "must be a whole number"
    if kind.startswith("float_"):
        return "must be a number"
    if kind.startswith("bool_"):
        return "must be true or false"
    if kind == "too_short":
        return "must not be empty"
    if kind == "missing":
        return "is missing"
    return str(error["msg"]).replace("Input should be", "must be")


def _hint(name: str, options: list[str]) -> str:
    hint = did_you_mean(name, options)
    return hint if "did you mean" in hint else ""


def _nearest_sibling(parts: list[str], model: Any) -> str:
    for part in parts[:-1]:
        field = getattr(model, "model_fields", {}).get(part)
        model = field.annotation if field else None
    return did_you_mean(parts[-1], getattr(model, "model_fields", {}))
