"""Stable Diffusion 1 and 2, and Stable Diffusion XL: U-Nets in the latents of an autoencoder, of either prediction."""

from typing import Any, ClassVar

import torch
from torch import Tensor

from lit_modules.synthia.backbones.base import Condition, Precision
from lit_modules.synthia.backbones.pipeline import PipelineBackbone, precise


class StableDiffusion(PipelineBackbone):
    """Stable Diffusion 1 and 2, and models that were made from them.

    Whether the network predicts noise or velocity is read from the scheduler. The safety checker is not loaded: look at
    what the model draws before you show it to others.

    Args:
        model: Folder or name of a ``StableDiffusionPipeline``.
        image_size: Side of the images in pixels, a multiple of 8.
        precision: Type of the network's weights; what trains is float32 in any case.
        encoder_precision: Type of the frozen encoders; ``None`` takes ``precision``.
        num_steps: Usual steps of sampling.
        guidance: Usual scale of classifier-free guidance, 1 for none.
        vae_slicing: Whether to encode and decode one image at a time, which takes less memory.
        trained_network: Folder that :meth:`save_pretrained` wrote a whole network to, which replaces the model's.
        variant: Variant of the files, such as ``"fp16"``, of the parts that have it.

    Raises:
        ValueError: If an argument is out of its range; in ``load``, if the model is of another kind, or ``image_size``
            does not fit it.
        FileNotFoundError: In ``load``, if there is no such model, or a part of it is missing.

    Example:
        >>> backbone = StableDiffusion("stable-diffusion-v1-5/stable-diffusion-v1-5", image_size=512)
        >>> backbone.load("text")  # doctest: +SKIP
        >>> backbone.encode_prompt(["a cup used to pour"])["prompt_embeds"].shape  # doctest: +SKIP
        torch.Size([1, 77, 768])

    References:
        Rombach et al., "High-Resolution Image Synthesis with Latent Diffusion Models", arXiv 2112.10752.
    """

    pipeline_name: ClassVar[str] = "StableDiffusionPipeline"

    def __init__(
        self,
        model: str = "stable-diffusion-v1-5/stable-diffusion-v1-5",
        image_size: int = 512,
        precision: Precision = "bfloat16",
        encoder_precision: Precision | None = None,
        num_steps: int = 50,
        guidance: float = 7.5,
        vae_slicing: bool = False,
        trained_network: str | None = None,
        variant: str | None = None,
    ) -> None:
        super().__init__(
            model,
            image_size,
            precision,
            encoder_precision,
            num_steps,
            guidance,
            vae_slicing,
            trained_network,
            variant,
        )

    def pipeline_options(self) -> dict[str, Any]:
        """Go without the safety checker."""
        return {"requires_safety_checker": False}

    def encode_with(self, pipeline: Any, prompts: list[str]) -> Condition:
        """Return the hidden states of the text encoder."""
        embeds, _ = pipeline.encode_prompt(prompts, self.device, 1, do_classifier_free_guidance=False)
        return {"prompt_embeds": embeds}

    def denoise(self, noised: Tensor, timesteps: Tensor, condition: Condition) -> Tensor:
        """Ask the U-Net."""
        given = self.cast(condition)
        prediction: Tensor = self.network(
            noised.to(self.network.dtype),
            timesteps,
            encoder_hidden_states=given["prompt_embeds"],
            added_cond_kwargs=self.added(given),
            return_dict=False,
        )[0]
        return precise(prediction)

    def added(self, condition: Condition) -> dict[str, Tensor] | None:
        """Return what else the U-Net is conditioned on."""
        return None


class SDXL(StableDiffusion):
    """Stable Diffusion XL, and models that were made from it.

    The network is told that images were neither cropped nor scaled. Its autoencoder is held in float32, where its
    activations do not overflow, unless its configuration says that it needs no upcast (``force_upcast``). An empty
    prompt is all zeros if the pipeline says so, in guidance and in training.

    Args:
        model: Folder or name of a ``StableDiffusionXLPipeline``.
        image_size: Side of the images in pixels, a multiple of 8.
        precision: Type of the network's weights; what trains is float32 in any case.
        encoder_precision: Type of the frozen encoders; ``None`` takes ``precision``.
        num_steps: Usual steps of sampling; 1 to 4 for SDXL-Turbo.
        guidance: Usual scale of classifier-free guidance, 1 for none, as SDXL-Turbo needs it.
        vae_slicing: Whether to encode and decode one image at a time, which takes less memory.
        trained_network: Folder that :meth:`save_pretrained` wrote a whole network to, which replaces the model's.
        variant: Variant of the files, such as ``"fp16"``, of the parts that have it.

    Raises:
        ValueError: If an argument is out of its range; in ``load``, if the model is of another kind, or ``image_size``
            does not fit it.
        FileNotFoundError: In ``load``, if there is no such model, or a part of it is missing.

    Example:
        >>> backbone = SDXL("stabilityai/sdxl-turbo", image_size=512, num_steps=1, guidance=1.0)
        >>> backbone.precision
        'bfloat16'

    References:
        Podell et al., "SDXL: Improving Latent Diffusion Models for High-Resolution Image Synthesis", arXiv 2307.01952.
    """

    pipeline_name: ClassVar[str] = "StableDiffusionXLPipeline"
    text_parts: ClassVar[tuple[str, ...]] = ("tokenizer", "text_encoder", "tokenizer_2", "text_encoder_2")

    def __init__(
        self,
        model: str = "stabilityai/stable-diffusion-xl-base-1.0",
        image_size: int = 1024,
        precision: Precision = "bfloat16",
        encoder_precision: Precision | None = None,
        num_steps: int = 50,
        guidance: float = 5.0,
        vae_slicing: bool = False,
        trained_network: str | None = None,
        variant: str | None = None,
    ) -> None:
        super().__init__(
            model,
            image_size,
            precision,
            encoder_precision,
            num_steps,
            guidance,
            vae_slicing,
            trained_network,
            variant,
        )

    def pipeline_options(self) -> dict[str, Any]:
        """Treat an empty prompt as the model does, and mark no images."""
        zeros = bool(self.index.get("force_zeros_for_empty_prompt", True))
        return {"force_zeros_for_empty_prompt": zeros, "add_watermarker": False}

    def image_dtype(self, config: dict[str, Any]) -> torch.dtype:
        """Return float32, unless the autoencoder needs no upcast."""
        return torch.float32 if config.get("force_upcast", True) else self.encoder_dtype

    def encode_with(self, pipeline: Any, prompts: list[str]) -> Condition:
        """Return the hidden states of both text encoders, and the pooled output of the second."""
        embeds, _, pooled, _ = pipeline.encode_prompt(prompts, device=self.device, do_classifier_free_guidance=False)
        if pipeline.config.force_zeros_for_empty_prompt:
            shown = torch.tensor([prompt != "" for prompt in prompts], device=self.device)
            embeds, pooled = embeds * shown[:, None, None], pooled * shown[:, None]
        return {"prompt_embeds": embeds, "pooled_prompt_embeds": pooled}

    def added(self, condition: Condition) -> dict[str, Tensor]:
        """Return the pooled embedding, and the size of the image before and after, with no crop."""
        pooled = condition["pooled_prompt_embeds"]
        size = self.image_size
        sizes = torch.tensor([size, size, 0, 0, size, size], dtype=pooled.dtype, device=pooled.device)
        return {"text_embeds": pooled, "time_ids": sizes.expand(len(pooled), -1)}
