"""Robust accuracy with its interval, norms of perturbations, distances to the boundary, on one process and on two."""

import math
from itertools import pairwise
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


def test_wilson_interval_narrows() -> None:
    widths = [upper - lower for lower, upper in (wilson_interval(n // 2, n) for n in (10, 100, 1000, 10000))]
    assert all(narrow < wide / 2 for wide, narrow in pairwise(widths))
    assert wilson_interval(10, 10)[1] == 1
    assert wilson_interval(0, 10)[0] == 0


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ((1, 0), "successes=1 and total=0"),
        ((-1, 5), "successes=-1 and total=5"),
        ((6, 5), "successes must be from 0 to total and total at least 1, got successes=6 and total=5"),
        ((1, 5, 1.0), r"confidence must be in \(0, 1\), got 1.0"),
    ],
)
def test_intervals_that_make_no_sense(arguments: Any, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        wilson_interval(*arguments)


def test_perturbation_norms() -> None:
    change = torch.tensor([[[3.0, 0.0], [-4.0, 0.0]], [[0.0, 0.0], [0.0, 0.0]]])
    for norm, expected in (("linf", 4.0), ("l2", 5.0), ("l1", 7.0), ("l0", 2.0)):
        assert perturbation_norm(change, norm).tolist() == [expected, 0.0]  # type: ignore[arg-type]
    # in float32 this sum would lose the small values
    many = torch.cat([torch.tensor([[1e4]]), torch.full((1, 1000), 1e-4)], 1)
    assert float(perturbation_norm(many, "l1")) == pytest.approx(1e4 + 0.1, abs=1e-6)
    with pytest.raises(ValueError, match="norm must be 'linf', 'l2', 'l1', 'l0', got 'l3'"):
        perturbation_norm(change, "l3")  # type: ignore[arg-type]


def test_distance_statistics() -> None:
    distance = torch.tensor([4.0, 1.0, 2.0, math.inf, 9.0])
    chosen = torch.tensor([True, True, True, False, True])
    numbers = distance_statistics(distance, chosen)
    assert numbers["median"] == 3.0
    assert (numbers["min"], numbers["mean"], numbers["max"]) == (1, 4, 9)
    assert numbers["std"] == pytest.approx(math.sqrt((0 + 9 + 4 + 25) / 4))
    assert all(math.isnan(value) for value in distance_statistics(distance, torch.zeros(5).bool()).values())
    with pytest.raises(ValueError, match="finite and not negative; leave failures out by `chosen`"):
        distance_statistics(distance)
    with pytest.raises(ValueError, match=r"same shape \(n,\), got \(5,\) and \(4,\)"):
        distance_statistics(distance, chosen[:4])


def test_failures_are_infinitely_far_in_the_median() -> None:
    distance = torch.tensor([4.0, 0.0, 1.0, math.inf, 2.0])
    success = torch.tensor([True, False, True, False, True])
    assert median_distance(distance, success) == 4.0
    assert median_distance(distance[:4], success[:4]) == math.inf
    assert median_distance(distance, torch.zeros(5).bool()) == math.inf
    assert median_distance(distance[[0, 2]], success[[0, 2]]) == 2.5
    assert math.isnan(median_distance(distance[:0], success[:0]))


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


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (([0, 1], [0]), r"prediction must be \(n, classes\) or \(n,\) and label \(n,\), got \(2,\) and \(1,\)"),
        (([0, 1], [0, 1], [4]), r"index must have the shape \(2,\) of the samples, got \(1,\)"),
        (([0, 1], [0, 1], [4, -1]), "index must not be negative, got -1"),
        (([[math.nan, 1.0]], [0]), "prediction must be numbers, got NaN"),
    ],
)
def test_outcomes_that_do_not_fit(arguments: Any, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        RobustAccuracy().update(*map(torch.tensor, arguments))


def test_confidence_is_checked() -> None:
    with pytest.raises(ValueError, match=r"confidence must be in \(0, 1\), got 95"):
        RobustAccuracy(confidence=95)


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


def test_boundary_distance_at_its_limits() -> None:
    distance = BoundaryDistance()
    distance.update(torch.tensor([1.0]), torch.tensor([False]))
    numbers = distance.compute()
    assert float(numbers["success_rate"]) == 0
    assert math.isnan(float(numbers["mean"]))
    assert float(numbers["median"]) == math.inf  # none within reach: far, and not 0
    with pytest.raises(ValueError, match=r"must be of the same shape \(n,\), got \(1,\), \(2,\) and \(2,\)"):
        distance.update(torch.tensor([1.0]), torch.tensor([True, False]))
    with pytest.raises(ValueError, match="must be finite and not negative"):
        distance.update(torch.tensor([-1.0]), torch.tensor([True]))


def add_part(rank: int, accuracy: RobustAccuracy, distance: BoundaryDistance) -> None:
    """Give the outcomes of one process; sample 0 is padding of the second one, which has no distances."""
    index = torch.tensor([[0, 1, 2], [3, 4, 0]][rank])
    accuracy.update(torch.tensor([[1, 1, 0], [1, 0, 1]][rank]), torch.ones(3, dtype=torch.long), index)
    if rank == 0:
        distance.update(torch.tensor([1.0, 2.0]), torch.tensor([True, True]))


def check_both(numbers: dict[str, float]) -> None:
    assert numbers["accuracy"] == 3 / 5
    assert (numbers["lower"], numbers["upper"]) == pytest.approx(wilson_interval(3, 5))
    assert (numbers["mean"], numbers["success_rate"]) == (1.5, 1.0)


def test_states_of_two_processes_are_joined() -> None:
    ranks = [(RobustAccuracy(), BoundaryDistance()) for _ in range(2)]
    for rank, metrics in enumerate(ranks):
        add_part(rank, *metrics)
    numbers: dict[str, float] = {}
    for one, other in zip(*ranks, strict=True):
        rows = [row.clone() for row in other.rows] or [other._none()]
        one.dist_sync_fn = lambda state, group, rows=rows: [state, *rows]
        one.distributed_available_fn = lambda: True
        numbers |= {name: float(value) for name, value in one.compute().items()}
    check_both(numbers)
