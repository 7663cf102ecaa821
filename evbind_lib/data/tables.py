"""Read, check and clean tables of text, from files or from memory: one sentence where one cannot be used, without its texts."""

import html
import json
import re
import unicodedata
from collections.abc import Callable, Iterable, Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd

from evbind_lib.config.paths import resolve_path
from evbind_lib.errors import DataError, did_you_mean

Counted = tuple[pd.DataFrame, dict[str, int]]  # a table, and counts for the report
SPECIAL_CASE = "SPECIAL_CASE"
LABELS = {"0": 0, "1": 1, "0.0": 0, "1.0": 1, "False": 0, "True": 1}


def read_table(path: str | None, key: str, columns: Sequence[str]) -> pd.DataFrame:
    """Read a CSV, TSV, Parquet or JSONL table that has these columns, every value as text; the index counts the file's rows."""
    suffix = Path(path or "posts.csv").suffix.lower()
    if suffix not in READ:
        raise DataError(f"{key}={path}: {suffix or 'no suffix'} is no known kind of table; use {', '.join(READ)}.")
    first_row = 2 if suffix in (".csv", ".tsv") else 1  # row 1 is the header
    return as_text(_read(path, key, READ[suffix]), f"{key}={path}", columns, first_row)


def _read(path: str | None, key: str, reader: Callable[[Path], Any]) -> Any:
    """What a reader makes of a file, or one sentence why it cannot."""
    if path is None:
        raise DataError(f"{key} names no file; set {key}=FILE.")
    file, place = resolve_path(path), f"{key}={path}"
    if not file.is_file():
        raise DataError(f"{place}: there is no such file; set {key} to the file's path.")
    if file.stat().st_size == 0:
        raise DataError(f"{place}: the file is empty; give a file with data.")
    try:
        return reader(file)
    except UnicodeDecodeError:
        raise DataError(f"{place}: the file is not UTF-8; save it in UTF-8 encoding.") from None
    except (pd.errors.ParserError, json.JSONDecodeError) as error:
        reason = str(error).rpartition("C error: ")[2].strip()
        remedy = "correct it, and in CSV quote texts that hold commas or line ends"
        raise DataError(f"{place}: not readable ({reason}); {remedy}.") from None
    except Exception as error:  # pyarrow has many
        raise DataError(f"{place}: not a {file.suffix} file ({type(error).__name__}); write it again.") from None


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


