"""FLUX.1: a transformer of flow matching that is guided by a number, or distilled to a few steps."""

from typing import Any, ClassVar

import torch
from torch import Tensor

from lit_modules.synthia.backbones.base import Condition
from lit_modules.synthia.backbones.flow_matching import PackedFlowBackbone
from lit_modules.synthia.backbones.pipeline import PipelineArguments
from lit_modules.utils.arguments import Unpack


class Flux(PackedFlowBackbone):
    """FLUX.1, ``dev`` or ``schnell``.

    ``dev`` takes the scale of guidance as an input, in training as in sampling, so that no empty prompt is asked.
    ``schnell`` takes none, and draws in 4 steps.

    Latents have the shape of an image; the network sees squares of 2 x 2 of them as one token.

    Args:
        model: Folder or name of a ``FluxPipeline``.
        image_size: Side of the images in pixels, a multiple of 16.
        num_steps: Usual steps of sampling; ``None`` is 4 for a network without guidance, and 28 otherwise.
        guidance: Scale of guidance that a network with guidance is given.
        prompt_length: Tokens of a prompt for the T5 encoder, 1 to 512; ``schnell`` was made for 256.

    """

    pipeline_name: ClassVar[str] = "FluxPipeline"
    text_parts: ClassVar[tuple[str, ...]] = ("tokenizer", "text_encoder", "tokenizer_2", "text_encoder_2")
    text_adapter_parts: ClassVar[tuple[str, ...]] = ("text_encoder",)

    def __init__(
        self,
        model: str = "black-forest-labs/FLUX.1-dev",
        image_size: int = 1024,
        num_steps: int | None = None,
        guidance: float = 3.5,
        prompt_length: int = 512,
        **shared: Unpack[PipelineArguments],
    ) -> None:
        super().__init__(
            model, image_size, num_steps=num_steps, guidance=guidance, prompt_length=prompt_length, **shared
        )

    def encode_with(self, pipeline: Any, prompts: list[str]) -> Condition:
        """Return the hidden states of T5, and the pooled output of CLIP."""
        embeds, pooled, _ = pipeline.encode_prompt(prompts, device=self.device, max_sequence_length=self.prompt_length)
        return {"prompt_embeds": embeds, "pooled_prompt_embeds": pooled}

    def denoise(self, noised: Tensor, timesteps: Tensor, condition: Condition) -> Tensor:
        """Ask the transformer, with the scale of guidance if it takes one."""
        condition = self.cast(condition)
        embeds, guidance = condition["prompt_embeds"], None
        if self.network.config.guidance_embeds:
            guidance = torch.full((len(noised),), self.guidance, device=noised.device)
        return self.ask(
            noised,
            timestep=timesteps / self.schedule.num_timesteps,
            guidance=guidance,
            pooled_projections=condition["pooled_prompt_embeds"],
            encoder_hidden_states=embeds,
            **positions(noised, embeds),
        )

    def call_arguments(self, condition: Condition, guidance: float) -> dict[str, Any]:
        """Return the arguments of the pipeline; the scale of guidance is one of the network's inputs."""
        return {**condition, "guidance_scale": guidance}

    def usual_steps(self) -> int:
        """Return the usual number of steps, which depends on the network."""
        return self.num_steps or (28 if self.network.config.guidance_embeds else 4)

    def usual_few_steps(self) -> int:
        """Return 8 steps, or the 4 of a network that is distilled to them."""
        return 8 if self.network.config.guidance_embeds else 4

    def timestep_arguments(self, num_steps: int) -> dict[str, Any]:
        """Return the pipeline's spacing before the shift, which it leaves to a scheduler with levels of its own."""
        own = {"sigmas": None} if self.scheduler.config.get("use_flow_sigmas") else {}
        return super().timestep_arguments(num_steps) | own


def positions(noised: Tensor, embeds: Tensor) -> dict[str, Tensor]:
    """Return the positions of text and image tokens, ``(tokens, 3)``, as networks like that of FLUX.1 take them."""
    rows, columns = noised.shape[-2] // 2, noised.shape[-1] // 2
    image = torch.zeros(rows, columns, 3, device=noised.device, dtype=embeds.dtype)
    image[..., 1] += torch.arange(rows, device=noised.device)[:, None]
    image[..., 2] += torch.arange(columns, device=noised.device)
    return {"txt_ids": image.new_zeros(embeds.shape[1], 3), "img_ids": image.flatten(0, 1)}
