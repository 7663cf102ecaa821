"""Read tables of text and criteria, from files or from memory, with one clear sentence where one cannot be used."""

from __future__ import annotations

import json
import re
import unicodedata
from collections.abc import Callable, Iterable, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import pandas as pd

from evbind_lib.config.paths import resolve_path
from evbind_lib.errors import DataError, did_you_mean

NOT_UTF8 = "the file is not UTF-8; save it in UTF-8 encoding."


def read_table(path: str | None, key: str, columns: Sequence[str]) -> pd.DataFrame:
    """Read a CSV, TSV, Parquet or JSONL table with these columns, every value as text; the index counts the file's rows.

    `key` is the parameter that names the file; `DataError` when it is missing, not readable, empty or lacks a column.
    """
    file, place = _existing(path, key), f"{key}={path}"
    suffix = file.suffix.lower()
    if suffix not in READ:
        raise DataError(f"{place}: {suffix or 'no suffix'} is not a kind of table known here; use {', '.join(READ)}.")
    try:
        table = READ[suffix](file)
    except UnicodeDecodeError:
        raise DataError(f"{place}: {NOT_UTF8}") from None
    except pd.errors.ParserError as error:
        reason = str(error).rpartition("C error: ")[2].strip()
        remedy = "write one object per line" if suffix == ".jsonl" else "quote texts that hold commas or line ends"
        raise DataError(f"{place}: not a readable table ({reason}); {remedy}.") from None
    except Exception as error:  # pyarrow has many
        raise DataError(f"{place}: not a readable {suffix} file ({type(error).__name__}); write it again.") from None
    return as_text(table, place, columns, first_row=2 if suffix in (".csv", ".tsv") else 1)  # row 1 is the header


def _existing(path: str | None, key: str) -> Path:
    if path is None:
        raise DataError(f"{key} names no file; set {key}=FILE.")
    file = resolve_path(path)
    if not file.is_file():
        raise DataError(f"{key}={path}: there is no such file; set {key} to the file's path.")
    if file.stat().st_size == 0:
        raise DataError(f"{key}={path}: the file is empty; give a file with data.")
    return file


def _read_text(file: Path, separator: str = ",") -> pd.DataFrame:
    return pd.read_csv(file, sep=separator, dtype=str, keep_default_na=False, encoding="utf-8-sig")


def _read_jsonl(file: Path) -> pd.DataFrame:
    rows = []
    for number, line in enumerate(file.read_text(encoding="utf-8-sig").split("\n"), start=1):
        try:
            row = json.loads(line) if line.strip() else {}
        except ValueError:
            row = None
        if not isinstance(row, dict):
            raise pd.errors.ParserError(f"line {number} is not a JSON object")
        rows += [row] if row else []
    return pd.DataFrame(rows)


READ: dict[str, Callable[[Path], pd.DataFrame]] = {
    ".csv": _read_text,
    ".tsv": partial(_read_text, separator="\t"),
    ".parquet": pd.read_parquet,
    ".jsonl": _read_jsonl,
}


def as_text(table: pd.DataFrame, place: str, columns: Sequence[str], first_row: int = 0) -> pd.DataFrame:
    """Check that a table has rows and these columns; give every value as text, a missing one empty, rows counted."""
    table = table.rename(columns=str)
    for column in columns:
        if column not in table.columns:
            raise DataError(f"{place}: the column {column} is missing{did_you_mean(column, table.columns)}")
    if not table.columns.is_unique:
        twice = table.columns[table.columns.duplicated()][0]
        raise DataError(f"{place}: the column {twice} stands there twice; take one of them out.")
    if table.empty:
        raise DataError(f"{place}: it has no rows; give a table with data.")

    def text(value: Any) -> str:  # a label is 1 also where its column holds True or, beside a missing one, 1.0
        is_whole = isinstance(value, bool) or (isinstance(value, float) and value.is_integer())
        return str(int(value) if is_whole else value)

    table = table.map(text, na_action="ignore").astype(object).fillna("").astype(str)
    return table.set_axis(pd.RangeIndex(first_row, first_row + len(table)), axis="index")


def read_criteria(path: str) -> dict[str, str]:
    """Read the criteria's texts by id, in the file's order: ``{"criteria": [{"id", "text"}]}`` or a mapping of ids to texts."""
    place = f"data.criteria={path}"
    try:
        # Objects as lists of pairs, so that an id that stands there twice is seen.
        text = _existing(path, "data.criteria").read_text(encoding="utf-8-sig")
        content = json.loads(text, object_pairs_hook=list)
    except UnicodeDecodeError:
        raise DataError(f"{place}: {NOT_UTF8}") from None
    except json.JSONDecodeError as error:
        raise DataError(f"{place}: not valid JSON (line {error.lineno}); correct the file.") from None
    try:
        listed = dict(content).get("criteria")
        entries = [(dict(item)["id"], dict(item)["text"]) for item in listed] if isinstance(listed, list) else content
        is_text = all(isinstance(name, str | int) and isinstance(text, str) for name, text in entries)
    except (TypeError, ValueError, KeyError):
        is_text = False
    if not is_text:
        form = '{"criteria": [{"id", "text"}]} nor a mapping of ids to texts'
        raise DataError(f"{place}: neither {form}; write one of the two.")
    return check_criteria(entries, place)


def check_criteria(entries: Iterable[tuple[Any, Any]], place: str) -> dict[str, str]:
    """Criteria by id with cleaned texts; no id twice, no text empty, at least one."""
    criteria: dict[str, str] = {}
    for name, text in ((str(name), text) for name, text in entries):
        if name in criteria:
            raise DataError(f"{place}: the id {name} stands there twice; give each criterion its own id.")
        if not isinstance(text, str) or not clean(text):
            raise DataError(f"{place}: the criterion {name} has no text; write what counts as evidence for it.")
        criteria[name] = clean(text)
    if not criteria:
        raise DataError(f"{place}: it names no criterion; add one.")
    return criteria


def clean(text: str) -> str:
    """One form for texts that look alike: Unicode NFC, runs of whitespace as one space, none at the ends."""
    return re.sub(r"\s+", " ", unicodedata.normalize("NFC", text)).strip()


def split_sentences(text: str) -> list[str]:
    """Cleaned sentences of a post, cut at line ends and at whitespace after ``.``, ``!`` or ``?``.

    Plain on purpose: they only serve as further negatives, where a wrong cut at "e.g." does little harm.
    """
    parts = re.split(r"(?<=[.!?])\s+|[\r\n]+", text)
    return [sentence for sentence in map(clean, parts) if sentence]
