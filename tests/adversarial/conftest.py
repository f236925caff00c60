"""A tiny classifier, images of 8 x 8 that it can learn, and a quiet trainer."""

import os
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import pytest
import torch
from lightning.pytorch import Callback, LightningModule, Trainer
from torch import Tensor, nn
from torch.utils.data import DataLoader, Dataset

from lit_modules.attacks.engine.base import AttackResult
from lit_modules.attacks.pgd import LinfPGD


class Images(Dataset[dict[str, Tensor]]):
    """Three classes, each a bright band on noise."""

    def __init__(self, count: int, seed: int = 0, side: int = 8) -> None:
        random = torch.Generator().manual_seed(seed)
        self.label = torch.arange(count) % 3
        self.image = torch.rand(count, 1, side, side, generator=random) * 0.4
        for row, label in enumerate(self.label.tolist()):
            self.image[row, :, 3 * label : 3 * label + 2] += 0.5

    def __len__(self) -> int:
        return len(self.label)

    def __getitem__(self, index: int) -> dict[str, Tensor]:
        return {"image": self.image[index], "label": self.label[index], "index": torch.tensor(index)}


class Workbench:
    def __init__(self, folder: Path) -> None:
        self.folder = folder

    @staticmethod
    def network(seed: int = 0, *, norm: bool = False, dropout: float = 0.0) -> nn.Sequential:
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(seed)
            middle = [nn.BatchNorm1d(16)] if norm else []
            return nn.Sequential(
                nn.Flatten(), nn.Linear(64, 16), *middle, nn.ReLU(), nn.Dropout(dropout), nn.Linear(16, 3)
            )

    def trained(self) -> nn.Sequential:
        """Right on most of ``batch(24)`` and robust on some, in evaluation mode."""
        network, batch = self.network(), self.batch(24)
        optimizer = torch.optim.Adam(network.parameters(), lr=0.02)
        for _ in range(3):
            optimizer.zero_grad()
            nn.functional.cross_entropy(network(batch["image"]), batch["label"]).backward()
            optimizer.step()
        return network.eval()

    @staticmethod
    def attack(eps: float = 0.1, **arguments: Any) -> LinfPGD:
        return LinfPGD(**({"eps": eps, "steps": 3, "step_size": eps / 2, "keep": "last"} | arguments))

    @staticmethod
    def loader(count: int = 24, batch_size: int = 8, seed: int = 0) -> DataLoader[dict[str, Tensor]]:
        # with a generator of its own the loader draws nothing from the global one, as our datamodules
        random = torch.Generator().manual_seed(0)
        return DataLoader(Images(count, seed), batch_size=batch_size, generator=random)

    @staticmethod
    def batch(count: int = 8, seed: int = 0) -> dict[str, Tensor]:
        data = Images(count, seed)
        return {"image": data.image, "label": data.label, "index": torch.arange(count)}

    def trainer(self, callbacks: Sequence[Callback] = (), **arguments: Any) -> Trainer:
        settings: dict[str, Any] = {"accelerator": "cpu", "devices": 1, "max_epochs": 1, "num_sanity_val_steps": 0}
        names = ("logger", "enable_checkpointing", "enable_progress_bar", "enable_model_summary")
        settings |= {"default_root_dir": self.folder, **dict.fromkeys(names, False)}
        return Trainer(callbacks=list(callbacks), **(settings | arguments))

    def fit(self, module: LightningModule, callbacks: Any = (), data: Any = None, **arguments: Any) -> Trainer:
        path = arguments.pop("ckpt_path", None)
        trainer = self.trainer(callbacks, **arguments)
        trainer.fit(module, data or self.loader(), ckpt_path=path)
        return trainer

    @staticmethod
    def vector(network: nn.Module) -> Tensor:
        return torch.cat([parameter.detach().flatten() for parameter in network.parameters()])


@pytest.fixture
def bench(tmp_path: Path) -> Workbench:
    return Workbench(tmp_path)


class Noisy(nn.Module):
    """Answers at random: from a global generator, one of its own, or from where nobody sees it."""

    def __init__(self, net: nn.Module, source: str = "global") -> None:
        super().__init__()
        self.net, self.source = net, source
        self.own = torch.Generator() if source == "own" else None

    def forward(self, images: Tensor) -> Tensor:
        if self.source == "unseen":
            return self.net(images) + torch.frombuffer(bytearray(os.urandom(4)), dtype=torch.uint8)[:3] * 0.001
        return self.net(images) + 1e-7 * torch.rand(len(images), 3, generator=self.own)


@pytest.fixture
def attacked(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """Numbers of samples that PGD was called with."""
    sizes: list[int] = []
    run = LinfPGD.run

    def watched(self: LinfPGD, model: Any, x: Any, y: Any = None, *, seed: Any = None) -> AttackResult:
        sizes.append(len(x))
        return run(self, model, x, y, seed=seed)

    monkeypatch.setattr(LinfPGD, "run", watched)
    return sizes


@pytest.fixture
def sgd() -> Callable[[Any], torch.optim.Optimizer]:
    return lambda parameters: torch.optim.SGD(parameters, lr=0.1)
