"""Lumina Image 2.0: a transformer of flow matching that reads Gemma 2."""

from typing import Any, ClassVar

from torch import Tensor

from lit_modules.synthia.backbones.base import Backbone, Condition
from lit_modules.synthia.backbones.flow_matching import FlowBackbone
from lit_modules.synthia.backbones.pipeline import PipelineArguments
from lit_modules.synthia.core.sampling import precise
from lit_modules.utils.arguments import Unpack


class Lumina2(FlowBackbone):
    """Lumina Image 2.0.

    Gemma 2 reads a prompt behind the pipeline's system prompt. An empty prompt goes without, in training as in
    guidance. The network's time runs from noise to image and its velocity with it; :meth:`denoise` turns both.

    Args:
        model: Folder or name of a ``Lumina2Pipeline``.
        image_size: Side of the images in pixels, a multiple of 16.
        num_steps: Usual steps of sampling.
        guidance: Usual scale of classifier-free guidance, 1 for none.
        prompt_length: Tokens of a prompt and the system prompt, 1 to 256; the rest is cut off.

    References:
        Qin et al., "Lumina-Image 2.0: A Unified and Efficient Image Generative Framework", arXiv 2503.21758.
    """

    pipeline_name: ClassVar[str] = "Lumina2Pipeline"
    lora_targets: ClassVar[tuple[str, ...]] = Backbone.lora_targets
    longest_prompt: ClassVar[int] = 256
    spaces_sigmas: ClassVar[bool] = True

    def __init__(
        self,
        model: str = "Alpha-VLLM/Lumina-Image-2.0",
        image_size: int = 1024,
        num_steps: int = 30,
        guidance: float = 4.0,
        prompt_length: int = 256,
        **shared: Unpack[PipelineArguments],
    ) -> None:
        super().__init__(
            model, image_size, num_steps=num_steps, guidance=guidance, prompt_length=prompt_length, **shared
        )

    def encode_with(self, pipeline: Any, prompts: list[str]) -> Condition:
        """Return the hidden states of Gemma 2 before its last layer, and where there are tokens."""
        return self.encode_masked(pipeline, prompts)

    def denoise(self, noised: Tensor, timesteps: Tensor, condition: Condition) -> Tensor:
        """Ask the transformer."""
        condition = self.cast(condition)
        velocity: Tensor = self.network(
            hidden_states=noised.to(self.network.dtype),
            timestep=1 - timesteps / self.schedule.num_timesteps,
            encoder_hidden_states=condition["prompt_embeds"],
            encoder_attention_mask=condition["prompt_attention_mask"],
            return_dict=False,
        )[0]
        return -precise(velocity)

    def shifting_length(self) -> int:
        """Return the number of channels, which the pipeline takes for that of the tokens."""
        return self.latent_shape()[0]
