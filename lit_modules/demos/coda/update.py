"""The updates of ``lit-modules demo coda``: every method, amount and seed from the same model, and the table."""

import json
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from lit_modules.utils.files import write_whole

AMOUNTS = (1, 3, 5)
SEEDS = 2
EPOCHS, BATCH, RATE = 7, 10, 2e-3


@dataclass(frozen=True)
class Cell:
    """One row and column of the table.

    Args:
        method: What the further pictures are.
        feature: Where the features come from: T, V or T+V; ``-`` for none.
        synthetic: Further pictures of each concept beside 5 real ones; ``None`` for no update.
        data: Arguments of the datamodule.
    """

    method: str
    feature: str
    synthetic: int | None
    data: dict[str, Any]

    @property
    def name(self) -> str:
        """Name of the cell's records."""
        return f"{self.method} {self.feature} {self.synthetic}".replace(" ", "-").replace("+", "")

    @property
    def drawn(self) -> bool:
        """Whether its synthetic pictures are there, if it needs any."""
        return "synthetic_root" not in self.data or (Path(self.data["synthetic_root"]) / "features.json").is_file()


def cells(drawn: Path) -> Iterator[Cell]:
    """Yield the cells of the table.

    Args:
        drawn: Folder of the exported pictures, with a folder for each kind of features.
    """
    yield Cell("zero-shot", "-", None, {})
    yield Cell("real", "-", 0, {})
    for method in ("crop", "flip"):
        for number in AMOUNTS:
            yield Cell(method, "-", number, {"method": method})
    for method, form in (("no contrast", "plain"), ("CoDA", "contrastive")):
        for feature, source in (("T", "textual"), ("V", "visual"), ("T+V", "both")):
            given = {"method": "synthetic", "synthetic_root": str(drawn / f"{source}_{form}")}
            for number in AMOUNTS:
                yield Cell(method, feature, number, given)


def run_updates(console: Any, folder: Path, model: Path, seed: int) -> list[dict[str, Any]]:
    """Run all updates whose records are not there; return the rows of the table, without those that lack pictures.

    Args:
        console: Where to say what is done.
        folder: Folder of the run, with ``data`` and ``store``.
        model: Folder of the model.
        seed: First seed.
    """
    from rich.progress import track

    planned = [
        (cell, seed + number)
        for cell in cells(folder / "drawn")
        if cell.drawn
        for number in range(SEEDS if cell.synthetic is not None else 1)
    ]
    place = folder / "updates"
    paths = [place / f"{cell.name}-{number}.json" for cell, number in planned]
    missing = [item for item in zip(paths, planned, strict=True) if not item[0].exists()]
    if missing:
        console.print(
            f"{len(missing)} updates of {EPOCHS} epochs: LoRA on 5 real and further pictures of each concept; then "
            "test pictures are asked about, with the two names in both orders, and the likelier one is the answer.",
            markup=False,
        )
    for path, (cell, number) in track(missing, "updates", console=console, disable=not missing):
        found = update(cell, folder, model, seed, number)
        write_whole(path, json.dumps(found, indent=1) + "\n")
    results: dict[tuple[str, str, int | None], list[dict[str, float]]] = {}
    for path, (cell, _) in zip(paths, planned, strict=True):
        results.setdefault(_key(cell), []).append(json.loads(path.read_text(encoding="utf-8")))
    return [_row(key, found) for key, found in results.items()]


