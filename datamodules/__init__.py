"""The data: a module per dataset, a LightningDataModule each; ``datamodules.variants`` changes images."""

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from datamodules.affordance_pairs import AffordancePairs
    from datamodules.cifar10 import CIFAR10
    from datamodules.digits import Digits
    from datamodules.drawn_objects import DrawnObjects
    from datamodules.drawn_species import DrawnSpecies
    from datamodules.fashion_mnist import FashionMNIST
    from datamodules.few_shot import FewShotPairs
    from datamodules.inaturalist_pairs import INaturalistPairs
    from datamodules.lume import LUME
    from datamodules.mnist import MNIST
    from datamodules.muse import MUSE
    from datamodules.novel_species import NovelSpecies
    from datamodules.sun_pairs import SUNPairs
    from datamodules.synthetic_lume import SyntheticLUME
    from datamodules.tofu import TOFU

_MODULES = {
    "AffordancePairs": "affordance_pairs",
    "CIFAR10": "cifar10",
    "Digits": "digits",
    "DrawnObjects": "drawn_objects",
    "DrawnSpecies": "drawn_species",
    "FashionMNIST": "fashion_mnist",
    "FewShotPairs": "few_shot",
    "INaturalistPairs": "inaturalist_pairs",
    "LUME": "lume",
    "MNIST": "mnist",
    "MUSE": "muse",
    "NovelSpecies": "novel_species",
    "SUNPairs": "sun_pairs",
    "SyntheticLUME": "synthetic_lume",
    "TOFU": "tofu",
}

__all__ = [
    "CIFAR10",
    "LUME",
    "MNIST",
    "MUSE",
    "TOFU",
    "AffordancePairs",
    "Digits",
    "DrawnObjects",
    "DrawnSpecies",
    "FashionMNIST",
    "FewShotPairs",
    "INaturalistPairs",
    "NovelSpecies",
    "SUNPairs",
    "SyntheticLUME",
]


def __getattr__(name: str) -> Any:
    if name not in _MODULES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(import_module(f"{__name__}.{_MODULES[name]}"), name)


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})
