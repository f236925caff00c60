"""Loading options of a named model, which a user hands on to ``from_pretrained`` of transformers."""

import json
from collections.abc import Mapping
from typing import Any

from transformers.quantizers.auto import AutoQuantizationConfig
from transformers.utils.quantization_config import QuantizationConfigMixin

_REFUSED = {
    **dict.fromkeys(("dtype", "torch_dtype"), "dtype is an argument of its own, beside model_kwargs"),
    **dict.fromkeys(
        ("token", "use_auth_token"), "checkpoints and loggers would keep it; set the environment variable HF_TOKEN"
    ),
    "weights_only": "weights that are more than tensors could run code when they are read",
    "output_loading_info": "it is set here",
}
_PLACES = ("auto", "balanced", "balanced_low_0", "sequential", "disk", "meta")
_OF_ALL_FILES = ("cache_dir", "local_files_only", "revision", "trust_remote_code")
_OF_THE_CONFIG = ("code_revision", "gguf_file", "subfolder")


def check_model_kwargs(options: Mapping[str, Any] | None, model: object) -> dict[str, Any]:
    """Check loading options, and return them as plain values, which a checkpoint keeps.

    Args:
        options: Arguments of ``from_pretrained``, such as ``{"attn_implementation": "sdpa", "revision": "main"}``. A
            ``quantization_config`` may be the configuration or its dictionary, and becomes the latter.
        model: The model that is to be loaded, or was given.

    Raises:
        ValueError: If an option is not the user's to set or no plain value, ``device_map`` names several devices, or
            the model is not named, so that nothing is loaded.

    Example:
        >>> check_model_kwargs({"dtype": "bfloat16"}, "gpt2")
        Traceback (most recent call last):
        ...
        ValueError: model_kwargs takes no 'dtype': dtype is an argument of its own, beside model_kwargs.
    """
    plain = {name: _plain(value) for name, value in (options or {}).items()}
    if plain and not isinstance(model, str):
        raise ValueError(
            f"model_kwargs are for loading a model by its name or folder, and a {type(model).__name__} is given, got "
            f"{', '.join(plain)}; load it with them, and leave them out here; model_kwargs=None drops those of a "
            "checkpoint."
        )
    for name, value in plain.items():
        if name in _REFUSED:
            raise ValueError(f"model_kwargs takes no {name!r}: {_REFUSED[name]}.")
        try:
            json.dumps(value)
        except TypeError as error:
            raise ValueError(
                "model_kwargs takes texts, numbers, lists and mappings, which a checkpoint keeps, got "
                f"{name}={value!r}."
            ) from error
    quantization = plain.get("quantization_config")
    if quantization is not None and not isinstance(quantization, Mapping):
        raise ValueError(
            "quantization_config must be a mapping, such as {'load_in_4bit': True}, or a configuration of "
            f"transformers, got {quantization!r}."
        )
    places = plain.get("device_map")
    named = set(places.values()) if isinstance(places, Mapping) else {places}
    if len(named) > 1 or named & {*_PLACES}:
        raise ValueError(
            f"device_map must name one device, such as 'cuda:0', got {places!r}: the trainer moves the whole model to "
            "its own device. Leave it out; quantised weights then go to that device, and weights that are too large "
            "for one are sharded by the strategy of configs/_trainer/fsdp.yaml."
        )
    return plain


def loading_options(options: Mapping[str, Any]) -> dict[str, Any]:
    """Return checked options as ``from_pretrained`` takes them; it compares a quantization as an object alone."""
    ready = {name: value for name, value in options.items() if value is not None}
    if "quantization_config" in ready:
        ready["quantization_config"] = AutoQuantizationConfig.from_dict(dict(ready["quantization_config"]))
    return ready


def file_options(options: Mapping[str, Any], config: bool = False) -> dict[str, Any]:
    """Return the options that say where files are, for a tokenizer or processor, or a ``config``, beside the weights.

    Example:
        >>> file_options({"revision": "main", "attn_implementation": "sdpa"})
        {'revision': 'main'}
    """
    names = (*_OF_ALL_FILES, *(_OF_THE_CONFIG if config else ()))
    return {name: options[name] for name in names if options.get(name) is not None}


def _plain(value: Any) -> Any:
    if not isinstance(value, QuantizationConfigMixin):
        return value
    return json.loads(json.dumps(value.to_dict(), default=str))  # its enumerations too
