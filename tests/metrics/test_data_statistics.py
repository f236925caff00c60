"""Statistics of image data: against slow formulas, and on real data against recorded values."""

import gzip
import math
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from lit_modules.metrics import (
    edge_fraction,
    inter_class_distance,
    intra_class_distance,
    log_volume,
    nearest_other_class_distance,
    volume_fraction,
)

# kernel: volume fraction, inter-class, intra-class and nearest other-class distance, pixels within 0.01 of 0 or 1
MNIST = {
    1: (0.5291, 8.264, 6.452, 6.332, 0.870),
    2: (0.5560, 6.927, 5.143, 5.078, 0.776),
    3: (0.5797, 5.693, 4.060, 4.025, 0.707),
    4: (0.5985, 4.671, 3.238, 3.194, 0.650),
    5: (0.6136, 3.864, 2.643, 2.564, 0.596),
}
# p: the same, then pixels within eps of 0 or 1; at p = 2 pixels lie on that very border, so that rounding decides
CIFAR10 = {
    1: (0.9855, 9.376, 9.124, 7.320, 0.034),
    2: (0.9802, 13.492, 13.006, 10.244, None),
    4: (0.9710, 18.145, 17.429, 13.772, 0.076),
    8: (0.9529, 22.466, 21.594, 17.420, 0.144),
    16: (0.9145, 25.702, 24.752, 20.324, 0.286),
    64: (0.7361, 28.905, 27.905, 23.217, 0.833),
    math.inf: (0.5000, 30.171, 29.158, 24.347, 1.000),
}
EPS = {"mnist": 0.3, "cifar10": 8 / 255}
DISTANCES: list[Any] = [inter_class_distance, intra_class_distance, nearest_other_class_distance]


def smooth(images: Tensor, kernel: int) -> Tensor:
    before, after = (kernel - 1) // 2, kernel // 2
    return F.avg_pool2d(F.pad(images, (before, after, before, after)), kernel, 1)


def saturate(images: Tensor, p: float) -> Tensor:
    centred = 2 * images - 1
    return centred.sign() * centred.abs() ** (2 / p) / 2 + 0.5


@pytest.fixture(scope="module")
def mnist(data_folder: Path) -> tuple[Tensor, Tensor]:
    """The first 5000 test images."""
    root = data_folder / "mnist"
    if not root.is_dir():
        pytest.skip(f"no real MNIST in {root}")
    images, labels = (
        np.frombuffer(gzip.decompress((root / f"t10k-{kind}-ubyte.gz").read_bytes()), np.uint8, offset=start)
        for kind, start in (("images-idx3", 16), ("labels-idx1", 8))
    )
    return torch.tensor(images).reshape(-1, 1, 28, 28)[:5000] / 255, torch.tensor(labels)[:5000].long()


@pytest.fixture(scope="module")
def cifar10(data_folder: Path) -> tuple[Tensor, Tensor]:
    """The 5085 training images of the subset."""
    path = data_folder / "cifar10" / "cifar10_exact_6102.npz"
    if not path.is_file():
        pytest.skip(f"no real CIFAR-10 in {path.parent}")
    with np.load(path) as content:
        images, labels = torch.tensor(content["train_images"]), torch.tensor(content["train_labels"])
    return images.permute(0, 3, 1, 2) / 255, labels.long()


def near(value: float) -> Any:
    return pytest.approx(value, rel=1e-3)


def check_row(images: Tensor, labels: Tensor, eps: float, margin: float, row: tuple[Any, ...]) -> None:
    assert volume_fraction(images, eps) == near(row[0])
    for measure, expected in zip(DISTANCES, row[1:4], strict=True):
        assert measure(images, labels, queries=1000) == near(expected)
    if row[4] is not None:
        assert edge_fraction(images, margin) == pytest.approx(row[4], abs=6e-4)  # recorded with three digits


@pytest.mark.parametrize("kernel", [pytest.param(k, marks=[] if k == 5 else pytest.mark.slow) for k in MNIST])
def test_the_table_of_mnist(kernel: int, mnist: tuple[Tensor, Tensor]) -> None:
    check_row(smooth(mnist[0], kernel), mnist[1], EPS["mnist"], 0.01, MNIST[kernel])


