"""The handwritten digits that scikit-learn brings along: images without a download."""

from typing import Literal

import torch
from torch import Tensor

from lit_modules.utils.arguments import Unpack, without_own

from ..common.sampling import permutation
from .base import ImageArguments, ImageDataModule

TEST_IMAGES = 397


class Digits(ImageDataModule):
    """Handwritten digits: 1400 training and 397 test images of 8 x 8 pixels, grey, 10 classes; no download.

    The images are part of scikit-learn. They are the test set of "Optical Recognition of Handwritten Digits" of the UCI
    repository, https://archive.ics.uci.edu/dataset/80, by E. Alpaydin and C. Kaynak, CC BY 4.0. Their 17 grey levels
    are divided by 16.

    The test images are fixed, and do not depend on ``seed``: the images are put into one random order, so
    that all writers are in both parts, and the last 397 are kept. Batches and splits are those of
    :class:`~datamodules.images.base.ImageDataModule`.

    Args:
        validation_size: Number of training images that are kept for validation, the first ones.
        augment: Whether training shifts images by a pixel at random.

    Example:
        >>> data = Digits(batch_size=32)
        >>> data.setup("fit")
        >>> batch = next(iter(data.train_dataloader()))
        >>> batch["image"].shape, batch["label"].dtype, sorted(batch)
        (torch.Size([32, 1, 8, 8]), torch.int64, ['image', 'index', 'label'])
    """

    channels = 1
    image_size = 8
    mean = (0.3054,)
    std = (0.3762,)
    licence = "CC BY 4.0, by E. Alpaydin and C. Kaynak"
    levels = 16
    max_shift = 1

    def __init__(self, validation_size: int = 200, augment: bool = False, **shared: Unpack[ImageArguments]) -> None:
        shared = without_own(shared, root=None, download=False)
        super().__init__(root=None, download=False, validation_size=validation_size, augment=augment, **shared)

    def read(self, part: Literal["train", "test"]) -> tuple[Tensor, Tensor]:
        """Return images and labels of one part."""
        from sklearn.datasets import load_digits

        digits = load_digits()
        order = torch.tensor(permutation(len(digits.images), seed=0, epoch=0))
        chosen = order[-TEST_IMAGES:] if part == "test" else order[:-TEST_IMAGES]
        images = torch.from_numpy(digits.images).to(torch.uint8).unsqueeze(1)
        return images[chosen], torch.from_numpy(digits.target)[chosen]
