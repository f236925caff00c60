"""Machine unlearning of causal language models: a file per method, and what they share."""

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from lit_modules.unlearning.fine_tuning import CausalLMFineTuning
    from lit_modules.unlearning.gradient_ascent import GradientAscent
    from lit_modules.unlearning.gradient_difference import GradientDifference
    from lit_modules.unlearning.ngdiff import NGDiff

__all__ = ["CausalLMFineTuning", "GradientAscent", "GradientDifference", "NGDiff"]

_MODULES = {
    "CausalLMFineTuning": "fine_tuning",
    "GradientAscent": "gradient_ascent",
    "GradientDifference": "gradient_difference",
    "NGDiff": "ngdiff",
}


def __getattr__(name: str) -> Any:
    if name not in _MODULES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(import_module(f"{__name__}.{_MODULES[name]}"), name)


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})
