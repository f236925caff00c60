"""SPSA: the update, and the traps of earlier versions."""

import pytest
import torch
from torch import Tensor, nn

from lit_modules.attacks.pgd import LinfPGD
from lit_modules.attacks.score_based import SPSA


def linear(size: int) -> nn.Module:
    model = nn.Linear(size, 2, bias=False)
    model.weight.data = torch.stack([torch.arange(1.0, size + 1), -torch.arange(1.0, size + 1)])
    return model


def test_first_step_moves_by_the_step_size() -> None:
    """Adam's first step is the sign of the estimate; one sign vector alone gives every coordinate the same size."""
    x = torch.full((3, 6), 0.5) + torch.arange(3)[:, None] * 0.01
    adversarial = SPSA(eps=0.3, steps=1, step_size=0.01, directions=1)(linear(6), x)
    torch.testing.assert_close((adversarial - x).abs(), torch.full((3, 6), 0.01), atol=1e-5, rtol=0)


def test_samples_of_a_batch_have_their_own_directions() -> None:
    """With one direction for the whole batch all first steps would be equal up to sign."""
    x = torch.rand(8, 20, generator=torch.Generator().manual_seed(0)) * 0.5 + 0.25
    model = nn.Linear(20, 2)
    model.bias.data = torch.tensor([50.0, -50.0])
    moves = (SPSA(eps=0.3, steps=1, step_size=0.01, directions=1)(model, x) - x).sign()
    assert ((moves @ moves.T).abs() - 20 * torch.eye(8)).max() < 20


def test_takes_integer_and_per_sample_eps_and_step() -> None:
    x = torch.full((3, 6), 0.5) + torch.arange(3)[:, None] * 0.01
    model = nn.Linear(6, 2)
    model.bias.data = torch.tensor([50.0, -50.0])
    eps = torch.tensor([0.01, 0.05, 0.1])
    attack = SPSA(eps=eps, steps=6, step_size=torch.tensor([0.1, 0.1, 0.2]), directions=8)
    torch.testing.assert_close(attack.run(model, x).distance.float(), eps)
    assert SPSA(eps=1, steps=1, directions=2).run(model, x).distance.max() <= 1


def test_as_strong_as_pgd_where_the_gradient_is_known() -> None:
    x = torch.rand(20, 10, generator=torch.Generator().manual_seed(0)) * 0.4 + 0.3
    model = nn.Sequential(nn.Linear(10, 8), nn.Softplus(), nn.Linear(8, 3))
    generator = torch.Generator().manual_seed(2)
    for parameter in model.parameters():
        parameter.data = torch.randn(parameter.shape, generator=generator)
    pgd = LinfPGD(eps=0.1, steps=30, step_size=0.01).run(model, x).success
    spsa = SPSA(eps=0.1, steps=30, directions=32).run(model, x).success
    assert 3 < pgd.sum() < 20
    assert (pgd != spsa).sum() <= 1


def test_model_that_hides_its_gradient() -> None:
    """An attack that asks for answers only needs no gradient."""

    class Detached(nn.Module):
        def forward(self, x: Tensor) -> Tensor:
            return torch.stack([x.detach().sum(1) - 2.9, 2.9 - x.detach().sum(1)], 1)

    x = torch.full((2, 6), 0.5)
    assert SPSA(eps=0.1, steps=10, directions=8).run(Detached(), x).success.all()


def test_cost() -> None:
    model = linear(6)
    result = SPSA(eps=0.01, steps=3, directions=5).run(model, torch.full((2, 6), 0.5))
    assert result.num_queries.tolist() == [1 + 3 * (2 * 5 + 1)] * 2


@pytest.mark.parametrize("name", ["step_size", "fd_step"])
def test_lengths_must_be_positive(name: str) -> None:
    with pytest.raises(ValueError, match=f"{name} must be positive and finite, got 0"):
        SPSA(**{name: 0})  # type: ignore[arg-type]


def test_directions_must_be_a_count() -> None:
    with pytest.raises(ValueError, match="directions must be an integer of at least 1, got 0"):
        SPSA(directions=0)
