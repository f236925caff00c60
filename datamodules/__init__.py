"""The data: a module per dataset, a LightningDataModule each."""

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from datamodules.lume import LUME
    from datamodules.synthetic_lume import SyntheticLUME

_MODULES = {"LUME": "lume", "SyntheticLUME": "synthetic_lume"}

__all__ = ["LUME", "SyntheticLUME"]


def __getattr__(name: str) -> Any:
    if name not in _MODULES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(import_module(f"{__name__}.{_MODULES[name]}"), name)


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})
