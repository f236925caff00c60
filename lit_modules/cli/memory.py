"""``lit-modules memory``: what unlearning a model needs of each GPU, before one is rented."""

import argparse

EXAMPLE = """MODEL is 1b, 7b or 70b for the shapes of a Llama, or the name or folder of a model with its configuration.
Activations are not counted: keep some GB for them, and turn gradient checkpointing on where memory is short.

examples:
  lit-modules memory 7b --rank 16 --dtype bfloat16
  lit-modules memory 70b --devices 8 16 32 64 --mixed --gradient-checkpointing
"""


def main(args: list[str]) -> int:
    """Print a table of the memory of a step.

    Args:
        args: Models and options; see ``lit-modules memory --help``.

    Returns:
        0.

    Raises:
        ValueError: If a model has no configuration, or an option is out of its range.
    """
    from lit_modules.unlearning.core.memory import STATES

    parser = argparse.ArgumentParser(
        prog="lit-modules memory",
        description="Count the memory of unlearning with two gradients or more on each of several devices.",
        epilog=EXAMPLE,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("models", nargs="+", metavar="MODEL", help="size, or name or folder of a model")
    parser.add_argument("--devices", type=int, nargs="+", default=[1], help="devices that share the weights")
    parser.add_argument("--rank", type=int, default=0, help="rank of LoRA adapters; 0 trains all weights")
    parser.add_argument("--targets", default="all-linear", help="layers with adapters, divided by commas")
    parser.add_argument("--dtype", choices=("float32", "bfloat16"), default="float32", help="type of the weights")
    parser.add_argument("--mixed", action="store_true", help="precision bf16-mixed")
    parser.add_argument("--gradient-checkpointing", action="store_true", help="activations are computed anew")
    parser.add_argument("--optimizer", choices=tuple(STATES), default="adamw", help="kind of the optimizer's state")
    parser.add_argument(
        "--buffer",
        choices=("device", "bfloat16", "cpu", "none"),
        default="device",
        help="where one gradient waits for the other; none for a method without two",
    )
    print(table(parser.parse_args(args)))
    return 0


def table(options: argparse.Namespace) -> str:
    """Return the table, a row for each model and number of devices, in GiB on each device."""
    import torch

    from lit_modules.unlearning.core.memory import meta_network, step_memory

    head = ["model", "weights", "trained", "devices", "weights, GiB", "gradient", "waiting gradient", "optimizer"]
    head += ["working", "sum"]
    lines = [f"| {' | '.join(row)} |" for row in (head, ["---"] * len(head))]
    targets = options.targets if "," not in options.targets else options.targets.split(",")
    for name in options.models:
        network = meta_network(name, getattr(torch, options.dtype), options.rank, targets)
        weights = list(network.parameters())
        trained = sum(weight.numel() for weight in weights if weight.requires_grad)
        for devices in options.devices:
            memory = step_memory(
                network, options.optimizer, options.buffer, devices, options.mixed, options.gradient_checkpointing
            )
            parts = (memory.weights, memory.gradients, memory.buffer, memory.optimizer, memory.working, memory.total)
            cells = [name, f"{sum(weight.numel() for weight in weights):.3g}", f"{trained:.3g}", str(devices)]
            lines.append(f"| {' | '.join([*cells, *(f'{part / 2**30:.1f}' for part in parts)])} |")
    return "\n".join(lines)
