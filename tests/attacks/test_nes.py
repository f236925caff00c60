"""NES: the steps of both norms."""

import pytest
import torch
from torch import nn

from lit_modules.attacks.pgd import L2PGD, LinfPGD
from lit_modules.attacks.score_based import NES


def strong_margin(size: int) -> nn.Module:
    model = nn.Linear(size, 2)
    model.weight.data = torch.stack([torch.arange(1.0, size + 1), -torch.arange(1.0, size + 1)])
    model.bias.data = torch.tensor([100.0, -100.0])
    return model


def test_linf_step_is_the_sign() -> None:
    x = torch.full((2, 5), 0.5)
    x[1] += 0.1
    moved = NES(eps=0.3, steps=2, step_size=0.05, directions=2000)(strong_margin(5), x) - x
    torch.testing.assert_close(moved, torch.full((2, 5), -0.1), atol=1e-6, rtol=0)


def test_l2_step_goes_along_the_gradient() -> None:
    x = torch.full((1, 5), 0.5)
    moved = NES(norm="l2", eps=0.3, steps=1, step_size=0.2, directions=4000)(strong_margin(5), x) - x
    expected = -0.2 * torch.arange(1.0, 6.0) / torch.arange(1.0, 6.0).norm()
    torch.testing.assert_close(moved[0], expected, atol=0.01, rtol=0)


@pytest.mark.parametrize("norm", ["linf", "l2"])
def test_as_strong_as_pgd_where_the_gradient_is_known(norm: str) -> None:
    x = torch.rand(20, 10, generator=torch.Generator().manual_seed(0)) * 0.4 + 0.3
    model = nn.Sequential(nn.Linear(10, 8), nn.Softplus(), nn.Linear(8, 3))
    generator = torch.Generator().manual_seed(2)
    for parameter in model.parameters():
        parameter.data = torch.randn(parameter.shape, generator=generator)
    eps, step = (0.1, 0.01) if norm == "linf" else (0.3, 0.03)
    pgd = (LinfPGD if norm == "linf" else L2PGD)(eps=eps, steps=30, step_size=step).run(model, x).success
    nes = NES(norm=norm, eps=eps, steps=30, step_size=step, directions=32).run(model, x).success  # type: ignore[arg-type]
    assert 3 < pgd.sum() < 20
    assert (pgd != nes).sum() <= 1


def test_cost() -> None:
    result = NES(eps=0.01, steps=3, directions=5).run(strong_margin(4), torch.full((2, 4), 0.5))
    assert result.num_queries.tolist() == [1 + 3 * (2 * 5 + 1)] * 2
