import json
import math
from pathlib import Path
from typing import Any

import pytest
import torch
from lightning.pytorch import Callback, LightningModule, Trainer
from torch.utils.data import DataLoader

from callbacks import ForgetStopping


class Rising(LightningModule):
    """Logs 1, 2, 3, ... nats at its optimizer steps, of which each takes ``accumulate`` batches."""

    vocab_size = 55  # a guess costs 4.007 nats

    def __init__(self, accumulate: int = 1, name: str = "train/forget_loss") -> None:
        super().__init__()
        self.automatic_optimization = False
        self.layer = torch.nn.Linear(1, 1)
        self.accumulate, self.name = accumulate, name

    def training_step(self, batch: Any, batch_idx: int) -> None:
        if (batch_idx + 1) % self.accumulate:
            return
        optimizer: Any = self.optimizers()
        optimizer.step()
        self.log(self.name, self.loss())

    def loss(self) -> float:
        return float(self.global_step)

    def configure_optimizers(self) -> Any:
        return torch.optim.SGD(self.parameters(), lr=0.1)


def fit(
    module: LightningModule, callback: Callback, folder: Path, *more: Callback, ckpt_path: Any = None, **arguments: Any
) -> Trainer:
    settings = {"max_epochs": 1, "devices": 1, "enable_checkpointing": False} | arguments
    trainer = Trainer(
        accelerator="cpu",
        callbacks=[callback, *more],
        logger=False,
        enable_progress_bar=False,
        enable_model_summary=False,
        default_root_dir=folder,
        **settings,
    )
    trainer.fit(module, DataLoader(torch.zeros(20, 1), batch_size=1), ckpt_path=ckpt_path)  # type: ignore[arg-type]
    return trainer


def test_stops_at_the_loss_of_a_guess(tmp_path: Path) -> None:
    with pytest.warns(
        UserWarning, match=r"Over-unlearning: .* 2 optimizer steps is 4\.500 nats at step 5, at or above "
    ):
        trainer = fit(Rising(), ForgetStopping(window=2), tmp_path)
    assert trainer.global_step == 5


def test_warns_once_and_goes_on(tmp_path: Path) -> None:
    with pytest.warns(UserWarning, match="Over-unlearning") as warnings:
        trainer = fit(Rising(), ForgetStopping(level=3.0, action="warn", window=1), tmp_path)
    assert trainer.global_step == 20
    assert len([w for w in warnings if "Over-unlearning" in str(w.message)]) == 1


def test_waits_for_a_full_window_and_counts_optimizer_steps(tmp_path: Path) -> None:
    with pytest.warns(UserWarning, match="is 2.000 nats at step 3"):
        trainer = fit(Rising(accumulate=4), ForgetStopping(level=0.5, window=3), tmp_path)
    assert trainer.global_step == 3


def test_a_reference_is_read(tmp_path: Path) -> None:
    file = tmp_path / "reference.json"
    file.write_text(json.dumps({"val/forget_loss": 6.5, "val/retain_loss": 1.0}), encoding="utf-8")
    with pytest.warns(UserWarning, match=r"level 6\.500 \(the reference in .*reference\.json\)"):
        trainer = fit(Rising(), ForgetStopping(level=str(file), window=1), tmp_path)
    assert trainer.global_step == 7


def test_min_steps_go_first(tmp_path: Path) -> None:
    with pytest.warns(UserWarning, match="Over-unlearning"):
        trainer = fit(Rising(), ForgetStopping(level=2.0, window=1), tmp_path, min_steps=9, min_epochs=0)
    assert trainer.global_step == 9


def test_a_second_fit_starts_an_empty_window(tmp_path: Path) -> None:
    callback = ForgetStopping(level=4.5, window=2)
    for _ in range(2):
        with pytest.warns(UserWarning, match="is 4.500 nats at step 5"):
            assert fit(Rising(), callback, tmp_path).global_step == 5


class SaveAt3(Callback):
    def on_train_batch_end(self, trainer: Trainer, *arguments: Any) -> None:
        if trainer.global_step == 3:
            trainer.save_checkpoint(Path(trainer.default_root_dir) / "run.ckpt")


def test_a_resumed_run_keeps_its_window(tmp_path: Path) -> None:
    fit(Rising(), ForgetStopping(level=4.5, action="warn", window=4), tmp_path, SaveAt3(), max_steps=4)
    callback = ForgetStopping(level=4.5, window=4)
    with pytest.warns(UserWarning, match="is 4.500 nats at step 6"):
        resumed = fit(Rising(), callback, tmp_path, ckpt_path=tmp_path / "run.ckpt")
    assert resumed.global_step == 6
    assert callback.state_dict() == {"losses": [3.0, 4.0, 5.0, 6.0], "warned": True}


def test_nan_losses_are_not_past_the_level(tmp_path: Path) -> None:
    module = Rising()
    module.loss = lambda: math.nan  # type: ignore[method-assign]
    assert fit(module, ForgetStopping(window=1), tmp_path).global_step == 20


def test_bad_arguments_are_refused(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="action must be 'stop' or 'warn', got 'halt'"):
        ForgetStopping(action="halt")  # type: ignore[arg-type]
    with pytest.raises(ValueError, match="window must be at least 1"):
        ForgetStopping(window=0)
    for level in (0.0, -1.0, math.inf, math.nan):
        with pytest.raises(ValueError, match="level must be positive and finite"):
            ForgetStopping(level=level)
    with pytest.raises(FileNotFoundError, match="level must be 'uniform', a loss in nats or a JSON file"):
        ForgetStopping(level=str(tmp_path / "absent.json"))
    file = tmp_path / "reference.json"
    for text, message in (("{}", "must be a JSON object"), ("[", "must be a JSON object"), ("[3]", "JSON object")):
        file.write_text(text, encoding="utf-8")
        with pytest.raises(ValueError, match=message):
            ForgetStopping(level=str(file))
    file.write_text('{"val/forget_loss": "high"}', encoding="utf-8")
    with pytest.raises(ValueError, match="must be a number, got 'high'"):
        ForgetStopping(level=str(file))


class Plain(Rising):
    vocab_size = None  # type: ignore[assignment]


def test_what_the_module_lacks_is_named(tmp_path: Path) -> None:
    with pytest.raises(TypeError, match=r"asks for Plain\.vocab_size"):
        fit(Plain(), ForgetStopping(), tmp_path)
    with pytest.raises(RuntimeError, match="watches 'train/forget_loss', which Rising does not log"):
        fit(Rising(name="train/loss"), ForgetStopping(), tmp_path)


@pytest.mark.slow
def test_all_ranks_stop_together(two_processes: Path) -> None:
    steps = [torch.load(two_processes / f"{rank}.pt", weights_only=True)["stopped"] for rank in range(2)]
    assert steps == [3, 3]
