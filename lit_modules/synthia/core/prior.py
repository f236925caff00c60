"""Class pictures: what the untuned model draws for some prompts, which training holds it to."""

from collections.abc import Sequence

import torch
from torch import Tensor

from lit_modules.synthia.backbones.base import Backbone
from lit_modules.synthia.core.encodings import Encoder, Encoding, EncodingCache
from lit_modules.synthia.core.randomness import generator_of
from lit_modules.utils.hashing import stable_hash
from lit_modules.utils.progress import track

_AT_ONCE = 4
_KEPT = 2**63  # nothing that is in memory alone may be dropped, as it would be drawn again


class PriorPictures:
    """Pictures that the untuned model draws for prompts of classes, drawn once and kept under a hash of what made them.

    The hash is of the model's weights, sizes, steps and guidance, the prompt, the seed and the picture's number. So a
    stopped run goes on with what is missing, more prompts or pictures leave those that are there, and a picture that
    is damaged is drawn again. The model is one of its own, freshly loaded, whatever was trained on the other before.

    Args:
        backbone: Text-to-image model.
        prompts: Prompts of the classes, such as ``"a photo of a chair"``.
        number: Pictures of each prompt.
        seed: Seed of the pictures.
        folder: Folder that they are kept in, beside encodings; ``None`` keeps them in memory.

    Raises:
        ValueError: If an argument is out of its range.

    References:
        Ruiz et al., "DreamBooth: Fine Tuning Text-to-Image Diffusion Models for Subject-Driven Generation", arXiv
        2208.12242, section 3.3.
    """

    def __init__(self, backbone: Backbone, prompts: Sequence[str], number: int, seed: int, folder: str | None) -> None:
        if isinstance(prompts, str) or not prompts or not all(isinstance(prompt, str) for prompt in prompts):
            raise ValueError(
                f"prior_prompts must be a list of prompts, such as ['a photo of a chair'], got {prompts!r}."
            )
        if number < 1:
            raise ValueError(f"prior_images must be at least 1, got {number}.")
        self.backbone, self.number, self.seed = backbone, number, seed
        self.prompts = list(dict.fromkeys(prompts))
        self.cache = EncodingCache(folder) if folder is not None else EncodingCache(None, _KEPT)
        self._untuned: Backbone | None = None
        self._keys: list[str] | None = None

    def __len__(self) -> int:
        """Return the number of pictures."""
        return len(self.prompts) * self.number

    def prepare(self, rank: int = 0, ranks: int = 1) -> None:
        """Draw what is missing of this process's share; all of it if the pictures are in memory."""
        own = range(rank, len(self), ranks) if self.cache.folder is not None else range(len(self))
        for start in track(range(0, len(own), _AT_ONCE), "class pictures of the untuned model"):
            self.pictures(own[start : start + _AT_ONCE])
        self._untuned = None

    def choose(self, generators: Sequence[torch.Generator]) -> tuple[list[str], Tensor]:
        """Return a prompt and a picture for each generator: floats in [-1, 1], ``(n, 3, height, width)``."""
        indices = [int(torch.randint(len(self), (), generator=generator)) for generator in generators]
        pictures = self.pictures(indices)
        self._untuned = None
        return [self._prompt(index) for index in indices], pictures.float() / 127.5 - 1

    def pictures(self, indices: Sequence[int]) -> Tensor:
        """Return pictures by their places, those of a prompt in a row, uint8, ``(n, 3, height, width)``."""
        if self._keys is None:
            identity = self.backbone.drawing_identity()
            self._keys = [
                stable_hash("prior", identity, self.seed, self._prompt(index), index % self.number)
                for index in range(len(self))
            ]
        keys = [self._keys[index] for index in indices]
        rows = self.cache.get_many(keys, lambda missing: self._draw([indices[place] for place in missing]))
        return torch.stack([row["picture"] for row in rows])

    def _prompt(self, index: int) -> str:
        return self.prompts[index // self.number]

    @torch.no_grad()
    def _draw(self, indices: Sequence[int]) -> list[Encoding]:
        if self._untuned is None:
            self._load()
        untuned, encoder = self._untuned, self._encoder
        assert untuned is not None  # just loaded
        generators = [generator_of(self.seed, "prior", self._prompt(index), index % self.number) for index in indices]
        drawn = untuned.generate(encoder.conditions([self._prompt(index) for index in indices]), generators)
        return [{"picture": picture} for picture in (drawn * 255).round().to(torch.uint8)]

    def _load(self) -> None:
        untuned = self.backbone.fresh()
        folder = self.cache.folder
        self._encoder = Encoder(untuned, None if folder is None else str(folder))
        self._encoder.keep_prompts(self.prompts)  # before the network takes the memory
        untuned.load("network")
        untuned.network.to(untuned.device).eval()
        self._untuned = untuned
