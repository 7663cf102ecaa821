"""The few exceptions a user meets; every message is one sentence that says where, what is wrong and what to do."""

import difflib
from collections.abc import Iterable


class EvbindError(Exception):
    """Base of everything a user can put right; the command line shows its message alone and exits with 2.

    Examples
    --------
    >>> import evbind_lib as ev
    >>> ev.compose(["training.n_folds=1"])
    Traceback (most recent call last):
    evbind_lib.errors.ParamsError: training.n_folds=1: must be greater than or equal to 2.
    """

    def _render_traceback_(self) -> list[str]:
        """Let IPython show the sentence and no traceback, in a notebook's cell as on the command line."""
        return [f"{type(self).__name__}: {self}"]


class ParamsError(EvbindError):
    """A parameter, a parameter file or an override cannot be used."""


class DataError(EvbindError):
    """A table of data cannot be used as it is."""


class FoldError(EvbindError):
    """The data cannot be split into the folds asked for."""


class ModelError(EvbindError):
    """A model or its tokenizer cannot be loaded."""


class TrainingError(EvbindError):
    """Training cannot go on, for example because the loss is no longer a finite number."""


class SearchError(EvbindError):
    """A study cannot be opened, resumed or finished."""


class TrackingError(EvbindError):
    """The MLflow store cannot be reached or written."""


class ExecutionError(EvbindError):
    """A notebook cannot be executed, or not stored where it should be."""


def near_name(name: str, known: Iterable[str]) -> str | None:
    """The known name that is nearest, whatever the case; None where none is near."""
    folded = {each.casefold(): each for each in known}
    near = difflib.get_close_matches(name.casefold(), folded, n=1)
    return folded[near[0]] if near else None


def did_you_mean(name: str, known: Iterable[str]) -> str:
    """End of an error sentence: the nearest known name, else all of them where they are few, else a full stop."""
    options = list(dict.fromkeys(known))
    if near := near_name(name, options):
        return f"; did you mean '{shown(near)}'?"
    return f"; known are: {', '.join(map(shown, options))}." if 0 < len(options) <= 15 else "."


def shown(value: object) -> str:
    """A value of the user's in a message: what cannot be printed as Python writes it, and of a long one the beginning."""
    text = "".join(each if each.isprintable() else ascii(each)[1:-1] for each in str(value))
    # No part of an address, which may be a password.
    begins = text[:100].partition("://")[0] if "@" in text[100:] else text[:100]
    return text if len(text) <= 200 else f"{begins}... ({len(text)} characters)"
