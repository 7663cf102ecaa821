"""The parameter tree: every key a person may set, with its type, range and default, as frozen pydantic models.

Values come from ``params/*.yaml`` through `evbind_lib.config.compose`, which is where the rest of the library imports
`Params` from. This room imports `errors`, `sentences`, `distributions` and `hpo`.
"""

from __future__ import annotations

import ast
import functools
import importlib.util
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Annotated, Any, Literal, Self

from pydantic import BaseModel, Field, TypeAdapter, ValidationError, field_validator, model_validator

from evbind_lib.config.distributions import Categorical, Section
from evbind_lib.config.hpo import HpoParams, MetricParams, PrunerParams, SamplerParams
from evbind_lib.config.sentences import problem
from evbind_lib.errors import did_you_mean

__all__ = [
    "ClusterParams",
    "DataParams",
    "HpoParams",
    "MetricParams",
    "ModelParams",
    "Params",
    "PrunerParams",
    "SamplerParams",
    "TrackingParams",
    "TrainingParams",
    "dotted_name",
    "training_argument_types",
]

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
    threads: int | None = Field(default=None, ge=1)
    trainer: dict[str, Any] = Field(default={})
    search_space: dict[str, Any] = Field(default={})


class TrainingParams(Section):
    """Folds, seed, loss and everything of ``TrainingArguments`` (``params/trainer/``)."""

    n_folds: int = Field(default=5, ge=2)
    seed: int = Field(default=42, ge=0, lt=2**32)
    args: dict[str, Any] = Field(default={})
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


class TrackingParams(Section):
    """The MLflow store (``params/tracking/``)."""

    enabled: bool = True
    uri: str = "sqlite:///mlflow.db"
    artifacts: str = "mlartifacts"


class ClusterParams(Section):
    """Where the workers of a search run (``params/cluster/``)."""

    executor: Literal["local", "dask"] = "local"
    gpu_share: int = Field(default=1, ge=1)
    scheduler: str | None = None

    @model_validator(mode="after")
    def _scheduler_goes_with_dask(self) -> Self:
        if self.executor == "dask" and self.scheduler is None:
            raise ValueError(
                "cluster.scheduler names no scheduler, which cluster.executor=dask needs; set "
                "cluster.scheduler=tcp://HOST:8786"
            )
        if self.executor == "local" and self.scheduler is not None:
            raise ValueError(
                f"cluster.scheduler={self.scheduler} is of no use to cluster.executor=local; choose cluster=dask or leave "
                "it out"
            )
        if self.scheduler is not None and not re.fullmatch(r"[a-z]+://[^\s/]+:\d+", self.scheduler):
            raise ValueError(
                f"cluster.scheduler={self.scheduler} is not the address of a scheduler; write for example tcp://HOST:8786"
            )
        return self


class Params(Section):
    """All parameters of one notebook execution, validated and frozen."""

    data: DataParams
    model: ModelParams
    training: TrainingParams
    hpo: HpoParams
    tracking: TrackingParams = TrackingParams()
    cluster: ClusterParams = ClusterParams()

    @model_validator(mode="after")
    def _search_space_fits(self) -> Self:
        seen: dict[str, str] = {}
        for name, entry in self.hpo.search_space.items():
            key = f"hpo.search_space.{name}"
            dotted = dotted_name(name)
            if dotted in seen:
                raise ValueError(
                    f"{key} is the same parameter as hpo.search_space.{seen[dotted]}; take one of them out"
                )
            seen[dotted] = name
            for value in entry.choices if isinstance(entry, Categorical) else [entry.low, entry.high]:
                self._check_value(dotted, value, key, "cannot be tried")
            for other, wanted in entry.when.items():
                place = f"{key}.when"
                condition = dotted_name(other, place)
                for value in wanted if isinstance(wanted, list) else [wanted]:
                    self._check_value(condition, value, f"{place}.{other}", "can never hold")
        return self

    def _check_value(self, dotted: str, value: Any, key: str, verdict: str) -> None:
        """Validate the one section that a searched value would change."""
        section = dotted.partition(".")[0]
        tree = set_values({section: getattr(self, section).model_dump()}, {dotted: value})
        try:
            type(getattr(self, section)).model_validate(tree[section])
        except ValidationError as error:
            raise ValueError(f"{key}: {value!r} {verdict}: {problem(error.errors()[0])}") from None

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
        return Params.model_validate(set_values(self.model_dump(), values))

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


def set_values(tree: dict[str, Any], values: Mapping[str, Any]) -> dict[str, Any]:
    """Set dotted names in a nested dict, in place, and give it back."""
    for dotted, value in values.items():
        *parents, last = dotted.split(".")
        node = tree
        for part in parents:
            if node.get(part) is None:  # a section that was not set, such as the provenance of a hand-made trainer file
                node[part] = {}
            node = node[part]
        node[last] = value
    return tree


def dotted_name(name: str, place: str = "hpo.search_space") -> str:
    """Full dotted name of a search-space name.

    Parameters
    ----------
    name : str
        A field of ``TrainingArguments`` (``learning_rate``), of ``training`` (``loss_function``), or any dotted parameter.
    place : str
        Where the name stands, for the error.

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
    elif name in training_argument_types():
        return f"training.args.{name}"
    elif name in TrainingParams.model_fields:
        return f"training.{name}"
    else:
        known = [*training_argument_types(), *TrainingParams.model_fields]
    near = did_you_mean(name, known)
    if near == ".":
        near = "; name a field of transformers.TrainingArguments or of training, or a dotted one such as data.pos_neg_ratio."
    raise ValueError(f"{place}.{name}: no parameter of that name can be searched{near}")
