"""Task vectors: from the first weights the opposite way."""

from pathlib import Path
from typing import Any

import pytest
import torch
from lightning.pytorch.callbacks import ModelCheckpoint
from peft import LoraConfig

from lit_modules.unlearning.task_vector import TaskVector
from tests.unlearning.conftest import Optimizer


def test_adapters_are_multiplied_and_agree_with_the_formula(bench: Any, sgd: Optimizer) -> None:
    inputs = {key: bench.forget[key] for key in ("input_ids", "attention_mask")}
    deltas = []
    for strength in (1.0, 3.0):
        torch.manual_seed(0)
        network = bench.network()
        module = TaskVector(
            network, strength=strength, peft_config=LoraConfig(r=2, target_modules=["q_proj"]), optimizer=sgd
        )
        bench.fit(module, bench.pairs(8))
        deltas.append([m.get_delta_weight("default") for m in module.model.modules() if hasattr(m, "get_delta_weight")])
        assert module._start == []
        module.model(**inputs)
    for one, three in zip(*deltas, strict=True):
        assert one.abs().sum() > 0
        torch.testing.assert_close(three, 3 * one)


def test_forget_loss_falls_in_training_and_is_high_after_it(bench: Any) -> None:
    module = TaskVector(bench.network(), strength=1.0, optimizer=lambda p: torch.optim.SGD(p, lr=0.5))
    trainer = bench.fit(module, bench.pairs(24) * 5)
    tuned = float(trainer.callback_metrics["train/forget_loss"])
    (numbers,) = trainer.validate(module, bench.loader([{**bench.forget, "split": ["forget"] * 24}]), verbose=False)
    assert numbers["val/forget_loss"] > tuned


def test_what_cannot_be_negated_or_resumed_is_refused(bench: Any, tmp_path: Path, sgd: Optimizer) -> None:
    lora = LoraConfig(r=2, target_modules=["q_proj"], init_lora_weights=False)
    with pytest.raises(ValueError, match=r"LoRA adapters that begin at 0 .* got LoraConfig that trains"):
        bench.fit(TaskVector(bench.network(), peft_config=lora), bench.pairs(24))
    saver = ModelCheckpoint(dirpath=tmp_path, every_n_epochs=1, save_top_k=-1, filename="{epoch}")
    module = TaskVector(bench.network(), optimizer=sgd)
    trainer = bench.fit(module, bench.pairs(24), [saver], enable_checkpointing=True)
    trainer.save_checkpoint(tmp_path / "after.ckpt")
    with pytest.raises(ValueError, match="TaskVector has negated the weights, so it cannot be resumed"):
        bench.trainer(max_epochs=2).fit(
            TaskVector(bench.network()), bench.loader(bench.pairs(24)), ckpt_path=str(tmp_path / "after.ckpt")
        )
    with pytest.raises(ValueError, match="written by a run that began with the model"):
        bench.trainer(max_epochs=2).fit(
            TaskVector(bench.network(seed=5)), bench.loader(bench.pairs(24)), ckpt_path=str(tmp_path / "epoch=0.ckpt")
        )
    with pytest.raises(ValueError, match="has ended its training; make a new one"):
        bench.fit(module, bench.pairs(24))


def test_a_model_that_is_only_fine_tuned_is_neither_tested_nor_saved_in_silence(
    bench: Any, tmp_path: Path, sgd: Optimizer
) -> None:
    saver = ModelCheckpoint(dirpath=tmp_path, every_n_epochs=1, save_top_k=-1, filename="{epoch}")
    bench.fit(TaskVector(bench.network(), optimizer=sgd), bench.pairs(24), [saver], enable_checkpointing=True)
    path = str(tmp_path / "epoch=0.ckpt")
    asked = bench.loader([{**bench.forget, "split": ["forget"] * 24}])
    with pytest.raises(ValueError, match="was written during training, and TaskVector negates"):
        bench.trainer().test(TaskVector(bench.network()), asked, ckpt_path=path, verbose=False)
    with pytest.raises(ValueError, match="nothing left to train, so TaskVector has not negated"):
        bench.trainer().fit(TaskVector(bench.network()), bench.loader(bench.pairs(24)), ckpt_path=path)
