from pathlib import Path
from typing import Any

import pytest
import torch
from lightning.pytorch import LightningDataModule, LightningModule
from lightning.pytorch.loggers import CSVLogger
from torch.utils.data import DataLoader
from transformers import AutoModelForCausalLM, AutoTokenizer

from callbacks import SavePretrained
from tests.small_runs import OneWeight, quiet_trainer


class Saved(OneWeight):
    def __init__(self, folder: Path) -> None:
        super().__init__()
        self.source = folder
        self.model: Any = AutoModelForCausalLM.from_pretrained(folder)

    def training_step(self, batch: Any, batch_idx: int) -> Any:
        return self.model(input_ids=batch, labels=batch).loss

    def save_pretrained(self, folder: str) -> None:
        self.model.save_pretrained(folder)


class Owner(Saved):
    """Has a tokenizer of its own, by a property."""

    @property
    def tokenizer(self) -> Any:
        return AutoTokenizer.from_pretrained(self.source)


class Loser(Saved):
    @property
    def tokenizer(self) -> Any:
        raise ValueError("No tokenizer lies beside the model.")


class Merging(Saved):
    def save_pretrained(self, folder: str, merge: bool = False) -> None:
        super().save_pretrained(folder)
        self.merged = merge


def tokens() -> Any:
    return DataLoader(torch.ones(2, 4, dtype=torch.int64))  # type: ignore[arg-type]


class Data(LightningDataModule):
    def __init__(self, folder: Path) -> None:
        super().__init__()
        self.tokenizer = AutoTokenizer.from_pretrained(folder)

    def train_dataloader(self) -> Any:
        return tokens()


def fit(module: LightningModule, folder: Path, callback: SavePretrained, data: Any = None, **options: Any) -> None:
    quiet_trainer(folder, callback, **options).fit(module, data or tokens())


@pytest.mark.parametrize("owner", ["datamodule", "module"])
def test_the_folder_loads(tmp_path: Path, tiny_causal_lm: Path, owner: str) -> None:
    module = Saved(tiny_causal_lm) if owner == "datamodule" else Owner(tiny_causal_lm)
    data = Data(tiny_causal_lm) if owner == "datamodule" else None
    fit(module, tmp_path, SavePretrained(), data, logger=CSVLogger(tmp_path, name="logs"))
    folder = tmp_path / "logs" / "version_0" / "pretrained"
    loaded: Any = AutoModelForCausalLM.from_pretrained(folder)
    for name, parameter in module.model.named_parameters():
        assert torch.equal(parameter, loaded.get_parameter(name))
    assert AutoTokenizer.from_pretrained(folder)("a key")["input_ids"]


def test_adapters_are_merged_on_request_and_a_missing_tokenizer_is_told(tmp_path: Path, tiny_causal_lm: Path) -> None:
    module = Merging(tiny_causal_lm)
    for merge in (True, False):
        with pytest.warns(UserWarning, match="has no tokenizer beside it"):
            fit(module, tmp_path, SavePretrained(str(tmp_path / "mine"), merge=merge))
        assert module.merged is merge
    with pytest.warns(UserWarning, match="has no tokenizer beside it: No tokenizer lies beside the model"):
        fit(Loser(tiny_causal_lm), tmp_path, SavePretrained(str(tmp_path / "lost")))
    AutoModelForCausalLM.from_pretrained(tmp_path / "lost")


def test_a_development_run_saves_nothing(tmp_path: Path, tiny_causal_lm: Path) -> None:
    fit(Saved(tiny_causal_lm), tmp_path, SavePretrained(), fast_dev_run=True)
    assert not list(tmp_path.iterdir())


def test_what_the_module_lacks_is_named(tmp_path: Path, tiny_causal_lm: Path) -> None:
    with pytest.raises(TypeError, match=r"asks Saved\.save_pretrained for an argument merge"):
        fit(Saved(tiny_causal_lm), tmp_path, SavePretrained(merge=True))
    with pytest.raises(TypeError, match=r"asks for OneWeight\.save_pretrained\(folder\), which is missing"):
        fit(OneWeight(), tmp_path, SavePretrained())
