"""MNIST: handwritten digits."""

import gzip
import math
import struct
import zlib
from pathlib import Path
from typing import Any, ClassVar, Literal

import torch
from torch import Tensor

from ..common.checks import are_missing
from .base import ImageDataModule, check_md5, fetch_from_torchvision

UNSIGNED_BYTE = 8  # the only type of number in these files


class MNIST(ImageDataModule):
    """Handwritten digits: 60 000 training and 10 000 test images of 28 x 28 pixels, grey, 10 classes.

    The files are the four of the original distribution, ``train-images-idx3-ubyte``, ``train-labels-idx1-ubyte``,
    ``t10k-images-idx3-ubyte`` and ``t10k-labels-idx1-ubyte``, unpacked or with ``.gz``, in ``root`` or, as torchvision
    lays them out, in ``root/MNIST/raw``. Source: http://yann.lecun.com/exdb/mnist, by Yann LeCun, Corinna Cortes and
    Christopher J. C. Burges, commonly distributed under CC BY-SA 3.0.

    Batches, splits and arguments are those of :class:`~datamodules.images.base.ImageDataModule`.

    References:
        LeCun et al., "Gradient-based learning applied to document recognition", Proceedings of the IEEE 1998.
    """

    channels = 1
    image_size = 28
    mean = (0.1307,)
    std = (0.3081,)
    licence = "commonly CC BY-SA 3.0, by Y. LeCun, C. Cortes and C. J. C. Burges"
    parts: ClassVar[dict[str, str]] = {"train": "train", "test": "t10k"}
    folder: ClassVar[str] = "MNIST/raw"
    """Folder that torchvision puts the files in."""

    def read(self, part: Literal["train", "test"]) -> tuple[Tensor, Tensor]:
        """Return images and labels of one part."""
        names = [f"{self.parts[part]}-{kind}-ubyte" for kind in ("images-idx3", "labels-idx1")]
        paths = [self._find(name) for name in names]
        missing = [f"{name}.gz" for name, path in zip(names, paths, strict=True) if path is None]
        if missing:
            raise FileNotFoundError(
                f"The folder {self.root} must hold {names[0]}.gz and {names[1]}.gz, unpacked or not, there or in "
                f"{self.folder}, and {are_missing(missing)}; give `root`, or let `download: true` get the files from "
                f"{self._source().mirrors[0]}."
            )
        images, labels = (read_idx(path) for path in paths if path is not None)
        size = (self._native_size(), self._native_size())
        if images.ndim != 3 or tuple(images.shape[1:]) != size:
            raise ValueError(
                f"{paths[0]} must hold images of {size[0]} x {size[1]} pixels, got the shape {tuple(images.shape)}."
            )
        if labels.ndim != 1:
            raise ValueError(f"{paths[1]} must hold a label for each image, got the shape {tuple(labels.shape)}.")
        return images.unsqueeze(1), labels.long()

    def fetch(self) -> None:
        """Download the files with torchvision, or check the MD5 of packed files that are there.

        Raises:
            ConnectionError: If they cannot be downloaded.
            ValueError: If a file that is there has another MD5.
        """
        source = self._source()
        if any(self._find(name.removesuffix(".gz")) is None for name, _ in source.resources):
            fetch_from_torchvision(source, self.root)
        for name, md5 in source.resources:
            for folder in self._folders():
                if (folder / name).is_file():
                    check_md5(folder / name, md5)

    def _find(self, name: str) -> Path | None:
        paths = [folder / f"{name}{packed}" for folder in self._folders() for packed in ("", ".gz")]
        return next((path for path in paths if path.is_file()), None)

    def _folders(self) -> list[Path]:
        return [Path(self.root or ""), Path(self.root or "") / self.folder]

    def _native_size(self) -> int:
        return type(self).image_size  # that of the object counts a variant in

    @staticmethod
    def _source() -> Any:
        from torchvision.datasets import MNIST as source

        return source


def read_idx(path: str | Path) -> Tensor:
    """Read a file of unsigned bytes in the idx format of MNIST.

    Two zero bytes, the type (8), the number of dimensions, each size as a big-endian 32-bit number, the values.

    Args:
        path: File; a name that ends in ``.gz`` is unpacked.

    Returns:
        uint8 tensor of the shape that the file gives.

    Raises:
        ValueError: If the file is no such file, is damaged, or ends too early or too late.
    """
    path = Path(path)
    try:
        content = gzip.decompress(path.read_bytes()) if path.suffix == ".gz" else path.read_bytes()
    except (EOFError, gzip.BadGzipFile, zlib.error) as error:
        raise ValueError(f"{path} is damaged: {error}; get it again.") from error
    if len(content) < 4 or content[:2] != b"\0\0" or content[2] != UNSIGNED_BYTE or not content[3]:
        raise ValueError(f"{path} must be an idx file of unsigned bytes, got one that begins with {content[:4]!r}.")
    dimensions = content[3]
    start = 4 + 4 * dimensions
    if len(content) < start:
        raise ValueError(f"{path} ends within its header, after {len(content)} bytes; get it again.")
    shape = struct.unpack(f">{dimensions}I", content[4:start])
    length = math.prod(shape)
    if len(content) - start != length:
        raise ValueError(
            f"{path} must hold {length} values of the shape {shape}, got {len(content) - start}; get it again."
        )
    if not length:
        return torch.empty(shape, dtype=torch.uint8)
    return torch.frombuffer(bytearray(content), dtype=torch.uint8, offset=start).reshape(shape)
