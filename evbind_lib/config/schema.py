"""The parameter tree: type, range and default of every key, as frozen pydantic models; names are checked before training."""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping
from typing import Annotated, Any, Literal, Self, get_args

from pydantic import BaseModel, Field, ValidationError, ValidationInfo, field_validator, model_validator

from evbind_lib.config.arguments import Arguments, Finite, finite
from evbind_lib.config.distribution import SCALARS, Distribution, is_number
from evbind_lib.config.masking import masked
from evbind_lib.errors import ParamsError, did_you_mean, shown

# Folders of params/ from which one file each is taken; `trainer` fills the branch training, `experiment` any of them.
GROUPS = ("data", "model", "trainer", "hpo", "tracking", "cluster", "experiment")
# What evbind leaves to Optuna itself, by the key that would ask for it.
OPTUNAS = "several metrics, constraints and grids go in a plain Optuna study that uses ev.report_folds (README, Extend)"
BY_OPTUNA = ("hpo.metric.name", "hpo.constraints", "hpo.sampler.type")
# Of `DataParams`, those that hold for any corpus; the others name the files of one.
SAMPLING = {"negatives", "pos_neg_ratio", "negative_strategy", "eval_neg_ratio", "same_post_negatives", "seed"}
GONE = re.compile(r"\s*(sqlite(\+\w+)?:/*(:memory:)?(\?.*)?)?|sqlite.*[?&]mode=memory.*")  # in memory
NO_TEXT = re.compile("[\0-\x08\x0e-\x1f\x7f\ud800-\udfff]")


class Section(BaseModel, extra="forbid", frozen=True, allow_inf_nan=False):
    """A branch of the tree: unknown keys and numbers without an end are refused, values cannot be changed after validation."""

    @field_validator("*", mode="before")
    @classmethod
    def _is_no_bool(cls, value: Any, info: ValidationInfo) -> Any:
        kind = cls.model_fields[str(info.field_name)].annotation
        if isinstance(value, bool) and {int, float} & {kind, *get_args(kind)}:
            raise ValueError("must be a number")  # else true would be 1
        return finite(value) if isinstance(value, float) else value


class DataParams(Section):
    """Where the pairs come from and how negatives are drawn (``params/data/``)."""

    format: str = "redsm5"
    posts: str | None = None
    annotations: str | None = None
    criteria: str | None = None
    pairs: str | None = None
    claims: str | None = None
    corpus: str | None = None
    test: str | None = None
    columns: dict[str, str] = {}
    labels: dict[Literal["evidence", "none"], list[Any]] = {}
    group_by: Annotated[str, Field(min_length=1)] | Annotated[list[str], Field(min_length=1)] = "post_id"
    negatives: Literal["auto", "annotated", "sampled"] = "auto"
    pos_neg_ratio: float = Field(default=3.0, gt=0, le=1e6)
    negative_strategy: Literal["stratified", "hard", "random", "all"] = "stratified"
    eval_neg_ratio: float | str = 3.0
    same_post_negatives: Literal["auto"] | bool = "auto"
    seed: int = Field(default=42, ge=0, lt=2**32)
    special_case: Literal["negative", "drop"] = "negative"
    sensitive: bool = True

    @field_validator("eval_neg_ratio", mode="before")
    @classmethod
    def _number_or_natural(cls, value: Any) -> Any:
        if value != "natural" and not (is_number(value) and 0 < value <= 1e6):
            raise ValueError("must be at most 1e6 and above 0, or natural")
        return value


class ModelParams(Section):
    """The encoder (``params/model/``)."""

    name: str = Field(min_length=1)
    max_length: int = Field(default=512, ge=8, le=131_072)
    precision: Literal["auto", "bf16", "fp16", "fp32"] = "auto"
    attention: Literal["auto", "eager", "disentangled_flash"] = "auto"
    dropout: float | None = Field(default=None, ge=0, lt=1)
    threads: int | None = Field(default=None, ge=1, le=1024)
    trainer: dict[str, Any] = {}
    search_space: dict[str, Any] = {}


