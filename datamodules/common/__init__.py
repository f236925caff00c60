"""Sampling, batches, text and downloads that the datamodules share."""

from typing import TYPE_CHECKING

from lit_modules.utils.lazy import lazy_names

if TYPE_CHECKING:
    from .text import Encoded, pad_id, pad_right
else:
    __getattr__, __dir__ = lazy_names(__name__, __file__)

__all__ = ["Encoded", "pad_id", "pad_right"]
