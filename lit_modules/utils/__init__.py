"""Helpers that several families share; nothing of ours is imported here."""
