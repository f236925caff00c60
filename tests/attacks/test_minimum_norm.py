"""Minimum-norm attacks: their loop, DDN and FMN."""

from collections.abc import Callable

import pytest
import torch
from torch import Tensor, nn

from lit_modules.attacks import DDN, FAB, FABT, FMN, DeepFool
from lit_modules.attacks.minimum_norm import MinimumNormAttack

Make = Callable[..., MinimumNormAttack]
DUAL = {"linf": 1, "l2": 2, "l1": float("inf")}


def make(kind: type[MinimumNormAttack], norm: str) -> Make:
    def build(**arguments: object) -> MinimumNormAttack:
        named = {} if kind is DDN else {"norm": norm}
        return kind(**named, **arguments)  # type: ignore[call-arg]

    return build


CASES = [
    pytest.param(make(kind, norm), norm, id=f"{kind.__name__}-{norm}")
    for kind, norms in (
        (FAB, ("linf", "l2", "l1")),
        (FABT, ("linf", "l2", "l1")),
        (DDN, ("l2",)),
        (DeepFool, ("l2", "linf")),
        (FMN, ("l1", "l2", "linf")),
    )
    for norm in norms
]
WITH_L0 = [*CASES, pytest.param(make(FMN, "l0"), "l0", id="FMN-l0")]
each = pytest.mark.parametrize(("build", "norm"), CASES)
each_and_l0 = pytest.mark.parametrize(("build", "norm"), WITH_L0)


def linear(classes: int, d: int, seed: int = 0) -> nn.Linear:
    torch.manual_seed(seed)
    model = nn.Linear(d, classes)
    model.weight.data *= 10
    model.bias.data = -model.weight.data.sum(1) / 2  # boundaries meet in the middle of the box
    return model


def curved(seed: int = 1) -> nn.Module:
    torch.manual_seed(seed)
    model = nn.Sequential(nn.Flatten(), nn.Linear(48, 32), nn.Tanh(), nn.Linear(32, 5))
    for layer in (model[1], model[3]):
        layer.weight.data *= 4
    return model


def samples(n: int, *shape: int, seed: int = 0) -> Tensor:
    return torch.rand(n, *shape, generator=torch.Generator().manual_seed(seed))


def middle(n: int, d: int) -> Tensor:
    """Samples so close to the middle that the way to a boundary stays in the box, the ones nearest to it left out."""
    x = 0.5 + 0.06 * torch.randn(8 * n, d, generator=torch.Generator().manual_seed(3))
    return x[(x - 0.5).sum(1).abs().argsort()[-n:]]


def truth(model: nn.Linear, x: Tensor, norm: str) -> Tensor:
    """Distance of the nearest boundary of a linear model."""
    logits = model(x).double()
    label = logits.argmax(1)
    gaps = logits.gather(1, label[:, None]) - logits
    normals = model.weight.double()[label][:, None] - model.weight.double()
    distance = gaps / torch.linalg.vector_norm(normals, DUAL[norm], dim=2)
    return distance.scatter(1, label[:, None], float("inf")).amin(1).detach()


@each
def test_stop_radius_lets_samples_leave(build: Make, norm: str) -> None:
    """A sample within the radius costs less, and its result is within; the others are followed to the end."""
    model, x = curved(), samples(8, 3, 4, 4)
    full = build(steps=30).run(model, x)
    radius = float(full.distance.median()) * 1.05
    stopped = build(steps=30, stop_radius=radius).run(model, x)
    near = full.distance < radius
    assert (stopped.distance[near] <= radius).all()
    if build().leaves_when_fooled:
        return
    assert (stopped.num_queries[near] < full.num_queries[near]).any()
    torch.testing.assert_close(stopped.distance[~near], full.distance[~near], atol=1e-5, rtol=1e-4)


@each
def test_radius_of_an_ensemble_stops_each_sample_at_its_own(build: Make, norm: str) -> None:
    model, x = curved(), samples(4, 3, 4, 4)
    attack = build(steps=30)
    best = attack.run(model, x).distance.float()
    with attack.session(model):
        state = attack.prepare(model, x, None, None)
        state.eps = (best * torch.tensor([2.0, 0.5, 2.0, 0.5]))[:, None, None, None]
        outcome = attack.solve(state, torch.zeros(4, dtype=torch.bool))
    distance = -outcome.score
    within = distance <= state.radius.flatten()
    assert within.tolist() == [True, False, True, False]
    torch.testing.assert_close(distance[1::2], best[1::2], atol=1e-5, rtol=1e-4)


@each_and_l0
def test_one_pass_a_step(build: Make, norm: str) -> None:
    """The clean pass, one per step and target, one for the last iterate; a search costs one more than its steps."""
    model, x = curved(), samples(5, 3, 4, 4)
    attack = build(steps=6)
    result = attack.run(model, x)
    search = attack.search_steps + 1 if attack.search_steps else 0
    targets = 4 if isinstance(attack, FABT) else 1
    most = 1 + 7 * targets + search
    if attack.leaves_when_fooled:
        assert (result.num_queries <= most).all()
    else:
        assert set(result.num_queries.tolist()) <= {most, most - search}


