"""Which attributes stay: those that tell the concepts apart, then those that a generator can draw."""

import math
from collections.abc import Sequence
from dataclasses import dataclass


@dataclass(frozen=True)
class Selection:
    """Attributes that stay.

    Args:
        kept: Their places.
        reasons: For each attribute why it stays or goes.
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
    _check(values, threshold, "threshold", min_features, "min_features")
    passed = [place for place, value in enumerate(values) if value > threshold]
    if passed or not values:
        reasons = [_compared(value, threshold) for value in values]
        return Selection(tuple(passed), tuple(reasons))
    best = sorted(_best(values)[:min_features])
    reasons = [
        f"best of none over {threshold:g}" if place in best else _compared(value, threshold)
        for place, value in enumerate(values)
    ]
    return Selection(tuple(best), tuple(reasons), fallback=True)


def select_generable(
    values: Sequence[float], top_k: int = 5, min_generability: float | None = 0.5, min_features: int = 1
) -> Selection:
    """Keep the ``top_k`` attributes of greatest generability; if none is good enough, the best ones, flagged.

    Args:
        values: Generability of each attribute, in [0, 1].
        top_k: Most attributes to keep, at least 1.
        min_generability: A value must be greater, in [0, 1]; 0.5 is chance, ``None`` asks for nothing.
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
    _check(values, threshold, "min_generability", top_k, "top_k")
    _check(values, threshold, "min_generability", min_features, "min_features")
    order = _best(values)
    good = [place for place in order if min_generability is None or values[place] > threshold]
    fallback = bool(values) and not good
    kept = order[: min(min_features, top_k)] if fallback else good[:top_k]
    reasons: list[str] = []
    for place, value in enumerate(values):
        if place in kept:
            reasons.append(f"best of none over {threshold:g}" if fallback else f"among the best {top_k}")
        elif place in good:
            reasons.append(f"not among the best {top_k}")
        else:
            reasons.append(_compared(value, threshold))
    return Selection(tuple(kept), tuple(reasons), fallback)


def _best(values: Sequence[float]) -> list[int]:
    return sorted(range(len(values)), key=lambda place: -values[place])


def _compared(value: float, threshold: float) -> str:
    return f"{value:.4g} is {'over' if value > threshold else 'not over'} {threshold:g}"


def _check(values: Sequence[float], threshold: float, name: str, number: int, what: str) -> None:
    if not 0 <= threshold <= 1:
        raise ValueError(f"{name} must be in [0, 1], got {threshold}.")
    if number < 1:
        raise ValueError(f"{what} must be at least 1, got {number}.")
    if any(math.isnan(value) or not 0 <= value <= 1 for value in values):
        raise ValueError(f"Scores must be numbers in [0, 1], got {list(values)}.")
