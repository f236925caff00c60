"""Loading a causal language model, or saying in one sentence why it cannot be."""

from pathlib import Path
from typing import Any, cast

import torch
from transformers import AutoModelForCausalLM, PreTrainedModel
from transformers.models.auto.modeling_auto import MODEL_FOR_CAUSAL_LM_MAPPING_NAMES

from lit_modules.utils.weights import only_tensors

_REMEDY = "Give the name or the folder of a causal language model, as `save_pretrained` writes it."


def check_folder(name: str) -> None:
    """Check that a model exists, if its name can only be that of a folder.

    Raises:
        ValueError: If there is no such folder.
    """
    if not Path(name).is_dir() and (name.startswith((".", "/", "~")) or name.count("/") > 1):
        raise ValueError(f"There is no model folder {name!r}. {_REMEDY}")


def load_causal_lm(name: str, dtype: torch.dtype = torch.float32) -> PreTrainedModel:
    """Load the weights of a causal language model from a folder or a hub, on the CPU.

    Args:
        name: Name of the model, or a folder that ``save_pretrained`` wrote.
        dtype: Type of the weights.

    Raises:
        ValueError: If ``name`` cannot be read, is no causal language model, or lacks weights.
    """
    check_folder(name)
    try:
        with only_tensors(name):
            loaded: Any = AutoModelForCausalLM.from_pretrained(name, dtype=dtype, output_loading_info=True)
    except (OSError, ValueError, KeyError) as error:
        reason = str(error).strip().splitlines()[0]
        raise ValueError(f"{name!r} does not load as a causal language model: {reason} {_REMEDY}") from error
    model, report = loaded
    architectures = model.config.architectures or []
    if architectures and not set(architectures) & set(MODEL_FOR_CAUSAL_LM_MAPPING_NAMES.values()):
        raise ValueError(f"{name!r} holds {architectures[0]}, which is no causal language model. {_REMEDY}")
    missing = sorted(report["missing_keys"])
    if missing:
        raise ValueError(
            f"{name!r} lacks {len(missing)} weights of {type(model).__name__}, such as {missing[0]}. {_REMEDY}"
        )
    return cast("PreTrainedModel", model)
