"""evbind: is this sentence evidence for this criterion? Hyperparameter search for that question, driven from notebooks.

Every name of ``__all__`` is loaded when it is first used: torch, transformers and mlflow take seconds.
"""

from __future__ import annotations

import gc
from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:  # what completion, type checkers and API pages read; a test holds it equal to the table below
    from evbind_lib import plots
    from evbind_lib.config.compose import compose
    from evbind_lib.config.schema import Params
    from evbind_lib.data.corpus import READERS, Corpus, load_corpus
    from evbind_lib.data.folds import Fold, make_folds
    from evbind_lib.data.negatives import fold_pairs
    from evbind_lib.errors import EvbindError
    from evbind_lib.evaluation.estimate import compare
    from evbind_lib.evaluation.model import EvidenceModel
    from evbind_lib.hpo.objective import Objective, report_folds, suggest
    from evbind_lib.hpo.racing.pruner import RacingPruner
    from evbind_lib.hpo.results import SearchResult
    from evbind_lib.notebook.session import cross_validate, evaluate, finalize, search, start
    from evbind_lib.training.fold import train_fold
    from evbind_lib.training.losses import LOSSES
    from evbind_lib.training.metrics import METRICS, Metric
    from evbind_lib.training.result import Callback, CrossValidation, FoldResult

__version__ = "0.1.0"
# fmt: off
__all__ = [
    "LOSSES", "METRICS", "READERS", "Callback", "Corpus", "CrossValidation", "EvbindError", "EvidenceModel", "Fold", "FoldResult",
    "Metric", "Objective", "Params", "RacingPruner", "SearchResult", "compare", "compose", "cross_validate", "evaluate",
    "finalize", "fold_pairs", "load_corpus", "make_folds", "plots", "report_folds", "search", "start", "suggest", "train_fold",
]
_MODULES = {
    "config.compose": "compose", "config.schema": "Params", "data.corpus": "READERS Corpus load_corpus",
    "data.folds": "Fold make_folds", "data.negatives": "fold_pairs", "errors": "EvbindError", "evaluation.estimate": "compare",
    "evaluation.model": "EvidenceModel", "hpo.objective": "Objective report_folds suggest", "hpo.racing.pruner": "RacingPruner",
    "hpo.results": "SearchResult", "notebook.session": "cross_validate evaluate finalize search start",
    "training.fold": "train_fold", "training.losses": "LOSSES", "training.metrics": "METRICS Metric",
    "training.result": "Callback CrossValidation FoldResult",
}
# fmt: on
_MODULE_OF = {name: module for module, names in _MODULES.items() for name in names.split()}


def __getattr__(name: str) -> Any:
    if name == "plots":
        return import_module("evbind_lib.plots")
    if name not in _MODULE_OF:
        raise AttributeError(f"module 'evbind_lib' has no attribute {name!r}")
    collects = gc.isenabled()
    gc.disable()  # what an import makes stays: to look for garbage among it takes a fifth of the time
    try:
        globals()[name] = getattr(import_module(f"evbind_lib.{_MODULE_OF[name]}"), name)
    finally:
        if collects:
            gc.enable()
    return globals()[name]


def __dir__() -> list[str]:
    return [*__all__, "__version__"]
