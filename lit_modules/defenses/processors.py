"""Input processors: modules that map images to images of the same kind."""

from __future__ import annotations

import math
from abc import abstractmethod
from collections.abc import Callable
from typing import Any, Literal

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from lit_modules.attacks.engine.checks import check_choice, check_count

PaddingMode = Literal["zeros", "reflect", "replicate"]
_PADDING = {"zeros": "constant", "reflect": "reflect", "replicate": "replicate"}


class ImageProcessor(nn.Module):
    """Base of the processors: checks the images and applies :meth:`process` to a batch of them."""

    pointwise = False  # values are processed one by one, so samples of any shape will do

    def forward(self, images: Tensor) -> Tensor:
        """Return the processed images.

        Args:
            images: Floats of shape ``(..., channel, height, width)``; of any shape, as ``(batch, features)``, for a
                processor of single values.

        Raises:
            TypeError: If the images are not floating-point numbers.
            ValueError: If they have fewer than three dimensions.
        """
        name = type(self).__name__
        if not images.is_floating_point():
            raise TypeError(f"{name} takes floating-point images, got {images.dtype}; divide 8-bit images by 255.")
        if self.pointwise:
            return self.process(images)
        if images.ndim < 3:
            raise ValueError(f"{name} takes images of shape (..., channel, height, width), got {tuple(images.shape)}.")
        processed = self.process(images.reshape(-1, *images.shape[-3:]))
        return processed.reshape(*images.shape[:-3], *processed.shape[1:])

    @abstractmethod
    def process(self, images: Tensor) -> Tensor:
        """Return the processed images, ``(batch, channel, height, width)``."""


class _NoGradient(torch.autograd.Function):
    """A function whose gradient is zero almost everywhere: it refuses to give one."""

    @staticmethod
    def forward(ctx: Any, images: Tensor, function: Callable[[Tensor], Tensor], name: str) -> Tensor:
        ctx.name = name
        return function(images)

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> Any:
        raise RuntimeError(
            f"{ctx.name} has no useful gradient: it is zero wherever it exists. Wrap it, "
            f"lit_modules.defenses.BPDA({ctx.name}(...)), or attack without gradients, as Square does."
        )


def without_gradient(images: Tensor, function: Callable[[Tensor], Tensor], name: str) -> Tensor:
    """Apply a function that refuses to be differentiated, with a sentence that points to BPDA."""
    result: Tensor = _NoGradient.apply(images, function, name)
    return result


def check_range(lower: float, upper: float) -> None:
    """Refuse a range of values that is empty or not finite."""
    if not (math.isfinite(lower) and math.isfinite(upper) and lower < upper):
        raise ValueError(f"lower must be below upper and both finite, got {lower} and {upper}.")


class BitSqueezing(ImageProcessor):
    """Round the values to ``2 ** bit_depth`` evenly spaced levels.

    Values outside the range are moved to its ends first; halves go to the even level. There is no gradient: wrap it
    in :class:`BPDA` to attack through it.

    Samples may have any shape.

    Args:
        bit_depth: Bits of a value, 1 to 16.
        lower: Value of the lowest level.
        upper: Value of the highest level.

    Raises:
        ValueError: If an argument is outside its range.

    Example:
        >>> BitSqueezing(bit_depth=1)(torch.tensor([[[0.2, 0.7]]]))
        tensor([[[0., 1.]]])

    References:
        Xu, Evans, Qi, "Feature squeezing: detecting adversarial examples in deep neural networks" (arXiv 1704.01155),
        section 3.1.
    """

    pointwise = True

    def __init__(self, bit_depth: int, lower: float = 0.0, upper: float = 1.0) -> None:
        super().__init__()
        if isinstance(bit_depth, bool) or not isinstance(bit_depth, int) or not 1 <= bit_depth <= 16:
            raise ValueError(f"bit_depth must be an integer from 1 to 16, got {bit_depth!r}.")
        check_range(lower, upper)
        self.bit_depth = bit_depth
        self.lower = lower
        self.upper = upper

    def process(self, images: Tensor) -> Tensor:
        """Round."""
        return without_gradient(images, self._round, type(self).__name__)

    def _round(self, images: Tensor) -> Tensor:
        steps, span = 2**self.bit_depth - 1, self.upper - self.lower
        unit = ((images - self.lower) / span).clamp(0, 1)
        levels: Tensor = (unit * steps).round() / steps
        return levels * span + self.lower

    def extra_repr(self) -> str:
        """Return the arguments."""
        return f"bit_depth={self.bit_depth}, lower={self.lower}, upper={self.upper}"


class BinaryFilter(BitSqueezing):
    """Round the values to the two ends of the range: :class:`BitSqueezing` with one bit; the middle itself goes down.

    Args:
        lower: Lower value.
        upper: Upper value.
    """

    def __init__(self, lower: float = 0.0, upper: float = 1.0) -> None:
        super().__init__(1, lower, upper)


