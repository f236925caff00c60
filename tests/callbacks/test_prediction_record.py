import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from lightning.pytorch import LightningModule
from PIL import Image
from torch import Tensor
from torch.utils.data import DataLoader

from callbacks import PredictionRecord
from tests.small_runs import Tables, quiet_trainer


class Module(LightningModule):
    def __init__(self, answer: Callable[[Tensor], Any]) -> None:
        super().__init__()
        self.answer = answer

    def predict_step(self, batch: Tensor) -> Any:
        return self.answer(batch)


def predict(folder: Path, answer: Any, table_rows: int = 200, **options: Any) -> None:
    trainer = quiet_trainer(folder, PredictionRecord(str(folder), table_rows), **options)
    trainer.predict(Module(answer), DataLoader([1.0, 2.0, 3.0], batch_size=2))  # type: ignore[arg-type]


def lines(path: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()]


def everything(batch: Tensor) -> dict[str, Any]:
    return {
        "text": [f"{value:.0f} café" for value in batch.tolist()],
        "score": torch.stack([batch, batch / 0 - batch / 0], 1),
        "place": batch.long(),
        "image": (batch / 4)[:, None, None, None].expand(-1, 3, 4, 5),
        "drawn": (batch / 4)[:, None, None, None, None].expand(-1, 2, 3, 4, 5),
        "path": [Path("x") for _ in batch],
    }


def test_rows_become_lines_and_pictures_files_and_the_first_go_to_loggers(tmp_path: Path) -> None:
    logger = Tables(tmp_path)
    predict(tmp_path, everything, 2, logger=logger)
    rows = lines(tmp_path / "predictions.jsonl")
    assert [row["text"] for row in rows] == ["1 café", "2 café", "3 café"]
    drawn = ["predictions/00001-drawn-0.png", "predictions/00001-drawn-1.png"]
    image = "predictions/00001-image.png"
    row = {"text": "2 café", "score": [2.0, None], "place": 2, "image": image, "drawn": drawn, "path": "x"}
    assert rows[1] == row
    with Image.open(tmp_path / rows[0]["image"]) as picture:
        assert (picture.size, picture.getpixel((0, 0))) == ((5, 4), (64, 64, 64))
    assert len(list((tmp_path / "predictions").iterdir())) == 9
    assert not list(tmp_path.glob("*.part"))
    ((key, columns, data),) = logger.tables
    assert (key, len(data)) == ("predict/predictions", 2)
    sent = dict(zip(columns, data[1], strict=True))
    assert sent == {**row, "score": "[2.0, null]", "drawn": json.dumps(drawn)}
    ((key, images, more),) = logger.images
    assert (key, len(images)) == ("predict/pictures", 6)
    assert [Path(image).name for image in images if Path(image).is_file()] == more["caption"]
    none = Tables(tmp_path)
    predict(tmp_path, everything, 0, logger=none)
    assert (none.tables, none.images) == ([], [])


def test_what_is_there_is_kept_and_so_are_the_lines_before_an_error(tmp_path: Path) -> None:
    def fail(batch: Tensor) -> Tensor:
        if len(batch) == 1:
            raise RuntimeError("the last batch")
        return batch

    with pytest.raises(RuntimeError, match="the last batch"):
        predict(tmp_path, fail)
    for _ in range(2):
        predict(tmp_path, lambda batch: batch)
    assert len(lines(tmp_path / "predictions.jsonl.part")) == 2
    for name in ("predictions-1.jsonl", "predictions-2.jsonl"):
        assert lines(tmp_path / name) == [{"prediction": value} for value in (1.0, 2.0, 3.0)]


def test_a_trial_run_writes_nothing(tmp_path: Path) -> None:
    predict(tmp_path, lambda batch: batch, fast_dev_run=1)
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize(
    ("answer", "got"),
    [
        (lambda batch: None, "prediction of type NoneType"),
        (lambda batch: {"one": [1], "two": [1, 2]}, r"\[1, 2\] rows"),
    ],
)
def test_what_is_no_row_is_said(tmp_path: Path, answer: Any, got: str) -> None:
    message = f"asks Module.predict_step for lists or tensors with a value for each row, by name, got {got}"
    with pytest.raises(TypeError, match=message):
        predict(tmp_path, answer)
