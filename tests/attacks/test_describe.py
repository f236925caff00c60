"""The text of an attack: settings that differ give texts that differ, whatever kind of value they are."""

import functools
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from lit_modules.attacks import FGSM, L2BIM, AutoAttack, BestOf, LinfBIM, LinfPGD, SparseL1Descent
from lit_modules.attacks.engine.losses import margin
from lit_modules.utils.fingerprint import identify


def make_loss(factor: float) -> Callable[[Tensor, Tensor], Tensor]:
    def loss(logits: Tensor, label: Tensor) -> Tensor:
        return factor * margin(logits, label)

    return loss


def scaled(logits: Tensor, label: Tensor, factor: float) -> Tensor:
    return factor * margin(logits, label)


class Scaled:
    """A loss that is an object."""

    def __init__(self, factor: float) -> None:
        self.factor = factor

    def __call__(self, logits: Tensor, label: Tensor) -> Tensor:
        return self.factor * margin(logits, label)

    def method(self, logits: Tensor, label: Tensor) -> Tensor:
        return self(logits, label)


PAIRS: dict[str, tuple[dict[str, Any], dict[str, Any]]] = {
    "name": ({"loss": "margin"}, {"loss": "dlr"}),
    "function": ({"loss": margin}, {"loss": make_loss(1.0)}),
    "closure": ({"loss": make_loss(1.0)}, {"loss": make_loss(2.0)}),
    "lambda": ({"loss": lambda x, y: margin(x, y)}, {"loss": lambda x, y: -margin(x, y)}),
    "partial": ({"loss": functools.partial(scaled, factor=1)}, {"loss": functools.partial(scaled, factor=2)}),
    "object": ({"loss": Scaled(1.0)}, {"loss": Scaled(2.0)}),
    "method": ({"loss": Scaled(1.0).method}, {"loss": Scaled(2.0).method}),
    "module": (
        {"loss": nn.CrossEntropyLoss(reduction="none")},
        {"loss": nn.CrossEntropyLoss(reduction="none", label_smoothing=0.3)},
    ),
    "weight": (
        {"loss": nn.CrossEntropyLoss(torch.ones(40), reduction="none")},
        {"loss": nn.CrossEntropyLoss(torch.ones(40) * 2, reduction="none")},
    ),
    "radii": ({"eps": torch.full((40,), 0.1)}, {"eps": torch.full((40,), 0.1).index_fill(0, torch.tensor([39]), 0.2)}),
    "bounds": ({"bounds": (0.0, torch.ones(3, 1, 1))}, {"bounds": (0.0, torch.ones(3))}),
    "number": ({"bounds": (0.0, torch.tensor(1.0))}, {}),
}


@pytest.mark.parametrize("kind", PAIRS)
def test_other_settings_have_another_text(kind: str) -> None:
    first, second = PAIRS[kind]
    assert repr(LinfPGD(**first)) != repr(LinfPGD(**second))
    assert repr(BestOf(attacks=[LinfPGD(**first)])) != repr(BestOf(attacks=[LinfPGD(**second)]))
    assert repr(LinfPGD(**first)) == repr(LinfPGD(**first))
    assert " at 0x" not in repr(LinfPGD(**first))
    assert identify(LinfPGD(**first)) != identify(LinfPGD(**second))


def test_arguments_of_the_bases_are_shown() -> None:
    for kind in (SparseL1Descent, LinfBIM, L2BIM):
        assert repr(kind(eot_samples=3)).endswith("eot_samples=3)")
        assert "random_start" not in repr(kind())
    assert repr(FGSM()) == "FGSM(eps=0.3, loss='cross_entropy', keep='first', eot_samples=1)"
    assert (
        repr(AutoAttack(seed=2))
        == "AutoAttack(norm='linf', eps=0.3, version='standard', attacks=None, check=True, seed=2)"
    )


def test_what_cannot_be_told_has_its_own_text() -> None:
    class Drawn:
        def __init__(self) -> None:
            self.generator = torch.Generator()

        def __call__(self, logits: Tensor, label: Tensor) -> Tensor:
            return margin(logits, label)

    assert repr(LinfPGD(loss=Drawn())) != repr(LinfPGD(loss=Drawn()))
