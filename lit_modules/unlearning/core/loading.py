"""Loading a causal language model, or saying in one sentence why it cannot be."""

from pathlib import Path
from typing import Any, cast

import torch
from peft import PeftConfig
from transformers import AutoModelForCausalLM, PreTrainedModel
from transformers.models.auto.modeling_auto import MODEL_FOR_CAUSAL_LM_MAPPING_NAMES

from lit_modules.utils import adapters
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
    """Load the weights of a causal language model from a folder or a hub, on the CPU; adapters are merged.

    Args:
        name: Name of the model, or a folder that ``save_pretrained`` wrote.
        dtype: Type of the weights.

    Raises:
        ValueError: If ``name`` cannot be read, is no causal language model, or lacks weights.
    """
    adapted = load_adapter(name, None, dtype)
    if adapted is None:
        return _load_whole(name, dtype)
    return cast("PreTrainedModel", adapters.merged(adapted).requires_grad_(True))


def load_adapter(name: str, given: PeftConfig | None, dtype: torch.dtype = torch.float32) -> Any:
    """Load a saved adapter on its base model, to train on; ``None`` if ``name`` holds a whole model.

    Args:
        name: Folder that ``save_pretrained`` wrote, or a name on a hub.
        given: Configuration that is asked for; another one than that of the saved adapter is refused.
        dtype: Type of the base model's weights.

    Raises:
        ValueError: If the adapter or its base does not load, or is another one than asked for.
    """
    check_folder(name)
    try:
        saved = adapters.saved_config(name)
    except (OSError, ValueError, KeyError) as error:
        raise _unreadable(name, error) from error
    if saved is None:
        return None
    base = adapters.base_of(saved, name)
    try:
        whole = _load_whole(base, dtype, saved.revision)
    except ValueError as error:
        raise ValueError(f"The base of the adapter in {name!r}: {error}") from error
    return adapters.continue_adapter(whole, name, given)


def _load_whole(name: str, dtype: torch.dtype, revision: str | None = None) -> PreTrainedModel:
    check_folder(name)
    more = {} if revision is None else {"revision": revision}
    try:
        with only_tensors(name):
            loaded: Any = AutoModelForCausalLM.from_pretrained(name, dtype=dtype, output_loading_info=True, **more)
    except (OSError, ValueError, KeyError) as error:
        raise _unreadable(name, error) from error
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


def _unreadable(name: str, error: Exception) -> ValueError:
    reason = str(error).strip().splitlines()[0]
    return ValueError(f"{name!r} does not load as a causal language model: {reason} {_REMEDY}")
