"""Reading pictures that others made, and telling those that are no use."""

import warnings
from collections.abc import Callable, Sequence
from io import BytesIO
from pathlib import Path

import numpy as np
from PIL import Image, UnidentifiedImageError
from PIL.PngImagePlugin import PngInfo

FORMATS = ("JPEG", "PNG", "WEBP", "BMP", "GIF", "TIFF")
_KEY = "coda-key"
_ENDINGS = {
    ".jpg": "JPEG",
    ".jpeg": "JPEG",
    ".png": "PNG",
    ".webp": "WEBP",
    ".bmp": "BMP",
    ".gif": "GIF",
    ".tif": "TIFF",
    ".tiff": "TIFF",
}


def read_picture(data: bytes, name: str, max_pixels: int = 50_000_000) -> Image.Image:
    """Return the picture in a file's bytes as RGB, wholly decoded.

    The size is looked at before anything is decoded.

    Args:
        data: Content of the file.
        name: Name or path of the file, for messages; its ending must fit the content if it is one of a picture.
        max_pixels: Largest number of pixels.

    Raises:
        ValueError: If it is no picture, is of another type than its name says, is too large or is cut off.
    """
    picture = _decoded(name, lambda: Image.open(BytesIO(data), formats=FORMATS))
    if picture.width * picture.height > max_pixels:
        raise ValueError(
            f"{name} has {picture.width} x {picture.height} pixels, more than the {max_pixels} allowed; it may be a "
            "decompression bomb."
        )
    said = _ENDINGS.get(Path(name).suffix.lower())
    if said is not None and said != picture.format:
        raise ValueError(f"{name} is a {picture.format} file and not the {said} that its name says; rename it.")
    return _decoded(name, lambda: picture.convert("RGB"))


def _decoded(name: str, decode: Callable[[], Image.Image]) -> Image.Image:
    """Return what a decoder returns; whatever it raises becomes a sentence with the name of the file."""
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # on sizes, for which max_pixels is stricter, and on damaged metadata
            return decode()
    except UnidentifiedImageError as error:
        raise ValueError(f"{name} is no picture of the types {', '.join(FORMATS)}.") from error
    except Image.DecompressionBombError as error:
        raise ValueError(f"{name} has too many pixels; it may be a decompression bomb.") from error
    except Exception as error:  # decoders raise whatever a hostile header provokes
        raise ValueError(f"{name} is cut off or damaged: {str(error).rstrip('.')}.") from error


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
