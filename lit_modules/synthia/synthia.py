"""Synthia: compose affordances by contrastive fine-tuning of a text-to-image model along a curriculum."""

from collections.abc import Mapping, Sequence
from typing import Any, Literal

import torch
from torch import Tensor, nn

from lit_modules.synthia.backbones.base import Backbone, Condition
from lit_modules.synthia.core.objective import ContrastiveObjective
from lit_modules.synthia.core.pair_training import PairTraining, PairTrainingArguments
from lit_modules.synthia.core.sample_comparison import SampleComparison, Space
from lit_modules.synthia.objectives import Denoise
from lit_modules.utils.arguments import Unpack


class Synthia(PairTraining):
    """Draw images towards new designs that offer the requested affordances, away from existing concepts.

    ``objective`` says how. Those in the space of the noise (:class:`~lit_modules.synthia.Denoise`, the default, and
    :class:`~lit_modules.synthia.DenoiseDPO`) compare the network's errors on a noised positive and on noised negatives,
    with the same noise and timestep. Those in the space of samples (:class:`~lit_modules.synthia.LinearContrast`, the
    paper's, :class:`~lit_modules.synthia.Triplet` and :class:`~lit_modules.synthia.InfoNCE`) sample an image from the
    prompt, with gradients through the last steps, and compare it with both; the error on the noised positive is added
    with the objective's ``denoising_weight``.

    Batches and logged values are those of :class:`~lit_modules.synthia.core.pair_training.PairTraining`. The order of
    the pairs is the datamodule's: :class:`~datamodules.affordances.sampling.CurriculumSampler`.

    Args:
        backbone: Text-to-image model.
        objective: What is lowered; ``None`` is ``Denoise()``.
        num_steps: Steps of the sampler that gradients pass through; ``None`` takes the backbone's usual number.
        truncation: Number of its last steps that the gradient passes through, ``"random"``, or ``None`` for all.
        sampler_checkpointing: Whether to recompute its steps in the backward pass, to save memory.
        space: What the objective compares samples as; pixels in [0, 1], at most ``pixel_size`` wide.
        pixel_size: Side of the images that are compared as pixels, of others than squares that of the square of the
            same area; ``None`` takes the backbone's.
        embedder: Gives embeddings ``(batch, features)`` of images in [0, 1], with gradients; for ``space="embedding"``.

    Raises:
        ValueError: If an argument is out of its range, or arguments do not fit together.

    Example:
        >>> from lit_modules.synthia import LinearContrast, PixelDiffusion
        >>> module = Synthia(PixelDiffusion(image_size=16, widths=(8, 16)), objective=LinearContrast(beta=0.5))
        >>> module.generate(["sit", "store"], num_images=2, seed=1).shape
        torch.Size([2, 3, 16, 16])

    References:
        Ha et al., "SYNTHIA: Novel Concept Design with Affordance Composition", arXiv 2502.17793.
    """

    injected = (*PairTraining.injected, "objective", "embedder")

    def __init__(
        self,
        backbone: Backbone,
        objective: ContrastiveObjective | None = None,
        num_steps: int | None = None,
        truncation: int | Literal["random"] | None = 1,
        sampler_checkpointing: bool = True,
        space: Space = "pixel",
        pixel_size: int | None = None,
        embedder: nn.Module | None = None,
        **shared: Unpack[PairTrainingArguments],
    ) -> None:
        super().__init__(backbone, **shared)
        self.objective = Denoise() if objective is None else objective
        if self.objective.needs_reference and self.peft_config is None:
            raise ValueError(
                f"{type(self.objective).__name__} compares with the network before tuning, which is the one whose "
                "adapter is switched off; give a peft_config."
            )
        self.comparison = SampleComparison(
            backbone,
            num_steps=num_steps,
            truncation=truncation,
            checkpointing=sampler_checkpointing,
            space=space,
            pixel_size=pixel_size,
            embedder=embedder,
        )
        self.watched = "positive" if self.objective.space == "noise" else "denoising"

    def configure_model(self) -> None:
        """Load the network, and make the sampler that belongs to it."""
        super().configure_model()
        self.comparison.prepare()

    def losses(
        self,
        batch: Mapping[str, Any],
        generators: Sequence[torch.Generator],
        condition: Condition,
        generator: torch.Generator | None = None,
    ) -> dict[str, Tensor]:
        """Return the objective's loss and its parts; ``generator`` draws a random truncation."""
        positive = self.latents(batch, "pos", generators)
        noise, timesteps = self.draw_noise(positive, generators)
        weights, objective, mask = self.denoising_weights(timesteps), self.objective, batch["neg_mask"]
        if objective.space == "noise":
            both = torch.cat([positive[:, None], self.latents(batch, "neg", generators)], 1)
            errors = self.noise_errors(both, noise, timesteps, condition)
            reference = None
            if objective.needs_reference:
                with torch.no_grad(), self.backbone.without_adapter():
                    untuned = self.conditions(batch) if self.backbone.text_encoders else condition
                    before = self.noise_errors(both, noise, timesteps, untuned)
                reference = before[:, 0], before[:, 1:]
            losses: dict[str, Tensor] = objective(errors[:, 0], errors[:, 1:], mask, weights, reference=reference)
        else:
            denoising = None
            if objective.denoising_weight:
                denoising = self.noise_errors(positive, noise, timesteps, condition)
            height, width = batch["pos"].shape[-2:]
            size = None if height == width else (height, width)  # that of an aspect-ratio bucket
            sampled = self.comparison.sample(size, generators, condition, generator)
            if self.comparison.space == "latent":
                compared = sampled, self.latents(batch, "pos", generators), self.latents(batch, "neg", generators)
            else:
                compared = self.comparison.in_space(sampled, batch)
            losses = objective(*objective.distances(*compared), mask, weights, denoising)
        return losses
