"""Kandinsky 3 and the distilled Kandinsky 3.1 Flash: a U-Net that reads Flan-UL2, in the latents of a MoVQ."""

from collections.abc import Sequence
from functools import cached_property, partial
from pathlib import Path
from typing import Any, ClassVar

import torch
from torch import Tensor, nn

from lit_modules.synthia.backbones.autoencoders import Latents, MoVQLatents
from lit_modules.synthia.backbones.base import Condition, Precision
from lit_modules.synthia.backbones.injected import InjectedBackbone
from lit_modules.synthia.backbones.kandinsky3_weights import load_movq, load_u_net, movq_config, read_weights
from lit_modules.synthia.backbones.pipeline import PrecisionArguments, WeightArguments
from lit_modules.synthia.backbones.recomputing import recompute
from lit_modules.synthia.core.sampling import (
    NoiseSchedule,
    cosine_alphas_cumprod,
    precise,
    spaced_timesteps,
)
from lit_modules.utils.arguments import Unpack

_FILES = "kandinsky3_flash.pt, movq.pt and flan_ul2_encoder, with projection_flash.pt in it"


class Kandinsky3(InjectedBackbone):
    """Kandinsky 3.0, as ``kandinsky-community/kandinsky-3``.

    Prompts have 128 tokens. The network pools over the tokens of a prompt and one more; the pipeline takes those of the
    longest prompt in the batch. Here each row has its own number, so that a row does not depend on its batch; alone it
    is as in the pipeline. An empty prompt is all zeros, in guidance and in training. Latents are not scaled, and have
    no distribution: their standard deviation is 0.

    The pipeline has no ``load_lora_weights``; see
    :class:`~lit_modules.synthia.backbones.injected.InjectedBackbone` for its adapters.

    Args:
        model: Folder or name of a ``Kandinsky3Pipeline``.
        image_size: Side of the images in pixels, a multiple of 64.
        num_steps: Usual steps of sampling.
        guidance: Usual scale of classifier-free guidance in the usual notation, 1 for none, otherwise more than 2; the
            pipeline's ``guidance_scale`` is one less.

    Example:
        >>> Kandinsky3("kandinsky-community/kandinsky-3", variant="fp16").guidance
        4.0

    References:
        Arkhipkin et al., "Kandinsky 3.0 Technical Report", arXiv 2312.03511.
    """

    pipeline_name: ClassVar[str] = "Kandinsky3Pipeline"
    encoder_part: ClassVar[str] = "movq"
    latents_kind: ClassVar[type[Latents]] = MoVQLatents
    least_multiple: ClassVar[int] = 64
    guidance_offset: ClassVar[int] = 1
    pools_padding: ClassVar[bool] = True
    """True if the one more token that is pooled is projected padding, as in the pipeline, and not zeros."""

    def __init__(
        self,
        model: str = "kandinsky-community/kandinsky-3",
        image_size: int = 1024,
        num_steps: int = 25,
        guidance: float = 4.0,
        **shared: Unpack[PrecisionArguments],
    ) -> None:
        super().__init__(model, image_size, num_steps=num_steps, guidance=guidance, vae_slicing=False, **shared)
        _check_guidance(guidance)

    def load_network(self) -> None:
        """Load the network, and let it pool over each row's own tokens."""
        super().load_network()
        self._pool_by_row()

    def encode_with(self, pipeline: Any, prompts: list[str]) -> Condition:
        """Return the hidden states of Flan-UL2, zero where there is no token, and where there are tokens."""
        embeds, _, mask, _ = pipeline.encode_prompt(prompts, False, device=self.device)
        shown = torch.tensor([prompt != "" for prompt in prompts], device=self.device)
        return {"prompt_embeds": embeds * shown[:, None, None], "prompt_mask": mask * shown[:, None]}

    def denoise(self, noised: Tensor, timesteps: Tensor, condition: Condition) -> Tensor:
        """Ask the U-Net."""
        prediction: Tensor = self.network(
            noised.to(self.network.dtype),
            timesteps,
            encoder_hidden_states=self.cast(condition)["prompt_embeds"],
            encoder_attention_mask=condition["prompt_mask"],
            return_dict=False,
        )[0]
        return precise(prediction)

    def call_arguments(self, condition: Condition, guidance: float) -> dict[str, Any]:
        """Return the arguments of the pipeline, for a scale that it takes."""
        _check_guidance(guidance)
        return super().call_arguments(condition, guidance)

    def prompt_arguments(self, condition: Condition, prefix: str = "") -> dict[str, Any]:
        """Return prompts as the pipeline takes them."""
        return {
            f"{prefix}prompt_embeds": condition["prompt_embeds"],
            f"{prefix}attention_mask": condition["prompt_mask"],
        }

    def enable_checkpointing(self) -> None:
        """Recompute each residual and attention block in the backward pass."""
        levels = (*self.network.down_blocks, *self.network.up_blocks)
        blocks = [block for each in levels for block in (*each.attentions, *each.resnets_in, *each.resnets_out)]
        recompute(block for block in blocks if not isinstance(block, nn.Identity))

    def _pool_by_row(self) -> None:
        pooling = self.network.add_time_condition
        pooling.forward = partial(_pooled_by_row, pooling, self.pools_padding)


