"""What a searched parameter is drawn from, as it is written in YAML: a frozen pydantic model, as are all of the tree."""

from __future__ import annotations

import json
import math
from decimal import Decimal
from typing import Any, Literal, Self

from pydantic import BaseModel, Field, field_validator, model_serializer, model_validator

SCALARS: tuple[Any, ...] = (bool, int, float, str, type(None))
# What each type of a searched parameter is written with; a step may be left out.
RANGE, STEPS = {"low", "high"}, {"low", "high", "step"}
FIELDS = {"uniform": STEPS, "int": STEPS, "log_uniform": RANGE, "log_int": RANGE, "categorical": {"choices"}}


class Distribution(BaseModel, extra="forbid", frozen=True, allow_inf_nan=False):
    """One searched parameter: a range of numbers (plain or logarithmic, whole or not) or choices; ``when`` ties it to others."""

    type: Literal["uniform", "log_uniform", "int", "log_int", "categorical"]
    low: int | float | None = None
    high: int | float | None = None
    step: int | float | None = Field(default=None, gt=0)
    choices: list[Any] | None = Field(default=None, min_length=1)
    when: dict[str, Any] = {}

    @field_validator("low", "high", "step", mode="before")
    @classmethod
    def _number_of_the_type(cls, value: Any, info: Any) -> Any:
        if value is None or "type" not in info.data:
            return value
        whole = info.data["type"] in ("int", "log_int")
        if not is_number(value) or (whole and value != int(value)):
            raise ValueError("must be a whole number" if whole else "must be a number")
        return int(value) if whole else float(value)

    @model_validator(mode="after")
    def _fields_of_the_type(self) -> Self:
        belongs, given = FIELDS[self.type], {*self.model_dump()} - {"type", "when"}
        if given - belongs:
            raise ValueError(f"{min(given - belongs)} is not of type={self.type}; leave it out or set another type")
        if missing := belongs - given - {"step"}:
            raise ValueError(f"{min(missing)} is missing, which type={self.type} needs; set it")
        choices = self.choices or []
        plain = all(isinstance(value, SCALARS) for value in choices)
        written = {value if isinstance(value, str) else json.dumps(value) for value in choices if plain}
        if not plain or min(len({*choices}), len(written)) < len(choices):
            raise ValueError("choices must be different numbers, texts, bools or null (1, '1' and true are the same)")
        if self.low is not None and self.high is not None and self.low > self.high:
            raise ValueError(f"low={self.low:g} lies above high={self.high:g}; exchange them")
        if self.low is not None and self.low <= 0 and self.type.startswith("log_"):
            raise ValueError(f"low={self.low:g} has no logarithm; use a low above 0 or a type without log_")
        return self

    @model_serializer(mode="wrap")
    def _what_is_set(self, dump: Any) -> dict[str, Any]:
        return {name: value for name, value in dump(self).items() if value is not None}

    @property
    def last(self) -> Any:
        """The largest number that can be drawn: high, or the last step below it."""
        if self.step is None:
            return self.high
        # In decimals, as they were written: 0.3 is no multiple of 0.1 in binary.
        low, high, step = (Decimal(str(number)) for number in (self.low, self.high, self.step))
        last = low + (high - low) // step * step
        return int(last) if self.type == "int" else float(last)

    @property
    def examples(self) -> list[Any]:
        """What stands for all that can be drawn: the choices, or both ends and a number between them."""
        if self.choices is not None or self.low is None:
            return self.choices or []
        between = min(self.low + (self.step or (self.last - self.low) / math.e), self.last)
        return [*dict.fromkeys([self.low, self.last, type(self.low)(between)])]

    def excludes(self, other: Distribution) -> bool:
        """Whether ``when`` never holds together with that of the other."""
        names = self.when.keys() & other.when.keys()
        pairs = ([each if isinstance(each, list) else [each] for each in (self.when[n], other.when[n])] for n in names)
        return any(not any(value in two for value in one) for one, two in pairs)

    def to_optuna(self) -> Any:
        """Distribution of Optuna's; its high is `last`, so that Optuna need not warn that it moves it there."""
        from optuna.distributions import CategoricalDistribution, FloatDistribution, IntDistribution

        log = self.type.startswith("log_")
        if self.choices is not None:
            return CategoricalDistribution(self.choices)
        kind, step = (IntDistribution, 1) if self.type in ("int", "log_int") else (FloatDistribution, None)
        return kind(self.low, self.last, log=log, step=self.step or step)


def is_number(value: Any) -> bool:
    """Whether a value is a number with an end, and no bool."""
    return isinstance(value, int | float) and not isinstance(value, bool) and math.isfinite(value)
