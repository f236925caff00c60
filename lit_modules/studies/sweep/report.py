"""Table and figure of a sweep."""

import math
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass
from fnmatch import fnmatchcase
from pathlib import Path
from typing import Any

from lit_modules.studies.arguments import SEED, show_value
from lit_modules.studies.sweep.grid import Axis, Point, short_names
from lit_modules.studies.tables import Number, csv_table, markdown_table, number, print_table, summary
from lit_modules.utils.errors import UsageError
from lit_modules.utils.figures import (
    COLOURS,
    REST,
    end_axes,
    figure_style,
    label_right,
    new_figure,
    save_figure,
    series_styles,
)
from lit_modules.utils.suggestions import did_you_mean

REPORTED = ("test/*", "val/*")
"""Numbers of the table."""


@dataclass(frozen=True)
class Row:
    """Results at one value of each axis, over the seeds.

    Args:
        values: A value for each axis but the seed's.
        finished: Number of finished points.
        points: Number of points.
        numbers: Mean and deviation of each number.
    """

    values: tuple[Any, ...]
    finished: int
    points: int
    numbers: Mapping[str, Number]

    def cells(self, metrics: Sequence[str]) -> list[str]:
        """Return the row as text: the values, the number of runs, each number as ``mean +- deviation``."""
        runs = str(self.finished) if self.finished == self.points else f"{self.finished} of {self.points}"
        return [*map(show_value, self.values), runs, *(_cell(self.numbers.get(name)) for name in metrics)]


def summarise(axes: Sequence[Axis], results: Mapping[str, dict[str, Any]], points: Sequence[Point]) -> list[Row]:
    """Return a row for each value of the axes, over the seeds."""
    groups: dict[tuple[str, ...], list[Point]] = {}
    shown = [index for index, axis in enumerate(axes) if axis.key != SEED]
    for point in points:
        groups.setdefault(tuple(repr(point.values[index]) for index in shown), []).append(point)
    rows = []
    for group in groups.values():
        finished = [results[point.name] for point in group if point.name in results]
        names = dict.fromkeys(name for metrics in finished for name in metrics)
        numbers = {name: summary([number(m[name]) for m in finished if name in m]) for name in names}
        values = tuple(group[0].values[index] for index in shown)
        rows.append(Row(values, finished=len(finished), points=len(group), numbers=numbers))
    return rows


def choose(rows: Sequence[Row], patterns: Sequence[str]) -> list[str]:
    """Return the names of numbers that match, in the order of the patterns."""
    names = sorted({name for row in rows for name in row.numbers})
    chosen: dict[str, None] = {}
    for pattern in patterns:
        matching = [name for name in names if fnmatchcase(name, pattern)]
        if not matching and pattern not in REPORTED:
            raise UsageError(f"There is no number {pattern!r} for --metrics{did_you_mean(pattern, names)}")
        chosen |= dict.fromkeys(matching)
    return list(chosen)


def table(axes: Sequence[Axis], rows: Sequence[Row], metrics: Sequence[str]) -> list[list[str]]:
    """Return the table as text, its header first."""
    return [[*_header(axes), "runs", *metrics], *(row.cells(metrics) for row in rows)]


def markdown(axes: Sequence[Axis], rows: Sequence[Row], metrics: Sequence[str]) -> str:
    """Return the table in Markdown."""
    note = "Each number is a mean; +- is the sample standard deviation over the runs of different seeds."
    return f"{markdown_table(table(axes, rows, metrics))}\n{note}\n"


def comma_separated(axes: Sequence[Axis], rows: Sequence[Row], metrics: Sequence[str]) -> str:
    """Return the table as CSV in full precision, mean and deviation in columns of their own."""
    lines: list[list[Any]] = [[*_header(axes), "runs", *(each for name in metrics for each in (name, f"{name} std"))]]
    for row in rows:
        numbers = [value for name in metrics for value in row.numbers.get(name, (None, None))]
        lines.append([*map(show_value, row.values), row.finished, *numbers])
    return csv_table(lines)


