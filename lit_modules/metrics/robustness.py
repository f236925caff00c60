"""Robust accuracy of a classifier with its interval, and sizes of perturbations."""

from __future__ import annotations

import math
from typing import Literal

import torch
from scipy.stats import binomtest
from torch import Tensor

from lit_modules.metrics.rows import RowMetric

__all__ = [
    "BoundaryDistance",
    "RobustAccuracy",
    "distance_statistics",
    "median_distance",
    "perturbation_norm",
    "wilson_interval",
]

NORMS = ("linf", "l2", "l1", "l0")


def wilson_interval(successes: int, total: int, confidence: float = 0.95) -> tuple[float, float]:
    """Return the lower and the upper end of the Wilson score interval of a proportion, in [0, 1].

    Unlike the usual ``p +- z sqrt(p (1 - p) / n)`` it is of use near 0 and 1.

    Args:
        successes: Number of successes, 0 to ``total``.
        total: Number of trials, at least 1.
        confidence: Share of intervals that hold the true proportion, in (0, 1).

    Example:
        >>> [round(end, 4) for end in wilson_interval(50, 100)]
        [0.4038, 0.5962]
        >>> [round(end, 4) for end in wilson_interval(0, 10)]
        [0.0, 0.2775]

    References:
        Wilson, "Probable Inference, the Law of Succession, and Statistical Inference", JASA 1927.
    """
    if total < 1 or not 0 <= successes <= total:
        raise ValueError(
            f"successes must be from 0 to total and total at least 1, got successes={successes} and total={total}."
        )
    if not 0 < confidence < 1:
        raise ValueError(f"confidence must be in (0, 1), got {confidence}.")
    interval = binomtest(successes, total).proportion_ci(confidence, method="wilson")
    return float(interval.low), float(interval.high)


def perturbation_norm(perturbation: Tensor, norm: Literal["linf", "l2", "l1", "l0"]) -> Tensor:
    """Return the norm of each perturbation ``(n, ...)`` in float64, ``(n,)``; ``"l0"`` counts values that are not zero.

    Example:
        >>> perturbation_norm(torch.tensor([[3.0, 0.0, -4.0]]), "l2")
        tensor([5.], dtype=torch.float64)
    """
    if norm not in NORMS:
        raise ValueError(f"norm must be {', '.join(map(repr, NORMS))}, got {norm!r}.")
    order = {"linf": math.inf, "l2": 2, "l1": 1, "l0": 0}[norm]
    norms: Tensor = torch.linalg.vector_norm(perturbation.flatten(1).double(), order, dim=1)
    return norms


def distance_statistics(distance: Tensor, chosen: Tensor | None = None) -> dict[str, float]:
    """Return ``min``, ``median``, ``mean``, ``max`` and ``std`` (of the population) of distances; NaN if none counts.

    Args:
        distance: Distances, ``(n,)``; those that count are finite and not negative.
        chosen: Which of them count, such as those of successful attacks, ``(n,)``; ``None`` takes all. Failures have no
            distance and must not be mixed in.

    Example:
        >>> distance_statistics(torch.tensor([1.0, 3.0, 9.0]), torch.tensor([True, True, False]))
        {'min': 1.0, 'median': 2.0, 'mean': 2.0, 'max': 3.0, 'std': 1.0}
    """
    if distance.ndim != 1 or (chosen is not None and chosen.shape != distance.shape):
        raise ValueError(
            f"distance and chosen must be of the same shape (n,), got {tuple(distance.shape)} and "
            f"{None if chosen is None else tuple(chosen.shape)}."
        )
    counted = distance.detach().double() if chosen is None else distance.detach().double()[chosen.bool()]
    if not len(counted):
        return dict.fromkeys(("min", "median", "mean", "max", "std"), math.nan)
    if not bool((counted.isfinite() & (counted >= 0)).all()):
        raise ValueError("Distances that count must be finite and not negative; leave failures out by `chosen`.")
    ordered = counted.sort().values
    return {
        "min": float(ordered[0]),
        "median": _median(ordered),
        "mean": float(ordered.mean()),
        "max": float(ordered[-1]),
        "std": float(ordered.std(correction=0)),
    }


def median_distance(distance: Tensor, success: Tensor) -> float:
    """Return the median distance to the boundary, failures counted as infinitely far; NaN without samples.

    Left out, the samples that withstand most would make a model look weaker than it is. Both arguments are ``(n,)``;
    the distance of a failure is not looked at.

    Example:
        >>> median_distance(torch.tensor([1.0, 3.0, 0.0]), torch.tensor([True, True, False]))
        3.0
    """
    if not len(distance):
        return math.nan
    return _median(distance.detach().double().masked_fill(~success.bool(), math.inf).sort().values)


