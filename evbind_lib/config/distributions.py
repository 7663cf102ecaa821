"""The kinds of searched parameters in ``params/hpo/``: ranges on plain and logarithmic scales, whole numbers, choices.

Imports nothing of the library; `hpo` and `schema` build the parameter tree on it, `space` draws from it.
"""

from __future__ import annotations

from decimal import Decimal
from typing import Annotated, Any, Literal, Self

from pydantic import BaseModel, ConfigDict, Field, model_validator


class Section(BaseModel):
    """A branch of the tree: unknown keys are refused, values cannot be changed after validation."""

    model_config = ConfigDict(extra="forbid", frozen=True)


class Distribution(Section):
    """One searched parameter; ``when`` ties it to values of others."""

    when: dict[str, Any] = {}


class Range(Distribution):
    """Numbers from low to high, both possible."""

    low: float
    high: float

    @model_validator(mode="after")
    def _low_to_high(self) -> Self:
        if self.low > self.high:
            raise ValueError(f"low={self.low:g} lies above high={self.high:g}; exchange them")
        return self

    @property
    def log(self) -> bool:
        """Whether each order of magnitude is as likely, instead of each number."""
        return False

    @property
    def last(self) -> float:
        """The largest number that can be drawn: high, or the last step below it."""
        step = getattr(self, "step", None)
        if step is None:
            return self.high
        # In decimals, as they were written: 0.3 is no multiple of 0.1 in binary.
        low, high, width = (Decimal(str(number)) for number in (self.low, self.high, step))
        return type(self.low)(low + (high - low) // width * width)


class Uniform(Range):
    """Any number between low and high, each as likely; with a step only low, low + step and so on."""

    type: Literal["uniform"]
    step: Annotated[float, Field(gt=0)] | None = None


class LogUniform(Range):
    """Any number between low and high, each order of magnitude as likely."""

    type: Literal["log_uniform"]

    @property
    def log(self) -> bool:
        """True."""
        return True

    @model_validator(mode="after")
    def _above_zero(self) -> Self:
        if self.low <= 0:
            raise ValueError(f"low={self.low:g} has no logarithm; use a low above 0 or type=uniform")
        return self


class IntRange(Range):
    """Whole numbers from low to high; with a step only low, low + step and so on."""

    type: Literal["int"]
    low: int
    high: int
    step: Annotated[int, Field(ge=1)] | None = None


class LogInt(Range):
    """Whole numbers from low to high, each order of magnitude as likely."""

    type: Literal["log_int"]
    low: int
    high: int

    @property
    def log(self) -> bool:
        """True."""
        return True

    @model_validator(mode="after")
    def _above_zero(self) -> Self:
        if self.low <= 0:
            raise ValueError(f"low={self.low} has no logarithm; use a low of 1 or more, or type=int")
        return self


class Categorical(Distribution):
    """One of the choices."""

    type: Literal["categorical"]
    choices: list[bool | int | float | str | None] = Field(min_length=1)


SearchSpaceEntry = Annotated[Uniform | LogUniform | IntRange | LogInt | Categorical, Field(discriminator="type")]
KINDS: dict[str, type[Distribution]] = {
    "uniform": Uniform,
    "log_uniform": LogUniform,
    "int": IntRange,
    "log_int": LogInt,
    "categorical": Categorical,
}
ENTRY_KEYS = {"type", *(field for kind in KINDS.values() for field in kind.model_fields)}


def flatten(tree: Any, *, leaf: set[str] | None = None) -> Any:
    """Read ``{data: {pos_neg_ratio: ...}}``, which is what dots in an override make, as one dotted name.

    Parameters
    ----------
    tree : dict
        Anything else is given back as it is.
    leaf : set of str, optional
        Keys that mark a dict as a value; without them only what is no dict is one.

    Returns
    -------
    dict of str to value
    """
    if not isinstance(tree, dict):
        return tree
    flat: dict[str, Any] = {}

    def walk(prefix: str, node: Any) -> None:
        if isinstance(node, dict) and node and not (leaf and set(node) & leaf):
            for key, value in node.items():
                walk(f"{prefix}.{key}" if prefix else str(key), value)
        elif prefix:
            flat[prefix] = node

    walk("", tree)
    return flat
