"""Conditions under which CoDA helps: the world of ``lit-modules demo coda`` with one thing changed at a time.

    python benchmarks/coda_worlds.py --folder runs/coda_worlds --seeds 3

prints the mean accuracy over seeds of some rows with five synthetic pictures, and the gain of CoDA over real pictures
alone and over pictures without contrast with its 95 % interval over the pairs of all seeds. What the folder holds is
not done again.
"""

import argparse
import json
from pathlib import Path
from statistics import fmean

from lit_modules.demos.coda.models import write_models
from lit_modules.demos.coda.update import UNTAUGHT, Accuracies, ask, cell, interval, pair_accuracies
from lit_modules.demos.coda.world import MOST_SYNTHETIC, World, augment, draw_world
from lit_modules.demos.stages import Demo
from lit_modules.utils.files import write_whole

WORLDS = {
    "the demonstration's": World(),
    "supports in any habitat": World(habitats=0.0),
    "all phrases obeyed": World(capacity=None),
    "what is not named is random": World(relatives=False, likeness=0.0),
    "plain, all obeyed, rest random": World(None, capacity=None, undrawable=0.0, relatives=False, likeness=1.0),
}
"""The last one is the world of the first version of the demonstration."""
ROWS = ("real", "no contrast", "CoDA")


def run(world: World, folder: Path, seed: int) -> Accuracies:
    """Return the accuracies of the pairs of a world."""
    demo = Demo(folder)
    write_models(folder / "models")
    draw_world(world, folder / "data", seed)
    pairs = [(pair.target.name, pair.confusable.name) for pair in world.data(folder / "data", seed).pairs]
    for row in ROWS[1:]:
        augment(world, row, folder, models=folder / "models", seed=seed)
    cells = [(row, MOST_SYNTHETIC) for row in (UNTAUGHT, *ROWS)]
    answers = ask(world, folder, cells, seed=seed, console=demo.console)
    return {name: pair_accuracies(row, pairs) for name, row in answers.items()}


def main() -> None:
    """Run all worlds and print the table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--folder", type=Path, default=Path("runs/coda_worlds"))
    parser.add_argument("--seeds", type=int, default=3)
    options = parser.parse_args()
    record = {}
    real, plain, coda = (cell(row, MOST_SYNTHETIC) for row in ROWS)
    columns = ["world", real, plain, coda, "CoDA - real", "CoDA - no contrast"]
    print(f"| {' | '.join(columns)} |", "| --- " * len(columns) + "|", sep="\n")
    for number, (name, world) in enumerate(WORLDS.items()):
        runs = [run(world, options.folder / f"world-{number}" / f"seed-{seed}", seed) for seed in range(options.seeds)]
        values = {row: [value for accuracies in runs for value in accuracies[row]] for row in (real, plain, coda)}
        shown = [f"{100 * fmean(values[row]):.1f}" for row in values]
        for other in (real, plain):
            gains = [100 * (one - two) for one, two in zip(values[coda], values[other], strict=True)]
            low, high = interval(gains)
            shown.append(f"{fmean(gains):+.1f} ({low:+.1f} to {high:+.1f})")
        print(f"| {name} | {' | '.join(shown)} |", flush=True)
        record[name] = values
    write_whole(options.folder / "record.json", json.dumps(record, indent=1) + "\n")


if __name__ == "__main__":
    main()
