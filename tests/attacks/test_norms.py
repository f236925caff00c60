"""Norms, steps and projections against independent solutions and their defining properties."""

import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy import stats
from scipy.optimize import brentq
from torch import Tensor

from lit_modules.attacks.engine.norms import (
    few_steepest,
    lp_norm,
    normalise,
    project,
    project_l1_box,
    random_in_ball,
    steepest,
)
from lit_modules.attacks.engine.random import SampleRandom

BALLS = ["linf", "l2", "l1"]
seeds = st.integers(0, 2**31)


def cases(seed: int, batch: int = 5, size: int = 24) -> tuple[Tensor, Tensor]:
    """Perturbations of various lengths, some with zeros and ties, and a radius for each."""
    generator = torch.Generator().manual_seed(seed)
    delta = torch.randn(batch, size, generator=generator) * 10 ** (torch.rand(batch, 1, generator=generator) * 4 - 2)
    delta[0, ::3] = 0
    delta[1] = (delta[1] * 2).round() / 2
    radius = 10 ** (torch.rand(batch, 1, generator=generator) * 3 - 2)
    return delta, radius


@pytest.mark.parametrize("shape", [(5, 24), (5, 2, 3, 4), (5, 24, 1)])
def test_lp_norm_of_any_shape(shape: tuple[int, ...]) -> None:
    delta, _ = cases(0)
    for norm, order in (("linf", math.inf), ("l2", 2), ("l1", 1), ("l0", 0)):
        assert torch.allclose(lp_norm(delta.view(shape), norm), torch.linalg.vector_norm(delta, order, dim=1))


@pytest.mark.parametrize("norm", BALLS)
@pytest.mark.parametrize("scale", [1.0, 1e-6, 1e-12, 1e-20, 1e-30, 1e15])
def test_normalise_has_length_one_for_gradients_of_any_size_but_zero(norm: str, scale: float) -> None:
    gradient = torch.randn(4, 3, 5, generator=torch.Generator().manual_seed(0)) * scale
    gradient[0] = 0
    unit = normalise(gradient, norm)
    assert torch.allclose(lp_norm(unit, norm), torch.tensor([0.0, 1, 1, 1]), atol=1e-5)
    assert not bool(unit[0].any() | steepest(gradient, norm)[0].any())


@settings(max_examples=40, deadline=None)
@given(seed=seeds, norm=st.sampled_from(BALLS))
def test_projection_properties(seed: int, norm: str) -> None:
    delta, radius = cases(seed)
    inside = project(delta, radius, norm)
    length = lp_norm(inside.double(), norm)
    assert bool((length <= radius[:, 0].double() * (1 + 1e-6)).all())
    assert torch.allclose(project(inside, radius, norm), inside, rtol=1e-5, atol=1e-7)
    free = lp_norm(delta, norm) <= radius[:, 0] * (1 - 1e-5)
    assert torch.equal(inside[free], delta[free])
    out = lp_norm(delta, norm) > radius[:, 0]
    assert torch.allclose(length[out].float(), radius[out, 0], rtol=1e-4)
    # obtuse angle: (delta - p) . (z - p) <= 0 for every z of the ball
    other = project(torch.randn(delta.shape, generator=torch.Generator().manual_seed(seed)) * radius, radius, norm)
    product = ((delta - inside).double() * (other - inside).double()).sum(1)
    assert bool((product <= 1e-4 * (delta - inside).double().norm(dim=1) * radius[:, 0] + 1e-9).all())
    assert not bool(project(delta, 0 * radius, norm).any())


@settings(max_examples=40, deadline=None)
@given(seed=seeds, box=st.sampled_from(["both", "lower", "upper", "none"]))
def test_l1_projection_with_box_against_root_finding(seed: int, box: str) -> None:
    delta, radius = cases(seed)
    generator = torch.Generator().manual_seed(seed + 1)
    lower = -torch.rand(delta.shape, generator=generator) if box in ("both", "lower") else None
    upper = torch.rand(delta.shape, generator=generator) if box in ("both", "upper") else None
    if upper is not None:
        upper[:, ::5] = 0  # a value that stands at its bound
    moved = project_l1_box(delta, radius, lower, upper)
    low = torch.full_like(delta, -math.inf) if lower is None else lower
    high = torch.full_like(delta, math.inf) if upper is None else upper
    for row in range(len(delta)):
        x, a, b = delta[row].double(), low[row].double(), high[row].double()

        def shrunk(t: float, x: Tensor = x, a: Tensor = a, b: Tensor = b) -> Tensor:
            return (x.sign() * (x.abs() - t).clamp_min(0)).clamp(a, b)

        limit = float(radius[row])
        top = float(x.abs().max()) + 1
        excess = float(shrunk(0).abs().sum()) - limit
        t = 0.0 if excess <= 0 else brentq(lambda t, f=shrunk, c=limit: float(f(t).abs().sum()) - c, 0, top, xtol=1e-13)
        assert torch.allclose(moved[row].double(), shrunk(t), rtol=1e-4, atol=1e-5 * max(1, limit))
    assert bool((lp_norm(moved.double(), "l1") <= radius[:, 0].double() * (1 + 1e-6)).all())
    assert bool(((moved >= low) & (moved <= high)).all())


