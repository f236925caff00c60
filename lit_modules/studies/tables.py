"""Tables of a study: mean and deviation over seeds, as Markdown, CSV and in the terminal."""

import csv
import io
import math
from collections.abc import Sequence
from statistics import fmean, stdev
from typing import Any

Number = tuple[float, float | None]
"""Mean and sample standard deviation; the latter is ``None`` for a single run."""


def summary(values: Sequence[float]) -> Number:
    """Return mean and sample standard deviation; both are not finite if a value is not.

    Example:
        >>> summary([1.0, 3.0])
        (2.0, 1.4142135623730951)
    """
    if not values:
        return math.nan, None
    if len(values) < 2:
        return fmean(values), None
    return fmean(values), stdev(values) if all(map(math.isfinite, values)) else math.nan


def number(value: float | None) -> float:
    """Return a number of a record, whose ``None`` stands for what is not finite."""
    return math.nan if value is None else float(value)


def markdown_table(rows: Sequence[Sequence[str]]) -> str:
    """Return a table in Markdown; its first row is the header."""
    framed = [rows[0], ["---"] * len(rows[0]), *rows[1:]]
    return "\n".join("| " + " | ".join(cell.replace("|", "\\|") for cell in row) + " |" for row in framed) + "\n"


def csv_table(rows: Sequence[Sequence[Any]]) -> str:
    """Return a table as CSV; its first row is the header."""
    text = io.StringIO()
    csv.writer(text, lineterminator="\n").writerows(rows)
    return text.getvalue()


def print_table(rows: Sequence[Sequence[str]], title: str | None = None, texts: int = 1) -> None:
    """Print a table; its first row is the header, an empty row a line, and all but ``texts`` columns hold numbers."""
    from rich.console import Console
    from rich.table import Table
    from rich.text import Text

    table = Table(title=Text(title) if title else None, title_justify="left")  # a text, as rich reads markup
    for index, name in enumerate(rows[0]):
        table.add_column(name, justify="left" if index < texts else "right", overflow="fold")
    for row in rows[1:]:
        if row:
            table.add_row(*row)
        else:
            table.add_section()
    Console().print(table, markup=False)
