"""Updates of ``lit-modules demo coda``: every method, amount and seed from the same model, and the table."""

import json
import logging
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
    """Row and column of the table.

    Args:
        method: Kind of the further pictures.
        feature: Source of the features: T, V or T+V; ``-`` for none.
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
        """True if its synthetic pictures are there, or it needs none."""
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
            data = {"method": "synthetic", "synthetic_root": str(drawn / f"{source}_{form}")}
            yield from (Cell(method, feature, number, data) for number in AMOUNTS)


def run_updates(console: Any, folder: Path, model: Path, *, seed: int) -> list[dict[str, Any]]:
    """Run all updates whose records are not there; return the rows of the table, without those that lack pictures.

    Args:
        console: Console.
        folder: Folder of the run, with ``data`` and ``store``.
        model: Folder of the model.
        seed: First seed.
    """
    from rich.progress import track

    planned = {
        folder / "updates" / f"{cell.name}-{seed + number}.json": (cell, seed + number)
        for cell in cells(folder / "drawn")
        if cell.drawn
        for number in range(SEEDS if cell.synthetic is not None else 1)
    }
    missing = [path for path in planned if not path.exists()]
    if missing:
        console.print(
            f"{len(missing)} updates of {EPOCHS} epochs: LoRA on 5 real and further pictures of each concept; then "
            "test pictures are asked about, with the two names in both orders, and the likelier one is the answer.",
            markup=False,
        )
    for path in track(missing, "updates", console=console, disable=not missing):
        cell, number = planned[path]
        write_whole(path, json.dumps(update(cell, folder, model, support_seed=seed, seed=number), indent=1) + "\n")
    results: dict[tuple[str, str, int | None], list[dict[str, float]]] = {}
    for path, (cell, _) in planned.items():
        key = (cell.method, cell.feature, cell.synthetic)
        results.setdefault(key, []).append(json.loads(path.read_text(encoding="utf-8")))
    return [_row(*key, results=numbers) for key, numbers in results.items()]


def update(cell: Cell, folder: Path, model: Path, *, support_seed: int, seed: int) -> dict[str, float]:
    """Update a model as a cell of the table says, and return its numbers on test pictures.

    Args:
        cell: Method and amount.
        folder: Folder of the run.
        model: Folder of the model, which stays as it is.
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
        console: Console.
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


def _row(method: str, feature: str, synthetic: int | None, *, results: list[dict[str, float]]) -> dict[str, Any]:
    from lit_modules.metrics.few_shot import seed_statistics

    numbers = seed_statistics(results)
    columns = {"accuracy": "acc_macro", "lower": "acc_macro_lower", "upper": "acc_macro_upper"}
    columns |= {"target": "acc_target", "confusable": "acc_confusable"}
    columns |= {name: name for name in ("invalid", "position_bias")}
    return {
        "method": method,
        "feature": feature,
        "real": 0 if synthetic is None else 5,
        "synthetic": synthetic or 0,
        "std": numbers["acc_macro"]["std"] if len(results) > 1 else None,
        **{column: numbers[name]["mean"] for column, name in columns.items()},
        "seeds": len(results),
    }


@contextmanager
def _quiet() -> Iterator[None]:
    """Silence Lightning and transformers in many small runs."""
    from transformers.utils import logging as transformers_logging

    bars: Any = transformers_logging
    shown, level = bars.is_progress_bar_enabled(), logging.root.manager.disable
    try:
        logging.disable(logging.WARNING)
        bars.disable_progress_bar()
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            yield
    finally:
        logging.disable(level)
        if shown:
            bars.enable_progress_bar()
