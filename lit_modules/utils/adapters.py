"""Adapters of peft: loading, continuing, comparing, checkpointing and merging.

A saved adapter is trained further. A configuration given beside it must describe the same adapter; another one is
refused, as it would start anew from the base and lose what the saved one learned. To start a new adapter from a tuned
model, merge the old one and give the merged folder.
"""

import copy
import json
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from peft import LoraConfig, PeftConfig, PeftModel, get_peft_model
from peft.tuners.tuners_utils import BaseTunerLayer
from torch import Tensor, nn
from transformers.utils.peft_utils import find_adapter_config_file

KEY = "lit_modules_adapter"
"""Key of a checkpoint that holds the configuration of its adapter."""

# what may differ between two configurations of one adapter: notes, what only starts or trains it, and the choice of
# layers, which is compared by the names of the weights
_FREE = {
    "auto_mapping",
    "base_model_name_or_path",
    "inference_mode",
    "peft_version",
    "revision",
    "runtime_config",
    "task_type",
    "init_lora_weights",
    "init_weights",
    "lora_dropout",
    "exclude_modules",
    "layers_pattern",
    "layers_to_transform",
    "target_modules",
}
# starts that load again from the saved adapter and the base model: the last two change the base, always alike
_STARTS = (True, False, "gaussian", "orthogonal", "mica", "pissa", "olora")
_DATA_STARTS = ("eva",)  # asks for data, but only to begin with
_GO_ON = "leave peft_config out to take the saved one"
_ANEW = (
    "To start a new adapter from the tuned model, merge it, save_pretrained(folder, merge=True), and give that folder."
)


def saved_config(name: str, revision: str | None = None) -> PeftConfig | None:
    """Return the configuration of the adapter in a folder or under a name on a hub; ``None`` for a whole model.

    Loading the model reports a name that cannot be found.
    """
    try:
        if find_adapter_config_file(name, revision=revision) is None:
            return None
    except OSError:
        return None
    config: PeftConfig = PeftConfig.from_pretrained(name, revision=revision)
    return config


def base_of(config: PeftConfig, name: str) -> str:
    """Return the name or folder of the model that a saved adapter belongs to.

    Raises:
        ValueError: If the configuration of the adapter ``name`` names no model, or one that is an adapter itself.
    """
    base = config.base_model_name_or_path
    if not base:
        raise ValueError(
            f"The adapter in {name!r} does not say which model it belongs to (base_model_name_or_path in its "
            "adapter_config.json is empty); name the model there, or save the run merged."
        )
    if saved_config(base, config.revision) is not None:
        raise ValueError(
            f"The adapter in {name!r} belongs to {base!r}, which holds an adapter and no whole model; name the whole "
            "model in base_model_name_or_path of its adapter_config.json."
        )
    return base


def start_adapter(model: Any, config: PeftConfig, revision: str | None = None) -> PeftModel:
    """Put a new adapter on a whole model of transformers, in place; the configuration stays as it is.

    ``revision`` is that of the model on the hub, which a saved adapter is to name.

    Raises:
        ValueError: If the model carries an adapter already, or the adapter's start is nowhere saved.
    """
    if isinstance(model, PeftModel) or _injected(model):
        raise ValueError(
            f"peft_config asks for a new adapter, and the {type(model).__name__} that is given carries one already; "
            "leave peft_config out to go on with it, or give the merged model, `model.merge_and_unload()`."
        )
    _check_start(config)
    adapted: PeftModel = get_peft_model(model, copy.deepcopy(config), revision=revision)
    return adapted


def continue_adapter(model: Any, name: str, given: PeftConfig | None = None, revision: str | None = None) -> PeftModel:
    """Put a saved adapter on its whole base model, in place, to train on.

    Args:
        model: The model.
        name: Folder of the adapter, or its name on a hub.
        given: Configuration that is asked for; it must be that of the saved adapter, but for how it is trained.
        revision: Revision of the adapter on the hub.

    Raises:
        ValueError: If it is another one, or the saved weights do not fit the model.
    """
    saved: Any = PeftConfig.from_pretrained(name, revision=revision)
    _check_start(saved, *_DATA_STARTS)
    holder = f"The folder {name!r}"
    config: Any = saved if given is None else copy.deepcopy(given)
    if given is not None:
        check_same(given, saved, holder, f"{_GO_ON}. {_ANEW}")
        config.revision = saved.revision
        if hasattr(saved, "init_lora_weights"):  # a start that changed the base changes it again
            config.init_lora_weights = saved.init_lora_weights
    config.inference_mode = False
    adapted: Any = get_peft_model(model, config)
    result = adapted.load_adapter(name, "default", is_trainable=True, revision=revision)
    lost = sorted([*result.missing_keys, *result.unexpected_keys])
    if lost:
        other = "its base model has" if given is None else "peft_config names, leave peft_config out"
        raise ValueError(
            f"{holder} holds an adapter of other layers than {other}: {lost[0]!r} is on one side alone. {_ANEW}"
        )
    return adapted  # type: ignore[no-any-return]


