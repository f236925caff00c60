"""Test of the metrics of unlearning: pools of models with and without the knowledge, relearning, quantization."""
