"""Flows, rotations and translations of images."""

from typing import Any

import pytest
import torch
from torch import Tensor, nn

from lit_modules.attacks import RotationTranslation, SpatialTransform
from lit_modules.attacks.spatial import flow_variation, move, warp
from tests.attacks.helpers import linear


def two_places(x: Tensor) -> Tensor:
    """Compare the light in the left half with that in the right half."""
    left, right = x.chunk(2, dim=3)
    return torch.stack([left.mean((1, 2, 3)), right.mean((1, 2, 3))], 1) * 10


def corner(x: Tensor) -> Tensor:
    """Say 1 once there is light in the top left pixel."""
    light = x[:, 0, 0, 0]
    return torch.stack([torch.full_like(light, 0.5), light], 1) * 4


def steady(x: Tensor) -> Tensor:
    """Always say 0, with a score that falls with the light in a pixel."""
    return torch.stack([5 - x[:, 0, 1, 1], torch.zeros(len(x))], 1)


def flat(classes: int = 3) -> nn.Module:
    return nn.Sequential(nn.Flatten(), linear(classes, 48))


def blobs(count: int = 4, height: int = 6, width: int = 8) -> Tensor:
    """Soft bright columns just left of the middle, of various strengths."""
    profile = torch.exp(-((torch.arange(width) - width / 2 + 0.7) ** 2) / 4)
    return torch.linspace(0.5, 1, count)[:, None, None, None] * profile.expand(count, 1, height, width)


@pytest.mark.parametrize("confidence", [0.0, 0.3])
def test_light_moves_over_the_middle_with_confidence(confidence: float) -> None:
    result = SpatialTransform(confidence=confidence, step_size=0.1).run(two_places, blobs())
    logits = two_places(result.adversarial)
    assert bool(result.success.all())
    assert bool((logits[:, 1] - logits[:, 0] >= confidence - 1e-5).all())


def test_smaller_flows_win_with_more_search() -> None:
    def variation(steps: int) -> Tensor:
        attack = SpatialTransform(search_steps=steps, step_size=0.1, smoothness=1e-3)
        return -attack.attack(attack.prepare(two_places, blobs(), None, 0)).score

    one, four = variation(1), variation(4)
    assert bool((four <= one + 1e-6).all())
    assert bool((four < one).any())


def test_warp_counts_in_pixels() -> None:
    x, zero = torch.rand(2, 3, 5, 8), torch.zeros(2, 2, 5, 8)
    right, half = zero.clone(), zero.clone()
    right[:, 1], half[:, 0] = 1, 0.5
    assert torch.allclose(warp(x, zero), x, atol=1e-5)
    assert torch.allclose(warp(x, right)[..., :-1], x[..., 1:], atol=1e-5)
    assert torch.allclose(warp(x, right)[..., -1], x[..., -1], atol=1e-5)
    assert torch.allclose(warp(x, right, "zeros")[..., -1], torch.zeros(()), atol=1e-5)
    assert torch.allclose(warp(x, half)[:, :, :-1], (x[:, :, 1:] + x[:, :, :-1]) / 2, atol=1e-5)
    assert torch.allclose(warp(x[:, :, :1], zero[:, :, :1]), x[:, :, :1], atol=1e-5)


def test_variation_counts_each_pair_once() -> None:
    flow = torch.zeros(1, 2, 3, 4)
    assert float(flow_variation(flow)) == pytest.approx(0, abs=1e-6)
    flow[0, :, 1, 1] = torch.tensor([3.0, 4.0])
    assert float(flow_variation(flow)) == pytest.approx(20, rel=1e-3)
    assert float(flow_variation(flow + 7)) == pytest.approx(20, rel=1e-3)


@pytest.mark.parametrize("kind", [SpatialTransform, RotationTranslation])
def test_refuses_vectors(kind: Any) -> None:
    with pytest.raises(ValueError, match=rf"{kind.__name__} moves pixels: x must be .*, got \(2, 4\)"):
        kind()(nn.Linear(4, 2), torch.rand(2, 4))


def test_move_shifts_by_whole_pixels() -> None:
    x = torch.rand(2, 3, 5, 8)
    moved = move(x, torch.tensor([[0.0, 1.0, 2.0], [0.0, 0.0, 0.0]]))
    assert torch.allclose(moved[0, :, 1:, 2:], x[0, :, :-1, :-2], atol=1e-5)
    assert float(moved[0, :, 0].abs().max()) < 1e-5
    assert torch.allclose(moved[1], x[1], atol=1e-5)
    border = move(x, torch.tensor([[0.0, 1.0, 0.0]] * 2), "border")
    assert torch.allclose(border[:, :, 0], x[:, :, 0], atol=1e-5)


