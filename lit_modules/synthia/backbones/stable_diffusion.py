"""Stable Diffusion 1 and 2, and Stable Diffusion XL: U-Nets in the latents of an autoencoder, of either prediction."""

from typing import Any, ClassVar

import torch
from torch import Tensor

from lit_modules.synthia.backbones.base import Condition
from lit_modules.synthia.backbones.pipeline import PipelineArguments, PipelineBackbone
from lit_modules.synthia.core.sampling import precise
from lit_modules.utils.arguments import Unpack


class StableDiffusion(PipelineBackbone):
    """Stable Diffusion 1 and 2, and models that were made from them.

    Whether the network predicts noise or velocity is read from the scheduler. The safety checker is not loaded: look at
    what the model draws before you show it to others.

    Args:
        model: Folder or name of a ``StableDiffusionPipeline``.
        image_size: Side of the images in pixels, a multiple of 8.
        num_steps: Usual steps of sampling.
        guidance: Usual scale of classifier-free guidance, 1 for none.

    References:
        Rombach et al., "High-Resolution Image Synthesis with Latent Diffusion Models", arXiv 2112.10752.
    """

    pipeline_name: ClassVar[str] = "StableDiffusionPipeline"
    text_adapter_parts: ClassVar[tuple[str, ...]] = ("text_encoder",)

    def __init__(
        self,
        model: str = "stable-diffusion-v1-5/stable-diffusion-v1-5",
        image_size: int = 512,
        num_steps: int = 50,
        guidance: float = 7.5,
        **shared: Unpack[PipelineArguments],
    ) -> None:
        super().__init__(model, image_size, num_steps=num_steps, guidance=guidance, **shared)

    def pipeline_options(self) -> dict[str, Any]:
        """Go without the safety checker."""
        return {"requires_safety_checker": False}

    def encode_with(self, pipeline: Any, prompts: list[str]) -> Condition:
        """Return the hidden states of the text encoder."""
        embeds, _ = pipeline.encode_prompt(prompts, self.device, 1, do_classifier_free_guidance=False)
        return {"prompt_embeds": embeds}

    def denoise(self, noised: Tensor, timesteps: Tensor, condition: Condition) -> Tensor:
        """Ask the U-Net."""
        condition = self.cast(condition)
        prediction: Tensor = self.network(
            noised.to(self.network.dtype),
            timesteps,
            encoder_hidden_states=condition["prompt_embeds"],
            added_cond_kwargs=self.added(noised, condition),
            return_dict=False,
        )[0]
        return precise(prediction)

    def added(self, noised: Tensor, condition: Condition) -> dict[str, Tensor] | None:
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
        num_steps: Usual steps of sampling; 1 to 4 for SDXL-Turbo.
        guidance: Usual scale of classifier-free guidance, 1 for none, as SDXL-Turbo needs it.

    Example:
        >>> backbone = SDXL("stabilityai/sdxl-turbo", image_size=512, num_steps=1, guidance=1.0)
        >>> backbone.precision
        'bfloat16'

    References:
        Podell et al., "SDXL: Improving Latent Diffusion Models for High-Resolution Image Synthesis", arXiv 2307.01952.
    """

    pipeline_name: ClassVar[str] = "StableDiffusionXLPipeline"
    text_parts: ClassVar[tuple[str, ...]] = ("tokenizer", "text_encoder", "tokenizer_2", "text_encoder_2")
    text_adapter_parts: ClassVar[tuple[str, ...]] = ("text_encoder", "text_encoder_2")

    def __init__(
        self,
        model: str = "stabilityai/stable-diffusion-xl-base-1.0",
        image_size: int = 1024,
        num_steps: int = 50,
        guidance: float = 5.0,
        **shared: Unpack[PipelineArguments],
    ) -> None:
        super().__init__(model, image_size, num_steps=num_steps, guidance=guidance, **shared)

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

    def added(self, noised: Tensor, condition: Condition) -> dict[str, Tensor]:
        """Return the pooled embedding, and the size of the image before and after, with no crop."""
        pooled = condition["pooled_prompt_embeds"]
        height, width = (side * self.latents.factor for side in noised.shape[-2:])
        sizes = torch.tensor([height, width, 0, 0, height, width], dtype=pooled.dtype, device=pooled.device)
        return {"text_embeds": pooled, "time_ids": sizes.expand(len(pooled), -1)}
