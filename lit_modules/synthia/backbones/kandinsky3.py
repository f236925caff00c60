"""Kandinsky 3 and the distilled Kandinsky 3.1 Flash: a U-Net that reads Flan-UL2, in the latents of a MoVQ."""

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from functools import cached_property, partial
from pathlib import Path
from typing import Any, ClassVar

import torch
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from lit_modules.synthia.backbones.base import Condition, Precision
from lit_modules.synthia.backbones.kandinsky3_weights import load_movq, load_u_net, movq_config, read_weights
from lit_modules.synthia.backbones.pipeline import PipelineBackbone, PrecisionArguments, WeightArguments
from lit_modules.synthia.core.sampling import (
    NoiseSchedule,
    cosine_alphas_cumprod,
    precise,
    spaced_timesteps,
)
from lit_modules.utils.adapters import without_dropout
from lit_modules.utils.arguments import Unpack

_PREFIX = "base_model.model."
_FILES = "kandinsky3_flash.pt, movq.pt and flan_ul2_encoder, with projection_flash.pt in it"


class Kandinsky3(PipelineBackbone):
    """Kandinsky 3.0, as ``kandinsky-community/kandinsky-3``.

    Prompts have 128 tokens. The network pools over the tokens of a prompt and one more; the pipeline takes those of the
    longest prompt in the batch. Here each row has its own number, so that a row does not depend on its batch; alone it
    is as in the pipeline. An empty prompt is all zeros, in guidance and in training. Latents are not scaled, and have
    no distribution: their standard deviation is 0.

    The network takes no adapters from the pipeline's ``load_lora_weights``. :meth:`save_pretrained` writes them as
    ``peft.PeftModel.from_pretrained(unet, folder)`` and :meth:`load_adapter` read them.

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
    least_multiple: ClassVar[int] = 64
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

    def encode_image(self, images: Tensor) -> tuple[Tensor, Tensor]:
        """Return the latents, float32, and a standard deviation of 0."""
        vae = self.held("images", "vae")
        with self.own_precision():
            latents = vae.encode(images.to(vae.dtype)).latents.float()
        return latents, torch.zeros_like(latents)

    def decode(self, latents: Tensor) -> Tensor:
        """Return the images of latents, which are not quantised, float32."""
        vae = self.held("images", "vae")
        with self.own_precision():
            decoded: Tensor = vae.decode(latents.to(vae.dtype), force_not_quantize=True).sample
        return decoded.float()

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
        """Return the arguments of the pipeline, whose scale of guidance is one less."""
        _check_guidance(guidance)
        arguments: dict[str, Any] = {
            "prompt_embeds": condition["prompt_embeds"],
            "attention_mask": condition["prompt_mask"],
            "guidance_scale": guidance - 1,
        }
        if guidance > 1:
            rows = self.unconditional_rows(len(condition["prompt_embeds"]))
            arguments |= {
                "negative_prompt_embeds": rows["prompt_embeds"],
                "negative_attention_mask": rows["prompt_mask"],
            }
        return arguments

    def add_adapter(self, config: Any) -> None:
        """Put an adapter of peft on the network."""
        from peft import inject_adapter_in_model

        inject_adapter_in_model(config, self.network)
        self._peft_config = config

    @contextmanager
    def without_adapter(self) -> Iterator[None]:
        """Switch the adapter off, so that the network is the one before tuning."""
        from peft.tuners.tuners_utils import BaseTunerLayer

        layers = [module for module in self.network.modules() if isinstance(module, BaseTunerLayer)]
        for layer in layers:
            layer.enable_adapters(False)
        try:
            yield
        finally:
            for layer in layers:
                layer.enable_adapters(True)

    def enable_checkpointing(self) -> None:
        """Recompute each residual and attention block in the backward pass."""
        for level in (*self.network.down_blocks, *self.network.up_blocks):
            for block in (*level.attentions, *level.resnets_in, *level.resnets_out):
                if not isinstance(block, nn.Identity):
                    block.forward = partial(_recomputed, block.forward)

    def save_pretrained(self, folder: str, adapter: bool) -> None:
        """Write the adapter as peft does, or the whole network in its own folder."""
        if not adapter:
            super().save_pretrained(folder, adapter)
            return
        from peft import get_peft_model_state_dict
        from safetensors.torch import save_file

        weights = self._with_config(get_peft_model_state_dict)
        Path(folder).mkdir(parents=True, exist_ok=True)
        without_dropout(self._peft_config).save_pretrained(folder)
        named = {_PREFIX + name: value.detach().cpu().contiguous() for name, value in weights.items()}
        save_file(named, f"{folder}/adapter_model.safetensors", metadata={"format": "pt"})

    def load_adapter(self, folder: str) -> None:
        """Put an adapter on the network that :meth:`save_pretrained` wrote to a folder."""
        from peft import PeftConfig, set_peft_model_state_dict
        from safetensors.torch import load_file

        for name in ("adapter_config.json", "adapter_model.safetensors"):
            if not (Path(folder) / name).is_file():
                raise FileNotFoundError(
                    f"The folder {folder} holds no adapter that save_pretrained() wrote: no {name}."
                )
        self.load("network")
        self.add_adapter(PeftConfig.from_pretrained(folder))
        weights = load_file(f"{folder}/adapter_model.safetensors")
        named = {name.removeprefix(_PREFIX): value for name, value in weights.items()}
        self._with_config(partial(set_peft_model_state_dict, peft_model_state_dict=named))

    def _with_config(self, use: Any) -> Any:
        """Call what looks for the adapter's configuration at the network."""
        self.network.peft_config = {"default": self._peft_config}
        return use(self.network)

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


def _recomputed(forward: Any, *inputs: Any, **options: Any) -> Any:
    if not torch.is_grad_enabled():
        return forward(*inputs, **options)
    return checkpoint(forward, *inputs, use_reentrant=False, **options)


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
