"""The table and the figure of a sweep."""

import csv
import io
import math
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass
from fnmatch import fnmatchcase
from pathlib import Path
from statistics import fmean, stdev
from typing import Any

from lit_modules.studies.sweep.grid import SEED, Axis, Point, short_names, show_value
from lit_modules.utils.errors import UsageError
from lit_modules.utils.suggestions import did_you_mean

REPORTED = ("test/*", "val/*")
"""Numbers that the table has."""


@dataclass(frozen=True)
class Row:
    """What a sweep found at one value of each axis, over the seeds.

    Args:
        values: A value for each axis but the seed's.
        runs: Number of finished points.
        asked: Number of points.
        numbers: Mean and sample standard deviation of each number; the latter is ``None`` for a single run.
    """

    values: tuple[Any, ...]
    runs: int
    asked: int
    numbers: dict[str, tuple[float, float | None]]


def summarise(axes: Sequence[Axis], results: Mapping[str, dict[str, Any]], points: Sequence[Point]) -> list[Row]:
    """Return a row for each value of the axes; seeds are summed up.

    A number that is not finite in one run has no finite mean.

    Args:
        axes: Axes of the sweep.
        results: ``metrics`` of the finished points, by name of the point.
        points: All points.
    """
    groups: dict[tuple[str, ...], list[Point]] = {}
    kept = [number for number, axis in enumerate(axes) if axis.key != SEED]
    for point in points:
        groups.setdefault(tuple(repr(point.values[number]) for number in kept), []).append(point)
    rows = []
    for group in groups.values():
        found = [results[point.name] for point in group if point.name in results]
        names = dict.fromkeys(name for numbers in found for name in numbers)
        values = {name: [_number(numbers[name]) for numbers in found if name in numbers] for name in names}
        numbers = {name: (fmean(found_values), _spread(found_values)) for name, found_values in values.items()}
        rows.append(Row(tuple(group[0].values[number] for number in kept), len(found), len(group), numbers))
    return rows


def choose(rows: Sequence[Row], patterns: Sequence[str]) -> list[str]:
    """Return the names of numbers that match, in the order of the patterns.

    Raises:
        UsageError: If a pattern matches none.
    """
    names = sorted({name for row in rows for name in row.numbers})
    chosen: dict[str, None] = {}
    for pattern in patterns:
        matching = [name for name in names if fnmatchcase(name, pattern)]
        if not matching and pattern not in REPORTED:
            raise UsageError(f"There is no number {pattern!r} for --metrics{did_you_mean(pattern, names)}")
        chosen |= dict.fromkeys(matching)
    return list(chosen)


def header(axes: Sequence[Axis]) -> list[str]:
    """Return the names of the axes but the seed's."""
    return [name for name, axis in zip(short_names(axes), axes, strict=True) if axis.key != SEED]


def cells(row: Row, metrics: Sequence[str]) -> list[str]:
    """Return a row of the table as text: the values, the number of runs, each number as ``mean +- deviation``."""
    runs = str(row.runs) if row.runs == row.asked else f"{row.runs} of {row.asked}"
    return [*map(show_value, row.values), runs, *(_cell(row.numbers.get(name)) for name in metrics)]


def markdown(axes: Sequence[Axis], rows: Sequence[Row], metrics: Sequence[str]) -> str:
    """Return the table in Markdown."""
    names = [*header(axes), "runs", *metrics]
    lines = [names, ["---"] * len(names), *(cells(row, metrics) for row in rows)]
    text = "\n".join("| " + " | ".join(cell.replace("|", "\\|") for cell in line) + " |" for line in lines)
    return text + "\n\nEach number is a mean; +- is the sample standard deviation over the runs of different seeds.\n"


def comma_separated(axes: Sequence[Axis], rows: Sequence[Row], metrics: Sequence[str]) -> str:
    """Return the table as CSV in full precision, mean and deviation in columns of their own."""
    text = io.StringIO()
    writer = csv.writer(text, lineterminator="\n")
    writer.writerow([*header(axes), "runs", *(column for name in metrics for column in (name, f"{name} std"))])
    for row in rows:
        pairs = (row.numbers.get(name, ("", None)) for name in metrics)
        numbers = ["" if number is None else number for pair in pairs for number in pair]
        writer.writerow([*map(show_value, row.values), row.runs, *numbers])
    return text.getvalue()


def print_table(axes: Sequence[Axis], rows: Sequence[Row], metrics: Sequence[str]) -> None:
    """Print the table, turned on its side if it is narrower so."""
    from rich.console import Console
    from rich.table import Table

    grid = [[*header(axes), "runs", *metrics], *(cells(row, metrics) for row in rows)]
    if len(grid[0]) > len(grid):
        grid = [list(line) for line in zip(*grid, strict=True)]
    table = Table()
    for number, name in enumerate(grid[0]):
        table.add_column(name, justify="left" if number == 0 else "right")
    for line in grid[1:]:
        table.add_row(*line)
    Console().print(table, markup=False)


