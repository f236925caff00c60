"""Pictures in a folder per class, such as ImageNet, read when they are asked for."""

from collections.abc import Sequence
from pathlib import Path
from typing import Literal

import numpy as np
import torch
from torch import Tensor

from lit_modules.utils.arguments import Unpack, without_own
from lit_modules.utils.images import FORMATS, read_picture_file

from ..common.checks import check_at_least, check_choices
from ..common.sampling import permutation
from .base import ImageArguments, ImageDataModule


class PictureFiles:
    """Picture files that are indexed as a uint8 tensor of their images, ``(n, 3, size, size)``, would be.

    Args:
        paths: Files.
        size: Side of an image in pixels.
        resize_size: Pixels to which the shorter side is brought before the middle is cut out.
        interpolation: Way of resizing.
    """

    device = torch.device("cpu")

    def __init__(
        self, paths: Sequence[Path], size: int, resize_size: int, interpolation: Literal["bilinear", "bicubic"]
    ) -> None:
        self.paths = paths
        self.size = size
        self.resize_size = resize_size
        self.interpolation = interpolation

    def __len__(self) -> int:
        """Return the number of files."""
        return len(self.paths)

    def __getitem__(self, index: slice | Tensor) -> "PictureFiles | Tensor":
        """Return the files of a slice, or the images of some places.

        Raises:
            ValueError: If a file holds no picture that is accepted; the message names it.
        """
        if isinstance(index, slice):
            return PictureFiles(self.paths[index], self.size, self.resize_size, self.interpolation)
        return torch.stack([self.read(self.paths[place]) for place in index.tolist()])

    def read(self, path: Path) -> Tensor:
        """Return the picture of a file, uint8 ``(3, size, size)``."""
        from torchvision.transforms import InterpolationMode
        from torchvision.transforms.functional import center_crop, resize

        picture = resize(read_picture_file(path), self.resize_size, InterpolationMode(self.interpolation))
        return torch.from_numpy(np.array(center_crop(picture, self.size))).permute(2, 0, 1)


class ImageFolder(ImageDataModule):
    """Pictures in a folder per class: ``root/train/CLASS/*.jpg`` and ``root/test/CLASS/*.jpg``; no download.

    Pictures of any size and of the formats of :mod:`lit_modules.utils.images` are brought to ``image_size`` as usual on
    ImageNet: the shorter side is resized, the middle cut out. They are read when they are asked for, so a set may be
    larger than the memory; ``num_workers`` read in parallel. The order of each part is random and fixed, independent of
    ``seed``, so that the first ``test_size`` pictures are of all classes. A part that is not used may be missing.

    The label of a picture is the place of its folder's name in ``classes``: by default the names of all folders in
    alphabetical order, which for the WordNet names of ImageNet (``n01440764``) is the order of its classifiers. For
    some classes of a larger set give the file of all its names, or the labels are not those of its classifiers.

    ``mean`` and ``std`` are those of ImageNet. Batches and splits are those of
    :class:`~datamodules.images.base.ImageDataModule`.

    Args:
        root: Folder of the parts.
        train_folder: Folder of the training pictures, below ``root``.
        test_folder: Folder of the test pictures, below ``root``; ``val`` for ImageNet.
        classes: File with the names of the classes' folders, one a line, in the order of the labels.
        image_size: Side of the images in pixels.
        resize_size: Pixels of the shorter side before the middle is cut out; ``None`` takes 8/7 of ``image_size``,
            as 256 for 224.
        interpolation: ``bilinear`` or ``bicubic``.
        validation_size: Number of training images that are kept for validation, the first ones.
        augment: Whether training shifts images by up to 4 pixels and flips them sideways at random.

    Raises:
        ValueError: If an argument is out of its range, a folder is of no class, or a class is named twice.
        FileNotFoundError: If there is no folder of a part, or no file ``classes``.
    """

    channels = 3
    mean = (0.485, 0.456, 0.406)
    std = (0.229, 0.224, 0.225)
    flip = True

    def __init__(
        self,
        root: str,
        train_folder: str = "train",
        test_folder: str = "test",
        classes: str | None = None,
        image_size: int = 224,
        resize_size: int | None = None,
        interpolation: Literal["bilinear", "bicubic"] = "bilinear",
        validation_size: int = 5000,
        augment: bool = False,
        **shared: Unpack[ImageArguments],
    ) -> None:
        check_at_least(self.max_shift + 1, image_size=image_size)
        check_at_least(image_size, resize_size=resize_size)
        check_choices(("bilinear", "bicubic"), interpolation=interpolation)
        if shared.get("device", "cpu") != "cpu":
            raise ValueError(f"device must be 'cpu', as pictures are read from files, got {shared['device']!r}.")
        self.image_size = image_size
        shared = without_own(shared, download=False)
        super().__init__(root=root, download=False, validation_size=validation_size, augment=augment, **shared)
        self.folders = {"train": Path(root, train_folder), "test": Path(root, test_folder)}
        self.resize_size = resize_size or round(image_size * 8 / 7)
        self.interpolation = interpolation
        self.classes = self._class_names() if classes is None else _read_names(Path(classes))
        self.num_classes = len(self.classes)

    def read(self, part: Literal["train", "test"]) -> tuple[PictureFiles, Tensor]:
        """Return the files and labels of one part; no file is opened."""
        folder = self.folders[part]
        if not folder.is_dir():
            raise FileNotFoundError(
                f"There is no folder {folder} of {part} pictures, with a folder for each class; give `root` and "
                f"`{part}_folder`."
            )
        labels = {name: label for label, name in enumerate(self.classes)}
        unknown = sorted(path.name for path in _folders(folder) if path.name not in labels)
        if unknown:
            raise ValueError(
                f"{folder} must hold folders of the {len(labels)} classes, got {', '.join(unknown[:3])}; give all "
                "names in `classes`."
            )
        pictures = [
            (path, labels[place.name])
            for place in _folders(folder)
            for path in sorted(place.rglob("*"))
            if path.suffix.lower() in FORMATS
        ]
        chosen = [pictures[index] for index in permutation(len(pictures), seed=0, epoch=0)]
        files = PictureFiles([path for path, _ in chosen], self.image_size, self.resize_size, self.interpolation)
        return files, torch.tensor([label for _, label in chosen], dtype=torch.int64)

    def _class_names(self) -> tuple[str, ...]:
        """Return the names of the folders of both parts."""
        names = {place.name for folder in self.folders.values() if folder.is_dir() for place in _folders(folder)}
        if not names:
            listed = " nor ".join(map(str, self.folders.values()))
            raise FileNotFoundError(
                f"There is a folder for each class in neither {listed}; give `root`, and `train_folder` and "
                "`test_folder` where they have other names."
            )
        return tuple(sorted(names))


def _folders(folder: Path) -> list[Path]:
    return sorted(path for path in folder.iterdir() if path.is_dir() and not path.name.startswith("."))


def _read_names(path: Path) -> tuple[str, ...]:
    if not path.is_file():
        raise FileNotFoundError(f"There is no file {path} for classes; it holds the name of a folder on each line.")
    names = [line.strip() for line in path.read_text(encoding="utf-8").splitlines() if line.strip()]
    twice = sorted({name for name in names if names.count(name) > 1})
    if twice or len(names) < 2:
        got = f"{twice[0]!r} twice" if twice else f"{len(names)} names"
        raise ValueError(f"{path} must hold at least two names, each once, got {got}.")
    return tuple(names)