TEXT = {"dtype": str, "keep_default_na": False, "encoding": "utf-8-sig"}
READ: dict[str, Callable[..., Any]] = {
    ".csv": partial(pd.read_csv, **TEXT),
    ".tsv": partial(pd.read_csv, sep="\t", **TEXT),
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
    table = table.convert_dtypes().astype(object)  # whole numbers without .0, also where one is missing
    table = table.where(table.notna(), "").astype(str)
    return table.set_axis(pd.RangeIndex(first_row, first_row + len(table)), axis="index")


def read_criteria(path: str) -> dict[str, str]:
    """Read the criteria's texts by id, in the file's order: ``{"criteria": [{"id", "text"}]}`` or a mapping of ids to texts."""
    place = f"data.criteria={path}"
    # Objects as lists of pairs, so that an id that stands there twice is seen.
    read = partial(json.loads, object_pairs_hook=list)
    content = _read(path, "data.criteria", lambda file: read(file.read_text(encoding="utf-8-sig")))
    try:
        listed = dict(content).get("criteria")
        entries = [(dict(item)["id"], dict(item)["text"]) for item in listed] if isinstance(listed, list) else content
    except (TypeError, ValueError, KeyError):
        form = '{"criteria": [{"id", "text"}]} nor a mapping of ids to texts'
        raise DataError(f"{place}: neither {form}; write one of the two.") from None
    return check_criteria(entries, place)


def check_criteria(entries: Iterable[tuple[Any, Any]], place: str) -> dict[str, str]:
    """Criteria by id with cleaned texts; no id twice, no text empty, at least one."""
    criteria: dict[str, str] = {}
    for name, text in ((clean_id(str(name)), text) for name, text in entries):
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


# Code points of apostrophes and quotation marks, all written as one of the two on a keyboard.
QUOTES = dict.fromkeys((0x60, 0xB4, 0x2018, 0x2019, 0x201B), "'") | dict.fromkeys(
    (0xAB, 0xBB, 0x201C, 0x201D, 0x201E), '"'
)


def text_key(text: str) -> str:
    """What texts have in common that are one: without case, forms of quotes and width, invisible marks, HTML, last stops."""
    if not text.isascii() or "&" in text:
        text = unicodedata.normalize("NFKC", html.unescape(text).translate(QUOTES))
        text = "".join(letter for letter in text if unicodedata.category(letter) != "Cf")
    key = " ".join(text.casefold().split())
    return key.rstrip(" .!?,;:") or key


def clean_id(text: str) -> str:
    """An id as it is compared: composed letters, without invisible marks and space around it; nothing else is changed."""
    text = text if text.isascii() else unicodedata.normalize("NFC", text)
    return "".join(letter for letter in text if unicodedata.category(letter) != "Cf").strip()


def split_sentences(text: str) -> list[str]:
    """Cleaned sentences of a post, cut at line ends and after ``.``, ``!`` or ``?``: plain, as they only serve as negatives."""
    parts = re.split(r"(?<=[.!?])\s+|[\r\n]+", text)
    return [sentence for sentence in map(clean, parts) if sentence]


def clean_rows(table: pd.DataFrame, posts: pd.DataFrame | None, place: str, label: str) -> Counted:
    """Check ids and labels, clean the sentences, drop empty ones, give a sentence an id where it has none."""
    plain = table["label"].str.strip()
    labels = plain.map(LABELS)
    if labels.isna().any():
        wrong = plain[labels.isna()].iloc[:1]
        # Anything longer may be a sentence that slipped into this column.
        value = (wrong.item() or "empty") if len(wrong.item()) <= 5 else "neither 0 nor 1"
        raise DataError(f"{place}, row {wrong.index[0]}: {label} is {value}; write 1 for evidence and 0 for none.")
    ids, sentences = _post_ids(table, place), table["sentence"].map(clean)
    table = table.assign(post_id=ids, label=labels.astype(np.int8), sentence=sentences)
    empty = table["sentence"].map(lambda text: text == "" or (not text.isascii() and text_key(text) == ""))
    if empty.all():
        raise DataError(f"{place}: every sentence is empty; give a table whose rows hold sentences.")
    without_post = 0 if posts is None else int((~table["post_id"].isin(posts["post_id"])).sum())
    counts = {"annotations": len(table), "annotations_without_post": without_post, "empty_sentences": int(empty.sum())}
    table = table[~empty]
    # Made ids number a post's sentences by text, so that they are the same whatever the order of rows.
    number = table.groupby("post_id")["sentence"].transform(lambda texts: pd.factorize(texts, sort=True)[0])
    made = table["post_id"] + "_a" + number.astype(str)
    given = table["sentence_id"].map(clean_id) if "sentence_id" in table else made
    return table.assign(sentence_id=given.where(given != "", made)), counts


def _post_ids(table: pd.DataFrame, place: str) -> pd.Series:
    ids = table["post_id"].map(clean_id)
    _refuse_rows(ids == "", place, "post_id is empty; fill it in, as folds keep posts whole")
    return ids


def _refuse_rows(wrong: pd.Series, place: str, problem: str) -> None:
    """Raise for the first row in which something is wrong."""
    if wrong.any():
        raise DataError(f"{place}, row {wrong.idxmax()}: {problem}.")


def refuse_several(values: pd.Series, ids: pd.Series, place: str, problem: str) -> None:
    """Raise for the first id that stands with several values."""
    several = values.groupby(ids).nunique() > 1
    if several.any():
        raise DataError(f"{place}: the {ids.name} {shown(several.idxmax())} has several {problem}.")


def shown(value: object) -> str:
    """Make sure that a message repeats ids only: what has spaces may be a text in the wrong column."""
    return str(value) if re.fullmatch(r"\S{1,60}", str(value)) else "(a text, not shown)"


def check_posts(posts: pd.DataFrame, place: str) -> Counted:
    """Posts with clean ids; one id has one text."""
    posts = posts.assign(post_id=_post_ids(posts, place))
    refuse_several(posts["text"], posts["post_id"], place, "texts; give each post its own id")
    once = posts.drop_duplicates("post_id")
    empty = once["text"].str.strip() == ""
    return posts, {"repeated_posts": len(posts) - len(once), "posts_without_text": int(empty.sum())}


def clean_criteria(table: pd.DataFrame, place: str) -> pd.DataFrame:
    """Pairs with clean ids and texts of their criteria, at least one of both, and ids made of the texts where there are none."""
    columns = [column for column in ("criterion", "criterion_id") if column in table]
    if not columns:
        near = did_you_mean("criterion", table.columns)
        raise DataError(f"{place}: it needs a column criterion or criterion_id and has neither{near}")
    for column in columns:
        table = table.assign(**{column: table[column].map(clean_id if column == "criterion_id" else clean)})
        _refuse_rows(table[column] == "", place, f"{column} is empty; fill it in for every row")
    if "criterion_id" not in table:
        texts = sorted(set(table["criterion"]))
        width = max(4, len(str(len(texts))))
        ids = {text: f"C{number:0{width}d}" for number, text in enumerate(texts, start=1)}
        table = table.assign(criterion_id=table["criterion"].map(ids))
    if "criterion" in table:
        refuse_several(
            table["criterion"].map(text_key), table["criterion_id"], place, "texts; give each text its own id"
        )
    return table


def with_texts(table: pd.DataFrame, criteria: Mapping[str, str], place: str, column: str) -> tuple[pd.DataFrame, int]:
    """Give every row the text of its criterion; rows whose id has no text are dropped, and counted."""
    if table.empty:
        raise DataError(f"{place}: every {column} is {SPECIAL_CASE}; add rows annotated for a criterion.")
    known = table["criterion_id"].isin(criteria)
    if not known.any():
        first = shown(table["criterion_id"].iloc[0])
        near = did_you_mean(first, criteria)
        remedy = "; correct it, or give the criteria that have these ids." if near == "." else near
        raise DataError(f"{place}: no {column} is the id of a criterion, for example {first}{remedy}")
    kept = table[known]
    return kept.assign(criterion=kept["criterion_id"].map(criteria)), int((~known).sum())
