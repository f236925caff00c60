"""Input processors: what they compute, on images of any size, and what they refuse."""

import pickle
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from scipy import ndimage
from torch import Tensor, nn

from lit_modules.attacks.pgd import LinfPGD
from lit_modules.defenses import (
    BPDA,
    JPEG,
    BinaryFilter,
    BitSqueezing,
    ConvSmoothing,
    GaussianSmoothing,
    ImageProcessor,
    MeanSmoothing,
    MedianSmoothing,
)


def images(*shape: int, seed: int = 0) -> Tensor:
    return torch.rand(*shape, generator=torch.Generator().manual_seed(seed))


PER_CHANNEL = [
    BitSqueezing(3),
    BinaryFilter(),
    MedianSmoothing(3),
    MedianSmoothing(2),
    MeanSmoothing(4, "reflect"),
    GaussianSmoothing(0.7),
    ConvSmoothing(torch.rand(3, 5), "replicate"),
]


@pytest.mark.parametrize("processor", [*PER_CHANNEL, JPEG(60)], ids=repr)
def test_batches_and_channels(processor: ImageProcessor) -> None:
    x = images(3, 3, 9, 13)
    before = x.clone()
    y = processor(x)
    assert y.shape == x.shape
    assert torch.equal(x, before)
    assert torch.allclose(processor(x[1]), y[1], atol=1e-6)
    assert torch.allclose(processor(x.view(1, 3, 3, 9, 13))[0], y, atol=1e-6)
    assert torch.equal(pickle.loads(pickle.dumps(processor))(x), y)
    assert processor(x.double()).dtype == torch.float64
    if not isinstance(processor, JPEG):
        assert torch.allclose(processor(x[:, 1:2]), y[:, 1:2], atol=1e-6)
    with pytest.raises(TypeError, match=r"got torch\.uint8; divide 8-bit images by 255"):
        processor(torch.zeros(1, 1, 8, 8, dtype=torch.uint8))
    if processor.pointwise:
        assert torch.equal(processor(x.flatten(1)), y.flatten(1))
    else:
        with pytest.raises(ValueError, match=r"\(\.\.\., channel, height, width\), got \(8, 8\)"):
            processor(torch.zeros(8, 8))


@pytest.mark.parametrize("bits", [1, 3, 8])
def test_bit_squeezing_has_its_levels_and_keeps_them(bits: int) -> None:
    x = images(2, 1, 40, 40)
    y = BitSqueezing(bits)(x)
    assert torch.allclose(y * (2**bits - 1), (x * (2**bits - 1)).round(), atol=1e-4)
    assert torch.equal(BitSqueezing(bits)(y), y)
    assert torch.allclose(BitSqueezing(bits, lower=-1.0, upper=3.0)(x * 4 - 1), y * 4 - 1, atol=1e-5)
    assert BitSqueezing(bits)(torch.tensor([-3.0, 7.0])).tolist() == [0.0, 1.0]
    assert torch.equal(BinaryFilter()(x), (x > 0.5).float())


@pytest.mark.parametrize("processor", [BitSqueezing(4), JPEG()], ids=repr)
def test_backward_points_to_bpda(processor: ImageProcessor) -> None:
    x = images(1, 1, 4, 4).requires_grad_()
    name = type(processor).__name__
    with pytest.raises(RuntimeError, match=rf"{name} has no useful gradient.*lit_modules\.defenses\.BPDA"):
        processor(x).sum().backward()
    with pytest.raises(RuntimeError, match="BPDA"):
        LinfPGD(steps=2)(nn.Sequential(processor, nn.Flatten(), nn.Linear(16, 3)), x.detach())
    BPDA(processor)(x).sum().backward()
    assert torch.equal(x.grad, torch.ones_like(x))


@pytest.mark.parametrize("size", [1, 3, 5])
def test_median_against_scipy(size: int) -> None:
    x = images(1, 1, 11, 7)
    expected = ndimage.median_filter(x[0, 0].numpy(), size=size, mode="mirror")
    assert torch.equal(MedianSmoothing(size)(x)[0, 0], torch.from_numpy(expected))


def test_median_stride_and_gradient() -> None:
    x = images(2, 1, 8, 6).requires_grad_()
    y = MedianSmoothing(3, stride=2)(x)
    assert torch.equal(y, MedianSmoothing(3)(x)[:, :, ::2, ::2])
    y.sum().backward()
    assert float(x.grad.sum()) == y.numel()


@pytest.mark.parametrize(("mode", "name"), [("zeros", "constant"), ("reflect", "mirror"), ("replicate", "nearest")])
def test_convolution_against_scipy(mode: Any, name: str) -> None:
    x, kernel = images(1, 1, 9, 12), images(3, 5, seed=1)
    expected = ndimage.correlate(x[0, 0].double().numpy(), kernel.double().numpy(), mode=name)
    assert torch.allclose(ConvSmoothing(kernel, mode)(x)[0, 0].double(), torch.from_numpy(expected), atol=1e-5)


def test_gaussian_against_scipy_and_its_size() -> None:
    x = images(1, 1, 20, 17)
    y = GaussianSmoothing(0.8, kernel_size=7, padding_mode="reflect")(x)[0, 0]
    expected = ndimage.gaussian_filter(x[0, 0].double().numpy(), 0.8, mode="mirror", radius=3)
    assert torch.allclose(y.double(), torch.from_numpy(expected), atol=1e-5)
    assert [GaussianSmoothing(s).kernel.shape[0] for s in (0.1, 0.5, 0.6, 1.0, 1.3)] == [1, 3, 3, 5, 7]


def test_mean_smoothing_identity_borders_and_even_kernels() -> None:
    x = images(1, 1, 6, 6)
    assert torch.equal(MeanSmoothing(1)(x), x)
    ones = MeanSmoothing(3)(torch.ones(1, 1, 6, 6))[0, 0]
    assert ones[0, [0, 2]].tolist() == pytest.approx([4 / 9, 2 / 3])
    assert torch.allclose(MeanSmoothing(2)(x), F.avg_pool2d(F.pad(x, (0, 1, 0, 1)), 2, stride=1))


def test_kernel_moves_and_saves_with_the_module() -> None:
    module = ConvSmoothing(images(3, 3))
    assert set(module.state_dict()) == {"kernel"}
    assert module.to(torch.float64).kernel.dtype == torch.float64


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: BitSqueezing(0), "bit_depth must be an integer from 1 to 16, got 0"),
        (lambda: BitSqueezing(4, lower=1.0, upper=1.0), r"lower must be below upper .* got 1\.0 and 1\.0"),
        (lambda: MedianSmoothing(0), "kernel_size must be an integer of at least 1, got 0"),
        (lambda: MeanSmoothing(3, "circular"), "must be 'zeros' or 'reflect' or 'replicate', got 'circular'"),  # type: ignore[arg-type]
        (lambda: GaussianSmoothing(0.0), "sigma must be positive and finite, got 0"),
        (lambda: ConvSmoothing(torch.ones(3)), r"kernel must be a matrix of weights, \(height, width\), got \(3,\)"),
        (lambda: ConvSmoothing(torch.ones(2, 2, dtype=torch.int64)), "finite floating-point weights"),
        (lambda: MedianSmoothing(9)(torch.rand(1, 1, 8, 4)), "9 x 9 needs images of at least 5 x 5 pixels, got 8 x 4"),
    ],
)
def test_bad_arguments(make: Any, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        make()
