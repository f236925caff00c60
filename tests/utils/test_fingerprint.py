"""Hashes of what an object will do."""

import collections
import enum
import functools
import logging
import random
import re
import subprocess
import sys
import threading
import types
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import nn

from lit_modules.attacks import AutoAttack, BestOf, LinfPGD, Square
from lit_modules.defenses import BPDA, JPEG, Preprocess
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


def power(k: float) -> Any:
    return lambda x: x**k


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


class Number(float):
    pass


def hooked(k: float) -> nn.Module:
    model = net()
    model.register_forward_hook(lambda module, inputs, output: output * k)
    return model


def overridden(k: float) -> nn.Module:
    model = net()
    model.forward = power(k)  # type: ignore[method-assign]
    return model


def buffered(k: float) -> nn.Module:
    model = net()
    model.register_buffer("k", torch.tensor(k), persistent=False)
    return model


def with_class_attribute(k: float) -> Any:
    return made(f"class f:\n    k = {k}\n    def __call__(self, x): return x * self.k")()


def cyclic(k: float) -> Any:
    value: list[Any] = [k]
    value.append(value)
    return value


DIFFER = {
    "number": lambda k: k,
    "float subclass": Number,
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
    "class attribute": with_class_attribute,
    "base class": lambda k: made(f"class g:\n    def m(self): return {k}\nclass f(g): pass")(),
    "plain attribute of a module": Tempered,
    "hook": hooked,
    "forward of one object": overridden,
    "buffer that checkpoints leave out": buffered,
    "substitute of BPDA": lambda k: BPDA(torch.round, substitute=power(k)),
    "transform": lambda k: Preprocess(power(k), net()),
    "quality": lambda k: JPEG(int(k * 10)),
    "radius": lambda k: LinfPGD(eps=k),
    "seed": lambda k: LinfPGD(seed=int(k)),
    "loss object": lambda k: LinfPGD(loss=nn.CrossEntropyLoss(reduction="none", label_smoothing=k / 10)),
    "bounds": lambda k: LinfPGD(bounds=(torch.zeros(3, 1, 1), torch.full((3, 1, 1), k))),
    "member": lambda k: BestOf(attacks=[Square(queries=int(k))]),
    "ensemble": lambda k: AutoAttack(eps=k),
    "pattern": lambda k: re.compile(f"a{int(k)}"),
    "path": lambda k: Path(f"{k}"),
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
        (b"a", "a"),
        ([1, 2], (1, 2)),
        ([[1], 2], [1, [2]]),
        ({"a": 1}, {"b": 1}),
        (torch.round, torch.floor),
        (np.sin, np.cos),
        (torch.float32, torch.float64),
        (torch.zeros(2, 3), torch.zeros(3, 2)),
        (torch.zeros(2), torch.zeros(2).double()),
        (nn.ReLU(), nn.Tanh()),
        (Preprocess(torch.round, net()), Preprocess(torch.round, net(), bpda=True)),
        (enum.Enum("A", "a b")["a"], enum.Enum("A", "a b")["b"]),
        (logging.getLogger("a"), logging.getLogger("b")),
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


def test_a_value_of_another_module_of_the_user_counts() -> None:
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
        (lambda: [random.Random(0)], r"value\[0\] is a random generator"),
        (lambda: np.random.default_rng(0), "value is a Generator, which gives something else each time"),
        (lambda: (i for i in range(3)), "value is a generator, which gives something else each time"),
        (lambda: threading.Lock(), r"value is of _thread\.lock, which does not say what it is made of"),
        (lambda: functools.partial(scaled, threading.Lock()), "which does not say what it is made of"),
        (lambda: torch.zeros(2, device="meta"), "value is a tensor without plain values"),
        (lambda: torch.eye(2).to_sparse(), "value is a tensor without plain values"),
        (lambda: functools.reduce(lambda inner, _: [inner], range(5000), []), "value is nested too deeply"),
    ],
)
def test_what_cannot_be_told_is_named(value: Any, message: str) -> None:
    with pytest.raises(UnidentifiableError, match=message):
        identify(value())


def test_an_open_file_cannot_be_told(tmp_path: Path) -> None:
    with (tmp_path / "file").open("w") as file, pytest.raises(UnidentifiableError, match="is a TextIOWrapper"):
        identify({"log": file})


@pytest.mark.slow
def test_every_process_gives_the_same_hash() -> None:
    """Names of sets and addresses of functions change from process to process."""
    code = (
        "import torch\nfrom torch import nn\nfrom lit_modules.attacks import AutoAttack\n"
        "from lit_modules.defenses import Preprocess\nfrom lit_modules.utils.fingerprint import identify\n"
        "torch.manual_seed(0)\nnet = nn.Sequential(nn.Flatten(), nn.Linear(4, 3))\nk = 2\n"
        "print(identify([AutoAttack(), Preprocess(lambda x: x ** k, net, bpda=True), {'a', 'b', 'c'}]))"
    )
    seeds = ("0", "1")
    runs = [
        subprocess.run([sys.executable, "-c", code], env={"PYTHONHASHSEED": seed, "PYTHONPATH": ":".join(sys.path)},
                       capture_output=True, text=True, check=True)
        for seed in seeds
    ]  # fmt: skip
    assert len({run.stdout for run in runs}) == 1
    assert len(runs[0].stdout.strip()) == 64
