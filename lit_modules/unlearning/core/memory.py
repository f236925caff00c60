"""Memory of an unlearning step on each device, counted from the shapes of a network without building it."""

import math
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any, Literal

import torch
from peft import LoraConfig, get_peft_model
from torch import nn
from transformers import AutoConfig, LlamaConfig

from lit_modules.unlearning.core.language_part import model_family, train_language_part, within_language
from lit_modules.unlearning.core.pretrained import check_folder
from lit_modules.unlearning.core.sharding import blocks_of
from lit_modules.utils.errors import first_line

SHAPES: dict[str, dict[str, Any]] = {
    # the configurations of meta-llama/Llama-3.2-1B, Llama-2-7b-hf and Llama-2-70b-hf
    "1b": {
        "vocab_size": 128256,
        "hidden_size": 2048,
        "intermediate_size": 8192,
        "num_hidden_layers": 16,
        "num_attention_heads": 32,
        "num_key_value_heads": 8,
        "tie_word_embeddings": True,
    },
    "7b": {
        "vocab_size": 32000,
        "hidden_size": 4096,
        "intermediate_size": 11008,
        "num_hidden_layers": 32,
        "num_attention_heads": 32,
        "num_key_value_heads": 32,
    },
    "70b": {
        "vocab_size": 32000,
        "hidden_size": 8192,
        "intermediate_size": 28672,
        "num_hidden_layers": 80,
        "num_attention_heads": 64,
        "num_key_value_heads": 8,
    },
}
"""Llamas of three sizes by name."""
STATES = {"sgd": 0, "momentum": 1, "adamw": 2}
"""Numbers that an optimizer keeps for each weight that trains."""


@dataclass(frozen=True)
class Memory:
    """Bytes on each device, without activations.

    Args:
        weights: Weights, or the device's part of them.
        gradients: Gradient of the task that is under way.
        buffer: Gradient, or sum of gradients, that waits for it; two tasks or more.
        optimizer: State of the optimizer.
        working: Weights that are gathered or cast for a while, and gradients that are not sharded yet; an estimate.
    """

    weights: int
    gradients: int
    buffer: int
    optimizer: int
    working: int

    @property
    def total(self) -> int:
        """Sum of all."""
        return self.weights + self.gradients + self.buffer + self.optimizer + self.working


def step_memory(
    network: nn.Module,
    optimizer: Literal["sgd", "momentum", "adamw"] = "adamw",
    buffer: Literal["device", "bfloat16", "cpu", "none"] = "device",
    devices: int = 1,
    mixed: bool = False,
    gradient_checkpointing: bool = False,
) -> Memory:
    """Count what a step of a method with two gradients, such as NGDiff, needs beside its activations.

    Weights and gradients have the types and shapes of ``network``, whose tensors may lie on the meta device. On several
    devices every tensor is cut along its first dimension, as FSDP2 does; counted is the device with the largest parts.

    The working memory is an estimate. On several devices it is the weights outside of the blocks and of two blocks, the
    one that runs and the one that is fetched, and the gradients of one block and of what is outside. On one device with
    mixed precision it is the bfloat16 copies of float32 weights that autograd keeps until the backward pass: of all
    weights, or with gradient checkpointing of one block and what is outside.

    Args:
        network: Network whose parameters that require gradients train.
        optimizer: Kind of the optimizer's state: none, one or two numbers a weight; AdamW also counts steps.
        buffer: Where the other gradient waits, as ``lit_modules.NGDiff`` names it; ``"none"`` for a method without.
        devices: Devices that share the weights.
        mixed: Whether float32 weights are computed with in bfloat16 (precision ``bf16-mixed``).
        gradient_checkpointing: Whether activations are computed anew in the backward pass.

    Example:
        >>> step_memory(nn.Linear(4, 4, bias=False), "adamw")
        Memory(weights=64, gradients=64, buffer=64, optimizer=132, working=0)
    """
    if optimizer not in STATES:
        raise ValueError(f"optimizer must be {', '.join(map(repr, STATES))}, got {optimizer!r}.")
    if buffer not in ("device", "bfloat16", "cpu", "none"):
        raise ValueError(f"buffer must be 'device', 'bfloat16', 'cpu' or 'none', got {buffer!r}.")
    if devices < 1:
        raise ValueError(f"devices must be at least 1, got {devices}.")
    weights = list(network.parameters())
    trained = [weight for weight in weights if weight.requires_grad]
    gradients = _bytes(trained, devices)
    waiting = {"device": gradients, "bfloat16": _bytes(trained, devices, 2), "cpu": 0, "none": 0}[buffer]
    counters = 4 * len(trained) if optimizer == "adamw" else 0
    return Memory(
        weights=_bytes(weights, devices),
        gradients=gradients,
        buffer=waiting,
        optimizer=STATES[optimizer] * gradients + counters,
        working=_working(network, devices, mixed, gradient_checkpointing),
    )


