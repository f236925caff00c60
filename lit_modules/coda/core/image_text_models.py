"""Loading, adapting, running and writing image-text models of transformers for an update."""

import copy
import inspect
from collections.abc import Mapping
from contextlib import AbstractContextManager
from pathlib import Path
from typing import Any

import torch
from peft import LoraConfig, PeftModel
from torch import Tensor
from transformers import AutoModelForImageTextToText, AutoProcessor

from lit_modules.coda.core.conversations import IGNORED
from lit_modules.utils import adapters
from lit_modules.utils.thoughts import decode_answer
from lit_modules.utils.weights import only_tensors

LANGUAGE_MODEL = r".*language_model.*\.(q|k|v|o|gate|up|down)_proj"
"""Linear layers of the language model; names of leaves alone would find those of the vision tower too."""
_VISION = ("vision_tower", "vision_model", "visual")
_REMEDY = "Give the name or folder of an image-text model, as `save_pretrained` writes it."


def load_model(name: str, dtype: torch.dtype, revision: str | None = None, load_in_4bit: bool = False) -> Any:
    """Load an image-text model, or a base model with the adapters that a folder holds.

    Args:
        name: Name on a hub, or folder of a model or of adapters.
        dtype: Type of the weights.
        revision: Revision on the hub.
        load_in_4bit: Whether to load the weights in 4 bits (NF4), for adapters on top; needs bitsandbytes and a GPU.

    Raises:
        ValueError: If it does not load, or lacks weights.
        ImportError: If 4 bits are asked for without bitsandbytes.
    """
    if not Path(name).is_dir() and (name.startswith((".", "/", "~")) or name.count("/") > 1):
        raise ValueError(f"There is no model folder {name!r}. {_REMEDY}")
    saved = adapters.saved_config(name, revision)
    if saved is not None:
        base = adapters.base_of(saved, name)
        return adapters.continue_adapter(load_model(base, dtype, saved.revision, load_in_4bit), name)
    more: dict[str, Any] = {}
    if load_in_4bit:
        more = {"quantization_config": _four_bits(dtype), "device_map": {"": torch.cuda.current_device()}}
    try:
        with only_tensors(name):
            loaded: Any = AutoModelForImageTextToText.from_pretrained(
                name, dtype=dtype, revision=revision, output_loading_info=True, **more
            )
    except (OSError, ValueError, KeyError) as error:
        reason = (str(error).strip().splitlines() or [type(error).__name__])[0]
        raise ValueError(f"{name!r} does not load as an image-text model: {reason} {_REMEDY}") from error
    model, report = loaded
    missing = sorted(report["missing_keys"])
    if missing:
        raise ValueError(f"{name!r} lacks {len(missing)} weights, such as {missing[0]!r}. {_REMEDY}")
    return model


def load_processor(name: str, revision: str | None = None) -> Any:
    """Load the processor of a model.

    Raises:
        ValueError: If there is none with a tokenizer.
    """
    try:
        auto: Any = AutoProcessor
        processor = auto.from_pretrained(name, revision=revision)
    except (OSError, ValueError, KeyError) as error:
        reason = (str(error).strip().splitlines() or [type(error).__name__])[0]
        raise ValueError(f"No processor loads from {name!r}: {reason} Give CoDA(processor=...).") from error
    if not hasattr(processor, "tokenizer"):
        raise ValueError(f"What loads from {name!r} is a {type(processor).__name__}, not a processor with a tokenizer.")
    return processor


def set_pinpoints(model: Any, processor: Any, pinpoints: list[list[int]]) -> None:
    """Set the sizes, height and width, into whose tiles a picture is cut; fewer need less memory.

    Raises:
        ValueError: If the model cuts no tiles, or a size is no multiple of a tile.
    """
    if not hasattr(model.config, "image_grid_pinpoints"):
        raise ValueError(f"{type(model).__name__} has no image_grid_pinpoints; leave them out.")
    side = model.config.vision_config.image_size
    if not pinpoints or any(len(size) != 2 or min(size) < 1 or any(n % side for n in size) for size in pinpoints):
        raise ValueError(f"image_grid_pinpoints must be pairs of multiples of {side} pixels, got {pinpoints}.")
    model.config.image_grid_pinpoints = pinpoints
    processor.image_processor.image_grid_pinpoints = pinpoints


