"""Averages of random models and estimated gradients."""

import pickle
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from lit_modules.attacks import EOT, FiniteDifference, LinfPGD, NESGradient
from tests.attacks.helpers import Recorder

estimators = pytest.mark.parametrize("kind", [FiniteDifference, NESGradient])


def smooth_model() -> nn.Module:
    torch.manual_seed(0)
    return nn.Sequential(nn.Flatten(), nn.Linear(12, 16), nn.Tanh(), nn.Linear(16, 3))


def gradient(model: nn.Module, x: Tensor) -> Tensor:
    point = x.clone().requires_grad_()
    (slope,) = torch.autograd.grad((model(point) * torch.tensor([1.0, -2.0, 0.5])).sum(), point)
    return slope


def test_eot_averages_logits_and_gradients() -> None:
    torch.manual_seed(0)
    linear, x = nn.Linear(6, 3), torch.rand(2, 6)
    noise = Recorder(lambda z: linear(z + 0.3 * torch.randn_like(z)))
    model = EOT(noise, num_samples=400)
    assert torch.allclose(model(x), linear(x), atol=0.1)
    assert len(noise.asked) == 400
    assert (model(x) - linear(x)).std() < (noise(x) - linear(x)).std()
    point = x.requires_grad_()
    (slope,) = torch.autograd.grad(model(point)[:, 0].sum(), point)
    assert torch.allclose(slope, linear.weight[0].expand(2, 6), atol=1e-5)


def test_eot_is_the_model_if_it_does_not_answer_at_random() -> None:
    model, x = smooth_model(), torch.rand(4, 12)
    assert torch.allclose(EOT(model, num_samples=3)(x), model(x), atol=1e-6)
    assert set(EOT(model).state_dict()) == {f"model.{name}" for name in model.state_dict()}


@pytest.mark.parametrize("shape", [(3, 12), (3, 1, 3, 4), (3, 12, 1)])
def test_estimates_meet_the_gradient(shape: tuple[int, ...]) -> None:
    model, x = smooth_model(), torch.rand(*shape)
    truth = gradient(model, x)
    assert torch.allclose(gradient(FiniteDifference(model, step=1e-2), x), truth, atol=2e-3)
    estimate = gradient(NESGradient(model, samples=4000, step=1e-2), x)
    assert float(torch.cosine_similarity(estimate.flatten(1), truth.flatten(1)).min()) > 0.98
    assert torch.allclose(estimate.flatten(1).norm(dim=1), truth.flatten(1).norm(dim=1), rtol=0.1)


@estimators
def test_chunks_batches_and_order_do_not_matter(kind: Any) -> None:
    model, x = smooth_model(), torch.rand(5, 12)
    together = gradient(kind(model, step=1e-2), x)
    assert torch.allclose(gradient(kind(model, step=1e-2, max_batch=7), x), together, atol=1e-3)
    assert torch.allclose(gradient(kind(model, step=1e-2), x.flip(0)).flip(0), together, atol=1e-3)
    assert torch.allclose(gradient(kind(model, step=1e-2), x[2:3])[0], together[2], atol=1e-3)


def test_seed_of_the_directions() -> None:
    model, x = smooth_model(), torch.rand(2, 12)
    one = gradient(NESGradient(model, samples=5, seed=1), x)
    assert torch.equal(one, gradient(NESGradient(model, samples=5, seed=1), x))
    assert not torch.equal(one, gradient(NESGradient(model, samples=5, seed=2), x))


@estimators
def test_attacks_pass_through_a_model_without_gradients(kind: Any) -> None:
    inner = smooth_model()
    with torch.no_grad():
        inner[3].bias.copy_(-inner(torch.full((1, 12), 0.5))[0])

    @torch.no_grad()
    def black_box(x: Tensor) -> Tensor:
        return torch.from_numpy(inner(x).numpy())

    x = torch.rand(6, 12)
    attack = LinfPGD(eps=0.5, steps=10, step_size=0.1, random_start=False)
    truth, result = attack.run(inner, x), attack.run(kind(black_box, step=1e-2), x)
    assert bool(truth.success.any())
    assert torch.equal(result.success, truth.success)
    assert torch.equal(inner(result.adversarial).argmax(1) != inner(x).argmax(1), result.success)


@estimators
def test_queries_are_those_asked(kind: Any) -> None:
    inner, x = Recorder(lambda z: z[:, :3]), torch.rand(2, 12)
    model = kind(inner)
    gradient(model, x)
    assert inner.points == 2 * (1 + model.queries(x))


def test_parameters_receive_no_gradient_and_modules_pickle() -> None:
    inner, x = smooth_model(), torch.rand(2, 12)
    for model in (FiniteDifference(inner), NESGradient(inner, samples=3), EOT(inner, num_samples=2)):
        assert torch.equal(gradient(pickle.loads(pickle.dumps(model)), x), gradient(model, x))
        assert len(list(model.parameters())) == 4
    FiniteDifference(inner)(x.requires_grad_()).sum().backward()
    assert all(p.grad is None for p in inner.parameters())


@pytest.mark.parametrize(
    ("kind", "arguments", "message"),
    [
        (EOT, {"num_samples": 0}, "num_samples must be an integer of at least 1, got 0"),
        (FiniteDifference, {"step": 0.0}, r"step must be positive and finite, got 0\.0"),
        (NESGradient, {"samples": 0}, "samples must be an integer of at least 1, got 0"),
    ],
)
def test_bad_arguments(kind: Any, arguments: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        kind(nn.Identity(), **arguments)
