"""Interface of text-to-image models: a network that trains, frozen encoders around it, a noise schedule."""

import copy
from abc import ABC, abstractmethod
from collections.abc import Sequence
from contextlib import AbstractContextManager
from pathlib import Path
from typing import Any, ClassVar, Literal, Self, get_args

import torch
from peft import PeftConfig, inject_adapter_in_model
from torch import Tensor, nn
from torch.nn.utils.rnn import pad_sequence

from lit_modules.synthia.core.sampling import Denoiser, FewStepSampler, NoiseSchedule, spaced_timesteps
from lit_modules.utils.adapters import adapters_off, own_config
from lit_modules.utils.hashing import hash_folder
from lit_modules.utils.libraries import require
from lit_modules.utils.model_cards import Origin
from lit_modules.utils.model_versions import hub_commit

Part = Literal["text", "images", "network"]
Precision = Literal["float32", "bfloat16", "float16"]
Condition = dict[str, Tensor]
"""Inputs of the network beside latents and timesteps, ``(batch, ...)`` each.

``prompt_embeds`` is always there. Of prompts of different lengths the shorter ones end in zeros, and a mask marks their
tokens.
"""


class Backbone(ABC):
    """A text-to-image model: how to load its parts, encode, decode and denoise, and write what was trained.

    It is no ``nn.Module``: only :attr:`network` belongs to the module that trains it, so that the frozen encoders are
    in no checkpoint, in no optimizer and in no scan of a strategy. Parts are loaded when they are needed and can be
    freed: text encoder, image encoder and network need not be in memory together.

    A subclass gives the abstract methods, sets :attr:`schedule` and :attr:`network` when the network is loaded, and
    registers frozen parts with :meth:`hold`.

    Args:
        model: Folder or name of the weights, as diffusers load them.
        image_size: Side of the images in pixels; a multiple of the encoder's factor.
        precision: Type of the frozen weights. What trains is float32 in any case.

    Attributes:
        network: The network that denoises, once loaded.
        schedule: Its noise schedule, once the network or the schedule is loaded.
        text_encoders: Text encoders with adapters that train, by their names; they stay loaded.
        device: Where frozen parts are and inputs should be.
    """

    lora_targets: ClassVar[tuple[str, ...]] = ("to_q", "to_k", "to_v", "to_out.0")
    """Names of the layers that adapters are put on by default."""
    text_adapter_parts: ClassVar[tuple[str, ...]] = ()
    """Text encoders that the pipeline's ``load_lora_weights`` puts adapters on."""
    text_lora_targets: ClassVar[tuple[str, ...]] = ("q_proj", "k_proj", "v_proj", "out_proj")
    """Names of the layers of text encoders that adapters are put on by default."""
    encoding_is_cheap: ClassVar[bool] = False
    """True if encodings are not worth keeping."""
    few_step_rule: ClassVar[Literal["renoise", "deterministic"]] = "deterministic"
    """Rule of the sampler that gradients pass through; a distilled model has the one that it was made for."""
    full_precision_steps: ClassVar[int] = 0
    """Its first steps without autocast."""

    network: Any
    schedule: NoiseSchedule

    def __init__(self, model: str, image_size: int, precision: Precision = "float32") -> None:
        require("diffusers", type(self).__name__)
        if image_size < 1:
            raise ValueError(f"image_size must be positive, got {image_size}.")
        if precision not in get_args(Precision):
            raise ValueError(f"precision must be {', '.join(map(repr, get_args(Precision)))}, got {precision!r}.")
        self.model, self.image_size, self.precision = model, image_size, precision
        self.device = torch.device("cpu")
        self.text_encoders: dict[str, Any] = {}
        self._held: dict[str, dict[str, Any]] = {}
        self._version: str | None = None

    @property
    def dtype(self) -> torch.dtype:
        """Type of the frozen weights."""
        dtype: torch.dtype = getattr(torch, self.precision)
        return dtype

    def load(self, *parts: Part) -> None:
        """Load parts that are not loaded yet; ``"text"`` and ``"images"`` are the encoders."""
        for part in parts:
            if part == "text" and "text" not in self._held:
                self.load_text()
            elif part == "images" and "images" not in self._held:
                self.load_images()
            elif part == "network" and not hasattr(self, "network"):
                self.load_network()

    def free(self, *parts: Part) -> None:
        """Let go of encoders, and give their memory back to the device."""
        for part in parts:
            if part != "text" or not self.text_encoders:
                self._held.pop(part, None)
        if self.device.type == "cuda":
            torch.cuda.empty_cache()

    def hold(self, part: Part, **modules: Any) -> None:
        """Keep frozen modules of a part: in evaluation mode, without gradients, on the device; others as they are."""
        for module in modules.values():
            if isinstance(module, nn.Module):
                module.requires_grad_(False).eval().to(self.device)
        self._held[part] = modules

    def held(self, part: Part, name: str) -> Any:
        """Return a held module of a part, which is loaded if it is not."""
        self.load(part)
        return self._held[part][name]

    def to(self, device: torch.device | str) -> "Backbone":
        """Move the frozen parts; the network is moved by the module that owns it."""
        self.device = torch.device(device)
        for modules in self._held.values():
            for module in modules.values():
                if isinstance(module, nn.Module):
                    module.to(self.device)
        return self

    def identity(self, part: Literal["text", "images"]) -> str:
        """Return what encodings of a part depend on, as part of the key they are kept under."""
        return f"{type(self).__name__}/{self.model}/{self.version}/{part}/{self.precision}/{self.image_size}"

    def drawing_identity(self) -> str:
        """Return what the pictures that the untuned model draws depend on, beside prompt and noise."""
        return f"{self.identity('text')}/{self.identity('images')}"

    def fresh(self) -> Self:
        """Return the same model with nothing loaded, so that its network is the one before tuning."""
        other = copy.copy(self)
        other._held, other.text_encoders = {}, {}
        for name in ("network", "schedule", "scheduler", "unconditional"):
            vars(other).pop(name, None)
        return other

    @property
    def version(self) -> str:
        """Mark of the weights: the hash of a folder's whole content, or the commit of a model on the Hub.

        It is ``unreachable`` for a model of the Hub that is not here and cannot be asked for; no weights load then.
        """
        if self._version is None:
            if Path(self.model).is_dir():
                self._version = hash_folder(self.model)
            else:
                try:
                    self._version = hub_commit(self.model, None, self.hub_file)
                except FileNotFoundError:
                    return "unreachable"
        return self._version

    @property
    def hub_file(self) -> str:
        """A file that a model of this kind has on the Hub."""
        return "model_index.json"

    @abstractmethod
    def load_text(self) -> None:
        """Load the text encoder and hold it."""

    @abstractmethod
    def load_images(self) -> None:
        """Load the image encoder and decoder and hold it."""

    @abstractmethod
    def load_network(self) -> None:
        """Load the network and the schedule; set :attr:`network` and :attr:`schedule`."""

    @abstractmethod
    def encode_prompt(self, prompts: Sequence[str]) -> Condition:
        """Return what the network is conditioned on for each prompt, ``(batch, ...)``, on :attr:`device`."""

    def split(self, condition: Condition) -> list[Condition]:
        """Return the rows of a condition one by one, as they are kept."""
        number = len(condition["prompt_embeds"])
        return [{name: value[row] for name, value in condition.items()} for row in range(number)]

    def stack(self, rows: Sequence[Condition]) -> Condition:
        """Return rows as one condition on :attr:`device`; those of fewer tokens are filled up with zeros."""
        return {name: pad_sequence([row[name] for row in rows], batch_first=True).to(self.device) for name in rows[0]}

    @abstractmethod
    def encode_image(self, images: Tensor) -> tuple[Tensor, Tensor]:
        """Return mean and standard deviation of the images' latents, in the network's scale, float32.

        Args:
            images: Floats in [-1, 1], ``(batch, 3, height, width)``.
        """

    @abstractmethod
    def decode(self, latents: Tensor) -> Tensor:
        """Return images in about [-1, 1], ``(batch, 3, height, width)``; differentiable."""

    @property
    @abstractmethod
    def multiple(self) -> int:
        """Number of pixels that an image's height and width must be multiples of."""

    @abstractmethod
    def latent_shape(self, size: tuple[int, int] | None = None) -> tuple[int, ...]:
        """Return the shape of one image's latents, ``(channel, height, width)``.

        Args:
            size: Height and width of the image in pixels; ``None`` is the square of ``image_size``.
        """

    @abstractmethod
    def denoise(self, noised: Tensor, timesteps: Tensor, condition: Condition) -> Tensor:
        """Ask the network, with gradients where they are on.

        Args:
            noised: Latents ``(batch, ...)``.
            timesteps: ``(batch,)``: whole numbers, or floats in [0, schedule.num_timesteps] for flow matching.
            condition: From :meth:`encode_prompt`, on the latents' device.
        """

    @abstractmethod
    def generate(
        self,
        condition: Condition,
        generators: Sequence[torch.Generator],
        num_steps: int | None = None,
        guidance: float | None = None,
    ) -> Tensor:
        """Return an image for each generator by the model's own sampler, without gradients.

        Args:
            condition: One row for each generator.
            generators: Sources of the noise, on the CPU: a seed gives the same image everywhere.
            num_steps: Steps; ``None`` takes the model's usual number.
            guidance: Scale of classifier-free guidance in the usual notation, 1 for none; ``None`` takes the usual one.

        Returns:
            Floats in [0, 1], ``(batch, 3, height, width)``, on :attr:`device`.
        """

    @abstractmethod
    def save_pretrained(self, folder: str, adapter: bool) -> None:
        """Write the adapter as ``load_lora_weights`` of diffusers reads it, or the whole network, to a folder."""

    def origin(self, adapter: bool) -> Origin:
        """Return what a model card says on the weights that :meth:`save_pretrained` writes.

        Args:
            adapter: Whether these are those of an adapter.
        """
        config: Any = self.adapter
        tags = (str(config.peft_type.value).lower(), "adapter") if adapter else ()
        return Origin("diffusers", self.usage(adapter), self.model, None, "text-to-image", tags)

    def usage(self, adapter: bool) -> str:
        """Return Python lines that load what :meth:`save_pretrained` wrote to the folder ``FOLDER``; perhaps none."""
        return ""

    @property
    def quantised(self) -> bool:
        """True if the network's weights are quantised, on which adapters alone train."""
        return getattr(self.network, "hf_quantizer", None) is not None  # which diffusers set where there is one

    @property
    def adapter(self) -> PeftConfig | None:
        """Configuration of the adapter that the network carries, if it does."""
        return own_config(self.network)

    def add_adapter(self, config: Any) -> None:
        """Put an adapter of peft on the network."""
        self.network.add_adapter(config)

    @property
    def text_adapter(self) -> PeftConfig | None:
        """Configuration of the adapters that the text encoders carry, if they do."""
        return next((own_config(encoder) for encoder in self.text_encoders.values()), None)

    def add_text_adapters(self, config: Any) -> None:
        """Put adapters of peft on the text encoders, whose own weights stay as they are."""
        self.load("text")
        for name in self.text_adapter_parts:
            encoder = self.held("text", name)
            inject_adapter_in_model(copy.deepcopy(config), encoder)
            self.text_encoders[name] = encoder

    def without_adapter(self) -> AbstractContextManager[None]:
        """Switch all adapters off, so that network and text encoders are those before tuning."""
        return adapters_off(self.network, *self.text_encoders.values())

    def enable_checkpointing(self) -> None:
        """Recompute activations in the backward pass instead of keeping them."""
        self.network.enable_gradient_checkpointing()
        for encoder in self.text_encoders.values():
            encoder.gradient_checkpointing_enable(gradient_checkpointing_kwargs={"use_reentrant": False})

    def compile(self) -> None:
        """Compile the network's repeated blocks, or all of it if none are named; adapters must be there already."""
        if getattr(self.network, "_repeated_blocks", None):  # not all networks of diffusers have it
            self.network.compile_repeated_blocks()
        else:
            self.network.compile()

    def draw_timesteps(self, generators: Sequence[torch.Generator]) -> Tensor:
        """Draw a training timestep from each generator, evenly from the schedule, ``(batch,)``, on :attr:`device`."""
        total = self.schedule.num_timesteps
        if self.schedule.alphas_cumprod is None:
            drawn = [torch.rand((), generator=generator) * total for generator in generators]
        else:
            drawn = [torch.randint(total, (), generator=generator) for generator in generators]
        return torch.stack(drawn).to(self.device)

    def few_step_sampler(
        self,
        num_steps: int | None = None,
        truncation: int | Literal["random"] | None = 1,
        checkpointing: bool = True,
    ) -> FewStepSampler:
        """Return the sampler that gradients pass through: DDIM without noise, or Euler's method for flow matching.

        ``num_steps=None`` takes the usual number; for the others see :class:`~lit_modules.synthia.FewStepSampler`.
        """
        return FewStepSampler(
            self.schedule,
            self.few_step_timesteps(num_steps),
            self.few_step_rule,
            truncation=truncation,
            checkpointing=checkpointing,
            full_precision_steps=self.full_precision_steps,
        )

    def few_step_timesteps(self, num_steps: int | None) -> Sequence[float]:
        """Return the timesteps of the sampler that gradients pass through; 8 of a model that is not distilled."""
        total = self.schedule.num_timesteps
        first = total if self.schedule.alphas_cumprod is None else total - max(1, total // 40)
        return spaced_timesteps(num_steps or 8, total, first)

    def sample_images(
        self, sampler: FewStepSampler, denoise: Denoiser[Any], condition: Any, generators: Sequence[torch.Generator]
    ) -> Tensor:
        """Return an image for each generator by a sampler of few steps, floats in [0, 1]."""
        noise = torch.cat([sampler.draw_noise((1, *self.latent_shape()), generator) for generator in generators], 1)
        return self.decode(sampler.sample(denoise, noise.to(self.device), condition)).clamp(-1, 1) / 2 + 0.5
