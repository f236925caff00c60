"""Demonstration of Synthia on drawn objects."""
