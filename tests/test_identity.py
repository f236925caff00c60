"""What a value is: different ones differ, equal ones agree in every process, and what cannot be told is said."""

import functools
import subprocess
import sys
import threading
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from lit_modules.attacks import FGSM, BestOf, LinfPGD
from lit_modules.attacks.losses import margin
from lit_modules.utils.identity import describe

TEMPERATURE = 2.0


def scaled(logits: Tensor, label: Tensor) -> Tensor:
    return margin(logits / TEMPERATURE, label)


def make_loss(factor: float) -> Callable[[Tensor, Tensor], Tensor]:
    def loss(logits: Tensor, label: Tensor) -> Tensor:
        return factor * margin(logits, label)

    return loss


class Weighted(nn.Module):
    def __init__(self, weight: Tensor, power: float = 1.0) -> None:
        super().__init__()
        self.register_buffer("weight", weight, persistent=False)
        self.power = power

    def forward(self, logits: Tensor, label: Tensor) -> Tensor:
        return margin(logits, label)


@dataclass
class Settings:
    value: float
    loss: Any = scaled

    def __call__(self, logits: Tensor, label: Tensor) -> Tensor:
        return margin(logits, label) * self.value

    def method(self, logits: Tensor, label: Tensor) -> Tensor:
        return self(logits, label)


PAIRS: list[tuple[Any, Any]] = [
    (1, 1.0),
    ("1", 1),
    ((1,), [1]),
    ({"a": 1}, {"a": 2}),
    (torch.tensor([1.0]), torch.tensor([1.0], dtype=torch.float64)),
    (torch.zeros(40), torch.zeros(40).index_fill(0, torch.tensor([39]), 1e-9)),
    (torch.zeros(40), torch.zeros(5, 8)),
    (lambda x: x + 1, lambda x: x + 2),
    (lambda x: x.exp(), lambda x: x.log()),
    (make_loss(1.0), make_loss(2.0)),
    (functools.partial(scaled, 1), functools.partial(scaled, 2)),
    (nn.CrossEntropyLoss(reduction="none"), nn.CrossEntropyLoss(reduction="none", label_smoothing=0.3)),
    (nn.CrossEntropyLoss(), nn.CrossEntropyLoss(weight=torch.ones(3))),
    (Weighted(torch.ones(30)), Weighted(torch.ones(30) * 2)),
    (Weighted(torch.ones(30)), Weighted(torch.ones(30), 2.0)),
    (Settings(1.0), Settings(2.0)),
    (Settings(1.0).method, Settings(2.0).method),
    (Settings(1.0), Settings(1.0, make_loss(3.0))),
    (margin, scaled),
    (FGSM(eps=0.1), FGSM(eps=0.2)),
    (FGSM(loss=make_loss(1.0)), FGSM(loss=make_loss(2.0))),
    (BestOf(attacks=[FGSM(loss=make_loss(1.0))]), BestOf(attacks=[FGSM(loss=make_loss(2.0))])),
]


@pytest.mark.parametrize(("first", "second"), PAIRS)
def test_values_that_differ(first: Any, second: Any) -> None:
    assert describe(first).text != describe(second).text
    assert describe(first).complete
    assert describe(second).complete


def test_values_that_agree() -> None:
    assert describe(make_loss(1.5)) == describe(make_loss(1.5))
    assert describe(Weighted(torch.ones(30))) == describe(Weighted(torch.ones(30)))
    assert describe({"a": (1, [None, True])}).text == "{'a': (1, [None, True])}"
    assert describe(torch.nn.functional.relu) == ("torch.nn.functional.relu", True)


def test_a_global_that_changes(monkeypatch: pytest.MonkeyPatch) -> None:
    before = describe(scaled)
    monkeypatch.setattr(sys.modules[__name__], "TEMPERATURE", 3.0)
    assert describe(scaled) != before


def test_circles_end() -> None:
    def even(n: int) -> bool:
        return n == 0 or odd(n - 1)

    def odd(n: int) -> bool:
        return n != 0 and even(n - 1)

    assert describe(even).complete
    circle: list[Any] = []
    circle.append(circle)
    assert describe(circle).text == "[<again>]"


HANDLE = object()


@pytest.mark.parametrize("value", [iter([]), torch.Generator(), HANDLE, [HANDLE], lambda: HANDLE, {}.get, "abc".join])
def test_what_cannot_be_told_is_said(value: Any) -> None:
    assert not describe(value).complete


def test_an_attack_with_something_unknown_has_no_fingerprint() -> None:
    handle = threading.Lock()
    assert LinfPGD(loss=lambda logits, label: (handle, margin(logits, label))[1]).fingerprint() is None
    hooked = nn.CrossEntropyLoss(reduction="none")
    hooked.register_forward_hook(lambda module, inputs, output: (handle, output * 2)[1])
    assert LinfPGD(loss=hooked).fingerprint() is None
    assert BestOf(attacks=[LinfPGD(loss=hooked)]).fingerprint() is None
    assert BestOf(attacks=[LinfPGD()]).fingerprint() is not None


def test_a_hook_is_part_of_a_fingerprint() -> None:
    def hooked(factor: float) -> LinfPGD:
        loss = nn.CrossEntropyLoss(reduction="none")
        loss.register_forward_hook(lambda module, inputs, output: output * factor)
        return LinfPGD(loss=loss)

    assert hooked(2.0).fingerprint() == hooked(2.0).fingerprint() != hooked(3.0).fingerprint()


def test_fingerprints_are_those_of_another_process(tmp_path: Path) -> None:
    code = """
import torch
from torch import nn
from lit_modules.attacks import AutoAttack, LinfPGD

class Own(LinfPGD):
    step_share = 0.25

def loss(logits, label):
    return {"a", "b", "c"} and logits[:, 0] * 2

for attack in (LinfPGD(eps=torch.tensor(0.1), loss=loss), AutoAttack(eps=0.1), Own(bounds=(torch.zeros(3), 1.0))):
    print(attack.fingerprint())
"""
    lines = []
    for number, text in enumerate((code, code, code.replace("0.25", "0.5").replace("* 2", "* 3"))):
        file = tmp_path / "own.py"
        file.write_text(text)
        environment = {"PYTHONHASHSEED": str(number), "PYTHONPATH": str(Path(__file__).parents[1])}
        done = subprocess.run([sys.executable, str(file)], capture_output=True, text=True, check=True, env=environment)
        lines.append(done.stdout.split())
    assert lines[0] == lines[1]
    assert [a == b for a, b in zip(lines[0], lines[2], strict=True)] == [False, True, False]
    assert "None" not in lines[0]