def update(cell: Cell, folder: Path, model: Path, support_seed: int, seed: int) -> dict[str, float]:
    """Update a model as a cell of the table says, and return what it answers on test pictures.

    Args:
        cell: Method and amount.
        folder: Folder of the run.
        model: Folder of the model, which is left as it is.
        support_seed: Seed of the support pictures, and of crops, flips and orders.
        seed: Seed of adapters and dropout.
    """
    from lightning.pytorch import Trainer, seed_everything

    from lit_modules import CoDA
    from lit_modules.datamodules import FewShotPairs
    from lit_modules.metrics import PairAccuracy

    data = FewShotPairs(
        str(folder / "data"),
        str(folder / "store" / "pairs.json"),
        n_real=5,
        n_synthetic=cell.synthetic or 0,
        near_duplicates=False,  # creatures of two species may look nearly alike
        batch_size=BATCH,
        eval_batch_size=64,
        seed=support_seed,
        **cell.data,
    )
    with _quiet():
        seed_everything(seed)
        module = CoDA(
            str(model),
            tuning="none" if cell.synthetic is None else "lora",
            learning_rate=RATE,
            dtype="float32",
            gradient_checkpointing=False,
            scoring="loglik",
            seed=seed,
            metric=PairAccuracy(),
        )
        trainer = Trainer(
            accelerator="cpu",
            max_epochs=EPOCHS,
            logger=False,
            enable_checkpointing=False,
            enable_progress_bar=False,
            enable_model_summary=False,
            limit_val_batches=0,
        )
        if cell.synthetic is not None:
            trainer.fit(module, datamodule=data)
        trainer.test(module, datamodule=data, verbose=False)
    return module.results()


def print_table(console: Any, rows: list[dict[str, Any]]) -> None:
    """Print accuracies in percent: real and further pictures of each concept in the columns, as in the paper.

    Args:
        console: Where to.
        rows: Rows of :func:`run_updates`.
    """
    from rich.table import Table

    columns = ["5:0", *(f"5:{number}" for number in AMOUNTS)]
    table = Table(
        title="accuracy in %, mean over seeds ± deviation (95 % interval over pictures)", title_justify="left"
    )
    for name in ("method", "feature", *columns):
        table.add_column(name, no_wrap=True)
    lines: dict[tuple[str, str], dict[str, str]] = {}
    for row in rows:
        column = f"5:{row['synthetic'] or 0}"
        lines.setdefault((row["method"], row["feature"]), {})[column] = (
            f"{100 * row['accuracy']:.1f}"
            + ("" if row["std"] is None else f" ± {100 * row['std']:.1f}")
            + f"\n({100 * row['lower']:.0f} to {100 * row['upper']:.0f})"
        )
    for (method, feature), cells_of in lines.items():
        table.add_row(method, feature, *(cells_of.get(column, "") for column in columns))
    console.print(table, markup=False)


def _key(cell: Cell) -> tuple[str, str, int | None]:
    return cell.method, cell.feature, cell.synthetic


def _row(cell: tuple[str, str, int | None], found: list[dict[str, float]]) -> dict[str, Any]:
    from lit_modules.metrics.few_shot import seed_statistics

    numbers = seed_statistics(found)
    mean = {name: value["mean"] for name, value in numbers.items()}
    method, feature, synthetic = cell
    return {
        "method": method,
        "feature": feature,
        "real": 0 if synthetic is None else 5,
        "synthetic": synthetic or 0,
        "accuracy": mean["acc_macro"],
        "std": numbers["acc_macro"]["std"] if len(found) > 1 else None,
        "lower": mean["acc_macro_lower"],
        "upper": mean["acc_macro_upper"],
        "invalid": mean["invalid"],
        "position_bias": mean["position_bias"],
        "target": mean["acc_target"],
        "confusable": mean["acc_confusable"],
        "seeds": len(found),
    }


@contextmanager
def _quiet() -> Iterator[None]:
    """Leave out what Lightning says of each of many small runs."""
    import logging

    from transformers.utils import logging as bars

    told: Any = bars
    shown = told.is_progress_bar_enabled()
    names = ("lightning.pytorch", "lightning.fabric", "lightning.pytorch.utilities.rank_zero")
    levels = {name: logging.getLogger(name).level for name in names}
    try:
        for name in names:
            logging.getLogger(name).setLevel(logging.ERROR)
        told.disable_progress_bar()
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            yield
    finally:
        if shown:
            told.enable_progress_bar()
        for name, level in levels.items():
            logging.getLogger(name).setLevel(level)
