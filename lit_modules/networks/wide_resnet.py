"""Wide residual networks, as in work on adversarial robustness on CIFAR-10."""

import math
from collections import OrderedDict

import torch.nn.functional as F
from torch import Tensor, nn

from lit_modules.networks.normalisation import PerImageStandardise, check_sizes


class WideBlock(nn.Module):
    """Two 3 x 3 convolutions, each after batch normalisation and ReLU, and a shortcut.

    Where width or size changes, the shortcut is a 1 x 1 convolution of what the first normalisation and ReLU give;
    elsewhere it is the input.

    Args:
        inputs: Channels of the input.
        outputs: Channels of the output.
        stride: Step of the first convolution.
    """

    def __init__(self, inputs: int, outputs: int, stride: int) -> None:
        super().__init__()
        self.norm1 = nn.BatchNorm2d(inputs)
        self.conv1 = nn.Conv2d(inputs, outputs, 3, stride, 1, bias=False)
        self.norm2 = nn.BatchNorm2d(outputs)
        self.conv2 = nn.Conv2d(outputs, outputs, 3, 1, 1, bias=False)
        self.shortcut: nn.Conv2d | None = None
        if inputs != outputs or stride != 1:
            self.shortcut = nn.Conv2d(inputs, outputs, 1, stride, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        """Return the output, ``(batch, outputs, height / stride, width / stride)``."""
        activated = F.relu(self.norm1(x))
        shortcut = x if self.shortcut is None else self.shortcut(activated)
        out: Tensor = self.conv2(F.relu(self.norm2(self.conv1(activated))))
        return out + shortcut


class WideResNet(nn.Module):
    """Wide residual network with pre-activation blocks, WRN-``depth``-``width``.

    A 3 x 3 convolution to 16 channels; three groups of ``(depth - 4) / 6`` blocks with ``16 width``, ``32 width`` and
    ``64 width`` channels, of which the second and third halve the image; batch normalisation, ReLU, the mean over all
    pixels, a linear layer. No dropout. Weights of convolutions are drawn from a normal distribution of variance
    ``2 / (kernel height * kernel width * output channels)``.

    Args:
        depth: Number of layers, ``6 n + 4`` with ``n`` of at least 1.
        width: Factor of the channels, rounded down; 10 in the paper, 4 in the experiments on input distributions.
        num_classes: Number of classes.
        channels: Channels of the images.
        standardise: Whether the first layer brings each image to mean 0 and deviation 1.

    Raises:
        ValueError: If an argument is out of its range.

    Example:
        >>> round(sum(parameter.numel() for parameter in WideResNet(28, 10).parameters()) / 1e6, 1)
        36.5

    References:
        Zagoruyko and Komodakis, "Wide Residual Networks", arXiv 1605.07146.
    """

    def __init__(
        self,
        depth: int = 28,
        width: float = 4.0,
        num_classes: int = 10,
        channels: int = 3,
        standardise: bool = True,
    ) -> None:
        super().__init__()
        if depth < 10 or (depth - 4) % 6:
            raise ValueError(f"depth must be 6 n + 4 with n of at least 1, such as 10, 16 or 28, got {depth}.")
        if int(16 * width) < 1:
            raise ValueError(f"width must be at least 1/16, so that a channel is left, got {width}.")
        check_sizes(channels, num_classes)
        widths = [16, *(int(size * width) for size in (16, 32, 64))]
        layers: OrderedDict[str, nn.Module] = OrderedDict()
        if standardise:
            layers["standardise"] = PerImageStandardise()
        layers["conv"] = nn.Conv2d(channels, widths[0], 3, 1, 1, bias=False)
        for number, stride in enumerate((1, 2, 2)):
            blocks = [WideBlock(widths[number], widths[number + 1], stride)]
            blocks += [WideBlock(widths[number + 1], widths[number + 1], 1) for _ in range((depth - 4) // 6 - 1)]
            layers[f"group{number + 1}"] = nn.Sequential(*blocks)
        layers["norm"] = nn.BatchNorm2d(widths[-1])
        layers["relu"] = nn.ReLU()
        self.features = nn.Sequential(layers)
        self.classifier = nn.Linear(widths[-1], num_classes)
        for module in self.modules():
            if isinstance(module, nn.Conv2d):
                fan = module.kernel_size[0] * module.kernel_size[1] * module.out_channels
                nn.init.normal_(module.weight, 0, math.sqrt(2 / fan))
        nn.init.zeros_(self.classifier.bias)

    def forward(self, images: Tensor) -> Tensor:
        """Return logits ``(batch, num_classes)`` of images ``(batch, channel, height, width)`` in [0, 1]."""
        logits: Tensor = self.classifier(self.features(images).mean((2, 3)))
        return logits