def test_last_search_stops_a_thousandth_beyond() -> None:
    """A result that rounding could turn back would not be one."""
    model, x = linear(3, 10), middle(20, 10)
    result = DeepFool(overshoot=0.5, search_steps=3).run(model, x)
    ratio = result.distance / truth(model, x, "l2")
    assert ratio.min() > 1.0005
    assert ratio.max() < 1.002


def model_and_samples(n: int = 10) -> tuple[nn.Module, Tensor]:
    torch.manual_seed(2)
    model = nn.Sequential(nn.Flatten(), nn.Linear(48, 32), nn.Tanh(), nn.Linear(32, 6))
    for layer in (model[1], model[3]):
        layer.weight.data *= 4
    return model, torch.rand(n, 3, 4, 4)


def test_radius_grows_until_fooled_and_then_shrinks() -> None:
    """A boundary at distance 1.2: the radii are 1, 1.1 and so on, up to the first beyond it."""
    model = nn.Linear(2, 2)
    model.weight.data = torch.tensor([[1.0, 0.0], [-1.0, 0.0]])
    model.bias.data.zero_()
    seen: list[float] = []

    def watched(x: Tensor) -> Tensor:
        seen.append(float(x.detach()[0, 0]))
        return model(x)

    x = torch.tensor([[1.2, 0.0]])
    result = DDN(steps=6, gamma=0.1, bounds=None, search_steps=0).run(watched, x)
    moves = [1.2 - value for value in seen[2:]]
    assert moves == pytest.approx(
        [1.1, 1.21, 1.21 * 0.9, 1.21 * 0.99, 1.21 * 0.99 * 1.1, 1.21 * 0.99 * 1.1 * 0.9], abs=1e-5
    )
    assert float(result.distance) == pytest.approx(1.21, abs=1e-5)


def test_levels_are_kept() -> None:
    model, x = model_and_samples()
    for levels, bounds in ((256, (0.0, 1.0)), (5, (-1.0, 3.0))):
        result = DDN(steps=30, levels=levels, bounds=bounds).run(model, x)
        low, high = bounds
        steps = (result.adversarial - low) / (high - low) * (levels - 1)
        assert result.success.all()
        torch.testing.assert_close(steps, steps.round(), atol=1e-4, rtol=0)


def test_small_samples_need_a_small_first_norm() -> None:
    """The units of the samples do not matter where the first radius and the rate of steps fit: distances scale."""
    model, x = model_and_samples()
    scaled = nn.Sequential(nn.Flatten(), nn.Linear(48, 32), nn.Tanh(), nn.Linear(32, 6))
    scaled.load_state_dict(model.state_dict())
    scaled[1].weight.data /= 2
    first = DDN(search_steps=3).run(model, x).distance
    second = DDN(init_norm=2.0, bounds=(0.0, 2.0)).run(scaled, 2 * x).distance
    assert (second / first).median() == pytest.approx(2, rel=0.05)


def test_l0_count_of_a_linear_model_is_near_the_least() -> None:
    """The least number of values: those that gain most when they go to a bound, until the margin is used up."""
    torch.manual_seed(0)
    model, x = nn.Linear(40, 2), torch.rand(20, 40)
    logits = model(x)
    label = logits.argmax(1)
    slope = (model.weight[1 - label] - model.weight[label]).detach()
    gain = torch.where(slope > 0, slope * (1 - x), -slope * x).sort(1, descending=True).values.cumsum(1)
    margin = (logits.gather(1, label[:, None]) - logits.gather(1, 1 - label[:, None])).detach()
    least = (gain <= margin).sum(1) + 1
    result = FMN(norm="l0", steps=300).run(model, x)
    assert result.success.all()
    assert (result.distance >= least).all()
    assert result.distance.mean() <= 1.2 * least.double().mean()


def test_l2_crosses_curved_boundaries_beside_the_bounds() -> None:
    """Where the bounds cut the iterate short of its ball, the linearised distance alone ends below the boundary."""
    model, x = model_and_samples(24)
    result = FMN(norm="l2").run(model, x.round())
    assert result.success.all()


def test_l0_count_is_no_larger_than_that_of_foolbox() -> None:
    foolbox = pytest.importorskip("foolbox")
    model, x = model_and_samples(16)
    y = model(x).argmax(1)
    wrapped = foolbox.PyTorchModel(model.eval(), bounds=(0, 1), device="cpu")
    other, _, _ = foolbox.attacks.L0FMNAttack(steps=100)(wrapped, x, y, epsilons=None)
    ours, fooled = FMN(norm="l0").run(model, x, y), model(other).argmax(1) != y
    assert ours.success.all()
    assert ours.distance[fooled].median() <= 1.02 * (other - x).flatten(1).norm(0, dim=1)[fooled].median()
