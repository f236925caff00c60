"""Attacks by queries: the estimated gradients, and the steps of SPSA, NES, Bandits and NAttack."""

import math
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from lit_modules.attacks import L2PGD, NES, SPSA, Attack, Bandits, GenAttack, LinfPGD, NAttack
from lit_modules.attacks.engine.random import SampleRandom
from lit_modules.attacks.engine.state import chunks
from lit_modules.attacks.score_based import estimate_gradient, weighted_sum

DRAWS = ["sign", "normal"]  # SPSA and NES
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


def linear(size: int) -> nn.Module:
    model = nn.Linear(size, 2, bias=False)
    model.weight.data = torch.stack([torch.arange(1.0, size + 1), -torch.arange(1.0, size + 1)])
    return model


def test_first_step_moves_by_the_step_size() -> None:
    """Adam's first step is the sign of the estimate; one sign vector alone gives every coordinate the same size."""
    x = torch.full((3, 6), 0.5) + torch.arange(3)[:, None] * 0.01
    adversarial = SPSA(eps=0.3, steps=1, step_size=0.01, directions=1)(linear(6), x)
    torch.testing.assert_close((adversarial - x).abs(), torch.full((3, 6), 0.01), atol=1e-5, rtol=0)


def test_as_strong_as_pgd_where_the_gradient_is_known() -> None:
    x = torch.rand(20, 10, generator=torch.Generator().manual_seed(0)) * 0.4 + 0.3
    model = nn.Sequential(nn.Linear(10, 8), nn.Softplus(), nn.Linear(8, 3))
    generator = torch.Generator().manual_seed(2)
    for parameter in model.parameters():
        parameter.data = torch.randn(parameter.shape, generator=generator)
    pgd = LinfPGD(eps=0.1, steps=30, step_size=0.01).run(model, x).success
    spsa = SPSA(eps=0.1, steps=30, directions=32).run(model, x).success
    assert 3 < pgd.sum() < 20
    assert (pgd != spsa).sum() <= 1


def test_model_that_hides_its_gradient() -> None:
    """An attack that asks for answers only needs no gradient."""

    class Detached(nn.Module):
        def forward(self, x: Tensor) -> Tensor:
            return torch.stack([x.detach().sum(1) - 2.9, 2.9 - x.detach().sum(1)], 1)

    x = torch.full((2, 6), 0.5)
    assert SPSA(eps=0.1, steps=10, directions=8).run(Detached(), x).success.all()


def test_cost() -> None:
    model = linear(6)
    result = SPSA(eps=0.01, steps=3, directions=5).run(model, torch.full((2, 6), 0.5))
    assert result.num_queries.tolist() == [1 + 3 * (2 * 5 + 1)] * 2


def strong_margin(size: int) -> nn.Module:
    model = nn.Linear(size, 2)
    model.weight.data = torch.stack([torch.arange(1.0, size + 1), -torch.arange(1.0, size + 1)])
    model.bias.data = torch.tensor([100.0, -100.0])
    return model


def test_linf_step_is_the_sign() -> None:
    x = torch.full((2, 5), 0.5)
    x[1] += 0.1
    moved = NES(eps=0.3, steps=2, step_size=0.05, directions=2000)(strong_margin(5), x) - x
    torch.testing.assert_close(moved, torch.full((2, 5), -0.1), atol=1e-6, rtol=0)


def test_l2_step_goes_along_the_gradient() -> None:
    x = torch.full((1, 5), 0.5)
    moved = NES(norm="l2", eps=0.3, steps=1, step_size=0.2, directions=4000)(strong_margin(5), x) - x
    expected = -0.2 * torch.arange(1.0, 6.0) / torch.arange(1.0, 6.0).norm()
    torch.testing.assert_close(moved[0], expected, atol=0.01, rtol=0)


@pytest.mark.parametrize("norm", ["linf", "l2"])
def test_as_strong_as_pgd_where_the_gradient_is_known_of_nes(norm: str) -> None:
    x = torch.rand(20, 10, generator=torch.Generator().manual_seed(0)) * 0.4 + 0.3
    model = nn.Sequential(nn.Linear(10, 8), nn.Softplus(), nn.Linear(8, 3))
    generator = torch.Generator().manual_seed(2)
    for parameter in model.parameters():
        parameter.data = torch.randn(parameter.shape, generator=generator)
    eps, step = (0.1, 0.01) if norm == "linf" else (0.3, 0.03)
    pgd = (LinfPGD if norm == "linf" else L2PGD)(eps=eps, steps=30, step_size=step).run(model, x).success
    nes = NES(norm=norm, eps=eps, steps=30, step_size=step, directions=32).run(model, x).success  # type: ignore[arg-type]
    assert 3 < pgd.sum() < 20
    assert (pgd != nes).sum() <= 1


def test_cost_of_nes() -> None:
    result = NES(eps=0.01, steps=3, directions=5).run(strong_margin(4), torch.full((2, 4), 0.5))
    assert result.num_queries.tolist() == [1 + 3 * (2 * 5 + 1)] * 2


