"""Updates of the demonstration: two models are taught the concepts of all pairs, by each method with equal steps."""

import json
from collections.abc import Sequence
from concurrent.futures import ProcessPoolExecutor
from multiprocessing import get_context
from pathlib import Path
from statistics import fmean
from typing import Any

from lit_modules.demos.coda.models import IMAGE_SIZE
from lit_modules.demos.coda.world import AUGMENTED, MOST_SYNTHETIC, SHOTS, World, drawn_folder
from lit_modules.demos.stages import quiet
from lit_modules.utils.files import write_whole

STEPS, BATCH = 120, 20
"""Optimisation steps of every row, however many pictures it has, and pictures of a step."""
RATE, HEAD_RATE = 5e-4, 5e-3
LLAVA_RATE = 6e-3
UNTAUGHT, REAL = "before the update", "real"
ROWS = (REAL, "crop", "flip", *AUGMENTED)
"""Rows of the table: what joins the five real pictures of each concept."""
LLAVA = "LLaVA-NeXT, "
"""Begin of the names of rows in which the image-text model is updated, not the classifier."""
LLAVA_ROWS = (LLAVA + UNTAUGHT, LLAVA + REAL, f"{LLAVA}no contrast", f"{LLAVA}CoDA")
AMOUNTS = (1, MOST_SYNTHETIC)
"""Synthetic pictures of each concept; with one the paper speaks of one shot."""
Accuracies = dict[str, list[float]]
"""Accuracy of each pair, by the name of a row and amount, see :func:`cell`."""
Answers = dict[str, str]
"""Name that the model gave to each test picture, by the path of the picture, which begins ``test/NAME/``."""


def cell(row: str, synthetic: int) -> str:
    """Return the name of a number, such as ``CoDA 5:1``, five real pictures and a synthetic one of each concept."""
    return f"{row} {SHOTS}:{0 if row.removeprefix(LLAVA) in (UNTAUGHT, REAL) else synthetic}"


def ask(
    world: World, folder: Path, cells: Sequence[tuple[str, int]], *, seed: int, console: Any = None
) -> dict[str, Answers]:
    """Return the answers after the update of each row and amount; what the folder holds is not done again.

    The image-text model is updated in a process beside the classifier's, each on one thread.

    Args:
        world: The world, whose pictures lie in ``folder/data``.
        folder: Folder of the run, with ``models``.
        cells: Rows of `ROWS` and `LLAVA_ROWS`, or `UNTAUGHT`, each with its further pictures of each concept.
        seed: Seed of supports, new weights and order.
        console: Rich console that shows the progress.
    """
    import torch
    from rich.progress import track

    unique = list({cell(*each): each for each in cells}.values())
    beside = [each for each in unique if each[0].startswith(LLAVA) and not _path(folder, *each).exists()]
    threads = torch.get_num_threads()
    answers: dict[str, Answers] = {}
    with ProcessPoolExecutor(1, mp_context=get_context("spawn")) as pool:
        work = pool.submit(_answer_all, world, folder, beside, seed=seed, steps=STEPS) if beside else None
        try:
            torch.set_num_threads(1)
            for row, synthetic in track(
                [each for each in unique if each not in beside], "updates", console=console, disable=console is None
            ):
                answers[cell(row, synthetic)] = answers_after(
                    world, row, folder, synthetic=synthetic, seed=seed, steps=STEPS
                )
        finally:
            torch.set_num_threads(threads)
        if work is not None:
            answers |= work.result()
    return {cell(*each): answers[cell(*each)] for each in unique}


def _answer_all(
    world: World, folder: Path, cells: Sequence[tuple[str, int]], *, seed: int, steps: int
) -> dict[str, Answers]:
    """Work of the process beside."""
    import torch

    torch.set_num_threads(1)
    return {
        cell(row, synthetic): answers_after(world, row, folder, synthetic=synthetic, seed=seed, steps=steps)
        for row, synthetic in cells
    }


