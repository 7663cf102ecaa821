"""The documentation builds without a warning, its links lead somewhere, and the lines of its how-tos run."""

from __future__ import annotations

import contextlib
import json
import re
from html.parser import HTMLParser
from pathlib import Path
from urllib.parse import unquote, urlparse

import pytest
import sphinx.cmd.build
from transformers import TrainerCallback

import evbind_lib as ev
from evbind_lib.training.losses import LOSSES
from evbind_lib.training.metrics import METRICS
from tests import forks
from tests.conftest import BRIEF

PROJECT = Path(__file__).resolve().parents[2]


class Page(HTMLParser):
    """Places that a page has, and those that it links to."""

    def __init__(self, file: Path) -> None:
        super().__init__()
        self.ids: set[str] = {""}
        self.links: set[str] = set()
        self.feed(file.read_text(encoding="utf-8"))

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        found = dict(attrs)
        self.ids.add(found.get("id") or "")
        self.links.add(found.get("href") or found.get("src") or "")


class Rates(TrainerCallback):
    """Keeps the learning rates of the last step."""

    def on_step_begin(self, args, state, control, optimizer=None, **kwargs):  # type: ignore[no-untyped-def]
        self.seen = [group["lr"] for group in optimizer.param_groups]


@pytest.fixture(scope="module")
def pages(tmp_path_factory: pytest.TempPathFactory) -> dict[Path, Page]:
    folder = tmp_path_factory.mktemp("docs")
    with contextlib.chdir(PROJECT):
        build = forks.begin(sphinx.cmd.build.main, ["-W", "--keep-going", "-q", "docs", str(folder)])
    assert build.stderr is not None and (build.stderr.read(), build.wait(60)) == ("", 0)
    return {file: Page(file) for file in folder.glob("*.html")}


def test_every_link_of_the_documentation_leads_somewhere(pages: dict[Path, Page]) -> None:
    broken, checked = [], 0
    for file, page in pages.items():
        for link in map(urlparse, page.links):
            if link.scheme or link.netloc:
                continue  # another site
            target = file.parent / unquote(link.path) if link.path else file
            checked += 1
            if not target.is_file() or (target in pages and unquote(link.fragment) not in pages[target].ids):
                broken.append(f"{file.name}: {link.geturl()}")
    assert broken == [] and checked > 100


def test_every_public_name_and_figure_has_its_place(pages: dict[Path, Page]) -> None:
    (api,) = (page for file, page in pages.items() if file.name == "api.html")
    names = {*ev.__all__} - {"plots"} | {f"plots.{name}" for name in ev.plots.__all__}
    assert {f"evbind_lib.{name}" for name in names} - api.ids == set()


def write_exports(folder: Path) -> None:
    """Three posts as doccano and Label Studio export them: one choice, two, none; in the latter one was skipped before."""
    chosen = {"a": ["SLEEP_ISSUES"], "b": ["FATIGUE", "SLEEP_ISSUES"], "c": []}
    shown = {name: {"text": f"Words of post {name}.", "post_id": name} for name in chosen}
    rows = [{"id": 7, **shown[name], "label": labels, "Comments": []} for name, labels in chosen.items()]
    (folder / "admin.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))

    def annotation(choices: list[str], was_cancelled: bool) -> dict:
        control = {
            "id": "Dx_aB91ISN",
            "from_name": "criteria",
            "to_name": "text",
            "type": "choices",
            "origin": "manual",
        }
        result = [{"value": {"choices": choices}, **control}] if choices else []
        about = {"id": 1, "completed_by": 1, "ground_truth": False, "lead_time": 4.2, "task": 1}
        return {**about, "result": result, "was_cancelled": was_cancelled}

    tasks = [
        {
            "id": 1,
            "annotations": [annotation(["FATIGUE"], True), annotation(labels, False)],
            "data": shown[name],
            "project": 3,
        }
        for name, labels in chosen.items()
    ]
    (folder / "project.json").write_text(json.dumps(tasks))


@pytest.mark.usefixtures("mlflow_tables")
def test_the_lines_of_the_howtos_run(workspace: Path) -> None:
    text = (PROJECT / "docs" / "howto.md").read_text(encoding="utf-8")
    code = "\n".join(re.findall(r"^```python\n(.*?)^```", text, flags=re.DOTALL | re.MULTILINE))
    shown = 'params = ev.compose(hpo="quick")'
    assert code.count(shown) == 1
    names: dict = {}
    write_exports(workspace)
    try:
        exec(
            compile(code.replace(shown, f'params = ev.compose({list(BRIEF)}, hpo="quick")'), "howto.md", "exec"), names
        )
        assert "kappa" in names["stopped"].metrics and set(names["curve"]) == {0.25, 0.5, 1.0}
        trained, every = names["adapted"].model.get_nb_trainable_parameters()
        assert 0 < trained < every / 5
        for exported in (names["of_doccano"], names["of_label_studio"]):
            found = exported.pairs.set_index(["criterion_id", "post_id"])["label"].unstack(0)
            assert found.to_dict() == {"FATIGUE": {"a": 0, "b": 1, "c": 0}, "SLEEP_ISSUES": {"a": 1, "b": 1, "c": 0}}
        assert names["own"].report.pairs == 40 and names["by_name"].training.loss_args == {"smoothing": 0.2}
        rates = Rates()
        callbacks = [names["LayerwiseRates"](), rates]
        layers = ev.train_fold(
            names["corpus"], names["folds"][0], names["params"], callbacks=callbacks, keep_model=True
        )
        assert layers.model is not None
        lowest = 0.9 ** (layers.model.config.num_hidden_layers + 1)
        assert min(rates.seen) / max(rates.seen) == pytest.approx(lowest) and len(set(rates.seen)) > 3
    finally:
        METRICS.pop("kappa", None)
        LOSSES.pop("smoothed", None)
