"""The parameter tree: every key a person may set, with its type, range and default, as frozen pydantic models.

Values come from ``params/*.yaml`` through `evbind_lib.params`, which is where the rest of the library imports
`Params` from. This room imports only `errors`.
"""

from __future__ import annotations

import ast
import functools
import importlib.util
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Annotated, Any, Literal, Self

from pydantic import (
    BaseModel,
    ConfigDict,
    Field,
    TypeAdapter,
    ValidationError,
    field_validator,
    model_validator,
)

from evbind_lib.errors import did_you_mean
from evbind_lib.sentences import problem

MetricName = Literal["accuracy", "macro_f1", "pos_f1", "precision", "recall", "roc_auc", "pr_auc"]
Aggregation = Literal["mean", "median", "min", "max"]

# Names that transformers dropped, and what to write today. warmup_ratio is not here: evbind keeps it working.
RENAMED_ARGUMENTS = {
    "evaluation_strategy": "training.args.eval_strategy",
    "group_by_length": "training.args.train_sampling_strategy=group_by_length",
    "no_cuda": "training.args.use_cpu",
    "use_mps_device": "nothing, the device is found by itself",
    "logging_dir": "tracking.uri, evbind logs to MLflow",
    "per_gpu_train_batch_size": "training.args.per_device_train_batch_size",
    "per_gpu_eval_batch_size": "training.args.per_device_eval_batch_size",
    "fp16_backend": "model.precision=fp16",
    "half_precision_backend": "model.precision=fp16",
    "tokenizer": "model.name",
}

# Ranges that transformers leaves open but that no training can do without.
ARGUMENT_TYPES: dict[str, Any] = {
    "learning_rate": Annotated[float, Field(gt=0)],
    "num_train_epochs": Annotated[float, Field(gt=0)],
    "per_device_train_batch_size": Annotated[int, Field(ge=1)],
    "per_device_eval_batch_size": Annotated[int, Field(ge=1)],
    "gradient_accumulation_steps": Annotated[int, Field(ge=1)],
    "warmup_ratio": Annotated[float, Field(ge=0, lt=1)],
    "weight_decay": Annotated[float, Field(ge=0)],
}


@functools.cache
def training_argument_types() -> dict[str, Any]:
    """Names and types of the fields of ``transformers.TrainingArguments``, with evbind's ``warmup_ratio``.

    They are read from the library's source text: importing it takes seconds, and a mistyped name should be answered at
    once.

    Returns
    -------
    dict of str to type
        The field's type where it is made of int, float, bool, str and None; `typing.Any` where it is richer.
    """
    spec = importlib.util.find_spec("transformers")
    if spec is None or not spec.submodule_search_locations:
        return dict(ARGUMENT_TYPES)
    source = Path(spec.submodule_search_locations[0], "training_args.py").read_text(encoding="utf-8")
    classes = [node for node in ast.parse(source).body if isinstance(node, ast.ClassDef)]
    fields = next(node for node in classes if node.name == "TrainingArguments").body
    plain = {"int": int, "float": float, "bool": bool, "str": str}
    types: dict[str, Any] = {}
    for field in fields:
        if isinstance(field, ast.AnnAssign) and isinstance(field.target, ast.Name):
            annotation = ast.unparse(field.annotation)
            words = set(re.findall(r"\w+", annotation))
            simple = words <= {*plain, "None"} and "[" not in annotation
            types[field.target.id] = eval(annotation, dict(plain)) if simple else Any
    return {**types, **ARGUMENT_TYPES}


class Section(BaseModel):
    """A branch of the tree: unknown keys are refused, values cannot be changed after validation."""

    model_config = ConfigDict(extra="forbid", frozen=True)


class DataParams(Section):
    """Where the pairs come from and how negatives are drawn (``params/data/``)."""

    format: Literal["redsm5", "pairs"] = "redsm5"
    posts: str | None = None
    annotations: str | None = None
    criteria: str | None = None
    pairs: str | None = None
    group_by: str = Field(default="post_id", min_length=1)
    pos_neg_ratio: float = Field(default=3.0, gt=0)
    negative_strategy: Literal["stratified", "hard", "random", "all"] = "stratified"
    eval_neg_ratio: Annotated[float, Field(gt=0)] | Literal["natural"] = 3.0
    special_case: Literal["negative", "drop"] = "negative"
    sensitive: bool = True

    @model_validator(mode="after")
    def _files_are_named(self) -> Self:
        needed = ("posts", "annotations") if self.format == "redsm5" else ("pairs",)
        for key in needed:
            if getattr(self, key) is None:
                raise ValueError(
                    f"data.{key} names no file, which data.format={self.format} needs; set data.{key}=FILE"
                )
        return self


