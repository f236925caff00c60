"""Averages of random models and estimated gradients."""

import pickle

import pytest
import torch
from torch import Tensor, nn

from lit_modules.attacks import EOT, FiniteDifference, LinfPGD, NESGradient
from lit_modules.attacks.wrappers import EstimatedGradient


def smooth_model() -> nn.Module:
    torch.manual_seed(0)
    return nn.Sequential(nn.Flatten(), nn.Linear(12, 16), nn.Tanh(), nn.Linear(16, 3))


def gradient(model: nn.Module, x: Tensor) -> Tensor:
    point = x.clone().requires_grad_()
    (found,) = torch.autograd.grad((model(point) * torch.tensor([1.0, -2.0, 0.5])).sum(), point)
    return found


class Noise(nn.Module):
    """A linear model whose weights shake at each pass, in any mode."""

    def __init__(self) -> None:
        super().__init__()
        self.linear = nn.Linear(6, 3)
        self.calls = 0

    def forward(self, x: Tensor) -> Tensor:
        self.calls += 1
        return self.linear(x + 0.3 * torch.randn_like(x))


def test_eot_averages_logits_and_gradients() -> None:
    torch.manual_seed(0)
    noise = Noise()
    model = EOT(noise, num_samples=400)
    x = torch.rand(2, 6)
    assert torch.allclose(model(x), noise.linear(x), atol=0.1)
    assert noise.calls == 400
    assert (model(x) - noise.linear(x)).std() < (noise(x) - noise.linear(x)).std()
    point = x.requires_grad_()
    (found,) = torch.autograd.grad(model(point)[:, 0].sum(), point)
    assert torch.allclose(found, noise.linear.weight[0].expand(2, 6), atol=1e-5)


def test_eot_is_the_model_if_it_does_not_answer_at_random() -> None:
    model, x = smooth_model(), torch.rand(4, 12)
    assert torch.allclose(EOT(model, num_samples=3)(x), model(x), atol=1e-6)
    assert set(EOT(model).state_dict()) == {f"model.{name}" for name in model.state_dict()}
    assert EOT(lambda x: x * 2, num_samples=2)(x).shape == x.shape


def test_eot_under_attack_with_dropout_in_training_mode() -> None:
    torch.manual_seed(0)
    model = EOT(nn.Sequential(nn.Linear(6, 3), nn.Dropout(0.3)), num_samples=8).train()
    result = LinfPGD(eps=0.5, steps=5, step_size=0.2, model_mode="keep").run(model, torch.rand(4, 6))
    assert result.adversarial.shape == (4, 6)
    assert model.training


@pytest.mark.parametrize("shape", [(3, 12), (3, 1, 3, 4), (3, 12, 1)])
def test_estimates_meet_the_gradient(shape: tuple[int, ...]) -> None:
    model, x = smooth_model(), torch.rand(*shape)
    truth = gradient(model, x)
    assert torch.allclose(gradient(FiniteDifference(model, step=1e-2), x), truth, atol=2e-3)
    estimate = gradient(NESGradient(model, samples=4000, step=1e-2), x)
    assert float(torch.cosine_similarity(estimate.flatten(1), truth.flatten(1)).min()) > 0.98
    assert torch.allclose(estimate.flatten(1).norm(dim=1), truth.flatten(1).norm(dim=1), rtol=0.1)


@pytest.mark.parametrize("kind", [FiniteDifference, NESGradient])
def test_chunks_batches_and_order_do_not_matter(kind: type[EstimatedGradient]) -> None:
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


@pytest.mark.parametrize("kind", [FiniteDifference, NESGradient])
def test_attacks_pass_through_a_model_without_gradients(kind: type[EstimatedGradient]) -> None:
    inner = smooth_model()
    with torch.no_grad():
        inner[3].bias.copy_(-inner(torch.full((1, 12), 0.5))[0])

    def black_box(x: Tensor) -> Tensor:
        with torch.no_grad():
            return torch.from_numpy(inner(x).numpy())

    x = torch.rand(6, 12)
    attack = LinfPGD(eps=0.5, steps=10, step_size=0.1, random_start=False)
    with pytest.raises(ValueError, match="no gradient with respect to its input"):
        attack(black_box, x)
    truth = attack.run(inner, x)
    result = attack.run(kind(black_box, step=1e-2), x)
    assert bool(truth.success.any())
    assert torch.equal(result.success, truth.success)
    assert torch.equal(inner(result.adversarial).argmax(1) != inner(x).argmax(1), result.success)


def test_queries_are_those_asked() -> None:
    class Counter(nn.Module):
        asked = 0

        def forward(self, x: Tensor) -> Tensor:
            self.asked += len(x)
            return x[:, :3]

    for kind in (FiniteDifference, NESGradient):
        counter = Counter()
        model, x = kind(counter), torch.rand(2, 12)
        gradient(model, x)
        assert counter.asked == 2 * (1 + model.queries(x))


def test_parameters_receive_no_gradient_and_modules_pickle() -> None:
    inner, x = smooth_model(), torch.rand(2, 12)
    for model in (FiniteDifference(inner), NESGradient(inner, samples=3), EOT(inner, num_samples=2)):
        again = pickle.loads(pickle.dumps(model))
        assert torch.equal(gradient(again, x), gradient(model, x))
        assert len(list(model.parameters())) == 4
    model = FiniteDifference(inner)
    model(x.requires_grad_()).sum().backward()
    assert all(p.grad is None for p in inner.parameters())


def test_bad_arguments() -> None:
    with pytest.raises(ValueError, match="num_samples must be an integer of at least 1, got 0"):
        EOT(nn.Identity(), num_samples=0)
    with pytest.raises(ValueError, match=r"step must be positive and finite, got 0\.0"):
        FiniteDifference(nn.Identity(), step=0.0)
    with pytest.raises(ValueError, match="samples must be an integer of at least 1, got 0"):
        NESGradient(nn.Identity(), samples=0)
    with pytest.raises(ValueError, match="max_batch must be an integer of at least 1, got 0"):
        NESGradient(nn.Identity(), max_batch=0)
