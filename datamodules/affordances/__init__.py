"""Pairs of affordances with images, in the order of a curriculum."""

from .pairs import AffordancePairs as AffordancePairs
