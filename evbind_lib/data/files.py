"""Tables as people have them, in files or in memory: one rule makes text of a cell, and what is no text is refused."""

import csv
import gzip
import io
import json
import re
import zipfile
from collections.abc import Callable, Iterator, Mapping, Sequence
from datetime import date
from numbers import Number
from pathlib import Path
from typing import IO, Any, Literal

import numpy as np
import pandas as pd
import pyarrow as pa

from evbind_lib.config.paths import resolve_path
from evbind_lib.errors import DataError, did_you_mean

SUFFIXES, PACKED = (".csv", ".tsv", ".parquet", ".jsonl"), (".gz", ".zip")
NAMED = ("post_id", "sentence_id", "criterion_id", "criterion", "author")  # read where a table has them
MOST_CHARACTERS = 1_000_000  # of one cell
AT_ONCE = 100_000  # rows held as Python's strings, for memory
OTHER_SEPARATORS = {";": "semicolons", "\t": "tabs", "|": "vertical bars"}
UNWRITABLE = re.compile("[\0\ud800-\udfff]")
Reader = Callable[[Any], Any]  # of an open binary file


class NoTableError(Exception):
    """What is wrong with a file's content, and the remedy."""


class _NoTextError(Exception):
    """Where a cell holds no text, and what it holds."""

    def __init__(self, at: int, problem: str) -> None:
        super().__init__(problem)
        self.at = at


def read_table(
    path: str | None, key: str, columns: Sequence[str], names: Mapping[str, str] | None = None
) -> pd.DataFrame:
    """Read a CSV, TSV, Parquet or JSONL table that has these columns, as it is, as .gz or in a .zip; every value as text.

    The index counts lines of the file, in which a row begins; of a Parquet table its rows, from 1. ``names`` says how the table
    calls our columns, where it has them.
    """
    path = path if path is None else str(path)
    suffixes = [end.lower() for end in Path(path or "table.csv").suffixes]
    suffix = next((end for end in suffixes[::-1] if end not in PACKED), "")
    if suffix not in SUFFIXES and suffixes[-1:] != [".zip"]:
        remedy = f"use {', '.join(SUFFIXES)}, or one of these as .gz or in a .zip"
        if suffix in (".xlsx", ".xls", ".ods", ".numbers"):
            remedy = "save the sheet as CSV UTF-8 (.csv)"
        raise DataError(f"{key}={path:.200}: {suffix or 'no suffix'} is no known kind of table; {remedy}.")
    table = read_file(path, key, lambda file: _read(file, suffix))
    return as_text(table, f"{key}={path:.200}", columns, names, table.index)


def read_file(path: str | None, key: str, reader: Reader) -> Any:
    """What a reader makes of a file, unpacked where it is .gz or .zip, or one sentence why it cannot."""
    if path is None:
        raise DataError(f"{key} names no file; set {key}=FILE.")
    place = f"{key}={path:.200}"
    try:
        file = resolve_path(path)
        size = file.stat().st_size if file.is_file() else None
    except (OSError, ValueError):  # a name too long
        size = None
    if size is None:
        raise DataError(f"{place}: there is no such file; set {key} to the file's path.")
    if size == 0:
        raise DataError(f"{place}: the file is empty; give a file with data.")
    try:
        with file.open("rb") as opened:
            return reader(_unpacked(opened, file.suffix.lower()))
    except UnicodeDecodeError:
        raise DataError(f"{place}: the file is not UTF-8; save it in UTF-8 encoding.") from None
    except NoTableError as error:
        raise DataError(f"{place}{error}.") from None
    except json.JSONDecodeError as error:
        raise DataError(f"{place}: not readable ({error}); correct it.") from None
    except Exception as error:  # pyarrow has many
        raise DataError(f"{place}: not a {file.suffix} file ({type(error).__name__}); write it again.") from None


def _unpacked(file: IO[bytes], suffix: str) -> Any:
    """What a file holds, unpacked; of an archive the one file in it, apart from what a Mac adds."""
    if suffix not in PACKED:
        return file
    if suffix == ".gz":
        return gzip.open(file, "rb")
    archive = zipfile.ZipFile(file)
    inside = [name for name in archive.namelist() if not name.endswith("/") and not name.startswith("__MACOSX")]
    if len(inside) != 1:
        raise NoTableError(f": it holds {len(inside)} files, and needs one; unpack it and name the table")
    return archive.open(inside[0])


