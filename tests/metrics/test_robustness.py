"""Robust accuracy with its interval, norms of perturbations, distances to the boundary, on one process and on two."""

import math
from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from scipy.stats import binomtest

from lit_modules.metrics import (
    BoundaryDistance,
    RobustAccuracy,
    distance_statistics,
    median_distance,
    perturbation_norm,
    wilson_interval,
)


@given(total=st.integers(1, 2000), share=st.floats(0, 1), confidence=st.sampled_from([0.8, 0.95, 0.99]))
def test_wilson_interval_equals_scipy(total: int, share: float, confidence: float) -> None:
    successes = round(share * total)
    lower, upper = wilson_interval(successes, total, confidence)
    expected = binomtest(successes, total).proportion_ci(confidence, method="wilson")
    assert (lower, upper) == pytest.approx((expected.low, expected.high), abs=1e-9)
    assert 0 <= lower <= successes / total <= upper <= 1


def test_perturbation_norms() -> None:
    change = torch.tensor([[[3.0, 0.0], [-4.0, 0.0]], [[0.0, 0.0], [0.0, 0.0]]])
    for norm, expected in (("linf", 4.0), ("l2", 5.0), ("l1", 7.0), ("l0", 2.0)):
        assert perturbation_norm(change, norm).tolist() == [expected, 0.0]  # type: ignore[arg-type]
    # in float32 this sum would lose the small values
    many = torch.cat([torch.tensor([[1e4]]), torch.full((1, 1000), 1e-4)], 1)
    assert float(perturbation_norm(many, "l1")) == pytest.approx(1e4 + 0.1, abs=1e-6)


def test_distance_statistics() -> None:
    distance = torch.tensor([4.0, 1.0, 2.0, math.inf, 9.0])
    statistics = distance_statistics(distance, torch.tensor([True, True, True, False, True]))
    std = math.sqrt((0 + 9 + 4 + 25) / 4)
    assert statistics == pytest.approx({"min": 1, "median": 3, "mean": 4, "max": 9, "std": std})
    assert all(math.isnan(value) for value in distance_statistics(distance, torch.zeros(5).bool()).values())


@pytest.mark.parametrize(
    ("rows", "expected"),
    [([0, 1, 2, 3, 4], 4.0), ([0, 1, 2, 3], math.inf), ([0, 2], 2.5), ([1], math.inf), ([], math.nan)],
)
def test_failures_are_infinitely_far_in_the_median(rows: list[int], expected: float) -> None:
    distance = torch.tensor([4.0, 0.0, 1.0, math.inf, 2.0])
    success = torch.tensor([True, False, True, False, True])
    assert median_distance(distance[rows], success[rows]) == pytest.approx(expected, nan_ok=True)


def test_robust_accuracy_counts_samples_once() -> None:
    accuracy = RobustAccuracy()
    accuracy.update(torch.tensor([0, 1, 2, 3]), torch.tensor([0, 1, 2, 0]), torch.tensor([0, 1, 2, 3]))
    assert float(accuracy.compute()["accuracy"]) == 0.75
    accuracy.update(torch.tensor([0, 0]), torch.tensor([0, 1]), torch.tensor([0, 1]))  # another attack fools sample 1
    numbers = {name: float(value) for name, value in accuracy.compute().items()}
    assert numbers["accuracy"] == 0.5
    assert (numbers["lower"], numbers["upper"]) == pytest.approx(wilson_interval(2, 4))
    accuracy.reset()
    assert math.isnan(float(accuracy.compute()["accuracy"]))


def test_robust_accuracy_without_an_index() -> None:
    accuracy = RobustAccuracy(confidence=0.9)
    for _ in range(2):
        accuracy.update(torch.tensor([[0.0, 1.0], [1.0, 0.0]]), torch.tensor([1, 1]))
    numbers = accuracy.compute()
    assert float(numbers["accuracy"]) == 0.5
    assert float(numbers["lower"]) == pytest.approx(wilson_interval(2, 4, 0.9)[0])


