"""Variants of image data: deterministic changes of the pixels that keep what the images show.

A variant is a callable from images to images, given to a datamodule as ``variant``. All take floats in [0, 1] of shape
``(..., channel, height, width)``, after division by 255 and before any normalisation, and return floats in [0, 1].
The datamodule applies it to training, validation and test images alike, so an adversary perturbs the changed image and
epsilon is measured there. The same callable inside a model, as a defence, is another experiment.

References:
    Ding et al., "On the Sensitivity of Adversarial Robustness to Input Data Distributions", ICLR 2019,
    arXiv 1902.08336.
"""

import math
from abc import ABC, abstractmethod
from collections.abc import Sequence
from typing import Literal

import torch
import torch.nn.functional as F
from torch import Tensor

__all__ = [
    "BitDepth",
    "Compose",
    "Contrast",
    "EdgeMap",
    "Gamma",
    "Resize",
    "Saturate",
    "Smooth",
    "Variant",
]

_PADDING = {"zeros": "constant", "reflect": "reflect", "replicate": "replicate"}
# where the gradient points, in eighths of a turn, and the neighbour that lies there (row, column)
_AHEAD = ((0, 1), (1, 1), (1, 0), (1, -1))


class Variant(ABC):
    """Base of the variants here: checks the images and applies :meth:`change`.

    A variant of your own need not inherit from it: any callable from images to images will do.
    """

    def __call__(self, images: Tensor) -> Tensor:
        """Return the changed images.

        Args:
            images: Floats in [0, 1], ``(..., channel, height, width)``.

        Raises:
            TypeError: If the images are not floating-point numbers.
            ValueError: If they have fewer than three dimensions.
        """
        if not images.is_floating_point():
            raise TypeError(
                f"{type(self).__name__} takes floats in [0, 1], got {images.dtype}; divide 8-bit images by 255."
            )
        if images.ndim < 3:
            raise ValueError(
                f"{type(self).__name__} takes images of shape (..., channel, height, width), got {tuple(images.shape)}."
            )
        return self.change(images)

    @abstractmethod
    def change(self, images: Tensor) -> Tensor:
        """Return the changed images; these have been checked."""

    def __repr__(self) -> str:
        arguments = ", ".join(f"{name}={value!r}" for name, value in vars(self).items())
        return f"{type(self).__name__}({arguments})"


class Smooth(Variant):
    """Mean filter of ``kernel_size`` times ``kernel_size`` equal weights, on each channel; 1 changes nothing.

    The size is kept: an odd kernel pads ``(k - 1) / 2`` pixels on each side, an even one ``floor((k - 1) / 2)`` at the
    left and top and ``floor(k / 2)`` at the right and bottom, so it commutes with flips only if it is odd. Zeros suit
    a black background; they darken the border of others. Values are not rounded to 8 bits.

    Args:
        kernel_size: Side of the kernel in pixels, at least 1; the paper's control, 1 to 5.
        padding_mode: What lies beyond the border.

    Raises:
        ValueError: If an argument is out of its range, or an image is too small for ``"reflect"``.

    Example:
        >>> Smooth(3)(torch.ones(1, 3, 3))[0, :2, 0]
        tensor([0.4444, 0.6667])
    """

    def __init__(self, kernel_size: int, padding_mode: Literal["zeros", "reflect", "replicate"] = "zeros") -> None:
        _whole("kernel_size", kernel_size)
        _one_of("padding_mode", padding_mode, tuple(_PADDING))
        self.kernel_size = kernel_size
        self.padding_mode = padding_mode

    def change(self, images: Tensor) -> Tensor:
        """Return the mean of each pixel's neighbourhood."""
        if self.kernel_size == 1:
            return images
        before, after = (self.kernel_size - 1) // 2, self.kernel_size // 2
        if self.padding_mode == "reflect" and after >= min(images.shape[-2:]):
            raise ValueError(
                f"Padding by reflection with kernel_size={self.kernel_size} needs images larger than {after} pixels, "
                f"got {tuple(images.shape[-2:])}; use padding_mode='replicate'."
            )
        planes = images.reshape(-1, 1, *images.shape[-2:])
        planes = F.pad(planes, (before, after, before, after), mode=_PADDING[self.padding_mode])
        # sums of rounded numbers may pass 1 by a unit in the last place
        return F.avg_pool2d(planes, self.kernel_size, stride=1).clamp(0, 1).reshape(images.shape)


