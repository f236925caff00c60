"""Generability: whether an image generator can render an attribute, by trial images of groups of attributes."""

import math
from collections.abc import Sequence

import torch
from torch import Tensor

from lit_modules.coda.augmentation.discriminability import (
    AttributeScores,
    Selection,
    best_first,
    check_selection,
    compared,
    discriminability_scores,
)
from lit_modules.coda.augmentation.ranking import TEMPERATURE


def attribute_groups(
    num_attributes: int, group_size: int = 4, shuffle_seed: int | None = None
) -> list[tuple[int, ...]]:
    """Return groups of attributes whose trial images are made together.

    Args:
        num_attributes: Number of attributes.
        group_size: Largest group, at least 1.
        shuffle_seed: Seed of their order, as an attribute's score depends on its neighbours; ``None`` keeps the order.

    Raises:
        ValueError: If a number is out of its range.

    Example:
        >>> attribute_groups(6)
        [(0, 1, 2, 3), (4, 5)]
    """
    if num_attributes < 0 or group_size < 1:
        raise ValueError(
            f"num_attributes must not be negative and group_size at least 1, got {num_attributes} and {group_size}."
        )
    order = list(range(num_attributes))
    if shuffle_seed is not None:
        order = torch.randperm(num_attributes, generator=torch.Generator().manual_seed(shuffle_seed)).tolist()
    return [tuple(order[start : start + group_size]) for start in range(0, num_attributes, group_size)]


def trial_count(num_attributes: int, group_size: int = 4, trials_per_group: int = 5) -> int:
    """Return the number of trial images that attributes need.

    Example:
        >>> trial_count(8), trial_count(16)
        (10, 20)
    """
    return trials_per_group * math.ceil(num_attributes / group_size)


def generability_scores(
    trials: Sequence[Tensor],
    groups: Sequence[Sequence[int]],
    confusable: Tensor,
    temperature: float = TEMPERATURE,
    resamples: int = 1000,
    seed: int = 0,
) -> AttributeScores:
    """Return the generability (G) of attributes: their discriminability with trial images for the target's real ones.

    Args:
        trials: For each group, the cosine of its trial images with all attributes, ``(trials, attributes)``.
        groups: Attributes of each group; together each attribute once.
        confusable: Cosine of the confusable's real images with each attribute, ``(images, attributes)``.
        temperature: Factor of the cosines (tau), positive.
        resamples: Number of bootstrap resamples.
        seed: Seed of the resamples.

    Raises:
        ValueError: If the groups do not hold each attribute once, or shapes do not fit.

    Example:
        >>> trials = [torch.tensor([[0.5, 0.0]]), torch.tensor([[0.0, 0.1]])]
        >>> generability_scores(trials, [(0,), (1,)], torch.tensor([[0.1, 0.1]])).values
        (1.0, 0.5)
    """
    if len(trials) != len(groups):
        raise ValueError(f"Each of the {len(groups)} groups must have trial images, got {len(trials)} of them.")
    flat = sorted(number for group in groups for number in group)
    attributes = confusable.shape[-1]
    if flat != list(range(attributes)):
        raise ValueError(f"The groups must hold each of the {attributes} attributes once, got {flat}.")
    rows: dict[int, tuple[float, float, float]] = {}
    num_pairs = 0
    for cosines, group in zip(trials, groups, strict=True):
        columns = list(group)
        if cosines.ndim != 2 or cosines.shape[1] != attributes:
            raise ValueError(f"trials must be of shape (trials, {attributes}), got {tuple(cosines.shape)}.")
        scores = discriminability_scores(
            cosines[:, columns], confusable[:, columns], temperature, resamples=resamples, seed=seed
        )
        num_pairs = scores.num_pairs
        rows |= dict(zip(columns, zip(scores.values, scores.lower, scores.upper, strict=True), strict=True))
    values, lower, upper = zip(*(rows[number] for number in flat), strict=True) if rows else ((), (), ())
    return AttributeScores(values, lower, upper, num_pairs=num_pairs)


def select_generable(
    values: Sequence[float], top_k: int = 5, min_generability: float | None = 0.5, min_features: int = 1
) -> Selection:
    """Keep the ``top_k`` attributes of greatest generability; if none is good enough, the best ones, flagged.

    Args:
        values: Generability of each attribute, in [0, 1].
        top_k: Most attributes to keep, at least 1.
        min_generability: A value must be greater, in [0, 1]; 0.5 is chance, ``None`` sets no bound.
        min_features: Number of attributes to take if none passes, at least 1.

    Returns:
        The kept ones, the best first; ties in the given order.

    Raises:
        ValueError: If an argument is out of its range.

    Example:
        >>> select_generable([0.86, 0.14, 0.93], top_k=5).kept
        (2, 0)
    """
    threshold = 0.0 if min_generability is None else min_generability
    check_selection(values, "min_generability", threshold, top_k=top_k, min_features=min_features)
    order = best_first(values)
    good = [index for index in order if min_generability is None or values[index] > threshold]
    fallback = bool(values) and not good
    kept = order[: min(min_features, top_k)] if fallback else good[:top_k]
    reasons: list[str] = []
    for index, value in enumerate(values):
        if index in kept:
            reasons.append(f"best of none over {threshold:g}" if fallback else f"among the best {top_k}")
        elif index in good:
            reasons.append(f"not among the best {top_k}")
        else:
            reasons.append(compared(value, threshold))
    return Selection(tuple(kept), tuple(reasons), fallback)
