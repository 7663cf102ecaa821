"""Check and clean tables of text: one sentence where one cannot be used, without its texts."""

import html
import json
import re
import unicodedata
from collections.abc import Callable, Iterable, Mapping
from typing import Any

import numpy as np
import pandas as pd

from evbind_lib.data.files import UNWRITABLE, read_file
from evbind_lib.errors import DataError, did_you_mean, near_name

SPECIAL_CASE = "SPECIAL_CASE"
LABELS = {"evidence": ("1", "true", "yes"), "none": ("0", "false", "no")}


def read_criteria(path: str) -> dict[str, str]:
    """Read the criteria's texts by id, in the file's order: ``{"criteria": [{"id", "text"}]}`` or a mapping of ids to texts."""
    place = f"data.criteria={path}"
    # Objects as lists of pairs, so that an id that stands there twice is seen.
    content = read_file(path, "data.criteria", lambda file: json.loads(file.read(), object_pairs_hook=list))
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
        if UNWRITABLE.search(name) or UNWRITABLE.search(str(text)):
            problem = "an id or a text holds a NUL byte or half a character (a lone surrogate)"
            raise DataError(f"{place}: {problem}; write it again in UTF-8.")
        if not isinstance(text, str) or not clean(text):
            raise DataError(f"{place}: the criterion {name} has no text; write what counts as evidence for it.")
        criteria[name] = clean(text)
    if not criteria:
        raise DataError(f"{place}: it names no criterion; add one.")
    return criteria


def clean(text: str) -> str:
    """One form for texts that look alike: Unicode NFC, runs of whitespace and control characters as one space."""
    return " ".join(re.sub(r"[\x00-\x1f\x7f-\x9f]", " ", unicodedata.normalize("NFC", text)).split())


PLAIN = r"[!-~]+(?: [!-~]+)*"  # nothing to clean

# Code points of apostrophes and quotation marks, all written as one of the two on a keyboard.
QUOTES = str.maketrans("\x60\xb4\u2018\u2019\u201b\xab\xbb\u201c\u201d\u201e", "'" * 5 + '"' * 5)


def text_key(text: str) -> str:
    """What texts have in common that are one: without case, forms of quotes and width, invisible marks, HTML, last stops."""
    if not text.isascii() or "&" in text:
        text = unicodedata.normalize("NFKC", html.unescape(text).translate(QUOTES))
        text = "".join(letter for letter in text if unicodedata.category(letter) != "Cf")
    key = " ".join(text.casefold().split())
    return key.rstrip(" .!?,;:") or key


def clean_id(text: str) -> str:
    """An id as it is compared: composed letters, without invisible marks and space around it; nothing else is changed."""
    text = unicodedata.normalize("NFC", text)
    return "".join(letter for letter in text if unicodedata.category(letter) != "Cf").strip()


def split_sentences(text: str) -> list[str]:
    """Cleaned sentences of a post, cut at line ends and after ``.``, ``!`` or ``?``: plain, as they only serve as negatives."""
    parts = re.split(r"(?<=[.!?])\s+|[\r\n]+", text)
    return [sentence for sentence in map(clean, parts) if sentence]


# Rules under which ids would meet that do not.
ID_RULES: dict[str, Callable[[str], str]] = {
    "a trailing .0": lambda name: re.sub(r"\.0+$", "", name),
    "leading zeros": lambda name: name.lstrip("0"),
    "capitals": str.casefold,
    "Reddit's t3_ in front": lambda name: name.removeprefix("t3_"),
}


def compare_ids(
    table: pd.DataFrame, posts: pd.DataFrame, place: str, counts: dict[str, int], remarks: list[str]
) -> None:
    """Note rows whose post is not there, with the rule under which it would be; refuse a table of which no row has one."""
    missing = table.loc[~table["post_id"].isin(posts["post_id"]), "post_id"]
    counts["annotations_without_post"] = len(missing)
    if missing.empty:
        return
    rule, here, there = None, missing.iloc[0], posts["post_id"].min()
    for name, change in ID_RULES.items():
        changed = {change(post): post for post in posts["post_id"]}
        if meeting := [post for post in missing.unique() if change(post) in changed]:
            rule, here, there = name, meeting[0], changed[change(meeting[0])]
            break
    if len(missing) == len(table):
        remedy = f"they meet without {rule}, so write both files' ids alike" if rule else "correct one of both files"
        spelled = f"here {shown(here)}, there {shown(there)}"
        raise DataError(f"{place}: no post_id is one of the posts, {spelled}; {remedy}.")
    would = f", which would be there without {rule}" if rule else ""
    remarks.append(f"{len(missing):,} annotations of {missing.nunique():,} posts that are not there{would}")


def _label(text: object) -> str:
    """A label without case, space and decimals that say nothing."""
    return re.sub(r"^([01])\.0*$", r"\1", str(text).strip().casefold())


