"""Plain training of a text-to-image model on pictures with captions."""

from collections.abc import Sequence

import torch
from lightning.pytorch.cli import LRSchedulerCallable, OptimizerCallable
from peft import LoraConfig
from torch import Tensor
from torchmetrics import Metric

from lit_modules.synthia.backbones.base import Backbone
from lit_modules.synthia.core.base import TEMPLATE, Batch, TextToImage, default_optimizer
from lit_modules.synthia.core.randomness import row_noise


class TextToImageTraining(TextToImage):
    """Train a text-to-image model by denoising pictures with captions.

    The loss is the mean squared error of what the network predicts of a noised picture, at a random timestep. Some
    captions are left out, so that the model can be guided.

    A batch is ``{"prompt": captions, "image": pictures}``, floats in [-1, 1], ``(batch, 3, height, width)``; ``index``
    and ``draw`` ``(batch,)`` make noise and timesteps belong to rows. Logs ``train/loss`` and ``val/loss``.

    Args:
        backbone: Text-to-image model.
        caption_dropout: Share of captions that are left out in training, in [0, 1].
        peft_config: Adapter to train instead of the network's own weights.
        gradient_checkpointing: Whether to recompute activations in the backward pass, to save memory.
        compile: Whether to compile the network's blocks.
        cache: Folder in which encodings are kept between runs, by their content; ``None`` keeps them in memory.
        min_snr_gamma: Cap of the clean image's weight (Min-SNR); ``None`` weighs all timesteps 1.
        template: Prompt of :meth:`generate`, with the place ``{affordances}``.
        known_affordances: Affordances that :meth:`generate` takes; ``None`` takes any.
        metric: Turns generated images into numbers, see :class:`~lit_modules.synthia.core.base.TextToImage`.
        images_per_prompt: Images that a test generates for each row.
        seed: Seed of noise and timesteps.
        optimizer: Builds the optimizer from the trainable parameters.
        scheduler: Builds the learning-rate scheduler from the optimizer; it moves once per optimizer step.

    Raises:
        ValueError: If an argument is out of its range.

    Example:
        >>> from lit_modules.synthia.backbones.pixel import PixelDiffusion
        >>> module = TextToImageTraining(PixelDiffusion(image_size=16, widths=(8, 16)))
        >>> module.generate(["pour"]).shape
        torch.Size([1, 3, 16, 16])

    References:
        Ho, Jain and Abbeel, "Denoising Diffusion Probabilistic Models", arXiv 2006.11239; Ho and Salimans,
        "Classifier-Free Diffusion Guidance", arXiv 2207.12598.
    """

    def __init__(
        self,
        backbone: Backbone,
        caption_dropout: float = 0.1,
        peft_config: LoraConfig | None = None,
        gradient_checkpointing: bool = False,
        compile: bool = False,
        cache: str | None = None,
        min_snr_gamma: float | None = None,
        template: str = TEMPLATE,
        known_affordances: Sequence[str] | None = None,
        metric: Metric | None = None,
        images_per_prompt: int = 4,
        seed: int = 0,
        optimizer: OptimizerCallable = default_optimizer,
        scheduler: LRSchedulerCallable | None = None,
    ) -> None:
        super().__init__(
            backbone,
            peft_config,
            gradient_checkpointing,
            compile,
            cache,
            min_snr_gamma,
            template,
            known_affordances,
            metric,
            images_per_prompt,
            seed,
            optimizer,
            scheduler,
        )
        if not 0 <= caption_dropout <= 1:
            raise ValueError(f"caption_dropout must lie in [0, 1], got {caption_dropout}.")
        self.caption_dropout = caption_dropout
        self.save_hyperparameters(ignore=["backbone", "peft_config", "metric", "optimizer", "scheduler"])

    def training_step(self, batch: Batch, batch_idx: int) -> Tensor:
        """Return the loss of a batch."""
        generators = self.row_generators(batch, "train", self.global_step, batch_idx)
        coins = [float(torch.rand((), generator=generator)) for generator in generators]
        shown = zip(batch["prompt"], coins, strict=True)
        prompts = [prompt if coin >= self.caption_dropout else "" for prompt, coin in shown]
        loss = self._loss(batch, prompts, generators)
        self.check({"loss": loss}, batch)
        self.log("train/loss", loss, prog_bar=True, batch_size=len(prompts))
        return loss

    def validation_step(self, batch: Batch, batch_idx: int) -> None:
        """Log the loss of a batch, at the same noise and timesteps in every validation."""
        loss = self._loss(batch, batch["prompt"], self.row_generators(batch, "val"))
        self.log("val/loss", loss, prog_bar=True, sync_dist=True, batch_size=len(batch["prompt"]))

    def _loss(self, batch: Batch, prompts: Sequence[str], generators: Sequence[torch.Generator]) -> Tensor:
        latents = self.latents(batch, "image", generators)
        noise = row_noise(latents.shape[1:], generators, latents.device)
        timesteps = self.backbone.draw_timesteps(generators)
        errors = self.noise_errors(latents, noise, timesteps, self.encoder.conditions(prompts))
        weights = self.denoising_weights(timesteps)
        return (errors if weights is None else errors * weights).mean()