def meta_network(
    name: str, dtype: torch.dtype = torch.float32, rank: int = 0, targets: str | list[str] = "all-linear"
) -> nn.Module:
    """Build a causal language model without memory, on the meta device.

    Args:
        name: ``"1b"``, ``"7b"`` or ``"70b"`` for the shapes of a Llama, or the name or folder of a model, of which only
            the configuration is read.
        dtype: Type of the weights.
        rank: Rank of LoRA adapters in float32, which alone train; 0 trains all weights.
        targets: Layers that get adapters, as ``peft.LoraConfig`` names them.

    Raises:
        ValueError: If the name or folder has no configuration, or ``rank`` is negative.

    Example:
        >>> sum(weight.numel() for weight in meta_network("7b").parameters())
        6738415616
    """
    if rank < 0:
        raise ValueError(f"rank must not be negative, got {rank}.")
    if name in SHAPES:
        config: Any = LlamaConfig(**SHAPES[name])
    else:
        check_folder(name)
        try:
            config = AutoConfig.from_pretrained(name)
        except (OSError, ValueError) as error:
            reason = first_line(error)
            raise ValueError(
                f"{name!r} must be one of {', '.join(SHAPES)}, or the name or folder of a model with its "
                f"configuration: {reason}"
            ) from error
    with torch.device("meta"):
        network: Any = model_family(config).from_config(config, dtype=dtype)
        if rank:
            lora = LoraConfig(r=rank, target_modules=targets, task_type="CAUSAL_LM")
            network = get_peft_model(network, within_language(lora, network))
    train_language_part(network)
    if rank:
        for weight in network.parameters():
            if weight.requires_grad:
                weight.data = weight.data.float()
    return network  # type: ignore[no-any-return]


def _bytes(tensors: Iterable[nn.Parameter], devices: int = 1, size: int | None = None) -> int:
    """Return the bytes of the largest part of each tensor, in its own type or with ``size`` bytes a number."""
    total = 0
    for tensor in tensors:
        rows = math.ceil(tensor.shape[0] / devices) if tensor.ndim else 1
        total += rows * math.prod(tensor.shape[1:]) * (size or tensor.element_size())
    return total


def _working(network: nn.Module, devices: int, mixed: bool, gradient_checkpointing: bool) -> int:
    def size(weights: Iterable[nn.Parameter], least: int = 0) -> int:
        chosen = [weight for weight in weights if weight.element_size() > least]
        return _bytes(chosen, 1, 2 if mixed else None)

    blocks = [list(block.parameters()) for block in blocks_of(network)]
    within = {id(weight) for block in blocks for weight in block}
    rest = [weight for weight in network.parameters() if id(weight) not in within]
    block = max(blocks, key=size, default=[])
    if devices > 1:
        gradients = size(weight for weight in [*rest, *block] if weight.requires_grad)
        return size(rest) + min(2, len(blocks)) * size(block) + gradients
    if not mixed:
        return 0
    # only float32 weights are cast
    return size([*rest, *block] if gradient_checkpointing else network.parameters(), least=2)
