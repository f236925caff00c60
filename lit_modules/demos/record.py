"""Recorded numbers of a demonstration over several seeds, and its claims with their verdicts."""

import datetime
import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from importlib.resources import files
from pathlib import Path
from statistics import fmean, stdev
from typing import Any

from lit_modules.utils.files import write_whole

Numbers = Mapping[str, float]
"""Numbers of a run with one seed, by name."""


@dataclass(frozen=True)
class Claim:
    """Claim that a demonstration tests.

    Args:
        text: The claim, in one sentence.
        names: Names of the numbers that are shown with it.
        holds: Decides it from the numbers of one seed, or from means over seeds.
    """

    text: str
    names: tuple[str, ...]
    holds: Callable[[Numbers], bool]


@dataclass(frozen=True)
class Record:
    """Numbers of a demonstration over several seeds.

    Args:
        command: Command that made them.
        date: Day on which they were made, as YYYY-MM-DD.
        seeds: Numbers of each seed.
    """

    command: str
    date: str
    seeds: Mapping[int, Numbers]


def read_record(method: str) -> Record | None:
    """Return the shipped record of a demonstration, ``data/<method>.json`` of this package, if there is one."""
    file = files("lit_modules.demos") / "data" / f"{method}.json"
    if not file.is_file():
        return None
    content = json.loads(file.read_text(encoding="utf-8"))
    return Record(content["command"], content["date"], {int(seed): row for seed, row in content["seeds"].items()})


def write_record(path: Path, record: Record) -> Path:
    """Write a record in the form of the shipped ones, and return the file."""
    content: dict[str, Any] = {"command": record.command, "date": record.date, "seeds": record.seeds}
    return write_whole(path, json.dumps(content, indent=2) + "\n")


def run_seeds(
    method: str, claims: Sequence[Claim], run: Callable[[Path, int], Numbers], *, folder: Path, seeds: Sequence[int]
) -> None:
    """Run a demonstration with each seed; print its claims, this run's numbers, the recorded ones, and the verdicts.

    A run of several seeds is a record of its own: it is written to ``record.json`` in its folder, in the form of the
    shipped one, which it may replace.

    Args:
        method: Name of the demonstration.
        claims: Its claims.
        run: Runs it in a folder with a seed, and returns the numbers of the claims.
        folder: Folder of the run; with several seeds, each has one of its own in it.
        seeds: Seeds.
    """
    runs = {seed: run(folder / f"seed-{seed}" if len(seeds) > 1 else folder, seed) for seed in seeds}
    shipped = read_record(method)
    for number, claim in enumerate(claims, 1):
        print(f"\nClaim {number} of {len(claims)}: {claim.text}")
        print(verdict("this run", claim, runs))
        # a claim that came later may be recorded for fewer seeds than the others
        recorded = {seed: row for seed, row in shipped.seeds.items() if {*claim.names} <= {*row}} if shipped else {}
        if shipped is not None and recorded:
            print(verdict(f"recorded {shipped.date}", claim, recorded))
    if len(seeds) > 1:
        command = f"lit-modules demo {method} --seeds {len(seeds)}" + (f" --seed {seeds[0]}" if seeds[0] else "")
        record = Record(command, datetime.datetime.now(datetime.UTC).date().isoformat(), runs)
        print(f"\nRecord of these seeds: {write_record(folder / 'record.json', record)}")


def verdict(source: str, claim: Claim, runs: Mapping[int, Numbers]) -> str:
    """Return a line with the mean and sample deviation of a claim's numbers over seeds, and whether they support it.

    Example:
        >>> claim = Claim("Tuning helps.", ("before", "after"), lambda numbers: numbers["after"] > numbers["before"])
        >>> verdict("this run", claim, {0: {"before": 0.25, "after": 0.5}})
        'this run, seed 0: before 0.250, after 0.500 -> holds'
        >>> verdict("recorded", claim, {0: {"before": 0.2, "after": 0.5}, 1: {"before": 0.4, "after": 0.3}})
        'recorded, seeds 0 1: before 0.300 ± 0.141, after 0.400 ± 0.141 -> holds (in 1 of 2 seeds)'
    """
    common = set.intersection(*({*numbers} for numbers in runs.values()))
    means = {name: fmean(numbers[name] for numbers in runs.values()) for name in common}
    shown = []
    for name in claim.names:
        spread = f" ± {stdev(numbers[name] for numbers in runs.values()):.3f}" if len(runs) > 1 else ""
        shown.append(f"{name} {means[name]:.3f}{spread}")
    outcome = "holds" if claim.holds(means) else "does not hold"
    if len(runs) > 1:
        outcome += f" (in {sum(claim.holds(numbers) for numbers in runs.values())} of {len(runs)} seeds)"
    seeds = f"seed{'s' * (len(runs) > 1)} {' '.join(map(str, runs))}"
    return f"{source}, {seeds}: {', '.join(shown)} -> {outcome}"
