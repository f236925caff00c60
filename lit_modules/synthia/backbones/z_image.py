"""Z-Image: a transformer of flow matching that takes the text's and the image's tokens as one sequence."""

from typing import Any, ClassVar

import torch
from torch import Tensor
from torch.nn.utils.rnn import pad_sequence

from lit_modules.synthia.backbones.base import Backbone, Condition
from lit_modules.synthia.backbones.flow_matching import FlowBackbone
from lit_modules.synthia.backbones.pipeline import PipelineArguments
from lit_modules.synthia.core.sampling import precise
from lit_modules.utils.arguments import Unpack


class ZImage(FlowBackbone):
    """Z-Image, and Z-Image Turbo with ``num_steps=8`` and ``guidance=1.0``.

    The network's time runs from noise to image and its velocity with it; :meth:`denoise` turns both. Prompts keep the
    length that they have.

    Args:
        model: Folder or name of a ``ZImagePipeline``.
        image_size: Side of the images in pixels, a multiple of 16.
        num_steps: Usual steps of sampling.
        guidance: Usual scale of classifier-free guidance in the usual notation, 1 for none; the pipeline's
            ``guidance_scale`` is one less.
        prompt_length: Tokens of a prompt in the chat template, 1 to 512; the rest is cut off.

    References:
        Cai et al., "Z-Image: An Efficient Image Generation Foundation Model with Single-Stream Diffusion Transformer",
        arXiv 2511.22699.
    """

    pipeline_name: ClassVar[str] = "ZImagePipeline"
    lora_targets: ClassVar[tuple[str, ...]] = Backbone.lora_targets
    length_mask: ClassVar[str | None] = "prompt_mask"
    guidance_offset: ClassVar[int] = 1
    spaces_sigmas: ClassVar[bool] = True

    def __init__(
        self,
        model: str = "Tongyi-MAI/Z-Image-Turbo",
        image_size: int = 1024,
        num_steps: int = 8,
        guidance: float = 1.0,
        prompt_length: int = 512,
        **shared: Unpack[PipelineArguments],
    ) -> None:
        super().__init__(
            model, image_size, num_steps=num_steps, guidance=guidance, prompt_length=prompt_length, **shared
        )

    def encode_with(self, pipeline: Any, prompts: list[str]) -> Condition:
        """Return the hidden states of Qwen 3 before its last layer, and where there are tokens."""
        rows, _ = pipeline.encode_prompt(prompts, self.device, False, max_sequence_length=self.prompt_length)
        marks = [torch.ones(len(row), dtype=torch.bool, device=row.device) for row in rows]
        embeds, mask = (pad_sequence(values, batch_first=True) for values in (rows, marks))
        return {"prompt_embeds": embeds, "prompt_mask": mask}

    def denoise(self, noised: Tensor, timesteps: Tensor, condition: Condition) -> Tensor:
        """Ask the transformer."""
        velocities: list[Tensor] = self.network(
            list(noised.to(self.network.dtype).unsqueeze(2)),
            1 - timesteps / self.schedule.num_timesteps,
            self._prompts(self.cast(condition)),
            return_dict=False,
        )[0]
        return -precise(torch.stack(list(velocities)).squeeze(2))

    def prompt_arguments(self, condition: Condition, prefix: str = "") -> dict[str, Any]:
        """Return prompts as the pipeline takes them."""
        return {f"{prefix}prompt_embeds": self._prompts(condition)}

    def _prompts(self, condition: Condition) -> list[Tensor]:
        return [row["prompt_embeds"] for row in self.split(condition)]
