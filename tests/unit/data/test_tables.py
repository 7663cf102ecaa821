"""Tables as people have them: which are read as they were written, and which are refused with the row."""

from __future__ import annotations

import gzip
import json
import shutil
import zipfile
from decimal import Decimal
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from hypothesis import given
from hypothesis import strategies as st

from evbind_lib.config.compose import compose
from evbind_lib.data.corpus import Corpus, load_corpus
from evbind_lib.data.files import as_text, read_file, read_rows
from evbind_lib.data.tables import read_criteria
from evbind_lib.errors import DataError

HEAD = "post_id,sentence,label\n"
COLUMNS = ("post_id", "sentence", "label")


def read_table(path: str, columns: tuple[str, ...] = COLUMNS) -> pd.DataFrame:
    return as_text(read_file(path, "data.pairs", read_rows), f"data.pairs={path:.200}", columns)


def refusal(path: Path | str, columns: tuple[str, ...] = COLUMNS) -> str:
    """What a file is refused with, without its place."""
    with pytest.raises(DataError) as caught:
        read_table(str(path), columns)
    message, place = str(caught.value), f"data.pairs={path}"
    assert message.startswith(place[:200]) and "\n" not in message and message.endswith((".", "?"))
    return message[len(place[:200]) :]


# One rule for cells, whatever the format


@pytest.mark.parametrize("suffix", [".parquet", ".jsonl", "memory"])
def test_missing_cells_are_empty_and_numbers_keep_their_digits_in_every_format(tmp_path: Path, suffix: str) -> None:
    ids = [10**18 + 1, None, 10**18 + 2]
    texts, authors = pd.array(["a", None, "c"], dtype="string"), pd.array([7, None, 8], dtype="Int64")
    table = pd.DataFrame(
        {"sentence_id": pd.array(ids, dtype="Int64"), "sentence": texts, "author": authors, "n": [1.0, None, 0.5]}
    )
    file = tmp_path / f"t{suffix}"
    if suffix == ".parquet":
        table.to_parquet(file)
    elif suffix == ".jsonl":
        file.write_text(
            "\n".join(json.dumps(row) for row in table.astype(object).where(table.notna(), None).to_dict("records"))
        )
    read = as_text(table, "pairs", ()) if suffix == "memory" else read_table(str(file), ())
    assert read["sentence_id"].tolist() == ["1000000000000000001", "", "1000000000000000002"]
    assert (read["sentence"].tolist(), read["author"].tolist()) == (["a", "", "c"], ["7", "", "8"])
    assert read["n"].tolist() == ["1", "", "0.5"]


@pytest.mark.parametrize(
    ("cell", "words"),
    [
        (["a"], "holds a list"),
        ({"a": 1}, "holds a dict"),
        (b"a", "bytes"),
        (np.array(["a"]), "holds a list"),
        (1e18, "digits"),
        ("a\0", "NUL"),
        ("a" * 1_000_001, "1,000,000 characters"),
        ("a\ud800", "surrogate"),
    ],
)
def test_what_is_no_text_is_refused_with_column_and_row(cell: object, words: str) -> None:
    table = pd.DataFrame({"sentence": pd.Series(["x", "y", cell], dtype=object), "label": [1, 0, True]}).set_index(
        pd.Index([7, 7, 7])
    )
    with pytest.raises(DataError) as caught:
        Corpus.from_pairs(table)
    assert str(caught.value).startswith("pairs, row 2: sentence ") and words in str(caught.value)
    # Of a column that nobody asked for there is no word, and it is not there.
    assert as_text(table.rename(columns={"sentence": "vector"}), "pairs", ("label",)).columns.tolist() == ["label"]


@given(
    st.lists(
        st.one_of(
            st.text(st.characters(exclude_categories=["Cs"], exclude_characters="\0")), st.integers(), st.booleans()
        )
    )
)
def test_a_cell_is_the_text_that_python_writes(cells: list[object]) -> None:
    table = pd.DataFrame({"sentence": pd.Series([*cells, Decimal("1.50"), None], dtype=object)})
    assert as_text(table, "pairs", ())["sentence"].tolist() == [*map(str, cells), "1.50", ""]


