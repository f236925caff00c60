"""CIFAR-10: small photographs."""

import zipfile
import zlib
from pathlib import Path
from typing import Any, Literal

import numpy as np
import torch
from torch import Tensor

from lit_modules.utils.arguments import Unpack

from ..common.checks import are_missing
from .base import ImageArguments, ImageDataModule, check_md5, fetch_from_torchvision

BATCHES = "cifar-10-batches-py"


class CIFAR10(ImageDataModule):
    """Small photographs: 50 000 training and 10 000 test images of 32 x 32 pixels, three colours, 10 classes.

    The files are the Python batches of the original distribution, in ``root/cifar-10-batches-py``, whose MD5 is
    checked before they are unpickled; or one ``.npz``, the only one in ``root`` or ``root`` itself, with
    ``train_images`` and ``test_images`` (uint8, ``(n, 32, 32, 3)``, red, green, blue) and ``train_labels`` and
    ``test_labels`` (``(n,)``), which may hold fewer images. Source: https://www.cs.toronto.edu/~kriz/cifar.html, by
    Alex Krizhevsky, Vinod Nair and Geoffrey Hinton, collected from the 80 Million Tiny Images; no formal licence.

    Augmentation shifts by up to 4 pixels over reflected borders and flips half of the images sideways. Batches and
    splits are those of :class:`~datamodules.images.base.ImageDataModule`.

    Args:
        root: Folder of the files, or an ``.npz`` file.
        download: Whether to download the files, unless they are there; checks their MD5.
        validation_size: Number of training images that are kept for validation, the first ones.
        augment: Whether training shifts and flips images at random.

    References:
        Krizhevsky, "Learning Multiple Layers of Features from Tiny Images", technical report, 2009.
    """

    channels = 3
    image_size = 32
    mean = (0.4914, 0.4822, 0.4465)
    std = (0.2470, 0.2435, 0.2616)  # of all pixels; the often quoted 0.2023, 0.1994, 0.2010 is a mean over images
    flip = True
    licence = "none that is formal; from the 80 Million Tiny Images"

    def __init__(
        self,
        root: str = "data",
        download: bool = False,
        validation_size: int = 5000,
        augment: bool = True,
        **shared: Unpack[ImageArguments],
    ) -> None:
        super().__init__(root=root, download=download, validation_size=validation_size, augment=augment, **shared)
        self.root: Path = Path(root)

    def read(self, part: Literal["train", "test"]) -> tuple[Tensor, Tensor]:
        """Return images and labels of one part."""
        packed = self._packed()
        if packed is not None:
            return read_npz(packed, part, (32, 32, 3))
        self._check_batches()
        data = self._source()(self.root, train=part == "train")
        return torch.from_numpy(data.data).permute(0, 3, 1, 2), torch.tensor(data.targets)

    def fetch(self) -> None:
        """Download the Python batches with torchvision, unless they or an ``.npz`` are there, and check their MD5.

        Raises:
            ConnectionError: If they cannot be downloaded.
            ValueError: If a file that is there has another MD5.
        """
        if self._packed() is not None:
            return
        if any(not path.is_file() for path, _ in self._batches()):
            fetch_from_torchvision(self._source(), self.root)
        self._check_batches()

    def _packed(self) -> Path | None:
        """Return the ``.npz`` file, if there is one and no folder of batches."""
        if self.root.suffix == ".npz":
            if not self.root.is_file():
                raise FileNotFoundError(f"There is no file {self.root}; give `root` as the folder or file of CIFAR10.")
            return self.root
        if (self.root / BATCHES).is_dir():
            return None
        packed = sorted(self.root.glob("*.npz"))
        if len(packed) > 1:
            names = ", ".join(path.name for path in packed)
            raise ValueError(
                f"The folder {self.root} must hold one .npz file, got {names}; give one of them as `root`."
            )
        return packed[0] if packed else None

    def _batches(self) -> list[tuple[Path, str]]:
        """Return the files of the Python batches, each with its MD5."""
        source = self._source()
        files = [*source.train_list, *source.test_list, (source.meta["filename"], source.meta["md5"])]
        return [(self.root / BATCHES / name, md5) for name, md5 in files]

    def _check_batches(self) -> None:
        missing = [path.name for path, _ in self._batches() if not path.is_file()]
        if missing:
            raise FileNotFoundError(
                f"The folder {self.root} must hold {BATCHES}, and {are_missing(missing, ', ')} there, or one .npz with "
                "train_images, train_labels, test_images and test_labels; give `root`, or let `download: true` get the "
                f"files from {self._source().url}."
            )
        for path, md5 in self._batches():
            check_md5(path, md5)

    @staticmethod
    def _source() -> Any:
        from torchvision.datasets import CIFAR10 as source

        return source


def read_npz(path: Path, part: str, shape: tuple[int, ...]) -> tuple[Tensor, Tensor]:
    """Read images, channels last, and labels of an ``.npz`` file.

    Args:
        path: File with ``<part>_images`` and ``<part>_labels``.
        part: Beginning of the names.
        shape: Height, width and channels of an image.

    Returns:
        uint8 ``(n, channel, height, width)`` and int64 ``(n,)``.

    Raises:
        ValueError: If the file is damaged or does not hold that.
    """
    names = (f"{part}_images", f"{part}_labels")
    try:
        with np.load(path, allow_pickle=False) as content:
            missing = [name for name in names if name not in content]
            arrays = [content[name] for name in names if name not in missing]
    except (OSError, EOFError, ValueError, TypeError, zipfile.BadZipFile, zlib.error) as error:
        raise ValueError(f"{path} is no .npz file or is damaged: {error}; get it again.") from error
    if missing:
        raise ValueError(f"{path} must hold {' and '.join(names)}, and {' and '.join(missing)} is not there.")
    images, labels = arrays
    if images.dtype != np.uint8 or images.ndim != 4 or images.shape[1:] != shape:
        raise ValueError(
            f"{names[0]} of {path} must be uint8 of shape (n, {', '.join(map(str, shape))}), got {images.dtype} of "
            f"shape {images.shape}."
        )
    if not np.issubdtype(labels.dtype, np.integer) or labels.ndim != 1:
        raise ValueError(
            f"{names[1]} of {path} must be whole numbers of shape (n,), got {labels.dtype} of shape {labels.shape}."
        )
    return torch.from_numpy(images).permute(0, 3, 1, 2), torch.from_numpy(labels.astype(np.int64))
