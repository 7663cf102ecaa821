"""Where a parameter set was found: said once where it is used with something else."""

import functools
import logging

from evbind_lib.config.compose import experiment_name
from evbind_lib.config.schema import Params


def note_provenance(params: Params, fingerprint: str) -> None:
    """Say where a search found these parameters with other data, model or folds, or with what no file holds."""
    found = params.training.provenance or {}
    here = {"data_fingerprint": fingerprint, "model": params.model.name, "folds": params.training.n_folds}
    other = [name.partition("_")[0] for name, value in here.items() if found.get(name, value) not in (None, value)]
    study, lacks = str(found.get("study")), found.get("lacks")
    apart = [f"with other {' and '.join(other)}"] if other else []
    apart += [f"with {' and '.join(lacks)} of your own, which no file holds"] if lacks else []
    if apart:
        remedy = "" if lacks else f"; experiment={experiment_name(study)} alone takes along what it was found with"
        said = f"The training parameters were found by study {study} {' and '.join(apart)}"
        _say(f"{said}: its score does not hold here{remedy}.")


@functools.cache
def _say(sentence: str) -> None:
    logging.getLogger("evbind_lib").warning(sentence)
