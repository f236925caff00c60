"""Adversarial training of classifiers, a file per method, and attacks on whole sets of data."""

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from lit_modules.adversarial.adversarial_set import AdversarialSet, attack_dataset
    from lit_modules.adversarial.fast import FastTraining
    from lit_modules.adversarial.free import FreeTraining
    from lit_modules.adversarial.mart import MART
    from lit_modules.adversarial.pgd import PGDTraining
    from lit_modules.adversarial.standard import StandardTraining
    from lit_modules.adversarial.trades import KLPGD, TRADES

__all__ = [  # noqa: RUF022 - in the order of sorted()
    "AdversarialSet",
    "FastTraining",
    "FreeTraining",
    "KLPGD",
    "MART",
    "PGDTraining",
    "StandardTraining",
    "TRADES",
    "attack_dataset",
]

_MODULES = {
    "AdversarialSet": "adversarial_set",
    "FastTraining": "fast",
    "FreeTraining": "free",
    "KLPGD": "trades",
    "MART": "mart",
    "PGDTraining": "pgd",
    "StandardTraining": "standard",
    "TRADES": "trades",
    "attack_dataset": "adversarial_set",
}


def __getattr__(name: str) -> Any:
    if name not in _MODULES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(import_module(f"{__name__}.{_MODULES[name]}"), name)


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})
