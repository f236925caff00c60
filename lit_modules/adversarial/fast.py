"""Fast adversarial training: one step from a random start, with a guard against catastrophic overfitting."""

import math
import warnings
from collections.abc import Iterable
from typing import Any, Literal

from lightning.pytorch.cli import OptimizerCallable
from torch import Tensor, nn
from torch.optim import SGD, Optimizer

from lit_modules.adversarial.core.base import AdversarialArguments, Batch
from lit_modules.adversarial.core.defaults import pgd_like, triangle
from lit_modules.adversarial.pgd import PGDTraining
from lit_modules.attacks.engine.base import Attack
from lit_modules.attacks.pgd import LinfPGD
from lit_modules.utils.arguments import Unpack


def fast_optimizer(parameters: Iterable[nn.Parameter]) -> Optimizer:
    """Build SGD at a rate of 0.2 with momentum 0.9 and weight decay 5e-4."""
    return SGD(parameters, lr=0.2, momentum=0.9, weight_decay=5e-4)


class FastTraining(PGDTraining):
    """Train on one step of 1.25 eps from a uniform start in the ball (FGSM-RS).

    Such training can collapse within a few steps: the accuracy under a stronger attack falls to nothing while the loss
    looks well. The guard attacks the first training batch of the epoch with PGD of 5 steps, after each epoch or every
    ``guard_interval`` steps, and logs its accuracy as ``train/guard_accuracy``. If this falls by more than
    ``guard_drop`` from one check to the next, ``stop`` puts back the weights of the last good check and ends the
    training, ``warn`` only says so, and ``off`` never checks. Its state is kept in the checkpoint.

    Without a ``scheduler``, and with ``scheduler_interval="step"``, the rate rises from 0 to the optimizer's at half of
    the training and falls back to 0.

    Batches, validation and test: see :class:`lit_modules.adversarial.core.base.AdversarialTraining`. Each step logs
    ``train/loss`` and ``train/robust_accuracy``, both on the adversarial samples.

    Args:
        classifier: Gives logits ``(batch, classes)`` for images in [0, 1].
        attack: Finds the adversarial samples, with ``keep="last"``; by default one step of 10/255 in Linf, eps 8/255.
            For MNIST the paper has eps 0.3 and a step of 0.375. Unlike the authors' code the attack sees the
            classifier in evaluation mode, unless it has ``model_mode="keep"``.
        guard: What happens when the accuracy under the guard's attack falls.
        guard_drop: Fall between two checks that counts as a collapse, as a share of the batch.
        guard_interval: Optimizer steps between two checks; ``None`` checks after each epoch.
        guard_attack: Attack of the guard; by default PGD of 5 steps of a quarter of the radius of ``attack``.
        optimizer: Builds the optimizer; by default the paper's for CIFAR10, SGD at 0.2 with momentum 0.9 and weight
            decay 5e-4 (15 epochs, batches of 128). For MNIST it has Adam at 5e-3, 10 epochs, batches of 100.
        shared: Arguments of :class:`lit_modules.adversarial.core.base.AdversarialTraining`, by name.

    Raises:
        ValueError: If an argument is out of its range.

    Example:
        >>> FastTraining(nn.Sequential(nn.Flatten(), nn.Linear(64, 10))).attack.steps
        1

    References:
        Wong, Rice, Kolter, "Fast is better than free: revisiting adversarial training" (arXiv 2001.03994), algorithm 3.
    """

    def __init__(
        self,
        classifier: nn.Module,
        attack: Attack | None = None,
        guard: Literal["stop", "warn", "off"] = "stop",
        guard_drop: float = 0.2,
        guard_interval: int | None = None,
        guard_attack: Attack | None = None,
        optimizer: OptimizerCallable = fast_optimizer,
        **shared: Unpack[AdversarialArguments],
    ) -> None:
        if guard not in ("stop", "warn", "off"):
            raise ValueError(f"guard must be 'stop', 'warn' or 'off', got {guard!r}.")
        if not 0 < guard_drop < 1:
            raise ValueError(f"guard_drop must lie in (0, 1), got {guard_drop}.")
        if guard_interval is not None and guard_interval < 1:
            raise ValueError(f"guard_interval must be at least 1 step, got {guard_interval}.")
        attack = attack or LinfPGD(eps=8 / 255, steps=1, step_size=10 / 255, keep="last")
        super().__init__(classifier, attack, optimizer, **shared)
        self.guard, self.guard_drop, self.guard_interval = guard, guard_drop, guard_interval
        self.guard_attack = guard_attack or pgd_like(attack, 5, 0.25, "guard_attack")
        self._guard: dict[str, Any] = {}

    def training_step(self, batch: Batch, batch_idx: int) -> Tensor | None:
        """Attack the batch by one step and return its loss."""
        if self.guard != "off" and (batch_idx == 0 or "image" not in self._guard):
            images, labels = self.unpack(batch)
            self._guard |= {"image": images.detach(), "label": labels.detach()}
        return super().training_step(batch, batch_idx)

    def on_train_batch_end(self, outputs: Any, batch: Batch, batch_idx: int) -> None:
        """Check for a collapse, before the validation sees the weights."""
        if self._check_due():
            self.log("train/guard_accuracy", self.check_collapse(), on_step=True, on_epoch=False)

    def on_train_start(self) -> None:
        """Make the check that was due where the run was stopped: checkpoints are written before it."""
        super().on_train_start()
        if self.global_step and self._check_due():
            self.check_collapse()

    def check_collapse(self) -> float:
        """Return the accuracy under the guard's attack, and act if it fell since the last check."""
        self._guard["step"] = self.global_step
        images, labels = (self._guard[name].to(self.device) for name in ("image", "label"))
        result = self.guard_attack.run(self.classifier, images, labels)
        accuracy = float(self.trainer.strategy.reduce((~result.success).double().mean(), reduce_op="mean"))
        before = self._guard.get("accuracy", -math.inf)
        if not before - accuracy > self.guard_drop:
            weights = {name: value.detach().clone() for name, value in self.classifier.state_dict().items()}
            self._guard |= {"accuracy": accuracy, "weights": weights}
            return accuracy
        if self.guard == "stop":
            self.classifier.load_state_dict(self._guard["weights"])
            self.trainer.should_stop = True
            end = "the last good weights are put back and the training ends."
        else:
            self._guard["accuracy"] = accuracy
            end = "guard='stop' would put back the last good weights."
        warnings.warn(
            f"Catastrophic overfitting at step {self.global_step}: the accuracy on a training batch under "
            f"{self.guard_attack!r} fell from {before:.3f} to {accuracy:.3f}; {end}",
            stacklevel=2,
        )
        return accuracy

    def _check_due(self) -> bool:
        if self.guard == "off" or "image" not in self._guard or self.global_step == self._guard.get("step"):
            return False  # the last also where several batches share a step
        return self.global_step % self.guard_interval == 0 if self.guard_interval else self.trainer.is_last_batch

    def build_scheduler(self, optimizer: Any) -> Any:
        """Return the scheduler given, or the cycle over the training."""
        if self.scheduler is None and self.scheduler_interval == "step":
            return triangle(optimizer, self.trainer)
        return super().build_scheduler(optimizer)

    def on_save_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        """Keep what the guard has seen."""
        super().on_save_checkpoint(checkpoint)
        checkpoint["lit_modules_guard"] = self._guard

    def on_load_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        """Take up what the guard has seen."""
        super().on_load_checkpoint(checkpoint)
        if self._trainer is not None and self._trainer.state.fn == "fit":
            self._guard = dict(checkpoint.get("lit_modules_guard", {}))
