"""The plain mathematics of two gradients: section by section of the method."""

import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from lit_modules.unlearning.core.gradients import (
    PairStatistics,
    global_norm,
)
from lit_modules.unlearning.ngdiff import normalised_weights
from tests.unlearning.conftest import normalised_difference, pair_statistics

GOLDEN = [
    ((3.0, 4.0), (0.0, 2.0), (0.6, -0.2), 1.0, -0.4),
    ((1.0, 0.0), (0.0, 5.0), (1.0, -1.0), 1.0, -5.0),
    ((1.0, 0.0), (-2.0, 0.0), (2.0, 0.0), 2.0, -4.0),
    ((1.0, 0.0), (7.0, 0.0), (0.0, 0.0), 0.0, 0.0),
    ((1.0, 0.0), (10.0, 1.0), (0.004963, -0.099504), 0.004963, -0.049876),
]

pairs = st.tuples(st.integers(0, 2**31), st.floats(-3, 3), st.floats(-3, 3))


def draw(seed: int, log_retain: float, log_forget: float) -> tuple[list[Tensor], list[Tensor]]:
    """Draw two correlated gradients of several tensors and different lengths."""
    generator = torch.Generator().manual_seed(seed)
    shapes = [(3, 4), (5,), (1, 2, 2)]
    common = [torch.randn(shape, generator=generator, dtype=torch.float64) for shape in shapes]
    share = torch.rand((), generator=generator, dtype=torch.float64) * 2 - 1
    other = [torch.randn(shape, generator=generator, dtype=torch.float64) for shape in shapes]
    retain = [tensor * 10**log_retain for tensor in common]
    forget = [(share * a + (1 - share.abs()) * b) * 10**log_forget for a, b in zip(common, other, strict=True)]
    return retain, forget


def flat(gradient: list[Tensor | None]) -> Tensor:
    return torch.cat([tensor.flatten() for tensor in gradient if tensor is not None])


@pytest.mark.parametrize(("retain", "forget", "direction", "retain_descent", "forget_descent"), GOLDEN)
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_golden_cases(
    retain: tuple[float, ...],
    forget: tuple[float, ...],
    direction: tuple[float, ...],
    retain_descent: float,
    forget_descent: float,
    dtype: torch.dtype,
) -> None:
    g_r, g_f = torch.tensor(retain, dtype=dtype), torch.tensor(forget, dtype=dtype)
    d = flat(normalised_difference([g_r[:1], g_r[1:]], [g_f[:1], g_f[1:]]))
    assert d.tolist() == pytest.approx(direction, abs=1e-6)
    assert (g_r @ d).item() == pytest.approx(retain_descent, abs=1e-5)
    assert (g_f @ d).item() == pytest.approx(forget_descent, abs=1e-5)
    statistics = pair_statistics([g_r], [g_f])
    assert statistics.descent(*normalised_weights(statistics)) == pytest.approx(
        (retain_descent, forget_descent), abs=1e-5
    )


@given(pairs)
@settings(max_examples=100, deadline=None)
def test_direction_lowers_retain_raises_forget_and_bisects(drawn: tuple[int, float, float]) -> None:
    retain, forget = draw(*drawn)
    d = flat(normalised_difference(retain, forget))
    r, f = flat(list(retain)), flat(list(forget))
    cosine = (r @ f / r.norm() / f.norm()).item()
    assert (r @ d).item() == pytest.approx(r.norm().item() * (1 - cosine), rel=1e-6, abs=1e-9 * r.norm().item())
    assert (f @ d).item() == pytest.approx(-f.norm().item() * (1 - cosine), rel=1e-6, abs=1e-9 * f.norm().item())
    assert (d @ d).item() == pytest.approx(2 * (1 - cosine), rel=1e-6, abs=1e-9)
    if cosine < 0.999:
        half = math.sqrt((1 - cosine) / 2)
        assert (r @ d / r.norm() / d.norm()).item() == pytest.approx(half, abs=1e-6)
        assert (f @ d / f.norm() / d.norm()).item() == pytest.approx(-half, abs=1e-6)


@given(pairs, st.floats(-6, 6), st.floats(-6, 6))
@settings(max_examples=50, deadline=None)
def test_scaling_either_loss_changes_nothing(drawn: tuple[int, float, float], a: float, b: float) -> None:
    retain, forget = draw(*drawn)
    scaled = normalised_difference([t * 10**b for t in retain], [t * 10**a for t in forget])
    torch.testing.assert_close(flat(scaled), flat(normalised_difference(retain, forget)), atol=1e-9, rtol=1e-7)


@given(pairs)
@settings(max_examples=50, deadline=None)
def test_swapping_the_sets_negates_the_direction(drawn: tuple[int, float, float]) -> None:
    retain, forget = draw(*drawn)
    swapped = flat(normalised_difference(forget, retain))
    torch.testing.assert_close(swapped, -flat(normalised_difference(retain, forget)), atol=1e-12, rtol=0)


def test_fixed_weights_can_raise_the_retain_loss_where_ngdiff_cannot() -> None:
    statistics = pair_statistics([torch.tensor([1.0, 0.0])], [torch.tensor([10.0, 1.0])])
    assert statistics.descent(1.0, 1.0)[0] < 0
    assert statistics.descent(*normalised_weights(statistics))[0] > 0


@pytest.mark.parametrize("bad", [0.0, 1e-13, math.inf, math.nan])
def test_vanishing_or_broken_term_is_dropped_not_divided(bad: float) -> None:
    healthy = torch.tensor([3.0, 4.0])
    broken = torch.full((2,), bad)
    assert flat(normalised_difference([healthy], [broken])).tolist() == pytest.approx([0.6, 0.8])
    assert flat(normalised_difference([broken], [healthy])).tolist() == pytest.approx([-0.6, -0.8])
    assert flat(normalised_difference([broken], [broken])).tolist() == [0.0, 0.0]


def test_norm_is_taken_in_float32_for_bfloat16_gradients() -> None:
    gradient = [torch.full((10_000_000,), 0.01, dtype=torch.bfloat16)]
    exact = gradient[0].double().norm().item()
    assert global_norm(gradient).dtype == torch.float64
    assert global_norm(gradient).item() == pytest.approx(exact, rel=1e-5)


def test_missing_tensors_are_zero() -> None:
    retain, forget = [torch.tensor([3.0]), None], [None, torch.tensor([2.0])]
    assert pair_statistics(retain, forget) == PairStatistics(retain_norm=3.0, forget_norm=2.0, inner=0.0)
    assert [t.tolist() if t is not None else None for t in normalised_difference(retain, forget)] == [[1.0], [-1.0]]
    assert global_norm([]).item() == 0


def test_inputs_stay_and_lengths_are_checked() -> None:
    retain, forget = [torch.tensor([3.0, 4.0])], [torch.tensor([0.0, 2.0])]
    normalised_difference(retain, forget)
    assert retain[0].tolist() == [3.0, 4.0]
    assert forget[0].tolist() == [0.0, 2.0]
