"""The momentum iterative method: its update, its closed form, and its peers."""

import pytest
import torch
from torch import Tensor, nn

from lit_modules.attacks.engine.norms import lp_norm
from lit_modules.attacks.pgd import L2BIM, L2Momentum, LinfBIM, LinfMomentum


def network() -> nn.Module:
    torch.manual_seed(0)
    return nn.Sequential(nn.Flatten(), nn.Linear(16, 24), nn.Tanh(), nn.Linear(24, 4)).eval()


def samples(count: int = 8) -> Tensor:
    return torch.rand(count, 1, 4, 4, generator=torch.Generator().manual_seed(1))


def test_momentum_is_the_sum_of_gradients_over_their_l1_norms() -> None:
    model, x, label = network(), samples(), torch.zeros(8, dtype=torch.int64)
    momentum, point = torch.zeros_like(x), x.clone()
    for _ in range(5):
        point.requires_grad_()
        loss = nn.functional.cross_entropy(model(point), label, reduction="sum")
        (gradient,) = torch.autograd.grad(loss, point)
        momentum = 0.7 * momentum + gradient / lp_norm(gradient, "l1").view(-1, 1, 1, 1)
        point = (x + (point.detach() + 0.02 * momentum.sign() - x).clamp(-0.05, 0.05)).clamp(0, 1)
    attack = LinfMomentum(eps=0.05, steps=5, step_size=0.02, decay=0.7, keep="last")
    assert torch.allclose(attack(model, x, label), point, atol=1e-6)


@pytest.mark.parametrize(("momentum", "plain"), [(LinfMomentum, LinfBIM), (L2Momentum, L2BIM)])
def test_without_decay_it_is_the_basic_iterative_method(momentum: type[LinfMomentum], plain: type[LinfBIM]) -> None:
    model, x = network(), samples()
    arguments = {"eps": 0.3, "steps": 6, "step_size": 0.1, "keep": "last"}
    ours, theirs = momentum(decay=0.0, **arguments)(model, x), plain(**arguments)(model, x)  # type: ignore[arg-type]
    assert torch.allclose(ours, theirs, atol=1e-6)


@pytest.mark.parametrize("kind", [LinfMomentum, L2Momentum])
def test_coordinates_without_change_or_gradient_give_no_nan(kind: type[LinfMomentum]) -> None:
    model, x = network(), samples()
    with torch.no_grad():
        model[1].weight[:, :8] = 0  # half of the values have no gradient, so their change stays 0
    adversarial = kind(eps=0.3, steps=5, step_size=0.1, keep="last")(model, x)
    assert bool(torch.isfinite(adversarial).all())
    assert torch.equal(adversarial.flatten(1)[:, :8], x.flatten(1)[:, :8])
    with pytest.warns(UserWarning, match="exactly zero"):
        still = kind(steps=2, keep="last")(lambda z: z.flatten(1)[:, :2] * 0 + torch.tensor([2.0, 0.0]), x)
    assert torch.equal(still, x)


def test_steps_of_l2_have_their_length() -> None:
    x = torch.full((3, 1, 4, 4), 0.5)
    adversarial = L2Momentum(eps=9, steps=3, step_size=0.05, keep="last")(network(), x)
    assert torch.allclose(lp_norm(adversarial - x, "l2"), torch.full((3,), 0.15), rtol=0.05)


def test_same_points_as_torchattacks() -> None:
    torchattacks = pytest.importorskip("torchattacks")
    model, x = network(), samples()
    label = model(x).argmax(1)
    theirs = torchattacks.MIFGSM(model, eps=0.1, alpha=0.02, steps=8, decay=1.0)(x, label)
    ours = LinfMomentum(eps=0.1, step_size=0.02, steps=8, keep="last")(model, x, label)
    assert torch.allclose(ours, theirs, atol=1e-5)
