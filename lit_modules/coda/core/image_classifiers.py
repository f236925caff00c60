"""Image classifiers of transformers: loading, and the normalisation of their pictures."""

from collections.abc import Sequence
from typing import Any

from transformers import AutoImageProcessor

from lit_modules.networks.classifiers import load_image_classifier


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


def normalisation(
    name: str, mean: list[float] | None = None, std: list[float] | None = None
) -> tuple[list[float], list[float]]:
    """Return mean and standard deviation of each channel; those of the model's image processor where none is given.

    Raises:
        ValueError: If there is no image processor.
    """
    if mean is not None and std is not None:
        return mean, std
    try:
        processor = load_image_processor(name)
    except (OSError, ValueError, KeyError) as error:
        raise ValueError(f"No image processor lies beside the model {name!r}; give mean and std.") from error
    return list(mean or processor.image_mean), list(std or processor.image_std)


def is_head(name: str) -> bool:
    """Return whether a parameter belongs to the last layer."""
    return name.split(".")[0] in ("classifier", "head", "fc", "cls_classifier", "distillation_classifier")