class ModelParams(Section):
    """The encoder (``params/model/``)."""

    name: str = Field(min_length=1)
    max_length: int = Field(default=512, ge=8)
    precision: Literal["auto", "bf16", "fp16", "fp32"] = "auto"
    trainer: dict[str, Any] = {}
    search_space: dict[str, Any] = {}


class TrainingParams(Section):
    """Folds, seed, loss and everything of ``TrainingArguments`` (``params/trainer/``)."""

    n_folds: int = Field(default=5, ge=2)
    seed: int = Field(default=42, ge=0, lt=2**32)
    args: dict[str, Any] = {}
    loss_function: Literal["weighted_ce", "focal"] = "weighted_ce"
    focal_gamma: float = Field(default=2.0, ge=0)
    focal_alpha: float = Field(default=0.25, gt=0, lt=1)
    provenance: dict[str, Any] | None = None

    @field_validator("args")
    @classmethod
    def _args_are_training_arguments(cls, args: dict[str, Any]) -> dict[str, Any]:
        types = training_argument_types()
        checked: dict[str, Any] = {}
        for name, value in args.items():
            key = f"training.args.{name}"
            if name in RENAMED_ARGUMENTS:
                raise ValueError(f"{key} is gone from transformers; use {RENAMED_ARGUMENTS[name]}")
            if name not in types:
                raise ValueError(f"{key} is not a field of transformers.TrainingArguments{did_you_mean(name, types)}")
            try:
                checked[name] = TypeAdapter(types[name]).validate_python(value)
            except ValidationError as error:
                raise ValueError(f"{key}={value!r}: {problem(error.errors()[0])}") from None
        return checked


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


class Uniform(Range):
    """Any number between low and high, each as likely."""

    type: Literal["uniform"]


class LogUniform(Range):
    """Any number between low and high, each order of magnitude as likely."""

    type: Literal["log_uniform"]

    @model_validator(mode="after")
    def _above_zero(self) -> Self:
        if self.low <= 0:
            raise ValueError(f"low={self.low:g} has no logarithm; use a low above 0 or type=uniform")
        return self


class IntRange(Range):
    """Whole numbers from low to high."""

    type: Literal["int"]
    low: int
    high: int


class Categorical(Distribution):
    """One of the choices."""

    type: Literal["categorical"]
    choices: list[bool | int | float | str | None] = Field(min_length=1)


ENTRY_KEYS = {"type", "low", "high", "choices", "when"}
SearchSpaceEntry = Annotated[Uniform | LogUniform | IntRange | Categorical, Field(discriminator="type")]


class StudyParams(Section):
    """Name and storage of the Optuna study."""

    study_name: str = Field(min_length=1)
    storage: str = Field(min_length=1)
    direction: Literal["maximize", "minimize"] = "maximize"
    load_if_exists: bool = True


class TrialsParams(Section):
    """How long to search."""

    n_trials: int = Field(ge=1)
    timeout: Annotated[float, Field(gt=0)] | None = None
    n_jobs: int = Field(default=1, ge=1)


class SamplerParams(BaseModel):
    """The Optuna sampler; further keys are options of that sampler."""

    model_config = ConfigDict(extra="allow", frozen=True)
    type: str = "tpe"
    n_startup_trials: int = Field(default=10, ge=0)
    seed: int | None = Field(default=42, ge=0, lt=2**32)


class PrunerParams(BaseModel):
    """The Optuna pruner; a step is a fold; further keys are options of that pruner."""

    model_config = ConfigDict(extra="allow", frozen=True)
    type: str = "median"
    n_startup_trials: int = Field(default=5, ge=0)
    n_warmup_steps: int = Field(default=0, ge=0)
    interval_steps: int = Field(default=1, ge=1)


class MetricParams(Section):
    """What the search improves."""

    name: MetricName = "macro_f1"
    fold_aggregation: Aggregation = "mean"


