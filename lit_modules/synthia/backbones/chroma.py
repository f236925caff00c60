"""Chroma: FLUX.1 schnell made smaller and trained on, without CLIP, with guidance and a mask of the text."""

from typing import Any, ClassVar

import torch
from torch import Tensor

from lit_modules.synthia.backbones.base import Condition
from lit_modules.synthia.backbones.flow_matching import PackedFlowBackbone
from lit_modules.synthia.backbones.flux import positions
from lit_modules.synthia.backbones.pipeline import PipelineArguments
from lit_modules.synthia.backbones.recomputing import recompute
from lit_modules.utils.arguments import Unpack


class Chroma(PackedFlowBackbone):
    """Chroma 1.

    Args:
        model: Folder or name of a ``ChromaPipeline``.
        image_size: Side of the images in pixels, a multiple of 16.
        num_steps: Usual steps of sampling.
        guidance: Usual scale of classifier-free guidance, 1 for none.
        prompt_length: Tokens of a prompt for the T5 encoder, 1 to 512; the rest is cut off.

    References:
        Weights and description at https://huggingface.co/lodestones/Chroma1-HD.
    """

    pipeline_name: ClassVar[str] = "ChromaPipeline"

    def __init__(
        self,
        model: str = "lodestones/Chroma1-HD",
        image_size: int = 1024,
        num_steps: int = 35,
        guidance: float = 5.0,
        prompt_length: int = 512,
        **shared: Unpack[PipelineArguments],
    ) -> None:
        super().__init__(
            model, image_size, num_steps=num_steps, guidance=guidance, prompt_length=prompt_length, **shared
        )

    def encode_with(self, pipeline: Any, prompts: list[str]) -> Condition:
        """Return the hidden states of T5, and a mask of the tokens and one of padding."""
        embeds, _, mask, *_ = pipeline.encode_prompt(
            prompts, device=self.device, do_classifier_free_guidance=False, max_sequence_length=self.prompt_length
        )
        return {"prompt_embeds": embeds, "prompt_attention_mask": mask}

    def denoise(self, noised: Tensor, timesteps: Tensor, condition: Condition) -> Tensor:
        """Ask the transformer."""
        condition = self.cast(condition)
        embeds, mask = condition["prompt_embeds"], condition["prompt_attention_mask"]
        squares = noised.shape[-2] // 2 * (noised.shape[-1] // 2)
        return self.ask(
            noised,
            timestep=timesteps / self.schedule.num_timesteps,
            encoder_hidden_states=embeds,
            attention_mask=torch.cat([mask, mask.new_ones(len(mask), squares)], 1),
            **positions(noised, embeds),
        )

    def enable_checkpointing(self) -> None:
        """Recompute each block in the backward pass; diffusers' own way loses the mask of some."""
        recompute([*self.network.transformer_blocks, *self.network.single_transformer_blocks])