def clean_rows(
    table: pd.DataFrame, place: str, label: str, names: Mapping[Any, Iterable[Any]], counts: dict[str, int]
) -> pd.DataFrame:
    """Check ids and labels, clean the sentences, drop empty ones, give a sentence an id where it has none."""
    meaning = {_label(name): side == "evidence" for side, own in {**LABELS, **names}.items() for name in own}
    labels = table[label].map({text: meaning.get(_label(text)) for text in table[label].unique()})
    for row, text in table.loc[labels.isna(), label].items():
        # Anything else may be a sentence that slipped into this column.
        value = (text or "empty") if re.fullmatch(r"\s*[\w.+-]{0,20}\s*", text) else "no label"
        remedy = "write 1 for evidence and 0 for none"
        remedy += ", or say in data.labels={evidence: [...], none: [...]} what they are" if "=" in place else ""
        raise DataError(f"{place}, row {row}: {label} is {value}; {remedy}.")
    ids, sentences = _post_ids(table, place), each_text(table["sentence"], clean)
    table = table.assign(post_id=ids, label=labels.astype(np.int8), sentence=sentences)
    empty = each_text(sentences, text_key) == ""  # also of invisible marks alone
    if empty.all():
        raise DataError(f"{place}: every sentence is empty; give a table whose rows hold sentences.")
    counts |= {"annotations": len(table), "empty_sentences": int(empty.sum()), "repeated_sentence_ids": 0}
    table = table[~empty]
    given = each_text(table["sentence_id"], clean_id) if "sentence_id" in table else pd.Series("", table.index)
    if (missing := given == "").any():
        # Made ids number a post's sentences by text, so that they are the same whatever the order of rows.
        given = given.where(~missing, table["post_id"] + "_a" + _number(table, table["post_id"]).astype(str))
    # An id that several sentences of a post have would show the wrong one beside an error.
    again = pd.DataFrame({"post": table["post_id"], "id": given}).duplicated(keep=False)
    if again.any():
        number = _number(table, table["post_id"], given).where(again, 0)
        counts["repeated_sentence_ids"] = int((number > 0).sum())
        given = given.where(number == 0, given + "~" + number.astype(str))
    return table.assign(sentence_id=given)


def each_text(values: pd.Series, change: Callable[[str], str]) -> pd.Series:
    """Every text changed, each distinct one once, apart from those of printable ASCII with single spaces, which stay."""
    odd = ~values.str.fullmatch(PLAIN)
    changed = {text: change(text) for text in values[odd].unique()}
    values = values.copy()
    values[odd] = values[odd].map(changed).to_numpy()
    return values


def _number(table: pd.DataFrame, *within: pd.Series) -> pd.Series:
    """Number of each sentence among those within the same, by text, from 0."""
    codes = pd.Series(pd.factorize(table["sentence"], sort=True)[0], table.index)
    return codes.groupby([*within]).rank("dense").astype(int) - 1


def _post_ids(table: pd.DataFrame, place: str) -> pd.Series:
    ids = each_text(table["post_id"], clean_id)
    refuse_rows(ids == "", place, "post_id is empty; fill it in, as folds keep posts whole")
    return ids


def refuse_rows(wrong: pd.Series, place: str, problem: str) -> None:
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


def check_posts(posts: pd.DataFrame, place: str, counts: dict[str, int]) -> pd.DataFrame:
    """Posts with clean ids; one id has one text."""
    posts = posts.assign(post_id=_post_ids(posts, place))
    refuse_several(posts["text"], posts["post_id"], place, "texts; give each post its own id")
    once = posts.drop_duplicates("post_id")
    counts["repeated_posts"] = len(posts) - len(once)
    counts["posts_without_text"] = int((once["text"].str.strip() == "").sum())
    return posts


def clean_criteria(table: pd.DataFrame, place: str) -> pd.DataFrame:
    """Pairs with clean ids and texts of their criteria, at least one of both, and ids made of the texts where there are none."""
    columns = [column for column in ("criterion", "criterion_id") if column in table]
    if not columns:
        near = did_you_mean("criterion", table.columns)
        raise DataError(f"{place}: it needs a column criterion or criterion_id and has neither{near}")
    for column in columns:
        table = table.assign(**{column: each_text(table[column], clean_id if column == "criterion_id" else clean)})
        refuse_rows(table[column] == "", place, f"{column} is empty; fill it in for every row")
    if "criterion_id" not in table:
        texts = sorted(table["criterion"].unique())
        width = max(4, len(str(len(texts))))
        ids = {text: f"C{number:0{width}d}" for number, text in enumerate(texts, start=1)}
        table = table.assign(criterion_id=table["criterion"].map(ids))
    if "criterion" in table:
        once = table[["criterion_id", "criterion"]].drop_duplicates()
        refuse_several(once["criterion"].map(text_key), once["criterion_id"], place, "texts; give each text its own id")
    return table


def with_texts(
    table: pd.DataFrame,
    criteria: Mapping[str, str],
    place: str,
    column: str,
    counts: dict[str, int],
    remarks: list[str],
) -> pd.DataFrame:
    """Give every row the text of its criterion; rows whose id has no text are dropped, counted, and remarked upon."""
    if table.empty:
        raise DataError(f"{place}: every {column} is {SPECIAL_CASE}; add rows annotated for a criterion.")
    known = table["criterion_id"].isin(criteria)
    if not known.any():
        first = shown(table["criterion_id"].iloc[0])
        near = did_you_mean(first, criteria)
        remedy = "; correct it, or give the criteria that have these ids." if near == "." else near
        raise DataError(f"{place}: no {column} is the id of a criterion, for example {first}{remedy}")
    kept, unknown = table[known], table.loc[~known, "criterion_id"]
    counts["unknown_symptoms"] = len(unknown)
    if len(unknown):
        often = unknown.value_counts().index[0]
        near = f", did you mean {nearest}?" if (nearest := near_name(often, criteria)) else ""
        remarks.append(f"{len(unknown):,} rows of unknown {column} dropped (most often {shown(often)}{near})")
    return kept.assign(criterion=kept["criterion_id"].map(criteria))
