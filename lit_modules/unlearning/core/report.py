"""Figure and table of an unlearning run: losses, learning rate, and the benchmark's numbers before and after."""

import csv
import math
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from lit_modules.utils.figures import COLOURS, REST, figure_style, label_right, new_figure, save_figure

TASKS = ("Task1", "Task2", "Task3")
KINDS = ("regurgitation", "knowledge")


def read_metrics(path: str | Path) -> dict[str, list[tuple[int, float]]]:
    """Read a ``metrics.csv`` of Lightning's ``CSVLogger``.

    Args:
        path: The file, or the folder that holds it.

    Returns:
        For each logged name, its values with the optimizer step at which they were logged.

    Raises:
        FileNotFoundError: If there is no such file.
    """
    file = Path(path)
    file = file / "metrics.csv" if file.is_dir() else file
    if not file.is_file():
        raise FileNotFoundError(f"There is no {file}; log the run with CSVLogger, as configs/_logger/csv.yaml does.")
    series: dict[str, list[tuple[int, float]]] = {}
    with file.open(newline="") as lines:
        for row in csv.DictReader(lines):
            for name, value in row.items():
                if value and name not in ("step", "epoch"):
                    series.setdefault(name, []).append((int(row["step"]), float(value)))
    return series


def twelve_numbers(record: Mapping[str, Any]) -> dict[str, float]:
    """Return the 12 raw scores of a LUME record, named ``<set> <task> <kind>``.

    Scores are as measured: memorised text has regurgitation and knowledge near 1 in both sets, also in the forget set.
    """
    scores = {
        f"{split} {task} {kind}": record[f"{split}-set"][task][f"{kind}-score"]
        for split in ("forget", "retain")
        for task in TASKS
        for kind in KINDS
    }
    return {name: math.nan if score is None else float(score) for name, score in scores.items()}


def table(before: Mapping[str, Any], after: Mapping[str, Any]) -> Any:
    """Return a ``rich`` table of two LUME records: the 12 numbers, task aggregate, membership and final score."""
    from rich.table import Table

    result = Table(title="LUME: before and after unlearning")
    for title in ("", "before", "after", "wanted"):
        result.add_column(title, justify="right" if title else "left")
    rows = twelve_numbers(before), twelve_numbers(after)
    for name in rows[0]:
        wanted = "0" if name.startswith("forget") else "1"
        result.add_row(name, *(f"{numbers[name]:.3f}" for numbers in rows), wanted)
    result.add_section()
    for title, key, wanted in (
        ("task aggregate", "harmonic-mean-task-aggregate", "1"),
        ("membership AUC", "mia_loss_acc", "0.5"),
        ("membership score", "mia_final_score", "1"),
        ("MMLU", "mmlu_average", ""),
        ("final score (-1 without MMLU)", "aggregate-score", "1"),
    ):
        values = (record.get(key) for record in (before, after))
        cells = ("-" if value is None or math.isnan(value) else f"{value:.3f}" for value in values)
        result.add_row(title, *cells, wanted)
    return result


@figure_style()
def plot_report(
    metrics: Mapping[str, list[tuple[int, float]]],
    before: Mapping[str, Any],
    after: Mapping[str, Any],
    path: str | Path,
    title: str = "",
) -> None:
    """Draw a run: loss of both sets, learning rate with its probes, and the 12 numbers before and after.

    Args:
        metrics: Logged series, as :func:`read_metrics` returns them.
        before: LUME record of the model that unlearning started from.
        after: LUME record of the unlearned model.
        path: PNG file to write.
        title: Title of the figure.
    """
    figure = new_figure(13, 3.8)
    losses, rates, scores = figure.subplots(1, 3, gridspec_kw={"width_ratios": [3, 3, 4]})
    ends: dict[str, tuple[float, float, str]] = {}
    for split, colour in (("forget", COLOURS[1]), ("retain", COLOURS[0])):
        steps, epochs = metrics.get(f"train/{split}_loss"), metrics.get(f"val/{split}_loss")
        if steps:
            losses.plot(*zip(*steps, strict=True), color=colour, alpha=0.4)
            ends[f"{split}, each step"] = *steps[-1], colour
        if epochs:
            losses.plot(*zip(*epochs, strict=True), color=colour, marker="o")
            ends[f"{split}, whole set"] = *epochs[-1], colour
    losses.set(xlabel="optimizer step", ylabel="NLL per target token (nats)", title="Loss", yscale="symlog")
    if ends:
        label_right(losses, ends)
    if metrics.get("train/lr"):
        rates.plot(*zip(*metrics["train/lr"], strict=True), color="black", drawstyle="steps-post", label="rate")
    # a logged value stays until the next one, so a probe is where its number is new
    first = {number: step for step, number in reversed(metrics.get("adaptive_lr/probe", []))}
    probes = {step: rate for step, rate in metrics.get("adaptive_lr/lr", []) if step in first.values()}
    accepted = dict(metrics.get("adaptive_lr/accepted", []))
    for verdict, label, marker, colour in ((1.0, "accepted", "^", COLOURS[2]), (0.0, "rejected", "x", COLOURS[1])):
        points = [(step, rate) for step, rate in probes.items() if accepted.get(step) == verdict]
        if points:
            rates.plot(*zip(*points, strict=True), linestyle="", marker=marker, color=colour, label=f"probe {label}")
    rates.set(xlabel="optimizer step", title="Learning rate", yscale="log")
    rates.legend()
    for offset, label, record, colour in ((-0.2, "before", before, REST), (0.2, "after", after, COLOURS[0])):
        numbers = twelve_numbers(record)
        rows = [row + offset for row in range(len(numbers))]
        scores.barh(rows, list(numbers.values()), 0.38, label=label, color=colour)
    scores.set_yticks(range(len(numbers)), list(numbers))
    scores.invert_yaxis()
    scores.set(xlim=(0, 1), title="The 12 numbers (wanted: forget 0, retain 1)")
    scores.legend(loc="upper left", bbox_to_anchor=(1.0, 1.0))
    figure.suptitle(title)
    save_figure(figure, path)
