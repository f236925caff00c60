"""Offline demos, one per paper."""
