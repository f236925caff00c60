"""Drawn objects and drawn species: offline data made from a seed."""

from . import sets as sets
from . import species_files as species_files
from . import species_renderer as species_renderer
from .objects import DrawnObjects as DrawnObjects
from .species import DrawnSpecies as DrawnSpecies
