"""Pairs with their support images, seen from either direction, and the shards of a run."""

import hashlib
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

from PIL.Image import Image

from lit_modules.coda.core.concepts import Concept, ConfusablePair, safe_name
from lit_modules.utils.images import read_picture


@dataclass(frozen=True)
class PairTask:
    """Pair and the real images that may be used: the support images of a few-shot protocol, and no others.

    Args:
        pair: The pair.
        target_images: Paths of the target's support images.
        confusable_images: Paths of the confusable's support images.

    Raises:
        ValueError: If a concept has no images.
    """

    pair: ConfusablePair
    target_images: tuple[str, ...]
    confusable_images: tuple[str, ...]

    def __post_init__(self) -> None:
        for concept, _, images, _ in self.directions():
            if not images:
                raise ValueError(f"{concept.name!r} has no support images; give at least one.")

    def directions(self) -> list[tuple[Concept, Concept, tuple[str, ...], tuple[str, ...]]]:
        """Return the concept to generate, the other one and the images of both, for either direction."""
        target, confusable = self.pair.target, self.pair.confusable
        return [
            (target, confusable, self.target_images, self.confusable_images),
            (confusable, target, self.confusable_images, self.target_images),
        ]


class SupportImage:
    """Real image: its path, the hash of its file, and the image itself when it is needed.

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
    def image(self) -> Image:
        """The image, RGB."""
        return read_picture(self.path.read_bytes(), str(self.path))

    def record(self) -> dict[str, str]:
        """Return name and hash."""
        return {"name": self.path.name, "sha256": self.digest}


@dataclass(frozen=True)
class Direction:
    """Direction of a pair: a concept to generate, and the other one, from which it is to be distinguished.

    Args:
        pair_id: Folder name of the pair.
        concept: Concept to generate.
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
    def name(self) -> str:
        """Folder name of the direction."""
        return safe_name(self.concept.name)

    @property
    def reverse(self) -> "Direction":
        """The other direction."""
        return Direction(self.pair_id, self.other, self.concept, images=self.other_images, other_images=self.images)

    def path(self, *parts: str) -> list[str]:
        """Return the path of a file of this direction in a store."""
        return [self.pair_id, self.name, *parts]


def read_directions(task: PairTask) -> tuple[Direction, Direction]:
    """Return both directions of a pair, target against confusable first.

    Raises:
        FileNotFoundError: If a support image is missing.
        ValueError: If an image occurs twice, in one class or in both.
    """
    images = []
    paths: dict[str, str] = {}
    for own in (task.target_images, task.confusable_images):
        support = sorted(map(SupportImage, own), key=lambda image: (image.path.name, image.digest))
        for image in support:
            if image.digest in paths:
                raise ValueError(
                    f"The support images {paths[image.digest]} and {image.path} are the same; take one away."
                )
            paths[image.digest] = str(image.path)
        images.append(tuple(support))
    pair = task.pair
    first = Direction(pair.pair_id, pair.target, pair.confusable, images=images[0], other_images=images[1])
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
