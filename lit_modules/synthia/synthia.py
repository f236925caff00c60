"""Synthia: compose affordances by contrastive fine-tuning of a text-to-image model along a curriculum."""

from collections.abc import Mapping, Sequence
from typing import Any, Literal, cast, get_args

import torch
from lightning.pytorch.cli import LRSchedulerCallable, OptimizerCallable
from lightning.pytorch.utilities import rank_zero_warn
from peft import LoraConfig
from torch import Tensor, nn
from torchmetrics import Metric

from lit_modules.synthia.backbones.base import Backbone, Condition
from lit_modules.synthia.core.base import TEMPLATE, Batch, TextToImage, default_optimizer
from lit_modules.synthia.core.guards import RisingError
from lit_modules.synthia.core.randomness import generator_of, row_noise
from lit_modules.synthia.core.sampling import FewStepSampler
from lit_modules.synthia.objectives import ContrastiveObjective, Denoise

Space = Literal["pixel", "latent", "embedding"]
_KEYS = ("prompt", "pos", "neg", "neg_mask")


class Synthia(TextToImage):
    """Draw images towards new designs that offer the requested affordances, away from existing concepts.

    ``objective`` says how. Those in the space of the noise (:class:`~lit_modules.synthia.Denoise`, the default, and
    :class:`~lit_modules.synthia.DenoiseDPO`) compare the network's errors on a noised positive and on noised negatives,
    with the same noise and timestep. Those in the space of samples (:class:`~lit_modules.synthia.Linear`, the paper's,
    :class:`~lit_modules.synthia.Triplet` and :class:`~lit_modules.synthia.InfoNCE`) sample an image from the prompt,
    with gradients through the last steps, and compare it with both, as pixels, latents or embeddings; the error on the
    noised positive is added with the objective's ``denoising_weight``.

    A batch has ``prompt`` (list of str), ``pos`` (floats in [-1, 1], ``(batch, 3, height, width)``), ``neg`` (``(batch,
    negatives, 3, height, width)``), ``neg_mask`` (bool, ``(batch, negatives)``) and perhaps ``pair_id`` and ``draw``,
    which numbers the choice of images (``(batch,)``). Noise and timestep belong to the row, by both: a positive and its
    negatives share them, another row of the same pair has its own. The order of the pairs is the datamodule's:
    :class:`~datamodules.affordances.sampling.CurriculumSampler`.

    Logs ``train/loss`` and its parts, ``train/positive`` and ``train/negative`` among them, and in validation, at fixed
    noise and timesteps, the errors ``val/positive`` and ``val/negative``, and ``val/gap``, the second less the first.
    Test, and validation if ``validation_images`` is set, generate images for the metric.

    Args:
        backbone: Text-to-image model.
        objective: What is lowered.
        num_steps: Steps of the sampler that gradients pass through; ``None`` takes the backbone's usual number.
        truncation: Number of its last steps that the gradient passes through, ``"random"``, or ``None`` for all.
        sampler_checkpointing: Whether to recompute its steps in the backward pass, to save memory.
        space: What the objective compares samples as; pixels in [0, 1], at most ``pixel_size`` wide.
        pixel_size: Side of the images that are compared as pixels; ``None`` takes the backbone's.
        embedder: Gives embeddings ``(batch, features)`` of images in [0, 1], with gradients; for ``space="embedding"``.
        prior_weight: Weight of the squared difference from the untuned network's predictions for an empty prompt, which
            holds what the model could do before; needs a ``peft_config``.
        peft_config: Adapter to train instead of the network's own weights.
        gradient_checkpointing: Whether to recompute activations in the backward pass, to save memory.
        compile: Whether to compile the network's blocks.
        cache: Folder in which encodings are kept between runs, by their content; ``None`` keeps them in memory.
        min_snr_gamma: Cap of the clean image's weight in the denoising term (Min-SNR); ``None`` weighs all timesteps 1.
        template: Prompt of :meth:`generate`, with the place ``{affordances}``.
        known_affordances: Affordances that :meth:`generate` takes; ``None`` takes any.
        metric: Turns generated images into numbers, see :class:`~lit_modules.synthia.core.base.TextToImage`.
        images_per_prompt: Images that a test generates for each row.
        validation_images: Images that a validation generates for each row, 0 for none.
        seed: Seed of noise and timesteps.
        optimizer: Builds the optimizer from the trainable parameters.
        scheduler: Builds the learning-rate scheduler from the optimizer; it moves once per optimizer step.

    Raises:
        ValueError: If an argument is out of its range, or arguments do not fit together.

    Example:
        >>> from lit_modules.synthia import Linear, PixelDiffusion
        >>> module = Synthia(PixelDiffusion(image_size=16, widths=(8, 16)), objective=Linear(beta=0.5))
        >>> module.generate(["sit", "store"], num_images=2, seed=1).shape
        torch.Size([2, 3, 16, 16])

    References:
        Ha et al., "SYNTHIA: Novel Concept Design with Affordance Composition", arXiv 2502.17793.
    """

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
        prior_weight: float = 0.0,
        peft_config: LoraConfig | None = None,
        gradient_checkpointing: bool = False,
        compile: bool = False,
        cache: str | None = None,
        min_snr_gamma: float | None = None,
        template: str = TEMPLATE,
        known_affordances: Sequence[str] | None = None,
        metric: Metric | None = None,
        images_per_prompt: int = 4,
        validation_images: int = 0,
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
        self.objective = Denoise() if objective is None else objective
        name = type(self.objective).__name__
        if space not in get_args(Space):
            raise ValueError(f"space must be {', '.join(map(repr, get_args(Space)))}, got {space!r}.")
        if (space == "embedding") != (embedder is not None):
            raise ValueError(f"An embedder goes with space 'embedding', got space {space!r} and embedder {embedder!r}.")
        if self.objective.needs_reference and peft_config is None:
            raise ValueError(
                f"{name} compares with the network before tuning, which is the one whose adapter is switched off; give "
                "a peft_config."
            )
        if prior_weight < 0 or (prior_weight and peft_config is None):
            raise ValueError(f"prior_weight must be 0, or positive with a peft_config, got {prior_weight}.")
        if validation_images < 0:
            raise ValueError(f"validation_images must not be negative, got {validation_images}.")
        if pixel_size is not None and not 1 <= pixel_size <= backbone.image_size:
            raise ValueError(f"pixel_size must be from 1 to the backbone's {backbone.image_size}, got {pixel_size}.")
        if num_steps is not None and num_steps < 1:
            raise ValueError(f"num_steps must be at least 1, got {num_steps}.")
        self.num_steps, self.truncation, self.sampler_checkpointing = num_steps, truncation, sampler_checkpointing
        self.space, self.pixel_size = space, pixel_size
        self.sampler: FewStepSampler | None = None
        self._embedder = [] if embedder is None else [embedder.requires_grad_(False).eval()]  # in no state dict
        self.prior_weight, self.validation_images = prior_weight, validation_images
        self.rising = RisingError()
        self._warned = False
        self.save_hyperparameters(
            ignore=["backbone", "objective", "embedder", "peft_config", "metric", "optimizer", "scheduler"]
        )

    def configure_model(self) -> None:
        """Load the network, and make the sampler that belongs to it."""
        super().configure_model()
        if self.sampler is None:
            self.sampler = self.backbone.few_step_sampler(self.num_steps, self.truncation, self.sampler_checkpointing)

    def training_step(self, batch: Batch, batch_idx: int) -> Tensor:
        """Return the loss of a batch."""
        missing = [key for key in _KEYS if key not in batch]
        if missing:
            raise ValueError(f"Synthia trains on batches with {', '.join(_KEYS)}, got one without {missing[0]}.")
        generators = self.row_generators(batch, "train", self.global_step, batch_idx)
        condition = self.conditions(batch)
        losses = self.losses(batch, generators, condition, generator_of(self.seed, self.global_step, batch_idx))
        self.check(losses, batch)
        self._watch(losses)
        size = len(batch["prompt"])
        self.log("train/loss", losses["loss"], prog_bar=True, batch_size=size)
        self.log_dict({f"train/{name}": value for name, value in losses.items() if name != "loss"}, batch_size=size)
        return losses["loss"]

    def losses(
        self,
        batch: Mapping[str, Any],
        generators: Sequence[torch.Generator],
        condition: Condition,
        generator: torch.Generator | None = None,
    ) -> dict[str, Tensor]:
        """Return the objective's loss and its parts.

        Args:
            batch: Batch.
            generators: Source of randomness for each row.
            condition: What the network is conditioned on.
            generator: Source of what is drawn for the whole batch: a random truncation.
        """
        positive = self.latents(batch, "pos", generators)
        noise = row_noise(positive.shape[1:], generators, positive.device)
        timesteps = self.backbone.draw_timesteps(generators)
        weights, objective, mask = self.denoising_weights(timesteps), self.objective, batch["neg_mask"]
        if objective.space == "noise":
            both = torch.cat([positive[:, None], self.latents(batch, "neg", generators)], 1)
            errors = self.noise_errors(both, noise, timesteps, condition)
            reference = None
            if objective.needs_reference:
                with torch.no_grad(), self.backbone.without_adapter():
                    before = self.noise_errors(both, noise, timesteps, condition)
                reference = before[:, 0], before[:, 1:]
            losses: dict[str, Tensor] = objective(errors[:, 0], errors[:, 1:], mask, weights, reference=reference)
        else:
            denoising = None
            if objective.denoising_weight:
                denoising = self.noise_errors(positive, noise, timesteps, condition)
            distances = objective.distances(*self.compared(batch, generators, condition, generator))
            losses = objective(*distances, mask, weights, denoising)
        if self.prior_weight:
            losses["prior"] = self.prior_loss(positive, noise, timesteps)
            losses["loss"] = losses["loss"] + self.prior_weight * losses["prior"]
        return losses

    def compared(
        self,
        batch: Mapping[str, Any],
        generators: Sequence[torch.Generator],
        condition: Condition,
        generator: torch.Generator | None = None,
    ) -> tuple[Tensor, Tensor, Tensor]:
        """Sample an image for each row, and return it, the positives and the negatives as what they are compared as."""
        self.configure_model()
        sampler, shape = cast("FewStepSampler", self.sampler), self.backbone.latent_shape()
        draws = [sampler.draw_noise((1, *shape), row) for row in generators]
        noise = torch.cat(draws, 1).to(self.device)
        sampled = sampler.sample(self.backbone.denoise, noise, condition, generator)
        if self.space == "latent":
            return sampled, self.latents(batch, "pos", generators), self.latents(batch, "neg", generators)
        self.backbone.load("images")
        anchor = self.backbone.decode(sampled)
        positive, negatives = batch["pos"], batch["neg"]
        flat = negatives.flatten(0, 1)
        parts = [self._as_compared(images) for images in (anchor, positive, flat)]
        return parts[0], parts[1], parts[2].reshape(*negatives.shape[:2], *parts[2].shape[1:])

    def prior_loss(self, latents: Tensor, noise: Tensor, timesteps: Tensor) -> Tensor:
        """Return the squared difference from the untuned network's predictions for an empty prompt."""
        empty = self.encoder.conditions([""] * len(latents))
        noised = self.backbone.schedule.add_noise(latents, noise, timesteps)
        with torch.no_grad(), self.backbone.without_adapter():
            before = self.backbone.denoise(noised, timesteps, empty)
        return (self.backbone.denoise(noised, timesteps, empty).float() - before.float()).square().mean()

    def validation_step(self, batch: Batch, batch_idx: int) -> None:
        """Log the errors of a batch, at the same noise and timesteps in every validation, if it has pictures."""
        if {"pos", "neg", "neg_mask"} <= batch.keys():
            self._log_errors(batch)
        if self.metric is not None and self.validation_images and not self.trainer.sanity_checking:
            self.score(batch, self.validation_images)

    def on_validation_epoch_end(self) -> None:
        """Log the metric's numbers."""
        if self.metric is not None and self.validation_images and not self.trainer.sanity_checking:
            self.log_metric("val")

    def on_save_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        """Keep what trains, and what the error on the positives was at the start."""
        super().on_save_checkpoint(checkpoint)
        checkpoint["synthia"] = {"rising": self.rising.state_dict(), "warned": self._warned}

    def on_load_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        """Take up the adapter, and go on watching the error on the positives."""
        super().on_load_checkpoint(checkpoint)
        if "synthia" in checkpoint:
            self.rising.load_state_dict(checkpoint["synthia"]["rising"])
            self._warned = checkpoint["synthia"]["warned"]

    def _log_errors(self, batch: Batch) -> None:
        generators = self.row_generators(batch, "val")
        positive, negatives = self.latents(batch, "pos", generators), self.latents(batch, "neg", generators)
        noise = row_noise(positive.shape[1:], generators, positive.device)
        timesteps = self.backbone.draw_timesteps(generators)
        both = torch.cat([positive[:, None], negatives], 1)
        errors = self.noise_errors(both, noise, timesteps, self.conditions(batch))
        mask = batch["neg_mask"].bool()
        there = mask.any(1)
        away = torch.where(mask, errors[:, 1:], 0).sum(1) / mask.sum(1).clamp(min=1)
        count = int(there.sum())  # a process without any logs the same names, with weight 0
        mean = {"val/negative": away[there].sum() / max(count, 1)}
        mean["val/gap"] = (away - errors[:, 0])[there].sum() / max(count, 1)
        self.log("val/positive", errors[:, 0].mean(), sync_dist=True, batch_size=len(mask))
        for name, value in mean.items():
            self.log(name, value, prog_bar=name == "val/gap", sync_dist=True, batch_size=count)

    def _as_compared(self, images: Tensor) -> Tensor:
        # the reference's pixels are in [0, 1], and cut off there
        images = images.float().clamp(-1, 1) / 2 + 0.5
        if self.space == "embedding":
            embedded: Tensor = self._embedder[0].to(images.device)(images)
            return embedded
        side = self.pixel_size or images.shape[-1]
        if images.shape[-1] == side:
            return images
        return nn.functional.interpolate(images, (side, side), mode="bilinear", antialias=True)

    def _watch(self, losses: Mapping[str, Tensor]) -> None:
        name = "denoising" if "denoising" in losses else "positive"
        if self.objective.space == "sample" and name == "positive":
            return
        error = float(losses[name].detach())
        if self.rising.update(error) and not self._warned:
            self._warned = True
            rank_zero_warn(
                f"The error on the positives has risen to {self.rising.present:.4g} from {self.rising.start:.4g} at "
                f"the start (step {self.global_step}): the loss is lowered by spoiling the images. Lower the learning "
                "rate or the weight of the negatives, or stop earlier."
            )
