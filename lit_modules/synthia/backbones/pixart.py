"""PixArt-Sigma: a transformer that predicts noise and reads T5."""

from collections.abc import Mapping
from typing import Any, ClassVar

from torch import Tensor

from lit_modules.synthia.backbones.base import Condition
from lit_modules.synthia.backbones.injected import InjectedBackbone
from lit_modules.synthia.backbones.pipeline import PipelineArguments
from lit_modules.synthia.core.sampling import precise
from lit_modules.utils.arguments import Unpack


class PixArtSigma(InjectedBackbone):
    """PixArt-Sigma.

    The network predicts a variance beside the noise, which is neither trained nor used, as in the pipeline. Prompts
    have 300 tokens. Images are drawn in the size that is asked for, as the pipeline does with
    ``use_resolution_binning=False``. The pipeline has no ``load_lora_weights``; see
    :class:`~lit_modules.synthia.backbones.injected.InjectedBackbone` for its adapters.

    Args:
        model: Folder or name of a ``PixArtSigmaPipeline``.
        image_size: Side of the images in pixels, a multiple of 16.
        num_steps: Usual steps of sampling.
        guidance: Usual scale of classifier-free guidance, 1 for none.

    References:
        Chen et al., "PixArt-Sigma: Weak-to-Strong Training of Diffusion Transformer for 4K Text-to-Image Generation",
        arXiv 2403.04692.
    """

    pipeline_name: ClassVar[str] = "PixArtSigmaPipeline"
    network_part: ClassVar[str] = "transformer"
    least_multiple: ClassVar[int] = 16
    call_options: ClassVar[Mapping[str, Any]] = {"use_resolution_binning": False, "negative_prompt": None}

    def __init__(
        self,
        model: str = "PixArt-alpha/PixArt-Sigma-XL-2-1024-MS",
        image_size: int = 1024,
        num_steps: int = 20,
        guidance: float = 4.5,
        **shared: Unpack[PipelineArguments],
    ) -> None:
        super().__init__(model, image_size, num_steps=num_steps, guidance=guidance, **shared)

    def encode_with(self, pipeline: Any, prompts: list[str]) -> Condition:
        """Return the hidden states of T5, and where there are tokens."""
        embeds, mask, _, _ = pipeline.encode_prompt(prompts, False, device=self.device)
        return {"prompt_embeds": embeds, "prompt_attention_mask": mask}

    def denoise(self, noised: Tensor, timesteps: Tensor, condition: Condition) -> Tensor:
        """Ask the transformer for the noise."""
        condition = self.cast(condition)
        answer: Tensor = self.network(
            noised.to(self.network.dtype),
            encoder_hidden_states=condition["prompt_embeds"],
            encoder_attention_mask=condition["prompt_attention_mask"],
            timestep=timesteps,
            added_cond_kwargs={"resolution": None, "aspect_ratio": None},
            return_dict=False,
        )[0]
        return precise(answer[:, : noised.shape[1]])
