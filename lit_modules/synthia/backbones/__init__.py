"""Adapters of text-to-image models, a file each."""
