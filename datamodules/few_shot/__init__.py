"""Few pictures of new concepts, in pairs with the known concepts that a model takes them for."""

from . import layouts as layouts
from . import pairs as pairs
from . import questions as questions
from .datasets import INaturalistPairs as INaturalistPairs
from .datasets import NovelSpecies as NovelSpecies
from .datasets import SUNPairs as SUNPairs
from .few_shot import FewShotPairs as FewShotPairs
