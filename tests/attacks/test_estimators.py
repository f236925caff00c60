"""The estimates themselves, and what holds for every attack that asks the model for answers only."""

import math
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from lit_modules.attacks.engine.base import Attack
from lit_modules.attacks.engine.norms import lp_norm
from lit_modules.attacks.engine.random import SampleRandom
from lit_modules.attacks.gen_attack import GenAttack
from lit_modules.attacks.score_based import (
    NES,
    SPSA,
    Bandits,
    NAttack,
    chunks,
    nes_gradient,
    spsa_gradient,
    weighted_sum,
)

ESTIMATES = [spsa_gradient, nes_gradient]
# name: class, fixed arguments, arguments that make it strong on the small models here
ATTACKS: dict[str, tuple[Any, dict[str, Any], dict[str, Any]]] = {
    "spsa": (SPSA, {}, {"steps": 20, "step_size": 0.02, "directions": 32}),
    "nes-linf": (NES, {"norm": "linf"}, {"steps": 20, "step_size": 0.02, "directions": 32}),
    "nes-l2": (NES, {"norm": "l2"}, {"steps": 20, "step_size": 0.05, "directions": 32}),
    "bandits-linf": (Bandits, {"norm": "linf"}, {"steps": 150, "step_size": 0.02, "exploration": 0.1}),
    "bandits-l2": (Bandits, {"norm": "l2"}, {"steps": 150, "step_size": 0.05}),
    "nattack-linf": (NAttack, {"norm": "linf"}, {"steps": 30, "step_size": 0.05, "samples": 40}),
    "nattack-l2": (NAttack, {"norm": "l2"}, {"steps": 30, "step_size": 0.05, "samples": 40}),
    "nattack-tanh": (NAttack, {"norm": "linf", "transform": "tanh"}, {"steps": 30, "step_size": 0.1, "samples": 40}),
    "gen-linf": (GenAttack, {"norm": "linf"}, {"steps": 40, "population": 30, "decay": 0.8}),
    "gen-l2": (GenAttack, {"norm": "l2"}, {"steps": 40, "population": 30, "decay": 0.8}),
}
NAMES = list(ATTACKS)


def make(name: str, **arguments: Any) -> Attack:
    kind, fixed, strong = ATTACKS[name]
    return kind(**{**fixed, **strong, **arguments})


class Recorder(nn.Module):
    """A model that keeps what it was asked."""

    def __init__(self, model: nn.Module) -> None:
        super().__init__()
        self.model = model
        self.asked: list[Tensor] = []

    def forward(self, x: Tensor) -> Tensor:
        assert not torch.is_grad_enabled()
        self.asked.append(x.clone())
        return self.model(x)


def network(shape: tuple[int, ...], classes: int = 4) -> nn.Module:
    generator = torch.Generator().manual_seed(3)
    model = nn.Sequential(nn.Flatten(), nn.Linear(math.prod(shape), 16), nn.Tanh(), nn.Linear(16, classes))
    for parameter in model.parameters():
        parameter.data = torch.randn(parameter.shape, generator=generator) * 0.8
    return model


def samples(count: int, *shape: int) -> Tensor:
    return torch.rand(count, *shape, generator=torch.Generator().manual_seed(1)) * 0.8 + 0.1


@pytest.mark.parametrize("estimate", ESTIMATES)
def test_estimates_a_linear_function(estimate: Callable[..., Tensor]) -> None:
    x, slope = samples(3, 5), torch.tensor([1.0, -2.0, 0.5, 0.0, 3.0])
    found = estimate(lambda p: p @ slope, x, SampleRandom.of(x, 0), directions=3000, fd_step=0.1, max_batch=10**6)
    torch.testing.assert_close(found, slope.expand(3, 5), atol=0.3, rtol=0)


@pytest.mark.parametrize("estimate", ESTIMATES)
def test_estimates_do_not_depend_on_batch_order_or_chunks(estimate: Callable[..., Tensor]) -> None:
    x = samples(4, 2, 3)

    def values(points: Tensor) -> Tensor:
        return (points**2).sum((2, 3)).sin()

    def run(part: Tensor, max_batch: int) -> Tensor:
        random = SampleRandom.of(part, 0)
        return estimate(values, part, random, directions=10, fd_step=0.05, max_batch=max_batch)

    whole = run(x, 1000)
    torch.testing.assert_close(run(x, 1), whole, atol=1e-5, rtol=1e-4)
    torch.testing.assert_close(run(x, 24), whole, atol=1e-5, rtol=1e-4)
    torch.testing.assert_close(run(x[[2]], 7), whole[[2]], atol=1e-5, rtol=1e-4)
    torch.testing.assert_close(run(x.flip(0), 1000), whole.flip(0), atol=1e-5, rtol=1e-4)


