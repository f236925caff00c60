import json
from pathlib import Path
from typing import Any

import pytest
import torch
from lightning.pytorch import LightningModule, Trainer
from lightning.pytorch.loggers import CSVLogger, Logger, WandbLogger
from PIL import Image
from torch.utils.data import DataLoader

from callbacks import RobustnessRecord

DATA: Any = DataLoader(torch.zeros(2, 1))


class Attacked(LightningModule):
    record: dict[str, Any] = {"samples": 2, "worst_case": None}  # noqa: RUF012

    def test_step(self, batch: Any, batch_idx: int) -> None: ...

    def results(self) -> dict[str, Any]:
        return self.record

    def results_table(self) -> str:
        return f"| samples |\n| --- |\n| {self.record['samples']} |\n"

    def results_rows(self) -> list[list[str]]:
        return [["", "accuracy"], ["clean", "98.00 %"], ["pgd", "51.00 %"]]

    def draw_results(self, path: Path) -> None:
        path.write_bytes(b"picture")


class Drawn(Attacked):
    """Draws a picture that can be read."""

    def draw_results(self, path: Path) -> None:
        Image.new("RGB", (6, 4), (255, 0, 0)).save(path)


class Fake(Logger):
    """Takes tables and pictures, as W&B's logger does."""

    name, version, experiment = "fake", 0, None

    def __init__(self) -> None:
        super().__init__()
        self.tables: dict[str, Any] = {}
        self.pictures: dict[str, Any] = {}

    def log_hyperparams(self, *arguments: Any, **more: Any) -> None: ...

    def log_metrics(self, *arguments: Any, **more: Any) -> None: ...

    def log_table(self, key: str, columns: list[str], data: list[list[str]]) -> None:
        self.tables[key] = [columns, *data]

    def log_image(self, key: str, images: list[str]) -> None:
        self.pictures[key] = [Path(image).read_bytes() for image in images]


def run(folder: Path, callback: RobustnessRecord, module: Any = None, logger: Any = False) -> None:
    trainer = Trainer(
        accelerator="cpu",
        devices=1,
        callbacks=[callback],
        logger=logger,
        enable_progress_bar=False,
        default_root_dir=folder,
    )
    trainer.test(module or Attacked(), DATA, verbose=False)


def test_writes_record_table_and_picture(tmp_path: Path) -> None:
    run(tmp_path, RobustnessRecord())
    assert json.loads((tmp_path / "robustness.json").read_text(encoding="utf-8")) == Attacked.record
    assert (tmp_path / "robustness.md").read_text(encoding="utf-8").endswith("| 2 |\n")
    assert (tmp_path / "robustness.png").read_bytes() == b"picture"


def test_the_folder_of_the_run_or_one_given(tmp_path: Path) -> None:
    run(tmp_path, RobustnessRecord(), logger=CSVLogger(tmp_path, name="logs"))
    assert (tmp_path / "logs" / "version_0" / "robustness.json").is_file()
    run(tmp_path, RobustnessRecord(str(tmp_path / "mine"), "attacked.json"))
    assert {path.name for path in (tmp_path / "mine").iterdir()} == {"attacked.json", "attacked.md", "attacked.png"}


def test_another_record_is_kept_with_its_table_and_picture(tmp_path: Path) -> None:
    module = Attacked()
    for samples in (1, 2, 1):
        module.record = {"samples": samples}
        run(tmp_path, RobustnessRecord(), module)
    found = {path.name: path.read_text(encoding="utf-8") for path in tmp_path.iterdir() if path.suffix != ".png"}
    assert sorted(found) == ["robustness-1.json", "robustness-1.md", "robustness.json", "robustness.md"]
    assert "| 1 |" in found["robustness.md"]
    assert "| 2 |" in found["robustness-1.md"]


def test_table_and_picture_go_to_every_logger_that_takes_them(tmp_path: Path) -> None:
    fakes = Fake(), Fake()
    run(tmp_path, RobustnessRecord(), logger=[fakes[0], CSVLogger(tmp_path), fakes[1]])
    for fake in fakes:
        assert fake.tables == {"test/robustness": [["attack", "accuracy"], ["clean", "98.00 %"], ["pgd", "51.00 %"]]}
        assert fake.pictures == {"test/examples": [b"picture"]}


def test_tensorboard_shows_table_and_picture(tmp_path: Path) -> None:
    class Board:
        def __init__(self) -> None:
            self.seen: dict[str, Any] = {}

        def add_text(self, key: str, text: str, step: int) -> None:
            self.seen[key] = text

        def add_image(self, key: str, image: torch.Tensor, step: int) -> None:
            self.seen[key] = image

    class Boarded(Fake):
        experiment = Board()
        log_table = log_image = property()  # type: ignore[assignment]

    logger = Boarded()
    run(tmp_path, RobustnessRecord(), Drawn(), logger)
    assert logger.experiment.seen["test/robustness"] == Attacked().results_table()
    assert logger.experiment.seen["test/examples"].shape == (3, 4, 6)


@pytest.mark.usefixtures("wandb_offline")
@pytest.mark.slow
def test_wandb_gets_table_and_picture(tmp_path: Path) -> None:
    logger = WandbLogger(project="robust", save_dir=str(tmp_path), offline=True)
    run(tmp_path, RobustnessRecord(str(tmp_path / "mine")), Drawn(), logger)
    logger.experiment.finish()
    (table,) = tmp_path.glob("wandb/offline-run-*/files/media/table/test/robustness*.table.json")
    found = json.loads(table.read_text(encoding="utf-8"))
    assert found["columns"] == ["attack", "accuracy"]
    assert found["data"] == [["clean", "98.00 %"], ["pgd", "51.00 %"]]
    (picture,) = tmp_path.glob("wandb/offline-run-*/files/media/images/test/examples*.png")
    with Image.open(picture) as image:
        assert image.size == (6, 4)


@pytest.mark.parametrize("missing", ["results", "results_table", "results_rows", "draw_results"])
def test_a_module_without_what_is_asked_for_is_refused(missing: str, tmp_path: Path) -> None:
    mute = type("Mute", (Attacked,), {missing: None})()
    with pytest.raises(TypeError, match=rf"asks for Mute\.{missing}\(\), which is missing"):
        run(tmp_path, RobustnessRecord(), mute)


@pytest.mark.parametrize("name", ["", "a/b.json", "robustness.txt", ".."])
def test_bad_names_are_refused(name: str) -> None:
    with pytest.raises(ValueError, match=r"filename must be a name without folders that ends in \.json"):
        RobustnessRecord(filename=name)
