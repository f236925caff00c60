"""The numbers of a comparison: scores, the best rate of each method, tables and files."""

import csv
import io
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from importlib import import_module
from pathlib import Path
from statistics import fmean, harmonic_mean, stdev
from typing import Any

from lit_modules.studies.compare.counts import check_spending
from lit_modules.studies.compare.grid import Run
from lit_modules.studies.compare.runs import REFERENCES
from lit_modules.utils.errors import UsageError
from lit_modules.utils.files import whole_file, write_whole
from lit_modules.utils.suggestions import did_you_mean

SCORE, FORGOTTEN, KEPT, FAILED = "score", "forgotten", "kept", "failed"
RULE = """\
`forgotten` is the share of the way that {forget} has gone from the start to the model of the retain set alone, and
`kept` the share of {retain} of the start that is left, both cut to [0, 1]; `score` is their harmonic mean. {choice}
A run that failed has score 0, and no other number; `runs` are those that finished. Each number is a mean over seeds;
+- is the sample standard deviation."""
HELD_OUT = """\
The best rate of a method has the highest score on its first seed, the lower rate if two are equal, and its numbers are
those of the other seeds."""
SAME_RUN = """\
The best rate of a method has the highest score, the lower rate if two are equal. With a single seed it is chosen and
reported on the same run, which favours a method with more rates."""
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
    """A method at a rate, over seeds.

    Args:
        method: Name of the method.
        learning_rate: The rate.
        runs: Number of runs.
        failed: Number of these that failed.
        numbers: Mean and sample standard deviation of each number, over the runs that finished but for the score, which
            is 0 of a failed run; the latter is ``None`` for a single run.
        best: Whether it is the method's best rate.
    """

    method: str
    learning_rate: float
    runs: int
    failed: int
    numbers: dict[str, tuple[float, float | None]]
    best: bool


@dataclass(frozen=True)
class Comparison:
    """What a comparison found.

    Args:
        rows: A row for each run: method, rate, seed, whether it failed, scores, metrics, what was spent, seconds.
        cells: Methods and rates, over the seeds.
        best: The best rate of each method, over the seeds that it was not chosen on; none where all rates failed.
        held_out: Whether a method has such seeds; else the best rates are reported on the runs that chose them.
        references: Metrics of the start and of the model of the retain set alone.
        forget: Number that is low if the forget set is forgotten.
        retain: Number that is high if the rest is kept.
        columns: Numbers of the table.
        pareto: Panels of the Pareto figure.
    """

    rows: list[dict[str, Any]]
    cells: list[Cell]
    best: list[Cell]
    held_out: bool
    references: dict[str, dict[str, Any]]
    forget: str
    retain: str
    columns: list[str]
    pareto: list[dict[str, Any]]


def compare(settings: Mapping[str, Any], runs: Sequence[Run], results: Mapping[str, Mapping[str, Any]]) -> Comparison:
    """Put together what the runs found.

    Args:
        settings: Configuration of the comparison.
        runs: The runs, at least one of which finished.
        results: What ``results.json`` of each finished run and of both references holds, by name.

    Raises:
        ValueError: If two runs did not spend the same, or the start knows no more of the forget set than the model of
            the retain set alone.
        UsageError: If the report names a number that there is not.
    """
    finished = [run for run in runs if run.name in results]
    counts = {run.name: results[run.name]["counts"] for run in finished}
    check_spending(counts, {run.name: run.seed for run in finished}, settings["max_steps"], settings["effective_batch"])
    report = settings["report"]
    forget, retain = report["forget"], report["retain"]
    references = {name: dict(results[name]["metrics"]) for name in REFERENCES}
    known = sorted({name for run in finished for name in results[run.name]["metrics"]})
    pareto = [dict(panel) for panel in report.get("pareto") or [{"x": forget, "y": retain}]]
    columns = list(report.get("columns") or [forget, retain])
    for name in (forget, retain, *columns, *(panel[axis] for panel in pareto for axis in ("x", "y"))):
        if name not in known:
            raise UsageError(f"There is no number {name!r} for the report{did_you_mean(name, known)}")
    start, alone = (_number(references[name].get(forget)) for name in REFERENCES)
    if not start > alone:
        raise ValueError(
            f"The start must know the forget set better than the model of the retain set alone: {forget} is "
            f"{start:.4g} and {alone:.4g}; train the start for more steps (start.steps)."
        )
    rows = []
    for run in runs:
        named = {"method": run.method.name, "learning_rate": run.learning_rate, "seed": run.seed}
        if run.name not in results:
            rows.append({**named, FAILED: True, SCORE: 0.0})
            continue
        found = results[run.name]
        metrics = found["metrics"]
        forgotten = _share(start - _number(metrics.get(forget)), start - alone)
        kept = _share(_number(metrics.get(retain)), _number(references["start"].get(retain)))
        score = math.nan if math.isnan(forgotten + kept) else harmonic_mean([forgotten, kept])
        rows.append(
            {
                **named,
                FAILED: False,
                SCORE: score,
                FORGOTTEN: forgotten,
                KEPT: kept,
                **{name: _number(metrics.get(name)) for name in known},
                **{name: found["counts"][name] for name in SPENT},
                **{f"seconds_{name}": value for name, value in found["seconds"].items()},
            }
        )
    columns_of = next(list(row) for row in rows if not row[FAILED])
    rows = [{name: row.get(name, math.nan) for name in columns_of} for row in rows]
    cells, best = _cells(rows), _best(rows)
    chosen = {(cell.method, cell.learning_rate) for cell in best}
    cells = [replace(cell, best=(cell.method, cell.learning_rate) in chosen) for cell in cells]
    held_out = any(len(run.method.seeds) > 1 for run in runs)
    return Comparison(rows, cells, best, held_out, references, forget, retain, columns, pareto)


