"""Samples with gradients, and the space in which an objective compares them."""

import math
from collections.abc import Mapping, Sequence
from typing import Any, Literal, get_args

import torch
from torch import Tensor, nn

from lit_modules.synthia.backbones.base import Backbone, Condition
from lit_modules.synthia.core.sampling import FewStepSampler

Space = Literal["pixel", "latent", "embedding"]


class SampleComparison:
    """Sample an image for each row, with gradients, and put it and the images of the batch into one space.

    The arguments are those of :class:`~lit_modules.synthia.Synthia`.
    """

    def __init__(
        self,
        backbone: Backbone,
        *,
        num_steps: int | None,
        truncation: int | Literal["random"] | None,
        checkpointing: bool,
        space: Space,
        pixel_size: int | None,
        embedder: nn.Module | None,
    ) -> None:
        if space not in get_args(Space):
            raise ValueError(f"space must be {', '.join(map(repr, get_args(Space)))}, got {space!r}.")
        if (space == "embedding") != (embedder is not None):
            raise ValueError(f"An embedder goes with space 'embedding', got space {space!r} and embedder {embedder!r}.")
        if pixel_size is not None and not 1 <= pixel_size <= backbone.image_size:
            raise ValueError(f"pixel_size must be from 1 to the backbone's {backbone.image_size}, got {pixel_size}.")
        if num_steps is not None and num_steps < 1:
            raise ValueError(f"num_steps must be at least 1, got {num_steps}.")
        self.backbone, self.space, self.pixel_size = backbone, space, pixel_size
        self.num_steps, self.truncation, self.checkpointing = num_steps, truncation, checkpointing
        self.embedder = None if embedder is None else embedder.requires_grad_(False).eval()
        self.sampler: FewStepSampler | None = None

    def prepare(self) -> None:
        """Make the sampler, once the backbone's network is loaded."""
        if self.sampler is None:
            self.sampler = self.backbone.few_step_sampler(self.num_steps, self.truncation, self.checkpointing)

    def sample(
        self,
        size: tuple[int, int] | None,
        generators: Sequence[torch.Generator],
        condition: Condition,
        generator: torch.Generator | None,
    ) -> Tensor:
        """Return latents of an image for each row, with gradients; ``generator`` draws a random truncation.

        ``size`` is height and width in pixels; ``None`` is the backbone's square.
        """
        assert self.sampler is not None  # made with the network
        shape = (1, *self.backbone.latent_shape(size))
        noise = torch.cat([self.sampler.draw_noise(shape, each) for each in generators], 1).to(self.backbone.device)
        return self.sampler.sample(self.backbone.denoise, noise, condition, generator)

    def in_space(self, sampled: Tensor, batch: Mapping[str, Any]) -> tuple[Tensor, Tensor, Tensor]:
        """Return sampled latents, decoded, and the positives and negatives of a batch, as pixels or embeddings."""
        self.backbone.load("images")
        negatives = batch["neg"]
        away = self._compared(negatives.flatten(0, 1))
        anchor, positive = self._compared(self.backbone.decode(sampled)), self._compared(batch["pos"])
        return anchor, positive, away.reshape(*negatives.shape[:2], *away.shape[1:])

    def _compared(self, images: Tensor) -> Tensor:
        # the reference's pixels are in [0, 1], and cut off there
        images = images.float().clamp(-1, 1) / 2 + 0.5
        if self.embedder is not None:
            embedding: Tensor = self.embedder.to(images.device)(images)
            return embedding
        if self.pixel_size is None:
            return images
        height, width = images.shape[-2:]
        factor = self.pixel_size / math.sqrt(height * width)  # the square of the same area gets this side
        sides = round(height * factor), round(width * factor)
        if sides == (height, width):
            return images
        return nn.functional.interpolate(images, sides, mode="bilinear", antialias=True)
