"""Plain training of a text-to-image model on images with captions."""

from collections.abc import Sequence

import torch
from torch import Tensor

from lit_modules.synthia.backbones.base import Backbone
from lit_modules.synthia.core.base import Batch, TextToImage, TextToImageArguments
from lit_modules.synthia.core.objective import weighted_mean
from lit_modules.utils.arguments import Unpack


class TextToImageTraining(TextToImage):
    """Train a text-to-image model by denoising images with captions.

    The loss is the mean squared error of the network's prediction on a noised image, at a random timestep. Some
    captions are left out, so that the model can be guided.

    A batch is ``{"prompt": captions, "image": images}``, floats in [-1, 1], ``(batch, 3, height, width)``; ``index``
    and ``draw`` ``(batch,)`` make noise and timesteps belong to rows. Logs ``train/loss``,
    ``train/prior`` with class pictures, and ``val/loss``.

    Args:
        backbone: Text-to-image model.
        caption_dropout: Share of captions that are left out in training, in [0, 1].

    Raises:
        ValueError: If an argument is out of its range.

    Example:
        >>> from lit_modules.synthia import PixelDiffusion
        >>> module = TextToImageTraining(PixelDiffusion(image_size=16, widths=(8, 16)))
        >>> module.generate(["pour"]).shape
        torch.Size([1, 3, 16, 16])

    References:
        Ho, Jain and Abbeel, "Denoising Diffusion Probabilistic Models", arXiv 2006.11239; Ho and Salimans,
        "Classifier-Free Diffusion Guidance", arXiv 2207.12598.
    """

    def __init__(
        self, backbone: Backbone, caption_dropout: float = 0.1, **shared: Unpack[TextToImageArguments]
    ) -> None:
        super().__init__(backbone, **shared)
        if not 0 <= caption_dropout <= 1:
            raise ValueError(f"caption_dropout must lie in [0, 1], got {caption_dropout}.")
        self.caption_dropout = caption_dropout

    def training_step(self, batch: Batch, batch_idx: int) -> Tensor:
        """Return the loss of a batch."""
        generators = self.row_generators(batch, "train", self.global_step, batch_idx)
        coins = [float(torch.rand((), generator=generator)) for generator in generators]
        captions = zip(batch["prompt"], coins, strict=True)
        prompts = [prompt if coin >= self.caption_dropout else "" for prompt, coin in captions]
        losses = self.with_prior({"loss": self._loss(batch, prompts, generators)}, generators)
        self.check(losses, batch)
        self.log("train/loss", losses["loss"], prog_bar=True, batch_size=len(prompts))
        if self.prior is not None:
            self.log("train/prior", losses["prior"], batch_size=len(prompts))
        return losses["loss"]

    def validation_step(self, batch: Batch, batch_idx: int) -> None:
        """Log the loss of a batch, at the same noise and timesteps in every validation."""
        loss = self._loss(batch, batch["prompt"], self.row_generators(batch, "val"))
        self.log("val/loss", loss, prog_bar=True, sync_dist=True, batch_size=len(batch["prompt"]))

    def _loss(self, batch: Batch, prompts: Sequence[str], generators: Sequence[torch.Generator]) -> Tensor:
        latents = self.latents(batch, "image", generators)
        noise, timesteps = self.draw_noise(latents, generators)
        errors = self.noise_errors(latents, noise, timesteps, self.encoder.conditions(prompts))
        return weighted_mean(errors, self.denoising_weights(timesteps))
