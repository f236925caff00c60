import io
import struct
import zlib
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from datamodules.few_shot.images import Picture, same_pictures
from datamodules.few_shot.images import fingerprint as inspect
from datamodules.few_shot.images import read_picture as decode


def photo(seed: int = 0, size: tuple[int, int] = (40, 32)) -> Image.Image:
    coarse = np.random.default_rng(seed).integers(0, 256, (6, 8, 3), dtype=np.uint8)
    return Image.fromarray(coarse).resize(size, Image.Resampling.BICUBIC)


def encoded(image: Image.Image, kind: str = "PNG", **options: object) -> bytes:
    buffer = io.BytesIO()
    image.save(buffer, kind, **options)
    return buffer.getvalue()


def png_header(width: int, height: int) -> bytes:
    def chunk(name: bytes, body: bytes) -> bytes:
        return struct.pack(">I", len(body)) + name + body + struct.pack(">I", zlib.crc32(name + body))

    head = chunk(b"IHDR", struct.pack(">IIBBBBB", width, height, 8, 2, 0, 0, 0))
    return b"\x89PNG\r\n\x1a\n" + head + chunk(b"IDAT", zlib.compress(b"\0" * 64)) + chunk(b"IEND", b"")


PNG = encoded(photo())


@pytest.mark.parametrize(
    ("name", "data", "message"),
    [
        ("a.png", b"", "a.png is empty"),
        ("a.jpg", b"<html>not here</html>", r"a.jpg is no picture: it is named .jpg and begins with b'<html>"),
        ("a.jpg", PNG, "a.jpg lies about its type: it is named .jpg and holds PNG"),
        ("a.png", encoded(photo(), "GIF"), "a.png lies about its type: it is named .png and holds GIF"),
        ("a.png", PNG[:-300], "a.png (is truncated|cannot be decoded)"),
        ("a.jpg", encoded(photo(size=(200, 200)), "JPEG")[:-400], "a.jpg is truncated"),
        ("a.png", PNG[:40], "a.png (is truncated|cannot be decoded)"),
        ("a.png", png_header(9500, 9500), "a.png is a decompression bomb: it has 9500 x 9500 pixels"),
        ("a.png", png_header(60000, 60000), "a.png is a decompression bomb"),
        (
            "a.webp",
            encoded(photo(), "WEBP", save_all=True, append_images=[photo(1)]),
            "a.webp is animated or has pages: it holds 2 pictures",
        ),
    ],
    ids=[
        "empty",
        "page",
        "png as jpg",
        "gif as png",
        "cut png",
        "cut jpg",
        "header",
        "large",
        "huge",
        "frames",
    ],
)
def test_a_bad_picture_is_refused_by_name(name: str, data: bytes, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        decode(data, name)


def test_missing_large_and_tiny_files_are_refused_by_name(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(ValueError, match=r"train/a/1.png is missing"):
        Picture(tmp_path / "1.png", "train/a/1.png").load()
    (tmp_path / "1.png").write_bytes(encoded(Image.new("RGB", (1, 4))))
    with pytest.raises(ValueError, match=r"train/a/1.png must have at least 2 x 2 pixels, got 1 x 4"):
        inspect(Picture(tmp_path / "1.png", "train/a/1.png"))
    with pytest.raises(ValueError, match=r"1.png cannot be read"):
        Picture(tmp_path, "1.png").load()
    monkeypatch.setattr("lit_modules.utils.images.MAX_BYTES", 10)
    with pytest.raises(ValueError, match=r"a.png is too large"):
        Picture(tmp_path / "1.png", "a.png").load()


def test_pictures_of_all_modes_become_rgb_as_they_look() -> None:
    clear = Image.new("RGBA", (4, 4), (255, 0, 0, 0))
    assert decode(encoded(clear), "a.png").getpixel((0, 0)) == (255, 255, 255)
    assert decode(encoded(Image.new("L", (4, 4), 7)), "a.png").getpixel((0, 0)) == (7, 7, 7)
    assert decode(encoded(Image.new("P", (4, 4))), "a.png").mode == "RGB"
    wide = photo(size=(20, 10))
    exif = Image.Exif()
    exif[0x0112] = 6  # turned by 90 degrees
    assert decode(encoded(wide, "JPEG", exif=exif), "a.jpg").size == (10, 20)


def test_a_picture_in_another_size_or_compression_is_the_same(tmp_path: Path) -> None:
    large = photo(size=(160, 128))
    files = {
        "a.png": encoded(large),
        "b.jpg": encoded(large, "JPEG", quality=85),
        "c.png": encoded(large.resize((80, 64), Image.Resampling.BOX)),
        "d.png": encoded(photo(1, (160, 128))),
        "e.png": encoded(large),
    }
    for name, data in files.items():
        (tmp_path / name).write_bytes(data)
    looks = [inspect(Picture(tmp_path / name, name)) for name in files]
    assert same_pictures(looks[:1], looks) == [(0, 0), (0, 1), (0, 2), (0, 4)]
    assert same_pictures(looks[:1], looks, max_bits=-1) == [(0, 0), (0, 4)]
    assert same_pictures([], looks) == []


def test_plain_pictures_of_other_colours_are_not_the_same(tmp_path: Path) -> None:
    for name in ("red", "blue"):
        (tmp_path / f"{name}.png").write_bytes(encoded(Image.new("RGB", (8, 8), name)))
    looks = [inspect(Picture(tmp_path / f"{name}.png", f"{name}.png")) for name in ("red", "blue")]
    assert same_pictures(looks[:1], looks[1:]) == []
