"""Pictures in files that are not trusted: what is wrong with one, its hash, and whether two are the same picture."""

import hashlib
import io
import warnings
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path, PurePosixPath
from typing import Any

import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageOps, UnidentifiedImageError

FORMATS = {".jpg": "JPEG", ".jpeg": "JPEG", ".png": "PNG", ".webp": "WEBP", ".bmp": "BMP"}
"""What a file must hold, by its suffix."""
NOT_READ = (".avif", ".gif", ".heic", ".heif", ".jp2", ".svg", ".tif", ".tiff")
MAX_PIXELS = 64_000_000
MAX_BYTES = 256 * 2**20
_MODES = ("1", "L", "LA", "P", "PA", "RGB", "RGBA", "RGBX", "CMYK", "YCbCr")
_SIDE = 16
_SIGNATURES = (b"\xff\xd8\xff", b"\x89PNG", b"RIFF", b"BM", b"GIF8")


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
        try:
            size = self.path.stat().st_size
            if size > MAX_BYTES:
                raise ValueError(f"{self.name} is too large: {size} bytes, and at most {MAX_BYTES} are read.")
            return self.path.read_bytes()
        except FileNotFoundError as error:
            raise ValueError(f"{self.name} is missing.") from error
        except OSError as error:
            raise ValueError(f"{self.name} cannot be read: {error.strerror or error}.") from error

    def load(self, max_pixels: int = MAX_PIXELS) -> Image.Image:
        """Return the picture in RGB, see :func:`decode`."""
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


def decode(data: bytes, name: str, max_pixels: int = MAX_PIXELS) -> Image.Image:
    """Decode a picture that may be damaged or hostile.

    The size is checked before anything is decoded. The turn that a camera has noted is carried out, and transparent
    places become white.

    Args:
        data: Bytes of the file.
        name: Name of the file; its suffix, if it has one of a picture, must be true.
        max_pixels: Most pixels that a picture may have.

    Returns:
        The picture in mode RGB.

    Raises:
        ValueError: If the file is empty, no picture, cut off, damaged, of another kind than its suffix says,
            animated, or a decompression bomb.

    Example:
        >>> decode(b"<html>", "adder.jpg")
        Traceback (most recent call last):
        ...
        ValueError: adder.jpg is no picture: it is named .jpg and begins with b'<html>'.
    """
    suffix = PurePosixPath(name).suffix.lower()
    expected = FORMATS.get(suffix)
    if not data:
        raise ValueError(f"{name} is empty.")
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", Image.DecompressionBombWarning)  # the limit is checked below
            image = Image.open(io.BytesIO(data), formats=[*dict.fromkeys(FORMATS.values()), "GIF"])
    except UnidentifiedImageError as error:
        if data.startswith(_SIGNATURES):
            raise ValueError(f"{name} cannot be decoded: its header is damaged or cut off.") from error
        named = f"it is named {suffix} and " if suffix else "it "
        raise ValueError(f"{name} is no picture: {named}begins with {data[:12]!r}.") from error
    except Image.DecompressionBombError as error:
        raise ValueError(f"{name} is a decompression bomb: it may have at most {max_pixels} pixels.") from error
    except Exception as error:  # decoders raise whatever a hostile header provokes
        raise ValueError(f"{name} cannot be decoded: {error}.") from error
    kind = "JPEG" if image.format == "MPO" else image.format  # several JPEG pictures in one file, as cameras write
    if kind not in FORMATS.values() or (expected is not None and kind != expected):
        named = f"is named {suffix} and " if suffix else ""
        raise ValueError(f"{name} lies about its type: it {named}holds {kind}.")
    if image.width * image.height > max_pixels:
        raise ValueError(
            f"{name} is a decompression bomb: it has {image.width} x {image.height} pixels, and may have at most "
            f"{max_pixels}."
        )
    if kind != "JPEG" and getattr(image, "n_frames", 1) > 1:
        raise ValueError(f"{name} is animated: it holds {getattr(image, 'n_frames', 1)} pictures, and may hold one.")
    if image.mode not in _MODES:
        raise ValueError(f"{name} must have 8 bits per channel, got mode {image.mode!r}.")
    try:
        image.load()
        turned = ImageOps.exif_transpose(image)
        if turned.mode in ("LA", "PA", "RGBA") or "transparency" in turned.info:
            layer = turned.convert("RGBA")
            turned = Image.new("RGBA", layer.size, "white")
            turned.alpha_composite(layer)
        return turned.convert("RGB")
    except Exception as error:  # damaged data reaches every part of a decoder
        what = "is truncated" if "truncated" in str(error) else "cannot be decoded"
        raise ValueError(f"{name} {what}: {str(error).rstrip('.')}.") from error


def inspect(picture: Picture, max_pixels: int = MAX_PIXELS) -> Look:
    """Read and decode a picture, and return what tells it from others.

    Raises:
        ValueError: If something is wrong with it, see :func:`decode`.
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
