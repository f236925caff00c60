from pathlib import Path
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from lightning.pytorch import Callback, LightningModule
from torch import Tensor, nn
from torch.utils.data import DataLoader

from callbacks import AdversarialWeightPerturbation
from tests.small_runs import quiet_trainer

IMAGES = torch.rand(8, 5, generator=torch.Generator().manual_seed(0))
LABELS = torch.arange(8) % 3
BATCH = {"adversarial": IMAGES + 0.1, "label": LABELS}


class Robust(LightningModule):
    """The two methods that the callback asks for, with a shift for an attack."""

    def __init__(self, lr: float = 0.1, dropout: float = 0.0) -> None:
        super().__init__()
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(0)
            layers = [nn.Linear(5, 6), nn.BatchNorm1d(6), nn.ReLU(), nn.Dropout(dropout), nn.Linear(6, 3)]
            self.network = nn.Sequential(*layers)
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
    """Keeps the weights at the loss and at the optimizer step, and the loss and its gradient."""

    def __init__(self) -> None:
        self.at_loss: list[dict[str, Tensor]] = []
        self.at_step: list[dict[str, Tensor]] = []
        self.losses: list[float] = []
        self.gradient: dict[str, Tensor] = {}

    def on_before_backward(self, trainer: Any, pl_module: Any, loss: Any) -> None:
        self.at_loss.append(weights(pl_module))
        self.losses.append(float(loss.detach()))

    def on_before_optimizer_step(self, trainer: Any, pl_module: Any, optimizer: Any) -> None:
        self.at_step.append(weights(pl_module))
        self.gradient = {name: p.grad.clone() for name, p in pl_module.named_parameters()}


def weights(module: nn.Module) -> dict[str, Tensor]:
    return {name: p.detach().clone() for name, p in module.named_parameters()}


def equal(first: dict[str, Tensor], second: dict[str, Tensor]) -> bool:
    return all(torch.equal(first[name], second[name]) for name in first)


def fit(folder: Path, module: LightningModule, *callbacks: Callback, **options: Any) -> None:
    data: Any = [{"image": image, "label": label} for image, label in zip(IMAGES, LABELS, strict=True)]
    loader = DataLoader(data, batch_size=8, generator=torch.Generator())
    quiet_trainer(folder, *callbacks, **options).fit(module, loader)


def test_the_gradient_is_taken_at_moved_weights_and_the_step_from_the_own_ones(tmp_path: Path) -> None:
    module, watch, plain = Robust(), Watch(), Watch()
    start, twin = weights(module), dict(Robust().named_parameters())
    matrices = [name for name, p in twin.items() if p.ndim > 1]
    copy = Robust()
    gradients = torch.autograd.grad(copy.adversarial_loss(BATCH), [copy.get_parameter(name) for name in matrices])
    fit(tmp_path, module, AdversarialWeightPerturbation(0.1), watch)
    for name, gradient in zip(matrices, gradients, strict=True):
        move = 0.1 * start[name].norm() * gradient / gradient.norm()
        torch.testing.assert_close(watch.at_loss[0][name], start[name] + move, atol=1e-6, rtol=0)
    for name, before in start.items():
        assert name in matrices or torch.equal(watch.at_loss[0][name], before)
        assert torch.equal(watch.at_step[0][name], before)  # bit for bit
        torch.testing.assert_close(module.get_parameter(name), before - 0.1 * watch.gradient[name])
    moved = Robust()
    moved.load_state_dict(watch.at_loss[0], strict=False)
    expected = torch.autograd.grad(moved.adversarial_loss(BATCH), list(moved.parameters()))
    for (name, _), gradient in zip(moved.named_parameters(), expected, strict=True):
        torch.testing.assert_close(watch.gradient[name], gradient)
    assert module.attacks == 1
    fit(tmp_path, Robust(), plain)
    assert watch.losses[0] > plain.losses[0] + 0.01


def test_weights_buffers_and_random_numbers_are_left_alone(tmp_path: Path) -> None:
    states: list[tuple[Tensor, Tensor]] = []
    for callbacks in ([], [AdversarialWeightPerturbation(0.3)]):
        module = Robust(lr=0.0, dropout=0.2)
        before = weights(module)
        torch.manual_seed(5)
        fit(tmp_path, module, *callbacks, max_epochs=2, accumulate_grad_batches=2)
        assert equal(before, weights(module))
        states.append((module.network[1].num_batches_tracked.clone(), torch.get_rng_state()))
    assert states[0][0] == states[1][0] == 2
    assert torch.equal(states[0][1], states[1][1])


def test_epochs_of_warm_up_move_nothing(tmp_path: Path) -> None:
    watch = Watch()
    fit(tmp_path, Robust(), AdversarialWeightPerturbation(0.1, warmup_epochs=2), watch, max_epochs=3)
    assert [equal(a, b) for a, b in zip(watch.at_loss, watch.at_step, strict=True)] == [True, True, False]


def test_weights_come_back_when_there_is_no_backward_pass_or_an_error(tmp_path: Path) -> None:
    class Skips(Robust):
        def training_step(self, batch: Any, batch_idx: int) -> Tensor | None:
            if self.current_epoch:
                raise KeyError("stop")
            return None

    module = Skips()
    before = weights(module)
    with pytest.raises(KeyError, match="stop"):
        fit(tmp_path, module, AdversarialWeightPerturbation(), max_epochs=2)
    assert equal(before, weights(module))


def test_bad_use_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="gamma must be positive and finite, got 0"):
        AdversarialWeightPerturbation(0.0)
    with pytest.raises(ValueError, match="warmup_epochs must not be negative, got -1"):
        AdversarialWeightPerturbation(warmup_epochs=-1)
    mute = type("Mute", (Robust,), {"adversarial_loss": None})()
    with pytest.raises(TypeError, match=r"asks for Mute\.adversarial_loss\(batch\), which is missing"):
        fit(tmp_path, mute, AdversarialWeightPerturbation())
    manual = Robust()
    manual.automatic_optimization = False
    with pytest.raises(ValueError, match="Robust optimizes by itself"):
        fit(tmp_path, manual, AdversarialWeightPerturbation())
