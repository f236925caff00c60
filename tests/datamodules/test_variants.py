"""Variants of images: the properties that define them, the conventions at borders and ties, and what they refuse."""

import math
import pickle
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy import ndimage
from torch import Tensor

from datamodules.variants import BitDepth, Compose, Contrast, EdgeMap, Gamma, Resize, Saturate, Smooth, Variant

ALL = [
    Smooth(2),
    Smooth(3, "reflect"),
    Saturate(8),
    Saturate("inf", tie="one"),
    Gamma(0.6),
    EdgeMap(),
    BitDepth(3),
    Resize(5),
    Contrast(1.5),
    Compose([Resize(6), Smooth(2)]),
]
LEVELS = (torch.arange(256) / 255).reshape(1, 16, 16)
POWERS = st.floats(1.0, 64.0)  # below 1 float64 cannot hold the values beside 1/2


def random_images(seed: int, *shape: int) -> Tensor:
    return torch.rand(shape or (3, 2, 9, 7), generator=torch.Generator().manual_seed(seed))


@pytest.mark.parametrize("variant", ALL, ids=repr)
def test_all_keep_the_rules(variant: Variant) -> None:
    images = random_images(0, 4, 1, 9, 9)
    before = images.clone()
    changed = variant(images)
    assert torch.equal(images, before)
    assert changed.dtype == images.dtype
    assert 0 <= float(changed.min()) <= float(changed.max()) <= 1
    assert torch.equal(changed, variant(images))
    alone = torch.stack([variant(image) for image in images])
    torch.testing.assert_close(alone, changed)  # no image looks at another
    assert torch.equal(variant(images.reshape(2, 2, 1, 9, 9)).flatten(0, 1), changed)
    assert torch.equal(pickle.loads(pickle.dumps(variant))(images), changed)
    assert variant(images.double()).dtype == torch.float64


@settings(deadline=None)
@given(seed=st.integers(0, 99), k=st.integers(1, 5), a=st.floats(0, 0.5), b=st.floats(0, 0.5))
def test_smooth_is_linear_and_lowers_the_maximum(seed: int, k: int, a: float, b: float) -> None:
    first, second = random_images(seed).double(), random_images(seed + 100).double()
    smooth = Smooth(k)
    torch.testing.assert_close(smooth(a * first + b * second), a * smooth(first) + b * smooth(second))
    assert float(smooth(first).max()) <= float(first.max()) + 1e-12


@pytest.mark.parametrize("mode", ["zeros", "reflect", "replicate"])
@pytest.mark.parametrize("k", [1, 2, 3, 4, 5])
def test_smooth_commutes_with_flips_if_the_kernel_is_odd(k: int, mode: Any) -> None:
    images, smooth = random_images(1), Smooth(k, mode)
    for axis in (-1, -2):
        same = torch.allclose(smooth(images.flip(axis)), smooth(images).flip(axis), atol=1e-6)
        assert same == (k % 2 == 1)


def test_smooth_equals_a_convolution_with_the_padding_that_is_named() -> None:
    images = random_images(2, 2, 3, 8, 8)
    weight = torch.full((3, 1, 3, 3), 1 / 9)
    torch.testing.assert_close(Smooth(3)(images), F.conv2d(images, weight, padding=1, groups=3))
    assert torch.equal(Smooth(1)(images), images)
    point = torch.zeros(1, 7, 7)
    point[0, 3, 3] = 1
    for k in (2, 3, 4, 5):
        # the window of an output pixel reaches floor((k - 1) / 2) to the left, so the point spreads that far right
        expected = torch.zeros(1, 7, 7)
        low, high = 3 - k // 2, 3 + (k - 1) // 2
        expected[0, low : high + 1, low : high + 1] = 1 / k**2
        torch.testing.assert_close(Smooth(k)(point), expected)
    ones = torch.ones(1, 5, 5)
    assert Smooth(3)(ones)[0, 0, [0, 2]].tolist() == pytest.approx([4 / 9, 2 / 3])
    for mode in ("reflect", "replicate"):
        torch.testing.assert_close(Smooth(4, mode)(ones), ones)


