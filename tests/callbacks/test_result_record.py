import json
from pathlib import Path
from typing import Any

import pytest
import torch
from lightning.pytorch import LightningModule, Trainer
from lightning.pytorch.loggers import CSVLogger, WandbLogger
from torch.utils.data import DataLoader

from callbacks import ForgetStopping, ResultRecord


class Examined(LightningModule):
    record: dict[str, Any] = {"aggregate-score": 0.706, "terms": [None, 1.0]}  # noqa: RUF012

    def __init__(self) -> None:
        super().__init__()
        self.layer = torch.nn.Linear(1, 1)

    def training_step(self, batch: Any, batch_idx: int) -> Any:
        return self.layer(batch).mean()

    def validation_step(self, batch: Any, batch_idx: int) -> None: ...

    def test_step(self, batch: Any, batch_idx: int) -> None: ...

    def results(self) -> dict[str, Any]:
        return self.record

    def configure_optimizers(self) -> Any:
        return torch.optim.SGD(self.parameters(), lr=0.1)


DATA: Any = DataLoader(torch.zeros(2, 1))


def trainer(folder: Path, callback: ResultRecord, logger: Any = False) -> Trainer:
    return Trainer(
        accelerator="cpu",
        devices=1,
        max_epochs=1,
        callbacks=[callback],
        logger=logger,
        enable_checkpointing=False,
        enable_progress_bar=False,
        enable_model_summary=False,
        default_root_dir=folder,
    )


def read(path: Path) -> Any:
    return json.loads(path.read_text(encoding="utf-8"))


def test_writes_after_test_alone(tmp_path: Path) -> None:
    run = trainer(tmp_path, ResultRecord())
    run.fit(Examined(), DATA, DATA)
    run.validate(Examined(), DATA, verbose=False)
    assert not list(tmp_path.iterdir())
    run.test(Examined(), DATA, verbose=False)
    assert [path.name for path in tmp_path.iterdir()] == ["results.json"]
    assert read(tmp_path / "results.json") == Examined.record


class Validated(Examined):
    results = None  # type: ignore[assignment]

    def validation_step(self, batch: Any, batch_idx: int) -> None:
        self.log_dict({"val/forget_loss": 6.5, "val/retain_loss": float("inf")})


def test_a_validation_is_kept_too(tmp_path: Path) -> None:
    run = trainer(tmp_path, ResultRecord())
    run.fit(Validated(), DATA, DATA)
    assert not list(tmp_path.iterdir())
    run.validate(Validated(), DATA, verbose=False)
    assert read(tmp_path / "validation.json") == {"val/forget_loss": 6.5, "val/retain_loss": None}
    assert ForgetStopping(level=str(tmp_path / "validation.json")).level == 6.5


def test_the_folder_of_the_run(tmp_path: Path) -> None:
    run = trainer(tmp_path, ResultRecord(), CSVLogger(tmp_path, name="logs"))
    run.test(Examined(), DATA, verbose=False)
    assert read(tmp_path / "logs" / "version_0" / "results.json") == Examined.record
    given = trainer(tmp_path, ResultRecord(str(tmp_path / "mine" / "deep"), "numbers.json"))
    given.test(Examined(), DATA, verbose=False)
    assert read(tmp_path / "mine" / "deep" / "numbers.json") == Examined.record


def test_runs_of_wandb_do_not_share_a_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("WANDB_MODE", "disabled")
    logger = WandbLogger(project="unlearning", save_dir=tmp_path, version="run1")
    trainer(tmp_path, ResultRecord(), logger).test(Examined(), DATA, verbose=False)
    assert len(list(tmp_path.glob("*/run1/results.json"))) == 1


def test_another_record_is_kept(tmp_path: Path) -> None:
    module = Examined()
    for score in (0.1, 0.2, 0.2, 0.3, 0.1):
        module.record = {"aggregate-score": score}
        trainer(tmp_path, ResultRecord()).test(module, DATA, verbose=False)
    scores = {path.name: read(path)["aggregate-score"] for path in tmp_path.iterdir()}
    assert scores == {"results.json": 0.1, "results-1.json": 0.2, "results-2.json": 0.3}


class Mute(LightningModule):
    def test_step(self, batch: Any, batch_idx: int) -> None: ...


def test_bad_use_is_refused(tmp_path: Path) -> None:
    with pytest.raises(TypeError, match=r"asks for Mute\.results\(\), which is missing"):
        trainer(tmp_path, ResultRecord()).test(Mute(), DATA, verbose=False)
    for name in ("", "a/b.json", ".."):
        with pytest.raises(ValueError, match="filename must be a name without folders"):
            ResultRecord(filename=name)