class Saturate(Variant):
    r"""Push pixels towards 0 and 1: ``sign(2x - 1) |2x - 1|^(2/p) / 2 + 1/2``.

    ``p = 2`` changes nothing, smaller values lower the contrast, ``p = inf`` leaves black and white only. It is
    invertible for finite ``p``, by ``4 / p``; two in a row act as one of ``p q / 2``. Rounding the result to 8 bits
    would destroy that, and the slope at 1/2 is infinite for ``p > 2``.

    Args:
        p: Strength, positive; ``float("inf")`` and ``"inf"`` are the same.
        tie: What becomes of a pixel of exactly 1/2: it stays, or, for ``"one"``, ``p = inf`` makes it 1. Images of
            8 bits have no such pixel.

    Raises:
        ValueError: If ``p`` is not positive, or an argument is no number or choice.

    Example:
        >>> Saturate("inf")(torch.tensor([[[0.2, 0.5, 0.7]]]))
        tensor([[[0.0000, 0.5000, 1.0000]]])
        >>> Saturate(4)(torch.tensor([[[0.375, 0.5, 0.625]]]))
        tensor([[[0.2500, 0.5000, 0.7500]]])
    """

    def __init__(self, p: float | Literal["inf"], tie: Literal["half", "one"] = "half") -> None:
        if isinstance(p, str) and p not in ("inf", ".inf"):
            raise ValueError(f"p must be a positive number or 'inf', got {p!r}.")
        self.p = math.inf if isinstance(p, str) else _positive("p", p, finite=False)
        _one_of("tie", tie, ("half", "one"))
        self.tie = tie

    def change(self, images: Tensor) -> Tensor:
        """Return the saturated images."""
        if self.p == 2:
            return images  # 2x - 1 would round small values
        if math.isinf(self.p):
            half = 1.0 if self.tie == "one" else 0.5
            return (images > 0.5).to(images.dtype).masked_fill(images == 0.5, half)
        centred = 2 * images - 1
        return centred.sign() * centred.abs() ** (2 / self.p) / 2 + 0.5


class Gamma(Variant):
    """Raise pixels to a power: ``x^gamma``; below 1 brightens, 1 changes nothing, ``1 / gamma`` undoes it.

    The slope at 0 is infinite for ``gamma < 1``.

    Args:
        gamma: Exponent, positive.

    Raises:
        ValueError: If ``gamma`` is not positive and finite.

    Example:
        >>> Gamma(2.0)(torch.tensor([[[0.0, 0.5, 1.0]]]))
        tensor([[[0.0000, 0.2500, 1.0000]]])
    """

    def __init__(self, gamma: float) -> None:
        self.gamma = _positive("gamma", gamma)

    def change(self, images: Tensor) -> Tensor:
        """Return the powers."""
        return images if self.gamma == 1 else images.pow(self.gamma)


class EdgeMap(Variant):
    """Draw the edges: 1 on an edge and 0 elsewhere, on each channel, as Canny's detector without its blur does.

    The gradient is that of 3 x 3 Sobel kernels divided by 4, so that a straight step of height ``h`` has magnitude
    ``h``; the border is repeated outwards. Of the pixels across an edge only the largest stays (of two equal ones the
    left or upper). Then ``high`` finds edges and ``low`` follows them: a pixel stays if its magnitude is above
    ``low`` and a chain of such neighbours, diagonal ones too, leads to one above ``high``.

    Args:
        low: Magnitude that continues an edge, not negative.
        high: Magnitude that begins an edge, at least ``low``. The defaults are the usual 100 and 200 for 8-bit images
            and undivided kernels.

    Raises:
        ValueError: If the thresholds are not ``0 <= low <= high``.

    Example:
        >>> image = torch.zeros(1, 3, 4)
        >>> image[..., 2:] = 1
        >>> EdgeMap()(image)[0, 1]
        tensor([0., 1., 0., 0.])

    References:
        Canny, "A Computational Approach to Edge Detection", IEEE PAMI 1986.
    """

    def __init__(self, low: float = 0.1, high: float = 0.2) -> None:
        if not 0 <= low <= high < math.inf:
            raise ValueError(f"The thresholds must be 0 <= low <= high, got low={low} and high={high}.")
        self.low = low
        self.high = high

    def change(self, images: Tensor) -> Tensor:
        """Return the edges."""
        planes = images.reshape(-1, 1, *images.shape[-2:])
        magnitude = _thin(*_sobel(planes))
        weak, edges = magnitude > self.low, magnitude > self.high
        while True:
            grown = (F.max_pool2d(edges.to(images.dtype), 3, stride=1, padding=1) > 0) & weak
            if torch.equal(grown, edges):
                return edges.to(images.dtype).reshape(images.shape)
            edges = grown


class BitDepth(Variant):
    """Round pixels to ``2^bits`` levels: ``round(x (2^bits - 1)) / (2^bits - 1)``.

    Args:
        bits: Bits of each pixel, 1 to 16; 8 changes nothing in images of 8 bits.

    Raises:
        ValueError: If ``bits`` is out of its range.

    Example:
        >>> BitDepth(1)(torch.tensor([[[0.2, 0.4, 0.6]]]))
        tensor([[[0., 0., 1.]]])
    """

    def __init__(self, bits: int) -> None:
        _whole("bits", bits, most=16)
        self.bits = bits

    def change(self, images: Tensor) -> Tensor:
        """Return the rounded images."""
        levels = (1 << self.bits) - 1
        return (images * levels).round() / levels


