"""Minimum-norm attacks: their loop, DDN and FMN."""

from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from lit_modules.attacks import ALMA, DDN, FAB, FABT, FMN, PDGD, PDPGD, DeepFool, SigmaZero, TrustRegion
from lit_modules.attacks.minimum_norm import MinimumNormAttack
from tests.attacks.helpers import Recorder, curved, images, opposed

Make = Callable[..., MinimumNormAttack]
STARTS: tuple[Any, ...] = ("sample", "outside")


def make(kind: Any, norm: str) -> Make:
    return lambda **arguments: kind(**({} if kind in (DDN, PDGD, SigmaZero) else {"norm": norm}), **arguments)


CASES = [
    pytest.param(make(kind, norm), id=f"{kind.__name__}-{norm}")
    for kind, norms in (
        (FAB, ("linf", "l2", "l1")),
        (FABT, ("linf", "l2", "l1")),
        (DDN, ("l2",)),
        (DeepFool, ("l2", "linf")),
        (FMN, ("l1", "l2", "linf")),
        (ALMA, ("l1", "l2")),
        (PDGD, ("l2",)),
        (PDPGD, ("l1", "l2", "linf")),
        (TrustRegion, ("l2", "linf")),
    )
    for norm in norms
]
each = pytest.mark.parametrize("build", CASES)


@each
def test_stop_radius_lets_samples_leave(build: Make) -> None:
    """A sample within the radius costs less, and its result is within; the others are followed to the end."""
    model, x = curved(5, seed=1), images(8, 3, 4, 4, seed=0)
    full = build(steps=30).run(model, x)
    radius = float(full.distance.median()) * 1.05
    stopped = build(steps=30, stop_radius=radius).run(model, x)
    near = full.distance < radius
    assert (stopped.distance[near] <= radius).all()
    if not build().leaves_when_fooled:
        assert (stopped.num_queries[near] < full.num_queries[near]).any()
        torch.testing.assert_close(stopped.distance[~near], full.distance[~near], atol=1e-5, rtol=1e-4)


@pytest.mark.parametrize(
    "build", [*CASES, *(pytest.param(make(kind, "l0"), id=f"{kind.__name__}-l0") for kind in (FMN, PDPGD, SigmaZero))]
)
def test_one_pass_a_step(build: Make) -> None:
    """The clean pass, one per step and target, one for the last iterate; a search costs one more than its steps."""
    attack = build(steps=6)
    result = attack.run(curved(5, seed=1), images(5, 3, 4, 4, seed=0))
    search = attack.search_steps + 1 if attack.search_steps else 0
    most = 1 + 7 * (4 if isinstance(attack, FABT) else 1) + search
    if attack.leaves_when_fooled:
        assert (result.num_queries <= most).all()
    else:
        assert set(result.num_queries.tolist()) <= {most, most - search}


def test_last_search_stops_a_thousandth_beyond() -> None:
    """A result that rounding could turn back would not be one."""
    weight, x = torch.linspace(-1, 1, 10), images(20, 10) * 0.1 + 0.45
    result = DeepFool(overshoot=0.5, search_steps=3).run(opposed(weight, 0.1), x)
    ratio = result.distance / ((x @ weight + 0.1).abs() / weight.norm())
    assert ratio.min() > 1.0005
    assert ratio.max() < 1.002


def test_radius_of_ddn_grows_until_fooled_and_then_shrinks() -> None:
    """A boundary at distance 1.2: the radii are 1, 1.1 and so on, up to the first beyond it."""
    model = Recorder(opposed(torch.tensor([1.0, 0.0])))
    result = DDN(steps=6, gamma=0.1, bounds=None, search_steps=0).run(model, torch.tensor([[1.2, 0.0]]))
    moves = [1.2 - float(point[0, 0]) for point in model.asked[2:]]
    radii = [1.1, 1.21, 1.21 * 0.9, 1.21 * 0.99, 1.21 * 0.99 * 1.1, 1.21 * 0.99 * 1.1 * 0.9]
    assert moves == pytest.approx(radii, abs=1e-5)
    assert float(result.distance) == pytest.approx(1.21, abs=1e-5)


def test_radius_of_fmn_begins_beyond_the_linearised_boundary() -> None:
    model = Recorder(opposed(torch.tensor([1.0, 0.0])))
    FMN(norm="l2", steps=2, start="sample", step_size=9.0, gamma=0.1, bounds=None)(model, torch.tensor([[1.2, 0.0]]))
    moves = [1.2 - float(point[0, 0]) for point in model.asked[2:]]
    assert moves[0] == pytest.approx(1.2 * 1.05, rel=1e-4)  # half of gamma goes on top
    assert moves[1] < 1.2 * 1.05  # it fooled, so the ball shrinks


@pytest.mark.parametrize(("levels", "low", "high"), [(256, 0.0, 1.0), (5, -1.0, 3.0)])
def test_levels_of_ddn_are_kept(levels: int, low: float, high: float) -> None:
    result = DDN(steps=30, levels=levels, bounds=(low, high)).run(curved(), images(10, 3, 4, 4, seed=2))
    steps = (result.adversarial - low) / (high - low) * (levels - 1)
    assert result.success.all()
    torch.testing.assert_close(steps, steps.round(), atol=1e-4, rtol=0)


