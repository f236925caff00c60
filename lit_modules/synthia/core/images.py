"""Images as arrays and as text that a page or a request can hold."""

import io
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from PIL import Image
from torch import Tensor

from lit_modules.metrics.image_text import as_bytes
from lit_modules.utils.html import data_url


def as_array(image: Tensor | NDArray[Any]) -> NDArray[np.uint8]:
    """Return a tensor ``(3, height, width)`` or array ``(height, width, 3)``, in [0, 1] or uint8, as uint8 array."""
    tensor = image if isinstance(image, Tensor) else torch.from_numpy(image).movedim(-1, 0)
    array: NDArray[np.uint8] = as_bytes(tensor.detach().cpu()).permute(1, 2, 0).numpy()
    return array


def data_uri(image: Tensor | NDArray[Any], enlarge_to: int = 1) -> str:
    """Return an image as a ``data:`` URI of a PNG, each pixel repeated until no side is below ``enlarge_to``."""
    array = as_array(image)
    times = max(1, -(-enlarge_to // min(array.shape[:2])))
    buffer = io.BytesIO()
    Image.fromarray(array.repeat(times, 0).repeat(times, 1)).save(buffer, format="PNG", optimize=True)
    return data_url(buffer.getvalue(), "image/png")
