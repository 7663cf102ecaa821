"""Read a person's files: tables of text and JSON, with one clear sentence when a file cannot be used.

Imports `errors` and `params`; only `data` imports it.
"""

from __future__ import annotations

import json
import re
import unicodedata
from collections.abc import Sequence
from pathlib import Path

import pandas as pd

from evbind_lib.config.compose import resolve_path
from evbind_lib.errors import DataError, did_you_mean


def read_table(path: str, key: str, columns: Sequence[str]) -> pd.DataFrame:
    """Read a CSV, TSV, Parquet or JSONL table, every value as text.

    Parameters
    ----------
    path : str
    key : str
        Parameter that names the file, for the messages.
    columns : sequence of str
        Columns it must have.

    Returns
    -------
    pandas.DataFrame
        All columns, str; a missing value is the empty text. The index counts rows as a person sees them in the file.

    Raises
    ------
    DataError
        When the file is missing, not readable, not UTF-8, empty, or lacks a column.
    """
    file = _existing(path, key)
    readers = {".csv": _read_csv, ".tsv": _read_csv, ".parquet": _read_parquet, ".jsonl": _read_jsonl}
    if file.suffix.lower() not in readers:
        raise DataError(
            f"{key}={path}: {file.suffix or 'no suffix'} is not a kind of table known here; use .csv, .tsv, .parquet or .jsonl."
        )
    table = readers[file.suffix.lower()](file, f"{key}={path}")
    for column in columns:
        if column not in table.columns:
            near = did_you_mean(column, [str(name) for name in table.columns])
            raise DataError(f"{key}={path}: the column {column} is missing{near}")
    if table.empty:
        raise DataError(f"{key}={path}: the file has no rows; give a file with data.")
    return table


def _existing(path: str, key: str) -> Path:
    file = resolve_path(path)
    if not file.is_file():
        raise DataError(f"{key}={path}: there is no such file; set {key} to the file's path.")
    if file.stat().st_size == 0:
        raise DataError(f"{key}={path}: the file is empty; give a file with data.")
    return file


def _read_csv(file: Path, place: str) -> pd.DataFrame:
    separator = "\t" if file.suffix.lower() == ".tsv" else ","
    try:
        table = pd.read_csv(file, sep=separator, dtype=str, keep_default_na=False, encoding="utf-8-sig")
    except UnicodeDecodeError:
        raise _not_utf8(place) from None
    except pd.errors.EmptyDataError:
        raise DataError(f"{place}: the file has no columns; give a file with data.") from None
    except pd.errors.ParserError as error:
        reason = str(error).replace("Error tokenizing data. C error: ", "").strip().rstrip(".")
        raise DataError(
            f"{place}: not a readable table ({reason}); quote texts that hold commas or line ends."
        ) from None
    table.index = pd.RangeIndex(2, len(table) + 2)  # row 1 is the header
    return table


def _read_parquet(file: Path, place: str) -> pd.DataFrame:
    try:
        table = pd.read_parquet(file)
    except Exception as error:
        raise DataError(f"{place}: not a readable Parquet file ({type(error).__name__}); write it again.") from None
    return _as_text(table, first_row=1)


def _read_jsonl(file: Path, place: str) -> pd.DataFrame:
    rows = []
    for number, line in enumerate(_text(file, place).splitlines(), start=1):
        if not line.strip():
            continue
        try:
            row = json.loads(line)
        except ValueError:
            row = None
        if not isinstance(row, dict):
            raise DataError(f"{place}, line {number}: not a JSON object; write one object per line.")
        rows.append(row)
    return _as_text(pd.DataFrame(rows), first_row=1)


def _as_text(table: pd.DataFrame, first_row: int) -> pd.DataFrame:
    def text(value: object) -> str:
        if value is None or (isinstance(value, float) and value != value):
            return ""
        if isinstance(value, bool):
            return str(int(value))
        return str(int(value)) if isinstance(value, float) and value.is_integer() else str(value)

    table = table.map(text).astype(str)
    table.index = pd.RangeIndex(first_row, len(table) + first_row)
    return table


def _text(file: Path, place: str) -> str:
    try:
        return file.read_text(encoding="utf-8-sig")
    except UnicodeDecodeError:
        raise _not_utf8(place) from None


def _not_utf8(place: str) -> DataError:
    return DataError(f"{place}: the file is not UTF-8; save it in UTF-8 encoding.")


def read_criteria(path: str) -> dict[str, str]:
    """Read the criteria's texts.

    Parameters
    ----------
    path : str
        JSON: ``{"criteria": [{"id": ..., "text": ...}]}`` or a plain mapping of ids to texts.

    Returns
    -------
    dict of str to str
        Text by id, in the file's order.

    Raises
    ------
    DataError
        When the file is missing, is not JSON of that form, repeats an id or has an empty text.
    """
    place = f"data.criteria={path}"
    try:
        content = json.loads(_text(_existing(path, "data.criteria"), place), object_pairs_hook=list)
    except ValueError as error:
        where = f"line {error.lineno}" if isinstance(error, json.JSONDecodeError) else str(error)
        raise DataError(f"{place}: not valid JSON ({where}); mend the file.") from None
    form = DataError(
        f'{place}: neither {{"criteria": [{{"id", "text"}}]}} nor a mapping of ids to texts; write one of the two.'
    )
    if not isinstance(content, list):
        raise form
    entries: list[tuple[str, str]] = []
    listed = dict(content).get("criteria") if all(isinstance(item, tuple) for item in content) else None
    if isinstance(listed, list):
        for item in listed:
            record = dict(item) if isinstance(item, list) and all(isinstance(part, tuple) for part in item) else {}
            if not isinstance(record.get("id"), str | int) or not isinstance(record.get("text"), str):
                raise form
            entries.append((str(record["id"]), record["text"]))
    elif content and all(isinstance(item, tuple) and isinstance(item[1], str) for item in content):
        entries = [(str(name), text) for name, text in content]
    else:
        raise form
    criteria: dict[str, str] = {}
    for name, text in entries:
        if name in criteria:
            raise DataError(f"{place}: the id {name} stands there twice; give each criterion its own id.")
        if not clean(text):
            raise DataError(f"{place}: the criterion {name} has no text; write what counts as evidence for it.")
        criteria[name] = clean(text)
    if not criteria:
        raise DataError(f"{place}: the file names no criterion; add one.")
    return criteria


def clean(text: str) -> str:
    """One form for texts that look alike: Unicode NFC, runs of whitespace as one space, none at the ends."""
    return re.sub(r"\s+", " ", unicodedata.normalize("NFC", text)).strip()


def split_sentences(text: str) -> list[str]:
    """Split a post at line ends, and at whitespace after ``.``, ``!`` or ``?``.

    Plain on purpose: the sentences only serve as further negatives, where a wrong cut at "e.g." does little harm.

    Parameters
    ----------
    text : str

    Returns
    -------
    list of str
        Cleaned, without empty ones.
    """
    parts = re.split(r"(?<=[.!?])\s+|[\r\n]+", text)
    return [sentence for sentence in map(clean, parts) if sentence]
