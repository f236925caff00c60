"""LeNet5 as work on adversarial robustness uses it."""

from typing import Literal

from torch import Tensor, nn

from lit_modules.networks.normalisation import check_sizes

_VARIANTS = {"madry": (5, 1024), "small": (3, 200)}  # side of the kernels, hidden units


class LeNet5(nn.Module):
    """Two convolutions, each with ReLU and 2 x 2 maximum pooling, and two linear layers.

    ``madry`` has 5 x 5 kernels and 1024 hidden units, about 3.27 million parameters for images of 28 x 28 pixels;
    ``small`` has 3 x 3 kernels and 200 hidden units, about 648 thousand. Both have 32 and 64 channels.

    Args:
        variant: Which of the two.
        width: Factor of channels and hidden units, rounded down.
        num_classes: Number of classes.
        image_size: Side of the images in pixels, at least 4.
        channels: Channels of the images.

    Raises:
        ValueError: If an argument is out of its range; in ``forward``, if images are of another shape.

    Example:
        >>> sum(parameter.numel() for parameter in LeNet5("small").parameters())
        648226

    References:
        Madry et al., "Towards Deep Learning Models Resistant to Adversarial Attacks", arXiv 1706.06083.
        Ding, Wang and Jin, "AdverTorch v0.1", arXiv 1902.07623 (``small``).
    """

    def __init__(
        self,
        variant: Literal["madry", "small"] = "madry",
        width: float = 1.0,
        num_classes: int = 10,
        image_size: int = 28,
        channels: int = 1,
    ) -> None:
        super().__init__()
        if variant not in _VARIANTS:
            raise ValueError(f"variant must be 'madry' or 'small', got {variant!r}.")
        kernel, hidden = _VARIANTS[variant]
        first, second, hidden = int(32 * width), int(64 * width), int(hidden * width)
        if first < 1:
            raise ValueError(f"width must be at least 1/32, so that a channel is left, got {width}.")
        if image_size < 4:
            raise ValueError(f"image_size must be at least 4, as it is halved twice, got {image_size}.")
        check_sizes(channels, num_classes)
        self.shape = (channels, image_size, image_size)
        self.features = nn.Sequential(
            nn.Conv2d(channels, first, kernel, padding=kernel // 2),
            nn.ReLU(),
            nn.MaxPool2d(2),
            nn.Conv2d(first, second, kernel, padding=kernel // 2),
            nn.ReLU(),
            nn.MaxPool2d(2),
        )
        self.classifier = nn.Sequential(
            nn.Flatten(),
            nn.Linear(second * (image_size // 4) ** 2, hidden),
            nn.ReLU(),
            nn.Linear(hidden, num_classes),
        )

    def forward(self, images: Tensor) -> Tensor:
        """Return logits ``(batch, num_classes)`` of images ``(batch, channel, height, width)``."""
        if tuple(images.shape[1:]) != self.shape:
            wanted = ", ".join(map(str, self.shape))
            raise ValueError(f"LeNet5 takes images of shape (batch, {wanted}), got {tuple(images.shape)}.")
        logits: Tensor = self.classifier(self.features(images))
        return logits
