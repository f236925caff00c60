"""The estimates themselves, and what holds for every attack that asks the model for answers only."""

import math
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from lit_modules.attacks.engine.base import Attack
from lit_modules.attacks.engine.random import SampleRandom
from lit_modules.attacks.gen_attack import GenAttack
from lit_modules.attacks.score_based import (
    NES,
    SPSA,
    Bandits,
    NAttack,
    chunks,
    estimate_gradient,
    weighted_sum,
)

DRAWS = ["sign", "normal"]  # SPSA and NES
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


@pytest.mark.parametrize("draw", DRAWS)
def test_estimates_a_linear_function(draw: str) -> None:
    x, slope = samples(3, 5), torch.tensor([1.0, -2.0, 0.5, 0.0, 3.0])
    directions = getattr(SampleRandom.of(x, 0), draw)
    found = estimate_gradient(lambda p: p @ slope, x, directions, directions=3000, fd_step=0.1, max_batch=10**6)
    torch.testing.assert_close(found, slope.expand(3, 5), atol=0.3, rtol=0)


@pytest.mark.parametrize("draw", DRAWS)
def test_estimates_do_not_depend_on_batch_order_or_chunks(draw: str) -> None:
    x = samples(4, 2, 3)

    def values(points: Tensor) -> Tensor:
        return (points**2).sum((2, 3)).sin()

    def run(part: Tensor, max_batch: int) -> Tensor:
        directions = getattr(SampleRandom.of(part, 0), draw)
        return estimate_gradient(values, part, directions, directions=10, fd_step=0.05, max_batch=max_batch)

    whole = run(x, 1000)
    torch.testing.assert_close(run(x, 1), whole, atol=1e-5, rtol=1e-4)
    torch.testing.assert_close(run(x, 24), whole, atol=1e-5, rtol=1e-4)
    torch.testing.assert_close(run(x[[2]], 7), whole[[2]], atol=1e-5, rtol=1e-4)
    torch.testing.assert_close(run(x.flip(0), 1000), whole.flip(0), atol=1e-5, rtol=1e-4)


@pytest.mark.parametrize("draw", DRAWS)
def test_each_sample_has_its_own_directions(draw: str) -> None:
    """One direction for the whole batch would make the estimates of a linear function equal up to sign."""
    x = samples(6, 32)
    slope = torch.arange(1.0, 33.0)
    directions = getattr(SampleRandom.of(x, 0), draw)
    found = estimate_gradient(lambda p: p @ slope, x, directions, directions=1, fd_step=0.1, max_batch=100)
    directions = found / found.norm(dim=1, keepdim=True)
    likeness = (directions @ directions.T).abs() - torch.eye(6)
    assert likeness.max() < 0.99


def test_chunks_cover_all_versions() -> None:
    assert list(chunks(10, 12, 3)) == [4, 4, 2]
    assert list(chunks(3, 1, 5)) == [1, 1, 1]


def test_weighted_sum() -> None:
    directions = torch.randn(2, 3, 4, 5)
    weights = torch.randn(3, 2)
    torch.testing.assert_close(weighted_sum(weights, directions), torch.einsum("vb,bvij->bij", weights, directions))


@pytest.mark.parametrize("name", NAMES)
def test_points_are_within_the_bounds_and_the_result_is_one_of_them(name: str) -> None:
    model, x = network((2, 3, 4)), samples(6, 2, 3, 4)
    recorder = Recorder(model)
    result = make(name, eps=1.0 if "l2" in name else 0.3).run(recorder, x)
    assert result.success.sum() >= 4
    asked = torch.cat(recorder.asked)
    assert asked.min() >= 0
    assert asked.max() <= 1
    assert int(result.num_queries.sum()) == len(asked)
    for adversarial in result.adversarial:  # each is a point that the model was asked about
        assert (asked == adversarial).flatten(1).all(1).any()


@pytest.mark.parametrize("name", NAMES)
def test_chunks_do_not_change_a_result(name: str) -> None:
    model, x = network((2, 3, 4)), samples(5, 2, 3, 4)
    whole, small = (make(name, eps=0.15, steps=6, max_batch=size)(model, x) for size in (256, 4))
    torch.testing.assert_close(small, whole, atol=1e-4, rtol=0)


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


@pytest.mark.parametrize("name", ["spsa", "nattack-l2", "gen-l2"])
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