class Resize(Variant):
    """Resize images to ``size`` times ``size`` pixels, bilinear, without aliasing.

    Args:
        size: Side of the new images in pixels, at least 1.

    Raises:
        ValueError: If ``size`` is out of its range.

    Example:
        >>> Resize(14)(torch.rand(2, 1, 28, 28)).shape
        torch.Size([2, 1, 14, 14])
    """

    def __init__(self, size: int) -> None:
        _whole("size", size)
        self.size = size

    def change(self, images: Tensor) -> Tensor:
        """Return the resized images."""
        shape = (self.size, self.size)
        if images.shape[-2:] == shape:
            return images
        planes = images.reshape(-1, 1, *images.shape[-2:])
        resized = F.interpolate(planes, shape, mode="bilinear", align_corners=False, antialias=True)
        return resized.clamp(0, 1).reshape(*images.shape[:-2], *shape)


class Contrast(Variant):
    """Scale the distance of pixels to the middle grey: ``1/2 + factor (x - 1/2)``, cut off at 0 and 1.

    Up to 1 nothing is cut off, and an adversary of radius ``factor * eps`` within ``[(1 - factor) / 2,
    (1 + factor) / 2]`` is exactly as strong as one of radius ``eps`` on the unchanged images.

    Args:
        factor: Factor, positive; 1 changes nothing.

    Raises:
        ValueError: If ``factor`` is not positive and finite.

    Example:
        >>> Contrast(0.5)(torch.tensor([[[0.0, 0.5, 1.0]]]))
        tensor([[[0.2500, 0.5000, 0.7500]]])
    """

    def __init__(self, factor: float) -> None:
        self.factor = _positive("factor", factor)

    def change(self, images: Tensor) -> Tensor:
        """Return the images of other contrast."""
        return images if self.factor == 1 else (0.5 + self.factor * (images - 0.5)).clamp(0, 1)


class Compose(Variant):
    """Apply several variants, one after the other.

    Args:
        variants: The variants, the first applied first; any callables from images to images.

    Raises:
        ValueError: If there is none.

    Example:
        >>> Compose([Resize(4), BitDepth(1)])(torch.rand(1, 8, 8)).unique().numel() <= 2
        True
    """

    def __init__(self, variants: Sequence[Variant]) -> None:
        if not variants:
            raise ValueError("variants must hold at least one variant, got none; leave the variant out instead.")
        self.variants = tuple(variants)

    def change(self, images: Tensor) -> Tensor:
        """Return what the last variant returns."""
        for variant in self.variants:
            images = variant(images)
        return images


def _sobel(planes: Tensor) -> tuple[Tensor, Tensor]:
    """Return the two gradients of ``(n, 1, height, width)``."""
    padded = F.pad(planes, (1, 1, 1, 1), mode="replicate")
    across = (padded[..., 2:] - padded[..., :-2]) / 4
    down = (padded[..., 2:, :] - padded[..., :-2, :]) / 4
    horizontal = across[..., :-2, :] + 2 * across[..., 1:-1, :] + across[..., 2:, :]
    vertical = down[..., :-2] + 2 * down[..., 1:-1] + down[..., 2:]
    return horizontal, vertical


def _thin(horizontal: Tensor, vertical: Tensor) -> Tensor:
    """Return the magnitude of the gradient where it is largest along its direction, else 0."""
    magnitude = torch.hypot(horizontal, vertical)
    # the direction to the nearest eighth of a turn; opposite directions are the same
    eighth = (torch.atan2(vertical, horizontal) * 4 / torch.pi).round().remainder(4).long()
    height, width = magnitude.shape[-2:]
    padded = F.pad(magnitude, (1, 1, 1, 1))
    largest = torch.zeros_like(magnitude, dtype=torch.bool)
    for number, (row, column) in enumerate(_AHEAD):
        ahead = padded[..., 1 + row : 1 + row + height, 1 + column : 1 + column + width]
        behind = padded[..., 1 - row : 1 - row + height, 1 - column : 1 - column + width]
        largest |= (eighth == number) & (magnitude > behind) & (magnitude >= ahead)
    return magnitude * largest


def _whole(name: str, number: int, most: int | None = None) -> None:
    if isinstance(number, bool) or not isinstance(number, int) or number < 1 or (most is not None and number > most):
        limits = "of at least 1" if most is None else f"from 1 to {most}"
        raise ValueError(f"{name} must be a whole number {limits}, got {number!r}.")


def _positive(name: str, number: float, finite: bool = True) -> float:
    if not isinstance(number, int | float) or not number > 0 or (finite and math.isinf(number)):
        raise ValueError(f"{name} must be a positive {'finite ' if finite else ''}number, got {number!r}.")
    return float(number)


def _one_of(name: str, choice: str, allowed: tuple[str, ...]) -> None:
    if choice not in allowed:
        raise ValueError(f"{name} must be {' or '.join(map(repr, allowed))}, got {choice!r}.")