def panels(metrics: Sequence[str]) -> dict[str, list[str]]:
    """Group numbers whose quantities end in the same word: they share a panel of the figure.

    Example:
        >>> panels(["test/accuracy", "test/robust_accuracy/linf", "val/loss"])
        {'accuracy': ['test/accuracy', 'test/robust_accuracy/linf'], 'loss': ['val/loss']}
    """
    groups: dict[str, list[str]] = {}
    for name in metrics:
        parts = name.split("/")
        groups.setdefault(parts[min(1, len(parts) - 1)].rpartition("_")[2], []).append(name)
    return groups


def draw(
    axes: Sequence[Axis],
    points: Sequence[Point],
    results: Mapping[str, dict[str, Any]],
    metrics: Sequence[str],
    path: Path,
) -> None:
    """Draw the numbers against the first axis, a panel for each group and a line for each value of the other axes.

    Bars are the standard deviation over seeds. A sweep over seeds alone is drawn against the seed.
    """
    import matplotlib

    matplotlib.use("Agg", force=False)
    from matplotlib import pyplot as plt

    alone = all(axis.key == SEED for axis in axes)
    if alone:
        rows = [Row(p.values, 1, 1, _single(results[p.name])) for p in points if p.name in results]
    else:
        rows = summarise(axes, results, points)
    swept = [axis for axis in axes if alone or axis.key != SEED]
    places, labels = _places(swept[0].values)
    groups = panels(metrics)
    columns = min(3, len(groups))
    height = math.ceil(len(groups) / columns)
    figure, grid = plt.subplots(height, columns, figsize=(5 * columns, 3.8 * height), squeeze=False)
    lines = list(dict.fromkeys(tuple(map(show_value, row.values[1:])) for row in rows))
    for panel, (group, names) in zip(grid.flat, groups.items(), strict=False):
        for line, rest in enumerate(lines):
            for colour, name in enumerate(names):
                at = [
                    (places[repr(row.values[0])], *row.numbers[name])
                    for row in rows
                    if name in row.numbers and tuple(map(show_value, row.values[1:])) == rest
                ]
                if not at:
                    continue
                x, y, spread = zip(*sorted(at, key=lambda entry: entry[0]), strict=True)
                label = ", ".join([name, *(f"{n}={v}" for n, v in zip(short_names(swept)[1:], rest, strict=True))])
                panel.errorbar(
                    x,
                    y,
                    [number or 0.0 for number in spread],
                    color=f"C{colour % 10}",
                    marker="osD^v<>P*X"[line % 10],
                    linestyle=("-", "--", ":", "-.")[line % 4],
                    capsize=3,
                    label=label,
                )
        panel.set(xlabel=swept[0].key, ylabel=group)
        if labels is None:
            panel.set_xscale("log" if _is_geometric(places.values()) else "linear")
            panel.minorticks_off()
            panel.set_xticks(list(places.values()), [f"{place:g}" for place in places.values()])
        else:
            panel.set_xticks(range(len(labels)), labels)
        panel.grid(alpha=0.3)
        panel.legend(fontsize="small")
    for panel in list(grid.flat)[len(groups) :]:
        panel.remove()
    figure.tight_layout()
    figure.savefig(path, dpi=120)
    plt.close(figure)


def _single(numbers: Mapping[str, Any]) -> dict[str, tuple[float, float | None]]:
    return {name: (_number(value), None) for name, value in numbers.items()}


def _number(value: float | None) -> float:
    return math.nan if value is None else value


def _spread(values: Sequence[float]) -> float | None:
    if len(values) < 2:
        return None
    return stdev(values) if all(map(math.isfinite, values)) else math.nan


def _cell(pair: tuple[float, float | None] | None) -> str:
    if pair is None:
        return "-"
    mean, spread = pair
    return f"{mean:.4g}" if spread is None else f"{mean:.4g} +- {spread:.2g}"


def _places(values: Sequence[Any]) -> tuple[dict[str, float], list[str] | None]:
    """Return where each value lies on the axis: finite numbers where they are, others side by side with labels."""
    if all(isinstance(value, int | float) and not isinstance(value, bool) and math.isfinite(value) for value in values):
        return {repr(value): float(value) for value in values}, None
    return {repr(value): float(number) for number, value in enumerate(values)}, [show_value(value) for value in values]


def _is_geometric(places: Collection[float]) -> bool:
    """Return whether positive numbers span more than a factor of 20."""
    return min(places) > 0 and max(places) / min(places) > 20