def test_l1_projection_of_images_with_bounds_that_broadcast() -> None:
    delta, radius = torch.randn(3, 2, 4, 4), torch.full((3, 1, 1, 1), 2.0)
    upper, lower = torch.full((3, 2, 4, 4), 0.2), torch.full((3, 2, 4, 4), -0.3)
    whole = project_l1_box(delta, radius, lower, upper)
    assert torch.allclose(project_l1_box(delta, radius, lower[:1], upper[:1]), whole)
    assert torch.allclose(project_l1_box(delta[1:2], radius[1:2], lower[:1], upper[:1]), whole[1:2], atol=1e-6)


@pytest.mark.parametrize(("norm", "dual"), [("linf", "l1"), ("l2", "l2")])
def test_steepest_reaches_the_dual_norm(norm: str, dual: str) -> None:
    gradient, _ = cases(3)
    step = steepest(gradient, norm)
    assert torch.allclose((step * gradient).sum(1), lp_norm(gradient, dual), rtol=1e-5)
    moved = gradient.any(1)
    assert torch.allclose(lp_norm(step, norm)[moved], torch.ones(int(moved.sum())), atol=1e-6)


@pytest.mark.parametrize(("sparsity", "count"), [(0.95, 5), (0.0, 100), (1.0, 1), (0.99, 1), (0.5, 50)])
def test_l1_step_is_spread_over_the_largest_coordinates(sparsity: float, count: int) -> None:
    gradient = torch.randn(3, 4, 25, generator=torch.Generator().manual_seed(0))
    step = steepest(gradient, "l1", sparsity)
    assert step.shape == gradient.shape
    assert torch.equal(lp_norm(step, "l0"), torch.full((3,), float(count)))
    assert torch.allclose(lp_norm(step, "l1"), torch.ones(3), atol=1e-5)
    chosen, size = step.flatten(1) != 0, gradient.flatten(1).abs()
    least = torch.where(chosen, size, math.inf).amin(1)
    assert bool((least >= torch.where(chosen, 0, size).amax(1)).all())
    assert bool((step * gradient >= 0).all())


@pytest.mark.parametrize(("norm", "power"), [("linf", 6), ("l2", 6), ("l1", 1)])
def test_random_points_of_the_ball(norm: str, power: int) -> None:
    like = torch.rand(2000, 3, 2, generator=torch.Generator().manual_seed(0))
    radius = torch.where(torch.arange(2000) < 1000, 0.5, 4.0).view(-1, 1, 1)
    points = random_in_ball(like, radius, norm, SampleRandom.of(like, 0))
    share = (lp_norm(points.double(), norm) / radius.flatten()).numpy()
    assert points.shape == like.shape
    assert share.max() <= 1 + 1e-6
    assert stats.kstest(share, lambda r: r.clip(0, 1) ** power).pvalue > 1e-4
    assert float((points / radius).mean()) == pytest.approx(0, abs=0.02)
    if norm == "linf":
        assert stats.kstest((points / radius).flatten().numpy(), stats.uniform(-1, 2).cdf).pvalue > 1e-4
    if norm == "l2":
        angle = torch.atan2(points[:, 0, 0], points[:, 0, 1]).numpy()
        assert stats.kstest(angle, stats.uniform(-math.pi, 2 * math.pi).cdf).pvalue > 1e-4


def test_few_steepest_moves_a_third_of_the_changed_values_that_have_room() -> None:
    gradient = torch.tensor([[4.0, -3.0, 2.0, 1.0, 0.5, 0.0, -0.1]]).expand(3, -1)
    move = torch.tensor([[1.0] * 6 + [0.0], [0.0] * 7, [1.0] * 7])
    movable = torch.ones_like(move, dtype=torch.bool)
    movable[:, 1] = False
    expected = [[0.5, 0, 0.5, 0, 0, 0, 0], [1.0, 0, 0, 0, 0, 0, 0], [0.5, 0, 0.5, 0, 0, 0, 0]]
    assert few_steepest(gradient, move, movable).tolist() == expected
    assert not bool(few_steepest(torch.zeros(1, 4), torch.ones(1, 4), torch.ones(1, 4).bool()).any())
