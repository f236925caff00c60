"""Arm of the demonstration: the base as it is, or tuned in one way; its pictures and their scores."""

import contextlib
import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from lit_modules.utils.files import whole_file, write_whole

if TYPE_CHECKING:
    from torch import Tensor

    from lit_modules.demos.synthia.scores import Scores

TUNE = "synthia/drawn.yaml"
PICTURES = {"held out": 8, "trained": 4, "one": 4}
"""Pictures of each row, by set."""
BATCH = 96


@dataclass(frozen=True)
class Arm:
    """Way of tuning.

    Args:
        name: Name in tables.
        mode: Order of the pairs; ``None`` does not tune.
        negatives: Pictures of existing things that each new design is contrasted with.
    """

    name: str
    mode: str | None = None
    negatives: int = 1

    @property
    def slug(self) -> str:
        """Name of its folder."""
        return self.name.replace(" ", "_")


ARMS = (
    Arm("frozen"),
    Arm("no contrast", "random", negatives=0),
    Arm("random order", "random"),
    Arm("curriculum", "staged"),
)


@dataclass(frozen=True)
class World:
    """Folders and rows that all arms share.

    Args:
        folder: Folder of the run.
        weights: Folder of base and recogniser; ``None`` takes the shipped ones.
        sets: Rows of affordances by the name of the set.
    """

    folder: Path
    weights: Path | None
    sets: Mapping[str, Sequence[Mapping[str, Any]]]

    @property
    def base(self) -> Path:
        """Folder of the base model."""
        return self.folder / "base_model"

    @property
    def pairs(self) -> Path:
        """Folder of the curriculum."""
        return self.folder / "pairs"


def run_arm(arm: Arm, world: World, seed: int, options: Sequence[str] = ()) -> str:
    """Tune the base, draw and score; what the folder holds is not done again.

    Args:
        arm: Way of tuning.
        world: What the arms share.
        seed: Seed of weights, order and pictures.
        options: More options of the fit.

    Returns:
        A line about it.
    """
    import torch
    from safetensors.torch import save_file

    from lit_modules.demos.synthia.scores import score_pictures
    from lit_modules.demos.synthia.world import load_parts_recogniser

    torch.set_num_threads(1)
    folder = world.folder / arm.slug
    folder.mkdir(parents=True, exist_ok=True)
    model = world.base if arm.mode is None else folder / "model"
    if not (model / "scheduler").exists():
        _tune(arm, world, seed, [*options, *_callback("SavePretrained", folder=str(model))])
    if not (folder / "scores.json").exists():
        recogniser, scores = load_parts_recogniser(world.weights), {}
        for name, rows in world.sets.items():
            images = draw_rows(model, rows, PICTURES[name], seed)
            scores[name] = score_pictures(recogniser, images, rows).as_plain()
            if name == "held out":
                with whole_file(folder / "pictures.safetensors") as part:
                    save_file({name: (images * 255).round().byte()}, part)
        write_whole(folder / "scores.json", json.dumps(scores) + "\n")
    return f"{arm.name}: done, {folder}"


def read_arm(arm: Arm, world: World) -> "tuple[dict[str, Scores], Tensor]":
    """Return the scores of an arm by set, and its pictures of the held-out pairs, uint8."""
    from safetensors.torch import load_file

    from lit_modules.demos.synthia.scores import Scores

    folder = world.folder / arm.slug
    plain = json.loads((folder / "scores.json").read_text(encoding="utf-8"))
    pictures = load_file(folder / "pictures.safetensors")["held out"]
    return {name: Scores.from_plain(values) for name, values in plain.items()}, pictures


def draw_rows(model: Path, rows: Sequence[Mapping[str, Any]], pictures: int, seed: int) -> "Tensor":
    """Draw pictures for each row of affordances.

    Args:
        model: Folder of the model.
        rows: Rows with ``pos_prompts``.
        pictures: Pictures of each.
        seed: Seed.

    Returns:
        Floats in [0, 1], ``(rows, pictures, 3, height, width)``.
    """
    import torch

    from lit_modules.synthia import PixelDiffusion, Synthia

    module = Synthia(PixelDiffusion(str(model)))
    prompts = [module.template.format(affordances=", ".join(row["pos_prompts"])) for row in rows]
    repeated = [prompt for prompt in prompts for _ in range(pictures)]
    batches = [repeated[start : start + BATCH] for start in range(0, len(repeated), BATCH)]
    images = torch.cat([module(batch, seed=1000 * seed + number) for number, batch in enumerate(batches)])
    return images.reshape(len(rows), pictures, *images.shape[1:])


def _tune(arm: Arm, world: World, seed: int, options: Sequence[str]) -> None:
    """Run the fit of an arm; its output goes to a log file."""
    from lit_modules.cli import main

    folder = world.folder / arm.slug
    line = ["fit", "-c", TUNE, f"--seed_everything={seed}", f"--data.seed={seed}", f"--model.seed={seed}"]
    line += [f"--model.backbone.init_args.model={world.base}", f"--data.curriculum={world.pairs}"]
    line += [f"--data.mode={arm.mode}", f"--data.negatives={arm.negatives}", *options]
    logger = {"save_dir": str(folder), "name": "logs", "version": ""}
    line += [
        f"--trainer.logger={json.dumps({'class_path': 'lightning.pytorch.loggers.CSVLogger', 'init_args': logger})}"
    ]
    line += [f"--trainer.default_root_dir={folder}", "--trainer.enable_progress_bar=false"]
    print("lit-modules " + " ".join(f"'{word}'" if " " in word else word for word in line), flush=True)
    with (
        (folder / "log.txt").open("w", encoding="utf-8") as log,
        contextlib.redirect_stdout(log),
        contextlib.redirect_stderr(log),
    ):
        main(line)


def _callback(name: str, **arguments: str) -> list[str]:
    return [
        f"--trainer.callbacks+={json.dumps({'class_path': f'lit_modules.callbacks.{name}', 'init_args': arguments})}"
    ]
