"""HiDream-I1: a transformer of flow matching with routed experts that reads CLIP, T5 and Llama 3.1."""

from typing import Any, ClassVar, Literal

import torch
from torch import Tensor

from lit_modules.synthia.backbones.base import Backbone, Condition
from lit_modules.synthia.backbones.flow_matching import FlowBackbone
from lit_modules.synthia.backbones.pipeline import PipelineArguments
from lit_modules.synthia.core.sampling import precise
from lit_modules.utils.arguments import Unpack


class HiDream(FlowBackbone):
    """HiDream-I1, Full, Dev or Fast.

    The pipeline draws images of the area of ``pipeline.default_sample_size``, 1024 x 1024 as published, whatever size
    it is asked for; here it is that of ``image_size``. Gradients pass through the routed experts too, which diffusers
    leave out in evaluation mode.

    Args:
        model: Folder or name of a ``HiDreamImagePipeline``.
        image_size: Side of the images in pixels, a multiple of 16.
        num_steps: Usual steps of sampling; 28 for Dev and 16 for Fast.
        guidance: Usual scale of classifier-free guidance, 1 for none, as Dev and Fast need it.
        prompt_length: Tokens of a prompt, 1 to 128; the rest is cut off.
        llama: Folder or name of Llama 3.1 8B, which the published pipeline goes without.

    References:
        Cai et al., "HiDream-I1: A High-Efficient Image Generative Foundation Model with Sparse Diffusion Transformer",
        arXiv 2505.22705.
    """

    pipeline_name: ClassVar[str] = "HiDreamImagePipeline"
    lora_targets: ClassVar[tuple[str, ...]] = (*Backbone.lora_targets[:3], "to_out")
    text_parts: ClassVar[tuple[str, ...]] = tuple(
        f"{kind}{number}" for number in ("", "_2", "_3", "_4") for kind in ("tokenizer", "text_encoder")
    )
    longest_prompt: ClassVar[int] = 128

    def __init__(
        self,
        model: str = "HiDream-ai/HiDream-I1-Full",
        image_size: int = 1024,
        num_steps: int = 50,
        guidance: float = 5.0,
        prompt_length: int = 128,
        llama: str = "meta-llama/Meta-Llama-3.1-8B-Instruct",
        **shared: Unpack[PipelineArguments],
    ) -> None:
        super().__init__(
            model, image_size, num_steps=num_steps, guidance=guidance, prompt_length=prompt_length, **shared
        )
        self.llama = llama

    def identity(self, part: Literal["text", "images"]) -> str:
        """Return what encodings of a part depend on."""
        return f"{super().identity(part)}/{self.llama}"

    def component(self, name: str, dtype: torch.dtype | None = None, folder: str | None = None) -> Any:
        """Load a part of the pipeline, or the Llama that it goes without."""
        if not name.endswith("_4") or all(self.index.get(name) or (None,)):
            return super().component(name, dtype, folder)
        from transformers import AutoTokenizer, LlamaForCausalLM

        kind: Any = AutoTokenizer if dtype is None else LlamaForCausalLM
        return self.read(kind, name, self.llama, **{} if dtype is None else {"dtype": dtype})

    def pipeline(self, **components: Any) -> Any:
        """Return the pipeline around some of its parts, which draws images of our size."""
        pipeline = super().pipeline(**components)
        pipeline.default_sample_size = self.image_size // pipeline.vae_scale_factor
        return pipeline

    def encode_with(self, pipeline: Any, prompts: list[str]) -> Condition:
        """Return T5's states, those of Llama's layers ``(batch, layer, token, width)``, and CLIP's pooled output."""
        embeds, _, llama, _, pooled, _ = pipeline.encode_prompt(
            prompts, device=self.device, do_classifier_free_guidance=False, max_sequence_length=self.prompt_length
        )
        return {"prompt_embeds": embeds, "llama_embeds": llama.transpose(0, 1), "pooled_prompt_embeds": pooled}

    def prompt_arguments(self, condition: Condition, prefix: str = "") -> dict[str, Any]:
        """Return prompts as the pipeline takes them."""
        return {
            f"{prefix}prompt_embeds_t5": condition["prompt_embeds"],
            f"{prefix}prompt_embeds_llama3": condition["llama_embeds"].transpose(0, 1),
            f"{prefix}pooled_prompt_embeds": condition["pooled_prompt_embeds"],
        }

    def denoise(self, noised: Tensor, timesteps: Tensor, condition: Condition) -> Tensor:
        """Ask the transformer, whose velocity runs from noise to image."""
        condition, network = self.cast(condition), self.network
        velocity: Tensor = network(
            hidden_states=noised.to(network.dtype),
            timesteps=timesteps,
            encoder_hidden_states_t5=condition["prompt_embeds"],
            encoder_hidden_states_llama3=condition["llama_embeds"].transpose(0, 1),
            pooled_embeds=condition["pooled_prompt_embeds"],
            return_dict=False,
        )[0]
        if network.training and not network.config.force_inference_output:  # it leaves squares apart in training
            side = network.config.patch_size
            rows, columns = noised.shape[-2] // side, noised.shape[-1] // side
            squares = velocity[:, :, : rows * columns].reshape(*noised.shape[:2], rows, columns, side, side)
            velocity = squares.transpose(3, 4).reshape(noised.shape)
        return -precise(velocity)

    def shift(self, num_steps: int) -> float:
        """Return the logarithm of the shift, which the pipeline computes by the most tokens that the network takes."""
        from diffusers.pipelines.hidream_image.pipeline_hidream_image import calculate_shift

        shift: float = calculate_shift(self.network.max_seq)
        return shift
