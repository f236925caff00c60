"""Timing that the benchmarks share: works take turns, and ratios are of times of the same turn."""

import statistics
import time
from collections.abc import Callable, Sequence
from typing import Any

import torch

Row = tuple[str, str, str]
"""What was measured, what was found, what is asked."""


def clock() -> float:
    """Return the seconds of the processor that this process has used, of all threads; on a GPU those of the wall.

    Other work on the machine changes processor time little, so it is what the ratios of a shared machine are of.
    """
    if torch.cuda.is_available():
        torch.cuda.synchronize()
        return time.perf_counter()
    return time.process_time()


def seconds(work: Callable[[], Any], clock: Callable[[], float] = clock) -> tuple[float, Any]:
    """Return how long something took, and what it returned."""
    began = clock()
    found = work()
    return clock() - began, found


def in_turns(rounds: int, *works: Callable[[], float]) -> list[list[float]]:
    """Return the times of works, which take turns and change who is first, so that a drift meets all alike."""
    times: list[list[float]] = [[] for _ in works]
    for number in range(rounds):
        for place in sorted(range(len(works)), reverse=number % 2 == 1):
            times[place].append(works[place]())
    return times


def spread(values: Sequence[float], digits: int = 2) -> str:
    """Return the median of values, with all of them."""
    return f"{statistics.median(values):.{digits}f} ({', '.join(f'{value:.{digits}f}' for value in values)})"


def ratios(above: Sequence[float], below: Sequence[float]) -> list[float]:
    """Return the ratios of times of the same turn."""
    return [one / other for one, other in zip(above, below, strict=True)]


def show(rows: Sequence[Row]) -> None:
    """Print rows of a table."""
    for what, found, asked in rows:
        print(f"{what:52}{found:56}{asked}", flush=True)
