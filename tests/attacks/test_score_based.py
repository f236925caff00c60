"""Attacks by queries: the estimated gradients, and the steps of SPSA, NES, Bandits and NAttack."""

from typing import Any

import pytest
import torch
from torch import Tensor, nn

from lit_modules.attacks import L2PGD, NES, SPSA, Attack, Bandits, GenAttack, LinfPGD, NAttack
from lit_modules.attacks.engine.random import SampleRandom
from lit_modules.attacks.score_based import estimate_gradient
from tests.attacks.helpers import Recorder, images, opposed

ATTACKS: dict[str, tuple[Any, dict[str, Any]]] = {
    "spsa": (SPSA, {"steps": 20, "step_size": 0.02, "directions": 32}),
    "nes-linf": (NES, {"norm": "linf", "steps": 20, "step_size": 0.02, "directions": 32}),
    "nes-l2": (NES, {"norm": "l2", "steps": 20, "step_size": 0.05, "directions": 32}),
    "bandits-linf": (Bandits, {"norm": "linf", "steps": 150, "step_size": 0.02, "exploration": 0.1}),
    "bandits-l2": (Bandits, {"norm": "l2", "steps": 150, "step_size": 0.05}),
    "nattack-linf": (NAttack, {"norm": "linf", "steps": 30, "step_size": 0.05, "samples": 40}),
    "nattack-l2": (NAttack, {"norm": "l2", "steps": 30, "step_size": 0.05, "samples": 40}),
    "nattack-tanh": (NAttack, {"norm": "linf", "steps": 30, "step_size": 0.1, "samples": 40, "transform": "tanh"}),
    "gen-linf": (GenAttack, {"norm": "linf", "steps": 40, "population": 30, "decay": 0.8}),
    "gen-l2": (GenAttack, {"norm": "l2", "steps": 40, "population": 30, "decay": 0.8}),
}
each = pytest.mark.parametrize("name", ATTACKS)
signs_or_normals = pytest.mark.parametrize("draw", ["sign", "normal"])  # SPSA and NES


def make(name: str, **arguments: Any) -> Attack:
    kind, strong = ATTACKS[name]
    return kind(**{**strong, **arguments})  # type: ignore[no-any-return]


def network(size: int = 24, hidden: int = 16, classes: int = 4, scale: float = 0.8, seed: int = 3) -> nn.Module:
    generator = torch.Generator().manual_seed(seed)
    model = nn.Sequential(nn.Flatten(), nn.Linear(size, hidden), nn.Softplus(), nn.Linear(hidden, classes))
    for parameter in model.parameters():
        parameter.data = torch.randn(parameter.shape, generator=generator) * scale
    return model


def samples(count: int, *shape: int) -> Tensor:
    return images(count, *shape) * 0.8 + 0.1


def estimate(values: Any, x: Tensor, draw: str, directions: int) -> Tensor:
    directions_of = getattr(SampleRandom.of(x, 0), draw)
    return estimate_gradient(values, x, directions_of, directions=directions, fd_step=0.1, max_batch=10**6)


@signs_or_normals
def test_estimates_a_linear_function(draw: str) -> None:
    x, slope = samples(3, 5), torch.tensor([1.0, -2.0, 0.5, 0.0, 3.0])
    torch.testing.assert_close(estimate(lambda p: p @ slope, x, draw, 3000), slope.expand(3, 5), atol=0.3, rtol=0)


@signs_or_normals
def test_each_sample_has_its_own_directions(draw: str) -> None:
    """One direction for the whole batch would make the estimates of a linear function equal up to sign."""
    directions = nn.functional.normalize(estimate(lambda p: p @ torch.arange(1.0, 33.0), samples(6, 32), draw, 1))
    assert ((directions @ directions.T).abs() - torch.eye(6)).max() < 0.99


@each
def test_points_are_within_the_bounds_and_the_result_is_one_of_them(name: str) -> None:
    model = network()
    recorder = Recorder(lambda x: model(x.detach()).detach())  # hides its gradient
    result = make(name, eps=1.0 if "l2" in name else 0.3).run(recorder, samples(6, 2, 3, 4))
    assert result.success.sum() >= 4
    points = torch.cat(recorder.asked)
    assert points.min() >= 0
    assert points.max() <= 1
    for adversarial in result.adversarial:
        assert (points == adversarial).flatten(1).all(1).any()


@each
def test_chunks_do_not_change_a_result(name: str) -> None:
    model, x = network(), samples(5, 2, 3, 4)
    whole, small = (make(name, eps=0.15, steps=6, max_batch=size)(model, x) for size in (256, 4))
    torch.testing.assert_close(small, whole, atol=1e-4, rtol=0)


