"""``TrainingArguments`` of Hugging Face Trainer from ``training.args``, over evbind's own defaults.

Imports the rooms below it; `training` and `search` import it.
"""

from __future__ import annotations

from typing import Any

import torch
from transformers import TrainingArguments

from evbind_lib.config.compose import Params
from evbind_lib.errors import ParamsError
from evbind_lib.training.model import choose_precision


def training_arguments(params: Params, *, output_dir: str) -> TrainingArguments:
    """``TrainingArguments`` from ``training.args`` over evbind's own defaults.

    Parameters
    ----------
    params : Params
    output_dir : str
        A folder that Trainer may use; with the defaults nothing is written to it.

    Returns
    -------
    TrainingArguments

    Raises
    ------
    ParamsError
        When transformers refuses a value or a combination.
    """
    on_cpu = not (torch.cuda.is_available() or torch.backends.mps.is_available())
    precision = choose_precision(params.model.precision)
    args: dict[str, Any] = {
        "output_dir": output_dir,
        "save_strategy": "no",
        "eval_strategy": "no",  # each epoch is validated by a callback, on pairs sorted by length
        "logging_strategy": "no",
        "logging_nan_inf_filter": False,
        "report_to": "none",
        "disable_tqdm": True,
        "seed": params.training.seed,
        "optim": "adamw_torch_fused",
        "lr_scheduler_type": "linear",
        "train_sampling_strategy": "group_by_length",
        "per_device_eval_batch_size": 64,
        "dataloader_pin_memory": not on_cpu,
        "use_cpu": on_cpu,
        "bf16": precision == "bf16",
        "fp16": precision == "fp16",
    }
    chosen = dict(params.training.args)
    ratio = chosen.pop("warmup_ratio", None)
    if ratio is not None:
        chosen.setdefault("warmup_steps", ratio)  # below 1 it is a share of the steps
    try:
        arguments = TrainingArguments(**{**args, **chosen})
    except (TypeError, ValueError, ImportError) as error:
        reason = str(error).splitlines()[0].rstrip(".")
        raise ParamsError(
            f"training.args: transformers refuses them: {reason}; change them or leave them out."
        ) from None
    if arguments.n_gpu > 1:
        arguments._n_gpu = 1  # DataParallel would change the effective batch; several GPUs serve several trials
    return arguments
