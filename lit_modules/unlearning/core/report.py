"""The picture of an unlearning run: losses, learning rate, and the benchmark's numbers before and after."""

import csv
import math
from collections.abc import Mapping
from pathlib import Path
from typing import Any

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
    return {
        f"{split} {task} {kind}": _number(record[f"{split}-set"][task][f"{kind}-score"])
        for split in ("forget", "retain")
        for task in TASKS
        for kind in KINDS
    }


def table(before: Mapping[str, Any], after: Mapping[str, Any]) -> Any:
    """Return a ``rich`` table of two LUME records: the 12 numbers, task aggregate, membership and final score."""
    from rich.table import Table

    result = Table(title="LUME: before and after unlearning")
    for title in ("", "before", "after", "wanted"):
        result.add_column(title, justify="left" if not title else "right")
    numbers = twelve_numbers(before), twelve_numbers(after)
    for name in numbers[0]:
        wanted = "0" if name.startswith("forget") else "1"
        result.add_row(name, *(f"{column[name]:.3f}" for column in numbers), wanted)
    result.add_section()
    for title, key, wanted in (
        ("task aggregate", "harmonic-mean-task-aggregate", "1"),
        ("membership AUC", "mia_loss_acc", "0.5"),
        ("membership score", "mia_final_score", "1"),
        ("MMLU", "mmlu_average", ""),
        ("final score (-1 without MMLU)", "aggregate-score", "1"),
    ):
        cells = (_number(record.get(key)) for record in (before, after))
        result.add_row(title, *("-" if math.isnan(cell) else f"{cell:.3f}" for cell in cells), wanted)
    return result


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
    import matplotlib

    matplotlib.use("Agg", force=False)
    from matplotlib import pyplot as plt

    figure, (losses, rates, scores) = plt.subplots(1, 3, figsize=(17, 5), gridspec_kw={"width_ratios": [3, 3, 4]})
    for split, colour in (("forget", "tab:red"), ("retain", "tab:blue")):
        for stage, style in (
            ("train", {"alpha": 0.4, "label": f"{split}, each step"}),
            ("val", {"marker": "o", "label": f"{split}, whole set"}),
        ):
            points = metrics.get(f"{stage}/{split}_loss", [])
            if points:
                losses.plot(*zip(*points, strict=True), color=colour, **style)
    losses.set(xlabel="optimizer step", ylabel="NLL per target token (nats)", title="Loss", yscale="symlog")
    losses.legend()
    used = metrics.get("train/lr", [])
    if used:
        rates.plot(*zip(*used, strict=True), color="black", drawstyle="steps-post", label="rate")
    # a logged value stays until the next one, so a probe is where its number is new
    first = {number: step for step, number in reversed(metrics.get("adaptive_lr/probe", []))}
    probes = {step: rate for step, rate in metrics.get("adaptive_lr/lr", []) if step in first.values()}
    verdicts = dict(metrics.get("adaptive_lr/accepted", []))
    for verdict, marker, colour in ((1.0, "^", "tab:green"), (0.0, "x", "tab:red")):
        points = [(step, rate) for step, rate in probes.items() if verdicts.get(step) == verdict]
        if points:
            label = "probe accepted" if verdict else "probe rejected"
            rates.plot(*zip(*points, strict=True), linestyle="", marker=marker, color=colour, label=label)
    rates.set(xlabel="optimizer step", title="Learning rate", yscale="log")
    rates.legend()
    columns = twelve_numbers(before), twelve_numbers(after)
    names = list(columns[0])
    for offset, label, column, colour in (
        (-0.2, "before", columns[0], "tab:gray"),
        (0.2, "after", columns[1], "tab:orange"),
    ):
        scores.barh(
            [row + offset for row in range(len(names))],
            [column[name] for name in names],
            0.38,
            label=label,
            color=colour,
        )
    scores.set_yticks(range(len(names)), names)
    scores.invert_yaxis()
    scores.set(xlim=(0, 1.05), title="The 12 numbers (wanted: forget 0, retain 1)")
    scores.legend(loc="center right")
    figure.suptitle(title)
    figure.tight_layout()
    figure.savefig(path, dpi=120)
    plt.close(figure)


def _number(value: Any) -> float:
    return math.nan if value is None else float(value)