@pytest.mark.parametrize("estimate", ESTIMATES)
def test_each_sample_has_its_own_directions(estimate: Callable[..., Tensor]) -> None:
    """One direction for the whole batch would make the estimates of a linear function equal up to sign."""
    x = samples(6, 32)
    slope = torch.arange(1.0, 33.0)
    found = estimate(lambda p: p @ slope, x, SampleRandom.of(x, 0), directions=1, fd_step=0.1, max_batch=100)
    directions = found / found.norm(dim=1, keepdim=True)
    likeness = (directions @ directions.T).abs() - torch.eye(6)
    assert likeness.max() < 0.99


def test_keeps_float64() -> None:
    x = samples(2, 3).double()
    found = nes_gradient(lambda p: p.sum(2), x, SampleRandom.of(x, 0), directions=3, fd_step=1e-6, max_batch=4)
    assert found.dtype == torch.float64


def test_chunks_cover_all_versions() -> None:
    assert list(chunks(10, 12, 3)) == [4, 4, 2]
    assert list(chunks(3, 1, 5)) == [1, 1, 1]


def test_weighted_sum() -> None:
    directions = torch.randn(2, 3, 4, 5)
    weights = torch.randn(3, 2)
    torch.testing.assert_close(weighted_sum(weights, directions), torch.einsum("vb,bvij->bij", weights, directions))


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize("shape", [(12,), (2, 3, 4)])
def test_attack(name: str, shape: tuple[int, ...]) -> None:
    model, x = network(shape), samples(6, *shape)
    recorder = Recorder(model)
    before, eps = x.clone(), 1.0 if "l2" in name else 0.3
    attack = make(name, eps=eps)
    result = attack.run(recorder, x)
    assert torch.equal(x, before)
    assert all(p.grad is None for p in model.parameters())
    assert attack.norm is not None
    assert (lp_norm(result.adversarial - x, attack.norm) <= eps + 1e-5).all()
    assert result.adversarial.min() >= 0
    assert result.adversarial.max() <= 1
    label = model(x).argmax(1)
    assert torch.equal(model(result.adversarial).argmax(1) != label, result.success)
    assert result.success.sum() >= 4
    asked = torch.cat(recorder.asked)
    assert asked.min() >= 0
    assert asked.max() <= 1
    assert int(result.num_queries.sum()) == len(asked)
    for adversarial in result.adversarial:  # each is a point that the model was asked about
        assert (asked == adversarial).flatten(1).all(1).any()


@pytest.mark.parametrize("name", NAMES)
def test_neither_batch_nor_order_changes_a_result(name: str) -> None:
    model, x = network((2, 3, 4)), samples(5, 2, 3, 4)
    attack = make(name, eps=0.15, steps=6)
    whole = attack(model, x)
    order = torch.tensor([3, 0, 4, 2, 1])
    torch.testing.assert_close(attack(model, x[order]), whole[order], atol=1e-4, rtol=0)
    torch.testing.assert_close(attack(model, x[2:3]), whole[2:3], atol=1e-4, rtol=0)
    small = make(name, eps=0.15, steps=6, max_batch=4)
    torch.testing.assert_close(small(model, x), whole, atol=1e-4, rtol=0)
    state = torch.random.get_rng_state()
    attack(model, x)
    assert torch.equal(torch.random.get_rng_state(), state)


@pytest.mark.parametrize("name", NAMES)
def test_seed(name: str) -> None:
    model, x = network((12,)), samples(4, 12)
    attack = make(name, eps=0.02, steps=3)
    assert torch.equal(attack(model, x, seed=1), attack(model, x, seed=1))
    assert not torch.equal(attack(model, x, seed=1), attack(model, x, seed=2))


@pytest.mark.parametrize("name", NAMES)
def test_eps_of_each_sample(name: str) -> None:
    """Each sample keeps to its own radius, and gets what it gets alone."""
    model, x = network((12,)), samples(4, 12)
    eps = torch.tensor([0.0, 0.02, 0.1, 0.05])
    attack = make(name, eps=eps, steps=5)
    result = attack.run(model, x)
    assert (result.distance <= eps + 1e-6).all()
    assert not result.success[0]
    assert result.distance[3] > 0.02 or result.success[3]
    for i in range(4):
        alone = make(name, eps=float(eps[i]), steps=5)(model, x[i : i + 1])
        torch.testing.assert_close(alone, result.adversarial[i : i + 1], atol=1e-4, rtol=0)


@pytest.mark.parametrize("name", NAMES)
def test_integer_eps(name: str) -> None:
    model, x = network((12,)), samples(3, 12)
    assert make(name, eps=1, steps=3).run(model, x).distance.max() <= 1 + 1e-6


@pytest.mark.parametrize("name", NAMES)
def test_targeted(name: str) -> None:
    generator = torch.Generator().manual_seed(5)
    model, x = nn.Linear(12, 4), samples(6, 12)
    model.weight.data = torch.randn(4, 12, generator=generator)
    target = model(x).topk(2).indices[:, 1]
    eps = 1.0 if "l2" in name else 0.3
    result = make(name, eps=eps, targeted=True).run(model, x, target)
    assert torch.equal(model(result.adversarial).argmax(1) == target, result.success)
    assert result.success.sum() >= 4


