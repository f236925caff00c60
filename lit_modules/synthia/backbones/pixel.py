"""A small text-to-image model in pixel space, for drawn objects and tests: a U-Net of diffusers, words as vectors."""

import math
from collections.abc import Sequence
from dataclasses import replace
from itertools import product
from pathlib import Path
from typing import Any, ClassVar

import torch
import torch.nn.functional as F
from torch import Tensor

from lit_modules.synthia.backbones.base import Backbone, Condition
from lit_modules.synthia.core.randomness import generator_of
from lit_modules.synthia.core.sampling import FewStepSampler, NoiseSchedule, spaced_timesteps
from lit_modules.utils.adapters import without_dropout
from lit_modules.utils.model_cards import Origin
from lit_modules.utils.random_state import preserved_random_state

# of drawn objects: a bright background, and frequencies that vary by about 1
_MEAN, _SCALE = 0.6, 1.5


class PixelDiffusion(Backbone):
    """Denoise the frequencies of blocks of pixels, given the words of the prompt.

    A block of ``block_size`` x ``block_size`` pixels is one place of the latents; its channels are its lowest
    frequencies (:func:`frequencies`), as in JPEG, more of them in brightness than in colour. A prompt is a set of
    words; a word is a random vector that its letters determine, so that there is no encoder to train, load or keep, and
    no word is unknown. The network is a ``UNet2DConditionModel`` that attends to the words.

    ``model`` names a folder that :meth:`save_pretrained` wrote, with ``unet`` and ``scheduler``, which then say how the
    network is built; ``block_size``, ``brightness`` and ``colour`` must be those that it was trained with.

    Args:
        model: Folder of a trained one; ``None`` starts anew.
        image_size: Side of the images in pixels, a multiple of ``block_size * 2 ** (number of widths - 1)``.
        precision: Kept for the common interface; there is nothing frozen.
        block_size: Side of a block in pixels.
        brightness: Frequencies of the brightness, 1 to ``block_size ** 2``.
        colour: Frequencies of each of the two colours, 1 to ``block_size ** 2``; with all, latents lose nothing.
        widths: Channels of each level of the U-Net, multiples of 8.
        layers_per_block: Residual blocks of each level.
        num_heads: Heads of attention.
        word_width: Length of a word's vector.
        max_words: Words of a prompt; more are an error.
        num_steps: Steps of sampling.
        guidance: Scale of classifier-free guidance when sampling, 1 for none.
        seed: Seed of the new network's weights.

    Raises:
        ValueError: If an argument is out of its range; in ``load``, if the folder's network does not fit.
        FileNotFoundError: In ``load``, if the folder holds no such model.

    Example:
        >>> backbone = PixelDiffusion(image_size=16, widths=(8, 16))
        >>> backbone.load("network", "text")
        >>> condition = backbone.encode_prompt(["a cup used to pour"])
        >>> noised = torch.zeros(1, *backbone.latent_shape())
        >>> backbone.denoise(noised, torch.tensor([10]), condition).shape
        torch.Size([1, 16, 4, 4])
    """

    encoding_is_cheap: ClassVar[bool] = True

    def __init__(
        self,
        model: str | None = None,
        image_size: int = 32,
        precision: str = "float32",
        block_size: int = 4,
        brightness: int = 10,
        colour: int = 3,
        widths: tuple[int, ...] = (32, 64),
        layers_per_block: int = 1,
        num_heads: int = 4,
        word_width: int = 64,
        max_words: int = 16,
        num_steps: int = 15,
        guidance: float = 3.0,
        seed: int = 0,
    ) -> None:
        if precision != "float32":
            raise ValueError(f"PixelDiffusion trains its whole network, in 'float32', got {precision!r}.")
        super().__init__(model or "new", image_size)
        if block_size < 1 or not widths or image_size % (block_size * 2 ** (len(widths) - 1)):
            raise ValueError(
                f"image_size must be a multiple of the block_size, {block_size}, times 2 to the power of the number of "
                f"widths less 1, got {image_size} with widths {tuple(widths)}."
            )
        if any(width < 8 or width % 8 or width % num_heads for width in widths):
            raise ValueError(f"widths must be multiples of 8 and of num_heads, {num_heads}, got {tuple(widths)}.")
        least = {"layers_per_block": layers_per_block, "word_width": word_width, "max_words": max_words}
        for name, value in (least | {"num_steps": num_steps}).items():
            if value < 1:
                raise ValueError(f"{name} must be at least 1, got {value}.")
        if guidance < 0:
            raise ValueError(f"guidance must not be negative, got {guidance}.")
        self.folder, self.widths = model, tuple(widths)
        self.block_size, self.brightness, self.colour = block_size, brightness, colour
        self.layers_per_block, self.num_heads = layers_per_block, num_heads
        self.word_width, self.max_words = word_width, max_words
        self.num_steps, self.guidance, self.seed = num_steps, guidance, seed
        self.basis = frequencies(block_size, brightness, colour)

    @property
    def version(self) -> str:
        """Mark of the weights of a folder; a new network's are marked by its arguments."""
        return "new" if self.folder is None else super().version

    def drawing_identity(self) -> str:
        """Return what the pictures of the untuned network depend on; those of a new one on its arguments too."""
        own = [self.block_size, self.brightness, self.colour, self.word_width, self.num_steps, self.guidance]
        new = [self.widths, self.layers_per_block, self.num_heads, self.seed] if self.folder is None else []
        return f"{super().drawing_identity()}/{own}/{new}"

    def load_text(self) -> None:
        """Take note that words are vectors already."""
        self.hold("text")

    def load_images(self) -> None:
        """Take note that patches are latents already."""
        self.hold("images")

    def load_network(self) -> None:
        """Load the network of the folder, or make a new one."""
        from diffusers import DDPMScheduler, UNet2DConditionModel

        if self.folder is None:
            network, scheduler = self._new()
        else:
            for part in ("unet", "scheduler"):
                if not (Path(self.folder) / part).is_dir():
                    raise FileNotFoundError(
                        f"The folder {self.folder} must hold unet and scheduler, a PixelDiffusion that "
                        f"save_pretrained() wrote; {part} is missing."
                    )
            network = UNet2DConditionModel.from_pretrained(self.folder, subfolder="unet", torch_dtype=torch.float32)
            scheduler = DDPMScheduler.from_pretrained(self.folder, subfolder="scheduler")
            config: Any = network.config
            if config.in_channels != len(self.basis):
                raise ValueError(
                    f"The network in {self.folder} takes {config.in_channels} channels, and block_size "
                    f"{self.block_size}, brightness {self.brightness} and colour {self.colour} give {len(self.basis)}; "
                    "give those that it was trained with."
                )
            self.image_size = config.sample_size * self.block_size
            self.word_width, self.widths = config.cross_attention_dim, tuple(config.block_out_channels)
        self.network, self.scheduler = network, scheduler
        self.schedule = NoiseSchedule(scheduler.alphas_cumprod, scheduler.config.prediction_type)

    @property
    def multiple(self) -> int:
        """Number of pixels that an image's height and width must be multiples of."""
        factor: int = self.block_size * 2 ** (len(self.widths) - 1)
        return factor

    def latent_shape(self, size: tuple[int, int] | None = None) -> tuple[int, ...]:
        """Return the shape of one image's blocks, ``(frequencies, height, width)``."""
        height, width = size or (self.image_size, self.image_size)
        return len(self.basis), height // self.block_size, width // self.block_size

    def encode_prompt(self, prompts: Sequence[str]) -> Condition:
        """Return the vectors of the words, ``(batch, max_words, word_width)``, and which there are."""
        embeds = torch.zeros(len(prompts), self.max_words, self.word_width)
        mask = torch.zeros(len(prompts), self.max_words, dtype=torch.bool)
        mask[:, 0] = True  # an empty prompt is one word of zeros
        for row, prompt in enumerate(prompts):
            words = prompt.lower().replace(",", " ").split()
            if len(words) > self.max_words:
                raise ValueError(f"A prompt must have at most {self.max_words} words, got {len(words)}: {prompt!r}.")
            for index, word in enumerate(words):
                embeds[row, index] = word_vector(word, self.word_width)
            mask[row, : len(words)] = True
        return {"prompt_embeds": embeds.to(self.device), "prompt_mask": mask.to(self.device)}

    def encode_image(self, images: Tensor) -> tuple[Tensor, Tensor]:
        """Return the frequencies of the blocks, and a standard deviation of 0."""
        blocks = F.pixel_unshuffle(images.float() - _MEAN, self.block_size) / _SCALE
        latents = torch.einsum("kc,bchw->bkhw", self.basis.to(images.device), blocks)
        return latents, torch.zeros_like(latents)

    def decode(self, latents: Tensor) -> Tensor:
        """Return the pixels of the blocks, without the frequencies that latents do not hold."""
        blocks = torch.einsum("kc,bkhw->bchw", self.basis.to(latents.device), latents) * _SCALE
        return F.pixel_shuffle(blocks, self.block_size) + _MEAN

    def denoise(self, noised: Tensor, timesteps: Tensor, condition: Condition) -> Tensor:
        """Ask the U-Net."""
        prediction: Tensor = self.network(
            noised,
            timesteps,
            encoder_hidden_states=condition["prompt_embeds"],
            encoder_attention_mask=condition["prompt_mask"],
            return_dict=False,
        )[0]
        return prediction

    @torch.no_grad()
    def generate(
        self,
        condition: Condition,
        generators: Sequence[torch.Generator],
        num_steps: int | None = None,
        guidance: float | None = None,
    ) -> Tensor:
        """Sample by DDIM with classifier-free guidance."""
        steps = num_steps or self.num_steps
        scale = self.guidance if guidance is None else guidance
        total = self.schedule.num_timesteps
        timesteps = spaced_timesteps(steps, total, total - 1 - (total / steps - 1) % 1)
        sampler = FewStepSampler(self.schedule, timesteps, "deterministic", checkpointing=False)
        if scale == 1:
            return self.sample_images(sampler, self.denoise, condition, generators)
        empty = self.encode_prompt([""] * len(generators))
        both = {name: torch.cat([condition[name], empty[name]]) for name in condition}

        def guided(noised: Tensor, times: Tensor, both: Condition) -> Tensor:
            with_prompt, without = self.denoise(noised.repeat(2, 1, 1, 1), times.repeat(2), both).chunk(2)
            return without + scale * (with_prompt - without)

        return self.sample_images(sampler, guided, both, generators)

    def save_pretrained(self, folder: str, adapter: bool) -> None:
        """Write ``unet`` and ``scheduler``, or an adapter for ``load_lora_adapter`` of the U-Net."""
        if adapter:
            own = self.network.peft_config
            self.network.peft_config = {"default": without_dropout(own["default"])}
            try:
                self.network.save_lora_adapter(folder)
            finally:
                self.network.peft_config = own
            return
        self.network.save_pretrained(f"{folder}/unet")
        self.scheduler.save_pretrained(f"{folder}/scheduler")

    def origin(self, adapter: bool) -> Origin:
        """Return what a model card says: a new network has no base."""
        return replace(super().origin(adapter), base=self.folder)

    def usage(self, adapter: bool) -> str:
        """Return lines that load the network, or the network with its adapter."""
        if adapter and self.folder is None:
            return ""  # the network that the adapter belongs to is nowhere saved
        start = "from lit_modules.synthia import PixelDiffusion\n\n"
        if adapter:
            return (
                f'{start}backbone = PixelDiffusion("{self.folder}", image_size={self.image_size})\n'
                'backbone.load("network")\n'
                "backbone.network.load_lora_adapter(\n"
                '    "FOLDER", prefix=None, weight_name="pytorch_lora_weights.safetensors"\n)'
            )
        return f'{start}backbone = PixelDiffusion("FOLDER", image_size={self.image_size})'

    def _new(self) -> tuple[Any, Any]:
        from diffusers import DDPMScheduler, UNet2DConditionModel

        channels, side, _ = self.latent_shape()
        with preserved_random_state(seed=self.seed):
            network = UNet2DConditionModel(
                sample_size=side,
                in_channels=channels,
                out_channels=channels,
                block_out_channels=self.widths,
                down_block_types=("CrossAttnDownBlock2D",) * len(self.widths),
                up_block_types=("CrossAttnUpBlock2D",) * len(self.widths),
                layers_per_block=self.layers_per_block,
                cross_attention_dim=self.word_width,
                attention_head_dim=self.num_heads,  # diffusers takes it as their number
                norm_num_groups=8,
            )
        scheduler = DDPMScheduler(beta_schedule="squaredcos_cap_v2", prediction_type="v_prediction", clip_sample=False)
        return network, scheduler