# Tables as they are exported

READ = [  # suffix, content, sentences, rows
    (".tsv", 'post_id\tsentence\tlabel\na\t"Bare\t1\nb\tsaid "so"\t0\n', ['"Bare', 'said "so"'], [2, 3]),
    (".csv", HEAD + '\n\na,"two\nlines",1\n\nb,"say ""so""",0\n', ["two\nlines", 'say "so"'], [4, 7]),
    (".csv", "\ufeff" + HEAD.replace("\n", "\r\n") + "a,x\u2028y,1\r\n", ["x\u2028y"], [2]),
    (".jsonl", '\n{"post_id": 1, "sentence": "x\u2028\u2029\x85y", "label": 1}\n\n', ["x\u2028\u2029\x85y"], [2]),
]


@pytest.mark.parametrize(("suffix", "content", "sentences", "rows"), READ)
def test_a_table_is_read_as_it_was_written(
    tmp_path: Path, suffix: str, content: str, sentences: list[str], rows: list[int]
) -> None:
    plain, packed, archive = (tmp_path / f"t{suffix}{end}" for end in ("", ".gz", ".zip"))
    plain.write_text(content, encoding="utf-8", newline="")
    packed.write_bytes(gzip.compress(plain.read_bytes()))
    with zipfile.ZipFile(archive, "w") as made:
        made.write(plain, plain.name)
        made.writestr("__MACOSX/x", "")
    for file in (plain, packed, archive, shutil.copy(archive, tmp_path / "t.zip")):
        table = read_table(str(file))
        assert (table["sentence"].tolist(), table.index.tolist()) == (sentences, rows)


# fmt: off
REFUSED = [  # suffix, content, what it says
    (".csv", HEAD + "a,x,1,\nb,y,0,\n", "row 2; 4 fields, the header 3; quote"),
    (".csv", HEAD + "a,x,1\n\nb,y\n", "row 4; 2 fields, the header 3"),
    (".csv", HEAD + 'a,"He said \\"hi\\" to me",1\n', 'row 2; write "" for a quote'),
    (".csv", HEAD + 'a,x,1\nb,"y,0\nc,z,0\n', "row 3; does not end; close it"),
    (".csv", HEAD + f'a,x,1\nb,"{"y" * 1_000_001}",0\n', "row 3; 1,000,000 characters"),
    (".csv", HEAD + "a,x\0y,1\n", "row 2; sentence holds a NUL byte"),
    (".csv", HEAD[:-1] + ",\na,x,1,z\n", "column 4 has no name; give it one"),
    (".csv", HEAD[:-1] + ",label\na,x,1,0\n", "label stands there twice; take one"),
    (".csv", HEAD.replace(",", ";") + "a;x;1\n", "semicolons; save it with commas"),
    (".csv", HEAD.replace(",", ";") + "a;x, and y;1\n", "semicolons; save it with commas"),
    (".csv", '\n"post_id";"sentence";"label"\n"a";"x";"1"\n', "semicolons; save it with commas"),
    (".tsv", HEAD + "a,x,1\n", "commas; name it .csv"),
    (".csv", HEAD.replace(",", "\t") + "a\tx\t1\n", "tabs; name it .tsv"),
    (".csv", "text,x\na,1\n", "columns post_id, sentence and label are missing; known are: text, x"),
    (".csv", HEAD, "no rows"),
    (".csv", "\n\n", "no rows"),
    (".jsonl", "\n\n", "no rows"),
    (".jsonl", "[" * 100_000, "line 1; not a JSON object"),
    (".jsonl", '{"post_id": 1}\n{"post_id": "x\\ud800", "sentence": "", "label": ""}\n', "row 2; post_id holds half a character"),
    (".xlsx", "PK", "save the sheet as CSV UTF-8"),
    (".csv.gz", HEAD + "a,x,1\n", "not a .gz file"),
    (".txt.zip", HEAD, "not a .zip file"),
]
# fmt: on


