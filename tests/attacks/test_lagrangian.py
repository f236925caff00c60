"""Attacks on a Lagrangian: their plain functions, and steps worked by hand."""

from typing import Any

import pytest
import torch

from lit_modules.attacks import ALMA, FMN, PDGD, PDPGD
from lit_modules.attacks.engine.norms import lp_norm
from lit_modules.attacks.lagrangian import penalty_slope, scaled_margin, shrink
from tests.attacks.helpers import Recorder, curved, images, opposed

STEEP = torch.tensor([4.0, 0.0, 0.0])


def test_penalty_slope_is_the_derivative() -> None:
    constraint = torch.linspace(-3, 3, 13, dtype=torch.float64, requires_grad=True)
    penalty, multiplier = torch.tensor(0.7).double(), torch.tensor(1.9).double()
    broken = multiplier * constraint + multiplier * penalty * constraint**2 + penalty**2 * constraint**3 / 6
    met = multiplier * constraint / (1 - penalty * constraint.clamp_max(0))
    (slope,) = torch.autograd.grad(torch.where(constraint >= 0, broken, met).sum(), constraint)
    torch.testing.assert_close(penalty_slope(constraint.detach(), penalty, multiplier), slope)
    assert penalty_slope(torch.zeros(1), torch.ones(1), torch.tensor([2.0])).tolist() == [2.0]


def test_scaled_margin_does_not_see_the_scale_of_the_logits() -> None:
    logits, label = torch.tensor([[3.0, 1.0, 0.0, -2.0]]), torch.tensor([0])
    assert float(scaled_margin(logits, label)) == pytest.approx(-2 / 3)
    assert float(scaled_margin(100 * logits + 5, label)) == pytest.approx(-2 / 3)
    assert float(scaled_margin(logits[:, :2], label)) == -2


@pytest.mark.parametrize("norm", ["l0", "l1", "l2", "linf"])
def test_shrink_is_the_minimum(norm: str) -> None:
    torch.manual_seed(0)
    move, weight = torch.randn(5, 8, dtype=torch.float64), torch.full((5, 1), 0.4, dtype=torch.float64)
    best = shrink(move, weight, norm)

    def cost(z: torch.Tensor) -> torch.Tensor:
        return (z - move).square().sum(1) / 2 + weight[:, 0] * lp_norm(z, norm)

    others = best + 0.1 * torch.randn(2000, 5, 8, dtype=torch.float64)
    others = torch.where(torch.rand(2000, 5, 8) < 0.5, best, others)  # so that zeros stay zeros
    assert bool((torch.stack([cost(z) for z in others]) >= cost(best) - 1e-9).all())


def test_shrink_by_hand() -> None:
    move, one = torch.tensor([[3.0, -4.0, 0.5]]), torch.ones(1, 1)
    assert shrink(move, one, "l1").tolist() == [[2.0, -3.0, 0.0]]
    assert shrink(move, one, "l0").tolist() == [[3.0, -4.0, 0.0]]
    torch.testing.assert_close(shrink(move, one, "linf"), torch.tensor([[3.0, -3.0, 0.5]]))
    torch.testing.assert_close(shrink(move, one, "l2"), move * (1 - 1 / move.norm()))


def test_first_step_of_alma_is_the_step_size() -> None:
    """At the sample the gradient is that of the penalty alone; over its size it is a sign, a tenth by the momentum."""
    model = Recorder(opposed(STEEP))
    attack = ALMA(steps=3, start="sample", step_size=0.2, momentum=0.9, bounds=None)
    attack(model, torch.tensor([[1.0, 0.5, 0.5]]))
    torch.testing.assert_close(model.asked[2], torch.tensor([[1.0 - 0.02, 0.5, 0.5]]))


def test_penalty_of_alma_grows_only_while_nothing_fools_and_nothing_is_gained() -> None:
    """A model whose margin hardly changes: the factor grows at each look but the first."""
    factors = []

    class Watched(ALMA):
        def step(self, active: Any, at: Any, step: int, carry: Any) -> Any:
            x = super().step(active, at, step, carry)
            factors.append(float(carry["penalty"]))
            return x

    flat = opposed(torch.tensor([1e-3, 0.0]), 5.0)
    Watched(steps=7, start="sample", penalty_every=2, penalty_growth=2.0, bounds=None)(flat, torch.rand(1, 2))
    assert factors == [1, 1, 2, 2, 4, 4, 8]
    factors.clear()
    Watched(steps=7, start="outside", penalty_every=2, bounds=None)(opposed(STEEP), torch.tensor([[0.05, 0.5, 0.5]]))
    assert factors == [1.0] * 7


@pytest.mark.parametrize("kind", [PDGD, PDPGD])
def test_weight_of_the_norm_follows_success(kind: Any) -> None:
    weights, fooled = [], []

    class Watched(kind):  # type: ignore[misc]
        def step(self, active: Any, at: Any, step: int, carry: Any) -> Any:
            x = super().step(active, at, step, carry)
            weights.append(float(carry["weight"]))
            fooled.append(bool(at.fooled))
            return x

    attack = Watched(steps=30, start="sample", dual_rate=0.3, final_dual_share=1.0, dual_average=0.0, weight=0.5)
    attack(opposed(STEEP, -1.0), torch.tensor([[0.5, 0.5, 0.5]]))
    assert set(fooled) == {False, True}
    expected = 0.5
    for weight, hit in zip(weights, fooled, strict=True):
        expected *= 2.718281828**0.3 if hit else 2.718281828**-0.3
        assert weight == pytest.approx(expected, rel=1e-4)


@pytest.mark.parametrize(
    "attack",
    [ALMA(norm="l2"), ALMA(norm="l1"), PDGD(), *(PDPGD(norm=norm) for norm in ("l1", "l2", "linf"))],  # type: ignore[arg-type]
    ids=str,
)
@pytest.mark.parametrize("targeted", [False, True])
def test_near_the_smallest_known(attack: Any, targeted: bool) -> None:
    """On curved boundaries the median is within a fifth of FMN's with ten times as many steps, and all are fooled."""
    model, x = curved(5, seed=1), images(24, 3, 4, 4, seed=0)
    y = model(x).topk(2).indices[:, 1] if targeted else model(x).argmax(1)
    attack.targeted = targeted
    result = attack.run(model, x, y)
    best = FMN(norm=attack.norm, steps=1000, targeted=targeted).run(model, x, y)
    assert result.success.all()
    assert float((result.distance / best.distance).median()) <= 1.2