def frequencies(block_size: int, brightness: int, colour: int) -> Tensor:
    """Return the lowest frequencies of a block of pixels, as the orthonormal cosine transform gives them.

    ``brightness`` of ``(R + G + B) / sqrt(3)``, and ``colour`` each of ``(R - B) / sqrt(2)`` and of
    ``(R - 2 G + B) / sqrt(6)``, both 1 to ``block_size ** 2``.

    Returns:
        ``(brightness + 2 * colour, 3 * block_size ** 2)``, orthonormal rows over the channels of ``pixel_unshuffle``.

    Example:
        >>> basis = frequencies(2, brightness=4, colour=4)
        >>> bool(torch.allclose(basis @ basis.T, torch.eye(12), atol=1e-6))
        True
    """
    for name, value in (("brightness", brightness), ("colour", colour)):
        if not 1 <= value <= block_size**2:
            raise ValueError(f"{name} must be from 1 to {block_size**2}, the pixels of a block, got {value}.")
    pixel = torch.arange(block_size)
    cosines = torch.cos(math.pi * (pixel + 0.5) * pixel[:, None] / block_size) * (2 / block_size) ** 0.5
    cosines[0] /= 2**0.5
    order = sorted(product(range(block_size), repeat=2), key=lambda pair: (sum(pair), pair))
    mixtures = torch.tensor([[1.0, 1.0, 1.0], [1.0, 0.0, -1.0], [1.0, -2.0, 1.0]])
    mixtures /= mixtures.norm(dim=1, keepdim=True)
    rows = [
        torch.einsum("c,i,j->cij", mixture, cosines[first], cosines[second]).flatten()
        for mixture, count in zip(mixtures, (brightness, colour, colour), strict=True)
        for first, second in order[:count]
    ]
    return torch.stack(rows)


def word_vector(word: str, width: int) -> Tensor:
    """Return the vector of length ``sqrt(width)`` that the letters of a word determine, ``(width,)``."""
    vector = torch.randn(width, generator=generator_of(word))
    scaled: Tensor = vector / vector.norm() * width**0.5
    return scaled
