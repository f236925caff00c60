"""LUME, and synthetic benchmarks of its shape."""

from .lume import LUME as LUME
from .synthetic import SyntheticLUME as SyntheticLUME
