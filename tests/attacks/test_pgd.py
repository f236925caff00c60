"""Gradient steps: PGD, one-step and momentum attacks."""

from typing import Any

import pytest
import torch
from torch import Tensor, nn

from lit_modules.attacks import (
    APGD,
    FGM,
    FGSM,
    L1PGD,
    L2BIM,
    L2PGD,
    L2Momentum,
    LinfBIM,
    LinfMomentum,
    LinfPGD,
    SparseL1Descent,
)
from lit_modules.attacks.engine.norms import lp_norm
from tests.attacks.helpers import Recorder, convolutional, images, opposed


def cross_entropy(model: nn.Module, x: Tensor, y: Tensor) -> Tensor:
    return nn.functional.cross_entropy(model(x), y, reduction="none").detach()


@pytest.mark.parametrize("kind", [LinfPGD, L2PGD])
def test_one_step_size_per_sample(kind: Any) -> None:
    model, x, sizes = convolutional(), images(6), torch.linspace(0.01, 0.1, 6)
    together = kind(eps=0.1, steps=4, step_size=sizes)(model, x)
    for i in range(6):
        alone = kind(eps=0.1, steps=4, step_size=float(sizes[i]))(model, x[i : i + 1])
        assert torch.allclose(alone[0], together[i], atol=1e-5)
    one = kind(step_size=torch.tensor([0.05]), random_start=False)(model, x)
    assert torch.equal(one, kind(step_size=0.05, random_start=False)(model, x))


@pytest.mark.parametrize("kind", [LinfPGD, L2PGD, L1PGD, SparseL1Descent, LinfBIM, L2BIM, FGSM, FGM])
def test_whole_numbers_and_zero_as_radius(kind: Any) -> None:
    model, x = convolutional(), images(3)
    step = {} if kind in (FGSM, FGM) else {"steps": 8, "step_size": 0.2}
    assert bool((kind(eps=1, **step).run(model, x).distance > 0.1).all())
    assert torch.allclose(kind(eps=0, **step)(model, x), x, atol=1e-6)


@pytest.mark.parametrize(
    ("kind", "arguments"),
    [(LinfPGD, {"eps": 0.18, "steps": 10, "step_size": 0.04}), (APGD, {"eps": 0.06, "steps": 20})],
)
def test_first_leaves_and_best_takes_all_steps(kind: Any, arguments: dict[str, Any]) -> None:
    model, x = convolutional(), images(40)
    y = model(x).argmax(1)
    first, best = (kind(keep=keep, **arguments).run(model, x) for keep in ("first", "best"))
    assert bool(first.success.any())
    assert not bool(first.success.all())
    assert torch.equal(first.success, best.success)
    assert bool((cross_entropy(model, best.adversarial, y) >= cross_entropy(model, first.adversarial, y) - 1e-5).all())
    whole = arguments["steps"] + 2  # the clean sample, the start, and one after each step
    assert bool((best.num_queries == whole).all())
    assert bool((first.num_queries[~first.success] == whole).all())
    assert float(first.num_queries[first.success].double().mean()) < whole


def test_last_is_no_stronger_than_best_and_costs_its_steps() -> None:
    model, x = convolutional(), images(40)
    y = model(x).argmax(1)
    best, last = (LinfPGD(eps=0.18, steps=10, step_size=0.04, keep=keep).run(model, x) for keep in ("best", "last"))  # type: ignore[arg-type]
    assert bool((best.success >= last.success).all())
    same = best.success == last.success
    losses = [cross_entropy(model, result.adversarial, y)[same] for result in (best, last)]
    assert bool((losses[0] >= losses[1] - 1e-5).all())
    recorder = Recorder(model)
    LinfPGD(eps=0.1, steps=7, step_size=0.1, keep="last")(recorder, x, y)
    assert len(recorder.asked) == 7


def test_restarts_keep_the_best() -> None:
    model, x = convolutional(), images(30)
    y = model(x).argmax(1)
    one, ten = (LinfPGD(eps=0.05, steps=2, step_size=0.02, restarts=n).run(model, x) for n in (1, 10))
    assert bool((ten.success >= one.success).all())
    failed = ~ten.success
    gain = cross_entropy(model, ten.adversarial, y) - cross_entropy(model, one.adversarial, y)
    assert bool((gain >= -1e-6)[failed].all())
    assert not torch.equal(ten.adversarial[failed], one.adversarial[failed])
    assert bool((ten.num_queries[failed] > one.num_queries[failed]).all())
    last = LinfPGD(eps=0.05, steps=1, step_size=0.01, keep="last", restarts=5)
    assert torch.equal(last(model, x), last.run(model, x).adversarial)


def test_seeds_and_generators() -> None:
    model, x = convolutional(), images(4)
    arguments: dict[str, Any] = {"eps": 0.01, "steps": 1, "step_size": 1e-4, "keep": "last"}
    attack = LinfPGD(seed=3, **arguments)
    assert torch.equal(attack(model, x), attack(model, x))
    assert torch.equal(attack(model, x, seed=4), LinfPGD(seed=4, **arguments)(model, x))
    assert not torch.equal(attack(model, x), attack(model, x, seed=4))
    generator = torch.Generator().manual_seed(0)
    first, second = attack(model, x, seed=generator), attack(model, x, seed=generator)
    assert not torch.equal(first, second)
    assert torch.equal(first, attack(model, x, seed=torch.Generator().manual_seed(0)))


