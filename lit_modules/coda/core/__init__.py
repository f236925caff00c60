"""Machinery that the modules for new concepts share."""
