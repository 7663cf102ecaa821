"""Tables as people have them, in files or in memory: one rule makes text of a cell, and what is no text is refused."""

import csv
import gzip
import io
import json
import os
import re
import zipfile
from collections.abc import Callable, Iterator, Mapping, Sequence
from datetime import date
from numbers import Number
from pathlib import Path
from typing import IO, Any, Literal

import numpy as np
import pandas as pd

from evbind_lib.config.paths import resolve_path
from evbind_lib.errors import DataError, did_you_mean

NAMED = ("post_id", "sentence_id", "criterion_id", "criterion", "author")  # read where a table has them
MOST_CHARACTERS = 1_000_000  # of one cell
OTHER_SEPARATORS = {";": "semicolons; save it with commas", "\t": "tabs; name it .tsv", ",": "commas; name it .csv"}
CSV_ERRORS = {  # words of the csv module's, and what they mean here
    "unexpected end": "a quoted text does not end; close it, and quote texts that hold commas or line ends",
    "limit": f"a text of more than {MOST_CHARACTERS:,} characters; close its quote, or shorten it",
    "": 'a quote within a quoted text; write "" for a quote, and quote texts that hold commas',
}
UNWRITABLE = re.compile("[\0\ud800-\udfff]")


class NoTableError(Exception):
    """What is wrong with a file's content, and the remedy."""


def read_file(path: str | None, key: str, reader: Callable[[Any], Any]) -> Any:
    """What a reader makes of an open binary file, unpacked where it is .gz or .zip, or one sentence why it cannot."""
    if path is None:
        raise DataError(f"{key} names no file; set {key}=FILE.")
    place, file = f"{key}={path:.200}", resolve_path(path)
    if not os.path.isfile(file):  # unlike Path.is_file, for any name
        raise DataError(f"{place}: there is no such file; set {key} to the file's path.")
    if not os.path.getsize(file):
        raise DataError(f"{place}: the file is empty; give a file with data.")
    try:
        with _opened(file) as opened:
            return reader(opened)
    except NoTableError as error:
        problem = str(error)
    except UnicodeDecodeError:
        problem = ": the file is not UTF-8; save it in UTF-8 encoding"
    except json.JSONDecodeError as error:
        problem = f": not readable ({error}); correct it"
    except Exception as error:  # pyarrow has many
        problem = f": not a {file.suffix} file ({type(error).__name__}); write it again"
    raise DataError(f"{place}{problem}.")


def _opened(file: Path) -> Any:
    """A file, unpacked; of an archive the one file in it, apart from what a Mac adds."""
    suffix = file.suffix.lower()
    if suffix != ".zip":
        return gzip.open(file, "rb") if suffix == ".gz" else file.open("rb")
    archive = zipfile.ZipFile(file)
    inside = [name for name in archive.namelist() if not name.endswith("/") and not name.startswith("__MACOSX")]
    if len(inside) != 1:
        raise NoTableError(f": it holds {len(inside)} files, and needs one; unpack it and name the table")
    return archive.open(inside[0])


def read_rows(file: Any) -> pd.DataFrame:
    """A table of the kind that its name ends in, in an archive that of the file inside, with rows' lines as index."""
    suffix = Path(str(file.name).lower().removesuffix(".gz")).suffix
    if suffix == ".parquet":
        table = pd.read_parquet(io.BytesIO(file.read()), dtype_backend="pyarrow")  # numbers with gaps stay whole
        return table.set_axis(pd.RangeIndex(1, len(table) + 1), axis="index")
    if suffix == ".jsonl":
        rows = dict(read_objects(file))
        return pd.DataFrame([*rows.values()], [*rows], dtype=object)  # in which numbers with gaps stay whole
    if suffix in (".csv", ".tsv"):
        return _read_delimited(file, "," if suffix == ".csv" else "\t")
    remedy = "use .csv, .tsv, .parquet, .jsonl, or one of these as .gz or in a .zip"
    if suffix in (".xlsx", ".xls", ".ods", ".numbers"):
        remedy = "save the sheet as CSV UTF-8 (.csv)"
    raise NoTableError(f": {suffix or 'no suffix'} is no known kind of table; {remedy}")


