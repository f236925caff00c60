"""Arguments of the attacks: their options, defaults and help on the command line, and one sentence for a bad value."""

import contextlib
import inspect
import io
import re
from typing import Any

import pytest
import torch
import yaml
from jsonargparse import ArgumentParser

import lit_modules.attacks
from lit_modules.attacks import APGD, FGSM, Attack, LinfPGD
from tests.attacks.test_catalogue import NAMES, QUICK


def parser() -> ArgumentParser:
    """A parser of one attack; a configuration file gives it ``--print_config``."""
    parser = ArgumentParser(exit_on_error=False)
    parser.add_argument("--config", action="config")
    parser.add_subclass_arguments(Attack, "attack")
    return parser


def printed(*arguments: str) -> str:
    with contextlib.redirect_stdout(io.StringIO()) as out, pytest.raises(SystemExit):
        parser().parse_args(arguments)
    return out.getvalue()


def signature(kind: type[Attack]) -> dict[str, Any]:
    """Own and shared arguments with their defaults, without those that the attack sets itself."""
    defaults: dict[str, Any] = {}
    for base in kind.__mro__[: kind.__mro__.index(Attack) + 1]:
        for name, parameter in inspect.signature(base).parameters.items():
            if parameter.kind != parameter.VAR_KEYWORD and (base is kind or parameter.default is not parameter.empty):
                defaults.setdefault(name, parameter.default)
    taken = {"BestOf": {"targeted", "bounds", "precision", "model_mode"}}.get(kind.__name__, set())
    return {name: value for name, value in defaults.items() if name not in {*kind.fixed, *taken}}


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.filterwarnings("ignore::DeprecationWarning")
def test_command_line_has_all_options_with_defaults_and_help(name: str) -> None:
    expected = signature(getattr(lit_modules.attacks, name))
    assert {"seed", "restarts"} <= set(expected)
    required = ["--attack.attacks=[lit_modules.attacks.FGSM]"] if name == "BestOf" else []
    shown = yaml.safe_load(printed(f"--attack=lit_modules.attacks.{name}", *required, "--print_config"))["attack"]
    assert set(shown["init_args"]) == set(expected)
    text = " ".join(printed(f"--attack.help=lit_modules.attacks.{name}").partition("Help for")[2].split())
    for key, value in expected.items():
        if key != "attacks":
            assert shown["init_args"][key] == (list(value) if isinstance(value, tuple) else value), key
        sentence = re.search(rf"--attack\.{key} (?:{{.*?}}|\S+)(?:, --\S+ \S+)? (.*?)\((?:type|required)", text)
        assert sentence, key
        assert len(sentence[1]) > 10, key


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.filterwarnings("ignore::DeprecationWarning")
def test_class_path(name: str) -> None:
    arguments = [f"--attack=lit_modules.attacks.{name}", "--attack.seed=7", "--attack.restarts=2"]
    bounds = [-1.0, 2.0]
    if name == "BestOf":  # which takes them from its members
        member = f"class_path: lit_modules.attacks.LinfPGD, init_args: {{bounds: {bounds}}}"
        arguments.append(f"--attack.attacks=[{{{member}}}]")
    else:
        arguments.append(f"--attack.bounds={bounds}")
    if name == "AutoAttack":
        arguments.append("--attack.attacks=[lit_modules.attacks.APGD]")
    quick = next(quick for known, _, quick in QUICK if known == name)
    arguments += [f"--attack.{key}={value}" for key, value in quick.items()]
    attack = parser().instantiate(parser().parse_args(arguments)).attack
    assert type(attack) is getattr(lit_modules.attacks, name)
    assert (attack.seed, attack.restarts, list(attack.bounds)) == (7, 2, bounds)
    for key, value in quick.items():
        assert getattr(attack, key) == value


def test_unknown_and_positional_arguments_are_refused() -> None:
    with pytest.raises(TypeError, match="unexpected keyword argument 'step'"):
        LinfPGD(step=3)  # type: ignore[call-arg]
    with pytest.raises(TypeError, match="positional"):
        FGSM(0.3)  # type: ignore[misc]


@pytest.mark.parametrize(
    ("name", "arguments", "message"),
    [
        ("LinfPGD", {"eps": -0.1}, r"eps must be finite and at least 0, got -0\.1"),
        ("LinfPGD", {"eps": torch.tensor([0.1, float("nan")])}, "eps must be finite and at least 0"),
        ("LinfPGD", {"eps": torch.rand(2, 2)}, r"eps must be a number or hold one .* per sample, got shape \(2, 2\)"),
        ("LinfPGD", {"steps": 0}, "steps must be an integer of at least 1, got 0"),
        ("LinfPGD", {"steps": 2.0}, r"steps must be an integer of at least 1, got 2\.0"),
        ("LinfPGD", {"restarts": True}, "restarts must be an integer of at least 1, got True"),
        ("LinfPGD", {"step_size": 0.0}, r"step_size must be positive and finite, got 0\.0"),
        ("LinfPGD", {"keep": "all"}, "keep must be 'first' or 'best' or 'last', got 'all'"),
        ("LinfPGD", {"loss": "hinge"}, "loss must be one of cross_entropy, margin, dlr.*got 'hinge'"),
        ("LinfPGD", {"precision": "16"}, "precision must be '32' or 'bf16', got '16'"),
        ("L1PGD", {"sparsity": 1.5}, r"sparsity must lie in \[0, 1\], got 1\.5"),
        ("L2Momentum", {"decay": -0.5}, r"decay must lie in \[0, inf\), got -0\.5"),
        ("APGD", {"norm": "l0"}, "norm must be 'linf' or 'l2' or 'l1', got 'l0'"),
        ("APGDT", {"targeted": True}, r"chooses its targets itself.*APGD\(targeted=True\)"),
        ("AutoAttack", {"version": "custom"}, "attacks belong to version='custom' .*, got None with 'custom'"),
        ("AutoAttack", {"attacks": [APGD()]}, "attacks belong to version='custom' and only to it.*'standard'"),
        ("AutoAttack", {"version": "custom", "attacks": [APGD(norm="l2")]}, "must have the norm 'linf', got APGD"),
        ("AutoAttack", {"version": "custom", "attacks": [APGD(targeted=True)]}, "must be untargeted, got APGD"),
        ("Square", {"start_area": 0.0}, r"start_area must lie in \(0, 1\], got 0\.0"),
        ("NES", {"norm": "l1"}, "norm must be 'linf' or 'l2', got 'l1'"),
        ("NAttack", {"transform": "tanh", "bounds": None}, "transform='tanh' maps onto the bounds, got bounds=None"),
        ("GenAttack", {"population": 1}, "population must be an integer of at least 2, got 1"),
        ("FAB", {"search_steps": -1}, "search_steps must be an integer of at least 0, got -1"),
        ("FAB", {"stop_radius": 0.0}, r"stop_radius must be positive and finite, got 0\.0"),
        ("FAB", {"beta": 1.0}, r"beta must lie in \(0, 1\), got 1\.0"),
        ("DDN", {"levels": 256, "bounds": None}, "levels divide the range between the bounds; pass bounds="),
        ("JSMA", {"theta": 0.0}, r"theta must be finite and not 0, got 0\.0"),
        ("SpatialTransform", {"padding_mode": "wrap"}, "must be 'zeros' or 'border' or 'reflection', got 'wrap'"),
    ],
)
def test_bad_values(name: str, arguments: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        getattr(lit_modules.attacks, name)(**arguments)