def take_over(model: Any) -> Any:
    """Return a model that is given as an object, whose adapter, if it carries one, trains.

    Raises:
        ValueError: If it carries several adapters, or one that cannot be saved and merged.
    """
    if not isinstance(model, PeftModel):
        if _injected(model):
            raise ValueError(
                f"The {type(model).__name__} that is given carries an adapter which transformers has put into it; give "
                "the folder of the adapter, or `peft.PeftModel.from_pretrained(base, folder)`."
            )
        return model
    if list(model.peft_config) != ["default"]:
        raise ValueError(f"A model must carry one adapter, 'default', got {', '.join(map(repr, model.peft_config))}.")
    if not any(parameter.requires_grad for parameter in model.parameters()):
        model.set_adapter("default")
        model.peft_config["default"].inference_mode = False
    return model


def own_config(model: Any) -> PeftConfig | None:
    """Return the configuration of the adapter that a model carries; ``None`` if it carries none."""
    configs: Mapping[str, PeftConfig] = getattr(model, "peft_config", None) or {}
    return configs.get("default")


def describe(config: PeftConfig) -> dict[str, Any]:
    """Return a configuration as plain values, which a checkpoint loads safely; see :func:`rebuild`."""
    plain: dict[str, Any] = json.loads(json.dumps(config.to_dict(), default=sorted))
    return plain


def essence(config: PeftConfig) -> dict[str, Any]:
    """Return the settings by which adapters of the same weights still differ, as plain values."""
    values = {name: value for name, value in describe(config).items() if name not in _FREE}
    return {name: sorted(value, key=str) if isinstance(value, list) else value for name, value in values.items()}


def rebuild(described: Mapping[str, Any]) -> PeftConfig:
    """Return the configuration that :func:`describe` described."""
    kinds: Any = PeftConfig
    config: PeftConfig = kinds.from_peft_type(**described)
    return config


def check_same(own: PeftConfig, saved: PeftConfig, holder: str, remedy: str) -> None:
    """Raise a ``ValueError`` unless two configurations describe one adapter, but for its layers and how it is trained.

    The message names the first difference; it begins with ``holder``, of the saved adapter, and ends with ``remedy``.
    """
    requested, present = essence(own), essence(saved)
    for name in ["peft_type", *sorted({*requested, *present})]:
        if present.get(name) != requested.get(name):
            raise ValueError(
                f"{holder} holds an adapter with {name}={present.get(name)!r}, and {name}={requested.get(name)!r} is "
                f"asked for; {remedy}"
            )


def adapter_to_restore(
    checkpoint: Mapping[str, Any], own: PeftConfig | None, remedy: str = _GO_ON
) -> PeftConfig | None:
    """Return the configuration of the adapter that a module lacks and a checkpoint holds; ``None`` if it lacks none.

    Raises:
        ValueError: If the two have different adapters, or only the module has one; it ends with ``remedy``.
    """
    saved = None if checkpoint.get(KEY) is None else rebuild(checkpoint[KEY])
    if saved is not None and own is not None:
        check_same(own, saved, "The checkpoint", f"{remedy}.")
    if saved is None and own is not None:
        raise ValueError(
            "The checkpoint holds the weights of a whole model, and this module carries an adapter, which it would "
            f"leave as it is; {remedy}."
        )
    return saved if own is None else None


def check_restored(state: Mapping[str, Any], model: nn.Module, prefix: str) -> None:
    """Raise a ``ValueError`` unless a state sets every weight that trains, and holds none that the model lacks.

    Lightning passes over both in silence where ``strict_loading`` is off, as it is where frozen weights are left out.
    ``prefix`` stands before the model's names in the state.
    """
    saved = {name for name in state if name.startswith(prefix)}
    trained = {prefix + name for name, parameter in model.named_parameters() if parameter.requires_grad}
    unset = sorted(trained - saved)
    unused = sorted(saved - {prefix + name for name in model.state_dict()})
    if unset or unused:
        fault = f"lacks {unset[0]!r}, which trains here" if unset else f"holds {unused[0]!r}, which is not here"
        raise ValueError(
            f"The checkpoint and this module train different weights: the checkpoint {fault}. Give the arguments that "
            "say what trains as they were."
        )


