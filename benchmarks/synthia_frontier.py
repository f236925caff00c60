"""Composition against novelty over the contrast, and the order of the pairs, with the demonstration's models.

    python benchmarks/synthia_frontier.py --folder OUT --seeds 3

Each setting tunes the shipped base on the demonstration's pairs for as many steps as the demonstration, unless it says
so, and draws the held-out pairs. The optimizer is Adam, whose step does not grow with the weight of the contrast. What
the folder holds is not run again; ``table.md`` and ``figure.png`` have mean and deviation over the seeds that have
finished in each setting.
"""

import argparse
import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from datetime import date
from pathlib import Path
from statistics import fmean, stdev

import torch

from datamodules import DrawnObjects
from datamodules.drawn.ontology import CONCEPTS, SEEN_BY
from lit_modules.demos.stages import quiet
from lit_modules.demos.synthia.arm import Arm, World, read_arm, run_arm
from lit_modules.demos.synthia.world import read_rows, single_rows, write_base, write_pairs
from lit_modules.utils.figures import figure_style, new_figure, save_figure
from lit_modules.utils.files import write_whole

QUANTITIES = ("one", "both", "novelty")


@dataclass(frozen=True)
class Setting:
    """Way of tuning.

    Args:
        mode: Order of the pairs; ``None`` does not tune.
        options: Options of the fit.
        negatives: Pictures of existing things in an item.
        nearest: Whether these are of the thing whose parts are nearest to the pair's, instead of any that has one.
    """

    mode: str | None = "random"
    options: Sequence[str] = ()
    negatives: int = 1
    nearest: bool = False


def contrast(weight: float, margin: float) -> list[str]:
    """Return the options of an objective with this weight and margin."""
    arguments = "--model.objective.init_args."
    return [f"{arguments}negative_weight={weight}", f"{arguments}margin={margin}"]


def linear(beta: float) -> list[str]:
    """Return the options of the paper's objective on pictures sampled in four steps."""
    objective = {"class_path": "lit_modules.synthia.LinearContrast", "init_args": {"beta": beta}}
    return [f"--model.objective={json.dumps(objective)}", "--model.num_steps=4"]


SHORT = ["--trainer.max_epochs=30"]
SETTINGS = {
    "frozen": Setting(None),
    "no contrast": Setting(negatives=0),
    "weight 0.1, margin 0.02": Setting(),
    "weight 0.3, margin 0.05": Setting(options=contrast(0.3, 0.05)),
    "weight 0.5, margin 0.1": Setting(options=contrast(0.5, 0.1)),
    "nearest, weight 0.1, margin 0.02": Setting(nearest=True),
    "nearest, weight 0.5, margin 0.1": Setting(options=contrast(0.5, 0.1), nearest=True),
    "Linear, beta 0.5": Setting(options=linear(0.5)),
    "staged": Setting("staged"),
    "cumulative": Setting("cumulative"),
    "competence": Setting("competence"),
    "random, a third of the steps": Setting(options=SHORT),
    "staged, a third of the steps": Setting("staged", SHORT),
}


def nearest_only(folder: Path, source: Path) -> Path:
    """Write a curriculum that contrasts each pair with one thing alone, the one most of whose parts could show it."""
    folder.mkdir(parents=True, exist_ok=True)
    for path in source.glob("*.json*"):
        if path.suffix == ".jsonl":
            rows = read_rows(path)
            for row in rows:
                parts = {part for affordance in row["pos_prompts"] for part in SEEN_BY[affordance]}
                row["neg_prompts"] = [max(row["neg_prompts"], key=lambda name: _shared(name, parts))]
            write_whole(folder / path.name, "".join(json.dumps(row) + "\n" for row in rows))
        else:
            write_whole(folder / path.name, path.read_text(encoding="utf-8"))
    return folder


def _shared(name: str, parts: set[str]) -> float:
    own = set(CONCEPTS[name].parts)
    return len(own & parts) / len(own | parts)


def numbers(setting: Setting, name: str, world: World, seed: int) -> dict[str, float]:
    """Tune and draw what is missing, and return the quantities."""
    arm = Arm(name, setting.mode, setting.negatives)
    with quiet():
        run_arm(arm, world, seed, setting.options)
    scores, _ = read_arm(arm, world)
    held_out = scores["held out"]
    values = scores["one"].shown().mean, held_out.shown().mean, held_out.novelty_if_shown().mean
    return dict(zip(QUANTITIES, values, strict=True))


@figure_style()
def plot(path: Path, results: Mapping[str, Sequence[Mapping[str, float]]]) -> None:
    """Draw composition against novelty, a point with deviations for each setting."""
    figure = new_figure(8, 5.5)
    axis = figure.subplots()
    for name, rows in results.items():
        (x, y), (dx, dy) = (
            [statistic([row[quantity] for row in rows]) for quantity in ("novelty", "both")]
            for statistic in (fmean, lambda values: stdev(values) if len(values) > 1 else 0.0)
        )
        axis.errorbar(x, y, dy, dx, marker="o", markersize=5, capsize=2, linewidth=1)
        axis.annotate(name, (x, y), xytext=(5, 5), textcoords="offset points", fontsize=8)
    axis.set(xlabel="novelty of pictures that show both", ylabel="held-out pairs: both shown")
    axis.spines[["top", "right"]].set_visible(False)
    save_figure(figure, path)


def main() -> None:
    """Run the settings, a seed after the other, and write table and figure after each."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--folder", type=Path, required=True)
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--only", choices=SETTINGS, action="append")
    options = parser.parse_args()
    pairs = write_pairs(options.folder / "pairs")
    nearest_only(options.folder / "nearest" / "pairs", pairs)
    sets = {"held out": read_rows(pairs / "test.jsonl"), "one": single_rows(DrawnObjects.affordances)}
    results: dict[str, list[dict[str, float]]] = {}
    for seed in range(options.seeds):
        for name in options.only or SETTINGS:
            setting = SETTINGS[name]
            folder = options.folder / ("nearest" if setting.nearest else ".") / f"seed-{seed}"
            world = World(folder, None, sets)
            if not (world.base / "scheduler").exists():
                write_base(world.base, None)
            if not world.pairs.exists():
                world.pairs.symlink_to((folder.parent / "pairs").resolve())
            results.setdefault(name, []).append(numbers(setting, name, world, seed))
            report(options.folder, results)


def report(folder: Path, results: Mapping[str, Sequence[Mapping[str, float]]]) -> None:
    """Write and print the table, and draw the figure."""
    lines = [
        f"{date.today()}, one thread, torch {torch.__version__}; mean ± deviation over seeds",
        "",
        "| setting | seeds | one affordance | both, held-out pairs | novelty of these |",
        "| --- | --- | --- | --- | --- |",
    ]
    for name, rows in results.items():
        columns = [[row[quantity] for row in rows] for quantity in QUANTITIES]
        cells = [f"{fmean(c):.3f} ± {stdev(c):.3f}" if len(c) > 1 else f"{c[0]:.3f}" for c in columns]
        lines.append(f"| {name} | {len(rows)} | {' | '.join(cells)} |")
    write_whole(folder / "table.md", "\n".join(lines) + "\n")
    plot(folder / "figure.png", results)
    print(lines[-1], flush=True)


if __name__ == "__main__":
    main()
