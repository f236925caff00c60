"""``lit-modules demo synthia``: a model of drawn objects learns to draw one object that offers two affordances."""

import json
from concurrent.futures import ProcessPoolExecutor, as_completed
from functools import partial
from multiprocessing import get_context
from pathlib import Path
from typing import TYPE_CHECKING, Any

from lit_modules.demos.record import Claim
from lit_modules.demos.stages import Demo
from lit_modules.utils.files import write_whole

if TYPE_CHECKING:
    from torch import Tensor

    from lit_modules.demos.synthia.arm import World
    from lit_modules.demos.synthia.scores import Scores

PAPER = "Ha et al., arXiv 2502.17793"
TRAINED_ROWS = 24
"""Pairs trained on that are drawn too."""
CLAIMS = (
    Claim(
        f"Tuning on pairs of affordances makes more pictures of held-out pairs show both ({PAPER}); holds at 0.1 more "
        "than the frozen model, in the better order.",
        ("both, frozen", "both, random order", "both, curriculum", "one, frozen", "one, random order"),
        lambda numbers: (
            max(numbers["both, random order"], numbers["both, curriculum"]) >= numbers["both, frozen"] + 0.1
        ),
    ),
    Claim(
        f"Pictures of held-out pairs that show both are farther from existing things after tuning ({PAPER}); holds at "
        "0.1 more in both orders.",
        ("novelty, frozen", "novelty, random order", "novelty, curriculum"),
        lambda numbers: (
            min(numbers["novelty, random order"], numbers["novelty, curriculum"]) >= numbers["novelty, frozen"] + 0.1
        ),
    ),
    Claim(
        f"Contrast with existing things makes these pictures more novel than the same tuning without it ({PAPER}); "
        "holds at 0.02 more, with both shown in at most 0.05 less.",
        ("novelty, no contrast", "novelty, random order", "both, no contrast", "both, random order"),
        lambda numbers: (
            numbers["novelty, random order"] >= numbers["novelty, no contrast"] + 0.02
            and numbers["both, random order"] >= numbers["both, no contrast"] - 0.05
        ),
    ),
    Claim(
        f"The curriculum, from close pairs to distant ones, makes more pictures show both than random order at equal "
        f"steps ({PAPER}).",
        ("both, random order", "both, curriculum"),
        lambda numbers: numbers["both, curriculum"] > numbers["both, random order"],
    ),
)


