"""Adversarial weight perturbation (AWP)."""

import math
from typing import Any

import torch
from lightning.pytorch import Callback, LightningModule, Trainer
from torch import Tensor, nn

from lit_modules.utils.random_state import preserved_random_state


class AdversarialWeightPerturbation(Callback):
    """Take each training gradient at weights that were moved to raise the loss.

    Before a step every weight of more than one dimension moves along the gradient of the loss, by ``gamma`` times its
    own norm: ``w + gamma ||w|| g / ||g||`` for each tensor. The loss and its gradient are taken there, then the weights
    are put back, bit for bit, and the optimizer steps from them. This flattens the loss around the weights and
    lowers robust overfitting. The authors get the direction from one step of SGD on a copy; the rate of that step
    cancels in the normalisation, so there is none here. A step costs one more forward and backward pass.

    Asks of the module two methods. ``adversarial_batch(batch)`` returns the batch, a dict, with the attack's samples
    under ``adversarial``; the batch is extended by them, and a training step must not attack a batch that has it again.
    ``adversarial_loss(batch)`` returns the training loss of such a batch, a scalar tensor with gradient. Works with
    automatic optimization alone. Buffers, as those of batch normalisation, and the random state are left alone by the
    extra pass. Tried on one device and with DDP, where the direction is averaged over the processes.

    Args:
        gamma: Length of the move, as a share of each weight's norm; the paper has 0.01 with PGD training and 0.005 with
            TRADES.
        warmup_epochs: Epochs at the start without a move; the authors have 10 with TRADES.

    Raises:
        ValueError: If an argument is out of its range.

    References:
        Wu, Xia, Wang, "Adversarial weight perturbation helps robust generalization" (arXiv 2004.05884), algorithm 1.
    """

    def __init__(self, gamma: float = 0.01, warmup_epochs: int = 0) -> None:
        if not 0 < gamma < math.inf:
            raise ValueError(f"gamma must be positive and finite, got {gamma}.")
        if warmup_epochs < 0:
            raise ValueError(f"warmup_epochs must not be negative, got {warmup_epochs}.")
        self.gamma = gamma
        self.warmup_epochs = warmup_epochs
        self._saved: list[tuple[nn.Parameter, Tensor]] = []

    def setup(self, trainer: Trainer, pl_module: LightningModule, stage: str) -> None:
        """Check that the module offers the two methods and optimizes automatically."""
        if stage != "fit":
            return
        name = type(pl_module).__name__
        for method in ("adversarial_batch", "adversarial_loss"):
            if not callable(getattr(pl_module, method, None)):
                raise TypeError(f"AdversarialWeightPerturbation asks for {name}.{method}(batch), which is missing.")
        if not pl_module.automatic_optimization:
            raise ValueError(
                f"AdversarialWeightPerturbation works with automatic optimization, and {name} optimizes by itself."
            )

    def on_train_batch_start(self, trainer: Trainer, pl_module: LightningModule, batch: Any, batch_idx: int) -> None:
        """Attack the batch and move the weights."""
        if trainer.current_epoch < self.warmup_epochs:
            return
        module: Any = pl_module
        batch.update(module.adversarial_batch(batch))
        weights = [weight for weight in pl_module.parameters() if weight.requires_grad and weight.ndim > 1]
        buffers = [(buffer, buffer.detach().clone()) for buffer in pl_module.buffers()]
        with preserved_random_state(pl_module.device), trainer.precision_plugin.forward_context():
            loss = module.adversarial_loss(batch)
            gradients = torch.autograd.grad(loss, weights, allow_unused=True)
        with torch.no_grad():
            for buffer, before in buffers:
                buffer.copy_(before)
            for weight, own in zip(weights, gradients, strict=True):
                if own is None:
                    continue
                gradient = trainer.strategy.reduce(own, reduce_op="mean")
                length = self.gamma * weight.norm() / gradient.norm().clamp_min(1e-20)
                self._saved.append((weight, weight.detach().clone()))
                weight.add_(gradient * length)

    def on_after_backward(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Put the weights back, before the optimizer steps."""
        self._restore()

    def on_train_batch_end(
        self, trainer: Trainer, pl_module: LightningModule, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        """Put the weights back if the step had no backward pass."""
        self._restore()

    def on_exception(self, trainer: Trainer, pl_module: LightningModule, exception: BaseException) -> None:
        """Put the weights back when the training breaks off."""
        self._restore()

    def _restore(self) -> None:
        with torch.no_grad():
            for weight, before in self._saved:
                weight.copy_(before)
        self._saved = []
