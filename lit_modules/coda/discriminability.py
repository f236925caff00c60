"""How well an attribute tells the images of one concept from those of another."""

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from lit_modules.coda.ranking import TEMPERATURE

_CHUNK = 4_000_000  # float64 numbers at a time, 32 MB


@dataclass(frozen=True)
class AttributeScores:
    """Scores of attributes, with how sure they are.

    Args:
        values: Score of each attribute, in [0, 1].
        lower: Lower ends of the bootstrap intervals.
        upper: Upper ends of the bootstrap intervals.
        num_pairs: Number of image pairs behind each score.
    """

    values: tuple[float, ...]
    lower: tuple[float, ...]
    upper: tuple[float, ...]
    num_pairs: int


def discriminability_values(target: Tensor, confusable: Tensor, temperature: float = TEMPERATURE) -> Tensor:
    """Return the discriminability (D) of attributes.

    ``D(a)`` is the mean over target images ``x`` and confusable images ``y`` of
    ``exp(tau s(x, a)) / (exp(tau s(x, a)) + exp(tau s(y, a)))``, which is the mean of
    ``sigmoid(tau (s(x, a) - s(y, a)))``. It is 0.5 if the attribute tells nothing, and both directions sum to 1.

    All pairs are computed at once, in float64 and in pieces of bounded memory.

    Args:
        target: Cosine of each target image with each attribute, ``(images, attributes)``.
        confusable: The same of the confusable's images, ``(images, attributes)``.
        temperature: Factor of the cosines (tau), positive.

    Returns:
        float64 ``(attributes,)``, in [0, 1].

    Raises:
        ValueError: If the shapes do not fit, a side has no images, or the numbers are not finite.

    Example:
        >>> discriminability_values(torch.tensor([[0.3, 0.2]]), torch.tensor([[0.2959454, 0.2]]))
        tensor([0.6000, 0.5000], dtype=torch.float64)

    References:
        Zhou et al., "Contrastive Visual Data Augmentation", ICML 2025, arXiv 2502.17709.
    """
    target, confusable = _checked(target, confusable, temperature)
    pieces = [
        _pair_shares(own, other).mean((1, 2)) for own, other in _pieces(temperature * target, temperature * confusable)
    ]
    return torch.cat(pieces) if pieces else torch.zeros(0, dtype=torch.float64)


def discriminability_scores(
    target: Tensor,
    confusable: Tensor,
    temperature: float = TEMPERATURE,
    resamples: int = 1000,
    confidence: float = 0.95,
    seed: int = 0,
) -> AttributeScores:
    """Return the discriminability of attributes with bootstrap intervals over the images of both sides.

    Each resample draws as many images with replacement from either side. With one image on each side the interval is
    the value itself and says nothing.

    Args:
        target: Cosine of each target image with each attribute, ``(images, attributes)``.
        confusable: The same of the confusable's images, ``(images, attributes)``.
        temperature: Factor of the cosines (tau), positive.
        resamples: Number of resamples, at least 1.
        confidence: Share of resamples inside the interval, in (0, 1).
        seed: Seed of the resamples.

    Raises:
        ValueError: If an argument is out of its range or does not fit.

    Example:
        >>> found = discriminability_scores(torch.tensor([[0.3]]), torch.tensor([[0.3]]))
        >>> found.values, found.num_pairs
        ((0.5,), 1)
    """
    target, confusable = _checked(target, confusable, temperature)
    if resamples < 1 or not 0 < confidence < 1:
        raise ValueError(f"resamples must be at least 1 and confidence in (0, 1), got {resamples} and {confidence}.")
    generator = torch.Generator().manual_seed(seed)
    own_weights, other_weights = (_weights(len(side), resamples, generator) for side in (target, confusable))
    ends = torch.tensor([(1 - confidence) / 2, (1 + confidence) / 2], dtype=torch.float64)
    values: list[float] = []
    intervals: list[Tensor] = []
    for own, other in _pieces(temperature * target, temperature * confusable, resamples * len(confusable)):
        shares = _pair_shares(own, other)
        values += shares.mean((1, 2)).tolist()
        resampled = ((own_weights @ shares) * other_weights).sum(2)
        intervals.append(resampled.quantile(ends, dim=1))
    lower, upper = torch.cat(intervals, 1).tolist() if intervals else ([], [])
    return AttributeScores(tuple(values), tuple(lower), tuple(upper), len(target) * len(confusable))


def _checked(target: Tensor, confusable: Tensor, temperature: float) -> tuple[Tensor, Tensor]:
    if target.ndim != 2 or confusable.ndim != 2 or target.shape[1] != confusable.shape[1]:
        raise ValueError(
            "target and confusable must be of shape (images, attributes) with the same attributes, got "
            f"{tuple(target.shape)} and {tuple(confusable.shape)}."
        )
    if not len(target) or not len(confusable):
        raise ValueError(f"Both sides must have images, got {len(target)} and {len(confusable)}.")
    if not temperature > 0:
        raise ValueError(f"temperature must be positive, got {temperature}.")
    if not bool(target.isfinite().all() and confusable.isfinite().all()):
        raise ValueError("Cosines must be finite numbers; the model may run in half precision.")
    return target.detach().double(), confusable.detach().double()


def _pieces(target: Tensor, confusable: Tensor, more: int = 0) -> Sequence[tuple[Tensor, Tensor]]:
    size = max(1, _CHUNK // max(len(target) * len(confusable), more))
    return (
        list(zip(torch.split(target.T, size), torch.split(confusable.T, size), strict=True)) if target.shape[1] else []
    )


def _pair_shares(target: Tensor, confusable: Tensor) -> Tensor:
    """Return ``sigmoid(x - y)`` of all pairs, ``(attributes, target images, confusable images)``."""
    return (target[:, :, None] - confusable[:, None, :]).sigmoid_()


def _weights(images: int, resamples: int, generator: torch.Generator) -> Tensor:
    """Return how often each image is drawn, over the number of images, ``(resamples, images)``."""
    drawn = torch.randint(images, (resamples, images), generator=generator)
    counts = torch.zeros(resamples, images, dtype=torch.float64)
    return counts.scatter_add_(1, drawn, torch.ones_like(drawn, dtype=torch.float64)) / images
