"""Stable Diffusion 3 and 3.5: a transformer of flow matching that reads three text encoders."""

from typing import Any, ClassVar, Literal

import torch
from torch import Tensor

from lit_modules.synthia.backbones.base import Condition
from lit_modules.synthia.backbones.flow_matching import FlowBackbone
from lit_modules.synthia.backbones.pipeline import PipelineArguments
from lit_modules.synthia.core.sampling import precise
from lit_modules.utils.arguments import Unpack


class StableDiffusion3(FlowBackbone):
    """Stable Diffusion 3 and 3.5.

    Timesteps are drawn logit-normally in training. The shift of the pipeline's schedule belongs to sampling, in
    :meth:`generate` and in :meth:`few_step_sampler`.

    Args:
        model: Folder or name of a ``StableDiffusion3Pipeline``; one that was saved without T5 goes without.
        image_size: Side of the images in pixels, a multiple of 16.
        num_steps: Usual steps of sampling.
        guidance: Usual scale of classifier-free guidance, 1 for none.
        prompt_length: Tokens of a prompt for the T5 encoder, 1 to 512; the rest is cut off.
        t5: Whether to use the T5 encoder, the largest part of the model; without it its states are zeros, as in
            diffusers with ``text_encoder_3=None``.

    References:
        Esser et al., "Scaling Rectified Flow Transformers for High-Resolution Image Synthesis", arXiv 2403.03206.
    """

    pipeline_name: ClassVar[str] = "StableDiffusion3Pipeline"
    text_parts: ClassVar[tuple[str, ...]] = (
        *("tokenizer", "text_encoder", "tokenizer_2", "text_encoder_2"),
        *("tokenizer_3", "text_encoder_3"),
    )
    text_adapter_parts: ClassVar[tuple[str, ...]] = ("text_encoder", "text_encoder_2")

    def __init__(
        self,
        model: str = "stabilityai/stable-diffusion-3.5-medium",
        image_size: int = 1024,
        num_steps: int = 40,
        guidance: float = 4.5,
        prompt_length: int = 256,
        t5: bool = True,
        **shared: Unpack[PipelineArguments],
    ) -> None:
        super().__init__(
            model, image_size, num_steps=num_steps, guidance=guidance, prompt_length=prompt_length, **shared
        )
        self.t5 = t5

    def identity(self, part: Literal["text", "images"]) -> str:
        """Return what encodings of a part depend on."""
        return f"{super().identity(part)}/{self.t5}"

    @property
    def has_t5(self) -> bool:
        """True if the T5 encoder is there and used."""
        return self.t5 and all(self.index.get("text_encoder_3") or (None,))

    def present_text_parts(self) -> tuple[str, ...]:
        """Return the tokenizers and text encoders that are used."""
        return tuple(name for name in self.text_parts if self.has_t5 or not name.endswith("_3"))

    def pipeline(self, **components: Any) -> Any:
        """Return the pipeline around some of its parts; without T5 it reads the network's width from its shell."""
        if "text_encoder" in components and not self.has_t5:
            kind = self.component_class("transformer")
            with torch.device("meta"):
                shell = kind.from_config(kind.load_config(self.model, subfolder="transformer"))
            components["transformer"] = shell
        return super().pipeline(**components)

    def encode_with(self, pipeline: Any, prompts: list[str]) -> Condition:
        """Return the hidden states of the text encoders, and the pooled output of the first two."""
        embeds, _, pooled, _ = pipeline.encode_prompt(
            prompts,
            None,
            None,
            device=self.device,
            do_classifier_free_guidance=False,
            max_sequence_length=self.prompt_length,
        )
        return {"prompt_embeds": embeds, "pooled_prompt_embeds": pooled}

    def denoise(self, noised: Tensor, timesteps: Tensor, condition: Condition) -> Tensor:
        """Ask the transformer."""
        condition = self.cast(condition)
        prediction: Tensor = self.network(
            hidden_states=noised.to(self.network.dtype),
            timestep=timesteps,
            encoder_hidden_states=condition["prompt_embeds"],
            pooled_projections=condition["pooled_prompt_embeds"],
            return_dict=False,
        )[0]
        return precise(prediction)
