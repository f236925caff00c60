"""Report on a run: a table of numbers, and for each pair the images of all methods side by side."""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from numpy.typing import NDArray
from torch import Tensor

from lit_modules.synthia.core.images import as_array, data_uri
from lit_modules.utils.figures import new_figure, save_figure
from lit_modules.utils.files import write_whole
from lit_modules.utils.html import render_html

_TEMPLATE = "data/report.html.j2"
_SMALL = 128


@dataclass(frozen=True)
class Picture:
    """Image with its caption and scores.

    Args:
        image: Tensor ``(3, height, width)`` or array ``(height, width, 3)``, floats in [0, 1] or uint8.
        caption: Words below it, such as the name of the concept.
        scores: Numbers by name.
    """

    image: Tensor | NDArray[Any]
    caption: str = ""
    scores: Mapping[str, float] = field(default_factory=dict)


@dataclass(frozen=True)
class PairPictures:
    """Images of one pair of affordances.

    Args:
        affordances: What was asked for.
        bin: Name of the distance bin.
        grids: Images by what they are, in order: each method's (frozen, random order, curriculum), the reference, the
            nearest existing concept.
        tdistance: Transformed distance in [0, 1].
    """

    affordances: Sequence[str]
    bin: str
    grids: Mapping[str, Sequence[Picture]]
    tdistance: float | None = None


@dataclass(frozen=True)
class TableRow:
    """A line of the table.

    Args:
        method: Name of the method.
        bin: Name of the distance bin, or ``"all"``.
        numbers: Numbers by name; NaN and those that are missing show as a dash.
    """

    method: str
    bin: str
    numbers: Mapping[str, float]


def table_rows(method: str, numbers: Mapping[str, float], names: Sequence[str], bins: Sequence[str]) -> list[TableRow]:
    """Return the lines of a method from a metric's numbers, one for all and one for each bin.

    Args:
        method: Name of the method.
        numbers: By ``name`` and ``name/bin``, as the metrics of :mod:`lit_modules.metrics` give them.
        names: Numbers to show, in order.
        bins: Names of the bins.

    Raises:
        ValueError: If a number is missing.

    Example:
        >>> rows = table_rows("frozen", {"recall": 0.5, "recall/easy": 0.75}, ["recall"], ["easy"])
        >>> [(row.bin, row.numbers["recall"]) for row in rows]
        [('all', 0.5), ('easy', 0.75)]
    """
    rows = []
    for bin in ("all", *bins):
        keys = {name: name if bin == "all" else f"{name}/{bin}" for name in names}
        missing = [key for key in keys.values() if key not in numbers]
        if missing:
            raise ValueError(f"There is no number {missing[0]!r} of {method}; there are {', '.join(numbers)}.")
        rows.append(TableRow(method, bin, {name: float(numbers[key]) for name, key in keys.items()}))
    return rows


def write_report(
    path: str | Path, title: str, table: Sequence[TableRow], pairs: Sequence[PairPictures], summary: str = ""
) -> Path:
    """Write one HTML file that holds everything, images too, and needs no network.

    All names, captions and numbers are escaped: whoever wrote them, they show as text. The file runs no script and
    loads nothing.

    Args:
        path: File; its folder is made.
        title: Title.
        table: Lines of the table; a column for each number.
        pairs: Images, a figure for each pair.
        summary: Paragraph below the title.

    Returns:
        The file.

    Raises:
        ValueError: If an image is of another shape or range.
    """
    columns = list(dict.fromkeys(name for row in table for name in row.numbers))
    values = {
        "title": title,
        "summary": summary,
        "columns": columns,
        "table": [
            {"method": row.method, "bin": row.bin, "numbers": {c: row.numbers.get(c, math.nan) for c in columns}}
            for row in table
        ],
        "pairs": [
            {
                "affordances": [name.replace("_", " ") for name in pair.affordances],
                "bin": pair.bin,
                "tdistance": pair.tdistance,
                "grids": {label: [_shown(picture) for picture in grid] for label, grid in pair.grids.items()},
            }
            for pair in pairs
        ],
    }
    return write_whole(path, render_html("lit_modules.synthia.core", _TEMPLATE, values, {"number": _number}))


def plot_grid(
    path: str | Path,
    pairs: Sequence[PairPictures],
    labels: Sequence[str] | None = None,
    per_cell: int = 1,
    title: str = "",
) -> Path:
    """Write a PNG of pairs by methods: a row for each pair, a column for each kind of images.

    Args:
        path: File; its folder is made.
        pairs: Pairs to show.
        labels: Kinds of images to show, in order; ``None`` takes those of the first pair.
        per_cell: Images of a kind, side by side.
        title: Title.

    Returns:
        The file.

    Raises:
        ValueError: If there are no pairs, or a pair lacks a kind of images.
    """
    if not pairs or per_cell < 1:
        raise ValueError(f"There must be at least 1 pair and 1 picture in a cell, got {len(pairs)} and {per_cell}.")
    labels = list(pairs[0].grids) if labels is None else list(labels)
    for pair in pairs:
        if missing := [label for label in labels if label not in pair.grids]:
            raise ValueError(f"The pair {' + '.join(pair.affordances)} has no images {missing[0]!r}.")
    columns = len(labels) * per_cell
    figure = new_figure(1.3 * columns + 1.6, 1.4 * len(pairs) + 0.6)
    axes = figure.subplots(len(pairs), columns, squeeze=False)
    for row, pair in enumerate(pairs):
        for column in range(columns):
            axis, (kind, number) = axes[row, column], divmod(column, per_cell)
            axis.set(xticks=[], yticks=[])
            axis.spines[:].set_visible(False)
            grid = pair.grids[labels[kind]]
            if number < len(grid):
                axis.imshow(as_array(grid[number].image), interpolation="nearest")
                axis.set_xlabel(grid[number].caption, fontsize=7, parse_math=False)
            if row == 0 and number == 0:
                axis.set_title(labels[kind], fontsize=9, loc="left", parse_math=False)
        names = "\n+ ".join(name.replace("_", " ") for name in pair.affordances)
        words = f"{names}\n({pair.bin})" if pair.bin else names
        axes[row, 0].set_ylabel(words, rotation=0, ha="right", va="center", fontsize=8, parse_math=False)
    if title:
        figure.suptitle(title, fontsize=10, parse_math=False)
    return save_figure(figure, path)[0]


def _shown(picture: Picture) -> dict[str, Any]:
    small = max(as_array(picture.image).shape[:2]) < _SMALL
    return {
        "uri": data_uri(picture.image),
        "caption": picture.caption,
        "scores": dict(picture.scores),
        "small": small,
    }


def _number(value: float) -> str:
    return "-" if math.isnan(value) else f"{value:.3f}"
