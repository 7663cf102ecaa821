"""What is masked: passwords, tokens, keys and folders of data, in values, overrides, messages and notebooks; and what is not."""

from __future__ import annotations

import json

import pytest
from hypothesis import given
from hypothesis import strategies as st
from nbformat.v4 import new_code_cell, new_notebook, new_output

from evbind_lib.config.compose import compose
from evbind_lib.config.masking import masked, masked_notebook
from evbind_lib.errors import ParamsError, shown

ADDRESS = "postgresql://me:secret@host/db"


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        (ADDRESS, "postgresql://me:***@host/db"),
        (
            "cannot reach postgresql+psycopg://me:se:cr@et/x@host:5432/db now",
            "cannot reach postgresql+psycopg://me:***@host:5432/db now",
        ),
        (
            "postgresql://host/db?user=me&password=s3cret&sslmode=require",
            "postgresql://host/db?user=me&password=***&sslmode=require",
        ),
        ("s3:/key:wo/rd@bucket/x.ipynb: as a path writes it", "s3:/***@bucket/x.ipynb: as a path writes it"),
        ("https://ghp_0123@mlflow.example.org/x", "https://***@mlflow.example.org/x"),
        ("https://ghp_0123:x-oauth@mlflow.example.org", "https://***@mlflow.example.org"),
        ("+training.args.hub_token=hf_0123", "+training.args.hub_token=***"),
        ("training.args.hub_token='a, b'", "training.args.hub_token=***"),
        ("TrainingArguments(seed=1, hub_token='hf_\\'0', x=2)", "TrainingArguments(seed=1, hub_token='***', x=2)"),
        (json.dumps(json.dumps({"api_key": "k 1", "a": 1})), json.dumps(json.dumps({"api_key": "***", "a": 1}))),
        ("overrides: [a=1,training.args.hub_token=hf_0,b=2]", "overrides: [a=1,training.args.hub_token=***,b=2]"),
        ("data.posts=/home/ada/my clinic/posts.csv", "data.posts=posts.csv"),
        ("data.pairs=/my clinic/a.csv: there is no such file", "data.pairs=a.csv: there is no such file"),
        ('{"data.test": "~/clinic/new"}', '{"data.test": "new"}'),
    ],
)
def test_a_text_shows_neither_passwords_nor_tokens_nor_folders_of_data(text: str, expected: str) -> None:
    assert masked(text) == expected == masked(expected)


@pytest.mark.parametrize(
    "text",
    [
        *(
            "sqlite:///optuna.db",
            "sqlite:////home/me@work/optuna.db",
            "file:/home/me@work/x",
            "http://server:5000",
            "postgresql://me@host/db",
        ),
        *("model.max_length=64", "training.n_folds=3", "mail me@host.org", "https://a.org/@me", "n_tokens=3"),
        "training.args.hub_token=***: a fold reaches no hub; take it out.",
        *("training.args.hub_token=null", "data.posts=evbind_lib/data/sample/posts.csv"),
    ],
)
def test_what_is_no_secret_stays(text: str) -> None:
    assert masked(text) == text


def test_a_message_that_shows_the_beginning_of_a_long_address_shows_no_part_of_its_password() -> None:
    address = f"s3://key:{'secret' * 50}@host/x.ipynb"
    assert "secret" not in masked(shown(address)) and masked(shown(masked(address))) == "s3://***@host/x.ipynb"


def test_values_are_masked_by_their_names_in_whatever_they_are_nested() -> None:
    tree = {"training": {"args": {"hub_token": "hf_0", "seed": 1}}, "data": {"posts": "a/b.csv"}, "password": None}
    shown = {"training": {"args": {"hub_token": "***", "seed": 1}}, "data": {"posts": "b.csv"}, "password": None}
    assert masked(tree) == shown
    assert masked(["x=1", f"hpo.study.storage={ADDRESS}"], "overrides") == [
        "x=1",
        "hpo.study.storage=postgresql://me:***@host/db",
    ]
    assert masked("posts/x.csv", "data.posts") == "x.csv" and masked(123, "db.passwd") == "***"
    assert masked(compose().flat()) == compose().flat(), "the parameters as they ship hold none"


@given(
    st.text(
        st.characters(blacklist_categories=("Cs", "Cc", "Zs"), blacklist_characters="'\"<>\u2028\u2029"), min_size=4
    )
)
def test_no_password_of_a_database_is_shown_whatever_it_consists_of(password: str) -> None:
    assert password not in masked(f"could not connect to postgresql://o:{password}@h/d").removeprefix(
        "could not connect to"
    ).replace("***", "")


def test_a_notebook_is_stored_without_what_its_parameters_show_to_be_secret() -> None:
    overrides = [
        f"hpo.study.storage={ADDRESS}",
        "training.args.hub_token=hf_012345",
        "data.posts=/clinic/ada/posts.csv",
    ]
    source = f'# Parameters\noverrides = {overrides!r}\napi_key: str = "k-9876"\ntoken = find(token=other)'
    outputs = [
        new_output("stream", text="signed in as hf_012345 from /clinic/ada/posts.csv with k-9876"),
        new_output("error", ename="E", evalue="FATAL: 'secret'", traceback=["secretary of /clinic/ada/x"]),
        new_output("display_data", data={"text/html": "<td>hf_012345</td>", "image/png": "hf_012345"}),
    ]
    notebook = new_notebook(cells=[new_code_cell("hf_012345"), new_code_cell(source, outputs=outputs)])
    notebook.metadata["papermill"] = {"parameters": {"overrides": overrides, "hpo": "quick"}}
    before = json.dumps(notebook)
    stored = masked_notebook(notebook)
    assert json.dumps(notebook) == before, "what runs has the real values"
    shown = ["hpo.study.storage=postgresql://me:***@host/db", "training.args.hub_token=***", "data.posts=posts.csv"]
    assert stored.metadata.papermill.parameters == {"overrides": shown, "hpo": "quick"}
    assert stored.cells[0].source == "***"
    assert (
        stored.cells[1].source
        == f'# Parameters\noverrides = {shown!r}\napi_key: str = "***"\ntoken = find(token=other)'
    )
    stream, error, table = stored.cells[1].outputs
    assert stream.text == "signed in as *** from posts.csv with ***"
    assert (error.evalue, error.traceback) == ("FATAL: '***'", ["secretary of x"])
    assert table.data == {"text/html": "<td>***</td>", "image/png": "hf_012345"}


def test_an_address_with_its_password_behind_a_question_mark_is_refused_with_the_form_that_works() -> None:
    address = "postgresql://host/db?user=me&password=s3cret"
    with pytest.raises(ParamsError, match="KEY='TEXT'") as caught:
        compose([f"hpo.study.storage={address}"])
    assert "s3cret" not in str(caught.value)
    assert compose([f"hpo.study.storage='{address}'"]).hpo.study.storage == address
