"""Sana: a linear transformer of flow matching in the small latents of a deep compression autoencoder."""

import inspect
from collections.abc import Mapping
from typing import Any, ClassVar

from torch import Tensor

from lit_modules.synthia.backbones.autoencoders import DeepCompressionLatents, Latents
from lit_modules.synthia.backbones.base import Backbone, Condition
from lit_modules.synthia.backbones.flow_matching import FlowBackbone
from lit_modules.synthia.backbones.pipeline import PipelineArguments
from lit_modules.synthia.core.sampling import precise
from lit_modules.utils.arguments import Unpack


class Sana(FlowBackbone):
    """Sana 1.0 and 1.5; not Sana Sprint.

    Gemma 2 reads a prompt behind the instruction that the pipeline gives it by default. An empty prompt goes without,
    in training as in guidance. Images are drawn in the size that is asked for, as the pipeline does with
    ``use_resolution_binning=False``. The autoencoder gives no distribution: latents have a standard deviation of 0.

    Args:
        model: Folder or name of a ``SanaPipeline``.
        image_size: Side of the images in pixels, a multiple of 32.
        num_steps: Usual steps of sampling.
        guidance: Usual scale of classifier-free guidance, 1 for none.
        prompt_length: Tokens of a prompt beside the instruction, 1 to 300; the rest is cut off.

    References:
        Xie et al., "SANA: Efficient High-Resolution Image Synthesis with Linear Diffusion Transformers", arXiv
        2410.10629.
    """

    pipeline_name: ClassVar[str] = "SanaPipeline"
    latents_kind: ClassVar[type[Latents]] = DeepCompressionLatents
    least_multiple: ClassVar[int] = 32
    lora_targets: ClassVar[tuple[str, ...]] = Backbone.lora_targets
    longest_prompt: ClassVar[int] = 300
    call_options: ClassVar[Mapping[str, Any]] = {"use_resolution_binning": False, "negative_prompt": None}

    def __init__(
        self,
        model: str = "Efficient-Large-Model/Sana_1600M_1024px_BF16_diffusers",
        image_size: int = 1024,
        num_steps: int = 20,
        guidance: float = 4.5,
        prompt_length: int = 300,
        **shared: Unpack[PipelineArguments],
    ) -> None:
        super().__init__(
            model, image_size, num_steps=num_steps, guidance=guidance, prompt_length=prompt_length, **shared
        )

    def encode_with(self, pipeline: Any, prompts: list[str]) -> Condition:
        """Return the hidden states of Gemma 2, and where there are tokens."""
        name = "complex_human_instruction"  # which encode_prompt knows no default of
        instruction = inspect.signature(pipeline.__call__).parameters[name].default
        return self.encode_masked(pipeline, prompts, **{name: instruction})

    def denoise(self, noised: Tensor, timesteps: Tensor, condition: Condition) -> Tensor:
        """Ask the transformer."""
        condition = self.cast(condition)
        prediction: Tensor = self.network(
            noised.to(self.network.dtype),
            encoder_hidden_states=condition["prompt_embeds"],
            encoder_attention_mask=condition["prompt_attention_mask"],
            timestep=timesteps * self.network.config.timestep_scale,
            return_dict=False,
        )[0]
        return precise(prediction)
