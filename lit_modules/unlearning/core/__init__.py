"""Machinery that the unlearning methods share."""