@settings(deadline=None)
@given(p=POWERS, q=POWERS)
def test_saturate_inverse_composition_and_symmetry(p: float, q: float) -> None:
    images = LEVELS.double()
    torch.testing.assert_close(Saturate(4 / p)(Saturate(p)(images)), images, atol=1e-6, rtol=0)
    torch.testing.assert_close(Saturate(p)(Saturate(q)(images)), Saturate(p * q / 2)(images), atol=1e-6, rtol=0)
    torch.testing.assert_close(Saturate(p)(1 - images), 1 - Saturate(p)(images))
    assert bool((Saturate(p)(images).flatten().diff() >= 0).all())
    fixed = torch.tensor([[[0.0, 0.5, 1.0]]])
    assert torch.equal(Saturate(p)(fixed), fixed)


def test_saturate_at_the_ends() -> None:
    assert torch.equal(Saturate(2)(LEVELS), LEVELS)
    assert float(Saturate(8)(torch.full((1, 1, 1), 0.75))) == pytest.approx(0.5 + 0.5**0.25 / 2)
    for p in (4, 8, 16, 64):
        assert Saturate(p)(LEVELS).unique().numel() == 256
    black_and_white = Saturate("inf")(LEVELS)
    assert torch.equal(black_and_white, (LEVELS > 0.5).float())
    assert torch.equal(Saturate(math.inf)(LEVELS), black_and_white)
    tie = torch.tensor([[[0.25, 0.5, 0.75]]])
    assert Saturate("inf")(tie).flatten().tolist() == [0, 0.5, 1]
    assert Saturate("inf", tie="one")(tie).flatten().tolist() == [0, 1, 1]
    assert Saturate(4, tie="one")(tie).flatten()[1] == 0.5


@settings(deadline=None)
@given(gamma=st.floats(0.2, 5.0))
def test_gamma(gamma: float) -> None:
    images = LEVELS.double()
    changed = Gamma(gamma)(images)
    torch.testing.assert_close(Gamma(1 / gamma)(changed), images)
    assert (float(changed.min()), float(changed.max())) == (0, 1)
    assert bool((changed >= images).all() if gamma < 1 else (changed <= images).all())
    assert torch.equal(Gamma(1)(images), images)


@settings(deadline=None)
@given(bits=st.integers(1, 8), seed=st.integers(0, 9))
def test_bit_depth(bits: int, seed: int) -> None:
    images = random_images(seed)
    rounded = BitDepth(bits)(images)
    assert rounded.unique().numel() <= 2**bits
    assert float((rounded - images).abs().max()) <= 0.5 / (2**bits - 1) + 1e-6
    assert torch.equal(BitDepth(bits)(rounded), rounded)
    assert torch.equal(BitDepth(8)(LEVELS), LEVELS)


def test_resize() -> None:
    images = random_images(3, 2, 3, 8, 8)
    assert torch.equal(Resize(8)(images), images)
    halved = Resize(4)(images)
    assert halved.shape == (2, 3, 4, 4)
    assert float(halved.std()) < float(images[..., ::2, ::2].std())  # without aliasing
    torch.testing.assert_close(Resize(3)(torch.ones(1, 8, 8)), torch.ones(1, 3, 3))


@settings(deadline=None)
@given(factor=st.floats(0.1, 1.0), seed=st.integers(0, 9))
def test_contrast_and_the_rule_of_scaling(factor: float, seed: int) -> None:
    """An adversary of radius a * eps on a x + b is one of radius eps on x, for a model that undoes the change."""
    images = random_images(seed, 16, 1, 4, 4).double()
    weight = torch.randn(16, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)
    low, high, eps = 0.5 - factor / 2, 0.5 + factor / 2, 0.1

    def logits(pixels: Tensor) -> Tensor:
        return (pixels - 0.5).flatten(1) @ weight

    changed = Contrast(factor)(images)
    torch.testing.assert_close(changed, factor * images + low)
    step = weight.sign().reshape(1, 4, 4)
    plain = (images + eps * step).clamp(0, 1)
    scaled = (changed + factor * eps * step).clamp(low, high)
    torch.testing.assert_close(logits((scaled - low) / factor), logits(plain))
    cut = Contrast(2.0)(torch.tensor([[[0.0, 0.25, 0.4, 0.75, 0.9]]]))  # above one values are cut off
    torch.testing.assert_close(cut, torch.tensor([[[0.0, 0.0, 0.3, 1.0, 1.0]]]))


