"""Report of a comparison: scores, the best rate of each method, tables and figures."""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from statistics import fmean, harmonic_mean
from textwrap import fill
from typing import Any

from lit_modules.studies.compare.published import caption, find_published, published_table
from lit_modules.studies.compare.records import REFERENCES
from lit_modules.studies.compare.run import SPENT, check_spending
from lit_modules.studies.compare.settings import Run
from lit_modules.studies.tables import Number, csv_table, markdown_table, number, print_table, summary
from lit_modules.utils.errors import UsageError
from lit_modules.utils.figures import REST, end_axes, figure_style, label_right, new_figure, save_figure, series_styles
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
SHOWN = 8
"""Most methods in colour: those of the front, then those of the best score; the others are grey."""


@dataclass(frozen=True)
class Cell:
    """Method at a rate, over seeds.

    Args:
        method: Name of the method.
        learning_rate: The rate.
        runs: Number of runs.
        failed: Number of these that failed.
        numbers: Mean and deviation of each number, over the runs that finished but for the score, which is 0 for a
            failed run.
        best: Whether it is the method's best rate.
    """

    method: str
    learning_rate: float
    runs: int
    failed: int
    numbers: dict[str, Number]
    best: bool


@dataclass(frozen=True)
class Comparison:
    """Results of a comparison.

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
        stress: The number ``forget`` after each attack, by the attack's name; empty where models were not attacked.
        published: Table of ours and published numbers, with the sentence below it, where the model and split have some.
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
    stress: Mapping[str, str] = field(default_factory=dict)
    published: tuple[list[list[str]], str] | None = None


def compare(
    settings: Mapping[str, Any], runs: Mapping[str, Run], results: Mapping[str, Mapping[str, Any]]
) -> Comparison:
    """Score the runs, and choose the best rate of each method."""
    finished = [name for name in runs if name in results]
    counts = {name: results[name]["counts"] for name in finished}
    seeds = {name: runs[name].seed for name in finished}
    check_spending(counts, seeds, max_steps=settings["max_steps"], rows=settings["effective_batch"])
    report = settings["report"]
    forget, retain = report["forget"], report["retain"]
    references = {name: dict(results[name]["metrics"]) for name in REFERENCES}
    known = sorted({metric for name in finished for metric in results[name]["metrics"]})
    pareto = [dict(panel) for panel in report.get("pareto") or [{"x": forget, "y": retain}]]
    attacked = forget.removeprefix("test/")
    stress = {
        name.removeprefix("stress/").removesuffix(f"/{attacked}"): name
        for name in known
        if name.startswith("stress/") and name.endswith(f"/{attacked}")
    }
    columns = list(report.get("columns") or [forget, retain])
    for name in (forget, retain, *columns, *(panel[axis] for panel in pareto for axis in ("x", "y"))):
        if name not in known:
            raise UsageError(f"There is no number {name!r} for the report{did_you_mean(name, known)}")
    start, alone = (number(references[name].get(forget)) for name in REFERENCES)
    if not start > alone:
        raise ValueError(
            f"The start must know the forget set better than the model of the retain set alone: {forget} is "
            f"{start:.4g} and {alone:.4g}; train the start for more steps (start.steps)."
        )
    rows = []
    for run_name, run in runs.items():
        named = {"method": run.method.name, "learning_rate": run.learning_rate, "seed": run.seed}
        if run_name not in results:
            rows.append({**named, FAILED: True, SCORE: 0.0})
            continue
        result = results[run_name]
        metrics = result["metrics"]
        forgotten = _share(start - number(metrics.get(forget)), start - alone)
        kept = _share(number(metrics.get(retain)), number(references["start"].get(retain)))
        score = math.nan if math.isnan(forgotten + kept) else harmonic_mean([forgotten, kept])
        rows.append(
            {
                **named,
                FAILED: False,
                SCORE: score,
                FORGOTTEN: forgotten,
                KEPT: kept,
                **{name: number(metrics.get(name)) for name in known},
                **{name: result["counts"][name] for name in SPENT},
                **{f"seconds_{name}": value for name, value in result["seconds"].items()},
            }
        )
    columns_of = next(list(row) for row in rows if not row[FAILED])
    rows = [{name: row.get(name, math.nan) for name in columns_of} for row in rows]
    cells, best = _cells(rows), _best(rows)
    chosen = {(cell.method, cell.learning_rate) for cell in best}
    cells = [replace(cell, best=(cell.method, cell.learning_rate) in chosen) for cell in cells]
    held_out = any(len(run.method.seeds) > 1 for run in runs.values())
    return Comparison(
        rows=rows,
        cells=cells,
        best=best,
        held_out=held_out,
        references=references,
        forget=forget,
        retain=retain,
        columns=columns,
        pareto=pareto,
        stress=stress,
        published=_published(settings, runs, best=best, references=references),
    )


def table(comparison: Comparison, best: bool = False, short: bool = False) -> list[list[str]]:
    """Return the table as text, its header first."""
    columns = [comparison.forget, comparison.retain] if short else comparison.columns
    names = [SCORE, FORGOTTEN, KEPT, *columns]
    lines = [["method", "rate", "runs", *names]]
    for name, metrics in comparison.references.items():
        numbers = [_cell((number(metrics.get(key)), None)) for key in columns]
        lines.append([f"({name})", "-", "-", "-", "-", "-", *numbers])
    for cell in comparison.best if best else comparison.cells:
        mark = " (best)" if cell.best and not best else ""
        rate = "-" if math.isnan(cell.learning_rate) else f"{cell.learning_rate:g}{mark}"
        finished = cell.runs - cell.failed
        shown = str(finished) if not cell.failed else f"{finished} of {cell.runs}"
        lines.append([cell.method, rate, shown, *(_cell(cell.numbers[name]) for name in names)])
    return lines


def stress_table(comparison: Comparison) -> list[list[str]]:
    """Return the number of the forget set before and after each attack as text, at the best rates, the header first."""
    names = [comparison.forget, *comparison.stress.values()]
    lines = [["method", "rate", "as it is", *comparison.stress]]
    for name, metrics in comparison.references.items():
        lines.append([f"({name})", "-", *(_cell((number(metrics.get(key)), None)) for key in names)])
    for cell in comparison.best:
        if not math.isnan(cell.learning_rate):
            numbers = [_cell(cell.numbers[name]) for name in names]
            lines.append([cell.method, f"{cell.learning_rate:g}", *numbers])
    return lines


def markdown(comparison: Comparison) -> str:
    """Return the tables in Markdown: the best rates, all rates, and what the runs spent."""
    spent = [["method", *(name.replace("_", " ") for name in SPENT), "seconds"]]
    for method in dict.fromkeys(row["method"] for row in comparison.rows):
        of_method = [row for row in comparison.rows if row["method"] == method and not row[FAILED]]
        if not of_method:
            continue
        means = [fmean(row[name] for row in of_method) for name in SPENT]
        seconds = fmean(row["seconds_train"] + row["seconds_test"] for row in of_method)
        spent.append(
            [method, *(f"{mean:.10g}" if mean == int(mean) else f"{mean:.1f}" for mean in means), f"{seconds:.1f}"]
        )
    choice = HELD_OUT if comparison.held_out else SAME_RUN
    rule = RULE.format(forget=f"`{comparison.forget}`", retain=f"`{comparison.retain}`", choice=choice)
    parts = [
        "Best rate of each method",
        markdown_table(table(comparison, best=True)),
        rule,
        "All rates",
        markdown_table(table(comparison)),
        "What a run of each method spends, on average",
        markdown_table(spent),
    ]
    if comparison.stress:
        title = f"`{comparison.forget}` of the best rate of each method, after attacks"
        parts[3:3] = [title, markdown_table(stress_table(comparison))]
    if comparison.published is not None:
        rows, sentence = comparison.published
        parts[3:3] = ["Best rate of each method, and what others have published", markdown_table(rows), sentence]
    return "\n".join(f"{part}\n" if part[0] != "|" else part for part in parts)


def write(folder: Path, comparison: Comparison) -> list[Path]:
    """Write ``results.csv``, ``results.parquet``, ``table.csv``, ``best.csv`` and ``table.md``.

    Without pyarrow, which writes Parquet, a sentence says so and ``results.csv`` holds the same.
    """
    files = [
        write_whole(folder / "results.csv", _rows_csv(comparison.rows)),
        write_whole(folder / "table.csv", _table_csv(comparison.cells)),
        write_whole(folder / "best.csv", _table_csv(comparison.best)),
        write_whole(folder / "table.md", markdown(comparison)),
    ]
    try:
        import pyarrow
        import pyarrow.parquet
    except ModuleNotFoundError:
        needed = 'results.parquet needs pyarrow, which is not installed: pip install "lit-modules[parquet]".'
        print(f"{needed} results.csv holds the same.")
        return files
    path = folder / "results.parquet"
    with whole_file(path) as part:
        pyarrow.parquet.write_table(pyarrow.Table.from_pylist(comparison.rows), part)
    return [*files, path]


def print_best(comparison: Comparison) -> None:
    """Print the table of the best rates."""
    header, *rows = table(comparison, best=True, short=True)
    print_table([[name.removeprefix("test/") for name in header], *rows])
    if comparison.stress:
        print_table(stress_table(comparison), title=f"{comparison.forget.removeprefix('test/')} after attacks")
    if comparison.published is not None:
        table_of_both, sentence = comparison.published
        print_table(table_of_both)
        print(sentence)


@figure_style()
def draw(folder: Path, comparison: Comparison) -> list[Path]:
    """Draw forget against retain (``pareto``) and numbers against the rate (``rates``), each as bitmap and vector."""
    return [*_pareto(folder, comparison), *_rates(folder, comparison)]


def leading(comparison: Comparison) -> list[str]:
    """Return the methods that are drawn in colour, at most eight: those of the front, then those of the best score."""
    x, y = comparison.forget, comparison.retain
    best = set(front([(row[x], row[y]) for row in comparison.rows if _shown(row[x], row[y], log=False)]))
    on_front = {row["method"] for row in comparison.rows if (row[x], row[y]) in best}

    def rank(cell: Cell) -> tuple[bool, float]:
        score = cell.numbers[SCORE][0]
        return cell.method not in on_front, math.inf if math.isnan(score) else -score

    return [cell.method for cell in sorted(comparison.best, key=rank)[:SHOWN]]


def front(points: Sequence[tuple[float, float]]) -> list[tuple[float, float]]:
    """Return the Pareto front: the points that no other beats by a lower first and a higher second number.

    Example:
        >>> front([(0.1, 0.5), (0.2, 0.9), (0.3, 0.8)])
        [(0.1, 0.5), (0.2, 0.9)]
    """
    optimal: list[tuple[float, float]] = []
    for point in sorted(points, key=lambda point: (point[0], -point[1])):
        if not optimal or point[1] > optimal[-1][1]:
            optimal.append(point)
    return optimal


def _published(
    settings: Mapping[str, Any], runs: Mapping[str, Run], best: Sequence[Cell], references: Mapping[str, Any]
) -> tuple[list[list[str]], str] | None:
    published = find_published(settings)
    if published is None:
        return None
    classes = {run.method.name: run.method.class_path.rpartition(".")[2] for run in runs.values()}
    ours: dict[str, Mapping[str, Number]] = {
        name: {key: (number(value), None) for key, value in metrics.items()} for name, metrics in references.items()
    }
    ours |= {cell.method: cell.numbers for cell in best}
    rows = published_table(published, {**classes, **{name: name for name in references}}, ours)
    return rows, caption(published)


def _cells(rows: Sequence[Mapping[str, Any]]) -> list[Cell]:
    groups: dict[tuple[str, float], list[Mapping[str, Any]]] = {}
    for row in rows:
        groups.setdefault((row["method"], row["learning_rate"]), []).append(row)
    return [_summed(method, rate, group) for (method, rate), group in groups.items()]


def _best(rows: Sequence[Mapping[str, Any]]) -> list[Cell]:
    """Choose a rate for each method on its first seed, and report it on the others."""
    best = []
    for method in dict.fromkeys(row["method"] for row in rows):
        of_method = [row for row in rows if row["method"] == method]
        first = of_method[0]["seed"]
        scores = {
            row["learning_rate"]: row[SCORE]
            for row in sorted(of_method, key=lambda row: row["learning_rate"])
            if row["seed"] == first and not row[FAILED] and not math.isnan(row[SCORE])
        }
        if not scores:
            best.append(_summed(method, math.nan, [row for row in of_method if row["seed"] == first]))
            continue
        rate = max(scores, key=scores.__getitem__)
        chosen = [row for row in of_method if row["learning_rate"] == rate]
        others = [row for row in chosen if row["seed"] != first]
        best.append(replace(_summed(method, rate, others or chosen), best=True))
    return best


def _summed(method: str, rate: float, group: Sequence[Mapping[str, Any]]) -> Cell:
    finished = [row for row in group if not row[FAILED]]
    numbers = {}
    for name in group[0]:
        if name not in ("method", "learning_rate", "seed", FAILED):
            values = [float(row[name]) for row in (group if name == SCORE else finished)]
            numbers[name] = summary(values)
    return Cell(method, rate, runs=len(group), failed=len(group) - len(finished), numbers=numbers, best=False)


def _table_csv(cells: Sequence[Cell]) -> str:
    rows: list[dict[str, Any]] = []
    for cell in cells:
        row: dict[str, Any] = {"method": cell.method, "learning_rate": cell.learning_rate, "best": cell.best}
        row |= {"runs": cell.runs, FAILED: cell.failed}
        for name, (mean, deviation) in cell.numbers.items():
            row |= {name: mean, f"{name} std": deviation}
        rows.append(row)
    return _rows_csv(rows)


def _rows_csv(rows: Sequence[Mapping[str, Any]]) -> str:
    return csv_table([list(rows[0]), *(list(row.values()) for row in rows)])


def _share(part: float, whole: float) -> float:
    if math.isnan(part) or not whole > 0:
        return math.nan
    return min(1.0, max(0.0, part / whole))


def _cell(pair: Number) -> str:
    mean, deviation = pair
    if math.isnan(mean):
        return "-"
    return f"{mean:.3g}" if deviation is None else f"{mean:.3g} +- {deviation:.2g}"


def _pareto(folder: Path, comparison: Comparison) -> list[Path]:
    panels = comparison.pareto
    figure = new_figure(4.6 * len(panels) + 0.4, 4.4)
    styles = series_styles(leading(comparison))
    rates = sorted({row["learning_rate"] for row in comparison.rows})
    for panel, axis in zip(panels, figure.subplots(1, len(panels), squeeze=False).flat, strict=True):
        x, y, log = panel["x"], panel["y"], bool(panel.get("log_x"))
        label = panel.get("label") or x.removeprefix("test/")
        axis.set(xlabel=label, ylabel=y.removeprefix("test/"), xscale="log" if log else "linear")
        names: dict[str, tuple[float, float, str]] = {}
        shown = [row for row in comparison.rows if _shown(row[x], row[y], log)]
        for row in sorted(shown, key=lambda row: row["method"] in styles):
            style = styles.get(row["method"], {"color": REST, "marker": "o"})
            size = 14 + 12 * rates.index(row["learning_rate"])
            axis.scatter(row[x], row[y], s=size, alpha=0.75, linewidths=0, **style)
        for method, style in styles.items():
            rows = [row for row in shown if row["method"] == method]
            if rows:
                best = max(rows, key=lambda row: row[SCORE])
                names[method] = best[x], best[y], style["color"]
        for name, colour in zip(comparison.references, ("black", "dimgray"), strict=True):
            at_x, at_y = (number(comparison.references[name].get(key)) for key in (x, y))
            if _shown(at_x, at_y, log):
                axis.scatter(at_x, at_y, s=90, color=colour, marker="*", zorder=3)
                names[f"({name})"] = at_x, at_y, colour
        points = front([(row[x], row[y]) for row in shown])
        if points and (x, y) == (comparison.forget, comparison.retain):
            axis.step(*zip(*points, strict=True), where="post", color="black", linewidth=0.8, alpha=0.5)
        end_axes(axis)
        if names:
            label_right(axis, names, leaders=True)
    _caption(figure, comparison, styles, text="Each point a run; the larger, the larger its rate")
    return save_figure(figure, folder / "pareto.png")


def _rates(folder: Path, comparison: Comparison) -> list[Path]:
    names = [SCORE, comparison.forget, comparison.retain]
    figure = new_figure(3.9 * len(names) + 0.4, 3.6)
    styles = series_styles(leading(comparison))
    methods = dict.fromkeys(row["method"] for row in comparison.rows)
    for name, axis in zip(names, figure.subplots(1, len(names), squeeze=False).flat, strict=True):
        axis.set(xlabel="learning rate", ylabel=name.removeprefix("test/"), xscale="log")
        ends: dict[str, tuple[float, float, str]] = {}
        for method in sorted(methods, key=lambda method: method in styles):
            cells = sorted((c for c in comparison.cells if c.method == method), key=lambda cell: cell.learning_rate)
            cells = [cell for cell in cells if math.isfinite(cell.numbers[name][0])]
            style = styles.get(method, {"color": REST, "marker": ""})
            axis.errorbar(
                [cell.learning_rate for cell in cells],
                [cell.numbers[name][0] for cell in cells],
                [cell.numbers[name][1] or 0.0 for cell in cells] if method in styles else None,
                linewidth=1.2 if method in styles else 0.7,
                **style,
            )
            if cells and method in styles:
                ends[method] = cells[-1].learning_rate, cells[-1].numbers[name][0], style["color"]
        end_axes(axis)
        if ends:
            label_right(axis, ends)
    _caption(figure, comparison, styles, text="Means over seeds, with their sample deviation")
    return save_figure(figure, folder / "rates.png")


def _caption(figure: Any, comparison: Comparison, styles: Mapping[str, Any], text: str) -> None:
    """Write a title that names the methods in grey."""
    rest = [method for method in dict.fromkeys(row["method"] for row in comparison.rows) if method not in styles]
    words = f"{text}. Grey: {', '.join(rest)}" if rest else text
    figure.suptitle(fill(words, int(15 * figure.get_figwidth())), fontsize=8, parse_math=False)


def _shown(x: float, y: float, log: bool) -> bool:
    return math.isfinite(x) and math.isfinite(y) and (x > 0 or not log)
