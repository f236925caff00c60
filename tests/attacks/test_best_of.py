"""The ensemble: which result is kept, who meets which attack, and what it refuses."""

from dataclasses import dataclass, field
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from lit_modules.attacks.engine.base import Attack
from lit_modules.attacks.engine.state import AttackState, Outcome
from lit_modules.attacks.ensembles import BestOf
from lit_modules.attacks.fast_feature import FastFeature
from lit_modules.attacks.pgd import FGSM, L2PGD, LinfPGD
from lit_modules.attacks.spatial import SpatialTransform


class Sum(nn.Module):
    """Says 1 where the values sum to more than 0."""

    def forward(self, x: Tensor) -> Tensor:
        total = x.flatten(1).sum(1)
        return torch.stack([-total, total], 1)


class Push(Attack):
    """Subtract a constant: the smallest perturbation if told to be minimal."""

    def __init__(self, by: float, minimal: bool = True, norm: str = "linf", **arguments: Any) -> None:
        super().__init__(**arguments)
        self.by, self.minimum_norm, self.norm = by, minimal, norm
        self.seen: list[int] = []

    def attack(self, state: AttackState) -> Outcome:
        self.seen += state.index.tolist()
        x = state.clamp(state.x - self.by)
        success = state.fooled(state.logits(x))
        if not self.minimum_norm:
            return Outcome(x, success, -x.sum(1))
        score = torch.where(success, -(x - state.x).abs().amax(1), float("-inf"))
        return Outcome(torch.where(success[:, None], x, state.x), success, score)


@dataclass
class Case:
    x: Tensor = field(default_factory=lambda: torch.tensor([[0.1] * 4, [0.3] * 4, [0.5] * 4, [-0.2] * 4]))
    y: Tensor = field(default_factory=lambda: torch.ones(4, dtype=torch.int64))


BOX = (-1.0, 1.0)


def test_first_stops_each_sample_at_its_first_success() -> None:
    case, first, second = Case(), Push(0.4, bounds=BOX), Push(0.2, bounds=BOX)
    result = BestOf(attacks=[first, second]).run(Sum(), case.x, case.y)
    assert first.seen == [0, 1, 2]
    assert second.seen == [2]
    assert result.success.tolist() == [True, True, False, True]
    assert result.distance.tolist() == pytest.approx([0.4, 0.4, float("inf"), 0], abs=1e-6)


def test_best_keeps_the_smallest_distance_and_never_zeros() -> None:
    case = Case()
    attacks = [Push(0.4, bounds=BOX), Push(0.2, bounds=BOX), Push(0.35, bounds=BOX)]
    result = BestOf(attacks=attacks, keep="best").run(Sum(), case.x, case.y)
    assert result.success.tolist() == [True, True, False, True]
    assert result.distance.tolist() == pytest.approx([0.2, 0.35, float("inf"), 0], abs=1e-6)
    assert torch.equal(result.adversarial[2], case.x[2])
    assert all(attack.seen == [0, 1, 2] for attack in attacks)


def test_failures_return_the_best_attempt() -> None:
    case = Case()
    attacks = [
        Push(0.1, minimal=False, bounds=BOX),
        Push(0.2, minimal=False, bounds=BOX),
        Push(-0.1, False, bounds=BOX),
    ]
    result = BestOf(attacks=attacks).run(Sum(), case.x, case.y)
    assert result.success.tolist() == [True, False, False, True]
    assert torch.allclose(result.adversarial[2], case.x[2] - 0.2)
    backwards = BestOf(attacks=[Push(-0.1, False, bounds=BOX)]).run(Sum(), case.x, case.y)
    assert torch.equal(backwards.adversarial, case.x)


def linear() -> nn.Module:
    torch.manual_seed(0)
    return nn.Sequential(nn.Flatten(), nn.Linear(16, 3))