class Kandinsky3Flash(Kandinsky3):
    """Kandinsky 3.1 Flash, which draws in 4 steps without guidance; the model that Synthia was published with.

    ``model`` is a folder or name of the published weights, which are not in the format of diffusers and are converted:
    ``kandinsky3_flash.pt``, ``movq.pt`` and ``flan_ul2_encoder`` with ``projection_flash.pt`` in it, itself or in
    ``weights``. Or it is a ``Kandinsky3Pipeline`` in the format of diffusers whose U-Net is that of Flash.

    The sampler noises to timesteps 979, 729, 479 and 229 of the cosine schedule, each time afresh, and takes the clean
    latents that the network's answer implies. The first of them divides by 0.03, so it runs without autocast; keep the
    network in float32.

    Args:
        model: Folder or name of the weights.
        image_size: Side of the images in pixels, a multiple of 64.
        precision: Type of the network's weights; what trains is float32 in any case.
        encoder_precision: Type of the frozen encoders; ``None`` takes ``precision``.
        num_steps: Steps of sampling, from timestep 979 down.

    Raises:
        ValueError: If an argument is out of its range; in ``load``, if the weights are of another model.
        FileNotFoundError: In ``load``, if weights are missing.

    References:
        Arkhipkin et al., "Kandinsky 3: Text-to-Image Synthesis for Multifunctional Generative Framework", arXiv
        2410.21061 (Flash).
        Ha et al., "SYNTHIA: Novel Concept Design with Affordance Composition", arXiv 2502.17793.
    """

    pools_padding: ClassVar[bool] = False
    few_step_rule = "renoise"
    full_precision_steps = 1

    def __init__(
        self,
        model: str = "ai-forever/Kandinsky3.1",
        image_size: int = 1024,
        num_steps: int = 4,
        precision: Precision = "float32",
        encoder_precision: Precision | None = "bfloat16",
        **shared: Unpack[WeightArguments],
    ) -> None:
        super().__init__(
            model,
            image_size,
            num_steps=num_steps,
            guidance=1.0,
            precision=precision,
            encoder_precision=encoder_precision,
            **shared,
        )

    @cached_property
    def published(self) -> bool:
        """Return whether the weights are the published ones, not in the format of diffusers."""
        if Path(self.model).is_dir():
            return not (Path(self.model) / "model_index.json").is_file()
        try:
            _ = self.index
        except FileNotFoundError:
            return True
        return False

    @property
    def hub_file(self) -> str:
        """A file that the model has on the Hub."""
        return "weights/movq.pt" if self.published else super().hub_file

    def file(self, name: str) -> str:
        """Return the path of one of the published files."""
        for folder in (Path(self.model), Path(self.model) / "weights"):
            if (folder / name).exists():
                return str(folder / name)
        if not Path(self.model).is_dir():
            from huggingface_hub import hf_hub_download

            try:
                return hf_hub_download(self.model, f"weights/{name}")
            except (OSError, ValueError) as error:
                raise FileNotFoundError(
                    f"There is no model {self.model!r} that can be reached with {_FILES}, nor one in the format of "
                    f"diffusers: no {name}."
                ) from error
        raise FileNotFoundError(
            f"The folder {self.model} must hold {_FILES}, itself or in 'weights', or a Kandinsky3Pipeline in the "
            f"format of diffusers; {name} is missing."
        )

    @cached_property
    def image_config(self) -> dict[str, Any]:
        """Return the configuration of the MoVQ, and check the images' size against it."""
        if not self.published:
            return super().image_config
        config = movq_config(read_weights(self.file("movq.pt")))
        self.check_image_size(config)
        return config

    def component(self, name: str, dtype: torch.dtype | None = None, folder: str | None = None) -> Any:
        """Load a part, converted if it is a published one."""
        if not self.published:
            return super().component(name, dtype, folder)
        if name == "unet" and folder is None:
            projection = self.file("flan_ul2_encoder/projection_flash.pt")
            return load_u_net(self.file("kandinsky3_flash.pt"), projection, dtype)
        if name == "unet":
            from diffusers import Kandinsky3UNet

            return self.read(Kandinsky3UNet, name, str(folder), subfolder=name, torch_dtype=dtype)
        if name == "movq":
            return load_movq(self.file("movq.pt"), dtype)
        from transformers import T5EncoderModel, T5Tokenizer

        options: dict[str, Any] = {} if dtype is None else {"dtype": dtype}
        source, subfolder = self.model, "weights/flan_ul2_encoder"
        if Path(self.model).is_dir():
            source, subfolder = self.file("flan_ul2_encoder"), ""
        kind: Any = T5Tokenizer if name == "tokenizer" else T5EncoderModel
        return self.read(kind, name, source, subfolder=subfolder, **options)

    def load_network(self) -> None:
        """Load the network; the schedule is the cosine one."""
        _ = self.image_config
        self.schedule = NoiseSchedule(cosine_alphas_cumprod(), "epsilon")
        self.network = self.component("unet", self.dtype, self.trained_network)
        self._pool_by_row()

    def encode_with(self, pipeline: Any, prompts: list[str]) -> Condition:
        """Return the hidden states of Flan-UL2, of an empty prompt as of any other, and where there are tokens."""
        embeds, _, mask, _ = pipeline.encode_prompt(prompts, False, device=self.device)
        return {"prompt_embeds": embeds, "prompt_mask": mask}

    def few_step_timesteps(self, num_steps: int | None) -> tuple[int, ...]:
        """Return the timesteps that the model was distilled for."""
        return spaced_timesteps(num_steps or self.usual_steps(), self.schedule.num_timesteps)

    @torch.no_grad()
    def generate(
        self,
        condition: Condition,
        generators: Sequence[torch.Generator],
        num_steps: int | None = None,
        guidance: float | None = None,
    ) -> Tensor:
        """Sample in a few steps, without guidance."""
        if guidance is not None and guidance != 1:
            raise ValueError(f"Kandinsky3Flash draws without guidance, which is a scale of 1, got {guidance}.")
        self.load("images", "network")
        sampler = self.few_step_sampler(num_steps, None, checkpointing=False)
        return self.sample_images(sampler, self.denoise, condition, generators)


def _check_guidance(guidance: float) -> None:
    if 1 < guidance <= 2:
        raise ValueError(f"Kandinsky3 is guided by a scale of more than 2, or by 1 for none, got {guidance}.")


def _pooled_by_row(pooling: Any, pools_padding: bool, time: Tensor, context: Tensor, context_mask: Tensor) -> Tensor:
    """Add to the embedded time what attention finds from the mean of each row's own tokens, and one more."""
    shown = context_mask[:, 0] == 0
    number = (shown.sum(1, keepdim=True) + 1).clamp(max=shown.shape[1])
    taken = shown
    if pools_padding:
        taken = torch.arange(shown.shape[1], device=shown.device) < number
    mean = (context.float() * (taken / number)[:, :, None]).sum(1, keepdim=True).to(context.dtype)
    pooled: Tensor = pooling.attention(mean, context, context_mask.to(context.dtype)).squeeze(1)
    return time + pooled
