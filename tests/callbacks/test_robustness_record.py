import json
from pathlib import Path
from typing import Any

import pytest
import torch
from lightning.pytorch.loggers import CSVLogger, WandbLogger
from PIL import Image

from callbacks import RobustnessRecord
from tests.small_runs import OneWeight, Tables, quiet_trainer, zeros

ROWS = [["clean", "98.00 %"], ["pgd", "51.00 %"]]


class Attacked(OneWeight):
    record: dict[str, Any] = {"samples": 2, "worst_case": None}  # noqa: RUF012

    def results(self) -> dict[str, Any]:
        return self.record

    def results_table(self) -> str:
        return f"| samples |\n| --- |\n| {self.record['samples']} |\n"

    def results_rows(self) -> list[list[str]]:
        return [["", "accuracy"], *ROWS]

    def draw_results(self, path: Path) -> None:
        Image.new("RGB", (6, 4), (255, 0, 0)).save(path)


def run(folder: Path, callback: RobustnessRecord, module: Any = None, logger: Any = False) -> None:
    quiet_trainer(folder, callback, logger=logger).test(module or Attacked(), zeros(), verbose=False)


def test_record_table_and_picture_are_written_and_another_record_is_kept(tmp_path: Path) -> None:
    module = Attacked()
    for samples in (1, 2, 1):
        module.record = {"samples": samples}
        run(tmp_path, RobustnessRecord(), module)
    stems = ("robustness", "robustness-1")
    assert {path.name for path in tmp_path.iterdir()} == {f"{s}.{end}" for s in stems for end in ("json", "md", "png")}
    for samples, stem in enumerate(stems, 1):
        assert json.loads((tmp_path / f"{stem}.json").read_text(encoding="utf-8")) == {"samples": samples}
        assert (tmp_path / f"{stem}.md").read_text(encoding="utf-8").endswith(f"| {samples} |\n")
        with Image.open(tmp_path / f"{stem}.png") as image:
            assert image.size == (6, 4)


def test_table_and_picture_go_to_every_logger_that_takes_them(tmp_path: Path) -> None:
    class Board(CSVLogger):
        """Its experiment takes texts and images, as TensorBoard's."""

        seen: dict[str, Any] = {}  # noqa: RUF012

        @property
        def experiment(self) -> Any:
            return self

        def add_text(self, key: str, text: str, step: int) -> None:
            self.seen[key] = text

        def add_image(self, key: str, image: torch.Tensor, step: int) -> None:
            self.seen[key] = image

        def log_metrics(self, *_: Any, **__: Any) -> None: ...

        def save(self) -> None: ...

    tables, board = (Tables(tmp_path), Tables(tmp_path)), Board(tmp_path)
    run(tmp_path, RobustnessRecord(str(tmp_path / "mine"), "x.json"), logger=[tables[0], board, tables[1]])
    for logger in tables:
        assert logger.tables == [("test/robustness", ["attack", "accuracy"], ROWS)]
        assert logger.images == [("test/examples", [str(tmp_path / "mine" / "x.png")], {})]
    assert board.seen["test/robustness"] == Attacked().results_table()
    assert board.seen["test/examples"].shape == (3, 4, 6)


@pytest.mark.usefixtures("wandb_offline")
@pytest.mark.slow
def test_wandb_gets_table_and_picture(tmp_path: Path) -> None:
    logger = WandbLogger(project="robust", save_dir=str(tmp_path), offline=True)
    run(tmp_path, RobustnessRecord(str(tmp_path / "mine")), logger=logger)
    logger.experiment.finish()
    (table,) = tmp_path.glob("wandb/offline-run-*/files/media/table/test/robustness*.table.json")
    content = json.loads(table.read_text(encoding="utf-8"))
    assert (content["columns"], content["data"]) == (["attack", "accuracy"], ROWS)
    (picture,) = tmp_path.glob("wandb/offline-run-*/files/media/images/test/examples*.png")
    with Image.open(picture) as image:
        assert image.size == (6, 4)


def test_bad_use_is_refused(tmp_path: Path) -> None:
    for missing in ("results", "results_table", "results_rows", "draw_results"):
        mute = type("Mute", (Attacked,), {missing: None})()
        with pytest.raises(TypeError, match=rf"asks for Mute\.{missing}\(\), which is missing"):
            run(tmp_path, RobustnessRecord(), mute)
    for name in ("a/b.json", "robustness.txt"):
        with pytest.raises(ValueError, match=r"filename must be a name without folders that ends in \.json"):
            RobustnessRecord(filename=name)