class TrainingParams(Section):
    """Folds, seed, loss and everything of ``TrainingArguments`` (``params/trainer/``)."""

    n_folds: int = Field(default=5, ge=2)
    seed: int = Field(default=42, ge=0, lt=2**32)
    seeds: list[Annotated[int, Field(ge=0, lt=2**32, strict=True)]] = []
    holdout: float = Field(default=0.0, ge=0, le=0.5)
    args: dict[str, Any] = {}
    validation: Literal["last", "each"] = "last"
    loss_function: str = Field(default="weighted_ce", min_length=1)
    focal_gamma: float = Field(default=2.0, ge=0, le=100)
    focal_alpha: float = Field(default=0.25, gt=0, lt=1)
    loss_args: dict[str, Finite] = {}
    fresh: bool = False
    provenance: dict[str, Any] | None = None

    @field_validator("args")
    @classmethod
    def _arguments(cls, value: dict[str, Any]) -> dict[str, Any]:
        Arguments.model_validate(value)  # which names the argument
        return value

    @field_validator("seeds")
    @classmethod
    def _different(cls, value: list[int]) -> list[int]:
        if len({*value}) < len(value):
            raise ValueError("must be different seeds: the same one gives the same training")
        return value


class StudyParams(Section):
    """Name and storage of the Optuna study."""

    study_name: str = Field(min_length=1)
    storage: str = Field(min_length=1)
    direction: Literal["maximize", "minimize"] = "maximize"
    load_if_exists: bool = True

    @field_validator("study_name", "storage")
    @classmethod
    def _lasts(cls, value: str, info: ValidationInfo) -> str:
        if info.field_name == "storage" and GONE.fullmatch(value):
            raise ValueError("that study would be gone with the notebook; name a file, as sqlite:///optuna.db does")
        odd = value != value.strip() or not value.isprintable() or value in (".", "..")
        if info.field_name == "study_name" and (odd or len(value.encode()) > 200):
            raise ValueError("must be a name of at most 200 bytes in one line, without blanks around it")
        return value


class TrialsParams(Section):
    """How long to search, by how many workers; times in seconds."""

    n_trials: int = Field(ge=1, le=1_000_000)
    timeout: float | None = Field(default=None, ge=1)
    n_jobs: int = Field(default=1, ge=1)
    trial_timeout: float | None = Field(default=None, ge=1)


class SamplerParams(Section, extra="allow", regex_engine="python-re"):
    """The Optuna sampler; further keys are options of that sampler."""

    type: str = Field(default="tpe", pattern="^(?!grid$)")
    n_startup_trials: int = Field(default=10, ge=0)
    seed: int | None = Field(default=42, ge=0, lt=2**32)


class PrunerParams(Section, extra="allow"):
    """The Optuna pruner; a step is a fold; further keys are options of that pruner."""

    type: str = "median"
    n_startup_trials: int = Field(default=5, ge=0)
    n_warmup_steps: int = Field(default=0, ge=0)
    interval_steps: int = Field(default=1, ge=1)


class MetricParams(Section):
    """The metric that the search improves, and how the folds' values become one."""

    name: str = Field(default="macro_f1", min_length=1)
    fold_aggregation: Literal["mean", "median", "min", "max"] = "mean"


class StopParams(Section):
    """When to stop before the last trial."""

    no_improvement: int | None = Field(default=None, ge=1)


class HpoParams(Section):
    """The search (``params/hpo/``)."""

    study: StudyParams
    trials: TrialsParams
    sampler: SamplerParams = SamplerParams()
    pruner: PrunerParams = PrunerParams()
    metric: MetricParams = MetricParams()
    stop: StopParams = StopParams()
    fixed: dict[str, Any] = {}
    enqueue: list[Annotated[str, Field(min_length=1)]] = []
    reuse: bool = False
    finalists: int = Field(default=0, ge=0)
    search_space: dict[str, Distribution] = Field(min_length=1)


