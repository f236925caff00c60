"""Sampling, batches, text and downloads that the datamodules share."""

from . import bpe as bpe