def test_at_least_as_strong_as_each_member() -> None:
    model, x = linear(), torch.rand(40, 16)
    members = [FGSM(eps=0.05), LinfPGD(eps=0.08, steps=5, step_size=0.03), L2PGD(eps=0.3, steps=5, step_size=0.1)]
    result = BestOf(attacks=members).run(model, x)
    each = torch.stack([member.run(model, x).success for member in members])
    assert torch.equal(result.success, each.any(0))
    assert torch.equal(model(result.adversarial).argmax(1) != model(x).argmax(1), result.success)
    assert bool(result.success.any())
    assert not bool(result.success.all())


def test_radius_of_each_sample_follows_the_samples_left() -> None:
    model, x = linear(), torch.rand(6, 16)
    eps = torch.linspace(0, 0.3, 6)
    attack = BestOf(attacks=[FGSM(eps=eps / 4), LinfPGD(eps=eps, steps=5, step_size=0.1)], keep="best")
    result = attack.run(model, x)
    assert bool((result.distance <= eps + 1e-6).all())
    alone = torch.cat(
        [
            BestOf(attacks=[FGSM(eps=e / 4), LinfPGD(eps=e, steps=5, step_size=0.1)], keep="best")(model, x[i : i + 1])
            for i, e in enumerate(eps.tolist())
        ]
    )
    assert torch.allclose(result.adversarial, alone, atol=1e-6)


def test_norm_and_radius_where_all_agree() -> None:
    same = BestOf(attacks=[FGSM(eps=0.1), LinfPGD(eps=0.1)])
    assert (same.norm, same.eps, same.minimum_norm) == ("linf", 0.1, False)
    mixed = BestOf(attacks=[FGSM(eps=0.1), L2PGD(eps=0.1)])
    assert (mixed.norm, mixed.eps) == (None, None)
    assert BestOf(attacks=[Push(0.1), Push(0.2)]).minimum_norm
    assert BestOf(attacks=[FGSM(eps=0.1), FGSM(eps=0.2)]).eps is None


def test_holds_each_member_to_its_radius() -> None:
    class Cheat(FGSM):
        def step(self, state: AttackState, x: Tensor, gradient: Tensor, carry: dict[str, Tensor]) -> Tensor:
            return state.clamp(x + 2 * state.radius * gradient.sign())

    with pytest.raises(RuntimeError, match="The attack broke its radius"):
        BestOf(attacks=[LinfPGD(eps=1e-4, steps=1), Cheat(eps=0.01)])(linear(), torch.rand(4, 16))


def test_mixes_spatial_and_bounded_attacks() -> None:
    x = torch.rand(4, 1, 4, 4)
    attack = BestOf(attacks=[LinfPGD(eps=1e-3, steps=2, step_size=1e-3), SpatialTransform(steps=30, step_size=0.2)])
    result = attack.run(linear(), x)
    alone = SpatialTransform(steps=30, step_size=0.2).run(linear(), x)
    assert bool((result.success >= alone.success).all())
    assert bool((result.adversarial.flatten(1).abs().sum(1) > 0).all())


def test_refusals() -> None:
    with pytest.raises(ValueError, match="at least one attack, got none"):
        BestOf(attacks=[])
    with pytest.raises(TypeError, match=r"attacks of lit_modules\.attacks, got function"):
        BestOf(attacks=[linear])  # type: ignore[list-item]
    with pytest.raises(TypeError, match="BestOf gives its attacks labels; FastFeature takes something else"):
        BestOf(attacks=[FastFeature(eps=0.1)])
    with pytest.raises(ValueError, match="same targeted, got True in FGSM and False"):
        BestOf(attacks=[FGSM(), FGSM(targeted=True)])
    with pytest.raises(ValueError, match="same bounds"):
        BestOf(attacks=[FGSM(), FGSM(bounds=(0.0, torch.tensor([1.0, 2.0])))])
    with pytest.raises(TypeError, match="bounds"):
        BestOf(attacks=[FGSM()], bounds=None)  # type: ignore[call-arg]
    with pytest.raises(ValueError, match="keep must be 'first' or 'best', got 'last'"):
        BestOf(attacks=[FGSM()], keep="last")  # type: ignore[arg-type]
