"""A transform inside the model, as a defence."""

from __future__ import annotations

from collections.abc import Callable

from torch import Tensor, nn

from lit_modules.defenses.bpda import BPDA


class Preprocess(nn.Module):
    """Classify transformed images: the transform belongs to the model.

    The adversary perturbs the image before the transform, and epsilon is measured there. A variant of the data is
    another experiment: there the data are transformed first and the adversary perturbs the result. Any callable from
    images to images will do, so also a variant.

    Args:
        transform: Callable or module from images to images.
        classifier: Gives logits for transformed images.
        bpda: Whether the transform passes gradients straight through; for a transform that has none and keeps the
            shape.

    Raises:
        TypeError: If the transform cannot be called.

    Example:
        >>> from lit_modules.defenses import BitSqueezing
        >>> model = Preprocess(BitSqueezing(bit_depth=3), nn.Sequential(nn.Flatten(), nn.Linear(16, 3)), bpda=True)
    """

    def __init__(self, transform: Callable[[Tensor], Tensor], classifier: nn.Module, bpda: bool = False) -> None:
        super().__init__()
        if not callable(transform):
            raise TypeError(f"transform must be callable, got {type(transform).__name__}.")
        self.transform = BPDA(transform) if bpda else transform
        self.classifier = classifier

    def forward(self, images: Tensor) -> Tensor:
        """Return the logits of the transformed images, ``(batch, classes)``."""
        logits: Tensor = self.classifier(self.transform(images))
        return logits
