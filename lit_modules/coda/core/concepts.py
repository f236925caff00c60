"""Concepts, confusable pairs of them with their support images, and their names in prompts and on disk."""

import hashlib
import re
import unicodedata
from collections.abc import Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from PIL.Image import Image

from lit_modules.utils.hashing import stable_hash
from lit_modules.utils.images import read_picture

_KINDS_WITH_TEXT = {"animal": "an animal", "scene": "a scene", "object": "an object"}
# characters that chat templates, tokenizers and list formats give a meaning to
_NEUTRAL = str.maketrans({"<": "\u2039", ">": "\u203a", "[": "(", "]": ")", "{": "(", "}": ")", "|": "/", "`": "'"})


@dataclass(frozen=True)
class Concept:
    """Class of images, such as a species or a kind of scene.

    Args:
        name: Name in questions and prompts, and of the class; kept as given.
        supercategory: Wider class, such as ``"frog"``; empty if unknown.
        kind: ``"animal"``, ``"scene"``, ``"object"`` or any other noun; chooses generic texts.
        aliases: Other names that an answer may give.
        knowledge_text: Description, from a field guide for instance, for textual prompts; empty if there is none.
        known: Whether a model may have seen it; false for a novel concept.

    Raises:
        ValueError: If the name or the kind is empty.
    """

    name: str
    supercategory: str = ""
    kind: str = "animal"
    aliases: tuple[str, ...] = ()
    knowledge_text: str = ""
    known: bool = True

    def __post_init__(self) -> None:
        for field_name in ("name", "kind"):
            if not getattr(self, field_name).strip():
                raise ValueError(f"A concept's {field_name} must not be empty, got {getattr(self, field_name)!r}.")

    @property
    def names(self) -> tuple[str, ...]:
        """Name and aliases."""
        return (self.name, *self.aliases)

    @property
    def generic_text(self) -> str:
        """Generic text of the reference ranking, such as ``"photo of an animal"``."""
        return f"photo of {_KINDS_WITH_TEXT.get(self.kind) or with_article(prompt_text(self.kind))}"

    def record(self) -> dict[str, Any]:
        """Return the fields as plain values."""
        return {**asdict(self), "aliases": list(self.aliases)}


@dataclass(frozen=True)
class ConfusablePair:
    """Concept and the one that a model takes it for.

    Args:
        target: Concept shown (T).
        confusable: Concept answered (M).
        error_rate: Share of the target's images answered as the confusable, in [0, 1]; ``None`` if unknown.

    Raises:
        ValueError: If both are the same or the rate is out of its range.
    """

    target: Concept
    confusable: Concept
    error_rate: float | None = field(default=None, compare=False)

    def __post_init__(self) -> None:
        if self.target.name == self.confusable.name:
            raise ValueError(f"A pair must have two concepts, got {self.target.name!r} twice.")
        if self.error_rate is not None and not 0 <= self.error_rate <= 1:
            raise ValueError(f"error_rate must be in [0, 1], got {self.error_rate}.")

    @property
    def pair_id(self) -> str:
        """Folder name of the pair, the same for both directions."""
        first, second = sorted((self.target.name, self.confusable.name))
        return f"{_words(first, 40)}--{_words(second, 40)}-{stable_hash(first, second)[:10]}"


def safe_name(name: str) -> str:
    """Return a folder name for any text: lower-case ASCII letters, digits and hyphens, and a hash of the whole text.

    Texts that differ get different names, on file systems that ignore case too; separators, dots and markup vanish.

    Example:
        >>> safe_name("../a<b>/C"), safe_name("Puff Adder")
        ('a-b-c-4d90886c', 'puff-adder-8e4c7742')
    """
    return f"{_words(name, 60)}-{stable_hash(name)[:8]}"


def prompt_text(text: str) -> str:
    """Return a text as it may stand in a prompt: one line, without characters of templates and special tokens.

    Angle brackets become quotation marks and other brackets round ones, so that a class named ``<image>`` adds no
    image to a prompt, and the names of a list stay apart.
    """
    kept = "".join(" " if unicodedata.category(letter)[0] in "CZ" else letter for letter in text)
    return " ".join(kept.translate(_NEUTRAL).split())


def with_article(noun: str) -> str:
    """Return a noun with its indefinite article, by its first letter."""
    return f"an {noun}" if noun[:1].lower() in "aeiou" and noun else f"a {noun}"


def _words(name: str, longest: int) -> str:
    ascii_name = unicodedata.normalize("NFKD", name).encode("ascii", "ignore").decode().lower()
    return "-".join(re.findall("[a-z0-9]+", ascii_name))[:longest].strip("-") or "x"


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
    """Real image: its path, the hash of its file, and the image itself, read when it is needed and not kept."""

    def __init__(self, path: str) -> None:
        self.path = Path(path)
        try:
            data = self.path.read_bytes()
        except FileNotFoundError as error:
            raise FileNotFoundError(f"There is no support image {path}.") from error
        self.digest = hashlib.sha256(data).hexdigest()

    @property
    def image(self) -> Image:
        """The image, RGB."""
        return read_picture(self.path.read_bytes(), str(self.path))

    def record(self) -> dict[str, str]:
        """Return name and hash."""
        return {"name": self.path.name, "sha256": self.digest}


@dataclass(frozen=True)
class Direction:
    """Direction of a pair: a concept to generate and the other one, with support images in the order of their names."""

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
    """Return both directions of a pair, target against confusable first; an image that occurs twice is refused."""
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
    """Return the pairs of a shard ``(number, total)``, number from 1, or all; no pair is in two shards.

    Pairs are in the order of their folder names; of a pair and its reverse only the first is taken, as both directions
    are worked on.

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
