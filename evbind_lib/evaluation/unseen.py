"""What a model scores on data that no trial has seen, and how often these data were asked before."""

import json
from datetime import UTC, datetime
from typing import Any

import pandas as pd

from evbind_lib.config.paths import workspace
from evbind_lib.config.processes import lock_between_processes
from evbind_lib.config.schema import DataParams
from evbind_lib.data.corpus import Corpus
from evbind_lib.data.negatives import validation_pairs
from evbind_lib.evaluation.estimate import bootstrap
from evbind_lib.evaluation.model import EvidenceModel

DECISIONS, RANKS = ("macro_f1", "pos_f1", "precision", "recall"), ("roc_auc", "pr_auc")
LEDGER = "evaluations.jsonl"  # in runs/ of the workspace


def evaluate(model: EvidenceModel, corpus: Corpus) -> pd.DataFrame:
    """Score a model on pairs that it has not seen, as `evbind_lib.evaluate` documents."""
    pairs = validation_pairs(corpus, corpus.groups, DataParams(**model.about["data"]))
    # Intervals are of groups: the bootstrap draws what it finds in post_id.
    table = pairs.assign(post_id=corpus.groups_of(pairs), probability=model.predict_proba(pairs)[:, 1])
    decided = table.assign(probability=(table["probability"] >= model.threshold).astype(float))
    rows = {}
    for name in ("all", *sorted(table["criterion_id"].unique())):
        chosen = table["criterion_id"].eq(name) | (name == "all")
        counts = [int(chosen.sum()), int(table.loc[chosen, "label"].sum()), table.loc[chosen, "post_id"].nunique()]
        for metric in (*DECISIONS, *RANKS):
            rows[name, metric] = [*_interval((decided if metric in DECISIONS else table)[chosen], metric), *counts]
    index = pd.MultiIndex.from_tuples(rows, names=["criterion", "metric"])
    columns = ["value", "low", "high", "pairs", "evidence", "groups"]
    found = pd.DataFrame([*rows.values()], index=index, columns=columns).astype(dict.fromkeys(columns[3:], int))
    # Whether a post has evidence for a criterion, by any of its pairs that were scored.
    posts = decided.groupby([pairs["post_id"], "criterion_id"])[["post_id", "label", "probability"]].max()
    found.attrs["posts"] = {name: _interval(posts.reset_index(drop=True), name) for name in ("precision", "recall")}
    return found


def _interval(predictions: pd.DataFrame, metric: str) -> tuple[float, float, float]:
    """A metric with the bounds of its 95 % interval over resampled groups."""
    scores = bootstrap(predictions, metric)
    low, high = pd.Series(scores[1:]).quantile([0.025, 0.975])  # of those that are defined
    return float(scores[0]), float(low), float(high)


def note_evaluation(model: EvidenceModel, corpus: Corpus, table: pd.DataFrame) -> int:
    """Add a line on this evaluation to the workspace; how many there were of these data before."""
    file, about = workspace() / "runs" / LEDGER, model.about
    found = {"provenance": about["training"].get("provenance"), **table["value"].loc["all"].round(6).to_dict()}
    line: dict[str, Any] = {"date": datetime.now(UTC).isoformat(timespec="seconds"), "data": corpus.fingerprint}
    line |= {"model": about["model"], "trained_on": about["fingerprint"], **found}
    file.parent.mkdir(parents=True, exist_ok=True)
    with lock_between_processes(str(file)):
        lines = file.read_text(encoding="utf-8").splitlines() if file.exists() else []
        with file.open("a", encoding="utf-8") as stream:
            stream.write(json.dumps(line, default=str) + "\n")
    return sum(json.loads(each)["data"] == corpus.fingerprint for each in lines)
