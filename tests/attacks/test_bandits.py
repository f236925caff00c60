"""Bandits: the guess of the gradient and its tiles."""

import pytest
import torch
from torch import nn

from lit_modules.attacks.score_based import Bandits


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