def print_turned(axes: Sequence[Axis], rows: Sequence[Row], metrics: Sequence[str]) -> None:
    """Print the table, turned on its side if it is narrower so."""
    cells = table(axes, rows, metrics)
    print_table([list(column) for column in zip(*cells, strict=True)] if len(cells[0]) > len(cells) else cells)


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


@figure_style()
def draw(
    axes: Sequence[Axis],
    points: Sequence[Point],
    results: Mapping[str, dict[str, Any]],
    metrics: Sequence[str],
    path: Path,
) -> None:
    """Draw the numbers against the first axis, a panel for each group and a line for each value of the other axes.

    Bars are the standard deviation over seeds. A sweep over seeds alone is drawn against the seed. A panel has at most
    eight lines in colour, the first ones, with their names; the rest are grey.
    """
    swept = [axis for axis in axes if axis.key != SEED]
    if swept:
        rows = summarise(axes, results, points)
    else:
        swept = list(axes)
        single = {name: {key: (number(value), None) for key, value in m.items()} for name, m in results.items()}
        finished = [point for point in points if point.name in results]
        rows = [Row(point.values, finished=1, points=1, numbers=single[point.name]) for point in finished]
    positions, labels = _positions(swept[0].values)
    groups = panels(metrics)
    columns = min(3, len(groups))
    height = math.ceil(len(groups) / columns)
    figure = new_figure(4.8 * columns, 3.2 * height)
    grid = figure.subplots(height, columns, squeeze=False)
    lines: dict[tuple[str, ...], list[Row]] = {}
    for row in rows:
        lines.setdefault(tuple(map(show_value, row.values[1:])), []).append(row)
    for panel, (group, names) in zip(grid.flat, groups.items(), strict=False):
        panel.set(xlabel=swept[0].key, ylabel=group)
        if labels is None:
            panel.set_xscale("log" if _is_geometric(positions.values()) else "linear")
        drawn: dict[str, list[tuple[float, Row, str]]] = {}
        for rest, of_line in lines.items():
            for name in names:
                points_of = [(positions[repr(row.values[0])], row, name) for row in of_line if name in row.numbers]
                label = ", ".join([name, *(f"{n}={v}" for n, v in zip(short_names(swept)[1:], rest, strict=True))])
                if points_of:
                    drawn[label] = sorted(points_of, key=lambda entry: entry[0])
        styles = series_styles(list(drawn)[: len(COLOURS)])
        ends = {}
        for label, entries in reversed(drawn.items()):  # grey lines behind those in colour
            means = [row.numbers[name][0] for _, row, name in entries]
            spread = [row.numbers[name][1] or 0.0 for _, row, name in entries]
            style = styles.get(label, {"color": REST, "marker": ""})
            panel.errorbar([place for place, _, _ in entries], means, spread, **style)
            if label in styles:
                ends[label] = entries[-1][0], means[-1], style["color"]
        end_axes(panel)
        if labels is None:
            panel.minorticks_off()
            panel.set_xticks(list(positions.values()), [f"{position:g}" for position in positions.values()])
        else:
            panel.set_xticks(range(len(labels)), labels)
        if ends and all(math.isfinite(height) for _, height, _ in ends.values()):
            label_right(panel, ends)
    for panel in list(grid.flat)[len(groups) :]:
        panel.remove()
    save_figure(figure, path)


def _header(axes: Sequence[Axis]) -> list[str]:
    return [name for name, axis in zip(short_names(axes), axes, strict=True) if axis.key != SEED]


def _cell(pair: Number | None) -> str:
    if pair is None:
        return "-"
    mean, deviation = pair
    return f"{mean:.4g}" if deviation is None else f"{mean:.4g} +- {deviation:.2g}"


def _positions(values: Sequence[Any]) -> tuple[dict[str, float], list[str] | None]:
    """Return the position of each value on the axis: finite numbers to scale, others side by side with labels."""
    if all(isinstance(value, int | float) and not isinstance(value, bool) and math.isfinite(value) for value in values):
        return {repr(value): float(value) for value in values}, None
    return {repr(value): float(index) for index, value in enumerate(values)}, [show_value(value) for value in values]


def _is_geometric(positions: Collection[float]) -> bool:
    """Return whether positive numbers span more than a factor of 20."""
    return min(positions) > 0 and max(positions) / min(positions) > 20