class MedianSmoothing(ImageProcessor):
    """Replace each pixel by the median of its square neighbourhood, with reflected borders.

    The size stays the same at stride 1. For even kernels the neighbourhood holds one more row below and one more
    column on the right, and the lower of the two middle values counts. The gradient goes to the pixel that is the
    median.

    Args:
        kernel_size: Side of the neighbourhood in pixels.
        stride: Distance in pixels between the neighbourhoods.

    Raises:
        ValueError: If an argument is not positive; on use, if the image is too small for reflection.

    References:
        Xu, Evans, Qi (arXiv 1704.01155), section 3.2.
    """

    def __init__(self, kernel_size: int = 3, stride: int = 1) -> None:
        super().__init__()
        check_count(kernel_size=kernel_size)
        check_count(stride=stride)
        self.kernel_size = kernel_size
        self.stride = stride

    def process(self, images: Tensor) -> Tensor:
        """Take the medians."""
        size = self.kernel_size
        windows = _pad(images, size, size, "reflect").unfold(2, size, self.stride).unfold(3, size, self.stride)
        return windows.flatten(-2).median(dim=-1).values

    def extra_repr(self) -> str:
        """Return the arguments."""
        return f"kernel_size={self.kernel_size}, stride={self.stride}"


class ConvSmoothing(ImageProcessor):
    """Filter each channel with one kernel; the size stays the same.

    An even kernel reaches one pixel further down and to the right than up and to the left.

    Args:
        kernel: Weights, ``(height, width)``.
        padding_mode: What lies beyond the border: ``zeros``, ``reflect`` or ``replicate``.

    Raises:
        ValueError: If the kernel is no matrix of finite values, or the padding unknown; on use, if the image is too
            small for reflection.
    """

    kernel: Tensor

    def __init__(self, kernel: Tensor, padding_mode: PaddingMode = "zeros") -> None:
        super().__init__()
        if not isinstance(kernel, Tensor) or kernel.ndim != 2 or not kernel.numel():
            got = tuple(kernel.shape) if isinstance(kernel, Tensor) else type(kernel).__name__
            raise ValueError(f"kernel must be a matrix of weights, (height, width), got {got}.")
        if not kernel.is_floating_point() or not bool(torch.isfinite(kernel).all()):
            raise ValueError(f"kernel must hold finite floating-point weights, got {kernel}.")
        check_choice("padding_mode", padding_mode, tuple(_PADDING))
        self.padding_mode = padding_mode
        self.register_buffer("kernel", kernel.detach().clone())

    def process(self, images: Tensor) -> Tensor:
        """Filter."""
        height, width = self.kernel.shape
        padded = _pad(images, height, width, self.padding_mode).flatten(0, 1)[:, None]
        return F.conv2d(padded, self.kernel.to(images.dtype)[None, None]).reshape(images.shape)

    def extra_repr(self) -> str:
        """Return the arguments."""
        return f"kernel={tuple(self.kernel.shape)}, padding_mode={self.padding_mode!r}"


class MeanSmoothing(ConvSmoothing):
    """Average each pixel with its square neighbourhood.

    With zero padding the borders of an image whose background is not 0 grow darker.

    Args:
        kernel_size: Side of the neighbourhood in pixels; 1 changes nothing.
        padding_mode: What lies beyond the border: ``zeros``, ``reflect`` or ``replicate``.
    """

    def __init__(self, kernel_size: int = 3, padding_mode: PaddingMode = "zeros") -> None:
        check_count(kernel_size=kernel_size)
        super().__init__(torch.full((kernel_size, kernel_size), 1 / kernel_size**2), padding_mode)


class GaussianSmoothing(ConvSmoothing):
    """Blur with a Gaussian; the weights sum to 1.

    Args:
        sigma: Standard deviation in pixels, positive.
        kernel_size: Side of the kernel in pixels; ``None`` takes the next odd number from ``ceil(4 * sigma)`` on, as
            AdverTorch does.
        padding_mode: What lies beyond the border: ``zeros``, ``reflect`` or ``replicate``.
    """

    def __init__(self, sigma: float, kernel_size: int | None = None, padding_mode: PaddingMode = "zeros") -> None:
        if not (math.isfinite(sigma) and sigma > 0):
            raise ValueError(f"sigma must be positive and finite, got {sigma}.")
        if kernel_size is None:
            kernel_size = math.ceil(4 * sigma) // 2 * 2 + 1
        check_count(kernel_size=kernel_size)
        offsets = torch.arange(kernel_size, dtype=torch.float64) - (kernel_size - 1) / 2
        weights = torch.exp(-(offsets**2) / (2 * sigma**2))
        weights /= weights.sum()
        super().__init__(torch.outer(weights, weights).float(), padding_mode)


def _pad(images: Tensor, height: int, width: int, mode: str) -> Tensor:
    top, bottom, left, right = (height - 1) // 2, height // 2, (width - 1) // 2, width // 2
    if mode == "reflect" and (bottom >= images.shape[2] or right >= images.shape[3]):
        raise ValueError(
            f"Reflection for a kernel of {height} x {width} needs images of at least {bottom + 1} x {right + 1} "
            f"pixels, got {images.shape[2]} x {images.shape[3]}; take a smaller kernel."
        )
    return F.pad(images, (left, right, top, bottom), mode=_PADDING[mode])
