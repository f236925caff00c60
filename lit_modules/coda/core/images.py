"""Images that carry a key, and checks for useless ones."""

from collections.abc import Sequence
from io import BytesIO

import numpy as np
from PIL import Image
from PIL.PngImagePlugin import PngInfo

_KEY = "coda-key"


def png_bytes(picture: Image.Image, key: str) -> bytes:
    """Return an image as the bytes of an RGB PNG file, with a key as its only metadata.

    Image and key so reach the disk together, and a killed run leaves no image of unknown origin.
    """
    metadata = PngInfo()
    metadata.add_text(_KEY, key)
    buffer = BytesIO()
    Image.fromarray(np.asarray(picture.convert("RGB"))).save(buffer, "PNG", pnginfo=metadata)
    return buffer.getvalue()


def png_key(data: bytes) -> str | None:
    """Return the key in the bytes of :func:`png_bytes`; ``None`` if there is none, or they are damaged."""
    try:
        with Image.open(BytesIO(data), formats=("PNG",)) as picture:
            picture.load()
            key = picture.info.get(_KEY)
    except (OSError, SyntaxError, ValueError, EOFError, Image.DecompressionBombError):
        return None
    return key if isinstance(key, str) else None


def perceptual_hash(picture: Image.Image) -> int:
    """Return the difference hash: 64 bits on which of two neighbours is brighter, in 8 rows of 9 means of the image."""
    small = np.asarray(picture.convert("L").resize((9, 8), Image.Resampling.BOX), dtype=np.int16)
    bits = (small[:, 1:] > small[:, :-1]).flatten()
    return sum(1 << index for index, bit in enumerate(bits) if bit)


def near_duplicate(fingerprint: int, others: Sequence[int], max_distance: int = 2) -> int | None:
    """Return the index of the first hash that differs in at most ``max_distance`` bits, or ``None``."""
    near = (index for index, other in enumerate(others) if (fingerprint ^ other).bit_count() <= max_distance)
    return next(near, None)


def picture_problem(picture: Image.Image, min_side: int = 64, min_range: int = 4) -> str | None:
    """Return why an image is of no use, or ``None``.

    Args:
        picture: The image.
        min_side: Shortest side, in pixels.
        min_range: Least difference of the brightest and the darkest value of any channel, of 255.
    """
    if min(picture.size) < min_side:
        return f"{picture.width} x {picture.height} pixels, smaller than {min_side}"
    extrema = picture.convert("RGB").getextrema()
    if max(int(high) - int(low) for low, high in extrema) < min_range:  # type: ignore[misc]
        return f"blank: its values differ by less than {min_range}"
    return None
