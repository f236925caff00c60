import json
from pathlib import Path
from typing import Any

import pytest
import torch
from lightning.pytorch import LightningModule
from lightning.pytorch.loggers import CSVLogger
from torch.utils.data import DataLoader

from callbacks import GenerationLog
from tests.small_runs import Tables, quiet_trainer, zeros


class Answers(LightningModule):
    """Answers numbers; the second loader's output has no generation."""

    def test_step(self, batch: Any, batch_idx: int, dataloader_idx: int = 0) -> dict[str, Any]:
        numbers = [int(number) for number in batch]
        if dataloader_idx:
            return {"id": [f"d{number}" for number in numbers], "nll": [0.5] * len(numbers)}
        return {
            "id": [f"id{number // 2}" for number in numbers],
            "split": ["retain" if number % 2 else "forget" for number in numbers],
            "generation": [f"answer \u00e9 {number}" for number in numbers],
            "loss": torch.tensor(0.0),
        }


def run(numbers: list[int], folder: Path, callback: GenerationLog, logger: Any = False) -> None:
    loaders: Any = [DataLoader(torch.tensor(numbers), batch_size=3), DataLoader(torch.arange(2))]
    quiet_trainer(folder, callback, logger=logger).test(Answers(), loaders, verbose=False)


def read(path: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()]


def test_every_row_once_and_sorted(tmp_path: Path) -> None:
    run([3, 0, 2, 1, 0, 3], tmp_path, GenerationLog())
    rows = read(tmp_path / "generations.jsonl")
    expected = [("forget", "id0"), ("forget", "id1"), ("retain", "id0"), ("retain", "id1")]
    assert [(row["split"], row["id"]) for row in rows] == expected
    assert rows[1] == {"id": "id1", "split": "forget", "generation": "answer \u00e9 2"}


def test_a_second_test_keeps_the_first_file(tmp_path: Path) -> None:
    callback = GenerationLog()
    for numbers in ([0, 1], [0, 2], [0, 2]):
        run(numbers, tmp_path, callback)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["generations-1.jsonl", "generations.jsonl"]
    assert [row["id"] for row in read(tmp_path / "generations-1.jsonl")] == ["id0", "id1"]


@pytest.mark.parametrize(("table_rows", "sent"), [(None, 10), (4, 4), (0, 0)])
def test_a_table_goes_to_the_loggers_that_take_it(tmp_path: Path, table_rows: int | None, sent: int) -> None:
    logger = Tables(tmp_path)
    callback = GenerationLog(str(tmp_path / "own"), "answers.jsonl", table_rows)
    run(list(range(10)), tmp_path, callback, [CSVLogger(tmp_path), logger])
    assert len(read(tmp_path / "own" / "answers.jsonl")) == 10
    for key, columns, data in logger.tables:
        assert (key, columns) == ("test/generations", ["id", "split", "generation"])
        assert {row[1] for row in data} == {"forget", "retain"}
    assert [len(data) for *_, data in logger.tables] == [sent] * (sent > 0)


class Nameless(LightningModule):
    def test_step(self, batch: Any, batch_idx: int) -> dict[str, Any]:
        return {"generation": ["x"] * len(batch)}


class Scored(LightningModule):
    def test_step(self, batch: Any, batch_idx: int) -> dict[str, Any]:
        return {"id": ["x"] * len(batch), "nll": [1.0] * len(batch)}


class Untested(LightningModule): ...


def test_bad_use_is_refused(tmp_path: Path) -> None:
    trainer = quiet_trainer(tmp_path, GenerationLog())
    with pytest.raises(ValueError, match="asks for 'id' beside 'generation'"):
        trainer.test(Nameless(), zeros(), verbose=False)
    with pytest.warns(UserWarning, match=r"no output of Scored\.test_step had 'generation'"):
        trainer.test(Scored(), zeros(), verbose=False)
    assert not list(tmp_path.iterdir())
    with pytest.raises(TypeError, match=r"asks for Untested\.test_step\(\), which is missing"):
        GenerationLog().setup(trainer, Untested(), "test")
    with pytest.raises(ValueError, match="filename must be a name without folders"):
        GenerationLog(filename="a/b.jsonl")
    with pytest.raises(ValueError, match="table_rows must not be negative, got -1"):
        GenerationLog(table_rows=-1)


@pytest.mark.slow
def test_two_processes_write_one_file(two_processes: Path) -> None:
    rows = read(two_processes / "generations.jsonl")
    assert [row["generation"][-1] for row in rows] == ["0", "2", "4", "1", "3"]
