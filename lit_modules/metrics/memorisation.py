"""How much of a text a model knows by heart, from whether it guesses each token under teacher forcing."""

from __future__ import annotations

from torch import Tensor

__all__ = ["exact_memorisation", "extraction_strength"]


def exact_memorisation(correct: Tensor) -> float:
    """Return the share of the tokens that are the model's most probable ones.

    Args:
        correct: Whether each token, the end of sequence left out, is the most probable one, ``(tokens,)``.

    Raises:
        ValueError: If there is no token.

    References:
        Tirumala et al., "Memorization Without Overfitting: Analyzing the Training Dynamics of Large Language Models",
        arXiv 2205.10770.

    Example:
        >>> import torch
        >>> exact_memorisation(torch.tensor([True, False, True, True]))
        0.75
    """
    return float(_checked(correct).double().mean())


def extraction_strength(correct: Tensor) -> float:
    """Return ``1 - k / n``: ``k`` of the ``n`` tokens must be given for the model to guess all others.

    It is never below ``1 / n``, also if the last token is wrong: so open-unlearning computes it.

    Args:
        correct: Whether each token, the end of sequence left out, is the most probable one, ``(tokens,)``.

    Raises:
        ValueError: If there is no token.

    References:
        Carlini et al., "Extracting Training Data from Large Language Models", arXiv 2012.07805.

    Example:
        >>> import torch
        >>> extraction_strength(torch.tensor([True, False, True, True]))
        0.5
        >>> extraction_strength(torch.tensor([True, False, True, False]))
        0.25
    """
    wrong = (~_checked(correct).bool()).nonzero()
    right = len(correct) - 1 - int(wrong[-1]) if len(wrong) else len(correct)
    return max(right, 1) / len(correct)


def _checked(correct: Tensor) -> Tensor:
    if correct.ndim != 1 or len(correct) == 0:
        raise ValueError(f"correct must be a 1-D tensor with at least one token, got shape {tuple(correct.shape)}.")
    return correct
