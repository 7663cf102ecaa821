"""What changes the digest of a user's function, what does not, and where there is none."""

from __future__ import annotations

import collections
import functools
import math
import subprocess
import sys
import textwrap
import threading
import types
from pathlib import Path
from typing import Any

import cloudpickle
import numpy as np
import pandas as pd
import pytest
import torch

from evbind_lib.config import digest
from evbind_lib.config.compose import compose
from evbind_lib.config.digest import code_digest, digest_of
from evbind_lib.data.corpus import Corpus

NOTEBOOK = """
    import math
    import torch

    MARGIN = 0.2
    WEIGHTS = torch.tensor([1.0, 2.0])
    OPTIONS = {"names": {"a", "b"}, "power": 2}

    def helper(values):
        return values * MARGIN

    def made(scale):
        def loss(logits, labels, power=2):
            def inner(value):
                return value + 1
            return inner(helper(logits)) ** power * scale * WEIGHTS * OPTIONS["power"] + math.pi
        return loss

    loss = made(3)
"""


def cell(source: str, name: str = "loss", file: str = "/tmp/ipykernel_1/1.py", **others: Any) -> Any:
    """What a name stands for after a notebook's cell with this source was run."""
    names: dict[str, Any] = {"__name__": "__main__", **others}
    exec(compile(textwrap.dedent(source), file, "exec"), names)
    return names[name]


CHANGES = {
    **{"MARGIN = 0.2": "MARGIN = 0.3", "[1.0, 2.0]": "[1.0, 2.5]", '"power": 2}': '"power": 3}', "made(3)": "made(4)"},
    **{"values * MARGIN": "values / MARGIN", "value + 1": "value + 2", "power=2": "power=3", "math.pi": "math.e"},
    **{"** power * scale": "** power + scale", "labels, power": "labels, *, power"},
}
SAME = {
    "MARGIN = 0.2": "\n\n    MARGIN = 0.2  # as in the paper",
    "return values": '"""Scaled."""\n        return values',
    "def helper(values)": "def helper(values: 'torch.Tensor') -> 'torch.Tensor'",
    "loss = made(3)": "UNUSED = 1\n    loss = made(3)",
    '{"a", "b"}': '{"b", "a"}',
}


@pytest.mark.parametrize(("before", "after"), CHANGES.items())
def test_an_edit_of_the_function_or_of_what_it_uses_changes_the_digest(before: str, after: str) -> None:
    assert NOTEBOOK.count(before) == 1
    plain, edited = digest_of(cell(NOTEBOOK)), digest_of(cell(NOTEBOOK.replace(before, after)))
    assert plain is not None and edited is not None and plain != edited


@pytest.mark.parametrize(("before", "after"), SAME.items())
def test_what_changes_no_result_leaves_the_digest(before: str, after: str) -> None:
    edited = cell(NOTEBOOK.replace(before, after), file="/tmp/ipykernel_2/other.py")
    assert digest_of(edited) == digest_of(cell(NOTEBOOK)) is not None


def test_it_is_the_same_in_another_process_and_for_a_worker(tmp_path: Path) -> None:
    loss = cell(NOTEBOOK)
    assert digest_of(cloudpickle.loads(cloudpickle.dumps(loss))) == digest_of(loss)
    (tmp_path / "loss.pickle").write_bytes(cloudpickle.dumps(loss))
    read = f"pathlib.Path({str(tmp_path / 'loss.pickle')!r}).read_bytes()"
    code = f"import pickle, pathlib, evbind_lib.config.digest as d; print(d.digest_of(pickle.loads({read})))"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == digest_of(loss)


def test_a_module_beside_the_notebook_is_followed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.syspath_prepend(tmp_path)

    def digest_with(source: str, use: str) -> str | None:
        module = types.ModuleType("my_losses")
        module.__file__ = str(tmp_path / "my_losses.py")
        monkeypatch.setitem(sys.modules, "my_losses", module)
        exec(compile(source, module.__file__, "exec"), module.__dict__)
        return digest_of(cell(f"import my_losses\ndef loss(x):\n    return my_losses.{use}(x)\n"))

    one = "K = 1\ndef hinge(x):\n    return x * K\ndef other(x):\n    return x\n"
    assert digest_with(one, "hinge") != digest_with(one.replace("K = 1", "K = 2"), "hinge")
    assert digest_with(one, "hinge") == digest_with(one.replace("    return x\n", "    return -x\n"), "hinge")
    assert digest_with(one, "other") != digest_with(one, "hinge")


