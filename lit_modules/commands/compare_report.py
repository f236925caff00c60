"""The numbers of a comparison: scores, the best rate of each method, tables and files."""

import csv
import io
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from importlib import import_module
from pathlib import Path
from statistics import fmean, harmonic_mean, stdev
from typing import Any

from lit_modules.commands.compare_counts import check_spending
from lit_modules.commands.compare_grid import Run
from lit_modules.commands.compare_runs import REFERENCES
from lit_modules.errors import UsageError, closest
from lit_modules.utils.files import whole_file, write_whole

SCORE, FORGOTTEN, KEPT = "score", "forgotten", "kept"
RULE = """\
`forgotten` is the share of the way that {forget} has gone from the start to the model of the retain set alone, and
`kept` the share of {retain} of the start that is left, both cut to [0, 1]; `score` is their harmonic mean. The best
rate of a method is the one with the highest mean score over its seeds, the lower rate if two are equal. Each number is
a mean over seeds; +- is the sample standard deviation."""
SPENT = (
    "steps",
    "steps_without_update",
    "forget_rows",
    "forget_tokens",
    "retain_tokens",
    "retain_tokens_trained",
    "forward_passes",
    "forward_passes_without_gradient",
    "backward_passes",
)


@dataclass(frozen=True)
class Cell:
    """A method at a rate, over its seeds.

    Args:
        method: Name of the method.
        learning_rate: The rate.
        runs: Number of finished runs.
        numbers: Mean and sample standard deviation of each number; the latter is ``None`` for a single run.
        best: Whether it is the method's best rate.
    """

    method: str
    learning_rate: float
    runs: int
    numbers: dict[str, tuple[float, float | None]]
    best: bool


@dataclass(frozen=True)
class Comparison:
    """What a comparison found.

    Args:
        rows: A row for each finished run: method, rate, seed, scores, metrics, what was spent, seconds.
        cells: Methods and rates, over the seeds.
        references: Metrics of the start and of the model of the retain set alone.
        forget: Number that is low if the forget set is forgotten.
        retain: Number that is high if the rest is kept.
        columns: Numbers of the table.
        pareto: Panels of the Pareto figure.
    """

    rows: list[dict[str, Any]]
    cells: list[Cell]
    references: dict[str, dict[str, Any]]
    forget: str
    retain: str
    columns: list[str]
    pareto: list[dict[str, Any]]


def compare(settings: Mapping[str, Any], runs: Sequence[Run], results: Mapping[str, Mapping[str, Any]]) -> Comparison:
    """Put together what the finished runs found.

    Args:
        settings: Configuration of the comparison.
        runs: The finished runs.
        results: What ``results.json`` of each run and of both references holds, by name.

    Raises:
        ValueError: If two runs did not spend the same, or the start knows no more of the forget set than the model of
            the retain set alone.
        UsageError: If the report names a number that there is not.
    """
    counts = {run.name: results[run.name]["counts"] for run in runs}
    check_spending(counts, {run.name: run.seed for run in runs}, settings["max_steps"], settings["effective_batch"])
    report = settings["report"]
    forget, retain = report["forget"], report["retain"]
    references = {name: dict(results[name]["metrics"]) for name in REFERENCES}
    known = sorted({name for run in runs for name in results[run.name]["metrics"]})
    pareto = [dict(panel) for panel in report.get("pareto") or [{"x": forget, "y": retain}]]
    columns = list(report.get("columns") or [forget, retain])
    for name in (forget, retain, *columns, *(panel[axis] for panel in pareto for axis in ("x", "y"))):
        if name not in known:
            raise UsageError(f"There is no number {name!r} for the report{closest(name, known)}")
    start, alone = (_number(references[name].get(forget)) for name in REFERENCES)
    if not start > alone:
        raise ValueError(
            f"The start must know the forget set better than the model of the retain set alone: {forget} is "
            f"{start:.4g} and {alone:.4g}; train the start for more steps (start.steps)."
        )
    rows = []
    for run in runs:
        found = results[run.name]
        metrics = found["metrics"]
        forgotten = _share(start - _number(metrics.get(forget)), start - alone)
        kept = _share(_number(metrics.get(retain)), _number(references["start"].get(retain)))
        score = math.nan if math.isnan(forgotten + kept) else harmonic_mean([forgotten, kept])
        rows.append(
            {
                "method": run.method.name,
                "learning_rate": run.learning_rate,
                "seed": run.seed,
                SCORE: score,
                FORGOTTEN: forgotten,
                KEPT: kept,
                **{name: _number(metrics.get(name)) for name in known},
                **{name: found["counts"][name] for name in SPENT},
                **{f"seconds_{name}": value for name, value in found["seconds"].items()},
            }
        )
    return Comparison(rows, _cells(rows), references, forget, retain, columns, pareto)


def table(comparison: Comparison, best: bool = False, short: bool = False) -> list[list[str]]:
    """Return the table as text, its header first.

    Args:
        comparison: What was found.
        best: Whether to show the best rate of each method alone.
        short: Whether to leave out all columns but the two that make the score.
    """
    columns = [comparison.forget, comparison.retain] if short else comparison.columns
    names = [SCORE, FORGOTTEN, KEPT, *columns]
    lines = [["method", "rate", "runs", *names]]
    for name, metrics in comparison.references.items():
        numbers = [_cell((_number(metrics.get(key)), None)) for key in columns]
        lines.append([f"({name})", "-", "-", "-", "-", "-", *numbers])
    for cell in comparison.cells:
        if cell.best or not best:
            mark = " (best)" if cell.best and not best else ""
            rate = f"{cell.learning_rate:g}{mark}"
            lines.append([cell.method, rate, str(cell.runs), *(_cell(cell.numbers[name]) for name in names)])
    return lines