def image_model(channels: int, height: int, width: int, margin: float = 100.0) -> tuple[nn.Module, torch.Tensor]:
    """A linear model whose slope is constant on the left and on the right half."""
    slope = torch.ones(channels, height, width)
    slope[:, :, width // 2 :] = -1
    model = nn.Sequential(nn.Flatten(), nn.Linear(slope.numel(), 2))
    model[1].weight.data = torch.stack([slope.flatten(), -slope.flatten()])
    model[1].bias.data = torch.tensor([margin, -margin])
    return model, slope


def agreement(tile: int | None, steps: int = 60) -> float:
    model, slope = image_model(1, 12, 12)
    x = torch.rand(4, 1, 12, 12, generator=torch.Generator().manual_seed(0)) * 0.2 + 0.4
    attack = Bandits(eps=0.3, steps=steps, step_size=0.01, exploration=0.1, tile=tile)
    return float(((attack(model, x) - x).sign() == -slope).double().mean())


def test_guess_finds_the_gradient_and_tiles_help() -> None:
    tiled, plain = agreement(6), agreement(None)
    assert tiled > 0.95
    assert 0.6 < plain < tiled


def test_tiles_are_constant_and_may_overhang() -> None:
    """A 5 x 7 image has 3 x 3 tiles of side 3; within a tile all pixels move alike."""
    model, _ = image_model(2, 5, 7)
    x = torch.full((2, 2, 5, 7), 0.5)
    x[1] += 0.01
    moved = Bandits(norm="l2", eps=1.0, steps=5, step_size=0.2, tile=3)(model, x) - x
    for rows in (slice(0, 3), slice(3, 5)):
        for columns in (slice(0, 3), slice(3, 6), slice(6, 7)):
            tile = moved[:, :, rows, columns].flatten(2)
            torch.testing.assert_close(tile, tile[:, :, :1].expand_as(tile), atol=1e-5, rtol=0)
    assert moved.flatten(2).std(2).min() > 0


def test_linf_guess_stays_a_probability() -> None:
    """A steep loss drives the exponentiated guess to its ends, not to infinity."""
    model, _ = image_model(1, 4, 4, margin=1e7)
    model[1].weight.data *= 1e4
    x = torch.full((1, 1, 4, 4), 0.5)
    result = Bandits(eps=0.1, steps=10, exploration=1.0).run(model, x)
    assert torch.isfinite(result.adversarial).all()
    assert result.distance[0] > 0.01


def test_cost_is_three_passes_a_step() -> None:
    model, _ = image_model(1, 4, 4)
    result = Bandits(eps=0.1, steps=7).run(model, torch.full((2, 1, 4, 4), 0.5))
    assert result.num_queries.tolist() == [1 + 3 * 7] * 2


def test_tiles_need_images() -> None:
    with pytest.raises(ValueError, match=r"Tiles are squares of an image.*got \(2, 12\); pass tile=None"):
        Bandits(tile=2)(nn.Linear(12, 2), torch.full((2, 12), 0.5))
    with pytest.raises(ValueError, match="tile must be an integer of at least 1, got 0"):
        Bandits(tile=0)


def strong_margin_nattack(size: int) -> nn.Module:
    model = nn.Linear(size, 2)
    model.weight.data = torch.stack([torch.ones(size), -torch.ones(size)])
    model.bias.data = torch.tensor([100.0, -100.0])
    return model


@pytest.mark.parametrize("transform", ["identity", "tanh"])
def test_mean_moves_against_the_margin(transform: str) -> None:
    x = torch.full((2, 6), 0.5)
    x[1] += 0.1
    attack = NAttack(eps=0.2, steps=30, step_size=0.1, transform=transform)  # type: ignore[arg-type]
    moved = attack(strong_margin_nattack(6), x) - x
    assert (moved <= -0.15).all()


def test_scale_of_the_loss_does_not_matter() -> None:
    """The losses are standardised."""
    x = torch.full((2, 6), 0.5)
    small = strong_margin_nattack(6)
    large = nn.Linear(6, 2)
    large.weight.data, large.bias.data = small.weight.data * 64, small.bias.data * 64
    attack = NAttack(eps=0.2, steps=3)
    torch.testing.assert_close(attack(small, x), attack(large, x), atol=1e-3, rtol=0)


def test_tanh_holds_samples_at_the_bounds() -> None:
    """The inverse is finite at the bounds, and such coordinates hardly move; without the transform they do."""
    x = torch.tensor([[0.0, 1.0, 0.5, 0.5]])
    model = nn.Linear(4, 2)
    model.weight.data = torch.tensor([[-1.0, 1.0, 1.0, 1.0], [1.0, -1.0, -1.0, -1.0]])
    model.bias.data = torch.tensor([100.0, -100.0])
    still = (NAttack(eps=0.2, steps=20, step_size=0.1, transform="tanh")(model, x) - x).abs()
    assert still[0, :2].max() < 0.01
    assert still[0, 2:].min() > 0.1
    assert (NAttack(eps=0.2, steps=20, step_size=0.1)(model, x) - x).abs().min() > 0.1


def test_bounds_without_width() -> None:
    """A pixel that may not move at all makes no NaN."""
    x = torch.full((1, 4), 0.5)
    lower, upper = torch.tensor([0.5, 0.0, 0.0, 0.0]), torch.tensor([0.5, 1.0, 1.0, 1.0])
    adversarial = NAttack(eps=0.2, steps=3, transform="tanh", bounds=(lower, upper))(strong_margin_nattack(4), x)
    assert adversarial[0, 0] == 0.5
    assert torch.isfinite(adversarial).all()


def test_a_draw_that_fools_ends_the_search() -> None:
    model = strong_margin_nattack(6)
    model.bias.data = torch.tensor([-2.95, 2.95])
    result = NAttack(eps=0.2, steps=10, samples=20).run(model, torch.full((1, 6), 0.5), torch.tensor([0]))
    assert result.success.all()
    assert result.num_queries[0] <= 1 + 20 + 1


def test_cost_of_nattack() -> None:
    result = NAttack(eps=0.01, steps=3, samples=5).run(strong_margin_nattack(4), torch.full((2, 4), 0.5))
    assert result.num_queries.tolist() == [1 + 3 * (5 + 1)] * 2