def test_move_turns_anticlockwise() -> None:
    square, wide = torch.rand(1, 1, 6, 6), torch.rand(1, 1, 4, 9)
    assert torch.allclose(move(square, torch.tensor([[90.0, 0, 0]])), square.rot90(1, (2, 3)), atol=1e-5)
    assert torch.allclose(move(wide, torch.tensor([[180.0, 0, 0]])), wide.rot90(2, (2, 3)), atol=1e-5)


def test_move_against_torchvision() -> None:
    functional = pytest.importorskip("torchvision.transforms.functional")
    x, bilinear = torch.rand(1, 3, 10, 14), functional.InterpolationMode.BILINEAR
    expected = functional.affine(x, -20.0, translate=[2, 1], scale=1.0, shear=[0.0], interpolation=bilinear)
    assert torch.allclose(move(x, torch.tensor([[20.0, 1.0, 2.0]])), expected, atol=1e-3)


@pytest.mark.parametrize("search", ["grid", "random"])
def test_finds_the_corner(search: Any) -> None:
    x = torch.zeros(3, 1, 6, 6)
    x[:, :, 1, 1] = 1
    attack = RotationTranslation(search=search, max_rotation=0, max_translation=2, samples=100, rotations=1)
    result = attack.run(corner, x)
    assert bool(result.success.all())
    assert corner(result.adversarial).argmax(1).tolist() == [1, 1, 1]


def test_grid_has_all_movements_but_none() -> None:
    attack = RotationTranslation(rotations=3, translations=3, max_rotation=30, max_translation=2)
    moves = attack.moves(attack.prepare(steady, torch.rand(2, 1, 4, 4), None, 0))
    assert moves.shape == (26, 1, 3)
    assert len(moves.unique(dim=0)) == 26
    assert moves.abs().amax((0, 1)).tolist() == [30.0, 2.0, 2.0]
    assert attack.run(steady, torch.rand(2, 1, 4, 4)).num_queries.tolist() == [27, 27]


def test_failures_return_the_worst_image_seen() -> None:
    x = torch.rand(4, 1, 5, 5)
    result = RotationTranslation(rotations=3, translations=3, max_translation=1).run(steady, x)
    assert not bool(result.success.any())
    assert bool((result.adversarial[:, 0, 1, 1] >= x[:, 0, 1, 1]).all())
    bright = torch.zeros(1, 1, 5, 5)
    bright[:, :, 1, 1] = 1
    assert torch.equal(RotationTranslation(rotations=1)(steady, bright), bright)


def test_first_leaves_early_and_best_is_at_least_as_strong() -> None:
    model, x = flat(), torch.rand(8, 1, 6, 8)
    first = RotationTranslation(rotations=5, translations=3, max_batch=16).run(model, x)
    best = RotationTranslation(rotations=5, translations=3, keep="best").run(model, x)
    assert torch.equal(first.success, best.success)
    assert bool(best.success.any())
    loss, label = nn.CrossEntropyLoss(reduction="none"), model(x).argmax(1)
    assert bool((loss(model(best.adversarial), label) >= loss(model(first.adversarial), label) - 1e-5).all())
    assert bool((first.num_queries <= best.num_queries).all())
    assert best.num_queries.tolist() == [45] * 8


@pytest.mark.parametrize("search", ["grid", "random"])
def test_batch_order_and_chunks_do_not_matter(search: Any) -> None:
    model, x = flat(), torch.rand(5, 1, 6, 8)
    whole, small = (
        RotationTranslation(search=search, rotations=5, translations=3, keep="best", max_batch=size)
        for size in (1024, 3)
    )
    together = whole(model, x)
    assert torch.allclose(whole(model, x.flip(0)).flip(0), together, atol=1e-6)
    assert torch.allclose(small(model, x), together, atol=1e-6)


def test_seed_and_restarts_of_the_random_search() -> None:
    x = torch.rand(4, 1, 5, 5)
    attack = RotationTranslation(search="random", samples=3)
    one, more = attack.run(steady, x), RotationTranslation(search="random", samples=3, restarts=4).run(steady, x)
    assert not torch.equal(attack(steady, x, seed=1), attack(steady, x, seed=2))
    assert one.num_queries.tolist() == [4] * 4
    assert more.num_queries.tolist() == [13] * 4
    assert bool((more.adversarial[:, 0, 1, 1] >= one.adversarial[:, 0, 1, 1]).all())
