"""Fashion-MNIST: articles of clothing."""

from typing import Any

from .mnist import MNIST


class FashionMNIST(MNIST):
    """Articles of clothing: 60 000 training and 10 000 test images of 28 x 28 pixels, grey, 10 classes.

    The files have the names of MNIST's, in ``root`` or in ``root/FashionMNIST/raw``. Source:
    https://github.com/zalandoresearch/fashion-mnist, MIT licence, copyright Zalando SE.

    Batches, splits and arguments are those of :class:`~datamodules.images.base.ImageDataModule`.

    References:
        Xiao, Rasul and Vollgraf, "Fashion-MNIST: a Novel Image Dataset for Benchmarking Machine Learning Algorithms",
        arXiv 1708.07747.
    """

    mean = (0.2860,)
    std = (0.3530,)
    licence = "MIT, copyright Zalando SE"
    flip = True
    folder = "FashionMNIST/raw"

    @staticmethod
    def _source() -> Any:
        from torchvision.datasets import FashionMNIST as source

        return source
