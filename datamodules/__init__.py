"""The data: a module per dataset, a LightningDataModule each; ``datamodules.variants`` changes images."""

from typing import TYPE_CHECKING

from lit_modules.utils.aliases import use_long_name
from lit_modules.utils.lazy import lazy_names

if TYPE_CHECKING:
    from .affordances.pairs import AffordancePairs
    from .drawn.objects import DrawnObjects
    from .drawn.species import DrawnSpecies
    from .few_shot.datasets import INaturalistPairs, NovelSpecies, SUNPairs
    from .few_shot.few_shot import FewShotPairs
    from .images.cifar10 import CIFAR10
    from .images.digits import Digits
    from .images.fashion_mnist import FashionMNIST
    from .images.image_folder import ImageFolder
    from .images.mnist import MNIST
    from .lume.lume import LUME
    from .lume.synthetic import SyntheticLUME
    from .muse.muse import MUSE
    from .tofu.tofu import TOFU
    from .wmdp.wmdp import WMDP
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
    "WMDP",
    "AffordancePairs",
    "Digits",
    "DrawnObjects",
    "DrawnSpecies",
    "FashionMNIST",
    "FewShotPairs",
    "INaturalistPairs",
    "ImageFolder",
    "NovelSpecies",
    "SUNPairs",
    "SyntheticLUME",
]
