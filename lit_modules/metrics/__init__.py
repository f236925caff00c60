"""Benchmarks' numbers as ``torchmetrics`` objects, each imported when first used."""

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from lit_modules.metrics.lume import LUMEScore
    from lit_modules.metrics.mmlu import evaluate_mmlu, read_mmlu

__all__ = ["LUMEScore", "evaluate_mmlu", "read_mmlu"]

_MODULES = {"LUMEScore": "lume", "evaluate_mmlu": "mmlu", "read_mmlu": "mmlu"}


def __getattr__(name: str) -> Any:
    if name not in _MODULES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(import_module(f"{__name__}.{_MODULES[name]}"), name)


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})
