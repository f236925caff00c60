"""State that all families keep in checkpoints: what trains, and the last good weights before a loss breaks."""

import math
from pathlib import Path
from typing import Any

from lightning.pytorch import LightningModule
from torch import nn


def without_frozen(state: dict[str, Any], model: nn.Module, prefix: str = "") -> dict[str, Any]:
    """Return a state without the parameters that do not train; ``prefix`` stands before the model's names in it.

    Scales of quantised weights, which are neither parameters nor buffers, are left out with these.

    Example:
        >>> layer = nn.Linear(1, 1)
        >>> frozen = layer.weight.requires_grad_(False)
        >>> list(without_frozen(layer.state_dict(), layer))
        ['bias']
    """
    named = dict(model.named_parameters(remove_duplicate=False))
    frozen = {prefix + name for name, parameter in named.items() if not parameter.requires_grad}
    own = {prefix + name for name in (*named, *dict(model.named_buffers()))}
    layers = {name.rpartition(".")[0] for name in frozen} - {name.rpartition(".")[0] for name in own - frozen}

    def of_frozen_layer(name: str) -> bool:
        return name not in own and any(name[:end] in layers for end, sign in enumerate(name) if sign == ".")

    return {name: value for name, value in state.items() if name not in frozen and not of_frozen_layer(name)}


def check_finite(module: LightningModule, losses: dict[str, float], rows: dict[str, list[str]]) -> None:
    """Stop with the rows' names, and save the weights, when a loss is not finite.

    No update with these rows has been made yet, so the saved state is the one before the step.

    Args:
        module: The module in training.
        losses: Losses by name, equal on all ranks.
        rows: Names of the rows behind each loss.

    Raises:
        FloatingPointError: If a loss is not finite.
    """
    broken = [name for name, loss in losses.items() if not math.isfinite(loss)]
    if not broken:
        return
    name = broken[0]
    trainer, step = module.trainer, module.global_step
    module.zero_grad()
    if all(bool(parameter.isfinite().all()) for parameter in module.parameters() if parameter.requires_grad):
        path = Path(trainer.log_dir or trainer.default_root_dir) / f"last_good_step_{step}.ckpt"
        trainer.save_checkpoint(path)
        where = f"the state before this step is in {path}"
    else:
        where = "the weights themselves are no longer finite, so go on from an earlier checkpoint"
    raise FloatingPointError(
        f"The {name} loss is {losses[name]} at step {step} on the rows {', '.join(rows[name]) or '(unnamed)'}; "
        f"{where}. Look at these rows, or lower the learning rate."
    )
