"""The residual network of fast adversarial training on CIFAR-10."""

from collections.abc import Sequence

import torch.nn.functional as F
from torch import Tensor, nn

from lit_modules.networks.normalisation import Normalise, check_sizes
from lit_modules.networks.wide_resnet import WideBlock


class PreActResNet18(nn.Module):
    """Residual network of 18 layers with pre-activation blocks, for small images.

    A 3 x 3 convolution; four groups of two blocks with 1, 2, 4 and 8 times ``width`` channels, of which all but the
    first halve the image; batch normalisation, ReLU, the mean over all pixels, a linear layer. About 11.2 million
    parameters.

    Args:
        num_classes: Number of classes.
        channels: Channels of the images.
        width: Channels of the first group.
        mean: Mean of each channel, subtracted in the first layer; that of CIFAR-10 by default. ``None``, for both,
            leaves the images alone.
        std: Standard deviation of each channel, by which the first layer divides.

    Raises:
        ValueError: If an argument is out of its range, or ``mean`` and ``std`` do not fit ``channels``.

    Example:
        >>> round(sum(parameter.numel() for parameter in PreActResNet18().parameters()) / 1e6, 2)
        11.17

    References:
        He et al., "Identity Mappings in Deep Residual Networks", arXiv 1603.05027.
        Wong, Rice and Kolter, "Fast is better than free: Revisiting adversarial training", arXiv 2001.03994.
    """

    def __init__(
        self,
        num_classes: int = 10,
        channels: int = 3,
        width: int = 64,
        mean: Sequence[float] | None = (0.4914, 0.4822, 0.4465),
        std: Sequence[float] | None = (0.2470, 0.2435, 0.2616),
    ) -> None:
        super().__init__()
        check_sizes(channels, num_classes)
        if width < 1:
            raise ValueError(f"width must be at least 1, got {width}.")
        if (mean is None) != (std is None):
            raise ValueError(f"mean and std must be given both or neither, got mean={mean} and std={std}.")
        if mean is not None and len(mean) != channels:
            raise ValueError(
                f"mean and std must hold a number for each of the {channels} channels, got mean={mean}; "
                f"None for both leaves normalisation out."
            )
        self.normalise = nn.Identity() if mean is None or std is None else Normalise(mean, std)
        self.conv = nn.Conv2d(channels, width, 3, 1, 1, bias=False)
        widths = [width, width, 2 * width, 4 * width, 8 * width]
        self.groups = nn.Sequential(
            *(
                nn.Sequential(
                    WideBlock(widths[number], widths[number + 1], 1 if number == 0 else 2),
                    WideBlock(widths[number + 1], widths[number + 1], 1),
                )
                for number in range(4)
            )
        )
        self.norm = nn.BatchNorm2d(widths[-1])
        self.classifier = nn.Linear(widths[-1], num_classes)

    def forward(self, images: Tensor) -> Tensor:
        """Return logits ``(batch, num_classes)`` of images ``(batch, channel, height, width)`` in [0, 1]."""
        features = F.relu(self.norm(self.groups(self.conv(self.normalise(images)))))
        logits: Tensor = self.classifier(features.mean((2, 3)))
        return logits
