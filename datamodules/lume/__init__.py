"""LUME, and synthetic benchmarks of its shape."""

from ..common.bpe import train_bpe as train_bpe
from .lume import LUME as LUME
from .synthetic import SyntheticLUME as SyntheticLUME
