"""Formats of claim verification as tables of pairs: of a claim, every sentence that it was judged on."""

from collections.abc import Callable, Iterator
from typing import Any

import pandas as pd

from evbind_lib.config.schema import DataParams
from evbind_lib.data.files import NoTableError, read_file, read_objects

COLUMNS = ["post_id", "sentence_id", "criterion_id", "criterion", "sentence", "label"]
Pairs = Iterator[tuple[object, ...]]


def scifact_pairs(data: DataParams) -> pd.DataFrame:
    """Sentences of the abstracts that a claim of SciFact cites; those of its rationales, for or against it, are evidence."""
    abstracts = _read(data.corpus, "data.corpus", lambda row: [(row["doc_id"], row["abstract"])])
    text_of = {str(doc): sentences for _, doc, sentences in abstracts}

    def pairs(row: dict[str, Any]) -> Pairs:
        found = {doc: {at for each in sets for at in each["sentences"]} for doc, sets in row["evidence"].items()}
        for doc in sorted({*found, *map(str, row.get("cited_doc_ids", []))}):
            if doc not in text_of:
                raise NoTableError(f": the document {doc:.60} is not in data.corpus; name the corpus that has it")
            for at, sentence in enumerate(text_of[doc]):
                yield doc, f"{doc}_{at}", row["id"], row["claim"], sentence, at in found.get(doc, ())

    return _table(data.claims, "data.claims", pairs)


def wice_pairs(data: DataParams) -> pd.DataFrame:
    """Sentences of the article that a claim of WiCE cites; those of a supporting set are evidence."""

    def pairs(row: dict[str, Any]) -> Pairs:
        name, found = row["meta"]["id"], {at for each in row["supporting_sentences"] for at in each}
        for at, sentence in enumerate(row["evidence"]):
            yield name, f"{name}_{at}", name, row["claim"], sentence, at in found

    return _table(data.pairs, "data.pairs", pairs)


def _table(path: str | None, key: str, rows_of: Callable[[dict[str, Any]], Pairs]) -> pd.DataFrame:
    return pd.DataFrame(_read(path, key, rows_of), columns=["line", *COLUMNS]).set_index("line")


def _read(path: str | None, key: str, rows_of: Callable[[dict[str, Any]], Any]) -> list[tuple[Any, ...]]:
    """Rows that the objects of a JSONL file come to, each after its line."""

    def read(file: Any) -> list[tuple[Any, ...]]:
        found = list[tuple[Any, ...]]()
        for line, row in read_objects(file):
            try:
                found += [(line, *each) for each in rows_of(row)]
            except NoTableError as error:
                raise NoTableError(f", line {line}{error}") from None
            except (KeyError, TypeError, AttributeError) as error:
                what = f"{error} is missing" if isinstance(error, KeyError) else "its parts are of other types"
                raise NoTableError(f", line {line}: not of this format ({what}); give the file as published") from None
        return found

    return read_file(path, key, read)
