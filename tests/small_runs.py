"""Small runs for the tests of callbacks and datamodules: a quiet trainer, one weight to train, loggers to look into."""

from pathlib import Path
from typing import Any

import torch
from lightning.pytorch import Callback, LightningModule, Trainer
from lightning.pytorch.loggers import CSVLogger
from torch.utils.data import DataLoader, Dataset


def quiet_trainer(folder: Path, *callbacks: Callback, **options: Any) -> Trainer:
    """Make a trainer of one process on the CPU that writes and prints nothing by itself."""
    silent = dict.fromkeys(("logger", "enable_checkpointing", "enable_progress_bar", "enable_model_summary"), False)
    settings: dict[str, Any] = {"devices": 1, "max_epochs": 1, "num_sanity_val_steps": 0, **silent}
    settings |= {"callbacks": list(callbacks), **options}
    return Trainer(accelerator="cpu", default_root_dir=folder, **settings)


def zeros(count: int = 2) -> Any:
    """Return a loader of numbers, one a batch."""
    return DataLoader(torch.zeros(count, 1))  # type: ignore[arg-type]


class OneWeight(LightningModule):
    """Trains one linear layer on the numbers of a batch."""

    def __init__(self) -> None:
        super().__init__()
        self.layer = torch.nn.Linear(1, 1)

    def training_step(self, batch: Any, batch_idx: int) -> Any:
        return self.layer(batch["x"] if isinstance(batch, dict) else batch).mean()

    def validation_step(self, batch: Any, batch_idx: int) -> None: ...

    def test_step(self, batch: Any, batch_idx: int) -> None: ...

    def configure_optimizers(self) -> torch.optim.Optimizer:
        return torch.optim.SGD(self.parameters(), lr=0.1)


class Tables(CSVLogger):
    """A logger that takes tables and pictures, as W&B's, and keeps them."""

    def __init__(self, folder: Path) -> None:
        super().__init__(folder)
        self.tables: list[tuple[str, list[str], list[list[Any]]]] = []
        self.images: list[tuple[str, list[Any], dict[str, Any]]] = []

    def log_table(self, key: str, columns: list[str], data: list[list[Any]]) -> None:
        self.tables.append((key, columns, data))

    def log_image(self, key: str, images: list[Any], **more: Any) -> None:
        self.images.append((key, images, more))


class Indices(Dataset[dict[str, Any]]):
    """Batches that name the rows they were made of."""

    def __getitem__(self, indices: tuple[Any, ...]) -> dict[str, Any]:
        return {"x": torch.ones(len(indices), 1), "id": [str(index) for index in indices]}


class Recorder(OneWeight):
    """Keeps the names of the rows of each training batch."""

    def __init__(self) -> None:
        super().__init__()
        self.seen: list[list[str]] = []

    def training_step(self, batch: Any, batch_idx: int) -> Any:
        self.seen.append(batch["id"])
        return super().training_step(batch, batch_idx)


def record(
    folder: Path, data: Any, validation: Any = None, resume: Path | None = None, **options: Any
) -> tuple[list[list[str]], Path]:
    """Train a :class:`Recorder` for a while, save where it stops, and return what it has seen and the checkpoint."""
    module, trainer = Recorder(), quiet_trainer(folder, **options)
    trainer.fit(module, data, validation, ckpt_path=resume, weights_only=True)
    path = folder / f"{trainer.global_step}.ckpt"
    trainer.save_checkpoint(path)
    return module.seen, path
