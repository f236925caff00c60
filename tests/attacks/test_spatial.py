"""Flows, rotations and translations of images."""

from typing import Any

import pytest
import torch
from torch import Tensor, nn

from lit_modules.attacks import RotationTranslation, SpatialTransform
from lit_modules.attacks.spatial import flow_variation, move, warp


class TwoPlaces(nn.Module):
    """Compares the light in the left half with that in the right half."""

    def forward(self, x: Tensor) -> Tensor:
        left, right = x.chunk(2, dim=3)
        return torch.stack([left.mean((1, 2, 3)), right.mean((1, 2, 3))], 1) * 10


def blobs(count: int = 4, height: int = 6, width: int = 8) -> Tensor:
    """Soft bright columns just left of the middle, of various strengths."""
    profile = torch.exp(-((torch.arange(width) - width / 2 + 0.7) ** 2) / 4)
    return torch.linspace(0.5, 1, count)[:, None, None, None] * profile.expand(count, 1, height, width)


def test_moves_the_light_over_the_middle() -> None:
    x = blobs()
    before = x.clone()
    result = SpatialTransform(step_size=0.1).run(TwoPlaces(), x)
    assert bool(result.success.all())
    assert torch.equal(x, before)
    assert torch.equal(TwoPlaces()(result.adversarial).argmax(1), torch.ones(4, dtype=torch.int64))
    assert float(result.adversarial.min()) >= 0
    assert float(result.adversarial.max()) <= 1


def test_smaller_flows_win_with_more_search() -> None:
    def variation(steps: int) -> Tensor:
        attack = SpatialTransform(search_steps=steps, step_size=0.1, smoothness=1e-3)
        state = attack.prepare(TwoPlaces(), blobs(), None, 0)
        return -attack.attack(state).score

    assert bool((variation(4) <= variation(1) + 1e-6).all())
    assert bool((variation(4) < variation(1)).any())


def test_confidence_is_reached() -> None:
    x = blobs()
    logits = TwoPlaces()(SpatialTransform(confidence=0.3, step_size=0.1)(TwoPlaces(), x))
    assert bool((logits[:, 1] - logits[:, 0] >= 0.3 - 1e-5).all())


def test_warp_counts_in_pixels() -> None:
    x = torch.rand(2, 3, 5, 8)
    zero = torch.zeros(2, 2, 5, 8)
    assert torch.allclose(warp(x, zero), x, atol=1e-5)
    right = zero.clone()
    right[:, 1] = 1
    assert torch.allclose(warp(x, right)[..., :-1], x[..., 1:], atol=1e-5)
    assert torch.allclose(warp(x, right)[..., -1], x[..., -1], atol=1e-5)
    assert torch.allclose(warp(x, right, "zeros")[..., -1], torch.zeros(()), atol=1e-5)
    half = zero.clone()
    half[:, 0] = 0.5
    assert torch.allclose(warp(x, half)[:, :, :-1], (x[:, :, 1:] + x[:, :, :-1]) / 2, atol=1e-5)
    assert torch.allclose(warp(x[:, :, :1], torch.zeros(2, 2, 1, 8)), x[:, :, :1], atol=1e-5)


def test_variation_counts_each_pair_once() -> None:
    flow = torch.zeros(1, 2, 3, 4)
    assert float(flow_variation(flow)) == pytest.approx(0, abs=1e-6)
    flow[0, :, 1, 1] = torch.tensor([3.0, 4.0])
    assert float(flow_variation(flow)) == pytest.approx(20, rel=1e-3)
    assert float(flow_variation(flow + 7)) == pytest.approx(20, rel=1e-3)


def test_refuses_vectors() -> None:
    with pytest.raises(ValueError, match=r"SpatialTransform moves pixels: x must be .*, got \(2, 4\)"):
        SpatialTransform()(nn.Linear(4, 2), torch.rand(2, 4))


class Corner(nn.Module):
    """Says 1 once there is light in the top left pixel."""

    def forward(self, x: Tensor) -> Tensor:
        light = x[:, 0, 0, 0]
        return torch.stack([torch.full_like(light, 0.5), light], 1) * 4


class Steady(nn.Module):
    """Always says 0, with a score that falls with the light in a pixel."""

    def forward(self, x: Tensor) -> Tensor:
        return torch.stack([5 - x[:, 0, 1, 1], torch.zeros(len(x), device=x.device)], 1)


def linear(classes: int = 3) -> nn.Module:
    torch.manual_seed(0)
    return nn.Sequential(nn.Flatten(), nn.Linear(48, classes))


def test_move_shifts_by_whole_pixels() -> None:
    x = torch.rand(2, 3, 5, 8)
    moved = move(x, torch.tensor([[0.0, 1.0, 2.0], [0.0, 0.0, 0.0]]))
    assert torch.allclose(moved[0, :, 1:, 2:], x[0, :, :-1, :-2], atol=1e-5)
    assert float(moved[0, :, 0].abs().max()) < 1e-5
    assert torch.allclose(moved[1], x[1], atol=1e-5)
    border = move(x, torch.tensor([[0.0, 1.0, 0.0]] * 2), "border")
    assert torch.allclose(border[:, :, 0], x[:, :, 0], atol=1e-5)


