"""Hashes of what an object will do."""

import collections
import enum
import functools
import subprocess
import sys
import threading
import types
from typing import Any

import numpy as np
import pytest
import torch
from torch import nn

from lit_modules.attacks import AutoAttack, BestOf, LinfPGD, Square
from lit_modules.defenses import BPDA, Preprocess
from lit_modules.utils.fingerprint import UnidentifiableError, identify

SCALE = 2.0


def scaled(x: Any) -> Any:
    return x * SCALE


def through_scaled(x: Any) -> Any:
    return scaled(x) + 1


def net() -> nn.Module:
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        return nn.Sequential(nn.Flatten(), nn.Linear(4, 3))


def made(source: str, name: str = "f") -> Any:
    """Return what a file of the user's defines."""
    module = types.ModuleType("mine")
    exec(compile(source, "mine.py", "exec"), module.__dict__)
    return getattr(module, name)


class Tempered(nn.Module):
    def __init__(self, k: float) -> None:
        super().__init__()
        self.net, self.k = net(), k

    def forward(self, x: Any) -> Any:
        return self.net(x**self.k)


class Slotted:
    __slots__ = ("k",)

    def __init__(self, k: float) -> None:
        self.k = k


def power(k: float) -> Any:
    return lambda x: x**k


def altered(k: float, how: str) -> nn.Module:
    """Return a network that is changed in a way that its parameters do not show."""
    model = net()
    if how == "hook":
        model.register_forward_hook(lambda module, inputs, output: output * k)
    elif how == "forward":
        model.forward = power(k)  # type: ignore[method-assign]
    else:
        model.register_buffer("k", torch.tensor(k), persistent=False)
    return model


def cyclic(k: float) -> Any:
    value: list[Any] = [k]
    value.append(value)
    return value


DIFFER = {
    "number": lambda k: k,
    "array": lambda k: np.array([k]),
    "numpy number": np.float32,
    "tensor": lambda k: torch.tensor([k]),
    "container": lambda k: {"a": [(k,), {k}]},
    "deque": lambda k: collections.deque([k]),
    "slots": Slotted,
    "cycle": cyclic,
    "closure": power,
    "default": lambda k: lambda x, k=k: x * k,
    "partial": lambda k: functools.partial(scaled, k=k),
    "cached": lambda k: functools.cache(power(k)),
    "bound method": lambda k: Tempered(k).forward,
    "constant": lambda k: made(f"def f(x): return x * {k}"),
    "constant of an inner function": lambda k: made(f"def f(x):\n    def g(y): return y * {k}\n    return g(x)"),
    "global": lambda k: made(f"K = {k}\ndef f(x): return x * K"),
    "function called": lambda k: made(f"def g(x): return x * {k}\ndef f(x): return g(x)"),
    "class attribute": lambda k: made(f"class f:\n    k = {k}\n    def __call__(self, x): return x * self.k")(),
    "base class": lambda k: made(f"class g:\n    def m(self): return {k}\nclass f(g): pass")(),
    "plain attribute of a module": Tempered,
    "hook": lambda k: altered(k, "hook"),
    "forward of one object": lambda k: altered(k, "forward"),
    "buffer that checkpoints leave out": lambda k: altered(k, "buffer"),
    "substitute of BPDA": lambda k: BPDA(torch.round, substitute=power(k)),
    "transform": lambda k: Preprocess(power(k), net()),
    "radius": lambda k: LinfPGD(eps=k),
    "loss object": lambda k: LinfPGD(loss=nn.CrossEntropyLoss(reduction="none", label_smoothing=k / 10)),
    "bounds": lambda k: LinfPGD(bounds=(torch.zeros(3, 1, 1), torch.full((3, 1, 1), k))),
    "member": lambda k: BestOf(attacks=[Square(queries=int(k))]),
    "ensemble": lambda k: AutoAttack(eps=k),
}


@pytest.mark.parametrize("name", DIFFER)
def test_what_acts_otherwise_has_another_hash(name: str) -> None:
    make: Any = DIFFER[name]
    assert identify(make(2.0)) == identify(make(2.0))
    assert identify(make(2.0)) != identify(make(3.0))


