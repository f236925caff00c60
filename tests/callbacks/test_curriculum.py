import math
from pathlib import Path
from typing import Any

import pytest
import torch
from lightning.pytorch import Callback, LightningModule, Trainer
from torch import Tensor
from torch.utils.data import DataLoader, Dataset, Sampler

from callbacks import Curriculum
from tests.small_runs import OneWeight, quiet_trainer


class Stages(Sampler[int]):
    """Six items, two of each stage; the least that the callback asks for."""

    def __init__(self, starts: list[int]) -> None:
        self.starts, self.epoch = starts, 0

    def set_epoch(self, epoch: int) -> None:
        self.epoch = epoch

    @property
    def stage(self) -> int | None:
        return sum(start <= self.epoch for start in self.starts) - 1 if self.starts else None

    def promote(self) -> bool:
        stage = self.stage
        if stage is None or stage + 1 >= len(self.starts) or self.starts[stage + 1] <= self.epoch + 1:
            return False
        self.starts[stage + 1] = self.epoch + 1
        return True

    def __len__(self) -> int:
        return 2

    def __iter__(self) -> Any:
        return iter([2 * (self.stage or 0), 2 * (self.stage or 0) + 1])


class Pairs(Dataset[dict[str, Any]]):
    def __getitem__(self, item: int) -> dict[str, Any]:
        return {"tdistance": item / 10}


class Module(OneWeight):
    """Logs the scores it was given, one a validation."""

    def __init__(self, scores: list[float] | None = None) -> None:
        super().__init__()
        self.scores = scores or []

    def training_step(self, batch: dict[str, Tensor], batch_idx: int) -> Tensor:
        loss: Tensor = self.layer(batch["tdistance"].float().unsqueeze(-1)).sum()
        return loss

    def validation_step(self, batch: Any, batch_idx: int) -> None:
        self.log("val/recall", self.scores[self.current_epoch])


class Numbers(Callback):
    """Keeps what each epoch logged."""

    def __init__(self) -> None:
        self.seen: list[dict[str, float]] = []

    def on_train_epoch_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        self.seen.append({name: round(float(value), 4) for name, value in trainer.callback_metrics.items()})


def fit(
    folder: Path,
    callback: Callback,
    sampler: Any,
    scores: list[float] | None = None,
    resume: Path | None = None,
    **options: Any,
) -> tuple[list[dict[str, float]], Trainer]:
    numbers = Numbers()
    trainer = quiet_trainer(folder, numbers, callback, num_sanity_val_steps=1, **options)
    loader = DataLoader(Pairs(), batch_size=1, sampler=Stages(sampler) if isinstance(sampler, list) else sampler)
    validation = DataLoader([0.0]) if scores else None  # type: ignore[arg-type]
    trainer.fit(Module(scores), loader, validation, ckpt_path=resume, weights_only=True if resume else None)
    return numbers.seen, trainer


