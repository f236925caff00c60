"""Minimum-norm attacks: their loop, DDN and FMN."""

from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import nn

from lit_modules.attacks import DDN, FAB, FABT, FMN, DeepFool
from lit_modules.attacks.minimum_norm import MinimumNormAttack
from tests.attacks.helpers import Recorder, curved, images, opposed

Make = Callable[..., MinimumNormAttack]


def make(kind: Any, norm: str) -> Make:
    return lambda **arguments: kind(**({} if kind is DDN else {"norm": norm}), **arguments)


CASES = [
    pytest.param(make(kind, norm), id=f"{kind.__name__}-{norm}")
    for kind, norms in (
        (FAB, ("linf", "l2", "l1")),
        (FABT, ("linf", "l2", "l1")),
        (DDN, ("l2",)),
        (DeepFool, ("l2", "linf")),
        (FMN, ("l1", "l2", "linf")),
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


@each
def test_radius_of_an_ensemble_stops_each_sample_at_its_own(build: Make) -> None:
    model, x = curved(5, seed=1), images(4, 3, 4, 4, seed=0)
    attack = build(steps=30)
    best = attack.run(model, x).distance.float()
    with attack.session(model):
        state = attack.prepare(model, x, None, None)
        state.eps = (best * torch.tensor([2.0, 0.5, 2.0, 0.5]))[:, None, None, None]
        distance = -attack.solve(state, torch.zeros(4, dtype=torch.bool)).score
    assert (distance <= state.radius.flatten()).tolist() == [True, False, True, False]
    torch.testing.assert_close(distance[1::2], best[1::2], atol=1e-5, rtol=1e-4)


@pytest.mark.parametrize("build", [*CASES, pytest.param(make(FMN, "l0"), id="FMN-l0")])
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


@pytest.mark.parametrize(("levels", "low", "high"), [(256, 0.0, 1.0), (5, -1.0, 3.0)])
def test_levels_of_ddn_are_kept(levels: int, low: float, high: float) -> None:
    result = DDN(steps=30, levels=levels, bounds=(low, high)).run(curved(), images(10, 3, 4, 4, seed=2))
    steps = (result.adversarial - low) / (high - low) * (levels - 1)
    assert result.success.all()
    torch.testing.assert_close(steps, steps.round(), atol=1e-4, rtol=0)


def test_small_samples_need_a_small_first_norm() -> None:
    """The units of the samples do not matter where the first radius and the rate of steps fit: distances scale."""
    model, scaled, x = curved(), curved(), images(10, 3, 4, 4)
    scaled[1].weight.data /= 2  # type: ignore[index]
    first = DDN(search_steps=3).run(model, x).distance
    second = DDN(init_norm=2.0, bounds=(0.0, 2.0)).run(scaled, 2 * x).distance
    assert (second / first).median() == pytest.approx(2, rel=0.05)


def test_l0_count_of_a_linear_model_is_near_the_least() -> None:
    """The least number of values: those that gain most when they go to a bound, until the margin is used up."""
    torch.manual_seed(0)
    model, x = nn.Linear(40, 2), torch.rand(20, 40)
    logits, label = model(x), model(x).argmax(1)
    slope = (model.weight[1 - label] - model.weight[label]).detach()
    gain = torch.where(slope > 0, slope * (1 - x), -slope * x).sort(1, descending=True).values.cumsum(1)
    margin = (logits.gather(1, label[:, None]) - logits.gather(1, 1 - label[:, None])).detach()
    least = (gain <= margin).sum(1) + 1
    result = FMN(norm="l0", steps=300).run(model, x)
    assert result.success.all()
    assert (result.distance >= least).all()
    assert result.distance.mean() <= 1.2 * least.double().mean()


@pytest.mark.parametrize("attack", [FMN(norm="l2"), DeepFool(norm="l2"), DeepFool(norm="linf")], ids=str)
def test_curved_boundaries_beside_the_bounds_are_crossed(attack: Any) -> None:
    """Every value stands at a bound; clipped moves, or the linearised distance alone, end short of the boundary."""
    assert attack.run(curved(), images(24, 3, 4, 4).round()).success.all()


def test_l0_count_is_no_larger_than_that_of_foolbox() -> None:
    foolbox = pytest.importorskip("foolbox")
    model, x = curved().eval(), images(16, 3, 4, 4)
    y = model(x).argmax(1)
    wrapped = foolbox.PyTorchModel(model, bounds=(0, 1), device="cpu")
    other, _, _ = foolbox.attacks.L0FMNAttack(steps=100)(wrapped, x, y, epsilons=None)
    ours, fooled = FMN(norm="l0").run(model, x, y), model(other).argmax(1) != y
    assert ours.success.all()
    assert ours.distance[fooled].median() <= 1.02 * (other - x).flatten(1).norm(0, dim=1)[fooled].median()
