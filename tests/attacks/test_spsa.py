"""SPSA: the update, and the traps of earlier versions."""

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
