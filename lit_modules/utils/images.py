"""The one reader of pictures: what is accepted, how it becomes RGB, and what is refused."""

import io
import warnings
from pathlib import Path, PurePath
from threading import Lock

import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageOps, UnidentifiedImageError, features

FORMATS = {
    ".jpg": "JPEG",
    ".jpeg": "JPEG",
    ".jfif": "JPEG",
    ".png": "PNG",
    ".webp": "WEBP",
    ".bmp": "BMP",
    ".gif": "GIF",
    ".tif": "TIFF",
    ".tiff": "TIFF",
    **({".avif": "AVIF"} if features.check("avif") else {}),
}
"""Format that a file must hold, by its suffix; AVIF where the installed Pillow reads it."""
NOT_READ = tuple({".avif", ".heic", ".heif", ".jp2", ".jxl", ".svg"} - FORMATS.keys())
"""Suffixes of pictures that are refused by name, so that none is passed over."""
MAX_PIXELS = 89_478_485
"""Most pixels of a picture: 256 MiB of colours, Pillow's own bound."""
MAX_BYTES = 256 * 2**20
"""Most bytes of a picture's file."""
BACKGROUND = "white"
"""Colour behind transparent pixels."""
_KINDS = tuple(dict.fromkeys(FORMATS.values()))
_COLOURS = ("1", "L", "LA", "P", "PA", "RGB", "RGBA", "RGBX", "CMYK", "YCbCr")
_SIGNATURES = (b"\xff\xd8\xff", b"\x89PNG", b"RIFF", b"BM", b"GIF8", b"II*\0", b"MM\0*")
_LOCK = Lock()
_DARK = 1 / 16  # values of 12 bits in a file of 16 would be taken for black


def read_picture(data: bytes, name: str, max_pixels: int = MAX_PIXELS) -> Image.Image:
    """Return the picture in a file's bytes as 8-bit RGB.

    The file may be damaged or hostile: the size is checked before anything is decoded. The turn that a camera has noted
    (EXIF) is carried out, transparent places become white, and of the several pictures in a phone's JPEG (MPO) the
    first is taken. Grey values of 16 bits, and floats in [0, 1], are scaled to 8 bits.

    Args:
        data: Bytes of the file.
        name: Name of the file, for messages; its suffix, if it has one of a picture, must be true.
        max_pixels: Most pixels that a picture may have.

    Raises:
        ValueError: If the file is empty, no picture, cut off, damaged, of another kind than its suffix says,
            animated or of several pages, a decompression bomb, or of values whose range is not known.

    Example:
        >>> read_picture(b"<html>", "adder.jpg")
        Traceback (most recent call last):
        ...
        ValueError: adder.jpg is no picture: it is named .jpg and begins with b'<html>'.
    """
    suffix = PurePath(name).suffix.lower()
    expected = FORMATS.get(suffix)
    if not data:
        raise ValueError(f"{name} is empty.")
    try:
        image = _opened(data)
    except UnidentifiedImageError as error:
        if data.startswith(_SIGNATURES):
            raise ValueError(f"{name} cannot be decoded: its header is damaged or cut off.") from error
        named = f"it is named {suffix} and " if suffix else "it "
        raise ValueError(f"{name} is no picture: {named}begins with {data[:12]!r}.") from error
    except Image.DecompressionBombError as error:
        raise ValueError(f"{name} is a decompression bomb: it may have at most {max_pixels} pixels.") from error
    except Exception as error:  # decoders raise whatever a hostile header provokes
        raise ValueError(f"{name} cannot be decoded: {str(error).rstrip('.')}.") from error
    kind = "JPEG" if image.format == "MPO" else image.format  # several JPEG pictures in one file, as phones write
    if expected is not None and kind != expected:
        raise ValueError(f"{name} lies about its type: it is named {suffix} and holds {kind}; rename it.")
    if image.width * image.height > max_pixels:
        raise ValueError(
            f"{name} is a decompression bomb: it has {image.width} x {image.height} pixels, and may have at most "
            f"{max_pixels}."
        )
    try:
        picture = _decoded(image)
    except Exception as error:  # damaged data reaches every part of a decoder
        what = "is truncated" if "truncated" in str(error) else "cannot be decoded"
        raise ValueError(f"{name} {what}: {str(error).rstrip('.')}.") from error
    if isinstance(picture, str):
        raise ValueError(f"{name} {picture}.")
    return picture


def read_picture_file(path: str | Path, max_pixels: int = MAX_PIXELS) -> Image.Image:
    """Return the picture in a file; see :func:`read_picture`.

    Raises:
        ValueError: If it is missing, cannot be read or is no picture that is accepted; the message names the file.
    """
    return read_picture(picture_bytes(path, str(path)), str(path), max_pixels)


def picture_bytes(path: str | Path, name: str) -> bytes:
    """Return the bytes of a picture's file, or raise a ``ValueError`` if it is missing, unreadable or too large."""
    try:
        size = Path(path).stat().st_size
        if size > MAX_BYTES:
            raise ValueError(f"{name} is too large: {size} bytes, and at most {MAX_BYTES} are read.")
        return Path(path).read_bytes()
    except FileNotFoundError as error:
        raise ValueError(f"{name} is missing.") from error
    except OSError as error:
        raise ValueError(f"{name} cannot be read: {error.strerror or error}.") from error


def _opened(data: bytes) -> Image.Image:
    """Return a picture whose header alone was read."""
    with _LOCK, warnings.catch_warnings():  # which threads must not enter together
        warnings.simplefilter("ignore", Image.DecompressionBombWarning)  # max_pixels bounds the size
        return Image.open(io.BytesIO(data), formats=_KINDS)


def _decoded(image: Image.Image) -> Image.Image | str:
    """Return a picture as 8-bit RGB, turned as its camera noted, or why it is refused."""
    frames = getattr(image, "n_frames", 1)
    if frames > 1 and image.format != "MPO":
        return f"is animated or has pages: it holds {frames} pictures, and may hold one"
    image.load()
    image = ImageOps.exif_transpose(image)
    if image.mode == "F" or image.mode.startswith("I;16"):
        values, full = np.array(image, dtype=np.float64), 1 if image.mode == "F" else 65535
        if "transparency" in image.info:  # the one grey that is
            values[values == image.info["transparency"]] = full
        return _scaled(values, full)
    if image.mode not in _COLOURS:
        return f"must have 8 bits per channel, 16 of grey, or floats, got mode {image.mode!r}"
    if image.mode in ("LA", "PA", "RGBA") or "transparency" in image.info:
        layer = image.convert("RGBA")
        under = Image.new("RGBA", layer.size, BACKGROUND)
        under.alpha_composite(layer)
        image = under
    return image.convert("RGB")


def _scaled(values: NDArray[np.float64], full: int) -> Image.Image | str:
    """Return grey values as a picture, or why their range is not plain."""
    low, high = float(values.min()), float(values.max())
    if not 0 <= low <= high <= full:  # nor is it for NaN
        return f"has values from {low:g} to {high:g}, and floats must be in [0, 1]; save it with 8 bits per channel"
    if 0 < high < full * _DARK:
        return f"would be read as black, as its brightest value is {high:g} of {full}; save it with 8 bits per channel"
    return Image.fromarray((values * (255 / full)).round().astype(np.uint8)).convert("RGB")
