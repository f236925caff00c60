"""Fast training: the guard against catastrophic overfitting, and the cycle of the rate."""

import warnings
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import torch
from lightning.pytorch import Callback
from lightning.pytorch.callbacks import ModelCheckpoint

from lit_modules.adversarial.fast import FastTraining
from lit_modules.attacks.pgd import LinfPGD


class Collapse(Callback):
    """Point the classifier at the wrong class from one epoch on, as a collapse would."""

    def __init__(self, epoch: int) -> None:
        self.epoch = epoch
        self.good: dict[str, torch.Tensor] = {}
        self.epochs: list[int] = []

    def on_train_epoch_start(self, trainer: Any, pl_module: Any) -> None:
        self.epochs.append(trainer.current_epoch)
        if trainer.current_epoch == self.epoch:
            self.good = {name: value.clone() for name, value in pl_module.classifier.state_dict().items()}
            with torch.no_grad():
                pl_module.classifier[-1].weight.mul_(-1)


def module(bench: Any, **arguments: Any) -> FastTraining:
    settings: dict[str, Any] = {
        "attack": LinfPGD(eps=0.1, steps=1, step_size=0.125, keep="last"),
        "optimizer": partial(torch.optim.SGD, lr=0.1),
        "scheduler": partial(torch.optim.lr_scheduler.LambdaLR, lr_lambda=lambda step: 1.0 if step < 30 else 0.0),
    }
    return FastTraining(bench.network(norm=True), **(settings | arguments))


def test_the_guard_puts_back_the_last_good_weights_and_stops(bench: Any) -> None:
    fast, collapse = module(bench), Collapse(10)
    trainer = bench.trainer([collapse], max_epochs=20)
    with pytest.warns(UserWarning, match=r"Catastrophic overfitting at step 33: .* fell from .* put back"):
        trainer.fit(fast, bench.loader(), bench.loader(seed=1))
    assert collapse.epochs == list(range(11))
    for name, value in fast.classifier.state_dict().items():
        assert torch.equal(value, collapse.good[name]), name
    # the validation of the last epoch saw the good weights
    assert float(trainer.callback_metrics["val/accuracy"]) > 0.9
    assert float(trainer.callback_metrics["train/guard_accuracy"]) < 0.5


def test_the_guard_may_only_warn_or_be_off(bench: Any) -> None:
    collapse = Collapse(10)
    with pytest.warns(UserWarning, match="guard='stop' would put back") as seen:
        bench.fit(module(bench, guard="warn"), [collapse], max_epochs=13)
    assert len([one for one in seen if "Catastrophic" in str(one.message)]) == 1
    assert len(collapse.epochs) == 13
    with warnings.catch_warnings():
        warnings.filterwarnings("error", message="Catastrophic")
        trainer = bench.fit(module(bench, guard="off"), [Collapse(10)], max_epochs=13)
    assert "train/guard_accuracy" not in trainer.callback_metrics


def test_the_guard_stays_silent_in_a_healthy_run(bench: Any) -> None:
    fast, checks = module(bench, guard_interval=2), []
    attack = fast.guard_attack.run
    fast.guard_attack.run = lambda *arguments: (checks.append(fast.global_step), attack(*arguments))[1]  # type: ignore
    with warnings.catch_warnings():
        warnings.filterwarnings("error", message="Catastrophic")
        bench.fit(fast, max_epochs=3)
    assert checks == [2, 4, 6, 8]


def test_what_the_guard_has_seen_survives_a_resume(bench: Any, tmp_path: Path) -> None:
    keep = ModelCheckpoint(tmp_path, filename="{epoch}", save_top_k=-1)
    first = module(bench)
    bench.fit(first, [keep], max_epochs=10, enable_checkpointing=True)
    second, collapse = module(bench), Collapse(10)
    with pytest.warns(UserWarning, match="Catastrophic overfitting at step 33"):
        bench.fit(second, [collapse], ckpt_path=tmp_path / "epoch=9.ckpt", max_epochs=20)
    assert collapse.epochs == [10]
    assert torch.equal(bench.vector(second.classifier), bench.vector(first.classifier))


def test_the_default_schedule_is_a_cycle(bench: Any) -> None:
    fast = module(bench, scheduler=None, guard="off")
    rates: list[float] = []

    class Rates(Callback):
        def on_before_optimizer_step(self, trainer: Any, pl_module: Any, optimizer: Any) -> None:
            rates.append(optimizer.param_groups[0]["lr"])

    bench.fit(fast, [Rates()], max_epochs=2)
    assert rates == pytest.approx([0.1 * share for share in (1 / 6, 3 / 6, 5 / 6, 5 / 6, 3 / 6, 1 / 6)])
    with pytest.raises(ValueError, match="needs an end of the training"):
        bench.fit(module(bench, scheduler=None), max_epochs=-1, max_steps=-1)


@pytest.mark.parametrize(
    ("arguments", "sentence"),
    [
        ({"guard": "halt"}, "guard must be 'stop', 'warn' or 'off', got 'halt'"),
        ({"guard_drop": 20}, r"guard_drop must lie in \(0, 1\), got 20"),
        ({"guard_interval": 0}, "guard_interval must be at least 1 step, got 0"),
    ],
)
def test_bad_arguments_are_refused(arguments: dict[str, Any], sentence: str, bench: Any) -> None:
    with pytest.raises(ValueError, match=sentence):
        module(bench, **arguments)