def markdown(comparison: Comparison) -> str:
    """Return the tables in Markdown: the best rates, all rates, and what the runs spent."""
    spent = [["method", *(name.replace("_", " ") for name in SPENT), "seconds"]]
    for method in dict.fromkeys(row["method"] for row in comparison.rows):
        of_it = [row for row in comparison.rows if row["method"] == method]
        means = [fmean(row[name] for row in of_it) for name in SPENT]
        seconds = fmean(row["seconds_train"] + row["seconds_test"] for row in of_it)
        spent.append(
            [method, *(f"{mean:.10g}" if mean == int(mean) else f"{mean:.1f}" for mean in means), f"{seconds:.1f}"]
        )
    rule = RULE.format(forget=f"`{comparison.forget}`", retain=f"`{comparison.retain}`")
    parts = [
        "Best rate of each method",
        _markdown(table(comparison, best=True)),
        rule,
        "All rates",
        _markdown(table(comparison)),
        "What a run of each method spends, on average",
        _markdown(spent),
    ]
    return "\n".join(f"{part}\n" if part[0] != "|" else part for part in parts)


def write(folder: Path, comparison: Comparison) -> list[Path]:
    """Write ``results.csv``, ``results.parquet``, ``table.csv`` and ``table.md``.

    Without pyarrow, which writes Parquet, a sentence says so and ``results.csv`` holds the same.

    Returns:
        The files.
    """
    files = [
        write_whole(folder / "results.csv", _csv(list(comparison.rows[0]), comparison.rows)),
        write_whole(folder / "table.csv", _table_csv(comparison)),
        write_whole(folder / "table.md", markdown(comparison)),
    ]
    try:
        arrow, parquet = import_module("pyarrow"), import_module("pyarrow.parquet")
    except ModuleNotFoundError:
        needed = 'results.parquet needs pyarrow, which is not installed: pip install "lit-modules[parquet]".'
        print(f"{needed} results.csv holds the same.")
        return files
    path = folder / "results.parquet"
    with whole_file(path) as part:
        parquet.write_table(arrow.Table.from_pylist(comparison.rows), part)
    return [*files, path]


def print_table(comparison: Comparison) -> None:
    """Print the table of the best rates."""
    from rich.console import Console
    from rich.table import Table

    lines = table(comparison, best=True, short=True)
    short = [name.removeprefix("test/") for name in lines[0]]
    printed = Table()
    for number, name in enumerate(short):
        printed.add_column(name, justify="left" if number == 0 else "right")
    for line in lines[1:]:
        printed.add_row(*line)
    Console().print(printed, markup=False)


def _cells(rows: Sequence[Mapping[str, Any]]) -> list[Cell]:
    groups: dict[tuple[str, float], list[Mapping[str, Any]]] = {}
    for row in rows:
        groups.setdefault((row["method"], row["learning_rate"]), []).append(row)
    means = {key: fmean(row[SCORE] for row in group) for key, group in groups.items()}
    best: dict[str, float] = {}
    for method, rate in sorted(groups, key=lambda key: key[1]):
        score = means[method, rate]
        if math.isnan(score):
            continue
        if method not in best or score > means[method, best[method]]:
            best[method] = rate
    cells = []
    for (method, rate), group in groups.items():
        numbers = {}
        for name, value in group[0].items():
            if isinstance(value, int | float) and name not in ("learning_rate", "seed"):
                values = [float(row[name]) for row in group]
                numbers[name] = (fmean(values), _spread(values))
        cells.append(Cell(method, rate, len(group), numbers, best.get(method) == rate))
    return cells


def _table_csv(comparison: Comparison) -> str:
    rows = []
    for cell in comparison.cells:
        numbers: dict[str, Any] = {}
        for name, (mean, spread) in cell.numbers.items():
            numbers |= {name: mean, f"{name} std": "" if spread is None else spread}
        rows.append(
            {"method": cell.method, "learning_rate": cell.learning_rate, "best": cell.best, "runs": cell.runs} | numbers
        )
    return _csv(list(rows[0]), rows)


def _csv(names: Sequence[str], rows: Sequence[Mapping[str, Any]]) -> str:
    text = io.StringIO()
    writer = csv.DictWriter(text, names, lineterminator="\n")
    writer.writeheader()
    writer.writerows(rows)
    return text.getvalue()


def _markdown(lines: Sequence[Sequence[str]]) -> str:
    framed = [lines[0], ["---"] * len(lines[0]), *lines[1:]]
    return "\n".join("| " + " | ".join(cell.replace("|", "\\|") for cell in line) + " |" for line in framed) + "\n"


def _share(part: float, whole: float) -> float:
    if math.isnan(part) or not whole > 0:
        return math.nan
    return min(1.0, max(0.0, part / whole))


def _number(value: float | None) -> float:
    return math.nan if value is None else float(value)


def _spread(values: Sequence[float]) -> float | None:
    if len(values) < 2:
        return None
    return stdev(values) if all(map(math.isfinite, values)) else math.nan


def _cell(pair: tuple[float, float | None]) -> str:
    mean, spread = pair
    if math.isnan(mean):
        return "-"
    return f"{mean:.3g}" if spread is None else f"{mean:.3g} +- {spread:.2g}"
