"""``lit-modules demo coda``: two models are taught creatures that they could tell apart by their habitat alone."""

import json
from pathlib import Path
from statistics import fmean

from lit_modules.demos.coda.models import write_models
from lit_modules.demos.coda.update import (
    AMOUNTS,
    LLAVA,
    LLAVA_ROWS,
    REAL,
    ROWS,
    UNTAUGHT,
    Accuracies,
    ask,
    cell,
    interval,
    pair_accuracies,
    percent,
)
from lit_modules.demos.coda.world import AUGMENTED, MOST_SYNTHETIC, SHOTS, World, augment, draw_world, store_folder
from lit_modules.demos.record import Claim, Numbers
from lit_modules.demos.stages import Demo
from lit_modules.utils.files import write_whole


def _gain(text: str, better: str, worse: str, synthetic: int = MOST_SYNTHETIC) -> Claim:
    """Return the claim that a row is ahead of another one, by the interval of the gain over pairs."""
    after, before = cell(better, synthetic), cell(worse, synthetic)
    gain = f"{after} - {before}"
    return Claim(
        f"{text} Holds where the 95 % interval of the gain over pairs is above 0.",
        (before, after, gain, f"{gain}, lower", f"{gain}, upper"),
        lambda numbers: numbers[f"{gain}, lower"] > 0,
    )


COMPARED = (
    ("Contrastive features make better pictures than plain ones (five).", "contrast", "no contrast", MOST_SYNTHETIC),
    ("Five pictures of CoDA help over real ones alone.", "CoDA", REAL, MOST_SYNTHETIC),
    ("One picture of CoDA helps over real ones alone (the paper's one shot).", "CoDA", REAL, 1),
    ("Five pictures of CoDA help over five flips of real ones.", "CoDA", "flip", MOST_SYNTHETIC),
    ("Discriminability (D) adds to contrast.", "contrast + D", "contrast", MOST_SYNTHETIC),
    ("Generability (G) adds to contrast and D.", "contrast + D + G", "contrast + D", MOST_SYNTHETIC),
    ("Verification adds to contrast, D and G.", "CoDA", "contrast + D + G", MOST_SYNTHETIC),
    (
        "Five pictures of CoDA help the image-text model over real ones alone.",
        f"{LLAVA}CoDA",
        LLAVA + REAL,
        MOST_SYNTHETIC,
    ),
    (
        "Five pictures of CoDA help the image-text model over five of plain features.",
        f"{LLAVA}CoDA",
        f"{LLAVA}no contrast",
        MOST_SYNTHETIC,
    ),
)
"""Claim, better row, worse row, and synthetic pictures of each concept."""
CLAIMS = tuple(_gain(text, better, worse, synthetic) for text, better, worse, synthetic in COMPARED)


def new_creatures(folder: Path, seed: int, weights: Path | None = None) -> Numbers:
    """Draw a world, make synthetic pictures of its new creatures, teach two models with them, and ask these.

    Args:
        folder: Folder of the run.
        seed: Seed of the world, the pictures and the updates.
        weights: Folder of the weights of the models; the shipped ones by default.

    Returns:
        Accuracies and gains with their intervals, as `CLAIMS` names them.
    """
    from lit_modules.coda import Store, write_report
    from lit_modules.demos.coda.page import draw_figure, write_page

    demo, world, models = Demo(folder), World(), folder / "models"
    demo.console.rule("1 of 3: draw creatures; supports show each in one habitat, tests in any")
    write_models(models, weights)
    draw_world(world, folder / "data", seed)
    pairs = [(pair.target.name, pair.confusable.name) for pair in world.data(folder / "data", seed).pairs]
    demo.console.print(
        f"{len(pairs)} pairs of a novel species and its known relative, such as {' and '.join(pairs[0])}."
    )
    demo.console.rule("2 of 3: list features, score them by CLIP, generate pictures, verify them")
    for row in AUGMENTED:
        result = augment(world, row, folder, models=models, seed=seed)
        columns = ("features", "kept", "made", "accepted")
        totals = [sum(getattr(unit, column) for unit in result.units) for column in columns]
        line = "{}: {} features, {} of them in prompts, {} pictures, {} accepted"
        demo.console.print(line.format(row, *totals), markup=False)
    demo.console.rule("3 of 3: update a classifier and an image-text model, and ask them about other pictures")
    cells = [(row, synthetic) for row in (UNTAUGHT, *ROWS) for synthetic in AMOUNTS]
    cells += [(row, MOST_SYNTHETIC) for row in LLAVA_ROWS]
    answers = ask(world, folder, cells, seed=seed, console=demo.console)
    accuracies = {name: pair_accuracies(row, pairs) for name, row in answers.items()}
    write_whole(folder / "results.json", json.dumps({"pairs": pairs, "accuracies": accuracies}, indent=1) + "\n")
    draw_figure(folder / "report.png", folder, pairs, answers)
    write_page(folder / "report.html", folder, pairs, answers)
    with Store(store_folder(folder, "CoDA"), writable=False) as store:
        write_report(store, folder / "stages.html", title="CoDA: features, scores and pictures")
    print_table(demo, accuracies)
    demo.finish(f"Report: {folder / 'report.html'}; picture: {folder / 'report.png'}; stages: {folder / 'stages.html'}")
    return numbers_of(accuracies)


def numbers_of(accuracies: Accuracies) -> Numbers:
    """Return the mean accuracy of each row, and the gains of `COMPARED` with the ends of their intervals over pairs."""
    numbers = {name: fmean(values) for name, values in accuracies.items()}
    for _, better, worse, synthetic in COMPARED:
        after, before = cell(better, synthetic), cell(worse, synthetic)
        gains = [one - other for one, other in zip(accuracies[after], accuracies[before], strict=True)]
        name = f"{after} - {before}"
        numbers[name] = fmean(gains)
        numbers[f"{name}, lower"], numbers[f"{name}, upper"] = interval(gains)
    return numbers


def print_table(demo: Demo, accuracies: Accuracies) -> None:
    """Print accuracies in percent with intervals over pairs."""
    from rich.table import Table

    table = Table(title="Accuracy in %, and its 95 % interval over pairs; equal steps", title_justify="left")
    table.add_column("what joins five real pictures", no_wrap=True)
    for synthetic in (0, *AMOUNTS):
        table.add_column(f"{SHOTS}:{synthetic}")
    for row in (UNTAUGHT, *ROWS, *LLAVA_ROWS):
        names = [f"{row} {SHOTS}:{synthetic}" for synthetic in (0, *AMOUNTS)]
        table.add_row(row, *(percent(accuracies[name]) if name in accuracies else "" for name in names))
    demo.console.print(table, markup=False)
