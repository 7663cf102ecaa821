"""The branch ``hpo`` of the parameter tree: study, trials, sampler, pruner, objectives, constraints, search space.

Imports `distributions` and `errors`; `schema` puts it into the tree, and everything above may import it.
"""

from __future__ import annotations

from typing import Annotated, Any, Literal, Self, get_args

from pydantic import BaseModel, ConfigDict, Field, field_validator, model_validator

from evbind_lib.config.distributions import ENTRY_KEYS, SearchSpaceEntry, Section, flatten
from evbind_lib.errors import did_you_mean

MetricName = Literal["accuracy", "macro_f1", "pos_f1", "precision", "recall", "roc_auc", "pr_auc", "log_loss"]
METRIC_NAMES: tuple[str, ...] = get_args(MetricName)
Aggregation = Literal["mean", "median", "min", "max"]
# Seconds that a trial trained; beside metrics it can be one of several objectives, and be bounded.
SECONDS = "seconds"
LOWER_IS_BETTER = ("log_loss", SECONDS)


def natural_direction(objective: str) -> str:
    """``minimize`` for what is better when lower, else ``maximize``."""
    return "minimize" if objective in LOWER_IS_BETTER else "maximize"


class StudyParams(Section):
    """Name and storage of the Optuna study."""

    study_name: str = Field(min_length=1)
    storage: str = Field(min_length=1)
    direction: Literal["maximize", "minimize"] = "maximize"
    load_if_exists: bool = True


class TrialsParams(Section):
    """How long to search, by how many workers; times in seconds."""

    n_trials: int = Field(ge=1)
    timeout: Annotated[float, Field(gt=0)] | None = None
    n_jobs: int = Field(default=1, ge=1)
    trial_timeout: Annotated[float, Field(gt=0)] | None = None


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
    """What the search improves: one metric, or several objectives of which the first decides the best trial."""

    name: str | list[str] = "macro_f1"
    fold_aggregation: Aggregation = "mean"

    @field_validator("name", mode="before")
    @classmethod
    def _known_objectives(cls, name: Any) -> Any:
        several = isinstance(name, list | tuple)
        names = list(name) if several else [name]
        known = (*METRIC_NAMES, SECONDS) if len(names) > 1 else METRIC_NAMES
        if not names:
            raise ValueError("hpo.metric.name must not be empty; name a metric, for example macro_f1")
        if names[0] == SECONDS:
            raise ValueError(
                f"hpo.metric.name={name}: seconds can only stand behind a metric, since the first objective decides the "
                "best trial; write for example [macro_f1,seconds]"
            )
        for one in names:
            if one not in known:
                near = did_you_mean(str(one), known)
                hint = near if "did you mean" in near else ""
                raise ValueError(f"hpo.metric.name={one}: must be one of {', '.join(known)}{hint}")
            if names.count(one) > 1:
                raise ValueError(f"hpo.metric.name names {one} twice; take one of them out")
        return names if len(names) > 1 else names[0]

    @property
    def names(self) -> list[str]:
        """The objectives, in their order."""
        return self.name if isinstance(self.name, list) else [self.name]

    @property
    def first(self) -> str:
        """The metric that decides which trial is the best."""
        return self.names[0]


class Bounds(Section):
    """Values of a metric that are allowed."""

    low: float | None = None
    high: float | None = None

    @model_validator(mode="after")
    def _something_is_bounded(self) -> Self:
        if self.low is None and self.high is None:
            raise ValueError("neither low nor high is set; set one of them")
        if self.low is not None and self.high is not None and self.low > self.high:
            raise ValueError(f"low={self.low:g} lies above high={self.high:g}; exchange them")
        return self


class StopParams(Section):
    """When to stop before the last trial; the first rule that holds counts."""

    no_improvement: Annotated[int, Field(ge=1)] | None = None
    terminator: bool = False
    min_trials: int = Field(default=20, ge=2)


class HpoParams(Section):
    """The search (``params/hpo/``)."""

    study: StudyParams
    trials: TrialsParams
    sampler: SamplerParams = SamplerParams()
    pruner: PrunerParams = PrunerParams()
    metric: MetricParams = MetricParams()
    constraints: dict[str, Bounds] = Field(default={})
    stop: StopParams = StopParams()
    fixed: dict[str, Any] = Field(default={})
    enqueue: list[Annotated[str, Field(min_length=1)]] = Field(default=[])
    search_space: dict[str, SearchSpaceEntry] = Field(min_length=1)

    @field_validator("search_space", mode="before")
    @classmethod
    def _dotted_names_from_nesting(cls, space: Any) -> Any:
        return flatten(space, leaf=ENTRY_KEYS)

    @field_validator("fixed", mode="before")
    @classmethod
    def _dotted_fixed_names(cls, fixed: Any) -> Any:
        return flatten(fixed)

    @field_validator("constraints", mode="before")
    @classmethod
    def _known_metrics(cls, constraints: Any) -> Any:
        known = (*METRIC_NAMES, SECONDS)
        for name in constraints if isinstance(constraints, dict) else ():
            if name not in known:
                raise ValueError(f"hpo.constraints.{name}: there is no metric of that name{did_you_mean(name, known)}")
        return constraints

    @model_validator(mode="after")
    def _direction_is_the_metrics_own(self) -> Self:
        metric, natural = self.metric.name, natural_direction(self.metric.first)
        if isinstance(metric, str) and self.study.direction != natural:
            better = "lower" if natural == "minimize" else "higher"
            raise ValueError(
                f"hpo.study.direction={self.study.direction}: {metric} is better when {better}; set "
                f"hpo.study.direction={natural}"
            )
        if isinstance(metric, list) and self.stop.terminator:
            raise ValueError(
                "hpo.stop.terminator=true: Optuna's terminator judges one objective; set hpo.stop.terminator=false or one "
                "hpo.metric.name"
            )
        return self