def _read_delimited(file: IO[bytes], delimiter: str) -> pd.DataFrame:
    """Rows that have as many fields as the header, with the lines they begin in; in a TSV a quote is text."""
    quoting: Literal[0, 3] = csv.QUOTE_NONE if delimiter == "\t" else csv.QUOTE_MINIMAL
    lines = io.TextIOWrapper(file, encoding="utf-8-sig", newline="")
    first = next((line for line in lines if line.strip()), "")  # the header, since texts may hold any separator
    if delimiter not in first and (other := next((each for each in OTHER_SEPARATORS if each in first), None)):
        raise NoTableError(f": its columns are separated by {OTHER_SEPARATORS[other]}")
    lines.seek(0)
    reader = csv.reader(lines, delimiter=delimiter, quoting=quoting, strict=True)
    limit, line, header = csv.field_size_limit(MOST_CHARACTERS), 1, list[str]()
    fields, begins = list[str](), list[int]()  # of all rows in one list: a list for each would take twice the memory
    try:
        for row in reader:
            header = header or row
            if row and len(row) != len(header):
                problem = f"it has {len(row)} fields, the header {len(header)}"
                raise NoTableError(f", row {line}: {problem}; correct it, and in CSV quote texts that hold commas")
            if row and row is not header:
                fields += row
                begins.append(line)
            line = reader.line_num + 1
    except csv.Error as error:
        problem = next(problem for words, problem in CSV_ERRORS.items() if words in str(error))
        raise NoTableError(f", row {line}: {problem}") from None
    finally:
        csv.field_size_limit(limit)
    columns = {at: pd.array(fields[at :: len(header)], dtype="str") for at in range(len(header))}
    return pd.DataFrame(columns, index=begins).set_axis(header, axis="columns")


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


def as_text(table: pd.DataFrame, place: str, columns: Sequence[str], names: Mapping[str, str] = {}) -> pd.DataFrame:
    """A table with rows and these columns, values as text, missing ones empty; messages name a row as its index does."""
    table = table.rename(columns=str)
    for number, name in enumerate(table.columns, start=1):
        if not name.strip():
            raise DataError(f"{place}: column {number} has no name; give it one, or take it out.")
    if not table.columns.is_unique:
        twice = table.columns[table.columns.duplicated()][0]
        raise DataError(f"{place}: the column {twice} stands there twice; take one of them out.")
    if table.empty:
        raise DataError(f"{place}: it has no rows; give a table with data.")
    table = table.assign(**{ours: table[theirs] for ours, theirs in names.items() if theirs in table})
    if missing := [column for column in columns if column not in table]:
        what = f"column {missing[0]} is"
        if missing[1:]:
            what = f"columns {', '.join(missing[:-1])} and {missing[-1]} are"
        end = did_you_mean("" if missing[1:] else missing[0], table.columns)
        if "data." in place and end.endswith("."):
            end = f"{end[:-1]}; name the right ones in data.columns={{{missing[0]}: COLUMN}}."
        raise DataError(f"{place}: the {what} missing{end}")
    texts = {}
    for name in table.columns:
        try:
            texts[name] = _column_as_text(table[name])
        except NoTableError as problem:  # a column that nobody asked for goes
            if name in {*columns, *NAMED, *names}:
                raise DataError(f"{place}{problem}.") from None
    return pd.DataFrame(texts, index=table.index)


def _column_as_text(values: pd.Series) -> pd.Series:
    """Every cell by the one rule, as a column of pandas' text."""
    if values.dtype == "str":
        texts = values.fillna("")
        wrong = texts.str.contains("\0", regex=False) | (texts.str.len() > MOST_CHARACTERS)
        if not wrong.any():  # half a character cannot stand in this type
            return texts
    written = list[str]()
    for row, cell in values.astype(object).items():
        try:
            written.append(_cell(cell))
        except ValueError as problem:
            raise NoTableError(f", row {row}: {values.name} {problem}") from None
    return pd.Series(written, values.index, dtype="str")


def _cell(cell: Any) -> str:
    """Text of one cell: text as it is, a missing value empty, whole numbers without .0; lists, objects and bytes are no text."""
    if isinstance(cell, float | np.floating) and float(cell).is_integer():
        if abs(float(cell)) >= 2**53:
            raise ValueError("is a number of so many digits that the last are lost; write it as text")
        cell = int(cell)
    if not isinstance(cell, str) and pd.api.types.is_scalar(cell) and pd.isna(cell):
        return ""
    if not isinstance(cell, str | Number | np.bool_ | date):
        what = {"ndarray": "list", "bytes": "row of bytes"}.get(type(cell).__name__, type(cell).__name__)
        raise ValueError(f"holds a {what}, which is no text; write one text in each cell")
    text = str(cell)
    if len(text) > MOST_CHARACTERS:
        raise ValueError(f"has more than {MOST_CHARACTERS:,} characters; shorten it")
    if UNWRITABLE.search(text):
        what = "a NUL byte" if "\0" in text else "half a character (a lone surrogate)"
        raise ValueError(f"holds {what}; write the text again in UTF-8")
    return text
