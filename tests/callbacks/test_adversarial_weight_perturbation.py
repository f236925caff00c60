from pathlib import Path
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from lightning.pytorch import Callback, LightningModule, Trainer
from torch import Tensor, nn
from torch.utils.data import DataLoader

from callbacks import AdversarialWeightPerturbation

IMAGES = torch.rand(8, 5, generator=torch.Generator().manual_seed(0))
LABELS = torch.arange(8) % 3


class Robust(LightningModule):
    """The two methods that the callback asks for, with a shift for an attack."""

    def __init__(self, lr: float = 0.1) -> None:
        super().__init__()
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(0)
            self.network = nn.Sequential(
                nn.Linear(5, 6), nn.BatchNorm1d(6), nn.ReLU(), nn.Dropout(0.2), nn.Linear(6, 3)
            )
        self.lr = lr
        self.attacks = 0

    def adversarial_batch(self, batch: dict[str, Tensor]) -> dict[str, Tensor]:
        self.attacks += 1
        return batch | {"adversarial": batch["image"] + 0.1}

    def adversarial_loss(self, batch: dict[str, Tensor]) -> Tensor:
        return F.cross_entropy(self.network(batch["adversarial"]), batch["label"])

    def training_step(self, batch: dict[str, Tensor], batch_idx: int) -> Tensor | None:
        return self.adversarial_loss(batch if "adversarial" in batch else self.adversarial_batch(batch))

    def configure_optimizers(self) -> Any:
        return torch.optim.SGD(self.parameters(), lr=self.lr)


class Watch(Callback):
    """Keep the weights at the loss, at the optimizer step and after it."""

    def __init__(self) -> None:
        self.at_loss: list[dict[str, Tensor]] = []
        self.at_step: list[dict[str, Tensor]] = []
        self.gradient: dict[str, Tensor] = {}

    def on_before_backward(self, trainer: Any, pl_module: Any, loss: Any) -> None:
        self.at_loss.append({name: p.detach().clone() for name, p in pl_module.named_parameters()})

    def on_before_optimizer_step(self, trainer: Any, pl_module: Any, optimizer: Any) -> None:
        self.at_step.append({name: p.detach().clone() for name, p in pl_module.named_parameters()})
        self.gradient = {name: p.grad.clone() for name, p in pl_module.named_parameters()}


def fit(folder: Path, module: LightningModule, callbacks: list[Callback], **arguments: Any) -> Trainer:
    data: Any = [{"image": image, "label": label} for image, label in zip(IMAGES, LABELS, strict=True)]
    settings: dict[str, Any] = {
        "accelerator": "cpu",
        "devices": 1,
        "max_epochs": 1,
        "callbacks": callbacks,
        "logger": False,
        "enable_checkpointing": False,
        "enable_progress_bar": False,
        "enable_model_summary": False,
        "default_root_dir": folder,
    }
    trainer = Trainer(**(settings | arguments))
    trainer.fit(module, DataLoader(data, batch_size=8, generator=torch.Generator()))
    return trainer


def test_the_gradient_is_taken_at_moved_weights_and_the_step_from_the_own_ones(tmp_path: Path) -> None:
    module, watch = Robust(), Watch()
    module.network[3].p = 0.0
    start = {name: p.detach().clone() for name, p in module.named_parameters()}
    batch = {"adversarial": IMAGES + 0.1, "label": LABELS}
    twin = Robust()
    twin.network[3].p = 0.0
    names = [name for name, p in twin.named_parameters() if p.ndim > 1]
    gradients = torch.autograd.grad(twin.adversarial_loss(batch), [dict(twin.named_parameters())[n] for n in names])
    fit(tmp_path, module, [AdversarialWeightPerturbation(0.1), watch])
    for name, gradient in zip(names, gradients, strict=True):
        move = 0.1 * start[name].norm() * gradient / gradient.norm()
        torch.testing.assert_close(watch.at_loss[0][name], start[name] + move, atol=1e-6, rtol=0)
    for name, before in start.items():
        assert name in names or torch.equal(watch.at_loss[0][name], before)
        assert torch.equal(watch.at_step[0][name], before)  # bit for bit
        torch.testing.assert_close(module.get_parameter(name), before - 0.1 * watch.gradient[name])
    moved = Robust()
    moved.network[3].p = 0.0
    moved.load_state_dict(watch.at_loss[0], strict=False)
    expected = torch.autograd.grad(moved.adversarial_loss(batch), list(moved.parameters()))
    for (name, _), gradient in zip(moved.named_parameters(), expected, strict=True):
        torch.testing.assert_close(watch.gradient[name], gradient)
    assert module.attacks == 1


