"""Small networks: those that papers name, and the models of the offline recipes; each imported when first used."""

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from lit_modules.networks.lenet5 import LeNet5
    from lit_modules.networks.llama import small_llama
    from lit_modules.networks.normalisation import Normalise, PerImageStandardise
    from lit_modules.networks.part_recogniser import (
        PartRecogniser,
        SavedRecogniser,
        load_recogniser,
        recogniser_report,
        save_recogniser,
        train_recogniser,
    )
    from lit_modules.networks.preact_resnet import PreActResNet18
    from lit_modules.networks.tiny_clip import attribute_accuracy, build_clip, train_clip
    from lit_modules.networks.tiny_llava import Lesson, build_llava, train_llava
    from lit_modules.networks.wide_resnet import WideResNet

__all__ = [
    "LeNet5",
    "Lesson",
    "Normalise",
    "PartRecogniser",
    "PerImageStandardise",
    "PreActResNet18",
    "SavedRecogniser",
    "WideResNet",
    "attribute_accuracy",
    "build_clip",
    "build_llava",
    "load_recogniser",
    "recogniser_report",
    "save_recogniser",
    "small_llama",
    "train_clip",
    "train_llava",
    "train_recogniser",
]

_MODULES = {
    "LeNet5": "lenet5",
    "Lesson": "tiny_llava",
    "Normalise": "normalisation",
    "PartRecogniser": "part_recogniser",
    "PerImageStandardise": "normalisation",
    "PreActResNet18": "preact_resnet",
    "SavedRecogniser": "part_recogniser",
    "WideResNet": "wide_resnet",
    "attribute_accuracy": "tiny_clip",
    "build_clip": "tiny_clip",
    "build_llava": "tiny_llava",
    "load_recogniser": "part_recogniser",
    "recogniser_report": "part_recogniser",
    "save_recogniser": "part_recogniser",
    "small_llama": "llama",
    "train_clip": "tiny_clip",
    "train_llava": "tiny_llava",
    "train_recogniser": "part_recogniser",
}


def __getattr__(name: str) -> Any:
    if name not in _MODULES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(import_module(f"{__name__}.{_MODULES[name]}"), name)


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})