@pytest.mark.parametrize("name", NAMES)
def test_failure_is_the_best_attempt(name: str) -> None:
    """Nothing fools this model, but the margin can be narrowed."""
    model = nn.Linear(12, 2)
    model.weight.data = torch.stack([torch.ones(12), -torch.ones(12)])
    model.bias.data = torch.tensor([100.0, -100.0])
    x = samples(4, 12)
    result = make(name, eps=0.2).run(model, x, torch.zeros(4, dtype=torch.int64))
    assert not result.success.any()
    assert (model(result.adversarial)[:, 0] < model(x)[:, 0]).all()


@pytest.mark.parametrize("name", NAMES)
def test_fooled_samples_leave(name: str) -> None:
    model = nn.Linear(12, 2)
    model.weight.data = torch.stack([torch.ones(12), -torch.ones(12)])
    model.bias.data = torch.tensor([-5.9, 5.9])
    x = torch.full((3, 12), 0.5)
    x[1], x[2] = 0.95, 0.3  # far from the boundary, and misclassified from the start
    result = make(name, eps=0.1).run(model, x, torch.zeros(3, dtype=torch.int64))
    assert result.success.tolist() == [True, False, True]
    assert result.already.tolist() == [False, False, True]
    assert torch.equal(result.adversarial[2], x[2])
    assert result.num_queries[0] < result.num_queries[1]
    assert result.num_queries[2] == 1


@pytest.mark.parametrize("name", NAMES)
def test_bounds_of_each_pixel(name: str) -> None:
    model, x = network((12,)), samples(3, 12)
    lower, upper = x.amin(0) - 0.02, x.amax(0) + 0.01
    result = make(name, eps=0.3, steps=5, bounds=(lower, upper)).run(model, x)
    assert ((result.adversarial >= lower - 1e-6) & (result.adversarial <= upper + 1e-6)).all()


@pytest.mark.parametrize("name", ["spsa", "nes-linf", "bandits-linf", "nattack-linf", "gen-linf"])
def test_closed_form_of_the_gaussian_pair(name: str) -> None:
    """Robust accuracy is Phi((m - eps) sqrt(d) / s) for the sum of a Gaussian pair; linf attacks must reach it."""
    d, m, s, eps, count = 8, 0.12, 0.2, 0.06, 300
    generator = torch.Generator().manual_seed(0)
    label = torch.randint(2, (count,), generator=generator)
    x = (2 * label[:, None] - 1) * m + s * torch.randn(count, d, generator=generator)
    model = nn.Linear(d, 2, bias=False)
    model.weight.data = torch.stack([-torch.ones(d), torch.ones(d)])
    extra = {"sigma": 0.03} if name.startswith("nattack") else {}
    attack = make(name, eps=eps, bounds=None, **extra)
    robust = 1 - attack.run(model, x, label).success.double().mean()
    expected = 0.5 * (1 + math.erf((m - eps) * math.sqrt(d) / s / math.sqrt(2)))
    width = 2.6 * math.sqrt(expected * (1 - expected) / count)
    assert abs(float(robust) - expected) < width
    margin = (model(x)[torch.arange(count), label] - model(x)[torch.arange(count), 1 - label]).detach()
    exact = (margin > 2 * eps * d).double().mean()  # the same samples under the exact attack
    assert float(exact) <= float(robust) + 1e-9
    assert float(robust) <= float(exact) + 0.01


@pytest.mark.parametrize("name", NAMES)
def test_constant_model(name: str) -> None:
    model = nn.Linear(12, 2)
    model.weight.data.zero_()
    model.bias.data = torch.tensor([2.0, 0.0])
    x = samples(2, 12)
    attack = make(name, eps=0.1, steps=2)
    if name.startswith("gen"):
        assert not attack.run(model, x).success.any()
    else:
        with pytest.warns(UserWarning, match="does not change around any of the 2 samples"):
            assert not attack.run(model, x).success.any()


@pytest.mark.parametrize("name", NAMES)
def test_bad_arguments(name: str) -> None:
    with pytest.raises(ValueError, match="eps must be finite and at least 0, got -1"):
        make(name, eps=-1)
    with pytest.raises(ValueError, match="steps must be an integer of at least 1, got 0"):
        make(name, steps=0)
    with pytest.raises(ValueError, match="max_batch must be an integer of at least 1, got 0"):
        make(name, max_batch=0)
    with pytest.raises(ValueError, match="loss must be one of"):
        make(name, loss="hinge")
    with pytest.raises(ValueError, match="eps has 3 values for a batch of 2"):
        make(name, eps=torch.ones(3))(network((12,)), samples(2, 12))
    if name != "spsa":
        with pytest.raises(ValueError, match="norm must be 'linf' or 'l2', got 'l1'"):
            make(name, norm="l1")


@pytest.mark.parametrize("name", NAMES)
def test_loss_that_averages_is_refused(name: str) -> None:
    with pytest.raises(ValueError, match="value per sample"):
        make(name, loss=nn.functional.cross_entropy)(network((12,)), samples(3, 12))