def test_volume_and_edges_of_cifar10(cifar10: tuple[Tensor, Tensor]) -> None:
    images = saturate(cifar10[0], 8)
    assert volume_fraction(images, EPS["cifar10"]) == near(CIFAR10[8][0])
    assert edge_fraction(images, EPS["cifar10"]) == pytest.approx(CIFAR10[8][4], abs=6e-4)


@pytest.mark.slow
@pytest.mark.parametrize("p", CIFAR10)
def test_the_table_of_cifar10(p: float, cifar10: tuple[Tensor, Tensor]) -> None:
    check_row(saturate(cifar10[0], p), cifar10[1], EPS["cifar10"], EPS["cifar10"], CIFAR10[p])


@given(seed=st.integers(0, 99), eps=st.floats(0.01, 0.5))
def test_volume_against_the_product(seed: int, eps: float) -> None:
    images = torch.rand(4, 1, 2, 2, generator=torch.Generator().manual_seed(seed)).double()
    widths = (images + eps).clamp(max=1) - (images - eps).clamp(min=0)
    torch.testing.assert_close(log_volume(images, eps).exp(), widths.flatten(1).prod(1))
    fraction = volume_fraction(images, eps)
    assert 0.5 - 1e-9 <= fraction <= 1 + 1e-9
    assert fraction == pytest.approx(float((widths / (2 * eps)).log().mean().exp()))


def test_volume_does_not_underflow() -> None:
    assert float(log_volume(torch.zeros(1, 3, 32, 32), 8 / 255)) == pytest.approx(3072 * math.log(8 / 255))


@settings(deadline=None, max_examples=40)
@given(
    seed=st.integers(0, 999),
    share=st.floats(0.05, 1.0),
    queries=st.integers(1, 20),
    references=st.none() | st.integers(15, 25),
)
def test_distances_against_loops(seed: int, share: float, queries: int, references: int | None) -> None:
    images = torch.rand(20, 1, 2, 3, generator=torch.Generator().manual_seed(seed))
    labels = torch.arange(20) % 2
    flat = images.flatten(1).double()
    candidates = list(range(20))
    if references is not None and references < 20:
        candidates = torch.randperm(20, generator=torch.Generator().manual_seed(seed))[:references].tolist()

    def expected(own: bool, nearest_only: bool = False) -> float:
        means = []
        for i in range(queries):
            distances = [
                float((flat[i] - flat[j]).norm()) for j in candidates if j != i and (labels[i] == labels[j]) == own
            ]
            count = 1 if nearest_only else max(1, int(share * len(distances)))
            means.append(sum(sorted(distances)[:count]) / count)
        return sum(means) / len(means)

    chosen: dict[str, Any] = {"queries": queries, "references": references, "seed": seed, "chunk_size": 3}
    assert inter_class_distance(images, labels, share, **chosen) == pytest.approx(expected(False))
    assert intra_class_distance(images, labels, share, **chosen) == pytest.approx(expected(True))
    assert nearest_other_class_distance(images, labels, **chosen) == pytest.approx(expected(False, True))


def test_like_images_are_at_distance_zero() -> None:
    images = torch.rand(1, 3, 32, 32).expand(2, -1, -1, -1)
    assert nearest_other_class_distance(images, torch.tensor([0, 1])) < 1e-6


PAIR = torch.tensor([[0.0], [1.0]]), torch.tensor([0, 1])


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: volume_fraction(PAIR[0], 0.0), "eps must be positive, got 0.0"),
        (lambda: volume_fraction(PAIR[0], 0.6), "eps must be at most 0.5, as a wider ball has no place"),
        (lambda: volume_fraction(2 * PAIR[0], 0.1), r"must be within \[0, 1\], got values from 0 to 2"),
        (lambda: log_volume(torch.empty(0, 3), 0.1), r"at least one image, .* got the shape \(0, 3\)"),
        (lambda: edge_fraction(PAIR[0], -0.1), "margin must not be negative, got -0.1"),
        (lambda: inter_class_distance(PAIR[0], torch.tensor([0])), "a label for each image and at least one"),
        (lambda: inter_class_distance(*PAIR, share=0), r"share must be in \(0, 1\], got 0"),
        (lambda: inter_class_distance(*PAIR, queries=0), "queries must be at least 1, got 0"),
        (lambda: intra_class_distance(*PAIR), "others of its own class to compare it to, label 0 has none"),
    ],
)
def test_bad_input_is_refused(call: Any, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        call()