@pytest.mark.parametrize(
    ("one", "other"),
    [
        (1, 1.0),
        ("1", 1),
        ([1, 2], (1, 2)),
        ([[1], 2], [1, [2]]),
        (torch.round, torch.floor),
        (torch.float32, torch.float64),
        (torch.zeros(2, 3), torch.zeros(3, 2)),
        (torch.zeros(2), torch.zeros(2).double()),
        (Preprocess(torch.round, net()), Preprocess(torch.round, net(), bpda=True)),
        (enum.Enum("A", "a b")["a"], enum.Enum("A", "a b")["b"]),
        (made("def f(x): return x + 1"), made("def f(x): return x - 1")),
    ],
)
def test_other_things_have_another_hash(one: Any, other: Any) -> None:
    assert identify(one) == identify(one)
    assert identify(one) != identify(other)


def test_a_global_counts_with_its_value_of_now(monkeypatch: pytest.MonkeyPatch) -> None:
    before = identify(through_scaled)
    monkeypatch.setattr(sys.modules[__name__], "SCALE", 3.0)
    assert identify(through_scaled) != before

    def using(k: float) -> Any:
        settings = types.ModuleType("settings")
        settings.K = k  # type: ignore[attr-defined]
        function = made("def f(x): return x * settings.K")
        function.__globals__["settings"] = settings
        return function

    assert identify(using(1.0)) == identify(using(1.0)) != identify(using(2.0))


def test_mode_gradients_and_compilation_are_no_part_of_a_module() -> None:
    model = net()
    before = identify(model)
    assert identify(model.train().requires_grad_(False)) == identify(model.eval()) == before
    compiled = torch.compile(model)
    assert identify(compiled) == identify(torch.compile(net())) != before
    model.compile()
    assert identify(model) == before


def test_a_lightning_module_is_told_without_its_trainer() -> None:
    from lit_modules import PGDTraining

    module = PGDTraining(net())
    before = identify(module)
    module._trainer = threading.Lock()  # type: ignore[assignment]
    assert identify(module) == before


@pytest.mark.parametrize(
    ("value", "message"),
    [
        (lambda: {"noise": torch.Generator()}, r"value\['noise'\] is a random generator"),
        (lambda: np.random.default_rng(0), "value is a Generator, which gives something else each time"),
        (lambda: {"log": sys.__stdout__}, r"value\['log'\] is a TextIOWrapper"),
        (lambda: (i for i in range(3)), "value is a generator, which gives something else each time"),
        (lambda: threading.Lock(), r"value is of _thread\.lock, which does not say what it is made of"),
        (lambda: torch.eye(2).to_sparse(), "value is a tensor without plain values"),
        (lambda: functools.reduce(lambda inner, _: [inner], range(5000), []), "value is nested too deeply"),
    ],
)
def test_what_cannot_be_told_is_named(value: Any, message: str) -> None:
    with pytest.raises(UnidentifiableError, match=message):
        identify(value())


@pytest.mark.slow
def test_every_process_gives_the_same_hash() -> None:
    """Names of sets and addresses of functions change from process to process."""
    code = (
        "import torch\nfrom torch import nn\nfrom lit_modules.attacks import AutoAttack\n"
        "from lit_modules.defenses import Preprocess\nfrom lit_modules.utils.fingerprint import identify\n"
        "torch.manual_seed(0)\nnet = nn.Sequential(nn.Flatten(), nn.Linear(4, 3))\nk = 2\n"
        "print(identify([AutoAttack(), Preprocess(lambda x: x ** k, net, bpda=True), {'a', 'b', 'c'}]))"
    )
    path = ":".join(sys.path)
    one, two = (
        subprocess.check_output([sys.executable, "-c", code], env={"PYTHONHASHSEED": seed, "PYTHONPATH": path})
        for seed in ("0", "1")
    )
    assert one == two
    assert len(one.strip()) == 64
