"""The saliency map attack: the pair that it finds, and what it changes."""

import time

import pytest
import torch
from torch import Tensor, nn

from lit_modules.attacks import JSMA
from lit_modules.attacks.jsma import best_pair, jacobian_sums


def brute_force(first: Tensor, second: Tensor, allowed: Tensor) -> Tensor:
    """Largest worth over all pairs."""
    up, down = first[:, :, None] + first[:, None], second[:, :, None] + second[:, None]
    valid = (up > 0) & (down > 0) & (allowed[:, :, None] & allowed[:, None])
    valid &= ~torch.eye(first.shape[1], dtype=torch.bool)
    return torch.where(valid, up * down, float("-inf")).flatten(1).amax(1)


@pytest.mark.parametrize("size", [1, 2, 3, 10, 57])
@pytest.mark.parametrize("kind", ["independent", "opposed", "ties", "few allowed"])
@pytest.mark.parametrize("max_pairs", [1, 2**22])
def test_pair_is_the_best_of_all_pairs(size: int, kind: str, max_pairs: int) -> None:
    generator = torch.Generator().manual_seed(size)
    first, second = torch.randn(40, size, generator=generator), torch.randn(40, size, generator=generator)
    allowed = torch.rand(40, size, generator=generator) > (0.9 if kind == "few allowed" else 0.1)
    if kind == "opposed":  # the larger one, the smaller the other: all places count
        second = 1 - first + 1e-3 * second
    if kind == "ties":
        first, second = first.round(), second.round()
    pair, valid = best_pair(first, second, allowed, max_pairs)
    best = brute_force(first, second, allowed)
    assert torch.equal(valid, best > float("-inf"))
    worth = first.gather(1, pair).sum(1) * second.gather(1, pair).sum(1)
    assert torch.allclose(worth[valid], best[valid])
    assert bool((pair[valid, 0] != pair[valid, 1]).all())
    assert bool(allowed.gather(1, pair)[valid].all())


def test_pair_among_more_values_than_pairs_would_fit_in_memory() -> None:
    first, second = torch.randn(2, 2, 300_000, generator=torch.Generator().manual_seed(0))
    first[:, 200_001], second[:, 250_003] = 50.0, 50.0  # an index of the pair is past the whole numbers of float32
    start = time.perf_counter()
    pair, valid = best_pair(first, second, torch.ones_like(first, dtype=torch.bool))
    assert time.perf_counter() - start < 10
    assert bool(valid.all())
    assert pair.sort(1).values.tolist() == [[200_001, 250_003]] * 2


def test_jacobian_sums() -> None:
    model = nn.Linear(5, 3)
    x, target = torch.rand(4, 5).requires_grad_(), torch.tensor([0, 2, 1, 1])
    gain, loss = jacobian_sums(x, model(x), target)
    assert torch.allclose(gain, model.weight[target])
    assert torch.allclose(loss, model.weight.sum(0) - model.weight[target], atol=1e-6)


@pytest.fixture
def digits() -> tuple[nn.Module, Tensor]:
    torch.manual_seed(1)
    return nn.Sequential(nn.Linear(36, 24), nn.ReLU(), nn.Linear(24, 4)), torch.rand(8, 36) * 0.3


@pytest.mark.parametrize("theta", [1.0, -1.0, 0.3])
def test_changes_go_one_way_and_are_counted(digits: tuple[nn.Module, Tensor], theta: float) -> None:
    model, x = digits[0], digits[1] if theta > 0 else 1 - digits[1]
    result = JSMA(theta=theta, targeted=True).run(model, x, (model(x).argmax(1) + 1) % 4)
    delta = result.adversarial - x
    assert bool(result.success.any())
    assert bool((delta * theta >= 0).all())
    assert torch.equal(result.distance, (delta != 0).sum(1).double().where(result.success, float("inf")))
    if abs(theta) == 1:  # one step takes a value to its bound
        assert bool(((delta == 0) | (result.adversarial == float(theta > 0))).all())


def test_share_of_the_values_is_kept(digits: tuple[nn.Module, Tensor]) -> None:
    model, x = digits
    target = (model(x).argmax(1) + 2) % 4
    few, many = (JSMA(gamma=gamma, targeted=True).run(model, x, target) for gamma in (0.12, 1.0))
    assert int(few.distance[few.success].max()) <= 4
    assert int(few.num_queries.max()) <= 4  # the clean one, and one before and after each of 2 steps
    assert int(many.success.sum()) > int(few.success.sum())
    endless = JSMA(theta=0.001, bounds=None).run(model, x)
    assert int(endless.num_queries.max()) <= 36 // 2 + 2


def test_without_a_target_the_most_likely_other_class_is_sought(digits: tuple[nn.Module, Tensor]) -> None:
    model, x = digits
    second = model(x).topk(2).indices[:, 1]
    free, driven = JSMA().run(model, x), JSMA(targeted=True).run(model, x, second)
    assert bool((free.success >= driven.success).all())
    same = model(free.adversarial).argmax(1) == second
    assert bool(same.any())
    assert torch.equal(free.adversarial[same & driven.success], driven.adversarial[same & driven.success])


def test_colour_images_of_3072_values() -> None:
    torch.manual_seed(0)
    model, x = nn.Sequential(nn.Flatten(), nn.Linear(3072, 10)), torch.rand(3, 3, 32, 32) * 0.5
    result = JSMA(targeted=True).run(model, x, model(x).topk(2).indices[:, 1])
    assert bool(result.success.all())
    assert float(result.distance.max()) < 200