@pytest.mark.parametrize(("suffix", "content", "words"), REFUSED)
def test_a_table_that_is_not_what_it_seems_is_refused_with_the_remedy(
    tmp_path: Path, suffix: str, content: str, words: str
) -> None:
    file = tmp_path / f"t{suffix}"
    file.write_text(content, encoding="utf-8")
    message = refusal(file)
    assert all(word in message for word in words.split("; ")), message


def test_a_name_too_long_is_no_file_and_an_archive_holds_one_table(tmp_path: Path) -> None:
    assert "no such file" in refusal("x" * 5000 + ".csv")
    with zipfile.ZipFile(tmp_path / "two.zip", "w") as made:
        made.writestr("a.csv", HEAD)
        made.writestr("b.csv", HEAD)
    assert "holds 2 files" in refusal(tmp_path / "two.zip")


@pytest.mark.parametrize("content", ['{"A": "x\\ud800"}', '{"A\\ud800": "x"}', "[" * 100_000, '{"a":' * 100_000])
def test_criteria_that_cannot_be_written_are_refused(tmp_path: Path, content: str) -> None:
    (tmp_path / "c.json").write_text(content)
    with pytest.raises(DataError, match=r"^data\.criteria=.*(half a character|RecursionError)"):
        read_criteria(str(tmp_path / "c.json"))


# What people call columns and labels


def load(file: Path, *overrides: str) -> Corpus:
    return load_corpus(compose([f"data.pairs={file}", *overrides], data="pairs"))


@pytest.mark.parametrize("words", ["0 1", "0.0 1.0", "0.00 1.00", "FALSE TRUE", "false true", "No yes", " 0  1"])
def test_labels_are_taken_as_people_write_them(tmp_path: Path, words: str) -> None:
    none, evidence = words.split()
    table = pd.DataFrame({"criterion": "c", "sentence": ["x.", "y."], "label": [evidence, none]})
    table.to_csv(tmp_path / "t.csv", index=False)
    corpus = load(tmp_path / "t.csv")
    assert dict(zip(corpus.pairs["sentence"], corpus.pairs["label"].tolist(), strict=True)) == {"x.": 1, "y.": 0}


def test_columns_and_class_names_of_ones_own_are_named_and_what_is_not_there_is_refused(tmp_path: Path) -> None:
    rows = [
        ("Tea is hot.", "It boils.", "SUPPORTS"),
        ("Tea is hot.", "It is cold.", "REFUTES"),
        ("Ice melts.", "So?", "nei"),
    ]
    pd.DataFrame(rows, columns=["claim", "evidence", "class"]).to_csv(tmp_path / "t.csv", index=False)
    columns = "data.columns={sentence: evidence, criterion: claim, label: class}"
    labels = "data.labels={evidence: [Supports], none: [REFUTES, NEI]}"
    corpus = load(tmp_path / "t.csv", columns, labels)
    assert corpus.pairs.set_index("sentence")["label"].to_dict() == {"It boils.": 1, "It is cold.": 0, "So?": 0}
    # Without a post_id every row is a post; a column that is like one must be named.
    assert corpus.report.groups == 3 and "each row is a post of its own" in corpus.summary
    whole = load(tmp_path / "t.csv", columns[:-1] + ", post_id: claim}", labels)
    assert whole.groups == ("Ice melts.", "Tea is hot.")
    for wrong, words in (
        ((columns,), "row 2: label is SUPPORTS; write 1"),
        ((columns, "data.labels={evidence: [supports]}"), "row 3: label is REFUTES"),
        ((columns.replace("claim", "claims"),), "column claims is missing; did you mean 'claim'"),
        ((columns.replace("sentence: evidence", "sentence_id: nr"),), "column nr is missing"),
        (
            (),
            "columns sentence and label are missing; known are: claim, evidence, class; name the right ones in data.columns=",
        ),
    ):
        with pytest.raises(DataError) as caught:
            load(tmp_path / "t.csv", *wrong)
        assert words in str(caught.value)
    with pytest.raises(DataError, match="post_id is missing; did you mean 'post'"):
        Corpus.from_pairs(pd.DataFrame({"post": ["a"], "criterion": ["c"], "sentence": ["x"], "label": [1]}))
