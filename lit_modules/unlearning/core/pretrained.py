"""Pretrained causal language models: loading, saving, their tokenizer and their hash."""

import json
from collections.abc import Mapping
from functools import lru_cache
from pathlib import Path
from typing import Any, cast

import torch
from peft import PeftConfig, PeftModel
from torch import Tensor, nn
from transformers import AutoConfig, AutoProcessor, AutoTokenizer, PreTrainedModel, PreTrainedTokenizerBase

from lit_modules.unlearning.core.language_part import is_language_model, model_family, within_language
from lit_modules.unlearning.core.sharding import is_sharded, whole_state
from lit_modules.utils import adapters
from lit_modules.utils.checkpoints import only_tensors
from lit_modules.utils.errors import first_line
from lit_modules.utils.hashing import hash_tensors, stable_hash
from lit_modules.utils.model_kwargs import file_options, loading_options

_REMEDY = "Give the name or the folder of a causal language model, as `save_pretrained` writes it."


def check_folder(name: str) -> None:
    """Raise a ``ValueError`` if a name can only be that of a folder, and there is none."""
    if not Path(name).is_dir() and (name.startswith((".", "/", "~")) or name.count("/") > 1):
        raise ValueError(f"There is no model folder {name!r}. {_REMEDY}")


def load_causal_lm(
    name: str, dtype: torch.dtype = torch.float32, options: Mapping[str, Any] | None = None
) -> PreTrainedModel:
    """Load the weights of a causal language model from a folder or a hub; adapters are merged.

    A model that also takes images or sound is loaded whole. Weights come to the CPU unless the options say otherwise.

    Args:
        name: Folder or name.
        dtype: Type of the weights that are not quantised.
        options: Loading options, as :func:`~lit_modules.utils.model_kwargs.check_model_kwargs` returns them.

    Raises:
        ValueError: If ``name`` cannot be read, is no causal language model, or lacks weights.
    """
    adapted = load_adapter(name, None, dtype, options)
    if adapted is None:
        return _load_whole(name, dtype, options or {})
    return cast("PreTrainedModel", adapters.merged(adapted).requires_grad_(True))


def load_adapter(
    name: str,
    given: PeftConfig | None,
    dtype: torch.dtype = torch.float32,
    options: Mapping[str, Any] | None = None,
) -> Any:
    """Load a saved adapter on its base model, to train on; ``None`` if ``name`` holds a whole model.

    Args:
        name: Folder that ``save_pretrained`` wrote, or a name on a hub.
        given: Configuration that is asked for; another one than that of the saved adapter is refused.
        dtype: Type of the base model's weights.
        options: Loading options of the base model, but for ``revision``, which is that of the adapter.

    Raises:
        ValueError: If the adapter or its base does not load, or is another one than asked for.
    """
    check_folder(name)
    options = dict(options or {})
    revision = options.pop("revision", None)
    try:
        saved = adapters.saved_config(name, revision)
    except (OSError, ValueError, KeyError) as error:
        raise _unreadable(name, error) from error
    if saved is None:
        return None
    base = adapters.base_of(saved, name)
    try:
        whole = _load_whole(base, dtype, {**options, "revision": saved.revision})
    except ValueError as error:
        raise ValueError(f"The base of the adapter in {name!r}: {error}") from error
    given = None if given is None else within_language(given, whole)
    return adapters.continue_adapter(whole, name, given, revision)


def load_tokenizer(name: str, options: Mapping[str, Any]) -> PreTrainedTokenizerBase:
    """Load the tokenizer beside a model's weights, of the revision that the model's loading options name."""
    auto: Any = AutoTokenizer
    return cast("PreTrainedTokenizerBase", auto.from_pretrained(name, **file_options(options)))


def copy_processor(name: str, options: Mapping[str, Any], folder: str) -> None:
    """Write the processor beside a model's weights to a folder, if there is one, for images that go with text."""
    auto: Any = AutoProcessor
    try:
        processor = auto.from_pretrained(name, **file_options(options))
    except (OSError, ValueError, KeyError):  # a model without one is saved without one
        return
    processor.save_pretrained(folder)


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


def check_tokenizer(tokenizer: PreTrainedTokenizerBase, model: str, options: Mapping[str, Any]) -> None:
    """Check that a tokenizer numbers its tokens as the one beside a model's weights does.

    Tokens that only one of them has may be: special tokens get added and renamed. Nothing is checked if no tokenizer
    lies beside the weights.

    Args:
        tokenizer: Tokenizer.
        model: Name or folder of the model.
        options: Loading options of the model.

    Raises:
        ValueError: If a token has two numbers; the message names one.
    """
    own = _vocabulary(model, tuple(sorted(file_options(options).items())))
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


def _load_whole(name: str, dtype: torch.dtype, options: Mapping[str, Any]) -> PreTrainedModel:
    check_folder(name)
    try:
        with only_tensors(name):
            config = AutoConfig.from_pretrained(name, **file_options(options, config=True))
            loaded: Any = model_family(config).from_pretrained(
                name, dtype=dtype, output_loading_info=True, **loading_options(options)
            )
    except (OSError, ValueError, KeyError, ImportError, TypeError) as error:
        raise _unreadable(name, error, options) from error
    model, report = loaded
    architectures = model.config.architectures or []
    if architectures and not any(map(is_language_model, architectures)):
        raise ValueError(f"{name!r} holds {architectures[0]}, which is no causal language model. {_REMEDY}")
    missing = sorted(report["missing_keys"])
    if missing:
        raise ValueError(
            f"{name!r} lacks {len(missing)} weights of {type(model).__name__}, such as {missing[0]}. {_REMEDY}"
        )
    return cast("PreTrainedModel", model)


def _unreadable(name: str, error: Exception, options: Mapping[str, Any] | None = None) -> ValueError:
    given = f" It was asked for with model_kwargs={dict(options)}." if options else ""
    return ValueError(f"{name!r} does not load as a causal language model: {first_line(error)} {_REMEDY}{given}")


@lru_cache(maxsize=4)
def _vocabulary(model: str, options: tuple[tuple[str, Any], ...]) -> dict[str, int]:
    """Return the numbers of the tokens of the tokenizer beside a model's weights; none if there is no tokenizer."""
    try:
        own = load_tokenizer(model, dict(options))
    except (OSError, ValueError, KeyError):
        return {}
    return own.get_vocab()


def _stored(tensor: Any) -> list[Tensor]:
    """Return the tensors that a tensor is made of: itself, or those of a quantised one, such as values and scales."""
    if not hasattr(tensor, "__tensor_flatten__"):  # torchao's
        return [tensor]
    names, _ = tensor.__tensor_flatten__()
    return [part for name in names for part in _stored(getattr(tensor, name))]
