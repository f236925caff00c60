"""FLUX.2 klein: a transformer of flow matching that reads layers of Qwen 3, guided or distilled to a few steps."""

from typing import Any, ClassVar

import torch
from torch import Tensor

from lit_modules.synthia.backbones.autoencoders import Flux2Latents, Latents
from lit_modules.synthia.backbones.base import Condition
from lit_modules.synthia.backbones.flow_matching import FlowBackbone
from lit_modules.synthia.backbones.pipeline import PipelineArguments
from lit_modules.synthia.core.sampling import precise
from lit_modules.utils.arguments import Unpack


class Flux2Klein(FlowBackbone):
    """FLUX.2 klein, base or distilled; the model says which it is.

    A distilled one is drawn without guidance, whatever ``guidance`` is.

    Args:
        model: Folder or name of a ``Flux2KleinPipeline``.
        image_size: Side of the images in pixels, a multiple of 16.
        num_steps: Usual steps of sampling; ``None`` is 4 for a distilled network, and 50 otherwise.
        guidance: Usual scale of classifier-free guidance, 1 for none.
        prompt_length: Tokens of a prompt in the chat template, 1 to 512; shorter ones are padded to it.

    References:
        Black Forest Labs, "FLUX.2 [klein]: Towards Interactive Visual Intelligence",
        https://bfl.ai/blog/flux2-klein-towards-interactive-visual-intelligence.
    """

    pipeline_name: ClassVar[str] = "Flux2KleinPipeline"
    latents_kind: ClassVar[type[Latents]] = Flux2Latents
    lora_targets: ClassVar[tuple[str, ...]] = (*FlowBackbone.lora_targets, "to_qkv_mlp_proj")
    spaces_sigmas: ClassVar[bool] = True

    def __init__(
        self,
        model: str = "black-forest-labs/FLUX.2-klein-base-9B",
        image_size: int = 1024,
        num_steps: int | None = None,
        guidance: float = 4.0,
        prompt_length: int = 512,
        **shared: Unpack[PipelineArguments],
    ) -> None:
        super().__init__(
            model, image_size, num_steps=num_steps, guidance=guidance, prompt_length=prompt_length, **shared
        )

    @property
    def is_distilled(self) -> bool:
        """True if the network draws in a few steps without guidance."""
        return bool(self.index.get("is_distilled", False))

    def pipeline_options(self) -> dict[str, Any]:
        """Say whether the network is distilled."""
        return {"is_distilled": self.is_distilled}

    def encode_with(self, pipeline: Any, prompts: list[str]) -> Condition:
        """Return the hidden states of three layers of Qwen 3."""
        embeds, _ = pipeline.encode_prompt(prompts, self.device, max_sequence_length=self.prompt_length)
        return {"prompt_embeds": embeds}

    def denoise(self, noised: Tensor, timesteps: Tensor, condition: Condition) -> Tensor:
        """Ask the transformer."""
        embeds = self.cast(condition)["prompt_embeds"]
        image, text = (torch.zeros(*shape, 4, device=noised.device) for shape in (noised.shape[2:], embeds.shape[1:2]))
        image[..., 1] += torch.arange(noised.shape[2], device=noised.device)[:, None]
        image[..., 2] += torch.arange(noised.shape[3], device=noised.device)
        text[..., 3] += torch.arange(len(text), device=noised.device)
        predicted: Tensor = self.network(
            hidden_states=noised.flatten(2).transpose(1, 2).to(self.network.dtype),
            timestep=timesteps / self.schedule.num_timesteps,
            encoder_hidden_states=embeds,
            txt_ids=text,
            img_ids=image.flatten(0, 1),
            return_dict=False,
        )[0]
        return precise(predicted).transpose(1, 2).reshape(noised.shape)

    def call_arguments(self, condition: Condition, guidance: float) -> dict[str, Any]:
        """Return the arguments of the pipeline; a distilled network goes without guidance."""
        return super().call_arguments(condition, 1.0 if self.is_distilled else guidance)

    def unpacked(self, latents: Tensor) -> Tensor:
        """Return the pipeline's latents, which are ready for the decoder, as the network sees them."""
        vae = self.held("images", "vae")
        return Flux2Latents(self.image_config).from_pipeline(vae, latents)

    def usual_steps(self) -> int:
        """Return the usual number of steps, which depends on the network."""
        return self.num_steps or (4 if self.is_distilled else 50)

    def usual_few_steps(self) -> int:
        """Return 8 steps, or the 4 of a network that is distilled to them."""
        return 4 if self.is_distilled else 8

    def shift(self, num_steps: int) -> float:
        """Return the logarithm of the shift, by the number of tokens and of steps."""
        from diffusers.pipelines.flux2.pipeline_flux2_klein import compute_empirical_mu

        _, height, width = self.latent_shape()
        shift: float = compute_empirical_mu(height * width, num_steps)
        return shift
