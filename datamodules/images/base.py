"""Image datasets of 8-bit images in memory, turned into batches without a loop over images."""

import hashlib
import random
from abc import ABC, abstractmethod
from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path
from typing import Any, ClassVar, Literal, Protocol, TypedDict

import torch
from lightning.pytorch import LightningDataModule
from torch import Tensor
from torch.utils.data import Dataset

from ..common.checks import check_at_least, check_choices
from ..common.sampling import BatchSampler, ResumableLoader, ordered_loader, place_of, training_loader
from ..variants import Variant

SPLITS = ("train", "validation", "test")


class Images(Protocol):
    """Images that are indexed as a uint8 tensor ``(n, channel, height, width)``: such a tensor, or files."""

    @property
    def device(self) -> torch.device:
        """Device of the images."""

    def __len__(self) -> int:
        """Return the number of images."""

    def __getitem__(self, index: Any) -> Any:
        """Return images of a slice, indexed likewise, or a tensor of those of some places."""


class ImageSet(Dataset[dict[str, Tensor]]):
    """Images whose index is a tuple of places and whose item is a batch.

    A batch holds ``image`` (float32 in [0, 1], ``(batch, channel, height, width)``), ``label`` and ``index`` (int64,
    ``(batch,)``). A place may come with a number of :class:`AugmentedSampler`, which says how to crop and flip.

    Args:
        images: uint8, ``(n, channel, height, width)``, or what is indexed as such a tensor.
        labels: int64, ``(n,)``, on the same device.
        levels: Value of white.
        variant: Change of the images, in [0, 1].
        padding: Pixels by which an augmented image may be shifted.
    """

    def __init__(
        self,
        images: Images,
        labels: Tensor,
        levels: int = 255,
        variant: Variant | None = None,
        padding: int = 0,
    ) -> None:
        self.images = images
        self.labels = labels
        self.levels = levels
        self.variant = variant
        self.padding = padding

    def __len__(self) -> int:
        """Return the number of images."""
        return len(self.images)

    def __getitem__(self, indices: int | Sequence[int] | Sequence[tuple[int, int]]) -> dict[str, Tensor]:
        """Return the batch of some places, or of one."""
        chosen = torch.tensor([indices] if isinstance(indices, int) else indices).to(self.images.device)
        index, draws = (chosen, None) if chosen.ndim == 1 else chosen.unbind(1)
        images = self.images[index].float() / self.levels
        if self.variant is not None:
            images = _changed(self.variant, images)
        if draws is not None:
            images = shift_and_flip(images, draws, self.padding)
        return {"image": images, "label": self.labels[index], "index": index}


class AugmentedSampler(BatchSampler):
    """Yield places with a number that says how to augment each image.

    The number depends on the seed, the epoch and the position in its order alone, so that a resumed run, or one on
    several devices, augments each image as one run on one device does.

    Args:
        length: Number of images.
        batch_size: Images per rank and batch.
        seed: Seed of order and augmentation.
        rank: Number of this process.
        world_size: Number of processes.
        choices: Number of ways to augment an image; the numbers are below it.
    """

    def __init__(
        self, length: int, batch_size: int, seed: int = 0, rank: int = 0, world_size: int = 1, choices: int = 1
    ) -> None:
        super().__init__(length, batch_size, seed=seed, rank=rank, world_size=world_size)
        self.choices = choices

    def order(self) -> list[tuple[int, int]]:
        """Return the places of this epoch, each with its number."""
        order = super().order()
        drawn = random.Random(f"{self.seed}/{self.epoch - self.lag}/augmentation").getrandbits(63)
        generator = torch.Generator().manual_seed(drawn)
        draws = torch.randint(self.choices, (self.length,), generator=generator)
        return list(zip(order, draws.tolist(), strict=True))

    def identity(self) -> dict[str, int | str]:
        """Return the facts that two samplers of the same batches share."""
        return {**super().identity(), "ways to augment an image": self.choices}