def test_move_turns_anticlockwise() -> None:
    x = torch.rand(1, 1, 6, 6)
    assert torch.allclose(move(x, torch.tensor([[90.0, 0.0, 0.0]])), x.rot90(1, (2, 3)), atol=1e-5)
    wide = torch.rand(1, 1, 4, 9)
    assert torch.allclose(move(wide, torch.tensor([[180.0, 0.0, 0.0]])), wide.rot90(2, (2, 3)), atol=1e-5)


def test_move_against_torchvision() -> None:
    functional = pytest.importorskip("torchvision.transforms.functional")
    x = torch.rand(1, 3, 10, 14)
    expected = functional.affine(
        x, angle=-20.0, translate=[2, 1], scale=1.0, shear=[0.0], interpolation=functional.InterpolationMode.BILINEAR
    )
    assert torch.allclose(move(x, torch.tensor([[20.0, 1.0, 2.0]])), expected, atol=1e-3)


@pytest.mark.parametrize("search", ["grid", "random"])
def test_finds_the_corner(search: Any) -> None:
    x = torch.zeros(3, 1, 6, 6)
    x[:, :, 1, 1] = 1
    attack = RotationTranslation(search=search, max_rotation=0, max_translation=2, samples=100, rotations=1)
    result = attack.run(Corner(), x)
    assert bool(result.success.all())
    assert torch.equal(Corner()(result.adversarial).argmax(1), torch.ones(3, dtype=torch.int64))


def test_grid_has_all_movements_but_none() -> None:
    attack = RotationTranslation(rotations=3, translations=3, max_rotation=30, max_translation=2, bounds=None)
    state = attack.prepare(Steady(), torch.rand(2, 1, 4, 4), None, 0)
    moves = attack.moves(state)
    assert moves.shape == (26, 1, 3)
    assert len(moves.unique(dim=0)) == 26
    assert moves.abs().amax((0, 1)).tolist() == [30.0, 2.0, 2.0]
    result = RotationTranslation(rotations=3, translations=3).run(Steady(), torch.rand(2, 1, 4, 4))
    assert result.num_queries.tolist() == [27, 27]


def test_failures_return_the_worst_image_seen() -> None:
    x = torch.rand(4, 1, 5, 5)
    result = RotationTranslation(rotations=3, translations=3, max_translation=1).run(Steady(), x)
    assert not bool(result.success.any())
    assert bool((result.adversarial[:, 0, 1, 1] >= x[:, 0, 1, 1]).all())
    bright = torch.zeros(1, 1, 5, 5)
    bright[:, :, 1, 1] = 1
    assert torch.equal(RotationTranslation(rotations=1).run(Steady(), bright).adversarial, bright)


def test_first_leaves_early_and_best_is_at_least_as_strong() -> None:
    model, x = linear(), torch.rand(8, 1, 6, 8)
    attack = RotationTranslation(rotations=5, translations=3, max_batch=16)
    first = attack.run(model, x)
    best = RotationTranslation(rotations=5, translations=3, keep="best").run(model, x)
    assert torch.equal(first.success, best.success)
    assert bool(best.success.any())
    label = model(x).argmax(1)
    loss = nn.CrossEntropyLoss(reduction="none")
    assert bool((loss(model(best.adversarial), label) >= loss(model(first.adversarial), label) - 1e-5).all())
    assert bool((first.num_queries <= best.num_queries).all())
    assert torch.equal(best.num_queries, torch.full((8,), 45))
    assert torch.equal(model(first.adversarial).argmax(1) != label, first.success)


@pytest.mark.parametrize("search", ["grid", "random"])
def test_batch_order_and_chunks_do_not_matter(search: Any) -> None:
    model, x = linear(), torch.rand(5, 1, 6, 8)
    whole = RotationTranslation(search=search, rotations=5, translations=3, keep="best")
    small = RotationTranslation(search=search, rotations=5, translations=3, keep="best", max_batch=3)
    together = whole(model, x)
    assert torch.allclose(whole(model, x.flip(0)).flip(0), together, atol=1e-6)
    assert torch.allclose(torch.cat([whole(model, x[i : i + 1]) for i in range(5)]), together, atol=1e-6)
    assert torch.allclose(small(model, x), together, atol=1e-6)


def test_seed_and_restarts_of_the_random_search() -> None:
    x = torch.rand(4, 1, 5, 5)
    attack = RotationTranslation(search="random", samples=3)
    assert torch.equal(attack(Steady(), x, seed=1), attack(Steady(), x, seed=1))
    assert not torch.equal(attack(Steady(), x, seed=1), attack(Steady(), x, seed=2))
    assert attack.run(Steady(), x).num_queries.tolist() == [4] * 4
    more = RotationTranslation(search="random", samples=3, restarts=4).run(Steady(), x)
    assert more.num_queries.tolist() == [13] * 4
    assert bool((more.adversarial[:, 0, 1, 1] >= attack(Steady(), x)[:, 0, 1, 1]).all())


def test_refuses_vectors_of_rotation_translation() -> None:
    with pytest.raises(ValueError, match=r"RotationTranslation moves pixels: x must be .*, got \(2, 4\)"):
        RotationTranslation()(nn.Linear(4, 2), torch.rand(2, 4))
