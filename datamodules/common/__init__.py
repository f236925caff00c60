"""Sampling, batches, text and downloads that the datamodules share."""
