"""Pretrained causal language models: loading, saving, their tokenizer and their hash."""

import json
from functools import lru_cache
from pathlib import Path
from typing import Any, cast

import torch
from peft import PeftConfig, PeftModel
from torch import Tensor, nn
from transformers import AutoModelForCausalLM, AutoTokenizer, PreTrainedModel, PreTrainedTokenizerBase
from transformers.models.auto.modeling_auto import MODEL_FOR_CAUSAL_LM_MAPPING_NAMES

from lit_modules.unlearning.core.sharding import is_sharded, whole_state
from lit_modules.utils import adapters
from lit_modules.utils.checkpoints import only_tensors
from lit_modules.utils.errors import first_line
from lit_modules.utils.hashing import hash_tensors, stable_hash

_REMEDY = "Give the name or the folder of a causal language model, as `save_pretrained` writes it."


def check_folder(name: str) -> None:
    """Raise a ``ValueError`` if a name can only be that of a folder, and there is none."""
    if not Path(name).is_dir() and (name.startswith((".", "/", "~")) or name.count("/") > 1):
        raise ValueError(f"There is no model folder {name!r}. {_REMEDY}")


def load_causal_lm(name: str, dtype: torch.dtype = torch.float32) -> PreTrainedModel:
    """Load the weights of a causal language model from a folder or a hub, on the CPU; adapters are merged.

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


def check_write(model: Any, folder: str, merge: bool) -> None:
    """Raise a ``ValueError`` if :func:`write_pretrained` could not write a model."""
    if merge and is_sharded(model) and adapters.own_config(model) is not None:
        raise ValueError(
            "Adapters are merged into whole weights, got sharded ones; save the adapters alone (merge=False), and "
            "merge them on one device with peft's `merge_and_unload`."
        )
    if merge:
        adapters.check_merge(model)
    adapters.check_folder(model, folder, merge)


def write_pretrained(model: Any, folder: str, merge: bool = False) -> None:
    """Write weights as transformers and peft load them.

    Sharded weights are gathered on the CPU of the first process, which writes; all processes must call this.

    Args:
        model: A model of transformers, with adapters of peft or without.
        folder: Folder to write to.
        merge: Whether to merge adapters into the weights; the model itself stays as it is.

    Raises:
        ValueError: If adapters cannot be merged, or the folder holds what would be loaded in place of the weights.
    """
    check_write(model, folder, merge)
    if is_sharded(model):
        state = whole_state(model)
        if torch.distributed.get_rank() == 0:
            model.save_pretrained(folder, state_dict=state)
        return
    adapted = merge and adapters.own_config(model) is not None
    # merging takes the adapters out of the model it is called on, which may go on training
    written = adapters.merged(model) if adapted else model
    written.save_pretrained(folder)


def check_tokenizer(tokenizer: PreTrainedTokenizerBase, model: str) -> None:
    """Check that a tokenizer numbers its tokens as the one beside a model's weights does.

    Tokens that only one of them has may be: special tokens get added and renamed. Nothing is checked if no tokenizer
    lies beside the weights.

    Raises:
        ValueError: If a token has two numbers; the message names one.
    """
    own = _vocabulary(model)
    vocabulary = tokenizer.get_vocab()
    other = [token for token, number in vocabulary.items() if own.get(token, number) != number]
    if other:
        token = min(other, key=vocabulary.__getitem__)
        raise ValueError(
            f"The tokenizer {tokenizer.name_or_path!r} numbers {len(other)} tokens otherwise than the one of the model "
            f"{model!r}: {token!r} is {vocabulary[token]}, and {own[token]} there. Give the tokenizer that belongs to "
            "the model, by its name or folder."
        )


def model_hash(model: nn.Module, precision: str = "", continued: bool = False) -> str:
    """Return a hash of a model's configuration and of all weights, the same with a new adapter as without.

    Args:
        model: Model of transformers, with adapters of peft or without.
        precision: Arithmetic that the model runs in, which changes its numbers.
        continued: Whether the adapter belongs to the model; otherwise it is left out.

    Returns:
        64 hexadecimal digits.
    """
    config = getattr(model, "config", None)  # any network may be trained
    values = config.to_diff_dict() if config is not None else {}
    unhashed = ("_name_or_path", "transformers_version", "dtype", "torch_dtype", "use_cache")
    described = {key: value for key, value in values.items() if key not in unhashed}
    base: Any = model
    marks: tuple[str, ...] = ()
    adapter = None
    if continued:
        adapter = adapters.essence(cast("PeftModel", model).peft_config["default"])
    elif isinstance(model, PeftModel):
        tuned: Any = model
        base, marks = tuned.get_base_model(), (tuned.base_model.prefix, "modules_to_save.")
    # buffers too, such as the scales of quantised weights
    state = [
        (name.replace(".base_layer", "").replace(".original_module", ""), part)
        for name, tensor in base.state_dict().items()
        if isinstance(tensor, Tensor) and not any(mark in name for mark in marks)
        for part in _stored(tensor)
    ]
    text = json.dumps([described, precision, adapter], sort_keys=True, default=str)
    return stable_hash(text, hash_tensors(state))


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
    reason = first_line(error)
    return ValueError(f"{name!r} does not load as a causal language model: {reason} {_REMEDY}")


@lru_cache(maxsize=4)
def _vocabulary(model: str) -> dict[str, int]:
    """Return the numbers of the tokens of the tokenizer beside a model's weights; none if there is no tokenizer."""
    try:
        own: Any = AutoTokenizer.from_pretrained(model)
    except (OSError, ValueError, KeyError):
        return {}
    return cast("dict[str, int]", own.get_vocab())


def _stored(tensor: Any) -> list[Tensor]:
    """Return the tensors that a tensor is made of: itself, or those of a quantised one, such as values and scales."""
    if not hasattr(tensor, "__tensor_flatten__"):  # torchao's
        return [tensor]
    names, _ = tensor.__tensor_flatten__()
    return [part for name in names for part in _stored(getattr(tensor, name))]