@each
def test_failure_is_the_best_attempt(name: str) -> None:
    model, x = opposed(torch.ones(12), 100.0), samples(4, 12)
    result = make(name, eps=0.2).run(model, x, torch.zeros(4, dtype=torch.int64))
    assert not result.success.any()
    assert (model(result.adversarial)[:, 0] < model(x)[:, 0]).all()


@each
def test_fooled_samples_leave(name: str) -> None:
    x = torch.full((3, 12), 0.5)
    x[1], x[2] = 0.95, 0.3  # far from the boundary, and misclassified from the start
    result = make(name, eps=0.1).run(opposed(torch.ones(12), -5.9), x, torch.zeros(3, dtype=torch.int64))
    assert result.success.tolist() == [True, False, True]
    assert result.already.tolist() == [False, False, True]
    assert torch.equal(result.adversarial[2], x[2])
    assert result.num_queries[0] < result.num_queries[1]
    assert result.num_queries[2] == 1


@pytest.mark.parametrize("name", ["spsa", "nattack-l2"])
def test_constant_model_warns(name: str) -> None:
    with pytest.warns(UserWarning, match="does not change around any of the 2 samples"):
        assert not make(name, eps=0.1, steps=2).run(opposed(torch.zeros(12), 1.0), samples(2, 12)).success.any()


@pytest.mark.parametrize(
    ("attack", "cost"),
    [
        (SPSA(eps=0.01, steps=3, directions=5), 3 * (2 * 5 + 1)),
        (NES(eps=0.01, steps=3, directions=5), 3 * (2 * 5 + 1)),
        (Bandits(eps=0.1, steps=7), 3 * 7),
        (NAttack(eps=0.01, steps=3, samples=5), 3 * (5 + 1)),
        (GenAttack(eps=0.01, steps=3, population=6), 6 + 3 * 5),  # the elite is not asked about again
    ],
)
def test_cost(attack: Attack, cost: int) -> None:
    result = attack.run(opposed(torch.ones(4), 100.0), torch.full((2, 4), 0.5))
    assert result.num_queries.tolist() == [1 + cost] * 2


def test_first_step_of_spsa_moves_by_the_step_size() -> None:
    """Adam's first step is the sign of the estimate; one sign vector alone gives every coordinate the same size."""
    x = torch.full((3, 6), 0.5) + torch.arange(3)[:, None] * 0.01
    moved = SPSA(eps=0.3, steps=1, step_size=0.01, directions=1)(opposed(torch.arange(1.0, 7)), x) - x
    torch.testing.assert_close(moved.abs(), torch.full((3, 6), 0.01), atol=1e-5, rtol=0)


@pytest.mark.parametrize(("kind", "norm"), [(SPSA, "linf"), (NES, "linf"), (NES, "l2")])
def test_as_strong_as_pgd_where_the_gradient_is_known(kind: Any, norm: str) -> None:
    model, x = network(10, 8, 3, scale=1.0, seed=2), images(20, 10, seed=0) * 0.4 + 0.3
    eps, pgd = (0.1, LinfPGD) if norm == "linf" else (0.3, L2PGD)
    truth = pgd(eps=eps, steps=30, step_size=eps / 10).run(model, x).success
    named = {"norm": norm} if kind is NES else {}
    success = kind(eps=eps, steps=30, step_size=eps / 10, directions=32, **named).run(model, x).success
    assert 3 < truth.sum() < 20
    assert (truth != success).sum() <= 1


def test_nes_steps_by_the_sign_or_along_the_gradient() -> None:
    weight, x = torch.arange(1.0, 6), torch.full((2, 5), 0.5) + torch.tensor([[0.0], [0.1]])
    moved = NES(eps=0.3, steps=2, step_size=0.05, directions=2000)(opposed(weight, 100.0), x) - x
    torch.testing.assert_close(moved, torch.full((2, 5), -0.1), atol=1e-6, rtol=0)
    moved = NES(norm="l2", eps=0.3, steps=1, step_size=0.2, directions=4000)(opposed(weight, 100.0), x) - x
    torch.testing.assert_close(moved[0], -0.2 * weight / weight.norm(), atol=0.01, rtol=0)


