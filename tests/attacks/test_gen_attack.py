"""GenAttack: generations, elites and their cost."""

from itertools import pairwise

import pytest
import torch
from torch import nn

from lit_modules.attacks import GenAttack


def strong_margin(size: int) -> nn.Module:
    model = nn.Linear(size, 2)
    model.weight.data = torch.stack([torch.ones(size), -torch.ones(size)])
    model.bias.data = torch.tensor([100.0, -100.0])
    return model


@pytest.mark.parametrize("norm", ["linf", "l2"])
def test_best_member_never_gets_worse(norm: str) -> None:
    model, x = strong_margin(8), torch.full((3, 8), 0.5) + torch.arange(3)[:, None] * 0.01
    margins = [
        model(GenAttack(norm=norm, eps=0.2, steps=steps, population=10)(model, x))[:, 0]  # type: ignore[arg-type]
        for steps in (1, 2, 5, 20)
    ]
    for before, after in pairwise(margins):
        assert (after <= before + 1e-5).all()
    assert (margins[-1] < margins[0] - 0.05).all()


@pytest.mark.parametrize("norm", ["linf", "l2"])
def test_first_generation_fills_the_ball(norm: str) -> None:
    attack = GenAttack(norm=norm, eps=0.2, population=400, bounds=None)  # type: ignore[arg-type]
    x = torch.zeros(1, 2)
    first = attack.first(attack.prepare(nn.Linear(2, 2), x, None, 0))[:, 0]
    length = first.abs().amax(1) if norm == "linf" else first.norm(dim=1)
    assert length.max() <= 0.2
    # the share of a disc or square within half its radius is a quarter
    assert 0.18 < float((length < 0.1).double().mean()) < 0.32


def test_a_child_has_the_coordinates_of_its_parents() -> None:
    """Without mutation all coordinates come from members."""
    attack = GenAttack(eps=0.2, population=6, mutation_rate=1e-6, least_rate=1e-6)
    x = torch.full((2, 5), 0.5)
    state = attack.prepare(strong_margin(5), x, None, 0)
    members = attack.first(state)
    losses, _ = attack.evaluate(state, members)
    children = attack.children(state, members, losses, torch.zeros(2))
    assert children.shape == (5, 2, 5)
    assert (children[:, None] == members[None]).any(1).all()


def test_fit_parents_are_preferred() -> None:
    attack = GenAttack(eps=0.2, population=6, mutation_rate=1e-6, least_rate=1e-6)
    x = torch.full((1, 5), 0.5)
    state = attack.prepare(strong_margin(5), x, None, 0)
    members = attack.first(state)
    losses = torch.full((6, 1), -50.0)
    losses[4] = 10.0
    children = attack.children(state, members, losses, torch.zeros(1))
    torch.testing.assert_close(children, members[4:5].expand_as(children), atol=1e-6, rtol=0)


def test_mutation_shrinks_without_progress() -> None:
    attack = GenAttack(eps=0.2, population=50, mutation_rate=1.0, decay=0.5, least_range=0.01, least_rate=1.0)
    x = torch.full((2, 5), 0.5) + torch.arange(2)[:, None] * 0.01
    state = attack.prepare(strong_margin(5), x, None, 0)
    members = x.expand(50, 2, 5)
    moved = attack.children(state, members, torch.zeros(50, 2), torch.tensor([0.0, 3.0])) - x
    limit = 0.2 * 0.4 * torch.tensor([1.0, 0.125])
    largest = moved.abs().amax((0, 2))
    assert (largest <= limit + 1e-6).all()
    assert (largest > 0.9 * limit).all()


def test_cost_leaves_the_elite_out() -> None:
    result = GenAttack(eps=0.01, steps=3, population=6).run(strong_margin(4), torch.full((2, 4), 0.5))
    assert result.num_queries.tolist() == [1 + 6 + 3 * 5] * 2