def test_boundary_distance_leaves_failures_and_wrong_samples_out() -> None:
    distance = BoundaryDistance()
    distance.update(
        torch.tensor([1.0, 3.0, math.nan, 0.0]),
        success=torch.tensor([True, True, False, True]),
        correct=torch.tensor([True, True, True, False]),
        index=torch.tensor([0, 1, 2, 3]),
    )
    numbers = {name: float(value) for name, value in distance.compute().items()}
    assert numbers == pytest.approx(
        {"min": 1, "median": 3, "mean": 2, "max": 3, "std": 1, "success_rate": 2 / 3}, abs=1e-12
    )
    # a second attack succeeds on sample 2 and comes closer on sample 1
    distance.update(torch.tensor([2.0, 5.0]), torch.tensor([True, True]), index=torch.tensor([1, 2]))
    numbers = {name: float(value) for name, value in distance.compute().items()}
    assert (numbers["median"], numbers["max"], numbers["success_rate"]) == (2, 5, 1)


def test_boundary_distance_of_failures_alone() -> None:
    distance = BoundaryDistance()
    distance.update(torch.tensor([1.0]), torch.tensor([False]))
    numbers = {name: float(value) for name, value in distance.compute().items()}
    assert (numbers["success_rate"], numbers["median"]) == (0, math.inf)  # none within reach: far, and not 0
    assert math.isnan(numbers["mean"])


def outcomes(*arguments: list[Any]) -> None:
    RobustAccuracy().update(*map(torch.tensor, arguments))


def distances(distance: list[float], success: list[bool]) -> None:
    BoundaryDistance().update(torch.tensor(distance), torch.tensor(success))


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: wilson_interval(6, 5), "successes must be from 0 to total and .*, got successes=6 and total=5"),
        (lambda: wilson_interval(1, 5, 1.0), r"confidence must be in \(0, 1\), got 1.0"),
        (lambda: RobustAccuracy(confidence=95), r"confidence must be in \(0, 1\), got 95"),
        (lambda: perturbation_norm(torch.ones(1, 1), "l3"), "must be 'linf', 'l2', 'l1', 'l0', got 'l3'"),  # type: ignore[arg-type]
        (lambda: outcomes([0, 1], [0]), r"prediction must be \(n, classes\) or .*, got \(2,\) and \(1,\)"),
        (lambda: outcomes([0, 1], [0, 1], [4]), r"index must have the shape \(2,\) of the samples, got \(1,\)"),
        (lambda: outcomes([0, 1], [0, 1], [4, -1]), "index must not be negative, got -1"),
        (lambda: outcomes([[math.nan, 1.0]], [0]), "prediction must be numbers, got NaN"),
        (lambda: distances([1.0], [True, False]), r"of the same shape \(n,\), got \(1,\), \(2,\) and \(2,\)"),
        (lambda: distances([-1.0], [True]), "finite and not negative; leave failures out by `chosen`"),
    ],
)
def test_bad_input_is_refused(call: Any, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        call()


def test_states_of_two_processes_are_joined() -> None:
    """Sample 0 is padding of the second process, which has no distances."""
    ranks = [(RobustAccuracy(), BoundaryDistance()) for _ in range(2)]
    for (accuracy, _), right, index in zip(ranks, ([1, 1, 0], [1, 0, 1]), ([0, 1, 2], [3, 4, 0]), strict=True):
        accuracy.update(torch.tensor(right), torch.ones(3, dtype=torch.long), torch.tensor(index))
    ranks[0][1].update(torch.tensor([1.0, 2.0]), torch.tensor([True, True]))
    numbers: dict[str, float] = {}
    for one, other in zip(*ranks, strict=True):
        rows = [row.clone() for row in other.rows] or [other.all_rows("rows")]
        one.dist_sync_fn = lambda state, group, rows=rows: [state, *rows]
        one.distributed_available_fn = lambda: True
        numbers |= {name: float(value) for name, value in one.compute().items()}
    lower, upper = wilson_interval(3, 5)
    expected = {"accuracy": 3 / 5, "lower": lower, "upper": upper, "mean": 1.5, "success_rate": 1.0}
    assert numbers | expected == pytest.approx(numbers)
