"""The saliency map attack: the pair that it finds, and what it changes."""

import time

import pytest
import torch
from torch import Tensor, nn

from lit_modules.attacks import JSMA
from lit_modules.attacks.jsma import best_pair, log_odds


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
    few, many = (JSMA(gamma=gamma, targeted=True).run(model, x, target) for gamma in (0.06, 1.0))
    assert int(few.distance[few.success].max()) <= 2
    assert int(few.num_queries.max()) <= 3  # the clean one, and one before and after the step
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


def test_saliency_of_probabilities_is_that_of_the_softmax() -> None:
    """Also where the target's probability is too small for a float: the pair that serves the rival class best."""
    weight = torch.tensor([[0.0, 0, 0, 0], [3, 2, 0, 1], [-5, -5, 9, 9]])
    x, target = torch.zeros(1, 4, requires_grad=True), torch.tensor([1])
    logits = x @ weight.T + torch.tensor([2.0, 0, 1])
    gain, loss = log_odds(x, logits, target)
    (exact,) = torch.autograd.grad((x @ weight.T + torch.tensor([2.0, 0, 1])).softmax(1)[0, 1], x)
    share = logits.softmax(1)[0, 1].detach()
    assert torch.allclose(gain * share * (1 - share), exact)
    assert torch.equal(loss, -gain)
    far = x @ weight.T + torch.tensor([200.0, 0, 0])
    assert torch.allclose(log_odds(x, far, target)[0], weight[1:2] - weight[0])


def test_classes_that_are_no_rival_do_not_lead_the_search() -> None:
    """The third class is hopeless, but its logit, lowered by the last two values, leads the saliency of the logits."""
    model = nn.Linear(4, 3)
    model.weight.data = torch.tensor([[0.0, 0, 0, 0], [3, 3, 1, 1], [2, 2, -90, -90]])
    model.bias.data = torch.tensor([5.0, 0, -50])
    x, target = torch.zeros(1, 4), torch.tensor([1])
    direct = JSMA(targeted=True).run(model, x, target)
    assert direct.adversarial.tolist() == [[1.0, 1, 0, 0]]
    astray = JSMA(targeted=True, output="logits", gamma=0.5).run(model, x, target)
    assert not bool(astray.success)
