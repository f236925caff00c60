from pathlib import Path
from typing import Any

import pytest
from lightning.pytorch.loggers import CSVLogger, WandbLogger

from callbacks import SampleTable
from tests.small_runs import OneWeight, Tables, quiet_trainer, zeros


class Parrot(OneWeight):
    def generate(self, prompt: str, max_new_tokens: int) -> str:
        return prompt[:max_new_tokens]


def fit(folder: Path, logger: Any, module: Any = None) -> None:
    table = SampleTable(("one", "three"), max_new_tokens=4)
    trainer = quiet_trainer(folder, table, logger=logger, max_epochs=2, num_sanity_val_steps=1)
    trainer.fit(module or Parrot(), zeros(), zeros())


def test_one_table_for_each_validation(tmp_path: Path) -> None:
    logger = Tables(tmp_path)
    fit(tmp_path, [CSVLogger(tmp_path), logger])
    table = ("val/samples", ["prompt", "answer"], [["one", "one"], ["three", "thre"]])
    assert logger.tables == [table, table]  # none from the sanity check


def test_wandb_takes_the_table(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("WANDB_MODE", "disabled")
    fit(tmp_path, WandbLogger(save_dir=tmp_path))


def test_what_is_missing_is_named(tmp_path: Path) -> None:
    with pytest.raises(TypeError, match=r"asks for OneWeight\.generate\(\), which is missing"):
        fit(tmp_path, Tables(tmp_path), OneWeight())
    with pytest.warns(UserWarning, match="no logger of the trainer has log_table"):
        fit(tmp_path, CSVLogger(tmp_path))
    with pytest.raises(ValueError, match="at least one prompt"):
        SampleTable(())
    with pytest.raises(ValueError, match="max_new_tokens must be at least 1, got 0"):
        SampleTable(("one",), max_new_tokens=0)
