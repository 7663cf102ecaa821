"""Fields of transformers' ``TrainingArguments`` that are refused, with reason and remedy, and ranges that it leaves open."""

import math
from functools import partial
from typing import Annotated, Any, Literal

from pydantic import AfterValidator, BaseModel, BeforeValidator, Field, create_model, model_validator

# Names by what they are refused for: evbind does that itself, a fold cannot use them, or nothing reads them.
REFUSED = {
    "a fold ends with its last epoch and leaves no checkpoint; search num_train_epochs, and keep a model by ev.finalize": """
        load_best_model_at_end metric_for_best_model greater_is_better resume_from_checkpoint save_strategy save_steps
        save_total_limit save_only_model save_on_each_node ignore_data_skip restore_callback_states_from_checkpoint
        enable_jit_checkpoint""",
    "evbind validates each fold itself; leave it out, or set training.validation=each for learning curves": """
        do_train do_eval do_predict eval_strategy eval_steps eval_delay eval_on_start eval_accumulation_steps
        eval_do_concat_batches eval_use_gather_object prediction_loss_only include_for_metrics batch_eval_metrics""",
    "evbind reports to MLflow itself; leave it out, and choose the store by tracking.uri": """
        report_to run_name project trackio_space_id trackio_bucket_id trackio_static_space_id disable_tqdm log_level
        log_level_replica log_on_each_node logging_strategy logging_steps logging_first_step logging_nan_inf_filter
        include_num_input_tokens_seen skip_memory_metrics""",
    "training writes nothing; leave it out, and choose the folder of all results by EVBIND_WORKSPACE": "output_dir",
    "nothing is sent to a hub; leave it out, and call save and push_to_hub of the model that ev.finalize gives": """
        push_to_hub hub_token hub_private_repo hub_model_id hub_strategy hub_always_push hub_revision""",
    "every training would have that one; set training.seed instead": "seed data_seed",
    "it smooths only a loss of transformers' own; make a loss that smooths an entry of ev.LOSSES": "label_smoothing_factor",
    "batches differ in length, so it would compile again for most of them; leave it out": """
        torch_compile torch_compile_backend torch_compile_mode""",
    "validation must compute alike; set model.precision instead": "bf16 fp16 bf16_full_eval fp16_full_eval",
    "one process trains a fold, on one device; leave it out, and set hpo.trials.n_jobs or cluster=dask for several": """
        local_rank ddp_backend ddp_timeout ddp_find_unused_parameters ddp_bucket_cap_mb ddp_broadcast_buffers
        ddp_static_graph fsdp fsdp_config deepspeed parallelism_config accelerator_config average_tokens_across_devices""",
    "evbind halves what memory does not hold and keeps the effective batch; leave it out": "auto_find_batch_size",
    "pairs come without columns, each batch collated by evbind; leave it out": """
        remove_unused_columns label_names length_column_name""",
}
# Names that are read only where another one is set.
NEEDS = {f"{name}_kwargs": name for name in ("gradient_checkpointing", "activation_checkpointing")}
NEEDS |= {"optim_target_modules": "optim", "liger_kernel_config": "use_liger_kernel"}


def _refuse(reason: str, value: Any) -> Any:
    raise ValueError(reason)


def finite(value: Any) -> Any:
    """A value as it is; refused where a number in it has no end, or is too small for 32 bits."""
    for each in value.values() if isinstance(value, dict) else value if isinstance(value, list) else ():
        finite(each)
    if isinstance(value, float) and not (value == 0 or 1.2e-38 < abs(value) < math.inf):
        raise ValueError("must be 0 or a finite number from 1.2e-38 on, as 32 bits hold")
    return value


Finite = Annotated[Any, BeforeValidator(finite)]
Real = Annotated[float, AfterValidator(finite)]
FRACTION, SIZE = Annotated[Real, Field(ge=0, lt=1)], Annotated[int, Field(ge=1, le=65_536)]
# Without these no training goes well, or it takes the machine with it.
RANGES: dict[str, Any] = {
    "learning_rate": Annotated[Real, Field(ge=1e-12, le=100)],  # a smaller one changes no weight
    "num_train_epochs": Annotated[Real, Field(gt=0, le=10_000)],
    "max_steps": Annotated[int, Field(ge=-1, le=10**9)],
    **dict.fromkeys(("per_device_train_batch_size", "per_device_eval_batch_size", "gradient_accumulation_steps"), SIZE),
    "warmup_ratio": FRACTION,  # transformers 5 has warmup_steps below 1 instead
    "warmup_steps": Annotated[Real, Field(ge=0)],
    "weight_decay": Annotated[Real, Field(ge=0, le=100)],
    **dict.fromkeys(("adam_beta1", "adam_beta2"), FRACTION),
    "adam_epsilon": Annotated[Real, Field(ge=0, le=1)],  # a larger one is all that a gradient is divided by
    "max_grad_norm": Annotated[Real, Field(ge=0)],
    "dataloader_num_workers": Annotated[int, Field(ge=0, le=64)],
    "train_sampling_strategy": Literal["group_by_length", "random", "sequential"],
}


class _Open(BaseModel, extra="allow", protected_namespaces=()):
    """Base of `Arguments`: other names are left to transformers, but no number without an end is for any of them."""

    __pydantic_extra__: dict[str, Finite]

    @model_validator(mode="before")
    @classmethod
    def _used(cls, given: dict[str, Any]) -> dict[str, Any]:
        for name in given:
            if name in RANGES and isinstance(given[name], bool):
                raise ValueError(f"{name}={given[name]} must be a number")
            if NEEDS.get(name, name) not in given:
                raise ValueError(f"{name} has no effect without {NEEDS[name]}; set both or leave it out")
        return given


_refused = {name: partial(_refuse, reason) for reason, names in REFUSED.items() for name in names.split()}
_types = RANGES | {name: Annotated[Any, BeforeValidator(refuse)] for name, refuse in _refused.items()}
_fields: dict[str, Any] = {name: (kind, None) for name, kind in _types.items()}
Arguments = create_model("Arguments", __base__=_Open, **_fields)
