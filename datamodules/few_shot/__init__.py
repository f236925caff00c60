"""Few images of new concepts, in pairs with the known concepts that a model takes them for."""

from . import layouts as layouts
from . import pairs as pairs
from . import sets as sets
from .few_shot import FewShotPairs as FewShotPairs
from .inaturalist_pairs import INaturalistPairs as INaturalistPairs
from .novel_species import NovelSpecies as NovelSpecies
from .sun_pairs import SUNPairs as SUNPairs