def add_adapters(model: Any, config: LoraConfig, projector: str | None, revision: str | None = None) -> Any:
    """Return the model with adapters, which train, and all else frozen but perhaps the projector.

    Args:
        model: Model without adapters.
        config: Adapters.
        projector: Name of the projector if it trains.
        revision: Revision of the model on the hub.

    Raises:
        ValueError: If no layer has the names, or there is no projector of the name.
    """
    if projector is not None:
        _check_projector(model, projector)
        config = copy.copy(config)
        config.modules_to_save = [projector]
    try:
        return adapters.start_adapter(model, config, revision)
    except ValueError as error:
        raise ValueError(
            f"target_modules {config.target_modules!r} finds no layer of {type(model).__name__}."
        ) from error


def check_continued(model: PeftModel, asked: Mapping[str, Any], projector: str | None) -> None:
    """Check that the adapters that a model carries are those that are asked for.

    Args:
        model: Model with adapters.
        asked: Settings of :class:`peft.LoraConfig`; ``None`` takes what is there.
        projector: Name of the projector if it is to train.

    Raises:
        ValueError: If they are others, or the projector is not among what they train.
    """
    config: Any = adapters.own_config(model)
    for name, value in asked.items():
        there = getattr(config, name)
        if value is not None and value != there:
            raise ValueError(
                f"The model carries adapters with {name}={there!r}, got {value!r}; leave it out to go on with them, or "
                "merge them first, save_pretrained(folder, merge=True), and start new ones from that folder."
            )
    if projector is not None and projector not in (config.modules_to_save or ()):
        raise ValueError(
            f"The adapters that the model carries leave {projector!r} frozen; set projector_learning_rate to 0, or "
            "merge them first, save_pretrained(folder, merge=True), and start from that folder."
        )


def train_all(model: Any, projector: str, with_projector: bool) -> None:
    """Let all but the vision tower train.

    Args:
        model: Model.
        projector: Name of the projector.
        with_projector: Whether the projector trains.
    """
    _check_projector(model, projector)
    for name, parameter in model.named_parameters():
        part = part_of(name, projector)
        parameter.requires_grad_(part != "vision tower" and (with_projector or part != "projector"))


def part_of(name: str, projector: str) -> str:
    """Return which part a parameter belongs to: ``projector``, ``vision tower`` or ``language model``.

    Args:
        name: Name of the parameter.
        projector: Name of the projector.

    Example:
        >>> part_of("model.vision_tower.encoder.layers.0.mlp.fc1.weight", "multi_modal_projector")
        'vision tower'
    """
    if f".{projector}." in f".{name}":
        return "projector"
    return "vision tower" if any(word in name for word in _VISION) else "language model"


def autocast(model: Any, dtype: torch.dtype) -> AbstractContextManager[Any]:
    """Compute in a type of 16 bits, whatever the trainer's precision; float32 changes nothing."""
    if dtype == torch.float32:
        return torch.autocast(model.device.type, enabled=False)
    return torch.autocast(model.device.type, dtype=dtype)