class TrackingParams(Section):
    """The MLflow store (``params/tracking/``)."""

    enabled: bool = True
    uri: str = "sqlite:///mlflow.db"
    artifacts: str = "mlartifacts"
    system_metrics: bool = False
    registered_model_name: str | None = None

    @field_validator("uri", "artifacts", "registered_model_name")
    @classmethod
    def _keeps(cls, value: str | None, info: ValidationInfo) -> str | None:
        name, text = str(info.field_name), str(value)
        if name == "artifacts" and masked(text) != text:
            raise ValueError("every run would store it; leave user and password out: the environment has them")
        if name == "registered_model_name" and not re.fullmatch(r"\s*[^/:\s][^/:]*", text):
            raise ValueError("must be a name without / and :, as MLflow has them")
        if name == "uri" and info.data.get("enabled") and GONE.fullmatch(text):
            raise ValueError("nothing would be kept there; write sqlite:///mlflow.db, or tracking=none")
        return value


class ClusterParams(Section):
    """Where the workers of a search run (``params/cluster/``)."""

    executor: Literal["local", "dask"] = "local"
    gpu_share: int | Literal["auto"] = "auto"
    scheduler: str | None = None

    @field_validator("gpu_share", mode="before")
    @classmethod
    def _number_or_auto(cls, value: Any) -> Any:
        if value != "auto" and not (type(value) is int and 1 <= value <= 100):
            raise ValueError("must be auto, or a whole number from 1 to 100")
        return value

    @model_validator(mode="after")
    def _scheduler_goes_with_dask(self) -> Self:
        address = r"[a-z]+://[^\s/]+:\d+" if self.executor == "dask" else ""
        if not re.fullmatch(address, self.scheduler or ""):
            raise ValueError("choose cluster=dask and set cluster.scheduler=tcp://HOST:8786, or neither")
        return self


class Params(Section):
    """All parameters of one notebook execution, validated and frozen, each with a dotted name; made by `evbind_lib.compose`.

    Examples
    --------
    >>> import evbind_lib as ev
    >>> params = ev.compose(["training.n_folds=3"])
    >>> params.training.n_folds, params.with_values({"training.n_folds": 4}).training.n_folds
    (3, 4)
    """

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
            key, dotted = f"hpo.search_space.{name}", dotted_name(name)
            if (other := seen.setdefault(dotted, name)) != name and not entry.excludes(self.hpo.search_space[other]):
                same = f"{key} is the same parameter as hpo.search_space.{other}"
                raise ValueError(f"{same}; take one of them out, or give each a `when` that excludes the other's")
            for value in entry.examples:
                self._check_value(dotted, value, key, "cannot be tried")
            for other, wanted in entry.when.items():
                condition = dotted_name(other, f"{key}.when")
                for value in wanted if isinstance(wanted, list) else [wanted]:
                    self._check_value(condition, value, f"{key}.when.{other}", "can never hold")
        return self

    def _check_value(self, dotted: str, value: Any, key: str, verdict: str) -> None:
        """Validate the one section that a searched value would change."""
        name, _, rest = dotted.partition(".")
        section = getattr(self, name)
        try:
            section.model_validate(set_values(section.model_dump(), {rest: value}))
        except ValidationError as error:
            raise ValueError(f"{key}: {value!r} {verdict}: {explain(error)}") from None

    @classmethod
    def from_tree(cls, tree: Mapping[str, Any]) -> Params:
        """Validate nested values; a `ParamsError` names the first key that cannot be used."""
        for key, value in flatten(tree).items():
            if NO_TEXT.search("".join(map(str, [key, *(value if isinstance(value, list) else [value])]))):
                problem = "it holds a control character or half a character, which no file or database keeps"
                raise ParamsError(f"{shown(key)}={shown(masked(value, key))}: {problem}; take it out.")
        try:
            return cls.model_validate(tree)
        except ValidationError as error:
            raise ParamsError(explain(error)) from None

    def with_values(self, values: Mapping[str, Any]) -> Params:
        """Copy with some dotted parameters set and everything validated again; `ParamsError` as from `compose`."""
        return Params.from_tree(set_values(self.model_dump(), values))

    def value_of(self, dotted: str) -> Any:
        """Value of one dotted parameter; ``None`` where a training argument is not set."""
        return self.flat().get(dotted)

    def flat(self) -> dict[str, Any]:
        """All parameters as dotted names to plain values, in the tree's order."""
        return flatten(self.model_dump())


