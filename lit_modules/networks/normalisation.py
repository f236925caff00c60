"""First layers of image classifiers: an attack sees pixels in [0, 1], so normalisation belongs to the model."""

from collections.abc import Sequence

import torch
from torch import Tensor, nn


def check_sizes(channels: int, num_classes: int) -> None:
    """Raise a ``ValueError`` if an image classifier has no channel or fewer than two classes."""
    if channels < 1 or num_classes < 2:
        raise ValueError(
            f"There must be at least 1 channel and 2 classes, got channels={channels} and num_classes={num_classes}."
        )


class Normalise(nn.Module):
    """Subtract a mean and divide by a deviation, for each channel.

    Args:
        mean: Mean of each channel.
        std: Standard deviation of each channel, positive.

    Raises:
        ValueError: If the two differ in length, are empty, or a deviation is not positive; in ``forward``, if the
            images have another number of channels.

    Example:
        >>> Normalise([0.5], [0.25])(torch.ones(1, 1, 2, 2)).unique()
        tensor([2.])
    """

    mean: Tensor
    std: Tensor

    def __init__(self, mean: Sequence[float], std: Sequence[float]) -> None:
        super().__init__()
        if len(mean) != len(std) or not len(mean):
            raise ValueError(
                f"mean and std must hold a number for each channel, got {len(mean)} and {len(std)} numbers."
            )
        if not all(deviation > 0 for deviation in std):
            raise ValueError(f"std must be positive, got {tuple(std)}.")
        # constants of the architecture, so not part of the checkpoint
        self.register_buffer("mean", torch.tensor(mean, dtype=torch.float32).view(-1, 1, 1), persistent=False)
        self.register_buffer("std", torch.tensor(std, dtype=torch.float32).view(-1, 1, 1), persistent=False)

    def forward(self, images: Tensor) -> Tensor:
        """Return the normalised images, ``(..., channel, height, width)``."""
        if images.ndim < 3 or images.shape[-3] != len(self.mean):
            raise ValueError(
                f"The images must have {len(self.mean)} channels, as mean and std have, got the shape "
                f"{tuple(images.shape)}."
            )
        return (images - self.mean) / self.std

    def extra_repr(self) -> str:
        """Return the numbers, for printing."""
        return f"mean={self.mean.flatten().tolist()}, std={self.std.flatten().tolist()}"


class PerImageStandardise(nn.Module):
    r"""Bring each image to mean 0 and deviation 1: ``(x - mean) / max(std, 1 / sqrt(d))``.

    Mean and unbiased standard deviation are over the ``d`` values of all channels and pixels. The bound keeps images of
    a single colour, and their gradients, finite. Without parameters.

    Example:
        >>> images = PerImageStandardise()(torch.rand(2, 3, 8, 8))
        >>> torch.allclose(images.flatten(1).std(1), torch.ones(2))
        True
    """

    def forward(self, images: Tensor) -> Tensor:
        """Return the standardised images, ``(batch, channel, height, width)``."""
        dimensions = tuple(range(1, images.ndim))
        mean = images.mean(dimensions, keepdim=True)
        std = images.std(dimensions, keepdim=True)
        return (images - mean) / std.clamp(min=images[0].numel() ** -0.5)
