"""Comparison of unlearning methods from one start, with equal steps."""
