"""Robustness over the strength of smoothing (MNIST) and saturation (CIFAR10), as in the figure of arXiv 1902.08336.

    python benchmarks/input_distributions.py --mnist FOLDER --cifar10 FOLDER --folder OUT

PGD and standard training by the small recipes at each level, three seeds, tested by full AutoAttack; then PGD training
and its attacks without the box [0, 1], the ablation of the perturbable volume, at two levels. Each part is a sweep,
whose finished points are not run again. ``table.md`` and ``figure.png`` show what has finished. Further options go to
the recipes, such as ``--data.test_size 100``.
"""

import argparse
import csv
import platform
from collections.abc import Sequence
from dataclasses import dataclass, replace
from datetime import date
from pathlib import Path
from typing import Any

import torch
import yaml

from lit_modules.cli import main as lit_modules
from lit_modules.cli.recipes import find_recipe
from lit_modules.utils.figures import figure_style, new_figure, save_figure
from lit_modules.utils.files import write_whole


@dataclass(frozen=True)
class Data:
    """Data set, the argument that is swept and its values.

    Args:
        name: Name in the table.
        recipe: Recipe of PGD training; that of standard training has the same name with ``_standard``.
        axis: Argument of the variant.
        levels: Values, from the weakest to the strongest.
        ends: Two of them, for the ablation without the box.
    """

    name: str
    recipe: str
    axis: str
    levels: tuple[str, ...]
    ends: tuple[str, str]


SATURATIONS = ("1", "2", "4", "8", "16", "64", "inf")
DATA = {
    "mnist": Data("MNIST, smoothed", "pgd/mnist_small", "kernel_size", ("1", "2", "3", "4", "5"), ("1", "3")),
    "cifar10": Data("CIFAR10, saturated", "pgd/cifar10_small", "p", SATURATIONS, ("2", "inf")),
}
TRAININGS = ("PGD", "standard", "PGD without box")
COLUMNS = {
    "clean": "test/accuracy",
    "PGD-20": "test/robust_accuracy/pgd-20",
    "PGD-100": "test/robust_accuracy/pgd-100",
    "AutoAttack": "test/robust_accuracy/autoattack",
}
Rows = dict[str, dict[str, tuple[float, float]]]
"""Mean and deviation of each column in percent, by level."""


def without_box(recipe: str, path: Path) -> Path:
    """Write a recipe whose attacks have no bounds, and return the file."""
    config: dict[str, Any] = yaml.safe_load(find_recipe(recipe).read_text(encoding="utf-8"))
    arguments = config["model"]["init_args"]
    for attack in (arguments["attack"], arguments["validation_attack"], *arguments["test_attacks"].values()):
        attack["init_args"]["bounds"] = None
    return write_whole(path, yaml.safe_dump(config, sort_keys=False))


def sweep(data: Data, root: str, training: str, *, folder: Path, seeds: int, passed: Sequence[str]) -> Path:
    """Run what is missing of a part, and return its folder."""
    run = folder / f"{data.recipe.split('/')[1]}-{training.replace(' ', '-')}"
    recipe, levels = f"{data.recipe}.yaml", data.levels
    if training == "standard":
        recipe = f"{data.recipe}_standard.yaml"
    elif training == "PGD without box":
        recipe, levels = str(without_box(recipe, folder / f"{run.name}.yaml")), data.ends
    axis = f"data.variant.{data.axis}={','.join(levels)}"
    line = ["sweep", "-c", recipe, "--data.root", root, "--over", axis, "--seeds", str(seeds), "--folder", str(run)]
    lit_modules([*line, *passed])
    return run


def levels(text: str) -> tuple[str, ...]:
    """Return the levels of a list with commas."""
    return tuple(text.split(","))


def read(run: Path, axis: str) -> Rows:
    """Return the rows of a sweep that have all columns."""
    rows: Rows = {}
    with (run / "table.csv").open(newline="", encoding="utf-8") as file:
        for row in csv.DictReader(file):
            if row[COLUMNS["AutoAttack"]]:
                rows[row[axis].strip("'\"")] = {
                    column: (100 * float(row[name]), 100 * float(row[f"{name} std"] or "nan"))
                    for column, name in COLUMNS.items()
                }
    return rows


@figure_style()
def plot(path: Path, results: dict[str, dict[str, Rows]]) -> None:
    """Draw clean accuracy and accuracy under AutoAttack against the level, a panel for each data set."""
    figure = new_figure(10, 4)
    axes = figure.subplots(1, len(results), sharey=True, squeeze=False)[0]
    for axis, (key, trainings) in zip(axes, results.items(), strict=True):
        data = DATA[key]
        for training, colour in (("standard", "#8c8c8c"), ("PGD", "#2171b5")):
            rows = trainings.get(training, {})
            places = [data.levels.index(level) for level in rows]
            for column, style in (("clean", "--"), ("AutoAttack", "-")):
                means = [row[column][0] for row in rows.values()]
                spread = [row[column][1] for row in rows.values()]
                axis.errorbar(places, means, spread, color=colour, linestyle=style, marker="o", markersize=4, capsize=3)
                if places:
                    label = f" {training}, {'clean' if column == 'clean' else 'AutoAttack'}"
                    axis.text(places[-1] + 0.1, means[-1], label, color=colour, fontsize=9, va="center")
        axis.set(
            xticks=range(len(data.levels)), xticklabels=data.levels, ylim=(0, 100), xlabel=data.axis.replace("_", " ")
        )
        axis.set_xlim(-0.2, len(data.levels) + 0.9)
        axis.set_title(data.name, loc="left", fontsize=11)
        axis.spines[["top", "right"]].set_visible(False)
    axes[0].set_ylabel("accuracy in %, mean and deviation over seeds")
    save_figure(figure, path)


def main() -> None:
    """Run what is missing, and write table and figure."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--mnist", help="folder of MNIST")
    parser.add_argument("--cifar10", help="folder of CIFAR10")
    parser.add_argument("--folder", type=Path, required=True)
    parser.add_argument("--mnist-levels", type=levels, help="some of the levels, such as 1,3,5")
    parser.add_argument("--cifar10-levels", type=levels)
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--only", choices=TRAININGS, action="append", help="run and show only these parts")
    options, passed = parser.parse_known_args()
    options.folder.mkdir(parents=True, exist_ok=True)
    lines = [
        f"{date.today()}, {platform.machine()}, torch {torch.__version__}, {options.seeds} seeds; accuracy in %, mean "
        "± deviation over seeds",
        "",
        f"| data | level | training | {' | '.join(COLUMNS)} |",
        "| --- | --- | --- |" + " --- |" * len(COLUMNS),
    ]
    results: dict[str, dict[str, Rows]] = {}
    for key, data in DATA.items():
        root = getattr(options, key)
        if root is None:
            continue
        data = replace(data, levels=getattr(options, f"{key}_levels") or data.levels)
        for training in options.only or TRAININGS:
            run = sweep(data, root, training, folder=options.folder, seeds=options.seeds, passed=passed)
            rows = read(run, data.axis) if (run / "table.csv").exists() else {}
            results.setdefault(key, {})[training] = rows
            for level, row in rows.items():
                cells = " | ".join(f"{mean:.1f} ± {spread:.1f}" for mean, spread in row.values())
                lines.append(f"| {data.name} | {level} | {training} | {cells} |")
            write_whole(options.folder / "table.md", "\n".join(lines) + "\n")
            plot(options.folder / "figure.png", results)
    print("\n".join(lines))


if __name__ == "__main__":
    main()