def known_keys(model: type[BaseModel], prefix: str = "") -> list[str]:
    """Every dotted key of the tree that has a field of its own, branches before what is below them."""
    keys = []
    for name, field in model.model_fields.items():
        keys.append(prefix + name)
        if isinstance(field.annotation, type) and issubclass(field.annotation, BaseModel):
            keys += known_keys(field.annotation, f"{prefix}{name}.")
    return keys


KEYS = known_keys(Params)
BRANCHES = (".trainer", ".search_space", ".args", ".loss_args", ".provenance")
SETTABLE = [key for key in KEYS if key.startswith(("data.", "model.", "training.")) and not key.endswith(BRANCHES)]


def dotted_name(name: str, place: str = "hpo.search_space") -> str:
    """Full name of a searched parameter, where one without a dot is a field of training, else of ``training.args``."""
    if "." not in name:
        name = f"training.{name}" if f"training.{name}" in SETTABLE else f"training.args.{name}"
    if name in SETTABLE or re.fullmatch(r"training\.(args|loss_args)\.\w+", name):
        return name
    near = did_you_mean(name, SETTABLE)
    raise ValueError(f"{place}.{name}: that is no field of data, model or training to be set{near}")


# Sections whose further keys belong to their type, with the keys that every type has.
TYPED = {"sampler": SamplerParams.model_fields, "pruner": PrunerParams.model_fields}


def is_entry(node: Mapping[str, Any]) -> bool:
    """Whether a branch of the search space is a distribution, rather than the first part of a dotted name."""
    return any(key in Distribution.model_fields and not isinstance(value, dict) for key, value in node.items())


def flatten(tree: Mapping[str, Any], is_leaf: Callable[[dict[str, Any]], bool] = lambda node: False) -> dict[str, Any]:
    """Nested dicts as one dict of dotted names, down to what is no dict, an empty one or a leaf."""
    flat: dict[str, Any] = {}
    for name, node in tree.items():
        if isinstance(node, dict) and node and not is_leaf(node):
            flat |= {f"{name}.{rest}": value for rest, value in flatten(node, is_leaf).items()}
        else:
            flat[str(name)] = node
    return flat


def without_files(flat: Mapping[str, Any]) -> dict[str, Any]:
    """Parameters by dotted name without those that name the files of a corpus: it may be another one."""
    return {name: value for name, value in flat.items() if not name.startswith("data.") or name[5:] in SAMPLING}


def set_values(tree: dict[str, Any], values: Mapping[str, Any]) -> dict[str, Any]:
    """Set dotted names in a nested dict, in place, and give it back."""
    for dotted, value in values.items():
        *parents, last = dotted.split(".")
        node = tree
        for part in parents:
            node[part] = node.get(part) or {}  # None is a section that is not set, as most often provenance
            node = node[part]
        node[last] = value
    return tree


def explain(error: ValidationError) -> str:
    """Say the first problem of a validation in one sentence: pydantic's own words, behind the key and its value."""
    first = error.errors()[0]
    kind, value, key = first["type"], first["input"], shown(".".join(map(str, first["loc"])))
    if key in BY_OPTUNA and kind in ("extra_forbidden", "string_type", "string_pattern_mismatch"):
        return f"{key}: {OPTUNAS}."
    if kind == "extra_forbidden" and key.startswith("hpo.search_space."):
        return f"{key}: write type, low, high, step, choices or when (for a logarithmic scale type=log_uniform or log_int)."
    if package := {"trainer": "training", "experiment": "_global_"}.get(key):
        return f"{key}: a file of params/{key}/ begins with the line `# @package {package}`; add it to yours."
    if kind == "extra_forbidden":
        known = (*GROUPS, *KEYS)
        same = [name for name in known if name.rpartition(".")[2] == key.rpartition(".")[2]]
        return f"{key} is not a parameter{did_you_mean(same[0] if same else key, known)}"
    problem = first["msg"].removeprefix("Value error, ").replace("Input should", "must")
    if kind == "literal_error":
        problem = "is none of the choices" + did_you_mean(str(value), re.findall("'(.+?)'", first["ctx"]["expected"]))
    given = f"={shown(masked(value, key))}" if kind != "missing" and isinstance(value, SCALARS) else ""
    sentence = f"{key}{given}: {problem}" if key else problem
    return sentence if sentence.endswith((".", "?")) else f"{sentence}."
