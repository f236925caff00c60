"""JPEG compression as a defence, computed in batches on any device."""

from __future__ import annotations

import math

import torch
import torch.nn.functional as F
from torch import Tensor

from lit_modules.defenses.processors import ImageProcessor, check_range, without_gradient

# tables K.1 and K.2 of the standard
_LUMINANCE = (
    (16, 11, 10, 16, 24, 40, 51, 61),
    (12, 12, 14, 19, 26, 58, 60, 55),
    (14, 13, 16, 24, 40, 57, 69, 56),
    (14, 17, 22, 29, 51, 87, 80, 62),
    (18, 22, 37, 56, 68, 109, 103, 77),
    (24, 35, 55, 64, 81, 104, 113, 92),
    (49, 64, 78, 87, 103, 121, 120, 101),
    (72, 92, 95, 98, 112, 100, 103, 99),
)
_CHROMINANCE = (
    (17, 18, 24, 47, 99, 99, 99, 99),
    (18, 21, 26, 66, 99, 99, 99, 99),
    (24, 26, 56, 99, 99, 99, 99, 99),
    (47, 66, 99, 99, 99, 99, 99, 99),
    *(((99,) * 8),) * 4,
)
# from red, green and blue to luma and the two differences
_COLOUR = ((0.299, 0.587, 0.114), (-0.168735892, -0.331264108, 0.5), (0.5, -0.418687589, -0.081312411))


class JPEG(ImageProcessor):
    """Compress and decompress images as JPEG does, in batches and on the images' device.

    All that loses information is done: rounding to 8 bits, luma and chroma at half resolution (4:2:0), the cosine
    transform of 8 x 8 blocks, quantisation with the standard's tables at the given quality, and back. The entropy
    coding loses nothing and is left out. Nearly all values are within one of 255 levels of the usual codec's; the
    rest lie in blocks where a coefficient was rounded the other way. AdverTorch calls the codec for each image, and
    knows the range [0, 1] only. There is no gradient: wrap it in :class:`BPDA` to attack through it.

    Args:
        quality: 1 to 100, scaled as the codec of the Independent JPEG Group does.
        lower: Value that becomes 0 of 255.
        upper: Value that becomes 255.

    Raises:
        ValueError: If an argument is outside its range; on use, if the images have neither one nor three channels.

    References:
        ITU-T T.81 (1992), annexes A and K; Dziugaite, Ghahramani, Roy, "A study of the effect of JPG compression on
        adversarial images" (arXiv 1608.00853).
    """

    _luminance: Tensor
    _chrominance: Tensor
    _cosine: Tensor
    _colour: Tensor

    def __init__(self, quality: int = 75, lower: float = 0.0, upper: float = 1.0) -> None:
        super().__init__()
        if isinstance(quality, bool) or not isinstance(quality, int) or not 1 <= quality <= 100:
            raise ValueError(f"quality must be an integer from 1 to 100, got {quality!r}.")
        check_range(lower, upper)
        self.quality = quality
        self.lower = lower
        self.upper = upper
        scale = 5000 // quality if quality < 50 else 200 - 2 * quality
        for name, table in (("_luminance", _LUMINANCE), ("_chrominance", _CHROMINANCE)):
            steps = ((torch.tensor(table) * scale + 50) // 100).clamp(1, 255).float()
            self.register_buffer(name, steps, persistent=False)
        positions = torch.arange(8, dtype=torch.float64)
        cosine = torch.cos((2 * positions[None] + 1) * positions[:, None] * math.pi / 16) / 2
        cosine[0] /= math.sqrt(2)
        self.register_buffer("_cosine", cosine.float(), persistent=False)
        self.register_buffer("_colour", torch.tensor(_COLOUR, dtype=torch.float64).float(), persistent=False)

    def process(self, images: Tensor) -> Tensor:
        """Compress and decompress."""
        if images.shape[1] not in (1, 3):
            raise ValueError(f"JPEG takes images with 1 or 3 channels, got {images.shape[1]}.")
        return without_gradient(images, self._compress, type(self).__name__)

    def _compress(self, images: Tensor) -> Tensor:
        span = self.upper - self.lower
        levels = ((images.float() - self.lower) / span * 255).round().clamp(0, 255)
        grey = levels.shape[1] == 1
        levels = self._quantise(levels, self._luminance) if grey else self._quantise_colour(levels)
        return (levels / 255 * span + self.lower).to(images.dtype)

    def _quantise_colour(self, levels: Tensor) -> Tensor:
        height, width = levels.shape[2:]
        levels = _extend(levels, 2, 16)  # as the codec: columns before the chroma is halved, rows after
        shift = levels.new_tensor([0.0, 128.0, 128.0])[:, None, None]
        parts = (torch.einsum("oc,nchw->nohw", self._colour, levels) + shift).round().clamp(0, 255)
        luma = self._quantise(parts[:, :1], self._luminance)
        down, up = (levels.new_tensor(pair).repeat(parts.shape[3] // 2) for pair in ((1.0, 2.0), (8.0, 7.0)))
        halved = ((F.avg_pool2d(parts[:, 1:], 2) * 4 + down[: parts.shape[3] // 2]) / 4).floor()
        chroma = self._quantise(halved, self._chrominance)[:, :, : (height + 1) // 2, : (width + 1) // 2]
        chroma = F.interpolate(chroma, scale_factor=2, mode="bilinear", align_corners=False)
        chroma = ((chroma * 16 + up[: chroma.shape[3]]) / 16).floor()  # halves go down and up in turn
        parts = torch.cat([luma[:, :, :height, :width], chroma[:, :, :height, :width]], 1) - shift
        blue_red = parts[:, 1:]
        red = parts[:, :1] + 1.402 * blue_red[:, 1:]
        green = parts[:, :1] - 0.344136286 * blue_red[:, :1] - 0.714136286 * blue_red[:, 1:]
        blue = parts[:, :1] + 1.772 * blue_red[:, :1]
        return torch.cat([red, green, blue], 1).round().clamp(0, 255)

    def _quantise(self, levels: Tensor, steps: Tensor) -> Tensor:
        height, width = levels.shape[2:]
        levels = _extend(levels, 8, 8)
        rows, columns = levels.shape[2] // 8, levels.shape[3] // 8
        blocks = levels.reshape(*levels.shape[:2], rows, 8, columns, 8).transpose(3, 4) - 128
        coefficients = self._cosine @ blocks @ self._cosine.T
        eighths = (coefficients * 8).round()  # the codec's integers; halves go away from 0
        coefficients = eighths.sign() * ((eighths.abs() / (8 * steps)) + 0.5).floor() * steps
        blocks = (self._cosine.T @ coefficients @ self._cosine + 128).round().clamp(0, 255)
        levels = blocks.transpose(3, 4).reshape(levels.shape)
        return levels[:, :, :height, :width]

    def extra_repr(self) -> str:
        """Return the arguments."""
        return f"quality={self.quality}, lower={self.lower}, upper={self.upper}"


def _extend(levels: Tensor, rows: int, columns: int) -> Tensor:
    """Repeat the last row and column until the size is a multiple."""
    height, width = levels.shape[2:]
    return F.pad(levels, (0, -width % columns, 0, -height % rows), mode="replicate")
