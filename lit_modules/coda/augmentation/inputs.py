"""What a run works on: pairs with their support images, each side seen from either direction, embedded once."""

import hashlib
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

import torch
from PIL.Image import Image
from torch import Tensor

from lit_modules.coda.backends.protocols import Embedder
from lit_modules.coda.core.concepts import Concept, ConfusablePair, safe_name
from lit_modules.coda.core.pictures import read_picture


@dataclass(frozen=True)
class PairTask:
    """A pair and the real images that may be used: the support images of a few-shot protocol, and no others.

    Args:
        pair: The pair.
        target_images: Paths of the target's support images.
        confusable_images: Paths of the confusable's support images.

    Raises:
        ValueError: If a side has no images.
    """

    pair: ConfusablePair
    target_images: tuple[str, ...]
    confusable_images: tuple[str, ...]

    def __post_init__(self) -> None:
        for concept, images in (
            (self.pair.target, self.target_images),
            (self.pair.confusable, self.confusable_images),
        ):
            if not images:
                raise ValueError(f"{concept.name!r} has no support images; give at least one.")


class SupportImage:
    """A real image: its name, the hash of its file, and the picture when it is asked for.

    Args:
        path: The file.

    Raises:
        FileNotFoundError: If there is no such file.
    """

    def __init__(self, path: str) -> None:
        self.path = Path(path)
        try:
            data = self.path.read_bytes()
        except FileNotFoundError as error:
            raise FileNotFoundError(f"There is no support image {path}.") from error
        self.digest = hashlib.sha256(data).hexdigest()

    @cached_property
    def picture(self) -> Image:
        """The picture, RGB."""
        return read_picture(self.path.read_bytes(), str(self.path))


@dataclass(frozen=True)
class Side:
    """One direction of a pair: a concept to draw, and the one it is told from.

    Args:
        pair_id: Folder name of the pair.
        concept: Concept to draw.
        other: The other one.
        images: Support images of the concept, in the order of their names.
        other_images: Support images of the other one.
    """

    pair_id: str
    concept: Concept
    other: Concept
    images: tuple[SupportImage, ...]
    other_images: tuple[SupportImage, ...]

    @property
    def direction(self) -> str:
        """Folder name of the direction."""
        return safe_name(self.concept.name)

    @property
    def reverse(self) -> "Side":
        """The other direction."""
        return Side(self.pair_id, self.other, self.concept, self.other_images, self.images)

    def place(self, *parts: str) -> list[str]:
        """Return the place of a file of this direction in a store."""
        return [self.pair_id, self.direction, *parts]


def sides(task: PairTask) -> tuple[Side, Side]:
    """Return both directions of a pair, target against confusable first.

    Raises:
        FileNotFoundError: If a support image is not there.
        ValueError: If an image occurs twice, in one class or in both.
    """
    loaded = []
    seen: dict[str, str] = {}
    for paths in (task.target_images, task.confusable_images):
        images = sorted(map(SupportImage, paths), key=lambda image: (image.path.name, image.digest))
        for image in images:
            if image.digest in seen:
                raise ValueError(
                    f"The support images {seen[image.digest]} and {image.path} are the same; take one away."
                )
            seen[image.digest] = str(image.path)
        loaded.append(tuple(images))
    pair = task.pair
    first = Side(pair.pair_id, pair.target, pair.confusable, loaded[0], loaded[1])
    return first, first.reverse


def shard_tasks(tasks: Sequence[PairTask], shard: tuple[int, int] | None = None) -> list[PairTask]:
    """Return the pairs of a shard; the union of all shards is the whole, and none is in two.

    Pairs are in the order of their folder names; of a pair and its reverse only the first is taken, as both directions
    are worked on.

    Args:
        tasks: All pairs.
        shard: ``(number, total)`` with number from 1; ``None`` for all.

    Raises:
        ValueError: If the shard is out of its range.
    """
    if shard is not None and not 1 <= shard[0] <= shard[1]:
        raise ValueError(f"shard must be (number, total) with 1 <= number <= total, got {shard}.")
    unique: dict[str, PairTask] = {}
    for task in tasks:
        unique.setdefault(task.pair.pair_id, task)
    ordered = [unique[name] for name in sorted(unique)]
    return ordered if shard is None else ordered[shard[0] - 1 :: shard[1]]


class Embeddings:
    """Embeddings of images and texts, each made once in a run.

    Args:
        embedder: The model.

    Attributes:
        images_made: Images embedded so far.
        texts_made: Texts embedded so far.
    """

    def __init__(self, embedder: Embedder) -> None:
        self.embedder = embedder
        self.images_made = 0
        self.texts_made = 0
        self._images: dict[str, Tensor] = {}
        self._texts: dict[str, Tensor] = {}

    def images(self, images: Sequence[tuple[str, Callable[[], Image]]]) -> Tensor:
        """Return embeddings ``(n, d)`` of images, given by the hash of each and a function that opens it."""
        missing = {digest: opens for digest, opens in images if digest not in self._images}
        if missing:
            rows = self.embedder.embed_images([opens() for opens in missing.values()])
            self._keep(self._images, list(missing), rows, "images")
            self.images_made += len(missing)
        return torch.stack([self._images[digest] for digest, _ in images])

    def texts(self, texts: Sequence[str]) -> Tensor:
        """Return embeddings ``(n, d)`` of texts."""
        missing = [text for text in dict.fromkeys(texts) if text not in self._texts]
        if missing:
            self._keep(self._texts, missing, self.embedder.embed_texts(missing), "texts")
            self.texts_made += len(missing)
        return torch.stack([self._texts[text] for text in texts])

    @staticmethod
    def _keep(memory: dict[str, Tensor], names: list[str], rows: Tensor, what: str) -> None:
        if rows.ndim != 2 or len(rows) != len(names):
            raise ValueError(f"The embedder must return {len(names)} rows for as many {what}, got {tuple(rows.shape)}.")
        for name, row in zip(names, rows.detach().to("cpu", torch.float32), strict=True):
            memory[name] = row.clone()