def test_the_loss_is_higher_at_the_moved_weights(tmp_path: Path) -> None:
    losses: list[float] = []
    for callbacks in ([], [AdversarialWeightPerturbation(0.2)]):

        class Losses(Callback):
            def on_before_backward(self, trainer: Any, pl_module: Any, loss: Any) -> None:
                losses.append(float(loss.detach()))

        module = Robust()
        module.network[3].p = 0.0
        fit(tmp_path, module, [*callbacks, Losses()])
    assert losses[1] > losses[0] + 0.01


def test_buffers_and_random_numbers_are_left_alone(tmp_path: Path) -> None:
    states: list[tuple[Tensor, Tensor]] = []
    for callbacks in ([], [AdversarialWeightPerturbation()]):
        module = Robust(lr=0.0)
        torch.manual_seed(5)
        fit(tmp_path, module, list(callbacks), max_epochs=2)
        states.append((module.network[1].num_batches_tracked.clone(), torch.get_rng_state()))
    assert states[0][0] == states[1][0] == 2
    assert torch.equal(states[0][1], states[1][1])


def test_no_step_leaves_a_trace_at_rate_zero(tmp_path: Path) -> None:
    module = Robust(lr=0.0)
    before = [p.detach().clone() for p in module.parameters()]
    fit(tmp_path, module, [AdversarialWeightPerturbation(0.3)], max_epochs=3, accumulate_grad_batches=2)
    assert all(torch.equal(a, b) for a, b in zip(before, module.parameters(), strict=True))


def test_epochs_of_warm_up_move_nothing(tmp_path: Path) -> None:
    watch = Watch()
    fit(tmp_path, Robust(), [AdversarialWeightPerturbation(0.1, warmup_epochs=2), watch], max_epochs=3)
    same = [all(torch.equal(a[n], b[n]) for n in a) for a, b in zip(watch.at_loss, watch.at_step, strict=True)]
    assert same == [True, True, False]


def test_weights_come_back_when_there_is_no_backward_pass_or_an_error(tmp_path: Path) -> None:
    class Skips(Robust):
        def training_step(self, batch: Any, batch_idx: int) -> Tensor | None:
            if self.current_epoch:
                raise KeyError("stop")
            return None

    module = Skips()
    before = [p.detach().clone() for p in module.parameters()]
    with pytest.raises(KeyError, match="stop"):
        fit(tmp_path, module, [AdversarialWeightPerturbation()], max_epochs=2)
    assert all(torch.equal(a, b) for a, b in zip(before, module.parameters(), strict=True))


def test_bad_use_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="gamma must be positive and finite, got 0"):
        AdversarialWeightPerturbation(0.0)
    with pytest.raises(ValueError, match="warmup_epochs must not be negative, got -1"):
        AdversarialWeightPerturbation(warmup_epochs=-1)
    mute = type("Mute", (Robust,), {"adversarial_loss": None})()
    with pytest.raises(TypeError, match=r"asks for Mute\.adversarial_loss\(batch\), which is missing"):
        fit(tmp_path, mute, [AdversarialWeightPerturbation()])
    manual = Robust()
    manual.automatic_optimization = False
    with pytest.raises(ValueError, match="Robust optimizes by itself"):
        fit(tmp_path, manual, [AdversarialWeightPerturbation()])