def test_stages_and_mean_distances_are_logged(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    with caplog.at_level("INFO"):
        seen, _ = fit(tmp_path, Curriculum(), [0, 1, 3], max_epochs=4)
    assert [numbers["curriculum/stage"] for numbers in seen] == [0, 1, 1, 2]
    assert [numbers["curriculum/tdistance"] for numbers in seen] == [0.05, 0.25, 0.25, 0.45]
    messages = [record.message for record in caplog.records if record.message.startswith("Curriculum")]
    assert messages == [f"Curriculum: stage {stage} in epoch {epoch}." for stage, epoch in ((0, 0), (1, 1), (2, 3))]
    assert set(fit(tmp_path, Curriculum(), [])[1].callback_metrics) == {"curriculum/tdistance"}
    assert not fit(tmp_path, Curriculum(distance_key=None), [])[1].callback_metrics


@pytest.mark.parametrize(
    ("scores", "options", "starts"),
    [
        # better each time: the schedule decides
        ([0.1, 0.2, 0.3, 0.4, 0.5, 0.6, 0.7, 0.8, 0.9], {}, [0, 3, 6]),
        # no better in epoch 1; each stage begins its own count, and the schedule ends the second one
        ([0.5, 0.5, 0.1, 0.2, 0.3, 0.4, 0.5, 0.5, 0.5], {}, [0, 2, 6]),
        ([0.5, 0.5, 0.1, 0.1, 0.0, 0.0, 0.0, 0.0, 0.0], {}, [0, 2, 4]),
        ([0.5, 0.5, 0.6, 0.5, 0.5, 0.5, 0.0, 0.0, 0.0], {"patience": 2}, [0, 3, 6]),
        ([0.5, 0.55, 0.6, 0.5, 0.5, 0.5, 0.0, 0.0, 0.0], {"min_delta": 0.1}, [0, 2, 4]),
        ([0.5, 0.5, 0.4, 0.3, 0.2, 0.1, 0.0, 0.0, 0.0], {"mode": "min"}, [0, 2, 6]),
        ([math.nan] * 9, {}, [0, 1, 2]),
    ],
)
def test_a_metric_brings_stages_forward(
    tmp_path: Path, scores: list[float], options: dict[str, Any], starts: list[int]
) -> None:
    sampler = Stages([0, 3, 6])
    fit(tmp_path, Curriculum("val/recall", **options), sampler, scores, max_epochs=9)
    assert sampler.starts == starts


def test_a_resumed_run_keeps_what_the_metric_decided(tmp_path: Path) -> None:
    scores = [0.5, 0.4, 0.4, 0.7, 0.7, 0.7, 0.7, 0.7, 0.7]
    whole = Stages([0, 5, 8])
    callback = Curriculum("val/recall", patience=2)
    fit(tmp_path, callback, whole, scores, max_epochs=9)
    assert whole.starts == [0, 3, 6]
    first = Curriculum("val/recall", patience=2)
    for stop in (2, 4, 7):
        _, trainer = fit(tmp_path, first, [0, 5, 8], scores, max_epochs=stop)
        trainer.save_checkpoint(tmp_path / "run.ckpt")
        sampler, then = Stages([0, 5, 8]), Curriculum("val/recall", patience=2)
        fit(tmp_path, then, sampler, scores, tmp_path / "run.ckpt", max_epochs=9)
        assert sampler.starts == whole.starts
        assert then.state_dict() == callback.state_dict()


def test_a_second_run_begins_anew(tmp_path: Path) -> None:
    callback = Curriculum("val/recall")
    for _ in range(2):
        sampler = Stages([0, 3, 6])
        fit(tmp_path, callback, sampler, [0.5] * 2, max_epochs=2)
        assert sampler.starts == [0, 2, 6]


def test_what_is_missing_is_named(tmp_path: Path) -> None:
    with pytest.raises(TypeError, match=r"asks for a training sampler with stages and found SequentialSampler"):
        fit(tmp_path, Curriculum(), torch.utils.data.SequentialSampler([0]))
    with pytest.raises(TypeError, match=r"asks for batch\['distance'\], .* and found tdistance; add it"):
        fit(tmp_path, Curriculum(distance_key="distance"), [0])
    with pytest.raises(ValueError, match=r"Curriculum\(monitor='val/recall'\) ends stages, and .* Stages has none"):
        fit(tmp_path, Curriculum("val/recall"), [], [0.1])
    with pytest.raises(RuntimeError, match="watches 'val/clip', which Module does not log in validation; it logs"):
        fit(tmp_path, Curriculum("val/clip"), [0, 1], [0.1])
    callback = Curriculum()
    callback.load_state_dict({"starts": [0, 1], "best": None, "waited": 0, "stage": 0})
    with pytest.raises(ValueError, match="has a curriculum of 2 stages, got a sampler with 3"):
        callback._restore(Stages([0, 3, 6]))
    for arguments, message in (
        ({"mode": "up"}, "mode must be 'max' or 'min', got 'up'"),
        ({"patience": 0}, "patience must be at least 1 validation, got 0"),
        ({"min_delta": -1}, "min_delta must be at least 0 and finite, got -1"),
    ):
        with pytest.raises(ValueError, match=message):
            Curriculum(**arguments)  # type: ignore[arg-type]
