"""Small copies of a store's pictures for a page, and what is wrong with those that cannot be shown."""

import hashlib
from collections.abc import Sequence
from dataclasses import dataclass
from io import BytesIO

from PIL.Image import Image

from lit_modules.coda.core.pictures import png_key, read_picture
from lit_modules.coda.core.store import Store
from lit_modules.utils.pages import data_url

SIDE = 128
"""Longest side of a copy, in pixels."""
MAX_BYTES = 16_384
"""Most bytes of a copy's file."""
_PIXELATED = 64  # copies with no longer side are exact, and shown larger
_QUALITIES = (85, 70, 50, 30, 10)


@dataclass(frozen=True)
class Thumbnail:
    """A small copy of a picture.

    Args:
        name: Place of the picture in the store.
        url: ``data:`` URL of the copy; ``None`` if there is none.
        small: Whether it is to be enlarged without smoothing.
        problem: Why there is none.
    """

    name: str
    url: str | None = None
    small: bool = False
    problem: str | None = None


def thumbnail(store: Store, parts: Sequence[str], digest: str | None = None, key: str | None = None) -> Thumbnail:
    """Return a small copy of a picture in a store, or why there is none: it is missing, damaged or another one.

    Args:
        store: The store.
        parts: Place of the picture.
        digest: SHA-256 that its record tells of; ``None`` if there is none.
        key: Key that the file must hold; ``None`` asks for none.
    """
    name = "/".join(parts)
    try:
        data = store.read_file(list(parts))
        if data is None:
            return Thumbnail(name, problem="is missing")
        picture = read_picture(data, "the file")
    except (ValueError, OSError) as error:
        return Thumbnail(name, problem=f"cannot be shown: {error}")
    other = digest is not None and hashlib.sha256(data).hexdigest() != digest
    if other or (key is not None and png_key(data) != key):
        return Thumbnail(name, problem="is not the picture that its record tells of")
    picture.thumbnail((SIDE, SIDE))
    small = max(picture.size) <= _PIXELATED
    return Thumbnail(name, _png_url(picture) if small else _jpeg_url(picture), small)


def share_places(sizes: Sequence[int], total: int) -> int:
    """Return how many pictures of each group fit on a page, at least 1.

    Args:
        sizes: Number of pictures of each group.
        total: Most pictures in all.

    Example:
        >>> share_places([50, 2, 50], total=42), share_places([3, 3], total=100), share_places([5] * 9, total=4)
        (20, 3, 1)
    """
    fits = 1
    for each in sorted(set(sizes)):
        if sum(min(size, each) for size in sizes) <= total:
            fits = max(fits, each)
            continue
        larger = sum(size >= each for size in sizes)
        rest = total - sum(size for size in sizes if size < each)
        return max(fits, rest // larger)
    return fits


def _png_url(picture: Image) -> str:
    buffer = BytesIO()
    picture.save(buffer, "PNG", optimize=True)
    return data_url(buffer.getvalue(), "image/png")


def _jpeg_url(picture: Image) -> str:
    for quality in _QUALITIES:
        buffer = BytesIO()
        picture.save(buffer, "JPEG", quality=quality)
        if buffer.tell() <= MAX_BYTES:
            break
    return data_url(buffer.getvalue(), "image/jpeg")
