from pathlib import Path
from typing import Any

import pytest
import torch
from lightning.pytorch import LightningModule, Trainer
from lightning.pytorch.loggers import CSVLogger, WandbLogger
from torch.utils.data import DataLoader

from callbacks import SampleTable


class Parrot(LightningModule):
    def __init__(self) -> None:
        super().__init__()
        self.layer = torch.nn.Linear(1, 1)

    def training_step(self, batch: Any, batch_idx: int) -> Any:
        return self.layer(batch).mean()

    def validation_step(self, batch: Any, batch_idx: int) -> None: ...

    def generate(self, prompt: str, max_new_tokens: int) -> str:
        return prompt[:max_new_tokens]

    def configure_optimizers(self) -> Any:
        return torch.optim.SGD(self.parameters(), lr=0.1)


class Mute(Parrot):
    generate = None  # type: ignore[assignment]


class Tables(CSVLogger):
    """A logger that takes tables."""

    def __init__(self, folder: Path) -> None:
        super().__init__(folder)
        self.tables: list[tuple[str, list[str], list[list[str]]]] = []

    def log_table(self, key: str, columns: list[str], data: list[list[str]]) -> None:
        self.tables.append((key, columns, data))


def fit(module: LightningModule, folder: Path, logger: Any) -> None:
    data: Any = DataLoader(torch.zeros(2, 1))
    trainer = Trainer(
        accelerator="cpu",
        devices=1,
        max_epochs=2,
        callbacks=[SampleTable(("one", "three"), max_new_tokens=4)],
        logger=logger,
        enable_checkpointing=False,
        enable_progress_bar=False,
        enable_model_summary=False,
        default_root_dir=folder,
    )
    trainer.fit(module, data, data)


def test_one_table_for_each_validation(tmp_path: Path) -> None:
    logger = Tables(tmp_path)
    fit(Parrot(), tmp_path, [CSVLogger(tmp_path), logger])
    table = ("val/samples", ["prompt", "answer"], [["one", "one"], ["three", "thre"]])
    assert logger.tables == [table, table]  # none from the sanity check


def test_wandb_takes_the_table(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("WANDB_MODE", "disabled")
    fit(Parrot(), tmp_path, WandbLogger(save_dir=tmp_path))


def test_what_is_missing_is_named(tmp_path: Path) -> None:
    with pytest.raises(TypeError, match=r"asks for Mute\.generate\(\), which is missing"):
        fit(Mute(), tmp_path, Tables(tmp_path))
    with pytest.warns(UserWarning, match="no logger of the trainer has log_table"):
        fit(Parrot(), tmp_path, CSVLogger(tmp_path))
    with pytest.raises(ValueError, match="at least one prompt"):
        SampleTable(())
    with pytest.raises(ValueError, match="max_new_tokens must be at least 1, got 0"):
        SampleTable(("one",), max_new_tokens=0)