def _read(file: IO[bytes], suffix: str) -> pd.DataFrame:
    """A table of this kind; in an archive the name of the file inside counts."""
    suffix = suffix if suffix in SUFFIXES else Path(getattr(file, "name", "") or "").suffix.lower()
    if suffix == ".parquet":
        table = pd.read_parquet(io.BytesIO(file.read()), dtype_backend="pyarrow")  # numbers with gaps stay whole
        return table.set_axis(pd.RangeIndex(1, len(table) + 1), axis="index")
    if suffix == ".jsonl":
        return _table_of_objects(read_objects(file))
    if suffix in SUFFIXES:
        return _read_delimited(file, "\t" if suffix == ".tsv" else ",")
    raise NoTableError(f": what it holds is none of {', '.join(SUFFIXES)}; write one of these")


def _read_delimited(file: IO[bytes], delimiter: str) -> pd.DataFrame:
    """Rows that have as many fields as the header; in a TSV a quote is text."""
    lines = io.TextIOWrapper(file, encoding="utf-8-sig", newline="")
    quoting: Literal[0, 3] = csv.QUOTE_NONE if delimiter == "\t" else csv.QUOTE_MINIMAL
    reader = csv.reader(lines, delimiter=delimiter, quoting=quoting, strict=True)
    limit, begins, header = csv.field_size_limit(MOST_CHARACTERS), 1, list[str]()
    rows, numbers, parts = list[list[str]](), list[int](), list[list[pa.Array]]()
    try:
        for row in reader:
            header = header or row
            if row and len(row) != len(header):
                problem = f"it has {len(row)} fields, the header {len(header)}"
                raise NoTableError(f", row {begins}: {problem}; correct it, and in CSV quote texts that hold commas")
            if row and row is not header:
                rows.append(row)
                numbers.append(begins)
            if len(rows) == AT_ONCE:
                parts, rows = [*parts, _columns(rows)], []
            begins = reader.line_num + 1
    except csv.Error as error:
        problem, remedy = "a quote within a quoted text", 'write "" for a quote, and quote texts that hold commas'
        if "unexpected end" in str(error):
            problem, remedy = "a quoted text does not end", "close it, and quote texts that hold commas or line ends"
        elif "limit" in str(error):
            problem, remedy = f"a text of more than {MOST_CHARACTERS:,} characters", "close its quote, or shorten it"
        raise NoTableError(f", row {begins}: {problem}; {remedy}") from None
    finally:
        csv.field_size_limit(limit)
    if len(header) == 1 and (other := next((each for each in OTHER_SEPARATORS if each in header[0]), None)):
        remedy = "name it .tsv" if other == "\t" else "save it with commas"
        raise NoTableError(f": its columns are separated by {OTHER_SEPARATORS[other]}; {remedy}")
    parts = [*parts, _columns(rows)] if rows else parts
    columns = [pa.chunked_array([part[at] for part in parts], pa.string()).to_pandas() for at in range(len(header))]
    table = pd.concat(columns, axis=1) if columns else pd.DataFrame()
    return table.set_axis(header, axis="columns").set_axis(np.array(numbers, dtype=np.int64), axis="index")


def _columns(rows: list[list[str]]) -> list[pa.Array]:
    return [pa.array(column, pa.string()) for column in zip(*rows, strict=True)]


def read_objects(file: IO[bytes]) -> Iterator[tuple[int, dict[str, Any]]]:
    """Objects of a JSONL file with their lines, which end at line feeds only: U+2028 may stand in a text."""
    for number, line in enumerate(io.TextIOWrapper(file, encoding="utf-8-sig", newline="\n"), start=1):
        if not line.strip():
            continue
        try:
            row = json.loads(line)
        except (ValueError, RecursionError):
            row = None
        if not isinstance(row, dict):
            raise NoTableError(f", line {number}: not a JSON object; correct it")
        yield number, row