class Scaled:
    """A callable with state."""

    factor = 2

    def __init__(self, scale: float) -> None:
        self.scale = scale

    def __call__(self, logits: Any) -> Any:
        return logits * self.scale * self.factor

    def method(self, logits: Any) -> Any:
        return -self(logits)


class Head(torch.nn.Module):
    """A model of one's own."""

    def __init__(self) -> None:
        super().__init__()
        self.weight = torch.nn.Parameter(torch.ones(2))


def test_callables_of_every_kind_have_one() -> None:
    kinds = [
        *(math.sqrt, torch.relu, torch.nn.functional.cross_entropy, np.exp, print, functools.lru_cache(lambda x: x)),
        *(lambda x: x, lambda x: -x, functools.partial(pow, 2), functools.partial(pow, 3), Scaled, Head, Head()),
        *(Scaled(1.0), Scaled(2.0), Scaled(1.0).method, Scaled(2.0).method, torch.no_grad()(lambda x: x)),
        *(torch.nn.CrossEntropyLoss(), torch.nn.CrossEntropyLoss(reduction="none"), torch.nn.CrossEntropyLoss),
    ]
    digests = [digest_of(kind) for kind in kinds]
    assert None not in digests and len(set(digests)) == len(kinds)
    assert digest_of(Scaled(1.0)) == digest_of(Scaled(1.0))


def test_content_counts_wherever_pickle_would_write_it() -> None:
    def using(value: Any) -> str | None:
        return digest_of(cell("def loss(x):\n    return x + VALUE", VALUE=value))

    counters = [collections.Counter("aab"), collections.Counter("ab")]
    values = [
        np.array([1, 2]),
        np.array([1, 3]),
        pd.DataFrame({"a": [1]}),
        pd.DataFrame({"a": [2]}),
        Path("a"),
        Path("b"),
    ]
    values += [*counters, torch.ones(2), torch.ones(2, dtype=torch.bfloat16)]
    digests = [using(value) for value in values]
    assert None not in digests and len(set(digests)) == len(values)
    assert using(np.array([1, 2])) == digests[0]


def test_a_function_that_uses_a_lock_or_an_open_file_has_none() -> None:
    with open(__file__, encoding="utf-8") as file:
        for value in (threading.Lock(), file, (one for one in "ab")):
            assert digest_of(cell("def loss(x):\n    return x, VALUE", VALUE=value)) is None
            assert digest_of((lambda held: lambda x: (x, held))(value)) is None


def test_data_count_by_their_fingerprint_and_parameters_not_at_all(corpus: Corpus) -> None:
    source = "def loss(trial):\n    return corpus, params"
    plain = digest_of(cell(source, corpus=corpus, params=compose()))
    assert plain is not None
    assert plain == digest_of(cell(source, corpus=corpus, params=compose(["hpo.trials.n_trials=3"])))
    assert plain != digest_of(cell(source, corpus=corpus.subset(corpus.groups[:9]), params=compose()))


def test_functions_may_call_each_other() -> None:
    source = "def loss(x):\n    return helper(x)\ndef helper(x):\n    return x or loss(x)\n"
    assert digest_of(cell(source)) not in (None, digest_of(cell(source.replace("x or", "x and"))))


def test_the_code_of_packages_counts_without_comments_and_docstrings(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert code_digest("data") == code_digest("data") != code_digest("data", "training")
    monkeypatch.setattr(digest, "PACKAGE", tmp_path)
    (tmp_path / "data").mkdir()

    def of(source: str) -> str:
        (tmp_path / "data" / "corpus.py").write_text(source, encoding="utf-8")
        code_digest.cache_clear()
        return code_digest("data")

    plain = of("def f(x):\n    return x\n")
    assert plain == of('"""What it is."""\n\n# why\ndef f(x):\n    """Same."""\n    return x\n')
    assert plain != of("def f(x):\n    return -x\n")
    code_digest.cache_clear()
