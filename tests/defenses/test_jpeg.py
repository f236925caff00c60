"""JPEG against the codec, at sizes that are no whole blocks."""

from typing import Any

import pytest
import torch
from torch import Tensor
from torchvision import io

from lit_modules.defenses import JPEG, GaussianSmoothing


def pictures(*shape: int) -> Tensor:
    """Smooth images with 8-bit values."""
    noise = torch.rand(*shape, generator=torch.Generator().manual_seed(0))
    smooth = GaussianSmoothing(1.0, padding_mode="replicate")(noise)
    smooth = (smooth - smooth.min()) / (smooth.max() - smooth.min())
    return (smooth * 255).round() / 255


@pytest.mark.filterwarnings("ignore:The image decoding:DeprecationWarning")
@pytest.mark.parametrize("shape", [(2, 3, 32, 32), (2, 1, 28, 28), (2, 3, 33, 47), (2, 3, 24, 40), (1, 1, 13, 9)])
@pytest.mark.parametrize("quality", [10, 50, 75, 95, 100])
def test_against_the_codec(shape: tuple[int, ...], quality: int) -> None:
    x = pictures(*shape)
    images = (x * 255).round().to(torch.uint8)
    expected = torch.stack([io.decode_jpeg(io.encode_jpeg(image, quality=quality)) for image in images]).float()
    difference = (JPEG(quality)(x) * 255 - expected).abs()
    assert float(difference.mean()) < 0.5
    assert float((difference <= 1).float().mean()) > 0.9


def test_quality_orders_the_loss() -> None:
    x = pictures(4, 3, 32, 32)
    losses = [float((JPEG(quality)(x) - x).abs().mean()) for quality in (5, 25, 50, 75, 95)]
    assert losses == sorted(losses, reverse=True)
    grey = pictures(4, 1, 32, 32)
    assert float((JPEG(100)(grey) - grey).abs().max()) < 3 / 255


def test_range() -> None:
    x = pictures(3, 3, 17, 20)
    y = JPEG(60)(x)
    assert 0 <= float(y.min()) <= float(y.max()) <= 1
    assert torch.allclose(JPEG(60, lower=-1.0, upper=1.0)(x * 2 - 1), y * 2 - 1, atol=1e-5)
    assert torch.equal(JPEG(60, 0.0, 255.0)(x * 255).round(), (y * 255).round())


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: JPEG(0), "quality must be an integer from 1 to 100, got 0"),
        (lambda: JPEG(75, 1.0, 0.0), r"lower must be below upper and both finite, got 1\.0 and 0\.0"),
        (lambda: JPEG()(torch.rand(1, 2, 8, 8)), "1 or 3 channels, got 2"),
    ],
)
def test_refusals(call: Any, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        call()
