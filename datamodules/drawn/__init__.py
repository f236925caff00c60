"""Drawn objects and drawn species: offline data made from a seed."""

from . import creatures as creatures
from . import objects as objects
from . import species as species
from .creatures import DrawnCreatures as DrawnCreatures
from .objects import DrawnObjects as DrawnObjects
from .species import DrawnSpecies as DrawnSpecies