def affordances(folder: Path, seed: int, from_scratch: bool = False) -> dict[str, float]:
    """Tune a model of drawn objects in several ways, draw held-out pairs of affordances, and show what came of it.

    The arms run side by side, a process and a thread each, so that none waits while a core is idle.

    Args:
        folder: Folder of the run.
        seed: Seed of pictures, weights and order.
        from_scratch: Whether to train the base and the recogniser anew, which takes an hour; otherwise they are loaded.

    Returns:
        By ``quantity, arm``: ``one`` and ``both``, shares of pictures that show all that was asked for (one affordance;
        a held-out pair), and ``novelty`` of pictures that show both.
    """
    from lit_modules.datamodules import DrawnObjects
    from lit_modules.demos.synthia.arm import ARMS, World, read_arm, run_arm
    from lit_modules.demos.synthia.page import REAL, plot, write_page
    from lit_modules.demos.synthia.world import (
        RECOGNISER,
        read_rows,
        single_rows,
        train_world,
        typical_rows,
        write_base,
        write_pairs,
    )

    demo = Demo(folder)
    weights = folder / "weights" if from_scratch else None
    pairs = write_pairs(folder / "pairs")
    if weights is not None and not (weights / f"{RECOGNISER}.safetensors").exists():  # the later of both
        demo.console.rule("before: train a model of existing things, and a recogniser of parts")
        train_world(demo, pairs, seed=seed, weights=weights)
    held_out = read_rows(pairs / "test.jsonl")
    trained = [row for stage in sorted(pairs.glob("stage*.jsonl")) for row in read_rows(stage)]
    sets = {
        "held out": held_out,
        "trained": typical_rows(trained, TRAINED_ROWS),
        "one": single_rows(DrawnObjects.affordances),
    }
    world = World(folder, weights, sets)
    if not (world.base / "scheduler").exists():
        write_base(world.base, weights)
    demo.console.rule(
        f"1 of 2: tune on {len(trained)} pairs in three ways, draw the {len(held_out)} that were held out"
    )
    _run_arms(demo, partial(run_arm, world=world, seed=seed))
    demo.console.rule("2 of 2: numbers and pictures")
    results: dict[str, dict[str, Scores]] = {}
    pictures: dict[str, Tensor] = {}
    for arm in ARMS:
        results[arm.name], pictures[arm.name] = read_arm(arm, world)
    results[REAL], pictures[REAL] = draw_real(world, seed)
    plot(folder / "report.png", results, pictures, held_out)
    write_page(folder / "report.html", results, pictures, held_out)
    numbers = {
        f"{quantity}, {name}": value
        for name, sets in results.items()
        for quantity, value in (
            ("one", sets["one"].shown().mean),
            ("both", sets["held out"].shown().mean),
            ("novelty", sets["held out"].novelty_if_shown().mean),
        )
    }
    write_whole(folder / "results.json", json.dumps(numbers, indent=2) + "\n")
    _print_table(demo.console, results)
    demo.finish(f"Page: {folder / 'report.html'}; picture: {folder / 'report.png'}")
    return numbers


def draw_real(world: "World", seed: int) -> "tuple[dict[str, Scores], Tensor]":
    """Return scores by set of real drawings, the ceiling of the scores, and those of the held-out pairs, uint8."""
    from random import Random

    import torch

    from lit_modules.datamodules import drawn
    from lit_modules.demos.synthia.arm import PICTURES
    from lit_modules.demos.synthia.scores import score_pictures
    from lit_modules.demos.synthia.world import load_parts_recogniser

    recogniser, scores, shown = load_parts_recogniser(world.weights), {}, torch.empty(0)
    for name, rows in world.sets.items():
        keys = [f"{seed}/real/{name}/{index}/{n}" for index in range(len(rows)) for n in range(PICTURES[name])]
        wanted = [row["pos_prompts"] for row in rows for _ in range(PICTURES[name])]
        designs = [drawn.renderer.composed_design(each, Random(key)) for each, key in zip(wanted, keys, strict=True)]
        images = torch.from_numpy(drawn.renderer.render([[design] for design in designs], keys, 32))
        images = images.reshape(len(rows), PICTURES[name], *images.shape[1:])
        scores[name] = score_pictures(recogniser, images.float() / 255, rows)
        if name == "held out":
            shown = images
    return scores, shown


def _run_arms(demo: Demo, run: Any) -> None:
    """Run the arms side by side."""
    from lit_modules.demos.synthia.arm import ARMS

    with ProcessPoolExecutor(len(ARMS), mp_context=get_context("spawn")) as pool:
        for future in as_completed([pool.submit(run, arm) for arm in reversed(ARMS)]):
            demo.console.print(future.result(), markup=False)


def _print_table(console: Any, results: "dict[str, dict[str, Scores]]") -> None:
    from rich.table import Table

    table = Table(title="Share of pictures that show all that was asked for, ± half a 95 % interval over pairs")
    for heading in ("", "one", "trained pair", "held-out pair", "novelty if both"):
        table.add_column(heading, justify="right" if heading else "left", no_wrap=True)
    for name, sets in results.items():
        values = [sets[key].shown() for key in ("one", "trained", "held out")] + [sets["held out"].novelty_if_shown()]
        table.add_row(name, *(f"{value.mean:.2f} ± {(value.high - value.low) / 2:.2f}" for value in values))
    console.print(table)
