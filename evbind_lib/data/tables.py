"""Read tables of text and criteria, from files or from memory, with one clear sentence where one cannot be used."""

from __future__ import annotations

import json
import re
import unicodedata
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

import pandas as pd

from evbind_lib.config.paths import resolve_path
from evbind_lib.errors import DataError, did_you_mean


def read_table(path: str, key: str, columns: Sequence[str]) -> pd.DataFrame:
    """Read a CSV, TSV, Parquet or JSONL table with these columns, every value as text; the index counts the file's rows.

    `key` is the parameter that names the file; `DataError` when it is missing, not readable, empty or lacks a column.
    """
    file, place, suffix = _existing(path, key), f"{key}={path}", Path(path).suffix.lower()
    if suffix not in (".csv", ".tsv", ".parquet", ".jsonl"):
        known = "use .csv, .tsv, .parquet or .jsonl"
        raise DataError(f"{place}: {suffix or 'no suffix'} is not a kind of table known here; {known}.")
    try:
        if suffix == ".parquet":
            table = pd.read_parquet(file)
        elif suffix == ".jsonl":
            table = _read_jsonl(file.read_text(encoding="utf-8-sig"), place)
        else:
            separator = "\t" if suffix == ".tsv" else ","
            table = pd.read_csv(file, sep=separator, dtype=str, keep_default_na=False, encoding="utf-8-sig")
    except DataError:
        raise
    except UnicodeDecodeError:
        raise _not_utf8(place) from None
    except pd.errors.EmptyDataError:
        raise DataError(f"{place}: the file has no columns; give a file with data.") from None
    except pd.errors.ParserError as error:
        reason = str(error).replace("Error tokenizing data. C error: ", "").strip().rstrip(".")
        raise DataError(
            f"{place}: not a readable table ({reason}); quote texts that hold commas or line ends."
        ) from None
    except Exception as error:  # pyarrow has many
        raise DataError(f"{place}: not a readable {suffix} file ({type(error).__name__}); write it again.") from None
    return as_text(table, place, columns, first_row=2 if suffix in (".csv", ".tsv") else 1)  # row 1 is the header


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

    def text(value: Any) -> str:
        if isinstance(value, bool):
            return str(int(value))
        return str(int(value)) if isinstance(value, float) and value.is_integer() else str(value)

    table = table.map(text, na_action="ignore").astype(object).fillna("").astype(str)
    return table.set_axis(pd.RangeIndex(first_row, first_row + len(table)), axis="index")


def _existing(path: str, key: str) -> Path:
    file = resolve_path(path)
    if not file.is_file():
        raise DataError(f"{key}={path}: there is no such file; set {key} to the file's path.")
    if file.stat().st_size == 0:
        raise DataError(f"{key}={path}: the file is empty; give a file with data.")
    return file


def _read_jsonl(text: str, place: str) -> pd.DataFrame:
    rows = []
    for number, line in enumerate(text.splitlines(), start=1):
        try:
            row = json.loads(line) if line.strip() else {}
        except ValueError:
            row = None
        if not isinstance(row, dict):
            raise DataError(f"{place}, line {number}: not a JSON object; write one object per line.")
        rows += [row] if row else []
    return pd.DataFrame(rows)


def _not_utf8(place: str) -> DataError:
    return DataError(f"{place}: the file is not UTF-8; save it in UTF-8 encoding.")


def read_criteria(path: str) -> dict[str, str]:
    """Read the criteria's texts by id, in the file's order: ``{"criteria": [{"id", "text"}]}`` or a mapping of ids to texts."""
    place = f"data.criteria={path}"
    try:
        # Pairs, not dicts, so that an id that stands there twice is seen.
        text = _existing(path, "data.criteria").read_text(encoding="utf-8-sig")
        content = json.loads(text, object_pairs_hook=_Object)
    except UnicodeDecodeError:
        raise _not_utf8(place) from None
    except ValueError as error:
        where = f"line {error.lineno}" if isinstance(error, json.JSONDecodeError) else str(error)
        raise DataError(f"{place}: not valid JSON ({where}); correct the file.") from None
    listed = dict(content).get("criteria") if isinstance(content, _Object) else None
    entries: list[tuple[Any, Any]]
    if type(listed) is list:
        records = [dict(item) if isinstance(item, _Object) else {} for item in listed]
        entries = [(record.get("id"), record.get("text")) for record in records]
    else:
        entries = list(content) if isinstance(content, _Object) else [(None, None)]
    if not all(isinstance(name, str | int) and isinstance(text, str) for name, text in entries):
        form = '{"criteria": [{"id", "text"}]} nor a mapping of ids to texts'
        raise DataError(f"{place}: neither {form}; write one of the two.")
    return check_criteria(entries, place)


class _Object(list[tuple[str, Any]]):
    """A JSON object as its (name, value) pairs."""


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