def check_merge(model: Any) -> None:
    """Raise a ``ValueError`` if the adapter cannot be merged, before training makes it worth having."""
    config = own_config(model)
    if config is None:
        return
    base: Any = model.get_base_model()
    reason = None
    if not hasattr(model.base_model, "merge_and_unload"):
        reason = f"an adapter of {type(config).__name__} has no place in the model's weights"
    elif getattr(base, "is_quantized", False):
        reason = "the model's weights are quantised"
    elif getattr(config, "layer_replication", None):
        reason = "layer_replication makes layers that share their weights"
    elif getattr(config, "ensure_weight_tying", False) and _tied(base):
        reason = "ensure_weight_tying ties the adapters of two layers"
    elif getattr(config, "lora_bias", False) and any(
        getattr(layer.get_base_layer(), "bias", None) is None
        for layer in base.modules()
        if isinstance(layer, BaseTunerLayer)
    ):
        reason = "lora_bias needs a bias in the layer that it is merged into"
    if reason is not None:
        raise ValueError(f"merge=True cannot merge this adapter, as {reason}; save the adapter alone (merge=False).")


def merged(model: Any) -> Any:
    """Return a copy of a model with its adapter merged into its weights; a ``ValueError`` says if it cannot be.

    An adapter on one of two tied layers parts them: the copy holds both weights, and says so in its configuration.
    """
    check_merge(model)
    whole = copy.deepcopy(model)
    base = whole.get_base_model()
    ends = [base.get_input_embeddings(), base.get_output_embeddings()]
    adapted = [isinstance(layer, BaseTunerLayer) for layer in ends]
    if _tied(base) and any(adapted):
        out = ends[1].get_base_layer() if adapted[1] else ends[1]
        out.weight = nn.Parameter(out.weight.detach().clone())
        for config in (base.config, base.config.get_text_config()):
            config.tie_word_embeddings = False
    return whole.merge_and_unload()


def check_folder(model: Any, folder: str, merge: bool) -> None:
    """Raise a ``ValueError`` unless what is written to a folder is what would be loaded from it.

    A whole model, or with ``merge`` a merged one, must not go where an adapter lies, nor an adapter where its own base
    lies.
    """
    config = own_config(model)
    if config is None or merge:
        if (Path(folder) / "adapter_config.json").is_file():
            raise ValueError(
                f"The folder {folder!r} holds an adapter, which would be loaded in place of the model that is to be "
                "written there; give another folder, or delete it."
            )
        return
    base = config.base_model_name_or_path
    if base and Path(base).is_dir() and Path(base).resolve() == Path(folder).resolve():
        raise ValueError(
            f"The folder {folder!r} holds the model that the adapter belongs to; give another folder to save it in."
        )


def leaves_base(config: PeftConfig) -> bool:
    """Return whether an adapter that is switched off gives the model as it was before it was put on."""
    start = getattr(config, "init_lora_weights", True)
    return start not in ("pissa", "olora") and getattr(config, "bias", "none") == "none"


@contextmanager
def adapters_off(*models: nn.Module) -> Iterator[None]:
    """Switch the adapters of models off, whatever library put them there, so that the models are those before."""
    layers = [layer for model in models for layer in model.modules() if isinstance(layer, BaseTunerLayer)]
    for layer in layers:
        layer.enable_adapters(False)
    try:
        yield
    finally:
        for layer in layers:
            layer.enable_adapters(True)


@contextmanager
def weights_swapped(parameters: Sequence[Tensor], values: Sequence[Tensor]) -> Iterator[None]:
    """Give parameters other values for a while, in which no backward pass is to go through them."""
    own = [parameter.detach().clone() for parameter in parameters]
    _copy(values, parameters)
    try:
        yield
    finally:
        _copy(own, parameters)


@torch.no_grad()
def _copy(values: Sequence[Tensor], parameters: Sequence[Tensor]) -> None:
    for parameter, value in zip(parameters, values, strict=True):
        parameter.copy_(value)


def without_dropout(config: LoraConfig) -> LoraConfig:
    """Return a configuration for use, not for training: libraries that load it leave its dropout on."""
    quiet = copy.deepcopy(config)
    quiet.lora_dropout = 0.0
    return quiet


def _check_start(config: PeftConfig, *more: str) -> None:
    start = getattr(config, "init_lora_weights", True)
    if start not in (*_STARTS, *more):
        raise ValueError(
            f"init_lora_weights={start!r} changes the model's own weights so that the saved adapter does not bring "
            f"them back, or asks for data; it must be {', '.join(map(repr, _STARTS))}."
        )


def _injected(model: Any) -> bool:
    return any(isinstance(module, BaseTunerLayer) for module in model.modules())


def _tied(base: Any) -> bool:
    ends = [base.get_input_embeddings(), base.get_output_embeddings()]
    weights = [getattr(layer, "weight", None) for layer in ends]
    return isinstance(weights[0], Tensor) and weights[0] is weights[1]
