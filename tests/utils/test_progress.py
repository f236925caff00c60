"""Bars of long work within a step: beside the trainer's bar, and alone."""

import os
import pty
import subprocess
import sys
from typing import Any

import pytest
import torch
from lightning.pytorch import LightningModule, Trainer
from lightning.pytorch.callbacks import ProgressBar, RichProgressBar, TQDMProgressBar
from lightning.pytorch.strategies import Strategy
from torch import Tensor, nn
from torch.utils.data import DataLoader, TensorDataset
from transformers import LlamaConfig, LlamaForCausalLM

from lit_modules.adversarial.core.adversarial_set import attack_dataset
from lit_modules.attacks import AutoAttack, LinfPGD
from lit_modules.unlearning.core.generation import greedy_generate
from lit_modules.utils import progress
from lit_modules.utils.progress import alone, count_pass, shown, step, track


@pytest.fixture
def terminal(monkeypatch: pytest.MonkeyPatch) -> None:
    """A terminal on which no bar is too short or drawn too often."""
    monkeypatch.setattr(progress, "on_screen", lambda: True)
    monkeypatch.setattr(progress, "DELAY", 0.0)
    monkeypatch.setattr(progress, "PERIOD", 0.0)
    monkeypatch.setenv("FORCE_COLOR", "1")  # rich takes the output for a terminal


class Worker(LightningModule):
    """A module whose test takes long."""

    def test_step(self, batch: Any, batch_idx: int, dataloader_idx: int = 0) -> None:
        with shown(self.trainer), step("inner work", 3) as bar:
            for part in range(3):
                bar.say(f"part {part}")
                with step("unknown end"):
                    count_pass()
                bar.advance()


def run_a_test(callback: ProgressBar | None, **arguments: Any) -> Trainer:
    trainer = Trainer(
        accelerator="cpu",
        logger=False,
        enable_model_summary=False,
        enable_checkpointing=False,
        callbacks=[callback] if callback is not None else [],
        **arguments,
    )
    trainer.test(Worker(), DataLoader(torch.zeros(2)), verbose=False)
    return trainer


@pytest.mark.parametrize("kind", [TQDMProgressBar, RichProgressBar])
def test_bar_of_the_work_is_drawn_beside_that_of_the_trainer(
    kind: type[ProgressBar], terminal: None, capsys: pytest.CaptureFixture[str]
) -> None:
    run_a_test(kind())
    text = capsys.readouterr().out
    assert "Testing" in text
    assert "inner work: part 2" in text
    assert "unknown end: 1 passes" in text
    assert "3/3" in text or "2/3" in text


@pytest.mark.parametrize("kind", [TQDMProgressBar, RichProgressBar])
def test_bar_before_the_trainer_has_one(
    kind: type[ProgressBar], terminal: None, capsys: pytest.CaptureFixture[str]
) -> None:
    trainer = Trainer(accelerator="cpu", logger=False, enable_checkpointing=False, callbacks=[kind()])
    with shown(trainer):
        assert list(track(range(4), "reading rows")) == [0, 1, 2, 3]
    assert "reading rows" in capsys.readouterr().out


def test_nothing_is_drawn_without_a_bar_or_a_terminal(
    terminal: None, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    run_a_test(None, enable_progress_bar=False)
    run_a_test(TQDMProgressBar(refresh_rate=0))
    with shown(None), step("work"):
        count_pass()
    with alone(show=False):
        list(track([1], "work"))
    assert "work" not in capsys.readouterr().out
    monkeypatch.setattr(progress, "on_screen", lambda: False)
    run_a_test(TQDMProgressBar())
    with alone(), step("work") as bar:
        bar.advance()
    assert "work" not in capsys.readouterr().out


def test_only_the_first_process_draws(
    terminal: None, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    trainer = Trainer(accelerator="cpu", logger=False, enable_checkpointing=False)
    monkeypatch.setattr(type(trainer.strategy), "is_global_zero", property(lambda self: False))
    assert isinstance(trainer.strategy, Strategy)
    with shown(trainer):
        list(track([1, 2], "work"))
        assert not progress.is_shown()
    assert "work" not in capsys.readouterr().out


def test_short_work_has_no_bar(
    terminal: None, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(progress, "DELAY", 60.0)
    with alone(), step("work", 2) as bar:
        bar.advance()
        count_pass()
    assert capsys.readouterr().out == ""
    assert bar.done == 1


def test_autoattack_shows_attacks_and_samples_left(terminal: None, capsys: pytest.CaptureFixture[str]) -> None:
    torch.manual_seed(0)
    model, x = nn.Linear(8, 5), torch.rand(6, 8)
    attack = AutoAttack(norm="linf", eps=0.02, version="custom", attacks=[LinfPGD(eps=0.02, steps=3)])
    labels: Tensor = model(x).argmax(1)
    silent = attack.run(model, x, labels)
    assert capsys.readouterr().out == ""
    result = attack.run(model, x, labels, progress=True)
    assert torch.equal(silent.adversarial, result.adversarial)
    assert silent.num_queries.tolist() == result.num_queries.tolist()
    text = capsys.readouterr().out
    assert "AutoAttack linf: linfpgd, 6 of 6 left" in text
    assert " passes" in text


def test_generation_moves_a_bar_for_each_token(terminal: None, capsys: pytest.CaptureFixture[str]) -> None:
    torch.manual_seed(0)
    config = LlamaConfig(
        vocab_size=50, hidden_size=16, intermediate_size=32, num_hidden_layers=1, num_attention_heads=2
    )
    model = LlamaForCausalLM(config)
    rows = torch.randint(3, 50, (2, 4))
    silent = greedy_generate(model, rows, torch.ones_like(rows), 5, None, 0)
    with alone():
        answers = greedy_generate(model, rows, torch.ones_like(rows), 5, None, 0)
    assert [row.tolist() for row in answers] == [row.tolist() for row in silent]
    text = capsys.readouterr().out
    assert "tokens of 2 answers" in text
    assert "3/5" in text


def test_batches_of_an_adversarial_set_are_counted(terminal: None, capsys: pytest.CaptureFixture[str]) -> None:
    model = nn.Sequential(nn.Flatten(), nn.Linear(4, 3))
    data = TensorDataset(torch.rand(6, 1, 2, 2), torch.arange(6) % 3)
    attack_dataset(model, LinfPGD(eps=0.1, steps=1), data, batch_size=2, progress=True)
    text = capsys.readouterr().out
    assert "batches attacked" in text
    assert "2/3" in text


def test_a_terminal_is_a_screen_and_a_file_is_none() -> None:
    code = "from lit_modules.utils.progress import on_screen; print(on_screen())"
    piped = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert piped.stdout == "False\n"
    ours, theirs = pty.openpty()
    subprocess.run([sys.executable, "-c", code], stdout=theirs, check=True)
    assert os.read(ours, 100).decode().strip() == "True"


def test_the_last_text_of_a_busy_moment_is_drawn(
    terminal: None, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(progress, "PERIOD", 60.0)
    with alone(), step("work", 2) as bar:
        bar.say("first")
        bar.advance()
        bar.say("second")
        count_pass()
    text = capsys.readouterr().out
    assert "work: second" in text
    assert "passes" not in text