@pytest.mark.parametrize(
    ("kind", "arguments", "many"),
    [
        (LinfPGD, {"steps": 1, "step_size": 0.1, "random_start": False}, 200),
        (APGD, {"steps": 3}, 60),
    ],
)
def test_eot_samples_average_a_random_model(kind: Any, arguments: dict[str, Any], many: int) -> None:
    torch.manual_seed(0)
    linear = nn.Linear(20, 2)
    linear.bias.data = torch.tensor([500.0, 0.0])
    truth = (linear.weight[1] - linear.weight[0]).detach()
    x, y = torch.rand(64, 20), torch.zeros(64, dtype=torch.int64)

    def model(x: Tensor) -> Tensor:
        return linear(x) + 4 * (x @ torch.randn(20, 1)) * torch.tensor([1.0, -1.0])

    def gain(eot_samples: int) -> float:
        attack = kind(eps=0.1, bounds=None, loss="margin", eot_samples=eot_samples, **arguments)
        result = attack.run(model, x, y)
        assert bool((result.num_queries == 1 + arguments["steps"] * eot_samples + 1).all())
        return float(((result.adversarial - x) @ truth).mean())

    assert gain(many) > gain(1)


def test_bf16_keeps_the_perturbation_in_float32() -> None:
    model, x = convolutional(), images(40)
    full, half = (LinfPGD(eps=0.06, steps=10, step_size=0.015, precision=p).run(model, x) for p in ("32", "bf16"))  # type: ignore[arg-type]
    assert half.adversarial.dtype == torch.float32
    assert bool((half.distance <= 0.06 * (1 + 1e-6)).all())
    assert abs(float(full.success.float().mean() - half.success.float().mean())) <= 0.1
    assert not torch.equal(half.adversarial.bfloat16().float(), half.adversarial)


@pytest.mark.slow
def test_compiled_model() -> None:
    model, x = convolutional(), images(12)
    torch._dynamo.reset()
    attack = LinfPGD(eps=0.06, steps=4, step_size=0.03)
    compiled = torch.compile(model, backend="aot_eager", dynamic=True)
    assert torch.allclose(attack(compiled, x), attack(model, x), atol=1e-5)


def test_fgsm_and_fgm_by_hand() -> None:
    model, x = convolutional(), images(5)
    point = x.clone().requires_grad_()
    loss = nn.functional.cross_entropy(model(point), model(x).argmax(1), reduction="sum")
    (gradient,) = torch.autograd.grad(loss, point)
    assert torch.allclose(FGSM(eps=0.1)(model, x), (x + 0.1 * gradient.sign()).clamp(0, 1), atol=1e-6)
    unit = gradient / gradient.flatten(1).norm(dim=1).view(-1, 1, 1, 1)
    assert torch.allclose(FGM(eps=0.4)(model, x), (x + 0.4 * unit).clamp(0, 1), atol=1e-5)


@pytest.mark.parametrize("kind", [LinfPGD, L2PGD, L1PGD])
def test_failures_are_never_worse_than_the_sample(kind: Any) -> None:
    def peak(x: Tensor) -> Tensor:
        """Never fooled; the loss is largest at the sample itself."""
        away = (x - 0.5).abs().mean(1)
        return torch.stack([2 + away, torch.zeros_like(away)], 1)

    x = torch.full((3, 8), 0.5)
    assert torch.equal(kind(eps=0.2, steps=1, step_size=1e-3)(peak, x), x)


def tanh_network() -> nn.Module:
    torch.manual_seed(0)
    return nn.Sequential(nn.Flatten(), nn.Linear(16, 24), nn.Tanh(), nn.Linear(24, 4)).eval()


def test_momentum_is_the_sum_of_gradients_over_their_l1_norms() -> None:
    model, x, y = tanh_network(), images(8, 1, 4, 4), torch.zeros(8, dtype=torch.int64)
    momentum, point = torch.zeros_like(x), x.clone()
    for _ in range(5):
        point.requires_grad_()
        (gradient,) = torch.autograd.grad(nn.functional.cross_entropy(model(point), y, reduction="sum"), point)
        momentum = 0.7 * momentum + gradient / lp_norm(gradient, "l1").view(-1, 1, 1, 1)
        point = (x + (point.detach() + 0.02 * momentum.sign() - x).clamp(-0.05, 0.05)).clamp(0, 1)
    attack = LinfMomentum(eps=0.05, steps=5, step_size=0.02, decay=0.7, keep="last")
    assert torch.allclose(attack(model, x, y), point, atol=1e-6)


@pytest.mark.parametrize(("momentum", "plain"), [(LinfMomentum, LinfBIM), (L2Momentum, L2BIM)])
def test_without_decay_it_is_the_basic_iterative_method(momentum: Any, plain: Any) -> None:
    model, x = tanh_network(), images(8, 1, 4, 4)
    arguments = {"eps": 0.3, "steps": 6, "step_size": 0.1, "keep": "last"}
    assert torch.allclose(momentum(decay=0.0, **arguments)(model, x), plain(**arguments)(model, x), atol=1e-6)


def test_steps_of_l2_momentum_have_their_length() -> None:
    adversarial = L2Momentum(eps=0.9, steps=3, step_size=0.05, keep="last")(opposed(torch.ones(16)), images(3, 16) / 2)
    assert torch.allclose(lp_norm(adversarial - images(3, 16) / 2, "l2"), torch.full((3,), 0.15), rtol=0.05)


def test_same_points_as_torchattacks() -> None:
    torchattacks = pytest.importorskip("torchattacks")
    model, x = tanh_network(), images(8, 1, 4, 4)
    y = model(x).argmax(1)
    theirs = torchattacks.MIFGSM(model, eps=0.1, alpha=0.02, steps=8, decay=1.0)(x, y)
    ours = LinfMomentum(eps=0.1, step_size=0.02, steps=8, keep="last")(model, x, y)
    assert torch.allclose(ours, theirs, atol=1e-5)
