"""Stress tests of unlearned models: relearning attack, quantization, other prompts."""
