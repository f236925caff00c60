"""Defences that change a model's input, and the wrapper that lets attacks pass through them."""

from lit_modules.defenses.bpda import BPDA
from lit_modules.defenses.jpeg import JPEG
from lit_modules.defenses.preprocess import Preprocess
from lit_modules.defenses.processors import (
    BinaryFilter,
    BitSqueezing,
    ConvSmoothing,
    GaussianSmoothing,
    ImageProcessor,
    MeanSmoothing,
    MedianSmoothing,
)
from lit_modules.utils.model_modes import evaluation_mode, no_parameter_gradients

__all__ = [
    "BPDA",
    "JPEG",
    "BinaryFilter",
    "BitSqueezing",
    "ConvSmoothing",
    "GaussianSmoothing",
    "ImageProcessor",
    "MeanSmoothing",
    "MedianSmoothing",
    "Preprocess",
    "evaluation_mode",
    "no_parameter_gradients",
]
