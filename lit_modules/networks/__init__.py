"""Small networks: those that papers name, and the models of the offline recipes; each imported when first used."""

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from lit_modules.networks.lenet5 import LeNet5
    from lit_modules.networks.llama import small_llama
    from lit_modules.networks.normalisation import Normalise, PerImageStandardise
    from lit_modules.networks.preact_resnet import PreActResNet18
    from lit_modules.networks.wide_resnet import WideResNet

__all__ = ["LeNet5", "Normalise", "PerImageStandardise", "PreActResNet18", "WideResNet", "small_llama"]

_MODULES = {
    "LeNet5": "lenet5",
    "Normalise": "normalisation",
    "PerImageStandardise": "normalisation",
    "PreActResNet18": "preact_resnet",
    "WideResNet": "wide_resnet",
    "small_llama": "llama",
}


def __getattr__(name: str) -> Any:
    if name not in _MODULES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(import_module(f"{__name__}.{_MODULES[name]}"), name)


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})
