"""Memory: what fits, what to do where a batch does not, and how much was held.

Imports `params`; `training` imports it.
"""

from __future__ import annotations

import resource
import sys

import torch

from evbind_lib.config.compose import Params

# What PyTorch says on a CPU and on Apple's chips, where it has no error class of its own for this.
# The last is oneDNN, which gives no reason; seen where memory had run out.
OUT_OF_MEMORY = (
    *("can't allocate memory", "not enough memory", "out of memory", "cannot allocate memory"),
    "could not create a primitive",
)


def with_micro_batch(params: Params, micro_batch: int) -> Params:
    """Parameters that hold fewer pairs at once and gather gradients over more steps, for the same effective batch.

    Parameters
    ----------
    params : Params
    micro_batch : int
        A divisor of the batch size.

    Returns
    -------
    Params
    """
    args = params.training.args
    batch = int(args.get("per_device_train_batch_size", 8))
    if micro_batch == batch:
        return params
    steps = int(args.get("gradient_accumulation_steps", 1)) * (batch // micro_batch)
    return params.with_values(
        {
            "training.args.per_device_train_batch_size": micro_batch,
            "training.args.gradient_accumulation_steps": steps,
            "training.args.per_device_eval_batch_size": min(
                micro_batch, int(args.get("per_device_eval_batch_size", micro_batch))
            ),
        }
    )


def half_of(micro_batch: int) -> int:
    """Largest divisor of a batch that is at most half of it."""
    return max(size for size in range(1, micro_batch // 2 + 1) if micro_batch % size == 0)


def is_out_of_memory(error: BaseException) -> bool:
    """Whether an error says that the memory of a GPU or of the machine is used up."""
    if isinstance(error, (torch.OutOfMemoryError, MemoryError)):
        return True
    says = str(error).lower()
    return isinstance(error, RuntimeError) and any(words in says for words in OUT_OF_MEMORY)


def peak_memory_mb() -> float:
    """Most memory held: of the GPU since the fold began, else of the process since it started."""
    if torch.cuda.is_available():
        return torch.cuda.max_memory_allocated() / 2**20
    unit = 2**20 if sys.platform == "darwin" else 2**10
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / unit
