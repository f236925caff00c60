"""Pictures in files, and the fingerprints by which one picture is found in several files."""

import hashlib
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from lit_modules.utils.images import MAX_PIXELS, picture_bytes, read_picture

_SIDE = 16


@dataclass(frozen=True)
class Picture:
    """A picture in a file.

    Args:
        path: File.
        name: Path below the root, with ``/``; orders and seeds depend on it, and not on the place of the root.
        fields: Its row of ``metadata.jsonl``.
        read: Returns the bytes of a picture that is a part of the file; ``None`` takes the whole file.
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
        return picture_bytes(self.path, self.name) if self.read is None else self.read()

    def load(self, max_pixels: int = MAX_PIXELS) -> Image.Image:
        """Return the picture in RGB, see :func:`lit_modules.utils.images.read_picture`."""
        return read_picture(self.data(), self.name, max_pixels)


@dataclass(frozen=True)
class ImageFingerprint:
    """Fingerprint of a picture file.

    Args:
        sha256: Hash of the file.
        gradients: Whether brightness rises from each of 16 x 17 fields to the next, packed, uint8 ``(32,)``.
        colours: Mean colours of 4 x 4 fields, int16 ``(48,)``.
    """

    sha256: str
    gradients: NDArray[np.uint8]
    colours: NDArray[np.int16]


def fingerprint(picture: Picture, max_pixels: int = MAX_PIXELS) -> ImageFingerprint:
    """Read and decode a picture, and return its fingerprint.

    Raises:
        ValueError: If the picture is refused, see :func:`lit_modules.utils.images.read_picture`, or below 2 x 2 pixels.
    """
    data = picture.data()
    image = read_picture(data, picture.name, max_pixels)
    if image.width < 2 or image.height < 2:
        raise ValueError(f"{picture.name} must have at least 2 x 2 pixels, got {image.width} x {image.height}.")
    grey = np.asarray(image.convert("L").resize((_SIDE + 1, _SIDE), Image.Resampling.BOX), dtype=np.int16)
    colours = np.asarray(image.resize((4, 4), Image.Resampling.BOX), dtype=np.int16).reshape(-1)
    return ImageFingerprint(hashlib.sha256(data).hexdigest(), np.packbits(np.diff(grey, axis=1) > 0), colours)


def same_pictures(
    first: Sequence[ImageFingerprint], second: Sequence[ImageFingerprint], max_bits: int = 8, max_colour: int = 8
) -> list[tuple[int, int]]:
    """Return the index pairs of pictures that are the same file, or nearly the same picture.

    Two pictures are nearly the same if at most ``max_bits`` of 256 brightness comparisons differ and no colour of
    4 x 4 fields differs by more than ``max_colour`` of 255: another size or compression of one picture, and no more.
    ``max_bits`` -1 compares hashes of the files alone.
    """
    if not first or not second:
        return []
    hashes = np.array([each.sha256 for each in second])
    gradients, colours = np.stack([each.gradients for each in second]), np.stack([each.colours for each in second])
    pairs = []
    for row, own in enumerate(first):
        differing = np.bitwise_count(own.gradients ^ gradients).sum(1, dtype=np.int64)
        shift = np.abs(own.colours - colours).max(1)
        same = (hashes == own.sha256) | ((differing <= max_bits) & (shift <= max_colour))
        pairs += [(row, int(column)) for column in np.flatnonzero(same)]
    return pairs