def test_l0_count_of_a_linear_model_is_near_the_least() -> None:
    """The least number of values: those that gain most when they go to a bound, until the margin is used up."""
    torch.manual_seed(0)
    model, x = nn.Linear(40, 2), torch.rand(20, 40)
    logits, label = model(x), model(x).argmax(1)
    slope = (model.weight[1 - label] - model.weight[label]).detach()
    gain = torch.where(slope > 0, slope * (1 - x), -slope * x).sort(1, descending=True).values.cumsum(1)
    margin = (logits.gather(1, label[:, None]) - logits.gather(1, 1 - label[:, None])).detach()
    least = (gain <= margin).sum(1) + 1
    result = FMN(norm="l0", start="sample", steps=300).run(model, x)
    assert result.success.all()
    assert (result.distance >= least).all()
    assert result.distance.mean() <= 1.2 * least.double().mean()


@pytest.mark.parametrize(
    "attack",
    [FMN(norm="l2", start="sample"), FMN(norm="l2"), DeepFool(norm="l2"), DeepFool(norm="linf")],
    ids=str,
)
def test_curved_boundaries_beside_the_bounds_are_crossed(attack: Any) -> None:
    """Every value stands at a bound; clipped moves, or the linearised distance alone, end short of the boundary."""
    assert attack.run(curved(), images(24, 3, 4, 4).round()).success.all()


def test_l0_count_is_no_larger_than_that_of_foolbox() -> None:
    foolbox = pytest.importorskip("foolbox")
    model, x = curved().eval(), images(16, 3, 4, 4)
    y = model(x).argmax(1)
    wrapped = foolbox.PyTorchModel(model, bounds=(0, 1), device="cpu")
    other, _, _ = foolbox.attacks.L0FMNAttack(steps=100)(wrapped, x, y, epsilons=None)
    ours, fooled = FMN(norm="l0", start="sample").run(model, x, y), model(other).argmax(1) != y
    assert ours.success.all()
    assert FMN(norm="l0").run(model, x, y).distance.median() <= ours.distance.median()
    assert ours.distance[fooled].median() <= 1.02 * (other - x).flatten(1).norm(0, dim=1)[fooled].median()


class Plain(nn.Module):
    """Two classes, flat for changes of less than 0.3 of each value; beyond, the sum of the values decides."""

    def forward(self, x: Tensor) -> Tensor:
        moved = (x - 0.5).abs()
        total = ((moved - 0.3).clamp_min(0) + 1e-4 * moved).flatten(1).sum(1) - 0.5
        return torch.stack([-total, total], 1)


@pytest.mark.parametrize("norm", ["l0", "l1", "l2", "linf"])
def test_start_outside_crosses_a_plain(norm: Any) -> None:
    """Along the gradient in L2 the steps of the published start end on the plain."""
    x = 0.5 + 0.01 * (images(8, 20, seed=5) - 0.5)
    model = Plain()
    inside, outside = (FMN(norm=norm, steps=60, start=start).run(model, x) for start in STARTS)
    assert outside.success.all()
    assert (outside.distance <= 1.02 * inside.distance).all()
    most = {"l0": 4, "l1": 1.5, "l2": 1.46, "linf": 0.33}[norm]
    assert float(outside.distance.median()) <= most


def test_samples_turn_after_as_many_steps_as_they_took() -> None:
    """A boundary at 0.25 is crossed by the third step of 0.1; four more go out, then comes the nearest one."""
    model = Recorder(opposed(torch.tensor([1.0, 0.0]), -0.7))
    FMN(norm="linf", steps=40)(model, torch.tensor([[0.95, 0.5]]))
    moves = [0.95 - float(point[0, 0]) for point in model.asked[1:]]
    assert moves[:8] == pytest.approx([0.0, 0.1, 0.2, 0.3, 0.4, 0.5, 0.6, 0.7], abs=1e-6)
    assert moves[8] == pytest.approx(0.3, abs=1e-5)


def test_trust_radius_follows_the_prediction() -> None:
    """A linear model is predicted exactly, so the radius grows by ``growth`` each step; without adapting it stays."""
    model = Recorder(opposed(torch.tensor([1.0, 0.0])))
    TrustRegion(steps=9, radius=0.1, growth=2.0, bounds=None)(model, torch.tensor([[1.2, 0.0]]))
    moves = [1.2 - float(point[0, 0]) for point in model.asked[1:6]]
    assert moves[:5] == pytest.approx([0.0, 0.1, 0.3, 0.7, 1.5], abs=1e-5)
    model.asked.clear()
    TrustRegion(steps=20, radius=0.1, adaptive=False, bounds=None)(model, torch.tensor([[1.2, 0.0]]))
    assert [1.2 - float(point[0, 0]) for point in model.asked[1:4]] == pytest.approx([0.0, 0.1, 0.2], abs=1e-5)
