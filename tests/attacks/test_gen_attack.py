"""GenAttack: generations, elites and mutation."""

from itertools import pairwise
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from lit_modules.attacks import GenAttack
from lit_modules.attacks.engine.state import AttackState
from tests.attacks.helpers import opposed

STEEP = opposed(torch.ones(5), 100.0)


def first_generation(x: Tensor, **arguments: Any) -> tuple[GenAttack, AttackState, Tensor]:
    """An attack whose children do not mutate unless it is told so, its state and its first generation."""
    attack = GenAttack(**{"eps": 0.2, "population": 6, "mutation_rate": 1e-6, "least_rate": 1e-6, **arguments})
    state = attack.prepare(nn.Linear(2, 2) if x.shape[1] == 2 else STEEP, x, None, 0)
    return attack, state, attack.first(state)


@pytest.mark.parametrize("norm", ["linf", "l2"])
def test_best_member_never_gets_worse(norm: Any) -> None:
    model, x = opposed(torch.ones(8), 100.0), torch.full((3, 8), 0.5) + torch.arange(3)[:, None] * 0.01
    attacks = [GenAttack(norm=norm, eps=0.2, steps=steps, population=10) for steps in (1, 2, 5, 20)]
    margins = [model(attack(model, x))[:, 0] for attack in attacks]
    assert all((after <= before + 1e-5).all() for before, after in pairwise(margins))
    assert (margins[-1] < margins[0] - 0.05).all()


@pytest.mark.parametrize("norm", ["linf", "l2"])
def test_first_generation_fills_the_ball(norm: Any) -> None:
    _, _, members = first_generation(torch.zeros(1, 2), norm=norm, population=400, bounds=None)
    length = members[:, 0].abs().amax(1) if norm == "linf" else members[:, 0].norm(dim=1)
    assert length.max() <= 0.2
    # the share of a disc or square within half its radius is a quarter
    assert 0.18 < float((length < 0.1).double().mean()) < 0.32


def test_children_have_the_coordinates_of_their_parents_and_fit_parents_are_preferred() -> None:
    attack, state, members = first_generation(torch.full((2, 5), 0.5))
    children = attack.children(state, members, attack.evaluate(state, members)[0], torch.zeros(2))
    assert children.shape == (5, 2, 5)
    assert (children[:, None] == members[None]).any(1).all()
    losses = torch.full((6, 2), -50.0)
    losses[4] = 10.0
    children = attack.children(state, members, losses, torch.zeros(2))
    torch.testing.assert_close(children, members[4:5].expand_as(children), atol=1e-6, rtol=0)


def test_mutation_shrinks_without_progress() -> None:
    x = torch.full((2, 5), 0.5) + torch.arange(2)[:, None] * 0.01
    settings = {"population": 50, "mutation_rate": 1.0, "decay": 0.5, "least_range": 0.01, "least_rate": 1.0}
    attack, state, _ = first_generation(x, **settings)
    moved = attack.children(state, x.expand(50, 2, 5), torch.zeros(50, 2), torch.tensor([0.0, 3.0])) - x
    limit = 0.2 * 0.4 * torch.tensor([1.0, 0.125])
    largest = moved.abs().amax((0, 2))
    assert (largest <= limit + 1e-6).all()
    assert (largest > 0.9 * limit).all()
