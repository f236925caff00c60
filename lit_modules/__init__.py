"""Methods of papers as Lightning modules: ``lit_modules.NGDiff`` and its kin, each imported when first used."""

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from lit_modules.adversarial import MART, TRADES, FastTraining, FreeTraining, PGDTraining, StandardTraining
    from lit_modules.synthia.module import Synthia
    from lit_modules.synthia.training import TextToImageTraining
    from lit_modules.unlearning import CausalLMFineTuning, GradientAscent, GradientDifference, NGDiff

__version__ = "0.1.0"

__all__ = [  # noqa: RUF022 - in the order of sorted()
    "CausalLMFineTuning",
    "FastTraining",
    "FreeTraining",
    "GradientAscent",
    "GradientDifference",
    "MART",
    "NGDiff",
    "PGDTraining",
    "StandardTraining",
    "Synthia",
    "TRADES",
    "TextToImageTraining",
]

_MODULES = {
    "CausalLMFineTuning": "unlearning",
    "FastTraining": "adversarial",
    "FreeTraining": "adversarial",
    "GradientAscent": "unlearning",
    "GradientDifference": "unlearning",
    "MART": "adversarial",
    "NGDiff": "unlearning",
    "PGDTraining": "adversarial",
    "StandardTraining": "adversarial",
    "Synthia": "synthia",
    "TRADES": "adversarial",
    "TextToImageTraining": "synthia",
}


def __getattr__(name: str) -> Any:
    if name not in _MODULES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(import_module(f"{__name__}.{_MODULES[name]}"), name)


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})
