"""Notebooks run with other parameters, by `evbind` and by plain papermill; their recorded results are read back."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import mlflow
import nbformat
import pandas as pd
import papermill
import papermill.cli
import pytest
import yaml
from click.testing import CliRunner

from evbind_lib.cli import main
from evbind_lib.config.compose import compose
from evbind_lib.config.paths import resolve_sqlite
from evbind_lib.notebook.run import default_parameters, find_notebook, notebooks, run_notebook
from evbind_lib.tracking.page import recorded_result
from tests.conftest import BRIEF

PROJECT = Path(__file__).resolve().parents[2]
SAMPLE = PROJECT / "evbind_lib" / "data" / "sample"


def outputs(notebook: nbformat.NotebookNode) -> list[nbformat.NotebookNode]:
    return [output for cell in notebook.cells if cell.cell_type == "code" for output in cell.outputs]


def read_runs(experiment: str) -> pd.DataFrame:
    mlflow.set_tracking_uri(resolve_sqlite("sqlite:///mlflow.db"))
    return mlflow.search_runs(experiment_names=[experiment])


@pytest.mark.parametrize("name", sorted(notebooks()))
def test_every_notebook_has_typed_and_commented_parameters(name: str) -> None:
    file = find_notebook(name)
    shown = CliRunner().invoke(papermill.cli.papermill, ["--help-notebook", str(file)]).output
    names = list(default_parameters(file))
    known = {"data", "model", "trainer", "hpo", "tracking", "aim", "trainers", "studies", "overrides"}
    assert names[-1] == "overrides" and set(names) <= known
    for parameter in names:
        assert f"  {parameter}: " in shown
    assert "Unknown type" not in shown


def test_no_notebook_loads_torch_before_start_has_set_what_openmp_reads_then() -> None:
    cells = [nbformat.read(file, as_version=4).cells for file in notebooks().values()]
    first = [next(cell.source for cell in each if "ev.start(" in cell.source) for each in cells]
    imports = [line for source in first for line in source.splitlines() if line.startswith(("import ", "from "))]
    code = "\n".join(
        [
            *imports,
            "import sys",
            "ev.start",
            "print([n for n in ('torch', 'transformers', 'jsonschema') if n in sys.modules])",
        ]
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=60)
    assert len(first) == 7 and done.stdout.strip() == "[]", done.stderr


@pytest.mark.slow
def test_a_search_by_the_command_then_resumed_then_trained_with_its_best(
    searched: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    first = (searched / "stdout").read_text()
    assert "Study deberta-v3-hpo: 3 trials (3 complete, 0 pruned, 0 failed)\n" in first
    assert "Trials [####################] 3/3" in (searched / "stderr").read_text()
    assert main(["hpo_search", *BRIEF]) == 0
    assert "resumed: 3 of them are from earlier runs" in capsys.readouterr().out
    assert main(["train", "trainer=hpo_best", *BRIEF[:4]]) == 0
    trained = capsys.readouterr().out

    table = pd.read_csv(searched / "optuna_trials.csv")
    best = table.loc[table["value"].idxmax()]
    assert f"Best: trial {best['trial']}, macro_f1 {best['value']:.4f}" in first
    # The trainer set that was written scores on the same folds what the trial scored: its folds are read.
    assert "2 of 2 folds read from study deberta-v3-hpo, trained 20" in trained
    files = sorted((searched / "runs").glob("*_train.ipynb"))
    result = recorded_result(nbformat.read(files[0], as_version=4))
    assert result["mean"]["macro_f1"] == pytest.approx(best["value"], abs=1e-9)
    assert result["n_folds"] == 2

    runs = read_runs("search").set_index("run_id")
    level = runs["tags.evbind.level"]
    assert level.value_counts().to_dict() == {"fold": 6, "trial": 3, "study": 1, "summary": 1}
    assert set(runs["status"]) == {"FINISHED"}
    (study,) = runs.index[level == "study"]
    parents = runs["tags.mlflow.parentRunId"]
    assert set(parents[level.isin(["trial", "summary"])]) == {study}
    assert set(parents[level == "fold"]) == set(runs.index[level == "trial"])
    marked = runs[(level == "trial") & (runs["tags.evbind.best"] == "true")]
    assert marked["tags.evbind.trial"].tolist() == [str(best["trial"])]
    training = read_runs("training")
    assert training["tags.evbind.level"].value_counts().to_dict() == {"fold": 2, "training": 1}

    pages = sorted((searched / "runs").glob("*.html"))
    assert len(pages) == 3
    for page in pages:
        text = page.read_text(encoding="utf-8")
        assert text.count("<script>") and "Plotly.newPlot" in text
        assert 'src="http' not in text and 'href="http://' not in text  # nothing is fetched when it is opened


@pytest.mark.slow
@pytest.mark.usefixtures("mlflow_tables")
def test_plain_papermill_runs_the_search_as_well(workspace: Path) -> None:
    executed = papermill.execute_notebook(
        find_notebook("hpo_search"),
        workspace / "out.ipynb",
        parameters={"hpo": "quick", "overrides": [*BRIEF, "hpo.metric.name=roc_auc", "hpo.trials.n_trials=2"]},
        progress_bar=False,
    )
    result = recorded_result(executed)
    assert (result["study"], result["counts"]["total"], result["went_on_from"]) == ("deberta-v3-hpo", 2, 0)
    assert 0 <= result["best_value"] <= 1
    assert result["best_value"] == pytest.approx(pd.read_csv(workspace / "optuna_trials.csv")["value"].max())
    assert compose(trainer="hpo_best").training.provenance["metric"] == "roc_auc"
    kinds = [output.output_type for output in outputs(executed)]
    assert "error" not in kinds and "stream" not in kinds  # no log line, no warning, no debris of a progress bar
    figures = [output for output in outputs(executed) if "application/vnd.plotly.v1+json" in output.get("data", {})]
    titles = [output["data"]["application/vnd.plotly.v1+json"]["layout"]["title"]["text"] for output in figures]
    assert len(titles) == 8 and all(titles)


def executed(name: str, workspace: Path, **parameters: object) -> nbformat.NotebookNode:
    return papermill.execute_notebook(
        find_notebook(name), workspace / f"{name}.ipynb", parameters=parameters, progress_bar=False
    )


@pytest.mark.slow
@pytest.mark.usefixtures("mlflow_tables")
def test_exploring_with_other_folds_and_sensitive_data(workspace: Path) -> None:
    overrides = ["training.n_folds=3", "data.sensitive=true", "model.max_length=30"]
    made = executed("explore_data", workspace, overrides=overrides)
    result = recorded_result(made)
    assert (result["leaks"], result["criteria"], result["grouped_by"]) == (0, 9, "author")
    assert 0.1 < result["truncated"] < 0.9
    tables = [output.data["text/html"] for output in outputs(made) if "text/html" in output.get("data", {})]
    audit = next(table for table in tables if "<th>sentences</th>" in table.partition("<tbody>")[0])
    assert audit.partition("<tbody>")[2].count("<tr>") == 3  # folds
    sentences = pd.read_csv(SAMPLE / "annotations.csv")["sentence_text"]
    written = json.dumps(outputs(made), ensure_ascii=False)
    assert [text for text in sentences.unique() if len(text) > 25 and text in written] == []


@pytest.mark.slow
@pytest.mark.usefixtures("mlflow_tables")
def test_comparing_and_scoring_with_another_trainer_set(workspace: Path) -> None:
    trainer = workspace / "params" / "trainer"
    trainer.mkdir(parents=True)
    (trainer / "mine.yaml").write_text("# @package training\nargs: {learning_rate: 0.002}\nloss_function: focal\n")
    (trainer / "slow.yaml").write_text("# @package training\nargs: {learning_rate: 0.0001}\n")
    made = executed("compare", workspace, trainer="mine", trainers=["slow"], overrides=list(BRIEF[:4]))
    result = recorded_result(made)
    assert set(result["means"]) == {"majority class", "words", "default", "mine", "slow"}
    assert result["means"]["words"] > result["means"]["majority class"]
    assert set(result["differences"]) == set(result["means"]) - {"default"}
    for gain, low, high, p_value in result["differences"].values():
        assert low <= gain <= high and 0 <= p_value <= 1
    runs = read_runs("training")
    assert (runs["tags.evbind.level"] == "training").sum() == 3

    made = executed("score", workspace, trainer="mine", overrides=list(BRIEF[:4]), aim="recall>=0.8")
    result = recorded_result(made)
    assert 0 < result["threshold"] < 1 and result["aim"] == "recall>=0.8"
    assert result["calibrated_ece"] < 0.1  # with next to no training, but most pairs are told to be no evidence
    run = read_runs("notebooks").query("`tags.mlflow.runName` == '05_score'").iloc[0]
    names = ["calibrated_ece", "calibrated_brier", "calibrated_log_loss", "base_rate_brier", "base_rate_log_loss"]
    assert [run[f"metrics.{name}"] for name in names] == pytest.approx([result[name] for name in names])
    assert len(list((workspace / "runs" / "models").iterdir())) == 1


@pytest.mark.parametrize("file", sorted((PROJECT / "params" / "papermill").glob("*.yaml")), ids=lambda file: file.stem)
def test_the_papermill_files_name_parameters_of_their_notebook(file: Path, workspace: Path) -> None:
    command = file.read_text().splitlines()[0].removeprefix("# ").split()
    assert command[0] == "papermill" and command[-2:] == ["-f", f"params/papermill/{file.name}"]
    notebook = PROJECT / command[1]
    values = yaml.safe_load(file.read_text())
    assert set(values) <= set(default_parameters(notebook))
    choices = {name: value for name, value in values.items() if name != "overrides" and value != "hpo_best"}
    compose(values.get("overrides", []), **choices)


@pytest.mark.slow
@pytest.mark.usefixtures("mlflow_tables")
def test_an_error_of_ours_is_the_cells_whole_output(workspace: Path) -> None:
    with pytest.raises(papermill.exceptions.PapermillExecutionError):
        papermill.execute_notebook(
            find_notebook("train"), workspace / "out.ipynb", parameters={"trainer": "defalt"}, progress_bar=False
        )
    executed = nbformat.read(workspace / "out.ipynb", as_version=4)
    (error,) = [output for output in outputs(executed) if output.output_type == "error"]
    (line,) = error.traceback
    assert line.startswith("ParamsError: trainer=defalt: ") and "'default'" in line


@pytest.mark.slow
@pytest.mark.usefixtures("mlflow_tables")
def test_sensitive_posts_leave_no_word_behind(workspace: Path) -> None:
    words = [
        *("data=redsm5", f"data.posts={SAMPLE}/posts.csv", f"data.annotations={SAMPLE}/annotations.csv"),
        *("data.sensitive=true", "hpo.trials.n_trials=1", *BRIEF[:4]),
    ]
    run_notebook(find_notebook("hpo_search"), {}, words)
    run_notebook(find_notebook("train"), {}, words)
    sentences = pd.read_csv(SAMPLE / "annotations.csv")["sentence_text"]
    sentences = [text for text in sentences.unique() if len(text) > 25]
    assert len(sentences) > 300
    written = [file for file in workspace.rglob("*") if file.is_file()]
    assert len(written) > 8
    content = b"".join(file.read_bytes() for file in written)
    content += b"".join(
        json.dumps(json.loads(file.read_text()), ensure_ascii=False).encode()
        for file in written
        if file.suffix == ".ipynb"
    )
    assert [text for text in sentences if text.encode() in content] == []
