"""Free adversarial training: one backward pass serves the weights and the perturbation."""

import math
from collections.abc import Iterable
from typing import Any

import torch
from lightning.pytorch.cli import OptimizerCallable
from torch import Tensor, nn
from torch.nn import functional as F
from torch.optim import SGD, Optimizer
from torch.optim.lr_scheduler import ReduceLROnPlateau

from lit_modules.adversarial.core.base import AdversarialArguments, AdversarialTraining, Batch
from lit_modules.adversarial.core.defaults import triangle
from lit_modules.attacks.pgd import LinfPGD
from lit_modules.utils.arguments import Unpack


def free_optimizer(parameters: Iterable[nn.Parameter]) -> Optimizer:
    """Build SGD at a rate of 0.04 with momentum 0.9 and weight decay 5e-4."""
    return SGD(parameters, lr=0.04, momentum=0.9, weight_decay=5e-4)


class FreeTraining(AdversarialTraining):
    """Replay each batch, and let one backward pass update the weights and the perturbation.

    For each of ``replays`` passes over a batch the loss is taken at ``x + delta``, clipped to [0, 1]; its gradient
    moves the weights by one optimizer step, and ``delta <- clip(delta + step_size sign(gradient), -eps, eps)``. The
    perturbation is kept from batch to batch, and in the checkpoint. Train for ``1 / replays`` of the usual epochs.

    Without a ``scheduler``, and with ``scheduler_interval="step"``, the rate rises from 0 to the optimizer's at half of
    the training and falls back to 0.

    Optimization is manual: every replay counts as one step of the trainer, and clipping is set by ``clip_norm``. The
    classifier is in training mode throughout. Batches, validation and test: see
    :class:`lit_modules.adversarial.core.base.AdversarialTraining`. Each batch logs ``train/loss`` (mean over the
    replays) and ``train/robust_accuracy`` (last replay). Tried on one device and with DDP.

    Args:
        classifier: Gives logits ``(batch, classes)`` for images in [0, 1].
        eps: Linf radius in units of pixel range [0, 1].
        step_size: Step of the perturbation, in the same units; ``None`` takes ``eps``, as the paper.
        replays: Passes over each batch, ``m`` in the paper.
        clip_norm: Largest norm of the gradient; ``None`` leaves it alone.
        optimizer: Builds the optimizer from the trainable parameters; by default SGD at 0.04 with momentum 0.9 and
            weight decay 5e-4.
        shared: Arguments of :class:`lit_modules.adversarial.core.base.AdversarialTraining`, by name.

    Raises:
        ValueError: If an argument is out of its range.

    Example:
        >>> module = FreeTraining(nn.Sequential(nn.Flatten(), nn.Linear(64, 10)))
        >>> module.replays
        8

    References:
        Shafahi et al., "Adversarial training for free!" (arXiv 1904.12843), algorithm 1; the cycle of the rate is that
        of Wong, Rice, Kolter (arXiv 2001.03994).
    """

    def __init__(
        self,
        classifier: nn.Module,
        eps: float = 8 / 255,
        step_size: float | None = None,
        replays: int = 8,
        clip_norm: float | None = None,
        optimizer: OptimizerCallable = free_optimizer,
        **shared: Unpack[AdversarialArguments],
    ) -> None:
        for name, value in (("eps", eps), ("step_size", step_size), ("clip_norm", clip_norm)):
            if value is not None and not 0 < value < math.inf:
                raise ValueError(f"{name} must be positive and finite, got {value}.")
        if replays < 1:
            raise ValueError(f"replays must be at least 1, got {replays}.")
        super().__init__(classifier, LinfPGD(eps=eps), optimizer=optimizer, **shared)
        self.automatic_optimization = False
        self.eps = eps
        self.step_size = eps if step_size is None else step_size
        self.replays = replays
        self.clip_norm = clip_norm
        self._delta: Tensor | None = None

    def training_step(self, batch: Batch, batch_idx: int) -> None:
        """Replay the batch, one optimizer step for each pass."""
        images, labels = self.unpack(batch)
        optimizer: Any = self.optimizers()
        scheduler: Any = self.lr_schedulers() if self.scheduler_interval == "step" else None
        delta, total = self._perturbation(images)[: len(images)], torch.zeros((), device=images.device)
        for _ in range(self.replays):
            adversarial = (images + delta).clamp_(0, 1).requires_grad_()
            logits = self(adversarial)
            loss = F.cross_entropy(logits, labels)
            optimizer.zero_grad()
            self.manual_backward(loss)
            assert adversarial.grad is not None
            # the gradient at the clipped sample, which does not vanish where the clipping is at work
            delta.add_(adversarial.grad.sign(), alpha=self.step_size).clamp_(-self.eps, self.eps)
            if self.clip_norm is not None:
                self.clip_gradients(optimizer, self.clip_norm, "norm")
            optimizer.step()
            if scheduler is not None:
                scheduler.step()
            total += loss.detach()
        self.log_training(total / self.replays, {"robust_accuracy": logits}, labels)

    def on_train_epoch_end(self) -> None:
        """Move a scheduler that counts epochs."""
        scheduler: Any = self.lr_schedulers()
        if scheduler is not None and self.scheduler_interval == "epoch":
            scheduler.step()

    def build_scheduler(self, optimizer: Any) -> Any:
        """Return the scheduler given, or the cycle over all replays."""
        if self.scheduler is None and self.scheduler_interval == "step":
            return triangle(optimizer, self.trainer, self.replays)
        scheduler = super().build_scheduler(optimizer)
        if isinstance(scheduler, ReduceLROnPlateau):
            raise ValueError(
                "FreeTraining moves its scheduler by itself and without a metric; ReduceLROnPlateau needs one."
            )
        return scheduler

    def on_save_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        """Keep the perturbation of every process."""
        super().on_save_checkpoint(checkpoint)
        if self._delta is not None:
            gathered: Any = self.all_gather(self._delta)
            checkpoint["lit_modules_delta"] = gathered.reshape(-1, *self._delta.shape).cpu()

    def on_load_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        """Take up the perturbation."""
        super().on_load_checkpoint(checkpoint)
        delta = checkpoint.get("lit_modules_delta")
        fitting = self._trainer is not None and self._trainer.state.fn == "fit"
        # another number of processes cuts the batches anew: the perturbation then starts at 0
        if fitting and delta is not None and len(delta) == self.trainer.world_size:
            self._delta = delta[self.global_rank].to(self.device)

    def _perturbation(self, images: Tensor) -> Tensor:
        """Return the perturbation of the batch before, made longer by zeros for a batch larger than all before."""
        delta = images[:0] if self._delta is None else self._delta.to(images.device)
        if delta.shape[1:] != images.shape[1:]:
            delta = images[:0]
        self._delta = torch.cat([delta, torch.zeros_like(images[len(delta) :])])
        return self._delta
