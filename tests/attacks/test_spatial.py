"""The flow attack: what it optimises, what comes back, and for whom it is."""

import pytest
import torch
from torch import Tensor, nn

from lit_modules.attacks.spatial import SpatialTransform, flow_variation, warp


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


def test_failures_come_back_unchanged_and_not_black() -> None:
    x = torch.rand(3, 1, 6, 8)
    model = nn.Sequential(nn.Flatten(), nn.Linear(48, 2))
    with torch.no_grad():
        model[1].weight.zero_()
        model[1].weight[0] = 1e-3
        model[1].bias.copy_(torch.tensor([5.0, 0.0]))
    result = SpatialTransform(steps=10).run(model, x)
    assert not bool(result.success.any())
    assert torch.equal(result.adversarial, x)
    assert result.distance.isinf().all()


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
