"""The model card of a folder, from what ``evbind.json`` holds of it."""

from collections.abc import Mapping
from typing import Any

from evbind_lib.config.encoders import TINY
from evbind_lib.config.schema import flatten

CARD = """\
---
library_name: transformers
pipeline_tag: text-classification
---
# Is this sentence evidence for this criterion?

A classifier of pairs, fine-tuned from `{model}` for the {n_criteria} criteria in `evbind.json`. A pair goes in as
`tokenizer(criterion, sentence, truncation="longest_first", max_length={max_length})`; label 1 is evidence. {calibration}

**For research only.** It judges a sentence by a criterion, and nobody's health: it is no diagnosis and no screening, and nobody
has measured it on other texts than those below.{words}

Trained on {pairs:,} pairs, made of {annotated:,} annotated ones ({evidence:,} evidence) in {groups:,} groups; SHA-256 of these
data: {fingerprint}. {scores}

| | |
| --- | --- |
{settings}
"""
WORDS = "\n\n**Its tokenizer was trained on these texts and holds their words**: only who may read them may have this folder."


def card(about: Mapping[str, Any]) -> str:
    """The card in Markdown; it holds no text of a post."""
    training, scores, calibration = dict(about["training"]), "", "Its probabilities are not calibrated, and too high."
    if found := about["calibration"]:
        calibration = f"P(evidence) is `expit({found['slope']:.6g} * (logit 1 - logit 0) + {found['intercept']:.6g})`"
        calibration += f", called evidence from {about['threshold']:.4f} on (aim {about['aim']})."
        values = ", ".join(f"{name} {value:.3f}" for name, value in about["cross_validated"].items())
        scores = f"Cross-validated, calibration and threshold of each fold from the others: {values}. "
    provenance = training.pop("provenance", None) or {}
    if corrected := provenance.get("corrected_score"):
        line = "Of its search, corrected for selection: {metric} {value:.4f}, 95 % interval {low:.4f} to {high:.4f}."
        scores += line.format(**{**provenance, **corrected})
    settings = flatten({"training": training, "data": about["data"], "version": about["versions"]}).items()
    rows = [f"| {name} | {value} |" for name, value in settings if value not in (None, {}, [])]
    written = {"scores": scores, "calibration": calibration, "words": WORDS if about["model"] == TINY else ""}
    facts = {**about, **about["counts"], **written, "n_criteria": len(about["criteria"])}
    return CARD.format(**facts, settings="\n".join(rows))
