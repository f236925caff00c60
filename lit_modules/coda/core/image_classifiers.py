"""Image classifiers of transformers: loading, and the normalisation of their pictures."""

from collections.abc import Sequence
from typing import Any

from torch import Tensor, nn
from transformers import AutoImageProcessor

from lit_modules.networks.classifiers import Preprocessing, load_image_classifier, processor_preprocessing
from lit_modules.networks.normalisation import Normalise


def load_classifier(name: str, classes: Sequence[str]) -> Any:
    """Load an image classifier, with a new head if it has other classes.

    Raises:
        ValueError: If it does not load.
    """
    labels = {"id2label": dict(enumerate(classes)), "label2id": {each: label for label, each in enumerate(classes)}}
    return load_image_classifier(name, **labels, ignore_mismatched_sizes=True)


def load_image_processor(name: str) -> Any:
    """Load the image processor of a model."""
    auto: Any = AutoImageProcessor
    return auto.from_pretrained(name)


class Normalisation(nn.Module):
    """Normalise pictures as a classifier's image processor does, whatever scales, offsets and order of channels it has.

    Args:
        name: Name of the classifier on a hub, or its folder.
        mean: Mean of each channel of pixels in [0, 1]; ``None`` takes the image processor's.
        std: Standard deviation of each channel; ``None`` likewise. With both given no image processor is asked.

    Raises:
        ValueError: If there is no image processor, or what it does is no normalisation of each channel.
    """

    def __init__(self, name: str, mean: list[float] | None = None, std: list[float] | None = None) -> None:
        super().__init__()
        own = Preprocessing() if mean is not None and std is not None else processor_preprocessing(name)
        self.normalise = Normalise(mean or own.mean or (), std or own.std or ())
        self.flip_channels = own.flip_channels

    def forward(self, images: Tensor) -> Tensor:
        """Return the classifier's input of pictures, floats in [0, 1], ``(batch, channel, height, width)``."""
        inputs: Tensor = self.normalise(images)
        return inputs.flip(-3) if self.flip_channels else inputs


def is_head(name: str) -> bool:
    """Return whether a parameter belongs to the last layer."""
    return name.split(".")[0] in ("classifier", "head", "fc", "cls_classifier", "distillation_classifier")
