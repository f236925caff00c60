"""Pictures as arrays and as text that a page or a request can hold."""

import io
from typing import Any

import numpy as np
from numpy.typing import NDArray
from torch import Tensor

from lit_modules.utils.html import data_url


def as_array(image: Tensor | NDArray[Any]) -> NDArray[np.uint8]:
    """Return a picture as uint8, ``(height, width, 3)``.

    Args:
        image: Tensor ``(3, height, width)`` or array ``(height, width, 3)``, floats in [0, 1] or uint8.

    Raises:
        ValueError: If the picture is of another shape or range.

    Example:
        >>> import torch
        >>> as_array(torch.ones(3, 2, 1)).shape
        (2, 1, 3)
    """
    pixels = image.detach().cpu().float() if isinstance(image, Tensor) and image.is_floating_point() else image
    array = np.asarray(pixels.cpu().permute(1, 2, 0) if isinstance(pixels, Tensor) and pixels.ndim == 3 else pixels)
    if array.ndim != 3 or array.shape[2] != 3 or 0 in array.shape:
        raise ValueError(
            "A picture must be a tensor (3, height, width) or an array (height, width, 3), got one of shape "
            f"{tuple(image.shape)}."
        )
    if array.dtype == np.uint8:
        return array
    if not (np.isfinite(array).all() and array.min() >= -1e-3 and array.max() <= 1 + 1e-3):
        raise ValueError(f"A picture must be in [0, 1], got {array.min():.4g} to {array.max():.4g}.")
    scaled: NDArray[np.uint8] = (np.clip(array, 0, 1) * 255).round().astype(np.uint8)
    return scaled


def data_uri(image: Tensor | NDArray[Any], enlarge_to: int = 1) -> str:
    """Return a picture as a ``data:`` URI of a PNG.

    Args:
        image: As for :func:`as_array`.
        enlarge_to: Least side in pixels; a smaller picture is repeated by a whole number, without smoothing.

    Example:
        >>> import torch
        >>> data_uri(torch.ones(3, 2, 2))[:22]
        'data:image/png;base64,'
    """
    from PIL import Image

    array = as_array(image)
    times = max(1, -(-enlarge_to // min(array.shape[:2])))
    buffer = io.BytesIO()
    Image.fromarray(array.repeat(times, 0).repeat(times, 1)).save(buffer, format="PNG", optimize=True)
    return data_url(buffer.getvalue(), "image/png")
