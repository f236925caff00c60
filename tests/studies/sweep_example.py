"""A module and data that train in no time, for sweeps of the tests: a level that rises by ``rate`` each step."""

import time
from pathlib import Path

import torch
from lightning.pytorch import LightningDataModule, LightningModule
from torch import Tensor, nn
from torch.utils.data import DataLoader


class Shift(nn.Module):
    """A variant of the data."""

    def __init__(self, size: float = 0.0, limit: float | None = 100.0) -> None:
        super().__init__()
        self.size = size
        self.limit = limit


class Bare(nn.Module):
    """A variant without arguments."""


class Numbers(LightningDataModule):
    """Four numbers, an epoch of four steps."""

    def __init__(self, variant: nn.Module | None = None) -> None:
        super().__init__()
        self.variant = variant

    def train_dataloader(self) -> DataLoader[Tensor]:
        size = getattr(self.variant, "size", 0.0)
        data: list[Tensor] = [torch.tensor([float(size)])] * 4
        return DataLoader(data, batch_size=1)  # type: ignore[arg-type]

    val_dataloader = test_dataloader = train_dataloader


class Level(LightningModule):
    """The level is ``rate`` times the number of steps, and is logged beside the data."""

    def __init__(self, rate: float = 1.0, pause: float = 0.0, obstacle: str | None = None, noise: float = 0.0) -> None:
        super().__init__()
        self.save_hyperparameters()
        self.level = nn.Parameter(noise * torch.randn(1))
        self.pause = pause
        self.obstacle = obstacle

    def training_step(self, batch: Tensor, batch_idx: int) -> Tensor:
        time.sleep(self.pause)
        if self.obstacle is not None and self.current_epoch == 1 and Path(self.obstacle).exists():
            raise RuntimeError("The obstacle stood in the way.")
        return -self.level.sum()

    def validation_step(self, batch: Tensor, batch_idx: int) -> None:
        self.log("val/level", self.level.sum(), batch_size=1)

    def test_step(self, batch: Tensor, batch_idx: int) -> None:
        self.log_dict({"test/level": self.level.sum(), "test/data_level": batch.sum()}, batch_size=1)

    def configure_optimizers(self) -> torch.optim.Optimizer:
        return torch.optim.SGD(self.parameters(), self.hparams["rate"])
