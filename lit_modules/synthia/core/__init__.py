"""Machinery that the text-to-image modules share."""
