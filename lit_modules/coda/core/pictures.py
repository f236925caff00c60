"""Pictures that carry a key, and telling those that are no use."""

from collections.abc import Sequence
from io import BytesIO

import numpy as np
from PIL import Image
from PIL.PngImagePlugin import PngInfo

from lit_modules.utils.images import read_picture

__all__ = ["near_duplicate", "perceptual_hash", "picture_problem", "png_bytes", "png_key", "read_picture"]

_KEY = "coda-key"


def png_bytes(picture: Image.Image, key: str) -> bytes:
    """Return a picture as the bytes of an RGB PNG file, with a key as its only metadata.

    Picture and key so come onto the disk together, and a killed run leaves no picture whose origin is unknown.
    """
    facts = PngInfo()
    facts.add_text(_KEY, key)
    buffer = BytesIO()
    Image.fromarray(np.asarray(picture.convert("RGB"))).save(buffer, "PNG", pnginfo=facts)
    return buffer.getvalue()


def png_key(data: bytes) -> str | None:
    """Return the key in the bytes of :func:`png_bytes`; ``None`` if there is none, or they are damaged."""
    try:
        with Image.open(BytesIO(data), formats=("PNG",)) as picture:
            picture.load()
            found = picture.info.get(_KEY)
    except (OSError, SyntaxError, ValueError, EOFError, Image.DecompressionBombError):
        return None
    return found if isinstance(found, str) else None


def perceptual_hash(picture: Image.Image) -> int:
    """Return 64 bits on which of two neighbours is brighter, in 8 rows of 9 means of the picture (difference hash)."""
    small = np.asarray(picture.convert("L").resize((9, 8), Image.Resampling.BOX), dtype=np.int16)
    bits = (small[:, 1:] > small[:, :-1]).flatten()
    return sum(1 << place for place, bit in enumerate(bits) if bit)


def near_duplicate(found: int, others: Sequence[int], max_distance: int = 2) -> int | None:
    """Return the place of the first hash that differs in at most ``max_distance`` bits, or ``None``.

    Example:
        >>> near_duplicate(0b1011, [0b0100, 0b1010]), near_duplicate(0b1011, [0b0100])
        (1, None)
    """
    return next((place for place, other in enumerate(others) if (found ^ other).bit_count() <= max_distance), None)


def picture_problem(picture: Image.Image, min_side: int = 64, min_range: int = 4) -> str | None:
    """Return why a picture is no use, or ``None``.

    Args:
        picture: The picture.
        min_side: Shortest side, in pixels.
        min_range: Least difference of the brightest and the darkest value of any channel, of 255.
    """
    if min(picture.size) < min_side:
        return f"{picture.width} x {picture.height} pixels, smaller than {min_side}"
    extrema = picture.convert("RGB").getextrema()
    widest = max(int(high) - int(low) for low, high in extrema)  # type: ignore[misc]
    if widest < min_range:
        return "blank: its values differ by less than " + str(min_range)
    return None