def answer_log_probs(model: Any, batch: Mapping[str, Tensor]) -> tuple[Tensor, Tensor]:
    """Return the log-probability of each row's answer with its end token, and its number of tokens.

    Logits of the questions, most of which are image tokens, are not computed where the model can leave them out.

    Args:
        model: Model.
        batch: What it takes, padded on the right, with ``labels``, -100 where there is no answer.

    Returns:
        Sums and counts, float32 and int64 ``(batch,)``.
    """
    inputs: dict[str, Any] = {name: value for name, value in batch.items() if name != "labels"}
    labels = batch["labels"]
    first = int((labels != IGNORED).any(0).nonzero()[0])
    keep = labels.shape[1] - first + 1  # the token before an answer foretells its first
    base = model.get_base_model() if isinstance(model, PeftModel) else model
    if "logits_to_keep" in inspect.signature(base.forward).parameters:
        inputs["logits_to_keep"] = keep
    logits = model(**inputs, use_cache=False).logits[:, -keep:-1].float()
    targets = labels[:, first:]
    losses = torch.nn.functional.cross_entropy(logits.transpose(1, 2), targets, reduction="none", ignore_index=IGNORED)
    return -losses.sum(1), (targets != IGNORED).sum(1)


def generate(model: Any, tokenizer: Any, batch: Mapping[str, Tensor], max_new_tokens: int, temperature: float) -> Any:
    """Answer questions.

    Args:
        model: Model.
        tokenizer: Tokenizer.
        batch: What the model takes, padded on the left.
        max_new_tokens: Longest answer in tokens.
        temperature: 0 takes the likeliest token; above it tokens are drawn.

    Returns:
        List of answers without thoughts and special tokens.
    """
    ends = model.generation_config.eos_token_id
    ends = {tokenizer.eos_token_id, *(ends if isinstance(ends, list) else [ends])} - {None}
    # the model's own settings of sampling do not hold here
    drawing = {"temperature": temperature, "top_p": 1.0, "top_k": 0} if temperature else {}
    off = dict.fromkeys(("temperature", "top_p", "top_k"))
    tokens = model.generate(
        **batch,
        **(drawing or off),
        do_sample=temperature > 0,
        num_beams=1,
        max_new_tokens=max_new_tokens,
        eos_token_id=sorted(ends),
        pad_token_id=tokenizer.pad_token_id,
    )
    return [decode_answer(tokenizer, row) for row in tokens[:, batch["input_ids"].shape[1] :].tolist()]


def check_write(model: Any, folder: str, merge: bool) -> None:
    """Check that :func:`write_model` can write a model.

    Raises:
        ValueError: If it cannot.
    """
    if merge:
        adapters.check_merge(model)
    adapters.check_folder(model, folder, merge)


def write_model(model: Any, processor: Any, folder: str, merge: bool, dtype: torch.dtype) -> None:
    """Write a model and its processor as the Auto classes and peft load them.

    Args:
        model: Model, with adapters or without.
        processor: Processor.
        folder: Folder to write to.
        merge: Whether to merge adapters into the weights; the model itself stays as it is.
        dtype: Type of the weights that are written, but for adapters alone.

    Raises:
        ValueError: If the adapters cannot be merged, or the folder holds what would be loaded in place of the model.
    """
    check_write(model, folder, merge)
    adapted = isinstance(model, PeftModel)
    if adapted and not merge:
        model.save_pretrained(folder)
    else:
        written = adapters.merged(model) if adapted else model
        written.save_pretrained(
            folder, state_dict={name: value.to(dtype) for name, value in written.state_dict().items()}
        )
    processor.save_pretrained(folder)


def _check_projector(model: Any, projector: str) -> None:
    if not any(name.rpartition(".")[2] == projector for name, _ in model.named_modules()):
        raise ValueError(
            f"{type(model).__name__} has no module {projector!r}; set projector to the name of the one between vision "
            "tower and language model, such as connector."
        )


def _four_bits(dtype: torch.dtype) -> Any:
    from importlib.util import find_spec

    from transformers import BitsAndBytesConfig

    if find_spec("bitsandbytes") is None:
        raise ImportError('load_in_4bit needs bitsandbytes: pip install "lit-modules[quantization]".')
    if not torch.cuda.is_available():
        raise ValueError("load_in_4bit needs a CUDA device; leave it out.")
    settings: Any = BitsAndBytesConfig
    return settings(load_in_4bit=True, bnb_4bit_quant_type="nf4", bnb_4bit_compute_dtype=dtype)
