"""Judges of designs."""
