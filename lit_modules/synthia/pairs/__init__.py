"""Preparation of pairs of affordances: captions, images, filter."""
