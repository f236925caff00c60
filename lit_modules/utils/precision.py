"""The precisions of a trainer in which the modules here train."""

from collections.abc import Iterable

import torch
from lightning.pytorch import LightningModule
from torch import Tensor


def check_precision(module: LightningModule) -> None:
    """Refuse a trainer whose weights, or whose gradients, are of 16 bits: weights that train are float32.

    Half weights (``bf16-true``, ``16-true``) lose the small updates of training, and float16 overflows to infinity; the
    scaled gradients of ``16-mixed`` are not those that methods measure, attack with, or clip. ``bf16-mixed`` computes
    in bfloat16 and saves the same time.

    Args:
        module: Module that is attached to a trainer.

    Raises:
        ValueError: If the precision is one of these.
    """
    precision, name = str(module.trainer.precision), type(module).__name__
    if precision in ("bf16-true", "16-true", "transformer-engine", "transformer-engine-float16"):
        raise ValueError(
            f"{name} keeps its weights in float32, and precision {precision!r} has other weights, which lose small "
            "updates; use 'bf16-mixed' or '32-true'."
        )
    if precision == "16-mixed":
        raise ValueError(
            f"{name} takes unscaled gradients, which precision {precision!r} scales, and float16 overflows; use "
            "'bf16-mixed' or '32-true'."
        )


def check_trained(parameters: Iterable[Tensor], name: str) -> None:
    """Raise a ``ValueError`` if weights of float16 train, in which gradients vanish and weights turn into NaN."""
    if any(parameter.dtype == torch.float16 for parameter in parameters):
        raise ValueError(f"{name} does not train weights of float16; give the model in float32, `model.float()`.")