def _table_of_objects(objects: Iterator[tuple[int, dict[str, Any]]]) -> pd.DataFrame:
    """A table of objects, in which numbers stay what they are where others lack them."""
    rows = dict(objects)
    columns = dict.fromkeys(name for row in rows.values() for name in row)
    values = {name: pd.Series([row.get(name) for row in rows.values()], [*rows], object) for name in columns}
    return pd.DataFrame(values)


def as_text(
    table: pd.DataFrame,
    place: str,
    columns: Sequence[str],
    names: Mapping[str, str] | None = None,
    rows: pd.Index | None = None,
) -> pd.DataFrame:
    """Check that a table has rows and these columns, and give every value as text, a missing one empty.

    ``rows`` are numbers for messages, by default from 0. Columns that nobody asked for and that hold no text go.
    """
    table = table.rename(columns=str)
    for number, name in enumerate(table.columns, start=1):
        if not name.strip():
            raise DataError(f"{place}: column {number} has no name; give it one, or take it out.")
    if not table.columns.is_unique:
        twice = table.columns[table.columns.duplicated()][0]
        raise DataError(f"{place}: the column {twice} stands there twice; take one of them out.")
    if table.empty:
        raise DataError(f"{place}: it has no rows; give a table with data.")
    names, named = names or {}, () if "text" in columns else NAMED
    table = table.assign(**{ours: table[theirs] for ours, theirs in names.items() if theirs in table})
    lost = [theirs for ours, theirs in names.items() if ours in (*columns, *named) and ours not in table]
    if missing := lost or [column for column in columns if column not in table]:
        what = f"column {missing[0]} is"
        if missing[1:]:
            what = f"columns {', '.join(missing[:-1])} and {missing[-1]} are"
        end = did_you_mean("" if missing[1:] else missing[0], table.columns)
        if "data." in place and end.endswith("."):
            end = f"{end[:-1]}; name the right ones in data.columns={{{missing[0]}: COLUMN}}."
        raise DataError(f"{place}: the {what} missing{end}")
    rows = pd.RangeIndex(len(table)) if rows is None else rows
    texts = {}
    for name in table.columns:
        try:
            texts[name] = _column_as_text(table[name])
        except _NoTextError as error:
            if name in {*columns, *NAMED, *names}:
                raise DataError(f"{place}, row {rows[error.at]}: {name} {error}.") from None
    return pd.DataFrame(texts).set_axis(rows, axis="index")


def _column_as_text(values: pd.Series) -> pd.Series:
    """Every cell by the one rule, as a column of pandas' text."""
    if values.dtype == "str":
        texts = values.fillna("")
        wrong = texts.str.contains("\0", regex=False) | (texts.str.len() > MOST_CHARACTERS)
        if not wrong.any():  # half a character cannot stand in this type
            return texts.reset_index(drop=True)
    cells = values.astype(object).tolist()
    plain = all(type(cell) is str for cell in cells)
    written = cells if plain else [_cell(cell, at) for at, cell in enumerate(cells)]
    for at, text in enumerate(written):
        if len(text) > MOST_CHARACTERS:
            raise _NoTextError(at, f"has more than {MOST_CHARACTERS:,} characters; shorten it")
        if UNWRITABLE.search(text):
            what = "a NUL byte" if "\0" in text else "half a character (a lone surrogate)"
            raise _NoTextError(at, f"holds {what}; write the text again in UTF-8")
    return pd.Series(written, dtype="str")


def _cell(cell: Any, at: int) -> str:
    """Text of one cell: text as it is, a missing value empty, whole numbers without .0; lists, objects and bytes are no text."""
    if isinstance(cell, str):
        return str(cell)
    if isinstance(cell, float | np.floating):
        if not float(cell).is_integer():
            return "" if np.isnan(cell) else str(cell)
        if abs(float(cell)) >= 2**53:
            raise _NoTextError(at, "is a number of so many digits that the last are lost; write it as text")
        return str(int(cell))
    if cell is None or cell is pd.NA or cell is pd.NaT:
        return ""
    if isinstance(cell, Number | np.bool_ | date):
        return str(cell)
    what = {"ndarray": "list", "bytes": "row of bytes"}.get(type(cell).__name__, type(cell).__name__)
    raise _NoTextError(at, f"holds a {what}, which is no text; write one text in each cell")