def halves(channels: int, height: int, width: int, margin: float = 100.0, steepness: float = 1.0) -> Any:
    """A linear model whose slope is constant on the left and on the right half, and that slope."""
    slope = torch.ones(channels, height, width)
    slope[:, :, width // 2 :] = -1
    return nn.Sequential(nn.Flatten(), opposed(slope.flatten() * steepness, margin)), slope


def test_guess_of_bandits_finds_the_gradient_and_tiles_help() -> None:
    model, slope = halves(1, 12, 12)
    x = images(4, 1, 12, 12, seed=0) * 0.2 + 0.4

    def agreement(tile: int | None) -> float:
        attack = Bandits(eps=0.3, steps=60, step_size=0.01, exploration=0.1, tile=tile)
        return float(((attack(model, x) - x).sign() == -slope).double().mean())

    tiled, plain = agreement(6), agreement(None)
    assert tiled > 0.95
    assert 0.6 < plain < tiled


def test_guess_of_bandits_goes_on_learning_in_linf() -> None:
    """With the default exploration; a short one is lost beside a guess that a steep loss has made long."""
    model, slope = halves(1, 12, 12, steepness=20.0, margin=1e6)
    x = images(4, 1, 12, 12, seed=0) * 0.2 + 0.4

    def agreement(**arguments: float) -> float:
        attack = Bandits(eps=0.3, steps=120, step_size=0.01, **arguments)  # type: ignore[arg-type]
        return float(((attack(model, x) - x).sign() == -slope).double().mean())

    assert agreement() > agreement(exploration=0.01) + 0.1
    assert agreement(exploration=1.0) == agreement()


def test_tiles_are_constant_and_may_overhang() -> None:
    """A 5 x 7 image has 3 x 3 tiles of side 3; within a tile all pixels move alike."""
    x = torch.full((2, 2, 5, 7), 0.5)
    x[1] += 0.01
    moved = Bandits(norm="l2", eps=1.0, steps=5, step_size=0.2, tile=3)(halves(2, 5, 7)[0], x) - x
    for rows in (slice(0, 3), slice(3, 5)):
        for columns in (slice(0, 3), slice(3, 6), slice(6, 7)):
            tile = moved[:, :, rows, columns].flatten(2)
            torch.testing.assert_close(tile, tile[:, :, :1].expand_as(tile), atol=1e-5, rtol=0)
    assert moved.flatten(2).std(2).min() > 0
    with pytest.raises(ValueError, match=r"Tiles are squares of an image.*got \(2, 12\); pass tile=None"):
        Bandits(tile=2)(nn.Linear(12, 2), torch.full((2, 12), 0.5))


def test_linf_guess_of_bandits_stays_a_probability() -> None:
    """A steep loss drives the exponentiated guess to its ends, not to infinity."""
    model, _ = halves(1, 4, 4, margin=1e7, steepness=1e4)
    result = Bandits(eps=0.1, steps=10, exploration=1.0).run(model, torch.full((1, 1, 4, 4), 0.5))
    assert torch.isfinite(result.adversarial).all()
    assert result.distance[0] > 0.01


@pytest.mark.parametrize("transform", ["identity", "tanh"])
def test_mean_of_nattack_moves_against_the_margin_whatever_its_scale(transform: Any) -> None:
    x = torch.full((2, 6), 0.5)
    x[1] += 0.1
    model, steep = opposed(torch.ones(6), 100.0), opposed(torch.ones(6) * 64, 6400.0)
    attack = NAttack(eps=0.2, steps=30, step_size=0.1, transform=transform)
    assert (attack(model, x) - x <= -0.15).all()
    attack = NAttack(eps=0.2, steps=3, transform=transform)
    torch.testing.assert_close(attack(model, x), attack(steep, x), atol=1e-3, rtol=0)


def test_tanh_holds_samples_at_the_bounds() -> None:
    """The inverse is finite at the bounds, and such coordinates hardly move; without the transform they do."""
    x, model = torch.tensor([[0.0, 1.0, 0.5, 0.5]]), opposed(torch.tensor([-1.0, 1, 1, 1]), 100.0)
    still = (NAttack(eps=0.2, steps=20, step_size=0.1, transform="tanh")(model, x) - x).abs()
    assert still[0, :2].max() < 0.01
    assert still[0, 2:].min() > 0.1
    assert (NAttack(eps=0.2, steps=20, step_size=0.1)(model, x) - x).abs().min() > 0.1
    bounds = torch.tensor([0.0, 1.0, 0.0, 0.0]), torch.tensor([0.0, 1.0, 1.0, 1.0])  # two may not move at all
    adversarial = NAttack(eps=0.2, steps=3, transform="tanh", bounds=bounds)(model, x)
    assert adversarial[0, :2].tolist() == [0.0, 1.0]
    assert torch.isfinite(adversarial).all()


def test_a_draw_of_nattack_that_fools_ends_the_search() -> None:
    model, x = opposed(torch.ones(6), -2.95), torch.full((1, 6), 0.5)
    result = NAttack(eps=0.2, steps=10, samples=20).run(model, x, torch.tensor([0]))
    assert result.success.all()
    assert result.num_queries[0] <= 1 + 20 + 1
