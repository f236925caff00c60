"""MUSE."""

from .muse import MUSE as MUSE
