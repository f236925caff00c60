"""Discriminability: how well an attribute separates the images of one concept from those of another."""

import math
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from lit_modules.coda.augmentation.ranking import TEMPERATURE

_BLOCK = 120_000
"""Pairs at a time, as float64 less than 1 MB: a block stays in the cache of a core from its first pass to its last."""
_CHUNK = 4_000_000
"""Numbers at a time of a bootstrap, as float64 32 MB."""
_SAFE = {torch.float64: 600.0, torch.float32: 150.0}
"""Largest difference of two scores whose exponentials, taken from their middle, neither overflow nor vanish."""


@dataclass(frozen=True)
class AttributeScores:
    """Scores of attributes with their intervals.

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

    An exponential is taken of each image, in float64, rather than of each pair, of which one division is left: in
    float64 if the cosines are, else in float32, whose rounding is far below that of the cosines. Pairs are gone through
    in blocks that fit a core's cache.

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
    dtype = torch.float64 if torch.float64 in (target.dtype, confusable.dtype) else torch.float32
    target, confusable = _checked(target, confusable, temperature)
    own, other, shares = _prepared(target, confusable, temperature, dtype=dtype)
    rows = max(1, _BLOCK // len(confusable))
    total = own.new_zeros(len(own), dtype=torch.float64)
    for images in torch.split(own, rows, 1):
        for part in _slices(len(own), _BLOCK // (images.shape[1] * len(confusable))):
            total[part] += shares(images[part], other[part]).sum(2).double().sum(1)
    return total / (len(target) * len(confusable))


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
        >>> scores = discriminability_scores(torch.tensor([[0.3]]), torch.tensor([[0.3]]))
        >>> scores.values, scores.num_pairs
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
    own, other, shares_of = _prepared(target, confusable, temperature, dtype=torch.float64)
    for part in _slices(len(own), _CHUNK // (max(len(target), resamples) * len(confusable))):
        shares = shares_of(own[part], other[part])
        values += shares.mean((1, 2)).tolist()
        resampled = ((own_weights @ shares) * other_weights).sum(2)
        intervals.append(resampled.quantile(ends, dim=1))
    lower, upper = torch.cat(intervals, 1).tolist() if intervals else ([], [])
    return AttributeScores(tuple(values), tuple(lower), tuple(upper), num_pairs=len(target) * len(confusable))


@dataclass(frozen=True)
class Selection:
    """Selected attributes.

    Args:
        kept: Their indices.
        reasons: For each attribute why it is kept or dropped.
        fallback: Whether none passed and the best ones were taken all the same; to be shown.
    """

    kept: tuple[int, ...]
    reasons: tuple[str, ...]
    fallback: bool = False


def select_discriminative(values: Sequence[float], threshold: float = 0.6, min_features: int = 3) -> Selection:
    """Keep the attributes whose discriminability is over the threshold; if there is none, the best ones, flagged.

    Args:
        values: Discriminability of each attribute, in [0, 1].
        threshold: A value must be greater, in [0, 1]; 0.6 is what a cosine gap of 0.0041 reaches.
        min_features: Number of attributes to take if none passes, at least 1.

    Returns:
        The kept ones in the given order.

    Raises:
        ValueError: If an argument is out of its range.

    Example:
        >>> select_discriminative([0.45, 0.98, 0.6]).kept
        (1,)
    """
    check_selection(values, "threshold", threshold, min_features=min_features)
    kept = [index for index, value in enumerate(values) if value > threshold]
    fallback = bool(values) and not kept
    if fallback:
        kept = sorted(best_first(values)[:min_features])
    reasons = [
        f"best of none over {threshold:g}" if fallback and index in kept else compared(value, threshold)
        for index, value in enumerate(values)
    ]
    return Selection(tuple(kept), tuple(reasons), fallback)


def best_first(values: Sequence[float]) -> list[int]:
    """Return the indices of values, the greatest first; ties in the given order."""
    return sorted(range(len(values)), key=lambda index: -values[index])


def compared(value: float, threshold: float) -> str:
    """Return in words on which side of a threshold a value lies."""
    return f"{value:.4g} is {'over' if value > threshold else 'not over'} {threshold:g}"


def check_selection(values: Sequence[float], name: str, threshold: float, **counts: int) -> None:
    """Refuse scores and a threshold outside [0, 1], and numbers of attributes below 1.

    Raises:
        ValueError: If one is out of its range.
    """
    if not 0 <= threshold <= 1:
        raise ValueError(f"{name} must be in [0, 1], got {threshold}.")
    for count, number in counts.items():
        if number < 1:
            raise ValueError(f"{count} must be at least 1, got {number}.")
    if any(math.isnan(value) or not 0 <= value <= 1 for value in values):
        raise ValueError(f"Scores must be numbers in [0, 1], got {list(values)}.")


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


def _slices(length: int, size: int) -> Iterator[slice]:
    size = max(1, size)
    return (slice(start, start + size) for start in range(0, length, size))


def _prepared(
    target: Tensor, confusable: Tensor, temperature: float, dtype: torch.dtype
) -> tuple[Tensor, Tensor, Callable[[Tensor, Tensor], Tensor]]:
    """Return what the shares of all pairs are computed from, ``(attributes, images)`` of either side, and how."""
    own, other = ((temperature * side).T.contiguous() for side in (target, confusable))
    if not len(own):
        return own, other, _shares_of_scores
    low, high = torch.minimum(own.amin(1), other.amin(1)), torch.maximum(own.amax(1), other.amax(1))
    if float((high - low).max()) > _SAFE[dtype]:
        return own, other, _shares_of_scores
    middle = ((low + high) / 2)[:, None]
    return (own - middle).exp_().to(dtype), (other - middle).exp_().to(dtype), _shares_of_exponentials


def _shares_of_scores(own: Tensor, other: Tensor) -> Tensor:
    """Return ``sigmoid(x - y)`` of all pairs, ``(attributes, target images, confusable images)``."""
    return (own[:, :, None] - other[:, None, :]).sigmoid_()


def _shares_of_exponentials(own: Tensor, other: Tensor) -> Tensor:
    """Return ``e^x / (e^x + e^y)`` of all pairs, from ``e^x`` and ``e^y``, in the same shape."""
    both = own[:, :, None] + other[:, None, :]
    return torch.div(own[:, :, None], both, out=both)


def _weights(images: int, resamples: int, generator: torch.Generator) -> Tensor:
    """Return how often each image is drawn, over the number of images, ``(resamples, images)``."""
    drawn = torch.randint(images, (resamples, images), generator=generator)
    counts = torch.zeros(resamples, images, dtype=torch.float64)
    return counts.scatter_add_(1, drawn, torch.ones_like(drawn, dtype=torch.float64)) / images
