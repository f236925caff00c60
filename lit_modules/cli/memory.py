"""``lit-modules memory``: memory of an unlearning step on each GPU, before one is rented."""

from dataclasses import dataclass, field
from typing import Literal

from lit_modules.cli.options import read_options
from lit_modules.studies.tables import markdown_table

DESCRIPTION = "Count the memory of unlearning with two gradients or more on each of several devices."
EXAMPLE = """\
A model is 1b, 7b or 70b for the shapes of a Llama, or the name or folder of a model with its configuration.
Activations are not counted: keep some GB for them, and turn gradient checkpointing on where memory is short.

examples:
  lit-modules memory 7b --rank 16 --dtype bfloat16
  lit-modules memory 70b --devices 8 16 32 64 --mixed --gradient_checkpointing
"""


@dataclass
class MemoryOptions:
    """Models, and how they are trained.

    Args:
        models: Sizes, or names or folders of models.
        devices: Devices that share the weights.
        rank: Rank of LoRA adapters; 0 trains all weights.
        targets: Layers with adapters, divided by commas.
        dtype: Type of the weights.
        mixed: Precision bf16-mixed.
        gradient_checkpointing: Activations are computed again in the backward pass.
        optimizer: Kind of the optimizer's state.
        buffer: Place where one gradient waits for the other; none for a method without two.
    """

    models: list[str]
    devices: list[int] = field(default_factory=lambda: [1])
    rank: int = 0
    targets: str = "all-linear"
    dtype: Literal["float32", "bfloat16"] = "float32"
    mixed: bool = False
    gradient_checkpointing: bool = False
    optimizer: Literal["adamw", "momentum", "sgd"] = "adamw"
    buffer: Literal["device", "bfloat16", "cpu", "none"] = "device"


def main(args: list[str]) -> int:
    """Print a table of the memory of a step."""
    options, _ = read_options(MemoryOptions, args, command="memory", description=DESCRIPTION, example=EXAMPLE)
    print(table(options))
    return 0


def table(options: MemoryOptions) -> str:
    """Return the table in Markdown, a row for each model and number of devices, in GiB on each device."""
    import torch

    from lit_modules.unlearning.core.memory import meta_network, step_memory

    head = ["model", "weights", "trained", "devices", "weights, GiB", "gradient", "waiting gradient", "optimizer"]
    rows = [[*head, "working", "sum"]]
    targets = options.targets if "," not in options.targets else options.targets.split(",")
    for name in options.models:
        network = meta_network(name, getattr(torch, options.dtype), rank=options.rank, targets=targets)
        weights = list(network.parameters())
        trained = sum(weight.numel() for weight in weights if weight.requires_grad)
        for devices in options.devices:
            memory = step_memory(
                network,
                optimizer=options.optimizer,
                buffer=options.buffer,
                devices=devices,
                mixed=options.mixed,
                gradient_checkpointing=options.gradient_checkpointing,
            )
            parts = (memory.weights, memory.gradients, memory.buffer, memory.optimizer, memory.working, memory.total)
            cells = [name, f"{sum(weight.numel() for weight in weights):.3g}", f"{trained:.3g}", str(devices)]
            rows.append([*cells, *(f"{part / 2**30:.1f}" for part in parts)])
    return markdown_table(rows).rstrip("\n")