def shift_and_flip(images: Tensor, draws: Tensor, padding: int) -> Tensor:
    """Crop images out of their reflection-padded selves, and turn some about, all at once.

    Args:
        images: ``(n, channel, height, width)``.
        draws: Whole numbers ``(n,)``; with ``s = 2 padding + 1``, ``draw % s`` and ``draw // s % s`` are the first row
            and column of the crop in the padded image, and images with an odd ``draw // s^2`` are flipped sideways.
        padding: Pixels that reflection adds at each side, less than height and width.

    Returns:
        Images of the same size.

    Example:
        >>> image = torch.arange(3.0).expand(1, 1, 3, 3)
        >>> shift_and_flip(image, torch.tensor([0 + 3 * 2 + 9]), padding=1)[0, 0, 0]
        tensor([1., 2., 1.])
    """
    height, width = images.shape[-2:]
    shifts = 2 * padding + 1
    rows = _reflected(draws % shifts - padding, height)
    columns = _reflected(draws // shifts % shifts - padding, width)
    flipped = (draws // shifts**2 % 2).bool()
    columns = torch.where(flipped[:, None], columns.flip(1), columns)
    sample = torch.arange(len(images), device=images.device)[:, None, None, None]
    channel = torch.arange(images.shape[1], device=images.device)[None, :, None, None]
    return images[sample, channel, rows[:, None, :, None], columns[:, None, None, :]]


class ImageArguments(TypedDict, total=False):
    """Arguments that the image sets share; see :class:`ImageDataModule`."""

    batch_size: int
    eval_batch_size: int
    train_size: int | None
    test_size: int | None
    test_split: Literal["test", "train", "validation"]
    variant: Variant | None
    device: str
    seed: int
    num_workers: int


class ImageDataModule(LightningDataModule, ABC):
    """Labelled images, kept as 8-bit numbers and turned into batches as they are asked for.

    A batch is a dict of ``image`` (float32 in [0, 1], ``(batch, channel, height, width)``), ``label`` (int64,
    ``(batch,)``) and ``index`` (int64, ``(batch,)``: the place in its split, in the order of the files). Normalisation
    is the classifier's business.

    The first ``validation_size`` training images are the validation split; training takes the first ``train_size`` of
    the rest. The order of training and the augmentation are functions of ``seed`` and the epoch. A run that was stopped
    in the middle of an epoch goes on with the next batch. ``W`` devices see the images that one device with ``W`` times
    the ``batch_size`` sees.

    After construction ``num_classes``, ``channels``, ``image_size`` (side in pixels) say what the batches hold, the
    variant counted in, and ``mean`` and ``std`` describe each channel of the training images without a variant.

    A set of your own says these facts, and reads its files in ``read``.

    Args:
        root: Folder of the files.
        download: Whether to download the files, unless they are there; checks their MD5.
        batch_size: Images in a training batch, on each device.
        eval_batch_size: Images in a batch of validation, test and predict, on each device.
        validation_size: Number of training images that are kept for validation, the first ones.
        train_size: Number of images to train on, the first ones after those; ``None`` takes all.
        test_size: Number of images to test on, the first ones; ``None`` takes all.
        test_split: Split that ``test`` and ``predict`` take; ``train`` shows how far a model generalises.
        variant: Change of all images, training and test, such as ``datamodules.variants.Smooth``: takes and returns
            floats in [0, 1].
        augment: Whether training shifts images at random, by up to ``max_shift`` pixels over reflected borders, and
            flips them sideways where the class has ``flip``.
        device: Where the set is kept, such as ``cpu`` or ``cuda``; on a GPU batches are made there.
        seed: Seed of the order and of the augmentation.
        num_workers: Worker processes of each loader; 0 is fast, as a batch is a few tensor operations.

    Raises:
        ValueError: If an argument is out of its range or the variant leaves [0, 1]; in ``setup``, if a file is damaged
            or a split is empty.
        FileNotFoundError: In ``setup``, if files are missing.
    """

    licence: ClassVar[str | None] = None
    """Licence of the data, for the card of a model that learned from them; ``None`` for files of the user's."""
    num_classes: int = 10
    channels: int
    image_size: int
    mean: tuple[float, ...]
    std: tuple[float, ...]
    levels: ClassVar[int] = 255
    """Value of white in the files."""
    max_shift: ClassVar[int] = 4
    flip: ClassVar[bool] = False

    def __init__(
        self,
        root: str | None = "data",
        download: bool = False,
        batch_size: int = 128,
        eval_batch_size: int = 1000,
        validation_size: int = 5000,
        train_size: int | None = None,
        test_size: int | None = None,
        test_split: Literal["test", "train", "validation"] = "test",
        variant: Variant | None = None,
        augment: bool = False,
        device: str = "cpu",
        seed: int = 0,
        num_workers: int = 0,
    ) -> None:
        super().__init__()
        check_at_least(1, batch_size=batch_size, eval_batch_size=eval_batch_size)
        check_at_least(1, train_size=train_size, test_size=test_size)
        check_at_least(0, validation_size=validation_size, num_workers=num_workers)
        check_choices(SPLITS, test_split=test_split)
        self.device = _device(device)
        if self.device.type != "cpu" and num_workers:
            raise ValueError(f"num_workers must be 0 if the set is kept on {device}, got {num_workers}.")
        if variant is not None:
            if not callable(variant):
                raise TypeError(f"variant must be a callable from images to images, got {variant!r}.")
            shape = _changed(variant, torch.zeros(1, self.channels, self.image_size, self.image_size)).shape
            self.channels, self.image_size = shape[1], shape[2]
        self.save_hyperparameters(ignore=["variant"])
        self.root = None if root is None else Path(root)
        self.download = download
        self.batch_size, self.eval_batch_size = batch_size, eval_batch_size
        self.validation_size, self.train_size, self.test_size = validation_size, train_size, test_size
        self.test_split = test_split
        self.variant, self.augment = variant, augment
        self.seed, self.num_workers = seed, num_workers
        self._parts: dict[str, tuple[Images, Tensor]] = {}

    @abstractmethod
    def read(self, part: Literal["train", "test"]) -> tuple[Images, Tensor]:
        """Return the images, uint8 ``(n, channel, height, width)``, and labels, ``(n,)``, of a part of the files."""

    def fetch(self) -> None:
        """Download the files and check them; a set that needs none does nothing."""

    def prepare_data(self) -> None:
        """Download the files if asked to."""
        if self.download:
            self.fetch()

    def setup(self, stage: str) -> None:
        """Read and check what the stage needs."""
        names = {"fit": ("train", "validation"), "validate": ("validation",)}.get(stage, (self.test_split,))
        for name in names:
            if name != "validation" or self.validation_size:
                self.split(name)

    def split(self, name: str) -> ImageSet:
        """Return the images of a split, in the order of the files and without augmentation.

        Raises:
            ValueError: If the files are malformed or hold fewer images than were asked for.
            FileNotFoundError: If files are missing.

        Example:
            >>> from datamodules import Digits
            >>> digits = Digits().split("test")
            >>> digits[range(len(digits))]["image"].shape
            torch.Size([397, 1, 8, 8])
        """
        check_choices(SPLITS, split=name)
        images, labels = self._part("test" if name == "test" else "train")
        start, stop = self._bounds(name, len(images))
        return ImageSet(images[start:stop], labels[start:stop], self.levels, self.variant, self.max_shift)

    def train_dataloader(self) -> ResumableLoader:
        """Return shuffled batches."""
        data = self.split("train")
        own: dict[str, Any] = {"seed": self.seed, **dict(zip(("rank", "world_size"), place_of(self), strict=True))}
        ways = (2 * self.max_shift + 1) ** 2 * (2 if self.flip else 1)
        sampler = (
            AugmentedSampler(len(data), self.batch_size, choices=ways, **own)
            if self.augment
            else BatchSampler(len(data), self.batch_size, **own)
        )
        return training_loader(self, data, sampler, num_workers=self.num_workers)

    def val_dataloader(self) -> ResumableLoader | list[Any]:
        """Return the validation images in order, or no loader if ``validation_size`` is 0."""
        return self._evaluation("validation") if self.validation_size else []

    def test_dataloader(self) -> ResumableLoader:
        """Return the images of ``test_split`` in order."""
        return self._evaluation(self.test_split)

    def predict_dataloader(self) -> ResumableLoader:
        """Return the images of ``test_split`` in order."""
        return self._evaluation(self.test_split)

    def _evaluation(self, name: str) -> ResumableLoader:
        return ordered_loader(self, self.split(name), self.eval_batch_size, self.seed, self.num_workers)

    def _bounds(self, name: str, length: int) -> tuple[int, int]:
        """Return where a split begins and ends in its part of the files."""
        what = type(self).__name__
        if name == "test":
            size, start, word = self.test_size, 0, "test_size"
        elif self.validation_size >= length:
            raise ValueError(
                f"validation_size must be less than the {length} training images of {what}, "
                f"got {self.validation_size}; nothing would be left to train on."
            )
        elif name == "validation":
            if not self.validation_size:
                raise ValueError(f"{what} has no validation split, as validation_size is 0; give a positive number.")
            return 0, self.validation_size
        else:
            size, start, word = self.train_size, self.validation_size, "train_size"
        if size is not None and size > length - start:
            raise ValueError(f"{word} must be at most the {length - start} images that {what} has, got {size}.")
        return start, length if size is None else start + size

    def _part(self, part: Literal["train", "test"]) -> tuple[Images, Tensor]:
        """Return a part of the files, read and checked once, on the device."""
        if part not in self._parts:
            images, labels = self.read(part)
            where = f"The {'training' if part == 'train' else 'test'} part of {type(self).__name__}"
            if not len(images):
                raise ValueError(f"{where} must hold at least one image, got none.")
            if len(images) != len(labels):
                raise ValueError(
                    f"{where} must hold as many labels as images, got {len(labels)} labels of {len(images)} images."
                )
            wrong = ((labels < 0) | (labels >= self.num_classes)).nonzero().flatten()
            if len(wrong):
                first = int(wrong[0])
                raise ValueError(
                    f"{where} must hold labels from 0 to {self.num_classes - 1}, got {int(labels[first])} for image "
                    f"{first}."
                )
            device = self.device
            if self.trainer is not None and device.type != "cpu" and device.index is None:
                device = self.trainer.strategy.root_device  # each process keeps the set on its own GPU
            kept = images.contiguous().to(device) if isinstance(images, Tensor) else images
            self._parts[part] = kept, labels.long().to(device)
        return self._parts[part]


def fetch_from_torchvision(source: Any, root: str | Path | None) -> None:
    """Download the files of a dataset of torchvision.

    Raises:
        ConnectionError: If they cannot be downloaded.
    """
    try:
        source(root, download=True)
    except (RuntimeError, OSError) as error:
        raise ConnectionError(f"{source.__name__} cannot be downloaded: {' '.join(str(error).split())}") from error


def check_md5(path: Path, md5: str) -> None:
    """Raise a ``ValueError`` if a file has another MD5."""
    with path.open("rb") as file:
        checksum = hashlib.file_digest(file, partial(hashlib.md5, usedforsecurity=False)).hexdigest()
    if checksum != md5:
        raise ValueError(f"{path} must have the MD5 {md5}, got {checksum}; move it away to download it again.")


def _changed(variant: Callable[[Tensor], Tensor], images: Tensor) -> Tensor:
    """Apply a variant and check what it returns."""
    changed = variant(images)
    shape = tuple(changed.shape)
    if changed.ndim != 4 or shape[0] != len(images) or shape[2] != shape[3] or not changed.is_floating_point():
        raise ValueError(
            f"variant must return floats of shape ({len(images)}, channel, size, size), got {changed.dtype} of shape "
            f"{shape} from {variant!r}."
        )
    low, high = changed.aminmax()
    if not (low >= 0 and high <= 1):
        raise ValueError(
            f"variant must return images within [0, 1], got values from {float(low):.9g} to {float(high):.9g} from "
            f"{variant!r}; let it end with .clamp(0, 1)."
        )
    return changed.float()


def _reflected(start: Tensor, size: int) -> Tensor:
    """Return ``size`` places from each start on, reflected at the borders, ``(n, size)``."""
    places = (start[:, None] + torch.arange(size, device=start.device)).abs()
    return torch.where(places < size, places, 2 * (size - 1) - places)


def _device(name: str) -> torch.device:
    try:
        return torch.device(name)
    except RuntimeError as error:
        raise ValueError(f"device must be a device of torch such as 'cpu' or 'cuda', got {name!r}.") from error
