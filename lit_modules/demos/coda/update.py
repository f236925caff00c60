"""Updates of the demonstration: a classifier is taught the concepts of all pairs, by each method with equal steps."""

import json
from collections.abc import Sequence
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
UNTAUGHT, REAL = "before the update", "real"
ROWS = (REAL, "crop", "flip", *AUGMENTED)
"""Rows of the table: what joins the five real pictures of each concept."""
AMOUNTS = (1, MOST_SYNTHETIC)
"""Synthetic pictures of each concept; with one the paper speaks of one shot."""
Accuracies = dict[str, list[float]]
"""Accuracy of each pair, by the name of a row and amount, see :func:`cell`."""
Answers = dict[str, str]
"""Name that the classifier gave to each test picture, by the path of the picture, which begins ``test/NAME/``."""


def cell(row: str, synthetic: int) -> str:
    """Return the name of a number, such as ``CoDA 5:1``, five real pictures and a synthetic one of each concept."""
    return f"{row} {SHOTS}:{0 if row in (UNTAUGHT, REAL) else synthetic}"


def answers_after(world: World, row: str, folder: Path, *, model: Path, synthetic: int, seed: int) -> Answers:
    """Return the answers of the classifier after the update of a row; what the folder holds is not done again.

    Args:
        world: The world, whose pictures lie in ``folder/data``.
        row: Row, one of `ROWS` or `UNTAUGHT`.
        folder: Folder of the run.
        model: Folder of the classifier.
        synthetic: Further pictures of each concept.
        seed: Seed of supports, head and order.
    """
    path = folder / "answers" / f"{cell(row, synthetic).replace(' + ', '-').replace(' ', '-').replace(':', '-')}.json"
    if not path.exists():
        with quiet():
            answers = _update(world, row, folder, model=model, synthetic=synthetic, seed=seed)
        write_whole(path, json.dumps(answers, indent=0) + "\n")
    answers = json.loads(path.read_text(encoding="utf-8"))
    return dict(answers)


def _update(world: World, row: str, folder: Path, *, model: Path, synthetic: int, seed: int) -> Answers:
    from lightning.pytorch import Trainer, seed_everything

    from lit_modules import ClassifierUpdate

    source: dict[str, Any] = {}
    if row in ("crop", "flip"):
        source = {"method": row, "n_synthetic": synthetic}
    elif row in AUGMENTED:
        root = str(drawn_folder(folder, row))
        source = {"method": "synthetic", "synthetic_root": root, "n_synthetic": synthetic}
    settings: dict[str, Any] = {"image_size": IMAGE_SIZE, "batch_size": BATCH, "eval_batch_size": 240, "n_orders": 1}
    data = world.data(folder / "data", seed, **settings, **source)
    data.setup("fit")
    seed_everything(seed, verbose=False)
    module = ClassifierUpdate(
        str(model),
        num_classes=len(data.classes),
        learning_rate=RATE,
        head_learning_rate=HEAD_RATE,
        mean=[0.5] * 3,
        std=[0.5] * 3,
        seed=seed,
    )
    if row != UNTAUGHT:
        trainer = Trainer(
            accelerator="cpu",
            max_steps=STEPS,
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
