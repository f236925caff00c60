"""Language part of a model that also takes images or sound, which alone is trained here."""

import copy
import re
from collections.abc import Iterator
from typing import Any

from peft import PeftConfig, PeftModel
from torch import nn
from transformers import AutoModelForCausalLM, AutoModelForImageTextToText, PreTrainedConfig
from transformers.models.auto.modeling_auto import (
    MODEL_FOR_CAUSAL_LM_MAPPING_NAMES,
    MODEL_FOR_IMAGE_TEXT_TO_TEXT_MAPPING,
    MODEL_FOR_IMAGE_TEXT_TO_TEXT_MAPPING_NAMES,
)


def model_family(config: PreTrainedConfig) -> Any:
    """Return the class of transformers that loads a model as it was saved, with its towers if it has some."""
    composite = text_config(config) is not config and not config.is_encoder_decoder
    whole = composite and type(config) in MODEL_FOR_IMAGE_TEXT_TO_TEXT_MAPPING
    return AutoModelForImageTextToText if whole else AutoModelForCausalLM


def is_language_model(architecture: str) -> bool:
    """Return whether a class of transformers predicts the next token.

    Example:
        >>> is_language_model("LlamaForCausalLM"), is_language_model("BertForMaskedLM")
        (True, False)
    """
    families = (MODEL_FOR_CAUSAL_LM_MAPPING_NAMES, MODEL_FOR_IMAGE_TEXT_TO_TEXT_MAPPING_NAMES)
    return any(architecture in names.values() for names in families)


def text_config(config: Any) -> Any:
    """Return the configuration of the language model among other parts; any other is returned as it is."""
    return config.get_text_config() if isinstance(config, PreTrainedConfig) else config


def language_modules(model: Any) -> list[nn.Module]:
    """Return decoder, embeddings and head of a model that has other parts beside them; else the model alone."""
    base = bare(model)
    config = getattr(base, "config", None)  # any network may be trained
    if text_config(config) is config:
        return [base]
    modules = [base.get_decoder(), base.get_input_embeddings(), base.get_output_embeddings()]
    return [module for module in modules if module is not None]


def train_language_part(model: Any) -> None:
    """Freeze what is not of the language model, such as towers and projectors."""
    kept = {id(parameter) for module in language_modules(model) for parameter in module.parameters()}
    for parameter in bare(model).parameters():
        if id(parameter) not in kept:
            parameter.requires_grad_(False)


def within_language(config: PeftConfig, model: Any) -> PeftConfig:
    """Return the configuration of an adapter that leaves out what is not of the language model.

    Towers have layers of the same names. What the configuration excludes itself stays out.
    """
    others = list(_beside(bare(model), language_modules(model)))
    if not others or not hasattr(config, "exclude_modules"):  # few kinds of adapters have it not
        return config
    own: Any = config.exclude_modules
    pattern = rf"({'|'.join(map(re.escape, others))})(\..*)?"
    if own and own != pattern:
        named = own if isinstance(own, str) else rf"(.*\.)?({'|'.join(map(re.escape, sorted(own)))})"
        pattern = f"{pattern}|{named}"
    restricted: Any = copy.deepcopy(config)
    restricted.exclude_modules = pattern
    return restricted  # type: ignore[no-any-return]


def bare(model: Any) -> Any:
    """Return a model without the wrapper of peft."""
    return model.get_base_model() if isinstance(model, PeftModel) else model


def _beside(module: nn.Module, kept: list[nn.Module], prefix: str = "") -> Iterator[str]:
    """Yield the names of the outermost modules in one that hold none of those to keep."""
    if any(module is each for each in kept):
        return
    for name, child in module.named_children():
        if any(part is each for part in child.modules() for each in kept):
            yield from _beside(child, kept, f"{prefix}{name}.")
        else:
            yield prefix + name
