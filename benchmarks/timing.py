"""Timing and tables that the benchmarks share: works take turns, and ratios are of times of the same turn.

Every family prints one `Table`. Its rows say what was compared, ours, the best peer or the floor by its name, the ratio
ours / best over the rounds, how far the results agree, and a verdict. A row whose results differ by more than its
script allows is void, and `end` then ends the script with exit code 1.
"""

import os
import platform
import statistics
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from datetime import date
from importlib.metadata import PackageNotFoundError, version
from typing import Any

import torch

HEAD = ("what", "ours", "best peer or floor", "ratio: min", "median", "max", "results", "verdict")


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


def ratios(above: Sequence[float], below: Sequence[float]) -> list[float]:
    """Return the ratios of times of the same turn."""
    return [one / other for one, other in zip(above, below, strict=True)]


def _short(value: float) -> str:
    """Return a number with three figures, a ratio near 1 with three decimals."""
    return f"{value:.3f}" if 0.1 <= abs(value) < 10 else f"{value:.3g}" if abs(value) < 1000 else f"{value:.0f}"


class Table:
    """Markdown table of comparisons, printed row by row, and the rows in it that are void.

    Args:
        family: What is compared.
        rounds: Turns of each contender.
        packages: Distributions whose versions count beside torch's; one that is not installed is left out.
        time: Name of the clock; ``None`` for that of :func:`clock`.
    """

    def __init__(self, family: str, rounds: int, *packages: str, time: str | None = None) -> None:
        self.void: list[str] = []
        versions = []
        for package in ("torch", *packages):
            try:
                versions.append(f"{package} {version(package)}")
            except PackageNotFoundError:
                continue
        device, measured = f"{platform.machine()}, {os.cpu_count()} cores", "processor time"
        if torch.cuda.is_available():
            device, measured = torch.cuda.get_device_name(), "wall time"
        threads = f"{torch.get_num_threads()} thread(s)"
        print(f"\n{family}: {date.today()}, {device}, {threads}, {', '.join(versions)}, {rounds} round(s), ", end="")
        print(time or measured, "", f"| {' | '.join(HEAD)} |", "|" + " --- |" * len(HEAD), sep="\n", flush=True)

    def add(
        self,
        what: str,
        ours: Sequence[float],
        others: Mapping[str, Sequence[float]],
        results: str = "",
        *,
        void: str = "",
        most: float | None = 1.0,
        unit: str = "s",
    ) -> None:
        """Print a row.

        Args:
            what: What is compared.
            ours: Our time in each round, in seconds; or another cost.
            others: That of the peers and floors by their names. The one of the least median is the best.
            results: How far the results agree.
            void: Reason why the row does not count; empty if it does.
            most: Largest median ratio that is aimed at; ``None`` for no aim.
            unit: ``s``, ``ms`` for seconds shown as such, or the unit of another cost.
        """
        scale = 1000 if unit == "ms" else 1
        medians = {name: statistics.median(values) for name, values in others.items()}
        first, *rest = (
            f"{name} {_short(scale * medians[name])} {unit}".rstrip()
            for name in sorted(medians, key=medians.__getitem__)
        )
        found = ratios(ours, others[min(medians, key=medians.__getitem__)])
        median = statistics.median(found)
        verdict = "" if most is None else f"{'at most' if median <= most else 'ABOVE'} {_short(most)}"
        if void:
            verdict = f"VOID: {void}"
            self.void.append(what.strip())
        spread = map(_short, (min(found), median, max(found)))
        own = f"{_short(scale * statistics.median(ours))} {unit}".rstrip()
        best = f"{first} ({', '.join(rest)})" if rest else first
        print(f"| {' | '.join((what, own, best, *spread, results, verdict))} |", flush=True)


def end(*tables: Table) -> None:
    """End the script, with exit code 1 and their names if rows are void."""
    void = [name for table in tables for name in table.void]
    if void:
        sys.exit(f"void, as results differ: {'; '.join(void)}")