class HpoParams(Section):
    """The search (``params/hpo/``)."""

    study: StudyParams
    trials: TrialsParams
    sampler: SamplerParams = SamplerParams()
    pruner: PrunerParams = PrunerParams()
    metric: MetricParams = MetricParams()
    search_space: dict[str, SearchSpaceEntry] = Field(min_length=1)

    @field_validator("search_space", mode="before")
    @classmethod
    def _dotted_names_from_nesting(cls, space: Any) -> Any:
        """Read ``{data: {pos_neg_ratio: {type: ...}}}``, which is what dots in an override make, as one dotted name."""
        flat: dict[str, Any] = {}

        def walk(prefix: str, node: Any) -> None:
            if isinstance(node, dict) and node and not set(node) & ENTRY_KEYS:
                for key, value in node.items():
                    walk(f"{prefix}.{key}" if prefix else str(key), value)
            elif prefix:
                flat[prefix] = node

        walk("", space)
        return flat if isinstance(space, dict) else space


class TrackingParams(Section):
    """The MLflow store (``params/tracking/``)."""

    enabled: bool = True
    uri: str = "sqlite:///mlflow.db"
    artifacts: str = "mlartifacts"


class Params(Section):
    """All parameters of one notebook execution, validated and frozen."""

    data: DataParams
    model: ModelParams
    training: TrainingParams
    hpo: HpoParams
    tracking: TrackingParams = TrackingParams()

    @model_validator(mode="after")
    def _search_space_fits(self) -> Self:
        for name, entry in self.hpo.search_space.items():
            key = f"hpo.search_space.{name}"
            dotted = dotted_name(name)
            ends = entry.choices if isinstance(entry, Categorical) else [entry.low, entry.high]
            for value in ends:
                try:
                    self._check_value(dotted, value)
                except ValidationError as error:
                    first = error.errors()[0]
                    raise ValueError(f"{key}: {value!r} cannot be tried: {problem(first)}") from None
            for other in entry.when:
                if other not in self.hpo.search_space:
                    dotted_name(other)
        return self

    def _check_value(self, dotted: str, value: Any) -> None:
        """Validate the one section that a searched value would change."""
        section = dotted.partition(".")[0]
        tree = _set(self.model_dump(), {dotted: value})
        type(getattr(self, section)).model_validate(tree[section])

    def with_values(self, values: Mapping[str, Any]) -> Params:
        """Copy with some dotted parameters set, validated anew.

        Parameters
        ----------
        values : mapping of str to value
            Dotted names, for example ``{"training.args.learning_rate": 1e-4}``.

        Returns
        -------
        Params

        Raises
        ------
        ValidationError
            When a name is unknown or a value is not allowed.
        """
        return Params.model_validate(_set(self.model_dump(), values))

    def value_of(self, dotted: str) -> Any:
        """Value of one dotted parameter; ``None`` where a training argument is not set."""
        node: Any = self
        for part in dotted.split("."):
            node = node.get(part) if isinstance(node, dict) else getattr(node, part, None)
        return node

    def flat(self) -> dict[str, Any]:
        """All parameters as dotted names to plain values, in the tree's order."""
        flat: dict[str, Any] = {}

        def walk(prefix: str, node: Any) -> None:
            if isinstance(node, dict) and node:
                for key, value in node.items():
                    walk(f"{prefix}.{key}" if prefix else str(key), value)
            else:
                flat[prefix] = node

        walk("", self.model_dump())
        return flat


def _set(tree: dict[str, Any], values: Mapping[str, Any]) -> dict[str, Any]:
    for dotted, value in values.items():
        *parents, last = dotted.split(".")
        node = tree
        for part in parents:
            node = node.setdefault(part, {})
        node[last] = value
    return tree


def dotted_name(name: str) -> str:
    """Full dotted name of a search-space name.

    Parameters
    ----------
    name : str
        A field of ``TrainingArguments`` (``learning_rate``), of ``training`` (``loss_function``), or any dotted parameter.

    Returns
    -------
    str
        For example ``training.args.learning_rate``.

    Raises
    ------
    ValueError
        When no parameter of that name can be searched.
    """
    sections: dict[str, type[BaseModel]] = {"data": DataParams, "model": ModelParams, "training": TrainingParams}
    if "." in name:
        section, _, rest = name.partition(".")
        if section == "training" and rest.startswith("args."):
            return name
        if section in sections and rest in sections[section].model_fields:
            return name
        known = [f"{part}.{field}" for part, model in sections.items() for field in model.model_fields]
        raise ValueError(
            f"hpo.search_space.{name}: no parameter of that name can be searched{did_you_mean(name, known)}"
        )
    if name in training_argument_types():
        return f"training.args.{name}"
    if name in TrainingParams.model_fields:
        return f"training.{name}"
    known = [*training_argument_types(), *TrainingParams.model_fields]
    raise ValueError(f"hpo.search_space.{name}: no parameter of that name can be searched{did_you_mean(name, known)}")