def table(comparison: Comparison, best: bool = False, short: bool = False) -> list[list[str]]:
    """Return the table as text, its header first.

    Args:
        comparison: What was found.
        best: Whether to show the best rate of each method alone, on the seeds that it was not chosen on.
        short: Whether to leave out all columns but the two that make the score.
    """
    columns = [comparison.forget, comparison.retain] if short else comparison.columns
    names = [SCORE, FORGOTTEN, KEPT, *columns]
    lines = [["method", "rate", "runs", *names]]
    for name, metrics in comparison.references.items():
        numbers = [_cell((_number(metrics.get(key)), None)) for key in columns]
        lines.append([f"({name})", "-", "-", "-", "-", "-", *numbers])
    for cell in comparison.best if best else comparison.cells:
        mark = " (best)" if cell.best and not best else ""
        rate = "-" if math.isnan(cell.learning_rate) else f"{cell.learning_rate:g}{mark}"
        finished = cell.runs - cell.failed
        shown = str(finished) if not cell.failed else f"{finished} of {cell.runs}"
        lines.append([cell.method, rate, shown, *(_cell(cell.numbers[name]) for name in names)])
    return lines


def markdown(comparison: Comparison) -> str:
    """Return the tables in Markdown: the best rates, all rates, and what the runs spent."""
    spent = [["method", *(name.replace("_", " ") for name in SPENT), "seconds"]]
    for method in dict.fromkeys(row["method"] for row in comparison.rows):
        of_it = [row for row in comparison.rows if row["method"] == method and not row[FAILED]]
        if not of_it:
            continue
        means = [fmean(row[name] for row in of_it) for name in SPENT]
        seconds = fmean(row["seconds_train"] + row["seconds_test"] for row in of_it)
        spent.append(
            [method, *(f"{mean:.10g}" if mean == int(mean) else f"{mean:.1f}" for mean in means), f"{seconds:.1f}"]
        )
    choice = HELD_OUT if comparison.held_out else SAME_RUN
    rule = RULE.format(forget=f"`{comparison.forget}`", retain=f"`{comparison.retain}`", choice=choice)
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
    """Write ``results.csv``, ``results.parquet``, ``table.csv``, ``best.csv`` and ``table.md``.

    Without pyarrow, which writes Parquet, a sentence says so and ``results.csv`` holds the same.

    Returns:
        The files.
    """
    files = [
        write_whole(folder / "results.csv", _csv(list(comparison.rows[0]), comparison.rows)),
        write_whole(folder / "table.csv", _table_csv(comparison.cells)),
        write_whole(folder / "best.csv", _table_csv(comparison.best)),
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
    return [_summed(method, rate, group) for (method, rate), group in groups.items()]


def _best(rows: Sequence[Mapping[str, Any]]) -> list[Cell]:
    """Choose a rate for each method on its first seed, and report it on the others."""
    found = []
    for method in dict.fromkeys(row["method"] for row in rows):
        of_it = [row for row in rows if row["method"] == method]
        first = of_it[0]["seed"]
        scores = {
            row["learning_rate"]: row[SCORE]
            for row in sorted(of_it, key=lambda row: row["learning_rate"])
            if row["seed"] == first and not row[FAILED] and not math.isnan(row[SCORE])
        }
        if not scores:
            found.append(_summed(method, math.nan, [row for row in of_it if row["seed"] == first]))
            continue
        rate = max(scores, key=scores.__getitem__)
        chosen = [row for row in of_it if row["learning_rate"] == rate]
        others = [row for row in chosen if row["seed"] != first]
        found.append(replace(_summed(method, rate, others or chosen), best=True))
    return found


def _summed(method: str, rate: float, group: Sequence[Mapping[str, Any]]) -> Cell:
    finished = [row for row in group if not row[FAILED]]
    numbers = {}
    for name in group[0]:
        if name not in ("method", "learning_rate", "seed", FAILED):
            values = [float(row[name]) for row in (group if name == SCORE else finished)]
            numbers[name] = (fmean(values) if values else math.nan, _spread(values))
    return Cell(method, rate, len(group), len(group) - len(finished), numbers, False)


def _table_csv(cells: Sequence[Cell]) -> str:
    rows = []
    for cell in cells:
        numbers: dict[str, Any] = {}
        for name, (mean, spread) in cell.numbers.items():
            numbers |= {name: mean, f"{name} std": "" if spread is None else spread}
        named = {"method": cell.method, "learning_rate": cell.learning_rate, "best": cell.best}
        rows.append({**named, "runs": cell.runs, FAILED: cell.failed} | numbers)
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