def test_edges_of_a_square() -> None:
    image = torch.zeros(1, 12, 12)
    image[:, 4:8, 4:8] = 1
    edges = EdgeMap()(image)[0]
    assert set(edges.unique().tolist()) == {0.0, 1.0}
    assert edges[5:7, 3].tolist() == [1, 1]  # of the two pixels across the edge the left or upper one
    assert edges[5:7, 4].tolist() == [0, 0]
    assert edges[5:7, 7].tolist() == [1, 1]
    assert edges[3, 5:7].tolist() == [1, 1]
    assert float(edges[5:7, 5:7].sum()) == 0
    assert float(EdgeMap(0, 0)(torch.full((2, 3, 8, 8), 0.3)).sum()) == 0
    assert float(edges[:2].sum() + edges[-2:].sum() + edges[:, :2].sum() + edges[:, -2:].sum()) == 0


def test_weak_edges_follow_strong_ones() -> None:
    image = torch.zeros(1, 12, 12)
    image[:, :6, 6:] = 0.15  # weak, and joined to the strong edge below
    image[:, 6:, 6:] = 0.5
    joined = EdgeMap(0.1, 0.2)(image)[0]
    assert joined[:5, 5].tolist() + joined[7:, 5].tolist() == [1] * 10  # at the corner it goes round
    alone = torch.zeros(1, 12, 12)
    alone[..., 6:] = 0.15
    assert float(EdgeMap(0.1, 0.2)(alone).sum()) == 0
    assert EdgeMap(0.1, 0.1)(alone)[0, :, 5].tolist() == [1] * 12


@settings(deadline=None, max_examples=30)
@given(seed=st.integers(0, 999), low=st.floats(0.05, 0.3), more=st.floats(0, 0.5))
def test_hysteresis_keeps_the_parts_that_touch_a_strong_pixel(seed: int, low: float, more: float) -> None:
    image = Smooth(3, "replicate")(random_images(seed, 1, 16, 16))
    weak, strong = EdgeMap(low, low)(image)[0], EdgeMap(low + more, low + more)(image)[0]
    parts, count = ndimage.label(weak.numpy(), structure=[[1] * 3] * 3)
    kept = [number for number in range(1, count + 1) if (strong.numpy()[parts == number] > 0).any()]
    expected = torch.isin(torch.from_numpy(parts), torch.tensor(kept))
    assert torch.equal(EdgeMap(low, low + more)(image)[0].bool(), expected)


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: Smooth(0), "kernel_size must be a whole number of at least 1, got 0"),
        (lambda: Smooth(3, "wrap"), "padding_mode must be 'zeros' or 'reflect' or 'replicate', got 'wrap'"),
        (lambda: Saturate(math.nan), "p must be a positive number, got nan"),
        (lambda: Saturate("much"), "p must be a positive number or 'inf', got 'much'"),
        (lambda: Saturate(2, tie="zero"), "tie must be 'half' or 'one', got 'zero'"),
        (lambda: Gamma(-1), "gamma must be a positive finite number, got -1"),
        (lambda: EdgeMap(0.3, 0.2), "must be 0 <= low <= high, got low=0.3 and high=0.2"),
        (lambda: BitDepth(17), "bits must be a whole number from 1 to 16, got 17"),
        (lambda: Resize(0), "size must be a whole number of at least 1, got 0"),
        (lambda: Contrast(0), "factor must be a positive finite number, got 0"),
        (lambda: Compose([]), "variants must hold at least one variant"),
        (lambda: Smooth(5, "reflect")(torch.rand(1, 2, 2)), r"needs images larger than 2 pixels, got \(2, 2\)"),
        (lambda: Gamma(2)(torch.rand(8, 8)), r"shape \(..., channel, height, width\), got \(8, 8\)"),
    ],
)
def test_bad_input(make: Any, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        make()


def test_images_of_whole_numbers_are_refused() -> None:
    with pytest.raises(TypeError, match=r"takes floats in \[0, 1\], got torch.uint8; divide 8-bit images by 255"):
        Smooth(2)(torch.zeros(1, 4, 4, dtype=torch.uint8))
