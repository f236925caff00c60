"""Qwen-Image: a transformer of flow matching that reads Qwen 2.5 VL."""

from typing import Any, ClassVar

import torch
from torch import Tensor

from lit_modules.synthia.backbones.autoencoders import Latents, QwenImageLatents
from lit_modules.synthia.backbones.base import Condition
from lit_modules.synthia.backbones.flow_matching import PackedFlowBackbone
from lit_modules.synthia.backbones.pipeline import PipelineArguments
from lit_modules.utils.arguments import Unpack


class QwenImage(PackedFlowBackbone):
    """Qwen-Image.

    Guidance is the pipeline's ``true_cfg_scale``, away from an empty prompt. Prompts keep the length that they have.

    Args:
        model: Folder or name of a ``QwenImagePipeline``.
        image_size: Side of the images in pixels, a multiple of 16.
        num_steps: Usual steps of sampling.
        guidance: Usual scale of classifier-free guidance, 1 for none.
        prompt_length: Tokens of a prompt in the pipeline's template, 1 to 1024; the rest is cut off.

    References:
        Wu et al., "Qwen-Image Technical Report", arXiv 2508.02324.
    """

    pipeline_name: ClassVar[str] = "QwenImagePipeline"
    latents_kind: ClassVar[type[Latents]] = QwenImageLatents
    length_mask: ClassVar[str | None] = "prompt_embeds_mask"
    longest_prompt: ClassVar[int] = 1024
    guidance_argument: ClassVar[str] = "true_cfg_scale"

    def __init__(
        self,
        model: str = "Qwen/Qwen-Image",
        image_size: int = 1024,
        num_steps: int = 50,
        guidance: float = 4.0,
        prompt_length: int = 512,
        **shared: Unpack[PipelineArguments],
    ) -> None:
        super().__init__(
            model, image_size, num_steps=num_steps, guidance=guidance, prompt_length=prompt_length, **shared
        )

    def encode_with(self, pipeline: Any, prompts: list[str]) -> Condition:
        """Return the hidden states of Qwen 2.5 VL, and where there are tokens."""
        embeds, mask = pipeline.encode_prompt(prompts, self.device, max_sequence_length=self.prompt_length)
        if mask is None:  # all are as long
            mask = torch.ones(embeds.shape[:2], dtype=torch.long, device=self.device)
        return {"prompt_embeds": embeds, "prompt_embeds_mask": mask}

    def denoise(self, noised: Tensor, timesteps: Tensor, condition: Condition) -> Tensor:
        """Ask the transformer."""
        condition = self.cast(condition)
        return self.ask(
            noised,
            timestep=timesteps / self.schedule.num_timesteps,
            encoder_hidden_states=condition["prompt_embeds"],
            encoder_hidden_states_mask=condition["prompt_embeds_mask"],
            img_shapes=[[(1, noised.shape[-2] // 2, noised.shape[-1] // 2)]] * len(noised),
        )
