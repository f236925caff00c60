"""NAttack: the mean of the draws and the two transforms."""

import pytest
import torch
from torch import nn

from lit_modules.attacks.score_based import NAttack


def strong_margin(size: int) -> nn.Module:
    model = nn.Linear(size, 2)
    model.weight.data = torch.stack([torch.ones(size), -torch.ones(size)])
    model.bias.data = torch.tensor([100.0, -100.0])
    return model


@pytest.mark.parametrize("transform", ["identity", "tanh"])
def test_mean_moves_against_the_margin(transform: str) -> None:
    x = torch.full((2, 6), 0.5)
    x[1] += 0.1
    attack = NAttack(eps=0.2, steps=30, step_size=0.1, transform=transform)  # type: ignore[arg-type]
    moved = attack(strong_margin(6), x) - x
    assert (moved <= -0.15).all()


def test_scale_of_the_loss_does_not_matter() -> None:
    """The losses are standardised."""
    x = torch.full((2, 6), 0.5)
    small = strong_margin(6)
    large = nn.Linear(6, 2)
    large.weight.data, large.bias.data = small.weight.data * 64, small.bias.data * 64
    attack = NAttack(eps=0.2, steps=3)
    torch.testing.assert_close(attack(small, x), attack(large, x), atol=1e-3, rtol=0)


def test_tanh_holds_samples_at_the_bounds() -> None:
    """The inverse is finite at the bounds, and such coordinates hardly move; without the transform they do."""
    x = torch.tensor([[0.0, 1.0, 0.5, 0.5]])
    model = nn.Linear(4, 2)
    model.weight.data = torch.tensor([[-1.0, 1.0, 1.0, 1.0], [1.0, -1.0, -1.0, -1.0]])
    model.bias.data = torch.tensor([100.0, -100.0])
    still = (NAttack(eps=0.2, steps=20, step_size=0.1, transform="tanh")(model, x) - x).abs()
    assert still[0, :2].max() < 0.01
    assert still[0, 2:].min() > 0.1
    assert (NAttack(eps=0.2, steps=20, step_size=0.1)(model, x) - x).abs().min() > 0.1


def test_bounds_without_width() -> None:
    """A pixel that may not move at all makes no NaN."""
    x = torch.full((1, 4), 0.5)
    lower, upper = torch.tensor([0.5, 0.0, 0.0, 0.0]), torch.tensor([0.5, 1.0, 1.0, 1.0])
    adversarial = NAttack(eps=0.2, steps=3, transform="tanh", bounds=(lower, upper))(strong_margin(4), x)
    assert adversarial[0, 0] == 0.5
    assert torch.isfinite(adversarial).all()


def test_a_draw_that_fools_ends_the_search() -> None:
    model = strong_margin(6)
    model.bias.data = torch.tensor([-2.95, 2.95])
    result = NAttack(eps=0.2, steps=10, samples=20).run(model, torch.full((1, 6), 0.5), torch.tensor([0]))
    assert result.success.all()
    assert result.num_queries[0] <= 1 + 20 + 1


def test_cost() -> None:
    result = NAttack(eps=0.01, steps=3, samples=5).run(strong_margin(4), torch.full((2, 4), 0.5))
    assert result.num_queries.tolist() == [1 + 3 * (5 + 1)] * 2
