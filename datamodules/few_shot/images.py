"""Pictures in files that are not trusted: what is wrong with one, its hash, and whether two are the same picture."""

import hashlib
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from lit_modules.utils.images import MAX_PIXELS, picture_bytes
from lit_modules.utils.images import read_picture as decode

_SIDE = 16


@dataclass(frozen=True)
class Picture:
    """A picture in a file.

    Args:
        path: File.
        name: Path below the root, with ``/``; orders and seeds depend on it, and not on where the root is.
        fields: What ``metadata.jsonl`` says about it.
        read: Returns the bytes, where the picture is a part of the file; ``None`` takes the whole file.
    """

    path: Path
    name: str
    fields: Mapping[str, Any] = field(default_factory=dict, hash=False, compare=False)
    read: Callable[[], bytes] | None = field(default=None, hash=False, compare=False)

    def data(self) -> bytes:
        """Return the bytes of the picture's file.

        Raises:
            ValueError: If it is missing, cannot be read, or is too large.
        """
        if self.read is not None:
            return self.read()
        return picture_bytes(self.path, self.name)

    def load(self, max_pixels: int = MAX_PIXELS) -> Image.Image:
        """Return the picture in RGB, see :func:`lit_modules.utils.images.read_picture`."""
        return decode(self.data(), self.name, max_pixels)


@dataclass(frozen=True)
class Look:
    """What tells whether two files hold the same picture.

    Args:
        sha256: Hash of the file.
        bits: Whether brightness rises from each of 16 x 17 places to the next, packed, uint8 ``(32,)``.
        colours: Mean colours of 4 x 4 fields, int16 ``(48,)``.
    """

    sha256: str
    bits: NDArray[np.uint8]
    colours: NDArray[np.int16]


def inspect(picture: Picture, max_pixels: int = MAX_PIXELS) -> Look:
    """Read and decode a picture, and return what tells it from others.

    Raises:
        ValueError: If something is wrong with it, see :func:`lit_modules.utils.images.read_picture`.
    """
    data = picture.data()
    image = decode(data, picture.name, max_pixels)
    if image.width < 2 or image.height < 2:
        raise ValueError(f"{picture.name} must have at least 2 x 2 pixels, got {image.width} x {image.height}.")
    grey = np.asarray(image.convert("L").resize((_SIDE + 1, _SIDE), Image.Resampling.BOX), dtype=np.int16)
    colours = np.asarray(image.resize((4, 4), Image.Resampling.BOX), dtype=np.int16).reshape(-1)
    return Look(hashlib.sha256(data).hexdigest(), np.packbits(np.diff(grey, axis=1) > 0), colours)


def same_pictures(
    first: Sequence[Look], second: Sequence[Look], max_bits: int = 8, max_colour: int = 8
) -> list[tuple[int, int]]:
    """Return the pairs of places whose pictures are the same file, or nearly the same picture.

    Two pictures are nearly the same if at most ``max_bits`` of 256 brightness comparisons differ and no colour of
    4 x 4 fields differs by more than ``max_colour`` of 255: another size or compression of one picture, and no more.

    Args:
        first: Looks of some pictures.
        second: Looks of others.
        max_bits: Most comparisons that may differ; -1 compares hashes of the files alone.
        max_colour: Most levels by which a colour may differ.
    """
    if not first or not second:
        return []
    hashes = np.array([look.sha256 for look in first])[:, None] == np.array([look.sha256 for look in second])
    ours, theirs = (np.stack([look.bits for look in looks]) for looks in (first, second))
    colours, others = (np.stack([look.colours for look in looks]) for looks in (first, second))
    places = []
    for row in range(len(first)):
        differ = np.bitwise_count(ours[row] ^ theirs).sum(1, dtype=np.int64)
        shift = np.abs(colours[row] - others).max(1)
        same = hashes[row] | ((differ <= max_bits) & (shift <= max_colour))
        places += [(row, int(column)) for column in np.flatnonzero(same)]
    return places
