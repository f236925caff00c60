"""Machinery that the attacks share."""
