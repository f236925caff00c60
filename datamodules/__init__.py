"""The data: a module per dataset, a LightningDataModule each; ``datamodules.variants`` changes images."""

from typing import TYPE_CHECKING

from lit_modules.utils.aliases import use_long_name
from lit_modules.utils.lazy import lazy_names

if TYPE_CHECKING:
    from .affordance_pairs import AffordancePairs
    from .cifar10 import CIFAR10
    from .digits import Digits
    from .drawn_objects import DrawnObjects
    from .drawn_species import DrawnSpecies
    from .fashion_mnist import FashionMNIST
    from .few_shot import FewShotPairs
    from .inaturalist_pairs import INaturalistPairs
    from .lume import LUME
    from .mnist import MNIST
    from .muse import MUSE
    from .novel_species import NovelSpecies
    from .sun_pairs import SUNPairs
    from .synthetic_lume import SyntheticLUME
    from .tofu import TOFU
elif __name__ == "datamodules":
    use_long_name(__name__)
else:
    __getattr__, __dir__ = lazy_names(__name__, __file__)

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