def _median(ordered: Tensor) -> float:
    return float((ordered[(len(ordered) - 1) // 2] + ordered[len(ordered) // 2]) / 2)


class _PerSample(RowMetric):
    """Keeps a few numbers of each sample; of a sample that comes several times, the least of each number counts."""

    def __init__(self, numbers: int) -> None:
        super().__init__({"rows": (torch.float64, 1 + numbers)})  # float64 holds every index up to 2^53

    def _add(self, index: Tensor | None, *numbers: Tensor) -> None:
        """Add a row ``(index, *numbers)`` for each sample; without an index each counts."""
        first = torch.full_like(numbers[0], -1, dtype=torch.int64) if index is None else index
        if first.shape != numbers[0].shape:
            raise ValueError(
                f"index must have the shape {tuple(numbers[0].shape)} of the samples, got {tuple(first.shape)}."
            )
        if index is not None and bool((index < 0).any()):
            raise ValueError(f"index must not be negative, got {int(index.min())}.")
        columns = [column.detach().to(self.device, torch.float64) for column in (first, *numbers)]
        self.append("rows", torch.stack(columns, 1))

    def _samples(self) -> Tensor:
        """Return the numbers of all samples, ``(samples, numbers)``."""
        rows = self.all_rows("rows")
        alone, shared = rows[rows[:, 0] < 0], rows[rows[:, 0] >= 0]
        names, sample = torch.unique(shared[:, 0], return_inverse=True)
        least = shared.new_full((len(names), rows.shape[1] - 1), torch.inf)
        least.scatter_reduce_(0, sample[:, None].expand(-1, least.shape[1]), shared[:, 1:], "amin")
        return torch.cat([alone[:, 1:], least])


class RobustAccuracy(_PerSample):
    """Share of samples that are classified right, under attack or not, with its Wilson interval.

    A sample that comes several times under one ``index`` counts once, and is right only if it is right each time. So
    the padding of a distributed sampler does no harm, and one object that is given the outcomes of several attacks
    tells the accuracy in the worst case.

    Args:
        confidence: Confidence of the interval, in (0, 1).

    Example:
        >>> accuracy = RobustAccuracy()
        >>> accuracy.update(torch.tensor([[2.0, 1.0], [0.0, 1.0]]), torch.tensor([0, 0]), torch.tensor([7, 8]))
        >>> accuracy.update(torch.tensor([1, 1]), torch.tensor([0, 1]), torch.tensor([7, 9]))  # a second attack
        >>> {name: round(float(value), 3) for name, value in accuracy.compute().items()}
        {'accuracy': 0.333, 'lower': 0.061, 'upper': 0.792}
    """

    higher_is_better = True

    def __init__(self, confidence: float = 0.95) -> None:
        super().__init__(numbers=1)
        if not 0 < confidence < 1:
            raise ValueError(f"confidence must be in (0, 1), got {confidence}.")
        self.confidence = confidence

    def update(self, prediction: Tensor, label: Tensor, index: Tensor | None = None) -> None:
        """Add the outcomes of a batch.

        Args:
            prediction: Logits or probabilities ``(n, classes)``, or predicted classes ``(n,)``.
            label: True classes, ``(n,)``.
            index: Which samples these are, not negative, ``(n,)``; without it each is a sample of its own.
        """
        if label.ndim != 1 or prediction.ndim not in (1, 2) or len(prediction) != len(label):
            raise ValueError(
                f"prediction must be (n, classes) or (n,) and label (n,), got {tuple(prediction.shape)} and "
                f"{tuple(label.shape)}."
            )
        if bool(prediction.isnan().any()):
            raise ValueError("prediction must be numbers, got NaN; the model has diverged or its input was wrong.")
        classes = prediction.argmax(1) if prediction.ndim == 2 else prediction
        self._add(index, classes == label)

    def compute(self) -> dict[str, Tensor]:
        """Return ``accuracy``, ``lower`` and ``upper`` end of its interval, float64 scalars; NaN without samples."""
        right = self._samples()[:, 0]
        if not len(right):
            return self.scalars(dict.fromkeys(("accuracy", "lower", "upper"), math.nan))
        successes = int(right.sum())
        lower, upper = wilson_interval(successes, len(right), self.confidence)
        return self.scalars({"accuracy": successes / len(right), "lower": lower, "upper": upper})


class BoundaryDistance(_PerSample):
    """Distance of samples to the decision boundary, as an attack of minimal norm finds it.

    Only samples count that are classified right without an attack. ``median`` is over all of them, with a failure of
    the attack as infinitely far (:func:`median_distance`); the other statistics are over the successes, so that
    failures are not mixed into a mean, and ``success_rate`` says how many these are. Of a sample that comes several
    times under one ``index`` the smallest distance counts.

    Example:
        >>> distance = BoundaryDistance()
        >>> distance.update(torch.tensor([1.0, 3.0, 9.0]), success=torch.tensor([True, True, False]))
        >>> {name: round(float(value), 3) for name, value in distance.compute().items()}
        {'min': 1.0, 'median': 3.0, 'mean': 2.0, 'max': 3.0, 'std': 1.0, 'success_rate': 0.667}
    """

    higher_is_better = None

    def __init__(self) -> None:
        super().__init__(numbers=2)

    def update(
        self, distance: Tensor, success: Tensor, correct: Tensor | None = None, index: Tensor | None = None
    ) -> None:
        """Add the outcomes of a batch.

        Args:
            distance: Norm of each perturbation, ``(n,)``; that of a failure is not looked at.
            success: Whether the attack succeeded, ``(n,)``.
            correct: Whether the sample is classified right without an attack, ``(n,)``; ``None`` says all are.
            index: Which samples these are, not negative, ``(n,)``; without it each is a sample of its own.
        """
        correct = torch.ones_like(success) if correct is None else correct
        if distance.ndim != 1 or not distance.shape == success.shape == correct.shape:
            raise ValueError(
                f"distance, success and correct must be of the same shape (n,), got {tuple(distance.shape)}, "
                f"{tuple(success.shape)} and {tuple(correct.shape)}."
            )
        distance_statistics(distance, success)  # refuses distances that are none
        self._add(index, correct.bool(), distance.double().masked_fill(~success.bool(), torch.inf))

    def compute(self) -> dict[str, Tensor]:
        """Return ``min``, ``median``, ``mean``, ``max``, ``std`` and ``success_rate``, float64 scalars.

        NaN where no sample counts.
        """
        correct, distance = self._samples().unbind(1)
        distance = distance[correct > 0]
        success = distance.isfinite()
        rate = float(success.double().mean()) if len(success) else math.nan
        sizes = distance_statistics(distance, success) | {"median": median_distance(distance, success)}
        return self.scalars({**sizes, "success_rate": rate})
