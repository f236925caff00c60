"""Settings of an update: those of the released code for LLaVA-1.6 34B, and small ones for one GPU."""

from dataclasses import dataclass
from typing import Literal

from lit_modules.utils.suggestions import did_you_mean

PresetName = Literal["coda_34b", "small"]


@dataclass(frozen=True)
class UpdatePreset:
    """Settings of an update.

    Args:
        rank: Rank of the adapters.
        alpha: Scale of the adapters, which is divided by the rank.
        dropout: Dropout of the adapters' inputs, in [0, 1).
        learning_rate: Learning rate of the adapters.
        projector_learning_rate: Learning rate of the projector; 0 freezes it.
        warmup_ratio: Share of the steps in which the learning rate rises, before it falls by a cosine.
        weight_decay: Weight decay of the optimizer.
        dtype: Type of frozen weights, and of computing.
        gradient_checkpointing: Whether activations are computed anew in the backward pass.
        epochs: For the trainer's ``max_epochs``.
        batch_size: For the datamodule's ``batch_size``, on each device.
        accumulate_grad_batches: For the trainer.
    """

    rank: int
    alpha: int
    dropout: float
    learning_rate: float
    projector_learning_rate: float
    warmup_ratio: float
    weight_decay: float
    dtype: Literal["float32", "bfloat16"]
    gradient_checkpointing: bool
    epochs: int
    batch_size: int
    accumulate_grad_batches: int


UPDATE_PRESETS = {
    "coda_34b": UpdatePreset(128, 256, 0.05, 2e-4, 2e-5, 0.03, 0.0, "bfloat16", True, 30, 5, 1),
    "small": UpdatePreset(16, 32, 0.05, 1e-4, 0.0, 0.03, 0.0, "bfloat16", True, 10, 2, 8),
}


def update_preset(name: str) -> UpdatePreset:
    """Return the settings of a name.

    Args:
        name: ``coda_34b`` as the released code, on three devices in its default; ``small`` for a model of 7B on one
            GPU of 24 to 48 GB, with fewer steps and smaller adapters against overfitting.

    Raises:
        ValueError: If there is no such preset.

    Example:
        >>> update_preset("coda_34b").rank
        128
    """
    if name not in UPDATE_PRESETS:
        raise ValueError(f"There is no preset {name!r}{did_you_mean(name, UPDATE_PRESETS)}")
    return UPDATE_PRESETS[name]
