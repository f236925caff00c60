import json
import math
from pathlib import Path
from typing import Any

import pytest
import torch
from lightning.pytorch import Callback, Trainer

from callbacks import ForgetStopping
from tests.small_runs import OneWeight, quiet_trainer, zeros


class Rising(OneWeight):
    """Logs 1, 2, 3, ... nats at its optimizer steps, of which each takes ``accumulate`` batches."""

    vocab_size: int | None = 55  # a guess costs 4.007 nats

    def __init__(self, accumulate: int = 1, name: str = "train/forget_loss", factor: float = 1.0) -> None:
        super().__init__()
        self.automatic_optimization = False
        self.accumulate, self.name, self.factor = accumulate, name, factor

    def training_step(self, batch: Any, batch_idx: int) -> None:
        if (batch_idx + 1) % self.accumulate:
            return
        optimizer: Any = self.optimizers()
        optimizer.step()
        self.log(self.name, self.factor * self.global_step)


def fit(
    module: Rising, callback: Callback, folder: Path, *more: Callback, ckpt_path: Any = None, **options: Any
) -> int:
    trainer = quiet_trainer(folder, callback, *more, **options)
    trainer.fit(module, zeros(20), ckpt_path=ckpt_path)
    return trainer.global_step


@pytest.mark.parametrize(
    ("module", "arguments", "options", "steps", "message"),
    [
        ({}, {"window": 2}, {}, 5, "last 2 optimizer steps is 4.500 nats at step 5, at or above the level 4.007 "),
        ({}, {"level": 3.0, "action": "warn", "window": 1}, {}, 20, "is 3.000 nats at step 3"),
        ({"accumulate": 4}, {"level": 0.5, "window": 3}, {}, 3, "is 2.000 nats at step 3"),
        ({}, {"level": 2.0, "window": 1}, {"min_steps": 9, "min_epochs": 0}, 9, "is 2.000 nats at step 2"),
    ],
    ids=["at the loss of a guess", "warns once", "full window of optimizer steps", "min_steps go first"],
)
def test_training_stops_at_the_level(
    module: Any, arguments: Any, options: Any, steps: int, message: str, tmp_path: Path
) -> None:
    with pytest.warns(UserWarning, match="Over-unlearning") as warnings:
        assert fit(Rising(**module), ForgetStopping(**arguments), tmp_path, **options) == steps
    (text,) = (str(warning.message) for warning in warnings if "Over-unlearning" in str(warning.message))
    assert message in text


def test_a_reference_is_read(tmp_path: Path) -> None:
    file = tmp_path / "reference.json"
    file.write_text(json.dumps({"val/forget_loss": 6.5, "val/retain_loss": 1.0}), encoding="utf-8")
    with pytest.warns(UserWarning, match=r"level 6\.500 \(the reference in .*reference\.json\)"):
        assert fit(Rising(), ForgetStopping(level=str(file), window=1), tmp_path) == 7


def test_a_second_fit_starts_an_empty_window(tmp_path: Path) -> None:
    callback = ForgetStopping(level=4.5, window=2)
    for _ in range(2):
        with pytest.warns(UserWarning, match="is 4.500 nats at step 5"):
            assert fit(Rising(), callback, tmp_path) == 5


class SaveAt3(Callback):
    def on_train_batch_end(self, trainer: Trainer, *arguments: Any) -> None:
        if trainer.global_step == 3:
            trainer.save_checkpoint(Path(trainer.default_root_dir) / "run.ckpt")


def test_a_resumed_run_keeps_its_window(tmp_path: Path) -> None:
    fit(Rising(), ForgetStopping(level=4.5, action="warn", window=4), tmp_path, SaveAt3(), max_steps=4)
    callback = ForgetStopping(level=4.5, window=4)
    with pytest.warns(UserWarning, match="is 4.500 nats at step 6"):
        assert fit(Rising(), callback, tmp_path, ckpt_path=tmp_path / "run.ckpt") == 6
    assert callback.state_dict() == {"losses": [3.0, 4.0, 5.0, 6.0], "warned": True}


def test_nan_losses_are_not_past_the_level(tmp_path: Path) -> None:
    assert fit(Rising(factor=math.nan), ForgetStopping(window=1), tmp_path) == 20


def test_bad_arguments_are_refused(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="action must be 'stop' or 'warn', got 'halt'"):
        ForgetStopping(action="halt")  # type: ignore[arg-type]
    with pytest.raises(ValueError, match="window must be at least 1"):
        ForgetStopping(window=0)
    for level in (0.0, math.inf, math.nan):
        with pytest.raises(ValueError, match="level must be positive and finite"):
            ForgetStopping(level=level)
    file = tmp_path / "reference.json"
    with pytest.raises(FileNotFoundError, match="level must be 'uniform', a loss in nats or a JSON file"):
        ForgetStopping(level=str(file))
    for text, message in (
        ("{}", "must be a JSON object"),
        ("[", "must be a JSON object"),
        ('{"val/forget_loss": "high"}', "must be a number, got 'high'"),
    ):
        file.write_text(text, encoding="utf-8")
        with pytest.raises(ValueError, match=message):
            ForgetStopping(level=str(file))


def test_what_the_module_lacks_is_named(tmp_path: Path) -> None:
    plain = type("Plain", (Rising,), {"vocab_size": None})()
    with pytest.raises(TypeError, match=r"asks for Plain\.vocab_size"):
        fit(plain, ForgetStopping(), tmp_path)
    with pytest.raises(RuntimeError, match="watches 'train/forget_loss', which Rising does not log"):
        fit(Rising(name="train/loss"), ForgetStopping(), tmp_path)


@pytest.mark.slow
def test_all_ranks_stop_together(two_processes: Path) -> None:
    steps = [torch.load(two_processes / f"{rank}.pt", weights_only=True)["stopped"] for rank in range(2)]
    assert steps == [3, 3]
