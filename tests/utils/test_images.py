"""Every part of the project sees the same pixels of a file, and refuses the same files."""

import io
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from datamodules.affordances.files import ImageStore
from datamodules.few_shot.images import Picture
from lit_modules.coda import read_picture as read_in_coda
from lit_modules.coda.augmentation.tasks import SupportImage
from lit_modules.metrics.concept_images import read_folder
from lit_modules.synthia.pairs.images import reread
from lit_modules.utils.images import FORMATS, read_picture, read_picture_file


def encoded(image: Image.Image, kind: str, **options: object) -> bytes:
    file = io.BytesIO()
    image.save(file, kind, **options)
    return file.getvalue()


def halves() -> Image.Image:
    image = Image.new("RGB", (80, 40), "red")
    image.paste("blue", (0, 0, 40, 40))
    return image


def turned() -> Image.Exif:
    exif = Image.Exif()
    exif[0x0112] = 6  # a quarter
    return exif


def frame() -> Image.Image:
    image = Image.new("RGBA", (80, 40))
    image.paste((255, 0, 0, 255), (20, 10, 60, 30))
    return image


def grey(kind: type, scale: float = 1.0) -> Image.Image:
    steps = np.linspace(0, 1, 3200).reshape(40, 80)
    return Image.fromarray((steps * scale).astype(kind))


GOOD = {
    "turned.jpg": encoded(halves(), "JPEG", exif=turned(), quality=95),
    "turned.png": encoded(halves(), "PNG", exif=turned()),
    "turned.webp": encoded(halves(), "WEBP", exif=turned(), lossless=True),
    "phone.jpg": encoded(halves(), "MPO", save_all=True, append_images=[halves().resize((20, 10))]),
    "clear.png": encoded(frame(), "PNG"),
    "palette.png": encoded(frame().quantize(), "PNG"),
    "clear.webp": encoded(frame(), "WEBP", lossless=True),
    "ink.jpg": encoded(halves().convert("CMYK"), "JPEG"),
    "deep.png": encoded(grey(np.uint16, 65535), "PNG"),
    "float.tif": encoded(grey(np.float32), "TIFF"),
}
if ".avif" in FORMATS:
    GOOD["turned.avif"] = encoded(halves(), "AVIF", exif=turned())
BAD = {
    "empty.png": (b"", "is empty"),
    "page.jpg": (b"<html>", r"is no picture: it is named \.jpg"),
    "png.jpg": (encoded(halves(), "PNG"), r"lies about its type: it is named \.jpg and holds PNG"),
    "moving.gif": (encoded(halves(), "GIF", save_all=True, append_images=[halves().rotate(180)]), "is animated"),
    "whole.tif": (encoded(grey(np.int32, 65535), "TIFF"), "must have 8 bits per channel.* got mode 'I'"),
    "twelve.tif": (encoded(grey(np.uint16, 4095), "TIFF"), "would be read as black, as its brightest value is 4095"),
    "wide.tif": (encoded(grey(np.float32, 255), "TIFF"), "has values from 0 to 255, and floats must be in"),
    "nan.tif": (encoded(Image.fromarray(np.full((4, 4), np.nan, np.float32)), "TIFF"), "floats must be in"),
    "cut.jpg": (encoded(halves().resize((400, 400)), "JPEG")[:900], "is truncated"),
    "large.png": (encoded(Image.new("1", (10_000, 9_000)), "PNG"), "is a decompression bomb: it has 10000 x 9000"),
}


def store(path: Path) -> np.ndarray:
    return ImageStore(40, resize="squash").get(path).permute(1, 2, 0).numpy()


READERS: dict[str, Callable[[Path], object]] = {
    "datamodules": lambda path: Picture(path, path.name).load(),
    "coda": lambda path: read_in_coda(path.read_bytes(), path.name),
    "augmentation": lambda path: SupportImage(str(path)).image,
    "metrics": lambda path: read_folder(path.parent)[0].permute(1, 2, 0).numpy(),
    "endpoints": lambda path: read_picture(reread(path.read_bytes()), "came"),
}


@pytest.mark.parametrize("name", GOOD)
def test_all_readers_see_the_same_pixels(name: str, tmp_path: Path) -> None:
    path = tmp_path / name
    path.write_bytes(GOOD[name])
    wanted = np.asarray(read_picture_file(path))
    for reader, read in READERS.items():
        assert np.array_equal(np.asarray(read(path)), wanted), reader
    small = read_picture_file(path).resize((40, 40), Image.Resampling.LANCZOS)
    assert np.array_equal(store(path), np.asarray(small))


def test_pixels_are_those_that_a_person_sees() -> None:
    for name in (name for name in GOOD if name.startswith("turned")):
        picture = read_picture(GOOD[name], name)
        assert picture.size == (40, 80), name
        assert picture.getpixel((20, 5))[2] > 250, name
        assert picture.getpixel((20, 75))[0] > 250, name
    for name in ("clear.png", "palette.png", "clear.webp"):
        assert read_picture(GOOD[name], name).getpixel((0, 0)) == (255, 255, 255), name
    for name in ("deep.png", "float.tif"):
        values = np.asarray(read_picture(GOOD[name], name))
        assert (values.min(), values.max()) == (0, 255), name
        assert values.mean() == pytest.approx(127.5, abs=0.5), name
    hole = encoded(grey(np.uint16, 65535), "PNG", transparency=0)
    assert read_picture(hole, "hole.png").getpixel((0, 0)) == (255, 255, 255)
    assert read_picture(GOOD["phone.jpg"], "phone.jpg").size == (80, 40)
    assert read_picture(encoded(Image.new("I;16", (4, 4)), "PNG"), "night.png").getpixel((0, 0)) == (0, 0, 0)


@pytest.mark.parametrize("name", BAD)
def test_all_readers_refuse_the_same_files_by_name(name: str, tmp_path: Path) -> None:
    data, message = BAD[name]
    path = tmp_path / name
    path.write_bytes(data)
    for reader, read in {**READERS, "store": lambda path: ImageStore(40).load([path])}.items():
        if reader == "endpoints":
            continue  # what came has no name that could lie
        with pytest.raises(ValueError, match=rf"{name} .*{message}|{name} {message}"):
            read(path)


def test_no_picture_is_passed_over_and_none_is_too_large(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "a.heic").write_bytes(b"ftypheic")
    with pytest.raises(ValueError, match=r"a\.heic has a suffix that is not read; \.jpg, "):
        read_folder(tmp_path)
    with pytest.raises(ValueError, match="cannot be read"):
        read_picture_file(tmp_path)
    monkeypatch.setattr("lit_modules.utils.images.MAX_BYTES", 7)
    for name, message in (("a.heic", "is too large: 8 bytes"), ("none.png", "is missing")):
        with pytest.raises(ValueError, match=message):
            read_picture_file(tmp_path / name)
