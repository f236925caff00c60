import json
from pathlib import Path
from typing import Any

import pytest
import torch
from lightning.pytorch import LightningModule, Trainer
from PIL import Image
from torch import Tensor
from torch.utils.data import DataLoader

from callbacks import PredictionRecord


class Module(LightningModule):
    """Answers each number with what it was given."""

    def __init__(self, answer: Any) -> None:
        super().__init__()
        self.answer = answer

    def predict_step(self, batch: Tensor) -> Any:
        return self.answer(batch)


def predict(folder: Path, answer: Any, **arguments: Any) -> None:
    quiet: dict[str, Any] = {"logger": False, "enable_progress_bar": False, "enable_model_summary": False}
    trainer = Trainer(
        accelerator="cpu",
        callbacks=[PredictionRecord()],
        default_root_dir=folder,
        enable_checkpointing=False,
        **quiet,
        **arguments,
    )
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


def test_rows_become_lines_and_pictures_files(tmp_path: Path) -> None:
    predict(tmp_path, everything)
    rows = lines(tmp_path / "predictions.jsonl")
    assert [row["text"] for row in rows] == ["1 café", "2 café", "3 café"]
    assert rows[2] == {
        "text": "3 café",
        "score": [3.0, None],
        "place": 3,
        "image": "predictions/00002-image.png",
        "drawn": ["predictions/00002-drawn-0.png", "predictions/00002-drawn-1.png"],
        "path": "x",
    }
    with Image.open(tmp_path / rows[0]["image"]) as image:
        assert (image.size, image.getpixel((0, 0))) == ((5, 4), (64, 64, 64))
    assert len(list((tmp_path / "predictions").iterdir())) == 9
    assert not list(tmp_path.glob("*.part"))


def test_what_is_there_is_kept(tmp_path: Path) -> None:
    for _ in range(2):
        predict(tmp_path, lambda batch: batch)
    assert lines(tmp_path / "predictions.jsonl") == [{"prediction": value} for value in (1.0, 2.0, 3.0)]
    assert lines(tmp_path / "predictions-1.jsonl") == lines(tmp_path / "predictions.jsonl")


def test_lines_before_an_error_are_kept(tmp_path: Path) -> None:
    def fail(batch: Tensor) -> Tensor:
        if len(batch) == 1:
            raise RuntimeError("the last batch")
        return batch

    with pytest.raises(RuntimeError, match="the last batch"):
        predict(tmp_path, fail)
    assert len(lines(tmp_path / "predictions.jsonl.part")) == 2
    predict(tmp_path, lambda batch: batch)
    assert len(lines(tmp_path / "predictions.jsonl.part")) == 2
    assert len(lines(tmp_path / "predictions-1.jsonl")) == 3


def test_a_trial_run_writes_nothing(tmp_path: Path) -> None:
    predict(tmp_path, lambda batch: batch, fast_dev_run=1)
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize(
    ("answer", "got"),
    [
        (lambda batch: None, "prediction of type NoneType"),
        (lambda batch: {"text": "all"}, "text of type str"),
        (lambda batch: {"one": [1], "two": [1, 2]}, r"\[1, 2\] rows"),
    ],
)
def test_what_is_no_row_is_said(tmp_path: Path, answer: Any, got: str) -> None:
    message = f"asks Module.predict_step for lists or tensors with a value for each row, by name, got {got}"
    with pytest.raises(TypeError, match=message):
        predict(tmp_path, answer)