def answers_after(world: World, row: str, folder: Path, *, synthetic: int, seed: int, steps: int) -> Answers:
    """Return the answers of a model after the update of a row; what the folder holds is not done again.

    Args:
        world: The world, whose pictures lie in ``folder/data``.
        row: Row, one of `ROWS` or `LLAVA_ROWS`, or `UNTAUGHT`.
        folder: Folder of the run, with ``models``.
        synthetic: Further pictures of each concept.
        seed: Seed of supports, new weights and order.
        steps: Optimisation steps.
    """
    path = _path(folder, row, synthetic)
    if not path.exists():
        with quiet():
            answers = _update(world, row, folder, synthetic=synthetic, seed=seed, steps=steps)
        write_whole(path, json.dumps(answers, indent=0) + "\n")
    answers = json.loads(path.read_text(encoding="utf-8"))
    return dict(answers)


def _path(folder: Path, row: str, synthetic: int) -> Path:
    """Return the file of the answers of a cell."""
    name = cell(row, synthetic).replace(", ", "-").replace(" + ", "-").replace(" ", "-").replace(":", "-")
    return folder / "answers" / f"{name}.json"


def _update(world: World, row: str, folder: Path, *, synthetic: int, seed: int, steps: int) -> Answers:
    from lightning.pytorch import Trainer, seed_everything

    kind = row.removeprefix(LLAVA)
    source: dict[str, Any] = {}
    if kind in ("crop", "flip"):
        source = {"method": kind, "n_synthetic": synthetic}
    elif kind in AUGMENTED:
        root = str(drawn_folder(folder, kind))
        source = {"method": "synthetic", "synthetic_root": root, "n_synthetic": synthetic}
    size = IMAGE_SIZE if row == kind else None  # a processor takes pictures as they are
    settings: dict[str, Any] = {"image_size": size, "batch_size": BATCH, "eval_batch_size": 240, "n_orders": 1}
    data = world.data(folder / "data", seed, **settings, **source)
    data.setup("fit")
    seed_everything(seed, verbose=False)
    if row == kind:
        module = _classifier(folder / "models" / "resnet", len(data.classes), seed)
    else:
        module = _image_text_model(folder / "models" / "llava", kind != UNTAUGHT, seed)
    if kind != UNTAUGHT:
        trainer = Trainer(
            accelerator="cpu",
            max_steps=steps,
            max_epochs=-1,
            logger=False,
            enable_checkpointing=False,
            enable_progress_bar=False,
            enable_model_summary=False,
            limit_val_batches=0,
        )
        trainer.fit(module, datamodule=data)
    answers: Answers = {}
    for batch in data.test_dataloader():
        module.configure_model()
        answers |= dict(zip(batch["path"], module.eval().predict_step(batch)["name"], strict=True))
    return answers


def _classifier(folder: Path, num_classes: int, seed: int) -> Any:
    from lit_modules import ClassifierUpdate

    return ClassifierUpdate(
        str(folder),
        num_classes=num_classes,
        learning_rate=RATE,
        head_learning_rate=HEAD_RATE,
        mean=[0.5] * 3,
        std=[0.5] * 3,
        seed=seed,
    )


def _image_text_model(folder: Path, tuned: bool, seed: int) -> Any:
    """Return the module with adapters of the preset ``small``, which answers with the likelier name."""
    from lit_modules import CoDA

    return CoDA(
        str(folder),
        preset="small",
        tuning="lora" if tuned else "none",
        learning_rate=LLAVA_RATE,
        dtype="float32",
        gradient_checkpointing=False,
        scoring="loglik",
        seed=seed,
    )


def pair_accuracies(answers: Answers, pairs: Sequence[tuple[str, str]]) -> list[float]:
    """Return the accuracy of each pair of names: the mean of the recalls of both."""
    right: dict[str, list[bool]] = {}
    for path, name in answers.items():
        shown = path.split("/")[-2]
        right.setdefault(shown, []).append(name == shown)
    return [fmean(fmean(right[name]) for name in pair) for pair in pairs]


def interval(values: Sequence[float]) -> tuple[float, float]:
    """Return the 95 % interval of the mean over pairs, by Student's t."""
    from scipy.stats import ttest_1samp

    ends = ttest_1samp(values, 0.0).confidence_interval(0.95)
    return float(ends.low), float(ends.high)


def percent(values: Sequence[float]) -> str:
    """Return the mean and its interval over pairs, in percent."""
    low, high = interval(values)
    return f"{100 * fmean(values):.1f} ({100 * low:.0f} to {100 * high:.0f})"
