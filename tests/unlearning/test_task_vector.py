"""Task vectors: from the first weights the opposite way."""

from pathlib import Path
from typing import Any

import pytest
import torch
from lightning.pytorch.callbacks import ModelCheckpoint

from lit_modules.unlearning.task_vector import TaskVector
from tests.unlearning.conftest import Optimizer, lora


def test_adapters_are_multiplied_and_agree_with_the_formula(bench: Any, sgd: Optimizer) -> None:
    deltas = []
    for strength in (1.0, 3.0):
        module = TaskVector(bench.network(), strength=strength, peft_config=lora(), optimizer=sgd)
        bench.fit(module, bench.pairs(8))
        deltas.append([m.get_delta_weight("default") for m in module.model.modules() if hasattr(m, "get_delta_weight")])
        assert module._start == []
    for one, three in zip(*deltas, strict=True):
        assert one.abs().sum() > 0
        torch.testing.assert_close(three, 3 * one)


def test_forget_loss_falls_in_training_and_is_high_after_it(bench: Any) -> None:
    module = TaskVector(bench.network(), strength=1.0, optimizer=lambda p: torch.optim.SGD(p, lr=0.5))
    trainer = bench.fit(module, bench.pairs(24) * 5)
    tuned = float(trainer.callback_metrics["train/forget_loss"])
    (numbers,) = trainer.validate(module, bench.labelled(), verbose=False)
    assert numbers["val/forget_loss"] > tuned


def test_what_cannot_be_negated_resumed_or_tested_is_refused(bench: Any, tmp_path: Path, sgd: Optimizer) -> None:
    def fit(module: TaskVector, name: str | None = None, epochs: int = 2) -> None:
        checkpoint = None if name is None else str(tmp_path / f"{name}.ckpt")
        bench.trainer(max_epochs=epochs).fit(module, bench.loader(bench.pairs(24)), ckpt_path=checkpoint)

    saver = ModelCheckpoint(dirpath=tmp_path, every_n_epochs=1, save_top_k=-1, filename="{epoch}")
    module = TaskVector(bench.network(), optimizer=sgd)
    trainer = bench.fit(module, bench.pairs(24), [saver], enable_checkpointing=True)
    trainer.save_checkpoint(tmp_path / "after.ckpt")
    drawn = TaskVector(bench.network(), peft_config=lora(init_lora_weights=False))
    calls: list[tuple[Any, str]] = [
        (lambda: fit(drawn), r"LoRA adapters that begin at 0 .* got LoraConfig that trains"),
        (lambda: fit(TaskVector(bench.network()), "after"), "has negated the weights, so it cannot be resumed"),
        (lambda: fit(TaskVector(bench.network(seed=5)), "epoch=0"), "written by a run that began with the model"),
        (lambda: fit(module), "has ended its training; make a new one"),
        (
            lambda: fit(TaskVector(bench.network()), "epoch=0", 1),
            "nothing left to train, so TaskVector has not negated",
        ),
    ]
    for call, message in calls:
        with pytest.raises(ValueError, match=message):
            call()
    with pytest.raises(ValueError, match="was written during training, and TaskVector negates"):
        bench.trainer().test(
            TaskVector(bench.network()), bench.labelled(), str(tmp_path / "epoch=0.ckpt"), verbose=False
        )
