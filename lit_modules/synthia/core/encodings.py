"""Encodings of prompts and images: made once by the frozen encoders, then taken from a cache."""

from collections.abc import Sequence
from typing import Literal

import torch
from torch import Tensor

from lit_modules.synthia.backbones.base import Backbone, Condition
from lit_modules.synthia.core.encoding_cache import EncodingCache, image_key, text_key

_PREFILL = 16


class Encoder:
    """Encode through a cache, and load an encoder only if something is missing from it.

    Args:
        backbone: Whose encoders are used.
        folder: Folder of the cache; ``None`` keeps encodings in memory.
    """

    def __init__(self, backbone: Backbone, folder: str | None = None) -> None:
        self.backbone = backbone
        self.cache = None if backbone.encoding_is_cheap else EncodingCache(folder)

    def conditions(self, prompts: Sequence[str]) -> Condition:
        """Return what the network is conditioned on for each prompt, ``(batch, ...)``, on the backbone's device."""
        backbone = self.backbone
        if self.cache is None:
            return backbone.encode_prompt(prompts)

        def encode(missing: list[int]) -> list[Condition]:
            backbone.load("text")
            with torch.no_grad():
                encoded = backbone.encode_prompt([prompts[place] for place in missing])
            return [{name: value[row].cpu() for name, value in encoded.items()} for row in range(len(missing))]

        identity = self._identity("text")
        rows = self.cache.get_many([text_key(identity, prompt) for prompt in prompts], encode)
        return {name: torch.stack([row[name] for row in rows]).to(backbone.device) for name in rows[0]}

    def keep_prompts(self, prompts: Sequence[str]) -> None:
        """Encode prompts for later, and free the text encoder."""
        if self.cache is None:
            return
        for start in range(0, len(prompts), _PREFILL):
            self.conditions(prompts[start : start + _PREFILL])
        self.backbone.free("text")

    def moments(self, images: Tensor) -> tuple[Tensor, Tensor]:
        """Return mean and standard deviation of the images' latents, ``(n, channel, height, width)``.

        Args:
            images: Floats in [-1, 1] that 8 bits hold exactly, ``(n, 3, height, width)``, on the backbone's device.
        """
        backbone = self.backbone

        def encode(places: list[int]) -> list[dict[str, Tensor]]:
            backbone.load("images")
            with torch.no_grad():
                mean, std = backbone.encode_image(images[places])
            return [{"mean": mean[row].cpu(), "std": std[row].cpu()} for row in range(len(places))]

        if self.cache is None:
            backbone.load("images")
            with torch.no_grad():
                return backbone.encode_image(images)
        identity = self._identity("images")
        pixels = ((images + 1) * 127.5).round().to(torch.uint8).cpu()
        rows = self.cache.get_many([image_key(identity, image) for image in pixels], encode)
        mean, std = (torch.stack([row[name] for row in rows]).to(backbone.device) for name in ("mean", "std"))
        return mean, std

    def _identity(self, part: Literal["text", "images"]) -> str:
        """Return what encodings depend on; nothing else is met in memory, and a large folder takes long to hash."""
        shared = self.cache is not None and self.cache.folder is not None
        return self.backbone.identity(part) if shared else part
