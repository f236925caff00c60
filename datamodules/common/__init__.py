"""Sampling, batches, text and downloads that the datamodules share."""

from .text import Encoded as Encoded
from .text import pad_id as pad_id
from .text import pad_right as pad_right
