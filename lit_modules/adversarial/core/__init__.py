"""Machinery that the adversarial training methods share."""
